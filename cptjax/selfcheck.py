"""Is a backend of attention right on this device? The judge is the dense reference, on the same inputs.

Rows are packed: several documents, one of them a single token, and padding at the end. The reference computes in
float32 and full precision.

B rows, L tokens, H heads, K head width.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.attention import attend, attend_reference
from cptjax.errors import reason
from cptjax.masks import MaskSpec

ROWS, TOKENS = 2, 1024  # that `verify` takes: a kernel may mistake where the second row begins
MOST_ERROR = {"out": 1e-2, "q": 2e-2, "k": 2e-2, "v": 2e-2}  # of `errors`, in bfloat16


def verify(backend: str, spec: MaskSpec, heads: int, width: int, dtype: str) -> dict[str, float]:
    """The `errors` of a backend on this device. Raises ValueError when it is wrong here, or does not run."""
    arrays = inputs((ROWS, TOKENS, heads, width), dtype)
    kind = jax.devices()[0].device_kind
    try:
        found = jax.block_until_ready(jax.jit(partial(both, partial(attend, backend=backend), spec))(*arrays))
    except Exception as error:  # of any kind: kernels and compilers refuse in their own ways
        raise ValueError(f"does not run on a {kind} under {spec} ({reason(error)})") from error
    try:
        measured = errors(found, judge(spec, arrays), arrays[-1])
        wrong = [f"error of {what} {error:.1e}" for what, error in measured.items() if error > MOST_ERROR[what]]
    except FloatingPointError as error:
        measured, wrong = {}, [str(error)]
    if wrong:
        raise ValueError(f"is wrong on a {kind} under {spec} ({', '.join(wrong)})")
    return measured


def packed(rows: int, tokens: int) -> np.ndarray:
    """Segment numbers [B, L] of documents of a half, a quarter, an eighth of the row and of one token, in
    another order in every row, then padding."""
    lengths = [tokens // 2, 1, tokens // 8, tokens // 4]
    segment_BL = np.zeros((rows, tokens), np.int32)
    for row, segment_L in enumerate(segment_BL):
        documents = np.repeat(np.arange(1, 5), np.roll(lengths, row))
        segment_L[: len(documents)] = documents
    return segment_BL


def inputs(shape: tuple[int, ...], dtype: str) -> tuple[jax.Array, ...]:
    """q, k, v and the gradient of the output, each [B, L, H, K], and segments [B, L]."""
    segment_BL = jnp.asarray(packed(*shape[:2]))
    keys = jax.random.split(jax.random.key(0), 4)
    q_BLHK, k_BLHK, v_BLHK, d_out_BLHK = (jax.random.normal(key, shape, dtype) for key in keys)
    # As in training: no loss comes from padding.
    return q_BLHK, k_BLHK, v_BLHK, d_out_BLHK * (segment_BL > 0)[:, :, None, None].astype(dtype), segment_BL


def both(function: Callable, spec: MaskSpec, q_BLHK, k_BLHK, v_BLHK, d_out_BLHK, segment_BL) -> tuple[jax.Array, ...]:
    """The output of a backend and the gradients of q, k and v."""
    out_BLHK, pull = jax.vjp(lambda *qkv: function(*qkv, spec, segment_BL), q_BLHK, k_BLHK, v_BLHK)
    return out_BLHK, *pull(d_out_BLHK)


def judge(spec: MaskSpec, arrays: tuple[jax.Array, ...]) -> list[np.ndarray]:
    """What `both` should give for `inputs`: the reference in float32 and full precision."""
    *qkvd, segment_BL = arrays
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(partial(both, attend_reference, spec))
        return [np.asarray(x) for x in exact(*(x.astype(jnp.float32) for x in qkvd), segment_BL)]


def errors(found: tuple[jax.Array, ...], expected: list[np.ndarray], segment_BL) -> dict[str, float]:
    """Largest distance over the largest expected entry, of the output at real tokens and of the gradients.
    Raises FloatingPointError for a number that is not finite, at padding too."""
    real_BL11 = np.asarray(segment_BL > 0)[:, :, None, None]
    distances = {}
    for name, ours, theirs in zip(("out", "q", "k", "v"), found, expected, strict=True):
        ours = np.asarray(ours, np.float32)
        if not np.isfinite(ours).all():
            raise FloatingPointError(f"not finite: {'the output' if name == 'out' else f'the gradient of {name}'}")
        if name == "out":
            ours, theirs = ours * real_BL11, theirs * real_BL11
        distances[name] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return distances
