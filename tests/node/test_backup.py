"""A backup opens to its passphrase alone, and shows whatever was done to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.backup import MAGIC, MAX_MESSAGE, SALT_BYTES, Cost, NotABackup, Sealer, open_backup

SEED = bytes(range(32))
CHEAP = Cost(operations=1, kib=8)


def backup(*chunks: bytes, passphrase: str = "correct horse", cost: Cost = CHEAP) -> bytes:
    sealer = Sealer(passphrase, bytes(SALT_BYTES), cost)
    return sealer.head + sealer.identity(SEED) + b"".join(map(sealer.ledger, chunks)) + sealer.end()


def opened(raw: bytes, passphrase: str = "correct horse", size: int = 1_000) -> tuple[bytes, bytes]:
    seed, pieces = open_backup(passphrase, (raw[at : at + size] for at in range(0, len(raw), size)))
    return seed, b"".join(pieces)


WHOLE = backup(b"the chain", b" goes on")


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 200))
def test_what_was_written_is_read_in_pieces_of_any_length(chunks: list[bytes], size: int) -> None:
    assert opened(backup(*chunks), size=size) == (SEED, b"".join(chunks))


def test_a_long_chunk_is_cut_into_messages() -> None:
    long = bytes(3 * MAX_MESSAGE + 5)
    assert opened(backup(long)) == (SEED, long)


def test_nothing_of_the_identity_or_the_ledger_is_readable() -> None:
    assert SEED not in WHOLE
    assert b"chain" not in WHOLE


def test_another_passphrase_opens_nothing() -> None:
    with pytest.raises(NotABackup, match="the passphrase is another one"):
        opened(WHOLE, "correct house")


def test_a_passphrase_is_the_same_however_its_letters_are_composed() -> None:
    assert opened(backup(passphrase="caf\u00e9 noir"), "cafe\u0301 noir") == (SEED, b"")


@pytest.mark.parametrize("keep", range(len(WHOLE)))
def test_a_backup_that_was_cut_off_anywhere_is_no_backup(keep: int) -> None:
    with pytest.raises(NotABackup):
        opened(WHOLE[:keep])


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_byte_changed_anywhere_shows(at: int, mask: int) -> None:
    # A higher cost in the head is a key of another hour; those that are merely slow are not waited for here.
    if len(MAGIC) <= at < len(MAGIC) + 8:
        return
    with pytest.raises(NotABackup):
        opened(WHOLE[:at] + bytes([WHOLE[at] ^ mask]) + WHOLE[at + 1 :])


@pytest.mark.parametrize(
    "cost", [(0, 8), (17, 8), (1, 7), (1, 2**20 + 1), (2**32 - 1, 2**32 - 1)], ids=lambda cost: f"{cost}"
)
def test_a_file_that_would_take_all_memory_is_refused_unread(cost: tuple[int, int]) -> None:
    numbers = b"".join(number.to_bytes(4, "big") for number in cost)
    with pytest.raises(NotABackup, match="more memory or time"):
        opened(MAGIC + numbers + WHOLE[len(MAGIC) + 8 :])


@pytest.mark.parametrize("raw", [WHOLE + b"x", b"", b"idlemesh ledger 1\n" + bytes(100)])
def test_another_file_is_no_backup(raw: bytes) -> None:
    with pytest.raises(NotABackup):
        opened(raw)


def test_a_stream_without_an_identity_is_no_backup() -> None:
    sealer = Sealer("correct horse", bytes(SALT_BYTES), CHEAP)
    with pytest.raises(NotABackup, match="no identity"):
        opened(sealer.head + sealer.ledger(b"a chain") + sealer.end())
