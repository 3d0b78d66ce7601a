"""How files of each format are cut into pieces, cheaply and in the same places every time, and how a piece is read.

A format of FORMATS is two functions: one cuts a file into pieces, one turns a piece into (row, parse), where
parse() gives the row's columns by name or raises RowError. Text may be bytes. Files may be packed (`unpack.py`).
"""

import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cptjax.corpus import pieces, unpack
from cptjax.corpus.columnar import cut_data_set, cut_parquet, read_data_set, read_parquet
from cptjax.corpus.encodings import is_utf8
from cptjax.corpus.pieces import (
    Bad,
    File,
    Piece,
    Reading,
    Row,
    RowError,
    check_columns,
    decode,
    failure,
    wanted_columns,
)
from cptjax.corpus.unpack import FAILURES, LengthError

VERSION = 3  # of what is read of a file: with another one all parts are made anew
BYTE_ORDER_MARK = "\ufeff".encode()
DELIMITERS = (",", ";", "\t", "|")  # that are looked for in a .csv file's first row
BLANK_LINE = re.compile(rb"\n[ \t\r\v\f]*\n")


# ---- pieces


def _begin(file: File, reading: Reading) -> tuple[int, Iterator[bytes]]:
    """How long the byte order mark at the beginning is, and the content in chunks without it."""
    unpack.check_growth(file.path)
    stream = unpack.chunks(file.path)
    first = b""
    while len(first) < len(BYTE_ORDER_MARK) and (chunk := next(stream, b"")):
        first += chunk
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RowError(f"{file.name} is UTF-16: convert it to UTF-8")
    if first.startswith(BYTE_ORDER_MARK) and not is_utf8(reading.encoding):
        raise RowError(f"{file.name} says that it is UTF-8, not {reading.encoding}: read it without --encoding")
    start = len(BYTE_ORDER_MARK) if first.startswith(BYTE_ORDER_MARK) else 0
    return start, itertools.chain([first[start:]] if first[start:] else [], stream)


def _line_end(data: bytearray, since: int) -> int:
    """Where a line ends, behind `since`; 0 when none does."""
    return data.find(b"\n", since) + 1


def _paragraph_end(data: bytearray, since: int) -> int:
    """Where a blank line ends, behind `since`; 0 when none does."""
    blank = BLANK_LINE.search(data, max(0, data.rfind(b"\n", 0, since)))
    return blank.end() if blank else 0


def _cut_lines(file: File, reading: Reading, end: Callable[[bytearray, int], int]) -> Iterator[Piece | Bad]:
    """Pieces of whole lines, each with its byte offset; none of blank lines only."""
    offset, stream = _begin(file, reading)
    held = bytearray()
    row = 1

    def taken(size: int) -> Iterator[Piece]:
        nonlocal offset, row
        data = bytes(held[:size])
        del held[:size]
        if data and not data.isspace():
            yield Piece(row, (offset, data), size)
        row, offset = row + data.count(b"\n"), offset + size

    try:
        for chunk in stream:
            since = max(pieces.PIECE_BYTES - 1, len(held))
            held += chunk
            while size := end(held, since):
                yield from taken(size)
                since = pieces.PIECE_BYTES - 1
            if len(held) > unpack.DOCUMENT_BYTES + pieces.PIECE_BYTES:
                raise LengthError(f"is longer than {unpack.limit()}")
    except FAILURES as error:  # what came whole before the damage is kept
        whole = 0
        while size := end(held, whole):
            whole = size
        yield from taken(whole)
        yield Bad(row, failure(file, error, row))
        return
    yield from taken(len(held))


def _grouped(file: File, units: Iterator[bytes], row: int) -> Iterator[Piece | Bad]:
    """Pieces of whole units, each of them a row."""
    held: list[bytes] = []
    size = 0
    failed = None
    try:
        for data in units:
            held.append(data)
            size += len(data)
            if size >= pieces.PIECE_BYTES:
                yield Piece(row, tuple(held), size)
                row, size = row + len(held), 0
                held.clear()
    except FAILURES as error:  # what came whole before the damage is kept
        failed = Bad(row + len(held), failure(file, error, row + len(held)))
    if held:
        yield Piece(row, tuple(held), size)
    if failed:
        yield failed


# ---- text


def _cut_txt(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    check_columns(file.name, (reading.text_field,), wanted_columns(reading), reading)
    if reading.txt_documents == "file":
        yield Piece(1, None, file.size)
    else:
        yield from _cut_lines(file, reading, _paragraph_end)


def _read_txt(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    if piece.payload is None:
        start, stream = _begin(file, reading)
        content = unpack.joined(stream)
        yield 1, lambda: {reading.text_field: decode(content, start, file.name, reading)}
        return
    offset, data = piece.payload
    if b"\n" not in data and b"\r\r" in data:
        raise RowError(f"{file.name} has lines that end in carriage returns only: end them with newlines")
    numbered = enumerate(io.BytesIO(data), piece.first_row)
    for blank, group in itertools.groupby(numbered, key=lambda pair: pair[1].isspace()):
        numbers, lines = zip(*group, strict=True)
        paragraph = b"".join(lines)
        if not blank:
            yield numbers[0], partial(_paragraph, paragraph, offset, file.name, reading)
        offset += len(paragraph)


def _paragraph(data: bytes, offset: int, where: str, reading: Reading) -> dict[str, Any]:
    return {reading.text_field: decode(data, offset, where, reading).rstrip("\r\n")}


# ---- JSON: lines, or values one after another and in arrays


def _cut_jsonl(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    yield from _cut_lines(file, reading, _line_end)


def _read_jsonl(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    offset, data = piece.payload
    for row, line in enumerate(io.BytesIO(data), piece.first_row):
        if not line.isspace():
            yield row, partial(_json_record, line, offset, f"{file.name}:{row}", "one object a line", reading)
        offset += len(line)


def _json_record(data: bytes, offset: int, where: str, needed: str, reading: Reading) -> dict[str, Any]:
    text = decode(data, offset, where, reading)
    pairs: list[tuple[str, Any]] = []

    def keep(members: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal pairs
        pairs = members  # the outermost object is the last to end
        return dict(members)

    try:
        record = json.loads(text, object_pairs_hook=keep)
    except ValueError as error:  # not only JSONDecodeError: a number of 5000 digits too
        fault = getattr(error, "msg", str(error))
        binary = "; it may be UTF-16 or binary" if "\0" in text else ""
        returns = "; its lines may end in carriage returns only" if "\r" in text.strip() else ""
        raise RowError(f"{where} is not JSON ({fault}): {needed}{binary}{returns}") from None
    except RecursionError:
        raise RowError(f"{where} is not JSON this deep: {needed}, and flat") from None
    if not isinstance(record, dict):
        raise RowError(f"{where} is not a JSON object: {needed} is needed")
    if len(pairs) > len(record):
        read = [name for name in wanted_columns(reading) if name in record]
        check_columns(where, [name for name, _ in pairs], read, reading)
    return record


def _cut_json(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    yield from _grouped(file, _json_values(file, reading), row=1)


def _read_json(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    for row, value in enumerate(piece.payload, piece.first_row):
        yield row, partial(_json_record, value, 0, f"{file.name}:{row}", "an object for each row", reading)


def _json_values(file: File, reading: Reading) -> Iterator[bytes]:
    """The values of a file of JSON one after another, those of arrays singly."""
    _, stream = _begin(file, reading)
    scan, space = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*")
    text, at = "", 0  # bytes as Latin-1 characters: a chunk may end anywhere
    row = 1
    in_array = due = False  # due: a comma

    def more() -> bool:
        """As much again as is left, and whether there was any."""
        nonlocal text, at
        left, added = len(text) - at, bytearray()
        while len(added) <= left and (chunk := next(stream, b"")):
            added += chunk
        text, at = text[at:] + added.decode("latin-1"), 0
        if left > unpack.DOCUMENT_BYTES:
            raise LengthError(f"is longer than {unpack.limit()}")
        return bool(added)

    def wrong(fault: str) -> RowError:
        return RowError(f"{file.name}:{row} is not JSON ({fault}): what follows is not read")

    while True:
        at = space.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            if more():
                continue
            if in_array:
                raise wrong("its array is not closed")
            return
        if in_array and text[at] == "]":
            in_array = due = False
        elif in_array and due and text[at] == ",":
            due = False
        elif not in_array and text[at] == "[":
            in_array = True
        elif due:
            raise wrong("a comma is missing in its array")
        else:
            try:
                _, end = scan(text, at)
            except RecursionError:
                raise wrong("nested too deep") from None
            except ValueError as error:
                here = getattr(error, "pos", 0)
                unfinished = str(error).startswith("Unterminated string") or here > len(text) - 16
                if unfinished and more():
                    continue
                raise wrong(getattr(error, "msg", str(error))) from None
            if end == len(text) and more():
                continue
            yield text[at:end].encode("latin-1")
            at, row, due = end, row + 1, in_array
            continue
        at += 1


# ---- delimited text


def _cut_tsv(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    if reading.tsv_quotes:
        yield from _cut_csv(file, reading, "\t")
        return
    offset, stream = _begin(file, reading)
    header = next(unpack.lines(stream), b"")
    columns = _tsv_cells(header, offset, f"{file.name}:1", reading)
    if any("\r" in name for name in columns):
        raise RowError(f"{file.name}:1 has lines that end in carriage returns only: end them with newlines")
    if f'"{reading.text_field}"' in columns:
        raise RowError(f"{file.name}:1 has names in quotes: give --tsv-quotes where cells are quoted")
    _check_header(file, columns, reading)
    for piece in _cut_lines(file, reading, _line_end):
        yield piece if isinstance(piece, Bad) else replace(piece, payload=(columns, *piece.payload))


def _tsv_cells(line: bytes, offset: int, where: str, reading: Reading) -> list[str]:
    return decode(line, offset, where, reading).removesuffix("\n").removesuffix("\r").split("\t")


def _read_tsv(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    if reading.tsv_quotes:
        yield from _read_csv(file, piece, reading)
        return
    columns, offset, data = piece.payload
    for row, line in enumerate(io.BytesIO(data), piece.first_row):
        if row > 1 and line.strip(b"\r\n"):
            yield row, partial(_tsv_record, line, offset, f"{file.name}:{row}", reading, columns)
        offset += len(line)


def _tsv_record(line: bytes, offset: int, where: str, reading: Reading, columns: list[str]) -> dict[str, Any]:
    advice = "no cell may hold a tab or a line end; where cells are quoted give --tsv-quotes"
    return _record(where, columns, _tsv_cells(line, offset, where, reading), advice)


def _record(where: str, columns: list[str], cells: list[str], advice: str) -> dict[str, Any]:
    if len(cells) != len(columns):
        raise RowError(f"{where} has {len(cells)} cells, the header {len(columns)}: {advice}")
    return dict(zip(columns, cells, strict=True))


def _check_header(file: File, columns: list[str], reading: Reading) -> None:
    if not any(columns):
        raise RowError(f"{file.name}:1 is nothing: a first row that names the columns is needed")
    check_columns(file.name, columns, wanted_columns(reading), reading)


def _csv_rows(lines: Iterable[bytes], delimiter: str, line: int) -> Iterator[tuple[bytes, list[str] | csv.Error]]:
    """Each row's bytes, and its cells (bytes as Latin-1 characters, so that any cut finds the same rows).

    `line` is the number of the first line. LengthError for a row longer than DOCUMENT_BYTES.
    """
    csv.field_size_limit(2 * unpack.DOCUMENT_BYTES)
    taken = bytearray()

    def characters() -> Iterator[str]:
        for data in lines:
            taken.extend(data)
            if len(taken) > unpack.DOCUMENT_BYTES:
                opened = _opening_line(taken, line)
                raise LengthError(f"is longer than {unpack.limit()} (a quote opens on line {opened}: is it closed?)")
            yield data.decode("latin-1")

    parser = csv.reader(characters(), delimiter=delimiter, strict=True)
    while True:
        try:
            cells = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
            if str(error).startswith("unexpected end of data"):
                cells = csv.Error(f"a quote that opens on line {_opening_line(taken, line)} is never closed")
            elif str(error).startswith("new-line character seen"):
                cells = csv.Error("a carriage return stands outside quotes")
        yield bytes(taken), cells
        line += taken.count(b"\n")
        taken.clear()


def _opening_line(data: bytearray, first: int) -> int:
    """The line of the quote that is open at the end: behind it quotes stand in pairs only."""
    odd = (run.start() for run in re.finditer(rb'"+', data) if len(run[0]) % 2)
    return first + data.count(b"\n", 0, max(odd, default=0))


def _delimiter_of(file: File, reading: Reading) -> str:
    """What stands between the cells of a file's first row: what makes the wanted columns of it, else what was said
    where that makes several, else what makes most columns."""

    def suits(delimiter: str) -> tuple[bool, bool, int]:
        columns = _columns(file, reading, delimiter)
        said = delimiter == reading.delimiter and len(columns) > 1
        return wanted_columns(reading).keys() <= {*columns}, said, len(columns)

    return max([reading.delimiter or ",", *DELIMITERS], key=suits)


def _columns(file: File, reading: Reading, delimiter: str) -> list[str]:
    """The cells of a file's first row; none where it is not CSV."""
    offset, stream = _begin(file, reading)
    raw, cells = next(_csv_rows(unpack.lines(stream), delimiter, 1), (b"", []))
    with contextlib.suppress(RowError):
        return _csv_cells(raw, cells, offset, "", reading)
    return []


def _cut_csv(file: File, reading: Reading, delimiter: str | None = None) -> Iterator[Piece | Bad]:
    delimiter = delimiter or reading.delimiter or _delimiter_of(file, reading)
    if delimiter == reading.delimiter and not wanted_columns(reading).keys() <= {*_columns(file, reading, delimiter)}:
        if (likely := _delimiter_of(file, reading)) != delimiter:
            raise RowError(f"{file.name} seems separated by {likely!r}, not by {delimiter!r}: correct --delimiter")
    offset, stream = _begin(file, reading)
    rows = _csv_rows(unpack.lines(stream), delimiter, 1)
    raw, cells = next(rows, (b"", []))
    columns = _csv_cells(raw, cells, offset, f"{file.name}:1", reading)
    _check_header(file, columns, reading)
    offset, line = offset + len(raw), 1 + raw.count(b"\n")
    for piece in _grouped(file, (row for row, _ in rows), row=2):
        if isinstance(piece, Bad):
            yield piece
            continue
        data = b"".join(piece.payload)
        yield replace(piece, payload=(columns, offset, line, data, delimiter))
        offset, line = offset + len(data), line + data.count(b"\n")


def _read_csv(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    columns, offset, line, data, delimiter = piece.payload
    for row, (raw, cells) in enumerate(_csv_rows(io.BytesIO(data), delimiter, line), piece.first_row):
        if cells != []:
            yield row, partial(_csv_record, raw, cells, offset, f"{file.name}:{row}", reading, columns)
        offset += len(raw)


def _csv_cells(raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading) -> list[str]:
    if isinstance(cells, csv.Error):
        raise RowError(f'{where} is not CSV ({cells}): cells with quotes or line ends are "quoted", quotes in them ""')
    decode(raw, offset, where, reading)  # says where in the file a byte is wrong
    return [cell.encode("latin-1").decode(reading.encoding, "replace") for cell in cells]


def _csv_record(
    raw: bytes, cells: list[str] | csv.Error, offset: int, where: str, reading: Reading, columns: list[str]
) -> dict[str, Any]:
    values = _csv_cells(raw, cells, offset, where, reading)
    named = ", or name another with --delimiter" * reading.has_options
    return _record(where, columns, values, f"quote cells that hold a delimiter{named}")


FORMATS: dict[str, tuple[Callable[..., Iterator[Piece | Bad]], Callable[..., Iterator[Row]]]] = {
    ".txt": (_cut_txt, _read_txt),
    ".jsonl": (_cut_jsonl, _read_jsonl),
    ".json": (_cut_json, _read_json),
    ".csv": (_cut_csv, _read_csv),
    ".tsv": (_cut_tsv, _read_tsv),
    ".parquet": (cut_parquet, read_parquet),
    "hf": (cut_data_set, read_data_set),
    "tfds": (cut_data_set, read_data_set),
}
NAMED = {suffix: suffix for suffix in FORMATS if suffix.startswith(".")} | {".ndjson": ".jsonl"}


def format_of(path: Path) -> str | None:
    """The format of a file by its name, but for .gz or .zst, or its content where that says nothing or .json.

    None for what is neither; no error.
    """
    name = path.name.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    known = next((named for suffix, named in NAMED.items() if plain.endswith(suffix)), None)
    if known not in (None, ".json"):
        return known
    try:
        stream = unpack.chunks(str(path))
        first = next(stream, b"").removeprefix(BYTE_ORDER_MARK).lstrip()
        if known is None and first.startswith(b"PAR1"):
            return ".parquet"
        line = next(unpack.lines(itertools.chain([first], stream)), b"").strip() if first.startswith(b"{") else b""
        is_row = line.endswith(b"}") and (known or isinstance(json.loads(line), dict))
        return ".jsonl" if is_row else known
    except (*FAILURES, RecursionError):
        return known
