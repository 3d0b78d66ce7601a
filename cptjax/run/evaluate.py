"""The held-out text of a run, under every objective it has."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax import sharding
from cptjax.command.signals import Signals
from cptjax.data.batches import held_out_batches
from cptjax.run.clock import Clock
from cptjax.run.set_up import Setting
from cptjax.step import eval_step

Results = dict[str, dict[str, float]]  # {objective: {loss, accuracy}}


def make_evaluate(setting: Setting, clock: Clock, signals: Signals) -> Callable[[Any], Results | None]:
    """params -> loss and accuracy on the held-out store, for every objective of the run; None when a signal asks for
    an end."""
    run, held_out = setting.run, setting.run.held_out
    if held_out is None:
        return lambda params: {}
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
    rows = run.device_batch_size * sharding.row_devices(setting.mesh)
    own_rows = sharding.own_rows(setting.mesh, rows)

    def evaluate(params: Any) -> Results | None:
        totals = {name: np.zeros(3) for name in steps}
        batches = held_out_batches(held_out, run.data.sequence_length, rows, run.held_out_rows, own_rows)
        for index, batch in enumerate(batches):
            if signals.asked is not None:
                return None
            placed = sharding.put(batch, setting.mesh, rows)
            for name, step in steps.items():
                totals[name] += np.asarray(step(params, placed, jnp.int32(index)))
        return {
            name: {"loss": float(loss / max(count, 1.0)), "accuracy": float(correct / max(count, 1.0))}
            for name, (loss, correct, count) in totals.items()
        }

    return evaluate
