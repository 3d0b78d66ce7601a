"""What a fine-tuned model answers: scores per text, per token, or of where a span begins and ends.

All three are the family's features, then a linear classifier, and differ in what they read.

B rows, L tokens, T texts of all rows, D width, N labels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cptjax.dropout import Dropping
from cptjax.masks import positions
from cptjax.model import Encoder


def pool(hidden_BLD: jax.Array, text_BL: jax.Array, texts: int, pooling: str) -> jax.Array:
    """One vector per text, [T, D]: its first token ("cls"), or the mean over its tokens ("mean").

    `text_BL` is a segment array whose numbers run over all rows, from 1 to `texts`, 0 for padding; a number that is not
    there gives zeros.
    """
    text_T11 = jnp.arange(1, texts + 1, dtype=jnp.int32)[:, None, None]
    reads_TBL = text_BL[None] == text_T11
    if pooling == "cls":
        reads_TBL &= (positions(text_BL) == 0)[None]
    weight_TBL = reads_TBL.astype(jnp.float32)
    weight_TBL = weight_TBL / jnp.maximum(weight_TBL.sum((1, 2), keepdims=True), 1.0)
    hidden_BLD, exact = hidden_BLD.astype(jnp.float32), jax.lax.Precision.HIGHEST
    return jnp.einsum("tbl,bld->td", weight_TBL, hidden_BLD, precision=exact)


def text_scores(
    model: Encoder,
    params: Any,
    hidden_BLD: jax.Array,
    text_BL: jax.Array,
    texts: int,
    dropping: Dropping | None = None,
) -> jax.Array:
    """Scores of each text's labels, [T, N] float32; as transformers' ModernBertForSequenceClassification.

    `hidden_BLD` is what `encode` returns, `text_BL` as `pool` takes it; a `dropping` has a key for each text.
    """
    pooled_TD = pool(hidden_BLD, text_BL, texts, model.config.classifier_pooling).astype(hidden_BLD.dtype)
    return token_scores(model, params, pooled_TD[:, None], dropping)[:, 0]


def token_scores(model: Encoder, params: Any, hidden_BLD: jax.Array, dropping: Dropping | None = None) -> jax.Array:
    """Scores of each token's labels, [B, L, N] float32; as transformers' ModernBertForTokenClassification.

    Two labels are the beginning and the end of an answer, as in ModernBertForQuestionAnswering.
    """
    scores_BLN: Any = model.apply({"params": params}, hidden_BLD, dropping, method="labels")
    return scores_BLN
