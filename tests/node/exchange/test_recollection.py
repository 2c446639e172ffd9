"""What a node remembers beside its accounts, over restarts from a snapshot."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import codec
from ledger.account import AccountKey
from ledger.changes import Authorized, Earned, Granted, Released, Reserved
from ledger.database import Database
from ledger.events import AccountChanged, Books, Event
from ledger.identity import Identity
from ledger.statement import DAY_MS
from node.exchange import experience, meetings
from node.exchange.book import Book
from node.exchange.meetings import Cut
from node.exchange.recollection import BadRecollection, Recollection
from verify.evidence import Evidence

IDENTITY = Identity(bytes(32))
ME = IDENTITY.did
SELLERS = ["did:key:a", "did:key:b"]
MODEL = b"m" * 32


def order(n: int) -> bytes:
    return n.to_bytes(32, "big")


def bought(n: int) -> list[Event]:
    """An order of ours from its admission to its payment, and all that can be observed on the way."""
    seller = SELLERS[n % 2]
    key = AccountKey(ME, seller, "credit", "uusd")
    evidence = Evidence((-1.5, float(n), -0.1), 0.3 * n, n, 1)
    paid = 7 * (n // 2 + 1)
    return [
        AccountChanged(key, Granted(10**6, 10**6, n + 1)),
        AccountChanged(key, Reserved(order(n), 10, n)),
        AccountChanged(key, Earned(order(n), 7)),
        experience.delivered(seller, 3 + n, 100 + n, 900),
        experience.failed(seller, "cut"),
        experience.refused(seller, "busy"),
        experience.contradicted(seller, order(n)),
        experience.audited(seller, MODEL, "honest", evidence, [bytes([n % 256]) * 8, bytes([n % 5]) * 8]),
        experience.word(seller, MODEL, order(n), order(n + 1), "agreed"),
        experience.checking(seller, "uusd", 5),
        meetings.compared(seller, order(n), order(n + 1) if n % 2 else b""),
        *([meetings.cut(ME, Cut(seller, n, n - 1, 900 + n))] if n == 30 else []),
        AccountChanged(key, Authorized(paid)),
        *([AccountChanged(key, Released(order(n)))] if n % 3 else [experience.due(seller, order(n), 7, "late")]),
    ]


def days_of(count: int) -> Iterable[tuple[int, list[Event]]]:
    for n in range(count):
        yield (n // 4) * DAY_MS + n, bought(n)


def folded(count: int) -> tuple[Recollection, Books]:
    recollection, books = Recollection(ME), Books()
    for time_ms, events in days_of(count):
        books = books.apply(events)
        recollection.take(time_ms, events, books)
    return recollection, books


WRITTEN, BOOKS = folded(60)
RAW = WRITTEN.freeze()()


def read(raw: bytes, books: Books = BOOKS) -> Recollection:
    return Recollection.read(raw, ME, books.accounts.values())


class TestWritingDown:
    def test_what_is_read_back_is_written_as_before(self) -> None:
        assert read(RAW).freeze()() == RAW

    def test_everything_comes_back(self) -> None:
        found = read(RAW)
        for seller in SELLERS:
            assert found.experience.standing(seller) == WRITTEN.experience.standing(seller)
            assert found.experience.evidence(seller, MODEL) == WRITTEN.experience.evidence(seller, MODEL)
            assert found.experience.contexts(seller, MODEL) == WRITTEN.experience.contexts(seller, MODEL)
        assert found.experience.agreed(MODEL) == WRITTEN.experience.agreed(MODEL)
        assert found.experience.due(order(57)) == experience.Due(7, "late")
        assert found.experience.meetings.cut == Cut(SELLERS[0], 30, 29, 930)
        assert found.experience.meetings.after_cut == set(SELLERS)
        assert found.turnover.on(14, "payer", "authorized") == {"uusd": 28}
        assert found.spent_on_checking(14, "uusd") == 20

    @pytest.mark.parametrize("cut", [0, 1, 17, 40, 59])
    def test_going_on_from_anywhere_gives_what_one_fold_gives(self, cut: int) -> None:
        recollection, books = folded(cut)
        recollection = read(recollection.freeze()(), books)
        for time_ms, events in list(days_of(60))[cut:]:
            books = books.apply(events)
            recollection.take(time_ms, events, books)
        assert recollection.freeze()() == RAW

    def test_what_comes_while_it_is_written_is_not_in_it(self) -> None:
        recollection, books = folded(20)
        before = recollection.freeze()()
        write = recollection.freeze()
        recollection.take(0, bought(20), books.apply(bought(20)))
        assert write() == before != recollection.freeze()()

    def test_days_long_gone_are_dropped(self) -> None:
        recollection, _ = folded(240)
        assert len(codec.decode(recollection.freeze()(), 2**20)["checking"]) == 8


class TestOtherBytes:
    def test_a_flipped_bit_anywhere_is_refused_or_read(self) -> None:
        random = Random(7)
        for _ in range(1_000):
            raw = bytearray(RAW)
            raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
            try:
                read(bytes(raw)).freeze()()
            except BadRecollection as error:
                assert "not a usable recollection" in str(error)  # noqa: PT017 - most bits are refused, some are not

    @given(st.binary(max_size=99))
    def test_bytes_of_anything_are_refused(self, raw: bytes) -> None:
        with pytest.raises(BadRecollection):
            read(raw)

    @pytest.mark.parametrize(
        "body",
        [
            {"format": 1},
            {"format": 4, "experience": {}, "turnover": [], "checking": [], "unsettled": [], "strangers": {}},
            {"format": 5, "experience": {}, "turnover": [], "checking": [], "unsettled": []},
            {"format": 5, "turnover": [], "checking": [], "unsettled": [], "strangers": {}, "promised": []},
            [],
            7,
        ],
    )
    def test_what_is_no_recollection_is_refused(self, body: object) -> None:
        with pytest.raises(BadRecollection):
            read(codec.encode(body))

    @pytest.mark.parametrize("row", [[1, "payee", "earned", "uusd"], [1, "payee", "earned", "eur", 5], [1, "uusd", []]])
    def test_odd_sums_are_refused(self, row: list[object]) -> None:
        with pytest.raises(BadRecollection):
            read(codec.encode(codec.decode(RAW, 2**20) | {"turnover": [row]}))

    @pytest.mark.parametrize(
        "row",
        [[1], [*"abcd", 1, 2], ["a", "b", "credit", "uusd", -1, 2], ["a", "b", "credit", "uusd", 1, True], [b"a"] * 6],
        ids=str,
    )
    def test_odd_waits_are_refused(self, row: list[object]) -> None:
        with pytest.raises(BadRecollection):
            read(codec.encode(codec.decode(RAW, 2**20) | {"unsettled": [row]}))


class Calendar:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


class TestABook:
    async def test_one_that_starts_from_a_snapshot_remembers_what_a_fold_of_everything_does(
        self, tmp_path: Path
    ) -> None:
        clock = Calendar()
        for first in (0, 10, 20):
            async with await Database.open(tmp_path / "ledger.db", ME) as database:
                assert (database.remembered is not None) == (first > 0)
                book = await Book.open(database, IDENTITY, clock)
                for n in range(first, first + 10):
                    clock.seconds = n * 1_000
                    await book.post(*bought(n))
                spent = book.spent_today(), book.spent_on_checking_today("uusd")
        async with await Database.open(tmp_path / "ledger.db", ME) as database:
            assert database.remembered is not None
            raw = database.remembered.raw
            again = await Book.open(database, IDENTITY, clock)
            assert (again.spent_today(), again.spent_on_checking_today("uusd")) == spent
            whole, books = Recollection(ME), Books()
            for n in range(30):
                books = books.apply(bought(n))
                whole.take(n * 1_000_000, bought(n), books)
            assert raw == whole.freeze()()

    async def test_a_recollection_of_another_version_is_made_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Older(Recollection):
            """Writes down what nobody reads."""

            def freeze(self) -> Callable[[], bytes]:
                return lambda: codec.encode({"format": 0})

        clock = Calendar()
        async with await Database.open(tmp_path / "ledger.db", ME) as database:
            book = Book(database, IDENTITY, clock, Older(ME))
            await book.post(*bought(1))
        with caplog.at_level(logging.WARNING):
            async with await Database.open(tmp_path / "ledger.db", ME) as database:
                book = await Book.open(database, IDENTITY, clock)
                assert book.experience.standing(SELLERS[1]).history.delivered == 1
        assert "another version" in caplog.text
        async with await Database.open(tmp_path / "ledger.db", ME) as database:
            assert database.remembered is not None
            Recollection.read(database.remembered.raw, ME, database.books.accounts.values())
