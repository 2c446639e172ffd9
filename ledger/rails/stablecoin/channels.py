"""Channels between two nodes: the seller's terms, the buyer's channel by them, and whose it is.

Theory of operation. A channel's config is fixed for good and its digest is its id. Its salt follows from the two dids,
so whoever has the keys finds its channel with a peer again on the chain. Its authorizer signs the payer's did: nobody
can pass another's deposit off as its own, and a wallet may serve several nodes.
"""

import hashlib

from attrs import define

from ledger.identity import Identity
from ledger.rails.stablecoin.digests import NOBODY, ChannelConfig, Place, config_of
from ledger.rails.stablecoin.vouchers import address_of, signed, signer_of, voucher_key
from ledger.records import Channel, ChannelTerms, Signed, sign


class ChannelRefused(Exception):
    """Terms or a channel that cannot be used; each subclass is one broken rule, with its values."""


@define
class WrongPlace(ChannelRefused):
    """It is on another chain, in another contract or in another token."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"the channel's {self.what} is {self.found}, and this node's is {self.expected}: both must use the same"


@define
class WrongTerms(ChannelRefused):
    """A field of the channel is not what the payee's terms ask for."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"the channel's {self.what} is {self.found}, and the terms ask for {self.expected}: fetch them again"


@define
class NotTheOwners(ChannelRefused):
    """The channel is not proved to be the signer's."""

    did: str

    def __str__(self) -> str:
        return f"the channel's key has not signed that it is {self.did}'s: nobody can pay from another's channel"


def salt_of(payer: str, payee: str) -> bytes:
    """The salt of the one channel from one did to another."""
    return hashlib.sha256(b"idlemesh channel" + payer.encode() + payee.encode()).digest()


def check_terms(terms: ChannelTerms, place: Place, token: bytes) -> None:
    """Whether the payer can open a channel by these terms. Raises WrongPlace, WrongTerms."""
    _check_place(terms, place, token)
    if NOBODY in (terms.receiver, terms.receiver_authorizer):
        raise WrongTerms("receiver", "an address", "0x" + NOBODY.hex())


def open_channel(identity: Identity, payee: str, terms: ChannelTerms, place: Place, wallet: bytes) -> Signed[Channel]:
    """The channel from this node to a payee by its terms (checked before), with the proof that it is this node's."""
    key = voucher_key(identity)
    config = ChannelConfig(
        wallet,
        address_of(key.public_key),
        terms.receiver,
        terms.receiver_authorizer,
        terms.token,
        terms.withdraw_delay,
        salt_of(identity.did, payee),
    )
    return sign(channel_of(identity, payee, place, config), identity)


def channel_of(identity: Identity, payee: str, place: Place, config: ChannelConfig) -> Channel:
    """What a node says of a channel of its own; also of one that it found again on the chain."""
    return Channel(
        identity.did,
        payee,
        place.network,
        place.contract,
        config.payer,
        config.payer_authorizer,
        config.receiver,
        config.receiver_authorizer,
        config.token,
        config.withdraw_delay,
        config.salt,
        signed(voucher_key(identity), place.owner(identity.did, place.channel_id(config))),
    )


def check_channel(channel: Signed[Channel], me: str, terms: ChannelTerms, place: Place) -> ChannelConfig:
    """The config of a stranger's channel to this payee, whose own terms these are.

    Raises NotTheOwners, WrongTerms, WrongPlace. What it holds is for the chain to say.
    """
    said = channel.record
    if channel.signer != said.payer:
        raise NotTheOwners(channel.signer)
    if said.payee != me:
        raise WrongTerms("payee", me, said.payee)
    _check_place(said, place, terms.token)
    for what in ("receiver", "receiver_authorizer"):
        if getattr(said, what) != getattr(terms, what):
            raise WrongTerms(what, _shown(getattr(terms, what)), _shown(getattr(said, what)))
    if said.withdraw_delay < terms.withdraw_delay:
        raise WrongTerms("withdraw_delay", f"{terms.withdraw_delay} or more", str(said.withdraw_delay))
    if said.salt != salt_of(said.payer, said.payee):
        raise WrongTerms("salt", "that of the two dids", said.salt.hex())
    config = config_of(said)
    if NOBODY in (config.payer, config.payer_authorizer) or config.payer == config.receiver:
        raise WrongTerms("wallet", "one of the payer's own", _shown(config.payer))
    if signer_of(place.owner(said.payer, place.channel_id(config)), said.proof) != config.payer_authorizer:
        raise NotTheOwners(said.payer)
    return config


def _check_place(said: ChannelTerms | Channel, place: Place, token: bytes) -> None:
    if said.network != place.network:
        raise WrongPlace("network", place.network, said.network)
    if said.contract != place.contract:
        raise WrongPlace("contract", _shown(place.contract), _shown(said.contract))
    if said.token != token:
        raise WrongPlace("token", _shown(token), _shown(said.token))


def _shown(address: bytes) -> str:
    return f"0x{address.hex()}"
