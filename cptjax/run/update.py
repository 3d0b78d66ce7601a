"""The update of a phase, compiled, the norms of its gradients, and the state it works on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from cptjax import sharding
from cptjax.config import Phase, Stretch
from cptjax.machine import host
from cptjax.objectives import Objective
from cptjax.run.checkpoint import parameter_shapes
from cptjax.run.set_up import Setting, names_of, trains
from cptjax.schedules import learning_rate
from cptjax.shape import part_of
from cptjax.step import TrainState, gradient_norms, init_state, loss_and_counts, train_step


def compile_update(setting: Setting, stretch: Stretch) -> Callable:
    """The jitted update of a stretch: (state, batch) -> (state, metrics); the state is donated."""
    run, phase = setting.run, stretch.phase
    update = partial(
        train_step,
        **_of_loss(setting, phase),
        tx=setting.tx,
        rate_fn=lambda step: learning_rate(
            phase.schedule, step - stretch.first, stretch.last - stretch.first, run.tokens_per_step
        ),
        decay=run.optimizer.weight_decay / phase.schedule.peak,
        skip_steps=run.skip_steps,
    )
    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(state_shardings(setting), None),
        compiler_options=host.xla_options(setting.mesh.devices.flat[0].platform),
    )


def compile_gradients(setting: Setting, phase: Phase) -> Callable:
    """The jitted `gradient_norms` of a phase: (state, batch) -> norms, which each process has whole.

    A program of its own: in the update the norms might change how XLA orders its sums, and so the run's numbers.
    """
    parts = jax.tree.map(
        lambda names: tuple(map(part_of, names)), names_of(setting.model.config), is_leaf=lambda x: isinstance(x, tuple)
    )
    return jax.jit(
        partial(gradient_norms, parts=parts, **_of_loss(setting, phase)),
        out_shardings=NamedSharding(setting.mesh, PartitionSpec()),
        compiler_options=host.xla_options(setting.mesh.devices.flat[0].platform),
    )


def _of_loss(setting: Setting, phase: Phase) -> dict[str, Any]:
    """What `mean_gradients` takes."""
    return {
        "loss_fn": loss_of(setting, phase.objective),
        "trains": trains(setting.model.config, phase),
        "seed": setting.run.seed,
        "first_batch": setting.run.data.first_batch,
        "micro_batches": setting.micro_batches,
    }


def loss_of(setting: Setting, objective: Objective) -> Callable:
    """`loss_and_counts` of an objective."""
    return partial(
        loss_and_counts,
        model=setting.model,
        objective=objective,
        vocabulary=setting.vocabulary,
        chunk=setting.chunk,
        dropout=setting.run.dropout_of(setting.model.config),
    )


def state_shapes(setting: Setting) -> TrainState:
    """Shape, type and place on the mesh of every array of the training state."""
    whole = parameter_shapes(setting.model.config)
    shapes = jax.eval_shape(lambda params: init_state(params, setting.tx), whole)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.shard_tree(setting.mesh, shapes),
    )


def state_shardings(setting: Setting) -> TrainState:
    """The place on the mesh of every array of the training state."""
    return jax.tree.map(lambda x: x.sharding, state_shapes(setting))


def fresh_optimizer(setting: Setting, state: TrainState) -> TrainState:
    """The state with an optimiser that has seen nothing yet."""
    init = jax.jit(setting.tx.init, out_shardings=state_shardings(setting).opt_state)
    return state._replace(opt_state=init(state.params))
