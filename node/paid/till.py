"""The till: takes what a stranger presents, so that a request is paid for before any work, and says what it came to.

Theory of operation. A channel's voucher has to be for what the channel was charged so far and what the request may
cost, to the unit: so both sides always know the same, and a header that comes twice fits but once. A deposit that comes
with it is brought to the chain first, and counts when it is deep enough. A transfer's money is fetched only when the
balance of its payer does not cover the request; else the signature alone says who it is. Either way one durable entry
holds what was signed and the order that it pays for, and what money the chain moved is asked of the chain.
"""

from collections.abc import Callable
from typing import Any, Final

from x402.mechanisms.evm.batch_settlement import errors
from x402.schemas import PaymentRequirements

from ledger.account import AccountKey
from ledger.changes import Change
from ledger.events import AccountChanged, Observed
from ledger.exposure import is_proven
from ledger.rails.answers import seen
from ledger.rails.port import Rail, Sight
from ledger.rails.stablecoin.digests import NOBODY, ChannelConfig
from ledger.rails.stablecoin.errors import ChainError
from ledger.rails.stablecoin.vouchers import is_promised
from node.exchange.book import Book
from node.exchange.rates import Rates, Turns
from node.exchange.strangers import CHANNEL_RAIL, HeldVoucher, did_of_wallet, held
from node.exchange.tabs import TabBusy, Tabs, TabUsedUp
from node.paid.bank import Bank, Moved, unread
from node.paid.paid import Paid, channel_state, told
from node.paid.prepaying import Transfers
from node.paid.presented import Payment, SignedTransfer, Voucher
from node.paid.terms import PaymentRefused, Terms

# Looks at the chain in a second, after the first few: at one channel, at those that this node does not know yet and one
# address names, and at all of these, in turns. Whoever makes channels up keeps those away that share its address.
_LOOKS_PER_S: Final = 1.0
_LOOKS_AT_FIRST: Final = 20.0
_STRANGE_PER_S: Final = 10.0
_STRANGE_AT_FIRST: Final = 100.0
_PATIENCE_S: Final = 10.0  # how long one waits for its turn


class Till:
    """Takes payments by one node's terms."""

    def __init__(
        self,
        book: Book,
        tabs: Tabs,
        terms: Terms,
        bank: Bank,
        rail: Rail,
        is_a_nodes: Callable[[ChannelConfig], bool],
    ) -> None:
        """`rail` is that of channels; `is_a_nodes`: whether a channel stands behind an account with a node."""
        self._is_a_nodes = is_a_nodes
        self.terms: Final = terms
        self.transfers: Final = Transfers(book, tabs, terms, bank)
        self._book = book
        self._tabs = tabs
        self._bank = bank
        self._rail = rail
        self._looks = Rates(book.now, _LOOKS_PER_S, _LOOKS_AT_FIRST)
        self._strange = Turns(book.now, _STRANGE_PER_S, _STRANGE_AT_FIRST, _PATIENCE_S)

    async def take(self, payment: Payment, most: int, address: str) -> Paid:
        """Have a request paid for that came from an address and may cost `most`, in millionths of a dollar.

        Raises PaymentRefused.
        """
        asked = self.terms.chosen(payment, most)
        match payment.signed:
            case Voucher() as voucher:
                return await self._take_voucher(voucher, payment, asked, most, address)
            case SignedTransfer() as transfer:
                return await self.transfers.take(transfer, payment, asked, most)
        raise PaymentRefused(errors.ERR_REFUND_PAYLOAD, "a refund pays for no request: ask for it by GET")

    def is_proven(self, payment: Payment, most: int) -> bool:
        """Whether a payment is signed by who has paid for an answer before: as with orders, money that is only here can
        be had back.
        """
        try:
            asked = self.terms.chosen(payment, most)
            match payment.signed:
                case Voucher() as voucher:
                    key = self.check(voucher)
                case SignedTransfer() as transfer:
                    key = self.transfers.payer_of(transfer, asked)
                case _:
                    return False
        except PaymentRefused:
            return False
        return is_proven(self._tabs.account(key), ())

    # Channels

    async def _take_voucher(
        self, voucher: Voucher, payment: Payment, asked: PaymentRequirements, most: int, address: str
    ) -> Paid:
        key = self.check(voucher)
        self.take_turn(key)
        moved: Moved | None = None
        payer, network = voucher.config.payer, self.terms.place.network
        try:
            await self._meet(key, voucher, address)
            self.check_total(key, voucher, most)
            if voucher.deposit is not None:
                moved = await self._bring(voucher, payment, asked)
            await self._see(key, voucher)
            self._check_apart(voucher.config)  # by now the channel is in the book, for a node that names it to see
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
        self._check_apart(config)
        return self._tabs.key(did_of_wallet(terms.place.network, config.payer, voucher.channel), CHANNEL_RAIL)

    def _check_apart(self, config: ChannelConfig) -> None:
        """Money stands behind one account: the vouchers of two on one channel are paid once. Raises PaymentRefused."""
        if self._is_a_nodes(config):
            why = "this channel is a node's, and pays for its orders: open one with another salt"
            raise PaymentRefused(errors.ERR_CHANNEL_ID_MISMATCH, why)

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
        if voucher.deposit.amount < (least := self.terms.worth.deposits.least):
            why = f"a deposit is {least} units or more: it costs gas here"
            raise PaymentRefused(errors.ERR_DEPOSIT_BELOW_MIN_DEPOSIT, why)
        return await self._bank.deposit(voucher.config, voucher.deposit, payment.whole, asked)

    async def _meet(self, key: AccountKey, voucher: Voucher, address: str) -> None:
        """Go on where a channel stands that this node does not know any more. Raises PaymentRefused."""
        if self._book.strangers.voucher(key) is not None:
            return
        _count(self._looks, address)
        if not await self._strange.take(address):
            raise _often()
        claimed, holds = await self._bank.channel(voucher.config)
        # Each channel is looked at from now on: one for which nobody has to put much aside is not taken.
        least = voucher.total if claimed else max(voucher.total, self.terms.worth.deposits.least)
        if voucher.deposit is None and (not holds or least > holds):
            raise _lacking(holds)
        # Nothing is kept of a channel that may not exist.
        if claimed or voucher.deposit is None:
            await self._tabs.open_channel(key, claimed, _held(key, voucher))

    async def _see(self, key: AccountKey, voucher: Voucher) -> None:
        """Look at the chain where the tab does not bear the voucher yet. Raises PaymentRefused."""
        if voucher.total <= self._rail.capacity(self._tabs.account(key)):
            return
        if self._book.strangers.voucher(key) is None:
            await self._tabs.open_channel(key, 0, _held(key, voucher))
        sight = await self._sight(key)
        if sight is not None:
            account, tracked = self._tabs.account(key), self._book.journal.books.effects.get(key)
            changes: tuple[Change, ...] = seen(account, self._book.me, tracked, sight)
            if changes:
                await self._book.post(*(AccountChanged(key, change) for change in changes))
        if voucher.total > (bears := self._rail.capacity(self._tabs.account(key))):
            raise _lacking(bears)

    async def _sight(self, key: AccountKey) -> Sight | None:
        _count(self._looks, key.payer)
        try:
            return await self._rail.collateral(self._tabs.account(key))
        except ChainError as error:
            raise unread(error) from None


def _count(looks: Rates, whose: str) -> None:
    """Looking costs questions to somebody's endpoint. Raises PaymentRefused."""
    if looks.charge(whose) < 0:
        raise _often()


def _often() -> PaymentRefused:
    why = "channels were looked at often enough by now: try again in a few seconds"
    return PaymentRefused(errors.ERR_RPC_READ_FAILED, why)


def _held(key: AccountKey, voucher: Voucher) -> Observed:
    return held(key.payer, HeldVoucher(voucher.config.words(), voucher.total, voucher.signature))


def _lacking(holds: int) -> PaymentRefused:
    code = errors.ERR_CUMULATIVE_EXCEEDS_BALANCE if holds else errors.ERR_CHANNEL_NOT_FOUND
    return PaymentRefused(code, f"the channel holds {holds} by now, less than is needed: deposit more")
