"""What arbiters sign about a bond, in a form that travels by hand: offline, one signature after another.

A statement carries the bond's whole terms, so that its id, and what is signed (EIP-712, for one contract on one chain),
follow from the statement itself. Addresses are 20 bytes, digests 32, amounts units of the token, times seconds since
1970. Signatures are by keys; arbiters that are contracts sign for the contract of bonds alone, and not here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, cast

from attrs import evolve, field, frozen

from ledger.rails.stablecoin.bond_terms import BondPlace, BondRefused, BondTerms, check_terms
from ledger.rails.stablecoin.digests import MAX_UINT128, NOBODY, domain, keccak
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.typed import domain_of, message
from ledger.rails.stablecoin.vouchers import signer_of
from ledger.records import MAX_ARBITERS

Word: TypeAlias = Literal["slash", "uphold", "dismiss"]
_TYPES: Final[Mapping[Word, str]] = {
    "slash": "Slash(bytes32 bondId,bytes32 evidence,address buyer,uint128 damage,uint128 amount,uint40 deadline)",
    "uphold": "Uphold(bytes32 bondId,bytes32 evidence,bytes32 answer)",
    "dismiss": "Dismiss(bytes32 bondId,bytes32 evidence)",
}
_NETWORK: Final = re.compile(r"eip155:([1-9][0-9]{0,17})")


class BadStatement(BondRefused):
    """A statement that cannot be used; the message says which part."""


@frozen
class Judgement:
    """What a slash takes: of `amount`, the buyer gets its `damage`; it can be proposed until `deadline`."""

    buyer: bytes
    damage: int
    amount: int
    deadline: int


@frozen
class Statement:
    """Arbiters' word about a piece of evidence against a bond.

    `judgement` is of a slash, `answer` (the seller's) of an uphold; `signatures` by the arbiters' addresses.
    """

    place: BondPlace
    terms: BondTerms
    says: Word
    evidence: bytes
    judgement: Judgement | None = None
    answer: bytes | None = None
    signatures: Mapping[bytes, bytes] = field(factory=dict)

    @property
    def bond(self) -> bytes:
        """The bond's id."""
        return self.place.bond_id(self.terms)

    @property
    def digest(self) -> bytes:
        """What an arbiter signs."""
        words = (word if isinstance(word, bytes) else word.to_bytes(32, "big") for word in self._values())
        said = keccak(_TYPES[self.says].encode()) + b"".join(word.rjust(32, b"\0") for word in words)
        separator = domain("idlemesh Bonds", "1", self.place.chain_id, self.place.contract)
        return keccak(b"\x19\x01" + separator + keccak(said))

    @property
    def shown(self) -> dict[str, Any]:
        """The same for a signer that shows or checks it."""
        where = domain_of("idlemesh Bonds", "1", self.place.chain_id, self.place.contract)
        return {"typed_data": message(where, _TYPES[self.says], *self._values())}

    def _values(self) -> list[Any]:
        values: list[Any] = [self.bond, self.evidence]
        if self.judgement is not None:
            said = self.judgement
            values += [said.buyer, said.damage, said.amount, said.deadline]
        return values + ([self.answer] if self.answer is not None else [])

    @property
    def signed(self) -> list[tuple[int, bytes]]:
        """The signatures as the contract takes them: by the arbiters' places, in order."""
        places = {arbiter: place for place, arbiter in enumerate(self.terms.arbiters)}
        return sorted((places[arbiter], signature) for arbiter, signature in self.signatures.items())

    def with_signature(self, arbiter: bytes, signature: bytes) -> "Statement":
        """The same with one more arbiter's. Raises BadStatement."""
        if arbiter not in self.terms.arbiters:
            raise BadStatement(f"{checksummed(arbiter)} is none of the bond's arbiters")
        if signer_of(self.digest, signature) != arbiter:
            raise BadStatement(f"what stands for {checksummed(arbiter)} is not its signature of this statement")
        return evolve(self, signatures={**self.signatures, arbiter: signature})

    def check(self) -> None:
        """Whether the contract may take it, once a quorum has signed. Raises BondRefused."""
        check_terms(self.terms)
        if self.evidence == bytes(32):
            raise BadStatement("the evidence is a digest that is not zero")
        if (self.judgement is not None) != (self.says == "slash") or (self.answer is not None) != (
            self.says == "uphold"
        ):
            raise BadStatement("a slash has a judgement, an uphold the seller's answer, a dismissal neither")
        if (said := self.judgement) is not None:
            if said.buyer in (NOBODY, self.terms.seller):
                raise BadStatement("the buyer is somebody, and not the seller")
            if not 0 < said.damage <= MAX_UINT128 or not 0 < said.amount <= MAX_UINT128:
                raise BadStatement("damage and amount are above 0")
            if not 0 < said.deadline < 2**40:
                raise BadStatement("the deadline is in seconds since 1970")

    # As JSON has it

    def to_plain(self) -> dict[str, Any]:
        """It as JSON has it."""
        terms = self.terms
        plain: dict[str, Any] = {
            "says": self.says,
            "network": self.place.network,
            "contract": checksummed(self.place.contract),
            "bond": f"0x{self.bond.hex()}",
            "terms": {
                "seller": checksummed(terms.seller),
                "token": checksummed(terms.token),
                "sink": checksummed(terms.sink),
                "notice": terms.notice,
                "challenge": terms.challenge,
                "quorum": terms.quorum,
                "arbiters": [checksummed(one) for one in terms.arbiters],
                "salt": f"0x{terms.salt.hex()}",
            },
            "evidence": f"0x{self.evidence.hex()}",
        }
        if (said := self.judgement) is not None:
            plain |= {"buyer": checksummed(said.buyer), "damage": said.damage, "amount": said.amount}
            plain["deadline"] = said.deadline
        if self.answer is not None:
            plain["answer"] = f"0x{self.answer.hex()}"
        signatures = {checksummed(arbiter): f"0x{signature.hex()}" for arbiter, signature in self.signatures.items()}
        return {**plain, "signatures": signatures}

    @classmethod
    def from_plain(cls, plain: object) -> "Statement":
        """What `to_plain` made, with every signature checked. Raises BondRefused."""
        try:
            return _read(_mapping(plain))
        except (KeyError, TypeError, AttributeError) as error:
            raise BadStatement(f"this is no statement about a bond: {str(error)[:80]} is missing or wrong") from None


def merged(statements: Iterable[Statement]) -> Statement:
    """Copies of one statement, with all of their signatures. Raises BadStatement."""
    first, *others = statements
    for other in others:
        if other.digest != first.digest:
            raise BadStatement("these are different statements: gather signatures of one")
        first = evolve(first, signatures={**first.signatures, **other.signatures})
    return first


def _read(plain: Mapping[str, Any]) -> Statement:
    network, terms = _NETWORK.fullmatch(str(plain["network"])), _mapping(plain["terms"])
    if network is None or plain["says"] not in _TYPES:
        raise BadStatement("this is no statement about a bond: it names no network, or says nothing that is known")
    if not isinstance(terms["arbiters"], list) or len(terms["arbiters"]) > MAX_ARBITERS:
        raise BadStatement(f"a bond has at most {MAX_ARBITERS} arbiters")
    says = cast(Word, plain["says"])
    statement = Statement(
        BondPlace(int(network[1]), _bytes(plain["contract"], 20)),
        BondTerms(
            _bytes(terms["seller"], 20),
            _bytes(terms["token"], 20),
            _bytes(terms["sink"], 20),
            _number(terms["notice"]),
            _number(terms["challenge"]),
            _number(terms["quorum"]),
            tuple(_bytes(one, 20) for one in terms["arbiters"]),
            _bytes(terms["salt"], 32),
        ),
        says,
        _bytes(plain["evidence"], 32),
        Judgement(
            _bytes(plain["buyer"], 20), _number(plain["damage"]), _number(plain["amount"]), _number(plain["deadline"])
        )
        if says == "slash"
        else None,
        _bytes(plain["answer"], 32) if says == "uphold" else None,
    )
    statement.check()
    if _bytes(plain["bond"], 32) != statement.bond:
        raise BadStatement("the bond's id does not follow from its terms: something was changed")
    for arbiter, signature in _mapping(plain["signatures"]).items():
        statement = statement.with_signature(_bytes(arbiter, 20), _bytes(signature, 65))
    return statement


def _mapping(found: object) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise TypeError("an object")
    return found


def _bytes(text: object, length: int) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * length}}}", text):
        raise TypeError(f"0x and {2 * length} digits")
    return bytes.fromhex(text[2:])


def _number(found: object) -> int:
    if type(found) is not int or not 0 <= found <= MAX_UINT128:
        raise TypeError("a whole number")
    return found
