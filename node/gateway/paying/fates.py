"""What became of payments of which nothing was heard: what the chain says, and when that is final."""

import logging
from typing import Final, Literal

from x402.http.utils import decode_payment_signature_header

from ledger.account import Account
from ledger.database import LedgerError
from ledger.rails.stablecoin.errors import ChainError
from node.exchange.strangers import PREPAID_RAIL, channel_of
from node.gateway.paying.signing import Authorization, Signing, exact_authorization
from node.gateway.paying.till import Till

# After its end the chain may still show that an authorization was used: blocks, and this machine's clock.
LATE_S: Final = 600

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

    def __init__(self, till: Till, signing: Signing) -> None:
        self._till, self._signing = till, signing

    async def sweep(self) -> None:
        """Look at all that is open; what the chain does not tell now waits for the next time."""
        for account in self._till.accounts():
            lock = self._till.lock(account.key.payee.partition("#")[0])
            if account.reserved and not lock.locked():
                async with lock:
                    try:
                        await self._end(account)
                    except (ChainError, LedgerError) as error:
                        _log.warning("a payment by x402 is not known to be over yet: %s", error)

    async def _end(self, account: Account) -> None:
        pending = await self._till.pending(account.key)
        if pending is None:
            return
        sent = decode_payment_signature_header(pending.header).payload
        now = self._till.now()
        if account.key.rail == PREPAID_RAIL:
            transfer = exact_authorization(sent)
            match await fate_of(self._signing, transfer, now):
                case "taken":
                    await self._till.charge(account.key, pending.order, transfer.value)
                case "over":
                    await self._till.void(account.key, pending.order, transfer.value)
        elif now > account.orders[pending.order].expires + LATE_S:
            back = 0
            if sent.get("type") == "deposit":
                deposit = self._signing.deposit_authorization(sent)
                back = deposit.value if await fate_of(self._signing, deposit, now) == "over" else 0
            channel = channel_of(account.key.payee)
            claimed = await self._signing.claimed(channel) if channel is not None else 0
            await self._till.void(account.key, pending.order, back)
            # A voucher can be claimed for ever: what was, counts.
            await self._till.catch_up(account.key, claimed)
