"""Tokenizers: from a folder or the Hub, their special tokens, and documents to ids.

L tokens of one document.
"""

import itertools
import json
import re
import reprlib
import secrets
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from cptjax.bounds import NUMBERS
from cptjax.command.errors import reason, silenced
from cptjax.files import TOKENIZER_FILES, read_json, sha256
from cptjax.machine.hub import fetch

LONG_TEXT = 2**20  # characters: a longer text is encoded in pieces
LONGEST_WHOLE = 2**24  # characters: a longer text is cut even where no good place is found, for want of memory
CUT_CONTEXT = 1000  # characters on each side of a cut that must give the same ids with and without it
CUTS_TRIED = 100

# How each role is called in tokenizer_config.json, then how its token is usually written. A tokenizer without bos or
# eos lends its cls and sep, and the other way round, as in ModernBERT's own config.
FIRST = ("[CLS]", "<s>", "<bos>", "[BOS]")
LAST = ("[SEP]", "</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>")
ROLES = {
    "bos": (("bos_token", "cls_token"), FIRST),
    "eos": (("eos_token", "sep_token"), LAST),
    "cls": (("cls_token", "bos_token"), FIRST),
    "sep": (("sep_token", "eos_token"), LAST),
    "pad": (("pad_token",), ("[PAD]", "<pad>", "<|padding|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "unk": (("unk_token",), ("[UNK]", "<unk>")),
}
LISTS = ("additional_special_tokens", "extra_special_tokens")  # more special tokens, without a role
CONFIG, ADDED = "tokenizer_config.json", "added_tokens_decoder"
NAMING = ("special_tokens_map.json", CONFIG)  # the files that name special tokens; what the last says counts


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of a tokenizer's special tokens by role (None: it has none), and all of them, sorted."""

    bos: int | None
    eos: int | None
    cls: int | None
    sep: int | None
    pad: int | None
    mask: int | None
    unk: int | None
    all: tuple[int, ...]


def tokenizer_folder(path_or_id: Path | str) -> Path:
    """The folder holding `tokenizer.json`: a local one, or one fetched from the Hugging Face Hub.

    ValueError or FileNotFoundError when it cannot be had.
    """
    folder = Path(path_or_id)
    if not folder.exists():
        name = str(path_or_id)
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
            raise ValueError(f"tokenizer folder {name} does not exist")
        folder = fetch(name, TOKENIZER_FILES)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(how_to_make(folder, path_or_id))
    return folder


def quoted(path: Path | str) -> str:
    """A path as a text of a Python program, without the quotes that a shell needs around the program."""
    return json.dumps(str(path), ensure_ascii=False)


def how_to_make(folder: Path, named: Path | str) -> str:
    """What is said of a `folder` without tokenizer.json, by the name that it was given: the command that makes it."""
    source, made = (quoted(path) for path in (folder, folder / "tokenizer.json"))
    code = f"from transformers import AutoTokenizer as A; A.from_pretrained({source}).backend_tokenizer.save({made})"
    return (
        f"{named} holds no tokenizer.json; where transformers 4.57 and sentencepiece are, this makes it: "
        f"python -c {shlex.quote(code)}"
    )


def load_tokenizer(path_or_id: Path | str) -> tokenizers.Tokenizer:
    """The tokenizer of a folder or Hub id; it never truncates or pads. ValueError if unreadable.

    It knows every token that the folder's other files add, and that a special token is one, wherever that is said.
    In text given to it "[MASK]" is the mask token; for an `Encoder` it is text.
    """
    folder = tokenizer_folder(path_or_id)
    path = folder / "tokenizer.json"
    read_json(path)  # its bounds, before another language's stack meets what is too deep
    with _library(path), silenced():  # Rust prints of a panic
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    _refuse_ids(path, tokenizer)
    _refuse_templates(path, tokenizer)
    if getattr(tokenizer.model, "dropout", None):
        raise ValueError(
            f"{path}: model.dropout is {tokenizer.model.dropout:g}, a text has other ids each time: remove it"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for i, token in sorted(_added(folder).items()):
        if tokenizer.token_to_id(token.content) is None:
            tokenizer.add_tokens([token])
        if (known := tokenizer.token_to_id(token.content)) != i:
            raise ValueError(
                f"{folder}: {CONFIG} or added_tokens.json gives {token.content!r} the id {i}, tokenizer.json {known}: "
                "remove one"
            )
    added = tokenizer.get_added_tokens_decoder()
    for i in special_tokens(folder, tokenizer).all:
        if i not in added or not added[i].special:
            token = added.get(i) or tokenizers.AddedToken(tokenizer.id_to_token(i), normalized=False)
            token.special = True
            tokenizer.add_special_tokens([token])
    return tokenizer


@contextmanager
def _library(path: Path) -> Iterator[None]:
    """What the tokenizers library makes of a bad file, its panics too, is a ValueError that names the file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise ValueError(f"{path} is not a tokenizer ({reason(error)})") from error


def _refuse_ids(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    # The library writes its vocabulary by counting up to the largest id, for hours if need be.
    token, i = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1], default=("", 0))
    if i >= (most := int(NUMBERS["vocab_size"][1])):
        raise ValueError(f"{path} gives {token!r} the id {i:,}: it must be below {most:,}")


def _refuse_templates(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    # The library panics when a template is given what another has put together, or puts in what it does not define.
    templates = list(_templates(json.loads(tokenizer.to_str())["post_processor"]))
    if any(len(template["single"]) > 1 for template in templates[:-1]):
        raise ValueError(
            f"{path}: post_processor is a Sequence of {len(templates)} templates, it must hold one at most"
        )
    for template in templates:
        pieces = [piece["SpecialToken"] for piece in template["single"] + template["pair"] if "SpecialToken" in piece]
        if undefined := sorted({piece["id"] for piece in pieces} - template["special_tokens"].keys()):
            raise ValueError(f"{path}: post_processor puts in {reprlib.repr(undefined[0])}, its special_tokens lack it")


def _templates(processor: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if processor and processor["type"] == "TemplateProcessing":
        yield processor
    for part in (processor or {}).get("processors", ()):
        yield from _templates(part)


def _settings(folder: Path) -> dict[str, Any]:
    """What the folder's files beside tokenizer.json say, tokenizer_config.json first. ValueError for tokens that are
    none."""
    settings: dict[str, Any] = {}
    for path in (folder / name for name in NAMING):
        if path.is_file():
            said = {name: value for name, value in read_json(path).items() if value is not None}
            _refuse_no_tokens(path, said)
            settings |= said
    return settings


def _refuse_no_tokens(path: Path, said: dict[str, Any]) -> None:
    for name in {key for keys, _ in ROLES.values() for key in keys} & said.keys():
        if said[name] != "" and _content(said[name]) is None:
            raise ValueError(f"{path}: {name} is {said[name]!r:.60}: it must be a token's text, or hold it as content")
    for name in LISTS:
        if not isinstance(said.get(name, []), list | dict):
            raise ValueError(f"{path}: {name} is {said[name]!r:.60}: it must be a list of tokens")


def _added(folder: Path) -> dict[int, tokenizers.AddedToken]:
    """The tokens that files beside tokenizer.json add, by id. ValueError, naming the file, for what is no token."""
    legacy = folder / "added_tokens.json"
    added = {}
    try:
        for content, i in (read_json(legacy) if legacy.is_file() else {}).items():
            if type(i) is not int:
                raise TypeError(f"{content!r} has {i!r}")
            added[i] = tokenizers.AddedToken(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{legacy} does not map tokens to ids ({error})") from None
    settings = _settings(folder)
    try:
        for i, fields in settings.get(ADDED, {}).items():
            added[int(i)] = tokenizers.AddedToken(**fields)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {ADDED} does not map ids to tokens ({error})") from None
    return added


def _content(token: Any) -> str | None:
    """A token as it is written, whether a file gives it as text or with its properties."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def special_tokens(folder: Path | str, tokenizer: tokenizers.Tokenizer) -> SpecialTokens:
    """Special tokens as the folder's JSON files name them, else under their usual names."""
    named = _settings(Path(folder))

    def ids(tokens: Iterable[Any]) -> list[int]:
        numbers = (tokenizer.token_to_id(content) for token in tokens if (content := _content(token)))
        return [i for i in numbers if i is not None]

    roles = {
        role: (ids(named.get(key) for key in keys) + ids(usual) + [None])[0] for role, (keys, usual) in ROLES.items()
    }
    lists = [named.get(key) or [] for key in LISTS]
    listed = [token for tokens in lists for token in (tokens.values() if isinstance(tokens, dict) else tokens)]
    added = (*tokenizer.get_added_tokens_decoder().items(), *_added(Path(folder)).items())
    every = {i for i, token in added if token.special} | set(ids(listed)) | {*roles.values()} - {None}
    return SpecialTokens(**roles, all=tuple(sorted(i for i in every if i is not None)))


def cautions(folder: Path, tokenizer: tokenizers.Tokenizer) -> list[str]:
    """A sentence for each sign that the normaliser is not the one that the vocabulary was made with."""
    path = folder / CONFIG
    said = read_json(path).get("do_lower_case") if path.is_file() else None
    lowers, words = _normal(tokenizer, "A") == "a", unreachable_words(tokenizer)
    does = "makes capitals small" if lowers else "keeps capitals"
    checks = [
        (
            type(said) is bool and said != lowers,
            f"{CONFIG} says do_lower_case {str(said).lower()}, but tokenizer.json {does}; tokenizer.json counts here.",
        ),
        (
            bool(words),
            f"{len(words):,} words of the vocabulary, such as {min(words, default='')!r}, have capitals or accents "
            "that the tokenizer takes from every text: no text will have them.",
        ),
    ]
    return [sentence for is_so, sentence in checks if is_so]


def unreachable_words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Words and pieces of words with capitals or accents that the normaliser takes from every text."""
    added = tokenizer.get_added_tokens_decoder()
    ids = (i for i in tokenizer.get_vocab(with_added_tokens=False).values() if i not in added)
    words = (tokenizer.decode([i], skip_special_tokens=False) for i in ids)
    return [word for word in words if _is_word(word) and _is_unreachable(tokenizer, word)]


def _is_word(text: str) -> bool:
    # A single letter may be a byte; "[PAD]" and "<s>NOTUSED" may be listed nowhere else.
    return len(text) > 1 and text[0] not in "[<"


def _is_unreachable(tokenizer: tokenizers.Tokenizer, word: str) -> bool:
    plain = {word.lower(), _without_accents(word)} - {word}
    return any(_normal(tokenizer, other) == _normal(tokenizer, word) != word for other in plain)


def _without_accents(text: str) -> str:
    letters = (x for x in unicodedata.normalize("NFD", text) if unicodedata.category(x) != "Mn")
    return unicodedata.normalize("NFC", "".join(letters))


def _normal(tokenizer: tokenizers.Tokenizer, text: str) -> str:
    return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text


def text_tokenizer(tokenizer: tokenizers.Tokenizer, special: SpecialTokens) -> tokenizers.Tokenizer:
    """A copy of a tokenizer without its post-processor, for text alone: no text has the id of a special token.

    A model's vocabulary may hold "[MASK]" as a word or piece of its own, and a normaliser may make it of other
    letters. So special tokens get names here that no text can hold, drawn anew each time; ids stay.
    """
    raw = json.loads(tokenizer.to_str())
    model = raw["model"]
    names = {tokenizer.id_to_token(i): secrets.token_hex(16) for i in special.all}

    def renamed(token: str) -> str:
        return names.get(token, token)

    raw["post_processor"] = None
    for token in raw["added_tokens"]:
        token["content"] = renamed(token["content"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed(piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed(piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token") is not None:
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        made = [(a, b, a + b.removeprefix(prefix)) for a, b in model["merges"]]
        model["merges"] = [[a, b] for a, b, both in made if names.keys().isdisjoint((a, b, both))]
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


class Encoder:
    """Text to ids, with what the tokenizer puts around a document; a document always ends with `eos`.

    `dtype` is the smallest that holds every id. ValueError when the tokenizer cannot end a document, does more to a
    text than put tokens of its own around it, or has a mask token that means something else too.
    """

    def __init__(self, folder: Path):
        self.tokenizer = load_tokenizer(folder)
        self._path = folder / "tokenizer.json"
        with _library(self._path), silenced():
            self.special = special_tokens(folder, self.tokenizer)
            self._text = text_tokenizer(self.tokenizer, self.special)
            self._written = [str(self.tokenizer.id_to_token(i)) for i in self.special.all]
            self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self._refuse_shared_mask()
        self._before, self._after = self._around()
        if not self._after and self.special.eos is None:
            raise ValueError(
                f"the tokenizer of {folder} ends no document and names no eos_token or sep_token: "
                "add one to tokenizer_config.json"
            )
        self._after: list[Any] = self._after or [self.special.eos]
        self.bos: int | None = self._before[0] if self._before else None
        self.eos: int = self._after[-1]

    @property
    def vocabulary(self) -> dict[str, Any]:
        """What the manifest of a token store says of its tokenizer, by field."""
        return {
            "tokenizer_sha256": sha256(self._path),
            "vocab_size": self.vocab_size,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos,
            "pad_token_id": self.special.pad,
            "mask_token_id": self.special.mask,
            "special_token_ids": self.special.all,
        }

    def _refuse_shared_mask(self) -> None:
        # Each unknown word, or each end of a document, would be a word to guess.
        other = [role for role in ROLES if role != "mask" and getattr(self.special, role) == self.special.mask]
        if self.special.mask is not None and other:
            token = self.tokenizer.id_to_token(self.special.mask)
            raise ValueError(
                f"{self._path}: {token!r} is both the mask and the {other[0]} token: name another mask_token"
            )

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text."""
        with _library(self._path), silenced():
            probe = self.tokenizer.encode("a")
        text = self._ids(["a"])[0]
        if not text:
            raise ValueError(f"{self._path} makes no token of the letter a: it will not do")
        if unknown := [i for i in probe.ids if self.tokenizer.id_to_token(i) is None]:
            raise ValueError(
                f"{self._path}: post_processor adds the id {unknown[0]}, which no token has: name one's id"
            )
        added = "".join(map(str, probe.special_tokens_mask))
        before, after = added.find("0"), added.rfind("0") + 1
        if probe.ids[before:after] != text:
            raise ValueError(
                f"{self._path}: post_processor must hold the text once, with special tokens before and after it alone; "
                f"of {text} it makes {probe.ids}"
            )
        return probe.ids[:before], probe.ids[after:]

    def around_one(self) -> tuple[list[int], list[int]]:
        """The ids that stand before and after a text."""
        return self._before, self._after

    def around_two(self) -> tuple[list[int], list[int], list[int]]:
        """The ids that stand before, between and after the two texts of a pair."""
        with _library(self._path), silenced():
            probe = self.tokenizer.encode("a", "a")
        of = [-1 if text is None else text for text in probe.sequence_ids]
        before, between, end = of.index(0), of.index(1), len(of) - of[::-1].index(1)
        first_end = between - of[:between][::-1].index(0)
        put = (probe.ids[:before], probe.ids[first_end:between], probe.ids[end:])
        return put if put[1] else (self._before, self._after, self._after)

    def with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The ids [L] of each text alone, and the characters that each comes from, [L, 2]: first, one past the last."""
        with _library(self._path):
            encoded = self._text.encode_batch(list(texts), add_special_tokens=False)
        return [(np.array(each.ids, np.int32), np.array(each.offsets, np.int32).reshape(-1, 2)) for each in encoded]

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
        with _library(self._path):
            return [encoding.ids for encoding in self._text.encode_batch_fast(texts, add_special_tokens=False)]

    def written_specials(self, text: str) -> int:
        """How often a text reads like a special token, in full-width letters too. It stays text."""
        return max(sum(map(form.count, self._written)) for form in (text, unicodedata.normalize("NFKC", text)))

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
            both, first, second = self._ids([left + right, left, right])
            if both == first + second:
                return cut
        return None
