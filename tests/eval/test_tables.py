"""What `eval table` says of rows, counted by hand; and what it refuses."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

from cptjax.rows import append_rows, read_rows
from eval import __main__, statistics, summary
from eval.metrics import METRICS
from eval.predictions import read_predictions, write_predictions
from eval.render import as_html, as_latex, as_markdown, as_text, tex
from eval.summary import PUBLISHED, by_length, by_seen, moved, read_results
from eval.summary import beside as compare
from eval.tables import as_csv, tables
from eval.tasks.registry import TASKS
from tests.conftest import evaluation_row as row
from tests.eval.fixtures_results import sweep


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep"), {"start": 0.6, "adapted": 0.8})


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS", 400)


def said(path, *rows) -> dict[str, list[list[str]]]:
    """The rows of each table, by its title, of some rows alone."""
    append_rows(path, rows)
    return {each.title: [*map(list, each.rows)] for each in tables(read_results([path], "test"))}


def notes(path) -> str:
    return " ".join(tables(read_results([path], "test"))[0].notes)


def test_means_averages_and_wins_are_those_of_the_rows(tmp_path):
    # Broken by: the population's deviation; wins of the last model only; an average over other tasks.
    values = {("a", "x"): [0.5, 0.7], ("b", "x"): [0.6, 0.6], ("a", "y"): [0.2, 0.4], ("b", "y"): [0.1, 0.1]}
    made = [row(model=m, weights=m, task=t, seed=s, value=v) for (m, t), of in values.items() for s, v in enumerate(of)]
    assert said(tmp_path / "rows", *made)["Main metric of each task"] == [
        ["x", "f1", "60.00 ± 14.14 (2)", "60.00 ± 0.00 (2)"],
        ["y", "f1", "30.00 ± 14.14 (2)", "10.00 ± 0.00 (2)"],
        ["average of 2 tasks", "", "45.00", "35.00"],
        ["wins", "", "2", "1"],
    ]


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    append_rows(path := tmp_path / "rows.jsonl", [row(value=None)])
    assert len(read_results([path, path], "test").rows) == 1


def test_a_task_that_one_model_lacks_is_left_out_loudly_and_so_is_a_seed_that_diverged(tmp_path):
    # Broken by: `all` as `any` in shared; a diverged seed as 0.
    path = tmp_path / "rows"
    made = [row(model=m, weights=m, task=t, value=0.5, seed=s) for m in "ab" for t in ("x", "y") for s in (0, 1)]
    lacks = row(model="a", weights="a", task="z", value=0.9)
    lost = row(model="b", weights="b", task="x", value=None, seed=2, notes=["the loss was no number"])
    main = said(path, *made, lacks, lost, row(model="b", weights="b", task="w", value=None))["Main metric of each task"]
    assert main[0] == ["x", "f1", "50.00 ± 0.00 (2)", "50.00 ± 0.00 (2)"]
    assert main[2:4] == [["z", "f1", "90.00 (1)", "–"], ["w", "f1", "–", "diverged"]]
    assert main[4][0] == "average of 2 tasks"
    told = notes(path)
    assert "LEFT OUT of the average, for a model has no score there: z (no b), w (no a, no b)." in told
    assert "DIVERGED, and in no mean: b on x, seed 2; b on w, seed 0." in told
    assert "x (b): the loss was no number." in told


def test_what_is_said_of_all_models_of_a_task_stands_in_one_line_without_their_names(tmp_path):
    # Broken by: the names of models that other tasks have; one line for each note.
    few, long = "few labels", "long texts."
    of_x = [row(model=m, weights=m, task="x", notes=[few, long, *(["cased"] if m == "a" else [])]) for m in "ab"]
    of_y = row(model="a", weights="a", task="y", notes=[few])
    said(path := tmp_path / "rows", *of_x, of_y)
    assert notes(path).endswith("x, y: few labels. x: long texts. x (a): cased.")


def test_a_baseline_gets_differences_with_intervals_over_shared_seeds(rows):
    # Broken by: the same draws for all tasks; the baseline less the model; Holm over models.
    results = read_results([rows], "test")
    emea, mine, over = compare(results, "start")
    values = {m: np.mean([*results.values(m, "quaero_emea", "entity_f1").values()]) for m in ("start", "adapted")}
    assert emea.measured == pytest.approx(values["adapted"] - values["start"])
    assert over.task is None and over.measured == pytest.approx((emea.measured + mine.measured) / 2)
    for each in (emea, mine, over):
        assert each.seeds == 3 and each.interval[0] < each.measured < each.interval[1]
    assert (emea.p_holm, mine.p_holm) == tuple(statistics.holm([emea.p, mine.p]))
    widths = [np.subtract(*each.interval) for each in (emea, mine)]
    assert np.subtract(*over.interval) == pytest.approx(-np.hypot(*widths) / 2, rel=0.15)
    with pytest.raises(ValueError, match="no model is called 'large': the rows are of start, adapted"):
        compare(results, "large")


def test_each_task_has_draws_of_its_own_and_each_model_the_same(rows, monkeypatch):
    """An average over tasks would vary too much if they shared their draws."""
    # Broken by: 0 in place of draws_of_its_own.
    seeds = []
    monkeypatch.setattr(
        summary, "difference", lambda *given: (seeds.append(given[3]), statistics.difference(*given))[1]
    )
    results = read_results([rows], "test")
    compare(results, "start"), compare(results, "adapted")
    assert seeds == [0, 1, 0, 1]


def test_without_predictions_a_difference_has_no_interval_and_says_so(rows, tmp_path):
    # Broken by: a missing file passed over in silence.
    path = tmp_path / "rows.jsonl"
    shutil.copy(rows, path)
    results = read_results([path], "test")
    assert all(each.interval is None and each.p is None for each in compare(results, "start"))
    assert "NOT THERE, so nothing is said from them" in notes(path)
    assert not by_length(results) and not by_seen(results)


def test_parts_are_scores_of_the_examples_in_them(rows):
    # Broken by: searchsorted from the other side of a bound of LENGTHS; recall over predicted spans.
    results = read_results([rows], "test")
    short, long = [part for part in by_length(results) if part.task == "quaero_emea"]
    assert (short.name, short.size, long.name, long.size) == ("0 to 64 tokens", 20, "257 to 1,024 tokens", 20)
    scores, recalls = [], []
    for seed in range(3):
        head, all_ = read_predictions(rows.parent / f"predictions/start.quaero_emea.{seed}.jsonl")
        chosen = [each for each in all_ if each.tokens <= 64]
        counts_EC = METRICS["entity_f1"].count([x.gold for x in chosen], [x.predicted for x in chosen], head.labels)
        scores.append(METRICS["entity_f1"].value(counts_EC.sum(0)))
        recalls.append(np.mean([each.gold.spans[1] in each.predicted.spans for each in all_]))
    assert short.scores["start"] == pytest.approx(np.mean(scores))
    [unseen] = [part for part in by_seen(results) if not part.name.startswith("seen")]
    assert unseen.size == 40 and unseen.scores["start"] == pytest.approx(np.mean(recalls))


def test_published_numbers_stand_apart_from_ours(rows):
    # Broken by: a published model among ours; a name of a task misspelt in published.json.
    results = read_results([rows], "test")
    *ours, theirs = tables(results)
    assert theirs.title == "Published by others" and [*theirs.header] == ["model", "seeds", "quaero_emea"]
    assert ["CamemBERT-bio", "9", "70.8"] in theirs.rows and "none of the averages" in theirs.notes[0]
    data = json.loads(PUBLISHED.read_text())
    assert not any(each["model"] in as_text(ours) for each in data["models"])
    absent = {"fracco_30", "fracco_100", "cantemist_fr", "distemist_fr", "meddialog_fr", "diamed", "phenotype"}
    absent |= {"cos", "deid", "gad"}  # of families that others write
    assert {task for each in data["models"] for task in each["scores"]} <= {*TASKS} | absent
    averages = {each["model"]: np.mean([*each["scores"].values()]) for each in data["models"]}
    assert averages["CLM detour, large, French"] == pytest.approx(64.2, abs=0.06)
    assert averages["CLM detour, large, English, 50B tokens"] == pytest.approx(78.7, abs=0.06)


NASTY = "a|b_$1 & <script>#%\\"


def test_names_stay_text_in_every_form(tmp_path):
    # Broken by: printable, markdown, tex, escape or _no_formula left out.
    path = tmp_path / "rows"
    append_rows(path, [row(model="=1+1", task=NASTY, notes=[NASTY]), row(model="\x1b[31m", weights="1", task=NASTY)])
    results = read_results([path], "test")
    made = tables(results)
    assert "\x1b" not in as_text(made) and NASTY in as_text(made)
    html = MarkdownIt("commonmark").enable("table").render(as_markdown(made))
    assert "a|b_$1 &amp; &lt;script&gt;#%\\" in html and html.count("<td") == 8
    assert r"a\textbar{}b\_\$1 \& \textless{}script\textgreater{}\#\%\textbackslash{}" in as_latex(made)
    assert tex("50–60 ±1") == r"50--60 $\pm$1"
    assert "<script>#" not in as_html(made) and "&lt;script&gt;#%" in as_html(made)
    cells = [*csv.DictReader(io.StringIO(as_csv(results)))]
    assert [cell["model"] for cell in cells] == ["'=1+1", "\x1b[31m"] and {cell["task"] for cell in cells} == {NASTY}


def test_csv_has_whole_numbers_of_a_baseline_too(rows):
    # Broken by: Beside looked up by the model alone; percent in place of shares.
    results = read_results([rows], "test")
    emea, *_ = compared = compare(results, "start")
    lines = [*csv.DictReader(io.StringIO(as_csv(results, compared)))]
    [line] = [x for x in lines if (x["task"], x["metric"], x["model"]) == ("quaero_emea", "entity_f1", "adapted")]
    assert float(line["difference"]) == emea.measured and float(line["p_holm"]) == emea.p_holm
    assert float(line["mean"]) == pytest.approx(results.mean("adapted", "quaero_emea", "entity_f1"))
    assert sum(x["part"] == "seen in training" for x in lines) == 2


def test_the_command_writes_every_form_to_a_file_or_the_terminal(rows, tmp_path, capsys):
    # Broken by: a form left out of RENDERED.
    for form in ("text", "markdown", "latex", "csv", "html"):
        words = ["table", str(rows), "--baseline", "start", "--format", form]
        assert __main__.main([*words, "--out", str(tmp_path / form)]) == 0
        assert "wrote" in capsys.readouterr().out
        assert __main__.main(words) == 0
        assert "quaero" in capsys.readouterr().out.replace("\\", "") and (tmp_path / form).stat().st_size > 1000


def test_what_must_not_be_read_together_is_one_line(rows, tmp_path, capsys):
    # Broken by: check_comparable, the check of a row twice, of a file's head or of its examples left out.
    def refused(*words) -> str:
        assert __main__.main(["table", *map(str, words)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    other = tmp_path / "other"
    append_rows(other, [row(model="other", task="mine", protocol_hash="1", protocol="english", data="0")])
    assert "rows of mine are of two protocols (french, english): compare each alone" in refused(rows, other)
    cut = tmp_path / "cut"
    cut.write_bytes(rows.read_bytes()[:-9])
    assert "is cut: start what wrote it again, it goes on" in refused(cut)
    shutil.copy(rows, tmp_path / "again")
    assert "hold the same row, " in refused(rows, tmp_path / "again")
    before = cut.read_bytes()
    assert f"{cut} is what is read: name another file" in refused(rows, cut, "--out", f"{tmp_path}/./cut")
    assert cut.read_bytes() == before
    assert "no model is called ''" in refused(rows, "--baseline", "")
    assert "no row is of the split 'dev'" in refused(rows, "--split", "dev")
    assert "no file of rows is given" in refused()
    assert "No such file" in refused(tmp_path / "absent")
    assert "there is no folder" in refused(rows, "--out", tmp_path / "no" / "where")
    moved = [replace(x, seed=9) for x in read_rows(rows)[:1]]
    append_rows(rows.parent / "moved", moved)
    assert "is not of the row that names it: its seed is 0, the row's 9" in refused(rows.parent / "moved")
    shutil.copytree(rows.parent, tmp_path / "sweep")
    path = tmp_path / "sweep" / "predictions" / "start.mine.0.jsonl"
    head, predictions = read_predictions(path)
    write_predictions(path, head, predictions[::-1])
    assert "predictions of mine are of other examples, or in" in refused(tmp_path / "sweep" / "rows.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    assert "is damaged" in refused(tmp_path / "sweep" / "rows.jsonl")


def test_shares_of_a_gain_are_those_of_the_paper(tmp_path):
    """arXiv:2605.12438, layers of the CLM model in the MLM one, a linear probe on DiaMED: its shares, of its scores,
    which have one digit."""
    # Broken by: the donor for the host; a share of the donor's score.
    scores = {"MLM": 32.8, "CLM": 39.9, "low": 31.9, "mid": 35.3, "late": 32.4, "attention": 33.9, "MLP": 35.3}
    published_shares = {"low": -0.12, "mid": 0.35, "late": -0.06, "attention": 0.15, "MLP": 0.35}
    append_rows(tmp_path / "rows", [row(model=m, weights=m, value=x / 100) for m, x in scores.items()])
    results = read_results([tmp_path / "rows"], "test")
    made = {each.model: each.share for each in moved(results, "MLM", "CLM")}
    assert {model: each.measured for model, each in made.items()} == pytest.approx(published_shares, abs=0.015)
    assert all(each.gain == pytest.approx(0.071) and each.interval is None for each in made.values())
    *_, shares = [
        each for each in tables(results, (), "MLM", moved(results, "MLM", "CLM"), "CLM") if "the gain" in each.title
    ]
    assert ["mid", "ner", "+7.10", "35.21", "–", "1"] in shares.rows
    assert "nor is it known if the gain is one" in " ".join(shares.notes)


def test_shares_have_intervals_where_predictions_are_and_the_gain_is_told_from_0(tmp_path):
    # Broken by: `left` of one task for the average; columns of CSV left empty.
    path = sweep(tmp_path, {"start": 0.4, "part": 0.6, "adapted": 0.85, "same": 0.41})
    results = read_results([path], "test")
    shares = [each for each in moved(results, "start", "adapted") if each.model == "part"]
    assert [each.task for each in shares] == ["quaero_emea", "mine", None] and {each.seeds for each in shares} == {3}
    main = {task: names[0] for task, names in results.tasks.items()}
    gain = {
        m: np.mean([results.mean(m, *of) - results.mean("start", *of) for of in main.items()])
        for m in ("part", "adapted")
    }
    low, high = shares[-1].share.interval
    assert shares[-1].share.measured == pytest.approx(gain["part"] / gain["adapted"])
    assert low < shares[-1].share.measured < high
    lines = [*csv.DictReader(io.StringIO(as_csv(results, compare(results, "start"), shares)))]
    told = {each["task"]: float(each["share"]) for each in lines if each["share"]}
    assert told == pytest.approx({each.task or "average": each.share.measured for each in shares})
    none = moved(results, "start", "same")
    assert all(each.share.measured is None and each.share.interval is None for each in none)
    (table,) = [each for each in tables(results, (), "start", none, "same") if "the gain" in each.title]
    assert {line[3] for line in table.rows} == {"–"} and "NOT GIVEN" in " ".join(table.notes)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--donor", "adapted"), "--donor is given without --baseline"),
        (("--baseline", "start", "--donor", "start"), "host and donor are both start"),
        (("--baseline", "start", "--donor", "adaptd"), "did you mean adapted?"),
    ],
)
def test_a_donor_that_is_none_is_refused_in_a_line(rows, words, says, capsys):
    # Broken by: the check of each.
    assert __main__.main(["table", str(rows), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
