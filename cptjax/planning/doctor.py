"""What this machine is, and which kernels are right and fast on it: before a run, and for a report of a fault.

B rows, L tokens, H heads, K head width.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cptjax.attention.backends import BACKENDS, Case, attend, choose, obstacle
from cptjax.attention.check import both, inputs, verify
from cptjax.command.errors import reason
from cptjax.machine import devices, host, provenance
from cptjax.machine.devices import GIB
from cptjax.machine.energy import EnergyMeter
from cptjax.machine.host import cores
from cptjax.masks import MaskMode
from cptjax.shape import FULL, SLIDING, ModernBertConfig

SHAPE = ModernBertConfig()  # attention is tried in the shape of ModernBERT-base
CPU, ACCELERATOR = {"tokens": 1024, "width": 2048}, {"tokens": 8192, "width": 8192}  # of what is timed
CALLS = 3  # the fastest counts
CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")  # pip's packages of it
CUDNN_NAN = "9.25.1"  # the last version that is known to give them (github.com/pytorch/pytorch/issues/196678)


def examine() -> dict[str, Any]:
    """Machine, devices, speed of products, and error and speed of every row of attention, ready for JSON."""
    here = jax.default_backend()
    sizes, dtype = (CPU, "float32") if here == "cpu" else (ACCELERATOR, "bfloat16")
    case = Case(here, sizes["tokens"], SHAPE.head_dim, dtype, host.capability(jax.devices()[0]))
    reasons = {name: obstacle(name, case) for name in BACKENDS}
    rows = [
        {"kind": kind, "mask_mode": mode.value, "backend": name, **_row(name, kind, mode, sizes["tokens"], dtype)}
        for kind in (FULL, SLIDING)
        for mode in MaskMode
        for name, why in reasons.items()
        if not why
    ]
    try:
        backend, reason = choose(case, failed={row["backend"]: row["reason"] for row in rows if "reason" in row})
    except ValueError as error:
        backend, reason = None, str(error)
    return {
        "machine": _machine(),
        "devices": [_device(device) for device in jax.devices()],
        "dtype": dtype,
        "products": {"width": sizes["width"], "flops_per_second": _products(sizes["width"], dtype)},
        "attention": {"backend": backend, "reason": reason, **_shape(sizes["tokens"])},
        "unusable": {name: why for name, why in reasons.items() if why},
        "rows": rows,
        "advice": advice(here),
    }


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": provenance.versions() | {"cudnn": cudnn()},
        "commit": provenance.git_commit(),
        "cores": cores(),
        "memory_gib": host.memory() / GIB,
        "free_disk_gib": shutil.disk_usage(".").free / GIB,
        "energy": EnergyMeter(jax.local_devices()).method,
        "settings": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(("JAX_", "XLA_", "LIBTPU"))
        },
    }


def cudnn() -> str | None:
    """The version of cuDNN that pip installed, None where it did not."""
    return next(filter(None, provenance.versions(CUDNN).values()), None)


def _device(device: Any) -> dict[str, Any]:
    facts, available = devices.device_facts(device.device_kind), host.device_memory(device)
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "process": device.process_index,
        "memory_gib": available and available / GIB,
        "peak_flops": facts and facts.peak_flops,
    }


def _shape(tokens: int) -> dict[str, int]:
    return {"tokens": tokens, "heads": SHAPE.num_attention_heads, "width": SHAPE.head_dim}


def _seconds(function: Callable, *arrays: jax.Array) -> float:
    """Of the fastest call, after one that compiles."""
    jax.block_until_ready(function(*arrays))
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        taken.append(time.perf_counter() - began)
    return min(taken)


def _products(width: int, dtype: str) -> float:
    """FLOPs per second of one device in a product of two square matrices."""
    x = jax.random.normal(jax.random.key(0), (width, width), dtype)
    return 2 * width**3 / _seconds(jax.jit(jnp.dot), x, x)


def _row(backend: str, kind: str, mode: MaskMode, tokens: int, dtype: str) -> dict[str, Any]:
    """Errors against the reference, seconds forward and backward; or why there are none."""
    spec = SHAPE.mask_spec(kind, mode)
    try:
        errors = verify(backend, spec, SHAPE.num_attention_heads, SHAPE.head_dim, dtype)
        arrays = inputs((1, tokens, SHAPE.num_attention_heads, SHAPE.head_dim), dtype)
        return {
            "errors": errors,
            "seconds": _seconds(jax.jit(partial(both, partial(attend, backend=backend), spec)), *arrays),
        }
    except Exception as error:  # of any kind: kernels, compilers and full devices refuse in their own ways
        return {"reason": reason(error)}


def advice(platform_name: str) -> list[str]:
    """What would be better on this machine, in lines."""
    hints = []
    if platform_name == "cpu" and shutil.which("nvidia-smi"):
        hints.append("there is an NVIDIA driver here, but jax works on the CPU: pip install -U 'jax[cuda13]'")
    if platform_name == "cpu" and any(Path("/dev").glob("accel[0-9]*")):
        hints.append("there is a TPU here, but jax works on the CPU: pip install -U 'jax[tpu]'")
    version = cudnn() if platform_name == "gpu" else None
    if version and _numbers(version) <= _numbers(CUDNN_NAN):
        hints.append(
            f"cuDNN {version} can give gradients that are not numbers where all scores of a token are far below 0; a "
            "run tries such rows first, and takes another kernel where they fail: pip install -U 'jax[cuda13]'"
        )
    kinds = {device.device_kind for device in jax.devices()} if platform_name != "cpu" else set()
    for kind in sorted(kinds):
        if devices.device_facts(kind) is None:
            hints.append(
                f"the peak of a {kind} is not known: runs are told neither MFU nor hours, plans the latter with --peak"
            )
    method = EnergyMeter(jax.local_devices()).method
    if platform_name == "gpu" and method.startswith("not measured"):
        hints.append(f"energy is {method}")
    return hints


def _numbers(version: str) -> list[int]:
    """Three of a version's numbers, to compare."""
    return [int(part) for part in version.split(".")[:3]]


def text(report: dict[str, Any]) -> str:
    """The report in lines for a terminal."""
    machine, attention, rows = report["machine"], report["attention"], report["rows"]
    commit = f", commit {machine['commit']}" if machine["commit"] else ""  # not known to what pip installed
    lines = [
        f"{machine['system']}, Python {machine['python']}{commit}",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version),
        f"{machine['cores']} cores, {machine['memory_gib']:.0f} GiB of memory, {machine['free_disk_gib']:.0f} GiB of "
        f"disk free; energy: {machine['energy']}",
        *(f"{name}={value}" for name, value in machine["settings"].items()),
    ]
    first = report["devices"][0]
    memory = "" if first["memory_gib"] is None else f", {first['memory_gib']:.0f} GiB each"
    lines += [f"{len(report['devices'])} x {first['kind']}{memory}"]
    reached = report["products"]["flops_per_second"]
    share = "" if first["peak_flops"] is None else f", {reached / first['peak_flops']:.0%} of its peak"
    width = report["products"]["width"]
    lines += [f"products of {width} x {width} matrices, {report['dtype']}: {reached / 1e12:.3g} TFLOP/s{share}"]
    shape = f"{attention['tokens']} tokens, {attention['heads']} heads of {attention['width']}, {report['dtype']}"
    lines += [
        "",
        f"Attention, forward and backward: {shape}",
        f"  {'layers and mask':34}{'row':12}{'worst error':>12}{'ms':>10}",
    ]
    for row in rows:
        start = f"  {row['kind'] + ', ' + row['mask_mode']:34}{row['backend']:12}"
        if "reason" in row:
            lines += [start + row["reason"]]
        else:
            lines += [f"{start}{max(row['errors'].values()):12.1e}{1000 * row['seconds']:10.1f}"]
    lines += [f"  {name} {why}" for name, why in report["unusable"].items()]
    taken = "nothing" if attention["backend"] is None else attention["backend"]
    lines += [f"  a run takes {taken} ({attention['reason']})", ""]
    lines += [f"! {line}" for line in report["advice"]] or ["nothing to mend"]
    return "\n".join(lines) + "\n"


def failures(report: dict[str, Any]) -> list[str]:
    """What is wrong with the rows of attention that a run might take here, whether or not another takes their place."""
    return [
        f"attention {row['backend']} fails here: {row['kind']}, {row['mask_mode']}: {row['reason']}"
        for row in report["rows"]
        if "reason" in row and row["backend"] != "reference"
    ]
