"""The rail itself, a `port.Rail` over one channels contract on one chain."""

from typing import Any, Final

from ledger.account import Account, AccountKey
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails.port import Answer, Sight
from ledger.rails.stablecoin import vouchers
from ledger.rails.stablecoin.books import Books, Deposit
from ledger.rails.stablecoin.digests import ChannelConfig, Place
from ledger.records import Signed, Voucher


class Stablecoin:
    """A `port.Rail` for accounts in `uusd`, each with one channel for good."""

    name: Final = vouchers.NAME
    effects: Final[frozenset[Kind]] = frozenset({"top_up", "claim", "refund", "close"})

    def __init__(self, chain: Any, books: Books, place: Place) -> None:
        """`chain` is the node's own view of it (`chain.Chain`), `place` the contract that its channels are in."""
        self._chain = chain
        self._books = books
        self.place: Final = place
        self._leaving: dict[AccountKey, int] = {}

    def capacity(self, account: Account) -> int:
        """What the channel holds less what may leave it, by the account's own counters."""
        return account.capacity

    def make_voucher(self, identity: Identity, account: Account, total: int) -> Signed[Voucher]:
        """The payer's promise of a growing total. Raises NoChannel, and what `vouchers.make_voucher` raises."""
        return vouchers.make_voucher(self.place, self._channel(account.key), identity, account, total)

    def check_voucher(self, voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
        """The fact that a voucher is to the payee's account, and that the channel bears it.

        Raises NoChannel, and what `vouchers.check_voucher` raises: all of them VoucherRefused.
        """
        # What its payer has begun to take back can still be claimed.
        covered = account.capacity + self._leaving.get(account.key, 0)
        config = self._channel(account.key)
        return vouchers.check_voucher(self.place, config, voucher, account, at_least, covered)

    async def collateral(self, account: Account) -> Sight | None:
        """What the channel holds: deposits that are deep enough, less all that went back or may."""
        raise NotImplementedError

    async def fee(self, kind: Kind, accounts: int) -> int | None:
        """What gas would cost now, by the owner's price of ether; None: the chain does not say."""
        raise NotImplementedError

    async def perform(self, effect: Effect) -> Answer:
        """Carry an effect out on the chain, once at most; it is settled when it is deep enough."""
        raise NotImplementedError

    async def fate(self, effect: Effect) -> Answer:
        """What has become of an effect, as the chain has it at depth."""
        raise NotImplementedError

    async def bring(self, key: AccountKey, deposit: Deposit) -> None:
        """Bring a payer's signed deposit to the chain, at this payee's expense. Raises DepositRefused."""
        raise NotImplementedError

    def _channel(self, key: AccountKey) -> ChannelConfig:
        config = self._books.channel(key)
        if config is None:
            raise vouchers.NoChannel(key.payer, key.payee)
        return config
