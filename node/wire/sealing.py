"""Sealing: a request that only one seller can open, and an answer that only its buyer can.

Theory of operation. The buyer makes an X25519 key for one order and agrees with the prekey of the seller's offer on a
shared secret. From it, BLAKE2b (keyed with the secret) derives one key per direction:

    request key = KDF("request", ephemeral key, prekey, offer digest, nonce, buyer's did)
    answer key  = KDF("answer", ephemeral key, prekey, order digest)

The request's key binds buyer, offer and nonce, so a stranger who signs an order of its own around somebody's sealed
request gets nothing but a failed decryption. The answer's key binds the order. Each side encrypts with libsodium's
secretstream (XChaCha20-Poly1305), whose final tag says that nothing was cut off. The prekey is deleted soon after its
offer has expired: later theft of the seller's keys opens no old request.
"""

from hashlib import blake2b
from typing import Final

from attrs import field, frozen
from nacl.bindings import (
    crypto_scalarmult,
    crypto_scalarmult_base,
    crypto_secretstream_xchacha20poly1305_ABYTES,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)
from nacl.exceptions import CryptoError

from ledger.records import Order

KEY_BYTES: Final = 32
HEADER_BYTES: Final = crypto_secretstream_xchacha20poly1305_HEADERBYTES
OVERHEAD_BYTES: Final = crypto_secretstream_xchacha20poly1305_ABYTES
_FINAL: Final = crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MESSAGE: Final = crypto_secretstream_xchacha20poly1305_TAG_MESSAGE


class CannotOpen(ValueError):
    """Sealed bytes that this key does not open: meant for somebody else, or changed on the way."""

    def __init__(self) -> None:
        super().__init__("the sealed message is for another key, or was changed on the way")


@frozen
class KeyPair:
    """An X25519 key pair; the private half is never printed."""

    private: bytes = field(repr=False)
    public: bytes

    @staticmethod
    def from_seed(seed: bytes) -> "KeyPair":
        """Make a pair from 32 bytes of entropy."""
        return KeyPair(seed, crypto_scalarmult_base(seed))


@frozen
class RequestBinding:
    """What a sealed request is bound to: buyer, offer and nonce."""

    offer: bytes
    nonce: bytes
    buyer: str

    @staticmethod
    def of(order: Order, buyer: str) -> "RequestBinding":
        """The binding of a request that came with this order, signed by this buyer."""
        return RequestBinding(order.offer, order.nonce, buyer)


def _shared(private: bytes, public: bytes) -> bytes:
    if len(public) != KEY_BYTES:  # libsodium takes a pointer, and would read on
        raise CannotOpen
    try:
        return crypto_scalarmult(private, public)
    except (CryptoError, RuntimeError, ValueError, TypeError):  # a public key of low order
        raise CannotOpen from None


def _derive(shared: bytes, label: bytes, *parts: bytes) -> bytes:
    # Every part with its length before it, so that no two lists of parts give the same bytes.
    message = b"".join(len(part).to_bytes(4, "little") + part for part in (label, *parts))
    return blake2b(message, key=shared, digest_size=KEY_BYTES, person=b"idlemesh-wire-1").digest()


def _request_key(shared: bytes, ephemeral: bytes, prekey: bytes, binding: RequestBinding) -> bytes:
    return _derive(shared, b"request", ephemeral, prekey, binding.offer, binding.nonce, binding.buyer.encode())


def seal_request(body: bytes, prekey: bytes, ephemeral: KeyPair, binding: RequestBinding) -> bytes:
    """Seal a request for the holder of the prekey: ephemeral public key, stream header, one final message.

    Raises CannotOpen when the prekey is no usable X25519 key.
    """
    key = _request_key(_shared(ephemeral.private, prekey), ephemeral.public, prekey, binding)
    stream = SealingStream(key)
    return ephemeral.public + stream.header + stream.push(body, final=True)


def open_request(sealed: bytes, prekey: KeyPair, binding: RequestBinding) -> bytes:
    """Open a request sealed for this prekey under this binding. Raises CannotOpen."""
    ephemeral, rest = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    if len(rest) < HEADER_BYTES + OVERHEAD_BYTES:
        raise CannotOpen
    key = _request_key(_shared(prekey.private, ephemeral), ephemeral, prekey.public, binding)
    body, final = OpeningStream(key, rest[:HEADER_BYTES]).pull(rest[HEADER_BYTES:])
    if not final:
        raise CannotOpen
    return body


def buyers_answer_key(ephemeral: KeyPair, prekey: bytes, order: bytes) -> bytes:
    """The key of the answer to an order (its digest), as the buyer derives it."""
    return _derive(_shared(ephemeral.private, prekey), b"answer", ephemeral.public, prekey, order)


def sellers_answer_key(sealed: bytes, prekey: KeyPair, order: bytes) -> bytes:
    """The same key as the seller derives it from the sealed request. Raises CannotOpen."""
    ephemeral = sealed[:KEY_BYTES]
    return _derive(_shared(prekey.private, ephemeral), b"answer", ephemeral, prekey.public, order)


class SealingStream:
    """The writing end of a secretstream."""

    def __init__(self, key: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        self.header: Final = crypto_secretstream_xchacha20poly1305_init_push(self._state, key)

    def push(self, message: bytes, final: bool = False) -> bytes:
        """Encrypt the next message; the final one ends the stream."""
        tag = _FINAL if final else _MESSAGE
        return crypto_secretstream_xchacha20poly1305_push(self._state, message, tag=tag)


class OpeningStream:
    """The reading end of a secretstream."""

    def __init__(self, key: bytes, header: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        try:
            crypto_secretstream_xchacha20poly1305_init_pull(self._state, header, key)
        except (CryptoError, RuntimeError, ValueError, TypeError):
            raise CannotOpen from None

    def pull(self, ciphertext: bytes) -> tuple[bytes, bool]:
        """Decrypt the next message: (message, whether it was the final one). Raises CannotOpen."""
        try:
            message, tag = crypto_secretstream_xchacha20poly1305_pull(self._state, ciphertext)
        except (CryptoError, RuntimeError, ValueError, TypeError):
            raise CannotOpen from None
        return message, tag == _FINAL
