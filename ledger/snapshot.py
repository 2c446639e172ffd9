"""The books as bytes, so that a start need not replay years: what they were after one entry, and which entry that was.

    snapshot = deterministic CBOR of
      {"format": 2, "chain": did:key, "sequence": n, "hash": the entry's,
       "accounts": [{"key": [payer, payee, rail, unit], "counters": {name: n, ...}, "orders": [...]}, ...],
       "effects": [{"account": [payer, payee, rail, unit], "key": bytes, "kind": name, "state": name, ...}, ...]}
    order    = {"order": digest, "state": {name: n, ...}}
    file     = snapshot, then its SHA-256

Theory of operation. Accounts and effects are ordered by the accounts' keys, orders by their digests, and what is as in
an empty account is left out: so equal books have equal bytes, on every machine. A snapshot is a copy and never the
truth. It is used only if the chain holds the entry that it names, and whoever doubts it replays from the genesis;
`check` does. The digest at the end finds torn and rotten files, not forgers: those need the journal's own hash for what
they would say.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final, get_type_hints

from attrs import define, fields, frozen

from ledger import codec
from ledger.account import Account, AccountKey, Reservation
from ledger.changes import ORDER_DIGEST_BYTES, InvalidChange
from ledger.effects import Tracked, decode_tracked, encode_tracked
from ledger.events import Books
from ledger.journal import Entry
from ledger.orders import Orders

# Some 400 bytes for each account and 100 for each order: far more than one node deals with.
MAX_BYTES: Final = 256 * 2**20
_MAX_ITEMS: Final = 16 * 2**20
_FORMAT: Final = 2
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
# Counters are sums of amounts, so they may outgrow any one amount.
_MOST: Final = 2**63 - 1


@define
class BadSnapshot(ValueError):
    """Bytes that are no snapshot of this node's books; the journal tells the same, only slower."""

    why: str

    def __str__(self) -> str:
        return f"not a usable snapshot: {self.why}. Delete it: the books are rebuilt from the journal"


@frozen
class Snapshot:
    """The books of a chain after its entry `sequence`, which has this hash."""

    chain: str
    sequence: int
    hash: bytes
    books: Books

    def follows(self, entry: Entry) -> bool:
        """Whether these are the books after this very entry."""
        return (self.sequence, self.hash) == (entry.sequence, entry.hash)


def take(chain: str, head: Entry, books: Books) -> Snapshot:
    """The books of a node's chain (its did:key) after its entry `head`."""
    return Snapshot(chain, head.sequence, head.hash, books)


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as a file's bytes; equal books have equal bytes. Raises BadSnapshot where they are too many."""
    accounts, effects = snapshot.books.accounts, snapshot.books.effects
    raw = codec.encode(
        {
            "format": _FORMAT,
            "chain": snapshot.chain,
            "sequence": snapshot.sequence,
            "hash": snapshot.hash,
            "accounts": [_account_map(accounts[key]) for key in sorted(accounts, key=_parts)],
            "effects": [encode_tracked(effects[key]) for key in sorted(effects, key=_parts)],
        }
    )
    if len(raw) + _DIGEST_BYTES > MAX_BYTES:
        raise BadSnapshot(f"{len(raw)} bytes, of at most {MAX_BYTES}")
    return raw + hashlib.sha256(raw).digest()


def decode(raw: bytes, chain: str) -> Snapshot:
    """Read a snapshot of this chain back. Raises BadSnapshot, and nothing else, whatever the bytes are."""
    body, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if len(raw) > MAX_BYTES:
        raise BadSnapshot(f"{len(raw)} bytes, of at most {MAX_BYTES}")
    if hashlib.sha256(body).digest() != digest:
        raise BadSnapshot("its bytes do not match the digest at their end: it is torn or damaged")
    try:
        snapshot = _snapshot(codec.decode(body, MAX_BYTES, _MAX_ITEMS))
    except (codec.Malformed, InvalidChange) as error:
        raise BadSnapshot(str(error)) from None
    if snapshot.chain != chain:
        raise BadSnapshot(f"it is of the chain of {snapshot.chain[:80]}, and this node is {chain}")
    if encode(snapshot) != raw:
        raise BadSnapshot("it says something in another way than it is written")
    return snapshot


def check(snapshot: Snapshot, head: Entry, books: Books) -> None:
    """Compare a snapshot with what a replay of the chain gave. Raises BadSnapshot."""
    if not snapshot.follows(head):
        raise BadSnapshot(f"it follows another entry {snapshot.sequence} than the journal has")
    if snapshot.books != books:
        raise BadSnapshot(f"its accounts are not those after entry {snapshot.sequence}")


def _parts(key: AccountKey) -> tuple[str, ...]:
    return key.payer, key.payee, key.rail, key.unit


def _account_map(account: Account) -> dict[str, Any]:
    orders = account.orders
    return {
        "key": list(_parts(account.key)),
        "counters": _said(account, Account(account.key), _COUNTERS),
        "orders": [{"order": order, "state": _order_map(orders[order])} for order in sorted(orders)],
    }


def _order_map(order: Reservation) -> dict[str, Any]:
    return {"amount": order.amount, "expires": order.expires} | _said(order, _PLAIN_ORDER, _ORDER_FIELDS)


def _said(value: object, plain: object, names: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from a plain one."""
    return {name: getattr(value, name) for name in names if getattr(value, name) != getattr(plain, name)}


_HINTS: Final = get_type_hints(Reservation)
_PLAIN_ORDER: Final = Reservation(0, 0)
_COUNTERS: Final[dict[str, Any]] = {field.name: int for field in fields(Account) if field.name not in ("key", "orders")}
_ORDER_FIELDS: Final[dict[str, Any]] = {
    field.name: bool if _HINTS[field.name] is bool else int
    for field in fields(Reservation)
    if field.name not in ("amount", "expires")
}
_WHOLE_ORDER: Final = {"amount": int, "expires": int} | _ORDER_FIELDS


def _snapshot(body: object) -> Snapshot:
    match body:
        case {
            "format": 2,
            "chain": str(chain),
            "sequence": int(sequence),
            "hash": bytes(hash_),
            "accounts": list(accounts),
            "effects": list(effects),
            **rest,
        } if not rest and 0 <= sequence <= _MOST and len(hash_) == _DIGEST_BYTES:
            read = [_account(account) for account in accounts]
            followed = [_effect(effect) for effect in effects]
            books = Books(
                {account.key: account for account in read},
                {tracked.effect.account: tracked for tracked in followed},
            )
            return Snapshot(chain, sequence, hash_, books)
    raise BadSnapshot("it is of another format or version")


def _account(body: object) -> Account:
    match body:
        case {
            "key": [str(payer), str(payee), str(rail), str(unit)],
            "counters": dict(counters),
            "orders": list(orders),
            **rest,
        } if not rest:
            key = AccountKey(payer, payee, rail, unit)  # type: ignore[arg-type] # checked by AccountKey
            return Account(key, **_checked(counters, _COUNTERS), orders=Orders(map(_order, orders)))
    raise BadSnapshot("something in it is no account")


def _effect(body: object) -> Tracked:
    if not isinstance(body, dict):
        raise BadSnapshot("something in it is no effect")
    return decode_tracked(body)


def _order(body: object) -> tuple[bytes, Reservation]:
    match body:
        case {"order": bytes(order), "state": {"amount": _, "expires": _, **_more} as state, **rest} if not rest:
            if len(order) == ORDER_DIGEST_BYTES:
                return order, Reservation(**_checked(state, _WHOLE_ORDER))
    raise BadSnapshot("something in it is no order")


def _checked(found: Mapping[str, Any], allowed: Mapping[str, Any]) -> dict[str, Any]:
    """The named values, each of the type that its name has, and not below 0."""
    for name, value in found.items():
        # type(...) and not isinstance: True is no number here.
        if type(value) is not allowed.get(name) or not 0 <= value <= _MOST:
            raise BadSnapshot(f"{name[:80]} cannot be {str(value)[:80]}")
    return dict(found)
