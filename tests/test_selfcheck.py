"""A backend that is wrong on the device is refused, whatever it does wrong."""

import jax
import jax.numpy as jnp
import pytest

from cptjax.attention import BACKENDS, attend_reference
from cptjax.masks import MaskMode, MaskSpec
from cptjax.selfcheck import MOST_ERROR, verify

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
    monkeypatch.setitem(BACKENDS, "broken", broken)
    with pytest.raises(ValueError, match=f"is wrong on a cpu under MaskSpec.*{says}"):
        verify("broken", spec, 2, 8, "float32")
