"""How layers are stacked and named, and which shapes cannot be."""

import jax
import pytest

from cptjax.shape import FULL, SLIDING, ModelConfig, layer_groups, layer_path, parameter_names


@pytest.mark.parametrize(
    ("layers", "kinds", "expected"),
    [
        (22, (), (3, 7, ())),
        (28, (), (3, 9, ())),
        (9, (), (3, 2, (7, 8))),
        (3, (), (1, 2, ())),
        (1, (), (0, 0, ())),
        (5, (FULL, SLIDING, FULL, FULL, SLIDING), (0, 0, (1, 2, 3, 4))),
    ],
)
def test_layers_fold_into_scanned_periods(layers, kinds, expected):
    assert layer_groups(ModelConfig(num_hidden_layers=layers, layer_types=kinds)) == expected


def test_every_layer_parameter_has_its_own_name(config, params):
    names = [
        name
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        for name in parameter_names(config, tuple(entry.key for entry in path))
    ]
    assert len(names) == len(set(names))
    for layer in range(config.num_hidden_layers):
        assert f"layers/{layer}/mlp/Wi" in names
        assert (f"layers/{layer}/attn_norm/scale" in names) == (layer > 0)
    path, index = layer_path(config, 5)  # second layer of the second block
    assert (path, index) == (("blocks", "l1"), 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size 100 must be"),
        ({"num_hidden_layers": 2, "layer_types": (FULL,)}, "must name each of 2 layers"),
        ({"num_hidden_layers": 1, "layer_types": ("dense",)}, "layer_types holds"),
        ({"hidden_activation": "tanh"}, "hidden_activation is 'tanh': it must be one of"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)
