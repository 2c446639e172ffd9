"""A market in one process, for tests: real sellers and buyers on real books, joined by lines that tests can bend.

Prices are one unit for a prompt token and two for an output token, so that every sum can be done in the head.
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, frozen

from ledger.account import Account
from ledger.commitments import SALT_BYTES, answer_commitment, prompt_commitment
from ledger.database import Database, LedgerUnavailable
from ledger.identity import Did, Identity
from ledger.journal import Entry, Journal, MemoryJournal
from ledger.money import Amount, Price, Unit, cost
from ledger.records import (
    NONCE_BYTES,
    Cancel,
    Checkpoint,
    Fingerprint,
    Grant,
    Offer,
    Order,
    Privacy,
    Receipt,
    Sampling,
    Signed,
    digest_of,
    open_record,
    sign,
)
from node.engine.memory import FINGERPRINT, MemoryEngine, memory_manifest
from node.engine.pool import Pool, PooledEngine
from node.engine.port import Engine
from node.engine.stock import Stock
from node.exchange.auditor import Auditor
from node.exchange.book import Book
from node.exchange.buyer import Buyer
from node.exchange.delivery import Delivery
from node.exchange.purchase import Ask, Purchase
from node.exchange.sale import Elsewhere, Ware
from node.exchange.seller import PATIENCE_S, Credit, Seller
from node.exchange.settler import AuditPolicy, Settler
from node.models.known import FileIdentity
from node.models.manifest import Manifest
from node.models.tokenizer import Tokenizer
from node.ports import Clock, Entropy, ManualClock, SeededEntropy
from node.wire.client import UNPAID_S
from node.wire.frames import AnswerReader, AnswerWriter, CheckpointFrame, Frame, Ids, ReceiptFrame
from node.wire.messages import Refused, Request, Unreachable, decode_request, encode_request
from node.wire.peer import Peer
from node.wire.sealing import (
    KeyPair,
    RequestBinding,
    buyers_answer_key,
    open_request,
    seal_request,
    sellers_answer_key,
)
from verify.calibration import BINS, STRATA, Calibration
from verify.sampler import SAMPLER

DEMO: Final = Path(__file__).parents[2] / "node" / "models" / "demo" / "demo-Q8_0.gguf"
HOT: Final = Sampling(temperature=1_000_000, top_p=1_000_000, min_p=0, top_k=0)
COLD: Final = Sampling(temperature=0, top_p=1_000_000, min_p=0, top_k=0)
PRICE: Final = Price(1_000_000, 2_000_000, "uusd")
PROMPT: Final = (11, 12, 13, 14, 15)
# With this seed the memory engine of weights 0 goes on for more than 300 tokens after PROMPT.
SEED: Final = 9
NO_AUDITS: Final = AuditPolicy(rate=0.0, first=0)
ALL_AUDITED: Final = AuditPolicy(rate=1.0, first=1_000)


def uusd(value: int) -> Amount:
    """So many units of the tests' money."""
    return Amount(value, "uusd")


CREDIT: Final = Credit(limit=uusd(100_000), window=uusd(10_000), exposure=uusd(20_000))


def price_of(prompt_tokens: int, output_tokens: int) -> int:
    """What an order costs at PRICE."""
    return cost(PRICE, prompt_tokens, output_tokens)


def model(tokenizer: Tokenizer, weights: int = 0, *, quantization: str = "Q8_0", context: int = 2_048) -> Manifest:
    """The manifest of a memory engine's model with a real tokenizer."""
    return evolve(memory_manifest(weights, context), tokenizer=tokenizer.digest, quantization=quantization)


def engine_of(
    tokenizer: Tokenizer, weights: int = 0, *, manifest: Manifest | None = None, **settings: Any
) -> MemoryEngine:
    """A memory engine that speaks a real tokenizer's ids."""
    return MemoryEngine(
        manifest or model(tokenizer, weights),
        weights=weights,
        vocabulary=tokenizer.size,
        eog=tokenizer.eog,
        **settings,
    )


def pooled(pool: Pool, folder: Path, name: str, make: Callable[[], MemoryEngine]) -> PooledEngine:
    """An engine in a pool of which it fills the most."""
    (folder / name).touch()

    async def load() -> Engine:
        return make()

    engine = make()
    identity = FileIdentity.of(folder / name)
    stock = Stock(name, folder / name, identity, engine.manifest, FINGERPRINT, engine.context, 1, 60, load)
    return pool.add(stock)


@define
class Store:
    """The selling side of one node."""

    book: Book
    seller: Seller
    tokenizer: Tokenizer

    @staticmethod
    async def open(
        tokenizer: Tokenizer,
        clock: Clock,
        *,
        engine: Engine | None = None,
        seed: int = 1,
        journal: Journal | None = None,
        entropy: Entropy | None = None,
        price: Price = PRICE,
        credit: Mapping[Unit, Credit] | None = None,
        tokenizer_file: Callable[[bytes], bytes] = lambda digest: digest,
        named: Collection[str] = (),
        may_sell: Callable[[], Refused | None] = lambda: None,
        is_unchanged: Callable[[], bool] = lambda: True,
        elsewhere: Elsewhere | None = None,
        patience_s: float = PATIENCE_S,
        miss: Callable[[], None] = lambda: None,
    ) -> "Store":
        """Open it; the node's identity is made from `seed`. It knows the same journal again after a restart."""
        identity = Identity(seed.to_bytes(32, "little"))
        book = await Book.open(journal or MemoryJournal(identity.did), identity, clock)
        ware = Ware(engine or engine_of(tokenizer), tokenizer, "memory", price, is_unchanged, elsewhere, miss)
        terms = credit if credit is not None else {CREDIT.limit.unit: CREDIT}
        drawn = entropy or SeededEntropy(seed)
        seller = Seller(book, drawn, [ware], terms, tokenizer_file, named, may_sell, patience_s=patience_s)
        await seller.sweep()
        return Store(book, seller, tokenizer)

    @property
    def did(self) -> Did:
        return self.book.identity.did

    async def offer(self) -> Signed[Offer]:
        """The newest offer."""
        return open_record((await self.seller.offers())[-1], Offer)

    def owed_by(self, buyer: str) -> Account:
        """What a buyer owes, as this side sees it."""
        return self.book.debt_of(buyer, "uusd")


class Customer:
    """The buying side of one node."""

    def __init__(
        self,
        book: Book,
        tokenizer: Tokenizer,
        entropy: Entropy,
        engines: Sequence[Engine],
        policy: AuditPolicy,
        patience_s: float,
        unpaid_s: float,
        bonded: Callable[[Did], int],
    ) -> None:
        self.book, self.tokenizer = book, tokenizer
        self.lines: Final[dict[Did, Peer]] = {}
        self.auditor = Auditor(book, engines, calibration_of, lambda _: tokenizer)
        self.settler = Settler(book, entropy, self.auditor, policy, self.lines.get, bonded)
        self.buyer = Buyer(book, entropy, self._settle, patience_s, self.settler, unpaid_s)
        self.helping = Buyer(book, entropy, self.settler.settle_help, patience_s, self.settler)
        self._ended: asyncio.Queue[Delivery] = asyncio.Queue()

    @staticmethod
    async def open(
        tokenizer: Tokenizer,
        clock: Clock,
        *,
        seed: int = 2,
        journal: Journal | None = None,
        entropy: Entropy | None = None,
        engines: Sequence[Engine] = (),
        policy: AuditPolicy = NO_AUDITS,
        patience_s: float = 5.0,
        unpaid_s: float = UNPAID_S,
        bonded: Callable[[Did], int] = lambda _: 0,
    ) -> "Customer":
        """Open it; the node's identity is made from `seed`. It knows the same journal again after a restart."""
        identity = Identity(seed.to_bytes(32, "little"))
        book = await Book.open(journal or MemoryJournal(identity.did), identity, clock)
        return Customer(book, tokenizer, entropy or SeededEntropy(seed), engines, policy, patience_s, unpaid_s, bonded)

    @property
    def did(self) -> Did:
        return self.book.identity.did

    async def meet(self, peer: Peer) -> Signed[Offer]:
        """Name a peer: its newest offer, once its credit is known."""
        offer = open_record((await peer.offers())[-1], Offer)
        self.lines[offer.signer] = peer
        grant = open_record(await peer.grant(self.did, offer.record.price.unit), Grant)
        await self.buyer.take_grant(offer.signer, grant.record)
        return offer

    def owes(self, seller: str) -> Account:
        """What is owed to a seller, as this side sees it."""
        return self.book.debt_to(seller, "uusd")

    def buy(self, offer: Signed[Offer], **wishes: Any) -> Purchase:
        """Start an order; see `ask` for the wishes."""
        return self.buyer.buy(self.lines[offer.signer], offer, ask(**wishes), self.tokenizer)

    async def order(self, offer: Signed[Offer], **wishes: Any) -> Delivery:
        """Order, and wait until it is settled and the seller has the acknowledgement. Raises NotPlaced."""
        delivery = await self.buy(offer, **wishes).outcome()
        await self.settled()
        return delivery

    async def settled(self, orders: int = 1) -> None:
        """Wait until so many more orders are settled and handed over."""
        async with asyncio.timeout(20):
            for _ in range(orders):
                await self._ended.get()
            await self.handed_over()

    async def settled_but_not_handed_over(self) -> None:
        """Wait until one more order is settled."""
        async with asyncio.timeout(20):
            await self._ended.get()

    async def handed_over(self) -> None:
        """Wait until nothing is on its way to a seller."""
        await until(lambda: self.settler.idle)

    async def _settle(self, delivery: Delivery) -> None:
        try:
            await self.settler.settle(delivery)
        finally:
            self._ended.put_nowait(delivery)

    async def close(self) -> None:
        await self.buyer.close()
        await self.helping.close()
        await self.settler.close()


@functools.cache
def calibration_of(model: bytes, seller: Fingerprint, checker: Fingerprint) -> Calibration | None:
    """Memory engines of one kind agree to the last bit; of servers greedy answers alone are known."""
    served = seller.sampler != SAMPLER
    if not served and seller != checker:
        return None
    known = [stratum for stratum in STRATA if not served or stratum.temperature == 0]
    counts = dict.fromkeys(known, (1_000_000, *(0,) * (BINS - 1)))
    return Calibration(seller, checker, model, counts)


def ask(
    prompt: tuple[int, ...] = PROMPT,
    max_tokens: int = 100,
    stop: tuple[str, ...] = (),
    sampling: Sampling = HOT,
    seed: int = SEED,
    privacy: Privacy = "internal",
    **rest: Any,
) -> Ask:
    """What is wished for, unless said otherwise."""
    return Ask(prompt, stop, sampling, seed, max_tokens, privacy, **rest)


class Line:
    """A way to a peer that passes everything on, and remembers what went over it. Tests derive what goes wrong."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.ordered: list[tuple[bytes, bytes]] = []
        self.acknowledged: list[bytes] = []
        self.cancelled: list[bytes] = []

    def before_order(self) -> None:
        """Called before an order goes over; may raise."""

    async def offers(self) -> Sequence[bytes]:
        return await self.peer.offers()

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        return await self.peer.grant(buyer, unit, rail)

    async def manifest(self, model: bytes) -> bytes:
        return await self.peer.manifest(model)

    async def tokenizer(self, digest: bytes) -> bytes:
        return await self.peer.tokenizer(digest)

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        self.ordered.append((order, sealed))
        self.before_order()
        stream = self.peer.order(order, sealed)
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        return await self.peer.receipt(order)

    async def acknowledge(self, raw: bytes) -> None:
        self.acknowledged.append(raw)
        await self.peer.acknowledge(raw)

    async def cancel(self, raw: bytes) -> None:
        self.cancelled.append(raw)
        await self.peer.cancel(raw)


class CutLine(Line):
    """Breaks, once, when so many chunks of an answer went over it; nothing is reached until it is mended."""

    def __init__(self, peer: Peer, after: int) -> None:
        super().__init__(peer)
        self._after: int | None = after
        self.down = False

    def mend(self) -> None:
        """Let everything through from now on."""
        self.down, self._after = False, None

    def _check(self) -> None:
        if self.down:
            raise Unreachable("the line is down")

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        self._check()
        passed = 0
        stream = super().order(order, sealed)
        try:
            async for chunk in stream:
                if passed == self._after:
                    self.down = True
                self._check()
                yield chunk
                passed += 1
        finally:
            await stream.aclose()

    async def receipt(self, order: bytes) -> bytes | None:
        self._check()
        return await super().receipt(order)

    async def acknowledge(self, raw: bytes) -> None:
        self._check()
        await super().acknowledge(raw)

    async def cancel(self, raw: bytes) -> None:
        self._check()
        await super().cancel(raw)


@define
class PowerCut(LedgerUnavailable):
    """The machine is dark."""

    why: str = "no power"


class Mains(Database):
    """A ledger on a machine that loses power at one of its next writes: just before it, or just after."""

    left: float = float("inf")  # so many writes succeed
    written: bool = False  # whether the one that fails reaches the disk
    dark: bool = False

    async def append(self, *events: Any, **rest: Any) -> Entry:
        """As `Journal.append`, while there is power."""
        if self.dark:
            raise PowerCut
        if self.left > 0:
            self.left -= 1
            return await super().append(*events, **rest)
        self.dark = True
        if self.written:
            await super().append(*events, **rest)
        raise PowerCut

    async def unplug(self) -> None:
        """What the kernel does when the process is gone: files and locks are let go, and nothing is written."""
        self._closed = True
        await self.close()


class MainsLine(Line):
    """A way to a seller that is not reached while its machine is dark."""

    def __init__(self, peer: Peer, mains: Mains) -> None:
        super().__init__(peer)
        self.mains = mains

    def _check(self) -> None:
        if self.mains.dark:
            raise Unreachable("no answer")

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        self._check()
        stream = super().order(order, sealed)
        try:
            while (chunk := await self._next(stream)) is not None:
                yield chunk
        except PowerCut:
            raise Unreachable("no answer") from None

    async def _next(self, stream: AsyncGenerator[bytes, None]) -> bytes | None:
        """What comes next; a machine that goes dark takes its connections with it."""
        following = asyncio.ensure_future(anext(stream, None))
        while not following.done():
            await asyncio.wait({following}, timeout=0.01)
            if self.mains.dark and not following.done():
                following.cancel()
                raise PowerCut
        return following.result()

    async def receipt(self, order: bytes) -> bytes | None:
        self._check()
        return await super().receipt(order)

    async def acknowledge(self, raw: bytes) -> None:
        self._check()
        try:
            await super().acknowledge(raw)
        except PowerCut:
            raise Unreachable("no answer") from None


@frozen
class Draft:
    """An order that is ready to be sent, with what its buyer keeps."""

    order: Signed[Order]
    sealed: bytes
    request: Request
    ephemeral: KeyPair
    prekey: bytes

    @property
    def raw(self) -> bytes:
        return self.order.raw

    def reader(self) -> AnswerReader:
        """Opens the answer."""
        return AnswerReader(buyers_answer_key(self.ephemeral, self.prekey, self.order.digest))


def draft_order(
    identity: Identity,
    offer: Signed[Offer],
    clock: Clock,
    /,
    *,
    nonce: int = 0,
    prompt: tuple[int, ...] = PROMPT,
    max_tokens: int = 10,
    body: bytes | None = None,
    prekey: bytes | None = None,
    sealed: bytes | None = None,
    **changes: Any,
) -> Draft:
    """A buyer's order as it should be, but for the `changes` to its fields, made by hand.

    `body`: other content to seal; `prekey`: whom it is sealed for instead; `sealed`: bytes to send instead.
    """
    request = Request(nonce.to_bytes(SALT_BYTES, "big"), prompt)
    ephemeral = KeyPair.from_seed(nonce.to_bytes(32, "big"))
    name, key = nonce.to_bytes(NONCE_BYTES, "big"), prekey or offer.record.prekey
    binding = RequestBinding(offer.digest, name, identity.did)
    sealed = sealed or seal_request(encode_request(request) if body is None else body, key, ephemeral, binding)
    now = int(clock.now())
    fields: dict[str, Any] = {
        "work": "generate",
        "seller": offer.signer,
        "offer": offer.digest,
        "nonce": name,
        "request": digest_of(sealed),
        "sampling": HOT,
        "seed": SEED,
        "start": 0,
        "max_tokens": max_tokens,
        "max_cost": cost(offer.record.price, len(prompt), max_tokens),
        "privacy": "internal",
        "hops": 0,
        "rail": "credit",
        "trace": bytes(16),
        "issued": now,
        "expires": now + 600,
    }
    return Draft(sign(Order(**fields | changes), identity), sealed, request, ephemeral, key)


async def frames_of(peer: Peer, draft: Draft) -> list[Frame]:
    """All frames of the answer to a draft. Raises what the peer and the reader raise."""
    reader, frames = draft.reader(), list[Frame]()
    async for chunk in peer.order(draft.raw, draft.sealed):
        frames += reader.feed(chunk)
    reader.close()
    return frames


async def refusal_of(peer: Peer, draft: Draft) -> Refused:
    """The refusal of a draft."""
    try:
        await frames_of(peer, draft)
    except Refused as refusal:
        return refusal
    raise AssertionError("the order was taken")


@frozen
class Told:
    """One order as a scripted seller sees it, and the honest papers for any ids that it may send."""

    identity: Identity
    offer: Signed[Offer]
    order: Signed[Order]
    request: Request

    def checkpoint(self, ids: Sequence[int], **changes: Any) -> CheckpointFrame:
        """The checkpoint after these ids, but for the changes."""
        record = Checkpoint(
            order=self.order.digest,
            tokens=len(ids),
            commitment=answer_commitment(self.request.salt, self.order.digest, ids),
            cost=cost(self.offer.record.price, 0, len(ids)),
        )
        return CheckpointFrame(sign(evolve(record, **changes), self.identity).raw)

    def receipt(self, ids: Sequence[int], *, signer: Identity | None = None, **changes: Any) -> ReceiptFrame:
        """The receipt of these ids, but for the changes."""
        price, prompt = self.offer.record.price, self.request.prompt + self.request.claimed
        record = Receipt(
            order=self.order.digest,
            model=self.offer.record.model,
            prompt_tokens=len(prompt),
            output_tokens=len(ids),
            prompt_commitment=prompt_commitment(self.request.salt, prompt),
            output_commitment=answer_commitment(self.request.salt, self.order.digest, ids),
            finish="length",
            cost=cost(price, len(prompt), len(ids)),
            unit=price.unit,
            started_ms=1,
            finished_ms=2,
        )
        return ReceiptFrame(sign(evolve(record, **changes), signer or self.identity).raw)

    def scored(self, **changes: Any) -> ReceiptFrame:
        """The receipt of a score order, but for the changes."""
        return self.receipt((), finish=changes.pop("finish", "stop"), **changes)

    def cancel(self, tokens: int) -> bytes:
        return sign(Cancel(self.order.digest, tokens), self.identity).raw


Script = Callable[[Told], Iterable[Frame]]


class ScriptedSeller:
    """A seller that answers every order with the frames of a script: what a hostile one would send."""

    def __init__(
        self, tokenizer: Tokenizer, clock: Clock, script: Script, seed: int = 66, fingerprint: Fingerprint = FINGERPRINT
    ) -> None:
        self.identity = Identity(seed.to_bytes(32, "little"))
        self._prekey = KeyPair.from_seed(seed.to_bytes(32, "big"))
        self._script = script
        self._clock = clock
        self.acknowledged: list[bytes] = []
        now, manifest = int(clock.now()), model(tokenizer)
        self._manifest = manifest
        self.offer = sign(
            Offer(
                endpoints=(),
                model=manifest.digest,
                tokenizer=manifest.tokenizer,
                name="memory",
                architecture=manifest.architecture,
                parameters=manifest.parameters,
                quantization=manifest.quantization,
                context=manifest.context,
                engine=fingerprint,
                price=PRICE,
                rails=("credit",),
                slots=1,
                speed=0,
                first_token_ms=0,
                prekey=self._prekey.public,
                sequence=1,
                issued=now,
                expires=now + 3_600,
            ),
            self.identity,
        )

    @property
    def did(self) -> Did:
        return self.identity.did

    async def offers(self) -> Sequence[bytes]:
        return [self.offer.raw]

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        now = int(self._clock.now())
        grant = Grant(buyer, "credit", "uusd", 100_000, 10_000, 1, now, now + 3_600)
        return sign(grant, self.identity).raw

    async def manifest(self, model: bytes) -> bytes:
        return self._manifest.raw

    async def tokenizer(self, digest: bytes) -> bytes:
        raise Refused("unknown_offer", "not here")

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        signed = open_record(order, Order)
        binding = RequestBinding.of(signed.record, signed.signer)
        request = decode_request(open_request(sealed, self._prekey, binding))
        writer = AnswerWriter(sellers_answer_key(sealed, self._prekey, signed.digest))
        for frame in self._script(Told(self.identity, self.offer, signed, request)):
            yield writer.write(frame)

    async def receipt(self, order: bytes) -> bytes | None:
        return None

    async def acknowledge(self, raw: bytes) -> None:
        self.acknowledged.append(raw)

    async def cancel(self, raw: bytes) -> None:
        pass


async def until(true: Callable[[], bool]) -> None:
    """Wait until something has come true."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - what is waited for has no event, and needs none outside of tests
            await asyncio.sleep(0.001)


def ids_of(frames: Iterable[Frame]) -> tuple[int, ...]:
    """All token ids of an answer's frames."""
    return tuple(i for frame in frames if isinstance(frame, Ids) for i in frame.ids)


def clock_at_noon() -> ManualClock:
    """A clock that stands at noon UTC, so that a test does not cross midnight by chance."""
    return ManualClock(1_800_014_400.0 - 1_800_014_400.0 % 86_400 + 43_200)
