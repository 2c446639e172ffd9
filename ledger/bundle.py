"""A receipt to show to others: one file with the records behind it, and the checks that need nothing else.

`salt`, `prompt` and `answer` open the commitments; they are in the file only if its maker wants to show them.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any, Final

from attrs import frozen

from ledger.codec import Malformed
from ledger.commitments import SALT_BYTES, answer_commitment, prompt_commitment
from ledger.money import cost
from ledger.records import Acknowledgement, Offer, Order, Receipt, Signed, Voucher, open_record

FORMAT: Final = "idlemesh-receipt-1"
# The longest prompt and answer as decimal numbers, and the records.
MAX_FILE: Final = 64 * 2**20
MAX_IDS: Final = 2**22


class NotABundle(ValueError):
    """A file that is no exported receipt."""


@frozen
class Bundle:
    """The records of one order as they were signed, and what opens the commitments."""

    offer: bytes
    order: bytes
    receipt: bytes
    acknowledgement: bytes | None = None
    salt: bytes | None = None
    prompt: tuple[int, ...] | None = None
    answer: tuple[int, ...] | None = None


@frozen
class Check:
    """One thing that was checked: `passed` None means that the file does not hold what it takes."""

    name: str
    passed: bool | None
    detail: str = ""


def to_json(bundle: Bundle) -> dict[str, Any]:
    """The file's content, for a JSON writer."""
    body: dict[str, Any] = {"format": FORMAT}
    for name in ("offer", "order", "receipt", "acknowledgement", "salt"):
        raw = getattr(bundle, name)
        if raw is not None:
            body[name] = base64.b64encode(raw).decode()
    for name in ("prompt", "answer"):
        ids = getattr(bundle, name)
        if ids is not None:
            body[name] = list(ids)
    return body


def from_json(body: object) -> Bundle:
    """Read a file's content. Raises NotABundle."""
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise NotABundle(f"this is no receipt that `idlemesh export` wrote: its format is not {FORMAT!r}")
    try:
        return Bundle(
            offer=_bytes(body["offer"]),
            order=_bytes(body["order"]),
            receipt=_bytes(body["receipt"]),
            acknowledgement=_bytes(body["acknowledgement"]) if "acknowledgement" in body else None,
            salt=_bytes(body["salt"]) if "salt" in body else None,
            prompt=_ids(body["prompt"]) if "prompt" in body else None,
            answer=_ids(body["answer"]) if "answer" in body else None,
        )
    except KeyError as error:
        raise NotABundle(f"the exported receipt lacks its {error.args[0]}") from None
    except (TypeError, ValueError, binascii.Error) as error:
        raise NotABundle(f"the exported receipt is damaged: {error}") from None


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise NotABundle("records must be base64 text")
    return base64.b64decode(value, validate=True)


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_IDS:
        raise NotABundle("token ids must be a list")
    if not all(type(i) is int and 0 <= i < 2**32 for i in value):
        raise NotABundle("token ids must be numbers below 2^32")
    return tuple(value)


def check(bundle: Bundle) -> list[Check]:
    """Check signatures, references, arithmetic and commitments, each by name; the list ends at a bad signature."""
    checks: list[Check] = []
    try:
        offer = open_record(bundle.offer, Offer)
        order = open_record(bundle.order, Order)
        receipt = open_record(bundle.receipt, Receipt)
        ack = open_record(bundle.acknowledgement, Acknowledgement) if bundle.acknowledgement else None
        voucher = open_record(ack.record.voucher, Voucher) if ack else None
    except Malformed as error:
        return [Check("signatures", False, str(error))]
    checks.append(Check("signatures", True, "seller's and buyer's" if ack else "the seller's; not acknowledged"))
    checks += _references(offer, order, receipt)
    checks += _arithmetic(offer, order, receipt)
    if ack is not None and voucher is not None:
        checks += _acknowledgement(offer, order, receipt, ack, voucher)
    checks += _commitments(bundle, order, receipt)
    return checks


def _references(offer: Signed[Offer], order: Signed[Order], receipt: Signed[Receipt]) -> Iterator[Check]:
    fits = (
        order.record.offer == offer.digest
        and order.record.seller == offer.signer == receipt.signer
        and receipt.record.order == order.digest
        and receipt.record.model == offer.record.model
        and receipt.record.unit == offer.record.price.unit
    )
    yield Check(
        "references", fits, "offer, order and receipt belong together" if fits else "they do not belong together"
    )


def _arithmetic(offer: Signed[Offer], order: Signed[Order], receipt: Signed[Receipt]) -> Iterator[Check]:
    said = receipt.record
    due = cost(offer.record.price, said.prompt_tokens, said.output_tokens)
    fits = said.cost == due <= order.record.max_cost and said.output_tokens <= order.record.max_tokens
    detail = f"{said.prompt_tokens} + {said.output_tokens} tokens cost {due}{said.unit}"
    yield Check("arithmetic", fits, detail if fits else f"{detail}, and the receipt says {said.cost}")


def _acknowledgement(
    offer: Signed[Offer],
    order: Signed[Order],
    receipt: Signed[Receipt],
    ack: Signed[Acknowledgement],
    voucher: Signed[Voucher],
) -> Iterator[Check]:
    said, paid = ack.record, voucher.record
    fits = (
        ack.signer == voucher.signer == order.signer == paid.payer
        and paid.payee == offer.signer
        and paid.rail == order.record.rail
        and paid.unit == receipt.record.unit
        and said.order == order.digest
        and said.of == receipt.digest
        and said.amount <= receipt.record.cost
        and (said.amount == receipt.record.cost or not said.accepted)
    )
    words = "accepted" if said.accepted else f"disputed: {said.reason}"
    yield Check("acknowledgement", fits, f"{words}; {said.amount}{paid.unit} of it, {paid.total}{paid.unit} in all")


def _commitments(bundle: Bundle, order: Signed[Order], receipt: Signed[Receipt]) -> Iterator[Check]:
    said, salt = receipt.record, bundle.salt
    opened: tuple[tuple[str, tuple[int, ...] | None, int, bytes, Callable[[tuple[int, ...]], bytes]], ...] = (
        (
            "prompt",
            bundle.prompt,
            said.prompt_tokens,
            said.prompt_commitment,
            lambda ids: prompt_commitment(salt or b"", ids),
        ),
        (
            "answer",
            bundle.answer,
            said.output_tokens,
            said.output_commitment,
            lambda ids: answer_commitment(salt or b"", order.digest, ids),
        ),
    )
    for name, ids, count, commitment, commit in opened:
        if salt is None or ids is None:
            yield Check(f"{name} commitment", None, "the file holds no token ids")
            continue
        fits = len(salt) == SALT_BYTES and len(ids) == count and commit(ids) == commitment
        yield Check(f"{name} commitment", fits, f"{len(ids)} token ids")
