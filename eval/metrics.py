"""What an answer is worth: counts by example, and the share from 0 to 1 that their sum makes.

Counts come first, so that whoever draws examples again (statistics.py) adds lines instead of scoring texts. They are
scikit-learn's and seqeval's numbers; what is divided by nothing is 0. E examples, C counts of one, K labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cptjax.command.escape import nearest
from eval.tasks.pieces import flat
from eval.tasks.task import Answer, Kind, Span

Counting = Callable[[Sequence[Answer], Sequence[Answer], Sequence[str]], np.ndarray]
ONE: tuple[Kind, ...] = ("single_label", "relation")
SEVERAL: tuple[Kind, ...] = ("multi_label", "multiple_choice")
SPANS: tuple[Kind, ...] = ("entities", "nested_entities")


@dataclass(frozen=True)
class Metric:
    """How answers of some kinds are scored. `count` gives [E, C] of gold, predicted and the task's labels; `value` the
    share that a sum over examples [..., C] makes, [...]."""

    name: str
    kinds: tuple[Kind, ...]
    count: Counting
    value: Callable[[np.ndarray], np.ndarray]


def metric(name: str) -> Metric:
    """A metric by name. Raises ValueError, with the known ones, where there is none."""
    if name not in METRICS:
        raise ValueError(f"no metric is called {name!r}{nearest(name, METRICS)}: there are {', '.join(METRICS)}")
    return METRICS[name]


def score(name: str, gold: Sequence[Answer], predicted: Sequence[Answer], labels: Sequence[str]) -> float:
    """The value of a metric over examples, 0 to 1; `labels` are the task's. Raises as `metric` does."""
    by_name = metric(name)
    return float(by_name.value(by_name.count(gold, predicted, labels).sum(0)))


# ---- labels of a text


def _right(gold: Sequence[Answer], predicted: Sequence[Answer], _: Sequence[str]) -> np.ndarray:
    """Of each example: whether its labels are the gold ones, and 1."""
    return np.array([(set(g.labels) == set(p.labels), 1) for g, p in zip(gold, predicted, strict=True)], float)


def _shared(gold: Sequence[Answer], predicted: Sequence[Answer], _: Sequence[str]) -> np.ndarray:
    """Of each example: the share of its labels, gold or predicted, that are both (1 where there are none), and 1."""
    pairs = [({*g.labels}, {*p.labels}) for g, p in zip(gold, predicted, strict=True)]
    return np.array([(len(g & p) / len(g | p) if g | p else 1, 1) for g, p in pairs], float)


def _by_label(gold: Sequence[Answer], predicted: Sequence[Answer], labels: Sequence[str]) -> np.ndarray:
    """Right, invented and missed, of each example and label, [E, 3 K]; labels that training had not come last."""
    others = {name for answer in (*gold, *predicted) for name in answer.labels} - {*labels}
    column = {name: k for k, name in enumerate((*labels, *sorted(others)))}
    gold_EK, predicted_EK = _table(gold, column), _table(predicted, column)
    return np.concatenate([gold_EK & predicted_EK, predicted_EK & ~gold_EK, gold_EK & ~predicted_EK], 1).astype(float)


def _table(answers: Sequence[Answer], column: dict[str, int]) -> np.ndarray:
    has_EK = np.zeros((len(answers), len(column)), bool)
    for has_K, answer in zip(has_EK, answers, strict=True):
        has_K[[column[name] for name in answer.labels]] = True
    return has_EK


def _over_labels(gold: Sequence[Answer], predicted: Sequence[Answer], labels: Sequence[str]) -> np.ndarray:
    counts_EC = _by_label(gold, predicted, labels)
    return counts_EC.reshape(len(counts_EC), 3, -1).sum(2)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole != 0)


def _mean(counts: np.ndarray) -> np.ndarray:
    return _share(counts[..., 0], counts[..., 1])


def _f1(right: np.ndarray, invented: np.ndarray, missed: np.ndarray) -> np.ndarray:
    return _share(2 * right, 2 * right + invented + missed)


def _micro(counts: np.ndarray) -> np.ndarray:
    return _f1(*np.moveaxis(counts, -1, 0))


def _label_f1(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each label: its F1, how many examples have it in gold, and in how many it stands in either; each [..., K]."""
    right, invented, missed = np.moveaxis(counts.reshape(*counts.shape[:-1], 3, -1), -2, 0)
    return _f1(right, invented, missed), right + missed, right + invented + missed


def _macro(counts: np.ndarray) -> np.ndarray:
    f1, _, _ = _label_f1(counts)
    return f1.sum(-1) / max(1, f1.shape[-1])


def _macro_present(counts: np.ndarray) -> np.ndarray:
    f1, _, either = _label_f1(counts)
    return _share(f1.sum(-1), (either > 0).sum(-1))


def _weighted(counts: np.ndarray) -> np.ndarray:
    f1, support, _ = _label_f1(counts)
    return _share((f1 * support).sum(-1), support.sum(-1))


# ---- entities


def _same(gold: Sequence[Answer], predicted: Sequence[Answer], _: Sequence[str]) -> np.ndarray:
    """Of each example: spans that are right, invented and missed; right are the same ranges and label."""
    pairs = [({*g.spans}, {*p.spans}) for g, p in zip(gold, predicted, strict=True)]
    return np.array([(len(g & p), len(p - g), len(g - p)) for g, p in pairs], float)


def _same_flat(gold: Sequence[Answer], predicted: Sequence[Answer], labels: Sequence[str]) -> np.ndarray:
    flat_gold, flat_predicted = ([Answer(spans=flat(sorted(x.spans))) for x in of] for of in (gold, predicted))
    return _same(flat_gold, flat_predicted, labels)


def _overlapping(gold: Sequence[Answer], predicted: Sequence[Answer], _: Sequence[str]) -> np.ndarray:
    """Of each example: predicted spans that share a character with a gold one of their label, all predicted ones, gold
    ones that share one with a predicted one, all gold ones."""
    pairs = [({*g.spans}, {*p.spans}) for g, p in zip(gold, predicted, strict=True)]
    return np.array([(_touched(p, g), len(p), _touched(g, p), len(g)) for g, p in pairs], float)


def _touched(spans: set[Span], others: set[Span]) -> int:
    return sum(any(overlap(span, other) and span.label == other.label for other in others) for span in spans)


def overlap(span: Span, other: Span) -> bool:
    """Whether two spans share a character."""
    return any(a < d and c < b for a, b in span.ranges for c, d in other.ranges)


def _partial(counts: np.ndarray) -> np.ndarray:
    precision, recall = _share(counts[..., 0], counts[..., 1]), _share(counts[..., 2], counts[..., 3])
    return _share(2 * precision * recall, precision + recall)


METRICS = {
    of.name: of
    for of in (
        Metric("accuracy", ONE, _right, _mean),
        Metric("micro_f1", (*ONE, *SEVERAL), _over_labels, _micro),
        Metric("macro_f1", (*ONE, *SEVERAL), _by_label, _macro),  # over all the task's labels, those of no text too
        Metric("macro_f1_present", ONE, _by_label, _macro_present),  # scikit-learn's, where it is not told the labels
        Metric("weighted_f1", (*ONE, *SEVERAL), _by_label, _weighted),  # by how many texts have the label
        Metric("exact_match", SEVERAL, _right, _mean),
        Metric("hamming", SEVERAL, _shared, _mean),  # FrenchMedMCQA's (arXiv:2304.04280): scikit-learn's Jaccard score
        Metric("entity_f1", SPANS, _same_flat, _micro),  # seqeval's, strict, IOB2: what tags can say
        Metric("span_f1_exact", SPANS, _same, _micro),  # nested and discontinuous ones as they are
        Metric("span_f1_partial", SPANS, _overlapping, _partial),
    )
}
