"""Freed memory stays with the process, where taking it again touches no fresh page; or is given back at once."""

import subprocess
import sys

import pytest

TAKE_TWICE = """
import resource, sys
import numpy as np
from cptjax import host
if sys.argv[1] == "keep":
    host.keep_freed_memory()
np.ones(2**25)  # 256 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_freed_memory_is_used_again():
    # Broken by: M_TRIM_THRESHOLD left alone, and by M_MMAP_MAX left alone.
    faults = {
        how: int(subprocess.run([sys.executable, "-c", TAKE_TWICE, how], capture_output=True, check=True).stdout)
        for how in ("keep", "give back")
    }
    assert faults["keep"] < 100, faults
    assert faults["give back"] > 100, faults


FREE_A_BLOCK = """
import resource, sys
import numpy as np
from cptjax import host
if sys.argv[1] == "return":
    host.return_freed_memory()
np.ones(2**21)  # 16 MiB: once it is freed, glibc keeps blocks of up to this size
np.ones(2**19)  # 4 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**19)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt belongs to glibc")
def test_freed_memory_is_given_back():
    # Broken by: M_MMAP_THRESHOLD left alone.
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FREE_A_BLOCK, how], capture_output=True, check=True).stdout)
        for how in ("return", "leave")
    }
    assert faults["return"] > 400 > faults["leave"], faults  # 1024 pages, fewer faults where they are large
