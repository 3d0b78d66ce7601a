"""Norms of the gradient of each part of a model, in the log of a run whose numbers they do not change."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cptjax.data.batches import Batches
from cptjax.families import encoder
from cptjax.objectives import CLM
from cptjax.optim import AdamW, freeze_mask, make_optimizer
from cptjax.run import checkpoint
from cptjax.run.events import read_events
from cptjax.run.recorder import Recorder
from cptjax.run.set_up import names_of, open_inputs, set_up
from cptjax.run.update import compile_update, state_shapes
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig, layer_path, part_of
from cptjax.sharding import Mesh, put
from cptjax.step import gradient_norms, init_state, loss_and_counts, mean_gradients
from cptjax.train import train
from tests.conftest import VOCABULARY, moved, random_tokens
from tests.fixtures_run import events, seeing, sick_row, small_run, without_pictures

pytestmark = pytest.mark.usefixtures("no_pictures")

BERT = BertConfig(  # three layers in one stack
    vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, pooler=True
)
STACKED = ModernBertConfig(  # layer 0, two scanned blocks of three layers, and one unrolled layer
    vocab_size=128, hidden_size=16, intermediate_size=24, num_hidden_layers=8, num_attention_heads=2, local_attention=8
)


def norms_in(folder: Path) -> dict[int, dict[str, float]]:
    """What a log has, by step."""
    return {event["step"]: event["gradients"] for event in read_events(folder / "events.jsonl") if "gradients" in event}


def whole(norms: dict[str, float]) -> float:
    return math.sqrt(sum(norm**2 for norm in norms.values()))


def grad_norms(folder: Path) -> dict[int, float]:
    return {event["step"]: event["grad_norm"] for event in read_events(folder / "events.jsonl") if "loss" in event}


def test_a_part_is_called_by_its_layer_and_what_it_does():
    # Broken by: norms that are parts of their own; the last norm among them.
    names = {
        "layers/4/attn/Wqkv": "layers/4/attn",
        "layers/4/mlp/Wo_bias": "layers/4/mlp",
        "layers/4/attn_norm/scale": "layers/4/norms",
        "layers/4/mlp_norm/bias": "layers/4/norms",
        "embeddings/tok_embeddings": "embeddings",
        "embeddings/norm/scale": "embeddings/norms",
        "final_norm/scale": "final_norm",
        "head/dense": "head",
        "decoder/bias": "decoder",
    }
    assert {name: part_of(name) for name in names} == names


@pytest.mark.parametrize("config", [STACKED, BERT], ids=["modernbert", "bert"])
def test_norms_are_those_of_each_layer_of_a_stack(config: ModelConfig):
    """The layer's slice of the stack, wherever it lies."""
    # Broken by: the layer axis summed too; names of another layer; clipping before the norms; trains left out.
    model = encoder(config)
    params = moved(model)
    token_BL = random_tokens(4, 16)
    batch = {"token_BL": token_BL, "segment_BL": np.ones_like(token_BL)}
    trains = freeze_mask(names_of(config), ())
    loss_fn = partial(loss_and_counts, model=model, objective=CLM, vocabulary=VOCABULARY, chunk=8)
    of_loss = {"loss_fn": loss_fn, "trains": trains, "seed": 0, "micro_batches": 2}
    state = init_state(params, make_optimizer(AdamW()))
    parts = jax.tree.map(
        lambda names: tuple(map(part_of, names)), names_of(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    norms = jax.device_get(jax.jit(partial(gradient_norms, parts=parts, **of_loss))(state, batch))
    grads = jax.device_get(jax.jit(partial(mean_gradients, **of_loss))(state, batch)[0])
    expected = {}
    for layer in range(config.num_hidden_layers):
        path, index = layer_path(config, layer)
        own = grads
        for key in path:
            own = own[key]
        own = own if index is None else jax.tree.map(lambda x, index=index: x[index], own)
        norm = {name: tree for name, tree in own.items() if name.endswith("norm")}
        for name, tree in (("attn", own["attn"]), ("mlp", own["mlp"]), ("norms", norm)):
            expected[f"layers/{layer}/{name}"] = np.sqrt(
                sum((x.astype(float) ** 2).sum() for x in jax.tree.leaves(tree))
            )
    assert expected and {name: norms[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert len({*expected.values()}) == len(expected)
    others = {"embeddings", "embeddings/norms", "head", "head/norms", "decoder"}
    others |= {"final_norm"} if config is STACKED else {"pooler"}
    assert norms.keys() - expected.keys() == others
    assert whole(norms) == pytest.approx(np.sqrt(sum((x.astype(float) ** 2).sum() for x in jax.tree.leaves(grads))))


@pytest.fixture(scope="module")
def logged(store, tmp_path_factory) -> Path:
    """The run of `finished`, which logs every fourth step."""
    with seeing(2), without_pictures():
        return train(small_run(store, gradients_every=4), tmp_path_factory.mktemp("runs") / "logged")


def test_the_numbers_of_a_run_are_the_same_with_and_without(logged, finished):
    # Broken by: gradient_norms given the state of the next step; the key of the step folded twice.
    for step in (10, 20):
        sums = [checkpoint.survey(folder).whole[step]["checksums"] for folder in (logged, finished)]
        assert sums[0] == sums[1]
    assert [event for event in events(logged) if "gradients" not in event] == events(finished)
    assert [*norms_in(logged)] == [0, 4, 8, 12, 16] and not norms_in(finished)


def test_parts_are_parts_of_the_whole(logged):
    """As the update has it, before clipping."""
    # Broken by: a part left out; norms of the step before; norms for squares.
    told = grad_norms(logged)
    assert {step: whole(norms) for step, norms in norms_in(logged).items()} == pytest.approx(
        {step: told[step] for step in norms_in(logged)}, rel=1e-5
    )


def test_the_update_is_the_same_program(store, tmp_path, two_devices):
    # Broken by: norms among the update's metrics.
    texts = []
    for every in (None, 4):
        run = small_run(store, gradients_every=every)
        setting = set_up(open_inputs(run, tmp_path / "run"))
        batch = Batches(run.data).batch_of_step(0)
        with jax.set_mesh(setting.mesh):
            update: Any = compile_update(setting, run.stretches[0])
            texts.append(update.lower(state_shapes(setting), put(batch, setting.mesh, 4)).as_text())
    assert texts[0] == texts[1]


def test_meshes_micro_batches_and_frozen_layers(store, tmp_path, monkeypatch, logged):
    """The norms of another mesh are those of one device; what is frozen has none."""
    # Broken by: `trains` of another phase; norms of each device's own part.
    run = small_run(store, held_out=None, gradients_every=4, device_batch_size=1, mesh=Mesh(1, 2, 2))
    frozen = replace(run.phases[1], frozen=("layers/1/", "embeddings/tok"))
    devices = jax.devices("cpu")[:4]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    folder = train(replace(run, phases=(run.phases[0], frozen)), tmp_path / "run")
    norms, told = norms_in(folder), grad_norms(folder)
    for step in (0, 4, 8):
        assert norms[step] == pytest.approx(norms_in(logged)[step], rel=1e-3)
    for step in (12, 16):
        assert whole(norms[step]) == pytest.approx(told[step], rel=1e-5)
        still = {name for name, norm in norms[step].items() if norm == 0}
        assert still == {"embeddings", "layers/1/attn", "layers/1/mlp", "layers/1/norms"}


def test_a_run_that_goes_on_logs_each_step_once(store, tmp_path, two_devices, monkeypatch, logged):
    """Killed after the norms of step 12, which a checkpoint was saved before."""
    # Broken by: "gradients" left out of _rewind.
    gradients = Recorder.gradients

    def killed(self, step, *told):
        gradients(self, step, *told)
        if step == 12:
            raise KeyboardInterrupt

    run = small_run(store, gradients_every=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "gradients", killed)
        train(run, tmp_path / "run")
    assert [*norms_in(tmp_path / "run")] == [0, 4, 8, 12] and checkpoint.latest_step(tmp_path / "run") == 12
    assert events(train(run, tmp_path / "run")) == events(logged)


def test_a_gradient_that_is_not_finite_is_told_so(store, tmp_path, two_devices, monkeypatch):
    # Broken by: `float(norm)` for all, which no reader of the log takes.
    run = small_run(store, held_out=None, gradients_every=4)
    sick_row(monkeypatch, run, 4, 2)
    folder = train(run, tmp_path / "run")
    norms = norms_in(folder)
    assert {*norms[4].values()} == {None} and all(norm is not None for norm in norms[8].values())
    assert not (folder / "events.unreadable").exists()
