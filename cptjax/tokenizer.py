"""Tokenizers: from a folder or the Hub, their special tokens, and documents to ids.

L tokens of one document.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import tokenizers

from cptjax.files import TOKENIZER_FILES, copy_tokenizer, write_json

LONG_TEXT = 2**20  # characters: a longer text is encoded in pieces
LONGEST_WHOLE = 2**24  # characters: a longer text is cut even where no good place is found, for want of memory
CUT_CONTEXT = 1000  # characters on each side of a cut that must give the same ids with and without it
CUTS_TRIED = 100

# How each role is called in tokenizer_config.json, then how its token is usually written.
ROLES = {
    "bos": (("bos_token", "cls_token"), ("[CLS]", "<s>", "<bos>", "[BOS]")),
    "eos": (
        ("eos_token", "sep_token"),
        ("[SEP]", "</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>"),
    ),
    "pad": (("pad_token",), ("[PAD]", "<pad>", "<|padding|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a tokenizer's special tokens by role (None: it has none), and all of them, sorted."""

    bos: int | None
    eos: int | None
    pad: int | None
    mask: int | None
    unk: int | None
    all: tuple[int, ...]


def tokenizer_folder(path_or_id: Path | str) -> Path:
    """The folder holding `tokenizer.json`: a local one, or one fetched from the Hugging Face Hub.

    ValueError when it cannot be had.
    """
    folder = Path(path_or_id)
    if not folder.exists():
        name = str(path_or_id)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            raise ValueError(f"tokenizer folder {name} does not exist")
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"tokenizer {name} is no local folder and cannot be fetched from the Hugging Face Hub ({reason})"
            ) from None
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{path_or_id} holds no tokenizer.json: a folder with the file of the Hugging Face "
            "`tokenizers` library is needed"
        )
    return folder


def load_tokenizer(path_or_id: Path | str) -> tokenizers.Tokenizer:
    """The tokenizer of a folder or Hub id; it never truncates or pads. ValueError if unreadable.

    In text given to it "[MASK]" is the mask token; `prepare` turns that off for corpus text.
    """
    path = tokenizer_folder(path_or_id) / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 (the library raises the bare class)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a tokenizer ({reason})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_tokens(folder: Path | str, tokenizer: tokenizers.Tokenizer) -> SpecialTokens:
    """Special tokens as the folder's JSON files name them, else under their usual names."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = Path(folder) / file
        if path.is_file():
            try:
                named |= json.loads(path.read_bytes())
            except (ValueError, TypeError):
                raise ValueError(f"{path} is not a JSON object") from None
    ids: dict[str, int | None] = {}
    for role, (keys, usual) in ROLES.items():
        values = [named.get(key) for key in keys]
        written = [value["content"] if isinstance(value, dict) else value for value in values]
        found = [tokenizer.token_to_id(token) for token in (*written, *usual) if token]
        ids[role] = next((i for i in found if i is not None), None)
    added = tokenizer.get_added_tokens_decoder().items()
    every = {i for i, token in added if token.special} | {i for i in ids.values() if i is not None}
    return SpecialTokens(**ids, all=tuple(sorted(every)))


class Encoder:
    """Text to ids, with what the tokenizer puts around a document; a document always ends with `eos`.

    `dtype` is the smallest that holds every id. ValueError when the tokenizer cannot end a document.
    """

    def __init__(self, folder: Path):
        self.tokenizer = load_tokenizer(folder)
        self.tokenizer.encode_special_tokens = True  # "[MASK]" in a user's text stays text
        self.special = special_tokens(folder, self.tokenizer)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        probe = self.tokenizer.encode("a")
        added = "".join(map(str, probe.special_tokens_mask))
        if "0" not in added:
            raise ValueError(f"the tokenizer of {folder} makes no token of the letter a: it will not do")
        before, after = added.index("0"), added.rindex("0") + 1
        self._before, self._after = probe.ids[:before], probe.ids[after:]
        if not self._after and self.special.eos is None:
            raise ValueError(
                f"the tokenizer of {folder} ends no document and names no eos_token or sep_token: "
                "add one to tokenizer_config.json"
            )
        self._after: list[Any] = self._after or [self.special.eos]
        self.bos: int | None = self._before[0] if self._before else None
        self.eos: int = self._after[-1]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as `dtype` [L], special tokens included."""
        short = iter(self._ids([text for text in texts if len(text) <= LONG_TEXT]))
        return [self._document([next(short)] if len(text) <= LONG_TEXT else self._long(text)) for text in texts]

    def _long(self, text: str) -> Iterator[list[int]]:
        # One piece at a time: the library needs some fifty bytes a character until it is done.
        return (ids for piece in self._pieces(text) for ids in self._ids([piece]))

    def _document(self, pieces: Iterable[list[int]]) -> np.ndarray:
        parts = (np.array(ids, self.dtype) for ids in (self._before, *pieces, self._after))
        return np.concatenate(list(parts))

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _pieces(self, text: str) -> list[str]:
        """A text in pieces that give the same ids as the whole.

        A cut lies before white space, where the text around it gives the same ids with the cut as
        without. A text without such a place stays whole up to LONGEST_WHOLE, then it is cut anywhere:
        a million characters without white space are no words.
        """
        pieces, start = [], 0
        while len(text) - start > LONG_TEXT:
            cut = self._cut(text, start + LONG_TEXT)
            if cut is None and len(text) - start <= LONGEST_WHOLE:
                break
            cut = cut or start + LONG_TEXT
            pieces.append(text[start:cut])
            start = cut
        return [*pieces, text[start:]]

    def _cut(self, text: str, near: int) -> int | None:
        places = (m.start() + 1 for m in re.compile(r"\S\s").finditer(text, near - LONG_TEXT // 2, near))
        for cut in itertools.islice(places, CUTS_TRIED):
            left, right = text[cut - CUT_CONTEXT : cut], text[cut : cut + CUT_CONTEXT]
            both, one, other = self._ids([left + right, left, right])
            if both == one + other:
                return cut
        return None

    def write(self, source: Path, target: Path) -> None:
        """Copy the tokenizer, adding the tokenizer_config.json that AutoTokenizer wants."""
        copy_tokenizer(source, target)
        if not (target / "tokenizer_config.json").is_file():
            tokens = {
                key: self.tokenizer.id_to_token(getattr(self.special, role))
                for role, (keys, _) in ROLES.items()
                for key in keys
                if getattr(self.special, role) is not None
            }
            write_json(
                target / "tokenizer_config.json",
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "model_input_names": ["input_ids", "attention_mask"],
                    **tokens,
                },
            )
