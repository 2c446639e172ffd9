"""What is left of money paid in advance to a seller of x402, asked back from it: what a node's door does when asked.

Theory of operation. x402 has no word for it, so only sellers that have `/v1/refunds` can be asked. Who asks says how
much, gives the asking a name (the effect's key), and signs a transfer of one unit, which is never made. The seller
sends the money by a transfer whose nonce follows from that name: so it moves once however often it is asked for, and
the token tells both sides whether it has. What the seller says is no more than a reason to wait.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from ledger.effects import Effect
from ledger.money import Amount
from ledger.rails.port import Answer
from ledger.rails.stablecoin.errors import ChainError, SignerFailed
from node.engine.paying import MAX_REFUSAL, REQUIRED, SIGNATURE, reason_in
from node.engine.streaming import RemoteFailed
from node.exchange.strangers import refund_nonce, wallet_of
from node.gateway.paying.signing import Signing, header_of
from node.gateway.paying.terms import choose, count, decoded

_ANSWER_S: Final = 20.0
# A seller that has said that it sends the money is not asked again so soon: asking takes a signature.
_PATIENCE_S: Final = 120.0
_MAX_TERMS: Final = 64 * 1024
_SENT: Final = Answer("unknown", why="the seller says that it sends the money back")


class NotSaid(Exception):
    """What is left at a seller cannot be had; the message says why, and what to look at."""


class AskingBack:
    """Asks sellers for what is left; see `node.paid.prepaid.Prepaid`."""

    def __init__(self, session: aiohttp.ClientSession, signing: Signing) -> None:
        self._session = session
        self._signing = signing
        self._doors: list[tuple[str, str, Callable[[], str | None]]] = []
        self._promised: dict[bytes, float] = {}

    def know(self, name: str, url: str, pay_to: Callable[[], str | None]) -> None:
        """A remote, with the address that it is paid at by now, if it was ever paid."""
        self._doors.append((name, url, pay_to))

    async def fate(self, effect: Effect) -> Answer:
        """Whether the token has made the transfer, at depth."""
        seller = wallet_of(effect.account.payee)
        try:
            if await self._signing.is_used_by(seller, self._nonce(effect), deep=True):
                self._promised.pop(effect.key, None)
                return Answer("settled", effect.amount)
        except ChainError as error:
            return Answer("unknown", why=str(error))
        since = self._promised.get(effect.key)
        return _SENT if since is not None and time.monotonic() - since < _PATIENCE_S else Answer("absent")

    async def perform(self, effect: Effect) -> Answer:
        """Ask for it, once more if need be."""
        answer = await self.fate(effect)
        if answer.fate != "absent":
            return answer
        door = self._door(effect.account.payee)
        if door is None:
            return Answer("failed", why=_no_door(effect.account.payee))
        name, url = door
        try:
            return await self._asked(name, f"{url}/refunds?amount={effect.amount}&id={effect.key.hex()}", effect)
        except (RemoteFailed, SignerFailed) as error:
            return Answer("failed", why=str(error))
        except TimeoutError:
            return Answer("unknown", why=f"the remote {name!r} does not answer in time")
        except (ChainError, aiohttp.ClientError, OSError, ValueError) as error:
            return Answer("unknown", why=f"the remote {name!r} cannot be asked ({type(error).__name__})")

    async def left(self, payee: str) -> int:
        """What a seller says is left of what this node has paid it in advance. Raises NotSaid."""
        door = self._door(payee)
        if door is None:
            raise NotSaid(_no_door(payee))
        name, url = door[0], f"{door[1]}/balance"
        try:
            proof = await self._proof("GET", name, url, payee)
            async with self._sent("GET", url, {SIGNATURE: proof}) as response:
                said: Any = json.loads(await response.content.read(MAX_REFUSAL))
                found = count(said.get("left")) if response.status == 200 and isinstance(said, dict) else None
        except (RemoteFailed, SignerFailed, ChainError) as error:
            raise NotSaid(str(error)) from None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise NotSaid(f"the remote {name!r} cannot be asked ({type(error).__name__})") from None
        if found is None:
            raise NotSaid(f"the remote {name!r} does not say what is left there")
        return found

    def _door(self, payee: str) -> tuple[str, str] | None:
        """The remote that is paid at a wallet, and where it is."""
        pay_to = _address_of(payee)
        doors = [(name, url) for name, url, paid_at in self._doors if (paid_at() or "").lower() == pay_to]
        return doors[0] if doors else None

    async def _proof(self, method: str, name: str, url: str, payee: str) -> str:
        """Who asks: the header that says so. Raises RemoteFailed, SignerFailed, ChainError, and what aiohttp raises."""
        async with self._sent(method, url) as response:
            required = response.headers.get(REQUIRED)
            if response.status != 402 or required is None:
                what = f"gives nothing back that was paid in advance: it has no /{urlsplit(url).path.split('/')[-1]}"
                raise RemoteFailed(name, f"{what} (HTTP {response.status})")
        terms = choose(name, decoded(name, required), self._signing.coin, ("exact",))
        if (terms.amount, terms.pay_to) != (1, _address_of(payee)):
            raise RemoteFailed(name, "asks to be paid for giving money back")
        return header_of(name, terms, await self._signing.exact(terms))

    async def _asked(self, name: str, url: str, effect: Effect) -> Answer:
        proof = await self._proof("POST", name, url, effect.account.payee)
        async with self._sent("POST", url, {SIGNATURE: proof}) as response:
            if response.status in (200, 202):
                self._promised[effect.key] = time.monotonic()
                return _SENT
            why, code = reason_in(await response.content.read(MAX_REFUSAL))
            why = f": {why}" if why else ""
            if code == "no_balance":
                # What it charged for an answer that was lost, or for others with this wallet, is in its books alone.
                why += "; `idlemesh dismiss` this one, and `wallet withdraw` with --what-is-left"
            said = (
                f"the remote {name!r} does not give {Amount(effect.amount, 'uusd')} back (HTTP {response.status}){why}"
            )
            return Answer("failed" if response.status < 500 else "unknown", why=said)

    @contextlib.asynccontextmanager
    async def _sent(
        self, method: str, url: str, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            asyncio.timeout(_ANSWER_S),
            self._session.request(
                method, url, headers=headers, allow_redirects=False, max_field_size=_MAX_TERMS, max_line_size=_MAX_TERMS
            ) as response,
        ):
            yield response

    def _nonce(self, effect: Effect) -> bytes:
        return refund_nonce(self._signing.address, effect.key)


def _address_of(payee: str) -> str:
    return f"0x{wallet_of(payee).hex()}"


def _no_door(payee: str) -> str:
    return f'no remote here is paid at {_address_of(payee)}: name it in [[remotes]], with pay = "x402"'
