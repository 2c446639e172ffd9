"""What became of payments of which nothing was heard: what the chain says, and when that is final."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from x402.http.utils import decode_payment_signature_header

from ledger.account import Account, AccountKey
from ledger.database import LedgerError
from ledger.rails.stablecoin.errors import ChainError
from node.exchange.strangers import PREPAID_RAIL, channel_of
from node.gateway.paying.payments import LATE_S, Payments, Pending
from node.gateway.paying.signing import Authorization, Signing, exact_authorization

Fate = Literal["taken", "open", "over"]

_log = logging.getLogger(__name__)


async def fate_of(signing: Signing, authorization: Authorization, now: int) -> Fate:
    """Whether its money has moved, still can, or never will. Raises ChainError."""
    if await signing.is_used(authorization):
        return "taken"
    # What a reorganisation has undone can be done again until the end, so not used counts at depth alone.
    if now > authorization.valid_before + LATE_S and not await signing.is_used(authorization, deep=True):
        return "over"
    return "open"


class Sweeper:
    """Ends payments whose time is over, so that they count no longer for what may still be spent."""

    def __init__(self, payments: Payments, signing: Signing) -> None:
        self._payments, self._signing = payments, signing

    async def sweep(self) -> None:
        """Look at all that is open; what the chain does not tell now waits for the next time."""
        for account in self._payments.accounts():
            lock = self._payments.lock(account.key.payee.partition("#")[0])
            if account.reserved and not lock.locked():
                async with lock:
                    try:
                        await self._end(account)
                    except (ChainError, LedgerError) as error:
                        _log.warning("a payment by x402 is not known to be over yet: %s", error)

    async def _end(self, account: Account) -> None:
        for pending in await self._payments.open_payments(account.key):
            if account.key.rail == PREPAID_RAIL:
                await self._end_transfer(account.key, pending)
            elif self._payments.now() > account.orders[pending.order].expires + LATE_S:
                await self._end_voucher(account.key, pending)

    async def _end_transfer(self, key: AccountKey, pending: Pending) -> None:
        transfer = exact_authorization(_sent(pending))
        match await fate_of(self._signing, transfer, self._payments.now()):
            case "taken" if pending.heard:
                await self._payments.void(key, pending.order, 0)  # it is the payer's balance there
            case "taken":
                await self._payments.charge(key, pending.order, transfer.value)
            case "over":
                await self._payments.void(key, pending.order, transfer.value)

    async def _end_voucher(self, key: AccountKey, pending: Pending) -> None:
        back = 0
        if pending.header:
            deposit = self._signing.deposit_authorization(_sent(pending))
            back = deposit.value if await fate_of(self._signing, deposit, self._payments.now()) == "over" else 0
        channel = channel_of(key.payee)
        _, claimed = await self._signing.holds(channel) if channel is not None else (0, 0)
        await self._payments.void(key, pending.order, back)
        # A voucher can be claimed for ever: what was, counts.
        await self._payments.catch_up(key, claimed)


def _sent(pending: Pending) -> Mapping[str, Any]:
    return decode_payment_signature_header(pending.header).payload
