"""What two nodes owe each other is set off, without their owners, on both sides once."""

from collections.abc import Callable

import pytest
from attrs import define, field

from ledger.changes import Authorized, Earned, Granted, Reserved, Settled, VoucherReceived
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.money import Amount
from ledger.records import Netting, open_record, sign
from node.exchange.book import Book
from node.exchange.netting import Netter, NotNetted
from node.exchange.taking import Taking
from node.ports import SystemClock
from node.wire.messages import Refused, Unreachable, encode_signatures

ALICE, BOB, EVE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))


async def book_of(identity: Identity) -> Book:
    return await Book.open(MemoryJournal(identity.did), identity, SystemClock())


@define
class Line:
    """The way to a peer; `breaks` loses that many answers."""

    peer: Netter
    breaks: int = 0

    async def netting(self, raw: bytes) -> bytes:
        answer = await self.peer.netting(raw)
        if self.breaks:
            self.breaks -= 1
            raise Unreachable("the line broke")
        return answer


@define
class Liar:
    """A peer that signs something else."""

    async def netting(self, raw: bytes) -> bytes:
        asked = open_record(raw, Netting)
        return encode_signatures((asked.raw, sign(asked.record, EVE).raw))


@define
class Pair:
    """Two nodes that have helped each other."""

    books: dict[str, Book]
    line: "Line | Liar | Keeper | Answering" = field(init=False)
    alice: Netter = field(init=False)
    bob: Netter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.bob = Netter(self.books[BOB.did], lambda _: None)
        self.line = Line(self.bob)
        self.alice = Netter(self.books[ALICE.did], lambda did: self.line if did == BOB.did else None)

    async def owes(self, payer: Identity, payee: Identity, amount: int) -> None:
        key = self.books[payer.did].debt_to(payee.did, "uusd").key
        order = amount.to_bytes(32, "big")
        for did, paid in ((payer.did, Authorized(amount)), (payee.did, VoucherReceived(amount))):
            changes = Granted(1000, 1000, 1), Reserved(order, amount, 9), Earned(order, amount), paid
            await self.books[did].post(*(AccountChanged(key, change) for change in changes))

    @property
    def unsettled(self) -> list[int]:
        """What Alice owes and what Bob owes, in Alice's books and in Bob's."""
        alice, bob = self.books[ALICE.did], self.books[BOB.did]
        hers = alice.debt_to(BOB.did, "uusd"), alice.debt_of(BOB.did, "uusd")
        his = bob.debt_of(ALICE.did, "uusd"), bob.debt_to(ALICE.did, "uusd")
        return [account.unsettled for account in (*hers, *his)]


@pytest.fixture
async def pair() -> Pair:
    pair = Pair({identity.did: await book_of(identity) for identity in (ALICE, BOB)})
    await pair.owes(ALICE, BOB, 80)
    await pair.owes(BOB, ALICE, 50)
    return pair


async def test_mutual_debts_become_none_on_both_sides(pair: Pair) -> None:
    assert await pair.alice.ask(BOB.did) == [Amount(50, "uusd")]
    assert pair.unsettled == [30, 0, 30, 0]


async def test_there_is_nothing_to_set_off_twice(pair: Pair) -> None:
    await pair.alice.ask(BOB.did)
    with pytest.raises(NotNetted, match="do not owe each other"):
        await pair.alice.ask(BOB.did)
    assert pair.unsettled == [30, 0, 30, 0]


async def test_a_lost_answer_is_found_at_the_next_netting(pair: Pair) -> None:
    assert isinstance(pair.line, Line)
    pair.line.breaks = 1
    with pytest.raises(NotNetted, match="the line broke"):
        await pair.alice.ask(BOB.did)
    assert pair.unsettled == [80, 50, 30, 0]
    assert await pair.alice.ask(BOB.did) == [Amount(50, "uusd")]
    assert pair.unsettled == [30, 0, 30, 0]


async def test_a_peer_that_signs_with_another_key_changes_nothing(pair: Pair) -> None:
    pair.line = Liar()
    with pytest.raises(NotNetted, match="one each"):
        await pair.alice.ask(BOB.did)
    assert pair.unsettled == [80, 50, 80, 50]


async def test_who_is_not_named_cannot_be_asked(pair: Pair) -> None:
    with pytest.raises(NotNetted, match="none of the named peers"):
        await pair.bob.ask(ALICE.did)


@define
class Keeper:
    """A peer that keeps what it is asked to sign."""

    asked: list[bytes] = field(factory=list)

    async def netting(self, raw: bytes) -> bytes:
        self.asked.append(raw)
        raise Unreachable("the line broke")


@define
class Answering:
    """A peer that answers with signatures that it has ready."""

    pair: tuple[bytes, bytes]

    async def netting(self, raw: bytes) -> bytes:
        return encode_signatures(self.pair)


async def kept_proposal(pair: Pair) -> tuple[bytes, bytes]:
    """What Alice has signed and Bob kept, and now signs."""
    keeper = pair.line = Keeper()
    with pytest.raises(NotNetted, match="the line broke"):
        await pair.alice.ask(BOB.did)
    return keeper.asked[0], sign(open_record(keeper.asked[0], Netting).record, BOB).raw


async def settled_in_cash(pair: Pair) -> None:
    for book in pair.books.values():
        for payer, payee, amount in ((ALICE, BOB, 80), (BOB, ALICE, 50)):
            key = pair.books[payer.did].debt_to(payee.did, "uusd").key
            await book.post(AccountChanged(key, Settled(amount)))


async def test_a_proposal_that_was_kept_until_all_was_settled_pays_nothing_in_advance(pair: Pair) -> None:
    signed = await kept_proposal(pair)
    await settled_in_cash(pair)
    await pair.owes(ALICE, BOB, 95)
    await pair.owes(BOB, ALICE, 60)
    before = pair.unsettled
    pair.line = Answering(signed)
    with pytest.raises(NotNetted, match="more than there is to set off"):
        await pair.alice.ask(BOB.did)
    opened = [(Netting.kind, raw) for raw in signed]
    assert await Taking(pair.books[ALICE.did], lambda *_: None).take(BOB.did, tuple(opened), {}) == 0
    assert pair.unsettled == before


async def test_an_answer_that_comes_late_counts_where_both_still_owe_it(pair: Pair) -> None:
    signed = await kept_proposal(pair)
    opened = [(Netting.kind, raw) for raw in signed]
    assert await Taking(pair.books[ALICE.did], lambda *_: None).take(BOB.did, tuple(opened), {}) == 1
    assert pair.unsettled[:2] == [30, 0]


def said(one: Identity, other: Identity, before: int = 0, total: int = 50, issued: int | None = None) -> Netting:
    first, second = sorted((one.did, other.did))
    return Netting(first, second, "uusd", before, total, int(SystemClock().now()) if issued is None else issued)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        (lambda: b"nonsense", "malformed"),
        (lambda: sign(said(ALICE, BOB), EVE).raw, "malformed"),
        (lambda: sign(said(ALICE, BOB), BOB).raw, "malformed"),
        (lambda: sign(said(ALICE, EVE), ALICE).raw, "malformed"),
        (lambda: sign(said(EVE, BOB), EVE).raw, "credit"),
        (lambda: sign(said(ALICE, BOB, total=51), ALICE).raw, "credit"),
        (lambda: sign(said(ALICE, BOB, before=3), ALICE).raw, "expired"),
        (lambda: sign(said(ALICE, BOB, issued=1), ALICE).raw, "expired"),
    ],
)
async def test_a_request_that_its_books_do_not_bear_is_refused(
    pair: Pair, made: Callable[[], bytes], code: str
) -> None:
    with pytest.raises(Refused) as refused:
        await pair.bob.netting(made())  # only now, for a request is signed while it is fresh
    assert refused.value.code == code
    assert pair.unsettled == [80, 50, 80, 50]
