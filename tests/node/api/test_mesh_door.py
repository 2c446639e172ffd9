"""What strangers may ask of a node, what they hear when it says no, and that it still serves afterwards."""

import contextlib
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ledger import codec
from ledger.identity import Identity
from ledger.records import (
    AccountState,
    Acknowledgement,
    Cancel,
    Forgiveness,
    Grant,
    Netting,
    Offer,
    Receipt,
    Settlement,
    Signed,
    open_record,
    sign,
)
from node.exchange.reconciling import MAX_ROUNDS
from node.ports import SystemClock, SystemEntropy
from node.wire.frames import ReceiptFrame
from node.wire.messages import MAX_ENVELOPE, Asked, Refused, decode_nonce, decode_refusal, encode_asked, encode_envelope
from tests.node.api.conftest import load_exact
from tests.node.api.running import Reply, RunningNode, request, running_node, settings
from tests.node.trading import Draft, draft_order

STRANGER = Identity(b"a stranger" + bytes(22))
# For nonces that no other test uses.
_FRESH = SystemEntropy()


def refusal_of(reply: Reply, status: int) -> Refused:
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/cbor"
    return decode_refusal(reply.body)


def offer_of(node: RunningNode) -> Signed[Offer]:
    raw = codec.decode(request(node, "GET", "/mesh/v1/offers").body, 2**20)
    return open_record(raw[0], Offer)


def draft(node: RunningNode, buyer: Identity = STRANGER, **changes: Any) -> Draft:
    """An order that the node would take, but for the changes."""
    changes.setdefault("nonce", int.from_bytes(_FRESH.bytes(8), "big"))
    return draft_order(buyer, offer_of(node), SystemClock(), **changes)


def place(node: RunningNode, order: Draft) -> Reply:
    return request(node, "POST", "/mesh/v1/orders", encode_envelope(order.raw, order.sealed))


def receipt_in(order: Draft, reply: Reply) -> Receipt:
    """The receipt at the end of an answer."""
    assert reply.status == 200
    last = list(order.reader().feed(reply.body))[-1]
    assert isinstance(last, ReceiptFrame)
    return open_record(last.raw, Receipt).record


@pytest.fixture(autouse=True)
def _node_still_serves(node: RunningNode) -> Iterator[None]:
    """After each test an ordinary order is delivered."""
    yield
    order = draft(node, max_tokens=1)
    assert receipt_in(order, place(node, order)).output_tokens == 1


def test_offers_are_signed_by_the_node(node: RunningNode) -> None:
    assert offer_of(node).signer == node.did


def test_an_order_is_answered_with_a_receipt_at_the_end(node: RunningNode) -> None:
    order = draft(node, max_tokens=5, seed=1)
    receipt = receipt_in(order, place(node, order))
    assert (receipt.order, receipt.output_tokens) == (order.order.digest, 5)


def test_a_receipt_can_be_fetched_again_by_its_order(node: RunningNode) -> None:
    order = draft(node)
    receipt = receipt_in(order, place(node, order))
    again = request(node, "GET", f"/mesh/v1/orders/{order.order.digest.hex()}/receipt")
    assert open_record(again.body, Receipt).record == receipt


def test_a_grant_names_its_buyer(node: RunningNode) -> None:
    reply = request(node, "GET", f"/mesh/v1/grants/{STRANGER.did}/uusd")
    grant = open_record(reply.body, Grant)
    assert (grant.signer, grant.record.buyer) == (node.did, STRANGER.did)
    assert grant.record.credit == 10_000


def test_the_tokenizer_of_an_offer_is_what_its_digest_says(node: RunningNode) -> None:
    digest = offer_of(node).record.tokenizer
    assert sha256(request(node, "GET", f"/mesh/v1/tokenizers/{digest.hex()}").body).digest() == digest


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("grants/nobody/uusd", 400, "malformed"),
        ("grants/did:key:z6Mknobody/uusd", 400, "malformed"),
        (f"grants/{STRANGER.did}/eur", 402, "credit"),
        (f"grants/{STRANGER.did}/msat", 402, "credit"),
        (f"grants/{STRANGER.did}/uusd/stablecoin", 403, "rail"),
        (f"grants/{STRANGER.did}/uusd/" + "x" * 999, 403, "rail"),
        ("channel-terms", 403, "rail"),
        ("tokenizers/" + "ab" * 32, 404, "unknown_offer"),
        ("tokenizers/" + "ab" * 31, 400, "malformed"),
        ("tokenizers/..%2f..%2fidentity.key", 400, "malformed"),
        ("tokenizers/" + "zz" * 32, 400, "malformed"),
        ("orders/" + "ab" * 32 + "/receipt", 404, "unknown_order"),
        ("orders/nonsense/receipt", 400, "malformed"),
        ("orders/" + "ab" * 32 + "/resolution", 404, "unknown_order"),
        ("orders/nonsense/resolution", 400, "malformed"),
    ],
)
def test_questions_about_what_is_not_there_get_a_typed_refusal(
    node: RunningNode, path: str, status: int, code: str
) -> None:
    assert refusal_of(request(node, "GET", f"/mesh/v1/{path}"), status).code == code


@pytest.mark.parametrize("path", ["channels", "deposits"])
def test_a_node_without_a_wallet_is_paid_by_no_channel(node: RunningNode, path: str) -> None:
    assert refusal_of(request(node, "POST", f"/mesh/v1/{path}", b"\xa0"), 403).code == "rail"


@pytest.mark.parametrize("path", ["orders", "acknowledgements", "cancels"])
@pytest.mark.parametrize(
    "body",
    [
        b"\x00",
        b"\xff" * 64,
        b"{}",
        codec.encode({}),
        codec.encode([]),
        codec.encode([b"", b""]),
        codec.encode([b"x", b"y", b"z"]),
        codec.encode(["order", "sealed"]),
        b"\x81" * 2_000,
        b"\xd2\x84\x40\xa0\x40\x40",
        b"\x9f\xff",
        b"\x82\x58\x01\x00\x41\x00",
    ],
    ids=[
        "zero",
        "ones",
        "JSON",
        "map",
        "list",
        "empties",
        "three",
        "texts",
        "deep",
        "COSE",
        "indefinite",
        "long heads",
    ],
)
def test_garbage_is_malformed(node: RunningNode, path: str, body: bytes) -> None:
    assert refusal_of(request(node, "POST", f"/mesh/v1/{path}", body), 400).code == "malformed"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_encoded_body_is_malformed_and_nothing_is_logged(
    node: RunningNode, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/mesh/v1/offers" if method == "GET" else "/mesh/v1/orders"
    reply = request(node, method, path, b"plain" * 100_000, {"Content-Encoding": "deflate"})
    assert (reply.status, decode_refusal(reply.body).code) == (400, "malformed")
    assert caplog.records == []


def test_nothing_at_all_is_malformed(node: RunningNode) -> None:
    assert refusal_of(request(node, "POST", "/mesh/v1/orders"), 400).code == "malformed"


@pytest.mark.parametrize(
    ("path", "size"), [("orders", MAX_ENVELOPE), ("acknowledgements", Acknowledgement.limit), ("cancels", Cancel.limit)]
)
def test_a_body_larger_than_its_kind_may_be_is_refused(node: RunningNode, path: str, size: int) -> None:
    refusal = refusal_of(request(node, "POST", f"/mesh/v1/{path}", bytes(size + 1)), 400)
    assert refusal.code == "malformed"
    assert str(size) in refusal.message


def _forged(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


def test_a_forged_order_is_refused(node: RunningNode) -> None:
    order = draft(node)
    reply = request(node, "POST", "/mesh/v1/orders", encode_envelope(_forged(order.raw), order.sealed))
    assert refusal_of(reply, 400).code == "forged"


def test_an_order_with_bytes_after_it_is_refused(node: RunningNode) -> None:
    order = draft(node)
    reply = request(node, "POST", "/mesh/v1/orders", encode_envelope(order.raw + b"\x00", order.sealed))
    assert refusal_of(reply, 400).code == "malformed"


def test_an_order_not_in_its_canonical_form_is_refused(node: RunningNode) -> None:
    order = draft(node)
    # The array of four with its length in a byte of its own: the same to a lenient reader.
    assert order.raw[:2] == b"\xd2\x84"
    longer = b"\xd2\x98\x04" + order.raw[2:]
    reply = request(node, "POST", "/mesh/v1/orders", encode_envelope(longer, order.sealed))
    assert refusal_of(reply, 400).code == "malformed"


def test_another_record_in_an_orders_place_is_refused(node: RunningNode) -> None:
    order = draft(node)
    cancel = sign(Cancel(order.order.digest, 0), STRANGER)
    reply = request(node, "POST", "/mesh/v1/orders", encode_envelope(cancel.raw, order.sealed))
    assert refusal_of(reply, 400).code == "malformed"


def _now() -> int:
    return int(SystemClock().now())


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        (lambda: {"issued": _now() - 1000, "expires": _now() - 400}, 400, "expired"),
        (lambda: {"issued": _now() + 300, "expires": _now() + 600}, 400, "expired"),
        (lambda: {"expires": _now() + 3600}, 400, "expired"),
        (lambda: {"seller": STRANGER.did}, 403, "wrong_seller"),
        (lambda: {"offer": b"\xab" * 32}, 404, "unknown_offer"),
        (lambda: {"request": b"\xab" * 32}, 400, "malformed"),
        (lambda: {"privacy": "restricted"}, 403, "privacy"),
        (lambda: {"rail": "cowries"}, 403, "rail"),
        (lambda: {"hops": 1}, 403, "hops"),
        (lambda: {"max_tokens": 2_048, "max_cost": 10_000}, 413, "too_long"),
        (lambda: {"max_cost": 0}, 402, "max_cost"),
        (lambda: {"prompt": (2**31,)}, 400, "malformed"),
        (lambda: {"prompt": tuple(range(100)) * 21, "max_cost": 10_000}, 413, "too_long"),
        (lambda: {"prekey": b"\x09" + bytes(31)}, 400, "cannot_open"),
        (lambda: {"body": b"not a request"}, 400, "malformed"),
        (lambda: {"body": codec.encode({"salt": bytes(32), "prompt": b"", "stop": []})}, 400, "malformed"),
        (lambda: {"body": codec.encode({"salt": bytes(3), "prompt": bytes(4), "stop": []})}, 400, "malformed"),
        (lambda: {"body": codec.encode({"salt": bytes(32), "prompt": bytes(4), "stop": [""]})}, 400, "malformed"),
        (lambda: {"sealed": b"short"}, 400, "cannot_open"),
        (lambda: {"sealed": bytes(200)}, 400, "cannot_open"),
    ],
    ids=[
        "expired", "from the future", "lives too long", "for another seller", "of an unknown offer", "other request",
        "restricted", "another rail", "hops", "longer than the context", "below its cost", "unknown ids",
        "prompt longer than the context", "sealed for somebody else", "no request", "no prompt", "short salt",
        "empty stop", "short", "zeros",
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_taken_gets_a_typed_refusal(
    node: RunningNode, changes: Callable[[], dict[str, Any]], status: int, code: str
) -> None:
    assert refusal_of(place(node, draft(node, **changes())), status).code == code


def test_an_orders_nonce_is_used_once(node: RunningNode) -> None:
    first = draft(node, nonce=77)
    receipt_in(first, place(node, first))
    assert refusal_of(place(node, draft(node, nonce=77, max_tokens=9)), 409).code == "replayed"


def test_the_same_order_again_brings_its_receipt_and_costs_nothing(node: RunningNode) -> None:
    order = draft(node)
    receipt = receipt_in(order, place(node, order))
    again = place(node, order)
    assert [type(frame) for frame in order.reader().feed(again.body)] == [ReceiptFrame]
    assert receipt_in(order, again) == receipt


def test_a_sealed_request_signed_again_by_a_stranger_is_refused(node: RunningNode) -> None:
    order = draft(node)
    thief = Identity(b"a thief" + bytes(25))
    stolen = sign(order.order.record, thief)
    reply = request(node, "POST", "/mesh/v1/orders", encode_envelope(stolen.raw, order.sealed))
    assert refusal_of(reply, 400).code == "cannot_open"
    receipt_in(order, place(node, order))  # and its owner is not locked out


@pytest.mark.parametrize(
    ("credit", "code"),
    [
        ({"open_credit": "0.000002usd", "window": "1usd", "exposure": "1usd"}, "credit"),
        ({"open_credit": "1usd", "window": "0.000002usd", "exposure": "1usd"}, "window"),
        ({"open_credit": "1usd", "window": "1usd", "exposure": "0.000002usd"}, "exposure"),
    ],
    ids=["limit", "window", "exposure"],
)
def test_an_order_above_what_the_owner_trusts_is_refused(credit: dict[str, str], code: str, tmp_path: Path) -> None:
    with running_node(tmp_path, settings(sell={"price": "0.05usd:0.15usd"} | credit)) as careful:
        reply = place(careful, draft(careful, max_tokens=100))
        assert refusal_of(reply, 402).code == code
        small = draft(careful, max_tokens=1)
        assert receipt_in(small, place(careful, small)).cost == 1


def test_a_strangers_cancel_is_refused(node: RunningNode) -> None:
    order = draft(node)
    receipt_in(order, place(node, order))
    raw = sign(Cancel(order.order.digest, 0), STRANGER).raw
    assert refusal_of(request(node, "POST", "/mesh/v1/cancels", raw), 404).code == "unknown_order"


def test_paths_and_methods_that_are_not_there_are_refused(node: RunningNode) -> None:
    assert request(node, "GET", "/mesh/v1/orders").status == 405
    assert request(node, "GET", "/mesh/v2/offers").status == 404
    assert request(node, "DELETE", "/mesh/v1/offers").status == 405


@pytest.fixture(scope="module")
def shut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that sells nothing."""
    with running_node(tmp_path_factory.mktemp("shut"), settings()) as node:
        yield node


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "offers"),
        ("GET", f"grants/{STRANGER.did}/uusd"),
        ("GET", "tokenizers/" + "ab" * 32),
        ("GET", "orders/" + "ab" * 32 + "/receipt"),
        ("POST", "orders"),
        ("POST", "acknowledgements"),
        ("POST", "cancels"),
    ],
)
def test_a_node_that_sells_nothing_says_so(shut: RunningNode, method: str, path: str) -> None:
    assert refusal_of(request(shut, method, f"/mesh/v1/{path}"), 503).code == "not_selling"


def test_whoever_asks_too_often_is_slowed_down(shut: RunningNode) -> None:
    with contextlib.closing(HTTPConnection("127.0.0.1", shut.port, timeout=10)) as connection:
        for _ in range(20_000):
            connection.request("GET", "/mesh/v1/offers")
            response = connection.getresponse()
            body = response.read()
            if response.status == 429:
                break
    assert decode_refusal(body).code == "too_many_requests"
    assert response.headers["retry-after"] == "1"
    assert request(shut, "GET", "/v1/models").status == 200  # the owner's own programs are not slowed down


def test_strangers_of_one_network_compare_accounts_only_so_often_and_others_as_before(tmp_path: Path) -> None:
    def compared(node: RunningNode, address: str) -> int:
        nonce = decode_nonce(request(node, "GET", "/mesh/v1/challenge").body)
        state = AccountState(node.did, nonce, 0, bytes(32), (), 1)
        raw = encode_asked(Asked(sign(state, Identity(nonce + bytes(16))).raw, bytes(16), b""))
        return request(node, "POST", "/mesh/v1/states", raw, {"X-Forwarded-For": address}).status

    with running_node(tmp_path / "proxied", settings(node={"trusted_proxies": ["127.0.0.1"]}), load_exact) as proxied:
        said = [compared(proxied, f"2001:db8::{number:x}") for number in range(4 * MAX_ROUNDS)]
        assert (said[0], set(said)) == (200, {200, 429})
        assert compared(proxied, "2001:db8:0:1::1") == 200


@pytest.mark.parametrize("path", ["settlements", "nettings", "forgiveness"])
def test_what_is_no_agreement_is_malformed(path: str, node: RunningNode) -> None:
    assert refusal_of(request(node, "POST", f"/mesh/v1/{path}", b"nonsense"), 400).code == "malformed"
    assert refusal_of(request(node, "POST", f"/mesh/v1/{path}", bytes(1_025)), 400).code == "malformed"


def test_who_owes_nothing_here_has_nothing_to_settle_or_set_off(node: RunningNode) -> None:
    nobody = Identity(b"owes nothing" + bytes(20))
    settlement = sign(Settlement(nobody.did, node.did, "uusd", 0, 5, 1), nobody)
    assert refusal_of(request(node, "POST", "/mesh/v1/settlements", settlement.raw), 402).code == "credit"
    first, second = sorted((nobody.did, node.did))
    netting = sign(Netting(first, second, "uusd", 0, 5, int(time.time())), nobody)
    assert refusal_of(request(node, "POST", "/mesh/v1/nettings", netting.raw), 402).code == "credit"
    forgiveness = sign(Forgiveness(nobody.did, node.did, "credit", "uusd", 5, 0, 1), nobody)
    assert refusal_of(request(node, "POST", "/mesh/v1/forgiveness", forgiveness.raw), 402).code == "credit"
