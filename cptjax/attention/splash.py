"""Attention on TPUs by jax's splash kernel: blocks that no query of a layer reads are skipped, backward too.

The kernel is experimental in jax: this is the only file that knows it. With jax 0.10.2 it was compiled for TPU v5e
and run in its interpreter; it was not run on a TPU.

B rows, L tokens, H heads, K head width.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from cptjax.masks import MaskMode, MaskSpec
from cptjax.sharding import LANES, on_own_heads

GLOBAL_BLOCK, WINDOW_BLOCK = 512, 256  # tokens of a tile; not measured on a TPU


def attend_splash(
    q_BLHK, k_BLHK, v_BLHK, spec: MaskSpec, segment_BL, *, saved: str | None = None, interpret: bool = False
) -> jax.Array:
    """Softmax attention [B, L, H, K]; under a mesh each device works on its own rows and heads.

    `saved` names what the backward pass needs of it, for rematerialisation to keep. `interpret` runs the kernel step
    by step on any device, slowly. ValueError when L is no multiple of 128.
    """
    num_tokens = q_BLHK.shape[1]
    if num_tokens % LANES:
        raise ValueError(f"splash needs rows of a multiple of {LANES} tokens, not {num_tokens}: use blockwise")

    def local(q_BLHK, k_BLHK, v_BLHK, segment_BL):
        kernel = _kernel(spec, num_tokens, q_BLHK.shape[2], saved, interpret)
        segments = splash_attention_kernel.SegmentIds(segment_BL, segment_BL)
        q_BHLK = q_BLHK.swapaxes(1, 2) * np.asarray(q_BLHK.shape[-1] ** -0.5, q_BLHK.dtype)
        out_BHLK: Any = jax.vmap(kernel)(q_BHLK, k_BLHK.swapaxes(1, 2), v_BLHK.swapaxes(1, 2), segments)
        return out_BHLK.swapaxes(1, 2)

    return on_own_heads(local)(q_BLHK, k_BLHK, v_BLHK, segment_BL)


def _kernel(spec: MaskSpec, num_tokens: int, heads: int, saved: str | None, interpret: bool):
    shape = (num_tokens, num_tokens)
    if spec.window is not None:
        after = 0 if spec.mode == MaskMode.CAUSAL else spec.window
        mask = splash_attention_mask.LocalMask(shape, (spec.window, after), 0)
    elif spec.mode == MaskMode.CAUSAL:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.FullMask(shape)
    most = GLOBAL_BLOCK if spec.window is None else WINDOW_BLOCK
    block = max(size for size in range(LANES, most + 1, LANES) if num_tokens % size == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # Made anew in every trace; jax keeps its lists of blocks, which take a second to make.
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=saved,
        interpret=interpret,
    )
