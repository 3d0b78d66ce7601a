"""The loss is the textbook's, in pieces: its value, its gradients, and what an evaluation counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cptjax.loss import cross_entropy, measure
from eval.bench import loss
from eval.bench.measure import fitted

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.mark.parametrize("chunk", [3, 16, 100])
def test_chunked_loss_and_gradients_equal_the_whole(chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    feature_BSD, table_VD = jax.random.normal(keys[0], (3, 16, 8)), jax.random.normal(keys[1], (37, 8))
    bias_V = jax.random.normal(keys[2], (37,))
    target_BS = jax.random.randint(keys[3], (3, 16), 0, 37)
    weight_BS = (target_BS % 3 > 0).astype(jnp.float32)

    def whole(feature_BSD, table_VD, bias_V):
        logits = feature_BSD @ table_VD.T + bias_V[None, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, target_BS)
        return (losses * weight_BS).sum() * 0.5

    def chunked(*arguments):
        return cross_entropy(*arguments, target_BS, weight_BS, chunk) * 0.5

    arguments = (feature_BSD, table_VD, bias_V)
    expected, ours = (jax.value_and_grad(f, argnums=(0, 1, 2))(*arguments) for f in (whole, chunked))
    assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    for x, y in zip(ours[1], expected[1], strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
    sums = measure(*arguments, target_BS, weight_BS, chunk)
    best_BS = (feature_BSD @ table_VD.T + bias_V[None, None]).argmax(-1)
    assert float(sums.loss) == pytest.approx(2 * float(expected[0]), rel=1e-6)
    assert float(sums.correct) == float(jnp.where(best_BS == target_BS, weight_BS, 0.0).sum())
    assert float(sums.count) == float(weight_BS.sum())


def test_loss_memory_does_not_hold_all_logits():
    """8192 tokens x 50368 words: dense logits take 1574 MiB a copy."""
    shapes = loss.shapes(8192, 50368, 768, "float32")
    assert fitted(loss.gradient("chunked"), *shapes)[1] <= 450
