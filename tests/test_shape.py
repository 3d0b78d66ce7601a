"""How layers are stacked and named, and which shapes cannot be."""

from dataclasses import replace

import jax
import pytest

from cptjax.shape import FULL, SLIDING, BertConfig, ModernBertConfig, layer_groups, layer_path, parameter_names


@pytest.mark.parametrize(
    ("layers", "kinds", "expected"),
    [
        (22, (), ((0,), 3, 7, ())),
        (28, (), ((0,), 3, 9, ())),
        (9, (), ((0,), 3, 2, (7, 8))),
        (3, (), ((0,), 1, 2, ())),
        (1, (), ((0,), 0, 0, ())),
        (5, (FULL, SLIDING, FULL, FULL, SLIDING), ((0,), 0, 0, (1, 2, 3, 4))),
    ],
)
def test_layers_fold_into_scanned_periods(layers, kinds, expected):
    assert layer_groups(ModernBertConfig(num_hidden_layers=layers, layer_types=kinds)) == expected


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
        ModernBertConfig(**fields)


@pytest.mark.parametrize(("layers", "expected"), [(1, ((), 0, 0, (0,))), (2, ((), 1, 2, ())), (24, ((), 1, 24, ()))])
def test_the_layers_of_a_bert_are_all_alike(layers, expected):
    config = BertConfig(num_hidden_layers=layers)
    assert layer_groups(config) == expected
    assert layer_path(config, layers - 1) == ((("layer_0",), None) if layers == 1 else (("blocks", "l0"), layers - 1))


def test_positions_of_a_roberta_begin_after_its_padding():
    assert BertConfig().longest_document == 512
    roberta = BertConfig(model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    assert (roberta.first_position, roberta.longest_document) == (2, 512)
    with pytest.raises(ValueError, match=r"pad_token_id \+ 1 = 2, so it must be larger"):
        replace(roberta, max_position_embeddings=2)
    with pytest.raises(ValueError, match="model_type is 'electra': it must be one of bert, roberta, camembert, xlm-"):
        BertConfig(model_type="electra")
    with pytest.raises(ValueError, match="model_type is 'bert': it must be one of modernbert"):
        ModernBertConfig(model_type="bert")
