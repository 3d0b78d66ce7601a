"""Attention under an interval mask: one table of backends, what each needs, and which is taken.

B rows, L tokens, H heads, K head width. Softmax is always float32.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

from cptjax.attention.blockwise import attend_blockwise
from cptjax.attention.reference import attend_reference
from cptjax.command.escape import nearest
from cptjax.dropout import Dropping
from cptjax.masks import MaskSpec
from cptjax.ops import SAVED
from cptjax.sharding import LANES

MOST_DOCUMENTS = 64  # of a row that cuDNN handles: for each it keeps a float32 per head and token
NO_DROPOUT = "cannot drop weights of keys (dropout.attention)"
KERNELS = {"dot_product_attention_fwd_wrapper"}  # primitives to keep too: cuDNN's gives no names


def attend(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    spec: MaskSpec,
    segment_BL: jax.Array,
    *,
    backend: str | Callable = "blockwise",
    dropping: Dropping | None = None,
) -> jax.Array:
    """Softmax attention, [B, L, H, K]; every token reads the keys `masks.key_interval` gives it.

    `backend` is a row of BACKENDS; all rows agree, gradients included. Or it is a function like them, which may read
    other keys. Raises ValueError for others, and for one that cannot drop weights of keys where the `dropping` asks for
    it.
    """
    check_backend(backend)
    if dropping is not None and dropping.shares.attention:
        if backend != "reference":
            raise ValueError(f"attention {backend} {NO_DROPOUT}: use reference")
        return attend_reference(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL, dropping)
    attend_by = BACKENDS[backend] if isinstance(backend, str) else backend
    return attend_by(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)


def check_backend(name: str | Callable, *others: str) -> None:
    """Raise ValueError, with the choices, for what is no function, no row of BACKENDS and none of `others`."""
    known = (*others, *BACKENDS)
    if not callable(name) and name not in known:
        raise ValueError(f"attention is {name!r}{nearest(name, known)}: it is one of {', '.join(known)}")


@dataclass(frozen=True)
class Case:
    """What decides which backends can work."""

    platform: str  # cpu, gpu or tpu
    num_tokens: int  # of a row
    head_dim: int
    compute: str  # dtype of q, k and v
    capability: str | None = None  # of a GPU that is here, such as 9.0
    dropout: bool = False  # whether weights of keys are dropped


def choose(case: Case, wanted: str = "auto", failed: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The backend, and the reason in one line; none that `failed`, by name and why, when it was tried.

    ValueError when the `wanted` one is none or cannot work there, or `auto` finds none.
    """
    check_backend(wanted, "auto")
    unable = {name: why for name in BACKENDS if (why := (failed or {}).get(name) or obstacle(name, case))}
    able = [name for name in BACKENDS if name not in unable]
    if wanted in able:
        return wanted, "as the run says"
    if wanted != "auto":
        raise ValueError(f"attention {wanted} {unable[wanted]}: use {' or '.join(able)}")
    if case.dropout and "reference" in able:
        return "reference", "it alone drops weights of keys"
    for name, gain in PREFERRED.items():
        if name in able:
            return name, gain
    reasons = "; ".join(f"{name} {unable[name]}" for name in PREFERRED)
    if "blockwise" in unable:
        raise ValueError(f"{reasons}; blockwise {unable['blockwise']}: use --attention reference, and please report it")
    return "blockwise", reasons


def obstacle(backend: str, case: Case) -> str | None:
    """What keeps a row of BACKENDS from working there; None when nothing is known to."""
    if case.dropout and backend != "reference":
        return NO_DROPOUT
    if backend == "splash":
        if case.platform != "tpu":
            return f"needs a TPU, not a {case.platform}"
        if case.num_tokens % LANES:
            return f"needs rows of a multiple of {LANES} tokens, not {case.num_tokens}"
    if backend == "cudnn":
        if case.platform != "gpu":
            return f"needs an NVIDIA GPU, not a {case.platform}"
        if case.capability and not re.match(r"9|\d\d", case.capability):
            return f"needs an NVIDIA GPU of compute capability 9.0 or more, not {case.capability}"
        if case.compute not in ("bfloat16", "float16"):
            return f"computes in bfloat16 or float16, not in {case.compute}"
        if case.head_dim % 8 or case.head_dim > 256:
            return f"needs heads of a multiple of 8 numbers, 256 at most, not {case.head_dim}"
    return None


def attend_splash(q_BLHK, k_BLHK, v_BLHK, spec: MaskSpec, segment_BL) -> jax.Array:
    """jax's kernel for TPUs, see `splash.py`."""
    from cptjax.attention import splash  # here, for it loads Pallas, which only TPUs need

    return splash.attend_splash(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL, saved=SAVED)


def attend_cudnn(q_BLHK, k_BLHK, v_BLHK, spec: MaskSpec, segment_BL) -> jax.Array:
    """cuDNN's kernel for NVIDIA GPUs, see `cudnn.py`. It has no window on both sides: windows go block by block."""
    if spec.window is not None:
        return attend_blockwise(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)
    from cptjax.attention import cudnn  # here, for it loads what only NVIDIA's GPUs need

    return cudnn.attend_cudnn(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL, MOST_DOCUMENTS, otherwise=attend_blockwise)


BACKENDS: dict[str, Callable] = {
    "reference": attend_reference,
    "blockwise": attend_blockwise,
    "splash": attend_splash,
    "cudnn": attend_cudnn,
}
PREFERRED = {  # what is taken before blockwise where it works, and why
    "splash": "it skips the blocks that no query reads, backward too",
    "cudnn": "whole documents without scores in memory, and none between documents; windows go block by block",
}
