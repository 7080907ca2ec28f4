"""What this process holds, and how to give memory back."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

# Of glibc's mallopt: how much is given back and how many blocks are mapped singly, with its defaults.
_TRIM_THRESHOLD, _TRIM_DEFAULT = -1, 128 * 1024
_MMAP_MAX, _MMAP_DEFAULT = -4, 65_536
_ARENA_MAX = -8
_NEVER = 2**31 - 1


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def release_to_os() -> bool:
    """Give freed memory back to the system; return whether the C library could.

    glibc keeps about half of what dropped sessions leave until `malloc_trim`; other C libraries have none.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def use_one_heap() -> None:
    """Let threads that begin from now on share one heap, for `release_to_os` to reach all that was freed.

    glibc has several, and gives back nothing that lies at the end of any but the first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what is freed, for where the same tensors come again and again.

    glibc maps every large tensor anew, and the system clears its pages each time. At the end all goes back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, _TRIM_DEFAULT)
        mallopt(_MMAP_MAX, _MMAP_DEFAULT)
        release_to_os()
