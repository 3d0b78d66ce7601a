"""The rows of an evaluation, one number each: what `eval` appends, a JSON object a line, and a release's card reads."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from cptjax.command.escape import listed
from cptjax.files import naming, parse_json, typed


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one model on one split of one task with one seed, and what is needed to get it again."""

    model: str  # its name: the last part of its folder or Hub id
    weights: str  # sha256 of its weights
    tokenizer: str  # sha256 of its tokenizer.json
    task: str
    kind: str  # the Hub's name of the kind of task, such as token-classification
    data: str  # sha256 of the task's examples
    split: str
    metric: str
    value: float | None  # a share from 0 to 1; None: the training diverged
    seed: int
    protocol: str
    protocol_hash: str
    examples: int  # of the split
    truncated: float  # share of the split's texts that were cut
    learning_rate: float
    tuned: dict[str, list[float]] = field(default_factory=dict)  # what was chosen on dev, and among which values
    notes: list[str] = field(default_factory=list)  # what a reader of the number should know
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    seconds: float = 0.0  # of training and predicting, this seed's share
    predictions: str = ""  # file beside the rows' file that holds them by example

    def __post_init__(self):
        if self.value is not None and not 0 <= self.value <= 1:
            raise ValueError(f"value is {self.value}: it is a share from 0 to 1")

    @property
    def of(self) -> tuple[str | int, ...]:
        """What a row is of: no two rows of an evaluation are of the same."""
        return (self.model, self.weights, self.task, self.data, self.split, self.metric, self.protocol_hash, self.seed)


class Line(Protocol):
    """A dataclass whose objects are lines of a file, no two of them `of` the same."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def of(self) -> tuple[str | int, ...]:
        """What it is of."""
        ...


L = TypeVar("L", bound=Line)


def read_rows(path: Path, refusal: Callable[[L], str | None] = lambda _: None, kind: type[L] = Row) -> list[L]:
    """The rows of a file, of this `kind`. `refusal` says what else is wrong with a row. Raises OSError, or ValueError
    for all that is wrong with them: a line that is no row, one that repeats another, a last line that a kill cut."""
    kept: dict[tuple, L] = {}
    wrong = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines):
            wrong.append(f"line {number} is cut: start what wrote it again, it goes on")
            continue
        try:
            row = typed(kind, parse_json(line, f"line {number}"), f"line {number}")
        except ValueError as error:
            wrong.append(str(error))
            continue
        if row.of in kept:
            wrong.append(f"line {number} repeats another row's model, task, metric and seed")
        elif reason := refusal(row):
            wrong.append(f"line {number} {reason}")
        kept.setdefault(row.of, row)
    if len(wrong) > 1 and not kept:
        raise ValueError(f"{path} holds no row: give a file that python -m eval wrote ({wrong[0]})")
    if wrong:
        raise ValueError(f"{path}: {listed(wrong)}")
    return list(kept.values())


def append_rows(path: Path, rows: Iterable[Line]) -> None:
    """Add rows to a file, all on the disk once this returns; a process that is killed leaves all or none of them, as
    does a disk that takes no more, for which this raises OSError with the path."""
    lines = b"".join(written(row) for row in rows)
    with naming(path), open(path, "ab", buffering=0) as stream:  # one write, which no signal cuts
        before = stream.tell()
        try:
            while lines := lines[stream.write(lines) :]:
                pass
            os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def written(row: Line) -> bytes:
    """A row's line."""
    return json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"


def drop_cut_line(path: Path, kind: type[Line] = Row) -> str | None:
    """Take the last line away where a kill cut it, so that rows of this `kind` can be appended; returns what was taken
    away. Raises ValueError where it is no beginning of one: it is the file that was meant by mistake."""
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return None
    begins = f'{{"{fields(kind)[0].name}": '.encode()
    if data[whole:][: len(begins)] != begins[: len(data) - whole]:
        raise ValueError(f"{path} ends in a line that is no row: name a file that python -m eval wrote, or a new one")
    with naming(path), open(path, "r+b") as stream:
        stream.truncate(whole)
    return data[whole:].decode(errors="replace")


def check_comparable(rows: Iterable[Row]) -> None:
    """Raise ValueError where numbers of rows must not stand side by side: a task scored by two protocols or on two sets
    of examples, or a name that two models have."""
    seen: dict[tuple[str, str], tuple[str, Row]] = {}
    for row in rows:
        for what, name, value in (
            ("protocols", row.task, row.protocol_hash),
            ("sets of examples", row.task, f"{row.split} {row.data}"),
            ("sets of weights", row.model, row.weights),
        ):
            before, first = seen.setdefault((what, f"{name} {row.split}"), (value, row))
            if before != value:
                names = f"{first.protocol}, {row.protocol}"
                if first.protocol == row.protocol:
                    names = f"{row.protocol} with other settings, such as --change gives"
                named = f" ({names})" if what == "protocols" else ""
                raise ValueError(f"rows of {name} are of two {what}{named}: compare each alone")


def by_task(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], list[float]]:
    """Values over seeds by (model, task, kind, metric), in the order of the rows; a training that diverged has none."""
    groups: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rows:
        if row.value is not None:
            groups.setdefault((row.model, row.task, row.kind, row.metric), []).append(row.value)
    return groups
