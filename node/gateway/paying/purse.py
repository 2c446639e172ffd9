"""One remote backend's money: a `Payer` that promises within the owner's limits, writes it down, and hears the end."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from attrs import frozen

from ledger.account import AccountError
from ledger.database import LedgerError
from ledger.money import Amount
from ledger.rails.stablecoin.errors import ChainError
from node.engine.paying import Demand, Payment
from node.engine.streaming import RemoteBusy
from node.gateway.paying.channel import ChannelPayment
from node.gateway.paying.limits import CannotSign, OtherPayee, PayLimits
from node.gateway.paying.payments import Payments
from node.gateway.paying.signing import Signing
from node.gateway.paying.terms import Terms, choose, decoded
from node.gateway.paying.transfer import TransferPayment

_RETRY_S: Final = 1.0


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """Wallet, chain and ledger have errors of their own; whoever asks a remote backend knows those of remotes."""
    try:
        yield
    except (AccountError, ChainError, LedgerError) as error:
        raise CannotSign(name, str(error)) from None


@frozen
class _Guarded:
    """A payment as its client knows it."""

    _payment: TransferPayment | ChannelPayment
    _name: str

    @property
    def headers(self) -> Mapping[str, str]:
        return self._payment.headers

    async def taken(self, response: str) -> None:
        with _telling(self._name):
            await self._payment.taken(response)

    async def refused(self, required: str, why: str) -> None:
        with _telling(self._name):
            await self._payment.refused(required, why)


class Purse:
    """See `node.engine.paying.Payer`."""

    def __init__(self, limits: PayLimits, signing: Signing, payments: Payments) -> None:
        self.limits: Final = limits
        self._signing = signing
        self._payments = payments
        self._charged = 0

    @property
    def charged(self) -> int:
        """See `Payer.charged`."""
        return self._charged

    @property
    def max_per_day(self) -> Amount | None:
        """See `Payer.max_per_day`."""
        return self.limits.max_per_day

    @contextlib.asynccontextmanager
    async def paying(self, required: str, demand: Demand) -> AsyncIterator[Payment]:
        """See `Payer.paying`."""
        limits, payments = self.limits, self._payments
        terms = choose(limits.name, decoded(limits.name, required), self._signing.coin, limits.schemes)
        self._check_payee(terms)
        # Here, so that terms that are beyond the limits are refused before anything else is done with them.
        limits.check(terms.amount, demand, 0)
        lock = payments.lock(payments.transfers_to(self._signing.coin.network, terms.pay_to).payee)
        if lock.locked():
            raise RemoteBusy(limits.name, _RETRY_S)
        async with lock:
            payment: TransferPayment | ChannelPayment
            if terms.scheme == "exact":
                payment = TransferPayment(limits, self._signing, payments, terms, demand)
            else:
                payment = ChannelPayment(limits, self._signing, payments, terms, demand)
            with _telling(limits.name):
                await payment.plan()
                await payments.pin(limits.name, terms.pay_to)
            try:
                yield _Guarded(payment, limits.name)
            finally:
                self._charged += payment.charged

    def spent_today(self) -> Amount:
        """See `Payer.spent_today`."""
        pay_to = self.limits.pay_to or self._payments.pay_to(self.limits.name)
        spent = 0 if pay_to is None else self._payments.spent_today(self._signing.coin.network, pay_to.lower())
        return Amount(spent, "uusd")

    def _check_payee(self, terms: Terms) -> None:
        known = self.limits.pay_to or self._payments.pay_to(self.limits.name)
        if known is not None and known.lower() != terms.pay_to:
            raise OtherPayee(self.limits.name, known, terms.pay_to)
