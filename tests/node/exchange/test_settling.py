"""Credit is paid off by other means: asked by the payer, confirmed by the payee's owner, counted on both sides once."""

from collections.abc import Awaitable, Callable

import pytest
from attrs import define, field

from ledger.changes import Authorized, Earned, Granted, Reserved
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Kept, MemoryJournal
from ledger.money import Amount
from ledger.records import Settlement, open_record, sign
from node.exchange.book import Book
from node.exchange.settling import AboveDebt, Asked, NoSuchRequest, NotCounted, Request, Settling
from node.ports import SystemClock
from node.wire.messages import Refused, Unreachable, decode_signatures, encode_signatures

BUYER, SELLER, STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
ORDER = b"1" * 32
FIVE, SIX = Amount(5, "uusd"), Amount(6, "uusd")


@define
class Line:
    """The way to the payee; `breaks` loses that many answers on their way back."""

    payee: Settling
    breaks: int = 0

    async def settlement(self, raw: bytes) -> bytes:
        answer = await self.payee.settlement(raw)
        if self.breaks:
            self.breaks -= 1
            raise Unreachable("the line broke")
        return answer


@define
class House:
    """A payer that owes 80 to a payee, and the line between them."""

    payer_book: Book
    payee_book: Book
    payee: Settling
    line: Line = field(init=False)
    payer: Settling = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.line = Line(self.payee)
        self.restart_payer()

    def restart_payer(self) -> None:
        self.payer = Settling(self.payer_book, lambda did: self.line if did == SELLER.did else None)

    @property
    def settled(self) -> tuple[int, int]:
        """At the payer, and at the payee."""
        return (
            self.payer_book.debt_to(SELLER.did, "uusd").settled,
            self.payee_book.debt_of(BUYER.did, "uusd").settled,
        )


async def book_of(identity: Identity) -> Book:
    return await Book.open(MemoryJournal(identity.did), identity, SystemClock())


@pytest.fixture
async def house() -> House:
    payer, payee = await book_of(BUYER), await book_of(SELLER)
    key = payer.debt_to(SELLER.did, "uusd").key
    changes = Granted(100, 100, 1), Reserved(ORDER, 80, 9), Earned(ORDER, 80), Authorized(80)
    for book in (payer, payee):
        await book.post(*(AccountChanged(key, change) for change in changes))
    return House(payer, payee, Settling(payee, lambda _: None))


async def test_it_waits_for_the_owner_of_the_payee(house: House) -> None:
    assert await house.payer.ask(SELLER.did, FIVE) == Asked(confirmed=False)
    assert house.payee.waiting == [Request(BUYER.did, FIVE)]
    assert house.settled == (0, 0)


async def test_what_the_owner_confirms_counts_on_both_sides_once(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    await house.payee.confirm(BUYER.did, FIVE)
    assert house.payee.waiting == []
    assert await house.payer.ask(SELLER.did, FIVE) == Asked(confirmed=True)
    assert house.settled == (5, 5)
    assert len(await house.payer_book.journal.list_records(Settlement.kind, 9)) == 2


async def test_asking_again_before_it_is_confirmed_asks_for_no_more(house: House) -> None:
    for _ in range(3):
        assert await house.payer.ask(SELLER.did, FIVE) == Asked(confirmed=False)
    await house.payee.confirm(BUYER.did, FIVE)
    await house.payer.sweep()
    assert house.settled == (5, 5)


async def test_a_lost_answer_is_asked_for_again(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    await house.payee.confirm(BUYER.did, FIVE)
    house.line.breaks = 1
    with pytest.raises(NotCounted, match="the line broke"):
        await house.payer.ask(SELLER.did, FIVE)
    assert house.settled == (0, 5)
    await house.payer.sweep()
    assert house.settled == (5, 5)


async def test_a_payer_that_forgot_its_request_counts_it_all_the_same(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    await house.payee.confirm(BUYER.did, FIVE)
    house.restart_payer()
    with pytest.raises(NotCounted, match="an earlier settlement was counted just now"):
        await house.payer.ask(SELLER.did, SIX)
    assert house.settled == (5, 5)
    await house.payer.ask(SELLER.did, SIX)
    await house.payee.confirm(BUYER.did, SIX)
    assert await house.payer.ask(SELLER.did, SIX) == Asked(confirmed=True)
    assert house.settled == (11, 11)


async def test_a_lost_answer_is_found_below_many_settlements_of_others(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    await house.payee.confirm(BUYER.did, FIVE)
    house.restart_payer()
    for n in range(300):
        other = said(payer=STRANGER.did, before=n, total=n + 1)
        records = [Kept(Settlement.kind, sign(other, identity).raw) for identity in (STRANGER, SELLER)]
        await house.payee_book.post(records=records)
    with pytest.raises(NotCounted, match="an earlier settlement was counted just now"):
        await house.payer.ask(SELLER.did, SIX)
    assert house.settled == (5, 5)


async def test_only_what_was_asked_for_is_confirmed_and_only_once(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    with pytest.raises(NoSuchRequest, match="has not asked to settle"):
        await house.payee.confirm(BUYER.did, SIX)
    await house.payee.confirm(BUYER.did, FIVE)
    with pytest.raises(NoSuchRequest):
        await house.payee.confirm(BUYER.did, FIVE)


async def test_another_amount_takes_the_place_of_what_was_not_confirmed(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    assert await house.payer.ask(SELLER.did, SIX) == Asked(confirmed=False, replaced=FIVE)
    assert house.payee.waiting == [Request(BUYER.did, SIX)]
    await house.payee.confirm(BUYER.did, SIX)
    await house.payer.sweep()
    assert house.settled == (6, 6)


async def test_more_than_is_owed_is_settled_only_if_the_owner_means_it(house: House) -> None:
    await house.payer.ask(SELLER.did, FIVE)
    await house.payee.confirm(BUYER.did, FIVE)
    await house.payer.sweep()
    with pytest.raises(AboveDebt, match=r"only 0\.000075usd is owed to"):
        await house.payer.ask(SELLER.did, Amount(76, "uusd"))
    assert await house.payer.ask(SELLER.did, Amount(76, "uusd"), in_advance=True) == Asked(confirmed=False)
    with pytest.raises(AboveDebt, match="nothing is owed to"):
        await house.payer.ask(SELLER.did, Amount(1, "msat"))


async def test_who_is_not_named_cannot_be_asked(house: House) -> None:
    with pytest.raises(NotCounted, match="none of the named peers"):
        await house.payer.ask(STRANGER.did, FIVE)


async def test_nothing_is_not_settled(house: House) -> None:
    with pytest.raises(NotCounted, match="above 0"):
        await house.payer.ask(SELLER.did, Amount(0, "uusd"))


def said(**changes: object) -> Settlement:
    fields: dict[str, object] = {"payer": BUYER.did, "payee": SELLER.did, "before": 0, "total": 5}
    return Settlement(unit="uusd", issued=1, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"nonsense", "malformed"),
        (sign(said(), STRANGER).raw, "malformed"),
        (sign(said(), SELLER).raw, "malformed"),
        (sign(said(payee=STRANGER.did), BUYER).raw, "malformed"),
        (sign(said(payer=STRANGER.did), STRANGER).raw, "credit"),
        (sign(said(before=3), BUYER).raw, "expired"),
    ],
)
async def test_a_request_that_is_none_is_refused(house: House, raw: bytes, code: str) -> None:
    with pytest.raises(Refused) as refused:
        await house.payee.settlement(raw)
    assert refused.value.code == code
    assert house.payee.waiting == []


Answer = Callable[[Settlement], tuple[bytes, bytes]]


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: (sign(asked, STRANGER).raw, sign(asked, SELLER).raw),
        lambda asked: (sign(asked, SELLER).raw, sign(asked, SELLER).raw),
        lambda asked: (sign(asked, BUYER).raw, sign(said(total=6), SELLER).raw),
        lambda asked: (b"nonsense", sign(asked, SELLER).raw),
    ],
)
async def test_a_payee_that_lies_changes_nothing(house: House, answer: Answer) -> None:
    class Liar(Line):
        async def settlement(self, raw: bytes) -> bytes:
            return encode_signatures(answer(open_record(raw, Settlement).record))

    house.line = Liar(house.payee)
    with pytest.raises(NotCounted):
        await house.payer.ask(SELLER.did, FIVE)
    assert house.settled == (0, 0)


async def test_the_answer_has_both_signatures_or_none(house: House) -> None:
    raw = sign(said(), BUYER).raw
    asking: Awaitable[bytes] = house.payee.settlement(raw)
    assert decode_signatures(await asking) is None
    await house.payee.confirm(BUYER.did, FIVE)
    answer = decode_signatures(await house.payee.settlement(raw))
    assert answer is not None
    assert [open_record(one, Settlement).signer for one in answer] == [BUYER.did, SELLER.did]
