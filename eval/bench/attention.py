"""Every backend of attention on this device: how wrong, how fast, how much memory; or why it does not run.

Rows are packed: several documents, one of them a single token, and padding at the end. The judge is the dense
reference in float32 and full precision, on the same inputs.

B rows, L tokens, H heads, K head width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cptjax.attention import BACKENDS, attend, attend_reference
from cptjax.masks import MaskMode, MaskSpec
from eval.bench import check_names, fitted, in_turns, reason, record, timed

WINDOW = 64  # ModernBERT's, on each open side
SPECS = [MaskSpec(mode, window) for window in (None, WINDOW) for mode in (MaskMode.BIDIRECTIONAL, MaskMode.CAUSAL)]
CHECKED = 2048  # tokens of the longest row that errors are measured on: the reference needs O(L^2) memory


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


def backend_of(name: str, named: bool) -> Callable:
    """The backend of this name as it runs here. Raises NotImplementedError for a TPU's kernel elsewhere, unless
    the user `named` it: then its interpreter runs, slowly."""
    if name != "splash" or jax.default_backend() == "tpu":
        return partial(attend, backend=name)
    if not named:
        raise NotImplementedError("needs a TPU; elsewhere its interpreter runs when it is named")
    from cptjax.splash import attend_splash  # here, for it loads Pallas

    return partial(attend_splash, interpret=True)


def forward(function: Callable, spec: MaskSpec, q_BLHK, k_BLHK, v_BLHK, segment_BL) -> jax.Array:
    """The output of a backend."""
    return function(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)


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


def bench(
    names: list[str], spec: MaskSpec, shape: tuple[int, ...], dtype: str, rounds: int, *, named: bool = False
) -> list[dict[str, Any]]:
    """A row for each backend under one mask, [B, L, H, K] being the shape; backends are timed in turns."""
    size, tokens, heads, width = shape
    checked = min(tokens, CHECKED)
    arrays = inputs(shape, dtype)
    small = arrays if checked == tokens else inputs((size, checked, heads, width), dtype)
    *qkv, _, segment_BL = arrays
    expected = judge(spec, small)
    found, calls = {}, {}
    for name in names:
        found[name] = {"backend": name, "mask": spec.mode.value, "window": spec.window, "rows": size}
        found[name] |= {"tokens": tokens, "heads": heads, "width": width, "dtype": dtype, "checked_tokens": checked}
        try:
            function = backend_of(name, named)
            program = jax.jit(partial(both, function, spec))
            alone, _ = fitted(jax.jit(partial(forward, function, spec)), *qkv, segment_BL)
            whole, found[name]["temporary_mib"] = fitted(program, *arrays)
            answer = whole(*arrays) if checked == tokens else program(*small)
            found[name]["error"] = errors(answer, expected, small[-1])
        except Exception as error:  # of any kind: kernels and compilers refuse in their own ways
            found[name]["reason"] = reason(error)
            continue
        calls[name, "forward"] = partial(timed, alone, *qkv, segment_BL)
        calls[name, "forward_backward"] = partial(timed, whole, *arrays)
    for (name, what), took in in_turns(calls, rounds).items():
        found[name] |= took if "reason" in took else {what: took}
    return list(found.values())


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mask = f"{row['mask']}, {'document' if row['window'] is None else row['window']}"
    start = f"{row['tokens']:>6} {mask:24}{row['backend']:12}"
    if "reason" in row:
        return start + row["reason"]
    errors_ = "".join(f"{value:9.1e}" for value in row["error"].values())
    times = (row["forward"], row["forward_backward"])
    seconds = "".join(f"{1000 * took['median']:10.2f} ±{took['spread']:4.0%}" for took in times)
    return f"{start}{errors_} at {row['checked_tokens']:<5}{seconds}{row['temporary_mib']:9.0f}"


def main(
    backends: list[str] | None,
    lengths: list[int],
    rows: int,
    heads: int,
    width: int,
    dtype: str,
    rounds: int,
    out: Path | None,
) -> None:
    """Print the table and, if asked, write the JSON."""
    names = backends or list(BACKENDS)
    check_names("backend", names, BACKENDS)
    print(f"{jax.devices()[0].device_kind}, {rows} rows, {heads} heads of {width}, {dtype}")
    heading = f"{'tokens':>6} {'mask':24}{'backend':12}{'err out':>9}{'of dq':>9}{'of dk':>9}{'of dv':>9}{'':9}"
    print(f"{heading}{'forward ms':>16}{'+backward ms':>16}{'temp MiB':>9}")
    found = []
    for tokens in lengths:
        for spec in SPECS:
            new = bench(names, spec, (rows, tokens, heads, width), dtype, rounds, named=backends is not None)
            print(*map(line, new), sep="\n", flush=True)
            found += new
            record(out, rounds, found)
