"""A seller among buyers that do not pay, forge, replay and send garbage: it loses a window at most, and goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from attrs import frozen

from ledger.identity import Identity
from ledger.records import Offer, Receipt, Signed, open_record, sign
from node.ports import SystemClock, SystemEntropy
from node.wire.client import HttpPeer
from node.wire.frames import Ids, ReceiptFrame
from node.wire.messages import MAX_SEALED, Refused, Unreachable
from tests.integration.conftest import Pair
from tests.integration.network import (
    STORY,
    Network,
    balance,
    client_of,
    free_port,
    kill,
    sellers_are_known,
    tapped,
    until,
)
from tests.node.trading import Draft, draft_order, frames_of

WINDOW = 500
# A seller that trusts a stranger with little.
CAREFUL = {
    "sell": {"price": "1usd:2usd", "open_credit": "0.002usd", "window": "0.000500usd", "exposure": "0.001200usd"}
}


@frozen
class Stranger:
    """A buyer made by hand."""

    identity: Identity
    peer: HttpPeer
    offer: Signed[Offer]

    def draft(self, max_tokens: int = 60, nonce: int | None = None) -> Draft:
        number = int.from_bytes(SystemEntropy().bytes(8), "big") if nonce is None else nonce
        return draft_order(self.identity, self.offer, SystemClock(), nonce=number, max_tokens=max_tokens)

    async def take(self, draft: Draft) -> Receipt:
        """Take a whole answer. Raises Refused."""
        last = (await frames_of(self.peer, draft))[-1]
        assert isinstance(last, ReceiptFrame)
        return open_record(last.raw, Receipt).record


async def meet(session: aiohttp.ClientSession, url: str, name: bytes) -> Stranger:
    peer = HttpPeer(session, url)
    return Stranger(Identity(name.ljust(32)), peer, open_record((await peer.offers())[0], Offer))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def takes_all_it_can(buyer: Stranger) -> tuple[int, str]:
    """Take answers and pay for none: what they cost, and with what code it ended."""
    taken = 0
    for _ in range(100):
        try:
            taken += (await buyer.take(buyer.draft())).cost
        except Refused as refusal:
            return taken, refusal.code
    raise AssertionError("the seller never stopped")


async def test_a_buyer_that_never_acknowledges_costs_one_window_once(
    network: Network, session: aiohttp.ClientSession
) -> None:
    port = free_port()
    seller = await network.up("seller", CAREFUL, port=port)
    thief = await meet(session, seller.running.url, b"thief")
    taken, code = await takes_all_it_can(thief)
    assert code == "window"
    assert WINDOW / 2 < taken <= WINDOW
    assert (await balance(seller, thief.identity.did)).unpaid == taken
    # A restart forgets nothing.
    await kill(seller)
    seller = await network.up("seller", CAREFUL, port=port)
    thief = await meet(session, seller.running.url, b"thief")
    assert await takes_all_it_can(thief) == (0, "window")
    # Fresh identities win a little more, all of them together.
    more, codes = 0, set()
    for number in range(6):
        got, code = await takes_all_it_can(await meet(session, seller.running.url, b"fresh %d" % number))
        more += got
        codes.add(code)
    assert taken + more <= 1_200
    assert "exposure" in codes


def forged(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = buyer.draft()
    return draft.raw[:-1] + bytes([draft.raw[-1] ^ 1]), draft.sealed


def expired(buyer: Stranger) -> tuple[bytes, bytes]:
    now = int(SystemClock().now())
    draft = draft_order(buyer.identity, buyer.offer, SystemClock(), nonce=9, issued=now - 900, expires=now - 300)
    return draft.raw, draft.sealed


def oversized(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = buyer.draft()
    return draft.raw + bytes(5_000), draft.sealed


def not_canonical(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = buyer.draft()
    return b"\xd2\x98\x04" + draft.raw[2:], draft.sealed


def oversized_request(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = draft_order(buyer.identity, buyer.offer, SystemClock(), nonce=11, sealed=bytes(MAX_SEALED + 1))
    return draft.raw, draft.sealed


def for_somebody_else(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = draft_order(buyer.identity, buyer.offer, SystemClock(), nonce=12, prekey=b"\x09" + bytes(31))
    return draft.raw, draft.sealed


def signed_again(buyer: Stranger) -> tuple[bytes, bytes]:
    victims = draft_order(Identity(b"victim".ljust(32)), buyer.offer, SystemClock(), nonce=13)
    return sign(victims.order.record, buyer.identity).raw, victims.sealed


def of_an_unknown_offer(buyer: Stranger) -> tuple[bytes, bytes]:
    draft = draft_order(buyer.identity, buyer.offer, SystemClock(), nonce=14, offer=bytes(32))
    return draft.raw, draft.sealed


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (forged, "forged"),
        (expired, "expired"),
        (oversized, "malformed"),
        (not_canonical, "malformed"),
        (oversized_request, "malformed"),
        (for_somebody_else, "cannot_open"),
        (signed_again, "cannot_open"),
        (of_an_unknown_offer, "unknown_offer"),
    ],
)
async def test_an_order_that_is_not_what_it_should_be_is_refused_and_the_seller_serves_on(
    pair: Pair,
    session: aiohttp.ClientSession,
    make: Callable[[Stranger], tuple[bytes, bytes]],
    code: str,
) -> None:
    buyer = await meet(session, pair.seller.running.url, b"clumsy")
    before = await balance(pair.seller, buyer.identity.did)
    with pytest.raises(Refused) as caught:
        async for _ in buyer.peer.order(*make(buyer)):
            pass
    assert caught.value.code == code
    assert await balance(pair.seller, buyer.identity.did) == before
    assert (await buyer.take(buyer.draft(max_tokens=1))).output_tokens == 1


async def test_a_replayed_nonce_is_refused_and_a_replayed_order_costs_nothing(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    buyer = await meet(session, pair.seller.running.url, b"parrot")
    draft = buyer.draft(nonce=1)
    receipt = await buyer.take(draft)
    before = await balance(pair.seller, buyer.identity.did)
    frames = await frames_of(buyer.peer, draft)
    assert not [frame for frame in frames if isinstance(frame, Ids)]
    assert await buyer.take(draft) == receipt
    with pytest.raises(Refused) as caught:
        await buyer.take(buyer.draft(nonce=1, max_tokens=3))
    assert caught.value.code == "replayed"
    assert await balance(pair.seller, buyer.identity.did) == before


async def test_a_buyer_that_hangs_up_owes_the_input_and_what_was_sent(
    network: Network, session: aiohttp.ClientSession
) -> None:
    seller = await network.up(
        "seller", {"sell": {"price": "1usd:2usd", "open_credit": "0.1usd"}}, module="tests.integration.endless_seller"
    )
    buyer = await meet(session, seller.running.url, b"impatient")
    draft = buyer.draft(max_tokens=1_500)
    reader, tokens = draft.reader(), 0
    stream = buyer.peer.order(draft.raw, draft.sealed)
    async for chunk in stream:
        tokens += sum(len(frame.ids) for frame in reader.feed(chunk) if isinstance(frame, Ids))
        if tokens > 10:
            break
    await stream.aclose()
    receipt = await finished(buyer, draft)
    assert receipt.finish == "cancelled"
    assert tokens <= receipt.output_tokens < 1_500
    assert receipt.cost == len(draft.request.prompt) + 2 * receipt.output_tokens
    assert (await balance(seller, buyer.identity.did)).earned == receipt.cost


async def finished(buyer: Stranger, draft: Draft) -> Receipt:
    """The receipt of an order, once there is one."""
    found: list[bytes] = []

    async def there() -> bool:
        raw = await buyer.peer.receipt(draft.order.digest)
        found.extend([raw] if raw else [])
        return raw is not None

    await until(there)
    return open_record(found[0], Receipt).record


async def test_an_answer_whose_http_framing_is_broken_is_given_up_in_time(
    pair: Pair, session: aiohttp.ClientSession
) -> None:
    """aiohttp alone would wait for ever."""
    pieces = 0

    def break_the_second_chunk(piece: bytes) -> bytes:
        nonlocal pieces
        pieces += 1
        return piece if pieces != 2 else b"zz" + piece[2:]

    known = await meet(session, pair.seller.running.url, b"unlucky")
    async with tapped(pair.seller.running.url, break_the_second_chunk) as tap:
        draft = known.draft()
        with pytest.raises(Unreachable):
            async for _ in HttpPeer(session, tap.url, stall_s=0.5).order(draft.raw, draft.sealed):
                pass


async def test_a_buyer_that_sends_half_an_order_does_not_hold_up_the_others(pair: Pair) -> None:
    host, port = pair.seller.running.url.removeprefix("http://").split(":")
    lines = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    try:
        for _, writer in lines:
            writer.write(b"POST /mesh/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nhalf")
            await writer.drain()
        await sellers_are_known(pair.buyer)
        async with client_of(pair.buyer) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model="auto", messages=STORY, max_tokens=2, extra_headers={"X-IdleMesh-Route": "peers"}
            )
        assert raw.headers["x-idlemesh-route"] == pair.seller.running.did
    finally:
        for _, writer in lines:
            writer.transport.abort()
