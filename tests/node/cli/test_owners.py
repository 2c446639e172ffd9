"""What two owners settle between themselves, each by commands to a node of their own: processes and real sockets."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ledger.account import AccountKey
from ledger.changes import (
    Acknowledged,
    Authorized,
    Change,
    Disputed,
    Earned,
    Granted,
    Released,
    Reserved,
    VoucherReceived,
)
from ledger.database import Database
from ledger.events import AccountChanged
from ledger.identity import Identity
from ledger.journal import Kept
from ledger.records import Acknowledgement, Offer, Order, Voucher, open_record, sign
from tests.integration.network import SELLER, free_port, starting, way_to
from tests.node.cli.conftest import Idlemesh, Nodes

VECTORS: Final = json.loads((Path(__file__).parents[2] / "vectors" / "records.json").read_text())["records"]
THEM, US = (Identity(bytes([number]) * 32) for number in (1, 2))  # the seller and the buyer of the vectors
ORDER, OFFER = (
    open_record(bytes.fromhex(next(v["raw"] for v in VECTORS if v["kind"] == kind.kind)), kind)
    for kind in (Order, Offer)
)
HELP, LOST = bytes([3]) * 32, bytes([4]) * 32
WE_OWE = AccountKey(US.did, THEM.did, "credit", "uusd")
THEY_OWE = AccountKey(THEM.did, US.did, "credit", "uusd")
OPEN = Granted(100_000, 100_000, 1)
# We have bought for 100 and grant 60 of it; an answer for 7 never reached us; they have bought for 50 from us.
BOUGHT: Final = OPEN, Reserved(ORDER.digest, 100, 2**40)
HELPED: Final = OPEN, Reserved(HELP, 50, 2**40), Earned(HELP, 50), Released(HELP)
OURS: Final[dict[AccountKey, tuple[Change, ...]]] = {
    WE_OWE: (*BOUGHT, Released(ORDER.digest), Acknowledged(ORDER.digest, 60), Authorized(60)),
    THEY_OWE: (*HELPED, VoucherReceived(50)),
}
THEIRS: Final[dict[AccountKey, tuple[Change, ...]]] = {
    WE_OWE: (
        *BOUGHT,
        Earned(ORDER.digest, 100),
        Released(ORDER.digest),
        VoucherReceived(60),
        *(Reserved(LOST, 7, 2**40), Earned(LOST, 7), Released(LOST)),
    ),
    THEY_OWE: (*HELPED, Authorized(50)),
}


def make_home(folder: Path, identity: Identity, accounts: dict[AccountKey, tuple[Change, ...]]) -> None:
    folder.mkdir(parents=True)
    (folder / "identity.key").write_text((bytes([1 if identity is THEM else 2]) * 32).hex() + "\n")
    asyncio.run(make_ledger(folder, identity, accounts))


async def make_ledger(folder: Path, identity: Identity, accounts: dict[AccountKey, tuple[Change, ...]]) -> None:
    disputed = AccountChanged(WE_OWE, Disputed(ORDER.digest, 100, 60))
    voucher = sign(Voucher(US.did, THEM.did, "credit", "", "", "uusd", 60), US)
    said = Acknowledgement(ORDER.digest, bytes(32), False, "it is\x1b too short", 60, None, voucher.raw)
    records = (
        Kept("offer", OFFER.raw),
        Kept("order", ORDER.raw, ORDER.digest),
        Kept("acknowledgement", sign(said, US).raw, ORDER.digest),
    )
    events = [AccountChanged(key, change) for key, changes in accounts.items() for change in changes]
    async with await Database.open(folder / "ledger.db", identity.did) as database:
        await database.append([*events, disputed], time_ms=1, records=records)


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Our node and theirs; each has named the other."""
    folder = tmp_path_factory.mktemp("owners")
    make_home(folder / "ours", US, OURS)
    make_home(folder / "theirs", THEM, THEIRS)
    port = free_port()
    with contextlib.ExitStack() as stack:
        way_to_us = US.did, f"http://127.0.0.1:{port}"
        theirs = stack.enter_context(starting(folder / "theirs", SELLER, [way_to_us]))
        ours = stack.enter_context(starting(folder / "ours", SELLER, [way_to(theirs)], port))
        yield Nodes(ours, theirs)


def ours(owners: Nodes) -> tuple[str, Path]:
    return "--home", owners.owner.home.folder


def theirs(owners: Nodes) -> tuple[str, Path]:
    return "--home", owners.seller.home.folder


def account(idlemesh: Idlemesh, where: tuple[str, Path], direction: str) -> Any:
    body = idlemesh("accounts", *where, "--json").json()
    assert (body["chain"], body["balanced"]) == ("intact", True)
    (row,) = (row for row in body["accounts"] if row["direction"] == direction)
    return row


def test_the_records_of_an_order_say_which_of_them_export_takes(idlemesh: Idlemesh, owners: Nodes) -> None:
    rows = idlemesh("ledger", "records", ORDER.digest.hex()[:6], *ours(owners), "--json").json()["records"]
    assert [(row["kind"], row["order"], row["export"]) for row in rows] == [
        ("order", ORDER.digest.hex(), False),
        ("acknowledgement", ORDER.digest.hex(), False),
    ]
    table = idlemesh("ledger", "records", *ours(owners)).out
    assert ORDER.digest.hex()[:12] in table
    assert OFFER.digest.hex()[:12] in table
    refused = idlemesh("ledger", "records", "zzzzzz", *ours(owners))
    assert (refused.status, "hexadecimal digits" in refused.err) == (1, True)


def test_what_is_in_dispute_is_shown_to_both_owners(idlemesh: Idlemesh, owners: Nodes) -> None:
    for where, direction, peer in ((ours(owners), "we pay", THEM.did), (theirs(owners), "they pay", US.did)):
        (row,) = idlemesh("disputes", *where, "--json").json()["disputes"]
        assert row == {
            "order": ORDER.digest.hex(),
            "peer": peer,
            "direction": direction,
            "asked": "0.000100usd",
            "granted": "0.000060usd",
            "disputed": "0.000040usd",
            "reason": "it is\x1b too short",
        }
    table = idlemesh("disputes", *ours(owners)).out
    assert "it is too short" in table
    assert ORDER.digest.hex()[:12] in table


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["resolve", "abcdef"], "no disputed order begins with abcdef"),
        (["resolve", "abc"], "at least 6 digits"),
        (["resolve", "../../x"], "is no order"),
        (["resolve", ORDER.digest.hex(), "0.000059usd"], "between 0.000060usd and 0.000100usd"),
        (["resolve", ORDER.digest.hex(), "60msat"], "counted in uusd"),
        (["resolve", ORDER.digest.hex(), "60"], "has no unit"),
        (["forgive", "nobody", "1usd"], "idlemesh accounts --json"),
        (["forgive", US.did, "0.000008usd"], "0.000007usd is owed without a voucher"),
        (["forgive", US.did, "0usd"], "above 0"),
    ],
)
def test_what_cannot_be_let_go_is_refused_with_advice(
    arguments: list[str], complaint: str, idlemesh: Idlemesh, owners: Nodes
) -> None:
    said = idlemesh(*arguments, *theirs(owners))
    assert said.status == 1
    assert complaint in said.err


def test_two_owners_come_to_owe_each_other_nothing(
    idlemesh: Idlemesh, owners: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dispute is resolved, a debt forgiven, mutual debts are set off, and the rest is settled."""
    assert "costs 0.000060usd" in idlemesh("resolve", ORDER.digest.hex()[:12], *theirs(owners)).out
    assert "Nothing is in dispute" in idlemesh("disputes", *ours(owners)).out
    assert "0.000007usd of that peer's debt" in idlemesh("forgive", US.did, "0.000007usd", *theirs(owners)).out

    there, here = (account(idlemesh, theirs(owners), "they pay"), account(idlemesh, ours(owners), "we pay"))
    assert (there["earned"], there["waived"], there["forgiven"]) == ("0.000107usd", "0.000040usd", "0.000007usd")
    # What we never counted was forgiven to us without our books knowing: they agree as they are.
    assert (here["earned"], here["waived"], here["forgiven"]) == ("0.000060usd", "0.000000usd", "0.000000usd")
    assert there["unpaid"] == here["unpaid"] == "0.000000usd"

    assert idlemesh("net", THEM.did, *ours(owners), "--json").json()["netted"] == ["0.000050usd"]
    refused = idlemesh("settle", THEM.did, "0.000011usd", *ours(owners))
    assert (refused.status, "only 0.000010usd is owed" in refused.err, "--yes" in refused.err) == (1, True, True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = idlemesh("settle", THEM.did, "0.000011usd", *ours(owners))
    assert (asked.status, "Ask all the same? [y/N]" in asked.err, "nothing was asked" in asked.err) == (1, True, True)
    assert "Asked." in idlemesh("settle", THEM.did, "0.000011usd", *ours(owners), "--yes").out
    said = idlemesh("settle", THEM.did, "0.000010usd", *ours(owners)).out
    assert "takes the place of the 0.000011usd" in said
    assert idlemesh("confirm", US.did, "0.000010usd", *theirs(owners)).status == 0
    assert idlemesh("settle", THEM.did, "0.000010usd", *ours(owners), "--json").json()["confirmed"]
    for where, debts in ((ours(owners), ("we pay", "they pay")), (theirs(owners), ("they pay", "we pay"))):
        bought, helped = (account(idlemesh, where, direction) for direction in debts)
        assert (bought["netted"], bought["settled"]) == ("0.000050usd", "0.000010usd")
        assert (helped["netted"], helped["settled"]) == ("0.000050usd", "0.000000usd")
        assert idlemesh("ledger", "verify", *where).status == 0
