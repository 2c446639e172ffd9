"""Who somebody is: an Ed25519 key, named by its did:key (https://w3c-ccg.github.io/did-key-spec/).

The name is the key itself: multibase base58btc over the multicodec prefix 0xed01 and the 32 bytes of the public key,
so a signature can be checked with nothing but the name.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import Final, NewType, cast

import multibase
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

Did = NewType("Did", str)

_PREFIX: Final = "did:key:"
_ED25519: Final = b"\xed\x01"
SEED_BYTES: Final = 32
# A did:key of an Ed25519 key has always this length.
DID_LENGTH: Final = 56


class NotADid(ValueError):
    """Text that names no Ed25519 did:key."""

    def __init__(self, text: object) -> None:
        super().__init__(f"{str(text)[:80]!r} is not an Ed25519 did:key: it is did:key:z6Mk and 44 more characters")


class BadSignature(ValueError):
    """A signature that the named key did not make over these bytes."""

    def __init__(self, signer: str) -> None:
        super().__init__(f"the signature is not by {signer}")
        self.signer = signer


class Identity:
    """A private key and the name that follows from it. Never printed, never pickled, never sent."""

    def __init__(self, seed: bytes) -> None:
        """Take 32 bytes of entropy; raises ValueError on any other length."""
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an identity is made from {SEED_BYTES} bytes, not {len(seed)}")
        self._key = SigningKey(seed)
        self.did: Final = did_of(bytes(self._key.verify_key))

    def __repr__(self) -> str:
        return f"Identity({self.did})"

    def __reduce__(self) -> str:
        raise TypeError("an identity is not to be copied")

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over a message."""
        return bytes(self._key.sign(message).signature)

    def secret(self, purpose: bytes) -> bytes:
        """A 32-byte key for one purpose at home (encrypting side tables), that only this identity can derive."""
        return blake2b(purpose, key=bytes(self._key), digest_size=32, person=b"idlemesh-home").digest()


def did_of(public_key: bytes) -> Did:
    """The did:key of a 32-byte Ed25519 public key."""
    return Did(_PREFIX + multibase.encode("base58btc", _ED25519 + public_key).decode())


@lru_cache(maxsize=4096)
def _verify_key(did: str) -> VerifyKey:
    if not did.startswith(_PREFIX + "z") or len(did) != DID_LENGTH:
        raise NotADid(did)
    try:
        raw = cast(bytes, multibase.decode(did.removeprefix(_PREFIX)))
    except ValueError:
        raise NotADid(did) from None
    if len(raw) != 34 or raw[:2] != _ED25519 or did_of(raw[2:]) != did:
        raise NotADid(did)
    return VerifyKey(raw[2:])


def parse_did(text: str) -> Did:
    """Check that text names an Ed25519 key, in its one canonical spelling. Raises NotADid."""
    _verify_key(text)
    return Did(text)


def verify_signature(signer: str, message: bytes, signature: bytes) -> None:
    """Check a signature against the key in the signer's name. Raises NotADid, BadSignature."""
    key = _verify_key(signer)
    try:
        key.verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        raise BadSignature(signer) from None
