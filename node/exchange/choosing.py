"""What should move now by a rail, and is worth what the rail takes for it."""

from collections.abc import Iterable, Mapping
from typing import Final

from ledger.account import AccountKey
from ledger.effects import Kind
from ledger.rails.policy import Fees, Policy, Wish, together, wanted
from ledger.rails.port import Rail
from node.exchange.book import Book
from node.exchange.moving import Mover

# So many move together at the most: more would be several transactions on a chain.
_TOGETHER: Final = 50


class Chooser:
    """Knows the owner's policy for each rail, and asks rails what moving costs."""

    def __init__(self, book: Book, mover: Mover, policies: Mapping[str, Policy]) -> None:
        self._book = book
        self._mover = mover
        self._policies = policies

    def policy(self, rail: str) -> Policy:
        """The owner's, or the usual one."""
        return self._policies.get(rail) or Policy()

    def wish(self, key: AccountKey, rail: Rail) -> Wish | None:
        """What should move on an account, whatever it costs."""
        account = self._book.journal.books.account(key)
        age_s, leaving = self._book.unsettled_s(key), self._mover.wait(key).leaving
        return wanted(account, self._book.me, rail.effects, self.policy(rail.name), age_s, leaving)

    async def chosen(self, keys: Iterable[AccountKey], rail: Rail) -> dict[AccountKey, Wish]:
        """Of these accounts of a rail, what moves now."""
        found: dict[Kind, dict[AccountKey, Wish]] = {}
        for key in keys:
            wish = self.wish(key, rail)
            if wish is not None:
                found.setdefault(wish.kind, {})[key] = wish
        chosen = {}
        for kind, wishes in found.items():
            chosen.update({key: wishes[key] for key in await self._worth(rail, kind, wishes)})
        return chosen

    async def _worth(self, rail: Rail, kind: Kind, wishes: Mapping[AccountKey, Wish]) -> list[AccountKey]:
        """Which of the wishes of a kind are worth what they cost; only claims are cheaper together."""
        if not any(wish.ripe for wish in wishes.values()):
            return []
        most = self.policy(rail.name).max_fee_ppm
        if kind == "claim":
            return together(wishes, await self._fees(rail, kind, len(wishes)), most, _TOGETHER)
        fees = await self._fees(rail, kind, 1)
        return [key for key, wish in wishes.items() if together({key: wish}, fees, most, 1)]

    async def _fees(self, rail: Rail, kind: Kind, accounts: int) -> Fees | None:
        accounts = min(accounts, _TOGETHER)
        one = await self._fee(rail, kind, 1)
        many = one if accounts == 1 else await self._fee(rail, kind, accounts)
        return None if one is None or many is None else Fees.between(one, many, accounts)

    async def _fee(self, rail: Rail, kind: Kind, accounts: int) -> int | None:
        fee = await self._mover.bounded(rail, rail.fee(kind, accounts))
        return fee if type(fee) is int and fee >= 0 else None
