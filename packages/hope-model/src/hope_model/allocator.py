"""Long tensor work on a CPU: keep freed memory instead of giving it back to the kernel after every step."""

import ctypes
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks: without this a training step faults every page in again.

    Call it once, before the first tensor. Peak memory stays the peak; it is only not returned in between.

    Returns:
        Whether the C library took it; others than glibc on Linux are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all(mallopt(key, value) == 1 for key, value in settings.items())
