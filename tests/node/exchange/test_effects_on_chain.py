"""The driver of effects over the rail itself, on a real chain: what is claimed when, together, and again."""

from collections.abc import Sequence

import pytest
from attrs import define

from ledger.account import Account
from ledger.changes import Earned, Granted, Released, Reserved, VoucherReceived
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import MemoryJournal
from ledger.rails.policy import Policy
from node.exchange.book import Book
from node.exchange.effects import EffectDriver
from node.exchange.pacing import Pace
from node.ports import ManualClock, SeededEntropy
from tests.chain import Anvil
from tests.ledger.rails.stablecoin.conftest import Opens, opens
from tests.ledger.rails.stablecoin.trading import DEPTH, Kept, Node, Trade, trade

__all__ = ["opens"]

FUNDS = 10_000_000
CHANNELS = 6
PACE = Pace()
# A tenth of a claim is fee enough on this chain, whose gas is dear.
POLICY = Policy(move_at=FUNDS, move_after_s=3_600, max_fee_ppm=100_000)


@define
class Payee:
    """A seller's book and driver, over its rail."""

    book: Book
    clock: ManualClock
    driver: EffectDriver

    @classmethod
    async def open(cls, node: Node) -> "Payee":
        clock = ManualClock()
        book = await Book.open(MemoryJournal(node.identity.did), node.identity, clock)
        return cls(book, clock, EffectDriver(book, SeededEntropy(1), [node.rail], {"stablecoin": POLICY}, PACE))

    async def sell(self, one: Trade, amount: int) -> None:
        """An order of so much, delivered and paid by a voucher."""
        await self.driver.look(one.key)
        one.pay(amount)
        account, order = self.account(one), bytes([len(self.account(one).orders)]) * 32
        changes = (
            Granted(0, FUNDS, account.grant_sequence + 1),
            Reserved(order, amount, 9),
            Earned(order, amount),
            Released(order),
            VoucherReceived(one.account.authorized),
        )
        await self.book.post(*(AccountChanged(one.key, change) for change in changes))

    async def go_on(self, seconds: float = 61) -> None:
        self.clock.advance(seconds)
        await self.driver.step()

    def account(self, one: Trade) -> Account:
        return self.book.journal.books.account(one.key)

    def states(self) -> set[str]:
        return {tracked.state for tracked in self.book.journal.books.effects.values()}


async def channels(chain: Anvil, opens: Opens, count: int) -> list[Trade]:
    """Of as many buyers with one seller, funded."""
    first = await trade(chain, opens)
    trades = [first]
    for number in range(count - 1):
        buyer = first.buyer
        other = Node(Identity(bytes([9, number]) * 16), buyer.wallet, buyer.chain, Kept(), buyer.rail)
        other.rail = other._new_rail()
        trades.append(await Trade.begin(chain, first.seller, other))
    for one in trades:
        await one.fund(FUNDS)
    return trades


async def worth_it_together(trades: Sequence[Trade]) -> int:
    """What each of them has to be owed so that one alone is not worth its claim, and all are."""
    rail = trades[0].seller.rail
    alone, together = await rail.fee("claim", 1), await rail.fee("claim", len(trades))
    assert alone is not None
    assert together is not None
    due = 10 * together * 6 // (5 * len(trades))
    assert due < 10 * alone
    return due


async def test_small_claims_wait_for_each_other_go_together_and_outlive_a_reorganisation(
    chain: Anvil, opens: Opens
) -> None:
    trades = await channels(chain, opens, CHANNELS)
    seller = trades[0].seller
    payee, due = await Payee.open(seller), await worth_it_together(trades)
    await payee.sell(trades[0], due)
    await payee.go_on(3_600)
    assert payee.states() == set()  # it is old, and would cost too much alone

    for one in trades[1:]:
        await payee.sell(one, due)
    with chain.without_mining():
        await payee.go_on()
        assert len(chain.pending()) == 2  # one claim of all, and one payout
        assert payee.states() == {"unknown"}
        chain.mine(DEPTH)
    await payee.go_on()
    assert payee.states() == {"settled"}
    assert [payee.account(one).settled for one in trades] == [due] * CHANNELS
    assert trades[0].dollars(seller) == CHANNELS * due

    chain.reorganise(DEPTH + 1)
    assert trades[0].dollars(seller) == 0
    for _ in range(12):  # it is asked for once more after a while, and made again without its owner
        await payee.go_on(PACE.confirm_s)
        await seller.chain.tend()
        chain.mine(DEPTH)
    assert payee.states() == set()
    assert [payee.account(one).settled for one in trades] == [due] * CHANNELS
    assert trades[0].dollars(seller) == CHANNELS * due


@pytest.mark.parametrize("seen", ["at once", "in a while"])
async def test_a_withdrawal_forces_a_claim_that_is_not_worth_its_fee_else(
    chain: Anvil, opens: Opens, seen: str
) -> None:
    one = (await channels(chain, opens, 1))[0]
    payee = await Payee.open(one.seller)
    alone = await one.seller.rail.fee("claim", 1)
    assert alone is not None
    await payee.sell(one, 2 * alone)
    await payee.go_on(3_600)
    assert payee.states() == set()

    back = one.effect("refund", FUNDS - 2 * alone, 0)
    assert (await one.buyer.rail.perform(back)).fate == "unknown"
    chain.mine()
    if seen == "at once":
        payee.clock.advance(5)
        assert (await payee.driver.look(one.key)).available == 0
    await payee.go_on()
    chain.mine(DEPTH)
    await payee.go_on()
    assert (payee.account(one).settled, one.dollars(one.seller)) == (2 * alone, 2 * alone)
