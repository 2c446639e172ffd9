"""What this node asks of a stranger before it works: x402's `PAYMENT-REQUIRED`, and the ways in which it says no."""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from attrs import define, field, frozen
from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, PAYMENT_SIGNATURE_HEADER
from x402.http.utils import encode_payment_required_header, encode_payment_response_header
from x402.mechanisms.evm.batch_settlement.constants import BATCH_SETTLEMENT_ADDRESS, SCHEME_BATCH_SETTLEMENT
from x402.mechanisms.evm.batch_settlement.errors import ERR_INVALID_PAYLOAD_TYPE
from x402.mechanisms.evm.constants import ERR_SETTLEMENT_PENDING, SCHEME_EXACT
from x402.schemas import PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse

from ledger.money import Amount
from ledger.rails.stablecoin.digests import Place
from ledger.rails.stablecoin.networks import Token, address, checksummed
from node.paid.presented import Payment
from node.paid.worth import Worth

Scheme = Literal["exact", "batch-settlement"]
# A wallet's signature is good for so long: enough for a deposit to become deep on any network. A transfer has only to
# be in a block by then; as anyone who sees it can bring it there, it is good for no longer than that takes.
TIMEOUT_S: Final = 300
TRANSFER_S: Final = 120
# The channels contract that x402's clients sign for; they know no other.
X402_CONTRACT: Final = address(BATCH_SETTLEMENT_ADDRESS)
PENDING: Final = ERR_SETTLEMENT_PENDING
UNREADABLE: Final = ERR_INVALID_PAYLOAD_TYPE
# What is paid in is too little for the gas that it takes.
BELOW_GAS: Final = "amount_below_gas"
PAYMENT_SIGNATURE: Final = PAYMENT_SIGNATURE_HEADER
_DIGITS: Final = re.compile(r"[0-9]{1,15}")


@define
class PaymentRefused(Exception):
    """A payment that is not taken. `code` is x402's word for it; `state` is what a channel's payer has to know to sign
    again, and `settled` what has moved all the same.
    """

    code: str
    why: str
    state: dict[str, Any] | None = field(default=None)
    settled: SettleResponse | None = field(default=None)

    def __str__(self) -> str:
        return self.why

    def response(self, network: str) -> SettleResponse:
        """The same as x402's `PAYMENT-RESPONSE`."""
        return SettleResponse(
            success=False, error_reason=self.code, error_message=self.why, transaction="", network=network
        )


@frozen
class Terms:
    """The node's side of what is paid: amounts in millionths of a dollar, which are units of the token.

    `worth` says how much is paid in at once, since that costs gas: by a transfer, or into a channel.
    """

    place: Place
    token: Token
    wallet: bytes
    withdraw_delay: int
    schemes: Sequence[Scheme]
    worth: Worth

    def accepts(self, most: int, state: dict[str, Any] | None = None) -> list[PaymentRequirements]:
        """The ways to pay for a request that may cost `most`; `state` of the channel that is to sign again.

        Without transfers while gas is too dear for them.
        """
        made: list[PaymentRequirements] = []
        # Channels first: most clients take the first that they can, and a transfer for each request costs gas.
        if SCHEME_BATCH_SETTLEMENT in self.schemes:
            made.append(self._channel(most, self.worth.deposits.offer(), state or {}))
        if SCHEME_EXACT in self.schemes and (least := self.worth.transfers.offer()) is not None:
            made.append(self._requirement(SCHEME_EXACT, max(most, least), {}))
        return made

    @property
    def too_dear(self) -> str | None:
        """Why there are no transfers among the ways to pay, where the owner wants them."""
        if SCHEME_EXACT not in self.schemes or self.worth.transfers.amount is not None:
            return None
        needed, most = Amount(self.worth.transfers.needed, "uusd"), Amount(self.worth.transfers.most, "uusd")
        return f"gas is so dear now that a transfer would have to be of {needed} or more, and {most} is the most here"

    def _channel(self, most: int, deposit: int | None, state: dict[str, Any]) -> PaymentRequirements:
        extra = {
            "receiverAuthorizer": checksummed(self.wallet),
            "withdrawDelay": self.withdraw_delay,
            "minDeposit": str(max(deposit or 0, most)),
        }
        return self._requirement(SCHEME_BATCH_SETTLEMENT, most, extra | state)

    def _requirement(self, scheme: str, amount: int, extra: dict[str, Any]) -> PaymentRequirements:
        domain = {"name": self.token.name, "version": self.token.version, "assetTransferMethod": "eip3009"}
        return PaymentRequirements(
            scheme=scheme,
            network=self.place.network,
            asset=checksummed(self.token.address),
            amount=str(amount),
            pay_to=checksummed(self.wallet),
            max_timeout_seconds=TRANSFER_S if scheme == SCHEME_EXACT else TIMEOUT_S,
            extra=domain | extra,
        )

    def signature(self) -> PaymentRequirements:
        """What is asked of a wallet that is to say who it is: a transfer of the least amount, which is never made."""
        return self._requirement(SCHEME_EXACT, 1, {})

    def chosen(self, payment: Payment, most: int) -> PaymentRequirements:
        """The requirement that a payment says it is for. Raises PaymentRefused.

        Of a transfer any amount between the owner's bounds will do: what is asked for follows the price of gas, of
        which none is spent where a balance pays.
        """
        asked: list[PaymentRequirements] = []
        if SCHEME_BATCH_SETTLEMENT in self.schemes:
            asked.append(self._channel(most, self.worth.deposits.amount, {}))
        if SCHEME_EXACT in self.schemes:
            least, said = max(most, self.worth.transfers.least), payment.accepted.amount
            amount = int(said) if _DIGITS.fullmatch(said) else 0
            if least <= amount <= max(most, self.worth.transfers.most):
                asked.append(self._requirement(SCHEME_EXACT, amount, {}))
        return matching(payment, asked)

    def is_signed_for(self, payment: Payment) -> PaymentRequirements:
        """The same, of a payment that only says who signs. Raises PaymentRefused."""
        return matching(payment, [self.signature()])


def matching(payment: Payment, accepts: Sequence[PaymentRequirements]) -> PaymentRequirements:
    """The one of these requirements that a payment is for. Raises PaymentRefused."""
    said = payment.accepted
    for asked in accepts:
        same = (said.scheme, said.network, said.amount) == (asked.scheme, asked.network, asked.amount)
        if same and (said.asset.lower(), said.pay_to.lower()) == (asked.asset.lower(), asked.pay_to.lower()):
            return asked
    raise PaymentRefused("no_matching_requirements", "the payment is for another price, network or wallet")


Asked = Sequence[PaymentRequirements]
Settled = SettleResponse


def required(
    accepts: Sequence[PaymentRequirements], url: str, refused: PaymentRefused | None = None, **extensions: Any
) -> PaymentRequired:
    """The answer to a request without a payment, or with one that is `refused`."""
    return PaymentRequired(
        error=refused.code if refused else f"{PAYMENT_SIGNATURE} header is required",
        resource=ResourceInfo(url=url, description="Answers of a language model", mime_type="application/json"),
        accepts=list(accepts),
        extensions=extensions or None,
    )


def header_of(said: PaymentRequired | SettleResponse) -> dict[str, str]:
    """The header that says it."""
    if isinstance(said, PaymentRequired):
        return {PAYMENT_REQUIRED_HEADER: encode_payment_required_header(said)}
    return {PAYMENT_RESPONSE_HEADER: encode_payment_response_header(said)}
