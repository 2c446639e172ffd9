"""Huge pages are asked for in what is large and nobody's file."""

import ctypes
import mmap
import re
from pathlib import Path

import pytest

from node.models.pages import LEAST, want_huge_pages

SMAPS = Path("/proc/self/smaps")


def is_wanted(memory: mmap.mmap) -> bool:
    """Whether the kernel's flags of the mapping that holds this memory say so ("hg")."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(encoding="ascii", errors="replace"), flags=re.M):
        if part and int(part.split("-")[0], 16) <= address < int(part.split("-")[1].split()[0], 16):
            flags = next(line for line in part.splitlines() if line.startswith("VmFlags:"))
            return "hg" in flags.split()
    raise AssertionError("the memory is not mapped")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no huge pages")
def test_large_memory_is_wanted_in_huge_pages_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2 * LEAST)
    memory = mmap.mmap(-1, 2 * LEAST, flags=mmap.MAP_PRIVATE)
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 2 * LEAST, flags=mmap.MAP_PRIVATE)
    assert not is_wanted(memory)
    want_huge_pages()
    assert is_wanted(memory)
    assert not is_wanted(mapped)
