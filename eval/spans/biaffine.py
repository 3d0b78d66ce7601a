"""A span scorer: for every label, how likely an entity runs from one word to another (biaffine, arXiv:2005.07150). Each
label and span is a question of its own, so entities may lie within each other, and one span may have two labels.

Where entities have gaps, as many labels more say that a word is followed by another in an entity (arXiv:2112.10070).

B rows, L tokens (M as ends), D width, K width of the scorer, N labels, C entities of all rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

RARE = 5.0  # minus the log-odds of an entity at the start: nearly no span is one


def init_scorer(key: jax.Array, hidden_size: int, width: int, labels: int, deviation: float) -> dict[str, jax.Array]:
    """Random parameters of a scorer on hidden states of this size."""
    start, end, both = jax.random.split(key, 3)
    return {
        "start": deviation * jax.random.normal(start, (width, hidden_size)),
        "start_bias": jnp.zeros(width),
        "end": deviation * jax.random.normal(end, (width, hidden_size)),
        "end_bias": jnp.zeros(width),
        "both": width**-0.5 * jax.random.normal(both, (labels, width + 1, width + 1)),
        "bias": jnp.full(labels, -RARE),
    }


def span_scores(params: Any, hidden_BLD: jax.Array) -> jax.Array:
    """Log-odds that a span of each label runs from token L to token M, [B, N, L, M] float32."""
    start_BLK = _side(params, "start", hidden_BLD)
    end_BLK = _side(params, "end", hidden_BLD)
    both = params["both"].astype(hidden_BLD.dtype)
    half_BLNK = jnp.einsum("blk,nkj->blnj", start_BLK, both)
    score_BNLM = jnp.einsum("blnj,bmj->bnlm", half_BLNK, end_BLK, preferred_element_type=jnp.float32)
    return score_BNLM + params["bias"][None, :, None, None]


def _side(params, name: str, hidden_BLD):
    """What a word says as the first or the last of a span, and a 1 beside it: the scorer's linear part."""
    weight_KD, bias_K = (params[key].astype(hidden_BLD.dtype) for key in (name, f"{name}_bias"))
    side_BLK = jax.nn.gelu(jnp.einsum("bld,kd->blk", hidden_BLD, weight_KD) + bias_K[None, None], approximate=False)
    return jnp.concatenate([side_BLK, jnp.ones_like(side_BLK[..., :1])], -1)


def asked(text_BL: jax.Array, word_BL: jax.Array, own_BL: jax.Array, longest: int) -> jax.Array:
    """Which spans are asked about, [B, L, M]: from a word that its window speaks for to one at most `longest` - 1 words
    after it in the same text. `word_BL` is a word's number, from 1, at its first token, 0 elsewhere."""
    first_BL1, last_B1M = word_BL[:, :, None], word_BL[:, None, :]
    same_BLM = (text_BL[:, :, None] == text_BL[:, None, :]) & (first_BL1 > 0) & own_BL[:, :, None]
    return same_BLM & (last_B1M >= first_BL1) & (last_B1M < first_BL1 + longest)


def gold_spans(candidate_C4: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """1 where an entity is, of row, label, first and last token: [B, N, L, M] float32; a row of -1 is none."""
    drop = jnp.where(candidate_C4[:, :1] < 0, jnp.iinfo(jnp.int32).max, candidate_C4)
    return jnp.zeros(shape, jnp.float32).at[tuple(drop.T)].set(1.0, mode="drop")
