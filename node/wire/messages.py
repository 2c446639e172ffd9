"""What travels besides the records: the sealed request's content, the order's envelope, and refusals."""

from typing import Any, Final, Literal, get_args

from attrs import field, frozen

from ledger import codec
from ledger.commitments import SALT_BYTES, ids_bytes, ids_from_bytes
from ledger.records import KINDS, MAX_SCORED, NONCE_BYTES, AccountState, Channel, Order, Receipt, Settlement
from verify.steering import MAX_BIASED, MAX_GRAMMAR, BadSteering, Steering

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_PROMPT: Final = 262_144  # token ids
# 4 bytes an id, a grammar, and room for the rest.
MAX_REQUEST: Final = 4 * (MAX_PROMPT + MAX_SCORED + MAX_GRAMMAR) + 65_536
MAX_SEALED: Final = MAX_REQUEST + 256
MAX_ENVELOPE: Final = MAX_SEALED + Order.limit + 64
MAX_REFUSAL: Final = 4_096
MAX_REFUSAL_CHARS: Final = 512
# Containers, keys and values of each message, so that a large one cannot keep its reader busy.
_REQUEST_ITEMS: Final = 32 + MAX_STOPS + 3 * MAX_BIASED
_ALWAYS: Final = frozenset({"salt", "prompt", "stop"})
_ENVELOPE_ITEMS: Final = 3
_REFUSAL_ITEMS: Final = 64
MAX_SIGNATURES: Final = 2 * Settlement.limit + 16
_SIGNATURES_ITEMS: Final = 3
_MAX_RETRY_S: Final = 86_400
MAX_NONCE: Final = 32
# Records that are handed back at a time.
MAX_HANDED: Final = 120
MAX_HANDED_BYTES: Final = 512 * 1024
MAX_EXCHANGE: Final = 2 * AccountState.limit + 64
MAX_EXCHANGED: Final = MAX_EXCHANGE + MAX_HANDED_BYTES
_EXCHANGE_ITEMS: Final = 4
_HANDED_ITEMS: Final = 3 * MAX_HANDED + 1

# A Channel and a deposit into it, which has a few fixed fields.
_MAX_DEPOSIT: Final = 256
MAX_BRINGING: Final = Channel.limit + _MAX_DEPOSIT + 16

RefusalCode = Literal[
    "malformed",
    "forged",
    "expired",
    "wrong_seller",
    "unknown_offer",
    "replayed",
    "running",
    "cannot_open",
    "rail",
    "privacy",
    "hops",
    "too_long",
    "max_cost",
    "credit",
    "window",
    "exposure",
    "busy",
    "failed",
    "not_selling",
    "unknown_order",
    "too_many_requests",
]
_CODES: Final = frozenset(get_args(RefusalCode))


class Refused(Exception):
    """A peer says no, and why. The code is for programs, the message for people."""

    def __init__(self, code: RefusalCode, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code: Final = code
        self.message: Final = message
        self.retry_after: Final = retry_after


class Unreachable(Exception):
    """A peer that does not answer, or answers something that is not the protocol."""


@frozen
class Earlier:
    """The part of an answer before a continued one: its order, the last record its seller signed for it (a checkpoint
    or a receipt; empty if the line broke before the first), and the salt that opens the commitments.
    """

    order: bytes = field(repr=False)
    proof: bytes = field(repr=False)
    salt: bytes = field(repr=False)


@frozen
class Request:
    """The content of an order: what only buyer and seller may see.

    `claimed` are the ids to score, of a score order alone; `earlier` belongs to a continued answer.
    """

    salt: bytes = field(repr=False)
    prompt: tuple[int, ...] = field(repr=False)
    stop: tuple[str, ...] = field(default=(), repr=False)
    steering: Steering = field(factory=Steering, repr=False)
    earlier: Earlier | None = field(default=None, repr=False)
    claimed: tuple[int, ...] = field(default=(), repr=False)


def encode_request(request: Request) -> bytes:
    """The bytes to seal; what asks for nothing is left out."""
    steering = request.steering
    body: dict[str, Any] = {
        "salt": request.salt,
        "prompt": ids_bytes(request.prompt),
        "stop": list(request.stop),
        "frequency": steering.frequency,
        "presence": steering.presence,
        "bias": [[token, value] for token, value in steering.bias],
        "grammar": steering.grammar,
        "claimed": ids_bytes(request.claimed),
    }
    if request.earlier is not None:
        body["earlier"] = [request.earlier.order, request.earlier.proof, request.earlier.salt]
    return codec.encode({name: value for name, value in body.items() if value or name in _ALWAYS})


def decode_request(raw: bytes) -> Request:
    """Read an opened request. Raises codec.Malformed, without a word of its content.

    An unknown field is refused: each one there would change what the answer has to be.
    """
    match codec.decode(raw, MAX_REQUEST, _REQUEST_ITEMS):
        case {"salt": bytes(salt), "prompt": bytes(prompt), "stop": list(stop), **rest} if len(salt) == SALT_BYTES:
            pass
        case _:
            raise codec.Malformed(f"a request needs a salt of {SALT_BYTES} bytes, a prompt and a list of stop strings")
    if len(stop) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARS for s in stop):
        raise codec.Malformed(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters are allowed")
    if not prompt or len(prompt) > 4 * MAX_PROMPT or len(prompt) % 4:
        raise codec.Malformed(f"a prompt is 1 to {MAX_PROMPT} token ids of 4 bytes each")
    steering, earlier, claimed = _steering(rest), _earlier(rest), _claimed(rest)
    if rest:
        raise codec.Malformed("the request asks for something that is not known here")
    return Request(salt, ids_from_bytes(prompt), tuple(stop), steering, earlier, claimed)


def _steering(rest: dict[Any, Any]) -> Steering:
    bias, grammar = rest.pop("bias", []), rest.pop("grammar", "")
    frequency, presence = rest.pop("frequency", 0), rest.pop("presence", 0)
    pairs = isinstance(bias, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair) for pair in bias
    )
    if not pairs or not isinstance(grammar, str):
        raise codec.Malformed("a request's bias is a list of pairs of numbers, and its grammar is text")
    try:
        return Steering(frequency, presence, tuple((token, value) for token, value in bias), grammar)
    except BadSteering as error:
        raise codec.Malformed(str(error)) from None


def _earlier(rest: dict[Any, Any]) -> Earlier | None:
    if "earlier" not in rest:
        return None
    match rest.pop("earlier"):
        case [bytes(order), bytes(proof), bytes(salt)] if (
            len(order) <= Order.limit and len(proof) <= Receipt.limit and len(salt) == SALT_BYTES
        ):
            return Earlier(order, proof, salt)
    raise codec.Malformed("a request's earlier part is an order, a record of its seller and a salt")


def _claimed(rest: dict[Any, Any]) -> tuple[int, ...]:
    packed = rest.pop("claimed", b"")
    if not isinstance(packed, bytes) or len(packed) > 4 * MAX_SCORED or len(packed) % 4:
        raise codec.Malformed(f"at most {MAX_SCORED} token ids of 4 bytes each can be scored")
    return ids_from_bytes(packed)


def encode_envelope(order: bytes, sealed: bytes) -> bytes:
    """The body of an order's HTTP request."""
    return codec.encode([order, sealed])


def decode_envelope(raw: bytes) -> tuple[bytes, bytes]:
    """The signed order and the sealed request. Raises codec.Malformed."""
    match codec.decode(raw, MAX_ENVELOPE, _ENVELOPE_ITEMS):
        case [bytes(order), bytes(sealed)]:
            return order, sealed
    raise codec.Malformed("an order's envelope is an array of two byte strings: the order and the sealed request")


def encode_signatures(pair: tuple[bytes, bytes] | None) -> bytes:
    """The answer to a settlement or netting: both parties' records, or none while the payee has not confirmed."""
    return codec.encode(list(pair or ()))


def decode_signatures(raw: bytes) -> tuple[bytes, bytes] | None:
    """Read such an answer. Raises codec.Malformed."""
    match codec.decode(raw, MAX_SIGNATURES, _SIGNATURES_ITEMS):
        case []:
            return None
        case [bytes(payers), bytes(payees)]:
            return payers, payees
    raise codec.Malformed("the answer to a settlement or netting is an array of two records or of none")


Handed = tuple[tuple[str, bytes], ...]


@frozen
class Asked:
    """A node's state for another one: `nonce` is what the answer has to bear, `last` the other's last state known."""

    state: bytes
    nonce: bytes
    last: bytes


@frozen
class Answered:
    """The other's state in return, the asker's last state known there, and records that the asker lacks, by kind."""

    state: bytes
    last: bytes
    records: Handed


def encode_asked(asked: Asked) -> bytes:
    """The body of an exchange of states."""
    return codec.encode([asked.state, asked.nonce, asked.last])


def decode_asked(raw: bytes) -> Asked:
    """Read one. Raises codec.Malformed."""
    match codec.decode(raw, MAX_EXCHANGE, _EXCHANGE_ITEMS):
        case [bytes(state), bytes(nonce), bytes(last)] if len(nonce) == NONCE_BYTES:
            return Asked(state, nonce, last)
    raise codec.Malformed("an exchange of states is a state, a nonce of 16 bytes and the other's last state")


def encode_answered(answered: Answered) -> bytes:
    """The answer to an exchange of states."""
    return codec.encode([answered.state, answered.last, [list(pair) for pair in answered.records]])


def decode_answered(raw: bytes) -> Answered:
    """Read one. Raises codec.Malformed."""
    match codec.decode(raw, MAX_EXCHANGED, _EXCHANGE_ITEMS + _HANDED_ITEMS):
        case [bytes(state), bytes(last), list(records)]:
            return Answered(state, last, _handed(records))
    raise codec.Malformed("the answer to a state is a state, the asker's last one and a list of records")


def encode_handed(nonce: bytes, records: Handed) -> bytes:
    """The body that hands records back, under the nonce that the other has given."""
    return codec.encode([nonce, [list(pair) for pair in records]])


def decode_handed(raw: bytes) -> tuple[bytes, Handed]:
    """Read one. Raises codec.Malformed."""
    match codec.decode(raw, MAX_HANDED_BYTES, _EXCHANGE_ITEMS + _HANDED_ITEMS):
        case [bytes(nonce), list(records)] if len(nonce) == NONCE_BYTES:
            return nonce, _handed(records)
    raise codec.Malformed("records are handed back under a nonce of 16 bytes, as a list")


def _handed(records: list[Any]) -> Handed:
    if len(records) > MAX_HANDED:
        raise codec.Malformed(f"more than {MAX_HANDED} records at a time")
    found: list[tuple[str, bytes]] = []
    for record in records:
        match record:
            case [str(kind), bytes(raw)] if kind in KINDS:
                found.append((kind, raw))
            case _:
                raise codec.Malformed("a record is handed back with its kind")
    return tuple(found)


def encode_nonce(nonce: bytes) -> bytes:
    """The nonce that a state has to bear."""
    return codec.encode(nonce)


def decode_nonce(raw: bytes) -> bytes:
    """Read one. Raises codec.Malformed."""
    nonce = codec.decode(raw, MAX_NONCE, 1)
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise codec.Malformed("a nonce has 16 bytes")
    return nonce


def encode_refusal(refusal: Refused) -> bytes:
    """The body of an HTTP answer that says no."""
    body: dict[str, Any] = {"code": refusal.code, "message": refusal.message[:MAX_REFUSAL_CHARS]}
    if refusal.retry_after is not None:
        body["retry_after"] = refusal.retry_after
    return codec.encode(body)


def decode_refusal(raw: bytes) -> Refused:
    """Read a refusal from a stranger; a code that is not known here stands for "failed". Raises codec.Malformed."""
    body = codec.decode(raw, MAX_REFUSAL, _REFUSAL_ITEMS)
    match body:
        case {"code": str(code), "message": str(message)}:
            known: RefusalCode = code if code in _CODES else "failed"  # type: ignore[assignment]
            retry = body.get("retry_after")
            wait = retry if type(retry) is int and 0 <= retry <= _MAX_RETRY_S else None
            return Refused(known, _shown(message[:MAX_REFUSAL_CHARS]), wait)
    raise codec.Malformed("not a refusal")


def _shown(message: str) -> str:
    """A stranger's words without what would move a terminal's cursor, or hide."""
    return "".join(letter if letter.isprintable() else " " for letter in message)


def encode_bringing(channel: bytes, deposit: bytes) -> bytes:
    """A channel and a signed deposit into it, for the payee to bring to the chain."""
    return codec.encode([channel, deposit])


def decode_bringing(raw: bytes) -> tuple[bytes, bytes]:
    """Read what `encode_bringing` made. Raises codec.Malformed."""
    match codec.decode(raw, MAX_BRINGING, 3):
        case [bytes(channel), bytes(deposit)] if len(channel) <= Channel.limit and len(deposit) <= _MAX_DEPOSIT:
            return channel, deposit
    raise codec.Malformed("a deposit travels as [channel, deposit]")
