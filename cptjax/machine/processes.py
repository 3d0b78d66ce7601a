"""The processes of one run: how they join, and how all stop where one fails or differs from the others.

A process that stops alone leaves the others waiting for it, in whatever they would have done together next.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cptjax.command import errors
from cptjax.command.escape import listed
from cptjax.command.signals import Signals
from cptjax.machine import cluster
from cptjax.machine.wire import Wire, of_all

STUCK_AFTER, JOIN_WITHIN = 60.0, 300.0  # seconds
SHORTEST, LONGEST = 5.0, 86400.0  # of the first; of both
MOST_FIELDS = 8  # that are named where processes differ


@dataclass
class _Joined:
    """What `joined` has joined."""

    wire: Wire


_JOINED = _Joined(Wire())


@contextlib.contextmanager
def joined(
    signals: Signals, distributed: str = "auto", stuck_after: float = STUCK_AFTER, join_within: float = JOIN_WITHIN
) -> Iterator[None]:
    """Join the other processes of a run, where `distributed` or a launcher says that there are any: see
    `cluster.place`. When one of them dies, does nothing or, in this block, fails, all end within `stuck_after` seconds.

    Must begin before anything else uses JAX. Raises ValueError when the others cannot be found in `join_within`
    seconds, or have unequal numbers of devices, and for a time that is too short to judge by.
    """
    if not SHORTEST <= stuck_after <= LONGEST or not 0 < join_within <= LONGEST:
        raise ValueError(f"--stuck-after is at least {SHORTEST:g} seconds, --join-within above 0, both at most a day")
    place = None if jax.distributed.is_initialized() else cluster.place(distributed, join_within)
    if place is not None:
        wire = Wire(stuck_after)
        wire.join(place, join_within)
        _JOINED.wire = wire
    with watched(signals) as wire:
        if place is not None:
            _initialize(place, wire, stuck_after)
        devices = Counter(device.process_index for device in jax.devices())
        if len(set(devices.values())) > 1:
            raise of_all(ValueError(f"every process must have as many devices: {_differing('devices', devices)}"))
        if place is not None:
            gather(None)  # Gloo, between CPUs, waits 30 s for all, the first time: now none is far behind
        yield


@contextlib.contextmanager
def watched(signals: Signals) -> Iterator[Wire]:
    """A run's work: see `Wire.watched`."""
    with _JOINED.wire.watched(signals) as wire:
        yield wire


def _initialize(place: cluster.Place, wire: Wire, stuck_after: float) -> None:
    """Have jax join the processes, too."""
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us, and knows no other
    host = f"[{place.host}]" if ":" in place.host else place.host
    jax.distributed.initialize(
        f"{host}:{wire.port}",
        place.count,
        place.index,
        place.devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{host}:{wire.port}" if place.is_loopback else None,
        heartbeat_timeout_seconds=int(2 * stuck_after) + 60,  # after the wire, should that fail
    )
    if jax.default_backend() == "cpu":
        _keep_stdout_for_python()


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
        raise of_all(kind(words[0] if len(set(words)) == 1 else "; ".join(alone))) from failure


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
        told = listed(differ, most=MOST_FIELDS, between="; ")
        raise of_all(ValueError(f"the processes of this run differ: {told}"))


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
    return {value: cluster.in_words(processes) for value, processes in having.items()}
