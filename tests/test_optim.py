"""Schedules exact at their ends; Composer's AdamW written out; freezing by name, and thawing as PyTorch does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cptjax.optim import AdamW, add_decay, apply_mask, freeze_mask, make_optimizer
from cptjax.schedules import Schedule, learning_rate, num_steps, phase_bounds
from cptjax.shape import parameter_names
from cptjax.step import TrainState, train_step


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


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("b1", -0.1, "b1 -0.1 and b2 0.98 must be"),
        ("b2", 1.0, "b1 0.9 and b2 1.0 must be"),
        ("weight_decay", -1e-5, "weight_decay -1e-05 must be"),
        ("eps", 0.0, "eps 0.0 above"),
        ("clip_norm", -1.0, "clip_norm -1.0 must be"),
        ("clip_norm", 0.0, "clip_norm 0.0 must be"),
    ],
)
def test_an_optimizer_that_would_climb_or_divide_by_nothing_is_refused(field, value, said):
    # Broken by: any one comparison of AdamW's left out.
    with pytest.raises(ValueError, match=f"^optimizer .*{said}"):
        AdamW(**{field: value})


def test_adamw_is_composers():
    """Composer: shrink by (rate / peak) * decay, then Adam with eps outside the root."""
    peak, optimizer = 2e-2, AdamW(weight_decay=1e-1, b1=0.9, b2=0.98, eps=1e-6, clip_norm=None)
    params = {"Wi": jnp.array([[1.0, -2.0]]), "norm": {"scale": jnp.array([[3.0]])}, "bias": jnp.array([0.5])}
    tx = make_optimizer(optimizer)
    state, expected = tx.init(params), jax.tree.map(np.array, params)
    moments = jax.tree.map(lambda x: (np.zeros_like(x), np.zeros_like(x)), expected)
    for step in range(1, 4):
        rate = peak * step / 4
        gradient = jax.tree.map(lambda x, step=step: jnp.cos(x * step), params)
        direction, state = tx.update(gradient, state, params)
        direction = add_decay(direction, params, optimizer.weight_decay / peak)
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
    tx = make_optimizer(AdamW(clip_norm=1.0))
    params = {"Wi": jnp.ones((2, 2))}
    _, state = tx.update({"Wi": jnp.full((2, 2), 100.0)}, tx.init(params), params)
    assert float(optax.tree.norm(state[1].mu)) == pytest.approx(0.1, rel=1e-5)


TORCHS = {  # leaf: (path, layer of the stack)
    "layers.0": (("layer_0", "mlp", "Wi"), None),
    "layers.1": (("blocks", "l0", "mlp", "Wi"), 0),
    "layers.2": (("blocks", "l0", "mlp", "Wi"), 1),
    "norm": (("final_norm", "scale"), None),
}


def leaf_of(tree, path, layer):
    for key in path:
        tree = tree[key]
    return np.asarray(tree if layer is None else tree[layer])


@pytest.mark.parametrize(
    "phases",
    [
        (("layers.0", "layers.2"), ()),  # frozen, then thawed
        ((), ("layers.1", "norm"), ()),  # trained, frozen, thawed
        (("layers.1",), ("layers.2", "norm"), ("layers.1", "layers.2"), ()),
    ],
)
def test_what_thaws_trains_as_in_pytorch(phases):
    """torch's AdamW, whose parameters without a gradient keep their moments and their count of steps."""
    # Broken by: one count for all parameters, or for all layers of a stack; moments of the frozen that fade.
    torch = pytest.importorskip("torch")
    peak, optimizer = 1e-2, AdamW(weight_decay=1e-3, clip_norm=0.5)
    rng = np.random.default_rng(0)

    def tree():
        Wi, scale = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (5,)))
        blocks = {"l0": {"mlp": {"Wi": rng.normal(size=(2, 4, 3)).astype(np.float32)}}}
        return {"layer_0": {"mlp": {"Wi": Wi}}, "blocks": blocks, "final_norm": {"scale": scale}}

    params = jax.tree.map(jnp.asarray, tree())
    theirs = {name: torch.nn.Parameter(torch.tensor(leaf_of(params, *where))) for name, where in TORCHS.items()}
    groups = [
        {"params": [theirs[name] for name in TORCHS if name != "norm"], "weight_decay": optimizer.weight_decay / peak},
        {"params": [theirs["norm"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=peak, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
    tx = make_optimizer(optimizer)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    for frozen in phases:
        trains = {name: np.float32(name not in frozen) for name in TORCHS}
        stacked = np.array([trains["layers.1"], trains["layers.2"]])
        mask = {"layer_0": {"mlp": {"Wi": trains["layers.0"]}}, "blocks": {"l0": {"mlp": {"Wi": stacked}}}}
        mask["final_norm"] = {"scale": trains["norm"]}
        for _ in range(3):
            grads = tree()
            options = {"tx": tx, "rate_fn": lambda step: peak, "trains": mask, "seed": 0, "micro_batches": 1}
            options["decay"] = optimizer.weight_decay / peak
            state, _ = train_step(state, BATCH, loss_fn=partial(linear_loss, grads), **options)
            for name, parameter in theirs.items():
                grad = torch.tensor(leaf_of(grads, *TORCHS[name]))
                parameter.grad = None if name in frozen else grad
            torch.nn.utils.clip_grad_norm_(theirs.values(), optimizer.clip_norm)
            adamw.step()
    for name, where in TORCHS.items():
        np.testing.assert_allclose(leaf_of(state.params, *where), theirs[name].detach(), rtol=2e-6, atol=1e-7)


BATCH = {name: jnp.zeros((1, 1), jnp.int32) for name in ("token_BL", "segment_BL")}


def linear_loss(grads, params, *_):
    """A loss of one target whose gradients are those given."""
    return optax.tree.vdot(grads, params), {"targets": jnp.float32(1.0)}


def test_with_nothing_frozen_adam_is_optaxs():
    # Broken by: max(count, 2).
    optimizer = AdamW(clip_norm=None, weight_decay=0.0)
    params = {"blocks": {"l0": {"mlp": {"Wi": jnp.linspace(-1, 1, 24).reshape(3, 8)}}}, "bias": jnp.ones(5)}
    pairs = [make_optimizer(optimizer), optax.scale_by_adam(optimizer.b1, optimizer.b2, optimizer.eps)]
    states = [tx.init(params) for tx in pairs]
    for step in range(1, 6):
        grads = jax.tree.map(lambda x, step=step: jnp.sin(x * step), params)
        found = [tx.update(grads, state, params) for tx, state in zip(pairs, states, strict=True)]
        states = [state for _, state in found]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=3e-7), *(direction for direction, _ in found))


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
