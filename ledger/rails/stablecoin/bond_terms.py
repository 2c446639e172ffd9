"""Bonds as the contract `Bonds` knows them: terms, the id that follows from them, and what of a stake counts.

A bond's id is the EIP-712 digest of its terms, for one contract on one chain, so terms that somebody names prove
themselves. The salt follows from the seller's did: whoever locks a bond says by that for which node it does.
Addresses are 20 bytes, amounts in the token's units, periods and times in seconds.
"""

import hashlib
from collections.abc import Iterable, Set
from typing import Final

from attrs import define, frozen

from ledger.money import MAX_AMOUNT
from ledger.rails.stablecoin.digests import NOBODY, domain, keccak
from ledger.records import ADDRESS_BYTES, MAX_ARBITERS, Bond

MIN_NOTICE_S: Final = 86_400
MAX_PERIOD_S: Final = 90 * 86_400

_TERMS: Final = keccak(
    b"BondTerms(address seller,address token,address sink,uint40 noticePeriod,uint40 challengePeriod,uint8 quorum,"
    b"address[] arbiters,bytes32 salt)"
)


@define
class BondRefused(Exception):
    """Terms that the contract would refuse, or a bond that counts for nothing here; the message says what to do."""

    why: str

    def __str__(self) -> str:
        return self.why


@frozen
class BondTerms:
    """What a bond is; nothing of it ever changes. `sink` gets of a slash what exceeds the damage (zeros: burned)."""

    seller: bytes
    token: bytes
    sink: bytes
    notice: int
    challenge: int
    quorum: int
    arbiters: tuple[bytes, ...]
    salt: bytes


@frozen
class Stake:
    """A bond's money: all that is locked, what slashes hold, what the seller asked back, and when it may take that."""

    locked: int = 0
    reserved: int = 0
    unlocking: int = 0
    unlocks_at: int = 0

    @property
    def free(self) -> int:
        """What can still be lost for another piece of evidence, and will not leave before one more notice."""
        return max(self.locked - self.reserved - self.unlocking, 0)


@frozen
class BondPlace:
    """One contract of bonds on one chain."""

    chain_id: int
    contract: bytes

    @property
    def network(self) -> str:
        """The chain as CAIP-2 names it."""
        return f"eip155:{self.chain_id}"

    def bond_id(self, terms: BondTerms) -> bytes:
        """The bond's id, which binds chain, contract and terms."""
        words = (
            terms.seller.rjust(32, b"\0"),
            terms.token.rjust(32, b"\0"),
            terms.sink.rjust(32, b"\0"),
            *(number.to_bytes(32, "big") for number in (terms.notice, terms.challenge, terms.quorum)),
            keccak(b"".join(arbiter.rjust(32, b"\0") for arbiter in terms.arbiters)),
            terms.salt,
        )
        separator = domain("idlemesh Bonds", "1", self.chain_id, self.contract)
        return keccak(b"\x19\x01" + separator + keccak(_TERMS + b"".join(words)))


def salt_of(did: str, serial: int) -> bytes:
    """The salt of a node's bond; `serial` tells its bonds apart."""
    return hashlib.sha256(b"idlemesh bond" + did.encode() + serial.to_bytes(8, "big")).digest()


def terms_of(bond: Bond, did: str) -> BondTerms:
    """The terms of the bond that a seller names in its offer; of one that was locked for another did, no bond's."""
    return BondTerms(
        bond.owner,
        bond.token,
        bond.sink,
        bond.notice,
        bond.challenge,
        bond.quorum,
        bond.arbiters,
        salt_of(did, bond.serial),
    )


def named(terms: BondTerms, place: BondPlace, serial: int, amount: int) -> Bond:
    """How an offer names a bond. Raises ValueError for numbers that no record holds."""
    return Bond(
        place.network,
        place.contract,
        terms.seller,
        terms.token,
        terms.sink,
        terms.notice,
        terms.challenge,
        terms.quorum,
        terms.arbiters,
        serial,
        min(amount, MAX_AMOUNT),
    )


def check_terms(terms: BondTerms) -> None:
    """Whether the contract would take them. Raises BondRefused."""
    arbiters = terms.arbiters
    if not 1 <= len(arbiters) <= MAX_ARBITERS or any(len(one) != ADDRESS_BYTES or one == NOBODY for one in arbiters):
        raise BondRefused(f"a bond names from 1 to {MAX_ARBITERS} arbiters, each by its address")
    if list(arbiters) != sorted(set(arbiters)):
        raise BondRefused("an arbiter is named twice, or they are not in ascending order")
    if terms.seller in (terms.sink, *arbiters):
        raise BondRefused("the seller cannot judge or be paid by its own bond: name other addresses")
    if not len(arbiters) < 2 * terms.quorum <= 2 * len(arbiters):
        least, most = len(arbiters) // 2 + 1, len(arbiters)
        raise BondRefused(f"a quorum of {terms.quorum} of {most}: more than half must agree, from {least} to {most}")
    if not MIN_NOTICE_S <= terms.notice <= MAX_PERIOD_S:
        raise BondRefused("the notice lies between 1 and 90 days")
    if not terms.notice <= terms.challenge <= MAX_PERIOD_S:
        raise BondRefused("the time for an answer to a slash lies between the notice and 90 days")


@frozen
class KnownBonds:
    """What a buyer takes bonds to be: one contract of bonds, the token, and the arbiters that it trusts itself."""

    place: BondPlace
    token: bytes
    arbiters: Set[bytes]

    def check(self, bond: Bond, did: str) -> BondTerms:
        """The terms of a bond that a seller names, if it can count for this buyer. Raises BondRefused."""
        if (bond.network, bond.contract) != (self.place.network, self.place.contract):
            raise BondRefused(
                f"it is in another contract of bonds (0x{bond.contract.hex()} on {bond.network}) than this node knows"
            )
        if bond.token != self.token:
            raise BondRefused(f"it is in another token (0x{bond.token.hex()}) than the dollar known here")
        terms = terms_of(bond, did)
        check_terms(terms)
        # The seller may be behind any other address, and would lose no more than the damage.
        if terms.sink != NOBODY and terms.sink not in self.arbiters:
            raise BondRefused(
                f"what exceeds the damage goes to 0x{terms.sink.hex()}, who may be the seller: it counts where that is "
                "burned, or goes to an arbiter in [buy] arbiters"
            )
        trusted = trusted_of(terms.arbiters, self.arbiters)
        if trusted < terms.quorum:
            raise BondRefused(
                f"of its {len(terms.arbiters)} arbiters {trusted} are trusted here, and {terms.quorum} must agree: "
                "name those that you trust in [buy] arbiters"
            )
        return terms

    @staticmethod
    def counted(bond: Bond, stakes: Iterable[Stake]) -> int:
        """What of it counts: the least that was seen, and no more than its seller says."""
        return min([bond.amount, *(stake.free for stake in stakes)])


def trusted_of(arbiters: Iterable[bytes], trusted: Set[bytes]) -> int:
    """How many of a bond's arbiters the buyer trusts. A quorum is a majority: with one, the others have none."""
    return sum(1 for one in arbiters if one in trusted)
