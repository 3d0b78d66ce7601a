"""A backend that is wrong on the device is refused, whatever it does wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention import check
from cptjax.attention.backends import BACKENDS
from cptjax.attention.check import MOST_ERROR, verify
from cptjax.attention.reference import attend_reference
from cptjax.attention.splash import attend_splash
from cptjax.masks import MaskMode, MaskSpec, dense_mask, document_bounds

SPECS = [MaskSpec(MaskMode.CAUSAL), MaskSpec(MaskMode.BIDIRECTIONAL, 64)]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_right_backend_is_right(spec):
    errors = verify("blockwise", spec, 2, 8, "bfloat16")
    assert errors.keys() == MOST_ERROR.keys() and all(0 < errors[what] < most for what, most in MOST_ERROR.items())


def does_not_run(q, k, v, spec, segment_BL):
    raise NotImplementedError("needs a newer chip\nand more")


def test_a_backend_that_does_not_run_is_refused_in_one_line(monkeypatch):
    # Broken by: errors other than FloatingPointError not caught in verify.
    monkeypatch.setitem(BACKENDS, "broken", does_not_run)
    with pytest.raises(ValueError, match=r"does not run on a cpu under .*\(.*\)$"):
        verify("broken", SPECS[0], 2, 8, "float32")


def leaks(q, k, v, spec, segment_BL):
    return attend_reference(q, k, v, spec, jnp.where(segment_BL == 2, 1, segment_BL))


def forgets_keys(q, k, v, spec, segment_BL):
    return attend_reference(q, jax.lax.stop_gradient(k), v, spec, segment_BL)


def divides_by_padding(q, k, v, spec, segment_BL):
    return attend_reference(q, k, v, spec, segment_BL) / (segment_BL > 0)[:, :, None, None]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(
    ("broken", "says"), [(leaks, "error of out"), (forgets_keys, "error of k 1.0e"), (divides_by_padding, "not finite")]
)
def test_a_wrong_backend_is_refused_on_the_device(monkeypatch, spec, broken, says):
    # Broken by: one document in the row, errors of the output alone, no look at padding.
    monkeypatch.setattr("cptjax.attention.check.TOKENS", 256)
    monkeypatch.setitem(BACKENDS, "broken", broken)
    with pytest.raises(ValueError, match=f"is wrong on a cpu under MaskSpec.*{says}"):
        verify("broken", spec, 2, 8, "float32")


# ---- what random numbers do not show


def scores_of(q, k, spec, segment_BL):
    scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(dense_mask(spec, segment_BL)[:, None], scores_BHLM, -1e30)


def starts_its_maximum_at_zero(q, k, v, spec, segment_BL):
    scores_BHLM = scores_of(q, k, spec, segment_BL)
    weights_BHLM = jnp.exp(scores_BHLM - jnp.maximum(scores_BHLM.max(-1, keepdims=True), 0.0))
    return jnp.einsum("bhlm,bmhk->blhk", (weights_BHLM / weights_BHLM.sum(-1, keepdims=True)).astype(v.dtype), v)


def gives_nothing_far_below_zero(q, k, v, spec, segment_BL):
    found_BH1L = jax.nn.logsumexp(scores_of(q, k, spec, segment_BL), -1)[:, :, None] > -80
    return attend_reference(q, k, v, spec, segment_BL) * found_BH1L.transpose(0, 3, 1, 2).astype(v.dtype)


def wrong_where(beyond: int, of_the_row: bool):
    """NaN gradients of q where the log-sum-exp is below -88.7 and the keys, or the row's tokens, are so many beyond
    tiles of 128: cuDNN's fault."""

    def attend(q, k, v, spec, segment_BL):
        start_BL, end_BL = document_bounds(segment_BL)
        tokens_BL = jnp.full_like(end_BL, q.shape[1]) if of_the_row else end_BL - start_BL
        far_BL1 = (jax.nn.logsumexp(scores_of(q, k, spec, segment_BL), -1) < -88.7).transpose(0, 2, 1)
        wrong_BL11 = (far_BL1 & (tokens_BL % 128 == beyond)[..., None])[..., None]

        @jax.custom_vjp
        def same(q):
            return q

        same.defvjp(lambda q: (q, None), lambda _, d_q: (jnp.where(wrong_BL11, jnp.nan, d_q),))
        return attend_reference(same(q), k, v, spec, segment_BL)

    return attend


FAULTS = {
    "maximum": (starts_its_maximum_at_zero, "not finite"),
    "nothing": (gives_nothing_far_below_zero, "error of out 1.0e"),
    "64 keys": (wrong_where(64, of_the_row=False), "not finite: the gradient of q"),
    "104 keys": (wrong_where(104, of_the_row=False), "not finite: the gradient of q"),
    "a row of half a tile": (wrong_where(64, of_the_row=True), "not finite: the gradient of q"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_is_wrong_far_below_zero_is_refused(monkeypatch, fault):
    # Broken by: deep_inputs left out of verify, DEEP = 0, documents of 128, 256 and 1024 only, rows of whole tiles.
    broken, says = FAULTS[fault]
    monkeypatch.setattr("cptjax.attention.check.TOKENS", 64)
    monkeypatch.setitem(BACKENDS, "broken", broken)
    with pytest.raises(ValueError, match=f"is wrong on a cpu under MaskSpec.*, scores near -100 .*{says}"):
        verify("broken", SPECS[0], 1, 8, "float32")


def test_scores_are_as_deep_as_said_at_every_length():
    for width, dtype in ((8, "float32"), (64, "bfloat16")):
        q, k, *_, segment_BL = check.deep_inputs(width, dtype, whole_tiles=False)
        lengths = {int(n) for row in np.asarray(segment_BL) for n in np.bincount(row)[1:]}
        assert lengths == {1, 64, 192, 1000, 1216, 1280} and segment_BL.shape[1] % 128 == 64
        own = np.asarray(dense_mask(SPECS[0], segment_BL))[:, None]
        scores = np.asarray(scores_of(q, k, SPECS[0], segment_BL))[own]
        assert abs(scores.mean() + 100) < 1 and 0.3 < scores.std() < 1.5 and scores.max() < -88.7


def test_float32_is_judged_as_float32(monkeypatch):
    # Broken by: FINER left out of _verify.
    monkeypatch.setattr("cptjax.attention.check.TOKENS", 64)
    monkeypatch.setattr("cptjax.attention.check.DEEP_LENGTHS", ((64, 8),))
    off = lambda q, k, v, *rest: attend_reference(q, k, v * jnp.asarray(1.001, v.dtype), *rest)  # noqa: E731
    monkeypatch.setitem(BACKENDS, "off", off)
    with pytest.raises(ValueError, match="is wrong .*error of out 1.0e-03"):
        verify("off", SPECS[0], 1, 8, "float32")
    assert verify("off", SPECS[0], 1, 8, "bfloat16")["out"] < 1e-2


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_kernel_of_tpus_is_right_far_below_zero(monkeypatch, spec):
    monkeypatch.setattr("cptjax.attention.check.TOKENS", 128)
    monkeypatch.setattr("cptjax.attention.check.DEEP_LENGTHS", ((64, 192),))
    monkeypatch.setitem(BACKENDS, "splash", partial(attend_splash, interpret=True))
    assert max(verify("splash", spec, 1, 64, "float32").values()) < 1e-4
