"""Examples from rows that say what they are: `text` with `label`, `labels` or `spans`, or `tokens` with their tags."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cptjax.files import typed
from eval.tasks.bio import tagged_example
from eval.tasks.task import Answer, Example, Kind, Span, span

Form = Literal["label", "labels", "spans", "tags"]
FORMS: tuple[Form, ...] = ("label", "labels", "spans")  # columns beside `text`
TAGS = ("tags", "ner_tags")  # columns of tags beside `tokens`
BETWEEN = "|"  # labels in one cell of a table


@dataclass(frozen=True)
class _Said:
    """A span as a row says it."""

    label: str
    start: int | None = None
    end: int | None = None
    ranges: list[tuple[int, int]] | None = None
    text: str | None = None  # what it marks; compared where it is there


@dataclass(frozen=True)
class _Spans:
    spans: list[_Said]


def form_of(row: Mapping[str, Any], where: str) -> Form:
    """What a row says of its text. Raises ValueError where it says nothing, or two things."""
    is_tagged = "tokens" in row and any(name in row for name in TAGS)
    forms: list[Form] = ["tags"] if is_tagged else [form for form in FORMS if form in row]
    if len(forms) != 1 or ("text" not in row and not is_tagged):
        has = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"{where} has {has}: it needs text, and one of label, labels and spans; or tokens and tags")
    return forms[0]


def read_records(
    rows: Iterable[tuple[str, Mapping[str, Any]]], split: str, strict: bool = False
) -> tuple[Form | None, list[Example]]:
    """The examples of rows, each with how messages call it, and the form of all. `id` and `second`, the other text of
    a pair, are read where they are there; `strict` as for `read_bio`.

    Raises ValueError with the row that is none, or of another form than the first.
    """
    form: Form | None = None
    examples = []
    for where, row in rows:
        own = form_of(row, where)
        form = form or own
        if own != form:
            raise ValueError(f"{where} has {own}, and rows before it {form}: a task is of one kind")
        examples.append(_example(row, own, f"{split}:{len(examples) + 1}", where, strict))
    return form, examples


def kind_of(form: Form, examples: Iterable[Example]) -> Kind:
    """The kind of task that examples of a form make: nested where spans overlap or are discontinuous."""
    if form in ("label", "labels"):
        return "single_label" if form == "label" else "multi_label"
    for example in examples:
        spans = example.gold.spans
        if any(len(each.ranges) > 1 for each in spans):
            return "nested_entities"
        if any(after.start < before.end for before, after in zip(spans, spans[1:], strict=False)):
            return "nested_entities"
    return "entities"


def _example(row: Mapping[str, Any], form: Form, number: str, where: str, strict: bool) -> Example:
    name = str(row["id"]) if row.get("id") not in (None, "") else number
    if form == "tags":
        tokens, tags = row["tokens"], next(row[column] for column in TAGS if column in row)
        lists = all(isinstance(each, list) and all(isinstance(word, str) for word in each) for each in (tokens, tags))
        if not lists or len(tokens) != len(tags):
            raise ValueError(f"{where} has tokens and tags that are not two lists of words, as long as each other")
        return tagged_example(name, list(zip(tokens, tags, strict=True)), where, strict)
    second = row.get("second")
    for text in (row["text"], "" if second is None else second):
        if not isinstance(text, str):
            raise ValueError(f"{where} has a text that is none, but {text!r}")
    return Example(name, row["text"], _answer(row, form, where), second=second)


def _answer(row: Mapping[str, Any], form: Form, where: str) -> Answer:
    if form == "spans":
        return Answer(spans=tuple(sorted({_span(said, row["text"], where) for said in _said(row, where)})))
    labels = row[form]
    if form == "labels" and isinstance(labels, str):
        labels = [label.strip() for label in labels.split(BETWEEN) if label.strip()]
    labels = [labels] if form == "label" else labels
    if not isinstance(labels, Sequence) or any(isinstance(label, float | dict | list | None) for label in labels):
        raise ValueError(f"{where} has {form} {labels!r}: names are needed")
    return Answer(tuple(sorted(str(label).strip() for label in labels)))


def _said(row: Mapping[str, Any], where: str) -> list[_Said]:
    return typed(_Spans, {"spans": row["spans"]}, where, unknown="ignore").spans


def _span(said: _Said, text: str, where: str) -> Span:
    if said.ranges is None and (said.start is None or said.end is None):
        raise ValueError(f"{where} has a span of {said.label} without start and end, or ranges")
    ranges = said.ranges or [(said.start or 0, said.end or 0)]
    for start, end in ranges:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"{where} has a {said.label} at {start} to {end}, but its text has {len(text)} characters")
    words = " ".join(text[start:end] for start, end in ranges)
    if said.text is not None and said.text != words:
        raise ValueError(f"{where} has a {said.label} {said.text[:60]!r}, where its text has {words[:60]!r}")
    return span(ranges, said.label.strip())
