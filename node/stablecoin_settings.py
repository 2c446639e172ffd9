"""The settings of money on a chain: `[stablecoin]`, which pays and is paid by channels, and `[paid]`, x402's door."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from ledger.money import MILLION, Amount
from ledger.rails.policy import Policy
from node.settings import AmountText, PriceText, Section, Share

# Endpoints are asked in turn, and some of them twice: more would only be slower.
_MAX_ENDPOINTS: Final = 8
# They may hold an access key, so they are longer than a peer's address.
_MAX_ENDPOINT: Final = 512
# What the channels contract takes: from 15 minutes to 30 days.
_LEAST_DELAY_S: Final = 15 * 60
_LONGEST_DELAY_S: Final = 30 * 86_400
DEFAULT_PAID_PORT: Final = 8402


def _without_slips(text: str) -> str:
    """An address whose checksum fits, if it is written in mixed case."""
    from ledger.rails.stablecoin.networks import typed_address  # what is imported with it, most nodes do without

    typed_address(text)
    return text


AddressText = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$"), AfterValidator(_without_slips)]
Bytes32Text = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{64}$")]
_Folder = Annotated[Path, AfterValidator(Path.expanduser)]


def _endpoint(url: SecretStr) -> SecretStr:
    """An endpoint's address; it may hold a key, so no message repeats it."""
    text = url.get_secret_value()
    there = urlsplit(text)
    if there.scheme not in ("http", "https") or not there.hostname or len(text) > _MAX_ENDPOINT:
        raise ValueError("write the address of an Ethereum JSON-RPC endpoint, as https://mainnet.base.org")
    return url


def _in_dollars(amount: Amount) -> Amount:
    if amount.unit != "uusd":
        raise ValueError(f"{amount} is no dollar amount: this rail counts in usd, as in 0.05usd")
    return amount


DollarText = Annotated[AmountText, AfterValidator(_in_dollars)]


class StablecoinSettings(Section):
    """Payment channels on one network. Without this section the node has no money on a chain.

    Keys are in an encrypted keystore file, or behind a `signer` command. Times are seconds, the gas price is in gwei.
    """

    network: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}(:[a-zA-Z0-9-]{1,32})?$")] = (
        "eip155:8453"  # CAIP-2, or a name
    )
    rpc: Annotated[tuple[Annotated[SecretStr, AfterValidator(_endpoint)], ...], Field(max_length=_MAX_ENDPOINTS)] = ()
    contract: AddressText | None = None  # of the channels; None: the network's
    collector: AddressText | None = None  # that fetches signed deposits for it; None: the one that is known
    approve_collector: AddressText | None = None  # that fetches approved ones; None: the one that is known, or none
    bonds: AddressText | None = None  # the contract of bonds; None: no bonds are locked, named or counted
    keystore: _Folder | None = None  # None: wallet.json in the home folder
    passphrase_file: _Folder | None = None
    signer: Annotated[tuple[str, ...], Field(min_length=1, max_length=32)] | None = None
    ether: DollarText = Amount(3_000 * MILLION, "uusd")  # what one costs: fees are weighed against sums by it
    max_gas_price: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None  # None: the network's
    max_fee_share: Share = 0.02  # of a sum that is claimed
    claim_at: DollarText = Amount(MILLION, "uusd")
    claim_after: Annotated[float, Field(ge=0, le=365 * 86_400, allow_inf_nan=False)] = 86_400.0
    confirmations: Annotated[int, Field(ge=0, le=10_000)] | None = None  # None: the network's
    withdraw_delay: Annotated[int, Field(ge=_LEAST_DELAY_S, le=_LONGEST_DELAY_S)] = 86_400
    min_deposit: DollarText = Amount(MILLION, "uusd")  # less than this is not relayed for a buyer
    deposit: DollarText = Amount(0, "uusd")  # into a new seller's channel, by itself; 0: by `wallet deposit` alone
    top_up_below: DollarText = Amount(0, "uusd")  # then as much as `deposit` is free again; 0: never by itself

    @model_validator(mode="after")
    def _what_fits_together(self) -> Self:
        if self.contract is None and (self.collector or self.approve_collector):
            raise ValueError("a collector belongs to one channels contract: write that as contract, or neither")
        if self.signer is not None and (self.keystore is not None or self.passphrase_file is not None):
            raise ValueError("the keys are behind the signer or in the keystore: name one of the two")
        if self.top_up_below.value and self.top_up_below.value > self.deposit.value:
            raise ValueError("top_up_below is above deposit, so that a top-up would not reach it: raise deposit")
        return self

    def policy(self) -> Policy:
        """When money moves by itself on this rail."""
        return Policy(
            move_at=self.claim_at.value,
            move_after_s=self.claim_after,
            top_up_below=self.top_up_below.value,
            top_up_to=self.deposit.value,
            max_fee_ppm=round(self.max_fee_share * MILLION),
        )


Scheme = Literal["exact", "batch-settlement"]


class PaidSettings(Section):
    """A door for anyone who pays by x402, on an address of its own. Without this section there is none."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PAID_PORT
    price: PriceText | None = None  # None: [sell]'s
    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)] = ("exact", "batch-settlement")
    prepaid: DollarText = Amount(100_000, "uusd")  # the least of a transfer: gas; the rest stays the payer's
    max_prepaid: DollarText | None = None  # that least at most, while gas is dear; None: a dollar, or prepaid
    facilitator: Annotated[SecretStr, AfterValidator(_endpoint)] | None = None  # None: the node itself

    @model_validator(mode="after")
    def _what_fits_together(self) -> Self:
        if self.most_prepaid < self.prepaid.value:
            raise ValueError("max_prepaid is below prepaid, so that no transfer would be asked for: raise it")
        return self

    @property
    def most_prepaid(self) -> int:
        """What is asked for in advance at most, in millionths of a dollar."""
        return max(MILLION, self.prepaid.value) if self.max_prepaid is None else self.max_prepaid.value
