"""One step of a run again: what its batch was, and which of its rows made its numbers.

B rows of the global batch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cptjax import sharding
from cptjax.command.escape import listed
from cptjax.config import Run
from cptjax.data.batches import Batches
from cptjax.files import read_json, typed
from cptjax.run import checkpoint
from cptjax.run.resume import Resumption
from cptjax.run.set_up import open_inputs, set_up
from cptjax.run.start import start
from cptjax.run.update import compile_update, fresh_optimizer, loss_of, state_shapes
from cptjax.step import batch_key

SHOWN = 12  # rows of the table, and documents of a row


@dataclass(frozen=True)
class Row:
    """A row of the batch: its place, its text, the mean loss over its targets and the norm of that one's gradient."""

    row: int
    store: str
    documents: list[str]  # input file and row of each
    targets: float
    loss: float
    grad_norm: float


def run_of(folder: Path) -> Run:
    """The run whose folder this is, as it was resolved. Raises FileNotFoundError where it holds no config.json, and
    ValueError for one that no run has written."""
    path = folder / "config.json"
    told = read_json(path)
    given, shape = told.get("init"), told.get("model")
    # The shape is a dataclass of its family: the rest is read as if weights came from elsewhere.
    rest = typed(Run, {**told, "init": given or "", "model": None}, str(path))
    model = None if shape is None else checkpoint.model_config(shape, where=f"{path}: model")
    return replace(rest, init=given, model=model)


def replay(run: Run, folder: Path, step: int, *, float32: bool = False) -> dict[str, Any]:
    """Make step `step` (from 0) of a run again, from its last whole checkpoint before it, in float32 if asked: loss and
    gradient norm of the whole batch, and of each row, the worst first, ready for JSON. Nothing is written.

    Raises ValueError for a step that the run has not, for one that nothing is left of since it took another course,
    for another config or damage, as `train` does.
    """
    last = run.stretches[-1].last
    if not 0 <= step < last:
        raise ValueError(f"step {step}: the run has steps 0 to {last - 1:,}")
    inputs = open_inputs(run, folder)
    candidates = inputs.resumption.candidates
    before = max((s for s in candidates if s <= step), default=None)
    if before is None:
        _check_course(candidates, step, last)
    setting = set_up(inputs)
    batches = Batches(run.data)
    with jax.set_mesh(setting.mesh), run.precision.products():
        if before is None:
            state = start(replace(inputs, resumption=Resumption({}, begun=True)), setting).state
        else:
            state = checkpoint.resume(folder, candidates[before], before, state_shapes(setting))
        for stretch in run.stretches:
            if int(state.step) == stretch.first <= step and stretch.phase.optimizer_state == "reset":
                state = fresh_optimizer(setting, state)
            if int(state.step) < min(stretch.last, step):
                update = compile_update(setting, stretch)
                for number in range(int(state.step), min(stretch.last, step)):
                    batch = batches.batch_of_step(number)
                    state, _ = update(state, sharding.put(batch, setting.mesh, run.data.global_batch_size))
    if float32:
        run = replace(run, precision=replace(run.precision, compute="float32"))
        setting = set_up(replace(inputs, run=run))
    stretch = next(stretch for stretch in run.stretches if step < stretch.last)
    batch = batches.batch_of_step(step)
    with jax.set_mesh(setting.mesh), run.precision.products():
        key = batch_key(run.seed, jnp.int32(run.data.first_batch + step))
        measure = jax.jit(partial(_measure, loss_of(setting, stretch.phase.objective), key))
        rows = [
            Row(number, store, documents, *map(float, measure(state, _alone(batch, number, setting.mesh), number)))
            for number, (store, documents) in enumerate(batches.contents(step))
        ]
        _, metrics = compile_update(setting, stretch)(state, sharding.put(batch, setting.mesh, len(rows)))
    worst = sorted(rows, key=lambda row: (np.isfinite(row.grad_norm + row.loss), -row.grad_norm))
    return {
        "step": step,
        "phase": stretch.phase.name,
        "from_step": before or 0,
        "compute": run.precision.compute,
        **{name: float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")},
        "rows": list(map(asdict, worst)),
    }


def _check_course(candidates: Mapping[int, Mapping[str, Any]], step: int, last: int) -> None:
    """Raise ValueError for a step before all candidates of a run that took another course: its first steps were made
    under other settings."""
    departures = candidates[max(candidates)]["departures"] if candidates else []
    if departures:
        changed, first = "; ".join(departures[-1]["changed"]) or "the same config", min(candidates)
        raise ValueError(
            f"step {step}: the run went back to step {departures[-1]['step']} and on with {changed}; the first whole "
            f"checkpoint of that course is of step {first}: only the steps {first} to {last - 1:,} can be made again"
        )


def _alone(batch: dict[str, np.ndarray], row: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """A row of a batch, once for each of the devices that rows are spread over."""
    copies = sharding.row_devices(mesh)
    return sharding.put({name: np.repeat(x[row : row + 1], copies, 0) for name, x in batch.items()}, mesh, copies)


def _measure(loss_fn: Any, key: Any, state: Any, copies: dict[str, jax.Array], row: Any) -> tuple[Any, Any, Any]:
    """Targets, mean loss and gradient norm of a row that `_alone` gave: as it is drawn in its batch."""
    token_BL, segment_BL = copies["token_BL"], copies["segment_BL"]
    row_B = jnp.full(len(token_BL), row, jnp.int32)
    (loss, counts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, token_BL, segment_BL, row_B, key)
    targets = jnp.maximum(counts["targets"], 1.0)
    return counts["targets"] / len(token_BL), loss / targets, optax.tree.norm(grads) / targets


def text(report: dict[str, Any]) -> str:
    """The report in lines for a terminal."""
    whole = "step {step} ({phase}), from the checkpoint of step {from_step}, in {compute}: ".format(**report)
    lines = [whole + "loss {loss:.6g}, gradient norm {grad_norm:.6g}, rate {learning_rate:.3g}".format(**report)]
    lines += [f"{'row':>5}{'loss':>11}{'grad norm':>11}{'targets':>9}  documents"]
    for row in report["rows"][:SHOWN]:
        documents = f"{row['store']}: {listed(row['documents'])}"
        lines.append(f"{row['row']:>5}{row['loss']:>11.4g}{row['grad_norm']:>11.4g}{row['targets']:>9.0f}  {documents}")
    if more := len(report["rows"]) - SHOWN:
        lines += [f"and {more} rows more"] if more > 0 else []
    return "\n".join(lines)
