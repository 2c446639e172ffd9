"""Payments as x402's own client makes them: authorizations by the wallet, vouchers by the node's key for them.

x402 signs in one step, and a wallet may be a program that asks its owner: what the wallet signs is made in a thread.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from attrs import frozen
from coincurve import PrivateKey
from x402.http.utils import encode_payment_signature_header
from x402.mechanisms.evm.batch_settlement import BATCH_SETTLEMENT_ADDRESS, ChannelConfig, VoucherPayload
from x402.mechanisms.evm.batch_settlement.client.eip3009 import create_batch_settlement_eip3009_deposit_payload
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.schemas import PaymentPayload

from ledger.identity import Identity
from ledger.rails.stablecoin import digests
from ledger.rails.stablecoin.channels import salt_of
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.typed import digest_of
from ledger.rails.stablecoin.vouchers import address_of, signed, voucher_key
from node.exchange.strangers import HeldVoucher
from node.gateway.paying.limits import Unreadable
from node.gateway.paying.payments import MAX_PAYMENT
from node.gateway.paying.terms import Coin, Terms

_DOMAIN: Final = (
    ("name", "string"),
    ("version", "string"),
    ("chainId", "uint256"),
    ("verifyingContract", "address"),
)
# The contract that x402's clients sign for.
CHANNELS: Final = bytes.fromhex(BATCH_SETTLEMENT_ADDRESS.removeprefix("0x"))
# The external signer's patience is its own; this ends a wait for a loop that has gone away.
_WALLET_S: Final = 900.0


class Wallet(Protocol):
    """What signs for the node's money, and sees the chain: `ledger.rails.stablecoin.chain.Chain`."""

    @property
    def address(self) -> bytes:
        """The wallet's, 20 bytes."""

    async def sign_typed(self, typed: Mapping[str, Any]) -> bytes:
        """The signature (65 bytes) of an EIP-712 message: domain, types, primaryType, message."""

    async def read(self, to: bytes, name: str, *values: Any, deep: bool = False) -> tuple[Any, ...]:
        """What a contract's function says, at the head or with enough confirmations."""


@frozen
class Authorization:
    """A signed transfer (EIP-3009) to somebody, or into a channel: of `value`, until `valid_before`."""

    nonce: bytes
    value: int
    valid_before: int


class Signing:
    """Makes payments for one node in its one coin."""

    def __init__(self, wallet: Wallet, identity: Identity, coin: Coin) -> None:
        self.coin: Final = coin
        self._wallet = wallet
        self._did = identity.did
        self._vouchers = _VoucherSigner(voucher_key(identity))

    @property
    def address(self) -> bytes:
        """The wallet's."""
        return self._wallet.address

    async def exact(self, terms: Terms) -> dict[str, Any]:
        """A transfer of all that one request is promised."""
        signer = _WalletSigner(self._wallet, asyncio.get_running_loop())
        return await asyncio.to_thread(ExactEvmScheme(signer).create_payment_payload, terms.requirements)

    def config(self, terms: Terms) -> ChannelConfig:
        """The one channel to who asks, by these terms."""
        return ChannelConfig(
            payer=checksummed(self._wallet.address),
            payer_authorizer=self._vouchers.address,
            receiver=checksummed(_raw(terms.pay_to)),
            receiver_authorizer=checksummed(_raw(terms.extra["receiverAuthorizer"])),
            token=checksummed(_raw(self.coin.address)),
            withdraw_delay=terms.extra["withdrawDelay"],
            salt="0x" + salt_of(self._did, terms.pay_to).hex(),
        )

    def channel_id(self, config: ChannelConfig) -> bytes:
        """Its id on this chain, in x402's contract."""
        return bytes.fromhex(compute_channel_id(config, self.coin.network).removeprefix("0x"))

    async def deposit(self, terms: Terms, config: ChannelConfig, amount: int, total: int) -> dict[str, Any]:
        """An authorization to fetch `amount` into the channel, and a voucher of this total."""
        signer = _WalletSigner(self._wallet, asyncio.get_running_loop())
        payload = await asyncio.to_thread(
            create_batch_settlement_eip3009_deposit_payload,
            signer,
            terms.requirements,
            config,
            amount,
            total,
            self._vouchers,
        )
        return payload.to_dict()

    def deposit_authorization(self, payload: Mapping[str, Any]) -> Authorization:
        """What a payload with a deposit authorizes."""
        signed = payload["deposit"]["authorization"]["erc3009Authorization"]
        nonce = build_erc3009_deposit_nonce(payload["voucher"]["channelId"], signed["salt"])
        return Authorization(
            bytes.fromhex(nonce.removeprefix("0x")), int(payload["deposit"]["amount"]), int(signed["validBefore"])
        )

    def voucher(self, config: ChannelConfig, total: int) -> dict[str, Any]:
        """A voucher of this total, alone."""
        payload = VoucherPayload()
        payload.channel_config = config
        channel = compute_channel_id(config, self.coin.network)
        payload.voucher = sign_voucher(self._vouchers, channel, total, self.coin.network)
        return payload.to_dict()

    def is_ours(self, config: ChannelConfig, total: int, signature: str) -> bool:
        """Whether this node has signed a voucher of this total. Its signatures follow from what is signed."""
        return str(self.voucher(config, total)["voucher"]["signature"]).lower() == signature.lower()

    async def is_used(self, authorization: Authorization, *, deep: bool = False) -> bool:
        """Whether its money has moved, as far as the chain tells now. Raises ChainError."""
        return await self.is_used_by(self._wallet.address, authorization.nonce, deep=deep)

    async def is_used_by(self, wallet: bytes, nonce: bytes, *, deep: bool) -> bool:
        """Whether a wallet's transfer with this nonce was made. Raises ChainError."""
        (used,) = await self._wallet.read(_raw(self.coin.address), "authorizationState", wallet, nonce, deep=deep)
        return bool(used)

    async def has(self) -> int:
        """How many units of its coin the wallet has. Raises ChainError."""
        (found,) = await self._wallet.read(_raw(self.coin.address), "balanceOf", self._wallet.address)
        return int(found)

    async def holds(self, channel: bytes) -> tuple[int, int]:
        """What was put into a channel and stays there, and what the seller has claimed of it. Raises ChainError."""
        balance, claimed = await self._wallet.read(CHANNELS, "channels", channel)
        leaving, _ = await self._wallet.read(CHANNELS, "pendingWithdrawals", channel)
        return int(balance) - min(int(leaving), int(balance) - int(claimed)), int(claimed)


def exact_authorization(payload: Mapping[str, Any]) -> Authorization:
    """What the payload of an `exact` payment authorizes."""
    signed = payload["authorization"]
    return Authorization(
        bytes.fromhex(signed["nonce"].removeprefix("0x")), int(signed["value"]), int(signed["validBefore"])
    )


def header_of(name: str, terms: Terms, payload: dict[str, Any]) -> str:
    """A payment to a remote as it is sent; it says again what was asked for. Raises Unreadable."""
    required = terms.required
    header = encode_payment_signature_header(
        PaymentPayload(
            payload=payload, accepted=terms.requirements, resource=required.resource, extensions=required.extensions
        )
    )
    if len(header) > MAX_PAYMENT:
        raise Unreadable(name)
    return header


def held_voucher(config: ChannelConfig, voucher: Mapping[str, Any]) -> HeldVoucher:
    """A voucher on a channel, as the journal keeps both."""
    ours = digests.ChannelConfig(
        _raw(config.payer),
        _raw(config.payer_authorizer),
        _raw(config.receiver),
        _raw(config.receiver_authorizer),
        _raw(config.token),
        config.withdraw_delay,
        _raw(config.salt),
    )
    return HeldVoucher(ours.words(), int(voucher["maxClaimableAmount"]), _raw(voucher["signature"]))


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


class _WalletSigner:
    """The wallet as x402 wants it: called in a thread, while the loop waits for the wallet."""

    def __init__(self, wallet: Wallet, loop: asyncio.AbstractEventLoop) -> None:
        self._wallet, self._loop = wallet, loop

    @property
    def address(self) -> str:
        return checksummed(self._wallet.address)

    def sign_typed_data(
        self, domain: Any, types: Mapping[str, Any], primary_type: str, message: dict[str, Any]
    ) -> bytes:
        signing = self._wallet.sign_typed(_typed(domain, types, primary_type, message))
        return asyncio.run_coroutine_threadsafe(_awaited(signing), self._loop).result(_WALLET_S)


class _VoucherSigner:
    """The node's key for vouchers, as x402 wants it."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self.address: Final = checksummed(address_of(key.public_key))

    def sign_typed_data(
        self, domain: Any, types: Mapping[str, Any], primary_type: str, message: dict[str, Any]
    ) -> bytes:
        return signed(self._key, digest_of(_typed(domain, types, primary_type, message)))


async def _awaited(signing: Any) -> bytes:
    return bytes(await signing)


def _typed(domain: Any, types: Mapping[str, Any], primary_type: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """An EIP-712 message as JSON has it, of x402's own classes."""
    plain = (
        domain
        if isinstance(domain, dict)
        else {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": domain.verifying_contract,
        }
    )
    return {
        "types": {"EIP712Domain": [{"name": name, "type": kind} for name, kind in _DOMAIN]}
        | {name: _fields(fields) for name, fields in types.items()},
        "primaryType": primary_type,
        "domain": plain,
        "message": {name: "0x" + value.hex() if isinstance(value, bytes) else value for name, value in message.items()},
    }


def _fields(fields: Sequence[Any]) -> list[dict[str, str]]:
    return [dict(field) if isinstance(field, dict) else {"name": field.name, "type": field.type} for field in fields]
