"""The till: takes what a stranger presents, so that a request is paid for before any work, and says what it came to.

Theory of operation. A channel's voucher has to be for what the channel was charged so far and what the request may
cost, to the unit: so both sides always know the same, and a header that comes twice fits but once. A deposit that comes
with it is brought to the chain first, and counts when it is deep enough. A transfer's money is fetched only when the
balance of its payer does not cover the request; else the signature alone says who it is. Either way one durable entry
holds what was signed and the order that it pays for, and what money the chain moved is asked of the chain.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from attrs import define
from x402.mechanisms.evm.batch_settlement import errors
from x402.mechanisms.evm.constants import (
    ERR_INVALID_SIGNATURE,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_SETTLEMENT_PENDING,
    ERR_TRANSACTION_FAILED,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.schemas import PaymentRequirements, SettleResponse

from ledger.account import Account, AccountKey
from ledger.changes import Change
from ledger.events import AccountChanged, Observed
from ledger.rails.answers import seen
from ledger.rails.port import Sight
from ledger.rails.stablecoin.digests import NOBODY
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.vouchers import is_promised
from node.exchange.book import Book
from node.exchange.strangers import CHANNEL_RAIL, PREPAID_RAIL, HeldVoucher, Transfer, did_of_wallet, held
from node.exchange.tabs import PaymentUsed, Tab, TabBusy, Tabs, TabUsedUp
from node.paid.bank import Bank, Moved
from node.paid.presented import Payment, SignedTransfer, Voucher
from node.paid.terms import TIMEOUT_S, PaymentRefused, Terms

_ORDER: Final = b"idlemesh order of a transfer\x00"
Look = Callable[[Account], Awaitable[Sight | None]]


@define
class Paid:
    """A request that is paid for: `tab` holds what it may cost; `moved` is what the chain moved for it, if anything."""

    tab: Tab
    payer: bytes
    network: str
    moved: Moved | None

    def response(self) -> SettleResponse:
        """x402's `PAYMENT-RESPONSE`: without a charge until that is known."""
        said = told(self.tab.account, self.payer, self.network, self.moved)
        if self.tab.charged is not None:
            said.extra = {**(said.extra or {}), "chargedAmount": str(self.tab.charged)}
        return said


def told(account: Account, payer: bytes, network: str, moved: Moved | None) -> SettleResponse:
    """What a payer is told of what the chain moved for it, and of its account."""
    in_channel = account.key.rail == CHANNEL_RAIL
    return SettleResponse(
        success=True,
        payer=checksummed(payer),
        transaction="0x" + moved.transaction.hex() if moved and moved.transaction else "",
        network=network,
        amount=str(moved.amount if moved else 0),
        extra={"channelState": channel_state(account)} if in_channel else {"balance": str(account.available)},
    )


def channel_state(account: Account) -> dict[str, Any]:
    """What x402's clients are told of a channel."""
    channel = account.key.payer.partition("#")[2]
    return {
        "channelId": channel,
        "balance": str(account.capacity),
        "totalClaimed": str(account.settled),
        "chargedCumulativeAmount": str(account.owed),
    }


class Till:
    """Takes payments by one node's terms."""

    def __init__(self, book: Book, tabs: Tabs, terms: Terms, bank: Bank, look: Look) -> None:
        """`look` is the rail's sight of an account's collateral."""
        self.terms: Final = terms
        self._book = book
        self._tabs = tabs
        self._bank = bank
        self._look = look

    async def take(self, payment: Payment, most: int) -> Paid:
        """Have a request paid for that may cost `most`, in millionths of a dollar. Raises PaymentRefused."""
        asked = self.terms.chosen(payment, most)
        match payment.signed:
            case Voucher() as voucher:
                return await self._take_voucher(voucher, payment, asked, most)
            case SignedTransfer() as transfer:
                return await self._take_transfer(transfer, payment, asked, most)
        raise PaymentRefused(errors.ERR_REFUND_PAYLOAD, "a refund pays for no request: ask for it by GET")

    # Channels

    async def _take_voucher(self, voucher: Voucher, payment: Payment, asked: PaymentRequirements, most: int) -> Paid:
        key = self.check(voucher)
        self.take_turn(key)
        moved: Moved | None = None
        payer, network = voucher.config.payer, self.terms.place.network
        try:
            await self._meet(key, voucher)
            self.check_total(key, voucher, most)
            if voucher.deposit is not None:
                moved = await self._bring(voucher, payment, asked)
            await self._see(key, voucher)
            return Paid(await self._tabs.admit(key, most, _held(key, voucher)), payer, network, moved)
        except TabUsedUp as error:
            self._tabs.give_back(key)
            raise PaymentRefused(errors.ERR_CUMULATIVE_EXCEEDS_BALANCE, str(error)) from None
        except PaymentRefused as refused:
            self._tabs.give_back(key)
            refused.settled = told(self._tabs.account(key), payer, network, moved) if moved else None
            raise
        except BaseException:
            self._tabs.give_back(key)
            raise

    def check(self, voucher: Voucher) -> AccountKey:
        """Whose tab a voucher is for, once it is by the terms and its channel's key has signed it.

        Raises PaymentRefused.
        """
        terms, config = self.terms, voucher.config
        rules = (
            (voucher.channel == terms.place.channel_id(config), errors.ERR_CHANNEL_ID_MISMATCH),
            (config.receiver == terms.wallet, errors.ERR_RECEIVER_MISMATCH),
            (config.receiver_authorizer == terms.wallet, errors.ERR_RECEIVER_AUTHORIZER_MISMATCH),
            (config.token == terms.token.address, errors.ERR_TOKEN_MISMATCH),
            (config.withdraw_delay == terms.withdraw_delay, errors.ERR_WITHDRAW_DELAY_MISMATCH),
            (config.payer not in (NOBODY, terms.wallet), errors.ERR_INVALID_PAYLOAD_TYPE),
        )
        for fits, code in rules:
            if not fits:
                raise PaymentRefused(code, "the channel is not by the terms of this node: open one as accepts says")
        if not is_promised(terms.place, config, voucher.channel, voucher.total, voucher.signature):
            why = "the voucher is not signed by the channel's payerAuthorizer (a key; contracts are not taken)"
            raise PaymentRefused(errors.ERR_INVALID_VOUCHER_SIGNATURE, why)
        return self._tabs.key(did_of_wallet(terms.place.network, config.payer, voucher.channel), CHANNEL_RAIL)

    def take_turn(self, key: AccountKey) -> None:
        """Take a channel's turn. Raises PaymentRefused."""
        try:
            self._tabs.take_turn(key)
        except TabBusy as error:
            raise PaymentRefused(errors.ERR_CHANNEL_BUSY, str(error)) from None

    def check_total(self, key: AccountKey, voucher: Voucher, more: int) -> None:
        account = self._tabs.account(key)
        if voucher.total != account.owed + more:
            why = f"the voucher is for {voucher.total}: what was charged so far and this request make"
            raise PaymentRefused(
                errors.ERR_CUMULATIVE_AMOUNT_MISMATCH,
                f"{why} {account.owed + more}",
                state=self.state(key),
            )

    def state(self, key: AccountKey) -> dict[str, Any]:
        """What a channel's payer needs to sign again, where it and this node have come to differ."""
        said: dict[str, Any] = {"channelState": channel_state(self._tabs.account(key))}
        last = self._book.strangers.voucher(key)
        if last is not None:
            signature = "0x" + last.signature.hex()
            said["voucherState"] = {"signedMaxClaimable": str(last.total), "signature": signature}
        return said

    async def _bring(self, voucher: Voucher, payment: Payment, asked: PaymentRequirements) -> Moved:
        """Bring the deposit to the chain, and wait until it is deep. Raises PaymentRefused."""
        assert voucher.deposit is not None
        if voucher.deposit.amount < self.terms.least_deposit:
            why = f"a deposit is {self.terms.least_deposit} units or more: it costs gas here"
            raise PaymentRefused(errors.ERR_DEPOSIT_BELOW_MIN_DEPOSIT, why)
        return await self._bank.deposit(voucher.config, voucher.deposit, payment.whole, asked)

    async def _meet(self, key: AccountKey, voucher: Voucher) -> None:
        """Go on where a channel stands that this node does not know any more. Raises PaymentRefused."""
        if self._book.strangers.voucher(key) is not None:
            return
        claimed, holds = await self._bank.channel(voucher.config)
        if voucher.total > holds and voucher.deposit is None:
            raise _lacking(holds)
        # Nothing is kept of a channel that may not exist.
        if claimed or voucher.deposit is None:
            await self._tabs.open_channel(key, claimed, _held(key, voucher))

    async def _see(self, key: AccountKey, voucher: Voucher) -> None:
        """Look at the chain where the tab does not bear the voucher yet. Raises PaymentRefused."""
        if voucher.total <= self._tabs.account(key).capacity:
            return
        if self._book.strangers.voucher(key) is None:
            await self._tabs.open_channel(key, 0, _held(key, voucher))
        sight = await self._look(self._tabs.account(key))
        if sight is not None:
            account, tracked = self._tabs.account(key), self._book.journal.books.effects.get(key)
            changes: tuple[Change, ...] = seen(account, self._book.me, tracked, sight)
            await self._book.post(*(AccountChanged(key, change) for change in changes))
        if voucher.total > self._tabs.account(key).capacity:
            raise _lacking(self._tabs.account(key).capacity)

    # Transfers

    async def _take_transfer(
        self, shown: SignedTransfer, payment: Payment, asked: PaymentRequirements, most: int
    ) -> Paid:
        terms, said = self.terms, shown.authorization
        key = self._tabs.key(did_of_wallet(terms.place.network, said.payer), PREPAID_RAIL)
        order = self._check_transfer(shown, asked, key)
        try:
            if self._tabs.account(key).available >= most:
                tab, moved = await self._tabs.admit(key, most, order=order), None
            else:
                tab, moved = await self._fetch(shown, payment, asked, key, order, most)
        except PaymentUsed as error:
            raise PaymentRefused(ERR_NONCE_ALREADY_USED, str(error)) from None
        except TabUsedUp as error:
            raise PaymentRefused(ERR_SETTLEMENT_PENDING, str(error)) from None
        return Paid(tab, said.payer, terms.place.network, moved)

    def _check_transfer(self, shown: SignedTransfer, asked: PaymentRequirements, key: AccountKey) -> bytes:
        """The order that a transfer names, if it is what was asked for and signed. Raises PaymentRefused."""
        terms, said = self.terms, shown.authorization
        self.check_transfer(shown, asked)
        order = order_of(terms.place.chain_id, terms.token.address, said.payer, said.nonce)
        if order in self._tabs.account(key).orders or order in self._book.strangers.transfers:
            raise PaymentRefused(ERR_NONCE_ALREADY_USED, str(PaymentUsed()))
        return order

    def check_transfer(self, shown: SignedTransfer, asked: PaymentRequirements) -> None:
        """Whether a transfer is what was asked for, valid now, and signed by its payer. Raises PaymentRefused."""
        terms, said, now = self.terms, shown.authorization, self._book.now()
        if said.receiver != terms.wallet or said.payer in (NOBODY, terms.wallet):
            raise PaymentRefused(ERR_RECIPIENT_MISMATCH, "the transfer is not to this node's wallet")
        if said.value != int(asked.amount):
            raise PaymentRefused("invalid_exact_evm_payload_authorization_value", f"{asked.amount} is asked for")
        # Payments are remembered for longer than they are good, so none comes twice.
        if not now < said.valid_before <= now + 2 * TIMEOUT_S or said.valid_after > now:
            why = f"the transfer has to be valid now, and for {2 * TIMEOUT_S} seconds at most"
            raise PaymentRefused(ERR_VALID_BEFORE_EXPIRED, why)
        if not said.is_signed(terms.place.chain_id, terms.token, shown.signature):
            raise PaymentRefused(ERR_INVALID_SIGNATURE, "the transfer is not signed by its payer's key")

    async def _fetch(
        self,
        shown: SignedTransfer,
        payment: Payment,
        asked: PaymentRequirements,
        key: AccountKey,
        order: bytes,
        most: int,
    ) -> tuple[Tab, Moved]:
        """Have a transfer carried out, and the request admitted. Raises PaymentRefused, PaymentUsed, TabUsedUp."""
        said = shown.authorization
        transfer = Transfer(key.payer, said.nonce, said.value, said.valid_before)
        moved = await self._bank.transfer(order, transfer, shown, payment.whole, asked)
        if moved is None:
            raise PaymentRefused(ERR_TRANSACTION_FAILED, "the transfer was not carried out: nothing was charged")
        return await self._tabs.admit(key, most, order=order), moved


def _held(key: AccountKey, voucher: Voucher) -> Observed:
    return held(key.payer, HeldVoucher(voucher.config.words(), voucher.total, voucher.signature))


def _lacking(holds: int) -> PaymentRefused:
    code = errors.ERR_CUMULATIVE_EXCEEDS_BALANCE if holds else errors.ERR_CHANNEL_NOT_FOUND
    return PaymentRefused(code, f"the channel holds {holds} by now, less than the voucher is for: deposit more")


def order_of(chain_id: int, token: bytes, payer: bytes, nonce: bytes) -> bytes:
    """The order that a transfer pays for: it is named by what can be spent but once."""
    return hashlib.sha256(_ORDER + chain_id.to_bytes(32, "big") + token + payer + nonce).digest()
