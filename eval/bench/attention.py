"""Every backend of attention on this device: how wrong, how fast, how much memory; or why it does not run.

Rows are packed, and the judge is the dense reference: see `cptjax/attention/check.py`.

B rows, L tokens, H heads, K head width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from cptjax.attention.backends import BACKENDS, Case, attend, obstacle
from cptjax.attention.check import both, errors, inputs, judge
from cptjax.command.errors import reason
from cptjax.machine import host
from cptjax.masks import MaskMode, MaskSpec
from eval.bench.command import AttentionBench
from eval.bench.measure import check_names, fitted, in_turns, record, timed

WINDOW = 64  # ModernBERT's, on each open side
SPECS = [MaskSpec(mode, window) for window in (None, WINDOW) for mode in (MaskMode.BIDIRECTIONAL, MaskMode.CAUSAL)]
CHECKED = 2048  # tokens of the longest row that errors are measured on: the reference needs O(L^2) memory


def backend_of(name: str, case: Case, named: bool) -> Callable:
    """The backend of this name as it runs here. Raises NotImplementedError for another device's kernel, but for that
    of TPUs when the user `named` it: then its interpreter runs, slowly."""
    why = obstacle(name, case)
    if why is None:
        return partial(attend, backend=name)
    if name != "splash" or case.platform == "tpu":
        raise NotImplementedError(why)
    if not named:
        raise NotImplementedError(f"{why}; its interpreter runs here when it is named")
    from cptjax.attention.splash import attend_splash  # here, for it loads Pallas

    return partial(attend_splash, interpret=True)


def forward(function: Callable, spec: MaskSpec, q_BLHK, k_BLHK, v_BLHK, segment_BL) -> jax.Array:
    """The output of a backend."""
    return function(q_BLHK, k_BLHK, v_BLHK, spec, segment_BL)


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
    case = Case(jax.default_backend(), tokens, width, dtype, host.capability(jax.devices()[0]))
    results, calls = {}, {}
    for name in names:
        results[name] = {"backend": name, "mask": spec.mode.value, "window": spec.window, "rows": size}
        results[name] |= {"tokens": tokens, "heads": heads, "width": width, "dtype": dtype, "checked_tokens": checked}
        try:
            function = backend_of(name, case, named)
            program = jax.jit(partial(both, function, spec))
            alone, _ = fitted(jax.jit(partial(forward, function, spec)), *qkv, segment_BL)
            whole, results[name]["temporary_mib"] = fitted(program, *arrays)
            answer = whole(*arrays) if checked == tokens else program(*small)
            results[name]["error"] = errors(answer, expected, small[-1])
        except Exception as error:  # of any kind: kernels and compilers refuse in their own ways
            results[name]["reason"] = reason(error)
            continue
        calls[name, "forward"] = partial(timed, alone, *qkv, segment_BL)
        calls[name, "forward_backward"] = partial(timed, whole, *arrays)
    for (name, what), took in in_turns(calls, rounds).items():
        results[name] |= took if "reason" in took else {what: took}
    return list(results.values())


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


def run(asked: AttentionBench) -> None:
    """Print the table and, if asked, write the JSON."""
    names = list(asked.backends or BACKENDS)
    check_names("backend", names, BACKENDS)
    print(f"{jax.devices()[0].device_kind}, {asked.rows} rows, {asked.heads} heads of {asked.width}, {asked.dtype}")
    heading = f"{'tokens':>6} {'mask':24}{'backend':12}{'err out':>9}{'of dq':>9}{'of dk':>9}{'of dv':>9}{'':9}"
    print(f"{heading}{'forward ms':>16}{'+backward ms':>16}{'temp MiB':>9}")
    results = []
    for tokens in asked.lengths:
        shape = (asked.rows, tokens, asked.heads, asked.width)
        for spec in SPECS:
            new = bench(names, spec, shape, asked.dtype, asked.rounds, named=bool(asked.backends))
            print(*map(line, new), sep="\n", flush=True)
            results += new
            record(asked.out, asked.rounds, results)
