"""What a training process asks of the operating system."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def keep_freed_memory() -> None:
    """Have freed memory reused by this process instead of given back to the system.

    On a CPU a training step frees gigabytes and takes them again, and the system clears every page it hands
    out anew. Asks glibc (mallopt(3)); does nothing where the C library knows no mallopt.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_MAX, 0)  # large blocks from the heap, not from maps that are dropped when freed
    mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap
    mallopt(M_ARENA_MAX, 1)  # one heap for all threads
