"""What a seller claims for an order whose end this node never saw: held against what came, and answered.

Theory of operation. A seller that is killed, or whose line breaks, after it wrote down a checkpoint or receipt and
before its buyer had it goes on asking for it. It hands its claim over when accounts are compared. What the ids that
came bear out is paid as if the record had come with them. What they do not bear out is not owed: the answer is a
dispute down to the last checkpoint that fits, which both books then show, and which the seller may let go or stand on.

Claims that came to an end here, by a receipt or a dispute, stay as they are; nobody can open them again.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ledger.account import Account, Reservation
from ledger.identity import Did
from ledger.reconcile import Claim
from ledger.records import Verdict, open_record
from node.exchange import experience
from node.exchange.book import Book, kept
from node.exchange.bought import Bought, load_bought
from node.exchange.delivery import Claimed, Terms, covered_late, late_objection, sums_fit
from node.exchange.settler import Settler
from node.models.gguf import BadModelFile
from node.models.tokenizer import Tokenizer, TokenizerMismatch
from node.models.tokenizers import NoTokenizer

_BROKEN_OFF: Final = "the line broke before so many tokens had come"


class Claims:
    """Answers what sellers claim. Orders whose token ids are not kept any more stay as they are."""

    def __init__(self, book: Book, settler: Settler, tokenizer: Callable[[bytes], Awaitable[Tokenizer]]) -> None:
        """`tokenizer` gives one that is here, by its digest; it raises what `Tokenizers.open` does."""
        self._book = book
        self._settler = settler
        self._tokenizer = tokenizer

    async def take(self, seller: Did, order: bytes, claimed: Claimed) -> bool:
        """Answer what a seller has signed for an order of ours; whether it was news."""
        claim = claimed.whole
        if claim is None or self._account_that_asks(seller, order, claim) is None:
            return False
        bought = await load_bought(self._book, order)
        if bought is None or bought.receipt is not None or not _are_of(claimed, bought.terms):
            return False
        # It may have been settled meanwhile.
        account = self._account_that_asks(seller, order, claim)
        if account is None:
            return False
        if account.orders[order].open:
            return await self._take_lost(account, bought.terms, claim)
        owed, objection = await self._judge(bought, claimed)
        return await self._settler.answer(bought.terms, claim, owed, objection)

    def _account_that_asks(self, seller: Did, order: bytes, claim: Claim) -> Account | None:
        """The account in which this node owes a seller for an order, if the claim is one to be answered."""
        for key, account in self._book.journal.books.accounts.items():
            if (key.payer, key.payee) == (self._book.me, seller) and order in account.orders:
                return account if self._is_new(order, account.orders[order], claim) else None
        return None

    def _is_new(self, order: bytes, reservation: Reservation, claim: Claim) -> bool:
        # What another process has left behind, the one that leads takes up.
        at_work = order in self._book.under_way or self._settler.is_settling(order) or self._book.is_others(order)
        within = reservation.granted < claim.record.cost <= reservation.amount
        return within and reservation.asked is None and not at_work

    async def _take_lost(self, account: Account, terms: Terms, claim: Claim) -> bool:
        """An answer that this node lost when it stopped: its tokens cannot be checked any more, but its sums can."""
        order = terms.order.digest
        if self._book.experience.due(order) is not None or not sums_fit(terms, claim):
            return False
        due = experience.due(terms.seller, order, claim.record.cost, None)
        await self._book.post(due, records=(kept(claim, order),))
        self._settler.pick_up(account.key, order)
        return True

    async def _judge(self, bought: Bought, claimed: Claimed) -> tuple[int, str | None]:
        """What is owed of a claim, and why no more."""
        terms, ids, receipt = bought.terms, bought.answer, claimed.receipt
        if (condemned := await self._condemned(terms.order.digest)) is not None:
            return 0, condemned
        covered = covered_late(terms, claimed.checkpoint, ids) if claimed.checkpoint is not None else 0
        if receipt is None:
            return covered, None if covered else _BROKEN_OFF
        ended = await self._has_ended(terms, ids)
        objection = late_objection(terms, receipt, ids, ended)
        if objection is None:
            return receipt.record.cost, None
        whole = terms.order.record.work == "generate" and (ended or len(ids) == terms.order.record.max_tokens)
        return min(receipt.record.cost, terms.full_cost(len(ids)) if whole else covered), objection

    async def _condemned(self, order: bytes) -> str | None:
        """Why what came of an order is not paid, if an audit said so."""
        for record in await self._book.journal.records_of(order):
            if record.kind == Verdict.kind:
                verdict = open_record(record.raw, Verdict).record
                if verdict.outcome == "dishonest":
                    return verdict.reason
        return None

    async def _has_ended(self, terms: Terms, ids: Sequence[int]) -> bool:
        """Whether an answer came to its end by itself; no, where nobody here can tell."""
        try:
            tokenizer = await self._tokenizer(terms.offer.record.tokenizer)
            text = tokenizer.stream(terms.request.stop, terms.so_far)
            text.feed(ids)
            return text.stopped_at is not None or (bool(ids) and ids[-1] in tokenizer.eog)
        except (NoTokenizer, TokenizerMismatch, BadModelFile):
            return False


def _are_of(claimed: Claimed, terms: Terms) -> bool:
    """Whether a claim is about this order, by its seller."""
    claims = [one for one in (claimed.receipt, claimed.checkpoint) if one is not None]
    return all((one.signer, one.record.order) == (terms.seller, terms.order.digest) for one in claims)
