"""The rail of trust: the payee grants a limit, the payer signs what it owes, and they settle as they please.

There is no network and no account on it, so a voucher names neither, and nothing that it could be asked to move. This
module is a `port.Rail`.
"""

from typing import Final

from ledger.account import Account
from ledger.changes import VoucherReceived
from ledger.effects import Effect, Kind
from ledger.identity import Identity
from ledger.rails import vouchers
from ledger.rails.port import Answer, Sight
from ledger.records import Signed, Voucher

name: Final = "credit"
effects: Final[frozenset[Kind]] = frozenset()
_NOWHERE: Final = ("", "")
_NOTHING_MOVES: Final = Answer("failed", why="credit moves no money: settle it by other means, or net it")


def capacity(account: Account) -> int:
    """The limit that the payee granted, and what has been settled."""
    return account.capacity


def make_voucher(identity: Identity, account: Account, total: int) -> Signed[Voucher]:
    """The payer's promise of a growing total. See `vouchers.make_voucher` for what it raises."""
    return vouchers.make_voucher(name, _NOWHERE, identity, account, total)


def check_voucher(voucher: Signed[Voucher], account: Account, at_least: int = 0) -> VoucherReceived:
    """The fact that a voucher is to the payee's account. See `vouchers.check_voucher` for what it raises."""
    return vouchers.check_voucher(name, _NOWHERE, voucher, account, at_least)


async def collateral(account: Account) -> Sight | None:
    """There is none but the payee's own word."""
    return None


async def fee(kind: Kind, accounts: int) -> int | None:
    """What does not move costs nothing."""
    return 0


async def perform(effect: Effect) -> Answer:
    """Nothing moves here."""
    return _NOTHING_MOVES


async def fate(effect: Effect) -> Answer:
    """Nothing has moved here."""
    return _NOTHING_MOVES
