"""Freed memory stays with the process, where taking it again touches no fresh page; or is given back at once."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from cptjax.machine import host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")

TAKE_AGAIN = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a page of 2 MiB would be one fault
import numpy as np
from cptjax.machine import host
setting, *sizes = sys.argv[1:]
if setting != "none":
    getattr(host, setting)()
for size in sizes:
    np.ones(int(size))  # freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(int(sizes[-1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setting: str, *sizes: int) -> int:
    """Fresh pages of the last block when arrays of these many float64 came and went before, the last one too."""
    command = [sys.executable, "-c", TAKE_AGAIN, setting, *map(str, sizes)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_freed_memory_is_used_again():
    # Broken by: M_TRIM_THRESHOLD left alone, and by M_MMAP_MAX left alone.
    assert faults("keep_freed_memory", 2**25) < 100 < faults("none", 2**25)  # 256 MiB


def test_a_process_that_computes_on_a_cpu_keeps_freed_memory(monkeypatch):
    # Broken by: keep_freed_memory left out of ready_to_compute; `==` as `!=`.
    kept = []
    monkeypatch.setattr(host, "keep_freed_memory", lambda: kept.append(True))
    assert (host.ready_to_compute(), kept) == (True, [True])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (host.ready_to_compute(), kept) == (False, [True])


def test_freed_memory_is_given_back():
    # Broken by: M_MMAP_THRESHOLD left alone.
    # Once 16 MiB were freed, glibc keeps blocks of up to that size. 4 MiB are 1024 pages.
    assert faults("none", 2**21, 2**19) < 400 < faults("return_freed_memory", 2**21, 2**19)


def test_the_compiler_is_told_what_the_user_did_not_say(monkeypatch):
    # Broken by: XLA_FLAGS not read.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    scheduler, nccl = "xla_gpu_enable_latency_hiding_scheduler", "xla_gpu_nccl_termination_timeout_seconds"
    assert host.xla_options("gpu") == {scheduler: True, nccl: 600} and not host.xla_options("cpu")
    monkeypatch.setenv("XLA_FLAGS", f"--{scheduler}=false")
    assert host.xla_options("gpu") == {nccl: 600}
    jax.jit(lambda x: x).lower(1.0).compile(compiler_options=host.xla_options("gpu"))  # XLA knows the name


@dataclass
class Accelerator:
    stats: dict | None
    platform = "gpu"

    def memory_stats(self):
        return self.stats


def test_the_memory_of_devices():
    # Broken by: the machine's memory for a GPU that does not say; not divided by the devices.
    assert host.device_memory(Accelerator({"bytes_limit": 7, "bytes_in_use": 3})) == 7
    assert host.device_memory(Accelerator({"bytes_in_use": 3})) is host.device_memory(Accelerator(None)) is None
    one = host.device_memory(jax.local_devices()[0])  # of eight, see conftest.py
    lines = Path("/proc/meminfo").read_text().splitlines()
    assert one == 1024 * int(lines[0].split()[1]) // 8
