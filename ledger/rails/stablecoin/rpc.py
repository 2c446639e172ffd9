"""JSON-RPC endpoints of a chain: several, and none of them trusted.

Every answer is bounded in size and time, and parsed strictly. An endpoint is asked for its chain id before anything
else, and again every now and then. One that fails is put aside for a while, longer each time; if none is left, all are
tried. What an endpoint says of a call (that it reverts) is kept apart from its not saying anything of use.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
from attrs import define, field, frozen

from ledger.rails.stablecoin.contracts import Malformed
from ledger.rails.stablecoin.errors import ChainError, Unreachable, WrongChain

ANSWER_S: Final = 10.0
MAX_ANSWER: Final = 8 * 1024 * 1024  # a few thousand events
MAX_ENDPOINTS: Final = 8
_AT_ONCE: Final = 8  # questions to one endpoint
_CHECK_S: Final = 600.0
_ASIDE_S, _MAX_ASIDE_S = 5.0, 300.0
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}")

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Silent(ChainError):
    """An endpoint that gave no answer of use."""


@define
class Said(ChainError):
    """An endpoint's error: of the call, not of the endpoint."""

    code: int
    message: str
    data: bytes = b""

    def __str__(self) -> str:
        return self.message


def _in_words(error: Exception) -> str:
    """Why nothing came, without the address, which may hold a key."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be found"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        return "nothing listens there: is it running?"
    return type(error).__name__


def quantity(found: object) -> int:
    """A number, as JSON-RPC writes it. Raises Malformed."""
    if not isinstance(found, str) or not _QUANTITY.fullmatch(found):
        raise Malformed("not a number")
    return int(found, 16)


def octets(found: object) -> bytes:
    """Bytes, as JSON-RPC writes them. Raises Malformed."""
    if not isinstance(found, str) or not found.startswith("0x"):
        raise Malformed("not bytes")
    try:
        raw = bytes.fromhex(found[2:])
    except ValueError:
        raise Malformed("not bytes") from None
    if len(found) != 2 + 2 * len(raw):  # there was white space
        raise Malformed("not bytes")
    return raw


def digest(found: object) -> bytes:
    """A hash. Raises Malformed."""
    raw = octets(found)
    if len(raw) != 32:
        raise Malformed("not a hash")
    return raw


def hexed(value: int | bytes) -> str:
    """As JSON-RPC writes numbers and bytes."""
    return hex(value) if isinstance(value, int) else f"0x{value.hex()}"


@frozen
class Head:
    """A block: the last one that an endpoint has. `time` in seconds since 1970, `base_fee` in wei."""

    number: int
    hash: bytes
    time: int
    base_fee: int


def head(found: Any) -> Head:
    """A block, of an answer. Raises Malformed."""
    if not isinstance(found, dict):
        raise Malformed("not a block")
    base_fee = quantity(found.get("baseFeePerGas", "0x0"))
    return Head(quantity(found.get("number")), digest(found.get("hash")), quantity(found.get("timestamp")), base_fee)


@define(eq=False)
class Endpoint:
    """One of them. `host` is all that may be shown of its address."""

    _url: str = field(repr=False)
    chain_id: int
    _session: aiohttp.ClientSession = field(repr=False)
    answer_s: float = ANSWER_S
    host: str = field(init=False)
    aside_until: float = field(init=False, default=0.0)
    _failures: int = field(init=False, default=0)
    _checked: float | None = field(init=False, default=None)
    _slots: asyncio.Semaphore = field(init=False, factory=lambda: asyncio.Semaphore(_AT_ONCE), repr=False)
    _ids: Any = field(init=False, factory=lambda: count(1), repr=False)

    def __attrs_post_init__(self) -> None:
        self.host = urlsplit(self._url).hostname or "?"

    async def ask(self, method: str, *parameters: Any, parse: Callable[[Any], T]) -> T:
        """An answer of this chain's. Raises Silent, Said."""
        try:
            async with self._slots:
                await self._check()
                answer = parse(await self._post(method, parameters))
        except (Silent, Malformed) as error:
            self._put_aside(str(error))
            raise Silent(f"{self.host}: {error}") from None
        except WrongChain as error:
            self._put_aside(str(error))
            raise Silent(str(error)) from None
        self._failures, self.aside_until = 0, 0.0
        return answer

    async def _check(self) -> None:
        now = time.monotonic()
        if self._checked is None or now - self._checked > _CHECK_S:
            found = quantity(await self._post("eth_chainId", ()))
            if found != self.chain_id:
                raise WrongChain(self.host, self.chain_id, found)
            self._checked = now

    async def _post(self, method: str, parameters: Sequence[Any]) -> Any:
        number = next(self._ids)
        question = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(parameters)}
        try:
            async with asyncio.timeout(self.answer_s):
                async with self._session.post(self._url, json=question, allow_redirects=False) as response:
                    text = await _read(response)
                    status = response.status
        except TimeoutError:
            raise Silent(f"no answer in {self.answer_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Silent(_in_words(error)) from None
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise Silent(f"status {status}, no JSON") from None
        if not isinstance(answer, dict) or answer.get("id") not in (number, None):
            raise Silent(f"status {status}, no answer to what was asked")
        if answer.get("error") is not None:
            raise _said(answer["error"], status)
        if "result" not in answer:
            raise Silent(f"status {status}, without a result")
        return answer["result"]

    def _put_aside(self, why: str) -> None:
        self._failures += 1
        self._checked = None
        wait_s = min(_ASIDE_S * 2 ** min(self._failures - 1, 10), _MAX_ASIDE_S)
        self.aside_until = time.monotonic() + wait_s
        _log.info("the RPC endpoint at %s is put aside for %g s: %s", self.host, wait_s, why)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER:
            raise Silent(f"more than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _said(error: object, status: int) -> ChainError:
    if not isinstance(error, dict):
        return Silent(f"status {status}, no error that can be read")
    code, message, data = error.get("code"), error.get("message"), error.get("data")
    if not isinstance(code, int) or not isinstance(message, str):
        return Silent(f"status {status}, no error that can be read")
    if status == 429 or code in (-32005, -32016, 429):
        return Silent("too many questions for it")
    text = "".join(letter if letter.isprintable() else " " for letter in message[:200])
    raw = data.get("data") if isinstance(data, dict) else data
    try:
        return Said(code, text, octets(raw)[:1024])
    except Malformed:
        return Said(code, text)


class Endpoints:
    """All of a chain's endpoints."""

    def __init__(self, urls: Sequence[str], chain_id: int, answer_s: float = ANSWER_S) -> None:
        if not 0 < len(urls) <= MAX_ENDPOINTS:
            raise ValueError(f"1 to {MAX_ENDPOINTS} endpoints")
        # No environment: a proxy would see keys; no cookies between endpoints.
        self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        self._all = [Endpoint(url, chain_id, self._session, answer_s) for url in urls]

    async def close(self) -> None:
        await self._session.close()

    @property
    def usable(self) -> list[Endpoint]:
        """Those that are not put aside; all, if each is: those first that will be back first."""
        now = time.monotonic()
        found = [each for each in self._all if each.aside_until <= now]
        return found or sorted(self._all, key=lambda each: each.aside_until)

    async def ask(self, method: str, *parameters: Any, parse: Callable[[Any], T]) -> T:
        """The first answer of use. Raises Said, Unreachable."""
        why = "none is configured"
        for endpoint in self.usable:
            try:
                return await endpoint.ask(method, *parameters, parse=parse)
            except Silent as error:
                why = str(error)
        raise Unreachable(why)

    async def ask_all(
        self, method: str, *parameters: Any, parse: Callable[[Any], T]
    ) -> list[tuple[Endpoint, T | Said]]:
        """What each has to say, those left out that are silent. Raises Unreachable: all are."""
        return await self.each(lambda endpoint: endpoint.ask(method, *parameters, parse=parse))

    async def each(self, ask: Callable[[Endpoint], Any]) -> list[tuple[Endpoint, Any]]:
        """The same for a longer conversation. Raises Unreachable."""
        asked = self.usable
        answers = await asyncio.gather(*(ask(endpoint) for endpoint in asked), return_exceptions=True)
        heard: list[tuple[Endpoint, Any]] = []
        why = "none is configured"
        for endpoint, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Silent):
                why = str(answer)
            elif isinstance(answer, BaseException) and not isinstance(answer, Said):
                raise answer
            else:
                heard.append((endpoint, answer))
        if not heard:
            raise Unreachable(why)
        return heard
