"""Every model class that conversion knows, over tiny encoders of its family: a new family gets the tests of conversion
by a line in TINY, and rows in convert/table.py."""

from dataclasses import replace

import jax
import numpy as np

from convert import table
from cptjax.run.checkpoint import parameter_shapes
from cptjax.shape import FULL, SLIDING, BertConfig, ModelConfig, ModernBertConfig

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TABLE = "model.embeddings.tok_embeddings.weight"  # ModernBERT's
MODERNBERT = ModernBertConfig(**SIZES, num_hidden_layers=6)  # layer 0, one block of three, two unrolled
BERT = BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=24)
ROBERTA = replace(BERT, model_type="roberta", pad_token_id=3, type_vocab_size=1, layer_norm_eps=1e-5)
TINY: dict[str, tuple[ModelConfig, ...]] = {  # by model_type of the shape: the usual, and the unusual
    "modernbert": (
        MODERNBERT,
        replace(
            MODERNBERT,
            norm_bias=True,
            attention_bias=True,
            mlp_bias=True,
            classifier_bias=True,
            decoder_bias=False,
            tie_word_embeddings=False,
            layer_types=(FULL, FULL, SLIDING, FULL, SLIDING, FULL),
            global_rope_theta=5e4,
            local_rope_theta=2e4,
            norm_eps=1e-6,
            local_attention=32,
        ),
    ),
    "bert": (BERT, replace(BERT, tie_word_embeddings=False, hidden_act="relu", type_vocab_size=3, num_hidden_layers=1)),
    "roberta": (ROBERTA, replace(ROBERTA, tie_word_embeddings=False, hidden_act="silu", pad_token_id=0)),
    "camembert": (replace(ROBERTA, model_type="camembert"),),
    "xlm-roberta": (replace(ROBERTA, model_type="xlm-roberta"),),
}


def formed(config: ModelConfig, architecture: str) -> ModelConfig:
    """The same encoder under the head and with the window of a model class."""
    form = table.ARCHITECTURES[architecture]
    labels = (2 if form.stands == "spans" else 5) if form.head == "classifier" else 0
    config = replace(config, head=form.head, num_labels=labels)
    if isinstance(config, BertConfig):
        return replace(config, pooler=form.stands in ("none", "texts"))
    return replace(config, causal_window_counts_self=form.mask_mode == "causal")


FORMS = {  # each class over each encoder of its family: the shape and the class
    f"{name} {'tied' if config.tie_word_embeddings else 'untied'}": (formed(config, name), name)
    for name, form in table.ARCHITECTURES.items()
    for config in TINY[form.shape_type]
}
FIRST = {name: formed(TINY[form.shape_type][0], name) for name, form in table.ARCHITECTURES.items()}


def random_params(config: ModelConfig) -> dict:
    """Every number different, norms and biases included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), parameter_shapes(config))
