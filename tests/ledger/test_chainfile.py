"""A chain in one file: it comes back as it was, and nothing that was changed in it passes."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec
from ledger.account import AccountKey
from ledger.chainfile import (
    MAGIC,
    MAX_FRAME,
    ChainReader,
    NotAChainFile,
    Told,
    records_told,
    write_end,
    write_entry,
    write_start,
)
from ledger.changes import Earned, Granted, Released, Reserved
from ledger.events import AccountChanged, Books, Observed
from ledger.journal import BrokenChain, Kept, MemoryJournal, genesis
from ledger.payload import decode_events

NODE = "did:key:node"
KEY = AccountKey("did:payer", NODE, "credit", "msat")
ORDER = b"1" * 32


async def filled() -> MemoryJournal:
    journal = MemoryJournal(NODE)
    await journal.append([AccountChanged(KEY, Granted(100, 100, 1))], time_ms=5, records=[Kept("grant", b"grant")])
    await journal.append(
        [AccountChanged(KEY, Reserved(ORDER, 10, 9))],
        time_ms=4,
        records=[Kept("order", b"an order", ORDER), Kept("offer", b"an offer")],
    )
    await journal.append([Observed("did:payer", "seen")], time_ms=6)
    await journal.append([AccountChanged(KEY, Earned(ORDER, 7)), AccountChanged(KEY, Released(ORDER))], time_ms=7)
    return journal


async def parts_of(journal: MemoryJournal) -> list[bytes]:
    parts = [write_start(NODE)]
    async for entry in journal.entries():
        told = records_told(decode_events(entry.payload))
        records = [await journal.record(one.digest) for one in told]
        parts.append(write_entry(entry, [record for record in records if record is not None]))
    return [*parts, write_end(journal.head)]


def read(raw: bytes, at_a_time: int = 1_000_000) -> tuple[list[Told], Books]:
    reader = ChainReader(NODE)
    found = [told for i in range(0, len(raw), at_a_time) for told in reader.feed(raw[i : i + at_a_time])]
    reader.finish()
    return found, reader.books


@pytest.mark.parametrize("at_a_time", [1, 7, 1_000_000])
async def test_a_chain_comes_back_with_its_records_in_pieces_of_any_size(at_a_time: int) -> None:
    journal = await filled()
    found, books = read(b"".join(await parts_of(journal)), at_a_time)
    assert [told.entry for told in found] == [entry async for entry in journal.entries()]
    assert [[record.raw for record in told.records] for told in found] == [
        [b"grant"],
        [b"an order", b"an offer"],
        [],
        [],
    ]
    assert [record for told in found for record in told.records] == [
        await journal.record(record.digest) for told in found for record in told.records
    ]
    assert books == journal.books


def test_an_empty_chain_is_one_too() -> None:
    assert read(write_start(NODE) + write_end(genesis(NODE))) == ([], Books())


@pytest.fixture(scope="module")
def parts() -> list[bytes]:
    async def made() -> list[bytes]:
        return await parts_of(await filled())

    return asyncio.run(made())


@given(st.data())
def test_one_changed_byte_anywhere_is_refused(parts: list[bytes], data: st.DataObject) -> None:
    raw = bytearray(b"".join(parts))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((NotAChainFile, BrokenChain)):
        read(bytes(raw))


@given(st.data())
def test_a_file_that_was_cut_off_is_refused(parts: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(parts)
    with pytest.raises((NotAChainFile, BrokenChain)):
        read(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.data())
def test_parts_that_are_dropped_doubled_or_swapped_are_refused(parts: list[bytes], data: st.DataObject) -> None:
    changed = list(parts)
    i, j = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.integers(0, len(parts) - 1))
    match data.draw(st.sampled_from(["drop", "double", "swap"])):
        case "drop":
            del changed[i]
        case "double":
            changed.insert(j, changed[i])
        case _:
            changed[i], changed[j] = changed[j], changed[i]
    if changed != parts:
        with pytest.raises((NotAChainFile, BrokenChain)):
            read(b"".join(changed))


@given(st.binary(max_size=300))
def test_bytes_that_are_no_chain_are_refused(raw: bytes) -> None:
    for start in (b"", MAGIC, write_start(NODE)):
        with pytest.raises((NotAChainFile, BrokenChain)):
            read(start + raw)


def frame(body: object) -> bytes:
    raw = codec.encode(body)
    return len(raw).to_bytes(4, "big") + raw


class TestWhatIsRefused:
    def test_the_chain_of_another_node(self) -> None:
        with pytest.raises(NotAChainFile, match="the chain of did:key:other"):
            read(write_start("did:key:other") + write_end(genesis("did:key:other")))

    def test_a_frame_that_is_larger_than_any_before_it_is_read(self) -> None:
        with pytest.raises(NotAChainFile, match="of at most"):
            read(MAGIC + (MAX_FRAME + 1).to_bytes(4, "big"))

    def test_what_follows_the_end(self) -> None:
        whole = write_start(NODE) + write_end(genesis(NODE))
        with pytest.raises(NotAChainFile, match="has no place"):
            read(whole + frame({"end": 0}))
        with pytest.raises(NotAChainFile, match="cut off"):
            read(whole + b"\x00")

    def test_a_record_that_nothing_tells_of(self, parts: list[bytes]) -> None:
        with pytest.raises(NotAChainFile, match="has no place"):
            read(parts[0] + frame({"raw": b"grant"}))

    async def test_an_entry_whose_records_are_missing(self, parts: list[bytes]) -> None:
        journal = await filled()
        entries = [entry async for entry in journal.entries()]
        with pytest.raises(BrokenChain, match="are missing"):
            read(parts[0] + write_entry(entries[0], []) + parts[2])

    @pytest.mark.parametrize("time_ms", [True, -1, 2**63])
    def test_a_time_that_is_none(self, time_ms: int) -> None:
        body = {"time": time_ms, "payload": b"\x80", "hash": bytes(32)}
        with pytest.raises(BrokenChain, match="out of range"):
            read(write_start(NODE) + frame(body))
