"""What each field of a model's config may hold: one that asks for more is refused before anything is made of it.

The most is far beyond the largest model of the family, and below what would fill a machine by itself.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

LAYERS = 1024
NUMBERS: dict[str, tuple[float, float]] = {  # least and most; whole where they are
    "vocab_size": (1, 2**24),
    "hidden_size": (2, 2**16),
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": (1, LAYERS),
    "num_attention_heads": (1, 2**12),
    "global_attn_every_n_layers": (1, LAYERS),
    "sliding_window": (1, 2**29),
    "local_attention": (2, 2**30),  # a position and a window together are an int32
    "max_position_embeddings": (1, 2**30),
    "num_labels": (0, 2**16),
    "type_vocab_size": (1, 2**16),
    "pad_token_id": (0, 2**24),
    "global_rope_theta": (1e-3, 1e15),
    "local_rope_theta": (1e-3, 1e15),
    "norm_eps": (1e-30, 1.0),
    "layer_norm_eps": (1e-30, 1.0),
    "initializer_range": (0.0, 100.0),
    **dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"), (0.0, 0.99)),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), (0.0, 0.99)),
    "initializer_cutoff_factor": (1e-3, 100.0),
}
NULLABLE = {"classifier_dropout"}
ELSEWHERE = {"global_attn_every_n_layers", "sliding_window"}  # fields of transformers' configs, not of ours
REALS = {name for name, (least, _) in NUMBERS.items() if type(least) is float}
BOOLEANS = (
    "norm_bias",
    "attention_bias",
    "mlp_bias",
    "classifier_bias",
    "decoder_bias",
    "tie_word_embeddings",
    "causal_window_counts_self",
    "pooler",
)
CHOICES: dict[str, tuple[str | bool, ...]] = {
    **dict.fromkeys(("hidden_activation", "classifier_activation", "hidden_act"), ("gelu", "relu", "silu")),
    "head": ("lm", "classifier", "none"),  # the heads of shape.EncoderConfig
    "classifier_pooling": ("mean", "cls"),
    **dict.fromkeys(BOOLEANS, (False, True)),
}


def complaints(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with fields of a config: each such field, its value and what would be right."""
    wrong = []
    for name, value in values.items():
        if value is None and name in NULLABLE:
            continue
        if name in NUMBERS:
            good, right = _number(value, *NUMBERS[name])
        elif name in CHOICES:
            good = any(type(value) is type(choice) and value == choice for choice in CHOICES[name])
            right = f"one of {', '.join(map(repr, CHOICES[name]))}"
        else:
            continue
        if not good:
            wrong.append(f"{name} is {reprlib.repr(value)}: it must be {right}")
    return wrong


def _number(value: Any, least: float, most: float) -> tuple[bool, str]:
    whole = type(least) is int
    good = type(value) in ((int,) if whole else (int, float)) and least <= value <= most
    return good, f"a whole number from {least:,} to {most:,}" if whole else f"a number from {least:g} to {most:g}"
