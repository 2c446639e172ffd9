"""Salted commitments to token ids: they say what was asked and answered to those who know the salt.

To others they say nothing. The salt is in the sealed request, so nobody can guess a prompt from its digest.
"""

import array
import hashlib
import sys
from collections.abc import Sequence
from typing import Final

# A checkpoint is due at least this often; the answer's commitment has one link for as many ids.
CHECKPOINT_TOKENS: Final = 64
SALT_BYTES: Final = 32


def prompt_commitment(salt: bytes, ids: Sequence[int]) -> bytes:
    """SHA-256(salt || ids): says which prompt it was to those who know the salt, and nothing to others."""
    return hashlib.sha256(salt + ids_bytes(ids)).digest()


def ids_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as 4 bytes each, little-endian."""
    packed = array.array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class AnswerCommitment:
    """The chained commitment to an answer: h_0 = SHA-256(salt || order), h_k = SHA-256(h_(k-1) || k-th 64 ids).

    The last link may cover fewer than 64 ids. Ids can be added as they come.
    """

    def __init__(self, salt: bytes, order: bytes) -> None:
        self._link = hashlib.sha256(salt + order).digest()
        self._rest: list[int] = []
        self.tokens = 0

    def add(self, ids: Sequence[int]) -> None:
        """Take the next ids of the answer."""
        self._rest += ids
        self.tokens += len(ids)
        while len(self._rest) >= CHECKPOINT_TOKENS:
            part, self._rest = self._rest[:CHECKPOINT_TOKENS], self._rest[CHECKPOINT_TOKENS:]
            self._link = hashlib.sha256(self._link + ids_bytes(part)).digest()

    def value(self) -> bytes:
        """The commitment to all ids so far."""
        return hashlib.sha256(self._link + ids_bytes(self._rest)).digest() if self._rest else self._link


def answer_commitment(salt: bytes, order: bytes, ids: Sequence[int]) -> bytes:
    """The commitment to a whole answer; see AnswerCommitment."""
    chain = AnswerCommitment(salt, order)
    chain.add(ids)
    return chain.value()


def ids_from_bytes(packed: bytes) -> tuple[int, ...]:
    """The token ids that `ids_bytes` packed; raises ValueError when bytes are left over."""
    if len(packed) % 4:
        raise ValueError(f"{len(packed)} bytes are not a whole number of 4-byte token ids")
    ids = array.array("I", packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)
