"""A seller that speaks the protocol and breaks it as a script says, on a socket and in a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from attrs import evolve

from ledger.identity import Did, Identity
from ledger.money import Price
from ledger.records import Acknowledgement, Fingerprint, Grant, Offer, Order, Signed, open_record, sign
from node.api.mesh import MeshDoor, refusal_response
from node.models.manifest import Manifest, manifest_of
from node.ports import SystemClock
from node.wire.frames import AnswerWriter, Frame
from node.wire.messages import Refused, decode_request
from node.wire.peer import Peer
from node.wire.sealing import KeyPair, RequestBinding, open_request, sellers_answer_key
from tests.node.trading import DEMO, Told
from verify.sampler import SAMPLER

PRICE: Final = Price(1_000_000, 2_000_000, "uusd")
# Frames to seal, or bytes to send as they are.
Script = Callable[[Told], AsyncIterator[Frame | bytes]]


class HostileSeller:
    """Offers the demo model, and a model of its own; `script` answers orders."""

    def __init__(self, seed: int = 66) -> None:
        self.identity: Final = Identity(seed.to_bytes(32, "little"))
        self._prekey: Final = KeyPair.from_seed(seed.to_bytes(32, "big"))
        self.script: Script = nothing
        self.acknowledged: Final[list[Signed[Acknowledgement]]] = []
        self.cancelled = 0
        self.receipts: Final[dict[bytes, bytes]] = {}
        self.tokenizer_file = b""
        honest = manifest_of(DEMO)
        strange_model = evolve(honest, tokenizer=b"\x78" * 32)
        self.strange: Final = f"sha256:{strange_model.digest.hex()}"  # how a buyer calls a model that it does not know
        self._manifests: Final = {manifest.digest: manifest.raw for manifest in (honest, strange_model)}
        self.offer: Final = self._offer(honest)
        strange = evolve(
            self.offer.record, model=strange_model.digest, tokenizer=b"\x78" * 32, name="idlemesh-demo-q8_0"
        )
        self._offers: Final = [self.offer.raw, sign(strange, self.identity).raw]

    @property
    def did(self) -> Did:
        return self.identity.did

    def _offer(self, manifest: Manifest) -> Signed[Offer]:
        now = int(SystemClock().now())
        offer = Offer(
            endpoints=(),
            model=manifest.digest,
            tokenizer=manifest.tokenizer,
            name="Llama-3.1-405B",
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            quantization=manifest.quantization,
            context=manifest.context,
            engine=Fingerprint("another", "cpu", "f16", SAMPLER),
            price=PRICE,
            rails=("credit",),
            slots=1,
            speed=0,
            first_token_ms=0,
            prekey=self._prekey.public,
            sequence=1,
            issued=now,
            expires=now + 3_600,
        )
        return sign(offer, self.identity)

    async def offers(self) -> Sequence[bytes]:
        return self._offers

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        now = int(SystemClock().now())
        return sign(Grant(buyer, "credit", "uusd", 10**6, 10**6, 1, now, now + 3_600), self.identity).raw

    async def manifest(self, model: bytes) -> bytes:
        return self._manifests[model]

    async def tokenizer(self, digest: bytes) -> bytes:
        return self.tokenizer_file

    async def order(self, order: bytes, sealed: bytes) -> AsyncGenerator[bytes, None]:
        signed = open_record(order, Order)
        request = decode_request(open_request(sealed, self._prekey, RequestBinding.of(signed.record, signed.signer)))
        writer = AnswerWriter(sellers_answer_key(sealed, self._prekey, signed.digest))
        async for frame in self.script(Told(self.identity, self.offer, signed, request)):
            yield frame if isinstance(frame, bytes) else writer.write(frame)

    async def receipt(self, order: bytes) -> bytes | None:
        return self.receipts.get(order)

    async def acknowledge(self, raw: bytes) -> None:
        self.acknowledged.append(open_record(raw, Acknowledgement))

    async def cancel(self, raw: bytes) -> None:
        self.cancelled += 1


async def nothing(_told: Told) -> AsyncIterator[Frame | bytes]:
    """The script that sends nothing."""
    for frame in tuple[Frame, ...]():
        yield frame


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refusal:
        return refusal_response(refusal)


@contextlib.contextmanager
def serving(peer: Peer) -> Iterator[str]:
    """The URL at which a peer is reached, until the context is left."""
    ready: Future[str] = Future()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(middlewares=[_refusals])
        app.add_routes(MeshDoor(peer).routes())
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        ready.set_result(f"http://{host}:{port}")
        await stop.wait()
        await runner.cleanup()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="hostile seller")
    thread.start()
    try:
        yield ready.result(10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
