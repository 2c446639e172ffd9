"""Several processes write to one chain in PostgreSQL: no guard is broken, nothing is lost, and nothing counts twice."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from attrs import define

from ledger.account import AboveWindow, AccountError, AccountKey
from ledger.changes import Acknowledged, Admitted, Authorized, Change, Drawn, Earned, Granted, Released, Reserved
from ledger.database import Database, LedgerCorrupt, LedgerInUse, LedgerUnavailable
from ledger.database.opening import Opened, enter, verify
from ledger.database.places import lanes_to
from ledger.database.presence import Part
from ledger.events import AccountChanged, Books, Event, Observed
from ledger.journal import Accounts, Entry, Kept, Material, Nonce, Replay, replay
from ledger.retention import dropped
from tests.ledger.test_database import HANG_UP, ForgetfulLane, Ledger

NODE = "did:key:node"
KEY = AccountKey("did:payer", NODE, "credit", "msat")
GRANTED = AccountChanged(KEY, Granted(1_000, 100, 1))


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


def moved(*changes: Change) -> list[Event]:
    return [AccountChanged(KEY, change) for change in changes]


def reserved(n: int, amount: int = 10) -> list[Event]:
    return moved(Reserved(order(n), amount, n))


@pytest.fixture
async def two(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes' ledgers of one node."""
    async with (
        await Database.open(postgres_url, NODE, part=Part(b"one")) as one,
        await Database.open(postgres_url, NODE, part=Part(b"other")) as other,
    ):
        await one.append([GRANTED], time_ms=0)
        yield one, other


async def entries_of(database: Database) -> list[Entry]:
    return [entry async for entry in database.entries()]


async def check_whole(url: str) -> Database:
    """Verify all of the chain as a third process; what it found, closed."""
    async with await Database.open(url, NODE, whole=True) as third:
        assert replay(NODE, await entries_of(third)) == third.books
        return third


class TestGuards:
    async def test_what_two_reserve_at_once_never_exceeds_the_window(self, two: tuple[Database, Database]) -> None:
        outcomes = await asyncio.gather(
            *(two[n % 2].append(reserved(n), time_ms=n) for n in range(40)), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if not isinstance(outcome, Entry)]
        assert (len(refused), {type(outcome) for outcome in refused}) == (30, {AboveWindow})
        await asyncio.gather(*(database.refresh() for database in two))
        assert two[0].books == two[1].books
        assert two[0].books.account(KEY).reserved == 100

    async def test_nothing_is_refused_by_books_that_are_behind(self, two: tuple[Database, Database]) -> None:
        one, other = two
        await one.append(reserved(1, 100), time_ms=1)
        with pytest.raises(AboveWindow):
            await other.append(reserved(2), time_ms=2)
        await one.append(moved(Released(order(1))), time_ms=3)
        # The other one believes still that nothing is left.
        assert other.books.account(KEY).reserved == 100
        await other.append(reserved(2), time_ms=4)
        assert [book.books.account(KEY).reserved for book in two] == [0, 10]

    async def test_a_nonce_is_used_once_by_all_of_them(self, two: tuple[Database, Database]) -> None:
        nonce = [Nonce("did:payer", b"n", order(1), 99)]
        outcomes = await asyncio.gather(
            *(two[n % 2].append(reserved(n), time_ms=n, nonces=nonce) for n in range(4)), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Entry"] + 3 * ["NonceReused"]
        assert await two[1].nonce_order("did:payer", b"n") == order(1)

    async def test_a_check_is_made_of_the_books_that_are_moved(self, two: tuple[Database, Database]) -> None:
        one, other = two
        seen: list[int] = []

        def check(books: Books) -> None:
            seen.append(books.account(KEY).reserved)
            if seen[-1]:
                raise ValueError("taken")

        await one.append(reserved(1), time_ms=1)
        with pytest.raises(ValueError, match="taken"):
            await other.append(reserved(2), time_ms=2, check=check)
        assert seen[-1] == 10
        await other.append(moved(Released(order(1))), time_ms=3)
        assert (await one.append(reserved(3), time_ms=4, check=check)).sequence == 4

    async def test_a_record_that_both_bring_is_kept_once(self, two: tuple[Database, Database]) -> None:
        offer = Kept("offer", b"offer")
        await asyncio.gather(*(two[n % 2].append(time_ms=n, records=[offer]) for n in range(6)))
        assert [kept.sequence for kept in await two[0].list_records("offer", 9)] == [2]

    async def test_a_record_that_another_dropped_is_kept_again(self, two: tuple[Database, Database]) -> None:
        one, other = two
        offer = Kept("offer", b"offer")
        await one.append(time_ms=1, records=[offer])
        await other.append([dropped(NODE, [offer.digest])], time_ms=2)
        await other.drop_records([offer.digest])
        assert await one.record(offer.digest) is None
        await one.append(time_ms=3, records=[offer])
        assert [kept.sequence for kept in await other.list_records("offer", 9)] == [4]

    async def test_of_materials_for_one_order_the_later_stays_whoever_lays_it_aside(
        self, two: tuple[Database, Database]
    ) -> None:
        for database, sealed in zip(two, (b"request", b"request and answer"), strict=True):
            await database.append(time_ms=1, materials=[Material(order(1), sealed, 9)])
        assert await two[0].material(order(1)) == b"request and answer"


@define
class Seen:
    """A follower that writes down what it is told."""

    times: list[int]

    def take(self, time_ms: int, events: Iterable[Event], accounts: Accounts) -> None:
        self.times.append(time_ms)

    def freeze(self) -> "object":
        times = repr(self.times).encode()
        return lambda: times


class TestFollowing:
    async def test_each_hears_of_all_entries_once_and_in_order(self, two: tuple[Database, Database]) -> None:
        one, other = two
        await other.refresh()
        followers = [Seen([0]), Seen([0])]
        for database, follower in zip(two, followers, strict=True):
            database.follow(follower)  # type: ignore[arg-type]
        await asyncio.gather(*(two[n % 2].append(time_ms=n) for n in range(1, 101)))
        await asyncio.gather(*(database.refresh() for database in two))
        told = [entry.time_ms for entry in await entries_of(one)]
        assert sorted(told) == list(range(101))
        assert [follower.times for follower in followers] == [told, told]

    async def test_a_refresh_sees_what_was_durable_when_it_was_asked_for(self, two: tuple[Database, Database]) -> None:
        one, other = two
        for n in range(1, 30):
            entry = await one.append(time_ms=n)
            await asyncio.gather(*(other.refresh() for _ in range(5)))
            assert other.head == entry

    async def test_one_that_was_away_for_long_reads_all_of_it(self, two: tuple[Database, Database]) -> None:
        one, other = two
        await asyncio.gather(*(one.append(time_ms=n) for n in range(2_500)))
        assert (await other.append(reserved(1), time_ms=1)).sequence == 2_502

    async def test_an_older_snapshot_does_not_take_the_place_of_a_newer(self, postgres_url: str) -> None:
        one, other = [await Database.open(postgres_url, NODE) for _ in range(2)]
        for database in (one, other):
            database.follow(Seen([]))  # type: ignore[arg-type]
        await one.append(time_ms=1)
        await other.append(time_ms=2)
        await other.close()
        await one.append(time_ms=3)
        await one.close()
        async with await Database.open(postgres_url, NODE) as third:
            stored = await third.snapshot()
            assert stored is not None
            assert stored.sequence == 3

    async def test_a_broken_entry_of_another_is_not_built_upon(
        self, two: tuple[Database, Database], postgres_url: str
    ) -> None:
        one, other = two
        await one.append(reserved(1), time_ms=1)
        await Ledger(postgres_url).alter("UPDATE journal SET payload = '\\x80' WHERE sequence = 2")
        for _ in range(2):
            with pytest.raises(LedgerCorrupt, match="entry 2"):
                await other.append(time_ms=2)


class TestTrouble:
    async def test_a_write_whose_answer_was_lost_counts_once_though_others_write_on(self, postgres_url: str) -> None:
        writer, reader = await lanes_to(postgres_url, NODE)

        def work(connection: sa.Connection) -> Opened:
            return verify(connection, NODE, enter(connection, NODE))

        forgetful = ForgetfulLane(writer)
        async with (
            Database(forgetful, reader, await writer.run(work)) as one,
            await Database.open(postgres_url, NODE) as other,
        ):
            await one.append([GRANTED], time_ms=0)
            forgetful.losing = 1
            with pytest.raises(LedgerUnavailable):
                await one.append(reserved(1, 60), time_ms=1)
            await other.append(reserved(2, 30), time_ms=2)
            with pytest.raises(AboveWindow):
                await one.append(reserved(3, 20), time_ms=3)
            assert (await one.append(reserved(4, 10), time_ms=4)).sequence == 4
            assert one.books.account(KEY).reserved == 100
        await check_whole(postgres_url)

    @pytest.mark.parametrize("seed", range(4))
    async def test_a_walk_of_two_with_connections_that_end_leaves_a_whole_chain(
        self, postgres_url: str, seed: int
    ) -> None:
        random, ledger = Random(seed), Ledger(postgres_url)
        accepted: list[Entry] = []

        async def step(database: Database, n: int) -> None:
            with contextlib.suppress(AccountError, LedgerUnavailable):
                accepted.append(await database.append(a_move(random, n, database.books), time_ms=n))

        async with (
            await Database.open(postgres_url, NODE, part=Part(b"one")) as one,
            await Database.open(postgres_url, NODE, part=Part(b"other")) as other,
        ):
            await one.append([GRANTED], time_ms=0)
            for n in range(1, 60):
                await asyncio.gather(
                    *(step(random.choice((one, other)), 10 * n + k) for k in range(random.randint(1, 8)))
                )
                if random.random() < 0.15:
                    with contextlib.suppress(LedgerUnavailable):
                        await ledger.ask(f"SELECT count(*) FROM ({HANG_UP}) AS ended")
            for database in (one, other):
                for _ in range(3):
                    with contextlib.suppress(LedgerUnavailable):
                        await database.refresh()
            assert one.books == other.books
            written = await entries_of(one)
            # What was acknowledged is there, each once.
            assert {entry.hash for entry in accepted} <= {entry.hash for entry in written}
            assert len({entry.hash for entry in accepted}) == len(accepted)
            replayed = Replay(NODE)
            for entry in written:
                replayed.add(entry)
                account = replayed.account(KEY)
                assert account.owed + account.orders.ahead - account.due <= account.window
        assert (await check_whole(postgres_url)).books == one.books


def a_move(random: Random, n: int, books: Books) -> list[Event]:
    """What a seller might do next by its books, which may be behind: not all of it is allowed.

    Nothing is acknowledged that was not delivered: a fact may leave the account above its window, where no act may.
    """
    still_open = [item for item in books.account(KEY).orders.items() if item[1].open]
    match random.randint(0, 4):
        case 0 | 1:
            return moved(Admitted(order(n), 40, 10, n))
        case 2 if still_open:
            known, reservation = random.choice(still_open)
            total = reservation.earned + 10
            return moved(Drawn(known, total), Earned(known, total))
        case 3 if still_open:
            known, reservation = random.choice(still_open)
            return moved(Released(known), Acknowledged(known, reservation.earned))
        case _:
            return moved(Authorized(10 * random.randint(0, n // 10)))


# Another process: it reserves and releases on one account, and says which entries it was told are durable.
HAMMER = """
import asyncio, sys
from ledger.account import AccountError
from ledger.changes import Released
from ledger.database import Database
from ledger.database.presence import Part
from tests.ledger.test_several_writers import NODE, moved, order, reserved

async def one(database, n):
    while True:
        try:
            await database.append(reserved(n), time_ms=n)
            break
        except AccountError:
            await asyncio.sleep(0)
    print((await database.append(moved(Released(order(n))), time_ms=n)).hash.hex(), flush=True)

async def main(url, first, count):
    async with await Database.open(url, NODE, part=Part(b"%d" % first)) as database:
        numbers = iter(range(first, first + count))
        async def some():
            for n in numbers:
                await one(database, n)
        await asyncio.gather(*(some() for _ in range(8)))

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


def hammering(url: str, first: int, count: int) -> "subprocess.Popen[str]":
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    command = [sys.executable, "-c", HAMMER, url, str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


class TestProcesses:
    async def test_processes_that_hammer_one_account_break_no_guard_and_one_may_be_killed(
        self, postgres_url: str
    ) -> None:
        async with await Database.open(postgres_url, NODE) as database:
            await database.append([GRANTED], time_ms=0)
        with hammering(postgres_url, 1_000_000, 10**6) as killed, hammering(postgres_url, 1, 400) as whole:
            assert killed.stdout is not None
            told = [(await asyncio.to_thread(killed.stdout.readline)).strip() for _ in range(60)]
            killed.send_signal(signal.SIGKILL)
            told += [line.strip() for line in await asyncio.to_thread(killed.stdout.readlines) if line.endswith("\n")]
            out, _ = await asyncio.to_thread(whole.communicate)
            assert whole.returncode == 0
            told += out.split()
        third = await check_whole(postgres_url)
        async with await Database.open(postgres_url, NODE) as database:
            written = [entry.hash.hex() for entry in await entries_of(database)]
            assert set(told) <= set(written)
            assert len(told) == len(set(told)) >= 60 + 400
            # The killed one may have left what it was about to release: one for each of its eight callers.
            assert database.books.account(KEY).reserved in range(0, 90, 10)
        assert third.books.account(KEY).window == 100

    async def test_a_chain_is_verified_while_others_write_to_it(
        self, two: tuple[Database, Database], postgres_url: str
    ) -> None:
        done = asyncio.Event()

        async def write(database: Database, kind: str) -> None:
            n = 0
            while not done.is_set():
                n += 1
                await database.append(
                    [Observed(NODE, kind)], time_ms=n, records=[Kept(kind, b"%s %d" % (kind.encode(), n))]
                )

        writing = [asyncio.create_task(write(*one)) for one in zip(two, ("a", "b"), strict=True)]
        for _ in range(10):
            await check_whole(postgres_url)
        done.set()
        await asyncio.gather(*writing)


class TestPresence:
    async def test_one_leads_and_another_follows_when_it_ends(self, postgres_url: str) -> None:
        one = await Database.open(postgres_url, NODE, part=Part(b"one"))
        async with await Database.open(postgres_url, NODE, part=Part(b"other")) as other:
            assert [await one.leads(), await other.leads(), await one.leads()] == [True, False, True]
            await one.close()
            assert await other.leads()

    async def test_who_lost_its_connection_may_find_another_leading(self, postgres_url: str) -> None:
        async with (
            await Database.open(postgres_url, NODE, part=Part(b"one")) as one,
            await Database.open(postgres_url, NODE, part=Part(b"other")) as other,
        ):
            assert await one.leads()
            await Ledger(postgres_url).alter(HANG_UP)
            assert await at_last(other)
            assert not await at_last(one)

    async def test_those_that_ended_are_known_by_their_names(self, postgres_url: str) -> None:
        one = await Database.open(postgres_url, NODE, part=Part(b"one"))
        async with await Database.open(postgres_url, NODE, part=Part(b"other")) as other:
            assert await other.gone([b"one", b"other", b"third"]) == {b"third"}
            assert await one.gone([]) == set()
            await one.close()
            assert await other.gone([b"one", b"other"]) == {b"one"}

    async def test_nodes_of_another_identity_are_not_among_them(self, postgres_url: str) -> None:
        async with (
            await Database.open(postgres_url, NODE, part=Part(b"one")) as one,
            await Database.open(postgres_url, "did:key:other", part=Part(b"other")) as other,
        ):
            assert await one.gone([b"other"]) == {b"other"}
            assert [await one.leads(), await other.leads()] == [True, True]

    async def test_no_two_have_one_name(self, postgres_url: str) -> None:
        async with await Database.open(postgres_url, NODE, part=Part(b"one")):
            with pytest.raises(LedgerInUse, match=r"under this one's name.*Delete process\.id in the copied home"):
                await Database.open(postgres_url, NODE, part=Part(b"one"))

    async def test_one_alone_moves_money(self, postgres_url: str) -> None:
        one = await Database.open(postgres_url, NODE, part=Part(moves_money=True))
        with pytest.raises(LedgerInUse, match=r"\[stablecoin\].*Leave \[stablecoin\] and \[paid\] out here"):
            await Database.open(postgres_url, NODE, part=Part(moves_money=True))
        async with await Database.open(postgres_url, NODE):
            await one.close()
            async with await Database.open(postgres_url, NODE, part=Part(moves_money=True)):
                pass

    async def test_nobody_comes_in_while_a_chain_is_filled(self, postgres_url: str) -> None:
        alone = await lanes_to(postgres_url, NODE, Part(alone=True))
        with pytest.raises(LedgerInUse, match=f"another process has the ledger of {NODE} open"):
            await Database.open(postgres_url, NODE)
        for lane in alone:
            await lane.close()
        async with await Database.open(postgres_url, NODE):
            with pytest.raises(LedgerInUse):
                await lanes_to(postgres_url, NODE, Part(alone=True))


async def at_last(database: Database) -> bool:
    """Whether it leads; a connection that was ended may first have to show."""
    for _ in range(3):
        with contextlib.suppress(LedgerUnavailable):
            return await database.leads()
    return await database.leads()
