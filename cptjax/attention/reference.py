"""Attention under an interval mask, as it is defined: every other backend is tested against it.

B rows, L queries, M keys, H heads, K head width.
"""

import jax
import jax.numpy as jnp

from cptjax.dropout import Dropping, dropped
from cptjax.masks import MaskSpec, dense_mask

MASKED = -1e30  # finite: exp gives exactly 0, and a maximum over it stays finite


def attend_reference(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    spec: MaskSpec,
    segment_BL: jax.Array,
    dropping: Dropping | None = None,
) -> jax.Array:
    """The definition: all scores at once, O(L^2) memory. Kept for ever. It alone drops weights of keys; then a
    backward pass makes all of it again, or every layer would keep its scores."""
    attend = _attend if dropping is None else jax.checkpoint(_attend, static_argnums=3)
    return attend(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL, dropping)


def _attend(q_BLHK, k_BLHK, v_BLHK, spec: MaskSpec, segment_BL, dropping: Dropping | None):
    return attend_masked(q_BLHK, k_BLHK, v_BLHK, dense_mask(spec, segment_BL), dropping)


def attend_masked(
    q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, mask_BLM: jax.Array, dropping: Dropping | None = None
) -> jax.Array:
    """Softmax attention [B, L, H, K] under any mask: query L reads key M where it is true; where it never is, all
    of them alike."""
    scores_BHLM = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
    scores_BHLM = scores_BHLM * q_BLHK.shape[-1] ** -0.5
    probs_BHLM = jax.nn.softmax(jnp.where(mask_BLM[:, None], scores_BHLM, MASKED), axis=-1)
    probs_BHLM = dropped(probs_BHLM, "attention", dropping)
    return jnp.einsum("bhlm,bmhk->blhk", probs_BHLM.astype(v_BLHK.dtype), v_BLHK)
