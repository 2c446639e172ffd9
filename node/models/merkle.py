"""Digests of a file in one pass: SHA-256, and the root of its SHA-256 Merkle tree as in BitTorrent v2 (BEP
52).

Leaves are blocks of 16 KiB, the last one not padded; the tree is filled up to a power of two with zero
hashes. https://www.bittorrent.org/beps/bep_0052.html
"""

from collections.abc import Callable
from hashlib import sha256
from typing import BinaryIO, Final

from attrs import frozen

BLOCK: Final = 16 * 1024  # bytes
_CHUNK: Final = 64 * BLOCK
_NO_BLOCK: Final = bytes(32)

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@frozen
class File:
    """One file of a model: length in bytes, SHA-256, and BEP 52 root (32 bytes each)."""

    length: int
    sha256: bytes
    root: bytes


class MerkleTree:
    """A BEP 52 tree fed leaf by leaf; keeps one hash for each level, whatever the file's length."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, bytes]] = []  # complete subtrees, highest first

    def add(self, block: bytes | memoryview) -> None:
        """Append the next block: BLOCK bytes, fewer only for the last."""
        level, node = 0, sha256(block).digest()
        while self._stack and self._stack[-1][0] == level:
            node = _join(self._stack.pop()[1], node)
            level += 1
        self._stack.append((level, node))

    def root(self) -> bytes:
        """The root of what was added; 32 zero bytes for nothing."""
        if not self._stack:
            return _NO_BLOCK
        level, node = self._stack[-1]
        padding = _padding(level)
        for next_level, left in reversed(self._stack[:-1]):
            while level < next_level:
                node, padding, level = _join(node, padding), _join(padding, padding), level + 1
            node, padding, level = _join(left, node), _join(padding, padding), level + 1
        return node


def digest_stream(stream: BinaryIO, size: int, progress: Progress | None = None) -> File:
    """Digest an open file from where it stands to its end; `size` is only for the progress."""
    whole, tree, done = sha256(), MerkleTree(), 0
    while chunk := stream.read(_CHUNK):
        whole.update(chunk)
        view = memoryview(chunk)
        for start in range(0, len(chunk), BLOCK):
            tree.add(view[start : start + BLOCK])
        done += len(chunk)
        if progress is not None:
            progress(done, size)
    return File(done, whole.digest(), tree.root())


def _join(left: bytes, right: bytes) -> bytes:
    return sha256(left + right).digest()


def _padding(level: int) -> bytes:
    """The root of a subtree of `level` levels in which no block stands."""
    node = _NO_BLOCK
    for _ in range(level):
        node = _join(node, node)
    return node
