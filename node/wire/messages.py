"""What travels besides the records: the sealed request's content, the order's envelope, and refusals."""

from typing import Any, Final, Literal, get_args

from attrs import field, frozen

from ledger import codec
from ledger.commitments import SALT_BYTES, ids_bytes, ids_from_bytes
from ledger.records import Order

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_PROMPT: Final = 262_144  # token ids
# 4 bytes an id, and room for the rest.
MAX_REQUEST: Final = 4 * MAX_PROMPT + 32_768
MAX_SEALED: Final = MAX_REQUEST + 256
MAX_ENVELOPE: Final = MAX_SEALED + Order.limit + 64
MAX_REFUSAL: Final = 4_096
MAX_REFUSAL_CHARS: Final = 512
# Containers, keys and values of each message, so that a large one cannot keep its reader busy.
_REQUEST_ITEMS: Final = 7 + MAX_STOPS
_ENVELOPE_ITEMS: Final = 3
_REFUSAL_ITEMS: Final = 64
_MAX_RETRY_S: Final = 86_400

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
class Request:
    """The content of an order: what only buyer and seller may see."""

    salt: bytes = field(repr=False)
    prompt: tuple[int, ...] = field(repr=False)
    stop: tuple[str, ...] = field(default=(), repr=False)


def encode_request(request: Request) -> bytes:
    """The bytes to seal."""
    return codec.encode({"salt": request.salt, "prompt": ids_bytes(request.prompt), "stop": list(request.stop)})


def decode_request(raw: bytes) -> Request:
    """Read an opened request. Raises codec.Malformed, without a word of its content.

    An unknown field is refused: each one there (a grammar, a penalty) would change what the answer has to be.
    """
    match codec.decode(raw, MAX_REQUEST, _REQUEST_ITEMS):
        case {"salt": bytes(salt), "prompt": bytes(prompt), "stop": list(stop), **unknown} if len(salt) == SALT_BYTES:
            if unknown:
                raise codec.Malformed("the request asks for something that is not known here")
        case _:
            raise codec.Malformed(f"a request needs a salt of {SALT_BYTES} bytes, a prompt and a list of stop strings")
    if len(stop) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARS for s in stop):
        raise codec.Malformed(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters are allowed")
    if not prompt or len(prompt) > 4 * MAX_PROMPT or len(prompt) % 4:
        raise codec.Malformed(f"a prompt is 1 to {MAX_PROMPT} token ids of 4 bytes each")
    return Request(salt, ids_from_bytes(prompt), tuple(stop))


def encode_envelope(order: bytes, sealed: bytes) -> bytes:
    """The body of an order's HTTP request."""
    return codec.encode([order, sealed])


def decode_envelope(raw: bytes) -> tuple[bytes, bytes]:
    """The signed order and the sealed request. Raises codec.Malformed."""
    match codec.decode(raw, MAX_ENVELOPE, _ENVELOPE_ITEMS):
        case [bytes(order), bytes(sealed)]:
            return order, sealed
    raise codec.Malformed("an order's envelope is an array of two byte strings: the order and the sealed request")


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
