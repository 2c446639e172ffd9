"""`idlemesh wallet`: keys on a chain, channels that buy and sell without trust, and stakes that a cheat would lose.

What needs the libraries of a chain is imported where it is used: a node without [stablecoin] goes without them.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import typer

from node.cli.client import call
from node.cli.keys import PassphraseOption, first_line, read_passphrase
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, local_time, print_facts, print_json, print_table, short
from node.config import load_config
from node.home import Home, NotRunning, open_home
from node.stablecoin_settings import StablecoinSettings

wallet = typer.Typer(
    help="Money on a chain: see [stablecoin] in config.toml. Example: idlemesh wallet address",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_AT: Final = "/node/v1/wallet"
_MISSING: Final = (
    "the libraries of the stablecoin rail are missing: install them with pip install 'idlemesh[stablecoin]'"
)
# What a movement's state means to people.
_STATES: Final = {
    "planned": "on its way",
    "unknown": "on its way, and not known yet: the node asks on",
    "waiting": "sent, and in no block yet",
    "mined": "in a block that is not deep enough yet",
    "settled": "done",
    "failed": "failed",
}
PeerArgument = Annotated[str, typer.Argument(help="The peer's did:key; `idlemesh peers` lists the named ones.")]
DepositArgument = Annotated[str, typer.Argument(help="The amount with its unit: 5usd.")]
BondOption = Annotated[str, typer.Option("--bond", help="The beginning of its id; not needed where there is one.")]


# Keys: they need no running node


@wallet.command()
def create(passphrase_file: PassphraseOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make a new key, in a file that only a passphrase opens. A node reads it from [stablecoin] passphrase_file.

    Example: idlemesh wallet create
    """
    where = open_home(home)
    path, said = _keystore_of(where), _settings(where)
    _refuse_second(path)
    passphrase = read_passphrase(passphrase_file or said.passphrase_file, new=True)
    _say_made(path, _create(where, path, passphrase, None), as_json)


@wallet.command("import")
def import_key(
    key_file: Annotated[
        Path | None,
        typer.Option("--key", help="A file with a private key in hexadecimal; else it is asked for."),
    ] = None,
    keystore: Annotated[
        Path | None, typer.Option(help="A keystore file (version 3) of another wallet instead; its passphrase stays.")
    ] = None,
    passphrase_file: PassphraseOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over a key that is there already: a private key, or another wallet's keystore.

    Example: idlemesh wallet import --keystore UTC--2026-01-01--abc
    """
    if keystore is not None and key_file is not None:
        raise CommandFailed("name one of --key and --keystore")
    where = open_home(home)
    path, said = _keystore_of(where), _settings(where)
    _refuse_second(path)
    secret = None if keystore is not None else _secret(key_file)
    passphrase = read_passphrase(passphrase_file or said.passphrase_file, new=keystore is None)
    made = _create(where, path, passphrase, secret) if keystore is None else _copy(where, path, keystore, passphrase)
    _say_made(path, made, as_json)


def _refuse_second(path: Path) -> None:
    if path.exists():
        raise CommandFailed(f"{path} is there already, and may hold money: move it away first")


def _secret(file: Path | None) -> bytes:
    text = str(typer.prompt("Private key", hide_input=True)) if file is None else first_line(file, "private key")
    digits = text.strip().removeprefix("0x")
    if not re.fullmatch("[0-9a-fA-F]{64}", digits):
        raise CommandFailed("that is no private key: it has 64 hexadecimal digits")
    return bytes.fromhex(digits)


def _create(home: Home, path: Path, passphrase: str, secret: bytes | None) -> bytes:
    keys = _keys()
    home.make()
    try:
        made: bytes = keys.create_keystore(path, passphrase, secret=secret)
    except keys.KeysError as error:
        raise CommandFailed(str(error)) from None
    return made


def _copy(home: Home, path: Path, keystore: Path, passphrase: str) -> bytes:
    """Another wallet's keystore as it is, once its passphrase has opened it."""
    keys = _keys()
    home.make()
    try:
        address: bytes = keys.open_keystore(keystore, passphrase).address
        with open(path, "xb", opener=_privately) as file:
            file.write(keystore.read_bytes())
    except keys.KeysError as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{keystore} cannot be taken over: {error.strerror}") from None
    return address


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _say_made(path: Path, address: bytes, as_json: bool) -> None:
    shown = _checksummed(address)
    if as_json:
        print_json({"address": shown, "keystore": str(path)})
        return
    typer.echo(f"{shown} in {path}. Keep a copy of the file and of its passphrase: nobody can bring them back.")
    typer.echo("A node opens it with [stablecoin] passphrase_file in config.toml; send dollars and coin to it first.")


@wallet.command()
def address(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print the wallet's address; from a running node also the network and what the wallet has there.

    Example: idlemesh wallet address
    """
    where = open_home(home)
    try:
        where.running()
    except NotRunning:
        body: dict[str, Any] = {"address": _checksummed(_own_address(where))}
    else:
        body = call(where, lambda client: client.get(_AT))
    print_json(body) if as_json else print_facts(body)


def _own_address(home: Home) -> bytes:
    keys = _keys()
    if _settings(home).signer is not None:
        raise CommandFailed(
            f"the keys are behind [stablecoin] signer: start the node, which asks it: {NotRunning(home.folder)}"
        )
    try:
        found: bytes = keys.keystore_address(_keystore_of(home))
    except keys.KeysError as error:
        raise CommandFailed(str(error)) from None
    return found


def _keys() -> Any:
    """The module of keys. Raises CommandFailed where its libraries are missing."""
    try:
        from ledger.rails.stablecoin import keys
    except ModuleNotFoundError:
        raise CommandFailed(_MISSING) from None
    return keys


def _checksummed(raw: bytes) -> str:
    from ledger.rails.stablecoin.networks import checksummed

    return checksummed(raw)


def _settings(home: Home) -> StablecoinSettings:
    """What the owner says in [stablecoin]; where there is nothing yet, what holds without it. Raises BadConfig."""
    if not home.config.exists():
        return StablecoinSettings()
    return load_config(home.config, {}).stablecoin or StablecoinSettings()


def _keystore_of(home: Home) -> Path:
    said = _settings(home)
    if said.signer is not None:
        raise CommandFailed("the keys are behind [stablecoin] signer: there is no keystore to make")
    return said.keystore or home.wallet


# Channels


@wallet.command()
def channels(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show each channel: what was put in, what is owed and promised, what can be claimed or go back.

    What is at risk: what the payer has signed beyond what it owes. Between nodes that is nothing, but for vouchers that
    a restored ledger had lost; clients that pay by x402 sign a request's maximum before it is answered.

    Example: idlemesh wallet channels
    """
    body = call(open_home(home), lambda client: client.get(f"{_AT}/channels"))
    if as_json:
        print_json(body)
        return
    columns = ("peer", "direction", "put in", "gone back", "owed", "promised", "paid out", "free", "at risk", "now")
    rows = [_channel_row(row) for row in body["channels"]]
    print_table("Channels", columns, rows, "There are no channels: `idlemesh wallet deposit` opens one.")


_FOUND = {
    "known": "in the ledger",
    "taken_up": "in the ledger again: it pays, or `idlemesh wallet withdraw` takes it back",
    "another": "the account has another channel, and keeps that",
    "theirs": "its payer names it when it pays again",
}


@wallet.command()
def find(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Look on the chain for channels with named peers that the ledger has lost, and take them up again.

    It needs nothing but the node's identity and its wallet, and reads all that ever happened to the contract: on a
    chain that is old that takes minutes.

    Example: idlemesh wallet find
    """
    while (body := _post(home, "find", []))["searching"]:
        if not as_json:
            typer.echo("still searching ...", err=True)
    if as_json:
        print_json(body)
        return
    columns = ("peer", "direction", "put in", "unclaimed", "now")
    rows = [
        (
            short(row["peer"]),
            row["direction"],
            row["deposited"].removesuffix("usd"),
            row["unclaimed"].removesuffix("usd"),
            _FOUND[row["state"]],
        )
        for row in body["channels"]
    ]
    print_table("Channels on the chain", columns, rows, "There is no channel with a named peer on the chain.")


def _channel_row(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("deposited", "gone_back", "owed", "promised", "paid", "free", "at_risk")
    effect = row["effect"]
    now = "" if effect is None else f"{effect['kind'].replace('_', ' ')} {effect['state']}"
    return short(row["peer"]), row["direction"], *(row[name].removesuffix("usd") for name in names), now


@wallet.command()
def deposit(peer: PeerArgument, amount: DepositArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put dollars into the channel from which a peer is paid; it is opened with the first. They can be taken back.

    The peer brings the deposit to the chain where it can, so that it costs you no gas.

    Example: idlemesh wallet deposit did:key:z6Mk... 5usd
    """
    _effects(home, f"deposit/{_in_path(peer)}/{_in_path(amount)}", {}, as_json)


@wallet.command()
def claim(
    peer: Annotated[str | None, typer.Argument(help="Whose promises; else everybody's.")] = None,
    close: Annotated[bool, typer.Option("--close", help="And give the rest of the peer's channel back.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Claim now what was promised to this node, whatever the gas costs. It also happens by itself, when it is worth it.

    Example: idlemesh wallet claim
    """
    if close and peer is None:
        raise CommandFailed("name the peer whose channel is to be closed")
    path = "claim" if peer is None else f"claim/{_in_path(peer)}"
    _effects(home, path, {"close": "1"} if close else {}, as_json)


@wallet.command()
def withdraw(
    peer: PeerArgument,
    amount: Annotated[str | None, typer.Argument(help="So much, as 5usd; else all that covers nothing.")] = None,
    give_back: Annotated[
        bool, typer.Option("--give-back", help="Give the peer back, at once, what is in its channel to this node.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take dollars back from the channel to a peer. They come after the channel's notice; the node sees to it.

    Example: idlemesh wallet withdraw did:key:z6Mk... 2usd
    """
    query = {"amount": amount} if amount is not None else {}
    _effects(home, f"withdraw/{_in_path(peer)}", query | ({"give_back": "1"} if give_back else {}), as_json)


def _effects(home: Path | None, path: str, query: dict[str, str], as_json: bool) -> None:
    """Have something moved, and say what is known of it."""
    body = _post(home, path, list(query.items()))
    if as_json:
        print_json(body)
        return
    for effect in body["effects"]:
        said = (
            f"{effect['kind'].replace('_', ' ')} of {effect['amount']}, {effect['direction']} {short(effect['peer'])}"
        )
        typer.echo(
            f"{said}: {_STATES.get(effect['state'], effect['state'])}"
            + (f" ({effect['why']})" if effect["why"] else "")
        )
    typer.echo("`idlemesh wallet channels` shows what becomes of it.")


# Bonds


@wallet.command()
def bond(
    amount: Annotated[
        str | None, typer.Argument(help="How much is to be locked in all, as 100usd; else your bonds are listed.")
    ] = None,
    arbiter: Annotated[
        list[str] | None, typer.Option(help="Who may judge you: an address that buyers trust; may be given more often.")
    ] = None,
    quorum: Annotated[int | None, typer.Option(help="How many must agree; else more than half.")] = None,
    notice: Annotated[int | None, typer.Option(help="Days between asking it back and having it; else 7.")] = None,
    challenge: Annotated[int | None, typer.Option(help="Days to answer a slash; else as many as the notice.")] = None,
    sink: Annotated[
        str | None, typer.Option(help="Who gets of a slash what exceeds the damage; else it is burned.")
    ] = None,
    one: BondOption = "",
    find: Annotated[
        bool, typer.Option("--find", help="Look through the chain for bonds that a lost ledger knew of; takes a while.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lock a stake that arbiters of your choice can take if you cheat: buyers who trust them prefer you.

    The amount is what is locked in all, so the same command again locks nothing more.

    Example: idlemesh wallet bond 100usd --arbiter 0x12... --arbiter 0x34...
    """
    if find:
        found = _post(home, "find-bonds", [])
        print_json(found) if as_json else typer.echo(f"Found {len(found['bonds'])} that the ledger did not know.")
        return
    if amount is None:
        body = call(open_home(home), lambda client: client.get(f"{_AT}/bonds"))
        print_json(body) if as_json else _show_bonds(body)
        return
    said = {"quorum": quorum, "notice": notice, "challenge": challenge, "sink": sink, "bond": one or None}
    query = [*(("arbiter", one) for one in arbiter or ()), *((k, str(v)) for k, v in said.items() if v is not None)]
    body = _post(home, f"bonds/{_in_path(amount)}", query)
    print_json(body) if as_json else _show_act(body)


@wallet.command()
def unbond(
    amount: Annotated[str | None, typer.Argument(help="So much, as 40usd; else all that is locked.")] = None,
    take: Annotated[bool, typer.Option("--take", help="Take what was asked back: its notice is over.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Let what was asked back stay locked.")] = False,
    one: BondOption = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask for a stake back; when its notice is over, take it. What was asked back counts no more for buyers.

    Example: idlemesh wallet unbond 40usd
    """
    if sum((take, keep, amount is not None)) > 1:
        raise CommandFailed("give one of an amount, --take and --keep")
    said = {"bond": one, "amount": amount, "take": "1" if take else None, "keep": "1" if keep else None}
    body = _post(home, "unbond", [(name, value) for name, value in said.items() if value])
    print_json(body) if as_json else _show_act(body)


def _show_bonds(body: dict[str, Any]) -> None:
    rows = [
        (
            row["bond"][:14],
            *(row[name].removesuffix("usd") for name in ("locked", "counts", "asked_back", "held_for_slashes")),
            local_time(1000 * row["back_at"]) if row["back_at"] else "",
            f"{row['quorum']} of {len(row['arbiters'])}",
        )
        for row in body["bonds"]
    ]
    columns = ("bond", "locked", "counts", "asked back", "held for slashes", "back from", "arbiters")
    print_table("Bonds", columns, rows, "No bond is locked: `idlemesh wallet bond --help` shows how.")


def _show_act(body: dict[str, Any]) -> None:
    typer.echo(f"{body['act']}, bond {body['bond'][:14]}: {_STATES.get(body['state'], body['state'])}")
    if body["act"] == "approve":
        typer.echo("The stake itself follows: give the same command again.")
    typer.echo("`idlemesh wallet bond` shows what is locked.")


def _in_path(text: str) -> str:
    return quote(text, safe=":")


def _post(home: Path | None, path: str, query: list[tuple[str, str]]) -> Any:
    whole = f"{_AT}/{path}" + (f"?{urlencode(query)}" if query else "")
    return call(open_home(home), lambda client: client.post(whole))
