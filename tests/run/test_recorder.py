"""Sums that no log decides, and times that are of what they say."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from cptjax import train as train_module
from cptjax.config import Phase, Run
from cptjax.data.batches import Batches
from cptjax.files import read_json
from cptjax.objectives import Vocabulary
from cptjax.run import checkpoint
from cptjax.run.clock import KINDS
from cptjax.run.events import read_events
from cptjax.run.recorder import Recorder, nothing_spent
from cptjax.run.set_up import without_text
from cptjax.sharding import make_mesh
from cptjax.train import train
from tests.fixtures_run import small_run

STOPPED_AT = 14  # in the second phase, after the checkpoint of step 12


def made(run: Run, folder: Path, step: int = 0) -> Recorder:
    folder.mkdir(exist_ok=True)
    assert run.model is not None
    setting = replace(without_text(run, run.model, make_mesh(run.mesh), Vocabulary(16, None, ())), folder=folder)
    return Recorder(setting, [], step, nothing_spent(run))


def test_facts_are_a_copy(store, tmp_path, two_devices):
    """They are written while the run goes on."""
    # Broken by: self.spent in the place of its deep copy, and by a shallow one.
    run = small_run(store)
    kept = made(run, tmp_path / "run")
    facts = kept.facts()
    kept._add(run.phases[0], {"tokens": 5.0})
    kept.evaluated(0, run.phases[0], {"clm": {"loss": 1.0, "accuracy": 0.5}}, {})
    assert facts["spent"]["tokens"] == 0 and facts["spent"]["evaluated"] == -1
    assert facts["spent"]["phases"]["clm"] | {"tokens": 0.0} == nothing_spent(run)["phases"]["clm"]


def test_a_spike_is_marked_and_so_after_a_restart(store, tmp_path, two_devices):
    # Broken by: losses of another phase among those before; none read from the log.
    run = small_run(store)
    clm, decay = run.phases
    numbers = dict.fromkeys(("learning_rate", "grad_norm", "tokens", "targets", "overflow", "keys", "skipped"), 0.0)

    def steps(recorder: Recorder, phase: Phase, losses: dict[int, float]) -> None:
        for step, loss in losses.items():
            recorder.step(step, phase, {name: jnp.float32(x) for name, x in (numbers | {"loss": loss}).items()})
        recorder.flush()

    first = made(run, tmp_path / "run")
    steps(first, clm, {step: 3.0 for step in range(30)} | {30: 9.0})
    steps(first, decay, {31: 30.0})
    steps(first, decay, {step: 2.0 for step in range(32, 55)})
    steps(made(run, tmp_path / "run", 55), decay, {55: 9.0, 56: 2.0})
    marked = [event["step"] for event in read_events(tmp_path / "run" / "events.jsonl") if "spike" in event]
    assert marked == [30, 55]


def test_each_kind_of_time_has_its_own_field(store, tmp_path, two_devices, monkeypatch):
    """Evaluations, checkpoints and data are made slow: no step is, and all fields together are the loop's time."""
    # Broken by: `doing` without its clock; fetch without its sums; `update` not compiled ahead.
    slow = {"evaluation_seconds": 0.3, "saving_seconds": 0.2, "waiting_seconds": 0.2}
    save, stream, make_evaluate, saved, close = (
        checkpoint.Saver.save,
        Batches.stream,
        train_module.make_evaluate,
        Recorder.saved,
        Recorder.close,
    )
    clock: dict[str, float] = {}

    def slow_save(*arguments):
        time.sleep(slow["saving_seconds"])
        save(*arguments)

    def slow_stream(*arguments):
        for batch in stream(*arguments):
            time.sleep(slow["waiting_seconds"])
            yield batch

    def slow_evaluate(*arguments):
        evaluate = make_evaluate(*arguments)
        return lambda params: time.sleep(slow["evaluation_seconds"]) or evaluate(params)

    def timed(*arguments, **known):
        clock["before"] = time.perf_counter()
        made = Recorder(*arguments, **known)
        clock["began"] = time.perf_counter()
        return made

    def timed_saved(*arguments):
        clock["told"] = time.perf_counter()  # in the end that of the last event
        saved(*arguments)

    def timed_close(*arguments):
        clock["ended"] = time.perf_counter()
        close(*arguments)
        clock["closed"] = time.perf_counter()

    monkeypatch.setattr(checkpoint.Saver, "save", slow_save)
    monkeypatch.setattr(Batches, "stream", slow_stream)
    monkeypatch.setattr(train_module, "make_evaluate", slow_evaluate)
    monkeypatch.setattr(train_module, "Recorder", timed)
    monkeypatch.setattr(Recorder, "saved", timed_saved)
    monkeypatch.setattr(Recorder, "close", timed_close)
    run = small_run(store, eval_every=7)
    folder = train(run, tmp_path / "run")
    found = read_json(folder / "run.json")
    spent, logged = found["spent"], read_events(folder / "events.jsonl")
    loop = sum(spent[kind] for kind in KINDS)  # begun while the recorder was made, and told a moment after its end
    assert clock["ended"] - clock["began"] <= loop <= clock["closed"] - clock["before"]
    for kind in KINDS:
        after = spent[kind] - sum(event.get(kind, 0) for event in logged)  # such as closing threads
        assert -1e-6 < after < clock["closed"] - clock["told"]
        assert spent[kind] == pytest.approx(sum(phase[kind] for phase in found["phases"]))
        assert found["cost"][kind.replace("seconds", "hours")] == spent[kind] / 3600
    assert spent["evaluation_seconds"] >= 5 * slow["evaluation_seconds"]  # at 0, 7, 10, 14, 20
    assert spent["saving_seconds"] >= 8 * slow["saving_seconds"]
    assert spent["waiting_seconds"] > 5 * slow["waiting_seconds"]
    assert spent["waiting_seconds"] + spent["seconds"] >= 20 * slow["waiting_seconds"]
    steps = [event for event in logged if "loss" in event]
    assert all(event["tokens_per_s"] == event["tokens"] / event["seconds"] for event in steps)
    assert [event["step"] for event in steps if "compiling_seconds" in event] == [0, 10]
    for step in (0, 10):
        assert steps[step]["seconds"] < steps[step]["compiling_seconds"]


class Stop(Exception):
    """In the place of a kill."""


@pytest.fixture(scope="module")
def stopped(store, finished, tmp_path_factory):
    """A run that was stopped, and run.json of one that ended, from the same config."""
    folder, step = tmp_path_factory.mktemp("runs") / "stopped", Recorder.step

    def stop(self, number, *arguments):
        step(self, number, *arguments)
        if number == STOPPED_AT:
            raise Stop

    run = small_run(store)
    with pytest.MonkeyPatch.context() as patch:
        devices = train_module.jax.devices()[:2]
        patch.setattr(train_module.jax, "devices", lambda *_: devices)
        patch.setattr(Recorder, "step", stop)
        with pytest.raises(Stop):
            train(run, folder)
    return folder, read_json(finished / "run.json")


def untimed(found: Any) -> Any:
    if isinstance(found, list):
        return [untimed(x) for x in found]
    if isinstance(found, dict):
        return {name: untimed(x) for name, x in found.items() if not name.endswith(("seconds", "hours"))}
    return found


@pytest.mark.parametrize("damage", ["deleted", "mangled"])
def test_no_log_decides_run_json(store, tmp_path, two_devices, stopped, damage):
    # Broken by: describe_run that sums read_events.
    folder, calm = stopped
    shutil.copytree(folder, tmp_path / "run")
    log = tmp_path / "run" / "events.jsonl"
    if damage == "deleted":
        log.unlink()
    else:
        lines = log.read_text().splitlines()
        lines[3:6] = ["", lines[3][:20], "[]", json.dumps({"step": 1, "phase": "clm", "loss": 2})]
        log.write_text("\n".join(lines))
    train(small_run(store), tmp_path / "run")
    found = read_json(tmp_path / "run" / "run.json")
    assert untimed(found) == untimed(calm)
    assert (tmp_path / "run" / "plot.png").stat().st_size > 10_000


def test_a_log_that_cannot_be_written_ends_the_run(store, tmp_path, two_devices):
    # Broken by: naming left out of EventLog.write; log.close in __exit__.
    run = small_run(store)
    kept = made(run, tmp_path / "run")
    kept._log._file = open("/dev/full", "w", buffering=1)
    with pytest.raises(OSError, match=r"^cannot write .*events.jsonl: No space left on device$"), kept:
        kept.evaluated(0, run.phases[0], {"clm": {"loss": 1.0, "accuracy": 0.5}}, {})


def test_a_held_out_loss_that_is_no_number_harms_no_checkpoint(store, tmp_path, two_devices, capsys):
    """It is told, and what is kept of the evaluation are the numbers."""
    # Broken by: `numbers` for held_out left out of `evaluated`: the facts of the next checkpoint are no JSON.
    run = small_run(store)
    kept = made(run, tmp_path / "run")
    results = {"clm": {"loss": float("nan"), "accuracy": 0.5}, "decay": {"loss": 2.0, "accuracy": 0.5}}
    kept.evaluated(0, run.phases[0], results, {"a [MASK]": [[("the", float("nan"))]]})
    assert "step 0 (clm) held out: clm is no number" in capsys.readouterr().out
    (event,) = [event for event in read_events(tmp_path / "run" / "events.jsonl") if "held_out" in event]
    assert event["held_out"] == {"decay": {"loss": 2.0, "accuracy": 0.5}} and "filled" not in event
    assert kept.facts()["spent"]["phases"]["clm"]["held_out"] == event["held_out"]
    kept.evaluated(5, run.phases[0], {"clm": results["clm"]}, {})
    assert kept.facts()["spent"]["phases"]["clm"]["held_out"] == {}
