"""What walking block by block holds in memory; that it is right, test_backends.py shows of every backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention.blockwise import MOST_SCORES, QUERY_BLOCK, attend_blockwise, query_block
from cptjax.attention.reference import attend_reference
from cptjax.masks import MaskMode, MaskSpec
from cptjax.ops import forward_mode
from tests.conftest import as_a_user_would, packed


@as_a_user_would()
def test_window_scores_grow_linearly_with_length():
    """Backward too: twice the tokens, twice the memory, not four times."""

    def temporary(tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 1, 16), jnp.float32)
        segment = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
        spec = MaskSpec(MaskMode.BIDIRECTIONAL, 64)
        gradient = jax.grad(lambda q, k, v, s: attend_blockwise(q, k, v, spec, s).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(x, x, x, segment).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8192) < 2.2 * temporary(4096)


def test_many_rows_make_few_scores_at_once():
    # Broken by: the block not made of LANES, or larger than the row.
    assert query_block(1, 12, 8192) == QUERY_BLOCK and query_block(1, 12, 60) == 60
    blocks = [query_block(rows, 12, 8192) for rows in (2, 4, 5)]
    assert blocks == [256, 128, 128]
    assert all(rows * 12 * 8192 * block <= MOST_SCORES for rows, block in zip((2, 4, 5), blocks, strict=True))


@pytest.mark.parametrize("window", [None, 3])
def test_second_derivatives_are_those_of_the_reference(window):
    """In both orders, and forward alone; the row is no multiple of a block, so that some queries read nothing."""
    # Broken by: the mask put on exp(scores - logsumexp) in _tile_backward; `differentiable` left out.
    spec, segment_BL = MaskSpec(MaskMode.CAUSAL, window), packed(7, 4, total=13)[None]
    x_BLHK, d_BLHK = jax.random.normal(jax.random.key(0), (2, 1, 13, 2, 4))

    def loss(attend, x_BLHK):
        return (attend(x_BLHK, x_BLHK + 1, jnp.sin(x_BLHK), spec, segment_BL) ** 3).sum()

    @partial(jax.jit, static_argnums=(0, 1))
    def derivatives(attend, forward, x_BLHK):
        gradient = jax.grad(lambda x: loss(attend, x))
        over = jax.jvp(gradient, (x_BLHK,), (d_BLHK,))[1], jax.grad(lambda x: (gradient(x) * d_BLHK).sum())(x_BLHK)
        with forward_mode(forward):
            return *over, jax.jvp(lambda x: loss(attend, x), (x_BLHK,), (d_BLHK,))[1]

    results = (derivatives(*given, x_BLHK) for given in ((attend_blockwise, True), (attend_reference, False)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * jnp.abs(theirs).max())
