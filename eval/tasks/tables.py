"""Rows with columns: TSV, CSV, JSON and JSON lines, read as the corpus chapter reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cptjax.corpus.formats import FORMATS, format_of
from cptjax.corpus.pieces import Bad, File, Reading
from cptjax.corpus.sources import pieces
from cptjax.corpus.unpack import FAILURES
from cptjax.files import check_regular

SUFFIXES = (".tsv", ".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class _AsItIs(Reading):
    has_options: ClassVar[bool] = False


def read_table(
    path: Path, columns: tuple[str, ...], quotes: bool = False, tabs: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a file, by column, and how messages call it. `columns` must be there; `quotes`: the cells of a .tsv
    file may be quoted; `tabs`: a .csv file has tabs for commas.

    Raises OSError, or ValueError, one line, for what cannot be read.
    """
    check_regular(path)
    kind = format_of(path)
    if kind not in SUFFIXES:
        raise ValueError(f"{path} is no table: it is one of {', '.join(SUFFIXES)}")
    kind = ".tsv" if tabs else kind
    file = File(str(path), str(path), kind, path.stat().st_size)
    reading = _AsItIs(text_field=columns[0] if columns else "", fields=columns, tsv_quotes=quotes or tabs)
    for piece in pieces(file, reading):
        if isinstance(piece, Bad):
            raise ValueError(piece.message)
        try:
            for row, parse in FORMATS[kind][1](file, piece, reading):
                record = parse()
                if missing := [name for name in columns if record.get(name) is None]:
                    has = ", ".join(map(str, record))
                    raise ValueError(f"{path}:{row} has no {missing[0]!r}: it has {has}")
                yield f"{path}:{row}", record
        except FAILURES as error:
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"{path} cannot be read ({error})") from None
