"""What walking block by block holds in memory; that it is right, test_backends.py shows of every backend."""

import jax
import jax.numpy as jnp

from cptjax.attention.blockwise import MOST_SCORES, QUERY_BLOCK, attend_blockwise, query_block
from cptjax.masks import MaskMode, MaskSpec
from tests.conftest import as_a_user_would


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
