"""What strangers' payments leave in the journal, and in what is remembered of it."""

import pytest
from attrs import evolve

from ledger.account import AccountKey
from ledger.events import Observed
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.payload import decode_events, encode_events
from ledger.statement import DAY_MS
from node.exchange.book import Book
from node.exchange.recollection import Recollection
from node.exchange.strangers import (
    HeldVoucher,
    OwnWallet,
    Strangers,
    Transfer,
    channel_of,
    deposited,
    did_of_wallet,
    ended,
    held,
    is_stranger,
    paying_from,
    presented,
    shown,
    wallet_of,
)
from node.ports import ManualClock

WALLET, CHANNEL = bytes(range(20)), bytes(range(32))
DID = did_of_wallet("eip155:31337", WALLET, CHANNEL)
TRANSFER = Transfer(did_of_wallet("eip155:31337", WALLET), b"n" * 32, 1_000, 77)
ORDER = b"o" * 32


def test_a_strangers_did_names_its_wallet_and_its_channel() -> None:
    assert (wallet_of(DID), channel_of(DID)) == (WALLET, CHANNEL)
    assert channel_of(TRANSFER.payer) is None
    assert is_stranger(DID)
    assert not is_stranger(Identity(b"1" * 32).did)


def test_the_latest_voucher_of_a_channel_is_held() -> None:
    strangers = Strangers()
    for total in (5, 9, 7):
        strangers.take(0, [held(DID, HeldVoucher(b"c", total, b"s%d" % total))])
    assert strangers.voucher(AccountKey(DID, "me", "stablecoin", "uusd")) == HeldVoucher(b"c", 7, b"s7")
    assert strangers.voucher(AccountKey(DID, "me", "credit", "uusd")) is None


def test_a_transfer_is_remembered_until_it_is_known_what_became_of_it() -> None:
    strangers = Strangers()
    strangers.take(0, decode_events(encode_events([presented(ORDER, TRANSFER)])))
    assert strangers.transfers == {ORDER: TRANSFER}
    strangers.take(0, decode_events(encode_events([ended(ORDER, TRANSFER)])))
    assert strangers.transfers == {}


def test_a_transfer_that_was_only_shown_is_followed_until_its_end_which_is_remembered_for_a_while() -> None:
    strangers = Strangers()
    strangers.take(0, decode_events(encode_events([shown(ORDER, TRANSFER)])))
    assert (strangers.shown, strangers.transfers, strangers.is_ended(ORDER)) == ({ORDER: TRANSFER}, {}, False)
    strangers.take(0, decode_events(encode_events([ended(ORDER, TRANSFER)])))
    assert (strangers.shown, strangers.is_ended(ORDER)) == ({}, True)
    strangers.take(5 * DAY_MS, [ended(bytes(32), evolve(TRANSFER, expires=2**40))])
    assert strangers.is_ended(ORDER), "whatever its payer has signed since"
    strangers.take(11 * DAY_MS, [Observed(TRANSFER.payer, "x402 transfer ended", {"order": b"1" * 32, "expires": 77})])
    assert [strangers.is_ended(one) for one in (ORDER, bytes(32), b"1" * 32)] == [False, True, True]


async def test_what_is_remembered_outlives_the_node() -> None:
    identity = Identity(b"1" * 32)
    book = await Book.open(MemoryJournal(identity.did), identity, ManualClock())
    await book.post(held(DID, HeldVoucher(b"c", 5, b"s")), presented(ORDER, TRANSFER), deposited(DID, 88))
    await book.post(shown(bytes(32), TRANSFER), ended(b"\1" * 32, TRANSFER))
    assert Recollection.read(book._recollection.freeze()(), identity.did, []).strangers.own is None
    await book.post(paying_from(identity.did, OwnWallet("eip155:31337", WALLET)))
    raw = book._recollection.freeze()()
    again = Recollection.read(raw, identity.did, []).strangers
    assert (again.vouchers, again.transfers) == (book.strangers.vouchers, book.strangers.transfers)
    assert (again.shown, again.is_ended(b"\1" * 32)) == ({bytes(32): TRANSFER}, True)
    assert again.own == book.strangers.copy().own == OwnWallet("eip155:31337", WALLET)
    assert again.deposit_until(AccountKey("me", DID, "stablecoin", "uusd")) == 88


@pytest.mark.parametrize("rows", [[["did", b"c", "5", b"s"]], [["did", 5, 5, 5]], [5], [["did"]]])
def test_what_it_did_not_write_is_refused(rows: list[object]) -> None:
    with pytest.raises(TypeError):
        Strangers.from_plain({"vouchers": rows, "transfers": [], "shown": [], "ended": [], "deposits": []})
