"""What shows that an order goes on where another one stopped: made by the buyer, checked by the next seller. Pure.

A continued order's prompt ends with the answer's tokens so far. Where the part before was bought, the order names that
part's order, and the sealed request shows it, with the last record that its seller signed for it and the salt that
opens the record's commitment. So the parts of an answer chain by signatures, and no seller can be given words that it
never said, but for the few that came after its last record.
"""

from collections.abc import Sequence

from ledger import codec
from ledger.commitments import CHECKPOINT_TOKENS, answer_commitment, prompt_commitment
from ledger.records import Checkpoint, Order, Receipt, Signed, open_record
from node.exchange.delivery import Delivery
from node.wire.messages import Earlier, Request


class ForgedPart(ValueError):
    """A continued order whose earlier part is not what it is said to be; the message says what does not fit."""


def earlier_of(delivery: Delivery) -> Earlier:
    """What a bought part of an answer leaves for the order that continues it."""
    terms, ids = delivery.terms, delivery.ids
    order, salt = terms.order, terms.request.salt
    receipt, checkpoint = delivery.receipt, delivery.checkpoint
    # A seller whose line broke may have signed for more than arrived; then its last checkpoint speaks for it.
    whole = receipt is not None and receipt.record.output_commitment == answer_commitment(salt, order.digest, ids)
    proof = receipt if whole else checkpoint
    return Earlier(order.raw, proof.raw if proof is not None else b"", salt)


def check_part(order: Signed[Order], request: Request) -> None:
    """Check an order to generate against the part that it says it continues, if it does. Raises ForgedPart."""
    said, earlier = order.record, request.earlier
    if said.start >= len(request.prompt):
        raise ForgedPart("the answer's earlier part leaves no prompt")
    if (said.part_of is None) != (earlier is None):
        raise ForgedPart("an order names its earlier part if, and only if, its sealed request shows it")
    if earlier is None:
        return
    before = _order_before(order, earlier)
    tokens = said.start - before.record.start
    if not 0 < tokens <= before.record.max_tokens:
        raise ForgedPart("the earlier part is not as long as its order allows")
    _check_proof(before, earlier, request.prompt[:-tokens], request.prompt[-tokens:])


def _order_before(order: Signed[Order], earlier: Earlier) -> Signed[Order]:
    try:
        before = open_record(earlier.order, Order)
    except codec.Malformed as error:
        raise ForgedPart(f"the earlier part's order cannot be opened: {error}") from None
    if before.digest != order.record.part_of:
        raise ForgedPart("the earlier part's order is not the one that this order names")
    if before.signer != order.signer:
        raise ForgedPart("the earlier part's order is another buyer's")
    one, other = before.record, order.record
    if (one.work, one.seed, one.sampling) != (other.work, other.seed, other.sampling):
        raise ForgedPart("the earlier part was drawn in another way than this order asks for")
    return before


def _check_proof(before: Signed[Order], earlier: Earlier, prompt: Sequence[int], ids: Sequence[int]) -> None:
    """Check what the earlier seller signed against the ids that it is said to have sent."""
    if not earlier.proof:
        if len(ids) > CHECKPOINT_TOKENS:
            raise ForgedPart("so long an earlier part has a record that its seller signed")
        return
    proof = _opened(earlier.proof)
    if proof.signer != before.record.seller or proof.record.order != before.digest:
        raise ForgedPart("the record of the earlier part is not its seller's, or of another order")
    match proof.record:
        case Checkpoint(tokens=tokens, commitment=commitment):
            fits = tokens <= len(ids) <= tokens + CHECKPOINT_TOKENS
        case Receipt(output_tokens=tokens, output_commitment=commitment, prompt_commitment=prompted):
            fits = tokens == len(ids) and prompted == prompt_commitment(earlier.salt, prompt)
    if not fits or commitment != answer_commitment(earlier.salt, before.digest, ids[:tokens]):
        raise ForgedPart("the record of the earlier part is about other tokens than the prompt ends with")


def _opened(raw: bytes) -> Signed[Checkpoint] | Signed[Receipt]:
    try:
        if len(raw) <= Checkpoint.limit:
            return open_record(raw, Checkpoint)
    except codec.Malformed:
        pass  # then it has to be a receipt
    try:
        return open_record(raw, Receipt)
    except codec.Malformed as error:
        raise ForgedPart(f"the record of the earlier part cannot be opened: {error}") from None
