"""Named peers: what they say is checked before it counts, and one that talks nonsense does not disturb the others."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from ledger.codec import Forged, Malformed
from ledger.identity import Did, Identity
from ledger.records import Expired, Grant, Offer, open_record, sign
from node.mesh.static import NamedPeers, NoTokenizerToBeHad
from node.models.manifest import tokenizer_file
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer
from node.models.tokenizers import Tokenizers
from node.ports import ManualClock, SeededEntropy
from node.wire.messages import Refused, Unreachable
from node.wire.peer import Peer
from tests.node.trading import CREDIT, DEMO, Customer, Line, Store, until

STRANGER = Identity(bytes([3]) * 32)


@pytest.fixture
def tokenizers(tmp_path: Path) -> Tokenizers:
    return Tokenizers(tmp_path / "tokenizers", TemplateRenderer())


@pytest.fixture
async def store(tokenizer: Tokenizer, clock: ManualClock) -> Store:
    return await Store.open(tokenizer, clock, tokenizer_file=lambda _: tokenizer_file(DEMO))


@pytest.fixture
async def customer(tokenizer: Tokenizer, clock: ManualClock) -> AsyncIterator[Customer]:
    made = await Customer.open(tokenizer, clock)
    yield made
    await made.close()


class Saying(Line):
    """Says other offers or another grant than the seller behind it."""

    def __init__(self, peer: Peer, offers: Sequence[bytes] | None = None, grant: bytes | None = None) -> None:
        super().__init__(peer)
        self.said, self._grant = offers, grant
        self.refusal: Refused | None = None

    async def offers(self) -> Sequence[bytes]:
        if self.refusal is not None:
            raise self.refusal
        return await super().offers() if self.said is None else self.said

    async def grant(self, buyer: str, unit: str, rail: str = "credit") -> bytes:
        return await super().grant(buyer, unit, rail) if self._grant is None else self._grant


def naming(customer: Customer, peers: dict[Did, Peer], tokenizers: Tokenizers, clock: ManualClock) -> NamedPeers:
    return NamedPeers(customer.did, peers, tokenizers, clock, customer.buyer.take_grant)


async def test_a_peers_offers_and_credit_are_known_once_it_was_asked(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    peers = naming(customer, {store.did: store.seller}, tokenizers, clock)

    await peers.refresh(store.did)

    assert peers.offers() == [await store.offer()]
    assert customer.owes(store.did).limit == CREDIT.limit.value
    assert customer.owes(store.did).window == CREDIT.window.value


async def test_an_offer_that_expires_is_gone(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    peers = naming(customer, {store.did: store.seller}, tokenizers, clock)
    await peers.refresh(store.did)

    clock.advance(3_600)

    assert peers.offers() == []


async def test_a_peer_that_sells_nothing_for_now_is_known_to_be_paused_and_why(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    line = Saying(store.seller)
    peers = naming(customer, {store.did: line}, tokenizers, clock)
    await peers.refresh(store.did)
    line.refusal = Refused("not_selling", "its owner needs it")
    await peers.refresh(store.did)
    assert (peers.offers(), peers.paused) == ([], {store.did: "its owner needs it"})

    line.refusal = None
    await peers.refresh(store.did)
    assert (len(peers.offers()), peers.paused) == (1, {})


async def test_another_sellers_offer_is_not_taken(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    peers = naming(customer, {STRANGER.did: store.seller}, tokenizers, clock)

    with pytest.raises(Malformed):
        await peers.refresh(STRANGER.did)

    assert peers.offers() == []


async def test_a_forged_offer_is_not_taken(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    raw = (await store.offer()).raw
    line = Saying(store.seller, offers=[raw[:-1] + bytes([raw[-1] ^ 1])])
    peers = naming(customer, {store.did: line}, tokenizers, clock)

    with pytest.raises(Forged):
        await peers.refresh(store.did)

    assert peers.offers() == []


@pytest.mark.parametrize(
    ("changes", "signer"),
    [({}, STRANGER), ({"buyer": STRANGER.did}, None), ({"unit": "msat"}, None)],
    ids=["by a stranger", "for a stranger", "another unit"],
)
async def test_a_grant_that_is_not_this_sellers_for_this_node_is_not_taken(
    store: Store,
    customer: Customer,
    tokenizers: Tokenizers,
    clock: ManualClock,
    changes: dict[str, Any],
    signer: Identity | None,
) -> None:
    honest = open_record(await store.seller.grant(customer.did, "uusd"), Grant).record
    spoilt = sign(evolve(honest, **changes), signer or store.book.identity).raw
    peers = naming(customer, {store.did: Saying(store.seller, grant=spoilt)}, tokenizers, clock)

    with pytest.raises(Malformed):
        await peers.refresh(store.did)

    assert customer.owes(store.did).limit == 0


async def test_a_grant_out_of_its_time_is_not_taken(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    old = await store.seller.grant(customer.did, "uusd")
    clock.advance(2 * 24 * 3_600)
    peers = naming(customer, {store.did: Saying(store.seller, grant=old)}, tokenizers, clock)

    with pytest.raises(Expired):
        await peers.refresh(store.did)


async def test_in_the_background_peers_are_asked_and_what_is_wrong_with_one_is_said(
    store: Store, tokenizer: Tokenizer, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    other = await Store.open(tokenizer, clock, seed=5)
    broken = Saying(other.seller, offers=[b"nonsense"])
    peers = naming(customer, {other.did: broken, store.did: store.seller}, tokenizers, clock)

    peers.start()
    await until(lambda: bool(peers.offers()) and other.did in peers.trouble)
    await peers.close()

    assert [offer.signer for offer in peers.offers()] == [store.did]
    assert "COSE_Sign1" in peers.trouble[other.did]
    assert store.did not in peers.trouble


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"tokenizer": bytes(32)}, "tokenizer is not the manifest's"),
        ({"quantization": "F16"}, "quantization is not the manifest's"),
        ({"parameters": 405_000_000_000}, "parameters is not the manifest's"),
        ({"context": 4_096}, "context is longer"),
        ({"model": b"\x01" * 32}, "not the one that its digest names"),
    ],
)
async def test_an_offer_that_its_models_manifest_does_not_bear_out_is_passed_over(
    store: Store,
    customer: Customer,
    tokenizers: Tokenizers,
    clock: ManualClock,
    said: dict[str, Any],
    why: str,
) -> None:
    honest = open_record((await store.seller.offers())[0], Offer)

    class Boasting(Line):
        async def offers(self) -> Sequence[bytes]:
            return [sign(evolve(honest.record, **said), store.book.identity).raw]

        async def manifest(self, model: bytes) -> bytes:
            return await super().manifest(honest.record.model)

    peers = naming(customer, {store.did: Boasting(store.seller)}, tokenizers, clock)

    with pytest.raises(Malformed, match=why):
        await peers.refresh(store.did)

    assert not peers.offers()


async def test_a_tokenizer_is_fetched_once_and_kept(
    store: Store, tokenizer: Tokenizer, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    asked: list[bytes] = []

    class Counting(Line):
        async def tokenizer(self, digest: bytes) -> bytes:
            asked.append(digest)
            return await super().tokenizer(digest)

    peers = naming(customer, {store.did: Counting(store.seller)}, tokenizers, clock)

    first = await peers.tokenizer(tokenizer.digest, store.did)
    again = await peers.tokenizer(tokenizer.digest, store.did)

    assert first is again
    assert first.size == tokenizer.size
    assert asked == [tokenizer.digest]
    await tokenizers.close()


async def test_a_tokenizer_that_does_not_match_its_digest_is_refused_and_another_peer_is_asked(
    store: Store, tokenizer: Tokenizer, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    class Lying(Line):
        async def tokenizer(self, digest: bytes) -> bytes:
            raw = bytearray(await super().tokenizer(digest))
            raw[-1] ^= 1
            return bytes(raw)

    liar = await Store.open(tokenizer, clock, seed=5, tokenizer_file=lambda _: tokenizer_file(DEMO))
    peers = naming(customer, {liar.did: Lying(liar.seller)}, tokenizers, clock)
    with pytest.raises(NoTokenizerToBeHad, match="fetch it from another peer"):
        await peers.tokenizer(tokenizer.digest, liar.did)
    assert not tokenizers.has(tokenizer.digest)

    both = naming(customer, {liar.did: Lying(liar.seller), store.did: store.seller}, tokenizers, clock)
    assert (await both.tokenizer(tokenizer.digest, liar.did)).size == tokenizer.size
    await tokenizers.close()


@pytest.mark.parametrize("error", [Refused("unknown_offer", "not here"), Unreachable("no answer")])
async def test_a_tokenizer_that_nobody_gives_is_said_with_every_reason(
    store: Store,
    tokenizer: Tokenizer,
    customer: Customer,
    tokenizers: Tokenizers,
    clock: ManualClock,
    error: Exception,
) -> None:
    class Mute(Line):
        async def tokenizer(self, digest: bytes) -> bytes:
            raise error

    peers = naming(customer, {store.did: Mute(store.seller)}, tokenizers, clock)

    with pytest.raises(NoTokenizerToBeHad, match=str(error)):
        await peers.tokenizer(tokenizer.digest, store.did)


async def test_models_that_a_peer_stops_selling_are_dropped(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    line = Saying(store.seller)
    peers = naming(customer, {store.did: line}, tokenizers, clock)
    await peers.refresh(store.did)

    line.said = []
    await peers.refresh(store.did)

    assert peers.offers() == []


async def test_a_tokenizer_that_could_not_be_had_is_not_asked_for_again_for_a_while(
    store: Store, tokenizer: Tokenizer, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    asked: list[bytes] = []

    class Late(Line):
        async def tokenizer(self, digest: bytes) -> bytes:
            asked.append(digest)
            if len(asked) == 1:
                raise Unreachable("no answer")
            return await super().tokenizer(digest)

    peers = naming(customer, {store.did: Late(store.seller)}, tokenizers, clock)

    for _ in range(3):
        with pytest.raises(NoTokenizerToBeHad, match="no answer"):
            await peers.tokenizer(tokenizer.digest, store.did)
        clock.advance(60)
    assert len(asked) == 1
    clock.advance(180)

    assert (await peers.tokenizer(tokenizer.digest, store.did)).size == tokenizer.size
    await tokenizers.close()


async def test_an_unexpected_error_does_not_end_contact_with_a_peer(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    class Buggy(Line):
        calls = 0

        async def offers(self) -> Sequence[bytes]:
            self.calls += 1
            if self.calls == 1:
                raise KeyError("a bug")
            return await super().offers()

    peers = naming(customer, {store.did: Buggy(store.seller)}, tokenizers, clock)

    peers.start()
    await until(lambda: store.did in peers.trouble)
    await until(lambda: bool(peers.offers()))
    await peers.close()

    assert store.did not in peers.trouble


class Meetings:
    """Remembers with whom accounts were compared; may say no."""

    def __init__(self) -> None:
        self.met: list[Did] = []
        self.trouble: Exception | None = None
        self.refusal: Refused | None = None

    async def meet(self, did: Did) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.met.append(did)

    def may_work_with(self, _: Did) -> Refused | None:
        return self.refusal


@pytest.fixture
def meetings() -> Meetings:
    return Meetings()


@pytest.fixture
def line(store: Store) -> Line:
    return Line(store.seller)


@pytest.fixture
def meeting(
    store: Store, line: Line, customer: Customer, tokenizers: Tokenizers, clock: ManualClock, meetings: Meetings
) -> NamedPeers:
    """A customer's named peer, with which it compares accounts."""
    peers: dict[Did, Peer] = {store.did: line}
    take_grant = customer.buyer.take_grant
    return NamedPeers(customer.did, peers, tokenizers, clock, take_grant, meetings.meet, meetings.may_work_with)


async def test_accounts_are_compared_once_on_a_connection_and_again_after_a_while(
    store: Store, clock: ManualClock, meeting: NamedPeers, meetings: Meetings
) -> None:
    for _ in range(3):
        await meeting.refresh(store.did)
    assert meetings.met == [store.did]
    clock.advance(301)
    await meeting.refresh(store.did)
    assert len(meetings.met) == 2


async def test_accounts_are_compared_when_the_peer_is_another_run(
    store: Store, line: Line, meeting: NamedPeers, meetings: Meetings, tokenizer: Tokenizer, clock: ManualClock
) -> None:
    await meeting.refresh(store.did)
    again = await Store.open(tokenizer, clock, seed=1, entropy=SeededEntropy(77))
    line.peer = again.seller
    await meeting.refresh(store.did)
    assert len(meetings.met) == 2


async def test_a_peer_that_compares_nothing_may_be_bought_from_all_the_same(
    store: Store, meeting: NamedPeers, meetings: Meetings
) -> None:
    meetings.trouble = Unreachable("it does not know how")
    await meeting.refresh(store.did)
    assert len(meeting.offers()) == 1
    assert meeting.apart == {store.did: "it does not know how"}
    meetings.trouble = None
    await meeting.refresh(store.did)
    assert meeting.apart == {}


async def test_nothing_is_bought_from_a_peer_with_which_no_work_may_start(
    store: Store, meeting: NamedPeers, meetings: Meetings
) -> None:
    await meeting.refresh(store.did)
    meetings.refusal = Refused("busy", "compare accounts first")
    with pytest.raises(Refused):
        await meeting.refresh(store.did)
    assert meeting.offers() == []


async def test_it_is_told_when_each_peer_has_answered_once_or_not(
    store: Store, customer: Customer, tokenizers: Tokenizers, clock: ManualClock
) -> None:
    peers = naming(customer, {store.did: store.seller, STRANGER.did: store.seller}, tokenizers, clock)
    peers.start()
    await peers.asked_once(30)
    await peers.close()
    assert len(peers.offers()) == 1
    assert set(peers.trouble) == {STRANGER.did}
