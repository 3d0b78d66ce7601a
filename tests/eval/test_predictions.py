"""Files of predictions: written whole, read with suspicion."""

import json
from dataclasses import replace

import pytest

from eval.predictions import Head, Prediction, Seen, read_predictions, words_of, write_predictions
from eval.tasks.task import Answer, Example, Span

TEXT = "Une toux sèche\u2028 et <script>alert(1)</script>"
SPANS = (Span(((0, 8),), "DISO"), Span(((0, 3), (9, 14)), "PHEN"))
HEAD = Head(
    model="small",
    weights="0",
    task="ner",
    kind="entities",
    language="fr",
    split="test",
    seed=0,
    protocol="french",
    protocol_hash="0",
    labels=("DISO", "PHEN"),
    examples=2,
    curve=((10, 0.5), (20, 0.75)),
)
FIRST = Prediction(
    id="1", text=TEXT, gold=Answer(spans=SPANS), predicted=Answer(spans=SPANS[:1]), tokens=9, seen=(True, False)
)
SECOND = Prediction(
    id="2", text="", gold=Answer(labels=("a",)), predicted=Answer(), tokens=0, scores={"a": 0.25}, second="b"
)
TWO = [FIRST, SECOND]


def test_predictions_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "0.jsonl"
    write_predictions(path, HEAD, TWO)
    assert read_predictions(path) == (HEAD, TWO)
    assert [each.name for each in path.parent.iterdir()] == ["0.jsonl"]


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    # Broken by: any of the checks of read_predictions and _misplaced left out.
    path = tmp_path / "0.jsonl"
    write_predictions(path, HEAD, TWO)
    whole = path.read_bytes()
    lines = whole.decode().split("\n")
    empty = json.dumps({**json.loads(lines[1]), "predicted": {"spans": [{"ranges": [[3, 3]], "label": "a"}]}})
    far = json.dumps({**json.loads(lines[1]), "predicted": {"spans": [{"ranges": [[3, 99]], "label": "a"}]}})
    for data, reason in (
        (whole[:-1], "is damaged: 1 whole lines of 2"),
        ("\n".join([*lines[:2], ""]).encode(), "is damaged: 1 whole lines of 2"),
        (
            whole.replace(b'"id": "2"', b'"id": 2'),
            "line 3 is no prediction of ours .id: Input should be a valid string",
        ),
        (whole.replace(b'"seed"', b'"seeds"'), "line 1 is no prediction of ours"),
        (whole + b"{", "is damaged: 2 whole lines of 2"),
        (b"", "line 1 is no prediction of ours"),
        ("\n".join([lines[0], far, *lines[2:]]).encode(), r"line 2 has a span at \[\(3, 99\)\]"),
        ("\n".join([lines[0], empty, *lines[2:]]).encode(), r"line 2 has a span at \[\(3, 3\)\]"),
        (whole.replace(b"[true, false]", b"[true]"), "line 2 says of 1 answers whether they were seen, and has 2"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"0.jsonl:? {reason}") as raised:
            read_predictions(path)
        assert "\n" not in str(raised.value)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    # Broken by: open(path) in place of open(partial).
    path = tmp_path / "0.jsonl"
    write_predictions(path, HEAD, TWO)
    with pytest.raises(ValueError):
        write_predictions(path, HEAD, [FIRST, replace(SECOND, scores={"a": float("nan")})])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        write_predictions(path, HEAD, TWO[:1])
    assert read_predictions(path) == (HEAD, TWO)
    assert [each.name for each in tmp_path.iterdir()] == ["0.jsonl"]


def test_an_entity_was_seen_where_training_has_its_words_under_its_label():
    # Broken by: `casefold` left out; the label left out of `said`.
    train = [Example("1", "Toux  sèche", Answer(spans=(Span(((0, 11),), "DISO"),))), Example("2", "x", Answer(("a",)))]
    text = "toux sèche, toux sèche, toux"
    spans = (Span(((0, 10),), "DISO"), Span(((12, 22),), "PHEN"), Span(((24, 28),), "DISO"))
    assert Seen(train)(Example("3", text, Answer(spans=spans))) == (True, False, False)
    assert Seen(train)(Example("4", "y", Answer(labels=("a", "b")))) == (True, False)
    assert words_of("a (or b) c", Span(((0, 1), (9, 10)), "x")) == "a c"
