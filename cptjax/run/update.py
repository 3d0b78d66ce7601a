"""The update of a phase, compiled, and the state it works on."""

from collections.abc import Callable
from functools import partial

import jax

from cptjax import sharding
from cptjax.config import Stretch
from cptjax.machine import host
from cptjax.objectives import Objective
from cptjax.run.checkpoint import parameter_shapes
from cptjax.run.set_up import Setting, trains
from cptjax.schedules import learning_rate
from cptjax.step import TrainState, init_state, loss_and_counts, train_step


def compile_update(setting: Setting, stretch: Stretch) -> Callable:
    """The jitted update of a stretch: (state, batch) -> (state, metrics); the state is donated."""
    run, phase = setting.run, stretch.phase
    update = partial(
        train_step,
        loss_fn=loss_of(setting, phase.objective),
        tx=setting.tx,
        rate_fn=lambda step: learning_rate(
            phase.schedule, step - stretch.first, stretch.last - stretch.first, run.tokens_per_step
        ),
        decay=run.optimizer.weight_decay / phase.schedule.peak,
        trains=trains(setting.model.config, phase),
        seed=run.seed,
        micro_batches=setting.micro_batches,
        skip_steps=run.skip_steps,
    )
    return jax.jit(
        update,
        donate_argnums=0,
        out_shardings=(state_shardings(setting), None),
        compiler_options=host.xla_options(setting.mesh.devices.flat[0].platform),
    )


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
