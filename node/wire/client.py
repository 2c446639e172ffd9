"""A peer at the other end of HTTP: the client that dials `/mesh/v1`.

Every size, wait and count is bounded, since whoever answers may be hostile. Vendor errors become `Unreachable` here.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from io import BytesIO
from typing import Final

import aiohttp

from ledger import codec
from ledger.records import ChannelTerms, Forgiveness, Grant, Offer, Receipt, Resolution
from node.models.manifest import MAX_MANIFEST
from node.wire.messages import (
    MAX_EXCHANGED,
    MAX_NONCE,
    MAX_REFUSAL,
    MAX_SIGNATURES,
    Refused,
    Unreachable,
    decode_refusal,
    encode_envelope,
)

CBOR: Final = "application/cbor"
MAX_OFFERS: Final = 64
MAX_TOKENIZER: Final = 64 * 2**20
# A seller gives a sign of life at least every 5 seconds; three missed ones mean that it is gone.
SIGN_OF_LIFE_S: Final = 5.0
STALL_S: Final = 3 * SIGN_OF_LIFE_S
# A seller waits for pay at least twice as long as its buyer thinks fair: the checkpoint takes its time to get there.
UNPAID_S: Final = 5.0
LEAST_PATIENCE_S: Final = 2 * UNPAID_S
CALL_S: Final = 10.0
# A tokenizer file has up to 64 MB: so many times as long.
_DOWNLOAD_CALLS: Final = 12
# A look at a chain takes the peer a while: so many times as long as another call.
_CHAIN_CALLS: Final = 3
_CONNECT_S: Final = 5.0
_FILE_S: Final = 20.0
_CHUNK: Final = 65_536


class HttpPeer:
    """One node at one URL; the session is the caller's and shared by all peers."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, stall_s: float = STALL_S, call_s: float = CALL_S
    ) -> None:
        """`stall_s`: how long an answer's stream may be silent. `call_s`: how long any other call may take in all."""
        self._session = session
        self._base = url.rstrip("/") + "/mesh/v1"
        self._stall_s = stall_s
        self._call_s = call_s
        self.url: Final = url

    async def offers(self) -> Sequence[bytes]:
        raw = await self._call("GET", "/offers", limit=MAX_OFFERS * (Offer.limit + 8))
        try:
            offers = codec.decode(raw, len(raw), 1 + MAX_OFFERS)
        except codec.Malformed as error:
            raise Unreachable(f"{self.url} answers no offers: {error}") from None
        if not isinstance(offers, list) or len(offers) > MAX_OFFERS or not all(isinstance(o, bytes) for o in offers):
            raise Unreachable(f"{self.url} answers no list of at most {MAX_OFFERS} offers")
        return offers

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        on = "" if rail == "credit" else f"/{rail}"
        return await self._call("GET", f"/grants/{buyer}/{unit}{on}", limit=Grant.limit)

    async def manifest(self, model: bytes) -> bytes:
        return await self._call("GET", f"/manifests/{model.hex()}", limit=MAX_MANIFEST)

    async def tokenizer(self, digest: bytes) -> bytes:
        return await self._call("GET", f"/tokenizers/{digest.hex()}", limit=MAX_TOKENIZER, calls=_DOWNLOAD_CALLS)

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=self._stall_s)
        try:
            async with self._session.post(
                f"{self._base}/orders",
                data=BytesIO(encode_envelope(order, sealed)),  # as a stream: aiohttp warns of bytes over 1 MiB
                headers={"content-type": CBOR},
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                while chunk := await self._next(response):
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from None

    async def _next(self, response: aiohttp.ClientResponse) -> bytes:
        """What arrived since; empty at the end."""
        # aiohttp's own clock stops for good when a body breaks HTTP's framing, and then nothing would ever come.
        async with asyncio.timeout(self._stall_s):
            return await response.content.readany()

    async def receipt(self, order: bytes) -> bytes | None:
        return await self._of_order(order, "receipt", Receipt.limit)

    async def resolution(self, order: bytes) -> bytes | None:
        return await self._of_order(order, "resolution", Resolution.limit)

    async def _of_order(self, order: bytes, what: str, limit: int) -> bytes | None:
        try:
            return await self._call("GET", f"/orders/{order.hex()}/{what}", limit=limit)
        except Refused as refusal:
            if refusal.code == "unknown_order":
                return None
            raise

    async def acknowledge(self, raw: bytes) -> None:
        await self._call("POST", "/acknowledgements", raw)

    async def cancel(self, raw: bytes) -> None:
        await self._call("POST", "/cancels", raw)

    async def settlement(self, raw: bytes) -> bytes:
        return await self._call("POST", "/settlements", raw, limit=MAX_SIGNATURES)

    async def netting(self, raw: bytes) -> bytes:
        return await self._call("POST", "/nettings", raw, limit=MAX_SIGNATURES)

    async def forgiveness(self, raw: bytes) -> bytes:
        return await self._call("POST", "/forgiveness", raw, limit=Forgiveness.limit)

    async def channel_terms(self) -> bytes:
        return await self._call("GET", "/channel-terms", limit=ChannelTerms.limit)

    async def channel(self, raw: bytes) -> None:
        await self._call("POST", "/channels", raw, calls=_CHAIN_CALLS)

    async def deposit(self, raw: bytes) -> None:
        await self._call("POST", "/deposits", raw, calls=_CHAIN_CALLS)

    async def challenge(self) -> bytes:
        return await self._call("GET", "/challenge", limit=MAX_NONCE)

    async def state(self, raw: bytes) -> bytes:
        return await self._call("POST", "/states", raw, limit=MAX_EXCHANGED)

    async def hand_back(self, raw: bytes) -> None:
        await self._call("POST", "/records", raw)

    async def _call(
        self, method: str, path: str, body: bytes | None = None, limit: int = MAX_REFUSAL, calls: int = 1
    ) -> bytes:
        """One call; it may take as long as `calls` short ones."""
        timeout = aiohttp.ClientTimeout(total=calls * self._call_s, sock_connect=_CONNECT_S)
        headers = {"content-type": CBOR} if body is not None else {}
        try:
            async with self._session.request(
                method, self._base + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status not in (200, 204):
                    raise await self._refusal(response)
                return await _read(response, limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from None
        except codec.TooLarge as error:
            raise Unreachable(f"{self.url} answers too much: {error}") from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        try:
            return decode_refusal(await _read(response, MAX_REFUSAL))
        except (codec.Malformed, UnicodeDecodeError):
            return Unreachable(f"{self.url} answers HTTP {response.status}, and no node's refusal")

    def _unreachable(self, error: BaseException) -> Unreachable:
        if isinstance(error, asyncio.TimeoutError):
            return Unreachable(f"{self.url} does not answer in time")
        return Unreachable(f"{self.url} cannot be reached: {_in_words(error)}")


def _in_words(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be found"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return "nothing listens there"
    return type(error).__name__


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """A body of at most `limit` bytes. Raises codec.TooLarge as soon as it is exceeded."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > limit:
            raise codec.TooLarge(len(body), limit)
    return bytes(body)
