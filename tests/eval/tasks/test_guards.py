"""What a reader should know of data is counted, and said only where it is so; the command lists it."""

import pytest

import eval.__main__
from eval.tasks.guards import data_notes, shared_texts
from eval.tasks.registry import TASKS
from eval.tasks.task import Answer, Example
from tests.eval.tasks.test_families import put, splits

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def examples(train, test):
    made = {"train": train, "dev": ["x"], "test": test}
    return {
        split: [Example(f"{split}:{place}", text, Answer(("genetics",))) for place, text in enumerate(texts)]
        for split, texts in made.items()
    }


def test_texts_of_test_that_train_has_are_counted():
    # Broken by: NGRAM words counted as NGRAM - 1; case kept.
    shared = shared_texts(
        examples(["A b.", f"so {LONG}"], ["a, b", f"{LONG} too", LONG.removeprefix("one "), "c", "!"])
    )
    assert shared.whole == {"test:0"} and shared.in_part == {"test:1"}


def test_notes_say_what_is_so_and_nothing_else():
    task = TASKS["morfitt"]
    assert data_notes(task, examples(["a"], ["b"])) == []
    data = examples(["a", "a", LONG], ["a", LONG, f"{LONG} x", "b"])
    data["test"].append(Example("test:9", "c", Answer(("new",))))
    assert data_notes(task, data) == [
        "2 of 5 texts of test stand in train, word for word",
        "1 more of 5 texts of test share 13 words in a row with train",
        "labels of test that no text of train has: new (1)",
        "1 of 3 texts of train stand there before",
    ]


def tasks(capsys, *words):
    code = eval.__main__.main(["tasks", *words])
    return code, *capsys.readouterr()


def test_the_command_lists_what_is_here_and_where_to_get_the_rest(tmp_path, capsys):
    put(tmp_path / "AnatEM", splits("{}.tsv", "a\tB-X\n"))
    put(tmp_path / "mine", splits("{}.csv", "text,label\nt,a\n"))
    code, out, _ = tasks(capsys, "--data", str(tmp_path), "--task", f"anatem,bc5cdr,mine={tmp_path / 'mine'}")
    lines = out.splitlines()
    assert code == 0 and lines[1].split()[:8] == ["anatem", "entities", "en", "1", "1", "1", "1", "3"]
    assert "bc5cdr is not here: https://github.com/cambridgeltl/MTL-Bioinformatics-2016, folder data/" in lines
    assert lines[3].split()[:6] == ["mine", "single_label", "en", "1", "1", "1"]
    assert any("published sizes differ: train 5,861" in line for line in lines)


def test_the_command_fails_where_data_does_not_hold_together(tmp_path, capsys):
    # Broken by: `code = 2` left out.
    put(tmp_path / "AnatEM", {"train.tsv": "a\tB-X\n"})
    code, out, _ = tasks(capsys, "--data", str(tmp_path))
    assert code == 2 and "anatem does not hold together" in out and "hoc is not here" in out


@pytest.mark.parametrize(
    "words, said",
    [
        (["--task", "anatom"], "error: no task is called 'anatom' (did you mean anatem?): there are "),
        (["--data", "/nowhere/at/all"], "error: /nowhere/at/all is no folder"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, said):
    code, out, err = tasks(capsys, *words)
    assert code == 2 and err.startswith(said) and err.count("\n") == 1 and not out
