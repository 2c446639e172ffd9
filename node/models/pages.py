"""Huge pages for what llama.cpp reads in every step. With pages of 4 KiB, the steps of one stream take a tenth longer:
weights are read at the speed of memory, and every page has to be looked up first.

Linux gives them only to who asks, before the memory is first written to. Elsewhere nothing is done.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

LEAST: Final = 32 * 2**20  # bytes: what is smaller stays in the processor's caches, or matters little
_MAPPINGS: Final = Path("/proc/self/maps")
_MADV_HUGEPAGE: Final = 14  # asm-generic/mman-common.h


def want_huge_pages() -> None:
    """Ask for them in all memory of this process that is no file's and in pieces of LEAST; it may be refused."""
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with suppress(OSError):
        for start, end in _anonymous():
            if end - start >= LEAST:
                advise(start, end - start, _MADV_HUGEPAGE)


def _anonymous() -> Iterator[tuple[int, int]]:
    """Where what is allocated lies: from, to. A line of the file is: from-to rights offset device inode [name]."""
    for line in _MAPPINGS.read_text(encoding="ascii", errors="replace").splitlines():
        extent, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights == "rw-p" and inode == "0" and not name:
            start, end = extent.split("-")
            yield int(start, 16), int(end, 16)
