"""`idlemesh ledger`: the chain checked, moved to another home, and read as a statement; with and without a node."""

import asyncio
import csv
import errno
import io
import json
import shutil
import sqlite3
import stat
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger.account import AccountKey
from ledger.changes import Earned, Granted, Released, Reserved, Settled, VoucherReceived
from ledger.database import Database, Place, snapshots
from ledger.database.lane import SqliteLane, make_engine
from ledger.events import AccountChanged, Books, Event, FeePaid
from ledger.journal import Kept, StoredSnapshot, genesis
from ledger.retention import dropped
from ledger.snapshot import encode, take
from ledger.statement import DAY_MS
from node.exchange.book import Book
from node.exchange.experience import delivered
from node.exchange.recollection import Recollection
from node.home import Home
from node.ports import SystemClock, SystemEntropy
from tests.integration.network import starting
from tests.node.cli.conftest import Idlemesh, Nodes

BUYER = "did:key:z6MkBuyer"
DAYS = 70  # more entries than are taken in at a time


async def fill(home: Home, place: Place) -> None:
    me = home.identity(SystemEntropy()).did
    key = AccountKey(BUYER, me, "credit", "uusd")
    async with await Database.open(place, me) as database:
        await database.append([AccountChanged(key, Granted(10_000, 10_000, 1))], time_ms=0)
        for day in range(1, DAYS):
            order = day.to_bytes(32, "big")
            events: list[Event] = [
                AccountChanged(key, Reserved(order, 9, 9)),
                AccountChanged(key, Earned(order, 7)),
                AccountChanged(key, Released(order)),
                AccountChanged(key, VoucherReceived(7 * day)),
            ]
            records = [Kept("order", b"order %d" % day, order), Kept("receipt", b"receipt %d" % day, order)]
            await database.append(events, time_ms=day * DAY_MS, records=records)
        await database.append([AccountChanged(key, Settled(100))], time_ms=DAYS * DAY_MS)


async def burn(home: Home, fees: dict[str, int]) -> None:
    """Networks have taken so much for a transaction each."""
    me = home.identity(SystemEntropy()).did
    async with await Database.open(home.ledger, me) as database:
        paid = [FeePaid("stablecoin", network, "0x" + "1" * 40, 0, bytes(32), wei) for network, wei in fees.items()]
        await database.append(paid, time_ms=0)


@pytest.fixture(scope="module")
def sold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose node sold something on each of many days."""
    home = Home(tmp_path_factory.mktemp("sold"))
    asyncio.run(fill(home, home.ledger))
    return home.folder


@pytest.fixture
def spare(sold: Path, tmp_path: Path) -> Path:
    """Another home of the same identity, without a ledger."""
    shutil.copy(sold / "identity.key", tmp_path / "identity.key")
    return tmp_path


def test_a_whole_ledger_is_verified(idlemesh: Idlemesh, sold: Path) -> None:
    body = idlemesh("ledger", "verify", "--home", sold, "--json").json()
    assert (body["entries"], body["records"], body["balanced"]) == (DAYS + 1, 2 * (DAYS - 1), True)
    assert "sum to zero" in idlemesh("ledger", "verify", "--home", sold).out


@pytest.mark.parametrize("column", ["books", "memory"])
def test_a_wrong_snapshot_is_told_and_made_again(
    column: str, idlemesh: Idlemesh, sold: Path, spare: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Home(spare)
    shutil.copy(sold / "ledger.db", home.ledger)
    asyncio.run(live(home))
    assert idlemesh("ledger", "verify", "--home", spare, "--json").json()["snapshot"] == {
        "sequence": DAYS + 2,
        "why": None,
    }
    before = snapshot_in(home)
    asyncio.run(spoil(home, column))
    said = idlemesh("ledger", "verify", "--home", spare)
    assert said.status == 0
    assert f"The snapshot of entry {DAYS + 2}, from which the node starts, was wrong, and was made again" in said.out
    assert "is what the journal gives" in idlemesh("ledger", "verify", "--home", spare).out
    assert snapshot_in(home) == before


async def live(home: Home) -> None:
    """Start and end a node's book."""
    identity = home.identity(SystemEntropy())
    async with await Database.open(home.ledger, identity.did) as database:
        book = await Book.open(database, identity, SystemClock())
        await book.post(delivered(BUYER, 5, 6, 7))


async def spoil(home: Home, column: str) -> None:
    """Put a snapshot in the place of the stored one that is whole, and tells of nothing."""
    me = home.identity(SystemEntropy()).did
    async with await Database.open(home.ledger, me) as database:
        books = Books() if column == "books" else database.books
        before = await database.snapshot()
        assert before is not None
        memory = Recollection(me).freeze()() if column == "memory" else before.memory
        stored = StoredSnapshot(database.head.sequence, encode(take(me, database.head, books)), memory)
    await overwrite(home, stored)


async def overwrite(home: Home, stored: StoredSnapshot) -> None:
    lane = SqliteLane(make_engine(home.ledger), writes=True)
    await lane.run(lambda connection: snapshots.write(connection, 1, stored))
    await lane.close()


def snapshot_in(home: Home) -> object:
    with closing(sqlite3.connect(home.ledger)) as connection:
        return connection.execute("SELECT * FROM snapshots").fetchone()


async def drop_the_first(home: Home) -> None:
    """What retention does: an entry names the records, and then they go."""
    me = home.identity(SystemEntropy()).did
    async with await Database.open(home.ledger, me) as database:
        records = await database.records_of((1).to_bytes(32, "big"))
        digests = [record.digest for record in records]
        await database.append([dropped(me, digests)], time_ms=DAYS * DAY_MS)
        await database.drop_records(digests)


def test_what_was_dropped_is_said_and_is_no_damage_also_after_a_move(
    idlemesh: Idlemesh, sold: Path, spare: Path
) -> None:
    shutil.copy(sold / "ledger.db", spare / "ledger.db")
    asyncio.run(drop_the_first(Home(spare)))
    body = idlemesh("ledger", "verify", "--home", spare, "--json").json()
    assert (body["records"], body["dropped"]) == (2 * (DAYS - 2), 2)
    assert "2 more records were dropped" in idlemesh("ledger", "verify", "--home", spare).out
    assert idlemesh("ledger", "export", spare / "file", "--home", spare).status == 0
    (spare / "ledger.db").unlink()
    assert idlemesh("ledger", "import", spare / "file", "--home", spare).status == 0
    assert journal_of(idlemesh, spare) == {name: body[name] for name in body if name != "snapshot"}
    assert "The journal is whole" in idlemesh("accounts", "--home", spare).out


def journal_of(idlemesh: Idlemesh, home: Path) -> dict[str, Any]:
    """What is verified of a journal, without the snapshot, which stays where it was made."""
    body = idlemesh("ledger", "verify", "--home", home, "--json").json()
    return {name: body[name] for name in body if name != "snapshot"}


def test_an_exported_ledger_is_imported_as_it_was(idlemesh: Idlemesh, sold: Path, spare: Path) -> None:
    file = spare / "ledger.chain"
    written = idlemesh("ledger", "export", file, "--home", sold, "--json").json()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    taken = idlemesh("ledger", "import", file, "--home", spare, "--json").json()
    assert (taken["entries"], taken["head"]) == (written["entries"], written["head"])
    assert journal_of(idlemesh, sold) == journal_of(idlemesh, spare)
    assert not list(spare.glob("ledger.importing*"))


def test_a_ledger_is_not_imported_over_another(idlemesh: Idlemesh, sold: Path, spare: Path) -> None:
    file = spare / "ledger.chain"
    idlemesh("ledger", "export", file, "--home", sold)
    before = idlemesh("ledger", "verify", "--home", sold).out
    said = idlemesh("ledger", "import", file, "--home", sold)
    assert said.status == 1
    assert "two chains cannot be joined" in said.err
    assert idlemesh("ledger", "verify", "--home", sold).out == before


def test_a_ledger_is_imported_into_a_server_once(
    idlemesh: Idlemesh, sold: Path, spare: Path, postgres_url: str
) -> None:
    (spare / "config.toml").write_text(f"[ledger]\nurl = {json.dumps(postgres_url)}\n")
    written = idlemesh("ledger", "export", spare / "file", "--home", sold, "--json").json()
    taken = idlemesh("ledger", "import", spare / "file", "--home", spare, "--json").json()
    assert taken == {"entries": DAYS + 1, "head": written["head"]}
    assert journal_of(idlemesh, sold) == journal_of(idlemesh, spare)
    assert not (spare / "ledger.db").exists()
    said = idlemesh("ledger", "import", spare / "file", "--home", spare)
    assert said.status == 1
    assert "two chains cannot be joined: import into an empty database" in said.err


def test_a_file_that_was_cut_off_leaves_nothing_in_a_server(
    idlemesh: Idlemesh, sold: Path, spare: Path, postgres_url: str
) -> None:
    (spare / "config.toml").write_text(f"[ledger]\nurl = {json.dumps(postgres_url)}\n")
    idlemesh("ledger", "export", spare / "file", "--home", sold)
    whole = (spare / "file").read_bytes()
    (spare / "file").write_bytes(whole[:-1])
    said = idlemesh("ledger", "import", spare / "file", "--home", spare)
    assert said.status == 1
    assert "was cut off" in said.err
    (spare / "file").write_bytes(whole)
    assert idlemesh("ledger", "import", spare / "file", "--home", spare).status == 0


def test_a_ledger_in_a_server_is_moved_into_a_file(idlemesh: Idlemesh, tmp_path: Path, bare_postgres_url: str) -> None:
    served, filed = Home(tmp_path / "served"), Home(tmp_path / "filed")
    served.make()
    served.config.write_text(f"[ledger]\nurl = {json.dumps(bare_postgres_url)}\n")
    assert idlemesh("ledger", "upgrade", "--home", served.folder).status == 0
    asyncio.run(fill(served, bare_postgres_url))
    filed.make()
    shutil.copy(served.folder / "identity.key", filed.folder / "identity.key")
    written = idlemesh("ledger", "export", tmp_path / "chain", "--home", served.folder, "--json").json()
    taken = idlemesh("ledger", "import", tmp_path / "chain", "--home", filed.folder, "--json").json()
    assert taken == {"entries": DAYS + 1, "head": written["head"]}


@pytest.mark.parametrize("command", [("export", "out"), ("statement",)])
def test_an_entry_that_cannot_be_read_is_named(
    command: tuple[str, ...], idlemesh: Idlemesh, sold: Path, spare: Path
) -> None:
    shutil.copy(sold / "ledger.db", spare / "ledger.db")
    with closing(sqlite3.connect(spare / "ledger.db")) as database, database:
        database.execute("UPDATE journal SET payload = CAST(payload || x'00' AS BLOB) WHERE sequence = 7")
    name, *rest = command
    said = idlemesh("ledger", name, *(spare / one for one in rest), "--home", spare)
    assert said.status == 1
    assert "the journal is broken at entry 7" in said.err
    assert not (spare / "out").exists()


def test_the_ledger_of_another_node_is_not_imported(idlemesh: Idlemesh, sold: Path, tmp_path: Path) -> None:
    file = tmp_path / "ledger.chain"
    idlemesh("ledger", "export", file, "--home", sold)
    idlemesh("id", "--home", tmp_path / "other")
    said = idlemesh("ledger", "import", file, "--home", tmp_path / "other")
    assert said.status == 1
    assert "it is the chain of did:key:" in said.err
    assert "put its identity.key here first" in said.err
    assert not (tmp_path / "other" / "ledger.db").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_file_that_was_cut_off_leaves_no_ledger(idlemesh: Idlemesh, sold: Path, spare: Path, keep: float) -> None:
    file = spare / "ledger.chain"
    idlemesh("ledger", "export", file, "--home", sold)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(keep * len(raw)) if 0 < keep < 1 else int(keep)])
    said = idlemesh("ledger", "import", file, "--home", spare)
    assert said.status == 1
    assert "idlemesh ledger export" in said.err
    assert {path.name for path in spare.iterdir()} - {"models", "node.lock"} == {"identity.key", "ledger.chain"}


def test_what_is_there_already_is_not_written_over(idlemesh: Idlemesh, sold: Path, tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("kept")
    said = idlemesh("ledger", "export", file, "--home", sold)
    assert (said.status, file.read_text()) == (1, "kept")
    assert "name another file" in said.err


@pytest.mark.parametrize("command", [["verify"], ["statement"], ["export", "file"], ["import", "file"]], ids=" ".join)
def test_a_home_without_an_identity_is_left_as_it_is(command: list[str], idlemesh: Idlemesh, tmp_path: Path) -> None:
    said = idlemesh("ledger", command[0], *[tmp_path / name for name in command[1:]], "--home", tmp_path / "home")
    assert said.status == 1
    assert "identity.key" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_home_without_a_ledger_says_how_to_begin(idlemesh: Idlemesh, spare: Path) -> None:
    assert "idlemesh up" in idlemesh("ledger", "verify", "--home", spare).err
    said = idlemesh("ledger", "export", spare / "file", "--home", spare)
    assert said.status == 1
    assert not (spare / "file").exists()


class OneLine(io.StringIO):
    """A pipe whose other end is closed after the first line, as by `head -1`."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


class TestStatement:
    def test_it_shows_every_book_account_for_people(self, idlemesh: Idlemesh, sold: Path) -> None:
        said = idlemesh("ledger", "statement", "--home", sold).out
        assert "-0.000483usd" in said
        assert "vouchers held" in said

    def test_a_period_counts_both_its_days(self, idlemesh: Idlemesh, sold: Path) -> None:
        days = ["--from", "1970-01-11", "--to", "1970-01-12"]
        body = idlemesh("ledger", "statement", *days, "--home", sold, "--json").json()
        (income,) = [line for line in body["accounts"] if line["account"] == "income"]
        assert (income["opening"], income["credit"], income["closing"]) == (-63, 14, -77)
        assert body["balanced"] is True

    def test_as_csv_it_has_every_posting(self, idlemesh: Idlemesh, sold: Path) -> None:
        said = idlemesh("ledger", "statement", "--from", "1970-01-03", "--to", "1970-01-03", "--csv", "--home", sold)
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert [(row["account"], row["amount"], row["counter"]) for row in rows] == [
            ("receivable", "7", "earned"),
            ("income", "-7", "earned"),
            ("vouchers held", "7", "authorized"),
            ("receivable", "-7", "authorized"),
        ]
        assert {row["time"] for row in rows} == {"1970-01-03T00:00:00.000Z"}
        assert {row["counterparty"] for row in rows} == {BUYER}

    def test_gas_is_in_coins_for_people_and_in_wei_for_programs(self, idlemesh: Idlemesh, spare: Path) -> None:
        home, wei = Home(spare), 12_345_678_901_234
        asyncio.run(burn(home, {"eip155:8453": wei, "eip155:137": 10**18}))
        said = idlemesh("ledger", "statement", "--home", spare)
        assert said.out.count("0.000012346 ETH") == 4
        assert said.out.count("-0.000012346 ETH") == 1
        assert "1.0 POL" in said.out
        assert "wei" not in said.out
        rows = idlemesh("ledger", "statement", "--home", spare, "--json").json()["accounts"]
        fees = {row["counterparty"]: (row["closing"], row["unit"]) for row in rows if row["account"] == "network fees"}
        assert fees == {"eip155:8453": (wei, "wei"), "eip155:137": (10**18, "wei")}

    @pytest.mark.parametrize(
        ("days", "complaint"),
        [
            (["--from", "yesterday"], "write it as 2026-01-31"),
            (["--from", "2026-02-01", "--to", "2026-01-01"], "turn them round"),
        ],
    )
    def test_a_period_that_is_none_is_explained(
        self, days: list[str], complaint: str, idlemesh: Idlemesh, sold: Path
    ) -> None:
        said = idlemesh("ledger", "statement", *days, "--home", sold)
        assert said.status == 1
        assert complaint in said.err


class TestWhileTheNodeRuns:
    def buy(self, idlemesh: Idlemesh, home: list[object]) -> None:
        """Ask over peers, as soon as there is one, until something bought is paid for."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            idlemesh("ask", "What is a receipt?", "--route", "peers", *home)
            receipts = idlemesh("receipts", *home, "--json").json()["receipts"]
            if any(receipt["acknowledged"] for receipt in receipts):
                return
            time.sleep(0.05)
        raise AssertionError("nothing was bought")

    def test_the_ledger_is_verified_exported_and_stated(self, idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
        home: list[object] = ["--home", nodes.owner.home.folder]
        self.buy(idlemesh, home)
        assert idlemesh("ledger", "verify", *home, "--json").json()["balanced"] is True
        assert idlemesh("ledger", "export", tmp_path / "file", *home).status == 0
        rows = idlemesh("ledger", "statement", *home, "--json").json()["accounts"]
        spent = [row for row in rows if row["account"] == "expense"]
        assert [row["counterparty"] for row in spent] == [nodes.seller.running.did]
        assert spent[0]["closing"] > 0

    def test_a_statement_whose_reader_has_enough_ends_without_a_word(
        self, idlemesh: Idlemesh, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        home: list[object] = ["--home", nodes.owner.home.folder]
        self.buy(idlemesh, home)
        monkeypatch.setattr(sys, "stdout", OneLine())
        said = idlemesh("ledger", "statement", "--csv", *home)
        assert (said.status, said.err, caplog.records) == (1, "", [])

    def test_the_stored_snapshot_is_verified_and_a_wrong_one_is_told(
        self, idlemesh: Idlemesh, sold: Path, spare: Path
    ) -> None:
        home = Home(spare)
        shutil.copy(sold / "ledger.db", home.ledger)
        asyncio.run(live(home))
        me = home.identity(SystemEntropy()).did
        of_nothing = StoredSnapshot(DAYS + 2, encode(take(me, genesis(me), Books())), None)
        with starting(spare, {}):
            right = idlemesh("ledger", "verify", "--home", spare, "--json").json()
            asyncio.run(overwrite(home, of_nothing))
            wrong = idlemesh("ledger", "verify", "--home", spare)
        assert right["snapshot"] == {"sequence": DAYS + 2, "why": None}
        assert wrong.status == 1
        assert "the journal is whole, but the snapshot from which this node started is not what it gives" in wrong.err
        assert "stop the node, then run this again: it puts that right" in wrong.err

    def test_nothing_is_imported(self, idlemesh: Idlemesh, nodes: Nodes, tmp_path: Path) -> None:
        said = idlemesh("ledger", "import", tmp_path / "file", "--home", nodes.owner.home.folder)
        assert said.status == 1
        assert "is in use, by a node or another command: stop it" in said.err


def test_of_a_cut_answer_the_last_checkpoint_is_for_export_and_of_a_whole_one_the_receipt(
    idlemesh: Idlemesh, tmp_path: Path
) -> None:
    home = Home(tmp_path / "cut")

    async def fill_in() -> None:
        async with await Database.open(home.ledger, home.identity(SystemEntropy()).did) as database:
            for n, kinds in enumerate((["order", "checkpoint", "checkpoint"], ["order", "checkpoint", "receipt"])):
                order = bytes([n]) * 32
                records = [Kept(kind, b"%s %d of %d" % (kind.encode(), i, n), order) for i, kind in enumerate(kinds)]
                await database.append([], time_ms=n, records=records)

    asyncio.run(fill_in())
    rows = idlemesh("ledger", "records", "--home", home.folder, "--json").json()["records"]
    assert [row["kind"] for row in rows if row["export"]] == ["checkpoint", "receipt"]
    assert [row["export"] for row in rows[:3]] == [False, False, True]
    assert len(idlemesh("ledger", "records", "--limit", 2, "--home", home.folder, "--json").json()["records"]) == 2
