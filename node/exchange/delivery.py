"""What came of an order, and whether the receipt fits it: pure checks by the buyer."""

from attrs import field, frozen

from ledger import codec
from ledger.account import AccountKey
from ledger.commitments import CHECKPOINT_TOKENS, AnswerCommitment, answer_commitment, prompt_commitment
from ledger.events import Observed
from ledger.identity import Did
from ledger.money import cost
from ledger.records import Checkpoint, Offer, Order, Receipt, Score, Signed, open_record
from node.exchange import experience
from node.wire.messages import Request


class BrokenPromise(ValueError):
    """The seller sent something that does not fit the order; the message says what."""


def opened_receipt(raw: bytes) -> Signed[Receipt]:
    """The receipt at the end of a stream, its signature checked. Raises BrokenPromise."""
    try:
        return open_record(raw, Receipt)
    except codec.Malformed as error:
        raise BrokenPromise(f"the receipt is not valid: {error}") from None


@frozen
class Terms:
    """One order with all that it refers to."""

    order: Signed[Order]
    offer: Signed[Offer]
    request: Request = field(repr=False)

    @property
    def seller(self) -> Did:
        """Who was to deliver."""
        return self.offer.signer

    def account(self, buyer: str) -> AccountKey:
        """The account that it is paid from."""
        return AccountKey(buyer, self.seller, self.order.record.rail, self.offer.record.price.unit)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What is paid at the input price: the prompt, and what a score order claims."""
        return self.request.prompt + self.request.claimed

    @property
    def prompt_tokens(self) -> int:
        """How many token ids are paid at the input price."""
        return len(self.request.prompt) + len(self.request.claimed)

    @property
    def so_far(self) -> tuple[int, ...]:
        """The answer's earlier part, which the prompt of a continued order ends with."""
        return self.request.prompt[len(self.request.prompt) - self.order.record.start :]

    @property
    def first_cost(self) -> int:
        """What may come before anything is paid: the input, and the output up to the first checkpoint."""
        order = self.order.record
        if order.work == "score":
            return order.max_cost
        return min(self.full_cost(min(order.max_tokens, CHECKPOINT_TOKENS)), order.max_cost)

    def output_cost(self, tokens: int) -> int:
        """What so many output tokens cost without the input: what a checkpoint says."""
        return cost(self.offer.record.price, 0, tokens)

    def full_cost(self, tokens: int) -> int:
        """What the order costs with so many output tokens: what a receipt says."""
        return cost(self.offer.record.price, self.prompt_tokens, tokens)


@frozen
class Delivery:
    """How an order ended. `owed` is the part of the cost that the buyer does not dispute."""

    terms: Terms
    ids: tuple[int, ...] = field(repr=False)
    receipt: Signed[Receipt] | None
    checkpoint: Signed[Checkpoint] | None
    owed: int
    objection: str | None  # why it is not what was ordered; None if all fits
    cancelled: bool
    complete: bool = False  # whether the ids are a whole answer: ended, stopped, or as long as ordered
    first_token_ms: int = 0
    total_ms: int = 0
    score: Signed[Score] | None = None  # of a score order, if one came that fits

    def observed(self) -> Observed:
        """What it says about the seller."""
        seller = self.terms.seller
        if self.objection is not None:
            return experience.failed(seller, self.objection)
        if self.score is not None:
            return experience.scored(seller, self.terms.order.digest)
        return experience.delivered(seller, len(self.ids), self.first_token_ms, self.total_ms)


@frozen
class Claimed:
    """What a seller claims for an order: its receipt, its last checkpoint, or both."""

    receipt: Signed[Receipt] | None = None
    checkpoint: Signed[Checkpoint] | None = None

    @property
    def whole(self) -> Signed[Receipt] | Signed[Checkpoint] | None:
        """The one that counts: a receipt is for all that there is."""
        return self.receipt or self.checkpoint


class Incoming:
    """The ids of an answer as they arrive, and the checks that can be made on the way."""

    def __init__(self, terms: Terms, end_ids: frozenset[int], vocabulary: int) -> None:
        self._terms = terms
        self._end_ids = end_ids
        self._vocabulary = vocabulary
        self._chain = AnswerCommitment(terms.request.salt, terms.order.digest)
        self.ids: list[int] = []
        self.checkpoint: Signed[Checkpoint] | None = None

    def take(self, ids: tuple[int, ...]) -> None:
        """The next ids. Raises BrokenPromise."""
        if len(self.ids) + len(ids) > self._terms.order.record.max_tokens:
            raise BrokenPromise("the seller sends more tokens than were ordered")
        if any(i >= self._vocabulary for i in ids):
            raise BrokenPromise("the seller sends token ids that the model does not have")
        if self._ended() and ids:
            raise BrokenPromise("the seller goes on after the end of the answer")
        if any(i in self._end_ids for i in ids[:-1]):
            raise BrokenPromise("the seller goes on after the end of the answer")
        unchecked = len(self.ids) - (self.checkpoint.record.tokens if self.checkpoint else 0)
        if unchecked + len(ids) > CHECKPOINT_TOKENS:
            raise BrokenPromise(f"the seller sends more than {CHECKPOINT_TOKENS} tokens without a checkpoint")
        self.ids += ids
        self._chain.add(ids)

    def check(self, raw: bytes) -> None:
        """The seller's checkpoint. Raises BrokenPromise."""
        try:
            signed = open_record(raw, Checkpoint)
        except codec.Malformed as error:
            raise BrokenPromise(f"the checkpoint is not valid: {error}") from None
        said, tokens = signed.record, len(self.ids)
        if tokens == (self.checkpoint.record.tokens if self.checkpoint else 0):
            raise BrokenPromise("the seller sends checkpoints without new tokens")
        expected = Checkpoint(self._terms.order.digest, tokens, self.commitment(), self._terms.output_cost(tokens))
        if signed.signer != self._terms.seller or said != expected:
            raise BrokenPromise("the checkpoint does not fit what was delivered")
        self.checkpoint = signed

    def commitment(self) -> bytes:
        """The commitment to all ids so far."""
        return self._chain.value()

    def owed_if_cut(self) -> int:
        """A stream that the seller cuts owes the output up to its last checkpoint, and no input."""
        return self.checkpoint.record.cost if self.checkpoint else 0

    def complete(self, stopped: bool) -> bool:
        """Whether the ids so far are a whole answer; `stopped`: they complete a stop string."""
        return self._ended() or stopped or len(self.ids) == self._terms.order.record.max_tokens

    def _ended(self) -> bool:
        return bool(self.ids) and self.ids[-1] in self._end_ids

    @property
    def at_checkpoint(self) -> bool:
        """Whether the last thing that came is a checkpoint."""
        return self.checkpoint is not None and self.checkpoint.record.tokens == len(self.ids)

    def objection(self, receipt: Signed[Receipt], cancelled: bool, stopped: bool, unpaid: bool = False) -> str | None:
        """Why the receipt does not fit what was ordered and delivered; None if it does.

        `cancelled`: the buyer had asked to stop. `stopped`: the ids so far complete a stop string. `unpaid`: the seller
        had waited for pay.
        """
        tokens, order = len(self.ids), self._terms.order.record
        if (wrong := misfit(self._terms, receipt, tokens, self.commitment())) is not None:
            return wrong
        ended = self._ended() or stopped
        fits = {
            "stop": ended,
            "length": tokens == order.max_tokens and not ended,
            "cancelled": cancelled,
            "cut": False,
            "unpaid": unpaid and not ended and self.at_checkpoint,
        }
        finish = receipt.record.finish
        return None if fits[finish] else f"the answer did not end by {finish!r}"

    def undisputed(self, receipt: Signed[Receipt], tokens: int) -> int:
        """What is owed in any case for so many tokens: never more than the receipt asks for."""
        return min(receipt.record.cost, self._terms.full_cost(tokens))


def misfit(terms: Terms, receipt: Signed[Receipt], tokens: int, commitment: bytes) -> str | None:
    """Which fact of a receipt is not as ordered and delivered, so many tokens with this commitment; None if all are."""
    said, prompt = receipt.record, prompt_commitment(terms.request.salt, terms.input_ids)
    facts = (
        ("signer", receipt.signer, terms.seller),
        ("order", said.order, terms.order.digest),
        ("model", said.model, terms.offer.record.model),
        ("prompt token count", said.prompt_tokens, terms.prompt_tokens),
        ("output token count", said.output_tokens, tokens),
        ("prompt commitment", said.prompt_commitment, prompt),
        ("output commitment", said.output_commitment, commitment),
        ("unit", said.unit, terms.offer.record.price.unit),
        ("cost", said.cost, terms.full_cost(tokens)),
    )
    wrong = next((name for name, got, expected in facts if got != expected), None)
    return None if wrong is None else f"the receipt's {wrong} is not what was delivered"


def sums_fit(terms: Terms, claim: Signed[Receipt] | Signed[Checkpoint]) -> bool:
    """Whether a claim asks for what its tokens cost, where the tokens themselves were lost here."""
    said, order = claim.record, terms.order.record
    # A Score that was lost is worth nothing, and is not paid: its receipt says too much.
    if claim.signer != terms.seller or said.order != terms.order.digest or order.work != "generate":
        return False
    if isinstance(said, Checkpoint):
        return said.tokens <= order.max_tokens and said.cost == terms.output_cost(said.tokens)
    sums = said.prompt_tokens == terms.prompt_tokens and said.cost == terms.full_cost(said.output_tokens)
    return sums and said.output_tokens <= order.max_tokens


def covered_late(terms: Terms, checkpoint: Signed[Checkpoint], ids: tuple[int, ...]) -> int:
    """What is owed by a checkpoint that did not come with its tokens: its cost, if all of them came, and else nothing.

    Those who may choose afterwards where it lies could ask for tokens that no checkpoint covered; so it lies after
    every 64th.
    """
    tokens, order = checkpoint.record.tokens, terms.order.digest
    if tokens > len(ids) or tokens % CHECKPOINT_TOKENS:
        return 0
    commitment = answer_commitment(terms.request.salt, order, ids[:tokens])
    expected = Checkpoint(order, tokens, commitment, terms.output_cost(tokens))
    return expected.cost if (checkpoint.signer, checkpoint.record) == (terms.seller, expected) else 0


def late_objection(terms: Terms, receipt: Signed[Receipt], ids: tuple[int, ...], ended: bool) -> str | None:
    """Why a receipt that did not come with its answer does not fit what came; None if it does.

    `ended`: the ids end with an end-of-generation id or complete a stop string. Only a whole answer is owed with its
    input: nobody can tell any more who ended another one.
    """
    if terms.order.record.work == "score":
        return "the receipt came without its score"
    commitment = answer_commitment(terms.request.salt, terms.order.digest, ids)
    if (wrong := misfit(terms, receipt, len(ids), commitment)) is not None:
        return wrong
    finish = receipt.record.finish
    fits = {"stop": ended, "length": len(ids) == terms.order.record.max_tokens and not ended}
    return None if fits.get(finish, False) else f"the answer did not end by {finish!r}"
