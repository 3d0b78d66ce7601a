"""Attention under an interval mask, walked block by block: what `reference.py` says, without its [L, L] scores.

B rows, L queries, M keys, H heads, K head width; T tiles of queries. Softmax is always float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cptjax.attention.reference import MASKED
from cptjax.masks import MaskSpec, key_interval
from cptjax.ops import SAVED, differentiable
from cptjax.sharding import LANES, device_rows

QUERY_BLOCK = 512  # queries of a whole-document layer handled at once, at most
MOST_SCORES = 2**26  # that exist at once on a device: 256 MiB
MIN_MARGIN = 8  # smaller tiles only add overhead


def attend_blockwise(
    q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, spec: MaskSpec, segment_BL: jax.Array
) -> jax.Array:
    """Exact attention without the [L, L] scores, forward or backward.

    Windows cost O(L * window): a block of queries meets its own keys and a margin.
    Whole documents are walked in blocks of queries against all keys. Both keep only the output and
    the log-sum-exp for the backward pass (arXiv:2112.05682, arXiv:2205.14135).
    """
    num_tokens = q_BLHK.shape[1]
    if spec.window is None:
        block = query_block(device_rows(q_BLHK.shape[0]), q_BLHK.shape[2], num_tokens)
    else:
        block = 2 * max(spec.window, MIN_MARGIN)
    padding = -num_tokens % block
    start_BL, end_BL = (jnp.pad(x_BL, ((0, 0), (0, padding))) for x_BL in key_interval(spec, segment_BL))

    def heads_first(x_BLHK):
        return jnp.pad(x_BLHK.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    q_BHLK = heads_first(q_BLHK * jnp.asarray(q_BLHK.shape[-1] ** -0.5, q_BLHK.dtype))
    walk = differentiable(_whole_document if spec.window is None else _window)
    out_BHLK = walk(q_BHLK, heads_first(k_BLHK), heads_first(v_BLHK), start_BL, end_BL, block)
    return out_BHLK[:, :, :num_tokens].swapaxes(1, 2)


def query_block(rows: int, heads: int, num_tokens: int) -> int:
    """Queries of a whole-document layer that a device with so many rows handles at once: it bounds the scores."""
    most = MOST_SCORES // (rows * heads * num_tokens)
    return min(QUERY_BLOCK, num_tokens, max(LANES, most // LANES * LANES))


# One tile: some queries [..., L, K] against some keys [..., M, K] under a mask [..., L, M]. The gradients
# of keys and values come out as [..., K, M]: XLA's CPU backend takes half as long for that product.


def _flip(x):
    return x.swapaxes(-1, -2)


def _tile_forward(q, k, v, mask):
    scores = jnp.einsum("...lk,...km->...lm", q, _flip(k), preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, MASKED)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("...lm,...mk->...lk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(q.dtype), top + jnp.log(total)


def _tile_backward(q, k, v, mask, out, logsumexp, d_out):
    scores = jnp.einsum("...lk,...km->...lm", q, _flip(k), preferred_element_type=jnp.float32)
    probs = jnp.exp(jnp.where(mask, scores - logsumexp, MASKED))  # masked before: exp may give inf, its gradient nan
    d_v_KM = jnp.einsum("...kl,...lm->...km", _flip(d_out), probs.astype(v.dtype), preferred_element_type=jnp.float32)
    d_probs = jnp.einsum("...lk,...km->...lm", d_out, _flip(v), preferred_element_type=jnp.float32)
    row_sum = (out * d_out).astype(jnp.float32).sum(axis=-1, keepdims=True)
    d_scores = (probs * (d_probs - row_sum)).astype(q.dtype)
    d_q = jnp.einsum("...lm,...mk->...lk", d_scores, k)
    d_k_KM = jnp.einsum("...kl,...lm->...km", _flip(q), d_scores, preferred_element_type=jnp.float32)
    return d_q, d_k_KM, d_v_KM


# Whole documents: scan over blocks of queries, all keys each time.


def _query_blocks(x_BHLK, block: int):
    """[B, H, L, K] -> [T, B, H, block, K]"""
    rows, heads, num_tokens, width = x_BHLK.shape
    return jnp.moveaxis(x_BHLK.reshape(rows, heads, num_tokens // block, block, width), 2, 0)


def _join_blocks(x_TBHLK):
    blocks, rows, heads, block, width = x_TBHLK.shape
    return jnp.moveaxis(x_TBHLK, 0, 2).reshape(rows, heads, blocks * block, width)


def _interval_mask(start_BL, end_BL, num_keys: int):
    """[B, L] intervals -> [B, 1, L, M] booleans."""
    key_M = jnp.arange(num_keys, dtype=jnp.int32)[None, None, None]
    return (start_BL[:, None, :, None] <= key_M) & (key_M < end_BL[:, None, :, None])


def _interval_blocks(bound_BL, block: int):
    return bound_BL.reshape(bound_BL.shape[0], -1, block).swapaxes(0, 1)  # [T, B, block]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _whole_document(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block: int):
    return _whole_document_forward(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block)[0]


def _whole_document_forward(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block: int):
    # The masks must seem to depend on the layer: else the scan over layers makes all of them beforehand, L x L.
    q_BHLK, start_BL, end_BL = jax.lax.optimization_barrier((q_BHLK, start_BL, end_BL))

    def one_block(_, inputs):
        q, start, end = inputs
        return None, _tile_forward(q, k_BHLK, v_BHLK, _interval_mask(start, end, k_BHLK.shape[2]))

    blocks = (_query_blocks(q_BHLK, block), _interval_blocks(start_BL, block), _interval_blocks(end_BL, block))
    _, (out_TBHLK, logsumexp_TBHL1) = jax.lax.scan(one_block, None, blocks)
    out_BHLK, logsumexp_TBHL1 = checkpoint_name((_join_blocks(out_TBHLK), logsumexp_TBHL1), SAVED)
    return out_BHLK, (q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, out_BHLK, logsumexp_TBHL1)


def _whole_document_backward(block: int, saved, d_out_BHLK):
    q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, out_BHLK, logsumexp_TBHL1 = saved

    def one_block(carry, inputs):
        q, start, end, out, logsumexp, d_out = inputs
        mask = _interval_mask(start, end, k_BHLK.shape[2])
        d_q, *d_kv = _tile_backward(q, k_BHLK, v_BHLK, mask, out, logsumexp, d_out)
        return tuple(jnp.add(total, d) for total, d in zip(carry, d_kv, strict=True)), d_q

    blocks = (
        _query_blocks(q_BHLK, block),
        _interval_blocks(start_BL, block),
        _interval_blocks(end_BL, block),
        _query_blocks(out_BHLK, block),
        logsumexp_TBHL1,
        _query_blocks(d_out_BHLK, block),
    )
    zeros = (jnp.zeros(_flip(k_BHLK).shape, jnp.float32),) * 2
    d_kv_BHKL, d_q_TBHLK = jax.lax.scan(one_block, zeros, blocks)
    return _join_blocks(d_q_TBHLK), *(_flip(d).astype(k_BHLK.dtype) for d in d_kv_BHKL), None, None


_whole_document.defvjp(_whole_document_forward, _whole_document_backward)


# Windows: a block of queries, twice as long as the margin, meets the keys from a margin before it to a
# margin after it: two blocks of the keys shifted by the margin.


def _blocks(x_BHLK, block: int):
    """[B, H, L, K] -> [B, H, T, block, K]"""
    rows, heads, num_tokens, width = x_BHLK.shape
    return x_BHLK.reshape(rows, heads, num_tokens // block, block, width)


def _with_margins(x_BHLK, block: int):
    """Each block with half a block on both sides (zeros at the ends): [B, H, T, 2 * block, K]"""
    half = block // 2
    shifted = _blocks(jnp.pad(x_BHLK, ((0, 0), (0, 0), (half, half), (0, 0))), block)
    return jnp.concatenate([shifted[:, :, :-1], shifted[:, :, 1:]], axis=3)


def _sum_margins(d_BHTKM, block: int):
    """Transpose of `_with_margins`, from [B, H, T, K, 2 * block] to [B, H, L, K]: every key collects what its
    two readers sent it."""
    first, second = jnp.split(d_BHTKM, 2, axis=-1)
    before, after = (((0, 0), (0, 0), edge, (0, 0), (0, 0)) for edge in ((0, 1), (1, 0)))
    total = _flip(jnp.pad(first, before) + jnp.pad(second, after))
    total = total.reshape(*total.shape[:2], -1, total.shape[-1])
    return total[:, :, block // 2 : -(block // 2)]


def _window_mask(start_BL, end_BL, block: int):
    """[B, 1, T, block, 2 * block]"""
    start, end = (bound.reshape(bound.shape[0], 1, -1, block, 1) for bound in (start_BL, end_BL))
    first_key_T = jnp.arange(start.shape[2], dtype=jnp.int32) * block - block // 2
    key_TM = first_key_T[:, None] + jnp.arange(2 * block, dtype=jnp.int32)[None]
    key_11T1M = key_TM[None, None, :, None]
    return (start <= key_11T1M) & (key_11T1M < end)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _window(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block: int):
    return _window_forward(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block)[0]


def _window_forward(q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, block: int):
    out_BHTLK, logsumexp = _tile_forward(
        _blocks(q_BHLK, block),
        _with_margins(k_BHLK, block),
        _with_margins(v_BHLK, block),
        _window_mask(start_BL, end_BL, block),
    )
    out_BHLK, logsumexp = checkpoint_name((out_BHTLK.reshape(q_BHLK.shape), logsumexp), SAVED)
    return out_BHLK, (q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, out_BHLK, logsumexp)


def _window_backward(block: int, saved, d_out_BHLK):
    q_BHLK, k_BHLK, v_BHLK, start_BL, end_BL, out_BHLK, logsumexp = saved
    d_q, *d_kv = _tile_backward(
        _blocks(q_BHLK, block),
        _with_margins(k_BHLK, block),
        _with_margins(v_BHLK, block),
        _window_mask(start_BL, end_BL, block),
        _blocks(out_BHLK, block),
        logsumexp,
        _blocks(d_out_BHLK, block),
    )
    return d_q.reshape(q_BHLK.shape), *(_sum_margins(d, block).astype(k_BHLK.dtype) for d in d_kv), None, None


_window.defvjp(_window_forward, _window_backward)
