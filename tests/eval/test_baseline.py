"""What needs no model."""

from eval.baseline import answers
from eval.tasks.task import Answer, Example, Span


def example(text: str, *spans: tuple[str, str], labels: tuple[str, ...] = ()) -> Example:
    """A text whose first mention of each given stretch has this label."""
    found = sorted(Span(((text.index(x), text.index(x) + len(x)),), label) for x, label in spans)
    return Example(text, text, Answer(labels, tuple(found)))


def said(kind, train, *texts):
    return answers(kind, train, [example(text) for text in texts])


def test_the_most_frequent_labels_are_said():
    train = [
        example(str(i), labels=labels) for i, labels in enumerate([("b",), ("a",), ("b",), ("b", "c"), ("a", "b")])
    ]
    assert said("single_label", train[:3], "x") == [Answer(("b",))]
    assert said("multi_label", train, "x", "y") == [Answer(("b",))] * 2
    assert said("multi_label", train[1:3], "x") == [Answer(("a",))]  # none is usual: the first of the most frequent
    assert said("multi_label", [example("1")], "x") == [Answer()]  # a draw of train may have none
    assert said("multiple_choice", train[3:] + train[3:4], "x") == [Answer(("b", "c"))]


def test_a_lexicon_finds_the_entities_of_the_training_texts():
    # Broken by: shorter stretches first; the share of the places where the words stand not asked.
    train = [
        example("Acute renal failure, renal colic.", ("Acute renal failure", "disease"), ("renal colic", "disease")),
        example("A cold day.", ("cold", "disease")),
        example("A cold night, a cold glass."),
    ]
    text = "No acute  renal failure: a cold, RENAL colic"
    [answer] = said("entities", train, text)
    assert [text[span.start : span.end] for span in answer.spans] == ["acute  renal failure", "RENAL colic"]


def test_only_nested_entities_overlap():
    train = [example("chronic renal failure", ("chronic renal failure", "disease"), ("renal", "body"))]
    text = "chronic renal failure"
    whole, part = Span(((0, 21),), "disease"), Span(((8, 13),), "body")
    assert said("nested_entities", train, text) == [Answer(spans=(whole, part))]
    assert said("entities", train, text) == [Answer(spans=(whole,))]
