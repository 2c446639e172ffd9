"""Two nodes compare their accounts: what one of them has lost comes back, and nothing else moves."""

import asyncio
import contextlib
import copy as copying
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ledger.account import Account
from ledger.changes import Earned, Granted, Released, Reserved, Settled, VoucherReceived
from ledger.codec import Malformed
from ledger.commitments import CHECKPOINT_TOKENS
from ledger.database import Database
from ledger.events import AccountChanged
from ledger.identity import Did, Identity
from ledger.journal import Kept, MemoryJournal, replay
from ledger.reconcile import totals_of
from ledger.records import (
    AccountState,
    Acknowledgement,
    Receipt,
    Settlement,
    Voucher,
    open_record,
    sign,
)
from node.exchange import lacking
from node.exchange.book import Book
from node.exchange.claims import Claims
from node.exchange.heads import Met, stored_meetings
from node.exchange.netting import Netter
from node.exchange.reconciling import MAX_ROUNDS, Counterpart, Reconciler
from node.exchange.settling import Settling
from node.models.tokenizer import Tokenizer
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import (
    Answered,
    Asked,
    Handed,
    Refused,
    Unreachable,
    decode_answered,
    decode_asked,
    decode_handed,
    decode_nonce,
    encode_answered,
    encode_asked,
    encode_handed,
)
from tests.node.trading import NO_AUDITS, Customer, Line, Store, price_of, uusd

SELLER, BUYER = (Identity(seed.to_bytes(32, "little")) for seed in (1, 2))
STRANGER = Identity(bytes([9]) * 32)
ONE = price_of(5, 10)


class Deaf(Line):
    """Takes no acknowledgement, for good."""

    async def acknowledge(self, raw: bytes) -> None:
        raise Refused("unknown_order", "no such order of yours is known here")


@define
class Pair:
    """A seller and a buyer on files of their own, which can be put back to what they were."""

    folder: Path
    tokenizer: Tokenizer
    clock: ManualClock
    starts: int = 0
    journals: dict[int, Database] = field(factory=dict)
    store: Store = field(init=False)
    customer: Customer = field(init=False)
    sellers: Reconciler = field(init=False)
    buyers: Reconciler = field(init=False)
    line: Line = field(init=False)

    async def open(self) -> "Pair":
        await self.start_seller()
        await self.start_buyer()
        return self

    async def start_seller(self) -> None:
        journal, entropy = await self._start(1)
        self.store = await Store.open(self.tokenizer, self.clock, seed=1, journal=journal, entropy=entropy)
        self.sellers = Reconciler(self.store.book, entropy, lambda _: self.buyers, lambda _key, _digest: None)
        await self.sellers.heads.open()
        self.sellers.taking.paid = self.store.seller.acknowledge
        self.line = Line(self.store.seller)

    async def start_buyer(self) -> None:
        journal, entropy = await self._start(2)
        self.customer = await Customer.open(
            self.tokenizer, self.clock, seed=2, journal=journal, entropy=entropy, policy=NO_AUDITS
        )
        self.buyers = Reconciler(self.customer.book, entropy, lambda _: self.sellers, self.customer.settler.promised)
        await self.buyers.heads.open()

        async def tokenizer(_: bytes) -> Tokenizer:
            return self.tokenizer

        self.buyers.taking.claimed = Claims(self.customer.book, self.customer.settler, tokenizer).take

    async def _start(self, seed: int) -> tuple[Database, SeededEntropy]:
        self.starts += 1
        did = Identity(seed.to_bytes(32, "little")).did
        self.journals[seed] = await Database.open(self.folder / f"{seed}.db", did)
        return self.journals[seed], SeededEntropy(1_000 + self.starts)

    async def buy(self, times: int = 1) -> None:
        """So many orders, each settled and acknowledged."""
        offer = await self.customer.meet(self.line)
        for _ in range(times):
            await self.customer.order(offer, max_tokens=10)

    async def copy(self, seed: int) -> bytes:
        """Stop a node, and take a copy of its ledger."""
        await self.stop(seed)
        return (self.folder / f"{seed}.db").read_bytes()

    async def stop(self, seed: int) -> None:
        if seed == 2:
            await self.customer.close()
        await self.journals[seed].close()

    async def restart(self, seed: int, ledger: bytes | None = None) -> None:
        """Start a stopped node, perhaps from an older copy; an empty one stands for none."""
        path = self.folder / f"{seed}.db"
        if ledger is not None:
            for left in self.folder.glob(f"{seed}.db*"):
                left.unlink()
            if ledger:
                path.write_bytes(ledger)
        await (self.start_seller() if seed == 1 else self.start_buyer())

    async def roll_back(self, seed: int, ledger: bytes) -> None:
        """Put a running node back to a copy."""
        await self.stop(seed)
        await self.restart(seed, ledger)

    async def meet(self) -> None:
        """The buyer connects."""
        await self.buyers.meet(SELLER.did)

    @property
    def ours(self) -> Account:
        """The debt in the buyer's book."""
        return self.customer.owes(SELLER.did)

    @property
    def theirs(self) -> Account:
        """The debt in the seller's book."""
        return self.store.owed_by(BUYER.did)

    def agree_on(self, orders: int) -> None:
        """Both books say that so many orders were delivered and are promised, and that nothing is open."""
        for account in (self.ours, self.theirs):
            assert (account.owed, account.authorized, account.reserved) == (orders * ONE, orders * ONE, 0)


@pytest.fixture
async def pair(tmp_path: Path, tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        pair = await Pair(tmp_path, tokenizer, clock).open()

        async def stop() -> None:
            await pair.stop(2)
            await pair.stop(1)

        stack.push_async_callback(stop)
        yield pair


async def remembered(book: Book) -> dict[Did, Met]:
    """What a restart would know of the last comparisons."""
    again = await Book.open(book.journal, book.identity, ManualClock())
    return await stored_meetings(book.journal, again.experience.meetings)


async def digests(book: Book, kind: str) -> set[bytes]:
    return {record.digest for record in await book.journal.list_records(kind, 1_000)}


async def test_two_that_agree_hand_nothing_over_and_keep_each_others_heads(pair: Pair) -> None:
    await pair.buy()
    heads = {book.me: book.journal.head for book in (pair.store.book, pair.customer.book)}

    await pair.meet()

    for book, other in ((pair.store.book, BUYER.did), (pair.customer.book, SELLER.did)):
        (record,) = await book.journal.list_records(AccountState.kind, 9)
        state = open_record(record.raw, AccountState)
        assert (state.signer, state.record.peer) == (other, book.me)
        assert (state.record.sequence, state.record.head) == (heads[other].sequence, heads[other].hash)
        assert (await remembered(book))[Did(other)].differences == []
    pair.agree_on(1)


async def test_nodes_that_have_nothing_to_do_with_each_other_keep_nothing(pair: Pair) -> None:
    await pair.meet()
    for book in (pair.store.book, pair.customer.book):
        assert await book.journal.list_records(AccountState.kind, 9) == []


async def test_what_a_seller_that_was_restored_has_lost_comes_back_from_its_buyer(pair: Pair) -> None:
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy(3)
    await pair.meet()
    receipts = await digests(pair.store.book, Receipt.kind)
    await pair.roll_back(1, old)
    assert pair.theirs.owed == ONE

    await pair.meet()

    pair.agree_on(4)
    assert await digests(pair.store.book, Receipt.kind) == receipts
    assert await digests(pair.store.book, Acknowledgement.kind) == await digests(
        pair.customer.book, Acknowledgement.kind
    )
    assert await _chain_holds(pair.journals[1], SELLER.did)
    await pair.buy()
    pair.agree_on(5)


async def test_what_a_buyer_that_was_restored_has_lost_comes_back_from_its_seller(pair: Pair) -> None:
    await pair.buy()
    old = await pair.copy(2)
    await pair.restart(2)
    await pair.buy(3)
    await pair.meet()
    receipts = await digests(pair.customer.book, Receipt.kind)
    await pair.roll_back(2, old)
    assert pair.ours.owed == ONE

    await pair.meet()

    pair.agree_on(4)
    assert await digests(pair.customer.book, Receipt.kind) == receipts
    assert await _chain_holds(pair.journals[2], BUYER.did)
    before = await digests(pair.customer.book, Acknowledgement.kind)
    await pair.buy()
    pair.agree_on(5)
    (new,) = await digests(pair.customer.book, Acknowledgement.kind) - before
    record = await pair.customer.book.journal.record(new)
    assert record is not None
    assert open_record(record.raw, Acknowledgement).record.previous in before


async def test_what_was_lost_comes_back_from_below_many_acknowledgements_of_others(pair: Pair) -> None:
    await pair.buy()
    old = await pair.copy(2)
    await pair.restart(2)
    await pair.buy(3)
    record = await pair.store.book.journal.list_records(Acknowledgement.kind, 1)
    said = open_record(record[0].raw, Acknowledgement).record
    theirs = evolve(open_record(said.voucher, Voucher).record, payer=STRANGER.did)
    voucher = sign(theirs, STRANGER).raw
    others = [sign(evolve(said, amount=n, voucher=voucher), STRANGER).raw for n in range(4_500)]
    for n in range(0, len(others), 500):
        await pair.store.book.post(records=[Kept(Acknowledgement.kind, raw) for raw in others[n : n + 500]])
    await pair.roll_back(2, old)

    await pair.meet()

    pair.agree_on(4)


@pytest.mark.parametrize("seed", [1, 2], ids=["seller", "buyer"])
async def test_a_long_answer_with_all_its_checkpoints_comes_back_once(pair: Pair, seed: int) -> None:
    await pair.buy()
    old = await pair.copy(seed)
    await pair.restart(seed)
    delivery = await pair.customer.order(await pair.customer.meet(pair.line), max_tokens=250)
    assert len(delivery.ids) > 2 * CHECKPOINT_TOKENS
    await pair.meet()
    await pair.roll_back(seed, old)

    await pair.meet()

    total = ONE + price_of(5, len(delivery.ids))
    for account in (pair.ours, pair.theirs):
        assert (account.owed, account.authorized, account.reserved) == (total, total, 0)


@pytest.mark.parametrize("seed", [1, 2], ids=["seller", "buyer"])
async def test_a_node_that_has_lost_its_whole_ledger_gets_it_back_in_several_rounds(
    pair: Pair, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lacking, "MAX_HANDED", 7)  # two orders in an answer
    orders = 7
    await pair.buy(orders)
    await pair.meet()

    await pair.roll_back(seed, b"")
    await pair.meet()

    pair.agree_on(orders)


async def test_the_seller_may_be_the_one_that_asks(pair: Pair) -> None:
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy(2)
    await pair.meet()
    await pair.roll_back(1, old)

    await pair.sellers.meet(BUYER.did)

    pair.agree_on(3)


async def _chain_holds(journal: Database, did: str) -> bool:
    return replay(did, [entry async for entry in journal.entries()]) == journal.books


async def test_an_acknowledgement_that_was_lost_is_handed_over_again(pair: Pair) -> None:
    offer = await pair.customer.meet(pair.line)
    pair.customer.lines[SELLER.did] = Deaf(pair.store.seller)
    await pair.customer.order(offer, max_tokens=10)
    assert (pair.ours.authorized, pair.theirs.authorized) == (ONE, 0)

    await pair.meet()

    pair.agree_on(1)


async def test_one_that_was_lost_before_later_ones_is_found_too(pair: Pair) -> None:
    await pair.buy()
    offer = await pair.customer.meet(pair.line)
    pair.customer.lines[SELLER.did] = Deaf(pair.store.seller)
    await pair.customer.order(offer, max_tokens=10)
    pair.customer.lines[SELLER.did] = pair.line
    await pair.customer.order(offer, max_tokens=10)
    assert len(await digests(pair.store.book, Acknowledgement.kind)) == 2

    await pair.meet()

    assert len(await digests(pair.store.book, Acknowledgement.kind)) == 3
    pair.agree_on(3)


async def settle(pair: Pair, amount: int) -> None:
    """The buyer pays by other means, and the seller's owner confirms."""
    payee = Settling(pair.store.book, lambda _: None)
    payer = Settling(pair.customer.book, lambda _: payee)
    await payer.ask(SELLER.did, uusd(amount))
    await payee.confirm(BUYER.did, uusd(amount))
    assert (await payer.ask(SELLER.did, uusd(amount))).confirmed


@pytest.mark.parametrize("seed", [1, 2], ids=["seller", "buyer"])
async def test_settlements_come_back_with_both_signatures(pair: Pair, seed: int) -> None:
    await pair.buy()
    old = await pair.copy(seed)
    await pair.restart(seed)
    await settle(pair, 5)
    await settle(pair, 3)
    await pair.meet()
    await pair.roll_back(seed, old)

    await pair.meet()

    assert pair.ours.settled == pair.theirs.settled == 8
    pair.agree_on(1)


@pytest.mark.parametrize("seed", [1, 2], ids=["seller", "buyer"])
async def test_nettings_come_back_in_both_directions(pair: Pair, seed: int) -> None:
    await pair.buy()
    there, back = pair.ours.key, pair.customer.book.debt_of(SELLER.did, "uusd").key
    order = bytes(32)
    for book in (pair.customer.book, pair.store.book):
        changes = Granted(99, 99, 1), Reserved(order, 7, 9), Earned(order, 7), Released(order), VoucherReceived(7)
        await book.post(*(AccountChanged(back, change) for change in changes))
    old = await pair.copy(seed)
    await pair.restart(seed)
    helper = Netter(pair.store.book, lambda _: None)
    await Netter(pair.customer.book, lambda _: helper).ask(SELLER.did)
    await pair.meet()
    await pair.roll_back(seed, old)

    await pair.meet()

    for book in (pair.customer.book, pair.store.book):
        assert [book.journal.books.account(key).netted for key in (there, back)] == [7, 7]


# Any history


def copied(journal: MemoryJournal) -> MemoryJournal:
    """What it holds by now."""
    copy = MemoryJournal("")
    copy.__dict__.update({name: copying.copy(value) for name, value in journal.__dict__.items()})
    return copy


class Cut(Line):
    """Breaks before the receipt of each order."""

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        before: bytes | None = None
        async with aclosing(super().order(order, sealed)) as stream:
            async for chunk in stream:
                if before is not None:
                    yield before
                before = chunk
        raise Unreachable("the line is down")

    async def receipt(self, order: bytes) -> bytes | None:
        raise Unreachable("the line is down")


class Story:
    """A seller and a buyer whose ledgers may be put back at any time; what was signed for is noted apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._clock = tokenizer, ManualClock()
        self._entropy = SeededEntropy(5)
        self.copies: dict[int, list[MemoryJournal]] = {1: [], 2: []}
        self.signed = [0, 0]  # the highest promise and settlement that there ever was
        self.unheard = False  # whether an acknowledgement went down with the buyer's ledger before it was heard

    async def begin(self) -> None:
        for seed, identity in ((1, SELLER), (2, BUYER)):
            await self.start(seed, MemoryJournal(identity.did))

    async def start(self, seed: int, journal: MemoryJournal) -> None:
        if seed == 1:
            self.store = await Store.open(self._tokenizer, self._clock, journal=journal, entropy=self._entropy)
            self.sellers = Reconciler(self.store.book, self._entropy, lambda _: self.buyers, lambda _k, _d: None)
            await self.sellers.heads.open()
            self.sellers.taking.paid = self.store.seller.acknowledge
        else:
            entropy, policy = self._entropy, NO_AUDITS
            self.customer = await Customer.open(
                self._tokenizer, self._clock, journal=journal, entropy=entropy, policy=policy
            )
            promised = self.customer.settler.promised
            self.buyers = Reconciler(self.customer.book, entropy, lambda _: self.sellers, promised)
            await self.buyers.heads.open()

            async def tokenizer(_: bytes) -> Tokenizer:
                return self._tokenizer

            self.buyers.taking.claimed = Claims(self.customer.book, self.customer.settler, tokenizer).take

    def journal(self, seed: int) -> MemoryJournal:
        journal = (self.store.book if seed == 1 else self.customer.book).journal
        assert isinstance(journal, MemoryJournal)
        return journal

    async def buy(self, line: Line) -> None:
        await self.customer.order(await self.customer.meet(line), max_tokens=10)
        self.customer.lines[SELLER.did] = Line(self.store.seller)

    async def settle(self) -> None:
        """All that is promised is paid by other means."""
        payee = Settling(self.store.book, lambda _: None)
        account = self.customer.owes(SELLER.did)
        if amount := min(account.unsettled, self.store.owed_by(BUYER.did).unsettled):
            payer = Settling(self.customer.book, lambda _: payee)
            await payer.ask(SELLER.did, uusd(amount))
            await payee.confirm(BUYER.did, uusd(amount))
            await payer.ask(SELLER.did, uusd(amount))

    async def put_back(self, seed: int, number: int) -> None:
        """To one of the copies. The other side must then give back what is lost, before anything else is done."""
        if copies := self.copies[seed]:
            if seed == 2:
                ours = await digests(self.customer.book, Acknowledgement.kind)
                self.unheard |= bool(ours - await digests(self.store.book, Acknowledgement.kind))
                # Nor is a claim of an order that is not known any more.
                self.unheard |= any(one.unanswered for one in self.store.owed_by(BUYER.did).orders.values())
                await self.customer.close()
            await self.start(seed, copied(copies[number % len(copies)]))

    async def tell(self, steps: Sequence[tuple[str, int]]) -> None:
        """Each step; after those that lose something, accounts are compared."""
        for step, number in steps:
            match step:
                case "buy":
                    await self.buy(Line(self.store.seller))
                case "deaf":
                    await self.buy(Deaf(self.store.seller))
                case "cut":
                    await self.buy(Cut(self.store.seller))
                case "settle":
                    await self.settle()
                case "copy":
                    seed = 1 + number % 2
                    self.copies[seed].append(copied(self.journal(seed)))
                case "put back":
                    await self.put_back(1 + number % 2, number // 2)
                    await self.compare()
            self.signed = [max(one, other) for one, other in zip(self.signed, self.most(), strict=True)]
        await self.compare()
        await self.customer.close()

    def most(self) -> tuple[int, int]:
        """The highest promise and the highest settled total that either of the two knows."""
        both = self.customer.owes(SELLER.did), self.store.owed_by(BUYER.did)
        return max(one.authorized for one in both), max(one.settled for one in both)

    async def compare(self) -> None:
        promised, settled = known = self.most()
        assert all(one <= ever for one, ever in zip(known, self.signed, strict=True))
        await self.buyers.meet(SELLER.did)
        await self.customer.handed_over()
        ours, theirs = self.customer.owes(SELLER.did), self.store.owed_by(BUYER.did)
        assert (ours.authorized, ours.settled) == (theirs.authorized, theirs.settled)
        assert (ours.authorized >= promised, ours.settled) == (True, settled)  # what was claimed is promised now
        self.signed[0] = max(self.signed[0], ours.authorized)
        assert ours.owed <= ours.authorized <= theirs.owed
        if not self.unheard:
            assert ours.owed == ours.authorized == theirs.owed
            assert [met.differences for met in self.buyers.heads.met().values()] in ([], [[]])
        for seed, did in ((1, SELLER.did), (2, BUYER.did)):
            journal = self.journal(seed)
            assert replay(did, [entry async for entry in journal.entries()]) == journal.books


STEPS = st.tuples(
    st.sampled_from(["buy", "deaf", "cut", "settle", "copy", "copy", "put back", "put back"]), st.integers(0, 7)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, min_size=3, max_size=9))
@example([("copy", 1), ("deaf", 0), ("copy", 0), ("put back", 1), ("buy", 0), ("put back", 0)])
@example([("copy", 1), ("cut", 0), ("copy", 0), ("put back", 1), ("cut", 0), ("put back", 0)])
@example([("cut", 0), ("copy", 1), ("copy", 0), ("buy", 0), ("put back", 1), ("deaf", 0), ("put back", 0)])
def test_whatever_copies_ledgers_are_put_back_to_both_agree_on_all_that_either_still_knows(
    tokenizer: Tokenizer, steps: list[tuple[str, int]]
) -> None:
    async def tell() -> None:
        story = Story(tokenizer)
        await story.begin()
        await story.tell(steps)

    asyncio.run(tell())


# A journal that was cut


async def test_a_node_finds_by_its_own_signature_that_its_journal_was_cut_and_says_so(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy()
    await pair.meet()
    await pair.roll_back(1, old)
    before = pair.sellers.heads.cut
    assert before is None

    await pair.meet()

    cut = pair.sellers.heads.cut
    assert cut is not None
    assert cut.peer == BUYER.did
    assert cut.sequence > cut.entries
    assert "cut or restored from an older copy" in caplog.text
    assert pair.buyers.heads.cut is None


async def test_after_a_cut_no_work_starts_with_a_peer_before_accounts_were_compared_also_after_a_restart(
    pair: Pair,
) -> None:
    await pair.buy()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy()
    await pair.meet()
    await pair.roll_back(1, old)
    await pair.meet()

    for _ in range(2):
        assert pair.sellers.heads.may_work_with(BUYER.did) is None
        refusal = pair.sellers.heads.may_work_with(STRANGER.did)
        assert refusal is not None
        assert refusal.code == "busy"
        await pair.stop(1)
        await pair.restart(1)
        assert pair.sellers.heads.cut is not None


async def test_a_second_look_at_the_old_branch_is_no_second_cut(pair: Pair) -> None:
    await pair.buy()
    await pair.meet()
    old = await pair.copy(1)
    await pair.restart(1)
    await pair.buy()
    pair.clock.advance(61)
    await pair.meet()
    shown = pair.buyers.heads.last(SELLER.did)
    await pair.roll_back(1, old)
    pair.clock.advance(61)
    await pair.meet()
    cut, entries = pair.sellers.heads.cut, pair.journals[1].head.sequence

    assert not await pair.sellers.heads.shown(BUYER.did, shown)

    assert pair.sellers.heads.cut == cut
    assert pair.journals[1].head.sequence == entries
    assert pair.sellers.heads.may_work_with(BUYER.did) is not None, "with whom shows the old one, compare again"


async def test_what_others_have_signed_proves_no_cut(pair: Pair) -> None:
    await pair.buy()
    await pair.meet()
    state = open_record(pair.buyers.heads.last(SELLER.did), AccountState).record
    ahead = evolve(state, sequence=10_000)
    elsewhere = evolve(ahead, peer=STRANGER.did)

    for raw in (sign(ahead, BUYER).raw, sign(ahead, STRANGER).raw, sign(elsewhere, SELLER).raw, b"", b"nonsense"):
        assert await pair.sellers.heads.shown(BUYER.did, raw)
    assert pair.sellers.heads.cut is None


# Differences


async def test_what_cannot_be_healed_is_kept_with_both_signatures(pair: Pair) -> None:
    await pair.buy()
    key = pair.theirs.key
    # The seller's book says what no signature of the buyer bears out.
    both = sign(Settlement(BUYER.did, SELLER.did, "uusd", 0, 7, 1), SELLER)
    await pair.store.book.post(AccountChanged(key, Settled(both.record.total)))

    await pair.meet()

    for book, (ours, theirs) in ((pair.customer.book, (0, 7)), (pair.store.book, (7, 0))):
        other = SELLER.did if book.me == BUYER.did else BUYER.did
        met = (await remembered(book))[other]
        assert [(d.key, d.what, d.ours, d.theirs) for d in met.differences] == [(key, "settled", ours, theirs)]
        assert met.ours is not None
        assert (met.ours.signer, met.theirs.signer) == (book.me, other)
    assert pair.ours.settled == 0


async def test_a_difference_that_is_gone_is_not_shown_any_more(pair: Pair) -> None:
    await pair.buy()
    await pair.customer.book.post()
    offer = await pair.customer.meet(pair.line)
    pair.customer.lines[SELLER.did] = Deaf(pair.store.seller)
    await pair.customer.order(offer, max_tokens=10)

    await pair.meet()

    for book in (pair.customer.book, pair.store.book):
        assert [met.differences for met in (await remembered(book)).values()] == [[]]


async def test_nothing_is_judged_while_an_order_is_open(pair: Pair) -> None:
    offer = await pair.customer.meet(pair.line)
    tokens = pair.customer.buy(offer, max_tokens=200).tokens()
    await anext(tokens)
    await pair.meet()
    async for _ in tokens:
        pass
    assert [met.differences for met in pair.buyers.heads.met().values()] == [[]]
    await pair.customer.settled()
    assert pair.ours.owed == pair.theirs.owed == price_of(5, 200)


# A hostile peer


class Hostile:
    """Stands between the buyer and its seller as the seller, and says what a test makes it say."""

    def __init__(self, peer: Counterpart) -> None:
        self.peer = peer
        self.handed: list[Handed] = []

    async def challenge(self) -> bytes:
        return await self.peer.challenge()

    async def state(self, raw: bytes) -> bytes:
        return encode_answered(self.change(decode_answered(await self.peer.state(raw)), decode_asked(raw)))

    async def hand_back(self, raw: bytes) -> None:
        self.handed.append(decode_handed(raw)[1])
        await self.peer.hand_back(raw)

    def change(self, answered: Answered, asked: Asked) -> Answered:
        return answered


class Lying(Hostile):
    """Says other totals than its books have, under its own good signature."""

    def __init__(self, peer: Counterpart, **lies: Any) -> None:
        super().__init__(peer)
        self._lies = lies

    def change(self, answered: Answered, asked: Asked) -> Answered:
        said = open_record(answered.state, AccountState).record
        lies = evolve(said, accounts=tuple(evolve(totals, **self._lies) for totals in said.accounts))
        return evolve(answered, state=sign(lies, SELLER).raw)


async def met_with(pair: Pair, hostile: Hostile) -> Account:
    """The buyer's account after it has met such a one."""
    entropy = SeededEntropy(7)
    buyers = Reconciler(pair.customer.book, entropy, lambda _: hostile, pair.customer.settler.promised)
    await buyers.meet(SELLER.did)
    return pair.ours


@pytest.mark.parametrize(
    "lies",
    [
        {"authorized": 10**9, "earned": 10**9},
        {"authorized": 0, "earned": 0, "acknowledged": b""},
        {"settled": 0, "netted": 10**9, "forgiven": 10**9, "waived": 1},
        {"acknowledged": bytes(32)},
        {"rail": "lightning"},
    ],
    ids=["more", "less", "other agreements", "an acknowledgement that nobody knows", "another rail"],
)
async def test_totals_that_are_made_up_move_nothing(pair: Pair, lies: dict[str, Any]) -> None:
    await pair.buy(2)
    await settle(pair, 5)
    before = pair.ours
    liar = Lying(pair.sellers, **lies)

    assert await met_with(pair, liar) == before
    assert len(liar.handed) <= 1, "what is in vain is not handed over again and again"


class Handing(Hostile):
    """Hands over what it should not."""

    def __init__(self, peer: Counterpart, records: Handed) -> None:
        super().__init__(peer)
        self._records = records

    def change(self, answered: Answered, asked: Asked) -> Answered:
        return evolve(answered, records=self._records)


async def test_records_that_prove_nothing_move_nothing(pair: Pair) -> None:
    await pair.buy(2)
    before = pair.ours
    kept = await pair.customer.book.journal.list_records(Acknowledgement.kind, 9)
    known = open_record(kept[0].raw, Acknowledgement).record
    strangers = Voucher(STRANGER.did, SELLER.did, "credit", "", "", "uusd", 10**6)
    ours = open_record(known.voucher, Voucher).record
    one_sided = Settlement(BUYER.did, SELLER.did, "uusd", 0, 9, 1)
    forged = (
        sign(evolve(known, amount=10**6), SELLER),  # by the payee itself
        sign(evolve(known, voucher=sign(strangers, STRANGER).raw), STRANGER),  # of another payer
        sign(evolve(known, voucher=sign(evolve(ours, total=10**6), SELLER).raw), SELLER),  # a voucher of its own
        sign(one_sided, SELLER),
        sign(one_sided, STRANGER),
        sign(evolve(one_sided, total=12), SELLER),
    )
    records = tuple((record.record.kind, record.raw) for record in forged)
    damaged = tuple((one.kind, one.raw[:-1] + b"\0") for one in kept)

    assert await met_with(pair, Handing(pair.sellers, (*records, *damaged, ("acknowledgement", b"")))) == before


async def test_our_own_promises_handed_back_one_by_one_make_us_owe_no_more_than_the_highest(pair: Pair) -> None:
    await pair.buy(4)
    journal = pair.customer.book.journal
    newest_first = [record.raw for record in await journal.list_records(Acknowledgement.kind, 9)]
    orders = [record.raw for record in await journal.list_records("order", 9)]
    await pair.roll_back(2, b"")
    acknowledgements = [("acknowledgement", raw) for raw in newest_first]

    await met_with(pair, Handing(pair.sellers, (("order", orders[0]), *acknowledgements[:1])))
    withheld = pair.ours
    await met_with(pair, Handing(pair.sellers, (*(("order", raw) for raw in orders), *acknowledgements)))

    assert (withheld.owed, withheld.authorized) == (ONE, 4 * ONE)
    assert (pair.ours.owed, pair.ours.authorized) == (4 * ONE, 4 * ONE)
    await pair.meet()
    await pair.buy()
    pair.agree_on(5)


@pytest.mark.parametrize("what", ["nonce", "peer", "signer"])
async def test_a_state_that_is_not_the_peers_for_this_moment_is_refused(pair: Pair, what: str) -> None:
    await pair.buy()

    class Replaying(Hostile):
        def change(self, answered: Answered, asked: Asked) -> Answered:
            said = open_record(answered.state, AccountState).record
            changed = {
                "nonce": sign(evolve(said, nonce=bytes(16)), SELLER),
                "peer": sign(evolve(said, peer=STRANGER.did), SELLER),
                "signer": sign(said, STRANGER),
            }
            return evolve(answered, state=changed[what].raw)

    with pytest.raises(Malformed):
        await met_with(pair, Replaying(pair.sellers))
    assert pair.buyers.heads.met() == {}


async def asked(pair: Pair, identity: Identity = BUYER, **changes: Any) -> bytes:
    """A state as whoever asks hands it over."""
    nonce = decode_nonce(await pair.sellers.challenge())
    state = AccountState(SELLER.did, nonce, 0, bytes(32), (), 1)
    return encode_asked(Asked(sign(evolve(state, **changes), identity).raw, bytes(16), b""))


async def test_a_nonce_is_good_for_one_state(pair: Pair) -> None:
    raw = await asked(pair)
    await pair.sellers.state(raw)
    for again in (raw, await asked(pair, nonce=bytes(16)), await asked(pair, peer=STRANGER.did), b""):
        with pytest.raises(Refused) as refusal:
            await pair.sellers.state(again)
        assert refusal.value.code == "malformed"


async def test_records_are_handed_back_once_after_an_exchange(pair: Pair) -> None:
    raw = await asked(pair)
    nonce = open_record(decode_asked(raw).state, AccountState).record.nonce
    with pytest.raises(Refused):
        await pair.sellers.hand_back(encode_handed(nonce, ()))
    await pair.sellers.state(raw)
    await pair.sellers.hand_back(encode_handed(nonce, ()))
    for again in (encode_handed(nonce, ()), b""):
        with pytest.raises(Refused):
            await pair.sellers.hand_back(again)


async def compared(pair: Pair, address: str, comparisons: int) -> int:
    """How many strangers of one address, each with a did of its own, were answered."""
    answered = 0
    for number in range(comparisons):
        stranger = Identity(address.encode()[:24].ljust(24) + number.to_bytes(8, "big"))
        with contextlib.suppress(Refused):
            await pair.sellers.state(await asked(pair, stranger), address)
            answered += 1
    return answered


async def test_strangers_of_one_address_share_a_rate_and_take_it_from_nobody_else(pair: Pair) -> None:
    await pair.buy()
    assert await compared(pair, "192.0.2.1", 4 * MAX_ROUNDS) == 2 * MAX_ROUNDS
    with pytest.raises(Refused, match="compared often enough") as refusal:
        await pair.sellers.state(await asked(pair, Identity(b"one more" + bytes(24))), "192.0.2.1")
    assert refusal.value.code == "too_many_requests"
    assert await compared(pair, "192.0.2.2", 3) == 3
    await pair.meet()
    assert await pair.store.book.journal.list_records(AccountState.kind, 99) != []


async def test_strangers_of_many_addresses_wait_for_their_turns_and_keep_nobody_away_who_trades_here(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.sellers._strange, "_patience_s", 0.0)
    await pair.buy()
    answered = sum([await compared(pair, f"192.0.2.{number}", MAX_ROUNDS) for number in range(12)])
    assert answered == 10 * MAX_ROUNDS
    await pair.meet()
    assert await pair.store.book.journal.list_records(AccountState.kind, 99) != []


async def test_a_state_that_comes_again_and_again_does_not_fill_the_disk(pair: Pair) -> None:
    await pair.buy()
    entries = pair.journals[1].head.sequence
    for number in range(2 * MAX_ROUNDS):
        totals = (totals_of(evolve(pair.ours, earned=number), b""),)
        await pair.sellers.state(await asked(pair, accounts=totals))
    assert pair.journals[1].head.sequence <= entries + 2
