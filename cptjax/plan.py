"""What a run will need before anything is rented: FLOPs, memory, time, energy and cost.

By formulas, and for TPU topologies, or the GPUs of this machine, by compiling the real step (`aot.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from cptjax import aot, sharding, telemetry
from cptjax.attention import choose, query_block
from cptjax.checkpoint import parameter_shapes
from cptjax.config import Phase, Run
from cptjax.cudnn import MOST_DOCUMENTS
from cptjax.model import FULL, ModelConfig, layer_plan
from cptjax.objectives import mask_budget
from cptjax.optim import make_optimizer
from cptjax.step import chunk_positions, init_state
from cptjax.train import attention_case, micro_batches

GIB = 2**30
FLOAT = 4  # bytes of a float32
MARGIN = 1.15  # the formulas of memory were up to 13 % below compiled steps
SCORES = 4  # arrays of them that attention has at a time
EXCHANGES = 10  # between devices that are shown


@dataclass(frozen=True)
class Assumptions:
    """What no formula knows: the share of the peak that is reached, and what an hour and a kWh cost."""

    mfu: float = 0.4
    price: float = 2.0  # of a device for an hour; a round number, nobody's offer
    watts: float | None = None  # of a device; None: its board power
    pue: float = 1.2  # energy of the whole site per energy of the devices
    carbon: float = 0.473  # kg CO2 equivalent per kWh; world mean of 2024 (Ember, Global Electricity Review 2025)


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
    found = aot.topology_devices(topology) if topology else None if devices else here
    kind = found[0].device_kind if found else device or here[0].device_kind
    mesh = _mesh(run, len(found) if found else devices or 1)
    facts = telemetry.device_facts(kind)
    memory_gib, watts = (facts.memory_gib, facts.watts) if facts else (None, None)
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
        flops = _flops(run, config, phase)
        report["phases"].append({"name": phase.name, "tokens": phase.tokens, "flops_per_token": flops})
    platform = "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"
    report["bytes"] = _bytes(run, config, mesh, run.device_batch_size, platform)
    report["most_rows_per_device"] = _most_rows(run, config, mesh, memory_gib, platform)
    report["time"] = _time(report, telemetry.peak_flops(kind))
    report["warnings"] = _warnings(report, config, mesh)
    if found and found[0].platform != "cpu":
        if memory_gib and sum(report["bytes"].values()) > 4 * memory_gib * GIB:
            raise ValueError(f"{_gib(sum(report['bytes'].values()))} by formula is far beyond a {kind}: not compiled")
        report["compiled"] = {phase.name: asdict(aot.compile_step(run, config, phase, found)) for phase in run.phases}
    return report


def _mesh(run: Run, count: int) -> AbstractMesh:
    sizes = sharding.mesh_sizes(run.mesh, count)
    return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Numbers of the model by part; a tied table is one with the embeddings."""
    parts: dict[str, int] = {"embeddings": 0, "attention": 0, "feed-forward": 0, "norms": 0, "head": 0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameter_shapes(config)):
        names = [entry.key for entry in path]
        kinds = {"attn": "attention", "mlp": "feed-forward", "head": "head", "decoder": "head"}
        part = "norms" if names[-2].endswith("norm") else next((kinds[n] for n in names if n in kinds), "embeddings")
        parts[part] += leaf.size
    return parts


def _flops(run: Run, config: ModelConfig, phase: Phase) -> dict[str, float]:
    """Model FLOPs per token by part, one document per row: forward and backward, no recomputation."""
    length = run.data.sequence_length
    predicted = 1.0 if phase.objective.kind == "clm" else phase.objective.mask_rate
    return telemetry.flops_per_token(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        keys=config.mean_keys(phase.objective.mask_mode, length),
        predicted=predicted,
    )


def _bytes(run: Run, config: ModelConfig, mesh: AbstractMesh, rows: int, platform: str) -> dict[str, int]:
    """Bytes of one device by part: those of the state exact, the others by formula, which docs/performance.md
    compares with compiled steps."""
    tx = make_optimizer(run.optimizer, run.phases[0].schedule.peak)
    shapes = jax.eval_shape(lambda params: init_state(params, tx), parameter_shapes(config))
    shardings = sharding.shard_tree(mesh, shapes)
    each = jax.tree.map(lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    parameters = sum(jax.tree.leaves(each.params))
    tensor, compute = mesh.shape["tensor"], jnp.dtype(run.precision.compute).itemsize
    table = config.vocab_size * config.hidden_size * FLOAT // tensor
    kept, work = _activations(run, config, rows, platform, tensor)
    chunk = min(chunk_positions(rows, config.vocab_size), max(_predicted(run, phase) for phase in run.phases)) * rows
    logits = chunk * config.vocab_size * (2 * FLOAT + compute) // tensor
    whole = parameters * compute // FLOAT if mesh.shape["fsdp"] == 1 else table + table * compute // FLOAT
    return {
        "parameters": parameters,
        "optimiser": sum(jax.tree.leaves(each.opt_state)),
        "gradients": parameters,
        "gradients of tables": 2 * table,  # of the lookup and of the loss
        "parameters to compute with": whole if compute != FLOAT or mesh.shape["fsdp"] > 1 else 0,
        "activations": kept,
        "work": max(work, logits),
    }


def _activations(run: Run, config: ModelConfig, rows: int, platform: str, tensor: int) -> tuple[int, int]:
    """Bytes that `rows` rows keep for the backward pass, and those in work meanwhile, in one layer or block, on one
    of the `tensor` devices that share heads and feed-forward."""
    tokens, compute = rows * run.data.sequence_length, jnp.dtype(run.precision.compute).itemsize
    width, inner, folded = config.hidden_size, config.intermediate_size, layer_plan(config)
    backend, _ = choose(attention_case(run, config, platform), run.attention)
    # q, k, v and what attention gives have the width of a head last, which a TPU fills up to its lanes.
    heads = 4 * width * max(1, sharding.LANES // config.head_dim if platform == "tpu" else 1)
    # Beside them: what enters the layer and its second half, both normed; what attention gives, as an operand; of the
    # feed-forward both halves, the first one's slope, and their product.
    layer = tokens * compute * (4 * width + (heads + width + 4 * inner) // tensor)
    dots = tokens * compute * (2 * width + (heads + 2 * inner) // tensor)
    block = folded.period * layer
    blocks = folded.repeats + len(folded.rest)
    length, of_heads = run.data.sequence_length, rows * config.num_attention_heads // tensor * FLOAT
    sums = of_heads * length * MOST_DOCUMENTS if backend == "cudnn" else 0  # of the scores of a global layer
    all_sums, entered = config.layer_types.count(FULL) * sums, blocks * tokens * compute * width
    kept = {
        "none": config.num_hidden_layers * layer + all_sums,
        "dots": layer + (config.num_hidden_layers - 1) * dots + all_sums + entered,
        "block": layer + sums + entered,
    }[run.remat]
    again = {"none": layer, "dots": block - folded.period * dots, "block": block + sums}[run.remat]
    if backend == "splash":
        scores = 2 * of_heads * length * sharding.LANES  # no scores, but their sums in tiles
    elif backend == "reference":
        scores = of_heads * length * length
    else:
        queries = query_block(rows, config.num_attention_heads, length)
        scores = of_heads * length * max(queries, 4 * config.sliding_window)  # of a global layer, of a local one
    return kept, again + SCORES * scores


def _predicted(run: Run, phase: Phase) -> int:
    length = run.data.sequence_length
    return length if phase.objective.kind == "clm" else mask_budget(phase.objective, length)


def _most_rows(
    run: Run, config: ModelConfig, mesh: AbstractMesh, memory_gib: float | None, platform: str
) -> int | None:
    """The most rows per device at a time that fit by formula and divide the batch; 0 when not one does."""
    share = run.data.global_batch_size // math.prod(mesh.shape[axis] for axis in sharding.ROWS)
    if memory_gib is None:
        return None
    fits = (r for r in range(share, 0, -1) if share % r == 0)
    return next(
        (r for r in fits if MARGIN * sum(_bytes(run, config, mesh, r, platform).values()) < memory_gib * GIB), 0
    )


def _time(report: dict[str, Any], peak: float | None) -> dict[str, Any] | None:
    """Hours, energy, emissions and cost at the assumed share of the peak; None when the peak is not known."""
    if peak is None:
        return None
    given = report["assumptions"]
    flops = sum(phase["tokens"] * sum(phase["flops_per_token"].values()) for phase in report["phases"])
    hours = flops / (peak * given["mfu"] * report["devices"]) / 3600
    device_hours = hours * report["devices"]
    energy = None if given["watts"] is None else device_hours * given["watts"] / 1000 * given["pue"]
    return {
        "flops": flops,
        "tokens_per_second": sum(phase["tokens"] for phase in report["phases"]) / hours / 3600,
        "hours": hours,
        "device_hours": device_hours,
        "kilowatt_hours": energy,
        "kg_co2": None if energy is None else energy * given["carbon"],
        "price": device_hours * given["price"],
    }


def _warnings(report: dict[str, Any], config: ModelConfig, mesh: AbstractMesh) -> list[str]:
    found = []
    total, memory = sum(report["bytes"].values()), report["memory_gib"]
    if memory and MARGIN * total > memory * GIB:
        most = report["most_rows_per_device"]
        advice = f"--device_batch_size {most}" if most else "--remat block, a larger --mesh.fsdp or more devices"
        found.append(f"{_gib(total)} by formula do not fit the {memory:.0f} GiB of a {report['device']}: {advice}")
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
            found.append(f"{len(whole)} large parameters are whole on every device: a --mesh.fsdp above 1 splits them")
    if config.vocab_size % sharding.LANES:
        padded = -(-config.vocab_size // sharding.LANES) * sharding.LANES
        found.append(
            f"the vocabulary of {config.vocab_size:,} is no multiple of {sharding.LANES}: TPUs work on {padded:,}, "
            f"{padded / config.vocab_size - 1:.1%} more"
        )
    return found


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
        for one in compiled["collectives"][:EXCHANGES]:
            lines += [f"    {one['times']:5} x {one['kind']} {one['shape'][:60]}: {_gib(one['bytes'])}"]
        lines += [f"  ! {warning}" for warning in compiled["rematerialised"]]
    lines += ["", *_time_lines(report)]
    return "\n".join(lines) + "\n"


def _rows(values: dict[str, str]) -> list[str]:
    widest, longest = max(map(len, values)), max(map(len, values.values()))
    return [f"  {name:{widest}}  {value:>{longest}}" for name, value in values.items()]


def _time_lines(report: dict[str, Any]) -> Sequence[str]:
    time, given = report["time"], report["assumptions"]
    if time is None:
        return [
            f"Time: not known, for the peak of a {report['device']} is not; known are {', '.join(telemetry.DEVICES)}"
        ]
    energy = "energy: not known, give --watts"
    if time["kilowatt_hours"] is not None:
        energy = (
            f"{time['kilowatt_hours']:,.0f} kWh at {given['watts']:.0f} W and PUE {given['pue']}, "
            f"{time['kg_co2']:,.1f} kg CO2e at {given['carbon']} kg/kWh"
        )
    return [
        f"At {given['mfu']:.0%} of the peak (--mfu): {time['tokens_per_second']:,.0f} tokens/s, "
        f"{time['hours']:,.1f} hours, {time['device_hours']:,.0f} device hours",
        energy,
        f"{time['price']:,.0f} at {given['price']} for a device hour (--price)",
    ]
