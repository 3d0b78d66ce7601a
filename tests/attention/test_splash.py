"""The TPU kernel, run in its interpreter, against the dense reference; and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention.backends import attend
from cptjax.attention.splash import attend_splash
from cptjax.masks import MaskMode, MaskSpec
from cptjax.sharding import Mesh, make_mesh
from tests.conftest import as_a_user_would, packed

SPECS = [MaskSpec(mode, window) for mode in MaskMode for window in (None, 64)]


def arrays(rows=2, tokens=256, heads=2):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (rows, tokens, heads, 64)) for key in keys]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_kernel_equals_the_reference_with_gradients(spec):
    # Broken by: window + 1 in LocalMask, the segments left out, q not scaled.
    *qkv, d_out = arrays()
    segment_BL = jnp.stack([packed(100, 1, 99, total=256), packed(256, total=256)])
    expected, pull_expected = jax.vjp(lambda *x: attend(*x, spec, segment_BL, backend="reference"), *qkv)
    out, pull = jax.vjp(lambda *x: attend_splash(*x, spec, segment_BL, interpret=True), *qkv)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for ours, theirs in zip(pull(d_out), pull_expected(d_out), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@as_a_user_would()
def test_devices_work_on_their_own_rows_and_heads():
    # Broken by: P(None, None, "tensor", None), which would gather the rows.
    q, k, v, _ = arrays(rows=4)
    segment_BL = jnp.stack([packed(i, 256 - i, total=256) for i in (10, 60, 100, 200)])
    spec = MaskSpec(MaskMode.BIDIRECTIONAL, 64)
    with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
        run = jax.jit(lambda *x: attend_splash(*x, spec, segment_BL, interpret=True))
        out = run(q, k, v)
        assert "all-gather" not in run.lower(q, k, v).compile().as_text().replace("all-gather-start", "all-gather")
    assert {shard.data.shape for shard in out.addressable_shards} == {(1, 256, 1, 64)}
    np.testing.assert_allclose(out, attend(q, k, v, spec, segment_BL, backend="reference"), atol=2e-6)


def test_rows_that_do_not_fit_its_tiles_are_refused():
    with pytest.raises(ValueError, match="multiple of 128 tokens, not 200: use blockwise"):
        q, k, v, _ = arrays(tokens=200)
        attend(q, k, v, SPECS[0], jnp.ones((2, 200), jnp.int32), backend="splash")
