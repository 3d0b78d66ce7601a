"""The operations of a layer are what they are called, gradients included."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax import ops
from cptjax.ops import ACTIVATIONS, affine, forward_mode, gelu, layer_norm, lookup, project, total

CPU_AND_OTHERS = ("cpu", "tpu")

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


# ---- the definition and the form a CPU likes

X_ND = jax.random.normal(jax.random.key(0), (6, 16)) * 3 + 1
OPERATIONS: dict[str, tuple[Callable, tuple[jax.Array, ...]]] = {
    "layer_norm": (lambda x_ND, scale_D: layer_norm(x_ND, scale_D, 1e-5), (X_ND, jnp.linspace(0.5, 2.0, 16))),
    "gelu": (gelu, (X_ND,)),
    "project": (project, (X_ND, jax.random.normal(jax.random.key(1), (3, 4, 2, 16)))),
    "sum over tokens": (lambda x_ND: total(x_ND, axis=0), (X_ND,)),
    "sum of a token": (lambda x_ND: total(x_ND, axis=1), (X_ND,)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_form_of_a_cpu_agrees_with_the_definition(name, monkeypatch):
    # Broken by: a term left out of any backward pass, `axis` of total not read.
    operation, arguments = OPERATIONS[name]
    outcomes, programs = [], []
    for where in CPU_AND_OTHERS:
        monkeypatch.setattr(ops, "platform", lambda where=where: where)
        out, pull = jax.vjp(lambda *x: operation(*x), *arguments)
        outcomes.append(jax.tree.leaves((out, pull(jax.tree.map(jnp.cos, out)))))
        programs.append(str(jax.make_jaxpr(lambda *x: operation(*x))(*arguments)))
    assert programs[0] != programs[1], "one form only"
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * abs(theirs).max())


TOKEN_BL = jnp.array([[2, 0, 2], [4, 1, 1]])
OWN = {  # those with a backward pass of their own
    "layer_norm": OPERATIONS["layer_norm"],
    "project": OPERATIONS["project"],
    "affine": (partial(affine, "nd,fd->nf"), (X_ND, jnp.linspace(-1, 1, 64).reshape(4, 16), jnp.linspace(0, 1, 4))),
    "lookup": (lambda table_VD: lookup(table_VD, TOKEN_BL), (X_ND,)),
}


@pytest.mark.parametrize("name", OWN)
def test_an_operation_is_differentiated_forward_where_that_is_asked_for(name):
    # Broken by: `differentiable` left out of any operation; one in a forward rule that calls itself.
    operation, arguments = OWN[name]
    tangents = tuple(jnp.cos(x) for x in arguments)

    def slope(*x):
        return jax.jvp(jax.grad(lambda *x: sum((y**2).sum() for y in jax.tree.leaves(operation(*x)))), x, tangents)[1]

    twice = slope(*arguments)  # a gradient's own slope needs no asking
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(operation, arguments, tangents)
    out, pull = jax.vjp(operation, *arguments)
    with forward_mode(True):
        _, moved = jax.jvp(operation, arguments, tangents)
        np.testing.assert_allclose(slope(*arguments), twice, atol=1e-4)
    cotangents = jax.tree.map(jnp.sin, out)
    there, back = ((moved, cotangents), (tangents, pull(cotangents)))
    sums = [sum((a * b).sum() for a, b in zip(*map(jax.tree.leaves, pair), strict=True)) for pair in (there, back)]
    np.testing.assert_allclose(*sums, rtol=1e-4)


def test_a_lookup_is_take_with_its_gradient():
    # Broken by: `.set` in place of `.add` (token 2 stands there twice).
    table_VD = jax.random.normal(jax.random.key(0), (5, 4))
    pairs = [jax.vjp(lambda t, f=f: f(t, TOKEN_BL), table_VD) for f in (lookup, lambda t, i: jnp.take(t, i, axis=0))]
    assert np.array_equal(pairs[0][0], pairs[1][0])
    gradients = [pull(jnp.cos(out))[0] for out, pull in pairs]
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_a_bias_is_added_before_the_sum_is_rounded():
    # Broken by: the product in x's dtype; in float32 in the backward pass too; d_bias summed in bfloat16.
    keys = jax.random.split(jax.random.key(0), 4)
    x_ND, w_FD = (jax.random.normal(key, (96, 32)).astype(jnp.bfloat16) for key in keys[:2])
    bias_F, d_NF = jax.random.normal(keys[2], (96,)), jax.random.normal(keys[3], (96, 96)).astype(jnp.bfloat16)

    def exact(x_ND, w_FD, bias_F):
        x_ND, w_FD = (array.astype(jnp.float32) for array in (x_ND, w_FD))
        return jnp.einsum("nd,fd->nf", x_ND, w_FD, precision="highest") + bias_F[None]

    ours_NF, pull = jax.vjp(lambda *parts: affine("nd,fd->nf", *parts), x_ND, w_FD, bias_F)
    exact_NF, exact_pull = jax.vjp(exact, x_ND, w_FD, bias_F)
    assert (ours_NF == exact_NF.astype(jnp.bfloat16)).mean() > 0.999  # sums in another order may round otherwise
    ours, theirs = pull(d_NF), exact_pull(d_NF.astype(jnp.float32))
    assert [x.dtype for x in ours] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = (array.astype(jnp.float32) for array in (mine, other))
        np.testing.assert_allclose(mine, other, atol=2**-8 * jnp.abs(other).max())
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5)
    products = [line for line in str(jax.make_jaxpr(pull)(d_NF)).splitlines() if "dot_general" in line]
    assert products and not [line for line in products if ":f32" in line.split("=")[0]]
