"""What our code costs, beside its peers, in one run."""

import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from tyro.constructors import PrimitiveConstructorSpec

from cptjax.command.errors import reason
from cptjax.command.line import Options
from cptjax.files import check_out, write_json
from cptjax.machine.host import cores
from cptjax.machine.provenance import git_commit, versions
from cptjax.shape import ModernBertConfig

SIZES = {  # ModernBERT's two (arXiv:2412.13663)
    "base": ModernBertConfig(),
    "large": ModernBertConfig(hidden_size=1024, intermediate_size=2624, num_hidden_layers=28, num_attention_heads=16),
}
WARM_UP = 2  # calls before any is counted
LARGEST = 2**31 - 1  # side of an array
Name = TypeVar("Name", bound=Hashable)


def several(name: str, read: Callable[[str], Any] = str) -> PrimitiveConstructorSpec:
    """How an option that takes one word or more is written: `name` stands for each, which `read` makes a value."""

    def values(words: list[str]) -> tuple[Any, ...]:
        if not words:
            raise ValueError(f"no {name} is given: name at least one, or leave the option out")
        return tuple(map(read, words))

    def written(given: Sequence[Any]) -> list[str]:
        return ["x".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in given]

    return PrimitiveConstructorSpec("*", f"{name} [{name} ...]", values, lambda _: True, written)


def written_shapes(names: str) -> PrimitiveConstructorSpec:
    """Shapes of arrays, each written with an x between its sides: 2x512 where `names` is ROWSxTOKENS."""

    def sides(word: str) -> tuple[int, ...]:
        numbers = tuple(map(whole_number, word.split("x")))
        if len(numbers) != names.count("x") + 1:
            raise ValueError(f"{word!r} is not {names}: so many whole numbers with an x between them")
        return numbers

    return several(names, sides)


def whole_number(text: str) -> int:
    """A number from 1 on that an array's side may have."""
    if not 1 <= (number := int(text)) <= LARGEST:
        raise ValueError(f"{text!r} is no whole number from 1 to {LARGEST}")
    return number


Count = Annotated[
    int, PrimitiveConstructorSpec(1, "INT", lambda words: whole_number(words[0]), lambda _: True, lambda n: [str(n)])
]
Lengths = Annotated[tuple[int, ...], several("INT", whole_number)]
Names = Annotated[tuple[str, ...], several("NAME")]


@dataclass(frozen=True, kw_only=True)
class Bench(Options):
    """What every bench takes."""

    out: Path | None = None  # JSON file

    def __call__(self, rest: Sequence[str]) -> None:
        """Measure, once the file can be written."""
        check_out(self.out)
        self.work()

    def work(self) -> None:
        """Print what is measured and, if asked, write the JSON."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TimedBench(Bench):
    """A bench that takes time by the clock."""

    rounds: Count = 5


def conditions(rounds: int) -> dict[str, Any]:
    """What a measurement was made with: device, versions, commit, rounds, cores."""
    device = jax.devices()[0].device_kind
    return {"device": device, "versions": versions(), "commit": git_commit(), "rounds": rounds, "cores": cores()}


def record(out: Path | None, rounds: int, rows: list[dict]) -> None:
    """Write what was measured so far, if a file is asked for: a run that is cut short has not lost it."""
    if out is not None:
        write_json(out, {**conditions(rounds), "rows": rows})


def check_names(what: str, named: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known."""
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"no {what} is called {', '.join(unknown)}: there are {', '.join(known)}")


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
