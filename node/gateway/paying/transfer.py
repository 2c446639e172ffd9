"""A request that is paid by a transfer of its own: x402's scheme `exact`.

What is signed can be taken until it expires, by the seller alone, once. So as long as nothing was heard of one it is
presented again where the request costs the same, and nothing else is signed before its time is over. A seller that
takes transfers in advance and keeps the rest as a balance may answer from that, and not take what was signed: that much
counts as promised until its time is over.
"""

from collections.abc import Mapping

from x402.http.utils import decode_payment_signature_header

from node.engine.paying import SIGNATURE, Demand
from node.gateway.paying.fates import fate_of
from node.gateway.paying.limits import PayLimits, PaymentPending, TooPoor, TurnedDown
from node.gateway.paying.payments import LATE_S, Payments, Pending
from node.gateway.paying.signing import Signing, exact_authorization, header_of
from node.gateway.paying.terms import Terms, decoded, error_of, response_of


class TransferPayment:
    """See `node.engine.paying.Payment`. Call `plan` first."""

    def __init__(self, limits: PayLimits, signing: Signing, payments: Payments, terms: Terms, demand: Demand) -> None:
        self._limits, self._signing, self._payments = limits, signing, payments
        self._terms, self._demand = terms, demand
        self._key = payments.transfers_to(signing.coin.network, terms.pay_to)
        self._order = b""
        self._header = ""
        self._moved = False
        self.charged = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Payment.headers`."""
        return {SIGNATURE: self._header}

    async def plan(self) -> None:
        """Sign a transfer and write it down, or take up the one of which nothing was heard.

        Raises PaymentRefused, ChainError, SignerFailed, LedgerError.
        """
        pending = await self._payments.pending(self._key)
        if pending is not None and await self._still_pending(pending):
            return
        terms = self._terms
        self._limits.check(
            terms.amount, self._demand, self._payments.spent_today(self._signing.coin.network, terms.pay_to)
        )
        if (has := await self._signing.has()) < terms.amount:
            raise TooPoor(self._limits.name, has, terms.amount)
        payload = await self._signing.exact(terms)
        self._header = header_of(self._limits.name, terms, payload)
        self._order = await self._payments.plan(self._key, terms.amount, terms.amount, terms.valid_s, self._header)

    async def taken(self, response: str) -> None:
        """See `Payment.taken`."""
        said = response_of(self._limits.name, response)
        if not said.success:
            raise TurnedDown(self._limits.name, "")
        self._moved = self._moved or said.moved
        if not self._order or (said.prepaid and said.charged is None):
            return  # of a stream, the end says it
        charged = self._terms.amount if said.charged is None else min(said.charged, self._terms.amount)
        # What a balance has paid for leaves a transfer that can still be taken.
        outstanding = said.prepaid and not self._moved
        await self._payments.charge(self._key, self._order, charged, outstanding=outstanding)
        self._order, self.charged = b"", charged

    async def refused(self, required: str, why: str) -> None:
        """See `Payment.refused`: the transfer can still be taken, so none is signed in its place."""
        raise TurnedDown(self._limits.name, error_of(decoded(self._limits.name, required)), why)

    async def _still_pending(self, pending: Pending) -> bool:
        """Whether an earlier transfer is presented for this request; False if it came to its end."""
        sent = decode_payment_signature_header(pending.header)
        earlier = exact_authorization(sent.payload)
        match await fate_of(self._signing, earlier, self._payments.now()):
            case "taken":
                await self._payments.charge(self._key, pending.order, earlier.value)
                return False
            case "over":
                await self._payments.void(self._key, pending.order, earlier.value)
                return False
        if earlier.value != self._terms.amount or self._payments.now() >= earlier.valid_before:
            over = earlier.valid_before + LATE_S - self._payments.now()
            raise PaymentPending(self._limits.name, f"it can be taken for {max(over, 1)} s more")
        self._order, self._header = pending.order, pending.header
        return True
