"""What a model said of each example of a split: a JSON object a line, the first of them about all.

From it every number can be counted again: other metrics, intervals, scores by length, a page of errors.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from cptjax.files import check_regular, naming, written
from eval.tasks.task import Answer, Example, Kind, Span


@dataclass(frozen=True, kw_only=True)
class Head:
    """Whose predictions they are, on what."""

    model: str
    weights: str  # sha256
    task: str
    kind: Kind
    language: str
    split: str
    seed: int
    protocol: str
    protocol_hash: str
    labels: tuple[str, ...]  # the task's, in their order
    examples: int  # so many lines follow
    curve: tuple[tuple[int, float], ...] = ()  # optimiser step, and the first metric on dev after it


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was said of one example."""

    id: str
    text: str
    gold: Answer
    predicted: Answer
    tokens: int  # of the text, before it was cut
    truncated: bool = False
    second: str | None = None
    choices: tuple[str, ...] = ()
    scores: dict[str, float] | None = None  # by label, where the kind has labels of a text
    seen: tuple[bool, ...] | None = None  # of each gold span or, where there are none, label: `Seen` says


class Seen:
    """Whether training texts hold what an example's gold answer says: an entity's words under its label, or a label."""

    def __init__(self, train: Iterable[Example]):
        self._said = {each for example in train for each in said(example.text, example.gold)}

    def __call__(self, example: Example) -> tuple[bool, ...]:
        """For each gold span, or else each gold label, in their order."""
        return tuple(each in self._said for each in said(example.text, example.gold))


def said(text: str, answer: Answer) -> list[tuple[str, str]]:
    """(label, words) of each span of an answer, or else of each label, which has no words."""
    return [(span.label, words_of(text, span).casefold()) for span in answer.spans] or [(x, "") for x in answer.labels]


def words_of(text: str, span: Span) -> str:
    """What a span covers, its pieces and words with a space between."""
    return " ".join(" ".join(text[start:end] for start, end in span.ranges).split())


_HEAD = pydantic.TypeAdapter(Head)
_PREDICTION = pydantic.TypeAdapter(Prediction)


def write_predictions(path: Path, head: Head, predictions: Sequence[Prediction]) -> None:
    """Write a file of predictions, whole or not at all. Raises OSError with the path where it cannot."""
    if head.examples != len(predictions):
        raise ValueError(f"{path}: {len(predictions)} predictions for {head.examples} examples")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as partial, open(partial, "w", encoding="utf-8") as stream:
            for each in (head, *predictions):
                stream.write(json.dumps(asdict(each), ensure_ascii=False, allow_nan=False) + "\n")


def read_predictions(path: Path) -> tuple[Head, list[Prediction]]:
    """What `write_predictions` wrote. Raises OSError, or ValueError with the path and line for a damaged file."""
    check_regular(path)
    first, *lines, rest = (path.read_bytes() or b"\n").split(b"\n")
    head = _parsed(_HEAD, first, f"{path}: line 1")
    if rest or head.examples != len(lines):
        raise ValueError(f"{path} is damaged: {len(lines)} whole lines of {head.examples}; predict again")
    predictions = [_parsed(_PREDICTION, line, f"{path}: line {n}") for n, line in enumerate(lines, start=2)]
    for number, each in enumerate(predictions, start=2):
        if wrong := _misplaced(each):
            raise ValueError(f"{path}: line {number} {wrong}")
    return head, predictions


def _parsed(kind: pydantic.TypeAdapter, line: bytes, where: str) -> Any:
    try:
        return kind.validate_json(line, strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, wrong["loc"])), wrong["msg"])))
        raise ValueError(f"{where} is no prediction of ours ({reason})") from error


def _misplaced(of: Prediction) -> str | None:
    """What is wrong with an example's spans, if anything."""
    for span in (*of.gold.spans, *of.predicted.spans):
        ends = [0, *(end for each in span.ranges for end in each), len(of.text)]
        if not span.ranges or sorted(ends) != ends or any(start == end for start, end in span.ranges):
            return f"has a span at {list(span.ranges)}, which is no place in its text of {len(of.text)} characters"
    if of.seen is not None and len(of.seen) != len(of.gold.spans or of.gold.labels):
        return f"says of {len(of.seen)} answers whether they were seen, and has {len(of.gold.spans or of.gold.labels)}"
    return None
