"""What strangers that pay by x402 have with this node: their accounts, and what of their payments outlives a restart.

Theory of operation. A stranger has no did:key and signs no record of ours: it has a wallet. Its account's payer is a
did:pkh (CAIP-10) with the wallet's address; one that pays from a channel has an account for each channel, told apart by
the fragment, because an account stands for one channel for good:

    prepaid     did:pkh:eip155:8453:0x1234...             what it has paid before, by transfers (scheme `exact`)
    stablecoin  did:pkh:eip155:8453:0x1234...#0xabcd...   a channel of its own (scheme `batch-settlement`)

What it authorizes up front is in the journal, in one entry with the order that it is for: of each channel its
configuration and the latest voucher, from which the rail claims; of each transfer that it was presented, until it is
known whether its money came. A transfer that only said whose balance pays is not sent, but anyone who has seen it can
bring it to the chain until it expires: so it is followed as well. An account's `authorized` follows what is charged;
the voucher may say more, which is the payer's risk by x402's rules, and never claimed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import frozen

from ledger.account import AccountKey
from ledger.events import Event, Fact, Observed

CHANNEL_RAIL: Final = "stablecoin"
PREPAID_RAIL: Final = "prepaid"
_PKH: Final = "did:pkh:"
_HELD: Final = "x402 voucher"
_PRESENTED: Final = "x402 transfer"
_SHOWN: Final = "x402 transfer shown"
_REMEMBERED_MS: Final = 10 * 86_400_000  # longer than ever is looked back for the use of a transfer
_ENDED: Final = "x402 transfer ended"
_DEPOSIT: Final = "x402 deposit"
_WALLET: Final = "x402 wallet"
_REFUND: Final = b"idlemesh refund of what was prepaid\0"


def did_of_wallet(network: str, address: bytes, channel: bytes | None = None) -> str:
    """The payer of an account: a wallet on a network (CAIP-2), and one of its channels."""
    return f"{_PKH}{network}:0x{address.hex()}" + (f"#0x{channel.hex()}" if channel is not None else "")


def refund_nonce(payer: bytes, asked: bytes) -> bytes:
    """The nonce of the transfer by which a wallet gets back what it has prepaid; `asked` (32 bytes) is its own name for
    that. So it moves once however often it is asked for, and both sides can look for it on the chain."""
    return hashlib.sha256(_REFUND + payer + asked).digest()


def is_stranger(did: str) -> bool:
    """Whether an account's payer is a wallet, and no node."""
    return did.startswith(_PKH)


def wallet_of(did: str) -> bytes:
    """The address in a stranger's did."""
    return bytes.fromhex(did.partition("#")[0].rpartition(":")[2].removeprefix("0x"))


def channel_of(did: str) -> bytes | None:
    """The channel's id in a stranger's did, if it names one."""
    channel = did.partition("#")[2]
    return bytes.fromhex(channel.removeprefix("0x")) if channel else None


@frozen
class HeldVoucher:
    """The latest voucher of a channel: `config` is the channel's configuration, packed; `total` what was signed."""

    config: bytes
    total: int
    signature: bytes


@frozen
class Transfer:
    """A signed transfer (EIP-3009) to this node's wallet, of which it is not known yet whether its money came.

    `nonce` is the authorization's, `expires` (seconds since 1970) when it ends, `value` in millionths of a dollar.
    """

    payer: str
    nonce: bytes
    value: int
    expires: int


def held(did: str, voucher: HeldVoucher) -> Observed:
    """The event that a channel's voucher is held."""
    return Observed(did, _HELD, {"config": voucher.config, "total": voucher.total, "signature": voucher.signature})


def presented(order: bytes, transfer: Transfer) -> Observed:
    """The event that a transfer is about to be handed to the chain, for an order."""
    return Observed(transfer.payer, _PRESENTED, _facts(order, transfer))


def shown(order: bytes, transfer: Transfer) -> Observed:
    """The event that a transfer said whose balance pays for an order, and is not handed to the chain by this node."""
    return Observed(transfer.payer, _SHOWN, _facts(order, transfer))


def _facts(order: bytes, transfer: Transfer) -> dict[str, Fact]:
    return {"order": order, "nonce": transfer.nonce, "value": transfer.value, "expires": transfer.expires}


def ended(order: bytes, transfer: Transfer) -> Observed:
    """The event that it is known what became of a transfer: its money is counted by now, or will never come."""
    return Observed(transfer.payer, _ENDED, {"order": order})


def deposited(did: str, until: int) -> Observed:
    """The event that a deposit of ours goes into a channel, and may show on the chain until then (in seconds)."""
    return Observed(did, _DEPOSIT, {"until": until})


@frozen
class OwnWallet:
    """A wallet of this node's, on a network (CAIP-2): what was prepaid goes back from there."""

    network: str
    address: bytes


def paying_from(me: str, wallet: OwnWallet) -> Observed:
    """The event that this node pays from a wallet from now on."""
    return Observed(me, _WALLET, {"network": wallet.network, "address": wallet.address})


class Strangers:
    """What follows from the journal about strangers' payments."""

    def __init__(self) -> None:
        self.vouchers: Final[dict[str, HeldVoucher]] = {}
        self.transfers: Final[dict[bytes, Transfer]] = {}
        self.shown: Final[dict[bytes, Transfer]] = {}
        self.own: OwnWallet | None = None
        self._ended: Final[dict[bytes, int]] = {}  # by order: the time of the entry that says so
        self._deposits: Final[dict[str, int]] = {}

    def deposit_until(self, key: AccountKey) -> int:
        """Until when (seconds since 1970) a deposit of ours on an account may come to show on the chain; 0: none."""
        return self._deposits.get(key.payee, 0)

    def voucher(self, key: AccountKey) -> HeldVoucher | None:
        """The latest voucher on an account with a stranger, if it has a channel: a payer's, or ours to a payee."""
        stranger = key.payer if is_stranger(key.payer) else key.payee
        return self.vouchers.get(stranger) if key.rail == CHANNEL_RAIL else None

    def is_ended(self, order: bytes) -> bool:
        """Whether it was known before what became of a transfer with this nonce: there can be no other one.

        Remembered by our own time, not by what its payer signed, and for longer than its use can be found.
        """
        return order in self._ended

    def knows(self, order: bytes) -> bool:
        """Whether a transfer of this order was taken, or its money counted."""
        return order in self.transfers or order in self.shown or self.is_ended(order)

    def copy(self) -> "Strangers":
        """All of it as it is now."""
        copied = Strangers()
        copied.vouchers.update(self.vouchers)
        copied.transfers.update(self.transfers)
        copied.shown.update(self.shown)
        copied.own = self.own
        copied._ended.update(self._ended)
        copied._deposits.update(self._deposits)
        return copied

    def take(self, time_ms: int, events: Iterable[Event]) -> None:
        """Take the next entry's events, and its time."""
        for event in events:
            if isinstance(event, Observed):
                self._observe(time_ms, event.subject, event.what, event.facts)

    def _observe(self, time_ms: int, did: str, what: str, facts: Mapping[str, Fact]) -> None:
        match facts:
            case {"config": bytes(config), "total": int(total), "signature": bytes(signature)} if what == _HELD:
                # Requests of a channel come one after another, so the latest covers all that was charged.
                self.vouchers[did] = HeldVoucher(config, total, signature)
            case {"order": bytes(order), "nonce": bytes(nonce), "value": int(value), "expires": int(expires)} if (
                what in (_PRESENTED, _SHOWN)
            ):
                kept = self.transfers if what == _PRESENTED else self.shown
                kept[order] = Transfer(did, nonce, value, expires)
            case {"order": bytes(order)} if what == _ENDED:
                self.transfers.pop(order, None)
                self.shown.pop(order, None)
                self._end(order, time_ms)
            case {"network": str(network), "address": bytes(address)} if what == _WALLET:
                self.own = OwnWallet(network, address)
            case {"until": int(until)} if what == _DEPOSIT:
                self._deposits[did] = max(self._deposits.get(did, 0), until)

    def _end(self, order: bytes, time_ms: int) -> None:
        self._ended.pop(order, None)
        self._ended[order] = time_ms
        while self._ended[oldest := next(iter(self._ended))] < time_ms - _REMEMBERED_MS:
            del self._ended[oldest]

    def to_plain(self) -> dict[str, Any]:
        """It as plain values."""

        def rows(transfers: Mapping[bytes, Transfer]) -> list[list[Any]]:
            return [[order, one.payer, one.nonce, one.value, one.expires] for order, one in sorted(transfers.items())]

        return {
            **({"own": [self.own.network, self.own.address]} if self.own is not None else {}),
            "vouchers": [
                [did, voucher.config, voucher.total, voucher.signature]
                for did, voucher in sorted(self.vouchers.items())
            ],
            "transfers": rows(self.transfers),
            "shown": rows(self.shown),
            "ended": [[order, time_ms] for order, time_ms in self._ended.items()],
            "deposits": [[did, until] for did, until in sorted(self._deposits.items())],
        }

    @classmethod
    def from_plain(cls, written: Mapping[str, Any]) -> "Strangers":
        """What `to_plain` wrote. Raises ValueError, TypeError or KeyError."""
        found = cls()
        for row in written["vouchers"]:
            did, config, total, signature = _typed(row, str, bytes, int, bytes)
            found.vouchers[did] = HeldVoucher(config, total, signature)
        for kept, name in ((found.transfers, "transfers"), (found.shown, "shown")):
            for row in written[name]:
                order, payer, nonce, value, expires = _typed(row, bytes, str, bytes, int, int)
                kept[order] = Transfer(payer, nonce, value, expires)
        for row in written["ended"]:
            order, time_ms = _typed(row, bytes, int)
            found._ended[order] = time_ms
        if "own" in written:
            found.own = OwnWallet(*_typed(written["own"], str, bytes))
        for row in written["deposits"]:
            did, until = _typed(row, str, int)
            found._deposits[did] = until
        return found


def _typed(row: object, *kinds: type) -> list[Any]:
    """A row of values of just these types. Raises TypeError."""
    if type(row) is not list or [type(value) for value in row] != list(kinds):
        raise TypeError(f"{str(row)[:80]!r} is no row of {', '.join(kind.__name__ for kind in kinds)}")
    return row
