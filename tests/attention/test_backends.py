"""Every backend against the dense reference, gradients included; and what a query truly reads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention.backends import BACKENDS, Case, attend, choose
from cptjax.attention.blockwise import QUERY_BLOCK
from cptjax.masks import MaskMode, MaskSpec
from tests.conftest import packed

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ANYWHERE = sorted(set(BACKENDS) - {"splash", "cudnn"})  # the others are kernels of one kind of device
SPECS = [MaskSpec(mode, window) for mode in MaskMode for window in (None, 3, 20, 64)]


def arrays(tokens: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (2, tokens, 3, 16), dtype) for key in keys]


@pytest.mark.parametrize("backend", sorted(set(ANYWHERE) - {"reference"}))
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tokens", [5, 200, QUERY_BLOCK + 44])
def test_backend_equals_reference_with_gradients(backend, spec, tokens):
    *qkv, d_out = arrays(tokens)
    third = tokens // 3
    segment_BL = jnp.stack([packed(third, third, total=tokens), packed(tokens, total=tokens)])

    def run(name):
        return jax.vjp(lambda q, k, v: attend(q, k, v, spec, segment_BL, backend=name), *qkv)

    (expected, pull_expected), (out, pull) = run("reference"), run(backend)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for ours, theirs in zip(pull(d_out), pull_expected(d_out), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize("backend", ANYWHERE)
def test_bfloat16_stays_near_float32(backend):
    *qkv, _ = arrays(100)
    spec, segment_BL = MaskSpec(MaskMode.BIDIRECTIONAL, 20), jnp.ones((2, 100), jnp.int32)
    expected = attend(*qkv, spec, segment_BL, backend="reference")
    out = attend(*(x.astype(jnp.bfloat16) for x in qkv), spec, segment_BL, backend=backend)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.parametrize("backend", ANYWHERE)
@pytest.mark.parametrize(
    ("spec", "first", "last"),
    [
        (MaskSpec(MaskMode.BIDIRECTIONAL, 64), 200 - 64, 200 + 64),
        (MaskSpec(MaskMode.CAUSAL, 64), 200 - 64, 200),
        (MaskSpec(MaskMode.CAUSAL), 30, 200),  # the document starts at 30
        (MaskSpec(MaskMode.BIDIRECTIONAL), 30, 369),
    ],
    ids=str,
)
def test_gradient_shows_exactly_the_keys_read(backend, spec, first, last):
    q, k, v, _ = arrays(400)
    segment_BL = jnp.stack([packed(30, 340, total=400)] * 2)  # then 30 of padding

    def of_query_200(k, v):
        return attend(q, k, v, spec, segment_BL, backend=backend)[0, 200].sum()

    for gradient in jax.grad(of_query_200, argnums=(0, 1))(k, v):
        read = np.flatnonzero(np.abs(gradient[0]).sum((1, 2)))
        assert read.tolist() == list(range(first, last + 1))
        assert not np.abs(gradient[1]).any(), "another row was read"


def test_unknown_backend_is_refused():
    q, k, v, _ = arrays(5)
    # Broken by: BACKENDS[wanted] without check_backend (KeyError).
    with pytest.raises(ValueError, match="attention is 'fast': it is one of reference, blockwise"):
        attend(q, k, v, SPECS[0], jnp.ones((2, 5), jnp.int32), backend="fast")
    with pytest.raises(ValueError, match="attention is 'fast': it is one of auto, reference, blockwise"):
        choose(CPU, "fast")


CPU, GPU, TPU = (Case(platform, 1024, 64, "bfloat16") for platform in ("cpu", "gpu", "tpu"))


@pytest.mark.parametrize(
    ("case", "wanted", "backend", "reason"),
    [
        (CPU, "auto", "blockwise", "splash needs a TPU, not a cpu; cudnn needs an NVIDIA GPU, not a cpu"),
        (GPU, "auto", "cudnn", "windows go block by block"),
        (replace(GPU, capability="12.0"), "auto", "cudnn", "windows go block by block"),
        (replace(GPU, capability="gfx942"), "auto", "blockwise", "not gfx942"),
        (GPU, "reference", "reference", "as the run says"),
        (replace(GPU, compute="float32"), "auto", "blockwise", "cudnn computes in bfloat16 or float16, not in float32"),
        (TPU, "auto", "splash", "skips the blocks"),
        (replace(TPU, num_tokens=1000), "auto", "blockwise", "rows of a multiple of 128 tokens, not 1000"),
    ],
)
def test_the_backend_is_chosen_for_a_reason(case, wanted, backend, reason):
    found, why = choose(case, wanted)
    assert found == backend and reason in why


@pytest.mark.parametrize(
    ("case", "wanted", "says"),
    [
        (GPU, "splash", "attention splash needs a TPU, not a gpu: use reference or blockwise or cudnn"),
        (replace(TPU, num_tokens=100), "splash", "rows of a multiple of 128 tokens, not 100: use reference or"),
        (TPU, "cudnn", "cudnn needs an NVIDIA GPU, not a tpu: use reference or blockwise or splash"),
        (replace(GPU, compute="float32"), "cudnn", "not in float32: use reference or blockwise"),
        (replace(GPU, capability="8.0"), "cudnn", "of compute capability 9.0 or more, not 8.0: use reference or"),
        (replace(GPU, head_dim=20), "cudnn", "heads of a multiple of 8 numbers, 256 at most, not 20: use reference or"),
    ],
)
def test_a_backend_that_cannot_work_is_refused_with_those_that_can(case, wanted, says):
    with pytest.raises(ValueError, match=says):
        choose(case, wanted)


def test_what_failed_is_not_chosen_again():
    # Broken by: `failed` not read.
    assert choose(GPU, failed={"cudnn": "is wrong"}) == ("blockwise", "splash needs a TPU, not a gpu; cudnn is wrong")
    with pytest.raises(ValueError, match="cudnn is wrong; blockwise is wrong too: use --attention reference"):
        choose(GPU, failed={"cudnn": "is wrong", "blockwise": "is wrong too"})
