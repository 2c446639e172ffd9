"""`idlemesh ledger`: check the chain, move it, read what was earned and spent from it, and upgrade its tables."""

import asyncio
import contextlib
import csv
import sys
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, TextIO

import typer

from ledger.chainfile import ChainReader, Told
from ledger.database import Database, LedgerNotEmpty, Place, import_chain, upgrade_tables
from ledger.journal import Entry
from ledger.money import Amount
from ledger.statement import DAY_MS, LATEST_MS, BookUnit, Posting, Statement, line_rows, posting_row
from node.cli.files import new_file
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, counted, print_json, print_table, progress, short
from node.cli.verifying import Verification
from node.config import load_config
from node.exchange.exporting import chain_file
from node.exchange.recollection import decode_snapshot
from node.home import Home, NotRunning, open_home
from node.owner_client import owner_client
from node.ports import SystemEntropy

ConfigOption = Annotated[Path | None, typer.Option(help="Settings; else config.toml in the home folder.")]

_CHUNK: Final = 65_536
_COLUMNS: Final = (
    "time",
    "sequence",
    "counterparty",
    "rail",
    "unit",
    "account",
    "amount",
    "counter",
    "order",
    "transaction",
)

FromOption = Annotated[str | None, typer.Option("--from", help="The first day, as 2026-01-31, in UTC.")]
ToOption = Annotated[str | None, typer.Option("--to", help="The last day; it counts as a whole.")]


def ledger_place(home: Home, config: Path | None = None) -> Place:
    """Where a home's ledger is, by these settings, else by its config.toml. Raises BadConfig."""
    file = config or (home.config if home.config.exists() else None)
    return load_config(file, {}).ledger.place(home.ledger)


def upgrade(home: HomeOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make the ledger's tables, or bring them up to date, while no node uses them; needed with ledger.url alone.

    Example: idlemesh ledger upgrade
    """
    where = open_home(home)
    with where.lock():
        done = asyncio.run(upgrade_tables(ledger_place(where, config)))
    backup = str(done.backup) if done.backup else None
    if as_json:
        print_json({"before": done.before, "after": done.after, "backup": backup})
    elif done.before == done.after:
        typer.echo(f"The ledger's tables are up to date: version {done.after}.")
    else:
        kept = f" What was before is in {backup}." if backup else ""
        typer.echo(f"The ledger's tables are now of version {done.after}.{kept}")


def verify(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Read the whole journal and check chain, records, guards, sums and snapshot. With and without a running node.

    Example: idlemesh ledger verify
    """
    body = asyncio.run(_verify(open_home(home), quiet=as_json))
    if as_json:
        print_json(body)
        return
    entries, records = counted(body["entries"], "entry", "entries"), counted(body["records"], "record", "records")
    typer.echo(f"The journal is whole: {entries}, {records}, each as it was written.")
    if body["dropped"]:
        dropped = counted(body["dropped"], "more record was", "more records were")
        typer.echo(f"{dropped} dropped by the owner's retention; the journal names each.")
    typer.echo(f"Its head is {body['head']}; every counterparty's postings sum to zero.")
    found = body["snapshot"]
    if found is not None:
        outcome = f"was wrong, and was made again: {found['why']}" if found["why"] else "is what the journal gives"
        typer.echo(f"The snapshot of entry {found['sequence']}, from which the node starts, {outcome}.")


async def _verify(home: Home, quiet: bool) -> dict[str, Any]:
    me = did_of_home(home)
    try:
        running = home.running()
    except NotRunning:
        return await _verify_disk(home, me, quiet)
    async with owner_client(running) as client:
        raw = b"".join([piece async for piece in client.download("/node/v1/ledger/snapshot")])
        check = Verification(me, decode_snapshot(raw))
        body = await check.of_file(client.download("/node/v1/ledger"))
    if check.wrong is not None:
        raise CommandFailed(
            f"the journal is whole, but the snapshot from which this node started is not what it gives ({check.wrong}):"
            " stop the node, then run this again: it puts that right"
        )
    return body


async def _verify_disk(home: Home, me: str, quiet: bool) -> dict[str, Any]:
    place = place_on_disk(home)
    with home.lock(), progress("Reading the journal", "entries", quiet) as bar:
        async with await Database.open(place, me, whole=True) as database:
            stored = await database.snapshot()
            await database.refresh()  # it may be of an entry that another process has just written
            check = Verification(me, stored)
            body = await check.of_database(database, bar(database.head.sequence))
            if check.wrong is not None and body["head"] == database.head.hash.hex():
                database.follow(check.recollection)  # at its end the right one is written
            return body


def export(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole chain with its records to one file. Works with and without a running node.

    Who has the file sees with whom this node trades, but no prompt and no answer.

    Example: idlemesh ledger export ledger.chain
    """
    body = asyncio.run(_export(open_home(home), file))
    entries = counted(body["entries"], "entry", "entries")
    print_json(body) if as_json else typer.echo(f"Written {entries} to {file}; head {body['head']}")


async def _export(home: Home, file: Path) -> dict[str, Any]:
    reader = ChainReader(did_of_home(home))
    with new_file(file) as written:
        async for chunk in chain_chunks(home):
            for _ in reader.feed(chunk):
                pass  # a file that could not be read again is not handed out
            written.write(chunk)
        reader.finish()
    return {"written": str(file), "entries": reader.head.sequence, "head": reader.head.hash.hex()}


def import_(
    file: Annotated[Path, typer.Argument(help="A file that `idlemesh ledger export` wrote.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make this node's ledger from an exported file, also in a database. Refuses where there is one, or another node's.

    Example: idlemesh ledger import ledger.chain
    """
    body = asyncio.run(_import(open_home(home), file))
    entries = counted(body["entries"], "entry is", "entries are")
    print_json(body) if as_json else typer.echo(f"{entries} in the ledger; head {body['head']}")


async def _import(home: Home, file: Path) -> dict[str, Any]:
    me = did_of_home(home)
    with home.lock(), file_pieces(file) as pieces:
        reader = ChainReader(me)
        head = await take_in(home, me, told_in(pieces, reader))
    return {"entries": head.sequence, "head": head.hash.hex()}


async def take_in(home: Home, me: str, told: Iterator[Told]) -> Entry:
    """Make the ledger of a home, where there is none yet, from a whole chain; returns its last entry.

    The home is locked by the caller. What is interrupted leaves nothing behind. Raises CommandFailed, LedgerError, and
    what reading raises.
    """
    place = ledger_place(home)
    if not isinstance(place, Path):
        try:
            return await import_chain(place, me, told)
        except LedgerNotEmpty as error:
            raise CommandFailed(f"{error}: import into an empty database") from None
    if place.exists():
        await _refuse_used(place, me)
    partial = place.with_name("ledger.importing")
    _remove(partial)
    try:
        head = await import_chain(partial, me, told)
        partial.replace(place)
    finally:
        _remove(partial)
    return head


def told_in(pieces: Iterable[bytes], reader: ChainReader) -> Iterator[Told]:
    """Every entry of a chain file, checked to its end. Raises BrokenChain, NotAChainFile."""
    for piece in pieces:
        yield from reader.feed(piece)
    reader.finish()


@contextlib.contextmanager
def file_pieces(file: Path) -> Iterator[Iterator[bytes]]:
    """A file's bytes, piece by piece. Raises CommandFailed where it cannot be read."""
    with _readable(file):
        opened = file.open("rb")
    with opened:
        yield _pieces(opened, file)


def _pieces(opened: BinaryIO, file: Path) -> Iterator[bytes]:
    while True:
        with _readable(file):
            chunk = opened.read(_CHUNK)
        if not chunk:
            return
        yield chunk


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{file} cannot be taken in: {error.strerror}") from None


async def _refuse_used(place: Path, me: str) -> None:
    async with await Database.open(place, me) as database:
        if database.head.sequence:
            entries = counted(database.head.sequence, "entry", "entries")
            raise CommandFailed(
                f"{place} holds {entries} already, and two chains cannot be joined: "
                "import into a new --home that has a copy of this one's identity.key"
            )


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}.lock"):
        path.with_name(name).unlink(missing_ok=True)


def statement(
    home: HomeOption = None,
    since: FromOption = None,
    until: ToOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every single posting, as CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what was earned and spent: double entry, by counterparty, rail and unit. Works without a running node, too.

    Amounts in CSV and JSON are whole numbers of the unit; debits are positive, credits negative.

    Example: idlemesh ledger statement --from 2026-01-01 --to 2026-01-31 --csv
    """
    wanted = Statement(did_of_home(open_home(home)), *_period(since, until))
    asyncio.run(_fold(open_home(home), wanted, sys.stdout if as_csv else None))
    if as_csv:
        return
    rows = line_rows(wanted.lines)
    if as_json:
        print_json({"from": since, "to": until, "balanced": wanted.balanced, "accounts": rows})
    else:
        _show(rows)


async def _fold(home: Home, wanted: Statement, out: TextIO | None) -> None:
    table = csv.DictWriter(out, _COLUMNS, lineterminator="\n") if out else None
    if table:
        table.writeheader()
    async with aclosing(all_told(home, ChainReader(did_of_home(home)))) as all_of_it:
        async for told in all_of_it:
            postings = wanted.add(told.entry.sequence, told.entry.time_ms, told.events)
            if table:
                table.writerows(_csv_row(posting) for posting in postings)


def _csv_row(posting: Posting) -> dict[str, Any]:
    row = posting_row(posting)
    return {"time": _moment(row.pop("time_ms")), **row}


def _moment(time_ms: int) -> str:
    """A time as ISO 8601; one that no calendar has, of a clock that was wrong, as its number."""
    try:
        moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        return str(time_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _show(rows: Iterable[dict[str, Any]]) -> None:
    table = [
        (
            short(row["counterparty"]),
            row["rail"],
            row["account"],
            *(
                _signed(row[name], row["unit"], row["counterparty"])
                for name in ("opening", "debit", "credit", "closing")
            ),
        )
        for row in rows
    ]
    columns = ("counterparty", "rail", "account", "opening", "debit", "credit", "closing")
    print_table("Statement", columns, table, "No money moved.")


def _signed(value: int, unit: BookUnit, counterparty: str) -> str:
    if unit != "wei":
        return f"{'-' if value < 0 else ''}{Amount(abs(value), unit)}"
    from ledger.rails.stablecoin.networks import in_coins  # of no use to nodes without money on a chain

    return in_coins(value, counterparty)


def _period(since: str | None, until: str | None) -> tuple[int, int]:
    """The first moment of the first day, and the first one after the last day, in milliseconds since 1970."""
    first = _day(since, "--from") if since else 0
    last = _day(until, "--to") + DAY_MS if until else LATEST_MS
    if first >= last:
        raise CommandFailed("--from is later than --to: turn them round")
    return first, last


def _day(text: str, option: str) -> int:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise CommandFailed(f"{option} {text[:80]!r} is no day: write it as 2026-01-31") from None
    return (day - date(1970, 1, 1)).days * DAY_MS


def did_of_home(home: Home) -> str:
    """Whose home it is. Raises CommandFailed where nobody is at home yet."""
    if not (home.folder / "identity.key").exists():
        raise CommandFailed(
            f"there is no identity.key in {home.folder}: start a node with `idlemesh up`, or put a backup of it there"
        )
    return home.identity(SystemEntropy()).did


async def all_told(home: Home, reader: ChainReader) -> AsyncGenerator[Told, None]:
    """Every entry of this node's chain, checked. Raises BrokenChain, NotAChainFile, what the sources raise."""
    async with aclosing(chain_chunks(home)) as chunks:
        async for chunk in chunks:
            for told in reader.feed(chunk):
                yield told
    reader.finish()


async def chain_chunks(home: Home) -> AsyncGenerator[bytes, None]:
    """This node's chain as a chain file: from the node while it runs, else from its disk."""
    try:
        running = home.running()
    except NotRunning:
        async with aclosing(_from_disk(home)) as chunks:
            async for chunk in chunks:
                yield chunk
        return
    async with owner_client(running) as client, aclosing(client.download("/node/v1/ledger")) as chunks:
        async for chunk in chunks:
            yield chunk


def place_on_disk(home: Home) -> Place:
    """Where the ledger of a node that does not run is. Raises CommandFailed: there is none yet."""
    place = ledger_place(home)
    if isinstance(place, Path) and not place.exists():
        raise CommandFailed(f"there is no ledger in {home.folder} yet: start a node with `idlemesh up`")
    return place


async def _from_disk(home: Home) -> AsyncGenerator[bytes, None]:
    place, me = place_on_disk(home), did_of_home(home)
    with home.lock():
        async with await Database.open(place, me) as database:
            async for chunk in chain_file(database, me):
                yield chunk
