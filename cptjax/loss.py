"""Cross-entropy that never holds all logits: its value, its gradients, and what an evaluation counts.

Losses are sums over targets; whoever averages divides by the global count of targets.

B rows, S selected positions per row, N tokens of a chunk, D width, V vocabulary.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cptjax.ops import total
from cptjax.sharding import on_own_rows


class LossSums(NamedTuple):
    """Sums over targets, in nats and counts: divide by `count` for means."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def _chunks(x_BS, chunk: int):
    """[B, S, ...] -> [S / chunk, B * chunk, ...]; what pads the last chunk is zero, so its weight is 0.

    Each chunk takes positions of every row, so rows sharded over devices stay where they are.
    """
    rows, selected, *rest = x_BS.shape
    count = math.ceil(selected / chunk)
    even = math.ceil(selected / count)  # the largest chunk not above `chunk` that wastes least
    padded = jnp.pad(x_BS, ((0, 0), (0, count * even - selected)) + ((0, 0),) * len(rest))
    return jnp.moveaxis(padded.reshape(rows, count, even, *rest), 1, 0).reshape(count, rows * even, *rest)


def _chunk_loss(feature_ND, table_VD, bias_V, target_N):
    """Logits, the softmax's exponentials and their sums, and the targets' negative log-likelihood."""
    logits_NV = jnp.einsum("nd,vd->nv", feature_ND, table_VD, preferred_element_type=jnp.float32)
    logits_NV = logits_NV + bias_V.astype(jnp.float32)[None]
    top_N = logits_NV.max(axis=-1)
    exp_NV = jnp.exp(logits_NV - top_N[:, None])
    total_N = total(exp_NV, axis=1)
    # The target's logit again, from its own row: picking it out of logits_NV costs a copy of them.
    gold_N = jnp.einsum("nd,nd->n", feature_ND, table_VD[target_N], preferred_element_type=jnp.float32)
    gold_N = gold_N + bias_V[target_N].astype(jnp.float32)
    return logits_NV, exp_NV, total_N, top_N + jnp.log(total_N) - gold_N


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy(
    feature_BSD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array,
    target_BS: jax.Array,
    weight_BS: jax.Array,
    chunk: int,
) -> jax.Array:
    """Weighted sum of -log softmax(feature @ table.T + bias)[target], in float32 nats.

    At most `chunk` positions of each row have logits in memory at a time, and differentiation computes
    the gradients in the same pass, so logits are made once (the idea of Cut Your Losses,
    arXiv:2411.09009, and of Liger's fused linear cross-entropy, arXiv:2410.10989).
    """

    def one_chunk(loss, inputs):
        feature_ND, target_N, weight_N = inputs
        *_, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        return loss + (nll_N * weight_N).sum(), None

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    return jax.lax.scan(one_chunk, jnp.zeros((), jnp.float32), inputs)[0]


def _cross_entropy_forward(feature_BSD, table_VD, bias_V, target_BS, weight_BS, chunk: int):
    gradients = on_own_rows(partial(_loss_gradients, chunk=chunk), (True, False, False, True, True))
    (loss, d_table_VD, d_bias_V), d_feature_BSD = gradients(feature_BSD, table_VD, bias_V, target_BS, weight_BS)
    return loss, (d_feature_BSD, d_table_VD.astype(table_VD.dtype), d_bias_V.astype(bias_V.dtype))


def _loss_gradients(feature_BSD, table_VD, bias_V, target_BS, weight_BS, *, chunk: int):
    """(loss, gradients of table and bias), all float32, and the gradient of the features."""

    def one_chunk(carry, inputs):
        loss, d_table_VD, d_bias_V = carry
        feature_ND, target_N, weight_N = inputs
        _, exp_NV, total_N, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        probs_NV = exp_NV / total_N[:, None]
        hit_NV = jnp.arange(bias_V.shape[0], dtype=jnp.int32)[None] == target_N[:, None]
        d_logits_NV = jnp.where(hit_NV, probs_NV - 1.0, probs_NV) * weight_N[:, None]
        d_bias_V = d_bias_V + total(d_logits_NV, axis=0)
        d_logits_NV = d_logits_NV.astype(feature_ND.dtype)
        d_feature_ND = jnp.einsum("nv,vd->nd", d_logits_NV, table_VD)
        d_table_VD = d_table_VD + jnp.einsum("nv,nd->vd", d_logits_NV, feature_ND, preferred_element_type=jnp.float32)
        return (loss + (nll_N * weight_N).sum(), d_table_VD, d_bias_V), d_feature_ND

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    zeros = (jnp.zeros(shape, jnp.float32) for shape in ((), table_VD.shape, bias_V.shape))
    sums, d_chunks = jax.lax.scan(one_chunk, tuple(zeros), inputs)
    rows, selected, width = feature_BSD.shape
    d_chunks = jnp.moveaxis(d_chunks.reshape(d_chunks.shape[0], rows, -1, width), 0, 1)
    return sums, d_chunks.reshape(rows, -1, width)[:, :selected]


def _cross_entropy_backward(chunk: int, saved, d_loss):
    return (*((d_loss * gradient).astype(gradient.dtype) for gradient in saved), None, None)


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def measure(
    feature_BSD: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array,
    target_BS: jax.Array,
    weight_BS: jax.Array,
    chunk: int,
) -> LossSums:
    """Loss and accuracy sums without gradients: what evaluation needs, in the same bounded memory."""

    def one_chunk(sums, inputs):
        feature_ND, target_N, weight_N = inputs
        logits_NV, *_, nll_N = _chunk_loss(feature_ND, table_VD, bias_V, target_N)
        correct_N = (logits_NV.argmax(-1) == target_N).astype(jnp.float32)
        new = (nll_N * weight_N, correct_N * weight_N, weight_N)
        return LossSums(*(old + x.sum() for old, x in zip(sums, new, strict=True))), None

    inputs = tuple(_chunks(x, chunk) for x in (feature_BSD, target_BS, weight_BS))
    return jax.lax.scan(one_chunk, LossSums(*(jnp.zeros((), jnp.float32),) * 3), inputs)[0]
