"""What the network takes for transactions is in the journal once, whatever happens to chain and node."""

from pathlib import Path

from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from ledger.database import Database
from ledger.events import FeePaid
from ledger.payload import decode_events, encode_events
from ledger.statement import DAY_MS, LineKey, Statement, posting_row
from node.exchange.book import Book
from node.exchange.fee_keeping import FeeKeeper
from node.exchange.fees import Fees
from node.ports import ManualClock
from tests.chain import ETHER, Anvil
from tests.ledger.rails.stablecoin.conftest import Opens, opens
from tests.ledger.rails.stablecoin.trading import DEPTH, Node, Trade, trade

__all__ = ["opens"]

NETWORK = "eip155:31337"
FUNDS = 10_000_000


@define
class Kept:
    """A node's journal, and what its statement says of fees."""

    folder: Path
    node: Node

    async def sweep(self) -> int:
        """Start, tell what is final, and end; what all of it has cost by the statement."""
        identity = self.node.identity
        async with await Database.open(self.folder / "ledger.db", identity.did) as database:
            book = await Book.open(database, identity, ManualClock())
            for _ in range(2):
                await self.node.chain.tend()
                await FeeKeeper(book, self.node.chain, NETWORK, "stablecoin").sweep()
            statement = Statement(identity.did)
            async for entry in book.journal.entries():
                statement.add(entry.sequence, entry.time_ms, decode_events(entry.payload))
            assert statement.balanced
            fees, money = (
                statement.lines[LineKey(NETWORK, "stablecoin", "wei", account)] for account in ("network fees", "money")
            )
            assert fees.closing == fees.debit == money.credit == -money.closing
            assert book.fees_today() == {NETWORK: fees.closing}
            return fees.closing


def spent(chain: Anvil, node: Node) -> int:
    return ETHER - int(chain.rpc("eth_getBalance", "0x" + node.wallet.address.hex(), "latest"), 16)


async def claimed(one: Trade, amount: int) -> None:
    """An order, its voucher and its claim."""
    before = one.account.settled
    one.pay(amount)
    effect = one.effect("claim", amount, before)
    await one.seller.rail.perform(effect)
    one.anvil.mine(DEPTH)
    assert (await one.seller.rail.fate(effect)).fate == "settled"
    one.anvil.mine(DEPTH)


async def test_deposits_claims_and_settlements_cost_what_the_wallet_has_lost(
    chain: Anvil, opens: Opens, tmp_path: Path
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    kept = Kept(tmp_path, one.seller)
    assert await kept.sweep() == spent(chain, one.seller) > 0
    await claimed(one, 1_000_000)
    assert await kept.sweep() == await kept.sweep() == spent(chain, one.seller)


async def test_what_a_reorganisation_undoes_and_what_is_sent_instead_is_counted_once(
    chain: Anvil, opens: Opens, tmp_path: Path
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    kept = Kept(tmp_path, one.seller)
    first = await kept.sweep()
    chain.reorganise(DEPTH + 1)
    assert spent(chain, one.seller) == 0
    chain.mine(DEPTH)
    await one.fund(FUNDS)  # the same number is used again
    chain.mine(DEPTH)
    assert await kept.sweep() == first


async def test_a_node_that_lost_its_journal_tells_what_its_outbox_has(
    chain: Anvil, opens: Opens, tmp_path: Path
) -> None:
    one = await trade(chain, opens)
    await one.fund(FUNDS)
    first = await Kept(tmp_path, one.seller).sweep()
    (tmp_path / "anew").mkdir()
    assert await Kept(tmp_path / "anew", one.seller).sweep() == first


def paid(nonce: int, amount: int = 7) -> FeePaid:
    return FeePaid("stablecoin", NETWORK, "0x" + "1" * 40, nonce, bytes([nonce]) * 32, amount)


@given(st.lists(st.integers(0, 40)))
def test_what_was_told_is_known_by_its_number_and_outlives_the_node(nonces: list[int]) -> None:
    fees = Fees()
    for nonce in nonces:
        fees.take(nonce * DAY_MS, decode_events(encode_events([paid(nonce)])))
    again = Fees.from_plain(fees.copy().to_plain(days=50))
    for found in (fees, again):
        assert [nonce for nonce in range(42) if found.knows(NETWORK, "0x" + "1" * 40, nonce)] == sorted(set(nonces))
        assert [found.on(day).get(NETWORK, 0) for day in range(42)] == [7 * nonces.count(day) for day in range(42)]


def test_a_fee_s_postings_name_its_transaction() -> None:
    debit, credit = Statement("me").add(5, 9, [paid(3)])
    assert posting_row(debit) == {
        "sequence": 5,
        "time_ms": 9,
        "counterparty": NETWORK,
        "rail": "stablecoin",
        "unit": "wei",
        "account": "network fees",
        "amount": 7,
        "counter": "fee",
        "order": "",
        "transaction": "0x" + "03" * 32,
    }
    assert (credit.account, credit.amount) == ("money", -7)
