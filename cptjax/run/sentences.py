"""A few sentences of the user's own, whose masked words are filled at each evaluation.

B rows, L tokens, S masks of a row, N likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from cptjax.data.tokenizer import Encoder

MOST = 3  # tokens that are kept of each mask
SHOWN = 60  # characters of a sentence in a message
Filled = dict[str, list[list[tuple[str, float]]]]  # by sentence, of each mask: tokens and their probabilities


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences as rows, one in each."""

    texts: tuple[str, ...]
    tokenizer: tokenizers.Tokenizer
    token_BL: np.ndarray
    segment_BL: np.ndarray
    position_BS: np.ndarray  # of the masks; of a row with fewer its first token, over and over
    masks: tuple[int, ...]  # how many a row has

    def told(self, token_SBN: np.ndarray, share_SBN: np.ndarray) -> Filled:
        """What `step.fill_step` gave of all rows, in words."""
        return {
            text: [
                list(zip(map(self._word, token_SBN[s, row].tolist()), share_SBN[s, row].tolist(), strict=True))
                for s in range(masks)
            ]
            for row, (text, masks) in enumerate(zip(self.texts, self.masks, strict=True))
        }

    def _word(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False).strip() or str(
            self.tokenizer.id_to_token(token)
        )


def read(texts: Sequence[str], folder: Path, length: int) -> Sentences:
    """The sentences as rows of `length` tokens, by the tokenizer of `folder`; as in the documents of a store, special
    tokens are around each. Raises ValueError for one that has no mask token, or is longer than a row."""
    encoder = Encoder(folder)
    mask = encoder.special.mask
    if mask is None:
        raise ValueError(f"the tokenizer of {folder} has no mask token to fill: leave sentences out")
    for number, text in enumerate(texts):
        if text.encode(errors="ignore").decode() != text:
            raise ValueError(f"sentences.{number} {text!r} holds bytes that are no UTF-8: write them anew")
    before, after = encoder.around_one()
    rows = [[*before, *encoder.tokenizer.encode(text, add_special_tokens=False).ids, *after] for text in texts]
    places = [[place for place, token in enumerate(ids) if token == mask] for ids in rows]
    for number, (text, ids) in enumerate(zip(texts, rows, strict=True)):
        name = f"sentences.{number} {text if len(text) <= SHOWN else text[:SHOWN] + '...'!r}"
        if not places[number]:
            raise ValueError(
                f"{name} has no mask: write {encoder.tokenizer.id_to_token(mask)} where a word is to be filled in"
            )
        if len(ids) > length:
            raise ValueError(f"{name} has {len(ids)} tokens, data.sequence_length is {length}: shorten it")
    token_BL = np.zeros((len(rows), length), np.int32)
    segment_BL = np.zeros_like(token_BL)
    position_BS = np.zeros((len(rows), max(map(len, places))), np.int32)
    for row, ids in enumerate(rows):
        token_BL[row, : len(ids)], segment_BL[row, : len(ids)] = ids, 1
        position_BS[row, : len(places[row])] = places[row]
    return Sentences(tuple(texts), encoder.tokenizer, token_BL, segment_BL, position_BS, tuple(map(len, places)))
