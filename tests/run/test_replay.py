"""A step made again gives the numbers that were logged, and says which rows made them."""

from dataclasses import replace

import numpy as np
import pytest

from cptjax.data.batches import Batches
from cptjax.data.store import Store
from cptjax.files import folder_hashes
from cptjax.run.replay import replay, text
from tests.fixtures_run import events, sick_row, small_run


def test_a_step_made_again_is_what_was_logged_and_names_the_row_that_is_sick(finished, store, two_devices, monkeypatch):
    # Broken by: a step more or less between checkpoint and step, rows drawn as row 0, gradients for the sort alone.
    run, step = small_run(store), 13
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


def test_steps_that_are_not_there_are_refused(finished, store, two_devices):
    with pytest.raises(ValueError, match="step 20: the run has steps 0 to 19"):
        replay(small_run(store), finished, 20)


def test_the_table_shows_the_first_rows_and_how_many_more():
    row = {"row": 0, "store": "s", "documents": ["a:1"], "targets": 3.0, "loss": float("nan"), "grad_norm": 1.0}
    report = {"step": 4, "phase": "clm", "from_step": 3, "compute": "float32", "learning_rate": 0.1}
    shown = text(report | {"loss": 1.5, "grad_norm": 2.0, "rows": [row] * 20})
    assert shown.count("s: a:1") == 12 and shown.endswith("and 8 rows more") and "nan" in shown
