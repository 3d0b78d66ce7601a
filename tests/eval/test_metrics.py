"""Metrics against scikit-learn's and seqeval's, on drawn answers and on those meant to break them."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2

from eval.metrics import METRICS, metric, score
from eval.tasks.task import KINDS, Answer, Span

LABELS = ("a", "b", "c")
FEW = settings(max_examples=60)


def answers(sets) -> list[Answer]:
    return [Answer(labels=tuple(sorted(labels))) for labels in sets]


def table(sets) -> np.ndarray:
    return np.array([[name in labels for name in LABELS] for labels in sets], int)


single = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=30)
sets = st.frozensets(st.sampled_from(LABELS))
several = st.lists(st.tuples(sets, sets), min_size=1)


@FEW
@given(single)
@example([("a", "a")])  # two labels of no text
@example([("a", "b"), ("a", "b")])  # all wrong
def test_one_label_a_text_as_scikit_learn(pairs):
    # Broken by: missed left out of _f1; support of predicted labels in _weighted; labels=LABELS in macro_f1_present.
    gold, predicted = zip(*pairs, strict=True)
    of = (answers([{x} for x in gold]), answers([{x} for x in predicted]), LABELS)
    assert score("accuracy", *of) == pytest.approx(sk.accuracy_score(gold, predicted))
    for average in ("micro", "macro", "weighted"):
        judged = sk.f1_score(gold, predicted, labels=LABELS, average=average, zero_division=0)
        assert score(f"{average}_f1", *of) == pytest.approx(judged)
    judged = sk.f1_score(gold, predicted, average="macro", zero_division=0)
    assert score("macro_f1_present", *of) == pytest.approx(judged)


@FEW
@given(several)
@example([(frozenset(), frozenset())])
@example([(frozenset("abc"), frozenset()), (frozenset(), frozenset("abc"))])
def test_several_labels_a_text_as_scikit_learn(pairs):
    # Broken by: 0 for a text without labels in _shared; `<=` in place of `==` in _right.
    gold, predicted = zip(*pairs, strict=True)
    of, tables = (answers(gold), answers(predicted), LABELS), (table(gold), table(predicted))
    assert score("exact_match", *of) == pytest.approx(sk.accuracy_score(*tables))
    assert score("hamming", *of) == pytest.approx(sk.jaccard_score(*tables, average="samples", zero_division=1))
    for average in ("micro", "macro", "weighted"):
        assert score(f"{average}_f1", *of) == pytest.approx(sk.f1_score(*tables, average=average, zero_division=0))


def test_a_label_that_training_had_not_counts_as_missed():
    # Broken by: `others` left out of the columns.
    gold, predicted = answers([{"a"}, {"new"}]), answers([{"a"}, {"a"}])
    assert score("micro_f1", gold, predicted, ("a",)) == 0.5
    assert score("macro_f1", gold, predicted, ("a",)) == pytest.approx(sk.f1_score([*"an"], [*"aa"], average="macro"))


def spans_of(tags: list[str]) -> tuple[Span, ...]:
    """The entities of IOB2 tags, a character a tag; an I- that goes on nothing is outside, as strict has it."""
    spans: list[Span] = []
    for place, tag in enumerate(tags):
        mark, _, label = tag.partition("-")
        if mark == "B":
            spans.append(Span(((place, place + 1),), label))
        elif mark == "I" and spans and spans[-1].end == place and spans[-1].label == label:
            spans[-1] = Span(((spans[-1].start, place + 1),), label)
    return tuple(spans)


tags = st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"])
sentences = st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=12), min_size=1, max_size=6)


@FEW
@given(sentences)
@example([[("B-a", "B-a"), ("I-a", "B-a")]])  # one entity of two, two entities
@example([[("B-a", "B-a"), ("I-a", "I-b")]])
@example([[("O", "O")]])
def test_entities_as_seqeval_counts_them_strictly(pairs):
    # Broken by: `p - g` counted as missed; the label left out of spans.
    columns = [zip(*sentence, strict=True) for sentence in pairs]
    gold, predicted = zip(*([list(x) for x in of] for of in columns), strict=True)
    of = [[Answer(spans=spans_of(x)) for x in tags] for tags in (gold, predicted)]
    judged = seqeval.f1_score(list(gold), list(predicted), mode="strict", scheme=IOB2, zero_division=0)
    assert score("entity_f1", *of, ()) == pytest.approx(judged)
    assert score("span_f1_exact", *of, ()) == pytest.approx(judged)


def spans(*ends: tuple[int, int], label: str = "a") -> tuple[Span, ...]:
    return tuple(Span((each,), label) for each in ends)


def test_of_nested_spans_a_flat_metric_sees_the_longest():
    # Broken by: _same in place of _same_flat.
    gold, predicted = [Answer(spans=spans((0, 9), (3, 5), (8, 12), (10, 12)))], [Answer(spans=spans((0, 9), (10, 12)))]
    assert score("entity_f1", gold, predicted, ()) == 1
    assert score("span_f1_exact", gold, predicted, ()) == pytest.approx(4 / 6)
    apart = [Answer(spans=(Span(((0, 2), (5, 7)), "a"),))]
    assert score("span_f1_exact", apart, apart, ()) == 1
    assert score("span_f1_exact", apart, [Answer(spans=spans((0, 7)))], ()) == 0


@pytest.mark.parametrize(
    ("gold", "predicted", "value"),
    [
        (spans((0, 4)), spans((3, 5)), 1),
        (spans((0, 4)), spans((4, 5)), 0),  # beside each other
        (spans((0, 4)), spans((0, 4), label="b"), 0),
        (spans((0, 4)), spans((0, 1), (2, 3), (7, 8)), 0.8),  # precision 2/3, recall 1
        (spans((0, 2), (2, 4)), spans((1, 3)), 1),
        ((Span(((0, 2), (5, 7)), "a"),), spans((2, 5)), 0),  # in the gap
        ((), (), 0),
    ],
)
def test_a_partial_match_shares_a_character_and_the_label(gold, predicted, value):
    # Broken by: span.start and span.end in place of the ranges; `<=` in overlap; the label not compared.
    assert score("span_f1_partial", [Answer(spans=gold)], [Answer(spans=predicted)], ()) == pytest.approx(value)


@FEW
@given(several)
def test_counts_of_examples_add_up_to_their_score(pairs):
    """So statistics may draw lines of counts: many sums at once give the values of each."""
    # Broken by: counts[0] in place of counts[..., 0].
    gold, predicted = (answers(x) for x in zip(*pairs, strict=True))
    for name in ("micro_f1", "macro_f1", "weighted_f1", "exact_match", "hamming"):
        counts_EC = METRICS[name].count(gold, predicted, LABELS)
        assert len(counts_EC) == len(gold)
        sums = np.stack([counts_EC.sum(0), counts_EC[:1].sum(0)])[None]
        expected = [score(name, gold, predicted, LABELS), score(name, gold[:1], predicted[:1], LABELS)]
        assert METRICS[name].value(sums).tolist() == [pytest.approx(expected)]


def test_every_kind_has_a_metric_and_an_unknown_one_is_named():
    # Broken by: METRICS[name] in metric().
    assert {kind for of in METRICS.values() for kind in of.kinds} == {*KINDS}
    with pytest.raises(ValueError, match="no metric is called 'f2': there are accuracy, micro_f1"):
        metric("f2")
