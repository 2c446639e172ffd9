"""What a buyer makes of an answer that is not what was ordered: it keeps what arrived, and pays what is due.

The scripted seller's answers are the ids 600, 601, ... of the demo tokenizer, none of which ends an answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from attrs import evolve

from ledger.codec import sign as sign_bytes
from ledger.commitments import answer_commitment
from ledger.identity import Identity
from ledger.records import Acknowledgement, Cancel, Receipt, Signed, open_record, sign
from node.exchange.delivery import Delivery
from node.exchange.purchase import NotPlaced
from node.exchange.receiving import STOPPING_TOKENS
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock
from node.wire.frames import CancelFrame, Frame, Ids, ReceiptFrame
from node.wire.messages import Refused
from tests.node.trading import (
    Customer,
    CutLine,
    Line,
    Script,
    ScriptedSeller,
    Store,
    Told,
    engine_of,
    price_of,
)

STRANGER = Identity(bytes([3]) * 32)
END = 0  # the demo tokenizer's one end-of-generation id


def some(count: int, first: int = 600) -> tuple[int, ...]:
    return tuple(range(first, first + count))


async def bought(tokenizer: Tokenizer, clock: ManualClock, script: Script, **wishes: Any) -> tuple[Customer, Delivery]:
    """What a buyer has of an order to a scripted seller, settled."""
    seller = ScriptedSeller(tokenizer, clock, script)
    customer = await Customer.open(tokenizer, clock, patience_s=1.0)
    delivery = await customer.order(await customer.meet(seller), **wishes)
    return customer, delivery


async def acknowledgement_of(customer: Customer, delivery: Delivery) -> Acknowledgement:
    kept = await customer.book.journal.records_of(delivery.terms.order.digest)
    (raw,) = [record.raw for record in kept if record.kind == Acknowledgement.kind]
    return open_record(raw, Acknowledgement).record


def receipt_with(**changes: Any) -> Script:
    """Ten good tokens, and a receipt that differs in the changes."""

    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(10))
        yield told.receipt(some(10), **changes)

    return script


# The receipt.


async def test_a_receipt_that_fits_is_accepted_whole(tokenizer: Tokenizer, clock: ManualClock) -> None:
    customer, delivery = await bought(tokenizer, clock, receipt_with(), max_tokens=10)

    assert (delivery.objection, delivery.owed) == (None, price_of(5, 10))
    assert (await acknowledgement_of(customer, delivery)).accepted


@pytest.mark.parametrize(
    ("changes", "objection", "undisputed"),
    [
        ({"output_tokens": 11}, "output token count", price_of(5, 10)),
        ({"output_tokens": 9}, "output token count", price_of(5, 10)),
        ({"prompt_tokens": 6}, "prompt token count", price_of(5, 10)),
        ({"cost": price_of(5, 10) + 1}, "cost", price_of(5, 10)),
        ({"cost": 10**12}, "cost", price_of(5, 10)),
        ({"cost": 7}, "cost", 7),
        ({"prompt_commitment": bytes(32)}, "prompt commitment", price_of(5, 10)),
        ({"output_commitment": bytes(32)}, "output commitment", price_of(5, 10)),
        ({"model": bytes(32)}, "model", price_of(5, 10)),
        ({"unit": "msat"}, "unit", price_of(5, 10)),
        ({"finish": "stop"}, "did not end by 'stop'", price_of(5, 10)),
        ({"finish": "cancelled"}, "did not end by 'cancelled'", price_of(5, 10)),
        ({"finish": "cut"}, "did not end by 'cut'", price_of(5, 10)),
    ],
)
async def test_of_a_receipt_that_does_not_fit_the_undisputed_part_is_paid_and_the_rest_disputed(
    tokenizer: Tokenizer, clock: ManualClock, changes: dict[str, Any], objection: str, undisputed: int
) -> None:
    customer, delivery = await bought(tokenizer, clock, receipt_with(**changes), max_tokens=10)

    assert delivery.objection is not None
    assert objection in delivery.objection
    ack = await acknowledgement_of(customer, delivery)
    assert (ack.accepted, ack.amount, ack.reason) == (False, undisputed, delivery.objection)
    assert delivery.receipt is not None
    assert ack.of == delivery.receipt.digest
    account = customer.owes(delivery.terms.seller)
    assert (account.owed, account.authorized, account.reserved) == (undisputed, undisputed, 0)
    assert customer.book.experience.standing(delivery.terms.seller).history.failed == 1


async def test_an_answer_shorter_than_ordered_did_not_end_by_length(tokenizer: Tokenizer, clock: ManualClock) -> None:
    _, delivery = await bought(tokenizer, clock, receipt_with(), max_tokens=11)

    assert delivery.objection == "the answer did not end by 'length'"
    assert delivery.owed == 0  # as a cut before the first checkpoint


async def test_an_answer_that_ended_did_not_end_by_length(tokenizer: Tokenizer, clock: ManualClock) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids((*some(9), END))
        yield told.receipt((*some(9), END))

    _, delivery = await bought(tokenizer, clock, script, max_tokens=10)

    assert delivery.objection == "the answer did not end by 'length'"


@pytest.mark.parametrize("signer", [STRANGER, None])
async def test_a_receipt_by_or_for_somebody_else_counts_as_none(
    tokenizer: Tokenizer, clock: ManualClock, signer: Identity | None
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(64))
        yield told.checkpoint(some(64))
        yield told.receipt(some(64), signer=signer, **({} if signer else {"order": bytes(32)}))

    customer, delivery = await bought(tokenizer, clock, script, max_tokens=64)

    assert delivery.receipt is None
    assert (delivery.ids, delivery.owed) == (some(64), price_of(0, 64))
    assert customer.owes(delivery.terms.seller).authorized == price_of(0, 64)


def _forged(told: Told) -> ReceiptFrame:
    raw = told.receipt(some(64)).raw
    return ReceiptFrame(raw[:-1] + bytes([raw[-1] ^ 1]))


def _oversized(told: Told) -> ReceiptFrame:
    return ReceiptFrame(told.receipt(some(64)).raw + bytes(Receipt.limit))


def _another_kind(told: Told) -> ReceiptFrame:
    return ReceiptFrame(told.checkpoint(some(64)).raw)


def _not_canonical(told: Told) -> ReceiptFrame:
    # An indefinite-length map says the same in another way.
    payload = b"\xbf" + b"\xff"
    return ReceiptFrame(sign_bytes("application/idlemesh-receipt+cbor", payload, told.identity))


@pytest.mark.parametrize("spoilt", [_forged, _oversized, _another_kind, _not_canonical])
async def test_a_receipt_that_is_no_valid_record_counts_as_none(
    tokenizer: Tokenizer, clock: ManualClock, spoilt: Callable[[Told], ReceiptFrame]
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(64))
        yield told.checkpoint(some(64))
        yield spoilt(told)

    _, delivery = await bought(tokenizer, clock, script, max_tokens=64)

    assert delivery.receipt is None
    assert delivery.objection is not None
    assert "receipt is not valid" in delivery.objection
    assert delivery.owed == price_of(0, 64)


# The tokens and checkpoints on the way.


def _tokens_without_checkpoint(told: Told) -> Iterator[Frame]:
    yield Ids(some(64))
    yield Ids(some(1, 664))
    yield told.receipt(some(65))


def _too_many_tokens(told: Told) -> Iterator[Frame]:
    yield Ids(some(20))
    yield Ids(some(81, 620))
    yield told.receipt(some(101))


def _unknown_tokens(told: Told) -> Iterator[Frame]:
    yield Ids(some(20))
    yield Ids((1_024,))
    yield told.receipt((*some(20), 1_024))


def _goes_on_after_the_end(told: Told) -> Iterator[Frame]:
    yield Ids((*some(19), END))
    yield Ids(some(5))
    yield told.receipt((*some(19), END, *some(5)))


def _goes_on_in_the_same_group(told: Told) -> Iterator[Frame]:
    yield Ids(some(20))
    yield Ids((END, 100))
    yield told.receipt((*some(20), END, 100))


def _checkpoint_with(**changes: Any) -> Script:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(20))
        yield told.checkpoint(some(20), **changes)
        yield told.receipt(some(20))

    return script


@pytest.mark.parametrize(
    "script",
    [
        _tokens_without_checkpoint,
        _too_many_tokens,
        _unknown_tokens,
        _goes_on_after_the_end,
        _goes_on_in_the_same_group,
        _checkpoint_with(order=bytes(32)),
        _checkpoint_with(tokens=21),
        _checkpoint_with(tokens=19),
        _checkpoint_with(commitment=bytes(32)),
        _checkpoint_with(cost=41),
    ],
)
async def test_a_broken_promise_ends_the_order_and_nothing_after_it_is_believed(
    tokenizer: Tokenizer, clock: ManualClock, script: Script
) -> None:
    customer, delivery = await bought(tokenizer, clock, script, max_tokens=100)

    assert delivery.receipt is None
    assert delivery.objection is not None
    assert delivery.objection.startswith(("the seller", "the checkpoint"))
    assert delivery.owed == 0, "there is no valid checkpoint, so nothing is owed for a cut answer"
    account = customer.owes(delivery.terms.seller)
    assert (account.owed, account.reserved) == (0, 0)
    assert customer.book.experience.standing(delivery.terms.seller).history.failed == 1


@pytest.mark.parametrize("extra", [False, True], ids=["in the next group", "in the same group"])
async def test_tokens_after_a_complete_stop_string_are_not_owed(
    tokenizer: Tokenizer, clock: ManualClock, extra: bool
) -> None:
    text = tokenizer.text(some(10))
    stop = text[-2:]
    assert stop not in text[:-1]

    papers: list[bytes] = []

    class Late(ScriptedSeller):
        """Has a receipt for more tokens than it should have sent."""

        async def receipt(self, order: bytes) -> bytes | None:
            return papers[0]

    def script(told: Told) -> Iterator[Frame]:
        papers.append(told.receipt(some(15), finish="stop").raw)
        if extra:
            yield Ids(some(15))
        else:
            yield Ids(some(10))
            yield Ids(some(5, 610))

    seller = Late(tokenizer, clock, script)
    customer = await Customer.open(tokenizer, clock)
    delivery = await customer.order(await customer.meet(seller), max_tokens=100, stop=(stop,))

    assert delivery.objection is not None
    assert delivery.owed == price_of(5, 10)


async def test_a_checkpoint_before_the_first_token_breaks_the_promise(tokenizer: Tokenizer, clock: ManualClock) -> None:
    def script(told: Told) -> Iterator[Frame]:
        nothing = answer_commitment(told.request.salt, told.order.digest, ())
        yield told.checkpoint(some(1), commitment=nothing, cost=0)
        yield Ids(some(20))
        yield told.receipt(some(20))

    with pytest.raises(NotPlaced, match="checkpoints without new tokens"):
        await bought(tokenizer, clock, script, max_tokens=20)


async def test_a_checkpoint_without_new_tokens_breaks_the_promise(tokenizer: Tokenizer, clock: ManualClock) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(20))
        yield told.checkpoint(some(20))
        yield told.checkpoint(some(20))
        yield told.receipt(some(20))

    _, delivery = await bought(tokenizer, clock, script, max_tokens=20)

    assert delivery.receipt is None
    assert delivery.objection == "the seller sends checkpoints without new tokens"
    assert delivery.owed == price_of(0, 20)


@pytest.mark.parametrize("finish", ["cut", "cancelled", "length", "stop"])
async def test_an_answer_that_its_seller_ends_too_early_owes_up_to_its_last_checkpoint_whatever_the_receipt_says(
    tokenizer: Tokenizer, clock: ManualClock, finish: str
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(64))
        yield told.checkpoint(some(64))
        yield Ids(some(6, 664))
        yield told.receipt(some(70), finish=finish)

    customer, delivery = await bought(tokenizer, clock, script, max_tokens=100)

    assert delivery.objection == f"the answer did not end by {finish!r}"
    assert delivery.owed == price_of(0, 64)
    ack = await acknowledgement_of(customer, delivery)
    assert (ack.accepted, ack.amount) == (False, price_of(0, 64))


class HardOfHearing(ScriptedSeller):
    """Sends ten tokens, waits for the Cancel, and then sends so many more before its receipt."""

    def __init__(self, tokenizer: Tokenizer, clock: ManualClock, more: int) -> None:
        self._told = asyncio.Event()
        self.cancels: list[Signed[Cancel]] = []

        def script(told: Told) -> Iterator[Frame]:
            ids = some(10 + more)
            yield Ids(ids[:10])
            for start in range(10, len(ids), 54):
                yield Ids(ids[start : start + 54])
                yield told.checkpoint(ids[: start + 54])
            yield told.receipt(ids, finish="cancelled")

        super().__init__(tokenizer, clock, script)

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        sent = 0
        async for chunk in super().order(order, sealed):
            if sent == 1:  # the stream's header and the first tokens were one chunk
                await self._told.wait()
            yield chunk
            sent += 1

    async def cancel(self, raw: bytes) -> None:
        self.cancels.append(open_record(raw, Cancel))
        self._told.set()


async def cancelled_at_ten(tokenizer: Tokenizer, clock: ManualClock, more: int) -> tuple[HardOfHearing, Delivery]:
    """An order of which the buyer has enough after ten tokens, and gets `more`."""
    seller = HardOfHearing(tokenizer, clock, more)
    customer = await Customer.open(tokenizer, clock)
    purchase = customer.buy(await customer.meet(seller), max_tokens=400)
    async for _ in purchase.tokens():
        purchase.cancel()
    delivery = await purchase.outcome()
    await customer.settled()
    return seller, delivery


async def test_the_cancel_says_how_many_tokens_had_come(tokenizer: Tokenizer, clock: ManualClock) -> None:
    seller, delivery = await cancelled_at_ten(tokenizer, clock, more=1)

    (cancel,) = seller.cancels
    assert (cancel.record.order, cancel.record.tokens) == (delivery.terms.order.digest, 10)


@pytest.mark.parametrize(
    ("more", "objection"),
    [(STOPPING_TOKENS, None), (STOPPING_TOKENS + 1, "the seller went on after it was told to stop")],
)
async def test_what_a_seller_sends_long_after_the_cancel_is_disputed(
    tokenizer: Tokenizer, clock: ManualClock, more: int, objection: str | None
) -> None:
    seller, delivery = await cancelled_at_ten(tokenizer, clock, more)

    assert len(delivery.ids) == 10 + more
    assert (delivery.objection, delivery.owed) == (objection, price_of(5, 10 + STOPPING_TOKENS))
    (raw,) = seller.acknowledged
    ack = open_record(raw, Acknowledgement).record
    assert (ack.accepted, ack.amount) == (objection is None, delivery.owed)


async def test_a_checkpoint_by_somebody_else_is_none(tokenizer: Tokenizer, clock: ManualClock) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(20))
        stranger = Told(STRANGER, told.offer, told.order, told.request)
        yield stranger.checkpoint(some(20))
        yield told.receipt(some(20))

    _, delivery = await bought(tokenizer, clock, script, max_tokens=20)

    assert delivery.checkpoint is None
    assert delivery.owed == 0


async def test_a_seller_that_stops_by_itself_is_paid_up_to_its_last_checkpoint(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(64))
        yield told.checkpoint(some(64))
        yield Ids(some(20, 200))
        yield CancelFrame(told.cancel(84))

    customer, delivery = await bought(tokenizer, clock, script, max_tokens=100)

    assert delivery.ids == some(64) + some(20, 200)
    assert delivery.owed == price_of(0, 64)
    ack = await acknowledgement_of(customer, delivery)
    assert (ack.accepted, ack.amount) == (True, price_of(0, 64))
    assert delivery.checkpoint is not None
    assert ack.of == delivery.checkpoint.digest


async def test_an_answer_without_a_single_token_is_no_order(tokenizer: Tokenizer, clock: ManualClock) -> None:
    seller = ScriptedSeller(tokenizer, clock, lambda told: [CancelFrame(told.cancel(0))])
    customer = await Customer.open(tokenizer, clock)

    with pytest.raises(NotPlaced, match="stopped before the end"):
        await customer.order(await customer.meet(seller))

    account = customer.owes(seller.did)
    assert (account.owed, account.reserved) == (0, 0)


# The stream.


class Tampering(Line):
    """Flips one bit of the n-th chunk."""

    def __init__(self, peer: Store, chunk: int, at: int) -> None:
        super().__init__(peer.seller)
        self._chunk, self._at = chunk, at

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        number = 0
        stream = super().order(order, sealed)
        try:
            async for chunk in stream:
                spoilt = bytearray(chunk)
                if number == self._chunk:
                    spoilt[self._at] ^= 1
                yield bytes(spoilt)
                number += 1
        finally:
            await stream.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        return None


@pytest.mark.parametrize("at", [0, 1, 2, -1])
async def test_one_flipped_bit_of_a_streamed_frame_ends_the_stream(
    tokenizer: Tokenizer, clock: ManualClock, at: int
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Tampering(store, chunk=5, at=at))

    delivery = await customer.order(offer, max_tokens=10)

    assert len(delivery.ids) == 5
    assert delivery.receipt is None
    assert delivery.owed == 0


async def test_a_flipped_bit_in_the_first_frame_leaves_nothing_to_pay(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Tampering(store, chunk=0, at=10))

    with pytest.raises(NotPlaced, match="cannot be opened"):
        await customer.order(offer)

    assert (customer.owes(store.did).owed, customer.owes(store.did).reserved) == (0, 0)


class Replaying(Line):
    """Sends every chunk twice."""

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        stream = super().order(order, sealed)
        try:
            async for chunk in stream:
                yield chunk
                yield chunk
        finally:
            await stream.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        return None


async def test_a_frame_that_comes_twice_ends_the_stream(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)

    delivery = await customer.order(await customer.meet(Replaying(store.seller)), max_tokens=10)

    assert len(delivery.ids) == 1
    assert delivery.owed == 0


@pytest.mark.parametrize(("chunks", "tokens", "owed"), [(40, 40, 0), (65, 64, 128), (100, 99, 128), (131, 129, 256)])
async def test_of_a_stream_cut_midway_the_buyer_keeps_what_arrived_and_owes_up_to_the_last_checkpoint(
    tokenizer: Tokenizer, clock: ManualClock, chunks: int, tokens: int, owed: int
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = CutLine(store.seller, after=chunks)
    offer = await customer.meet(line)

    delivery = await customer.buy(offer, max_tokens=200).outcome()
    line.mend()
    await customer.settled()

    assert len(delivery.ids) == tokens
    assert (delivery.receipt, delivery.owed) == (None, owed)
    account = customer.owes(store.did)
    assert (account.owed, account.authorized, account.reserved) == (owed, owed, 0)
    assert store.owed_by(customer.did).authorized == owed


async def test_a_cut_before_the_first_token_owes_nothing(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(CutLine(store.seller, after=0))

    with pytest.raises(NotPlaced) as error:
        await customer.order(offer)

    assert error.value.code == "unreachable"
    assert (customer.owes(store.did).owed, customer.owes(store.did).reserved) == (0, 0)


async def test_of_an_answer_whose_receipt_got_lost_the_receipt_is_fetched(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    class Forgetful(CutLine):
        """Is cut, but the seller can be asked again at once."""

        async def receipt(self, order: bytes) -> bytes | None:
            self.mend()
            return await super().receipt(order)

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Forgetful(store.seller, after=10))

    delivery = await customer.order(offer, max_tokens=10)

    assert (delivery.objection, delivery.owed) == (None, price_of(5, 10))
    assert store.owed_by(customer.did).authorized == price_of(5, 10)


async def test_a_seller_that_stops_sending_loses_the_buyers_patience(tokenizer: Tokenizer, clock: ManualClock) -> None:
    store = await Store.open(tokenizer, clock, engine=engine_of(tokenizer, stall_after=70))
    customer = await Customer.open(tokenizer, clock, patience_s=2.0)

    delivery = await customer.order(await customer.meet(store.seller), max_tokens=100)

    assert len(delivery.ids) == 70
    assert delivery.objection is not None
    assert customer.owes(store.did).reserved == 0
    assert store.owed_by(customer.did).reserved == 0, "the seller's engine was freed when the buyer hung up"
    assert customer.book.experience.standing(store.did).history.failed == 1


async def test_a_seller_that_gives_signs_of_life_but_no_token_loses_the_buyers_patience(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    class Lively(ScriptedSeller):
        async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
            async for chunk in super().order(order, sealed):
                yield chunk
                await asyncio.sleep(0.005)

    def script(told: Told) -> Iterator[Frame]:
        yield Ids(some(3))
        while True:
            yield Ids(())

    customer = await Customer.open(tokenizer, clock, patience_s=0.1)
    offer = await customer.meet(Lively(tokenizer, clock, script))

    delivery = await customer.order(offer)

    assert delivery.ids == some(3)
    assert delivery.objection is not None
    assert delivery.objection.startswith("no token came for")
    assert delivery.owed == 0


async def test_a_refused_order_costs_nothing_and_is_remembered(tokenizer: Tokenizer, clock: ManualClock) -> None:
    class Busy(Line):
        def before_order(self) -> None:
            raise Refused("busy", "all slots are taken", 2)

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Busy(store.seller))

    with pytest.raises(NotPlaced, match="refused the order: all slots are taken") as error:
        await customer.order(offer)

    assert error.value.code == "busy"
    assert (customer.owes(store.did).owed, customer.owes(store.did).reserved) == (0, 0)
    assert customer.book.experience.standing(store.did).history.refused == 1


async def test_an_order_above_the_buyers_own_books_credit_never_leaves(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    line = Line(store.seller)
    offer = await customer.meet(line)

    with pytest.raises(NotPlaced) as error:
        await customer.order(offer, max_tokens=100_000)

    assert error.value.code == "credit"
    assert line.ordered == []


async def test_an_offer_with_a_worthless_prekey_gets_no_order(tokenizer: Tokenizer, clock: ManualClock) -> None:
    seller = ScriptedSeller(tokenizer, clock, lambda told: [])
    seller.offer = sign(evolve(seller.offer.record, prekey=bytes(32)), seller.identity)
    customer = await Customer.open(tokenizer, clock)

    with pytest.raises(NotPlaced, match="prekey"):
        await customer.order(await customer.meet(seller))

    assert customer.owes(seller.did).reserved == 0


async def test_a_buyer_that_goes_down_for_an_unexpected_reason_says_so_to_its_reader(
    tokenizer: Tokenizer, clock: ManualClock
) -> None:
    class Buggy(Line):
        def before_order(self) -> None:
            raise KeyError("a bug")

    store, customer = await Store.open(tokenizer, clock), await Customer.open(tokenizer, clock)
    offer = await customer.meet(Buggy(store.seller))

    with pytest.raises(NotPlaced, match="failed here: KeyError"):
        await customer.buy(offer).outcome()
