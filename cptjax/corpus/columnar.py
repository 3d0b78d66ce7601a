"""Rows that a library reads: of Parquet files, Hugging Face data sets and prepared tensorflow-datasets."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from cptjax.corpus import pieces, unpack
from cptjax.corpus.pieces import Bad, File, Piece, Reading, Row, check_columns, wanted_columns

# ---- Parquet


def cut_parquet(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    """A piece for each row group."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        check_columns(file.name, table.schema_arrow.names, wanted_columns(reading), reading)
        row = 1
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            unpack.check_size(about.total_byte_size, file.size)
            yield Piece(row, group, about.total_byte_size)
            row += about.num_rows


def read_parquet(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    """The rows of a row group."""
    import pyarrow.parquet

    columns = list(wanted_columns(reading))
    with pyarrow.parquet.ParquetFile(file.path) as table:
        rows = table.metadata.row_group(piece.payload).num_rows
        cell = _dictionary_bytes(file, piece.payload, columns)
        at_once = max(1, min(pieces.PIECE_BYTES * rows // max(piece.size, 1), unpack.DOCUMENT_BYTES // max(cell, 1)))
        batches = table.iter_batches(at_once, row_groups=[piece.payload], columns=columns)
        records = itertools.chain.from_iterable(map(_arrow_records, batches))
        yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


def _dictionary_bytes(file: File, group: int, columns: list[str]) -> int:
    """Bytes of the largest dictionary of a row group: of any of its cells, which many rows may repeat."""
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as table:
        text = [name for name in columns if table.schema_arrow.field(name).type in (pyarrow.string(), pyarrow.binary())]
    with pyarrow.parquet.ParquetFile(file.path, read_dictionary=text) as table:
        first = next(table.iter_batches(1, row_groups=[group], columns=columns), None)
        cells = [] if first is None else first.columns
        return max((c.dictionary.nbytes for c in cells if pyarrow.types.is_dictionary(c.type)), default=0)


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


# ---- data sets


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


def cut_data_set(file: File, reading: Reading) -> Iterator[Piece | Bad]:
    """Pieces of so many rows."""
    data_set = DATA_SETS[file.format](file.path, file.split)
    check_columns(file.name, data_set.columns, wanted_columns(reading), reading)
    step = max(1, pieces.PIECE_BYTES * data_set.rows // max(data_set.size, 1))
    for first in range(0, data_set.rows, step):
        last = min(first + step, data_set.rows)
        yield Piece(first + 1, (first, last), data_set.size * (last - first) // data_set.rows)


def read_data_set(file: File, piece: Piece, reading: Reading) -> Iterator[Row]:
    """The rows of a piece."""
    first, last = piece.payload
    records = DATA_SETS[file.format](file.path, file.split).read(first, last, list(wanted_columns(reading)))
    yield from ((row, partial(dict, record)) for row, record in enumerate(records, piece.first_row))


DATA_SETS = {"hf": _hf, "tfds": _tfds}
