"""How the benches take time and memory, in turns, and what they write of it."""

import re
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from cptjax.command.errors import reason
from cptjax.command.escape import nearest
from cptjax.files import write_json
from cptjax.machine.host import cores
from cptjax.machine.provenance import git_commit, versions
from cptjax.shape import ModernBertConfig

SIZES = {  # ModernBERT's two (arXiv:2412.13663)
    "base": ModernBertConfig(),
    "large": ModernBertConfig(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16),
}
WARM_UP = 2  # calls before any is counted
Name = TypeVar("Name", bound=Hashable)


def conditions(rounds: int) -> dict[str, Any]:
    """What a measurement was made with: device, versions, commit, rounds, cores."""
    device = jax.devices()[0].device_kind
    return {"device": device, "versions": versions(), "commit": git_commit(), "rounds": rounds, "cores": cores()}


def record(out: Path | None, rounds: int, rows: list[dict]) -> None:
    """Write what was measured so far, if a file is asked for: a run that is cut short has not lost it."""
    if out is not None:
        write_json(out, {**conditions(rounds), "rows": rows})


def check_names(what: str, named: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for a name that is not known."""
    if unknown := [name for name in named if name not in known]:
        raise ValueError(
            f"no {what} is called {', '.join(unknown)}{nearest(unknown[0], known)}: there are {', '.join(known)}"
        )


def compute_dtype() -> str:
    """What products are computed in: as in training on an accelerator; a CPU gains nothing by bfloat16."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def fitted(function: Any, *arguments: Any) -> tuple[Any, float]:
    """The program of a jitted function for these arrays or shapes, and its temporary memory in MiB.

    Raises MemoryError when that is more than is free: on a CPU the system would end the process instead.
    """
    compiled = function.lower(*arguments).compile()
    needed = compiled.memory_analysis().temp_size_in_bytes / 2**20
    free = _free_mib()
    if free is not None and needed > free:
        raise MemoryError(f"needs {needed:.0f} MiB of temporary memory, {free:.0f} MiB are free")
    return compiled, needed


def _free_mib() -> float | None:
    """Free memory of the device, or of this machine where jax counts none; None where neither says."""
    if stats := jax.devices()[0].memory_stats():
        return (stats["bytes_limit"] - stats["bytes_in_use"]) / 2**20
    return mib_of("/proc/meminfo", "MemAvailable")


def mib_of(file: str, field: str) -> float | None:
    """A field of a file of Linux's /proc that counts kibibytes, in MiB; None where there is no such file."""
    text = Path(file).read_text() if Path(file).exists() else ""
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
    return int(match[1]) / 1024 if match else None


def timed(function: Callable, *arguments: Any) -> float:
    """Seconds from a call until the arrays it returns are there."""
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def in_turns(calls: Mapping[Name, Callable[[], float]], rounds: int) -> dict[Name, dict[str, Any]]:
    """Seconds of each call, by its own clock, made in turns so that a noisy machine disturbs all alike.

    `spread` is the distance of the quartiles as a share of the median. A call that fails makes no more
    rounds and has its reason instead.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    failed: dict[Name, dict[str, Any]] = {}
    for round_ in range(-WARM_UP, rounds):
        for name, call in calls.items():
            if name in failed:
                continue
            try:
                took = call()
            except Exception as error:  # of any kind: a device, a compiler, another process
                failed[name] = {"reason": reason(error)}
                continue
            if round_ >= 0:
                seconds[name].append(took)
    return {name: failed.get(name) or _summary(values) for name, values in seconds.items()}


def _summary(seconds: list[float]) -> dict[str, Any]:
    low, median, high = np.percentile(seconds, (25, 50, 75)).tolist()
    return {"median": median, "spread": (high - low) / median, "seconds": seconds}
