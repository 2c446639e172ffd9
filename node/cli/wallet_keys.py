"""Keys of the wallet: create, import, address. What needs the libraries of a chain is imported where it is used."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.client import call
from node.cli.keys import PassphraseOption, first_line, read_passphrase
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, print_facts, print_json
from node.cli.wallet_calls import AT
from node.config import load_config
from node.home import Home, NotRunning, open_home
from node.stablecoin_settings import StablecoinSettings


def create(passphrase_file: PassphraseOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Make a new key, in a file that only a passphrase opens. A node reads it from [stablecoin] passphrase_file.

    Example: idlemesh wallet create
    """
    where = open_home(home)
    path, said = keystore_of(where), stablecoin_settings(where)
    _refuse_second(path)
    passphrase = read_passphrase(passphrase_file or said.passphrase_file, new=True)
    _say_made(path, _create(where, path, passphrase, None), as_json)


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
    path, said = keystore_of(where), stablecoin_settings(where)
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
    from ledger.rails.stablecoin.keys import KeysError, create_keystore

    home.make()
    try:
        return create_keystore(path, passphrase, secret=secret)
    except KeysError as error:
        raise CommandFailed(str(error)) from None


def _copy(home: Home, path: Path, keystore: Path, passphrase: str) -> bytes:
    """Another wallet's keystore as it is, once its passphrase has opened it."""
    from ledger.rails.stablecoin.keys import KeysError, open_keystore

    home.make()
    try:
        address = open_keystore(keystore, passphrase).address
        with open(path, "xb", opener=_privately) as file:
            file.write(keystore.read_bytes())
    except KeysError as error:
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
    typer.echo(
        "A node opens it with [stablecoin] passphrase_file in config.toml. Send dollars to it, and coin for gas."
    )


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
        body = call(where, lambda client: client.get(AT))
    if as_json:
        print_json(body)
    elif len(body) == 1:  # for scripts, too: nothing but the address is known
        typer.echo(body["address"])
    else:
        name = body.pop("coin_name")
        coin = None if body["coin"] is None else f"{body['coin']} {name}"
        print_facts({name: fact for name, fact in (body | {"coin": coin}).items() if fact is not None})


def _own_address(home: Home) -> bytes:
    from ledger.rails.stablecoin.keys import KeysError, keystore_address

    if stablecoin_settings(home).signer is not None:
        raise CommandFailed(
            f"the keys are behind [stablecoin] signer: start the node, which asks it: {NotRunning(home.folder)}"
        )
    try:
        return keystore_address(keystore_of(home))
    except KeysError as error:
        raise CommandFailed(str(error)) from None


def _checksummed(raw: bytes) -> str:
    from ledger.rails.stablecoin.networks import checksummed

    return checksummed(raw)


def stablecoin_settings(home: Home) -> StablecoinSettings:
    """What the owner says in [stablecoin]; where there is nothing yet, what holds without it. Raises BadConfig."""
    if not home.config.exists():
        return StablecoinSettings()
    return load_config(home.config, {}).stablecoin or StablecoinSettings()


def keystore_of(home: Home) -> Path:
    said = stablecoin_settings(home)
    if said.signer is not None:
        raise CommandFailed("the keys are behind [stablecoin] signer: there is no keystore to make")
    return said.keystore or home.wallet
