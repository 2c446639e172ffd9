"""One line to several processes of a peer, real servers here: what goes to which, and what is asked of the next."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import aiohttp
import attrs
import pytest
from aiohttp import web

from ledger import codec
from ledger.identity import Identity
from ledger.records import Acknowledgement, Cancel, Offer, Order, digest_of, open_record, sign
from node.wire.client import HttpPeer
from node.wire.messages import Refused, Unreachable, encode_refusal
from node.wire.several import SeveralLines
from tests.ledger.test_bundle import first
from tests.node.wire.test_client import serving

BUYER = Identity(bytes([1]) * 32)


class Process:
    """Answers as one process of a seller does, and remembers what it was asked."""

    def __init__(self, name: str, offers: list[bytes]) -> None:
        self.name, self.offers, self.asked = name, offers, list[str]()
        self.refuses: Refused | None = None
        self.is_away = False

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/mesh/v1/")
        await request.read()
        if self.is_away:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        self.asked.append(path.split("/")[0] if "/receipt" not in path else "receipt")
        if self.refuses is not None:
            return web.Response(status=403, body=encode_refusal(self.refuses))
        return web.Response(body=codec.encode(self.offers) if path == "offers" else self.name.encode())


def offer(price: int) -> bytes:
    """An offer unlike the others."""
    record = open_record(first("offer"), Offer).record
    return sign(attrs.evolve(record, issued=record.issued + price), BUYER).raw


def order_for(raw: bytes, n: int = 0) -> bytes:
    record = open_record(first("order"), Order).record
    return sign(attrs.evolve(record, offer=digest_of(raw), nonce=bytes([n]) * 16), BUYER).raw


def acknowledgement_of(order: bytes) -> bytes:
    record = open_record(first("acknowledgement"), Acknowledgement).record
    return sign(attrs.evolve(record, order=open_record(order, Order).digest), BUYER).raw


@pytest.fixture
def processes() -> tuple[Process, Process]:
    return Process("first", [offer(0), offer(1)]), Process("second", [offer(1), offer(2)])


@pytest.fixture
async def lines(processes: tuple[Process, Process]) -> AsyncIterator[SeveralLines]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        urls = [await stack.enter_async_context(serving(process.answer)) for process in processes]
        yield SeveralLines([HttpPeer(session, url) for url in urls])


async def answer_of(lines: SeveralLines, order: bytes) -> bytes:
    async with aclosing(lines.order(order, b"sealed")) as stream:
        return b"".join([chunk async for chunk in stream])


async def test_offers_are_those_of_all_once(lines: SeveralLines, processes: tuple[Process, Process]) -> None:
    assert set(await lines.offers()) == {offer(0), offer(1), offer(2)}
    processes[0].is_away = True
    assert set(await lines.offers()) == {offer(1), offer(2)}
    processes[1].is_away = True
    with pytest.raises(Unreachable):
        await lines.offers()


async def test_an_order_goes_to_the_process_whose_offer_it_takes_and_what_is_about_it_follows(
    lines: SeveralLines, processes: tuple[Process, Process]
) -> None:
    await lines.offers()
    for raw, name in ((offer(0), b"first"), (offer(2), b"second")):
        order = order_for(raw)
        assert await answer_of(lines, order) == name
        digest = open_record(order, Order).digest
        assert await lines.receipt(digest) == name
        await lines.cancel(sign(Cancel(digest, 3), BUYER).raw)
        await lines.acknowledge(acknowledgement_of(order))
    about = ["orders", "receipt", "cancels", "acknowledgements"]
    assert [process.asked[1:] for process in processes] == [about, about]


async def test_what_any_can_answer_is_asked_of_the_next_where_one_is_away(
    lines: SeveralLines, processes: tuple[Process, Process]
) -> None:
    assert await lines.manifest(bytes(32)) == b"first"
    processes[0].is_away = True
    assert await lines.manifest(bytes(32)) == b"second"
    await lines.offers()
    order = order_for(offer(2))
    await answer_of(lines, order)
    processes[0].is_away, processes[1].is_away = False, True
    # The process that has the order is away: the other one reads the same ledger.
    assert await lines.receipt(open_record(order, Order).digest) == b"first"


async def test_of_its_own_order_a_process_knows_best(lines: SeveralLines, processes: tuple[Process, Process]) -> None:
    await lines.offers()
    order = order_for(offer(2))
    await answer_of(lines, order)
    processes[1].refuses = Refused("unknown_order", "no such order")
    with pytest.raises(Refused):
        await lines.acknowledge(acknowledgement_of(order))
    assert "acknowledgements" not in processes[0].asked
    # Of anything else another may know more.
    assert await lines.grant(BUYER.did, "uusd") == b"first"
    processes[0].refuses, processes[1].refuses = processes[1].refuses, None
    assert await lines.grant(BUYER.did, "uusd") == b"second"


async def test_a_state_goes_to_the_process_that_gave_the_nonce(
    lines: SeveralLines, processes: tuple[Process, Process]
) -> None:
    processes[0].is_away = True
    assert await lines.challenge() == b"second"
    processes[0].is_away = False
    assert await lines.state(b"state") == b"second"
    assert processes[0].asked == []
