"""Settings of the C library's memory allocator."""

from __future__ import annotations

import ctypes

# mallopt(3): glibc's parameters, and the value that turns each off.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_MAX, _NONE = -4, 0


def keep_freed_memory() -> bool:
    """Have glibc reuse freed memory in this whole process instead of returning it to the system.

    A training step at AVE's size allocates and frees arrays of 100 MB. By default glibc maps each of them anew, and the
    kernel clears every page: 100,000 page faults and a seventh of the step's processor time. Peak memory is the same.

    Returns:
        Whether it worked; False if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have no mallopt; on Windows CDLL(None) fails
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, _NONE))
