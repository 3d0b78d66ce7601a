"""Text in: files, folders, patterns and data sets become documents, piece by piece.

`find` lists the files of a source. `pieces` cuts one in the main process, cheaply and in the same places every
time; `documents` reads a piece, in any process. What cannot be read comes back as `Bad`, beside the documents.
"""

import contextlib
import fnmatch
import glob
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cptjax.command.errors import reason
from cptjax.command.escape import printable
from cptjax.corpus import unpack
from cptjax.corpus.columnar import DATA_SETS
from cptjax.corpus.folders import is_apple_double, is_aside, walk
from cptjax.corpus.formats import FORMATS, NAMED, format_of
from cptjax.corpus.pieces import (
    Bad,
    File,
    Piece,
    Reading,
    RowError,
    check_columns,
    decode,
    failure,
    wanted_columns,
)
from cptjax.corpus.unpack import FAILURES
from cptjax.data.store import LeftOut
from cptjax.files import check_regular, read_json, sha256

KINDS = f"{', '.join(NAMED)}, also with .gz or .zst"


@dataclass(frozen=True)
class Document:
    """A row's text, perhaps empty, and what else was wanted of it. `row` counts from 1: lines of jsonl and txt (a
    paragraph's first), rows of csv with the header as row 1, rows of parquet and of data sets."""

    row: int
    text: str
    id: str | None
    weight: float | None
    fields: dict[str, Any]


def _value(where: str, name: str, value: Any, reading: Reading) -> Any:
    """A column's value, bytes as text; text that UTF-8 can hold and that is no binary data; None for NaN."""
    if isinstance(value, bytes):
        value = decode(value, 0, f"{where} field {name!r}", reading)
    if not isinstance(value, str):
        return None if isinstance(value, float) and math.isnan(value) else value
    try:
        if len(value.encode()) > unpack.DOCUMENT_BYTES:
            raise RowError(f"{where} field {name!r} is longer than {unpack.limit()}: no document is so long, cut it")
        fault, at, advice = "a NUL character", value.find("\0"), "it may be UTF-16 or binary; convert it"
    except UnicodeEncodeError as error:
        fault, at, advice = "half a surrogate pair", error.start, "correct it"
    if at >= 0 and reading.errors == "strict":
        raise RowError(f"{where} holds {fault} at character {at} of {name!r}: {advice}, or give --errors replace")
    return re.sub("[\0\ud800-\udfff]", "\ufffd", value) if at >= 0 else value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _weight(where: str, name: str, value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        said = repr(value) if isinstance(value, str | float) or type(value) is int else _kind(value)
        raise RowError(f"{where} field {name!r} is {said[:40]}: a weight is a finite number, 0 or more")
    return weight


def _document(where: str, row: int, record: dict[str, Any], reading: Reading) -> Document:
    # A row of JSON may lack what is null; of other formats the columns are known to be there.
    check_columns(where, list(record), (reading.text_field, reading.weight_field), reading)
    values = {name: _value(where, name, record.get(name), reading) for name in wanted_columns(reading)}
    text = values[reading.text_field]
    if not isinstance(text, str):
        raise RowError(f"{where} field {reading.text_field!r} is {_kind(text)}, not a string")
    identity = None if reading.id_field is None else values[reading.id_field]
    if isinstance(identity, bool) or not isinstance(identity, str | int | float | None):
        raise RowError(f"{where} field {reading.id_field!r} is {_kind(identity)}, not a string or a number")
    weight = reading.weight_field
    return Document(
        row=row,
        text=text,
        id=None if identity is None else str(identity),
        weight=None if weight is None else _weight(where, weight, values[weight]),
        fields={name: values[name] for name in reading.fields},
    )


def pieces(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    """Cut a file into pieces of about PIECE_BYTES; where depends on the file only. Nothing is parsed but what must be.

    Bad, at the end, when the file cannot be read (further) or lacks a wanted column.
    """
    try:
        yield from FORMATS[file.format][0](file, reading)
    except FAILURES as error:
        yield Bad(1, failure(file, error))


def documents(file: File, piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a piece in order, empty ones too, and Bad in the place of those that cannot be had."""
    row, size = piece.first_row, 0
    whole = file.format == ".txt" and reading.txt_documents == "file"
    try:
        for row, parse in FORMATS[file.format][1](file, piece, reading):
            where = file.name if whole else f"{file.name}:{row}"
            try:
                document = _document(where, row, parse(), reading)
                size += len(document.text)
            except RowError as error:
                document = Bad(row, str(error))
            unpack.check_size(size, file.size)
            yield document
    except FAILURES as error:
        yield Bad(row, failure(file, error))


def columns(file: File, reading: Reading) -> list[str]:
    """The columns of a file's first row that can be read; none where there is none."""
    with contextlib.suppress(*FAILURES):
        for piece in pieces(file, reading):
            for _, parse in FORMATS[file.format][1](file, piece, reading) if isinstance(piece, Piece) else ():
                return list(parse())
    return []


def read_documents(source: Path | str, reading: Reading) -> Iterator[str]:
    """The text of every document of a source, in order, empty ones too.

    ValueError or FileNotFoundError, one line, for what `find` refuses and at the first row that cannot be read.
    """
    for file in find(str(source))[0]:
        for piece in pieces(file, reading):
            for document in [piece] if isinstance(piece, Bad) else documents(file, piece, reading):
                if isinstance(document, Bad):
                    raise ValueError(document.message)
                yield document.text


def read_all(sources: Iterable[Path | str], reading: Reading) -> Iterator[str]:
    """The same of several sources, one after the other."""
    return chain.from_iterable(read_documents(source, reading) for source in sources)


# ---- finding files


def find(source: str, avoid: Sequence[Path] = ()) -> tuple[list[File], list[LeftOut]]:
    """The files of a source in a fixed order, and what else its folders and patterns hold.

    `source`: a file, a folder (searched with all its folders), a pattern with * ? [ ] or **, a folder that is a
    Hugging Face or tensorflow-datasets data set, hf:OWNER/NAME[/CONFIG][@SPLIT], hf:FOLDER[@SPLIT],
    tfds:NAME[/CONFIG][:VERSION][@SPLIT] or tfds:FOLDER[@SPLIT] (split: train). Nothing under `avoid` is read.
    FileNotFoundError or ValueError, one line, when there is nothing to read.
    """
    root = Path(os.path.abspath(source))
    if not root.exists():
        kind, _, rest = source.partition(":")
        name, _, split = (rest, "", "") if Path(rest).exists() or "@" not in rest else rest.rpartition("@")
        if kind in DATA_SETS and name:
            if Path(name).exists():
                name = os.path.abspath(name)
            elif not name[0].isalnum():  # a path; `datasets` would search folders for long
                raise FileNotFoundError(f"source {source} does not exist")
            return [_data_set(source, kind, name, split)], []
        # The longest leading part that exists is no pattern, whatever its characters.
        base = next(parent for parent in root.parents if parent.exists())
        pattern = str(root.relative_to(base))
        if not glob.has_magic(pattern):
            raise FileNotFoundError(f"source {source} does not exist")
        matches = list(base.glob(pattern))
        if not matches:
            raise FileNotFoundError(f"pattern {source} matches no file")
        return _sorted_out(source, base, _matched(base, matches, Path(pattern).parts), avoid)
    if any(_is_under(root, folder) for folder in avoid):
        raise ValueError(f"{source} lies in the folder that is to be written: name another source")
    if kind := _data_set_kind(root):
        return [_data_set(root.name, kind, str(root), "")], []
    if root.is_dir():
        return _sorted_out(source, root, dict(walk(root, _is_store)), avoid)
    check_regular(root)
    if is_apple_double(root):
        raise ValueError(f"{source} is what macOS notes about another file, no text: name that file")
    if format_of(root) is None:
        raise ValueError(f"{source} is of no known kind: known are {KINDS}")
    return _sorted_out(source, root, {root: False}, avoid)


def _matched(base: Path, matches: Sequence[Path], named: Sequence[str]) -> dict[Path, bool]:
    """The files that a pattern matches, those of matched folders too, and whether each is set aside."""

    def is_named(name: str) -> bool:
        return name in named or any(part.startswith(".") and fnmatch.fnmatchcase(name, part) for part in named)

    def is_hidden(match: Path) -> bool:
        steps = [match, *match.parents][: len(match.relative_to(base).parts)]
        return is_apple_double(match) or any(is_aside(path) for path in steps if not is_named(path.name))

    matched = {}
    for match in matches:
        hidden = is_hidden(match)
        matched |= (
            {path: hidden or aside for path, aside in walk(match, _is_store)} if match.is_dir() else {match: hidden}
        )
    return matched


def _sorted_out(
    source: str, root: Path, matched: dict[Path, bool], avoid: Sequence[Path]
) -> tuple[list[File], list[LeftOut]]:
    """Of what was found, and whether it is set aside: the files to read, once each, and what is left out."""
    files, left_out, seen = [], [], set()
    for path in sorted(matched):
        if any(_is_under(path, folder) for folder in avoid):
            continue
        name, real = printable(path.relative_to(root.parent).as_posix()), os.path.realpath(path)
        kind = None if path.exists() and not path.is_file() else format_of(path)  # a pipe would be waited for
        if matched[path] or kind is None or real in seen:
            left_out.append(LeftOut(name, "hidden" if matched[path] else "kind" if kind is None else "again"))
        else:
            files.append(File(name, str(path), kind, _size(path)))
            seen.add(real)
    if not files:
        passed = "; what is hidden or temporary is passed over unless named" if any(matched.values()) else ""
        raise ValueError(f"{source} holds no files of a known kind ({KINDS}){passed}")
    return files, left_out


def _is_under(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # resolve() raises at link loops


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # gone meanwhile, or a broken link: reading it says so


def _is_store(folder: Path) -> bool:
    return (folder / "length_N.npy").is_file() or (folder.name.endswith(".work") and (folder / "job.json").is_file())


def _data_set_kind(folder: Path) -> str | None:
    def holds(*names: str) -> bool:
        return all((folder / name).is_file() for name in names)

    if holds("dataset_info.json", "state.json") or holds("dataset_dict.json"):
        return "hf"
    return "tfds" if holds("dataset_info.json", "features.json") else None


def _data_set(name: str, kind: str, path: str, split: str) -> File:
    try:
        if split and (Path(path) / "state.json").is_file():
            raise ValueError("it is one split: leave out @SPLIT")
        split = split or "train"
        if (Path(path) / "dataset_dict.json").is_file():
            splits = read_json(Path(path) / "dataset_dict.json")["splits"]
            if split not in splits:
                raise ValueError(f"it has no split {split!r}, but {', '.join(splits)}: name one as hf:{path}@SPLIT")
            path = os.path.join(path, split)
        return File(printable(name), path, kind, DATA_SETS[kind](path, split).size, split)
    except Exception as error:  # these libraries raise many kinds
        raise ValueError(f"{name} cannot be opened ({reason(error)})") from None


def digest(file: File) -> str:
    """sha256 of a file's bytes, of all its files in order for a data set. OSError when one cannot be read."""
    if file.format not in DATA_SETS:
        return sha256(Path(file.path))
    data_set = DATA_SETS[file.format](file.path, file.split)
    parts = [sha256(Path(path)) for path in data_set.files] or [data_set.fingerprint]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
