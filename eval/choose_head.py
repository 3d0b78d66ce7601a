"""Which head a task wants."""

from collections.abc import Sequence

from eval.heads import Head, TextHead, TokenHead
from eval.problem import Problem
from eval.spans.head import SpanHead
from eval.tasks.task import Example


def head_of(problem: Problem) -> Head:
    """The head of a kind of task; weights of right texts, whether one choice alone is right, and whether entities have
    gaps, are seen in train.
    Raises ValueError for a threshold of spans that is to be chosen."""
    kind, labels, protocol, train = problem.kind, problem.labels, problem.protocol, problem.examples["train"]
    if kind == "entities":
        return TokenHead(labels)
    if kind == "nested_entities":
        if protocol.threshold == "dev":
            raise ValueError("protocol threshold dev is for labels of texts: give one for spans, such as 0.5")
        gaps = protocol.gaps and any(len(span.ranges) > 1 for example in train for span in example.gold.spans)
        return SpanHead(
            labels,
            protocol.span_width,
            protocol.longest_span,
            protocol.threshold,
            gaps,
            protocol.lstm_layers,
            protocol.lstm_width,
            protocol.span_tags,
            protocol.span_dropout,
        )
    if kind == "multiple_choice":
        single = all(len(example.gold.labels) == 1 for example in train)
        return TextHead((), "one" if single else "any", of_choices=True)
    if kind == "multi_label":
        weights = positive_weights(labels, train) if protocol.positive_weights else ()
        return TextHead(labels, "any", positive_N=weights, fallback=protocol.fallback)
    return TextHead(labels, "one")


def positive_weights(labels: Sequence[str], train: Sequence[Example]) -> tuple[float, ...]:
    """Wrong texts by right texts of each label; 1 where no text is right."""
    right = [sum(label in example.gold.labels for example in train) for label in labels]
    return tuple((len(train) - count) / count if 0 < count < len(train) else 1.0 for count in right)
