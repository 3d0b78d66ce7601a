"""What a run is measured by: its held-out text under every objective it has, and the sentences that it fills."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cptjax import sharding
from cptjax.data.batches import held_out_batches
from cptjax.machine.wire import Wire
from cptjax.run.clock import Clock
from cptjax.run.sentences import MOST, Filled
from cptjax.run.set_up import Setting
from cptjax.step import eval_step, fill_step

Results = dict[str, dict[str, float]]  # {objective: {loss, accuracy}}


class Evaluation(NamedTuple):
    """What an evaluation gave; nothing where the run has no held-out store, or no sentences."""

    held_out: Results
    filled: Filled


def make_evaluate(setting: Setting, clock: Clock, wire: Wire) -> Callable[[Any], Evaluation | None]:
    """params -> loss and accuracy on the held-out store, for every objective of the run, and its sentences filled; None
    when a signal asks for an end."""
    run, held_out = setting.run, setting.run.held_out
    rows = run.device_batch_size * sharding.row_devices(setting.mesh)
    own_rows = sharding.own_rows(setting.mesh, rows)
    fill = _make_fill(setting, clock, rows, own_rows)
    steps = {
        phase.name: clock.compiled(
            jax.jit(
                partial(
                    eval_step,
                    model=setting.model,
                    objective=phase.objective,
                    vocabulary=setting.vocabulary,
                    seed=run.seed,
                    chunk=setting.chunk,
                )
            )
        )
        for phase in run.phases
    }

    def evaluate(params: Any) -> Evaluation | None:
        if held_out is None:
            return Evaluation({}, fill(params))
        totals = {name: np.zeros(3) for name in steps}
        batches = held_out_batches(held_out, run.data.sequence_length, rows, run.held_out_rows, own_rows)
        for index, batch in enumerate(batches):
            if wire.meet() is not None:
                return None
            placed = sharding.put(batch, setting.mesh, rows)
            for name, step in steps.items():
                totals[name] += np.asarray(step(params, placed, jnp.int32(index)))
        results = {
            name: {"loss": float(loss / max(count, 1.0)), "accuracy": float(correct / max(count, 1.0))}
            for name, (loss, correct, count) in totals.items()
        }
        return Evaluation(results, fill(params))

    return evaluate


def _make_fill(setting: Setting, clock: Clock, rows: int, own_rows: list[int]) -> Callable[[Any], Filled]:
    """params -> the sentences of the run, filled by one program, `rows` of them at a time."""
    sentences = setting.sentences
    if sentences is None:
        return lambda params: {}
    step = partial(fill_step, model=setting.model, size=setting.vocabulary.size, most=MOST)
    program = clock.compiled(jax.jit(step, out_shardings=NamedSharding(setting.mesh, PartitionSpec())))
    arrays = {name: getattr(sentences, name) for name in ("token_BL", "segment_BL", "position_BS")}
    whole = {name: np.pad(x, ((0, -len(x) % rows), (0, 0))) for name, x in arrays.items()}  # with rows of padding

    def fill(params: Any) -> Filled:
        made = []
        for first in range(0, len(sentences.texts), rows):
            batch = {name: x[first : first + rows][own_rows] for name, x in whole.items()}
            made.append(jax.tree.map(np.asarray, program(params, sharding.put(batch, setting.mesh, rows))))
        token_SBN, share_SBN = (np.concatenate(x, 1) for x in zip(*made, strict=True))
        return sentences.told(token_SBN, share_SBN)

    return fill
