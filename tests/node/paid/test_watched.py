"""The file of transfers that were shown and not taken: it outlives a crash, and does not grow for ever."""

import os
from pathlib import Path

import pytest

from node.exchange.strangers import Transfer
from node.paid import watched
from node.paid.watched import Watched

NOW = 1_700_000_000
DAY_S = 86_400


def transfer(number: int, expires: int = NOW + 120) -> tuple[bytes, Transfer]:
    return bytes([number]) * 32, Transfer("did:pkh:eip155:1:0x" + "11" * 20, bytes([number]) * 32, number, expires)


def read(path: Path, known: frozenset[bytes] = frozenset(), most: int = 64) -> Watched:
    return Watched.open(path, NOW, lambda order: order in known, most)


async def test_what_is_kept_is_there_after_a_restart_and_what_the_journal_knows_is_not(tmp_path: Path) -> None:
    one, other, path = transfer(1), transfer(2), tmp_path / "file"
    first = read(path)
    for each in (one, other):
        first.add(*each)
    await first.keep()
    assert read(path).items() == [one, other]
    assert read(path, frozenset({one[0]})).items() == [other]


async def test_what_was_taken_before_it_was_written_never_is(tmp_path: Path) -> None:
    one = transfer(1)
    first = read(tmp_path / "file")
    first.add(*one)
    first.drop(one[0])
    await first.keep()
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "spoiled", [b"", b'["ab', b"\xff\n", b"[]\n", b'[1, 2, 3, 4, 5]\n{"a": 1}\n', b'["", "", "", 1e999, 5]\n']
)
async def test_a_line_that_cannot_be_read_costs_no_other(tmp_path: Path, spoiled: bytes) -> None:
    one, other, path = transfer(1), transfer(2), tmp_path / "file"
    first = read(path)
    first.add(*one)
    await first.keep()
    path.write_bytes(path.read_bytes() + spoiled)
    again = read(path)
    again.add(*other)
    await again.keep()
    assert read(path).items() == [one, other]


async def test_the_latest_are_kept_and_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = read(path, most=8)
    for number in range(100):
        first.add(*transfer(number))
        await first.keep()
        assert len(path.read_bytes().splitlines()) <= 16
    assert read(path, most=8).items() == [transfer(number) for number in range(92, 100)]
    for number in range(92, 100):
        first.drop(transfer(number)[0])
    await first.keep()
    assert len(path.read_bytes().splitlines()) <= 2


async def test_what_is_so_old_that_the_journal_may_have_forgotten_it_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = read(path)
    for number, ago in ((1, 10 * DAY_S), (2, 8 * DAY_S)):
        first.add(*transfer(number, NOW - ago))
    await first.keep()
    assert [order[0] for order, _ in read(path).items()] == [2]


async def test_what_cannot_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    first = read(path)
    first.add(*transfer(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(watched, "_write", full)
        await first.keep()
    assert (path.exists(), len(first)) == (False, 1)
    await first.keep()
    assert read(path).items() == [transfer(1)]


async def test_a_disk_that_fills_up_amid_a_line_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    first = read(path)
    first.add(*transfer(1))
    await first.keep()

    def fills_up(to: Path, *_: object, **__: object) -> None:
        with to.open("ab") as file:
            file.write(b'["0202')
        raise OSError(28, os.strerror(28))

    first.add(*transfer(2))
    with monkeypatch.context() as patched:
        patched.setattr(watched, "_write", fills_up)
        await first.keep()
    await first.keep()
    first.add(*transfer(3))
    await first.keep()
    assert read(path).items() == [transfer(1), transfer(2), transfer(3)]
