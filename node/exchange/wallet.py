"""The owner's wallet on a chain: what is in it and in the channels, and what its owner moves by hand.

Money goes by effects of the accounts, as it does by itself: planned in the journal, moved once. Bonds are the wallet's
own transactions. Amounts are in uusd, one unit of the network's dollar; the chain's coin pays the gas, in wei.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.effects import EffectUnderWay, Tracked, free_collateral
from ledger.identity import Did
from ledger.money import Amount
from ledger.rails.stablecoin.bond_terms import Stake
from ledger.rails.stablecoin.bonds import Done
from ledger.rails.stablecoin.chain import Outcome
from ledger.rails.stablecoin.slashes import Slash
from node.exchange.bonding import Conditions, OwnBond, OwnBonds
from node.exchange.book import Book
from node.exchange.channel_rows import ChannelRow, channel_rows
from node.exchange.channels import UNIT
from node.exchange.effects import EffectDriver, EffectRefused, NotNow
from node.exchange.strangers import CHANNEL_RAIL, PREPAID_RAIL, channel_of, is_stranger
from node.exchange.wallet_refusals import NoBonds, NotDollars, NothingThere, TooLittle

# So many claims by hand go out together; what is claimed at the same time shares a transaction.
_AT_ONCE: Final = 50
# How long a command waits for a transaction: it goes on by itself after that.
_WAIT_S: Final = 60.0
_SEARCH_S: Final = 10.0


class Funds(Protocol):
    """The chain as the wallet asks it: see `ledger.rails.stablecoin.chain.Chain`. Everything raises ChainError."""

    @property
    def address(self) -> bytes:
        """The wallet's."""

    async def tokens(self) -> int:
        """How many units of the dollar it has."""

    async def ether(self) -> int:
        """How many wei."""

    async def settled(self, key: bytes) -> Outcome:
        """Wait for a transaction."""

    async def outcome(self, key: bytes) -> Outcome:
        """What became of it by now."""


@frozen
class Holdings:
    """What the wallet has outside of channels and bonds; `coin` in wei."""

    address: bytes
    dollars: int
    coin: int


class Wallet:
    """What the owner can see and do. Acts raise WalletRefused, EffectRefused, ChainError, and what `open_channel` does.

    Bonds also BondRefused.
    """

    def __init__(
        self,
        book: Book,
        funds: Funds,
        effects: EffectDriver,
        open_channel: Callable[[Did, int], Awaitable[AccountKey]],
        channel_id: Callable[[AccountKey], bytes | None],
        bonds: OwnBonds | None,
        grant: Callable[[AccountKey], Awaitable[int]],
    ) -> None:
        """`open_channel` gives the account with a peer, its channel opened, if there is none, for an amount; `grant`
        counts what a seller that was paid in advance has charged more than is known here, and says how much that is.
        """
        self._book, self._funds, self._effects = book, funds, effects
        self._open_channel = open_channel
        self._channel_id = channel_id
        self._bonds = bonds
        self._grant = grant

    @property
    def address(self) -> bytes:
        """Where to send money to."""
        return self._funds.address

    async def holdings(self) -> Holdings:
        """What it has, at the head."""
        dollars, coin = await asyncio.gather(self._funds.tokens(), self._funds.ether())
        return Holdings(self._funds.address, dollars, coin)

    # Channels

    def channels(self) -> list[ChannelRow]:
        """All channels; see `channel_rows`."""
        return channel_rows(self._book, self._channel_id)

    async def deposit(self, peer: Did, amount: Amount) -> Tracked | None:
        """Put money into the channel from which a peer is paid; opened, if there is none."""
        value = _dollars(amount)
        has = await self._funds.tokens()
        if has < value:
            raise TooLittle(Amount(has, UNIT), amount, f"0x{self._funds.address.hex()}")
        key = await self._open_channel(peer, value)
        return await self._effects.ask(key, "top_up", value)

    async def claim(self, peer: str | None) -> list[Tracked]:
        """Claim what a peer, or everybody, has promised and not paid out."""
        due = [
            account
            for key, account in self._book.journal.books.accounts.items()
            if key.rail == CHANNEL_RAIL
            and key.payee == self._book.me
            and peer in (None, key.payer)
            and account.unsettled
        ]
        if not due:
            raise NothingThere("there is nothing to claim" + (f" from {peer}" if peer is not None else ""))
        slots = asyncio.Semaphore(_AT_ONCE)
        refused: list[EffectRefused] = []

        async def one(account: Account) -> Tracked | None:
            async with slots:
                try:
                    return await self._effects.ask(account.key, "claim", account.unsettled)
                except EffectRefused as error:
                    refused.append(error)
                    return None

        found = [tracked for tracked in await asyncio.gather(*map(one, due)) if tracked is not None]
        if refused and not found:
            raise refused[0]
        return found

    async def withdraw(self, peer: str, amount: Amount | None) -> Tracked | None:
        """Take back from the channel to a peer what covers nothing: so much, or all of it.

        It comes after the channel's notice, in which the peer may claim what it was promised. What was paid in advance
        by x402 is asked back from its seller, who has it.
        """
        return await self._back(self._ours(peer), amount)

    async def withdraw_what_is_left(self, peer: str) -> tuple[Tracked | None, Amount]:
        """Ask for all that a seller says is left of what it was paid in advance.

        What it has charged more than was known here is granted, and comes back beside the refund.
        """
        account = self._ours(peer)
        if account.key.rail != PREPAID_RAIL:
            raise NothingThere("what is left in a channel the chain says, and not its payee")
        tracked = self._book.journal.books.effects.get(account.key)
        if tracked is not None and tracked.state != "settled":
            raise NotNow(str(EffectUnderWay(tracked.effect.kind, tracked.state)))
        more = Amount(await self._grant(account.key), UNIT)
        account = self._ours(peer)
        return await self._back(account, None) if free_collateral(account) else None, more

    def _ours(self, peer: str) -> Account:
        """The account of what is in a channel to a peer, or with a seller that was paid in advance."""
        rail = PREPAID_RAIL if is_stranger(peer) and channel_of(peer) is None else CHANNEL_RAIL
        account = self._book.journal.books.accounts.get(AccountKey(self._book.me, peer, rail, UNIT))
        if account is None or not account.funded:
            where = "with" if rail == PREPAID_RAIL else "in a channel to"
            raise NothingThere(f"no money of this node's is {where} {peer}")
        return account

    async def give_back(self, peer: str, amount: Amount | None) -> Tracked | None:
        """Give back to a peer what of its channel to this node covers nothing: at once, at this node's expense."""
        account = self._book.journal.books.accounts.get(AccountKey(peer, self._book.me, CHANNEL_RAIL, UNIT))
        if account is None or not account.funded:
            raise NothingThere(f"{peer} has no money in a channel to this node")
        return await self._back(account, amount)

    async def _back(self, account: Account, amount: Amount | None) -> Tracked | None:
        free = free_collateral(account)
        if not free:
            raise NothingThere("all of it is owed, promised or reserved for open orders")
        return await self._effects.ask(account.key, "refund", free if amount is None else _dollars(amount))

    async def close(self, peer: str) -> Tracked | None:
        """Claim all that a peer has promised, and give the rest of its channel back."""
        return await self._effects.ask(AccountKey(peer, self._book.me, CHANNEL_RAIL, UNIT), "close", 0)

    # Bonds

    async def bonds(self) -> list[tuple[OwnBond, Stake]]:
        """This node's bonds, with what is in them at the head."""
        return [(bond, await self._own.stake(bond)) for bond in self._own.all]

    async def slashes(self) -> list[tuple[OwnBond, Slash]]:
        """What runs against this node's bonds; where that takes too long to find, as it was seen last."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SEARCH_S):
                for bond in self._own.all:
                    await self._own.running(bond)
        return self._own.slashes

    @property
    def _own(self) -> OwnBonds:
        if self._bonds is None:
            raise NoBonds
        return self._bonds

    async def lock(self, total: Amount, said: Conditions | None, bond: str) -> tuple[OwnBond, Done]:
        """Lock so much in all: in a bond with these terms, else in that whose id begins so."""
        value = _dollars(total)
        if said is not None:
            found, done = await self._own.lock_new(said, value, self._wait)
        else:
            found = self._own.find(bond)
            done = await self._own.lock(found, value, self._wait)
        return found, await self._followed(done)

    async def find_bonds(self, wait_s: float) -> list[OwnBond] | None:
        """Bonds on the chain that the ledger has lost; None: the search goes on."""
        return await self._own.recover(wait_s)

    async def ask_back(self, bond: str, amount: Amount | None) -> tuple[OwnBond, Done]:
        """Begin the notice for a part of a bond, or for all of it."""
        found = self._own.find(bond)
        done = await self._own.ask_back(found, 0 if amount is None else _dollars(amount))
        return found, await self._followed(done)

    async def keep(self, bond: str) -> tuple[OwnBond, Done]:
        """Let what was asked back stay locked."""
        found = self._own.find(bond)
        return found, await self._followed(await self._own.keep(found))

    async def take(self, bond: str) -> tuple[OwnBond, Done]:
        """Take what was asked back, after its notice."""
        found = self._own.find(bond)
        return found, await self._followed(await self._own.take(found))

    async def _followed(self, done: Done) -> Done:
        """What became of an act, and what offers name after it."""
        done = await self.followed(done)
        await self._own.look()
        return done

    async def followed(self, done: Done) -> Done:
        """What became of an act about a slash."""
        if done.key and done.outcome.state in ("waiting", "mined"):
            return Done(done.act, await self._wait(done.key), done.key)
        return done

    async def _wait(self, key: bytes) -> Outcome:
        try:
            async with asyncio.timeout(_WAIT_S / 2):
                return await self._funds.settled(key)
        except TimeoutError:
            return await self._funds.outcome(key)


def _dollars(amount: Amount) -> int:
    if amount.unit != UNIT:
        raise NotDollars(amount)
    return amount.value
