"""One optimiser step and one evaluation step, as pure functions.

B rows of the global batch, L tokens per row, S predicting positions; M micro-batches of B / M rows; N likeliest tokens.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cptjax.dropout import Dropout, Dropping
from cptjax.loss import LossSums, cross_entropy, measure
from cptjax.masks import document_bounds
from cptjax.model import Encoder, encode
from cptjax.objectives import Objective, Targets, Vocabulary, draw, select
from cptjax.optim import add_decay, apply_mask
from cptjax.sharding import LANES, gather_tables, is_stacked, parameter_path, pin_parameters

MOST_LOGITS = 2**25  # that exist at once on a device: 128 MiB
CHUNK_TOKENS = 512  # positions whose logits exist at once on a device, where the vocabulary allows
EVALUATION = 2**31 - 1  # folded into the key of evaluation draws, no optimiser step reaches it
DROPOUT = 2**31 - 1  # folded into the key of a step for what is dropped, no row reaches it


def chunk_positions(rows: int, vocab_size: int) -> int:
    """Positions of each of a device's `rows` whose logits exist at once."""
    tokens = min(CHUNK_TOKENS, max(1, MOST_LOGITS // vocab_size // LANES) * LANES)
    return max(1, tokens // rows)


class TrainState(NamedTuple):
    """Everything a run needs to go on, besides its config. `step` counts optimiser steps over all phases."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, tx: optax.GradientTransformationExtraArgs) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params))


def predictions(
    model: Encoder,
    objective: Objective,
    params: Any,
    targets: Targets,
    segment_BL: jax.Array,
    dropping: Dropping | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features of the predicting positions [B, S, D], the decoder's table [V, D] and bias [V]: what a loss is made
    of."""
    variables = {"params": params}
    encoded = encode(model, params, targets.input_BL, segment_BL, mask_mode=objective.mask_mode, dropping=dropping)
    selected_BSD = select(encoded.hidden_BLD, targets.position_BS)
    decoder: Any = model.apply(variables, method="decoder")
    table_VD, bias_V = decoder
    feature_BSD: Any = model.apply(variables, selected_BSD, method="head")
    with jax.named_scope("loss"):
        return feature_BSD, table_VD.astype(jnp.dtype(model.precision.compute)), bias_V


def loss_and_counts(
    params: Any,
    token_BL: jax.Array,
    segment_BL: jax.Array,
    row_B: jax.Array,
    key: jax.Array,
    *,
    model: Encoder,
    objective: Objective,
    vocabulary: Vocabulary,
    chunk: int,
    dropout: Dropout = Dropout(),  # noqa: B008 (frozen)
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Summed loss of some rows, with sums over their tokens: targets, real tokens, chosen positions that
    overflowed the budget, and keys (tokens of the own document, summed over tokens)."""
    targets = draw(objective, token_BL, segment_BL, row_B, key, vocabulary)
    dropping = None
    if dropout.shares:
        row_keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, DROPOUT)))(row_B)
        dropping = Dropping(dropout, row_keys)
    features = predictions(model, objective, params, targets, segment_BL, dropping)
    with jax.named_scope("loss"):
        loss: Any = cross_entropy(*features, targets.target_BS, targets.weight_BS, chunk)
    with jax.named_scope("counts"):
        real_BL = segment_BL > 0
        start_BL, end_BL = document_bounds(segment_BL)
        return loss, {
            "targets": targets.weight_BS.sum(),
            "tokens": real_BL.sum(dtype=jnp.float32),
            "overflow": targets.overflow,
            "keys": jnp.where(real_BL, end_BL - start_BL, 0).sum(dtype=jnp.float32),
        }


def _micro_batches(x_B, count: int):
    """[B, ...] -> [M, B / M, ...], taking every M-th row so that rows stay on their devices."""
    return x_B.reshape(-1, count, *x_B.shape[1:]).swapaxes(0, 1)


def summed_gradients(loss_fn: Callable, params, batch: dict, key, micro_batches: int):
    """Gradients and sums over the whole global batch, one of its `micro_batches` after the other; `batch` holds
    token_BL and segment_BL, `loss_fn` is `loss_and_counts` of an objective."""
    with jax.named_scope("draw"):
        rows = {**batch, "row_B": jnp.arange(batch["token_BL"].shape[0], dtype=jnp.int32)}
    gradient = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients_of(micro):
        (loss, counts), grads = gradient(params, micro["token_BL"], micro["segment_BL"], micro["row_B"], key)
        return pin_parameters(grads), {"loss": loss, **counts}

    if micro_batches == 1:
        return gradients_of(rows)

    def added(sums, micro):
        new = gradients_of(micro)
        with jax.named_scope("accumulate"):
            return jax.tree.map(jnp.add, sums, new), None

    with jax.named_scope("accumulate"):
        micros = {name: _micro_batches(x, micro_batches) for name, x in rows.items()}
        shapes = jax.eval_shape(gradients_of, {name: x[0] for name, x in micros.items()})
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(added, zeros, micros)[0]


def batch_key(seed: int, batch: jax.Array) -> jax.Array:
    """What is drawn in a batch follows from this key: from the run's seed and the batch's number in its text, so that a
    run branched off another one masks each batch as that one would have."""
    return jax.random.fold_in(jax.random.key(seed), batch)


def mean_gradients(
    state: TrainState,
    batch: dict,
    *,
    loss_fn: Callable,
    trains: Any,
    seed: int,
    micro_batches: int,
    first_batch: int = 0,
) -> tuple[Any, dict[str, jax.Array], jax.Array]:
    """The gradient of the mean loss over the global batch's targets, 0 for what is frozen; sums over that batch; how
    many targets it has, at least 1. `trains` is the freeze mask of `optim.freeze_mask`, `first_batch` the number of the
    batch that step 0 reads."""
    with jax.named_scope("draw"):
        key = batch_key(seed, first_batch + state.step)
    with jax.named_scope("gather"):
        params = gather_tables(state.params)
    grads, sums = summed_gradients(loss_fn, params, batch, key, micro_batches)
    with jax.named_scope("optimiser"):
        targets = jnp.maximum(sums["targets"], 1.0)
        return apply_mask(trains, jax.tree.map(lambda g: g / targets, grads)), sums, targets


def train_step(
    state: TrainState,
    batch: dict,
    *,
    tx,
    rate_fn,
    decay: float,
    skip_steps: tuple[int, ...] = (),
    trains: Any,
    **of_loss: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update: mean loss over the global batch's targets, whatever devices and micro-batches hold them.

    `rate_fn` gives the learning rate of a step, `decay` what `optim.add_decay` takes; `trains` and `of_loss` are what
    `mean_gradients` takes. A step whose loss or gradient is not finite, and each of `skip_steps`, is counted and
    changes nothing else: its metric `skipped` is 1.
    """
    grads, sums, targets = mean_gradients(state, batch, trains=trains, **of_loss)
    with jax.named_scope("optimiser"):
        rate = rate_fn(state.step)
        directions, opt_state = tx.update(grads, state.opt_state, state.params, trains=trains)
        directions = add_decay(directions, state.params, decay)
        updates = apply_mask(trains, jax.tree.map(lambda d: -rate * d, directions))
        norm = optax.tree.norm(grads)
        taken = jnp.isfinite(norm) & jnp.isfinite(sums["loss"]) & (state.step != jnp.array(skip_steps, jnp.int32)).all()
        after, before = (optax.apply_updates(state.params, updates), opt_state), (state.params, state.opt_state)
        new = TrainState(state.step + 1, *jax.tree.map(partial(jnp.where, taken), after, before))
    with jax.named_scope("counts"):
        metrics = {"loss": sums["loss"] / targets, "learning_rate": rate, "grad_norm": norm, "skipped": 1.0 - taken}
        return new, {**sums, **metrics}


def gradient_norms(state: TrainState, batch: dict, *, parts: Any, **of_loss: Any) -> dict[str, jax.Array]:
    """The norm of the gradient of each part of the model, before clipping: their squares add up to that of `grad_norm`.

    `parts` is a tree like the parameters with the names of each leaf's parts, one for each layer of a stack; `of_loss`
    is what `mean_gradients` takes.
    """
    grads, _, _ = mean_gradients(state, batch, **of_loss)
    squares: dict[str, jax.Array] = defaultdict(lambda: jnp.zeros(()))

    def add(path, grad, names):
        layers = is_stacked(parameter_path(path))
        for name, square in zip(names, jnp.square(grad).sum(tuple(range(layers, grad.ndim))).reshape(-1), strict=True):
            squares[name] += square

    with jax.named_scope("counts"):
        jax.tree_util.tree_map_with_path(add, grads, parts)
        return {name: jnp.sqrt(square) for name, square in squares.items()}


def eval_step(
    params, batch: dict, index: jax.Array, *, model, objective: Objective, vocabulary: Vocabulary, seed: int, chunk: int
) -> LossSums:
    """Loss and accuracy sums of held-out batch `index`; a row's draw is the same at every
    evaluation and for every size of batch."""
    rows = batch["token_BL"].shape[0]
    with jax.named_scope("draw"):
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        row_B = index * rows + jnp.arange(rows, dtype=jnp.int32)
    targets = draw(objective, batch["token_BL"], batch["segment_BL"], row_B, key, vocabulary)
    with jax.named_scope("gather"):
        params = gather_tables(params)
    features = predictions(model, objective, params, targets, batch["segment_BL"])
    with jax.named_scope("loss"):
        return measure(*features, targets.target_BS, targets.weight_BS, chunk)


def fill_step(params, batch: dict, *, model, size: int, most: int) -> tuple[jax.Array, jax.Array]:
    """The `most` likeliest of the ids below `size` at position_BS of rows that are read on both sides, whatever the
    objective, and their probabilities: two arrays [S, B, N], likeliest first."""
    with jax.named_scope("gather"):
        params = gather_tables(params)
    hidden_BLD = encode(model, params, batch["token_BL"], batch["segment_BL"], mask_mode="bidirectional").hidden_BLD

    def likeliest(feature_BD):
        logits: Any = model.apply({"params": params}, feature_BD[:, None], method="logits")
        share_BN, token_BN = jax.lax.top_k(jax.nn.softmax(logits[:, 0])[:, :size], most)
        return token_BN, share_BN

    selected_BSD = select(hidden_BLD, batch["position_BS"])
    return jax.lax.map(likeliest, selected_BSD.swapaxes(0, 1))  # of one position a row at a time there are logits
