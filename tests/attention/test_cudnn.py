"""What is put around cuDNN's kernel, with the reference in the kernel's place; and what the kernel is asked, in the
program made for GPUs. The kernel runs on no CPU: `cptjax/attention/check.py` compares it before a run on a GPU."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptjax.attention import backends, cudnn
from cptjax.attention.backends import attend
from cptjax.attention.reference import attend_reference
from cptjax.masks import MaskMode, MaskSpec
from cptjax.model import ModernBert, encode, init_params
from cptjax.shape import ModernBertConfig, Precision
from cptjax.sharding import Mesh, make_mesh
from tests.conftest import as_a_user_would, packed

WHOLE = [MaskSpec(mode) for mode in MaskMode]


def by_reference(q, k, v, length_BS, start_BS, *, causal):
    """What the kernel says it does; where no document is, its output is not a number."""
    token_1L1 = jnp.arange(q.shape[1])[None, :, None]
    inside_BLS = (start_BS[:, None] <= token_1L1) & (token_1L1 < (start_BS + length_BS)[:, None])
    number_BL = (inside_BLS * jnp.arange(1, length_BS.shape[1] + 1)[None, None]).sum(-1).astype(jnp.int32)
    spec = MaskSpec(MaskMode.CAUSAL if causal else MaskMode.BIDIRECTIONAL)
    return jnp.where(number_BL[..., None, None] > 0, attend_reference(q, k, v, spec, number_BL), jnp.nan)


def arrays(rows=2, tokens=40, heads=2, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (rows, tokens, heads, 8), dtype) for key in keys]


@pytest.mark.parametrize("most", [64, 3, 2])
@pytest.mark.parametrize("spec", WHOLE, ids=str)
def test_it_equals_the_reference_with_gradients(monkeypatch, spec, most):
    # Broken by: one document more than MOST_DOCUMENTS let through, the causal mask forgotten, starts off by one.
    monkeypatch.setattr(cudnn, "_kernel", by_reference)
    monkeypatch.setattr("cptjax.attention.backends.MOST_DOCUMENTS", most)
    *qkv, d_out = arrays()
    segment_BL = jnp.stack([packed(20, 1, total=40), packed(40, total=40)])  # 3 documents, padding being one
    expected, pull_expected = jax.vjp(lambda *x: attend(*x, spec, segment_BL, backend="reference"), *qkv)
    out, pull = jax.vjp(lambda *x: attend(*x, spec, segment_BL, backend="cudnn"), *qkv)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    for ours, theirs in zip(pull(d_out), pull_expected(d_out), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@as_a_user_would()
def test_devices_work_on_their_own_rows_and_heads(monkeypatch):
    # Broken by: on_own_heads left out, P(None, None, "tensor", None) in it.
    monkeypatch.setattr(cudnn, "_kernel", by_reference)
    monkeypatch.setattr("cptjax.attention.backends.MOST_DOCUMENTS", 3)  # with rows of 4 a device goes another way
    q, k, v, _ = arrays(rows=4)
    segment_BL = jnp.stack([packed(i, 30 - i, *rest, total=40) for i, rest in ((10, ()), (3, (5,)), (20, ()), (7, ()))])
    with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
        run = jax.jit(lambda *x: attend(*x, WHOLE[0], segment_BL, backend="cudnn"))
        out = run(q, k, v)
        assert "all-gather" not in run.lower(q, k, v).compile().as_text()
    assert {shard.data.shape for shard in out.addressable_shards} == {(1, 40, 1, 8)}
    np.testing.assert_allclose(out, attend(q, k, v, WHOLE[0], segment_BL, backend="reference"), atol=2e-6)


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=3))
def test_documents_cover_every_token_once(lengths):
    # Broken by: padding left out, documents with numbers that come again taken for one.
    segment_BL = jnp.asarray(np.stack([packed(*row, total=48) for row in lengths]))
    for row, length_S, start_S in zip(lengths, *cudnn.documents(segment_BL, 7), strict=True):
        whole = [*row, 48 - sum(row)] if sum(row) < 48 else row
        assert length_S.tolist() == whole + [-1] * (7 - len(whole))
        assert start_S.tolist() == np.cumsum([0, *whole[:-1]]).tolist() + [-1] * (7 - len(whole))


@pytest.fixture
def cuda(monkeypatch):
    """Programs for GPUs are made without one."""
    monkeypatch.setattr(cudnn.cudnn, "check_cudnn_version", lambda: 92000)
    monkeypatch.setattr(cudnn.cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn.cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def asked(function, *arrays) -> dict[str, list[dict]]:
    """What cuDNN is asked in the program for a GPU, by name of the call."""
    text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    calls = {}
    for name, config in re.findall(r'@__cudnn\$(\w+)\(.*?backend_config = "(.*?)"[,}]', text):
        config = json.loads(re.sub(r"\\([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), config))
        calls.setdefault(name, []).append(config["cudnn_fmha_backend_config"])
    return calls


@pytest.mark.parametrize(("spec", "mask"), [*zip(WHOLE, ["PADDING_CAUSAL", "NO_MASK"], strict=True)])
def test_the_kernel_is_asked_for_packed_documents(cuda, spec, mask):
    # Broken by: scale left out, offsets left out, the other mask.
    *qkv, d_out = arrays(dtype=jnp.bfloat16)
    segment_BL = jnp.ones((2, 40), jnp.int32)

    def both(d_out, *qkv):
        out, pull = jax.vjp(lambda *x: attend(*x, spec, segment_BL, backend="cudnn"), *qkv)
        return out, pull(d_out)

    calls = asked(both, d_out, *qkv)
    assert calls.keys() == {"fmhaSoftmax", "fmhaSoftmaxBackward"}
    for call in [*calls["fmhaSoftmax"], *calls["fmhaSoftmaxBackward"]]:
        assert call["mask_type"] == mask and call["fmha_scale"] == 8**-0.5
        assert call["max_seg_per_batch"] == backends.MOST_DOCUMENTS


@pytest.mark.parametrize(("remat", "calls"), [("none", 2), ("dots", 2), ("block", 3)])
def test_dots_keeps_what_the_kernel_gave(cuda, remat, calls):
    # Broken by: KERNELS left out of the policy, which calls the kernel forward again in the backward pass.
    config = ModernBertConfig(128, 32, 48, num_hidden_layers=7, num_attention_heads=4)
    model = ModernBert(config, Precision(), "cudnn", remat)
    shapes = jax.eval_shape(partial(init_params, ModernBert(config, Precision())), jax.random.key(0))
    token_BL = jax.ShapeDtypeStruct((1, 64), jnp.int32)

    def loss(params, token_BL):
        return encode(model, params, token_BL, jnp.ones_like(token_BL)).hidden_BLD.astype(jnp.float32).sum()

    found = asked(jax.grad(loss), shapes, token_BL)
    # Of layer 0, which is never recomputed, and of the global layer of the scanned block.
    assert (len(found["fmhaSoftmax"]), len(found["fmhaSoftmaxBackward"])) == (calls, 2)
