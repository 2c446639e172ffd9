"""The channels of a node as its books have them, for their owner's eyes."""

from collections.abc import Callable
from typing import Final

from attrs import frozen

from ledger.account import Account, AccountKey
from ledger.effects import Tracked, free_collateral
from node.exchange.book import Book
from node.exchange.strangers import CHANNEL_RAIL, PREPAID_RAIL, channel_of, is_stranger

_RAILS: Final = (CHANNEL_RAIL, PREPAID_RAIL)


@frozen
class ChannelRow:
    """One channel as the books have it, or what was paid in advance by x402. `free` covers nothing and can go back.

    `x402`: one of the two is no node. `at_risk` is what the payer has paid or signed beyond what it owes: nothing
    between nodes, a request's maximum or a balance where it is by x402.
    """

    account: Account
    x402: bool
    id: bytes | None
    free: int
    at_risk: int
    effect: Tracked | None


def channel_rows(book: Book, channel_id: Callable[[AccountKey], bytes | None]) -> list[ChannelRow]:
    """All accounts on channels, and those paid in advance by x402; what this node pays comes first.

    `channel_id` tells the channel of an account between nodes, if it is known.
    """
    books = book.journal.books
    # One that was opened just now has an effect on its way, and no account yet.
    keys = [key for key in {**books.accounts, **books.effects} if key.rail in _RAILS]
    return [_row(book, key, channel_id) for key in sorted(keys, key=lambda key: key.payer != book.me)]


def _row(book: Book, key: AccountKey, channel_id: Callable[[AccountKey], bytes | None]) -> ChannelRow:
    account = book.journal.books.account(key)
    stranger = next((did for did in (key.payer, key.payee) if is_stranger(did)), None)
    number = channel_id(key) if stranger is None else channel_of(stranger)
    effect = book.journal.books.effects.get(key)
    return ChannelRow(account, stranger is not None, number, free_collateral(account), _at_risk(book, account), effect)


def _at_risk(book: Book, account: Account) -> int:
    key, owed = account.key, account.owed
    if key.rail == PREPAID_RAIL:
        return max(account.funded - account.withdrawn - owed, 0)
    if is_stranger(key.payee):
        return account.reserved  # what was signed for the request under way
    held = book.strangers.voucher(key) if is_stranger(key.payer) else None
    return max(account.authorized - owed, held.total - owed if held is not None else 0, 0)
