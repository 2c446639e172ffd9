"""Payments by transfers (x402's scheme `exact`): money that is here in advance, and requests that spend of it."""

import hashlib
from typing import Final

from x402.mechanisms.evm.constants import (
    ERR_INVALID_SIGNATURE,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_SETTLEMENT_PENDING,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.schemas import PaymentRequirements

from ledger.account import AccountKey
from ledger.rails.stablecoin.digests import NOBODY
from node.exchange.book import Book
from node.exchange.strangers import PREPAID_RAIL, Transfer, did_of_wallet, shown
from node.exchange.tabs import PaymentUsed, Tab, Tabs, TabUsedUp
from node.paid.bank import Bank, Moved
from node.paid.paid import Paid
from node.paid.presented import Payment, SignedTransfer
from node.paid.terms import TRANSFER_S, PaymentRefused, Terms

_ORDER: Final = b"idlemesh order of a transfer\x00"
_LONGEST_S: Final = 3_600  # what x402's clients sign where they are not told; longer ones are not watched


class Transfers:
    """Takes what was signed by wallets."""

    def __init__(self, book: Book, tabs: Tabs, terms: Terms, bank: Bank) -> None:
        self._book = book
        self._tabs = tabs
        self._terms = terms
        self._bank = bank

    async def take(self, presented: SignedTransfer, payment: Payment, asked: PaymentRequirements, most: int) -> Paid:
        """Have a request paid for that may cost `most`. Raises PaymentRefused."""
        terms, said = self._terms, presented.authorization
        key = self._tabs.key(did_of_wallet(terms.place.network, said.payer), PREPAID_RAIL)
        order = self._check(presented, asked, key)
        transfer = Transfer(key.payer, said.nonce, said.value, said.valid_before)
        # What is known to have moved is counted, and is not followed again.
        follow = [] if self._book.strangers.is_ended(order) else [shown(order, transfer)]
        try:
            if self._tabs.account(key).available >= most:
                tab, moved = await self._tabs.admit(key, most, *follow, order=order), None
            else:
                tab, moved = await self._fetch(presented, payment, asked, key, order, transfer, most)
        except PaymentUsed as error:
            raise PaymentRefused(ERR_NONCE_ALREADY_USED, str(error)) from None
        except TabUsedUp as error:
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, str(error)) from None
        self._bank.watched.drop(order)  # it is in the journal
        return Paid(tab, said.payer, terms.place.network, moved)

    def _check(self, presented: SignedTransfer, asked: PaymentRequirements, key: AccountKey) -> bytes:
        """The order that a transfer names, if it is what was asked for and signed. Raises PaymentRefused."""
        terms, said = self._terms, presented.authorization
        self.check(presented, asked)
        order = order_of(terms.place.chain_id, terms.token.address, said.payer, said.nonce)
        strangers = self._book.strangers
        if order in self._tabs.account(key).orders or order in strangers.transfers or order in strangers.shown:
            raise PaymentRefused(ERR_NONCE_ALREADY_USED, str(PaymentUsed()))
        return order

    async def watch(self, presented: SignedTransfer) -> None:
        """Count a transfer that is shown to this node, should somebody make it, whatever comes of the request.

        It is remembered on return, also by the next run: once it is taken, it is in the journal.
        """
        terms, said, now = self._terms, presented.authorization, self._book.now()
        good = now < said.valid_before <= now + _LONGEST_S and said.payer not in (NOBODY, terms.wallet)
        if (
            good
            and said.receiver == terms.wallet
            and said.is_signed(terms.place.chain_id, terms.token, presented.signature)
        ):
            payer = did_of_wallet(terms.place.network, said.payer)
            order = order_of(terms.place.chain_id, terms.token.address, said.payer, said.nonce)
            self._bank.watch(order, Transfer(payer, said.nonce, said.value, said.valid_before))
            await self._bank.watched.keep()

    def payer_of(self, presented: SignedTransfer, asked: PaymentRequirements) -> AccountKey:
        """The account of who has signed a transfer that was asked for. Raises PaymentRefused."""
        self.check(presented, asked)
        return self._tabs.key(did_of_wallet(self._terms.place.network, presented.authorization.payer), PREPAID_RAIL)

    def check(self, presented: SignedTransfer, asked: PaymentRequirements) -> None:
        """Whether a transfer is what was asked for, valid now, and signed by its payer. Raises PaymentRefused."""
        terms, said, now = self._terms, presented.authorization, self._book.now()
        if said.receiver != terms.wallet or said.payer in (NOBODY, terms.wallet):
            raise PaymentRefused(ERR_RECIPIENT_MISMATCH, "the transfer is not to this node's wallet")
        if said.value != int(asked.amount):
            raise PaymentRefused("invalid_exact_evm_payload_authorization_value", f"{asked.amount} is asked for")
        # Payments are remembered for longer than they are good, so none comes twice.
        if not now < said.valid_before <= now + 2 * TRANSFER_S or said.valid_after > now:
            why = f"the transfer has to be valid now, and for {2 * TRANSFER_S} seconds at most"
            raise PaymentRefused(ERR_VALID_BEFORE_EXPIRED, why)
        if not said.is_signed(terms.place.chain_id, terms.token, presented.signature):
            raise PaymentRefused(ERR_INVALID_SIGNATURE, "the transfer is not signed by its payer's key")

    async def _fetch(
        self,
        presented: SignedTransfer,
        payment: Payment,
        asked: PaymentRequirements,
        key: AccountKey,
        order: bytes,
        transfer: Transfer,
        most: int,
    ) -> tuple[Tab, Moved]:
        """Have a transfer carried out, and the request admitted. Raises PaymentRefused, PaymentUsed, TabUsedUp."""
        moved = await self._bank.transfer(order, transfer, presented, payment.whole, asked)
        return await self._tabs.admit(key, most, order=order), moved


def order_of(chain_id: int, token: bytes, payer: bytes, nonce: bytes) -> bytes:
    """The order that a transfer pays for: it is named by what can be spent but once."""
    return hashlib.sha256(_ORDER + chain_id.to_bytes(32, "big") + token + payer + nonce).digest()
