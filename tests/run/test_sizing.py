"""How long a run is, by its text: --passes and --tokens, and what train and plan say of it."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import recipe, workstation
from cptjax import train as train_module
from cptjax.data.batches import Batches
from cptjax.objectives import mlm
from cptjax.planning import plan
from cptjax.run import sizing
from cptjax.run.set_up import micro_batches
from cptjax.run.sizing import Pace, duration, few, flops_of, in_words, pace_here, sized, time_left, where
from cptjax.shape import ModelConfig
from cptjax.sharding import make_mesh
from cptjax.train import train
from tests.fixtures_run import small_run


@pytest.mark.parametrize("passes", [0.5, 1, 3])
def test_passes_are_counted_in_rows_of_the_text_that_is_read_most(store, passes):
    # Broken by: tokens of the store in the place of its rows; the mean over stores.
    run = small_run(store)
    longer = sized(replace(run, data=replace(run.data, global_batch_size=1)), passes, None)
    steps = longer.stretches[-1].last
    (read,) = Batches(longer.data).epochs(steps).values()
    assert read == pytest.approx(passes, abs=1.01 / steps * passes)
    first, second = (phase.tokens for phase in longer.phases)
    assert first == pytest.approx(second, abs=2)
    assert longer.phases[0].schedule.warmup_tokens == pytest.approx(first / 5, abs=2)


@given(st.integers(10_000, 10**12))
def test_tokens_are_shared_as_the_config_shares_them(tokens):
    # Broken by: the warm-up as it was.
    run = workstation.get_config()
    run = replace(run, data=replace(run.data, global_batch_size=1))
    made = sized(run, None, tokens)
    assert sum(phase.tokens for phase in made.phases) == pytest.approx(tokens, abs=2)
    assert made.phases[1].tokens / tokens == pytest.approx(workstation.DECAY_SHARE, abs=1e-3)
    assert replace(made, phases=run.phases) == run


def test_without_either_a_run_is_as_it_was(store):
    run = small_run(store)
    assert sized(run, None, None) is run


@pytest.mark.parametrize(
    ("passes", "tokens", "says"),
    [
        (1.0, 10, "give one of them"),
        (0.0, None, "--passes is 0.0: it must be above 0"),
        (float("nan"), None, "must be above 0"),
        (None, 100, "phase clm would have 50 tokens, and a step has 128: give more --passes or --tokens, or a smaller"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(store, passes, tokens, says):
    with pytest.raises(ValueError, match=says):
        sized(small_run(store), passes, tokens)


def told(run) -> list[str]:
    """What a run on two devices says of itself."""
    return [*in_words(run, Batches(run.data), micro_batches(run, make_mesh(run.mesh)))]


def with_rows(run, rows: int, each: int):
    """The same run with steps of so many rows, so many of them on a device at a time."""
    return replace(run, data=replace(run.data, global_batch_size=rows), device_batch_size=each)


def advised(run, line: str):
    """The run that the options in a line make of it."""
    options = dict(re.findall(r"--([a-z.-]+) (\d+)", line))
    if "data.global-batch-size" in options:
        run = with_rows(run, int(options["data.global-batch-size"]), int(options["device-batch-size"]))
    return sized(run, int(options["passes"]), None) if "passes" in options else run


def test_many_passes_and_a_step_larger_than_the_text_are_said_with_what_would_do(store, two_devices):
    # Broken by: often > 1 in the place of often > last.
    run = small_run(store)
    (only,) = told(sized(run, 1, None))
    assert "reads" in only and "(clm " in only
    often = sized(run, 9, None)
    said = told(often)
    assert len(said) == 2 and "is read 9" in said[1] and "--passes 4 would make" in said[1]
    would = int(said[1].split("would make ")[1].split(" steps")[0])
    assert would == advised(often, said[1]).stretches[-1].last
    wide = with_rows(run, 2000, 2)
    wide = sized(wide, None, 10 * wide.tokens_per_step)
    fits = advised(wide, told(wide)[-1])
    assert max(Batches(fits.data).epochs(10).values()) <= 1


@pytest.mark.parametrize("length", [32, 512, 2048, 8192])  # of 325 rows to 2
@pytest.mark.parametrize(("batch", "each"), [(4, 2), (24, 3), (640, 32)])
def test_what_is_advised_is_a_run_that_works(store, two_devices, length, batch, each):
    # Broken by: rows in the place of a multiple of each * spread; each as it was; last * MOST_PASSES / often steps;
    # `smaller` left out; TOO_MANY_PASSES not asked of a run that is rounded up.
    run = with_rows(small_run(store), batch, each)
    run = replace(run, data=replace(run.data, sequence_length=length))
    run = sized(run, None, 2000 * run.tokens_per_step)
    for line in told(run)[1:]:
        would = advised(run, line)
        assert would != run or line.endswith("more text would")
        assert micro_batches(would, make_mesh(run.mesh)) >= 1
        if line.endswith("would do"):
            assert max(Batches(would.data).epochs(1).values()) <= 1
        if "would make" in line:
            assert f"would make {would.stretches[-1].last:,} steps" in line
            assert max(Batches(would.data).epochs(would.stretches[-1].last).values()) <= 4.5


def test_no_smaller_step_is_advised_than_one_row(store):
    # Broken by: `batch > 1` left out.
    run = with_rows(small_run(store), 1, 1)
    (line,) = few(replace(run, phases=(replace(run.phases[1], tokens=32),)))
    assert line.endswith("; give more --passes or --tokens")


def test_a_run_says_where_it_goes_on_and_that_it_had_finished(finished, store, two_devices, tmp_path, capsys):
    # Broken by: step <= last.
    run, folder = small_run(store), tmp_path / "run"
    shutil.copytree(finished, folder)
    train(run, folder)
    printed = capsys.readouterr().out
    assert "steps: 20 of 128 tokens (clm 10, decay 10)" in printed
    assert "all 20 steps were made before: nothing is left to do; to train longer" in printed
    assert f"begin a run with --init {folder}" in printed
    assert where(run, 12, folder) == ["goes on from step 12: 8 of 20 steps are left"]
    assert where(run, 0, folder) == []


def test_a_phase_of_few_steps_is_told_by_what_the_optimizer_remembers(store):
    # Broken by: <= over; 1 / (1 - b1) not rounded (10.000000000000002); `few` left out of plan.
    run = small_run(store)
    assert not few(run)
    short = replace(run, phases=(run.phases[0], replace(run.phases[1], tokens=9 * run.tokens_per_step)))
    (line,) = few(short)
    assert line.startswith("phase decay has 9 steps: too few") and "over about 10)" in line
    assert line in plan.plan(short, shape(run), devices=2, device="NVIDIA L4")["warnings"]
    forgetful, slow = (replace(run, optimizer=replace(run.optimizer, b1=b1)) for b1 in (0.0, 0.95))
    assert not few(forgetful) and len(few(slow)) == 2


def test_the_workstation_is_the_recipe_in_small():
    run = workstation.get_config()
    assert [phase.schedule.peak for phase in run.phases] == [recipe.PEAK, recipe.PEAK]
    assert run.phases[1].objective == mlm(recipe.DECAY_MASK_RATE)


# ---- how long it takes

PACE = Pace(1e9, "a pace")


def shape(run) -> ModelConfig:
    assert run.model is not None
    return run.model


def test_the_time_is_of_the_steps_that_are_left(store):
    # Broken by: max(0, ...) left out; the first phase's FLOPs for all; devices left out.
    run = small_run(store)
    run = sized(run, None, 10**9)
    (clm, _, half), (decay, _, last) = run.stretches
    hours = {p.name: p.tokens * sum(flops_of(run, shape(run), p).values()) / PACE.flops / 3600 for p in (clm, decay)}
    assert hours["clm"] > 1.1 * hours["decay"] > 1
    for step, left in (
        (0, hours["clm"] + hours["decay"]),
        (half, hours["decay"]),
        ((half + last) // 2, hours["decay"] / 2),
    ):
        (line,) = time_left(run, shape(run), step, 2, PACE)
        assert float(line.split()[2]) == pytest.approx(left / 2, rel=0.1)
        assert line.endswith("hours, beside compiling and evaluations, at a pace")
    assert not time_left(run, shape(run), last, 2, PACE) and not time_left(run, shape(run), 0, 2, None)


@pytest.mark.parametrize(
    ("hours", "says"),
    [
        (1e-9, "less than a minute"),
        (1 / 60, "about 1 minute"),
        (0.5, "about 30 minutes"),
        (0.999, "about 1.0 hours"),
        (1234.5, "about 1,234.5 hours"),
    ],
)
def test_hours_are_told_in_words(hours, says):
    # Broken by: hours >= 1 in the place of minutes >= 60.
    assert duration(hours) == says


def test_the_pace_of_a_cpu_is_measured_and_shared_by_its_devices(store, monkeypatch):
    # Broken by: the fastest call in the place of the median; local_device_count left out; 2 of the 3 matrices.
    now = iter([0.0, 1.0, 1.0, 6.0, 6.0, 8.0])  # calls of 1, 5 and 2 seconds
    monkeypatch.setattr(sizing, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    run = small_run(store)
    flops = 3 * 2 * (2 * 32) * (3 * 16 * 24)  # backward too; 2 rows of 32 tokens
    pace = pace_here(run, shape(run))
    assert pace is not None and pace.flops == pytest.approx(0.6 * flops / 2 / jax.local_device_count())
    assert pace.reason.startswith("60% of the ")


def test_the_pace_of_an_accelerator_is_of_its_peak_or_not_known(store, monkeypatch):
    # Broken by: a measured one where the peak is not known.
    for kind, flops in (("NVIDIA L4", 0.4 * 121e12), ("NVIDIA Abacus", None)):
        device = SimpleNamespace(platform="gpu", device_kind=kind)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        pace = pace_here(small_run(store), shape(small_run(store)))
        assert (pace and pace.flops) == (flops and pytest.approx(flops))


class Told(Exception):
    """In the place of a recorder."""


def test_a_run_says_before_its_first_step_how_long_it_takes(store, two_devices, tmp_path, monkeypatch):
    # Broken by: time_left or few left out of `train`.
    def tell(setting, departures, step, spent, says):
        raise Told(*says)

    monkeypatch.setattr(train_module, "Recorder", tell)
    monkeypatch.setattr(train_module, "pace_here", lambda *_: PACE)
    with pytest.raises(Told, match="takes less than a minute, beside compiling and evaluations, at a pace"):
        train(small_run(store), tmp_path / "run")
    with pytest.raises(Told, match="phase decay has 5 steps: too few"):
        train(sized(small_run(store), None, 10 * 128), tmp_path / "short")
