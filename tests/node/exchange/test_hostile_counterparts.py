"""Peers that compare accounts in order to harm: what they hand back, show or ask for costs them, and nobody else."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ledger.identity import Identity
from ledger.records import AccountState, Acknowledgement, Signed, Voucher, sign
from node.exchange.reconciling import Reconciler
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.messages import Asked, Handed, decode_nonce, encode_asked, encode_handed
from tests.node.exchange.test_reconciling import BUYER, ONE, SELLER, STRANGER, Deaf, Pair, digests


@pytest.fixture
async def pair(tmp_path: Path, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        pair = await Pair(tmp_path, tokenizer, clock).open()

        async def stop() -> None:
            await pair.stop(2)
            await pair.stop(1)

        stack.push_async_callback(stop)
        yield pair


async def hand_back(victim: Reconciler, to: str, by: Identity, records: Handed) -> None:
    """All that it takes to hand records to a node."""
    nonce = decode_nonce(await victim.challenge())
    state = sign(AccountState(to, nonce, 0, bytes(32), (), 1), by)
    await victim.state(encode_asked(Asked(state.raw, bytes(16), b"")))
    await victim.hand_back(encode_handed(nonce, records))


def promises(by: Identity, totals: Sequence[int], order: bytes = bytes(32)) -> list[Signed[Acknowledgement]]:
    """Acknowledgements of an order, each with a voucher for more."""
    vouchers = [sign(Voucher(by.did, SELLER.did, "credit", "", "", "uusd", total), by) for total in totals]
    return [sign(Acknowledgement(order, order, True, "", 0, None, voucher.raw), by) for voucher in vouchers]


def handed(signed: Sequence[Signed[Acknowledgement]]) -> Handed:
    return tuple((one.record.kind, one.raw) for one in signed)


async def test_promises_of_strangers_for_nothing_are_not_kept(pair: Pair) -> None:
    entries = pair.journals[1].head.sequence

    await hand_back(pair.sellers, SELLER.did, STRANGER, handed(promises(STRANGER, range(1, 50))))

    assert pair.journals[1].head.sequence == entries
    assert await digests(pair.store.book, Acknowledgement.kind) == set()
    assert pair.store.owed_by(STRANGER.did).key not in pair.store.book.journal.books.accounts


async def test_a_buyer_cannot_fill_the_disk_with_promises_of_what_it_does_not_owe(pair: Pair) -> None:
    await pair.buy()
    entries = pair.journals[1].head.sequence

    await hand_back(pair.sellers, SELLER.did, BUYER, handed(promises(BUYER, range(ONE + 1, ONE + 50))))

    # The state that was compared is kept.
    assert pair.journals[1].head.sequence <= entries + 1
    pair.agree_on(1)


async def test_of_promises_whose_order_is_gone_the_highest_counts_as_it_covers_a_debt(pair: Pair) -> None:
    offer = await pair.customer.meet(pair.line)
    pair.customer.lines[SELLER.did] = Deaf(pair.store.seller)
    await pair.customer.order(offer, max_tokens=10)
    kept = await digests(pair.store.book, Acknowledgement.kind)
    said = promises(BUYER, range(1, ONE + 1))

    await hand_back(pair.sellers, SELLER.did, BUYER, handed(said))

    assert pair.theirs.authorized == ONE
    assert await digests(pair.store.book, Acknowledgement.kind) == {*kept, said[-1].digest}
