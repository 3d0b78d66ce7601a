"""The operations of a layer are what they are called, gradients included."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.ops import ACTIVATIONS, gelu, layer_norm

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_layer_norm_backward_equals_automatic_differentiation():
    x_ND = jax.random.normal(jax.random.key(0), (6, 16)) * 3 + 1
    scale_D = jnp.linspace(0.5, 2.0, 16)

    def plain(x_ND, scale_D):
        centred = x_ND - x_ND.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * scale_D[None]

    pairs = [jax.vjp(f, x_ND, scale_D) for f in (lambda x, s: layer_norm(x, s, 1e-5), plain)]
    np.testing.assert_allclose(pairs[0][0], pairs[1][0], atol=1e-6)
    for ours, theirs in zip(*(pull(jnp.cos(x_ND)) for _, pull in pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gelu_is_exact_and_so_is_its_gradient():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), expected, atol=1e-6)


HALF_ULP = 2.0**-8  # of bfloat16, and a little, relative


def _cdf(x):
    return 0.5 * np.vectorize(math.erfc)(-x * math.sqrt(0.5))


EXACT = {  # value and slope, in float64
    "gelu": lambda x: (x * _cdf(x), _cdf(x) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)),
    "relu": lambda x: (np.maximum(x, 0), (x > 0).astype(float)),
    "silu": lambda x: (x / (1 + np.exp(-x)), (1 + x / (1 + np.exp(x))) / (1 + np.exp(-x))),
}


def test_activations_in_bfloat16_round_once():
    # Broken by: the activation itself in place of _in_float32.
    positive = jax.lax.bitcast_convert_type(jnp.arange(0x3C80, 0x4060, dtype=jnp.uint16), jnp.bfloat16)  # 2^-6 to 3.5
    x = jnp.concatenate([-positive, positive])
    assert ACTIVATIONS.keys() == EXACT.keys()
    for name, activation in ACTIVATIONS.items():
        value, pull = jax.vjp(activation, x)
        found = (value, *pull(jnp.ones_like(x)))
        for ours, exact in zip(found, EXACT[name](np.asarray(x, np.float64)), strict=True):
            assert ours.dtype == jnp.bfloat16
            error = np.abs(np.asarray(ours, np.float64) - exact) / np.maximum(np.abs(exact), 1e-30)
            assert error.max() <= HALF_ULP, (name, float(x[error.argmax()]), error.max())
