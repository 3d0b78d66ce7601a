"""How well a model fills masks in a text, by kind of word: every token of words that are drawn, each masked in turn.

The loss is that of pseudo-perplexity (Salazar et al. 2020, arXiv:1910.14659), with the later tokens of the same word
masked too (Kauf and Ivanova 2023, arXiv:2305.10588): a word's own pieces would tell it.

B rows, L tokens, N tokens of all rows, T asked tokens, U words of a text (one).
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.command.bar import bar
from cptjax.data.tokenizer import Encoder
from cptjax.families import encoder as network
from cptjax.model import Encoder as Network
from cptjax.shape import ModelConfig, Precision
from eval.heads import NO_ENTITIES, NO_TAG, NO_TEXT_TARGET, Batch, Targets
from eval.packed import Piece, by_text
from eval.tasks.splits import SEED
from eval.texts import WORD, Text
from eval.update import hidden_states

RUN = re.compile(r"\w*[^\W_]\w*")  # a word that is no punctuation
KINDS = ("all", "frequent", "rare", "number", "punctuation", "domain")
DOMAIN_TIMES = 10  # as often as in general text, at least
CHARACTERS_A_TOKEN = 16  # so long are tokens at most, on average: what is read around a word


@dataclass(frozen=True)
class Word:
    """A word to be filled in: the text around it, its characters there, and its kinds."""

    text: str
    start: int
    end: int
    kinds: frozenset[str]


# ---- words of a text, and their kinds


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in texts, in small letters."""
    return Counter(word.lower() for text in texts for word in RUN.findall(text))


def frequent_words(counts: Counter[str]) -> frozenset[str]:
    """The most frequent words, which together make half of all; those that begin with a digit do not count."""
    letters = [(word, times) for word, times in counts.most_common() if not word[0].isdigit()]
    before = itertools.accumulate((times for _, times in letters), initial=0)
    half = sum(times for _, times in letters) / 2
    return frozenset(word for (word, _), times in zip(letters, before, strict=False) if times < half)


def kinds_of(word: str, counts: Counter[str], frequent: frozenset[str], general: Counter[str] | None) -> frozenset[str]:
    """The kinds of a word of a text with these counts. Beside "all" it is of one of: "punctuation"; "number", which
    begins with a digit; "frequent"; "rare", all others. Of the last two those are "domain" too that are DOMAIN_TIMES as
    frequent as in a general text, where one is given, in which every word counts once more than it is there."""
    word = word.lower()
    if not RUN.search(word):
        return frozenset({"all", "punctuation"})
    if word[0].isdigit():
        return frozenset({"all", "number"})
    kinds = {"all", "frequent" if word in frequent else "rare"}
    if general is not None:
        here, there = counts[word] / counts.total(), (general[word] + 1) / (general.total() + 1)
        if here >= DOMAIN_TIMES * there:
            kinds.add("domain")
    return frozenset(kinds)


def draw(texts: Sequence[str], words: int, tokens: int, general: Counter[str] | None = None) -> list[Word]:
    """Draw words of texts by a seed, each as likely, with text for `tokens` tokens around each. They do not depend on
    any tokenizer: all models are asked the same. Raises ValueError where there is no word."""
    counts = count_words(texts)
    frequent = frequent_words(counts)
    ends = np.cumsum([sum(1 for _ in WORD.finditer(text)) for text in texts])
    if not len(ends) or not ends[-1]:
        raise ValueError("there is no word in the text: name one that has some")
    total = int(ends[-1])
    drawn = []
    for place in np.sort(np.random.default_rng(SEED).choice(total, min(words, total), replace=False)).tolist():
        number = int(np.searchsorted(ends, place, side="right"))
        first = int(ends[number - 1]) if number else 0
        match = next(itertools.islice(WORD.finditer(texts[number]), place - first, None))
        around, start = _around(texts[number], *match.span(), tokens * CHARACTERS_A_TOKEN // 2)
        kinds = kinds_of(match[0], counts, frequent, general)
        drawn.append(Word(around, start, start + len(match[0]), kinds))
    return drawn


def _around(text: str, start: int, end: int, characters: int) -> tuple[str, int]:
    """The text so far on each side of a word, up to a space there, and where the word begins in it."""
    first = text.rfind(" ", 0, max(0, start - characters)) + 1
    last = text.find(" ", end + characters)
    return text[first : last if last >= 0 else None], start - first


# ---- what a model makes of them


def windows(encoder: Encoder, words: Sequence[Word], tokens: int) -> list[Piece]:
    """A text for each token of each word, by a tokenizer with a mask token: at most `tokens` tokens around it, with it
    and the later tokens of its word masked. Raises ValueError where no word has a token."""
    mask = encoder.special.mask
    assert mask is not None
    before, after = encoder.around_one()
    room = tokens - len(before) - len(after)
    pieces = []
    encoded = encoder.with_offsets([word.text for word in words])
    for number, (word, (ids, offset_L2)) in enumerate(zip(words, encoded, strict=True)):
        of_word = np.flatnonzero((offset_L2[:, 0] < word.end) & (offset_L2[:, 1] > word.start))
        for place in of_word.tolist():
            masked = ids.copy()
            masked[of_word[of_word >= place]] = mask
            start = max(0, min(place - room // 2, len(ids) - room))
            token_L = np.array([*before, *masked[start : start + room], *after], np.int32)
            at = place - start + len(before)
            tag_L = np.full(len(token_L), NO_TAG, np.int32)
            tag_L[at] = ids[place]
            text = Text(number, 0, token_L, np.zeros_like(token_L), np.array([at]), 0, (0, 1))
            pieces.append(Piece(text, Targets({"tag": tag_L}, NO_TEXT_TARGET, NO_ENTITIES)))
    if not pieces:
        raise ValueError("the tokenizer makes no token of any word of the text: name another text")
    return pieces


@partial(jax.jit, static_argnums=0)
def target_losses(model: Network, params: Any, batch: Batch) -> jax.Array:
    """Of the tokens that a batch's tags ask for: the loss in nats, and whether the right one is the likeliest, [B, L,
    2]; 0 elsewhere. Logits are made of these alone."""
    (rows,) = batch["rows"]
    tag_N = rows["tag_BL"].reshape(-1)
    (at_T,) = jnp.nonzero(tag_N != NO_TAG, size=len(batch["group_T"]), fill_value=len(tag_N))  # these are dropped
    with model.precision.products():
        hidden_BLD = hidden_states(model, params, rows, None)
        own_T1D = hidden_BLD.reshape(-1, 1, hidden_BLD.shape[-1])[at_T]
        logits: Any = model.apply({"params": params}, own_T1D, method="logits")
    logits_TV, tag_T = logits[:, 0], tag_N[at_T]
    loss_T = -jnp.take_along_axis(jax.nn.log_softmax(logits_TV), tag_T[:, None], 1)[:, 0]
    told_T2 = jnp.stack([loss_T, (logits_TV.argmax(-1) == tag_T).astype(jnp.float32)], 1)
    return jnp.zeros((len(tag_N), 2)).at[at_T].set(told_T2, mode="drop").reshape(*rows["tag_BL"].shape, 2)


def fill(
    config: ModelConfig, params: Any, encoder: Encoder, words: Sequence[Word], tokens: int
) -> dict[str, dict[str, float]]:
    """What a model with a language-model head makes of words, by kind and measure; a kind without a word is left out.
    Raises as `windows` does."""
    pieces = windows(encoder, words, min(tokens, config.longest_document))
    model, params = network(config, Precision("float32")), jax.device_put(params)

    with bar(len(pieces), " masks") as shown:

        def read(told_BL2: np.ndarray, number: int, row: int, start: int, text: Text) -> tuple[int, float, float]:
            shown.update()
            return text.example, *told_BL2[row, start + text.word_U[0]].tolist()

        told = by_text(pieces, config.longest_document, partial(target_losses, model, params), read)
    return {
        kind: _measures(of_kind)
        for kind in KINDS
        if (of_kind := [each for each in told if kind in words[each[0]].kinds])
    }


def _measures(told: Sequence[tuple[int, float, float]]) -> dict[str, float]:
    number, loss, right = zip(*told, strict=True)
    words, mean = len(set(number)), sum(loss) / len(loss)
    return {
        "words": words,
        "tokens": len(told),
        "accuracy": sum(right) / len(right),
        "loss of a token": mean,
        "loss of a word": sum(loss) / words,  # the same whatever the tokenizer
        "pseudo-perplexity": math.exp(mean),
    }
