"""What a run believes when it goes on: nothing that no hash confirms; and how it goes back to take another course."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from convert import card, to_hf
from cptjax.command.errors import DamageWarning
from cptjax.config import Phase, Run
from cptjax.data.batches import Data
from cptjax.data.store import Manifest
from cptjax.files import hash_of, read_json, write_json
from cptjax.objectives import CLM, mlm
from cptjax.optim import AdamW
from cptjax.run import checkpoint
from cptjax.run.set_up import open_inputs, set_up
from cptjax.run.start import start
from cptjax.schedules import Schedule
from cptjax.shape import ModernBertConfig, Precision
from cptjax.sharding import Mesh
from cptjax.train import train
from tests.fixtures_run import largest_read, seeing, without_pictures
from tests.fixtures_text import WORDS, make_store, make_tokenizer

# A run is silent unless something is damaged, and --strict makes an error of that.
pytestmark = pytest.mark.filterwarnings("error::cptjax.command.errors.DamageWarning")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs of this file see one device, and draw nothing."""
    with seeing(1), without_pictures():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Run, Path]:
    """A run of two phases of four steps each, and its folder with the checkpoints 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = make_tokenizer(folder / "tokenizer")
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, random.integers(5, 40))) for _ in range(60)]
    store = make_store(folder / "store", tokenizer, texts)
    make_store(folder / "held_out", tokenizer, texts[:9])
    run = Run(
        name="small",
        data=Data(((str(store), 1.0),), sequence_length=32, global_batch_size=4),
        phases=(
            Phase("clm", CLM, 4 * 4 * 32, Schedule(1e-2)),
            Phase("decay", mlm(0.3), 4 * 4 * 32, Schedule(1e-2, shape="one_minus_sqrt")),
        ),
        model=ModernBertConfig(
            vocab_size=Manifest.read(store).vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        precision=Precision(compute="float32"),
        held_out=str(folder / "held_out"),
        held_out_rows=4,
        checkpoint_every=2,
        keep_checkpoints=4,
        device_batch_size=4,
        mesh=Mesh(),
    )
    return run, train(run, folder / "run")


@pytest.fixture
def copy(made, tmp_path) -> tuple[Run, Path]:
    """The run, its store and its folder as copies."""
    run, folder = made
    for name in ("store", "held_out", "run"):
        shutil.copytree(folder.parent / name, tmp_path / name)
    data = replace(run.data, stores=((str(tmp_path / "store"), 1.0),))
    return replace(run, data=data, held_out=str(tmp_path / "held_out")), tmp_path / "run"


def go_on(run: Run, folder: Path, from_step: int | None = None):
    """What a run would go on with, before its next step."""
    inputs = open_inputs(run, folder, from_step)
    setting = set_up(inputs)
    with jax.set_mesh(setting.mesh):
        return start(inputs, setting)


def at(folder: Path, step: int | str, *parts: str) -> Path:
    return folder.joinpath(checkpoint.CHECKPOINTS, str(step), *parts)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes) -> None:
    write_json(path, read_json(path) | changes)


def facts_of(folder: Path, step: int) -> Path:
    return at(folder, step, "meta", "metadata")


DAMAGE = {  # what happens to a run folder, which entry is named, and what is said of it
    "parameters": (lambda f: flip(largest_read(at(f, 8, "params"))), "8", "cannot read|differs? from .+ checksums?"),
    "cut parameters": (
        lambda f: largest_read(at(f, 8, "params")).write_bytes(b"cut"),
        "8",
        "cannot read checkpoint",
    ),
    "moments": (lambda f: flip(largest_read(at(f, 8, "opt_state"))), "8", "cannot read|differs? from .+ checksums?"),
    "lost moments": (lambda f: shutil.rmtree(at(f, 8, "opt_state")), "8", "opt_state is missing"),
    "emptied moments": (
        lambda f: (shutil.rmtree(at(f, 8, "opt_state")), at(f, 8, "opt_state").mkdir()),
        "8",
        "cannot read checkpoint",
    ),
    "moments of another step": (
        lambda f: (
            shutil.rmtree(at(f, 8, "opt_state")),
            shutil.copytree(at(f, 6, "opt_state"), at(f, 8, "opt_state")),
        ),
        "8",
        "differs? from .+ checksums?",
    ),
    "cut facts": (lambda f: facts_of(f, 8).write_text("{"), "8", "is not JSON"),
    "no facts": (lambda f: facts_of(f, 8).unlink(), "8", "is missing"),
    "empty facts": (lambda f: facts_of(f, 8).write_text("{}"), "8", "its facts have changed"),
    "counters": (
        lambda f: edit(facts_of(f, 8), spent=read_json(facts_of(f, 8))["spent"] | {"tokens": 1.0}),
        "8",
        "its facts have changed",
    ),
    "facts without their hash": (
        lambda f: write_json(
            facts_of(f, 8), {k: v for k, v in read_json(facts_of(f, 8)).items() if k != checkpoint.OWN_HASH}
        ),
        "8",
        "its facts have changed",
    ),
    "a step renamed": (lambda f: at(f, 8).rename(at(f, 100)), "100", "it holds step 8"),
    "an empty folder": (lambda f: at(f, 99999).mkdir(), "99999", "is missing"),
    "an empty folder among the steps": (lambda f: at(f, 7).mkdir(), "7", "is missing"),
    "a file": (lambda f: at(f, 77).write_text("text"), "77", "is missing|Not a directory"),
    "a digit that is no number": (lambda f: at(f, "²").mkdir(), "²", "invalid literal|is missing"),
    "a number written otherwise": (lambda f: shutil.copytree(at(f, 6), at(f, "08")), "08", "it holds step 6"),
}


@pytest.mark.parametrize(("damage", "name", "says"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_named_and_set_aside(copy, damage, name, says):
    # Broken by: each `raise` of _read_facts; checksums left out of _restore; only the last candidate tried.
    run, folder = copy
    damage(folder)
    inputs = open_inputs(run, folder)
    setting = set_up(inputs)
    with pytest.raises(DamageWarning, match=says) as caught, jax.set_mesh(setting.mesh):
        start(inputs, setting)  # as --strict has it: nothing is touched
    assert "\n" not in str(caught.value) and str(at(folder, name)) in str(caught.value)
    assert at(folder, name).exists() and not (folder / checkpoint.ASIDE).exists()
    with pytest.warns(DamageWarning, match=says) as told, jax.set_mesh(setting.mesh):
        state, spent, departures = start(inputs, setting)
    expected = 6 if not at(folder, 8).is_dir() else 8
    assert len(told) == 1 and int(state.step) == expected and departures == []
    assert not at(folder, name).exists() and [path.name for path in (folder / checkpoint.ASIDE).iterdir()] == [name]
    good = checkpoint.survey(folder)
    assert not good.damaged and good.latest == expected
    assert checkpoint.checksums(state.params) == good.whole[expected]["checksums"]["params"]
    assert spent["tokens"] == good.whole[expected]["spent"]["tokens"] > 0


def test_a_run_whose_last_checkpoint_is_damaged_ends_the_same(made, copy):
    # Broken by: the damaged folder left where it is: Orbax then saves nothing there.
    run, folder = copy
    whole = checkpoint.survey(made[1]).whole[8]["checksums"]
    flip(largest_read(at(folder, 8, "params")))
    at(folder, 99999).mkdir()
    with pytest.warns(DamageWarning) as told:
        train(run, folder)
    assert len(told) == 2
    assert checkpoint.survey(folder).whole[8]["checksums"] == whole
    go_on(run, folder)  # and now in silence


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew(copy):
    # Broken by: the `else` of the loop in _go_on, and the first `if` of find_resumption, left out.
    run, folder = copy
    for step in (2, 4, 6, 8):
        flip(largest_read(at(folder, step, "params")))
    with pytest.raises(ValueError, match="no whole checkpoint to go on from .*/6.*"):
        train(run, folder)
    for step in (2, 4, 6, 8):
        facts_of(folder, step).unlink()
    with pytest.raises(ValueError, match="holds no whole checkpoint .*/6.*"):
        train(run, folder)
    assert len(list((folder / checkpoint.CHECKPOINTS).iterdir())) == 4 and not (folder / checkpoint.ASIDE).exists()


def other_rate(run: Run, index: int, peak: float) -> Run:
    phases = list(run.phases)
    phases[index] = replace(phases[index], schedule=replace(phases[index].schedule, peak=peak))
    return replace(run, phases=tuple(phases))


def without_config(run: Run, folder: Path) -> Run:
    (folder / "config.json").unlink()
    return other_rate(run, 0, 5e-3)


def with_config_of(run: Run, folder: Path) -> Run:
    changed = other_rate(run, 0, 5e-3)
    config = read_json(folder / "config.json")
    config["phases"][0]["schedule"]["peak"] = 5e-3
    write_json(folder / "config.json", config)
    return changed


def held_out_of_another_text(run: Run, folder: Path) -> Run:
    other = folder.parent / "other"
    make_store(other, Path(run.held_out or "") / "tokenizer", ["the heart is a muscle"] * 9)
    return replace(run, held_out=str(other))


def same_place_another_text(run: Run, folder: Path) -> Run:
    changed = held_out_of_another_text(run, folder)
    shutil.rmtree(run.held_out or "")
    shutil.move(changed.held_out or "", run.held_out or "")
    return run


def in_place(change):
    """A change of the folder, the run stays as it is."""

    def changed(run: Run, folder: Path) -> Run:
        change(folder)
        return run

    return changed


def without_a_field(folder: Path) -> None:
    """As a program leaves its facts that does not know the field yet."""
    for step in (2, 4, 6, 8):
        facts = read_json(facts_of(folder, step))
        del facts["config"]["causal_window_counts_self"], facts[checkpoint.OWN_HASH]
        write_json(facts_of(folder, step), {**facts, checkpoint.OWN_HASH: hash_of(facts)})


CHANGES = {  # of what decides a number, and what is said
    "norm_eps": (
        in_place(lambda f: edit(f / "model.json", norm_eps=1e-3)),
        "model.json: norm_eps is 0.001, it was 1e-05",
    ),
    "a layer's type": (
        in_place(lambda f: edit(f / "model.json", layer_types=["full_attention"] * 2)),
        "model.json: layer_types is",
    ),
    "tokenizer": (
        in_place(lambda f: flip(f / "tokenizer" / "tokenizer.json")),
        "tokenizer/tokenizer.json is not the same",
    ),
    "one tokenizer file more": (
        in_place(lambda f: (f / "tokenizer" / "special_tokens_map.json").write_text("{}")),
        "tokenizer/special_tokens_map.json is not the same",
    ),
    "origin": (in_place(lambda f: write_json(f / "origin.json", {"source": "x"})), "origin.json is not the same"),
    "config.json deleted, another rate": (without_config, "phases.0.schedule.peak: 0.01 -> 0.005"),
    "config.json edited, the same rate": (with_config_of, "phases.0.schedule.peak: 0.01 -> 0.005"),
    "held-out rows": (lambda run, _: replace(run, held_out_rows=3), "held_out_rows: 4 -> 3"),
    "held-out text": (held_out_of_another_text, "held_out .*other changed since step"),
    "held-out text in its place": (same_place_another_text, "held_out .*/held_out changed since step"),
    "no held-out text": (lambda run, _: replace(run, held_out=None), "held_out None changed since step"),
    "a field that was not there": (in_place(without_a_field), "causal_window_counts_self: None -> False"),
    "a checkpoint of another run": (lambda run, _: replace(run, seed=18), "seed: 17 -> 18"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_what_decides_a_number_may_not_change(copy, change, says):
    # Broken by: _check_own_files left out of read_model; config.json compared in place of the facts; held_out or
    # held_out_rows among the fields of ELASTIC that nothing else compares.
    run, folder = copy
    changed = change(run, folder)
    with pytest.raises(ValueError, match=says) as caught:
        go_on(changed, folder)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, DamageWarning)


def test_stores_may_lie_elsewhere(copy, tmp_path):
    run, folder = copy
    for name in ("store", "held_out"):
        (tmp_path / name).rename(tmp_path / f"moved_{name}")
    data = replace(run.data, stores=((str(tmp_path / "moved_store"), 1.0),))
    state, *_ = go_on(replace(run, data=data, held_out=str(tmp_path / "moved_held_out")), folder)
    assert int(state.step) == 8


def test_a_model_is_not_exported_as_what_it_was_not(copy, tmp_path):
    """Not by a changed model.json, nor in silence from an earlier step; and a step renamed is no later step."""
    # Broken by: read_model without _check_own_files; no warning in checkpoint.find.
    _, folder = copy
    for name, says in ((checkpoint.MODEL, "norm_eps is 1.0, it was"), ("tokenizer/tokenizer.json", "not the same")):
        kept = (folder / name).read_bytes()
        edit(folder / name, norm_eps=1)
        with pytest.raises(ValueError, match=says):
            to_hf.convert_checkpoint(folder, tmp_path / "hf")
        (folder / name).write_bytes(kept)
    at(folder, 8).rename(at(folder, 100))
    with pytest.raises(checkpoint.DamagedError, match="it holds step 8"):
        to_hf.convert_checkpoint(folder, tmp_path / "hf", step=100)
    with pytest.warns(DamageWarning, match="100 is damaged: it holds step 8; step 6 is read"):
        assert to_hf.convert_checkpoint(folder, tmp_path / "hf")[0] == 6


def test_a_run_of_another_version_is_neither_exported_nor_resumed(copy, tmp_path):
    """One that kept no hash of its facts; a field that its config has not is told as any other change."""
    # Broken by: facts without a hash believed in _read_facts.
    run, folder = copy
    for step in (2, 4, 6, 8):
        facts = read_json(facts_of(folder, step))
        kept = ("stores", "packing", "spent", "commit", "checksums")
        write_json(facts_of(folder, step), {name: facts[name] for name in kept})
    for work in (lambda: to_hf.convert_checkpoint(folder, tmp_path / "hf"), lambda: go_on(run, folder)):
        with pytest.raises(ValueError, match="8 is damaged: .* or another version of this program saved it") as caught:
            work()
        assert "\n" not in str(caught.value)


def test_a_bad_step_is_left_behind_by_another_course(made, copy):
    """What came before keeps its numbers, the clock goes on, and the run tells of it."""
    # Broken by: the departure left out of facts or of run.json; checkpoints after the step left in place; ELASTIC in
    # the place of ELASTIC | DEPARTING; the repeated command departing again.
    run, folder = copy
    before = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    changed = replace(other_rate(run, 0, 1e-3), optimizer=AdamW(clip_norm=0.5))
    with pytest.raises(ValueError, match=r"peak: 0.01 -> 0.001\): .*--from-step goes back"):
        go_on(changed, folder)
    with pytest.raises(ValueError, match=r"--from-step 3: .* the steps \[2, 4, 6, 8\] only"):
        go_on(changed, folder, 3)
    with pytest.raises(ValueError, match="seed: 17 -> 18"):
        go_on(replace(changed, seed=18), folder, 2)
    train(changed, folder, from_step=2)
    aside = {path.name for path in (folder / checkpoint.ASIDE).iterdir()}
    assert aside == {"4", "6", "8", "events.jsonl", "run.json"}
    steps = checkpoint.survey(folder)
    assert list(steps.whole) == [2, 4, 6, 8] and steps.whole[2]["departures"] == []
    (departure,) = read_json(folder / "run.json")["departures"]
    fields = ["optimizer.clip_norm: 1.0 -> 0.5", "phases.0.schedule.peak: 0.01 -> 0.001"]
    assert (departure["step"], departure["changed"]) == (2, fields)
    assert steps.whole[4]["departures"] == steps.whole[8]["departures"] == [departure]
    after = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    rates = [event["learning_rate"] for event in after if "loss" in event]
    assert rates[:4] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3]) and len(rates) == 8
    losses = [[event["loss"] for event in events if "loss" in event] for events in (before, after)]
    assert losses[0][:2] == losses[1][:2] and losses[0][3] != losses[1][3]
    (sentence,) = card.departures(read_json(folder / "run.json"), 8)
    assert sentence.startswith("At step 2 the run went back") and "`phases.0.schedule.peak: 0.01 -> 0.001`" in sentence
    assert card.departures(read_json(folder / "run.json"), 2) == []
    assert int(go_on(changed, folder, 2)[0].step) == 8  # the same command goes on, it does not depart again
    assert {path.name for path in (folder / checkpoint.ASIDE).iterdir()} == aside
    again, _, departures = go_on(other_rate(changed, 1, 1e-4), folder, 6)
    assert int(again.step) == 6 and [one["step"] for one in departures] == [2, 6]


@pytest.fixture(scope="module")
def departed(made, tmp_path_factory) -> tuple[Run, Path]:
    """The run as it went back to step 2 and on at another rate, and its folder with the checkpoints 2, 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("departed") / "run"
    shutil.copytree(made[1], folder)
    changed = other_rate(made[0], 0, 1e-3)
    return changed, train(changed, folder, from_step=2)


DEPARTURES_DAMAGED = {  # what is damaged of the first checkpoint after a departure, and the step of the next command
    "parameters": (lambda f: flip(largest_read(at(f, 4, "params"))), 2),
    "parameters, the command without its step": (lambda f: flip(largest_read(at(f, 4, "params"))), None),
    "facts": (lambda f: facts_of(f, 4).write_text("{"), 2),
}


@pytest.mark.parametrize(("damage", "from_step"), DEPARTURES_DAMAGED.values(), ids=DEPARTURES_DAMAGED)
def test_a_departure_outlives_damage_to_its_first_checkpoint(departed, tmp_path, damage, from_step):
    """It begins again at its own step, ends as it would have, and is told once."""
    # Broken by: `step > departed` in find_resumption; `x` in the place of `x | course` there; candidates whose config
    # is that of the run; `departed != from_step` left out.
    run, folder = departed[0], tmp_path / "run"
    shutil.copytree(departed[1], folder)
    then = checkpoint.survey(folder).whole
    for step in (6, 8):  # as if it was killed once step 4 was saved
        shutil.rmtree(at(folder, step))
    (folder / "run.json").unlink()
    shutil.rmtree(folder / checkpoint.ASIDE)
    damage(folder)
    with pytest.warns(DamageWarning, match="/4 is damaged.*; without it the run goes on from step 2$") as told:
        train(run, folder, from_step)
    now = checkpoint.survey(folder).whole
    assert len(told) == 1 and (folder / checkpoint.ASIDE / "4").is_dir()
    assert [facts["checksums"] for facts in now.values()] == [facts["checksums"] for facts in then.values()]
    record = read_json(folder / "run.json")
    (departure,) = record["departures"]
    assert (departure["step"], departure["changed"]) == (2, ["phases.0.schedule.peak: 0.01 -> 0.001"])
    assert [facts["departures"] for facts in now.values()] == [[], *[[departure]] * 3]
    assert len(card.departures(record, 8)) == 1


def test_a_run_whose_other_config_is_only_in_damaged_facts_is_told_of_them(departed, tmp_path):
    """What was saved of its course is gone, so the last whole checkpoint is of the config that it departed from."""
    # Broken by: steps.damaged left out of either message.
    run, folder = departed[0], tmp_path / "run"
    shutil.copytree(departed[1], folder)
    for step in (4, 6, 8):
        facts_of(folder, step).write_text("{")
    for from_step, says in ((None, r"peak: 0.01 -> 0.001\): .*--from-step goes back"), (4, r"steps \[2\] only")):
        with pytest.raises(ValueError, match=f"{says}.*/4 is damaged: .*/6 is damaged: .*/8 is damaged: "):
            go_on(run, folder, from_step)


def test_a_run_does_not_go_on_from_before_its_last_departure(made, departed, tmp_path):
    """Not even where it took its first settings up again: that was another course."""
    # Broken by: candidates whose config is that of the run in the place of those since the departure.
    run, folder = made[0], tmp_path / "run"
    shutil.copytree(departed[1], folder)
    train(run, folder, from_step=4)
    for step in (4, 6, 8):
        flip(largest_read(at(folder, step, "params")))
    with pytest.raises(ValueError, match="holds no whole checkpoint to go on from .*/8 .*/6 .*/4 "):
        go_on(run, folder)
    shutil.rmtree(at(folder, 4))
    shutil.copytree(at(departed[1], 4), at(folder, 4))
    with pytest.warns(DamageWarning, match="without it the run goes on from step 4$"):
        state, _, departures = go_on(run, folder)
    assert int(state.step) == 4 and [departure["step"] for departure in departures] == [2, 4]


def test_a_fresh_folder_has_no_step_to_go_back_to(copy, tmp_path):
    run, _ = copy
    with pytest.raises(ValueError, match="--from-step 2: .* holds no checkpoint"):
        go_on(run, tmp_path / "new", 2)


def test_facts_are_a_copy(made):
    """Orbax writes them later, while the run counts on."""
    # Broken by: the facts themselves in the place of the JSON of them in _sealed.
    spent = {"tokens": 1.0}
    sealed = checkpoint._sealed(3, {}, {}, {"spent": spent})
    spent["tokens"] = 2.0
    assert sealed.pop(checkpoint.OWN_HASH) == hash_of(sealed) and sealed["spent"] == {"tokens": 1.0}
