"""What a process asks of the operating system, and of the compiler."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

# Of XLA, by platform; where none is named, none was found that gains anything.
XLA_OPTIONS: dict[str, dict[str, bool | int]] = {
    # Weights of the next layer are gathered during this one's products; what NVIDIA's own JAX images set. And seconds
    # after which NCCL's waiting for a process ends this one, should machine/wire.py not have: hosts compile in minutes.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True, "xla_gpu_nccl_termination_timeout_seconds": 600},
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # malloc.h of glibc


def ready_to_compute() -> bool:
    """On a CPU keep freed memory, which every command that computes asks for. Whether it is one."""
    import jax  # here, for the processes that write stores need none of it

    if is_cpu := jax.default_backend() == "cpu":
        keep_freed_memory()
    return is_cpu


def keep_freed_memory() -> None:
    """Have freed memory reused by this process instead of given back to the system.

    On a CPU a training step frees gigabytes and takes them again, and the system clears every page it hands
    out anew. Asks glibc (mallopt(3)); does nothing where the C library knows no mallopt.
    """
    _mallopt(M_MMAP_MAX, 0)  # large blocks from the heap, not from maps that are dropped when freed
    _mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap
    _mallopt(M_ARENA_MAX, 1)  # one heap for all threads


def return_freed_memory() -> None:
    """Have freed blocks of a megabyte or more given back at once: for a process that reads one large array
    after the other, in several threads. Does nothing where the C library knows no mallopt."""
    _mallopt(M_MMAP_THRESHOLD, 2**20)
    _mallopt(M_ARENA_MAX, 2)


def xla_options(platform: str) -> dict[str, bool | int]:
    """What the training step is compiled with on devices of this platform; what XLA_FLAGS names is left to it."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in XLA_OPTIONS.get(platform, {}).items() if name not in flags}


def device_memory(device: Any) -> int | None:
    """Bytes that jax may use of a device of this process, None where it does not say (of GPUs it takes three quarters
    unless XLA_PYTHON_CLIENT_MEM_FRACTION says more); of a CPU, its share of the machine's memory."""
    import jax  # here, for the processes that write stores need none of it

    if device.platform == "cpu":
        return memory() // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def capability(device: Any) -> str | None:
    """The compute capability of a GPU, such as 9.0; None of other devices."""
    return getattr(device, "compute_capability", None)


def cache_folder() -> Path:
    """Where compiled programs are kept between runs: in XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cptjax" / "compiled"


def _mallopt(name: int, value: int) -> None:
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(name, value)
