"""`python -m eval run`: fine-tune models on tasks with many seeds, and add what they are worth to a file of rows."""

import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.files import check_out, locked
from cptjax.rows import Row, drop_cut_line, read_rows

arg, UseAppendAction = tyro.conf.arg, tyro.conf.UseAppendAction
MOST = 10_000  # seeds
FIRST_SEED = 42  # that of both papers' code


@dataclass(frozen=True, kw_only=True)
class Evaluation(Options):
    """Fine-tune and score models on tasks; the same command goes on with what was interrupted."""

    model: str  # folders or Hub ids with commas between; "baseline" needs no model
    task: str  # names of tasks with commas between, or NAME=FOLDER of your own
    data: Annotated[Path | None, arg(metavar="DIR")] = None  # the folder that the tasks' folders lie in
    out: Annotated[Path, arg(metavar="ROWS")] = Path("rows.jsonl")  # rows are added to it
    language: str = "en"  # of your own tasks
    seeds: int = 5  # how many, from 42 on
    protocol: str | None = None  # name or Python file; the task's own by default
    change: Annotated[tuple[tuple[str, ...], ...], UseAppendAction, arg(metavar="FIELD=VALUE")] = ()  # of the protocol
    tune: str | None = None  # learning_rate=1e-5,2e-5: the best on dev, by model and task
    examples: str | None = None  # train=1000,test=2000: so many are drawn, where all would take too long
    part: str = "1/1"  # I/N: the I-th of N shares of the seeds, for N machines
    together: int | None = None  # seeds that train at once; by default as many as fit, on a CPU one
    keep_model: Annotated[Path | None, arg(metavar="DIR")] = None  # a folder for each fine-tuned model

    goes_on = True

    def __call__(self, rest: Sequence[str]) -> None:
        """Do what is not done yet."""
        check_out(self.out)
        from cptjax.machine import host
        from eval import sweep  # late: help is there at once
        from eval.protocols import protocol_of
        from eval.tasks.registry import chosen

        for name in ("seeds", "together"):
            if (number := getattr(self, name)) is not None and not 1 <= number <= MOST:
                raise ValueError(f"--{name} is {number}: at least 1, at most {MOST:,}")
        part, rates, changes = _part(self.part), _rates(self.tune), _changes(self.change)
        sizes = sweep.sizes_of(self.examples)
        models = sweep.candidates(self.model.split(","))
        tasks = [
            sweep.prepare(
                task,
                self.data,
                protocol_of(self.protocol or task.protocol, task.kind, changes),
                rates,
                sizes,
            )
            for task in chosen(self.task.split(","), self.language)
        ]
        spans = [on.task.name for on in tasks if on.task.kind == "nested_entities"]
        if self.keep_model and spans:
            raise ValueError(f"transformers has no class for the span scorer of {spans[0]}: leave --keep-model out")
        host.ready_to_compute()
        with locked(sweep.predictions_folder(self.out)):
            if cut := drop_cut_line(self.out):
                say(
                    f"{self.out}: the last line was cut after {len(cut)} characters: it is made again",
                    stream=sys.stderr,
                )
            rows = read_rows(self.out) if self.out.exists() else []
            jobs = sweep.jobs(models, tasks, range(FIRST_SEED, FIRST_SEED + self.seeds), part)
            left = [sweep.left(job, rows, self.keep_model) for job in jobs]
            sweep.check_kept(left, self.keep_model)
            for job in (job for job in left if job.seeds):
                say(f"{job.model.name} on {job.on.task.name}: {len(job.seeds)} seeds", stream=sys.stderr)
                for done in sweep.do(job, rows, self.out, together=self.together, keep=self.keep_model):
                    say(_told(next(row for row in done if row.split == "test")), stream=sys.stderr)
        if not jobs:
            say(f"--part {self.part} has none of so few seeds: there was nothing to do", stream=sys.stderr)
            return
        say(f"{self.out}: all that was asked for is there; python -m eval table {self.out} shows it", stream=sys.stderr)


def _told(row: Row) -> str:
    """A seed's line, of its first metric on test."""
    value = "the training diverged" if row.value is None else f"{row.metric} {100 * row.value:.1f} on test"
    return f"  seed {row.seed}: {value}, {row.seconds:,.0f} s"


def _rates(text: str | None) -> list[float]:
    """The learning rates that --tune names."""
    if text is None:
        return []
    name, _, values = text.partition("=")
    try:
        rates = [float(value) for value in values.split(",")]
    except ValueError:
        rates = []
    if name != "learning_rate" or not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"--tune {text!r}: it is learning_rate=1e-5,2e-5, with the rates to choose among, above 0")
    if len({*rates}) < len(rates):
        raise ValueError(f"--tune {text!r}: it names a rate twice")
    return rates


def _changes(given: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The fields of a protocol that FIELD=VALUE words change, the last of each; values as JSON or else as texts."""
    changes = {}
    for word in itertools.chain(*given):
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ValueError(f"--change {word!r}: it is FIELD=VALUE, such as epochs=3")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part {text!r}: it is I/N, such as 2/4 for the second of four")
    return int(number), int(parts)
