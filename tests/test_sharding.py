"""The same numbers on one device and on eight, however the mesh is cut."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cptjax.families import encoder
from cptjax.model import ModernBert, init_params
from cptjax.objectives import CLM, mlm
from cptjax.shape import BertConfig, ModernBertConfig, Precision
from cptjax.sharding import (
    AXES,
    ROWS,
    RULES,
    Mesh,
    by_slices,
    device_rows,
    make_mesh,
    pin_rows,
    platform,
    put,
    shard_tree,
    spec_for,
)
from cptjax.step import loss_and_counts, summed_gradients
from tests.conftest import VOCABULARY, moved, packed, random_tokens


def gradients(model, params, objective, mesh, micro_batches):
    segment_BL = np.stack([packed(20, 30, total=64), packed(64, total=64)] * 8)
    batch = {"token_BL": np.asarray(random_tokens(16, 64)), "segment_BL": segment_BL}
    loss_fn = partial(
        loss_and_counts,
        model=model.clone(pin=pin_rows),
        objective=objective,
        vocabulary=VOCABULARY,
        chunk=8,
    )
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shard_tree(mesh, params))
        step = jax.jit(partial(summed_gradients, loss_fn, micro_batches=micro_batches))
        return step(placed, put(batch, mesh, 16), jax.random.key(0)), placed


ODD = BertConfig(  # of whose tables the devices divide no words, or those of one axis
    vocab_size=122,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=66,
    type_vocab_size=1,
    pad_token_id=1,
    model_type="roberta",
    pooler=True,
    initializer_range=0.2,
)


@pytest.fixture(scope="module", params=[("modernbert", CLM), ("modernbert", mlm(0.3)), ("roberta", mlm(0.3))], ids=str)
def alone(request, config):
    """A model, its parameters, an objective, and the gradients and sums of one device."""
    family, objective = request.param
    model = encoder(config if family == "modernbert" else ODD, Precision(compute="float32"))
    mesh, params = make_mesh(Mesh(1, 1, 1), jax.devices()[:1]), moved(model)
    return model, params, objective, gradients(model, params, objective, mesh, 1)[0]


@pytest.mark.parametrize(("shape", "micro_batches"), [((8, 1, 1), 2), ((1, 8, 1), 1), ((2, 2, 2), 4)], ids=str)
def test_loss_and_gradients_equal_one_device(alone, shape, micro_batches):
    model, params, objective, (expected, expected_sums) = alone
    (grads, sums), placed = gradients(model, params, objective, make_mesh(Mesh(*shape)), micro_batches)
    for name, value in expected_sums.items():
        assert float(sums[name]) == pytest.approx(float(value), rel=1e-5)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * abs(y).max(), err_msg=jax.tree_util.keystr(path))
    if shape == (1, 8, 1):
        largest = max(jax.tree.leaves(placed), key=lambda x: x.size)
        assert {shard.data.size for shard in largest.addressable_shards} == {largest.size // 8}


@pytest.mark.parametrize("biases", [False, True])
def test_every_parameter_matches_exactly_one_rule(biases):
    mesh = make_mesh(Mesh(1, 4, 2))
    flags = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), biases)
    config = ModernBertConfig(vocab_size=64, num_hidden_layers=9, tie_word_embeddings=not biases, **flags)
    shapes = jax.eval_shape(lambda: init_params(ModernBert(config), jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        assert len(spec_for("/".join(entry.key for entry in path), leaf.shape, mesh)) == leaf.ndim


def test_unknown_and_doubly_matched_parameters_are_refused(monkeypatch):
    mesh = make_mesh(Mesh(1, 8, 1))
    with pytest.raises(ValueError, match="pooler/other matches 0 sharding rules"):
        spec_for("pooler/other", (8, 8), mesh)
    monkeypatch.setattr("cptjax.sharding.RULES", (*RULES, ("mlp/W.", P())))
    with pytest.raises(ValueError, match="mlp/Wi matches 2 sharding rules"):
        spec_for("layer_0/mlp/Wi", (2, 8, 8), mesh)


def test_mesh_that_does_not_fit_the_devices_is_refused():
    assert dict(make_mesh(Mesh(-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="needs 6 devices, but there are 8"):
        make_mesh(Mesh(3, 2, 1))
    with pytest.raises(ValueError, match="data=2 fsdp=3 tensor=1 needs 6 devices, but there are 8"):
        make_mesh(Mesh(-1, 3, 1))
    with pytest.raises(ValueError, match="one at most may be -1"):
        make_mesh(Mesh(-1, -1, 1))


@pytest.mark.parametrize(
    ("sizes", "slow"),
    [((4, 1, 2), (4, 1, 1)), ((2, 4, 1), (2, 2, 1)), ((1, 4, 2), (1, 4, 1)), ((1, 1, 8), None), ((1, 2, 4), None)],
)
def test_what_exchanges_most_stays_inside_a_slice(sizes, slow):
    """Eight devices in four slices, not in their order: a device's slice follows from its place along the slow axes."""
    # Broken by: `along_data` of the size of `tensor`.
    devices = [SimpleNamespace(platform="cpu", device_kind="cpu", id=i, slice_index=i % 4) for i in range(8)]
    mesh = by_slices(sizes, devices)
    assert by_slices(sizes, devices[::4] * 4) is None  # one slice
    if slow is None:
        assert mesh is None
        return
    assert mesh is not None and mesh.shape == sizes and {device.id for device in mesh.flat} == set(range(8))
    slices = np.vectorize(lambda device: device.slice_index)(mesh)
    blocks = slices.reshape([n for size, between in zip(sizes, slow, strict=True) for n in (between, size // between)])
    blocks = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(4, 2)
    assert blocks.tolist() == [[i, i] for i in range(4)]


def test_dimension_that_does_not_divide_is_named():
    mesh = make_mesh(Mesh(1, 8, 1))
    with pytest.raises(ValueError, match="head/dense: dimension 33 is not a multiple of the 8 devices"):
        shard_tree(mesh, {"head": {"dense": jax.ShapeDtypeStruct((33, 33), jnp.float32)}})


@pytest.mark.parametrize(
    ("words", "spec"),
    [
        (64, P(("tensor", "fsdp"), None)),
        (30522, P("tensor", "fsdp")),
        (50265, P(None, ("tensor", "fsdp"))),
    ],
)
def test_a_table_is_split_along_its_width_where_the_devices_do_not_divide_its_words(words, spec):
    mesh = make_mesh(Mesh(1, 4, 2))
    assert spec_for("embeddings/tok_embeddings", (words, 64), mesh) == spec
    assert spec_for("decoder/bias", (words,), mesh) == P(spec[0])
    assert spec_for("embeddings/tok_embeddings", (words, 33), mesh) == (spec if words == 64 else P(None, None))


def test_the_rows_of_a_device_are_counted_once():
    # Broken by: rows divided by the devices again where a device has its own already.
    seen = []

    def count(x):
        seen.append(device_rows(x.shape[0]))
        return x

    assert device_rows(16) == 16
    with jax.set_mesh(make_mesh(Mesh(data=2, fsdp=2, tensor=2))):
        jax.eval_shape(count, jnp.ones(16))
        jax.eval_shape(jax.shard_map(count, in_specs=P(ROWS), out_specs=P(ROWS)), jnp.ones(16))
    assert seen == [4, 4]


@dataclass(frozen=True)
class Absent:
    """What a mesh knows of devices that are not here."""

    platform: str
    device_kind: str = "absent"
    num_cores: int = 1


def test_the_platform_is_that_of_the_mesh_in_use():
    # Broken by: jax.default_backend() whatever the mesh.
    assert platform() == "cpu"
    mesh: Any = jax.sharding.AbstractMesh((4, 2, 1), AXES, abstract_device=Absent("tpu"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu"
    assert platform() == "cpu"
