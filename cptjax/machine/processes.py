"""The processes of one run: how they join, and how all stop where one fails or differs from the others.

A process that stops alone leaves the others waiting for it, in whatever they would have done together next.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cptjax.command import errors
from cptjax.command.escape import listed

MOST_FIELDS = 8  # that are named where processes differ


def start() -> None:
    """Join the other processes of a multi-host run; does nothing for a single process.

    Slurm steps (srun, one task per device or node) and Cloud TPU pods are recognised; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Must run before anything else
    uses JAX. Raises ValueError when only some of the three are set, or one is not what it should be,
    and when processes have unequal numbers of devices.
    """
    tasks = _number("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_STEP_NUM_TASKS") or "1", 1)
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    named = {name: os.environ.get(name) for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
    if any(named.values()):
        if missing := [name for name, value in named.items() if not value]:
            raise ValueError(f"to join the other processes, set {', '.join(missing)} too")
        host, _, port = str(named["JAX_COORDINATOR_ADDRESS"]).rpartition(":")
        if not host:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS is {port!r}: it is HOST:PORT")
        _number("JAX_COORDINATOR_ADDRESS", port, 1, 2**16 - 1)
        count = _number("JAX_NUM_PROCESSES", str(named["JAX_NUM_PROCESSES"]), 1)
        index = _number("JAX_PROCESS_ID", str(named["JAX_PROCESS_ID"]), 0, count - 1)
        jax.distributed.initialize(named["JAX_COORDINATOR_ADDRESS"], count, index)
    elif tasks > 1 or len(workers) > 1:
        jax.distributed.initialize()
    else:
        return
    if jax.default_backend() == "cpu" and jax.process_count() > 1:
        _keep_stdout_for_python()
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise ValueError(f"every process must have as many devices: {_differing('devices', devices)}")


def _keep_stdout_for_python() -> None:
    """Gloo, by which CPUs exchange, tells on stdout of each group of processes that it has joined. What other languages
    print there goes nowhere from here on; their errors are on stderr."""
    if sys.stdout is None or sys.stdout.fileno() != 1:
        return
    sys.stdout.flush()
    own = os.dup(1)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
    sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)


def _number(name: str, text: str, least: int, most: int = 2**20) -> int:
    """A whole number that a variable of the environment ends with."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise ValueError(f"{name} says {text!r} where a number from {least} to {most} is needed")
    return int(text)


@contextlib.contextmanager
def together(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """What each process does by itself, all of them at the same time: when it fails in some, an error of this kind in
    all, with the words of those, named where not all say the same. In a run of one process an error is what it was."""
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        failure = error
    words = gather(None if failure is None else errors.describe(failure))
    if any(words):
        failed = {i: said for i, said in enumerate(words) if said}
        alone = (f"{who}: {said}" for said, who in _by_value(failed).items())
        raise kind(words[0] if len(set(words)) == 1 else "; ".join(alone)) from failure


def compare(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise ValueError in all processes where `facts()`, a tree that JSON can hold, is not the same in all.

    It names the fields, dotted, and which process has which value. A run of one process does not ask for the facts.
    """
    if jax.process_count() == 1:
        return
    with together():
        own = _by_field(facts())
    everywhere = gather(own)
    differ = []
    for name in dict.fromkeys(name for fields in everywhere for name in fields):
        values = {i: fields.get(name, "absent") for i, fields in enumerate(everywhere)}
        if any(value != values[0] for value in values.values()):
            differ.append(_differing(name, values))
    if differ:
        raise ValueError(f"the processes of this run differ: {listed(differ, most=MOST_FIELDS, between='; ')}")


def gather(value: Any) -> list[Any]:
    """What each process gives, by its number. It must be something that JSON can hold."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size)).reshape(-1)
    padded = np.pad(text, (0, sizes.max() - text.size))
    texts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(theirs[:size].tobytes()) for theirs, size in zip(texts, sizes, strict=True)]


def _by_field(facts: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(facts, is_leaf=lambda x: x is None)
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}


def _differing(name: str, of_process: Mapping[int, Any]) -> str:
    return f"{name} is {', '.join(f'{value} in {who}' for value, who in _by_value(of_process).items())}"


def _by_value(of_process: Mapping[int, Any]) -> dict[str, str]:
    """Each value, as text, and the processes that have it, in words."""
    having: dict[str, list[int]] = {}
    for process, value in of_process.items():
        having.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(process)
    return {value: _in_words(processes) for value, processes in having.items()}


def _in_words(processes: list[int]) -> str:
    """Of ascending numbers: process 1, processes 0, 2-7."""
    runs: list[list[int]] = []
    for process in processes:
        if runs and runs[-1][-1] == process - 1:
            runs[-1] = [runs[-1][0], process]
        else:
            runs.append([process])
    return f"process{'es' * (len(processes) > 1)} {', '.join('-'.join(map(str, run)) for run in runs)}"
