"""What a training step will need on devices that are not here: it is compiled for them ahead of time.

TPUs need only the package libtpu, and no TPU. The compiled text is read for the collectives, which XLA's own
analysis does not count, with the trip counts of the loops they stand in.
"""

import contextlib
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cptjax import sharding
from cptjax.attention import choose
from cptjax.config import Phase, Run
from cptjax.model import ModelConfig, ModernBert
from cptjax.objectives import Vocabulary
from cptjax.optim import make_optimizer
from cptjax.train import Setting, compile_phase, state_shapes

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}


@dataclass(frozen=True)
class Collective:
    """One kind of exchange between devices: what it yields on each, and how often one step makes it."""

    kind: str
    shape: str
    times: int
    bytes: int  # of all times together


@dataclass(frozen=True)
class Executable:
    """One compiled step: bytes of one device, FLOPs of the matrix products per token, exchanges in order of size.

    `flops` counts recomputation, and not what kernels do.
    """

    argument_bytes: int
    temporary_bytes: int
    flops: float
    rematerialised: tuple[str, ...]  # what the partitioner says of arrays it copied whole to split them anew
    collectives: tuple[Collective, ...]


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology such as v5e:4x4. ValueError when libtpu is missing or knows none of that name."""
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU here: nobody to ask about it
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # jaxlib raises many types
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"no TPU topology {name} ({reason}): names are KIND:XxY[xZ], such as v4:2x2x2, v5e:4x4, v5e:16x16, "
            "v5p:2x2x4, v6e:4x4, tpu7x:2x2x2, and the package libtpu is needed"
        ) from None


def compile_step(run: Run, config: ModelConfig, phase: Phase, devices: list[Any]) -> Executable:
    """Compile one optimiser step of a phase for these devices, which need not be here, as `train` would."""
    mesh = sharding.make_mesh(run.mesh, devices)
    backend, reason = choose(devices[0].platform, run.data.sequence_length, run.attention)
    model = ModernBert(config, run.precision, backend, run.remat, sharding.pin_rows)
    vocabulary = Vocabulary(config.vocab_size, 0, ())  # the ids decide no shape
    setting = Setting(run, Path(), model, vocabulary, mesh, {}, {"backend": backend, "reason": reason})
    tx = make_optimizer(run.optimizer, phase.schedule.peak)
    state = state_shapes(setting, tx)
    tokens = jax.ShapeDtypeStruct(
        (run.data.global_batch_size, run.data.sequence_length),
        jnp.int32,
        sharding=NamedSharding(mesh, P(sharding.ROWS)),
    )
    first, last = run.bounds[run.phases.index(phase)]
    with jax.set_mesh(mesh):
        step: Any = compile_phase(setting, phase, first, last, tx)
        traced = step.trace(state, {"token_BL": tokens, "segment_BL": tokens})
        with _said() as said:
            compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    return Executable(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        product_flops(traced.jaxpr.jaxpr) / (run.data.global_batch_size * run.data.sequence_length),
        tuple(line for line in said if "nvoluntary full remat" in line),
        tuple(read_collectives(compiled.as_text())),
    )


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """The lines that the compiler, which is no Python, writes to stderr meanwhile; they are not shown."""
    lines: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def product_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products of a traced program on all devices, loops counted as often as they run.

    What kernels do is not seen. XLA's own count takes the body of a loop once.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        elif eqn.primitive.name != "pallas_call":
            inner = sum(product_flops(getattr(j, "jaxpr", j)) for j in core.jaxprs_in_params(eqn.params))
            total += inner * eqn.params.get("length", 1) * _shards(eqn)
    return total


def _shards(eqn: Any) -> int:
    """Devices that each do the work of a shard_map, whose shapes are those of one: as many as an array is cut for."""
    if eqn.primitive.name != "shard_map":
        return 1
    inside = eqn.params["jaxpr"].invars
    return max(whole.aval.size // part.aval.size for whole, part in zip(eqn.invars, inside, strict=True))


# ---- the text of a compiled program

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_CALL = re.compile(r"(?:body|to_apply|calls)=%?([\w.-]+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_BOUND = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_EXCHANGE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def read_collectives(text: str) -> list[Collective]:
    """The exchanges of a compiled program, each with how often it is made, the largest sum of bytes first."""
    program = _computations(text)
    times = _times(text, program)
    channels: dict[str, tuple[str, str, int]] = {}  # one exchange may be spread over several fusions
    for name, lines in program.items():
        for number, line in enumerate(lines):
            if exchange := _EXCHANGE.search(line):
                arrays = [f"{kind}[{sizes}]" for kind, sizes in _ARRAY.findall(exchange[1]) if sizes]
                if exchange[3]:  # yields its operands too, before its results
                    arrays = arrays[len(arrays) // 2 :]
                channel = _CHANNEL.search(line)
                key = channel[1] if channel else f"{name} {number}"
                most = max(times[name], channels[key][2] if key in channels else 0)
                channels[key] = (exchange[2], " ".join(arrays), most)
    found: Counter[tuple[str, str]] = Counter()
    for kind, shape, count in channels.values():
        found[kind, shape] += count
    made = [Collective(kind, shape, count, count * _bytes(shape)) for (kind, shape), count in found.items()]
    return sorted(made, key=lambda one: -one.bytes)


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program."""
    program: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
            program[name] = []
        elif name and line.startswith(" "):
            program[name].append(line)
    return program


def _times(text: str, program: dict[str, list[str]]) -> Counter[str]:
    """How often each computation runs; a loop as often as the only number its condition compares with."""
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, lines in program.items():
        for line in lines:
            trips = 1
            if condition := _CONDITION.search(line):
                bounds = [int(n) for n in _BOUND.findall("\n".join(program.get(condition[1], ())))]
                trips = bounds[0] if len(bounds) == 1 else 1
            calls.setdefault(name, []).extend((callee, trips) for callee in _CALL.findall(line))
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for callee, trips in calls.get(name, ()):
            visit(callee, count * trips)

    if entry := re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE):
        visit(entry[1], 1)
    return times


def _bytes(shape: str) -> int:
    return sum(
        BYTES.get(kind, 4) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
    )
