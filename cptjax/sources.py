"""Text in: files, folders, patterns and data sets become documents, piece by piece.

`find` lists the files of a source. `pieces` cuts one in the main process, cheaply and in the same places every
time; `documents` reads a piece, in any process. What cannot be read comes back as `Bad`, beside the documents.

A format of FORMATS is two functions: one cuts a file into pieces, one turns a piece into (row, parse), where
parse() gives the row's columns by name or raises `_Wrong`; `documents` makes a Document of them. Text may be bytes.
"""

import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import zstandard

from cptjax.files import read_json, sha256

PIECE_BYTES = 4 * 2**20
CHUNK_BYTES = 2**16  # compressed bytes read at once: text of high redundancy grows a thousandfold
CELL_CHARACTERS = 2**30  # a longer csv cell is an opening quote that nobody closed
BYTE_ORDER_MARK = "\ufeff".encode()

# What files that are gone, cut or damaged make the libraries raise.
_FAILURES = (OSError, EOFError, ImportError, RuntimeError, ValueError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True)
class Reading:
    """How rows become documents: the columns of text, id and weight, further `fields` wanted, and how bytes that
    are not UTF-8, half surrogate pairs and NUL are met: refused (strict) or replaced by U+FFFD."""

    text_field: str = "text"
    id_field: str | None = None
    weight_field: str | None = None
    fields: tuple[str, ...] = ()
    errors: Literal["strict", "replace"] = "strict"
    txt_documents: Literal["file", "paragraph"] = "file"

    def __post_init__(self):
        if self.errors not in ("strict", "replace"):
            raise ValueError(f"errors is {self.errors!r}: it is strict or replace")
        if self.txt_documents not in ("file", "paragraph"):
            raise ValueError(f"txt_documents is {self.txt_documents!r}: it is file or paragraph")


@dataclass(frozen=True)
class File:
    """One input. `name` is how messages and origins call it: the path from the source folder's parent on, or the
    data set's id. `path` opens it, `format` is a key of FORMATS, `size` is in bytes, `split` one of a data set's."""

    name: str
    path: str
    format: str
    size: int
    split: str = ""


@dataclass(frozen=True)
class Piece:
    """Part of a file. `first_row`: number of its first line (text, jsonl) or row, from 1; `size`: about its bytes."""

    first_row: int
    payload: Any
    size: int


@dataclass(frozen=True)
class Document:
    """A row's text, perhaps empty, and what else was wanted of it. `row` counts from 1: lines of jsonl and txt (a
    paragraph's first), rows of csv with the header as row 1, rows of parquet and of data sets."""

    row: int
    text: str
    id: str | None
    weight: float | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A row, or the rest of a file or piece, that cannot be read; `message` says in one line where, what and why."""

    row: int
    message: str


class _Wrong(ValueError):
    """What is wrong with a row or a file, in one line that names it."""


Row = tuple[int, Callable[[], dict[str, Any]]]


# ---- text and columns


def _decode(data: bytes, offset: int, where: str, reading: Reading) -> str:
    try:
        return data.decode("utf-8", reading.errors)
    except UnicodeDecodeError as error:
        raise _Wrong(
            f"{where} is not UTF-8 at byte {offset + error.start} (0x{data[error.start]:02x}): "
            "convert it, or give --errors replace"
        ) from None


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def _wanted(reading: Reading) -> dict[str, str]:
    """The columns to read, and what to do about one that is not there."""
    roles = {"--weight-field": reading.weight_field, "--id-field": reading.id_field, "--text-field": reading.text_field}
    advice = dict.fromkeys(reading.fields, "correct the name")
    return advice | {name: f"name yours with {flag}" for flag, name in roles.items() if name is not None}


def _check_columns(where: str, columns: Iterable[str], reading: Reading) -> None:
    _check_fields(where, columns, _wanted(reading), reading)


def _check_fields(where: str, there: Iterable[str], names: Iterable[str | None], reading: Reading) -> None:
    for name in names:
        if name is not None and name not in there:
            has = ", ".join(map(_printable, there)) or "none"
            raise _Wrong(f"{where} has no field {name!r}: it has {has}; {_wanted(reading)[name]}")


def _value(where: str, name: str, value: Any, reading: Reading) -> Any:
    """A column's value, bytes as text; text that UTF-8 can hold and that is no binary data."""
    if isinstance(value, bytes):
        value = _decode(value, 0, f"{where} field {name!r}", reading)
    if not isinstance(value, str):
        return value
    try:
        value.encode()
        fault, at, advice = "a NUL character", value.find("\0"), "it may be UTF-16 or binary; convert it"
    except UnicodeEncodeError as error:
        fault, at, advice = "half a surrogate pair", error.start, "correct it"
    if at >= 0 and reading.errors == "strict":
        raise _Wrong(f"{where} holds {fault} at character {at} of {name!r}: {advice}, or give --errors replace")
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
        raise _Wrong(f"{where} field {name!r} is {said[:40]}: a weight is a finite number, 0 or more")
    return weight


def _document(where: str, row: int, record: dict[str, Any], reading: Reading) -> Document:
    # A row of JSON may lack what is null; of other formats the columns are known to be there.
    _check_fields(where, record, (reading.text_field, reading.weight_field), reading)
    values = {name: _value(where, name, record.get(name), reading) for name in _wanted(reading)}
    text = values[reading.text_field]
    if not isinstance(text, str):
        raise _Wrong(f"{where} field {reading.text_field!r} is {_kind(text)}, not a string")
    identity = None if reading.id_field is None else values[reading.id_field]
    if isinstance(identity, bool) or not isinstance(identity, str | int | float | None):
        raise _Wrong(f"{where} field {reading.id_field!r} is {_kind(identity)}, not a string or a number")
    weight = reading.weight_field
    return Document(
        row=row,
        text=text,
        id=None if identity is None else str(identity),
        weight=None if weight is None else _weight(where, weight, values[weight]),
        fields={name: values[name] for name in reading.fields},
    )


# ---- lines


def _plain_lines(path: str) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        yield from stream


def _gz_lines(path: str) -> Iterator[bytes]:
    with gzip.open(path, "rb") as stream:
        yield from stream


def _zst_chunks(path: str) -> Iterator[bytes]:
    # The library's own reader takes a cut file for a finished one. Its default window is too small for `--long=31`.
    with open(path, "rb") as stream:
        frame = None
        while data := stream.read(CHUNK_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None:
            raise EOFError("it ends inside a frame")


def _zst_lines(path: str) -> Iterator[bytes]:
    tail: list[bytes] = []
    for chunk in _zst_chunks(path):
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join((*tail, line, b"\n"))
            tail.clear()
        tail.append(rest)
    if any(tail):
        yield b"".join(tail)


def _without_mark(lines: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """How long the byte order mark at the beginning is, and the lines without it."""
    first = next(lines, b"")
    start = len(BYTE_ORDER_MARK) if first.startswith(BYTE_ORDER_MARK) else 0
    return start, itertools.chain([first[start:]] if first[start:] else [], lines)


def _grouped(file: File, units: Iterable[tuple[bytes, bool]], offset: int, row: int = 1) -> Iterator[Piece | Bad]:
    """Pieces of whole units (bytes, may a piece end after them?), with the byte offset of each in its payload."""
    held: list[bytes] = []
    size = 0
    failure = None
    try:
        for data, may_end in units:
            held.append(data)
            size += len(data)
            if may_end and size >= PIECE_BYTES:
                yield Piece(row, (offset, b"".join(held)), size)
                row, offset, size = row + len(held), offset + size, 0
                held.clear()
    except _FAILURES as error:  # what came whole before the damage is kept
        failure = Bad(row + len(held), _failure(file, error))
    if held:
        yield Piece(row, (offset, b"".join(held)), size)
    if failure:
        yield failure


# ---- formats: how a file is cut, and how a piece is read


def _cut_txt(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    _check_columns(file.name, (reading.text_field,), reading)
    if reading.txt_documents == "file":
        yield Piece(1, None, file.size)
    else:
        offset, lines = _without_mark(_plain_lines(file.path))
        yield from _grouped(file, ((line, line.isspace()) for line in lines), offset)


def _read_txt(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    if piece.payload is None:
        data = Path(file.path).read_bytes()
        start = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
        yield 1, lambda: {reading.text_field: _decode(data[start:], start, file.name, reading)}
        return
    offset, data = piece.payload
    numbered = enumerate(io.BytesIO(data), piece.first_row)
    for blank, group in itertools.groupby(numbered, key=lambda pair: pair[1].isspace()):
        numbers, lines = zip(*group, strict=True)
        paragraph = b"".join(lines)
        if not blank:
            yield numbers[0], partial(_paragraph, paragraph, offset, file.name, reading)
        offset += len(paragraph)


def _paragraph(data: bytes, offset: int, where: str, reading: Reading) -> dict[str, Any]:
    return {reading.text_field: _decode(data, offset, where, reading).rstrip("\r\n")}


def _cut_jsonl(file: File, _: Reading, lines_of: Callable[[str], Iterator[bytes]]) -> Iterator[Piece | Bad]:
    offset, lines = _without_mark(lines_of(file.path))
    yield from _grouped(file, ((line, True) for line in lines), offset)


def _read_jsonl(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    offset, data = piece.payload
    for row, line in enumerate(io.BytesIO(data), piece.first_row):
        if not line.isspace():
            yield row, partial(_json_record, line, offset, f"{file.name}:{row}", reading)
        offset += len(line)


def _json_record(line: bytes, offset: int, where: str, reading: Reading) -> dict[str, Any]:
    text = _decode(line, offset, where, reading)
    try:
        record = json.loads(text)
    except ValueError as error:  # not only JSONDecodeError: a number of 5000 digits too
        reason = getattr(error, "msg", str(error))
        binary = "; it may be UTF-16 or binary" if "\0" in text else ""
        raise _Wrong(f"{where} is not JSON ({reason}): one object a line{binary}") from None
    except RecursionError:
        raise _Wrong(f"{where} is not JSON this deep: one flat object a line") from None
    if not isinstance(record, dict):
        raise _Wrong(f"{where} is not a JSON object: one object a line is needed")
    return record


def _csv_rows(lines: Iterable[bytes], delimiter: str) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
    """Each row's bytes, and its cells (bytes as Latin-1 characters, so that any cut finds the same rows)."""
    csv.field_size_limit(CELL_CHARACTERS)
    taken: list[bytes] = []

    def characters() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.decode("latin-1")

    parser = csv.reader(characters(), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
        yield b"".join(taken), cells
        taken.clear()


def _cut_csv(file: File, reading: Reading, delimiter: str) -> Iterator[Piece | Bad]:
    offset, lines = _without_mark(_plain_lines(file.path))
    rows = _csv_rows(lines, delimiter)
    raw, cells = next(rows, (b"", []))
    columns = _csv_cells(raw, cells, offset, f"{file.name}:1", reading)
    if not all(columns) or len(set(columns)) < max(len(columns), 1):
        has = ", ".join(repr(name) for name in columns) or "nothing"
        raise _Wrong(f"{file.name}:1 is {has}: a first row that gives each column a name of its own is needed")
    _check_columns(file.name, columns, reading)
    for piece in _grouped(file, ((row, True) for row, _ in rows), offset + len(raw), row=2):
        yield piece if isinstance(piece, Bad) else replace(piece, payload=(columns, *piece.payload))


def _read_csv(file: File, piece: Piece, reading: Reading, delimiter: str) -> Iterator[Row]:
    columns, offset, data = piece.payload
    for row, (raw, cells) in enumerate(_csv_rows(io.BytesIO(data), delimiter), piece.first_row):
        if cells != []:
            yield row, partial(_csv_record, raw, cells, offset, f"{file.name}:{row}", reading, columns)
        offset += len(raw)


def _csv_cells(raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading) -> list[str]:
    if isinstance(cells, csv.Error):
        faults = {
            "unexpected end of data": "a quote that opens here is never closed",
            "new-line character seen": "a carriage return stands outside quotes",
        }
        fault = next((ours for theirs, ours in faults.items() if str(cells).startswith(theirs)), str(cells))
        raise _Wrong(f'{where} is not CSV ({fault}): cells with quotes or line ends are "quoted", quotes in them ""')
    _decode(raw, offset, where, reading)  # says where in the file a byte is wrong
    return [cell.encode("latin-1").decode("utf-8", "replace") for cell in cells]


def _csv_record(
    raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading, columns: list[str]
) -> dict[str, Any]:
    values = _csv_cells(raw, cells, offset, where, reading)
    if len(values) != len(columns):
        raise _Wrong(f"{where} has {len(values)} cells, the header {len(columns)}: quote cells that hold a delimiter")
    return dict(zip(columns, values, strict=True))


def _cut_parquet(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        _check_columns(file.name, table.schema_arrow.names, reading)
        row = 1
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            yield Piece(row, group, about.total_byte_size)
            row += about.num_rows


def _read_parquet(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = table.metadata.row_group(piece.payload).num_rows
        at_once = max(1, PIECE_BYTES * rows // max(piece.size, 1))
        batches = table.iter_batches(at_once, row_groups=[piece.payload], columns=list(_wanted(reading)))
        records = itertools.chain.from_iterable(map(_arrow_records, batches))
        yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


def _arrow_records(table: Any) -> Iterator[dict[str, Any]]:
    import pyarrow

    columns = []
    for column in table.columns:
        if pyarrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if str(column.type) in ("string", "large_string", "string_view"):
            column = column.cast(pyarrow.large_binary())  # Arrow does not see to it that strings are UTF-8: `_value`
        columns.append(column.to_pylist())
    for values in zip(*columns, strict=True):
        yield dict(zip(table.schema.names, values, strict=True))


@dataclass(frozen=True)
class _DataSet:
    """An opened data set: `read(first, last, columns)` gives records, `files` hold them (none: `fingerprint` tells)."""

    rows: int
    columns: list[str]
    size: int
    files: list[str]
    fingerprint: str
    read: Callable[[int, int, list[str]], Iterable[dict[str, Any]]]


@lru_cache(8)
def _hf(path: str, split: str) -> _DataSet:
    """A Hugging Face data set: saved in a folder, a folder of data files, or OWNER/NAME[/CONFIG] of the Hub."""
    import datasets

    if (Path(path) / "state.json").is_file():
        dataset: Any = datasets.load_from_disk(path)
    else:
        parts = [path] if Path(path).exists() else path.split("/", 2)
        dataset = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split)

    def read(first: int, last: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        return _arrow_records(dataset.select_columns(columns).with_format("arrow")[first:last])

    size = dataset.data.nbytes * len(dataset) // max(dataset.data.num_rows, 1)
    files = [cached["filename"] for cached in dataset.cache_files]
    return _DataSet(len(dataset), dataset.column_names, size, files, dataset._fingerprint, read)


@lru_cache(8)
def _tfds(path: str, split: str) -> _DataSet:
    """A prepared tensorflow-datasets folder or name, without TensorFlow."""
    import tensorflow_datasets

    folder = (Path(path) / "features.json").is_file()
    builder: Any = (tensorflow_datasets.builder_from_directory if folder else tensorflow_datasets.builder)(path)
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:  # its files are tfrecord, or would be: it is not prepared
        raise ValueError('it must be prepared with file_format="array_record"') from None

    def read(first: int, last: int, _: list[str]) -> Iterable[dict[str, Any]]:
        return source.__getitems__(range(first, last))

    files = [str(file) for file in builder.info.splits[split].filepaths]
    return _DataSet(len(source), list(builder.info.features), sum(map(os.path.getsize, files)), files, "", read)


def _cut_data_set(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    found = DATA_SETS[file.format](file.path, file.split)
    _check_columns(file.name, found.columns, reading)
    step = max(1, PIECE_BYTES * found.rows // max(found.size, 1))
    for first in range(0, found.rows, step):
        last = min(first + step, found.rows)
        yield Piece(first + 1, (first, last), found.size * (last - first) // found.rows)


def _read_data_set(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    first, last = piece.payload
    records = DATA_SETS[file.format](file.path, file.split).read(first, last, list(_wanted(reading)))
    yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


DATA_SETS = {"hf": _hf, "tfds": _tfds}
FORMATS: dict[str, tuple[Callable[..., Iterator[Piece | Bad]], Callable[..., Iterator[Row]]]] = {
    ".txt": (_cut_txt, _read_txt),
    ".jsonl": (partial(_cut_jsonl, lines_of=_plain_lines), _read_jsonl),
    ".jsonl.gz": (partial(_cut_jsonl, lines_of=_gz_lines), _read_jsonl),
    ".jsonl.zst": (partial(_cut_jsonl, lines_of=_zst_lines), _read_jsonl),
    ".csv": (partial(_cut_csv, delimiter=","), partial(_read_csv, delimiter=",")),
    ".tsv": (partial(_cut_csv, delimiter="\t"), partial(_read_csv, delimiter="\t")),
    ".parquet": (_cut_parquet, _read_parquet),
    "hf": (_cut_data_set, _read_data_set),
    "tfds": (_cut_data_set, _read_data_set),
}
SUFFIXES = tuple(name for name in FORMATS if name.startswith("."))


def _failure(file: File, error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"{file.name} cannot be read ({os.strerror(error.errno)})"
    if isinstance(error, ImportError):
        return f"{file.name} cannot be read ({error}): install it"
    return f"{file.name} is cut or damaged ({_first_line(error)}): get it again"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def pieces(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    """Cut a file into pieces of about PIECE_BYTES; where depends on the file only. Nothing is parsed but csv quotes.

    Bad, at the end, when the file cannot be read (further) or lacks a wanted column.
    """
    try:
        yield from FORMATS[file.format][0](file, reading)
    except _Wrong as error:
        yield Bad(1, str(error))
    except _FAILURES as error:
        yield Bad(1, _failure(file, error))


def documents(file: File, piece: Piece, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a piece in order, empty ones too, and Bad in the place of those that cannot be had."""
    row = piece.first_row
    whole = file.format == ".txt" and reading.txt_documents == "file"
    try:
        for row, parse in FORMATS[file.format][1](file, piece, reading):
            where = file.name if whole else f"{file.name}:{row}"
            try:
                found = _document(where, row, parse(), reading)
            except _Wrong as error:
                found = Bad(row, str(error))
            yield found
    except _FAILURES as error:
        yield Bad(row, _failure(file, error))


def read_documents(source: Path | str, reading: Reading) -> Iterator[str]:
    """The text of every document of a source, in order, empty ones too.

    ValueError or FileNotFoundError, one line, for what `find` refuses and at the first row that cannot be read.
    """
    for file in find(str(source))[0]:
        for piece in pieces(file, reading):
            for found in [piece] if isinstance(piece, Bad) else documents(file, piece, reading):
                if isinstance(found, Bad):
                    raise ValueError(found.message)
                yield found.text


# ---- finding files


def find(source: str, avoid: Sequence[Path] = ()) -> tuple[list[File], int]:
    """The files of a source in a fixed order, and how many files of other kinds its folders hold.

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
            return [_data_set(source, kind, name, split)], 0
        # The longest leading part that exists is no pattern, whatever its characters.
        base = next(parent for parent in root.parents if parent.exists())
        pattern = str(root.relative_to(base))
        if not glob.has_magic(pattern):
            raise FileNotFoundError(f"source {source} does not exist")
        root, matches = base, list(base.glob(pattern))
        if not matches:
            raise FileNotFoundError(f"pattern {source} matches no file")
    elif any(_is_under(root, folder) for folder in avoid):
        raise ValueError(f"{source} lies in the folder that is to be written: name another source")
    elif kind := _data_set_kind(root):
        return [_data_set(root.name, kind, str(root), "")], 0
    elif not root.is_dir() and _suffix(root) is None:
        raise ValueError(f"{source} has an unknown suffix: known are {', '.join(SUFFIXES)}")
    else:
        matches = [root]
    inside = {path for match in matches for path in (_walk(match) if match.is_dir() else [match])}
    inside = [path for path in sorted(inside) if not any(_is_under(path, folder) for folder in avoid)]
    files = [
        File(_printable(path.relative_to(root.parent).as_posix()), str(path), suffix, _size(path))
        for path in inside
        if (suffix := _suffix(path))
    ]
    if not files:
        raise ValueError(f"{source} holds no files of a known kind ({', '.join(SUFFIXES)})")
    return files, len(inside) - len(files)


def _is_under(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # resolve() raises at link loops


def _suffix(path: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # gone meanwhile, or a broken link: reading it says so


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below, links to folders followed, no folder twice. OSError when a folder cannot be listed."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # A store made before, or one being made, holds text files too: lists, and its tokenizer.
        folders[:] = sorted(name for name in folders if not _is_store(Path(parent, name)))
        paths = (Path(parent, name) for name in names)
        yield from (path for path in paths if path.is_file() or not path.exists())  # a pipe would be waited for


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
        return File(_printable(name), path, kind, DATA_SETS[kind](path, split).size, split)
    except Exception as error:  # these libraries raise many kinds
        raise ValueError(f"{name} cannot be opened ({_first_line(error)})") from None


def digest(file: File) -> str:
    """sha256 of a file's bytes, of all its files in order for a data set. OSError when one cannot be read."""
    if file.format not in DATA_SETS:
        return sha256(Path(file.path))
    found = DATA_SETS[file.format](file.path, file.split)
    parts = [sha256(Path(path)) for path in found.files] or [found.fingerprint]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
