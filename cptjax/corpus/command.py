"""The commands of text: prepare, data-report."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import OmitArgPrefixes, Positional, Suppress, UseAppendAction
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from cptjax.command import errors
from cptjax.command.escape import say
from cptjax.command.line import Options
from cptjax.corpus.cleaning import Cleaning, Condition, parse_condition, parse_steps
from cptjax.corpus.described import Description
from cptjax.corpus.pieces import Reading


def _names(text: str) -> tuple[str, ...]:
    """What stands between commas; a name with a comma is taken whole where it exists."""
    names = [text] if Path(text).exists() else text.split(",")
    if "" in names:
        raise ValueError(f"{text!r} names nothing between two commas or at an end: take the comma out")
    return tuple(names)


WRITTEN: dict[Any, tuple[str, Callable[[str], Any]]] = {  # how values are written that tyro does not know
    tuple[str, ...]: ("A[,B...]", _names),
    tuple[tuple[float, float], ...]: ("SCORE:WEIGHT[,SCORE:WEIGHT...]", parse_steps),
    Condition: ("COLUMN>=NUMBER|COLUMN==WORD|...", parse_condition),
}


def written_values(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A rule of `Options.rules`: values of these types are one word."""
    if kind.type not in WRITTEN:
        return None
    metavar, parse = WRITTEN[kind.type]
    return PrimitiveConstructorSpec(1, metavar, lambda words: parse(words[0]), lambda _: True, lambda _: ["none"])


@dataclass(frozen=True)
class _Reading(Reading):
    fields: Suppress[tuple[str, ...]] = ()  # follow from other options


@dataclass(frozen=True)
class TextReading(_Reading):
    """How rows become texts, where nothing but the text is wanted of them."""

    id_field: Suppress[str | None] = None
    weight_field: Suppress[str | None] = None


@dataclass(frozen=True, kw_only=True)
class Prepare(Options):
    """Text to a token store. With --runner, options that are not listed go to Apache Beam."""

    source: tuple[str, ...]  # files, folders, patterns, hf:ID@SPLIT, tfds:NAME@SPLIT; separated by commas
    tokenizer: str  # folder with tokenizer.json, or Hub id
    out: Path  # folder of the store
    reading: OmitArgPrefixes[_Reading] = field(default_factory=_Reading)
    cleaning: Annotated[Cleaning, OmitArgPrefixes, UseAppendAction] = field(default_factory=Cleaning)
    description: Annotated[Description, OmitArgPrefixes, UseAppendAction] = field(default_factory=Description)
    on_error: Literal["stop", "skip"] = "stop"  # rows that cannot be read
    count_fields: tuple[str, ...] = ()  # columns to count by value, such as licence,source
    held_out: float = 0.0  # share of documents kept in OUT/held_out
    samples: bool = True  # text of some documents stands in report.html and report.json
    workers: int | None = None  # processes; one per core unless given
    runner: str | None = None  # work through Apache Beam: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, ...
    overwrite: bool = False  # replace OUT

    goes_on: ClassVar[bool] = True
    rules: ClassVar[tuple[Any, ...]] = (written_values,)

    @classmethod
    def passes_on(cls, words: Sequence[str]) -> bool:
        """Other options are for Beam, where it is asked for."""
        return any(word.split("=")[0] == "--runner" for word in words)

    def __call__(self, rest: Sequence[str]) -> None:
        """Make the store and tell of it."""
        if self.runner is not None and self.workers is not None:
            raise ValueError("--workers is not for --runner: each runner has options of its own")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}: at least 1 process does the work")
        from cptjax.corpus import beam, page, pool, repetitions, report  # late: help is there at once
        from cptjax.corpus.prepare import prepare

        if self.runner is not None:
            engine, group = beam.engine([f"--runner={self.runner}", *rest])
        else:
            engine, group = functools.partial(pool.spread, workers=self.workers), repetitions.group
        manifest = prepare(
            self.source,
            self.tokenizer,
            self.out,
            reading=Reading(**dataclasses.asdict(self.reading)),
            cleaning=self.cleaning,
            description=self.description,
            held_out=self.held_out,
            on_error=self.on_error,
            count_fields=self.count_fields,
            overwrite=self.overwrite,
            engine=engine,
            group=group,
        )
        say(page.text(report.write(self.out, samples=self.samples)))
        say(
            f"{self.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens; "
            f"this report is {self.out / 'report.html'} too"
        )


@dataclass(frozen=True, kw_only=True)
class DataReport(Options):
    """What is in token stores, printed and as pages."""

    stores: Positional[tuple[Path, ...]]  # token stores
    out: Path | None = None  # folder for report.json and report.html of one store; else in the store itself
    samples: bool = True  # text of some documents stands in them

    def __call__(self, rest: Sequence[str]) -> None:
        """Verify each store, and report on it."""
        if not self.stores:
            raise ValueError("no token store is given: name at least one")
        if self.out is not None and len(self.stores) > 1:
            raise ValueError("--out is for the report of one store: without it each is written into its store")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"--out is {self.out}, a file: name a folder")
        from cptjax.corpus import page, report
        from cptjax.data.store import Store

        for path in self.stores:
            with errors.reading(path):
                Store(path).verify()
                made = report.write(path, self.out, samples=self.samples)
            say(page.text(made))
