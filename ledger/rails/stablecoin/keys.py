"""The wallet's key: in an encrypted keystore file, or behind a command of the owner's.

The file is Ethereum's keystore, version 3 (Web3 Secret Storage), as other wallets read and write it.

A signer command reads one JSON object from its input and writes one to its output, then ends:

    {"ask": "address"}                                              {"address": "0x..."}
    {"ask": "signature", "digest": "0x...", "shown": {...}}         {"signature": "0x..."}  (65 bytes: r, s, v)

`shown` is what the digest stands for: a `transaction`, or `typed_data` (EIP-712), for a signer that has rules.
"""

import asyncio
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, Self

import coincurve
from attrs import define, field, frozen

from ledger.rails.stablecoin.errors import SignerFailed
from ledger.rails.stablecoin.networks import address as address_of_text
from ledger.rails.stablecoin.networks import checksummed
from ledger.rails.stablecoin.vouchers import address_of, signed, signer_of

KEY_BYTES: Final = 32
_MAX_KEYSTORE: Final = 16 * 1024
_MAX_ANSWER: Final = 64 * 1024
SIGNER_S: Final = 60.0  # someone may have to press a button
_SCRYPT: Final = 262_144  # the cost that other wallets use: about a second


class KeysError(Exception):
    """Keys that cannot be made or opened; the message says what to do and holds no secret."""


@define
class NoKeystore(KeysError):
    """There is no keystore file."""

    path: str

    def __str__(self) -> str:
        return f"there is no wallet at {self.path}: `idlemesh wallet create` makes one"


@define
class KeystoreThere(KeysError):
    """A file that would be overwritten."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} is there already, and may hold money: move it away first"


@define
class BadKeystore(KeysError):
    """A file that is no keystore."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} is no Ethereum keystore (version 3): restore it from a copy"


@define
class WrongPassphrase(KeysError):
    """The passphrase does not open the keystore."""

    path: str

    def __str__(self) -> str:
        return f"the passphrase does not open {self.path}: check the file that it is in, or type it again"


@define
class BadKey(KeysError):
    """Not a private key."""

    def __str__(self) -> str:
        return "a private key has 32 bytes, written as 64 hexadecimal digits"


class Signer(Protocol):
    """What signs for one address."""

    @property
    def address(self) -> bytes:
        """Of 20 bytes."""

    async def sign(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        """A recoverable signature (r, s, v; v is 27 or 28) of a digest; `shown` is what it stands for, as JSON.

        Raises SignerFailed.
        """


@frozen
class Key:
    """A private key in memory, which its text never shows."""

    _key: coincurve.PrivateKey = field(repr=False)
    address: bytes

    @classmethod
    def of(cls, secret: bytes) -> Self:
        """Raises BadKey."""
        if len(secret) != KEY_BYTES:
            raise BadKey  # shorter ones would be filled up
        try:
            key = coincurve.PrivateKey(secret)
        except ValueError:
            raise BadKey from None
        return cls(key, address_of(key.public_key))

    def signature(self, digest: bytes) -> bytes:
        """Of 65 bytes: r, s, v."""
        return signed(self._key, digest)

    async def sign(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        return self.signature(digest)


# Keystores


def create_keystore(path: Path, passphrase: str, *, secret: bytes | None = None, cost: int = _SCRYPT) -> bytes:
    """Make a keystore file with a new key, or with `secret`; returns its address. Raises KeystoreThere, BadKey."""
    secret = secrets.token_bytes(KEY_BYTES) if secret is None else secret
    made = Key.of(secret)
    from eth_keyfile.keyfile import create_keyfile_json

    kept = create_keyfile_json(secret, passphrase.encode(), version=3, kdf="scrypt", iterations=cost)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeystoreThere(str(path)) from None
    with os.fdopen(file, "w", encoding="utf-8") as out:
        json.dump(kept, out)
        out.flush()
        os.fsync(out.fileno())
    return made.address


def keystore_address(path: Path) -> bytes:
    """Whose keystore it is, without opening it. Raises NoKeystore, BadKeystore."""
    kept = _keystore(path)
    try:
        return address_of_text(kept["address"])
    except (KeyError, ValueError, AttributeError):
        raise BadKeystore(str(path)) from None


def open_keystore(path: Path, passphrase: str) -> Key:
    """Decrypt a key; takes about a second of one core. Raises NoKeystore, BadKeystore, WrongPassphrase."""
    # It takes a second to import, which only those wait for who have a keystore.
    from eth_keyfile.keyfile import decode_keyfile_json

    kept = _keystore(path)
    try:
        return Key.of(bytes(decode_keyfile_json(kept, passphrase.encode())))
    except ValueError as error:
        if "MAC" in str(error):
            raise WrongPassphrase(str(path)) from None
        raise BadKeystore(str(path)) from None
    except (KeyError, TypeError, NotImplementedError, BadKey):
        raise BadKeystore(str(path)) from None


def _keystore(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_KEYSTORE + 1)
    except FileNotFoundError:
        raise NoKeystore(str(path)) from None
    try:
        kept = json.loads(text[:_MAX_KEYSTORE])
    except ValueError:
        raise BadKeystore(str(path)) from None
    if not isinstance(kept, dict):
        raise BadKeystore(str(path))
    return kept


# A command of the owner's


@define
class CommandSigner:
    """A signer that is a program; make one by `start`."""

    _command: Sequence[str] = field(repr=False)
    address: bytes
    _wait_s: float = SIGNER_S

    @classmethod
    async def start(cls, command: Sequence[str], wait_s: float = SIGNER_S) -> Self:
        """Ask the command for its address. Raises SignerFailed."""
        answer = await _asked(command, {"ask": "address"}, wait_s)
        try:
            return cls(command, address_of_text(str(answer["address"])), wait_s)
        except (KeyError, ValueError):
            raise SignerFailed('it did not answer {"address": "0x..."}') from None

    async def sign(self, digest: bytes, shown: Mapping[str, Any]) -> bytes:
        answer = await _asked(
            self._command, {"ask": "signature", "digest": f"0x{digest.hex()}", "shown": shown}, self._wait_s
        )
        try:
            signature = bytes.fromhex(str(answer["signature"]).removeprefix("0x"))
        except (KeyError, ValueError):
            raise SignerFailed('it did not answer {"signature": "0x..."}') from None
        if signer_of(digest, signature) != self.address:
            raise SignerFailed(f"what it gave is not a signature by {checksummed(self.address)}")
        return signature


async def _to_the_end(output: asyncio.StreamReader) -> bytes:
    text = b""
    while part := await output.read(_MAX_ANSWER):
        text += part
        if len(text) > _MAX_ANSWER:
            raise SignerFailed(f"it answered with more than {_MAX_ANSWER} bytes")
    return text


async def _asked(command: Sequence[str], question: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=_MAX_ANSWER)
    except OSError as error:
        raise SignerFailed(f"{command[0]} does not start: {error.strerror}") from None
    try:
        async with asyncio.timeout(wait_s):
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(question).encode())
            process.stdin.close()
            text = await _to_the_end(process.stdout)
            code = await process.wait()
    except TimeoutError:
        raise SignerFailed(f"{command[0]} did not answer in {wait_s:g} s") from None
    except OSError:
        raise SignerFailed(f"{command[0]} ended before it was asked") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise SignerFailed(f"{command[0]} ended with {code}")
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SignerFailed(f"{command[0]} did not answer with a JSON object")
    return answer
