"""The programs of a fine-tuning, each made for many runs at once: their parameters, optimiser, texts and draws have a
leading axis of runs. A run is a seed and a learning rate.

R runs, B rows, L tokens, T texts of a step, N layers, D width.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cptjax.dropout import Dropping
from cptjax.families import encoder
from cptjax.model import Encoded, Encoder, encode, init_params
from cptjax.optim import AdamW, add_decay, make_optimizer
from cptjax.shape import ModelConfig, Precision
from cptjax.sharding import parameter_path
from cptjax.step import TrainState, init_state
from eval.heads import Batch, Head
from eval.protocols import Protocol

INIT, TEXTS = 2**31 - 1, 2**31 - 2  # folded into a run's key, no step or length of rows reaches them
ON_THE_ENCODER = ("classifier", "scorer", "head", "pooler")


class Programs(NamedTuple):
    """What a fine-tuning does, compiled when first called."""

    start: Callable  # (parameters of the model, key_R) -> state of runs
    update: Callable  # (state, batch of each run, key_R, rate_R, head_rate_R) -> state, loss_R
    scores: Callable  # (parameters of runs, one batch) -> scores of each run
    choose: Callable  # (where_R, new parameters, old ones) -> parameters


@lru_cache(maxsize=4)  # models of one shape follow each other on a task, and need not be compiled for again
def programs(config: ModelConfig, head: Head, protocol: Protocol, precision: Precision, sharding: Any) -> Programs:
    """The programs for an encoder of this shape under a head; `sharding` is that of the axis of runs, or None."""
    shape = head.shape(config)
    attention = "reference" if config.dropout.attention else "blockwise"  # the only one that drops weights of keys
    training, telling = encoder(shape, precision, attention), encoder(shape, precision)
    adamw = AdamW(protocol.weight_decay, protocol.b1, protocol.b2, protocol.eps, protocol.clip_norm)
    tx = make_optimizer(adamw)
    compiled = partial(jax.jit, out_shardings=sharding)

    def start(params: Any, key_R: jax.Array) -> TrainState:
        return jax.vmap(lambda key: init_state(start_params(telling, head, params, key), tx))(key_R)

    def update(state, batch, key, rate, head_rate):
        key = jax.random.fold_in(key, state.step)
        with precision.products():
            loss, grads = jax.value_and_grad(step_loss)(state.params, training, head, batch, key)
        directions, opt_state = tx.update(grads, state.opt_state, state.params)
        directions = add_decay(directions, state.params, protocol.weight_decay)

        def moved(path, parameter, direction):
            own = head_rate if parameter_path(path).split("/")[0] in ON_THE_ENCODER else rate
            return parameter - own * direction

        params = jax.tree_util.tree_map_with_path(moved, state.params, directions)
        return TrainState(state.step + 1, params, opt_state), loss

    def scores(params, batch):
        (rows,) = batch["rows"]
        with precision.products():
            return head.scores(telling, params, hidden_states(telling, params, rows, None), batch)

    def choose(where_R, new, old):
        return jax.tree.map(lambda a, b: jnp.where(where_R.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)

    return Programs(
        compiled(start),
        compiled(jax.vmap(update), donate_argnums=0),
        compiled(jax.vmap(scores, in_axes=(0, None))),
        compiled(choose, donate_argnums=2),
    )


def start_params(model: Encoder, head: Head, params: Any, key: jax.Array) -> dict[str, Any]:
    """A model's parameters under a head: what the model has not is drawn, as transformers' classes draw it.

    As there, ModernBERT's dense layer under a classifier is that of its language-model head, and a BERT's pooler is
    kept for texts; a RoBERTa's is not.
    """
    fresh_key, head_key = jax.random.split(jax.random.fold_in(key, INIT))
    fresh = init_params(model, fresh_key) | head.init(head_key, model.config)
    drawn = {"classifier", "scorer"} | ({"pooler"} if model.config.model_type != "bert" else set())
    return {name: params[name] if name in params and name not in drawn else fresh[name] for name in fresh}


def step_loss(params: Any, model: Encoder, head: Head, batch: Batch, key: jax.Array) -> jax.Array:
    """The mean loss of a step's texts. What is dropped is drawn from `key` and a row's length and number, of texts
    from their numbers: rows of padding change nothing."""
    shares = model.config.dropout
    hidden, dropping = [], []

    def keys(number: int, count: int) -> Dropping | None:
        if not shares.shares and not model.config.features_dropout and not head.dropout:
            return None
        own = jax.random.fold_in(key, number)
        return Dropping(shares, jax.vmap(partial(jax.random.fold_in, own))(jnp.arange(count, dtype=jnp.int32)))

    for rows in batch["rows"]:
        count, length = rows["token_BL"].shape
        dropping.append(keys(length, count))
        hidden.append(hidden_states(model, params, rows, dropping[-1]))
    return head.loss(model, params, hidden, batch, [*dropping, keys(TEXTS, len(batch["group_T"]))])


def hidden_states(model: Encoder, params: Any, rows: Batch, dropping: Dropping | None) -> jax.Array:
    """What the encoder makes of rows, [B, L, D]."""
    return encoded_rows(model, params, rows, dropping=dropping).hidden_BLD


def encoded_rows(model: Encoder, params: Any, rows: Batch, **options: Any) -> Encoded:
    """`encode` of a batch's rows of one length, with its options."""
    types = rows["token_type_BL"] if hasattr(model.config, "type_vocab_size") else None
    return encode(model, params, rows["token_BL"], rows["text_BL"], token_type_BL=types, **options)


def layer_states(model: Encoder, params: Any, rows: Batch) -> jax.Array:
    """The states of every layer of rows, [N, B, L, D], the embeddings first; the last is what the encoder returns,
    after its last norm."""
    hidden_BLD, layer_NBLD = encoded_rows(model, params, rows, keep_layers=True)
    assert layer_NBLD is not None  # it was asked for
    return jnp.concatenate([layer_NBLD[:-1], hidden_BLD[None]])
