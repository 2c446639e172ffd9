"""The signed records: what nodes promise, order, deliver, acknowledge and judge.

Each is a frozen class whose fields are the payload's text keys; `docs/records.cddl` says the same for other languages.
`sign` makes a record, `open_record` checks one from a stranger: form, types, ranges, signature. Unknown fields are
passed over (the bytes are kept, so they stay signed). What depends on the moment or on another record (expiry, who
may sign what) is checked where it is known: `check_time` here, the rest in the services.

Digests are SHA-256 over a record's bytes. Times are seconds since 1970, `*_ms` milliseconds. Money is in the unit that
the offer names. Sampling parameters are integers, in millionths, so that no two languages round them apart.
"""

import hashlib
import re
from collections.abc import Callable, Sized
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar, get_args, get_origin

import cattrs
from attrs import Attribute, field, frozen

from ledger import codec
from ledger.identity import DID_LENGTH, Did, Identity, NotADid, parse_did
from ledger.money import MAX_AMOUNT, Amount, Price, Unit

DIGEST_BYTES: Final = 32
NONCE_BYTES: Final = 16
ADDRESS_BYTES: Final = 20  # of an account or contract on a chain of Ethereum's kind
# Two honest clocks may differ by this much.
CLOCK_SKEW_S: Final = 120
OFFER_LIFETIME_S: Final = 24 * 3600
ORDER_LIFETIME_S: Final = 600
GRANT_LIFETIME_S: Final = 30 * 24 * 3600
TERMS_LIFETIME_S: Final = 24 * 3600
MAX_TOKENS: Final = 2**24
# Tokens of one score order: its Score must fit a frame.
MAX_SCORED: Final = 4_096
# As many as the contract of bonds admits.
MAX_ARBITERS: Final = 16
# Of Ethereum: r, s and v, which tells their key.
SIGNATURE_BYTES: Final = 65
# What the channels contract takes: 15 minutes to 30 days.
MIN_WITHDRAW_DELAY_S: Final = 900
MAX_WITHDRAW_DELAY_S: Final = 2_592_000

Privacy = Literal["public", "internal", "confidential", "restricted"]
PRIVACY_LEVELS: Final[tuple[Privacy, ...]] = get_args(Privacy)
Finish = Literal["stop", "length", "cancelled", "cut", "unpaid"]
Outcome = Literal["honest", "dishonest", "undecided"]

_CHAIN: Final = re.compile(r"eip155:[1-9][0-9]{0,19}")


class Expired(codec.Malformed):
    """A record outside its time; clocks may differ by two minutes."""


def _between(low: int, high: int) -> Callable[[int], None]:
    def check(value: int) -> None:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")

    return check


def _sized(shortest: int, longest: int) -> Callable[[Sized], None]:
    def check(value: Sized) -> None:
        if not shortest <= len(value) <= longest:
            raise ValueError(f"must have a length from {shortest} to {longest}, not {len(value)}")

    return check


def _items(most: int, longest: int) -> Callable[[tuple[str, ...]], None]:
    def check(value: tuple[str, ...]) -> None:
        _sized(0, most)(value)
        for item in value:
            _sized(1, longest)(item)

    return check


def _addresses(value: tuple[bytes, ...]) -> None:
    _sized(1, MAX_ARBITERS)(value)
    for item in value:
        _sized(ADDRESS_BYTES, ADDRESS_BYTES)(item)
    if list(value) != sorted(set(value)):
        raise ValueError("must be in ascending order, each once")


def _did(value: str) -> None:
    _sized(DID_LENGTH, DID_LENGTH)(value)
    parse_did(value)


def _digest_if_any(value: bytes | None) -> None:
    if value is not None:
        _sized(DIGEST_BYTES, DIGEST_BYTES)(value)


def _digest_or_empty(value: bytes) -> None:
    if value:
        _sized(DIGEST_BYTES, DIGEST_BYTES)(value)


def _word_if_any(value: str | None) -> None:
    if value is not None:
        _sized(1, 64)(value)


def _signature_if_any(value: bytes | None) -> None:
    if value is not None:
        _sized(1, SIGNATURE_BYTES)(value)


def _chain(value: str) -> None:
    """One chain by CAIP-2, of the namespace that the EVM's are in."""
    if not _CHAIN.fullmatch(value):
        raise ValueError(f"must name a chain as eip155:8453 does, not {value[:64]!r}")


# The types of fields: what a stranger's value must be to get in.
Count = Annotated[int, _between(0, MAX_AMOUNT)]
Positive = Annotated[int, _between(1, MAX_AMOUNT)]
Tokens = Annotated[int, _between(0, MAX_TOKENS)]
SomeTokens = Annotated[int, _between(1, MAX_TOKENS)]
Money = Annotated[int, _between(0, MAX_AMOUNT)]
Seconds = Annotated[int, _between(0, MAX_AMOUNT)]
Milliseconds = Annotated[int, _between(0, MAX_AMOUNT)]
Seed = Annotated[int, _between(0, 2**64 - 1)]
Digest = Annotated[bytes, _sized(DIGEST_BYTES, DIGEST_BYTES)]
DigestOrNone = Annotated[bytes, _digest_or_empty]
Bytes16 = Annotated[bytes, _sized(16, 16)]
Bytes32 = Annotated[bytes, _sized(32, 32)]
Address = Annotated[bytes, _sized(ADDRESS_BYTES, ADDRESS_BYTES)]
EvmSignature = Annotated[bytes, _sized(SIGNATURE_BYTES, SIGNATURE_BYTES)]
ChainName = Annotated[str, _chain]
WithdrawDelay = Annotated[int, _between(MIN_WITHDRAW_DELAY_S, MAX_WITHDRAW_DELAY_S)]
DidText = Annotated[str, _did]
Name = Annotated[str, _sized(1, 128)]
Word = Annotated[str, _sized(0, 64)]
Reason = Annotated[str, _sized(0, 256)]


def _are_two(one: str, other: str) -> None:
    if one == other:
        raise ValueError("the two parties must not be one")


def _grows(before: int, total: int) -> None:
    if total <= before:
        raise ValueError("total must be above before")


def _ranges(_class: type, fields: list["Attribute[Any]"]) -> list["Attribute[Any]"]:
    """Give each attribute the checks that stand in its annotated type, so a record out of range cannot exist."""
    return [_checked(attribute) for attribute in fields]


def _checked(attribute: "Attribute[Any]") -> "Attribute[Any]":
    rules = getattr(attribute.type, "__metadata__", ())
    if not rules:
        return attribute

    def validate(_instance: object, field: "Attribute[Any]", value: Any) -> None:
        for rule in rules:
            try:
                rule(value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{field.name} {error}") from None

    return attribute.evolve(validator=validate)


@frozen(field_transformer=_ranges)
class Sampling:
    """How tokens are drawn. Millionths but for `top_k`; 0 turns top-k off, 1,000,000 turns top-p off."""

    temperature: Annotated[int, _between(0, 10_000_000)]
    top_p: Annotated[int, _between(1, 1_000_000)]
    min_p: Annotated[int, _between(0, 1_000_000)]
    top_k: Tokens


@frozen(field_transformer=_ranges)
class Fingerprint:
    """What computed the logits: only engines of one fingerprint are compared without a calibration."""

    build: Word
    backend: Word
    kv: Word
    sampler: Word
    # What tells which tokens a grammar allows. Only orders with a grammar ask, so it is no part of the comparison.
    grammar: Annotated[str | None, _word_if_any] = field(default=None, eq=False)


@frozen(field_transformer=_ranges)
class Bond:
    """A stake that the seller has locked in a contract of bonds: its terms, from which its id follows, and how much.

    The seller's did and `serial` make the salt of the terms, so nobody can name a bond that another has locked.
    """

    network: Annotated[str, _sized(1, 64)]  # CAIP-2
    contract: Address
    owner: Address  # the seller's account there
    token: Address
    sink: Address  # gets of a slash what exceeds the damage; all zeros: it is burned
    notice: Seconds
    challenge: Seconds
    quorum: Annotated[int, _between(1, MAX_ARBITERS)]
    arbiters: Annotated[tuple[bytes, ...], _addresses]
    serial: Count
    amount: Positive  # in the token's unit: what the seller says is locked

    def __attrs_post_init__(self) -> None:
        if not len(self.arbiters) < 2 * self.quorum <= 2 * len(self.arbiters):
            raise ValueError("quorum must be more than half of the arbiters, and not more than all")


@frozen(field_transformer=_ranges)
class Offer:
    """What a seller runs, what it costs, and the key to seal requests for it."""

    kind: ClassVar[str] = "offer"
    limit: ClassVar[int] = 16_384

    endpoints: Annotated[tuple[str, ...], _items(8, 256)]
    model: Digest
    tokenizer: Digest
    name: Name
    architecture: Word
    parameters: Count
    quantization: Word
    context: SomeTokens
    engine: Fingerprint
    price: Price
    rails: Annotated[tuple[str, ...], _items(8, 32)]
    slots: Annotated[int, _between(1, 4096)]
    speed: Count  # output tokens per second of one stream, in thousandths; 0 = not measured yet
    first_token_ms: Milliseconds  # 0 = not measured yet
    prekey: Digest
    sequence: Count
    issued: Seconds
    expires: Seconds
    # Of whoever computes for the seller: the law it is under, and how long it keeps prompts ("none", "30 days").
    jurisdiction: Annotated[str | None, _word_if_any] = None
    retention: Annotated[str | None, _word_if_any] = None
    bond: Bond | None = None  # what the seller stands to lose if it is found cheating


@frozen(field_transformer=_ranges)
class Order:
    """A buyer's promise to pay up to `max_cost` for the answer to one sealed request."""

    kind: ClassVar[str] = "order"
    limit: ClassVar[int] = 4_096

    work: Literal["generate", "score"]
    seller: DidText  # binds the order to one seller, whatever the offer's bytes
    offer: Digest
    nonce: Bytes16
    request: Digest  # digest of the sealed request
    sampling: Sampling
    seed: Seed
    start: Tokens  # how many of the prompt's last ids are the answer's earlier part: 0 unless it is continued
    max_tokens: SomeTokens
    max_cost: Money
    privacy: Privacy
    hops: Annotated[int, _between(0, 8)]
    rail: Name
    trace: Bytes16
    issued: Seconds
    expires: Seconds
    part_of: Annotated[bytes | None, _digest_if_any] = None  # of a continued answer: the order of the part before it


@frozen(field_transformer=_ranges)
class Checkpoint:
    """So many tokens of an order are out, and this is what they cost without the input."""

    kind: ClassVar[str] = "checkpoint"
    limit: ClassVar[int] = 1_024

    order: Digest
    tokens: SomeTokens
    commitment: Digest
    cost: Money


@frozen(field_transformer=_ranges)
class Receipt:
    """What a seller delivered for an order, and what it asks for it."""

    kind: ClassVar[str] = "receipt"
    limit: ClassVar[int] = 4_096

    order: Digest
    model: Digest
    prompt_tokens: SomeTokens
    output_tokens: Tokens
    prompt_commitment: Digest
    output_commitment: Digest
    finish: Finish
    cost: Money
    unit: Unit
    started_ms: Milliseconds
    finished_ms: Milliseconds


@frozen(field_transformer=_ranges)
class Voucher:
    """A payer's signature over the growing total that it owes a payee; the latest replaces all earlier ones."""

    kind: ClassVar[str] = "voucher"
    limit: ClassVar[int] = 1_024

    payer: DidText
    payee: DidText
    rail: Name
    network: Word  # binds the promise to one chain or Lightning network; empty for credit
    account: Reason  # binds it to one channel there; empty for credit
    unit: Unit
    total: Money
    # What the network itself takes for this promise: on the rail "stablecoin" the channel's EIP-712 voucher.
    signature: Annotated[bytes | None, _signature_if_any] = None


@frozen(field_transformer=_ranges)
class ChannelTerms:
    """What a payment channel to a seller has to be for it to count, on which chain and in which token."""

    kind: ClassVar[str] = "channel-terms"
    limit: ClassVar[int] = 1_024

    network: ChainName  # CAIP-2
    contract: Address  # the channels
    token: Address
    receiver: Address
    receiver_authorizer: Address
    withdraw_delay: WithdrawDelay  # seconds of notice, at least
    min_deposit: Money  # the least that the seller brings to the chain at its own expense
    issued: Seconds
    expires: Seconds


@frozen(field_transformer=_ranges)
class Channel:
    """This payment channel is the payer's account with the payee: signed by the payer, proved by the channel's key."""

    kind: ClassVar[str] = "channel"
    limit: ClassVar[int] = 1_024

    payer: DidText
    payee: DidText
    network: ChainName  # CAIP-2
    contract: Address  # the channels
    wallet: Address  # whose money it is: the config's `payer`
    payer_authorizer: Address  # whose key signs the vouchers
    receiver: Address
    receiver_authorizer: Address
    token: Address
    withdraw_delay: WithdrawDelay
    salt: Bytes32
    # The authorizer's EIP-712 signature over the payer's did and the channel: nobody cites another's channel.
    proof: EvmSignature

    def __attrs_post_init__(self) -> None:
        _are_two(self.payer, self.payee)


@frozen(field_transformer=_ranges)
class Acknowledgement:
    """A buyer's answer to a receipt or checkpoint: accepted or disputed, and the voucher that pays."""

    kind: ClassVar[str] = "acknowledgement"
    limit: ClassVar[int] = 4_096

    order: Digest
    of: Digest  # digest of the receipt, or of the last checkpoint of a cut answer
    accepted: bool
    reason: Reason
    amount: Money  # the undisputed part of this order's cost
    # The digest of the acknowledgement before this one on the same account.
    previous: Annotated[bytes | None, _digest_if_any]
    voucher: Annotated[bytes, _sized(1, Voucher.limit)]


@frozen(field_transformer=_ranges)
class Grant:
    """How much credit a seller gives one buyer: a limit in all, and a window of unpaid work at a time."""

    kind: ClassVar[str] = "grant"
    limit: ClassVar[int] = 1_024

    buyer: DidText
    rail: Name
    unit: Unit
    credit: Money
    window: Money
    sequence: Count
    issued: Seconds
    expires: Seconds


@frozen(field_transformer=_ranges)
class Settlement:
    """So much of a debt on credit was paid by other means (cash, a transfer, a favour): `settled` goes to `total`.

    Payer and payee sign one each with the same fields; only both together count.
    """

    kind: ClassVar[str] = "settlement"
    limit: ClassVar[int] = 1_024

    payer: DidText
    payee: DidText
    unit: Unit
    before: Money  # what was settled so far
    total: Positive
    issued: Seconds

    def __attrs_post_init__(self) -> None:
        _are_two(self.payer, self.payee)
        _grows(self.before, self.total)


@frozen(field_transformer=_ranges)
class Netting:
    """So much of what two nodes owe each other on credit is set off: `netted` goes to `total`, in both directions.

    Both sign one each with the same fields; only both together count. `first` is the did that sorts first.
    """

    kind: ClassVar[str] = "netting"
    limit: ClassVar[int] = 1_024

    first: DidText
    second: DidText
    unit: Unit
    before: Money  # what was netted so far
    total: Positive
    issued: Seconds

    def __attrs_post_init__(self) -> None:
        _are_two(self.first, self.second)
        if self.first > self.second:
            raise ValueError("first must be the did that sorts first")
        _grows(self.before, self.total)


@frozen(field_transformer=_ranges)
class Resolution:
    """A payee asks no more than `total` for a disputed order, now and later; signed by the order's seller."""

    kind: ClassVar[str] = "resolution"
    limit: ClassVar[int] = 1_024

    order: Digest
    total: Money
    issued: Seconds


@frozen(field_transformer=_ranges)
class Forgiveness:
    """Of all that the payer has counted by now, `counted`, so much is let go: `total`, a growing sum.

    The payer signs what it knows and asks with that; the payee's, about the same `counted`, is the fact.
    """

    kind: ClassVar[str] = "forgiveness"
    limit: ClassVar[int] = 1_024

    payer: DidText
    payee: DidText
    rail: Name
    unit: Unit
    counted: Money
    total: Money
    issued: Seconds

    def __attrs_post_init__(self) -> None:
        _are_two(self.payer, self.payee)
        if self.total > self.counted:
            raise ValueError("total must not be above counted")


@frozen(field_transformer=_ranges)
class Totals:
    """One account as one of its two parties sees it; the counters are those of `ledger.account`."""

    payer: DidText
    payee: DidText
    rail: Name
    unit: Unit
    authorized: Money
    earned: Money
    waived: Money
    forgiven: Money
    settled: Money
    netted: Money
    reserved: Money
    disputed: Money
    # The digest of the last acknowledgement up to which the signer has all of this account; empty: it has none.
    acknowledged: DigestOrNone


# Both directions, each rail and unit.
MAX_ACCOUNTS: Final = 16


def _few_accounts(value: tuple[Totals, ...]) -> None:
    _sized(0, MAX_ACCOUNTS)(value)


@frozen(field_transformer=_ranges)
class AccountState:
    """What the signer's books say of its accounts with `peer`, and where its journal's chain ends by now.

    `nonce` is the peer's, so that it knows that this was said just now.
    """

    kind: ClassVar[str] = "state"
    limit: ClassVar[int] = 8_192

    peer: DidText
    nonce: Bytes16
    sequence: Count
    head: Digest
    accounts: Annotated[tuple[Totals, ...], _few_accounts]
    issued_ms: Milliseconds


@frozen(field_transformer=_ranges)
class Cancel:
    """Stop an order; `tokens` is how many of its tokens the signer has seen (a buyer) or sent (a seller: a cut)."""

    kind: ClassVar[str] = "cancel"
    limit: ClassVar[int] = 1_024

    order: Digest
    tokens: Tokens


@frozen(field_transformer=_ranges)
class Margins:
    """The margins of the tokens of one check, in millionths of a logit; the mean is of margins clipped at 0.5."""

    tokens: Count
    odd: Count  # how many were over 0.1
    mean: Count
    largest: Count


@frozen(field_transformer=_ranges)
class Score:
    """What a scorer's weights say of each claimed token of a score order, packed, little-endian, in their order."""

    kind: ClassVar[str] = "score"
    limit: ClassVar[int] = 57_344

    order: Digest
    model: Digest
    engine: Fingerprint
    tokens: Annotated[int, _between(1, MAX_SCORED)]
    best: Annotated[bytes, _sized(4, 4 * MAX_SCORED)]  # the id that the sampler would have chosen, 4 bytes each
    values: Annotated[bytes, _sized(4, 4 * MAX_SCORED)]  # its logit after steering, millionths, signed 4 bytes each
    margins: Annotated[bytes, _sized(4, 4 * MAX_SCORED)]  # of the claimed token, millionths of a logit, 4 bytes each

    def __attrs_post_init__(self) -> None:
        for name in ("best", "values", "margins"):
            if len(getattr(self, name)) != 4 * self.tokens:
                raise ValueError(f"{name} must have 4 bytes for each of {self.tokens} tokens")


@frozen(field_transformer=_ranges)
class Verdict:
    """What an auditor found when it replayed a receipt."""

    kind: ClassVar[str] = "verdict"
    limit: ClassVar[int] = 2_048

    receipt: Digest
    seller: DidText
    model: Digest
    margins: Margins
    evidence: Annotated[int, _between(-MAX_AMOUNT, MAX_AMOUNT)]  # ln of the detector's M, in thousandths
    outcome: Outcome
    reason: Reason
    engine: Fingerprint
    issued: Seconds


Record = (
    Offer
    | Order
    | Checkpoint
    | Receipt
    | Voucher
    | ChannelTerms
    | Channel
    | Acknowledgement
    | Grant
    | Settlement
    | Netting
    | Resolution
    | Forgiveness
    | AccountState
    | Cancel
    | Score
    | Verdict
)
KINDS: Final[dict[str, type[Any]]] = {record.kind: record for record in get_args(Record)}
_MAY_BE_ABSENT: Final = {
    "offer": ("jurisdiction", "retention", "bond"),
    "acknowledgement": ("previous",),
    "order": ("part_of",),
    "voucher": ("signature",),
}
_LIFETIMES: Final = {
    "offer": OFFER_LIFETIME_S,
    "order": ORDER_LIFETIME_S,
    "grant": GRANT_LIFETIME_S,
    "channel-terms": TERMS_LIFETIME_S,
}
R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


@frozen
class Signed(Generic[R_co]):
    """A record together with the bytes that were signed, and who signed them."""

    record: R_co
    signer: Did
    raw: bytes
    digest: bytes


def _strict(kind: type) -> Any:
    def hook(value: object, _type: type) -> object:
        # type(...) and not isinstance: True is not a number here.
        if type(value) is not kind:
            raise TypeError(f"must be {kind.__name__}, not {type(value).__name__}")
        return value

    return hook


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def strict_converter() -> cattrs.Converter:
    """A cattrs converter that takes each value for what it is: no text for numbers, nor for a list of letters."""
    converter = cattrs.Converter(detailed_validation=True)
    for kind in (int, str, bytes, bool):
        converter.register_structure_hook(kind, _strict(kind))
    optional_bytes, optional_text = _strict(bytes), _strict(str)
    converter.register_structure_hook(
        bytes | None, lambda value, kind: None if value is None else optional_bytes(value, kind)
    )
    converter.register_structure_hook(
        str | None, lambda value, kind: None if value is None else optional_text(value, kind)
    )

    def listed(value: object, kind: Any) -> tuple[object, ...]:
        if type(value) is not list:
            raise TypeError(f"must be a list, not {type(value).__name__}")
        return tuple(converter.structure(item, get_args(kind)[0]) for item in value)

    converter.register_structure_hook_func(_is_tuple, listed)
    return converter


_CONVERTER: Final = strict_converter()


def _content_type(kind: str) -> str:
    return f"application/idlemesh-{kind}+cbor"


def _drop_absent(value: Any) -> Any:
    """Leave out what is None: an absent field and a null one must not be two ways to say the same."""
    return {k: _drop_absent(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _has_null(body: dict[Any, Any]) -> bool:
    return any(value is None or (isinstance(value, dict) and _has_null(value)) for value in body.values())


def to_map(record: Record) -> dict[str, Any]:
    """A record's fields as a plain map, as they are in its payload."""
    plain: dict[str, Any] = _drop_absent(_CONVERTER.unstructure(record))
    return plain


def sign(record: R, identity: Identity) -> Signed[R]:
    """Sign a record as this identity."""
    raw = codec.sign(_content_type(record.kind), codec.encode(to_map(record)), identity)
    return Signed(record, identity.did, raw, digest_of(raw))


def digest_of(raw: bytes) -> bytes:
    """The digest that names a record: SHA-256 of its bytes as they travel."""
    return hashlib.sha256(raw).digest()


def open_record(raw: bytes, kind: type[R]) -> Signed[R]:
    """Check a record of the expected kind from a stranger.

    Raises codec.TooLarge, codec.NotCanonical, codec.Forged or codec.Malformed, each saying what is wrong.
    """
    envelope = codec.unwrap(raw, kind.limit)
    if envelope.content_type != _content_type(kind.kind):
        raise codec.Malformed(f"expected {_content_type(kind.kind)}, got {envelope.content_type[:80]!r}")
    body = codec.decode(envelope.payload, kind.limit)
    if not isinstance(body, dict):
        raise codec.Malformed(f"the payload of the {kind.kind} is not a map")
    if _has_null(body):
        raise codec.Malformed(f"the {kind.kind} has a null field: absent fields are left out")
    for name in _MAY_BE_ABSENT.get(kind.kind, ()):
        body.setdefault(name, None)
    try:
        record = _CONVERTER.structure(body, kind)
    except (cattrs.BaseValidationError, ValueError, TypeError, NotADid) as error:
        raise codec.Malformed(f"the {kind.kind} is not valid: {'; '.join(_reasons(error))}") from None
    return Signed(record, envelope.signer, raw, digest_of(raw))


def _reasons(error: BaseException) -> list[str]:
    try:
        return [reason[:200] for reason in cattrs.transform_error(error, format_exception=_explain)][:4]
    except Exception:  # noqa: BLE001 - cattrs could not explain; the plain message does
        return [str(error)[:200]]


def _explain(error: BaseException, _kind: type | None) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def check_time(record: Offer | Order | Grant | ChannelTerms, now: int) -> None:
    """Check that a record lives now and not for too long. Raises Expired."""
    longest = _LIFETIMES[record.kind]
    if record.expires < now - CLOCK_SKEW_S:
        raise Expired(f"the {record.kind} expired {now - record.expires} seconds ago: ask for a new one")
    if record.issued > now + CLOCK_SKEW_S:
        raise Expired(f"the {record.kind} was issued in the future: check the clocks of both machines")
    if not 0 < record.expires - record.issued <= longest:
        raise Expired(f"the {record.kind} must live between 1 and {longest} seconds")


def amount_of(receipt: Receipt) -> Amount:
    """What a receipt asks for, with its unit."""
    return Amount(receipt.cost, receipt.unit)
