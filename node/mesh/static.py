"""The peers that the owner named: their offers and credit are fetched, verified, and fetched again in time."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from attrs import evolve

from ledger.codec import Malformed
from ledger.identity import Did
from ledger.money import Unit
from ledger.records import Grant, Offer, Signed, check_time, open_record
from node.market.offers import OfferBook
from node.models.gguf import BadModelFile
from node.models.manifest import BadManifest, Manifest
from node.models.tokenizer import Tokenizer, TokenizerMismatch
from node.models.tokenizers import Tokenizers
from node.ports import Clock
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer

REFRESH_S: Final = 30.0
# A connection lasts as long as the peer answers; a restart that went unnoticed must not stay so for long.
MEET_AGAIN_S: Final = 300.0
_FIRST_RETRY_S: Final = 0.5
# A tokenizer is a few megabytes at most; one that does not come in this time is not asked for again for a while.
_FETCH_S: Final = 20.0
_MISSING_S: Final = 300.0

_log = logging.getLogger(__name__)


class NoTokenizerToBeHad(Exception):
    """No peer gave the tokenizer that an offer names."""


class NamedPeers:
    """Keeps in touch with each named peer in the background; `trouble` says what is wrong with one now."""

    def __init__(
        self,
        me: Did,
        peers: Mapping[Did, Peer],
        tokenizers: Tokenizers,
        clock: Clock,
        take_grant: Callable[[Did, Grant], Awaitable[None]],
        meet: Callable[[Did], Awaitable[None]] | None = None,
        may_work_with: Callable[[Did], Refused | None] = lambda _: None,
        rails: Sequence[str] = ("credit",),
    ) -> None:
        """`take_grant` is told of each credit that a peer grants, verified; it may be told again of the same one.

        `meet` is called on each connection before any offer of the peer is taken. It raises Refused, Unreachable or
        Malformed; the peer's offers are taken all the same, unless `may_work_with` says why not. `rails` are those
        that this node pays on: what is granted on others is not asked for.
        """
        self._me = me
        self._clock = clock
        self._take_grant = take_grant
        self._meet = meet
        self._may_work_with = may_work_with
        self._rails = rails
        self._meet_after: dict[Did, float] = {}  # when a peer is met again, while the connection lasts
        self._asked: dict[Did, asyncio.Event] = {did: asyncio.Event() for did in peers}
        self._peers = dict(peers)
        self._tokenizers = tokenizers
        self._offers = OfferBook()
        self._alike: dict[Did, list[Signed[Offer]]] = {}  # all that a peer's processes offer at the same terms
        self._turn = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._manifests: dict[bytes, Manifest] = {}
        self._missing: dict[bytes, tuple[str, float]] = {}  # by digest: why it cannot be had, and until when
        self.trouble: Final[dict[Did, str]] = {}
        self.paused: Final[dict[Did, str]] = {}  # why a peer sells nothing now, in its own words
        self.apart: Final[dict[Did, str]] = {}  # why accounts could not be compared with a peer, if they could not

    def start(self) -> None:
        """Begin to fetch."""
        self._tasks = [asyncio.create_task(self._keep_in_touch(did)) for did in self._peers]

    async def close(self) -> None:
        """Stop fetching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def asked_once(self, within_s: float) -> None:
        """Return when each peer has answered or not, once, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(asked.wait() for asked in self._asked.values()))

    def dial(self, did: Did) -> Peer | None:
        """The way to a named peer."""
        return self._peers.get(did)

    @property
    def dids(self) -> list[Did]:
        """The named peers."""
        return list(self._peers)

    def offers(self) -> list[Signed[Offer]]:
        """The offers that are open now."""
        return self._offers.standing(self._clock.now())

    def alike(self, offer: Signed[Offer]) -> list[Signed[Offer]]:
        """The offers at the terms of this one, where several processes of its seller make them; else it alone."""
        now = self._clock.now()
        alike = [one for one in self._alike.get(offer.signer, []) if _is_like_any(one, [offer])]
        return [one for one in alike if one.record.expires > now] or [offer]

    def in_turn(self, offer: Signed[Offer]) -> Signed[Offer]:
        """One at the same terms: the processes of a seller take turns."""
        alike = self.alike(offer)
        return alike[next(self._turn) % len(alike)]

    async def refresh(self, did: Did) -> None:
        """Fetch a peer's offers and its credit for this node. Raises Refused, Unreachable, Malformed."""
        peer = self._peers[did]
        now, raws = self._clock.now(), await self._open_offers(did)
        await self._meet_in_time(did, raws)
        checked = OfferBook()
        taken = [checked.take(raw, did, now).record for raw in raws]
        granted = {(offer.price.unit, rail) for offer in taken for rail in offer.rails if rail in self._rails}
        # The credit first: an offer that stands in the book can be ordered from.
        for unit, rail in sorted(granted):
            await self._take_grant(did, self._checked(did, unit, rail, await peer.grant(self._me, unit, rail)))
        unproved: dict[bytes, str] = {}
        for offer in checked.standing(now):
            try:
                await self._prove(peer, offer.record)
            except (Refused, Unreachable, Malformed, BadManifest) as error:
                unproved[offer.digest] = f"{offer.record.name!r:.64}: {error}"
        proved = [offer for offer in checked.standing(now) if offer.digest not in unproved]
        for offer in proved:
            self._offers.take(offer.raw, did, now)
        self._offers.keep_only(did, (offer.record.model for offer in proved))
        # Opened anew: of two processes' offers of one model, `take` gives the later one for both.
        self._alike[did] = [one for raw in raws if _is_like_any(one := open_record(raw, Offer), proved)]
        self._keep_manifests()
        if unproved:
            raise Malformed(f"offers that nothing proves are passed over: {'; '.join(unproved.values())}")

    async def _open_offers(self, did: Did) -> Sequence[bytes]:
        """None while it sells nothing. Raises Refused, Unreachable."""
        try:
            raws = await self._peers[did].offers()
        except Refused as refusal:
            if refusal.code != "not_selling":
                raise
            self.paused[did] = str(refusal)
            return ()
        self.paused.pop(did, None)
        return raws

    async def _meet_in_time(self, did: Did, raws: Sequence[bytes]) -> None:
        """Meet a peer, if this is a new connection or an old one. Raises Refused where no work may start with it."""
        standing = {offer.raw for offer in self.offers() if offer.signer == did}
        # Offers do not outlive the process that made them: with others, the peer may be another run.
        other_run = bool(standing) and standing.isdisjoint(raws)
        if self._meet is not None and (other_run or self._clock.now() >= self._meet_after.get(did, 0.0)):
            try:
                await self._meet(did)
            except (Refused, Unreachable, Malformed) as error:
                if self.apart.get(did) != str(error):
                    _log.warning("accounts are not compared with %s: %s", did, error)
                self.apart[did] = str(error)
            else:
                self.apart.pop(did, None)
                self._meet_after[did] = self._clock.now() + MEET_AGAIN_S
        if (refusal := self._may_work_with(did)) is not None:
            self._offers.keep_only(did, ())
            raise refusal

    async def _prove(self, peer: Peer, offer: Offer) -> None:
        """Hold what an offer says of its model against the model's manifest, which its digest names.

        Raises Refused, Unreachable, BadManifest, Malformed.
        """
        if offer.model not in self._manifests:
            raw = await peer.manifest(offer.model)
            if sha256(raw).digest() != offer.model:
                raise Malformed("its manifest is not the one that its digest names")
            self._manifests[offer.model] = Manifest.decode(raw)
        manifest = self._manifests[offer.model]
        for name in ("tokenizer", "architecture", "parameters", "quantization"):
            if getattr(offer, name) != getattr(manifest, name):
                raise Malformed(f"the offer's {name} is not the manifest's")
        if offer.context > manifest.context:
            raise Malformed(f"the offer's context is longer than the model's {manifest.context} tokens")

    def _keep_manifests(self) -> None:
        standing = {offer.record.model for offer in self.offers()}
        self._manifests = {model: manifest for model, manifest in self._manifests.items() if model in standing}

    def _checked(self, did: Did, unit: Unit, rail: str, raw: bytes) -> Grant:
        grant = open_record(raw, Grant)
        check_time(grant.record, int(self._clock.now()))
        said = grant.record
        if (grant.signer, said.buyer, said.unit, said.rail) != (did, self._me, unit, rail):
            raise Malformed("the grant is not this seller's for this node")
        return grant.record

    async def _keep_in_touch(self, did: Did) -> None:
        wait_s = _FIRST_RETRY_S
        while True:
            try:
                await self.refresh(did)
            except Exception as error:  # noqa: BLE001 - whatever it was, the peer is tried again
                if self.trouble.get(did) != str(error):
                    _log.warning("peer %s: %s", did, error)
                self.trouble[did] = str(error)
                self._meet_after.pop(did, None)
                self._asked[did].set()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, REFRESH_S)
            else:
                self.trouble.pop(did, None)
                self._asked[did].set()
                wait_s = _FIRST_RETRY_S
                await self._fetch_tokenizers(did)
                await asyncio.sleep(REFRESH_S)

    async def tokenizer(self, digest: bytes, seller: Did | None) -> Tokenizer:
        """A tokenizer by its digest: from disk, else from the seller, else from any peer; fetched once.

        One that could not be had is not asked for again for a while. Raises NoTokenizerToBeHad.
        """
        if not self._tokenizers.has(digest):
            reason, until = self._missing.get(digest, ("", 0.0))
            if self._clock.now() < until:
                raise NoTokenizerToBeHad(reason)
            try:
                async with asyncio.timeout(_FETCH_S):
                    await self._fetch_tokenizer(digest, seller)
            except (NoTokenizerToBeHad, TimeoutError) as error:
                reason = str(error) or f"it did not arrive within {_FETCH_S:.0f} seconds"
                self._missing[digest] = reason, self._clock.now() + _MISSING_S
                raise NoTokenizerToBeHad(reason) from None
        return await self._tokenizers.open(digest)

    async def _fetch_tokenizers(self, did: Did) -> None:
        """Those of a peer's standing offers, so that no request has to wait for them."""
        for offer in [offer for offer in self.offers() if offer.signer == did]:
            with contextlib.suppress(NoTokenizerToBeHad, BadModelFile):
                await self.tokenizer(offer.record.tokenizer, offer.signer)

    async def _fetch_tokenizer(self, digest: bytes, seller: Did | None) -> None:
        first_the_seller = sorted(self._peers, key=lambda did: did != seller)
        reasons = []
        for did in first_the_seller:
            try:
                await self._tokenizers.add(await self._peers[did].tokenizer(digest), digest)
            except (Refused, Unreachable, TokenizerMismatch, BadModelFile) as error:
                reasons.append(str(error))
            else:
                return
        raise NoTokenizerToBeHad("; ".join(reasons) or "no peer has it")


def _is_like_any(offer: Signed[Offer], others: Sequence[Signed[Offer]]) -> bool:
    """Whether an offer says what one of the others says, but for the process that makes it and when."""
    said = offer.record
    return any(
        one.signer == offer.signer
        and said
        == evolve(
            one.record,
            endpoints=said.endpoints,
            prekey=said.prekey,
            sequence=said.sequence,
            issued=said.issued,
            expires=said.expires,
            slots=said.slots,
            speed=said.speed,
            first_token_ms=said.first_token_ms,
        )
        for one in others
    )
