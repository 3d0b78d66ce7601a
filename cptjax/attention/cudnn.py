"""Attention on NVIDIA GPUs by cuDNN's packed kernel: every document is a sequence of its own, and nothing between two
documents is computed, backward too.

jax offers it in a private module only: this is the only file that knows it. With jax 0.10.2 and 0.12.0.1 it was
lowered, with the latter compiled for an H200 that was not there; it was not run on a GPU.

B rows, L tokens, H heads, K head width, S documents.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from cptjax.masks import MaskMode, MaskSpec, document_bounds
from cptjax.sharding import on_own_heads


def attend_cudnn(q_BLHK, k_BLHK, v_BLHK, spec: MaskSpec, segment_BL, most: int, *, otherwise: Callable) -> jax.Array:
    """Softmax attention [B, L, H, K] over whole documents; under a mesh each device works on its own rows and heads.

    The rows of a device go to the backend `otherwise`, its forward pass made twice, where one of them has more than
    `most` documents, its padding counted.
    """

    def packed(q_BLHK, k_BLHK, v_BLHK, segment_BL):
        length_BS, start_BS = documents(segment_BL, most)
        return _kernel(q_BLHK, k_BLHK, v_BLHK, length_BS, start_BS, causal=spec.mode == MaskMode.CAUSAL)

    def unpacked(q_BLHK, k_BLHK, v_BLHK, segment_BL):
        return otherwise(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)

    # Recomputed, for arrays that one branch keeps for the backward pass are allocated in both.
    unpacked = jax.checkpoint(unpacked)

    def local(*arrays):
        return jax.lax.cond(_most_documents(arrays[-1]) <= most, packed, unpacked, *arrays)

    return on_own_heads(local)(q_BLHK, k_BLHK, v_BLHK, segment_BL)


def documents(segment_BL, most: int) -> tuple[jax.Array, jax.Array]:
    """Length and start of each document of a row, padding being one too, each [B, S] int32, S = most; -1 where a row
    has fewer."""
    start_BL, end_BL = document_bounds(segment_BL)

    def of_a_row(start_L, end_L):
        first_S = jnp.nonzero(_begins(start_L), size=most, fill_value=-1)[0].astype(jnp.int32)
        return jnp.where(first_S < 0, -1, end_L[first_S] - first_S), first_S

    return jax.vmap(of_a_row)(start_BL, end_BL)


def _begins(start_L):
    return start_L == jnp.arange(start_L.shape[-1], dtype=start_L.dtype)


def _most_documents(segment_BL):
    start_BL, _ = document_bounds(segment_BL)
    return jax.vmap(_begins)(start_BL).sum(axis=1).max()


def _kernel(q_BLHK, k_BLHK, v_BLHK, length_BS, start_BS, *, causal: bool) -> jax.Array:
    offset_BS = jnp.pad(start_BS, ((0, 0), (0, 1)), constant_values=-1)  # the kernel wants one more
    out_BLHK: Any = cudnn.dot_product_attention(
        q_BLHK,
        k_BLHK,
        v_BLHK,
        q_seqlen=length_BS,
        kv_seqlen=length_BS,
        q_offsets=offset_BS,
        kv_offsets=offset_BS,
        scale=q_BLHK.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.NO_MASK,
    )
    return out_BLHK
