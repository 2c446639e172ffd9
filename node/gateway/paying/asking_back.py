"""What is left of money paid in advance to a seller of x402, asked back from it: what a node's door does when asked.

Theory of operation. x402 has no word for it, so only sellers that have `/v1/refunds` can be asked. Who asks says how
much, gives the asking a name (the effect's key), and signs a transfer of one unit, which is never made. The seller
sends the money by a transfer whose nonce follows from that name: so it moves once however often it is asked for, and
the token tells both sides whether it has. What the seller says is no more than a reason to wait.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp

from ledger.effects import Effect
from ledger.money import Amount
from ledger.rails.port import Answer
from ledger.rails.stablecoin.errors import ChainError, SignerFailed
from node.engine.paying import MAX_REFUSAL, REQUIRED, SIGNATURE, reason_in
from node.engine.streaming import RemoteFailed
from node.exchange.strangers import refund_nonce, wallet_of
from node.gateway.paying.signing import Signing, header_of
from node.gateway.paying.terms import choose, decoded

_ANSWER_S: Final = 20.0
# A seller that has said that it sends the money is not asked again so soon: asking takes a signature.
_PATIENCE_S: Final = 120.0
_MAX_TERMS: Final = 64 * 1024
_SENT: Final = Answer("unknown", why="the seller says that it sends the money back")


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
        pay_to = f"0x{wallet_of(effect.account.payee).hex()}"
        doors = [(name, url) for name, url, paid_at in self._doors if (paid_at() or "").lower() == pay_to]
        if not doors:
            return Answer(
                "failed", why=f'no remote here is paid at {pay_to}: name it in [[remotes]], with pay = "x402"'
            )
        name, url = doors[0]
        try:
            return await self._asked(
                name, f"{url}/refunds?amount={effect.amount}&id={effect.key.hex()}", pay_to, effect
            )
        except (RemoteFailed, SignerFailed) as error:
            return Answer("failed", why=str(error))
        except TimeoutError:
            return Answer("unknown", why=f"the remote {name!r} does not answer in time")
        except (ChainError, aiohttp.ClientError, OSError, ValueError) as error:
            return Answer("unknown", why=f"the remote {name!r} cannot be asked ({type(error).__name__})")

    async def _asked(self, name: str, url: str, pay_to: str, effect: Effect) -> Answer:
        async with self._posted(url) as response:
            required = response.headers.get(REQUIRED)
            if response.status != 402 or required is None:
                why = f"the remote {name!r} gives nothing back that was paid in advance: it has no /refunds"
                return Answer("failed", why=f"{why} (HTTP {response.status})")
        terms = choose(name, decoded(name, required), self._signing.coin, ("exact",))
        if (terms.amount, terms.pay_to) != (1, pay_to):
            return Answer("failed", why=f"the remote {name!r} asks to be paid for giving money back")
        proof = header_of(name, terms, await self._signing.exact(terms))
        async with self._posted(url, {SIGNATURE: proof}) as response:
            if response.status in (200, 202):
                self._promised[effect.key] = time.monotonic()
                return _SENT
            why, code = reason_in(await response.content.read(MAX_REFUSAL))
            why = f": {why}" if why else ""
            if code == "no_balance":
                # What it charged for an answer that was lost, or for others with this wallet, is in its books alone.
                why += "; `idlemesh dismiss` this one, and ask for no more than the seller says is left"
            said = (
                f"the remote {name!r} does not give {Amount(effect.amount, 'uusd')} back (HTTP {response.status}){why}"
            )
            return Answer("failed" if response.status < 500 else "unknown", why=said)

    @contextlib.asynccontextmanager
    async def _posted(self, url: str, headers: dict[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            asyncio.timeout(_ANSWER_S),
            self._session.post(
                url, headers=headers, allow_redirects=False, max_field_size=_MAX_TERMS, max_line_size=_MAX_TERMS
            ) as response,
        ):
            yield response

    def _nonce(self, effect: Effect) -> bytes:
        return refund_nonce(self._signing.address, effect.key)
