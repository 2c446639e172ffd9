"""What a server wants to be paid, read from its word and held against what this node has. Nothing is signed here."""

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from attrs import frozen
from x402.http.utils import decode_payment_required_header, decode_payment_response_header
from x402.schemas import PaymentRequired, PaymentRequirements

from ledger.money import MAX_AMOUNT
from ledger.records import MAX_WITHDRAW_DELAY_S, MIN_WITHDRAW_DELAY_S
from node.gateway.paying.limits import Charged, OtherMoney, Scheme, Unreadable

_MAX_HEADER: Final = 64 * 1024
_MAX_ACCEPTS: Final = 32
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_AMOUNT: Final = re.compile(r"[1-9][0-9]{0,17}")
_COUNT: Final = re.compile(r"[0-9]{1,18}")
_ERROR: Final = re.compile(r"[a-z0-9_]{1,96}")
_NOBODY: Final = "0x" + 40 * "0"
# A payment can be taken as long as it is valid, and so long nothing else is signed: an hour is the most.
MAX_VALID_S: Final = 3_600
_LEAST_VALID_S: Final = 5


@frozen
class Coin:
    """The one token that this node pays in: its network (CAIP-2), address, and name and version by EIP-712."""

    network: str
    address: str
    name: str
    version: str


@frozen
class Terms:
    """One way to pay that this node can go: `amount` in uusd is what one request is promised."""

    scheme: Scheme
    amount: int
    pay_to: str  # 0x and 40 digits, in lower case
    valid_s: int
    requirements: PaymentRequirements
    required: PaymentRequired

    @property
    def extra(self) -> dict[str, Any]:
        """What its scheme says beyond that."""
        return self.requirements.extra

    @property
    def least_deposit(self) -> int | None:
        """The least that the server wants to see in a channel, if it says so."""
        found = self.extra.get("minDeposit")
        return int(found) if isinstance(found, str) and _AMOUNT.fullmatch(found) else None


def decoded(name: str, header: str) -> PaymentRequired:
    """A server's PAYMENT-REQUIRED. Raises Unreadable."""
    if len(header) > _MAX_HEADER:
        raise Unreadable(name)
    try:
        required = decode_payment_required_header(header)
    except (ValueError, RecursionError):
        raise Unreadable(name) from None
    # Version 1 has another class.
    if not isinstance(required, PaymentRequired) or len(required.accepts) > _MAX_ACCEPTS:
        raise Unreadable(name)
    return required


def error_of(required: PaymentRequired) -> str:
    """Why a payment was refused, if that is a plain code: what else a server says is not repeated."""
    return required.error if required.error and _ERROR.fullmatch(required.error) else ""


def choose(name: str, required: PaymentRequired, coin: Coin, schemes: Sequence[Scheme]) -> Terms:
    """The first way to pay in the order of `schemes` that is in this node's coin. Raises OtherMoney."""
    reasons: list[str] = []
    for scheme in schemes:
        for one in (each for each in required.accepts if each.scheme == scheme):
            why = _reason_against(one, coin)
            if why is None:
                return _terms(scheme, one, required)
            reasons.append(why)
    raise OtherMoney(name, reasons[0] if reasons else f"it takes none of {', '.join(schemes)}")


def _terms(scheme: Scheme, one: PaymentRequirements, required: PaymentRequired) -> Terms:
    return Terms(scheme, int(one.amount), one.pay_to.lower(), one.max_timeout_seconds, one, required)


def _reason_against(one: PaymentRequirements, coin: Coin) -> str | None:
    extra = one.extra
    if str(one.network) != coin.network:
        return f"it is paid on another network than {coin.network}"
    if one.asset.lower() != coin.address.lower():
        return f"it is paid in another token than {coin.address}"
    # A signature holds in the domain that it is made for: that is the token's own, whatever the server says.
    if (extra.get("name"), extra.get("version")) != (coin.name, coin.version):
        return f"it calls the token otherwise than {coin.name!r}, version {coin.version!r}"
    if extra.get("assetTransferMethod", "eip3009") != "eip3009":
        return "it wants an allowance, and this node gives authorizations for one transfer alone"
    if not _ADDRESS.fullmatch(one.pay_to) or one.pay_to == _NOBODY:
        return "it names no address to pay to"
    if not _AMOUNT.fullmatch(one.amount) or int(one.amount) > MAX_AMOUNT:
        return "it names no amount in the token's units"
    if not _LEAST_VALID_S <= one.max_timeout_seconds <= MAX_VALID_S:
        return f"its payments would be valid for {one.max_timeout_seconds} s, and {MAX_VALID_S} is the most"
    return _reason_against_channel(extra) if one.scheme == "batch-settlement" else None


def _reason_against_channel(extra: dict[str, Any]) -> str | None:
    authorizer, delay = extra.get("receiverAuthorizer"), cast(object, extra.get("withdrawDelay"))
    if not isinstance(authorizer, str) or not _ADDRESS.fullmatch(authorizer) or authorizer == _NOBODY:
        return "it names no receiverAuthorizer"
    if type(delay) is not int or not MIN_WITHDRAW_DELAY_S <= delay <= MAX_WITHDRAW_DELAY_S:
        return "its withdrawDelay is out of range"
    return None


@frozen
class Said:
    """What a server says of a payment. `charged` is None where it does not say it, or not yet.

    `prepaid`: it keeps what is left of a transfer as the payer's balance; `moved`: the chain has moved money for it.
    """

    success: bool
    charged: int | None
    prepaid: bool
    moved: bool


def response_of(name: str, header: str) -> Said:
    """A server's PAYMENT-RESPONSE. Raises Charged."""
    try:
        said = decode_payment_response_header(header[:_MAX_HEADER])
    except (ValueError, RecursionError):
        raise Charged(name, "says something of its payment that cannot be read") from None
    extra = said.extra or {}
    return Said(said.success, count(extra.get("chargedAmount")), "balance" in extra, bool(said.transaction))


def count(value: object) -> int | None:
    """An amount as x402 writes it: digits; None if it is none."""
    if isinstance(value, str) and _COUNT.fullmatch(value) and int(value) <= MAX_AMOUNT:
        return int(value)
    return None


@frozen
class Shown:
    """What a server shows of a channel when a voucher does not fit: what it charged in all, and what was signed."""

    charged: int
    signed: int
    signature: str


def shown_in(required: PaymentRequired, terms: Terms) -> Shown | None:
    """What a refusal shows of the channel, if it does."""
    for one in required.accepts:
        if one.scheme == terms.scheme and str(one.network) == str(terms.requirements.network):
            channel, voucher = one.extra.get("channelState"), one.extra.get("voucherState")
            if isinstance(channel, dict) and isinstance(voucher, dict):
                charged, signed = (
                    count(channel.get("chargedCumulativeAmount")),
                    count(voucher.get("signedMaxClaimable")),
                )
                signature = voucher.get("signature")
                if charged is not None and signed is not None and isinstance(signature, str):
                    return Shown(charged, signed, signature)
    return None
