"""What a task is: texts with what is to be said of them, in splits, and what a reader of its numbers should know.

Character offsets are the truth everywhere: whoever reads tokens rebuilds the text and finds them in it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["single_label", "multi_label", "relation", "entities", "nested_entities", "multiple_choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS = ("train", "dev", "test")
Ranges = tuple[tuple[int, int], ...]  # characters, first and one beyond the last; in order, apart from each other


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of a text and its label; more than one range where it is discontinuous."""

    ranges: Ranges
    label: str

    @property
    def start(self) -> int:
        """Its first character."""
        return self.ranges[0][0]

    @property
    def end(self) -> int:
        """One beyond its last character."""
        return self.ranges[-1][1]


def span(ranges: Iterable[tuple[int, int]], label: str) -> Span:
    """A span from ranges in any order; those that touch or overlap become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    return Span(tuple(merged), label)


@dataclass(frozen=True)
class Answer:
    """What is said of an example: by its annotators, or by a model."""

    labels: tuple[str, ...] = ()  # of the text: exactly one of single_label and relation; the right of `choices`
    spans: tuple[Span, ...] = ()  # entities, sorted


@dataclass(frozen=True)
class Example:
    """One text. `arguments` are the spans that a relation holds between, in the order of the text, labelled by role;
    `second` is the other text of a pair."""

    id: str
    text: str
    gold: Answer
    arguments: tuple[Span, ...] = ()
    second: str | None = None
    choices: tuple[str, ...] = ()  # of multiple_choice; gold.labels names the right ones by their place, from "0" on


Examples = Mapping[str, Sequence[Example]]  # by split


@dataclass(frozen=True)
class Hub:
    """A data set of the Hub that needs no script: its id, and what its columns are called in `records.py`."""

    id: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A task by name: how it is read and scored, who may use it, and where it is to be had.

    `read` gives the examples of a folder in the data's public native form, and raises ValueError or OSError, one line.
    """

    name: str
    kind: Kind
    language: str  # ISO 639-1
    folders: tuple[str, ...]  # names that its folder or archive has where it is handed out
    read: Callable[[Path], Examples]
    metrics: tuple[str, ...]  # names in metrics.METRICS; the first chooses the checkpoint
    protocol: str  # its own, by name in protocols.PROTOCOLS
    licence: str
    access: str  # where to get it, and on what condition
    hub: Hub | None = None
    labels: tuple[str, ...] | None = None  # in their order; None: those of `vocabulary`, sorted
    vocabulary: Literal["train", "all"] = "train"  # splits whose labels are known
    sizes: Mapping[str, int] | None = None  # published number of examples by split
    source: str = ""  # of the sizes and the form, where they were not seen
    doubts: tuple[str, ...] = ()  # what is not known of how others score it; each row says so

    @property
    def is_own(self) -> bool:
        """Whether it is the user's own, which has no name to be looked for: it was read where `access` says."""
        return not self.folders


def said_labels(kind: Kind, examples: Iterable[Example]) -> Iterator[str]:
    """Each label that is said of examples of a kind, as often as it is said."""
    for example in examples:
        of_spans = kind in ("entities", "nested_entities")
        yield from (each.label for each in example.gold.spans) if of_spans else example.gold.labels
