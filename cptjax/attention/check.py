"""Is a backend of attention right on this device? The judge is the dense reference, on the same inputs.

Rows are packed: several documents, one of them a single token, and padding at the end. Random scores lie around 0;
kernels also fail where all scores of a token are far below it, at some lengths (cuDNN before 9.26 gave gradients that
are no numbers), so rows of such scores are tried too. The reference computes in float32 and full precision.

B rows, L tokens, H heads, K head width.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.attention.backends import attend
from cptjax.attention.reference import attend_reference
from cptjax.command.errors import reason
from cptjax.masks import MaskSpec
from cptjax.sharding import LANES

ROWS, TOKENS = 2, 1024  # that `verify` takes: a kernel may mistake where the second row begins
DEEP = -100.0  # scaled scores of deep rows, about
DEEP_LENGTHS = ((1280, 1216, 64), (1000, 192, 1, 64, 1216))  # of the documents of each: 0, 1, 64, 104 beyond tiles
MOST_ERROR = {"out": 1e-2, "q": 2e-2, "k": 2e-2, "v": 2e-2}  # of `errors`, in bfloat16
DEEP_SLACK = 3.0  # times MOST_ERROR: of the sums that deep scores' gradients are, most cancels
FINER = {"bfloat16": 1.0, "float32": 0.01}  # by which they are smaller in each dtype


def verify(backend: str, spec: MaskSpec, heads: int, width: int, dtype: str) -> dict[str, float]:
    """The largest `errors` of a backend on this device. Raises ValueError when it is wrong here, or does not run."""
    usual = _verify(backend, spec, inputs((ROWS, TOKENS, heads, width), dtype))
    arrays = deep_inputs(width, dtype, whole_tiles=backend == "splash")
    deep = _verify(backend, spec, arrays, f", scores near {DEEP:.0f}", DEEP_SLACK)
    return {what: max(usual[what], deep[what]) for what in usual}


def _verify(
    backend: str, spec: MaskSpec, arrays: tuple[jax.Array, ...], rows: str = "", slack: float = 1.0
) -> dict[str, float]:
    where, dtype = f"on a {jax.devices()[0].device_kind} under {spec}{rows}", arrays[0].dtype.name
    # As in a run: see Precision.products.
    products = jax.default_matmul_precision("highest") if dtype == "float32" else nullcontext()
    try:
        with products:
            results = jax.block_until_ready(jax.jit(partial(both, partial(attend, backend=backend), spec))(*arrays))
    except Exception as error:  # of any kind: kernels and compilers refuse in their own ways
        raise ValueError(f"does not run {where} ({reason(error)})") from error
    try:
        measured = errors(results, judge(spec, arrays), arrays[-1])
        most = {what: slack * bound * FINER[dtype] for what, bound in MOST_ERROR.items()}
        wrong = [f"error of {what} {error:.1e}" for what, error in measured.items() if error > most[what]]
    except FloatingPointError as error:
        measured, wrong = {}, [str(error)]
    if wrong:
        raise ValueError(f"is wrong {where} ({', '.join(wrong)})")
    return measured


def packed(rows: int, tokens: int) -> np.ndarray:
    """Segment numbers [B, L] of documents of a half, a quarter, an eighth of the row and of one token, in
    another order in every row, then padding."""
    lengths = [tokens // 2, 1, tokens // 8, tokens // 4]
    return np.stack([_segments(np.roll(lengths, row), tokens) for row in range(rows)])


def inputs(shape: tuple[int, ...], dtype: str) -> tuple[jax.Array, ...]:
    """q, k, v and the gradient of the output, each [B, L, H, K], and segments [B, L]."""
    return _random(shape, dtype, packed(*shape[:2]))


def _random(shape: tuple[int, ...], dtype: str, segment_BL: np.ndarray) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    q_BLHK, k_BLHK, v_BLHK, d_out_BLHK = (jax.random.normal(key, shape, dtype) for key in keys)
    # As in training: no loss comes from padding.
    d_out_BLHK *= jnp.asarray(segment_BL > 0, dtype)[:, :, None, None]
    return q_BLHK, k_BLHK, v_BLHK, d_out_BLHK, jnp.asarray(segment_BL)


def deep_inputs(width: int, dtype: str, *, whole_tiles: bool) -> tuple[jax.Array, ...]:
    """What `inputs` gives, for one head, where all scaled scores are near DEEP, in documents of DEEP_LENGTHS; rows end
    half a tile of padding beyond whole tiles, unless the backend takes no others.

    Half of each head is random, so that the softmax is as spread as ever. The other half is one number in all queries,
    and its negative in all keys.
    """
    tokens = max(map(sum, DEEP_LENGTHS)) + (0 if whole_tiles else LANES // 2)
    segment_BL = np.stack([_segments(lengths, tokens) for lengths in DEEP_LENGTHS])
    q_BLHK, k_BLHK, *rest = _random((*segment_BL.shape, 1, width), dtype, segment_BL)
    level = math.sqrt(-DEEP * math.sqrt(width) / (width // 2))
    return q_BLHK.at[..., : width // 2].set(level), k_BLHK.at[..., : width // 2].set(-level), *rest


def _segments(lengths: Sequence[int] | np.ndarray, tokens: int) -> np.ndarray:
    """Segment numbers [L] of documents of these lengths, then padding."""
    documents = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
    return np.pad(documents, (0, tokens - len(documents)))


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


def errors(results: tuple[jax.Array, ...], expected: list[np.ndarray], segment_BL) -> dict[str, float]:
    """Largest distance over the largest expected entry, of the output at real tokens and of the gradients.
    Raises FloatingPointError for a number that is not finite, at padding too."""
    real_BL11 = np.asarray(segment_BL > 0)[:, :, None, None]
    distances = {}
    for name, ours, theirs in zip(("out", "q", "k", "v"), results, expected, strict=True):
        ours = np.asarray(ours, np.float32)
        if not np.isfinite(ours).all():
            raise FloatingPointError(f"not finite: {'the output' if name == 'out' else f'the gradient of {name}'}")
        if name == "out":
            ours, theirs = ours * real_BL11, theirs * real_BL11
        distances[name] = distance(ours, theirs)
    return distances


def distance(result: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance of a result from what is expected, over the largest expected entry."""
    return float(np.abs(result - expected).max() / np.abs(expected).max())
