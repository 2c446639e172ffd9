"""A request that is paid from a channel: x402's scheme `batch-settlement`.

A voucher promises all that was charged before and the most that this request may cost. Where nothing was heard of the
one before, the seller says what it charged when it is shown the next: it has to show a voucher of ours for that.

What its owner takes back from a channel is promised to nobody any more from the moment that it is asked for. So what is
left pays on during the notice, and more can be put in: a withdrawal takes the amount that it named, and no more.
Whether a seller serves such a channel is its own affair; nodes do, and x402's own code.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from x402.http.utils import decode_payment_signature_header
from x402.mechanisms.evm.batch_settlement import ChannelConfig
from x402.mechanisms.evm.batch_settlement.errors import (
    ERR_CHANNEL_BUSY,
    ERR_CUMULATIVE_AMOUNT_BELOW_CLAIMED,
    ERR_CUMULATIVE_AMOUNT_MISMATCH,
)

from ledger.account import Account
from node.engine.paying import SIGNATURE, Demand
from node.engine.streaming import RemoteBusy
from node.gateway.paying.fates import fate_of
from node.gateway.paying.limits import (
    Charged,
    OtherChannel,
    PayLimits,
    PaymentPending,
    TooPoor,
    TurnedDown,
)
from node.gateway.paying.payments import LATE_S, Payments
from node.gateway.paying.signing import Signing, header_of, held_voucher
from node.gateway.paying.terms import Terms, decoded, error_of, response_of, shown_in

_BUSY_S: Final = 5.0
_STALE: Final = frozenset({ERR_CUMULATIVE_AMOUNT_MISMATCH, ERR_CUMULATIVE_AMOUNT_BELOW_CLAIMED})
_SIGNATURE: Final = re.compile(r"0x[0-9a-fA-F]{130}")


class ChannelPayment:
    """See `node.engine.paying.Payment`. Call `plan` first."""

    def __init__(self, limits: PayLimits, signing: Signing, payments: Payments, terms: Terms, demand: Demand) -> None:
        self._limits, self._signing, self._payments = limits, signing, payments
        self._terms, self._demand = terms, demand
        self._config: ChannelConfig = signing.config(terms)
        self._channel = signing.channel_id(self._config)
        self._key = payments.channel_to(signing.coin.network, terms.pay_to, self._channel)
        self._order = b""
        self._header = ""
        self._corrected = False
        self.charged = 0

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Payment.headers`."""
        return {SIGNATURE: self._header}

    async def plan(self) -> None:
        """Sign a voucher, with a deposit where the channel lacks money, and write it down.

        Raises PaymentRefused, ChainError, LedgerError.
        """
        self._check_channel()
        terms, network = self._terms, self._signing.coin.network
        deposit = await self._pending_deposit()
        account = await self._account()
        # What nothing was heard of may have been charged all the same, up to the higher of the two totals.
        unheard = account.reserved
        promised = terms.amount if self._corrected else max(terms.amount, unheard)
        spent = self._payments.spent_today(network, terms.pay_to) - unheard + promised - terms.amount
        self._limits.check(terms.amount, self._demand, spent)
        total, funds = account.owed + terms.amount, 0
        missing = total - account.capacity
        if missing <= 0:
            payload = self._signing.voucher(self._config, total)
            payload = payload if deposit is None else {**deposit, "voucher": payload["voucher"]}
        elif deposit is not None:
            raise PaymentPending(self._limits.name, "a deposit into its channel is under way, and covers less")
        else:
            funds = self._limits.deposit(missing, terms.amount, terms.least_deposit, self._demand)
            if (has := await self._signing.has()) < funds:
                raise TooPoor(self._limits.name, has, funds)
            payload = await self._signing.deposit(terms, self._config, funds, total)
        self._header = header_of(self._limits.name, terms, payload)
        voucher = held_voucher(self._config, payload["voucher"])
        # A deposit has to be sent again until it is known to have come; a voucher is followed by the next.
        again = self._header if payload.get("type") == "deposit" else ""
        self._order = await self._payments.plan(self._key, promised, funds, terms.valid_s, again, voucher)

    async def taken(self, response: str) -> None:
        """See `Payment.taken`."""
        said = response_of(self._limits.name, response)
        if not said.success:
            raise TurnedDown(self._limits.name, "")
        if not self._order:
            return
        charged = said.charged
        if charged is None:
            return  # the end of the stream says it, or the next voucher brings it to light
        # No more than was signed can be claimed, whatever is said.
        counted = min(charged, self._terms.amount)
        await self._payments.charge(self._key, self._order, counted)
        self._order, self.charged = b"", counted
        if charged != counted:
            raise Charged(self._limits.name, "says that it charged something else than it was promised")

    async def refused(self, required: str, why: str) -> None:
        """See `Payment.refused`."""
        name = self._limits.name
        refusal = decoded(name, required)
        error = error_of(refusal)
        if error == ERR_CHANNEL_BUSY:
            raise RemoteBusy(name, _BUSY_S)
        if error not in _STALE or self._corrected:
            raise self._turned_down(error, why)
        self._corrected = True
        shown, owed = shown_in(refusal, self._terms), self._payments.account(self._key).owed
        if shown is None or shown.charged <= owed:
            _, charged = await self._signing.holds(self._channel)
        elif not self._proves(shown.charged, shown.signed, shown.signature):
            raise Charged(name, "says that it was promised what it was not")
        else:
            charged = shown.charged
        if charged <= owed:
            raise self._turned_down(error, why)
        await self._payments.catch_up(self._key, charged)
        await self.plan()

    def _turned_down(self, error: str, why: str) -> TurnedDown:
        return TurnedDown(self._limits.name, error, why, self._payments.leaving(self._key))

    def _proves(self, charged: int, signed: int, signature: str) -> bool:
        """Whether a signature of ours covers what was charged."""
        return (
            charged <= signed
            and _SIGNATURE.fullmatch(signature) is not None
            and self._signing.is_ours(self._config, signed, signature)
        )

    async def _account(self) -> Account:
        """The channel's account; where it lacks money, with all that the chain shows now.

        What the rail has seen counts at depth alone, and a journal may be lost; the money is in the channel before.
        """
        account = self._payments.account(self._key)
        # What its owner takes back is on the chain as long as it has not left.
        if account.owed + self._terms.amount <= account.capacity or self._payments.leaving(self._key) is not None:
            return account
        balance, claimed = await self._signing.holds(self._channel)
        return await self._payments.found(self._key, balance, claimed) if balance > account.capacity else account

    def _check_channel(self) -> None:
        """A seller has one channel, as long as there is money in it: else each new one would take another deposit."""
        for account in self._payments.accounts_with(self._signing.coin.network, self._terms.pay_to):
            other = account.key.rail == self._key.rail and account.key != self._key
            if other and account.funded - account.withdrawn > account.owed:
                raise OtherChannel(self._limits.name)

    async def _pending_deposit(self) -> dict[str, Any] | None:
        """The payload of a deposit of which it is not known that it came; None if there is none any more."""
        pending = await self._payments.pending(self._key)
        if pending is None or not pending.header:
            return None
        sent = decode_payment_signature_header(pending.header).payload
        signed, now = self._signing.deposit_authorization(sent), self._payments.now()
        fate = await fate_of(self._signing, signed, now)
        if fate == "open" and now < signed.valid_before:
            return sent
        if fate == "open":
            over = max(signed.valid_before + LATE_S - now, 1)
            raise PaymentPending(self._limits.name, f"a deposit may show on the chain for {over} s more")
        if fate == "over":
            await self._payments.void(self._key, pending.order, signed.value)
        return None
