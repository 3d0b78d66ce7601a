"""The operations of a layer: norm, activation, projection, lookup, rotary positions, and sums of many numbers.

Each is written as it is defined, and so it runs on accelerators until a measurement there says otherwise. Where XLA's
CPU backend is slow at that, the form it likes stands beside it; tests hold the two together, gradients included.
Some have a backward pass of their own, and those jax does not differentiate forward: for that, `forward_mode`.
Of a CPU's time the plain forms took, with their gradients: norm 1.06 times, gelu 1.16, projections in a scan 1.07
(1,024 tokens, ModernBERT-base, in turns within one run, on a busy machine of 2 cores).

B rows, L tokens per row, N tokens of all rows, D width, H heads, K head width, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from inspect import unwrap
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cptjax.sharding import on_own_rows, platform

SAVED = "saved"  # names what the backward pass needs of a forward one, for rematerialisation to keep
_FORWARD_MODE = ContextVar("forward_mode", default=False)


@contextmanager
def forward_mode(wanted: bool) -> Iterator[None]:
    """The context to trace what jax is to differentiate forward too, if that is `wanted`."""
    before = _FORWARD_MODE.set(wanted)
    try:
        yield
    finally:
        _FORWARD_MODE.reset(before)


def differentiable(operation: Callable) -> Callable[..., Any]:
    """An operation with its own backward pass; in forward mode without it, as jax.custom_vjp forbids that mode."""
    return unwrap(operation) if _FORWARD_MODE.get() else operation


def layer_norm(x_ND: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale over the last axis, [N, D] float32 (arXiv:1607.06450). Its backward
    pass keeps x only."""
    return (differentiable(_layer_norm_on_cpu) if platform() == "cpu" else _layer_norm)(x_ND, scale_D, eps)


@partial(jax.checkpoint, static_argnums=2)
def _layer_norm(x_ND, scale_D, eps: float):
    return _normalise(x_ND, eps)[0] * scale_D[None]


def _normalise(x_ND, eps: float):
    centred_ND = x_ND.astype(jnp.float32) - x_ND.astype(jnp.float32).mean(-1, keepdims=True)
    inverse_N1 = jax.lax.rsqrt(jnp.square(centred_ND).mean(-1, keepdims=True) + eps)
    return centred_ND * inverse_N1, inverse_N1


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _layer_norm_on_cpu(x_ND, scale_D, eps: float):
    return _normalise(x_ND, eps)[0] * scale_D[None]


def _layer_norm_backward(eps: float, saved, d_out_ND):
    x_ND, scale_D = saved
    normed_ND, inverse_N1 = _normalise(x_ND, eps)
    d_scale_D = total(d_out_ND * normed_ND, axis=0)
    d_normed_ND = d_out_ND * scale_D[None]
    along_N1 = (d_normed_ND * normed_ND).mean(-1, keepdims=True)
    d_x_ND = (d_normed_ND - d_normed_ND.mean(-1, keepdims=True) - normed_ND * along_N1) * inverse_N1
    return d_x_ND.astype(x_ND.dtype), d_scale_D


_layer_norm_on_cpu.defvjp(lambda *given: (unwrap(_layer_norm_on_cpu)(*given), given[:2]), _layer_norm_backward)


def total(x: jax.Array, axis: int) -> jax.Array:
    """The sum of a float32 matrix along an axis, [V] of [N, V] along axis 0.

    On a CPU as a product with ones, which names its precision: XLA makes a sum over the long axis slowly, and makes
    what is summed, such as exponentials, twice.
    """
    if platform() != "cpu":
        return x.sum(axis)
    ones = jnp.ones(x.shape[axis], x.dtype)
    factors = (ones, x) if axis == 0 else (x, ones)
    return jnp.matmul(*factors, precision=jax.lax.Precision.HIGHEST)


@partial(jax.checkpoint, static_argnums=0)
def _in_float32(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """An activation in float32, rounded once to the dtype of x, and so is its gradient: in bfloat16 every operation
    of it would round. The backward pass keeps x alone, for what is in float32 takes twice the memory."""
    return function(x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x * P(normal <= x), exact (arXiv:1606.08415)."""
    return _in_float32(_gelu_on_cpu if platform() == "cpu" else _gelu, x)


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)


@jax.custom_jvp
def _gelu_on_cpu(x):
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))  # as PyTorch computes it, and cheaper there than erfc


@_gelu_on_cpu.defjvp
def _gelu_tangent(primals, tangents):
    (x,), (d_x,) = primals, tangents
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return _gelu_on_cpu(x), (_normal_cdf(x) + x * density) * d_x


ACTIVATIONS = {"gelu": gelu, "relu": partial(_in_float32, jax.nn.relu), "silu": partial(_in_float32, jax.nn.silu)}


def project(x_ND: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """x @ w.T for each w of a stack [G, ..., D]: G arrays [N, ...], for results that need no slicing afterwards."""
    return (differentiable(_project_on_cpu) if platform() == "cpu" else _project)(x_ND, weights)


def _project(x_ND, weights):
    return tuple(jnp.einsum("nd,...d->n...", x_ND, w) for w in weights)


@jax.custom_vjp
def _project_on_cpu(x_ND, weights):
    """Its backward pass keeps the stack itself, where slices of it would be copied in every step of a scan."""
    return _project(x_ND, weights)


def _project_backward(saved, d_out):
    x_ND, weights = saved
    d_x_ND = sum(jnp.einsum("n...,...d->nd", d, w) for d, w in zip(d_out, weights, strict=True))
    return d_x_ND, jnp.stack([jnp.einsum("n...,nd->...d", d, x_ND) for d in d_out])


def _project_forward(x_ND, weights):
    return checkpoint_name(_project(x_ND, weights), SAVED), (x_ND, weights)


_project_on_cpu.defvjp(_project_forward, _project_backward)


def affine(subscripts: str, x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """einsum(x, weight) + bias, whose axes are the last of the sum's, rounded once to x's dtype, as PyTorch rounds it:
    a product that is rounded before its bias is added makes a second error, up to a fifth of all in a small model."""
    return differentiable(_affine)(subscripts, x, weight, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _affine(subscripts, x, weight, bias):
    sums = jnp.einsum(subscripts, x, weight, preferred_element_type=jnp.float32)
    return (sums + bias.astype(jnp.float32)[(None,) * (sums.ndim - bias.ndim)]).astype(x.dtype)


def _affine_forward(subscripts, x, weight, bias):
    return checkpoint_name(unwrap(_affine)(subscripts, x, weight, bias), SAVED), (x, weight, bias)


def _affine_backward(subscripts, saved, d_out):
    # The product's own transpose would multiply in float32, for that is what it made.
    x, weight, bias = saved
    d_x, d_weight = jax.vjp(partial(jnp.einsum, subscripts), x, weight)[1](d_out)
    d_bias = d_out.astype(jnp.float32).sum(range(d_out.ndim - bias.ndim))
    return d_x, d_weight, d_bias.astype(bias.dtype)


_affine.defvjp(_affine_forward, _affine_backward)


def lookup(table_VD: jax.Array, token_BL: jax.Array) -> jax.Array:
    """Rows of a table, [B, L, D]. Its gradient is added up on each device, then once over the devices of a mesh: of
    whatever platform, for left to itself the partitioner gathers what enters it."""
    return differentiable(_lookup)(table_VD, token_BL)


@jax.custom_vjp
def _lookup(table_VD, token_BL):
    return jnp.take(table_VD, token_BL, axis=0)


def _lookup_backward(saved, d_out_BLD):
    table_VD, token_BL = saved

    def add_rows(token_BL, d_out_BLD):
        return jnp.zeros(table_VD.shape, table_VD.dtype).at[token_BL].add(d_out_BLD), ()

    d_table_VD, _ = on_own_rows(add_rows, (True, True))(token_BL, d_out_BLD)
    return d_table_VD, None


_lookup.defvjp(lambda *given: (unwrap(_lookup)(*given), given), _lookup_backward)


def embedded(table_VD: jax.Array, token_BL: jax.Array) -> jax.Array:
    """Rows of a table for ids [B, L]; vectors in their place, [B, L, D], as they are."""
    return lookup(table_VD, token_BL) if token_BL.ndim == 2 else token_BL.astype(table_VD.dtype)


def rope_table(position_BL: jax.Array, theta: float, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles, each [B, L, 1, K / 2] float32 (arXiv:2104.09864)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position_BL[:, :, None, None].astype(jnp.float32) * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary positions applied, [B, L, H, K]: halves are paired (not interleaved), products in float32."""
    cosine, sine = table
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BLHK.dtype)
