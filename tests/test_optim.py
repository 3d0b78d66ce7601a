"""Schedules exact at their ends; Composer's AdamW written out; freezing by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cptjax.model import parameter_names
from cptjax.optim import AdamW, apply_mask, freeze_mask, make_optimizer
from cptjax.schedules import Schedule, learning_rate, num_steps, phase_bounds


def rate(schedule, step, total=1000, tokens_per_step=10):
    return float(learning_rate(schedule, jnp.int32(step), total, tokens_per_step))


def test_warm_up_is_linear_and_then_constant():
    schedule = Schedule(2e-4, warmup_tokens=1000)
    assert [rate(schedule, step) for step in (0, 50, 100, 999)] == pytest.approx([0, 1e-4, 2e-4, 2e-4])


def test_one_minus_sqrt_is_exact_at_both_ends():
    schedule = Schedule(2e-4, shape="one_minus_sqrt", final_ratio=0.1)
    assert rate(schedule, 0) == pytest.approx(2e-4, rel=1e-6)
    assert rate(schedule, 250) == pytest.approx(2e-4 * (0.1 + 0.9 * 0.5), rel=1e-6)
    assert rate(schedule, 1000) == pytest.approx(2e-5, rel=1e-6)
    assert rate(schedule, 5000) == pytest.approx(2e-5, rel=1e-6)


def test_warm_up_then_decay_meets_at_the_peak():
    schedule = Schedule(1.0, warmup_tokens=1000, shape="one_minus_sqrt", final_ratio=0.0)
    assert rate(schedule, 100) == pytest.approx(1.0)
    assert rate(schedule, 1000) == pytest.approx(0.0, abs=1e-7)


def test_phases_follow_one_another():
    assert phase_bounds((100, 51, 1), 10) == ((0, 10), (10, 15), (15, 16))
    assert num_steps(1, 10**9) == 1


def test_adamw_is_composers():
    """Composer: shrink by (rate / peak) * decay, then Adam with eps outside the root."""
    peak, optimizer = 2e-2, AdamW(weight_decay=1e-1, b1=0.9, b2=0.98, eps=1e-6, clip_norm=None)
    params = {"Wi": jnp.array([[1.0, -2.0]]), "norm": {"scale": jnp.array([[3.0]])}, "bias": jnp.array([0.5])}
    tx = make_optimizer(optimizer, peak)
    state, expected = tx.init(params), jax.tree.map(np.array, params)
    moments = jax.tree.map(lambda x: (np.zeros_like(x), np.zeros_like(x)), expected)
    for step in range(1, 4):
        rate = peak * step / 4
        gradient = jax.tree.map(lambda x, step=step: jnp.cos(x * step), params)
        direction, state = tx.update(gradient, state, params)
        params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, direction)

        def composer(p, g, m, decay, step=step, rate=rate):
            p = p * (1 - rate / peak * decay)
            m[0][...] = 0.9 * m[0] + 0.1 * g
            m[1][...] = 0.98 * m[1] + 0.02 * g * g
            denominator = np.sqrt(m[1]) / np.sqrt(1 - 0.98**step) + 1e-6
            return p - rate / (1 - 0.9**step) * m[0] / denominator

        gradient = jax.tree.map(np.array, gradient)
        expected = {
            "Wi": composer(expected["Wi"], gradient["Wi"], moments["Wi"], 0.1),
            "norm": {
                "scale": composer(expected["norm"]["scale"], gradient["norm"]["scale"], moments["norm"]["scale"], 0)
            },
            "bias": composer(expected["bias"], gradient["bias"], moments["bias"], 0),
        }
        for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_clipping_bounds_what_adam_sees():
    tx = make_optimizer(AdamW(clip_norm=1.0), 1.0)
    params = {"Wi": jnp.ones((2, 2))}
    _, state = tx.update({"Wi": jnp.full((2, 2), 100.0)}, tx.init(params), params)
    assert float(optax.tree.norm(state[1].mu)) == pytest.approx(0.1, rel=1e-5)


@pytest.fixture
def names(config, params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: tuple(parameter_names(config, tuple(entry.key for entry in path))), params
    )


def test_freezing_reaches_single_layers_of_a_stack(params, names):
    trains = freeze_mask(names, ("layers/[0-2]/", "embeddings/tok"))
    ones = apply_mask(trains, jax.tree.map(jnp.ones_like, params))
    assert not ones["layer_0"]["mlp"]["Wi"].any() and not ones["embeddings"]["tok_embeddings"].any()
    assert ones["blocks"]["l0"]["mlp"]["Wi"].mean((1, 2, 3)).tolist() == [0, 1]  # layers 1 and 4
    assert ones["blocks"]["l2"]["attn_norm"]["scale"].mean(1).tolist() == [1, 1]  # layers 3 and 6
    assert ones["embeddings"]["norm"]["scale"].all() and ones["head"]["dense"].all()


def test_a_pattern_that_matches_nothing_is_an_error(names):
    with pytest.raises(ValueError, match=r"match no parameter: \['embd'\]"):
        freeze_mask(names, ("embd", "layers/1/"))
