"""What a stranger presents with a request (`PAYMENT-SIGNATURE`, x402 v2), read into values that hold together.

Nothing here is believed: signatures, amounts and the chain are checked by whoever takes the payment.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen
from x402.http.utils import decode_payment_signature_header
from x402.mechanisms.evm.batch_settlement.constants import SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.batch_settlement.types import is_deposit_payload, is_refund_payload, is_voucher_payload
from x402.mechanisms.evm.constants import SCHEME_EXACT
from x402.schemas import PaymentPayload, PaymentRequirements

from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.books import Deposit
from ledger.rails.stablecoin.digests import ChannelConfig
from ledger.rails.stablecoin.transfers import Authorization
from ledger.records import SIGNATURE_BYTES

# Far above what wallets sign: with a deposit in it a payment has about three thousand characters.
MAX_HEADER: Final = 7_680
_DIGITS: Final = re.compile(r"[0-9]{1,20}")
_LATEST: Final = 2**40  # times later than this are no times


class BadPayment(ValueError):
    """A payment that cannot be read; the message says which part."""


@frozen
class Voucher:
    """A channel's next voucher, with a deposit into the channel or without."""

    config: ChannelConfig
    channel: bytes
    total: int
    signature: bytes
    deposit: Deposit | None = None


@frozen
class RefundAsked:
    """Whoever signs a channel's vouchers asks for what is left in it: `amount`, or all."""

    voucher: Voucher
    amount: int | None


@frozen
class SignedTransfer:
    """A transfer to this node's wallet."""

    authorization: Authorization
    signature: bytes


@frozen
class Payment:
    """A payment as presented: what it says it is for, and what was signed."""

    accepted: PaymentRequirements
    signed: Voucher | RefundAsked | SignedTransfer
    whole: PaymentPayload


def read_payment(header: str) -> Payment:
    """Read a `PAYMENT-SIGNATURE` header. Raises BadPayment."""
    if len(header) > MAX_HEADER:
        raise BadPayment(f"PAYMENT-SIGNATURE has {len(header)} characters, of at most {MAX_HEADER}")
    try:
        whole = decode_payment_signature_header(header)
    # Errors of base64, JSON, UTF-8 and of the models are ValueErrors; JSON that is no object is met by the others.
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise BadPayment("PAYMENT-SIGNATURE is no payment in base64 of JSON") from None
    if not isinstance(whole, PaymentPayload):
        raise BadPayment("only version 2 of x402 is spoken here")
    try:
        return Payment(whole.accepted, _signed(whole.accepted.scheme, whole.payload), whole)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadPayment(f"the payment's payload lacks a part: {str(error)[:80]}") from None
    except ValueError as error:
        raise BadPayment(str(error)[:160]) from None


def _signed(scheme: str, payload: Mapping[str, Any]) -> Voucher | RefundAsked | SignedTransfer:
    if scheme == SCHEME_EXACT:
        return _transfer(payload)
    if scheme != SCHEME_BATCH_SETTLEMENT:
        raise BadPayment(f"the scheme {scheme[:32]!r} is not taken here")
    plain = dict(payload)
    if is_refund_payload(plain):
        asked = payload.get("amount")
        return RefundAsked(_voucher(payload), None if asked is None else _number(asked, "amount"))
    if is_deposit_payload(plain):
        return _voucher(payload, with_deposit=True)
    if is_voucher_payload(plain):
        return _voucher(payload)
    raise BadPayment("the payload's type is none of voucher, deposit and refund")


def _voucher(payload: Mapping[str, Any], *, with_deposit: bool = False) -> Voucher:
    config, said = payload["channelConfig"], payload["voucher"]
    channel = _bytes(said["channelId"], 32, "channelId")
    return Voucher(
        ChannelConfig(
            _bytes(config["payer"], 20, "payer"),
            _bytes(config["payerAuthorizer"], 20, "payerAuthorizer"),
            _bytes(config["receiver"], 20, "receiver"),
            _bytes(config["receiverAuthorizer"], 20, "receiverAuthorizer"),
            _bytes(config["token"], 20, "token"),
            _number(config["withdrawDelay"], "withdrawDelay"),
            _bytes(config["salt"], 32, "salt"),
        ),
        channel,
        _number(said["maxClaimableAmount"], "maxClaimableAmount"),
        _bytes(said["signature"], SIGNATURE_BYTES, "signature"),
        _deposit(channel, payload["deposit"]) if with_deposit else None,
    )


def _deposit(channel: bytes, said: Mapping[str, Any]) -> Deposit:
    signed = said["authorization"].get("erc3009Authorization")
    if signed is None:
        raise BadPayment("only deposits by EIP-3009 are relayed here")
    after, before = (_number(signed[part], part, _LATEST) for part in ("validAfter", "validBefore"))
    amount = _number(said["amount"], "amount")
    if not amount or after >= before:
        raise BadPayment("the deposit is of nothing, or never valid")
    salt, signature = _bytes(signed["salt"], 32, "salt"), _bytes(signed["signature"], SIGNATURE_BYTES, "signature")
    return Deposit(channel, amount, after, before, salt, signature)


def _transfer(payload: Mapping[str, Any]) -> SignedTransfer:
    said = payload.get("authorization")
    if said is None:
        raise BadPayment("only transfers by EIP-3009 are taken here")
    authorization = Authorization(
        _bytes(said["from"], 20, "from"),
        _bytes(said["to"], 20, "to"),
        _number(said["value"], "value"),
        _number(said["validAfter"], "validAfter", _LATEST),
        _number(said["validBefore"], "validBefore", _LATEST),
        _bytes(said["nonce"], 32, "nonce"),
    )
    return SignedTransfer(authorization, _bytes(payload["signature"], SIGNATURE_BYTES, "signature"))


def _bytes(text: object, length: int, name: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * length}}}", text):
        raise BadPayment(f"{name} is 0x and {2 * length} hexadecimal digits")
    return bytes.fromhex(text[2:])


def _number(said: object, name: str, most: int = MAX_AMOUNT) -> int:
    if type(said) is int or (isinstance(said, str) and _DIGITS.fullmatch(said)):
        number = int(said)
        if 0 <= number <= most:
            return number
    raise BadPayment(f"{name} is a whole number of at most {most}")
