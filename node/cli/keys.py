"""`idlemesh key`: the API key, and the identity with its ledger in an encrypted backup."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from ledger.chainfile import ChainReader, Told, write_end, write_start
from ledger.database import Database, Place
from ledger.identity import Identity
from ledger.journal import Entry, genesis
from node.backup import MAX_PASSPHRASE, SALT_BYTES, Sealer, open_backup
from node.cli.files import new_file
from node.cli.ledger import chain_chunks, file_pieces, ledger_place, take_in, told_in
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, counted, print_json
from node.home import Home, open_home
from node.ports import SystemEntropy

_SHORTEST: Final = 8
PassphraseOption = Annotated[
    Path | None,
    typer.Option(help="A file whose first line is the passphrase, - is standard input; else it is asked for."),
]


def api(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print the key that clients need where the node listens beyond this machine; made at the first time.

    Example: idlemesh key api
    """
    made = open_home(home).make_api_key()
    print_json({"api_key": made}) if as_json else typer.echo(made)


def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not be there yet.")],
    passphrase_file: PassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write identity and ledger into one file that only a passphrase opens. Works with and without a running node.

    Not in it: config.toml, models, the API key, and the token ids that wait for an audit.

    Example: idlemesh key backup node.backup
    """
    where = open_home(home)
    if not where.has_identity:
        raise CommandFailed(f"there is no identity in {where.folder}: start a node with `idlemesh up`")
    passphrase = read_passphrase(passphrase_file, new=True)
    body = asyncio.run(_backup(where, file, passphrase))
    entries = counted(body["entries"], "entry", "entries")
    print_json(body) if as_json else typer.echo(
        f"Written {body['did']} and {entries} to {file}. Without the passphrase it is worth nothing."
    )


async def _backup(home: Home, file: Path, passphrase: str) -> dict[str, Any]:
    seed = home.seed()
    me = Identity(seed).did
    reader = ChainReader(me)
    with new_file(file) as written:
        sealer = Sealer(passphrase, SystemEntropy().bytes(SALT_BYTES))
        written.write(sealer.head + sealer.identity(seed))
        async for chunk in _chain(home, me):
            for _ in reader.feed(chunk):
                pass  # what could not be read again is no backup
            written.write(sealer.ledger(chunk))
        reader.finish()
        written.write(sealer.end())
    return {"written": str(file), "did": me, "entries": reader.head.sequence, "head": reader.head.hash.hex()}


async def _chain(home: Home, me: str) -> AsyncIterator[bytes]:
    """The node's chain file; an empty chain's where nothing was ever written."""
    place = ledger_place(home)
    if isinstance(place, Path) and not place.exists():
        yield write_start(me) + write_end(genesis(me))
        return
    async for chunk in chain_chunks(home):
        yield chunk


def restore(
    file: Annotated[Path, typer.Argument(help="A file that `idlemesh key backup` wrote.")],
    passphrase_file: PassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put identity and ledger of a backup into a home that has none; with ledger.url, the ledger into its database.

    Where the ledger is still there, as long as the backup's or longer, it is kept. Never run both copies of a node.

    Example: idlemesh key restore node.backup --home ~/restored
    """
    where = open_home(home)
    _refuse_identity(where)
    body = asyncio.run(_restore(where, file, read_passphrase(passphrase_file, new=False)))
    entries = counted(body["entries"], "entry", "entries")
    print_json(body) if as_json else typer.echo(
        f"Restored {body['did']} with {entries}. It must not run anywhere else from now on."
    )


def _refuse_identity(home: Home) -> None:
    if home.has_identity:
        raise CommandFailed(f"{home.folder} has an identity already: restore into a new --home")


async def _restore(home: Home, file: Path, passphrase: str) -> dict[str, Any]:
    with home.lock(), file_pieces(file) as pieces:
        _refuse_identity(home)
        seed, chain = open_backup(passphrase, pieces)
        me = Identity(seed).did
        told = told_in(chain, ChainReader(me))
        place = ledger_place(home)
        standing = await _standing(place, me)
        head = await take_in(home, me, told) if standing is None else await _compare(place, me, standing, told)
        # Last: a home without it has not been restored, and the next try goes on from what is there.
        home.put_identity(seed)
    return {"did": me, "entries": head.sequence, "head": head.hash.hex()}


async def _standing(place: Place, me: str) -> Entry | None:
    """The last entry of this identity that is in the place already, if any."""
    if isinstance(place, Path) and not place.exists():
        return None
    async with await Database.open(place, me) as database:
        return database.head if database.head.sequence else None


async def _compare(place: Place, me: str, standing: Entry, told: Iterable[Told]) -> Entry:
    """The last entry of the ledger that is there, if it goes on from the backup's. Raises CommandFailed."""
    last = genesis(me)
    for one in told:
        last = one.entry
    async with await Database.open(place, me) as database:
        found: Entry | None = genesis(me)
        if last.sequence:
            found = await anext(database.entries(last.sequence - 1), None)
    if found != last:
        raise CommandFailed(
            f"the ledger that is there has {counted(standing.sequence, 'entry', 'entries')} and does not go on from"
            f" the backup's {last.sequence}: put it aside first"
        )
    return standing


def read_passphrase(file: Path | None, *, new: bool) -> str:
    """What opens a backup or keystore, from where the owner says. Raises CommandFailed."""
    if file is None and sys.stdin.isatty():
        said = str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=new))
    else:
        said = first_line(file, "passphrase")
    if new and len(said) < _SHORTEST:
        raise CommandFailed(f"the passphrase guards the node's money: take at least {_SHORTEST} characters")
    return said


def first_line(file: Path | None, what: str) -> str:
    """The first line of a file that holds a secret; of standard input, where none is named. Raises CommandFailed."""
    try:
        if file is None or str(file) == "-":
            raw = _line(sys.stdin.buffer, what)
        else:
            with file.open("rb") as opened:
                raw = _line(opened, what)
        return raw.decode()
    except OSError as error:
        raise CommandFailed(f"the {what} cannot be read from {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"the {what} is not UTF-8 text") from None


def _line(opened: BinaryIO, what: str) -> bytes:
    raw = opened.readline(MAX_PASSPHRASE + 3).rstrip(b"\r\n")
    if len(raw) > MAX_PASSPHRASE:
        raise CommandFailed(f"the {what} is longer than {MAX_PASSPHRASE} bytes")
    if not raw:
        raise CommandFailed(f"there is no {what}: write it into the first line, or name a file that has it there")
    return raw
