"""A run small enough to make in every test, here or in a process of its own."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cptjax.config import Phase, Run
from cptjax.data.batches import Batches, Data
from cptjax.objectives import CLM, mlm
from cptjax.run import checkpoint
from cptjax.run.events import read_events
from cptjax.schedules import Schedule
from cptjax.shape import ModernBertConfig, Precision
from cptjax.sharding import Mesh
from cptjax.step import loss_and_counts

ROOT = Path(__file__).parent.parent
CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.fixtures_run import small_run

def get_config():
    return small_run(Path({{store!r}}))
"""


def small_run(store: Path, **changes) -> Run:
    """Ten steps of CLM, then ten of MLM, of 4 rows of 32 tokens, on two devices."""
    tokens = 10 * 4 * 32
    run = Run(
        name="small",
        data=Data(((str(store), 1.0),), sequence_length=32, global_batch_size=4),
        phases=(
            Phase("clm", CLM, tokens, Schedule(1e-2, warmup_tokens=tokens // 5)),
            Phase("decay", mlm(0.3), tokens, Schedule(1e-2, shape="one_minus_sqrt")),
        ),
        model=ModernBertConfig(
            vocab_size=320, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        ),
        precision=Precision(compute="float32"),
        held_out=str(store / "held_out"),
        held_out_rows=4,
        eval_every=5,
        checkpoint_every=3,
        device_batch_size=2,
        mesh=Mesh(2, 1, 1),
    )
    return replace(run, **changes)


@contextlib.contextmanager
def seeing(count: int):
    """Runs see so many devices."""
    devices = jax.devices()[:count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: devices)
        yield


@contextlib.contextmanager
def without_pictures():
    """Runs draw nothing: a picture at each evaluation takes longer than the steps before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cptjax.run.plots.plot", lambda *_: None)
        yield


def largest_read(part: Path) -> Path:
    """The largest data file of a part of a checkpoint that a restore reads: of Orbax's database some hold only what was
    written over, or nothing that anybody asks for."""
    folder, step = part.parents[2], int(part.parent.name)
    facts, aside = checkpoint.survey(folder).whole[step], part / "aside"
    files = [path for path in part.rglob("d/*") if path.is_file()]
    for file in sorted(files, key=lambda path: path.stat().st_size, reverse=True):
        file.rename(aside)
        is_read = any(checkpoint.faults(folder, step, facts))
        aside.rename(file)
        if is_read:
            return file
    raise AssertionError(f"{part} has no such file")


def one_step(run: Run) -> Run:
    """Only a first step of this run, at a rate that is not 0: where no test looks at more."""
    phase = run.phases[0]
    phase = replace(phase, tokens=run.tokens_per_step, schedule=replace(phase.schedule, warmup_tokens=0))
    return replace(run, phases=(phase,))


def sick_row(monkeypatch, run, step: int, row: int) -> None:
    """Have the loss of every batch that holds this row be no number."""
    row_L = Batches(run.data).batch_of_step(step)["token_BL"][row]

    def sick(params, token_BL, *rest, **options):
        loss, counts = loss_and_counts(params, token_BL, *rest, **options)
        return loss * jnp.where((token_BL == row_L[None]).all(axis=1).any(), jnp.nan, 1.0), counts

    monkeypatch.setattr("cptjax.run.update.loss_and_counts", sick)


def command(config: Path, folder: Path, *overrides: str) -> list[str]:
    """Train a config as a user of a machine with two devices does."""
    devices = ["env", "JAX_NUM_CPU_DEVICES=2"]
    return [*devices, sys.executable, "-m", "cptjax", "train", str(config), "--workdir", str(folder), *overrides]


def events(folder: Path) -> list[dict]:
    """The log of a run without its times."""
    timing = ("seconds", "_per_s")
    found = read_events(folder / "events.jsonl")
    return [{name: value for name, value in event.items() if not name.endswith(timing)} for event in found]
