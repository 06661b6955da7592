"""The C library's heap: keep pages that a program frees and soon needs again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1  # glibc's malloc.h
_M_MMAP_THRESHOLD = -3


def keep_freed_pages(limit_bytes: int = 64 << 20) -> bool:
    """Let malloc keep up to ``limit_bytes`` at the end of the heap; return whether the C library can.

    By default glibc gives every large block that is freed back to the kernel, and each page of the next one is
    zeroed and mapped again at its first touch. A node that receives and sends a vector many times a second spends
    more on that than on the bytes themselves. For entry points only: the setting holds for the whole process and
    the children that it forks.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # a C library without it, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, limit_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, limit_bytes))
