"""A buyer among sellers that lie, stall, cut and send garbage: it pays what was delivered, and goes on serving."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest

from ledger.commitments import CHECKPOINT_TOKENS
from ledger.identity import Identity
from ledger.records import Acknowledgement
from node.demo.processes import NodeProcess
from node.wire.frames import CancelFrame, Frame, Ids
from node.wire.messages import Refused
from tests.integration.conftest import Pair
from tests.integration.hostile import HostileSeller, Script, serving
from tests.integration.network import (
    BUYER,
    STORY,
    Balance,
    Network,
    Sections,
    balance,
    client_of,
    closed,
    owner_of,
    sellers_are_known,
    starting,
    tapped,
    until,
)
from tests.node.trading import Told

MODEL = "idlemesh-demo-q8_0"
PATIENCE: Sections = BUYER | {"buy": {"patience": 1.0}}
# Ids of plain text, as many as are ordered.
ANSWER = tuple(range(300, 370))
MOST = len(ANSWER)
CHECKPOINT_COST = 2 * CHECKPOINT_TOKENS


@pytest.fixture(scope="module")
def seller() -> HostileSeller:
    return HostileSeller()


@pytest.fixture(scope="module")
def buyer(seller: HostileSeller, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving(seller))
        folder = tmp_path_factory.mktemp("among-hostile") / "buyer"
        yield stack.enter_context(starting(folder, PATIENCE, [(seller.did, url)]))


@pytest.fixture(autouse=True)
async def _buyer_still_serves(buyer: NodeProcess) -> AsyncIterator[None]:
    """After each test the buyer answers by itself, and nothing is left reserved."""
    await sellers_are_known(buyer, 2)
    yield
    async with client_of(buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="auto", messages=STORY, max_tokens=1, extra_headers={"X-IdleMesh-Route": "local"}
        )
    assert raw.headers["x-idlemesh-route"] == "local"


async def told_apart(
    buyer: NodeProcess, seller: HostileSeller, script: Script, most: int = MOST
) -> tuple[str, Balance]:
    """Why the buyer did not take a seller's answer, and how that moved their account."""
    before = await balance(buyer, seller.did)
    seller.script = script
    async with client_of(buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=STORY, max_tokens=most)
    assert raw.headers["x-idlemesh-route"] == "local"
    after = await closed(buyer, seller.did)
    moved = Balance(after.earned - before.earned, after.authorized - before.authorized, after.reserved, after.unpaid)
    return raw.headers["x-idlemesh-degraded"], moved


async def acknowledgement(buyer: NodeProcess, seller: HostileSeller, number: int) -> Acknowledgement:
    """What the buyer said of the order after so many acknowledgements."""

    async def arrived() -> bool:
        return len(seller.acknowledged) > number

    await until(arrived)
    signed = seller.acknowledged[number]
    assert signed.signer == buyer.running.did
    return signed.record


def paid(amount: int) -> Balance:
    """A movement of an account in which so much was earned and paid, and nothing is left open."""
    return Balance(amount, amount, 0, 0)


async def whole(told: Told) -> AsyncIterator[Frame]:
    """All that an honest seller sends before the receipt."""
    yield Ids(ANSWER[:CHECKPOINT_TOKENS])
    yield told.checkpoint(ANSWER[:CHECKPOINT_TOKENS])
    yield Ids(ANSWER[CHECKPOINT_TOKENS:])


def with_receipt(changes: Callable[[Told], dict[str, Any]]) -> Script:
    """An honest answer with a receipt that differs."""

    async def script(told: Told) -> AsyncIterator[Frame]:
        async for frame in whole(told):
            yield frame
        yield told.receipt(ANSWER, **changes(told))

    return script


async def test_an_answer_that_fits_is_taken_and_paid(buyer: NodeProcess, seller: HostileSeller) -> None:
    """The measure for all that follows: without a lie the script is an ordinary seller's."""
    before, seller.script = await balance(buyer, seller.did), with_receipt(lambda _: {})
    async with client_of(buyer) as client:
        raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=STORY, max_tokens=MOST)
    assert raw.headers["x-idlemesh-route"] == seller.did
    usage = raw.parse().usage
    assert usage is not None
    after = await closed(buyer, seller.did)
    assert after.earned - before.earned == usage.prompt_tokens + 2 * MOST


@pytest.mark.parametrize(
    ("changes", "complaint", "discount"),
    [
        (lambda told: {"prompt_tokens": len(told.request.prompt) + 1}, "prompt token count", 0),
        (lambda _: {"output_tokens": MOST + 5}, "output token count", 0),
        (lambda _: {"output_tokens": MOST - 5}, "output token count", 0),
        (lambda told: {"cost": len(told.request.prompt) + 2 * MOST + 1}, "cost", 0),
        (lambda told: {"cost": len(told.request.prompt) + 2 * MOST - 3}, "cost", 3),
        (lambda _: {"prompt_commitment": bytes(32)}, "prompt commitment", 0),
        (lambda _: {"output_commitment": bytes(32)}, "output commitment", 0),
        (lambda _: {"model": bytes(32)}, "model", 0),
        (lambda _: {"unit": "msat"}, "unit", 0),
        (lambda _: {"finish": "stop"}, "did not end by 'stop'", 0),
        (lambda _: {"finish": "cancelled"}, "did not end by 'cancelled'", 0),
        (lambda _: {"finish": "cut"}, "did not end by 'cut'", 0),
    ],
    ids=[
        "prompt count", "more tokens", "fewer tokens", "cost", "lower cost", "prompt commitment", "output commitment",
        "model", "unit", "stop", "cancelled", "cut",
    ],
)  # fmt: skip
async def test_of_a_receipt_that_does_not_fit_the_delivered_part_is_paid_and_the_rest_disputed(
    buyer: NodeProcess,
    seller: HostileSeller,
    changes: Callable[[Told], dict[str, Any]],
    complaint: str,
    discount: int,
) -> None:
    told: list[Told] = []

    def remembered(one: Told) -> dict[str, Any]:
        told.append(one)
        return changes(one)

    before, number = await balance(buyer, seller.did), len(seller.acknowledged)
    seller.script = with_receipt(remembered)
    async with client_of(buyer) as client:
        await client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=MOST)
    said = await acknowledgement(buyer, seller, number)
    delivered = len(told[0].request.prompt) + 2 * MOST - discount
    assert not said.accepted
    assert complaint in said.reason
    assert said.amount == delivered
    assert (await closed(buyer, seller.did)).authorized - before.authorized == delivered


async def test_a_receipt_signed_by_somebody_else_brings_no_more_than_the_checkpoint(
    buyer: NodeProcess, seller: HostileSeller
) -> None:
    _, moved = await told_apart(buyer, seller, with_receipt(lambda _: {"signer": Identity(bytes(32))}), MOST + 1)
    assert moved == paid(CHECKPOINT_COST)


async def test_a_receipt_for_another_order_brings_no_more_than_the_checkpoint(
    buyer: NodeProcess, seller: HostileSeller
) -> None:
    _, moved = await told_apart(buyer, seller, with_receipt(lambda _: {"order": bytes(32)}), MOST + 1)
    assert moved == paid(CHECKPOINT_COST)


async def stalls_at_once(_told: Told) -> AsyncIterator[Frame]:
    await asyncio.Event().wait()
    yield Ids(())


async def stalls_after_a_checkpoint(told: Told) -> AsyncIterator[Frame]:
    async for frame in whole(told):
        yield frame
    await asyncio.Event().wait()


async def only_signs_of_life(_told: Told) -> AsyncIterator[Frame]:
    yield Ids(ANSWER[:5])
    while True:
        yield Ids(())
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("script", "owed"), [(stalls_at_once, 0), (only_signs_of_life, 0), (stalls_after_a_checkpoint, CHECKPOINT_COST)]
)
async def test_a_seller_that_stops_sending_is_given_up(
    buyer: NodeProcess, seller: HostileSeller, script: Script, owed: int
) -> None:
    why, moved = await told_apart(buyer, seller, script, MOST + 1)
    assert "no token came for 1 seconds" in why
    assert moved == paid(owed)


async def test_the_client_of_a_stream_that_stalls_keeps_what_arrived_and_hears_why(
    buyer: NodeProcess, seller: HostileSeller
) -> None:
    seller.script = stalls_after_a_checkpoint
    text = ""
    async with client_of(buyer) as client:
        stream = await client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=MOST + 1, stream=True)
        async with stream:
            chunks = aiter(stream)
            with pytest.raises(openai.APIError, match="broke off"):  # noqa: PT012 - as it comes, until it breaks off
                while True:
                    text += (await anext(chunks)).choices[0].delta.content or ""
    assert len(text) > CHECKPOINT_TOKENS


def sends(*frames: Callable[[Told], Frame | bytes]) -> Script:
    """A script of frames that are made when the order is known."""

    async def script(told: Told) -> AsyncIterator[Frame | bytes]:
        for frame in frames:
            yield frame(told)

    return script


def ids(*tokens: int) -> Callable[[Told], Frame]:
    return lambda _: Ids(tokens)


def raw(piece: bytes) -> Callable[[Told], bytes]:
    return lambda _: piece


FIRST = ANSWER[:CHECKPOINT_TOKENS]


@pytest.mark.parametrize(
    ("script", "complaint", "owed"),
    [
        (sends(), "cut before its end", 0),
        (sends(ids(*ANSWER[:9])), "cut before its end", 0),
        (sends(ids(*FIRST), lambda told: told.checkpoint(FIRST), ids(5)), "cut before its end", CHECKPOINT_COST),
        (sends(ids(*FIRST), ids(*ANSWER[64:])), "without a checkpoint", 0),
        (sends(ids(*ANSWER, 5)), "more tokens than were ordered", 0),
        (sends(ids(5, 4_000_000_000)), "token ids that the model does not have", 0),
        (sends(ids(*FIRST), lambda told: told.checkpoint(FIRST, commitment=bytes(32))), "does not fit", 0),
        (sends(ids(*FIRST), lambda told: told.checkpoint(FIRST, cost=10**6)), "does not fit", 0),
        (sends(ids(*FIRST), lambda told: told.checkpoint(FIRST[:63])), "does not fit", 0),
        (sends(ids(*FIRST), lambda told: told.checkpoint(FIRST, order=bytes(32))), "does not fit", 0),
        (sends(ids(5), lambda told: CancelFrame(told.cancel(1))), "stopped before the end", 0),
        (sends(ids(5), lambda told: CancelFrame(b"")), "stopped before the end", 0),
        (sends(raw(b"<html>It works!</html>")), "CBOR sequence of byte strings", 0),
        (sends(raw(b"\x00" * 5_000)), "CBOR sequence of byte strings", 0),
        (sends(raw(b"\x58\x18" + bytes(24)), raw(b"\x58\x20" + bytes(32))), "cannot be opened", 0),
        (sends(ids(5), raw(b"\x5a\xff\xff\xff\xff")), "at most 65536 are allowed", 0),
        (sends(ids(5), raw(b"\x58\x02ab")), "shortest form", 0),
    ],
    ids=[
        "nothing", "cut", "cut after a checkpoint", "no checkpoint", "too many", "unknown id", "false commitment",
        "false cost", "false count", "of another order", "cancelled", "empty cancel", "HTML", "zeros", "another key",
        "endless frame", "long form",
    ],
)  # fmt: skip
async def test_a_stream_that_breaks_the_protocol_is_paid_up_to_its_last_good_checkpoint(
    buyer: NodeProcess, seller: HostileSeller, script: Script, complaint: str, owed: int
) -> None:
    why, moved = await told_apart(buyer, seller, script)
    assert complaint in why
    assert moved == paid(owed)


async def test_a_seller_that_refuses_in_strange_words_is_passed_over(buyer: NodeProcess, seller: HostileSeller) -> None:
    async def refuses(told: Told) -> AsyncIterator[Frame]:
        if told.order.record.max_tokens:
            raise Refused("busy", "no\x00\x1b[2J\r\nX-Evil: yes\u2028 ☃", 1)
        yield Ids(())

    why, moved = await told_apart(buyer, seller, refuses)
    assert "refused the order" in why
    assert why.isprintable()
    assert moved == paid(0)


async def test_a_tokenizer_that_is_not_what_its_digest_says_is_not_used(
    buyer: NodeProcess, seller: HostileSeller
) -> None:
    strange = seller.strange
    async with client_of(buyer) as client:
        assert strange in [model.id for model in (await client.models.list()).data]
        for seller.tokenizer_file in (b"", b"GGUF but not really", bytes(100_000)):
            with pytest.raises(openai.InternalServerError, match="tokenizer cannot be had") as caught:
                await client.chat.completions.create(
                    model=strange, messages=STORY, extra_headers={"X-IdleMesh-Degrade": "never"}
                )
            assert caught.value.status_code == 503
    kept = [path.stem for path in (buyer.home.tokenizers).iterdir()]
    assert "78" * 32 not in kept


async def test_a_name_that_a_seller_gives_its_model_counts_for_nothing(
    buyer: NodeProcess, seller: HostileSeller
) -> None:
    async with client_of(buyer) as client:
        names = [model.id for model in (await client.models.list()).data]
        assert names == [MODEL, seller.strange]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(
                model="Llama-3.1-405B", messages=STORY, extra_headers={"X-IdleMesh-Degrade": "never"}
            )


class FlipOneByte:
    """Changes one byte of the first frame of an answer that comes after its head."""

    def __init__(self) -> None:
        self._streaming = False
        self.flipped = False

    def __call__(self, piece: bytes) -> bytes:
        if self._streaming and not self.flipped:
            self.flipped = True
            at = piece.index(b"\r\n") + 2 + 8  # after the lengths that HTTP and CBOR write first
            return piece[:at] + bytes([piece[at] ^ 0x10]) + piece[at + 1 :]
        self._streaming = self._streaming or b"application/cbor-seq" in piece
        return piece


async def test_a_byte_that_was_flipped_on_the_way_is_detected(network: Network, pair: Pair) -> None:
    flip = FlipOneByte()
    async with tapped(pair.seller.running.url, flip) as tap:
        node = await network.up("buyer", BUYER, [(pair.seller.running.did, tap.url)])
        await sellers_are_known(node)
        async with client_of(node) as client:
            raw = await client.chat.completions.with_raw_response.create(model="auto", messages=STORY, max_tokens=60)
        assert flip.flipped
        assert raw.headers["x-idlemesh-route"] == "local"
        assert pair.seller.running.did in raw.headers["x-idlemesh-degraded"]
        async with owner_of(node) as owner:
            (peer,) = await owner.peers()
        assert (peer["failed"], peer["delivered"]) == (1, 0)
