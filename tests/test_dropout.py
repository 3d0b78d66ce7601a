"""What is dropped in training: by which share, where, and that nothing but key, step, row and layer decides it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cptjax.attention.backends import Case, attend, choose
from cptjax.dropout import PLACES, Dropout, Dropping, dropped, of_layers
from cptjax.families import encoder
from cptjax.masks import MaskSpec
from cptjax.model import encode
from cptjax.objectives import CLM, draw, mlm
from cptjax.shape import BertConfig, ModernBertConfig, Precision
from cptjax.sharding import Mesh, make_mesh, pin_rows, put, shard_tree
from cptjax.step import EVALUATION, eval_step, loss_and_counts, summed_gradients
from tests.conftest import VOCABULARY, moved, packed, random_tokens

EVERYWHERE = Dropout(0.1, 0.2, 0.3, 0.4)
SHAPE = {"vocab_size": 128, "hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.2}
CONFIGS = {
    "modernbert": ModernBertConfig(**SHAPE, intermediate_size=48, num_hidden_layers=5, local_attention=16),
    "bert": BertConfig(**SHAPE, intermediate_size=64, num_hidden_layers=3),
}

OF_CONFIG = {"modernbert": {"embedding_dropout": 0.5}, "bert": {"hidden_dropout_prob": 0.5}}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return encoder(CONFIGS[request.param], Precision(compute="float32"), "reference")


@pytest.fixture(scope="module")
def params(model):
    return moved(model)


def keys(rows: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_is_dropped_and_the_mean_stays(share):
    dropping = Dropping(Dropout(embeddings=share), keys(4))
    out = dropped(jnp.ones((4, 50, 200)), "embeddings", dropping)
    assert {*np.unique(out)} == {0.0, np.float32(1 / (1 - share))}
    assert float((out == 0).mean()) == pytest.approx(share, abs=5 * (share * (1 - share) / out.size) ** 0.5)
    assert float(out.mean()) == pytest.approx(1, abs=0.02)


def test_rows_layers_and_places_draw_for_themselves():
    # Broken by: the place, the layer or the row left out of what is folded.
    every = Dropout(**dict.fromkeys(PLACES, 0.5))
    layers = of_layers(Dropping(every, keys(2)), [[0, 1], [2, 3]])
    assert layers is not None and layers.key_B.shape == (2, 2, 2)
    drawn = {
        (block, place, row, where): np.asarray(dropped(jnp.ones((2, 64)), where, Dropping(every, key_B))[row]).tobytes()
        for block in (0, 1)
        for place, key_B in enumerate(layers.key_B[block])
        for row in (0, 1)
        for where in PLACES
    }
    assert len(set(drawn.values())) == len(drawn) == 2 * 2 * 2 * len(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_in_the_network(model, params, place):
    # Broken by: `dropping` not handed on to a module.
    token_BL = random_tokens(2, 40)
    out = jax.jit(lambda dropping: encode(model, params, token_BL, token_BL * 0 + 1, dropping=dropping).hidden_BLD)
    kept, drawn, again, other = (
        np.asarray(out(dropping))
        for dropping in (None, *(Dropping(Dropout(**{place: 0.3}), keys(2, seed)) for seed in (0, 0, 1)))
    )
    assert np.array_equal(drawn, again)
    assert not np.array_equal(kept, drawn) and not np.array_equal(drawn, other)


def gradients(model, params, mesh, micro_batches, remat="none"):
    segment_BL = np.stack([packed(20, 30, total=64), packed(64, total=64)] * 4)
    batch = {"token_BL": np.asarray(random_tokens(8, 64)), "segment_BL": segment_BL}
    given = {"objective": CLM, "vocabulary": VOCABULARY, "chunk": 8, "dropout": EVERYWHERE}
    loss_fn = partial(loss_and_counts, model=model.clone(pin=pin_rows, remat=remat), **given)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shard_tree(mesh, params))
        step = jax.jit(partial(summed_gradients, loss_fn, micro_batches=micro_batches))
        return step(placed, put(batch, mesh, 8), jax.random.key(0))[0]


def test_devices_micro_batches_and_rematerialisation_change_nothing(model, params):
    # Broken by: rows numbered within a micro-batch; one key for all rows.
    alone = gradients(model, params, make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), 1)
    for other in (
        gradients(model, params, make_mesh(Mesh(2, 2, 2)), 2),
        gradients(model, params, make_mesh(Mesh(4, 2, 1)), 1, "block"),
    ):
        for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5 * abs(y).max())


def test_nothing_is_dropped_at_evaluation(model, params):
    # Broken by: `dropping` made in `predictions`.
    token_BL, objective = random_tokens(2, 40), mlm(0.3)
    segment_BL = jnp.ones_like(token_BL)
    dropping_model = model.clone(config=replace(model.config, **OF_CONFIG[model.config.model_type]))
    assert dropping_model.config.dropout.shares
    given = {"model": dropping_model, "objective": objective, "vocabulary": VOCABULARY, "chunk": 40, "seed": 0}
    batch = {"token_BL": token_BL, "segment_BL": segment_BL}
    measured = jax.jit(partial(eval_step, **given))(params, batch, jnp.int32(0))

    @jax.jit
    def undropped(params):
        key = jax.random.fold_in(jax.random.key(0), EVALUATION)
        targets = draw(objective, token_BL, segment_BL, jnp.arange(2), key, VOCABULARY)
        hidden_BLD = encode(model, params, targets.input_BL, segment_BL).hidden_BLD
        logits_BLV = model.apply({"params": params}, hidden_BLD, method="logits")
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), token_BL[..., None], axis=-1)[..., 0]
        return -(jnp.take_along_axis(picked, targets.position_BS, axis=1) * targets.weight_BS).sum()

    assert float(measured.loss) == pytest.approx(float(undropped(params)), rel=1e-5)


def test_the_mean_of_dropped_attention_is_attention():
    q, k, v = (jax.random.normal(key, (1, 12, 2, 8)) for key in keys(3))
    spec, segment_BL = MaskSpec("bidirectional"), jnp.ones((1, 12), jnp.int32)

    def draw(key):
        return attend(q, k, v, spec, segment_BL, backend="reference", dropping=Dropping(Dropout(attention=0.2), key))

    drawn = jax.jit(jax.vmap(draw))(keys(4000)[:, None])
    error = drawn.std(axis=0) / 4000**0.5
    expected = attend(q, k, v, spec, segment_BL, backend="reference")
    assert float((abs(drawn.mean(axis=0) - expected) / error).max()) < 5


def test_what_cannot_be_dropped_is_refused_with_what_can():
    q = jnp.ones((1, 8, 2, 8))
    arguments = (q, q, q, MaskSpec("causal"), jnp.ones((1, 8), jnp.int32))
    message = r"attention blockwise cannot drop weights of keys \(dropout.attention\): use reference"
    with pytest.raises(ValueError, match=message):
        attend(*arguments, dropping=Dropping(Dropout(attention=0.1), keys(1)))
    case = Case("cpu", 128, 64, "float32", dropout=True)
    assert choose(case) == ("reference", "it alone drops weights of keys")
    with pytest.raises(ValueError, match=message):
        choose(case, "blockwise")
    attend(*arguments, dropping=Dropping(Dropout(mlp=0.1), keys(1)))  # of no concern to attention
    with pytest.raises(ValueError, match="dropout.mlp is 1.0: it must be at least 0 and less than 1"):
        Dropout(mlp=1.0)


def test_the_models_own_shares_hold_where_the_run_says_nothing():
    # Broken by: a share of 0 taken for none.
    own = CONFIGS["bert"].dropout
    assert own == Dropout(0.1, 0.1, 0.1, 0.1)
    assert Dropout().over(own) == own
    assert Dropout(attention=0.0, mlp=0.3).over(own) == Dropout(0.1, 0.0, 0.1, 0.3)
    assert not Dropout().over(CONFIGS["modernbert"].dropout).shares
    assert ModernBertConfig(attention_dropout=0.1).dropout == Dropout(0.0, 0.1, 0.1, 0.0)
