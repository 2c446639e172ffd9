"""A bank that outlives the nodes that ask it, and what a test tells a node to have moved there.

The scripted rail's bank with its state in a file of its own: what it was asked to move is on disk before it answers, so
a node that is killed finds it as it left it, and the test can look.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define, field, frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.changes import Authorized, Change, Earned, Granted, Released, Reserved, VoucherReceived
from ledger.effect_maps import decode_effect, encode_effect
from ledger.effects import Effect, EffectPlanned, Kind
from ledger.events import AccountChanged
from ledger.money import MAX_AMOUNT
from ledger.rails.scripted import Bank, Performing, Purse, ScriptedRail
from node.app import Node

_LIMIT: Final = 1 << 20
_BY_PAYEE: Final = frozenset({"claim", "refund", "close"})


def _nothing_reached(_: str) -> None:
    """Nobody waits for a moment to kill."""


@define
class FileBank(Bank):
    """A bank whose state is in `path` before anybody hears of it; `reach` is told before and after each movement."""

    path: Path = field(kw_only=True)
    reach: Callable[[str], None] = field(default=_nothing_reached, kw_only=True)

    @classmethod
    def open(cls, path: Path, reach: Callable[[str], None] = _nothing_reached) -> "FileBank":
        """The bank as it was left; a new one where there is no file."""
        bank = cls(path=path, reach=reach)
        if path.exists():
            kept: Any = codec.decode(path.read_bytes(), _LIMIT)
            bank.purses.update((AccountKey(*named), Purse(**purse)) for named, purse in kept["purses"])
            bank.carried_out.update((effect.key, effect) for effect in map(_read_effect, kept["carried out"]))
            bank.refused.update(kept["refused"])
        return bank

    def carry_out(self, effect: Effect) -> bool:
        """As any bank, and on disk at once."""
        self.reach(f"the bank moves a {effect.kind}: before")
        done = super().carry_out(effect)
        self._save()
        self.reach(f"the bank moves a {effect.kind}: after")
        return done

    def deposit(self, key: AccountKey, amount: int) -> None:
        """As any bank, and on disk at once."""
        super().deposit(key, amount)
        self._save()

    def _save(self) -> None:
        kept = {
            "purses": [[list(asdict(key).values()), asdict(purse)] for key, purse in self.purses.items()],
            "carried out": [encode_effect(EffectPlanned(effect, 0)) for effect in self.carried_out.values()],
            "refused": sorted(self.refused),
        }
        fresh = self.path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(codec.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)


def _read_effect(plain: Mapping[str, Any]) -> Effect:
    event = decode_effect(plain)
    assert isinstance(event, EffectPlanned)
    return event.effect


async def silence() -> None:
    """A line on which no answer comes before the wait is over."""
    raise TimeoutError


def account_of(kind: Kind, me: str, peer: str) -> AccountKey:
    """The account on which a node asks for such an effect: what it owes, or what it is owed."""
    payer, payee = (peer, me) if kind in _BY_PAYEE else (me, peer)
    return AccountKey(payer, payee, "stablecoin", "uusd")


@frozen
class Teller:
    """Has a node move money at a bank, as the test tells it to."""

    node: Node
    rail: ScriptedRail

    async def obey(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do as told; what the test hears."""
        key = account_of(command["kind"], self.node.did, command["peer"])
        match command["task"]:
            case "deposit":
                await self.node.book.post(AccountChanged(key, Granted(0, MAX_AMOUNT, 1)))  # else nobody looks there
                self.rail.bank.deposit(key, command["amount"])
            case "owe":
                await self._owe(key, command["amount"])
            case "move":
                script: list[Performing] = command["performing"]
                self.rail.performing.extend(script)
                await self.node.effects.ask(key, command["kind"], command["amount"])
            case "step":
                await self.node.effects.step()
        return self._shown(key)

    async def _owe(self, key: AccountKey, amount: int) -> None:
        """An order that cost so much, and the voucher for it."""
        account = self.node.book.journal.books.account(key)
        order, total = os.urandom(32), account.owed + amount
        voucher: Change = Authorized(total) if key.payer == self.node.did else VoucherReceived(total)
        changes: tuple[Change, ...] = (
            Reserved(order, amount, self.node.book.now()),
            Earned(order, amount),
            Released(order),
            voucher,
        )
        await self.node.book.post(*(AccountChanged(key, change) for change in changes))

    def _shown(self, key: AccountKey) -> dict[str, Any]:
        books = self.node.book.journal.books
        account, tracked = books.account(key), books.effects.get(key)
        counted = {"funded": account.funded, "withdrawn": account.withdrawn, "paid": account.settled}
        return {"counted": counted, "state": None if tracked is None else tracked.state}
