"""Channels that the ledger has lost: looked for on the chain, and taken up again where this node pays.

Theory of operation. All that ever happened to the contract is read, which takes minutes on a chain that is old, so a
search goes on by itself and is asked for what it has found. A channel that this node pays is its account's again from
then on, if the account has none; one that it is paid by is taken up when its payer names it, as any is.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from attrs import frozen

from ledger.account import AccountKey
from ledger.identity import Identity
from ledger.rails.stablecoin.chain import Chain
from ledger.rails.stablecoin.recovery import FoundAgain, find_again
from node.exchange.channels import UNIT, Channels
from node.exchange.searching import Search
from node.exchange.strangers import CHANNEL_RAIL

# known: the account has it; taken_up: it has it from now on; another: it has another one, and keeps that; theirs: its
# payer names it when it pays again.
State = Literal["known", "taken_up", "another", "theirs"]


@frozen
class Found:
    """A channel between this node and a peer, and what the ledger has of it."""

    again: FoundAgain
    id: bytes
    state: State


class Finding:
    """One search at a time."""

    def __init__(
        self,
        chain: Chain,
        channels: Channels,
        identity: Identity,
        peers: Callable[[], Iterable[str]],
        look: Callable[[AccountKey], Awaitable[object]],
    ) -> None:
        """`peers` are whose channels are looked for; `look` has an account's collateral looked at."""
        self._chain = chain
        self._channels = channels
        self._identity = identity
        self._peers = peers
        self._look = look
        self._search = Search(self._find)

    async def find(self, wait_s: float) -> list[Found] | None:
        """What a search finds, begun if none goes on; None: it goes on. Raises ChainError."""
        return await self._search.ask(wait_s)

    async def close(self) -> None:
        """End a search that goes on."""
        await self._search.close()

    async def _find(self) -> list[Found]:
        found = await find_again(self._chain, self._identity, set(self._peers()) - {self._identity.did})
        # Of several with one peer, that which holds most is taken up.
        found.sort(key=_holds, reverse=True)
        return [await self._taken_up(again) for again in found]

    async def _taken_up(self, again: FoundAgain) -> Found:
        key, number = (
            AccountKey(again.payer, again.payee, CHANNEL_RAIL, UNIT),
            self._chain.place.channel_id(again.config),
        )
        kept = self._channels.channel(key)
        if kept is not None:
            return Found(again, number, "known" if kept == again.config else "another")
        if again.channel is None:
            return Found(again, number, "theirs")
        await self._channels.keep(again.channel)
        await self._look(key)
        return Found(again, number, "taken_up")


def _holds(again: FoundAgain) -> int:
    return again.view.balance - again.view.claimed if again.view is not None else 0
