"""Runs side by side, finished or not, and what is drawn of them."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cptjax.__main__ import main
from cptjax.run import compare, plots
from cptjax.run.events import read_events

HOSTILE = "<script>alert(1)</script> $x_"


@pytest.fixture
def runs(finished, tmp_path) -> list[Path]:
    """A finished run, and half of one that was told another rate and another mask rate."""
    first, second = tmp_path / "first", tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(finished, first)
    shutil.copytree(finished, second)
    (second / "run.json").unlink()
    lines = (second / "events.jsonl").read_text().splitlines(keepends=True)
    (second / "events.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 10))
    told = json.loads((second / "config.json").read_text())
    told["phases"][0]["schedule"]["peak"] = 0.5
    (second / "config.json").write_text(json.dumps(told))
    return [first, second]


def test_the_table_has_the_numbers_of_the_logs(runs):
    # Broken by: the first evaluation in the place of the last; steps of both runs together.
    sides = compare.sides(runs)
    rows = {row[0]: row[1:] for row in compare.table(sides)}
    assert rows["steps"] == ["20", "10"]
    for side, place in ((sides[0], 0), (sides[1], 1)):
        evaluations = [e["held_out"]["decay"] for e in read_events(runs[place] / "events.jsonl") if e.get("held_out")]
        assert rows["decay, loss, first"][place] == f"{evaluations[0]['loss']:.3f}"
        assert rows["decay, loss, last"][place] == f"{evaluations[-1]['loss']:.3f}"
        assert side.objectives == ["clm", "decay"]
    assert compare.differences(sides) == [f"{runs[1].name}: phases.0.schedule.peak: 0.01 -> 0.5"]
    assert compare.differences([sides[0], sides[0]]) == ["first: told the same as first"]


def test_the_page_shows_names_as_text_and_fetches_nothing(runs, tmp_path, capsys):
    # Broken by: a name that is not escaped; the header of the picture's own file left in the page.
    out = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    assert "phases.0.schedule.peak: 0.01 -> 0.5" in capsys.readouterr().out
    page = out.read_text()
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert "script" not in tags and tags.count("svg") == 2 and "<?xml" not in page
    assert not any(scheme in page.replace("http://www.w3.org", "") for scheme in ('href="http', "url(http", 'src="'))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name two runs or more to compare"),
        (("first",), "name two runs or more to compare"),
        (("first", "absent"), "absent holds no run: config.json and events.jsonl are needed"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(runs, words, says, capsys):
    assert main(["compare", *(str(runs[0].parent / word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_spikes_are_those_far_above_what_came_before():
    # Broken by: the standard deviation in the place of the median one: the second of two spikes is then none.
    calm = [3.0 + 0.01 * (i % 5) for i in range(60)]
    assert plots.spikes(calm) == []
    assert plots.spikes([*calm[:30], 5.0, 3.0, 5.0, *calm[30:]]) == [30, 32]
    assert plots.spikes([10.0 - 0.2 * i for i in range(40)]) == []


def test_steps_are_whole_and_a_mark_stands_once_in_the_legend(tmp_path, monkeypatch):
    # Broken by: integer left out; spikes drawn phase by phase; a label for each skipped step.
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (kept.append(self), path.touch()))
    marks = {"spike": 9.0, "skipped": 1}
    events = [
        {"step": step, "phase": phase, "loss": 3.0, "learning_rate": 1e-3, **marks}
        for step, phase in enumerate(("clm", "clm", "decay", "decay"))
    ]
    plots.plot(events, tmp_path / "plot.png")
    loss, *_ = axes = kept[0].axes
    assert all(float(tick).is_integer() for tick in axes[-1].get_xticks())
    told = [text.get_text() for text in loss.get_legend().get_texts()]
    assert told == ["training, clm", "training, decay", "spikes", "skipped steps"]
