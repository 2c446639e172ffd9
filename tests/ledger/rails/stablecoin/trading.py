"""Two nodes with the rail between them, on a chain of the tests."""

from collections.abc import Awaitable, Callable

from attrs import define, field

from ledger.account import Account, AccountKey, apply
from ledger.changes import Authorized, Earned, Funded, Granted, Reserved, Withdrawn
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails.port import Answer, Sight
from ledger.rails.stablecoin.books import Deposit, Promise
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.channels import check_channel, open_channel
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.keys import Key
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.rail import Stablecoin
from ledger.records import ChannelTerms, Signed, Voucher
from tests.chain import ETHER, Anvil
from tests.ledger.rails.stablecoin.channels import DELAY_S, key, raw
from tests.ledger.rails.stablecoin.conftest import Opens

ETHER_COSTS = 30_000_000  # millionths of a dollar; gas is dear on a chain of tests, and its sums are small
# A transaction is mined as it is sent, or in the next block: after so many more it is deep.
DEPTH = 3


@define
class Kept:
    """What a node keeps of its channels."""

    channels: dict[AccountKey, ChannelConfig] = field(factory=dict)
    promises: dict[AccountKey, Promise] = field(factory=dict)
    relays: Callable[[AccountKey, Deposit], Awaitable[bool]] | None = None

    def channel(self, key: AccountKey) -> ChannelConfig | None:
        return self.channels.get(key)

    async def promise(self, key: AccountKey) -> Promise | None:
        return self.promises.get(key)

    async def relay(self, key: AccountKey, deposit: Deposit) -> bool:
        return self.relays is not None and await self.relays(key, deposit)


@define
class Node:
    """One node: who it is, its wallet, its view of the chain, and the rail over it."""

    identity: Identity
    wallet: Key
    chain: Chain
    books: Kept
    rail: Stablecoin
    now: float = 0.0  # seconds, as the rail counts them

    @classmethod
    async def open(cls, number: int, wallet: Key, opens: Opens, folder: str | None = None) -> "Node":
        identity = Identity(bytes((number,)) * 32)
        chain, books = await opens(wallet, folder=folder), Kept()
        node = cls(identity, wallet, chain, books, None)  # type: ignore[arg-type]
        node.rail = node._new_rail()
        return node

    async def forgetful(self, opens: Opens) -> None:
        """Lose all that is kept outside of the journal and the keys."""
        self.chain = await opens(self.wallet)
        self.rail = self._new_rail()

    def _new_rail(self) -> Stablecoin:
        me, now = self.identity.did, lambda: self.now
        return Stablecoin(self.chain, self.books, me, ether=ETHER_COSTS, min_deposit=1_000, gather_s=0.05, now=now)


@define
class Trade:
    """A buyer's channel to a seller, and the account with it as either side keeps it."""

    anvil: Anvil
    seller: Node
    buyer: Node
    key: AccountKey
    config: ChannelConfig
    account: Account
    _effects: int = 0

    @classmethod
    async def begin(cls, anvil: Anvil, seller: Node, buyer: Node, owed: int = 0) -> "Trade":
        """The buyer opens a channel by the seller's terms; it owes so much by now."""
        place = seller.rail.place
        receiver = seller.wallet.address
        terms = ChannelTerms(
            place.network, place.contract, raw(anvil.deployed.dollar), receiver, receiver, DELAY_S, 1_000, 0, 1
        )
        channel = open_channel(buyer.identity, seller.identity.did, terms, place, buyer.wallet.address)
        config = check_channel(channel, seller.identity.did, terms, place)
        key = AccountKey(buyer.identity.did, seller.identity.did, "stablecoin", "uusd")
        for node in (seller, buyer):
            node.books.channels[key] = config
        buyer.books.relays = _relay(seller)
        return cls(anvil, seller, buyer, key, config, apply(Account(key), Granted(0, 2**40, 1)))

    def effect(self, kind: Kind, amount: int, before: int) -> Effect:
        self._effects += 1
        name = f"{kind} {self._effects} of {self.key.payer}".encode()
        return Effect(name.ljust(32, b"\0")[:32], self.key, kind, before, before + amount)

    async def fund(self, amount: int) -> None:
        """A top-up, from beginning to end."""
        effect = self.effect("top_up", amount, self.account.funded)
        answer = await self.buyer.rail.perform(effect)
        assert answer.fate == "unknown", answer
        self.anvil.mine(DEPTH)
        found = await self.buyer.rail.fate(effect)
        assert found == Answer("settled", amount), found
        await self.look()

    async def look(self) -> Sight:
        """Take in what the seller sees."""
        sight = await self.seller.rail.collateral(self.account)
        assert sight is not None
        for change in (Funded(sight.funded, sight.sequence), Withdrawn(sight.withdrawn, sight.sequence)):
            self.account = apply(self.account, change)
        return sight

    def pay(self, amount: int, seen: Account | None = None) -> Signed[Voucher]:
        """An order of so much, delivered and paid by a voucher that the seller takes; `seen` is how it sees it."""
        order = len(self.account.orders).to_bytes(32, "big")
        total = self.account.owed + amount
        for change in (Reserved(order, amount, 9), Earned(order, amount)):
            self.account = apply(self.account, change)
        voucher = self.buyer.rail.make_voucher(self.buyer.identity, self.account, total)
        assert self.seller.rail.check_voucher(voucher, seen or self.account).total == total
        self.account = apply(self.account, Authorized(total))
        self.seller.books.promises[self.key] = Promise(total, voucher.record.signature or b"")
        return voucher

    def dollars(self, node: Node) -> int:
        return self.anvil.dollars(checksummed(node.wallet.address))


def _relay(seller: Node) -> Callable[[AccountKey, Deposit], Awaitable[bool]]:
    async def relay(key: AccountKey, deposit: Deposit) -> bool:
        await seller.rail.bring(key, deposit)
        return True

    return relay


async def trade(anvil: Anvil, opens: Opens, *, ether: int = ETHER) -> Trade:
    """A seller, and a buyer with 100 dollars and so much ether."""
    seller = await Node.open(1, key(anvil), opens)
    buyer = await Node.open(2, key(anvil, dollars=100_000_000, ether=ether), opens)
    return await Trade.begin(anvil, seller, buyer)
