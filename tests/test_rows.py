"""Rows of an evaluation: written whole, read strictly, and only compared where they may be."""

import errno
import os
from dataclasses import replace

import pytest

from cptjax.rows import append_rows, by_task, check_comparable, drop_cut_line, read_rows
from tests.conftest import evaluation_row as row


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row(seed=1, notes=["text é \u2028"], tuned={"learning_rate": [1e-5, 2e-5]}), row(seed=2, value=None)]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    assert read_rows(path) == rows
    assert list(by_task(rows).values()) == [[0.5]]


def test_a_cut_line_is_named_and_can_be_taken_away(tmp_path):
    # Broken by: reading the last line where it happens to be whole JSON.
    path = tmp_path / "rows.jsonl"
    assert drop_cut_line(path) is None
    append_rows(path, [row(seed=1), row(seed=2)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"rows.jsonl: line 2 is cut: start what wrote it again, it goes on"):
        read_rows(path)
    assert drop_cut_line(path) and read_rows(path) == [row(seed=1)]
    assert drop_cut_line(path) is None


def test_what_is_no_beginning_of_a_row_stays(tmp_path):
    # Broken by: the last line of any file taken away.
    path = tmp_path / "config.json"
    for text in ('{"model_type": "bert"}', "notes", '{"model_type": "bert",\n"x": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="config.json ends in a line that is no row: name a file that"):
            drop_cut_line(path)
        assert path.read_text() == text
    path.write_text('{"mod')
    assert drop_cut_line(path) == '{"mod' and path.read_text() == ""


def test_a_file_without_rows_is_told_in_one_sentence_and_many_bad_lines_by_the_first(tmp_path):
    # Broken by: `not kept` left out; `", ".join(wrong)` in the place of `listed`.
    other, damaged = tmp_path / "other.csv", tmp_path / "rows.jsonl"
    other.write_text("text,label\n" * 50)
    with pytest.raises(
        ValueError, match=r"other.csv holds no row: give a file that python -m eval wrote \(line 1 [^,]*\)$"
    ):
        read_rows(other)
    append_rows(damaged, [row(seed=1)])
    damaged.write_bytes(damaged.read_bytes() + b"{}\n" * 50)
    with pytest.raises(ValueError, match=r"rows.jsonl: line 2: model: .*, line 11: .* and 40 more$"):
        read_rows(damaged)


def test_a_disk_that_takes_no_more_leaves_none_of_the_rows(tmp_path, monkeypatch):
    # Broken by: truncate left out of append_rows.
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row(seed=1)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*rows.jsonl: No space left"):
        append_rows(path, [row(seed=2), row(seed=3)])
    assert read_rows(path) == [row(seed=1)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol_hash": "1", "protocol": "french"}, r"ner are of two protocols \(english, french\)"),
        ({"protocol_hash": "1"}, r"ner are of two protocols \(english with other settings, such as --change gives\)"),
        ({"data": "1"}, "ner are of two sets of examples"),
        ({"weights": "1"}, "small are of two sets of weights"),
    ],
)
def test_what_must_not_stand_side_by_side_is_refused(changes, reason):
    first = row()
    check_comparable([first, replace(first, seed=1), replace(first, task="other", **(changes | {"weights": "0"}))])
    check_comparable([first, replace(first, split="dev", data="1")])
    with pytest.raises(ValueError, match=reason):
        check_comparable([first, replace(first, seed=1, **changes)])
