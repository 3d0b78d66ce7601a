"""What a run will need before anything is rented: FLOPs, memory, time, energy and cost.

By formulas, and for TPU topologies, or the GPUs of this machine, by compiling the real step (`aot.py`).
"""

import json
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from cptjax import sharding
from cptjax.attention.backends import choose
from cptjax.command import errors
from cptjax.config import Run
from cptjax.machine import host
from cptjax.machine.devices import GIB, capability_of, device_facts, nearest
from cptjax.planning import aot
from cptjax.planning.assumptions import Assumptions
from cptjax.run import checkpoint
from cptjax.run.checkpoint import parameter_shapes, path_keys
from cptjax.run.memory import MARGIN, Place, most_rows, needed, shortage
from cptjax.run.set_up import micro_batches
from cptjax.run.sizing import Pace, duration, few, flops_of, pace_here
from cptjax.shape import ModelConfig

EXCHANGES = 10  # between devices that are shown


def shape_of(run: Run) -> ModelConfig:
    """The shape of the model that a run has or begins with. Raises CalledProcessError where what it begins with is no
    model that can be converted."""
    if run.model is not None:
        return run.model
    if (Path(run.init or "") / checkpoint.MODEL).exists():
        return checkpoint.read_model(Path(run.init or ""))
    command = errors.own_command("convert", "shape", str(run.init))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return checkpoint.model_config(json.loads(told), where=str(run.init))


def plan(
    run: Run,
    config: ModelConfig,
    *,
    topology: str | None = None,
    devices: int | None = None,
    device: str | None = None,
    assumptions: Assumptions | None = None,
) -> dict[str, Any]:
    """What `run` with a model of this shape needs, ready for JSON.

    On the TPU `topology`; else on `devices` devices named `device`; without either, on those of this machine.
    Compiled where the devices can be compiled for, by formula everywhere. ValueError for a mesh or a batch
    that does not fit the devices, a topology that does not exist, and a device nothing is known of.
    """
    given = assumptions or Assumptions()
    here = jax.devices()
    chips = aot.topology_devices(topology) if topology else None if devices else here
    kind = chips[0].device_kind if chips else device or here[0].device_kind
    mesh = _mesh(run, len(chips) if chips else devices or 1)
    facts = device_facts(kind)
    memory_gib, watts = (facts.memory_gib, facts.watts) if facts else (None, None)
    if chips is here and (available := host.device_memory(here[0])):
        memory_gib = available / GIB
    memory_gib = given.memory or memory_gib
    parameters = _parameters(config)
    report: dict[str, Any] = {
        "name": run.name,
        "device": kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "rows_per_device": run.device_batch_size,
        "micro_batches": micro_batches(run, mesh),
        "memory_gib": memory_gib,
        "parameters": parameters,
        "assumptions": asdict(given) | {"watts": watts if given.watts is None else given.watts},
        "phases": [],
        "compiled": None,
    }
    for phase in run.phases:
        flops = flops_of(run, config, phase)
        report["phases"].append({"name": phase.name, "tokens": phase.tokens, "flops_per_token": flops})
    platform = chips[0].platform if chips else "tpu" if kind.startswith("TPU") else "gpu"
    capability = host.capability(chips[0]) if chips else capability_of(kind)
    place = Place(mesh, platform, choose(run.attention_case(config, platform, capability), run.attention)[0])
    report["bytes"] = needed(run, config, place, run.device_batch_size)
    report["most_rows_per_device"] = memory_gib and most_rows(run, config, place, memory_gib * GIB)
    report["time"] = _time(report, _pace(run, config, kind, given, chips is here))
    report["warnings"] = [*_warnings(report, config, mesh), *few(run)]
    if capability and float(capability) < 8:
        report["warnings"].append(f"a {kind} has no bfloat16: its products are made, and hours reckoned, in float32")
    elif facts and run.precision.compute == "float32":
        report["warnings"].append(
            "hours are by the peak of bfloat16: with --precision.compute float32 they are many more"
        )
    if memory_gib and MARGIN * sum(report["bytes"].values()) > memory_gib * GIB:
        report["warnings"].insert(0, shortage(run, config, place, memory_gib * GIB, kind))
    if chips and chips[0].platform != "cpu":
        if memory_gib and sum(report["bytes"].values()) > 4 * memory_gib * GIB:
            raise ValueError(f"{_gib(sum(report['bytes'].values()))} by formula is far beyond a {kind}: not compiled")
        report["compiled"] = {phase.name: asdict(aot.compile_step(run, config, phase, chips)) for phase in run.phases}
    return report


def _mesh(run: Run, count: int) -> AbstractMesh:
    sizes = sharding.mesh_sizes(run.mesh, count)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Numbers of the model by part; a tied table is one with the embeddings."""
    parts: dict[str, int] = {"embeddings": 0, "attention": 0, "feed-forward": 0, "norms": 0, "head": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(config)):
        names = path_keys(path)
        kinds = {"attn": "attention", "mlp": "feed-forward", "head": "head", "decoder": "head"}
        part = "norms" if names[-2].endswith("norm") else next((kinds[n] for n in names if n in kinds), "embeddings")
        parts[part] += leaf.size
    return parts


def _pace(run: Run, config: ModelConfig, kind: str, given: Assumptions, here: bool) -> Pace | None:
    """What a device is taken to reach: by its peak where that is given or known, else measured if it is here."""
    facts = device_facts(kind)
    peak = given.peak * 1e12 if given.peak else facts and facts.peak_flops
    if peak is None:
        return pace_here(run, config) if here else None
    return Pace(peak * given.mfu, f"{given.mfu:.0%} of the peak (--mfu)")


def _time(report: dict[str, Any], pace: Pace | None) -> dict[str, Any] | None:
    """Hours, energy, emissions and cost at this pace; None when it is not known."""
    if pace is None:
        return None
    given = report["assumptions"]
    flops = sum(phase["tokens"] * sum(phase["flops_per_token"].values()) for phase in report["phases"])
    hours = flops / (pace.flops * report["devices"]) / 3600
    device_hours = hours * report["devices"]
    energy = None if given["watts"] is None else device_hours * given["watts"] / 1000 * given["pue"]
    return {
        "flops": flops,
        "pace": pace.reason,
        "tokens_per_second": sum(phase["tokens"] for phase in report["phases"]) / hours / 3600,
        "hours": hours,
        "device_hours": device_hours,
        "kilowatt_hours": energy,
        "kg_co2": None if energy is None else energy * given["carbon"],
        "price": device_hours * given["price"],
    }


def _warnings(report: dict[str, Any], config: ModelConfig, mesh: AbstractMesh) -> list[str]:
    warnings = []
    total, memory = sum(report["bytes"].values()), report["memory_gib"]
    if mesh.size > 1:
        specs = sharding.shard_tree(mesh, parameter_shapes(config))
        whole = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for (path, leaf), where in zip(
                jax.tree_util.tree_leaves_with_path(parameter_shapes(config)), jax.tree.leaves(specs), strict=True
            )
            if leaf.size >= 2**20 and math.prod(where.shard_shape(leaf.shape)) == leaf.size
        ]
        if whole and memory and total > memory * GIB / 2:
            warnings.append(
                f"{len(whole)} large parameters are whole on every device: a --mesh.fsdp above 1 splits them"
            )
    if config.vocab_size % sharding.LANES:
        padded = -(-config.vocab_size // sharding.LANES) * sharding.LANES
        warnings.append(
            f"the vocabulary of {config.vocab_size:,} is no multiple of {sharding.LANES}: TPUs work on {padded:,}, "
            f"{padded / config.vocab_size - 1:.1%} more"
        )
    return warnings


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


def text(report: dict[str, Any]) -> str:
    """The plan in lines for a terminal."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    tokens = sum(phase["tokens"] for phase in report["phases"])
    lines = [
        f"{report['name']}: {sum(report['parameters'].values()):,} parameters, {tokens:,} tokens",
        f"on {report['devices']} x {report['device']} ({mesh}): {report['rows_per_device']} rows per device at a time, "
        f"{report['micro_batches']} of these make a step",
        *(f"! {warning}" for warning in report["warnings"]),
        "",
        "Parameters",
        *_rows({name: f"{count:,}" for name, count in report["parameters"].items()}),
    ]
    for phase in report["phases"]:
        parts = phase["flops_per_token"]
        lines += ["", f"FLOPs per token of {phase['name']}, one document per row, no recomputation"]
        lines += _rows({name: f"{x:.3e}" for name, x in {**parts, "all": sum(parts.values())}.items()})
    lines += ["", "Memory of a device, by formula"]
    lines += _rows({name: _gib(x) for name, x in {**report["bytes"], "all": sum(report["bytes"].values())}.items()})
    if report["memory_gib"] is not None:
        fits = f"{report['most_rows_per_device']} rows at a time fit {report['memory_gib']:.0f} GiB by formula"
        lines += [f"  {fits}"]
    for name, compiled in (report["compiled"] or {}).items():
        lines += ["", f"Compiled step of {name}, of a device"]
        facts = {
            "arguments": _gib(compiled["argument_bytes"]),
            "temporary": _gib(compiled["temporary_bytes"]),
            "all": _gib(compiled["argument_bytes"] + compiled["temporary_bytes"]),
        }
        if compiled["flops"] is not None:
            facts["FLOPs of products per token"] = f"{compiled['flops']:.3e}"
        lines += _rows(facts)
        lines += ["  exchanges of one step, the largest first"]
        for exchange in compiled["collectives"][:EXCHANGES]:
            lines += [
                f"    {exchange['times']:5} x {exchange['kind']} {exchange['shape'][:60]}: {_gib(exchange['bytes'])}"
            ]
        lines += [f"  ! {warning}" for warning in compiled["rematerialised"]]
    lines += ["", *_time_lines(report)]
    return "\n".join(lines) + "\n"


def _rows(values: dict[str, str]) -> list[str]:
    widest, longest = max(map(len, values)), max(map(len, values.values()))
    return [f"  {name:{widest}}  {value:>{longest}}" for name, value in values.items()]


def _time_lines(report: dict[str, Any]) -> Sequence[str]:
    time, given = report["time"], report["assumptions"]
    if time is None:
        known = ", ".join(nearest(report["device"]))
        return [f"Time: not known, for the peak of a {report['device']} is not: give --peak; known are {known}"]
    energy = "energy: not known, give --watts"
    if time["kilowatt_hours"] is not None:
        energy = (
            f"{time['kilowatt_hours']:,.1f} kWh at {given['watts']:.0f} W and PUE {given['pue']}, "
            f"{time['kg_co2']:,.1f} kg CO2e at {given['carbon']} kg/kWh"
        )
    return [
        f"At {time['pace']}: {time['tokens_per_second']:,.0f} tokens/s, {duration(time['hours'])}, "
        f"{time['device_hours']:,.1f} device hours",
        energy,
        f"{time['price']:,.2f} at {given['price']} for a device hour (--price)",
    ]
