"""A node's identity and ledger in one file that only a passphrase opens.

    file    = "idlemesh backup 1" LF, operations (4 bytes), memory in KiB (4), salt (16), stream header (24), messages
    message = length of its ciphertext (4 bytes), ciphertext

Numbers are big-endian. The key is Argon2id of the passphrase (UTF-8, NFC) and the salt; the messages are a secretstream
of libsodium (XChaCha20-Poly1305), so that a ledger of any length is written and read piece by piece, and whatever is
altered, reordered or cut off shows. The first message is deterministic CBOR {"seed": the identity's 32 bytes}; those
that follow are the pieces of a chain file (`ledger.chainfile`), and the final one is empty.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import define, frozen
from nacl.pwhash import argon2id

from ledger import codec
from ledger.identity import SEED_BYTES
from node.wire.sealing import HEADER_BYTES, KEY_BYTES, OVERHEAD_BYTES, CannotOpen, OpeningStream, SealingStream

MAGIC: Final = b"idlemesh backup 1\n"
SALT_BYTES: Final = argon2id.SALTBYTES
MAX_MESSAGE: Final = 65_536
MAX_PASSPHRASE: Final = 1_024
_NUMBER_BYTES: Final = 4
_HEAD_BYTES: Final = len(MAGIC) + 2 * _NUMBER_BYTES + SALT_BYTES + HEADER_BYTES
# A file from a stranger must not take all memory, nor an hour.
_MOST_OPERATIONS: Final = 16
_MOST_KIB: Final = 2**20


@define
class NotABackup(Exception):
    """A file that is no backup, or that this passphrase does not open."""

    why: str

    def __str__(self) -> str:
        return f"not a backup that can be restored: {self.why}"


@frozen
class Cost:
    """What guessing a passphrase takes: passes over so much memory, in KiB."""

    operations: int = argon2id.OPSLIMIT_MODERATE
    kib: int = argon2id.MEMLIMIT_MODERATE // 1024


class Sealer:
    """Writes a backup; `head` comes first, then what `add` gives."""

    def __init__(self, passphrase: str, salt: bytes, cost: Cost = Cost()) -> None:
        self._stream = SealingStream(_key(passphrase, salt, cost))
        numbers = cost.operations.to_bytes(_NUMBER_BYTES, "big") + cost.kib.to_bytes(_NUMBER_BYTES, "big")
        self.head: Final = MAGIC + numbers + salt + self._stream.header

    def identity(self, seed: bytes) -> bytes:
        """The first message."""
        return self._message(codec.encode({"seed": seed}))

    def ledger(self, chunk: bytes) -> bytes:
        """The messages of the next piece of the chain file."""
        pieces = (chunk[at : at + MAX_MESSAGE] for at in range(0, len(chunk), MAX_MESSAGE))
        return b"".join(map(self._message, pieces))

    def end(self) -> bytes:
        """The final message."""
        return self._message(b"", final=True)

    def _message(self, message: bytes, *, final: bool = False) -> bytes:
        sealed = self._stream.push(message, final)
        return len(sealed).to_bytes(_NUMBER_BYTES, "big") + sealed


def open_backup(passphrase: str, chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The identity's seed, and the pieces of the chain file, which are read as they are asked for.

    Raises NotABackup, also while the pieces are read: what is cut off or damaged shows where it is.
    """
    messages = _messages(passphrase, iter(chunks))
    first = next(messages, b"")
    try:
        match codec.decode(first, MAX_MESSAGE):
            case {"seed": bytes(seed), **rest} if not rest and len(seed) == SEED_BYTES:
                return seed, messages
    except codec.Malformed:
        pass
    raise NotABackup("it holds no identity")


def _messages(passphrase: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    reader = _Reader(chunks)
    head = reader.take(_HEAD_BYTES)
    if head[: len(MAGIC)] != MAGIC:
        raise NotABackup("it begins like another kind of file, or another version of this one")
    at = len(MAGIC)
    operations, kib = (int.from_bytes(head[i : i + _NUMBER_BYTES], "big") for i in (at, at + _NUMBER_BYTES))
    if not 1 <= operations <= _MOST_OPERATIONS or not 8 <= kib <= _MOST_KIB:
        raise NotABackup("its key would take more memory or time than any backup's")
    salt, header = head[at + 2 * _NUMBER_BYTES : -HEADER_BYTES], head[-HEADER_BYTES:]
    stream, final, opened = OpeningStream(_key(passphrase, salt, Cost(operations, kib)), header), False, 0
    while not final:
        size = int.from_bytes(reader.take(_NUMBER_BYTES), "big")
        if size > MAX_MESSAGE + OVERHEAD_BYTES:
            raise NotABackup("it is damaged")
        try:
            message, final = stream.pull(reader.take(size))
        except CannotOpen:
            raise NotABackup("it is damaged" if opened else "the passphrase is another one, or it is damaged") from None
        opened += 1
        if message:
            yield message
    if reader.more():
        raise NotABackup("something follows its end")


class _Reader:
    """So many bytes at a time, from chunks of any length."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()

    def take(self, count: int) -> bytes:
        """The next bytes. Raises NotABackup where there are fewer."""
        while len(self._buffer) < count:
            chunk = next(self._chunks, b"")
            if not chunk:
                raise NotABackup("it was cut off")
            self._buffer += chunk
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def more(self) -> bool:
        """Whether there is anything left."""
        return bool(self._buffer) or bool(next(self._chunks, b""))


def _key(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    plain = unicodedata.normalize("NFC", passphrase).encode()
    return argon2id.kdf(KEY_BYTES, plain, salt, opslimit=cost.operations, memlimit=1024 * cost.kib)
