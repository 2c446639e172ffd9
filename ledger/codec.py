"""Deterministic CBOR (RFC 8949, 4.2) inside COSE_Sign1 (RFC 9052).

Theory of operation. A record travels as `18([protected, {}, payload, signature])`. The protected header holds
`{1: -8, 3: content type, 4: kid}`: EdDSA, the kind of record, and the signer's did:key; the unprotected map is empty,
so nothing that matters is left unsigned. The payload is one CBOR map with text keys. Bytes are accepted in one form
only: they are decoded, encoded again and compared, so that two byte strings never say the same thing. They are then
kept as received, for signature and digest never depend on encoding again what was decoded.

Bytes of strangers are walked head by head before a value is made of them. Tags are refused there, since by shared and
repeated values (tags 25, 28, 29) a few hundred bytes can stand for more than any memory holds; so are too many items.
"""

from typing import Any, Final

import cbor2
from attrs import frozen

from ledger.identity import BadSignature, Did, Identity, NotADid, parse_did, verify_signature

# Enough for every record, and little enough that a hostile one costs nothing.
MAX_DEPTH: Final = 16
# Of any message, and decoded in well under a second; a message of a known shape gives its own, smaller number.
MAX_ITEMS: Final = 131_072
_COSE_SIGN1: Final = 18
_TAG_18: Final = b"\xd2"
_EDDSA: Final = -8
_ALGORITHM, _CONTENT_TYPE, _KID = 1, 3, 4
_MAX_HEADER: Final = 256
_SIGNATURE_BYTES: Final = 64


class Malformed(ValueError):
    """Bytes that are not what they should be; the message says in what."""


class TooLarge(Malformed):
    """More bytes than this kind of message may have."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes where at most {limit} are allowed")
        self.size, self.limit = size, limit


class NotCanonical(Malformed):
    """CBOR that decodes, but is not in its one deterministic form."""

    def __init__(self) -> None:
        super().__init__("the CBOR is not in its deterministic form (RFC 8949, 4.2)")


class Forged(Malformed):
    """A record whose signature does not fit its signer and content."""


def encode(value: object) -> bytes:
    """Deterministic CBOR of ints, bytes, text, booleans, None, lists, tuples and maps with text keys."""
    return cbor2.dumps(value, canonical=True)


def decode(raw: bytes, limit: int, items: int = MAX_ITEMS) -> Any:
    """Decode CBOR from a stranger: at most `limit` bytes and `items` values in all, map keys and containers counted.

    Raises TooLarge, NotCanonical, Malformed; never anything else.
    """
    if len(raw) > limit:
        raise TooLarge(len(raw), limit)
    value = _loads(raw, items)
    _check_types(value)
    if encode(value) != raw:
        raise NotCanonical
    return value


def _loads(raw: bytes, items: int = MAX_ITEMS) -> Any:
    _walk(raw, items)
    try:
        return cbor2.loads(raw, max_depth=MAX_DEPTH, allow_indefinite=False, allow_duplicate_keys=False)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, ArithmeticError, RecursionError) as error:
        raise Malformed(f"not CBOR: {error}") from None


def _walk(raw: bytes, items: int) -> None:
    """Look at each head (RFC 8949, 3) in turn: no tag, no indefinite length, no more than so many of them."""
    at = seen = 0
    while at < len(raw):
        major, extra = raw[at] >> 5, raw[at] & 0x1F
        seen += 1
        if seen > items:
            raise Malformed(f"more than {items} items")
        if major == 6:
            raise Malformed("tags have no place in a message")
        if extra > 27:
            raise Malformed("not CBOR: a head of indefinite length, or of a kind that does not exist")
        size = 1 << (extra - 24) if extra >= 24 else 0
        argument = int.from_bytes(raw[at + 1 : at + 1 + size], "big") if size else extra
        at += 1 + size + (argument if major in (2, 3) else 0)


def _check_types(value: object) -> None:
    match value:
        case None | bool() | bytes() | str():
            return
        case int() if -(2**63) <= value < 2**64:
            return
        case list():
            for item in value:
                _check_types(item)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise Malformed(f"map keys are text, not {type(key).__name__}")
                _check_types(item)
        case _:
            raise Malformed(f"a {type(value).__name__} has no place in a message")


@frozen
class Envelope:
    """A checked COSE_Sign1 object: who signed, what content type, which payload."""

    signer: Did
    content_type: str
    payload: bytes


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    # RFC 9052, 4.4: context, protected header, no external data, payload.
    return cbor2.dumps(["Signature1", protected, b"", payload])


def sign(content_type: str, payload: bytes, identity: Identity) -> bytes:
    """Wrap a payload into a COSE_Sign1 object by this identity."""
    protected = encode({_ALGORITHM: _EDDSA, _CONTENT_TYPE: content_type, _KID: identity.did.encode()})
    signature = identity.sign(_to_be_signed(protected, payload))
    return encode(cbor2.CBORTag(_COSE_SIGN1, [protected, {}, payload, signature]))


def unwrap(raw: bytes, limit: int) -> Envelope:
    """Take a COSE_Sign1 object apart and check its form and signature.

    Raises TooLarge, NotCanonical, Forged, Malformed.
    """
    if len(raw) > limit:
        raise TooLarge(len(raw), limit)
    if raw[:1] != _TAG_18:
        raise Malformed("not a tagged COSE_Sign1 object (RFC 9052, 4.2)")
    match _loads(raw[1:]):
        case [bytes(protected), dict(unprotected), bytes(payload), bytes(signature)]:
            pass
        case _:
            raise Malformed("not a tagged COSE_Sign1 object (RFC 9052, 4.2)")
    if unprotected:
        raise Malformed("the unprotected header must be an empty map: all headers are protected")
    if encode(cbor2.CBORTag(_COSE_SIGN1, [protected, {}, payload, signature])) != raw:
        raise NotCanonical
    signer, content_type = _read_header(protected)
    if len(signature) != _SIGNATURE_BYTES:
        raise Forged(f"a signature has {_SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        verify_signature(signer, _to_be_signed(protected, payload), signature)
    except BadSignature as error:
        raise Forged(str(error)) from None
    return Envelope(signer, content_type, payload)


def _read_header(protected: bytes) -> tuple[Did, str]:
    if len(protected) > _MAX_HEADER:
        raise TooLarge(len(protected), _MAX_HEADER)
    header = _loads(protected)
    if not isinstance(header, dict) or set(header) != {_ALGORITHM, _CONTENT_TYPE, _KID}:
        raise Malformed("the protected header has exactly algorithm (1), content type (3) and kid (4)")
    match header[_ALGORITHM], header[_CONTENT_TYPE], header[_KID]:
        case -8, str(content_type), bytes(kid):
            pass
        case _:
            raise Malformed("the protected header needs EdDSA (-8), a text content type and a kid of bytes")
    # From the constants, and not from what was decoded: 1 equals True and 1.0 there.
    if encode({_ALGORITHM: _EDDSA, _CONTENT_TYPE: content_type, _KID: kid}) != protected:
        raise NotCanonical
    try:
        return parse_did(kid.decode()), content_type
    except (NotADid, UnicodeDecodeError):
        raise Malformed("the kid is not an Ed25519 did:key") from None
