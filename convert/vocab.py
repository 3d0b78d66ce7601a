"""Words of a domain as tokens of their own, in a Hugging Face folder whose other tokens stay as they were.

A new token starts as the mean of the pieces it was split into. Unused slots are taken before the table
grows. V the old vocabulary, W the new one, D width.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from convert import from_hf, portable, table, to_hf
from convert.from_hf import INDEX, SINGLE, opened
from convert.tensors import write_tensors
from cptjax.command.errors import reading
from cptjax.data.tokenizer import load_tokenizer
from cptjax.files import new_folder, read_json, write_json

SLOT = re.compile(r"\[unused\d+\]|<unused\d+>")
MULTIPLE = 64  # of a table that grows: a size that matrix units like
# Whole words only, or a longer word would be cut. Matched in normalised text: as the tokenizer, a new token
# does not see how an accent is written.
FIELDS = {"single_word": True, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
TOKENIZER, SETTINGS = "tokenizer.json", ("tokenizer_config.json", "special_tokens_map.json")


class Resized(NamedTuple):
    """What became of the vocabulary."""

    in_slots: int  # new tokens
    appended: int
    old_size: int  # vocab_size
    new_size: int
    notes: list[str]  # what the folder's reader should know


def resize_vocab(
    source: str | Path, out: Path, tokens: Path, *, revision: str | None = None, overwrite: bool = False
) -> Resized:
    """Write the model and the tokenizer of `source` to `out` with every line of `tokens` as one more token.

    Only the rows of new tokens and of padding differ from the source's. In a WordPiece vocabulary, a token in
    a renamed slot is also used where a longer word begins with it. Raises as `from_hf.load` and `new_folder`
    do, and ValueError, naming every such token, for those that are one id already, have no known pieces, or
    would not be read back as themselves.
    """
    with reading(source), new_folder(Path(out), markers=(SINGLE, INDEX), overwrite=overwrite) as partial:
        folder = from_hf.find(source, revision=revision)
        weights = from_hf.open_weights(folder)
        size = weights.config.vocab_size
        from_hf.check_tokenizer(folder, size)
        if not (folder / TOKENIZER).is_file():
            raise ValueError(f"{folder} has no {TOKENIZER}: there is nothing to add tokens to")
        old = load_tokenizer(folder)
        with reading(tokens):
            pieces = {token: old.encode(token, add_special_tokens=False).ids for token in read_tokens(tokens)}
            _refuse(old, pieces, where=str(tokens))
        ids = dict(zip(pieces, _places(folder, old, size, len(pieces)), strict=True))
        appended = sum(i >= size for i in ids.values())
        new_size = -(-(size + appended) // MULTIPLE) * MULTIPLE if appended else size
        raw = read_json(folder / "config.json")
        left_out = portable.write_tokenizer(folder, partial, raw["model_type"])
        _add_tokens(partial / TOKENIZER, old, ids)
        _verify(old, load_tokenizer(partial), ids)
        for _ in weights.parameters():  # raises where the tensors do not fit the config
            pass
        architecture = from_hf.architecture_of(raw)
        resized = {entry.hf_name for entry in table.entries(weights.config, architecture) if entry.letters[0] == "V"}
        resized |= {copy.hf_name for copy in table.copies(weights.config, architecture)}

        def is_resized(key: str) -> bool:
            return table.full_name(key, architecture) in resized

        _write_weights(folder, partial, is_resized, {ids[token]: pieces[token] for token in ids}, new_size)
        config = replace(weights.config, vocab_size=new_size)
        dtype = raw.get("dtype") or raw.get("torch_dtype")
        notes = to_hf.write_config(config, partial, architecture, dtype, hf_config=raw, tokenizer=partial)
        notes += to_hf.left_out("the tokenizer", left_out)
        portable.check_ids(partial)
    return Resized(len(ids) - appended, appended, size, new_size, notes)


def read_tokens(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank. Raises ValueError for none, for one that is there twice
    and for white space at an end."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines, 1):
        if line.strip():
            numbers[line].append(number)
    if not numbers:
        raise ValueError(f"{path} has no tokens")
    if twice := [f"{token!r} on lines {', '.join(map(str, n))}" for token, n in numbers.items() if len(n) > 1]:
        raise ValueError(f"{path} has the same token twice: {'; '.join(twice)}")
    if loose := [token for token in numbers if token != token.strip()]:
        raise ValueError(f"{path}: white space at an end, so never a whole word: {_listed(loose)}")
    return list(numbers)


def resize_rows(old_VD: np.ndarray, pieces: dict[int, list[int]], size: int) -> np.ndarray:
    """A table [V, D] or a bias [V] with `size` rows, same dtype: the row of each id in `pieces` is the mean,
    in float32, of the old rows of its pieces; rows beyond are padding, which no model should predict."""
    new_WD = np.zeros((size, *old_VD.shape[1:]), old_VD.dtype)
    if old_VD.ndim == 1:
        new_WD[:] = old_VD.min()  # a bias of zero might be among the highest
    new_WD[: len(old_VD)] = old_VD
    for i, parts in pieces.items():
        new_WD[i] = old_VD[parts].astype(np.float32).mean(axis=0)
    return new_WD


def _listed(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens))


def _refuse(old: Tokenizer, pieces: dict[str, list[int]], *, where: str) -> None:
    """Raise ValueError for tokens there is nothing to add for, and for those without a known piece."""
    model = json.loads(old.to_str())["model"]
    unknown = model["unk_id"] if "unk_id" in model else old.token_to_id(model.get("unk_token") or "")

    def known(i: int) -> bool:  # the mark that some put before every word says nothing of this one
        return i != unknown and bool(old.decode([i], skip_special_tokens=False).strip())

    if nothing := [token for token, ids in pieces.items() if not any(map(known, ids))]:
        raise ValueError(f"{where}: the tokenizer knows no piece of {_listed(nothing)}")
    present = []
    for token, ids in pieces.items():
        after_space = old.encode(f" {token}", add_special_tokens=False).ids  # many have their words that way
        if old.token_to_id(token) is not None or min(len(ids), len(after_space)) == 1:
            present.append(token)
    if present:
        raise ValueError(f"{where}: already one id in the tokenizer, nothing to add for: {_listed(present)}")


def _places(folder: Path, old: Tokenizer, size: int, count: int) -> list[int]:
    """Ids for `count` new tokens: slots, then ids that no token has, then new ones."""
    raw = read_json(folder / TOKENIZER)
    used = json.dumps(raw.get("post_processor"))  # a slot that the settings name has a role: it is no longer unused
    for name in SETTINGS:
        if (folder / name).is_file():
            settings = read_json(folder / name)
            used += json.dumps({key: value for key, value in settings.items() if key != "added_tokens_decoder"})
    if isinstance(raw["model"]["vocab"], list):  # Unigram: in its vocabulary a new token would cut longer words
        used += json.dumps([piece for piece, _ in raw["model"]["vocab"]])
    vocab = old.get_vocab(with_added_tokens=True)
    slots = sorted(i for token, i in vocab.items() if SLOT.fullmatch(token) and f'"{token}"' not in used)
    gaps = sorted(set(range(size)) - set(vocab.values()))
    return [*slots, *gaps, *range(size, size + count)][:count]


def _add_tokens(path: Path, old: Tokenizer, ids: dict[str, int]) -> None:
    """Put new tokens into a tokenizer.json."""
    names = {i: token for token, i in old.get_vocab(with_added_tokens=True).items()}
    listed = {_listed_as(old, token): i for token, i in ids.items()}
    renamed = {names[i]: token for token, i in listed.items() if i in names}
    raw = read_json(path)
    entries = {entry["content"]: entry for entry in raw["added_tokens"]}
    for token, i in listed.items():
        entry = {"id": i, "content": token, **FIELDS}
        if names.get(i) in entries:
            entries[names[i]].update(entry)
        else:
            raw["added_tokens"].append(entry)
    if isinstance(vocab := raw["model"]["vocab"], dict):
        # The library gives an added token the id its vocabulary says, else the next one: a hole needs an entry
        last = max(vocab.values(), default=-1)
        holes = {token: i for token, i in listed.items() if i not in names and i < last}
        raw["model"]["vocab"] = {renamed.get(token, token): i for token, i in vocab.items()} | holes
    if '"ByteLevel"' in json.dumps(raw.get("decoder")):  # it takes the letters of an added token for bytes as well
        plain = [_normal(old, token) for token in ids if not token.isascii()]
        spelt = [{"type": "Replace", "pattern": {"Regex": rf"\A{re.escape(x)}\z"}, "content": _bytes(x)} for x in plain]
        raw["decoder"] = {"type": "Sequence", "decoders": [*spelt, raw["decoder"]]} if spelt else raw["decoder"]
    write_json(path, raw)


def _listed_as(tokenizer: Tokenizer, token: str) -> str:
    """As the normaliser leaves it: older libraries decode a token as it is listed, newer ones as it is matched."""
    normal = _normal(tokenizer, token)
    return normal if _normal(tokenizer, normal) == normal else token


def _normal(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text


def _bytes(text: str) -> str:
    """As a byte-level vocabulary spells it."""
    return "".join(word for word, _ in ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text))


def _verify(old: Tokenizer, new: Tokenizer, ids: dict[str, int]) -> None:
    """Raise ValueError unless each new token is read as its id, and is written back, and the others kept theirs."""

    def read(text: str, start: int, end: int) -> list[int]:
        encoding = new.encode(text, add_special_tokens=False)
        return [i for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if a < end and b > start]

    def good(token: str, i: int) -> bool:
        alone = new.encode(token, add_special_tokens=False).ids
        inside = read(f"a {token} b", 2, 2 + len(token))
        return alone == inside == [i] and _normal(new, new.decode([i])) == _normal(new, token)

    if bad := [token for token, i in ids.items() if not good(token, i)]:
        raise ValueError(f"this tokenizer cannot read these as one token and write them back: {_listed(bad)}")
    placed, vocab = set(ids.values()), new.get_vocab(with_added_tokens=True)
    before = old.get_vocab(with_added_tokens=True).items()
    if moved := [token for token, i in before if i not in placed and vocab.get(token) != i]:
        raise ValueError(f"these tokens of the tokenizer would change their id: {_listed(moved)}")


def _write_weights(
    folder: Path, out: Path, is_resized: Callable[[str], bool], pieces: dict[int, list[int]], size: int
) -> None:
    """Write the weights, one file in memory at a time; a file without a resized tensor is copied as it is."""
    grown = 0
    for file in from_hf.weight_files(folder):
        with opened(file) as tensors:
            wide = [key for key in tensors.keys() if is_resized(key)]
            if not wide:
                shutil.copyfile(file, out / file.name)
                continue
            arrays = {key: tensors.get_tensor(key) for key in tensors.keys()}
            metadata = {"format": "pt"} | (tensors.metadata() or {})
        before = sum(arrays[key].nbytes for key in wide)
        arrays |= {key: resize_rows(arrays[key], pieces, size) for key in wide}
        grown += sum(arrays[key].nbytes for key in wide) - before
        arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))  # so that each is aligned
        write_tensors(out / file.name, arrays, arrays.values(), metadata)
    if not (folder / SINGLE).is_file():
        index = read_json(folder / INDEX)
        sizes = index.get("metadata") or {}
        if "total_size" in sizes:
            sizes["total_size"] += grown
        if grown:
            sizes.pop("total_parameters", None)  # optional, and whether it counts a tied table twice is not said
        write_json(out / INDEX, index)
