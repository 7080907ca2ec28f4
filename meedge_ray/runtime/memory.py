"""What this process holds, and how to give memory back."""

import ctypes

import psutil


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def release_to_os() -> bool:
    """Give freed memory back to the system; return whether the C library could.

    glibc keeps about half of what dropped sessions leave until `malloc_trim`; other C libraries have none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
