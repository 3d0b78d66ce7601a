"""The command `tasks`: what can be scored here, how large it is, and where to get what is not here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from cptjax.command.errors import describe
from cptjax.command.escape import say
from cptjax.command.line import Options
from eval.tasks.guards import data_notes
from eval.tasks.registry import TASKS, chosen, find_folder, labels_of, load
from eval.tasks.task import SPLITS, Examples, Task

HEADINGS: tuple[str, ...] = ("task", "kind", "language", "train", "dev", "test", "labels", "entities", "licence")
NUMBERS = range(3, 8)  # of the columns, those that end together


def names(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """tyro's rule for names with commas between."""
    if kind.type != tuple[str, ...]:
        return None
    return PrimitiveConstructorSpec(
        1, "A[,B...]", lambda words: tuple(filter(None, words[0].split(","))), lambda _: True, lambda _: ["all"]
    )


@dataclass(frozen=True, kw_only=True)
class Tasks(Options):
    """The tasks with what is found of each. Exit code 2 where the data of one does not hold together."""

    data: Path | None = None  # folder that the tasks' data lies in, at most three levels down
    task: tuple[str, ...] = ()  # these only, by name; your own as NAME=FOLDER; separated by commas
    language: str = "en"  # of your own tasks
    from_hub: bool = False  # fetch from the Hub what is hosted there and not in --data

    rules: ClassVar[tuple[Any, ...]] = (names,)

    def __call__(self, rest: Sequence[str]) -> int:
        """Print the table; returns the exit code."""
        if self.data is not None and not self.data.is_dir():
            raise FileNotFoundError(f"{self.data} is no folder: --data is the one that the tasks' data lies in")
        rows, below, code = [HEADINGS], [], 0
        for task in chosen(self.task, self.language) if self.task else TASKS.values():
            try:
                examples = self._read(task)
                rows.append(_row(task, examples))
                below += _said(task, examples)
            except (ValueError, OSError) as error:
                rows.append(_row(task, None))
                below.append(f"{task.name} does not hold together: {describe(error)}")
                code = 2
        say("\n".join([*_aligned(rows), "", *below]))
        return code

    def _read(self, task: Task) -> Examples | None:
        is_here = task.is_own or (self.data is not None and find_folder(self.data, task) is not None)
        is_hosted = self.from_hub and task.hub is not None
        return load(task, self.data, self.from_hub) if is_here or is_hosted else None


def _row(task: Task, examples: Examples | None) -> tuple[str, ...]:
    sizes = {split: f"{len(examples[split]):,}" if examples else "-" for split in SPLITS}
    labels = entities = "-"
    if examples:
        labels = f"{len(labels_of(task, examples)):,}"
        entities = f"{sum(len(each.gold.spans) for split in SPLITS for each in examples[split]):,}"
    return (task.name, task.kind, task.language, *sizes.values(), labels, entities, task.licence)


def _said(task: Task, examples: Examples | None) -> list[str]:
    """What a line below the table says of a task."""
    if examples is None:
        hosted = f"; or from the Hub, {task.hub.id}, with --from-hub" if task.hub else ""
        return [f"{task.name} is not here: {task.access}{hosted}"]
    published = task.sizes or {}
    said = [f"{split} {size:,}" for split, size in published.items() if size != len(examples[split])]
    other = [f"published sizes differ: {', '.join(said)}{f' ({task.source})' * bool(task.source)}"] if said else []
    notes = (*other, *data_notes(task, examples), *task.doubts)
    return [task.name, *(f"  {note}" for note in notes)] if notes else []


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in NUMBERS else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
