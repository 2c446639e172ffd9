"""The one-pass Merkle tree gives what BEP 52 describes, whatever the length."""

from hashlib import sha256
from io import BytesIO

import pytest

from node.models.merkle import BLOCK, digest_stream


def plain_root(content: bytes) -> bytes:
    """BEP 52 as it reads: all leaves, filled up to a power of two, joined level by level."""
    leaves = [sha256(content[at : at + BLOCK]).digest() for at in range(0, len(content), BLOCK)]
    width = 1
    while width < len(leaves):
        width *= 2
    level = leaves + [bytes(32)] * (width - len(leaves))
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=True)
        level = [sha256(left + right).digest() for left, right in pairs]
    return level[0]


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 63, 64, 65, 100, 129])
@pytest.mark.parametrize("short", [0, 1, BLOCK - 1])
def test_the_root_is_that_of_bep_52(blocks: int, short: int) -> None:
    content = bytes(index % 251 for index in range(997)) * (blocks * BLOCK // 997 + 1)
    content = content[: blocks * BLOCK - short]
    file = digest_stream(BytesIO(content), len(content))
    assert file.root == plain_root(content)
    assert file.sha256 == sha256(content).digest()
    assert file.length == len(content)


def test_progress_grows_to_the_whole() -> None:
    size = 5 * 64 * BLOCK + 7
    seen: list[tuple[int, int]] = []
    digest_stream(BytesIO(bytes(size)), size, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert len(seen) == 6
