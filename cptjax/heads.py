"""What a fine-tuned model answers: scores per text, per token, or of where a span begins and ends.

All three are the same two layers (the head's features, then a linear classifier) and differ in what they read.

B texts, one a row, L tokens, D width, N labels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cptjax.model import Encoder


def pool(hidden_BLD: jax.Array, segment_BL: jax.Array, pooling: str) -> jax.Array:
    """One vector per row, [B, D]: its first token ("cls"), or the mean over what is not padding ("mean")."""
    if pooling == "cls":
        return hidden_BLD[:, 0]
    real_BL1 = (segment_BL > 0).astype(jnp.float32)[..., None]
    mean_BD = (hidden_BLD.astype(jnp.float32) * real_BL1).sum(1) / real_BL1.sum(1)
    return mean_BD.astype(hidden_BLD.dtype)


def text_scores(model: Encoder, params: Any, hidden_BLD: jax.Array, segment_BL: jax.Array) -> jax.Array:
    """Scores of each text's labels, [B, N] float32; as transformers' ModernBertForSequenceClassification.

    `hidden_BLD` is what `encode` returns for rows that hold one text each (segment 1, then padding 0).
    """
    pooled_BD = pool(hidden_BLD, segment_BL, model.config.classifier_pooling)
    return token_scores(model, params, pooled_BD[:, None])[:, 0]


def token_scores(model: Encoder, params: Any, hidden_BLD: jax.Array) -> jax.Array:
    """Scores of each token's labels, [B, L, N] float32; as transformers' ModernBertForTokenClassification.

    Two labels are the beginning and the end of an answer, as in ModernBertForQuestionAnswering.
    """
    scores_BLN: Any = model.apply({"params": params}, hidden_BLD, method="labels")
    return scores_BLN
