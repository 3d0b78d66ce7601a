"""A step made again gives the numbers that were logged, and says which rows made them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from cptjax.__main__ import main
from cptjax.config import Branch, load_config, to_dict
from cptjax.data.batches import Batches
from cptjax.data.store import Store
from cptjax.dropout import Dropout
from cptjax.files import folder_hashes, write_json
from cptjax.optim import AdamW
from cptjax.run.replay import replay, run_of, text
from cptjax.shape import BertConfig
from cptjax.train import train
from tests.fixtures_run import events, sick_row, small_run, without_pictures
from tests.test_house import CONFIGS


def test_a_step_made_again_is_what_was_logged_and_names_the_row_that_is_sick(finished, store, two_devices, monkeypatch):
    # Broken by: a step more or less between checkpoint and step, rows drawn as row 0, gradients for the sort alone.
    run, step = run_of(finished), 13
    before = folder_hashes(finished)
    report = replay(run, finished, step)
    logged = next(event for event in events(finished) if event["step"] == step and "loss" in event)
    assert (report["from_step"], report["phase"]) == (10, "decay")
    assert {name: report[name] for name in ("loss", "grad_norm")} == {
        name: logged[name] for name in ("loss", "grad_norm")
    }
    rows = report["rows"]
    targets = np.array([row["targets"] for row in rows])
    assert targets.sum() == logged["targets"]
    mean = (targets * [row["loss"] for row in rows]).sum() / targets.sum()
    assert mean == pytest.approx(logged["loss"], rel=1e-5)
    sick_row(monkeypatch, run, step, 2)
    worst, *others = replay(run, finished, step)["rows"]
    assert worst["row"] == 2 and np.isnan(worst["loss"]) and np.isfinite([row["loss"] for row in others]).all()
    assert folder_hashes(finished) == before


def test_after_a_departure_a_step_is_made_again_as_it_was_or_not_at_all(finished, store, two_devices, tmp_path):
    """From the step that the run went back to; what came before that has no settings here."""
    # Broken by: `step > departed` in find_resumption, _check_course left out of replay, `departures[0]` in it.
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    once = small_run(store, keep_checkpoints=9, optimizer=AdamW(clip_norm=0.05))
    with without_pictures():
        train(once, folder, from_step=10)
    run, logged = run_of(folder), {event["step"]: event for event in events(folder) if "loss" in event}
    for step, before in ((10, 10), (11, 10), (13, 12)):
        report = replay(run, folder, step)
        assert report["from_step"] == before
        assert [report[name] for name in ("loss", "grad_norm", "learning_rate")] == [
            logged[step][name] for name in ("loss", "grad_norm", "learning_rate")
        ]

    def says(went_back: int, changed: str, first: int) -> str:
        return (
            f": the run went back to step {went_back} and on with {changed}; the first whole checkpoint of that course "
            f"is of step {first}: only the steps {first} to 19 can be made again"
        )

    clipped = "optimizer.clip_norm: 1.0 -> 0.05"
    with pytest.raises(ValueError) as refused:
        replay(run, folder, 9)
    assert str(refused.value) == "step 9" + says(10, clipped, 10)
    for step in (10, 12):
        shutil.rmtree(folder / "checkpoints" / str(step))
    with pytest.raises(ValueError) as refused:
        replay(run, folder, 13)
    assert str(refused.value) == "step 13" + says(10, clipped, 15)
    with without_pictures():
        train(once, folder, from_step=18)
    with pytest.raises(ValueError) as refused:
        replay(run, folder, 15)
    assert str(refused.value) == "step 15" + says(18, "the same config", 18)


def test_a_row_is_named_by_the_documents_it_holds(store):
    # Broken by: first_batch left out, another shuffle, the row of the plan taken for its place in the pass.
    run = small_run(store)
    batches, opened = Batches(replace(run.data, global_batch_size=3, first_batch=2)), Store(store)
    documents = {name: d for d, name in enumerate(opened.origins(range(opened.manifest.documents)))}
    for step in (0, 5, 200):  # the last in a later pass
        batch = batches.batch_of_step(step)
        for row, (path, named) in enumerate(batches.contents(step)):
            token_L, segment_L = (batch[name][row] for name in ("token_BL", "segment_BL"))
            assert path == str(store) and len(named) == segment_L.max()
            for segment, name in enumerate(named, start=1):
                (whole,) = opened.tokens([documents[name]])
                piece = token_L[segment_L == segment]
                starts = range(len(whole) - len(piece) + 1)
                assert any((whole[start : start + len(piece)] == piece).all() for start in starts)


@pytest.mark.parametrize("path", [*CONFIGS, None], ids=str)
def test_a_run_is_read_as_it_was_written(path, store, tmp_path):
    # Broken by: `model` left to `typed`, to which a shape is none of a family's; `init` left as it was read.
    run = small_run(store, model=BertConfig(hidden_size=24)) if path is None else load_config(path)
    branched = replace(
        run, branch=Branch("parent", 3), sentences=("a [MASK]", "b"), skip_steps=(1, 2), dropout=Dropout(0.1)
    )
    for written in (run, branched):
        write_json(tmp_path / "config.json", to_dict(written))
        assert run_of(tmp_path) == written


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--step", "20"], "step 20: the run has steps 0 to 19"),
        (["--step", "1", "--seed", "3"], "seed: 17 -> 3"),
        (["--step", "1", "--held-out", "nowhere", "--eval-every", "9"], "nowhere is not a token store"),
        (["configs/tiny.py", "--step", "1"], "'configs/tiny.py' is a word too many"),
    ],
)
def test_the_command_asks_the_run_and_no_config(finished, two_devices, capsys, words, says):
    """What decides no number may be another, for the stores may have moved."""
    # Broken by: `rest` not taken; a config taken.
    assert main(["replay", "--workdir", str(finished), *words]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1
    assert main(["replay", "--workdir", "nowhere", "--step", "1"]) == 2
    assert capsys.readouterr().err == "error: nowhere/config.json is missing\n"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "17"}, "config.json: seed: Input should be a valid integer"),
        ({"model": {"layers": 3}}, "config.json: model has fields of no model"),
        ({"init": "a"}, "a run needs either init"),
        ({"speed": 1}, "config.json: speed: "),
    ],
)
def test_a_config_that_no_run_has_written_is_refused(store, tmp_path, changes, says):
    # Broken by: Run(**told).
    write_json(tmp_path / "config.json", to_dict(small_run(store)) | changes)
    with pytest.raises(ValueError, match=says):
        run_of(tmp_path)


def test_the_table_shows_the_first_rows_and_how_many_more():
    row = {"row": 0, "store": "s", "documents": ["a:1"], "targets": 3.0, "loss": float("nan"), "grad_norm": 1.0}
    report = {"step": 4, "phase": "clm", "from_step": 3, "compute": "float32", "learning_rate": 0.1}
    shown = text(report | {"loss": 1.5, "grad_norm": 2.0, "rows": [row] * 20})
    assert shown.count("s: a:1") == 12 and shown.endswith("and 8 rows more") and "nan" in shown
