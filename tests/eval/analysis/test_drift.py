"""How far layers moved: closed forms, runs whose start is known, and what is refused."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from cptjax.config import Phase
from cptjax.families import encoder
from cptjax.objectives import CLM
from cptjax.run import checkpoint
from cptjax.run.branch import branched
from cptjax.run.events import read_events
from cptjax.schedules import Schedule
from cptjax.shape import BertConfig, ModelConfig, ModernBertConfig, layer_path
from cptjax.train import train
from eval.__main__ import main
from eval.analysis import drift as analysis
from eval.analysis.drift import CHANGE, GRADIENT, LARGEST, RANK, Course, Moved, Span, State, drift, effective_rank
from tests.conftest import moved
from tests.fixtures_run import seeing, small_run

STEP = 4 * 32  # tokens
SIZES = {"vocab_size": 128, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
CONFIGS = [  # layer 0, two scanned blocks of three layers and one unrolled layer; four layers in one stack
    ModernBertConfig(num_hidden_layers=8, local_attention=8, **SIZES),
    BertConfig(num_hidden_layers=4, pooler=True, **SIZES),
]


def values(figures: list[Moved], measure: str, phase: str | None = None) -> dict[tuple[str, str], Any]:
    return {
        (each.layer, each.component): each.value
        for each in figures
        if each.measure == measure and phase in (None, each.phase)
    }


def test_effective_rank_is_the_closed_form():
    """Of singular values 1, 1, 2 the shares are 1/4, 1/4, 1/2, and the entropy is 1.5 ln 2."""
    # Broken by: squares of singular values; log2 in the place of log.
    turn_OO, turn_II = (np.linalg.qr(np.random.default_rng(seed).normal(size=(9, 9)))[0] for seed in (0, 1))
    assert effective_rank(np.outer(np.arange(1, 5), np.arange(1, 8.0))) == pytest.approx(1, abs=1e-10)
    assert effective_rank(3 * turn_OO) == pytest.approx(9)
    assert effective_rank(turn_OO @ np.diag([1, 1, 2.0, *[0] * 6]) @ turn_II) == pytest.approx(2**1.5)
    assert effective_rank(np.zeros((4, 7))) is None


def of_two(config: ModelConfig, before: Any, after: Any) -> list[Moved]:
    states = [State(name, config, analysis._in_memory(params)) for name, params in (("a", before), ("b", after))]
    return analysis._moved(Course(states, [Span("phase", 0, 1)], []))


def change_layer(config: ModelConfig, params: Any, layer: int, part: str, change: Callable[[Any], Any]) -> None:
    """Change the arrays of a part of a layer, wherever they lie."""
    path, index = layer_path(config, layer)
    part_of_layer = reduce(getitem, (*path, part), params)
    place = ... if index is None else index
    for array in jax.tree.leaves(part_of_layer):
        array[place] = change(array[place])


@pytest.mark.parametrize("config", CONFIGS, ids=["modernbert", "bert"])
def test_each_layer_moves_by_itself(config):
    """A layer of a stack as one outside: half of an attention is moved by 0.5, a change that is one outer product has
    rank 1, and all else moves by nothing."""
    # Broken by: `array` for `array[index]`; names of another layer; the norm of W1 below.
    before = jax.tree.map(np.array, moved(encoder(config)))
    last = str(config.num_hidden_layers - 1)
    for layer in (2, int(last)):
        change_layer(config, before, layer, "mlp", np.ones_like)
    after = jax.tree.map(np.copy, before)
    change_layer(config, after, 1, "attn", lambda x: x / 2)
    outer = np.outer(np.arange(16), np.ones(24)) / 64
    for layer in (2, int(last)):
        change_layer(config, after, layer, "mlp", lambda x: x + outer.astype(x.dtype) if x.shape == (16, 24) else x)
    figures = of_two(config, before, after)
    change, rank, largest = (values(figures, measure) for measure in (CHANGE, RANK, LARGEST))
    others = {"embeddings", "head", "decoder", "final_norm" if config is CONFIGS[0] else "pooler"}
    assert {layer for layer, _ in change} == {*map(str, range(int(last) + 1)), *others}
    assert change["1", "attn"] == pytest.approx(0.5, abs=1e-12)
    biased, gated = config.mlp_bias, config.gated
    weights = 16 * 24 * (2 + gated) + biased * (24 * (1 + gated) + 16)  # of the feed-forward, all of them 1
    for layer in ("2", last):
        assert change[layer, "mlp"] == pytest.approx(np.sqrt((outer**2).sum() / weights), rel=1e-12)
        assert rank[layer, "mlp/out"] == pytest.approx(1, abs=1e-10) and largest[layer, "mlp/out"] == 16
    moving = {("1", "attn"), ("1", "all"), *product(("2", last), ("mlp", "all"))}
    assert {place for place, value in change.items() if value != 0} == moving
    matrices = {("1", f"attn/{name}") for name in ("query", "key", "value", "out")} | {
        *product(("2", last), ["mlp/out"])
    }
    assert {place for place, value in rank.items() if value is not None} == matrices


def test_what_began_as_nothing_has_no_relative_change():
    # Broken by: `change / start` without its condition.
    config = CONFIGS[0]
    before = jax.tree.map(np.array, moved(encoder(config)))
    before["decoder"]["bias"][:] = 0
    after = jax.tree.map(np.copy, before)
    assert values(of_two(config, before, after), CHANGE)["decoder", "decoder"] == 0
    after["decoder"]["bias"][3] = 1
    assert values(of_two(config, before, after), CHANGE)["decoder", "decoder"] is None


def test_a_weight_that_is_no_number_is_named():
    # Broken by: the check left out of _read.
    config = CONFIGS[1]
    before = jax.tree.map(np.array, moved(encoder(config)))
    after = jax.tree.map(np.copy, before)
    after["blocks"]["l0"]["mlp"]["Wi"][1, 0, 2, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"^b has weights that are no finite numbers \(blocks/l0/mlp/Wi\): take another"
    ):
        of_two(config, before, after)


# ---- runs


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Runs of this file see two devices."""
    with seeing(2):
        yield


def still(name: str) -> Phase:
    """A step at a rate of 0."""
    return Phase(name, CLM, STEP, Schedule(1e-2, warmup_tokens=STEP))


@pytest.fixture(scope="module")
def second(store, finished, tmp_path_factory) -> Path:
    """A run after `finished`: a step at a rate of 0, then three that leave a layer out; all gradients are logged."""
    frozen = Phase("clm", CLM, 3 * STEP, Schedule(1e-2), frozen=("layers/1/", "decoder"))
    changes: dict[str, Any] = {"phases": (still("still"), frozen), "held_out": None, "gradients_every": 1}
    run = small_run(store, model=None, init=str(finished), tensorboard=False, **changes)
    return train(run, tmp_path_factory.mktemp("runs") / "second")


def test_a_run_from_its_start_to_its_end(second, finished):
    """Of the start nothing moves at a rate of 0, of a frozen layer nothing at all; the rest is in the checkpoints."""
    # Broken by: the last step of the run for that of the phase; the first phase from the wrong model; means over all
    # phases.
    figures = drift(second)
    assert {value for value in values(figures, CHANGE, "still").values()} == {0}
    assert {value for value in values(figures, RANK, "still").values()} == {None}
    clm = values(figures, CHANGE, "clm")
    assert {layer for layer, _ in clm if clm[layer, "all"] == 0} == {"1", "decoder"}
    assert values(figures, CHANGE, analysis.WHOLE) == clm
    before, after = (checkpoint.load_params(*at)[2]["embeddings"] for at in ((finished, 20), (second, 4)))
    start, end = (np.asarray(each["tok_embeddings"], float) for each in (before, after))
    expected = np.linalg.norm(end - start) / np.linalg.norm(start)
    assert clm["embeddings", "embeddings"] == pytest.approx(expected, rel=1e-12)
    assert 1 < values(figures, RANK, "clm")["embeddings", "embeddings/tok_embeddings"] < 16
    logged = [event["gradients"] for event in read_events(second / "events.jsonl") if "gradients" in event]
    norms = values(figures, GRADIENT, "clm")
    assert norms["0", "mlp"] == pytest.approx(np.mean([event["layers/0/mlp"] for event in logged[1:]]))
    whole = [math.hypot(event["embeddings"], event["embeddings/norms"]) for event in logged[1:]]
    assert norms["embeddings", "all"] == pytest.approx(np.mean(whole)) and norms["1", "all"] == 0
    assert values(figures, GRADIENT, "still")["1", "all"] > 0
    assert not values(figures, GRADIENT, analysis.WHOLE)


def test_random_weights_are_drawn_again_and_a_branch_begins_with_its_parent(store, finished, tmp_path):
    """A step at a rate of 0 from each, from which no number differs."""
    # Broken by: another seed; the parent's last step.
    run = small_run(store, phases=(still("still"),), held_out=None, tensorboard=False)
    for name, each in (("drawn", run), ("branch", branched(run, finished, 10))):
        folder = train(each, tmp_path / name)
        assert {value for value in values(drift(folder), CHANGE).values()} == {0}, name
        assert set(values(drift(folder, f"{finished}@20"), CHANGE).values()) != {0}
    facts = checkpoint.find(tmp_path / "branch", None)[2]
    facts["parents"][-1]["facts_sha256"] = "0"
    with pytest.raises(ValueError, match=f"^step 10 of {finished} is not the one that x began with: name that with"):
        analysis._start(Path("x"), facts)


def test_the_command_tells_all_of_it(second, tmp_path, capsys):
    # Broken by: a table of one phase; ranks without their share; the plot of another measure.
    out = {name: tmp_path / f"drift.{name}" for name in ("json", "png", "html")}
    words = ["--json", str(out["json"]), "--plot", str(out["png"]), "--out", str(out["html"]), "--format", "html"]
    assert main(["drift", str(second), *words]) == 0
    told = json.loads(out["json"].read_text())
    assert [Moved(**each) for each in told["figures"]] == drift(second)
    assert [span["phase"] for span in told["spans"]] == ["still", "clm", analysis.WHOLE]
    assert told["spans"][1]["from"] == f"{second}@1" and told["spans"][1]["to"] == f"{second}@4"
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    page = out["html"].read_text()
    assert page.count("<table>") == 3 + 3 + 2 and "4 logged steps" in page
    capsys.readouterr()
    assert main(["drift", f"{second}@4", "--from", f"{second}@1"]) == 0
    text = capsys.readouterr().out
    assert "whole run" in text and "(0%)" not in text and "No norms of gradients are logged" in text
    assert main(["drift", str(second), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("phase,layer,component,measure,value\nstill,embeddings,")


def test_what_cannot_be_measured_is_said_in_one_line(finished, second, tmp_path, capsys):
    # Broken by: the check of each left out.
    def said(*words: Any) -> str:
        assert main(["drift", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    lost = shutil.copytree(finished, tmp_path / "lost")
    assert f"{tmp_path} is no folder of a run that was trained: name what it began as with --from" in said(tmp_path)
    config = checkpoint.find(second, None)[2]["config"]
    facts = {"config": config | {"init": "some/model"}}
    with pytest.raises(
        ValueError, match=f"^{second} began with some/model, whose weights are not in {second}/init: name"
    ):
        analysis._start(second, facts)
    wide = CONFIGS[0]
    with pytest.raises(
        ValueError, match=r"of other shapes .* is \[128\] and \[130\]\): name a model of the run's shape"
    ):
        states = [
            State(name, shape, analysis._in_memory({}))
            for name, shape in (("a", wide), ("b", replace(wide, vocab_size=130)))
        ]
        analysis._moved(Course(states, [Span("phase", 0, 1)], []))
    shutil.rmtree(lost / "checkpoints" / "10")
    assert "holds no checkpoint of step 10, only of the steps" in said(lost)
    assert "nothing.txt ends in none of .png" in said(finished, "--plot", tmp_path / "nothing.txt")


def test_a_damaged_checkpoint_is_named(finished, tmp_path, capsys):
    # Broken by: arrays read without their checksums.
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "checkpoints" / "20" / "params").rglob("d/*"):  # Orbax leaves some there that nobody reads
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        main(["drift", str(folder)])
        path.write_bytes(data)
    told = capsys.readouterr().err
    assert re.search(f"^error: checkpoint {folder / 'checkpoints' / '20'} is damaged: .* from its checksum", told, re.M)
