"""What a sample of a store's documents is like: nearly the same again, repeating itself, in letters that were misread.

Documents are drawn by lot, so many tokens at most, whatever the store's size.

N documents drawn, W words and G passages of one.
"""

from typing import Any

import numpy as np

from cptjax.corpus.cleaning import SHINGLE, Cleaning, hash_ngrams, hash_words, signature
from cptjax.corpus.encodings import misread
from cptjax.corpus.repetitions import near_duplicates
from cptjax.data.store import Store
from cptjax.data.tokenizer import Encoder

DOCUMENTS, TOKENS = 2000, 500_000  # at most, which take a second or two


def draw(store: Store, encoder: Encoder, seed: int) -> dict[int, str]:
    """The text of documents of a store, decoded, by their number."""
    length_N = store.length_N
    drawn_N = np.random.default_rng(seed).choice(len(length_N), min(DOCUMENTS, len(length_N)), replace=False)
    drawn_N = drawn_N[: max(1, int((length_N[drawn_N].cumsum() <= TOKENS).sum()))]
    ids = [token_L[:TOKENS].tolist() for token_L in store.tokens(drawn_N.tolist())]
    return dict(zip(drawn_N.tolist(), encoder.tokenizer.decode_batch(ids), strict=True))


def facts(texts: list[str], of: int) -> dict[str, Any]:
    """Of texts drawn from `of` documents: how many are almost one before them (by `--duplicates near`; equal ones do
    not count), which share of their passages of SHINGLE words stood in the same text before, how many hold misread
    letters, and such letters."""
    words = [hash_words(text) for text in dict.fromkeys(texts)]
    first_N = near_duplicates(np.stack([signature(word_W) for word_W in words]), Cleaning.near_threshold)
    passages = [hash_ngrams(word_W, SHINGLE) for word_W in words]
    again = sum(len(passage_G) - len(np.unique(passage_G)) for passage_G in passages)
    misreadings = [letters for text in texts if (letters := misread(text))]
    return {
        "documents": len(texts),
        "of": of,
        "near": int((first_N != np.arange(len(first_N))).sum()),
        "repeated": again / max(1, sum(map(len, passages))),
        "misread": len(misreadings),
        "misread_letters": misreadings[0] if misreadings else None,
    }
