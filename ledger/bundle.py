"""A receipt to show to others: one file with the records behind it, and the checks that need nothing else.

An answer that its seller cut off has no receipt; the last checkpoint stands in for it, and speaks of the answer alone.
`salt`, `prompt` and `answer` open the commitments; they are in the file only if its maker wants to show them.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any, Final

from attrs import frozen

from ledger.codec import Malformed
from ledger.commitments import SALT_BYTES, answer_commitment, prompt_commitment
from ledger.money import MAX_AMOUNT, Amount, Unit, cost
from ledger.records import Acknowledgement, Checkpoint, Offer, Order, Receipt, Signed, Voucher, open_record

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
    receipt: bytes | None  # None where a checkpoint stands in for it
    acknowledgement: bytes | None = None
    salt: bytes | None = None
    prompt: tuple[int, ...] | None = None
    answer: tuple[int, ...] | None = None
    checkpoint: bytes | None = None


@frozen
class Check:
    """One thing that was checked: `passed` None means that the file does not hold what it takes."""

    name: str
    passed: bool | None
    detail: str = ""


def to_json(bundle: Bundle) -> dict[str, Any]:
    """The file's content, for a JSON writer."""
    body: dict[str, Any] = {"format": FORMAT}
    for name in ("offer", "order", "receipt", "acknowledgement", "checkpoint", "salt"):
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
            receipt=None if "checkpoint" in body else _bytes(body["receipt"]),
            acknowledgement=_bytes(body["acknowledgement"]) if "acknowledgement" in body else None,
            checkpoint=_bytes(body["checkpoint"]) if "checkpoint" in body else None,
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
        claim = _opened(bundle, offer)
        ack = open_record(bundle.acknowledgement, Acknowledgement) if bundle.acknowledgement else None
        voucher = open_record(ack.record.voucher, Voucher) if ack else None
    except Malformed as error:
        return [Check("signatures", False, str(error))]
    checks.append(Check("signatures", True, "seller's and buyer's" if ack else "the seller's; not acknowledged"))
    checks += _references(offer, order, claim)
    checks += _arithmetic(offer, order, claim)
    checks += _earlier_part(order, claim)
    if ack is not None and voucher is not None:
        checks += _acknowledgement(offer, order, claim, ack, voucher)
    checks += _commitments(bundle, order, claim)
    return checks


def _opened(bundle: Bundle, offer: Signed[Offer]) -> "_Claim":
    """What the seller asks for. Raises Malformed."""
    if bundle.receipt is not None:
        signed = open_record(bundle.receipt, Receipt)
        said = signed.record
        ours = (said.model, said.unit) == (offer.record.model, offer.record.price.unit)
        prompt = (said.prompt_tokens, said.prompt_commitment)
        return _Claim(signed, ours, prompt, said.output_tokens, said.output_commitment)
    cut = open_record(bundle.checkpoint or b"", Checkpoint)
    return _Claim(cut, True, None, cut.record.tokens, cut.record.commitment)


@frozen
class _Claim:
    """A receipt, or the checkpoint that stands in for it: `prompt` is the number of its tokens and their commitment."""

    signed: Signed[Receipt] | Signed[Checkpoint]
    fits_offer: bool
    prompt: tuple[int, bytes] | None
    tokens: int
    commitment: bytes


def _references(offer: Signed[Offer], order: Signed[Order], claim: _Claim) -> Iterator[Check]:
    fits = (
        order.record.offer == offer.digest
        and order.record.seller == offer.signer == claim.signed.signer
        and claim.signed.record.order == order.digest
        and claim.fits_offer
    )
    together = f"offer, order and {claim.signed.record.kind} belong together"
    yield Check("references", fits, together if fits else "they do not belong together")


def _arithmetic(offer: Signed[Offer], order: Signed[Order], claim: _Claim) -> Iterator[Check]:
    said, price = claim.signed.record, offer.record.price
    due = cost(price, claim.prompt[0] if claim.prompt else 0, claim.tokens)
    fits = said.cost == due <= order.record.max_cost and claim.tokens <= order.record.max_tokens
    counted = f"{claim.prompt[0]} + {claim.tokens} tokens" if claim.prompt else f"{claim.tokens} tokens of a cut answer"
    detail = f"{counted} cost {_shown(due, price.unit)}"
    yield Check(
        "arithmetic", fits, detail if fits else f"{detail}, and the {said.kind} says {_shown(said.cost, price.unit)}"
    )


def _earlier_part(order: Signed[Order], claim: _Claim) -> Iterator[Check]:
    said = order.record
    if not said.start:
        return
    before = f"order {said.part_of.hex()[:16]}" if said.part_of is not None else "what the buyer computed itself"
    detail = f"the prompt's last {said.start} tokens are the answer's earlier part, of {before}"
    yield Check("earlier part", claim.prompt is None or said.start < claim.prompt[0], detail)


def _acknowledgement(
    offer: Signed[Offer],
    order: Signed[Order],
    claim: _Claim,
    ack: Signed[Acknowledgement],
    voucher: Signed[Voucher],
) -> Iterator[Check]:
    said, paid = ack.record, voucher.record
    fits = (
        ack.signer == voucher.signer == order.signer == paid.payer
        and paid.payee == offer.signer
        and paid.rail == order.record.rail
        and paid.unit == offer.record.price.unit
        and said.order == order.digest
        and said.of == claim.signed.digest
        and said.amount <= claim.signed.record.cost
        and (said.amount == claim.signed.record.cost or not said.accepted)
    )
    words = "accepted" if said.accepted else f"disputed: {said.reason}"
    amounts = f"{_shown(said.amount, paid.unit)} of it, {_shown(paid.total, paid.unit)} in all"
    yield Check("acknowledgement", fits, f"{words}; {amounts}")


def _shown(value: int, unit: Unit) -> str:
    """An amount as people read it; also one that no honest record has."""
    return str(Amount(value, unit)) if 0 <= value <= MAX_AMOUNT else f"{value}{unit}"


def _commitments(bundle: Bundle, order: Signed[Order], claim: _Claim) -> Iterator[Check]:
    salt = bundle.salt or b""
    if claim.prompt is not None:
        count, commitment = claim.prompt
        yield _opens("prompt", bundle, bundle.prompt, count, commitment, lambda ids: prompt_commitment(salt, ids))
    # Of an answer that was cut more may have come than was signed for.
    answer = bundle.answer if claim.prompt is not None or bundle.answer is None else bundle.answer[: claim.tokens]
    yield _opens(
        "answer",
        bundle,
        answer,
        claim.tokens,
        claim.commitment,
        lambda ids: answer_commitment(salt, order.digest, ids),
    )


def _opens(
    name: str,
    bundle: Bundle,
    ids: tuple[int, ...] | None,
    count: int,
    commitment: bytes,
    commit: Callable[[tuple[int, ...]], bytes],
) -> Check:
    if bundle.salt is None or ids is None:
        return Check(f"{name} commitment", None, "the file holds no token ids")
    fits = len(bundle.salt) == SALT_BYTES and len(ids) == count and commit(ids) == commitment
    return Check(f"{name} commitment", fits, f"{len(ids)} token ids")
