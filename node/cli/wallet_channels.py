"""Commands on channels: channels, deposit, claim, withdraw."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from node.cli.client import call
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, local_time, plain, print_json, print_table, short
from node.cli.wallet_calls import AT, STATES, in_path, post
from node.home import NotRunning, open_home

PeerArgument = Annotated[
    str,
    typer.Argument(help="The peer's did:key (`idlemesh id` there), or its name in `wallet channels`, short or whole."),
]
DepositArgument = Annotated[str, typer.Argument(help="The amount with its unit: 5usd.")]


def channels(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show each channel: what was put in, is owed, promised, can go back. Works without a running node, by its ledger.

    What is at risk: what the payer has signed beyond what it owes. Between nodes that is nothing, but for vouchers that
    a restored ledger had lost; clients that pay by x402 sign a request's maximum before it is answered.

    Example: idlemesh wallet channels
    """
    where = open_home(home)
    try:
        where.running()
    except NotRunning:
        # A ledger takes a second to import, and where a node runs nobody waits for that.
        from node.cli.from_disk import channels_from_disk

        body = asyncio.run(channels_from_disk(where))
    else:
        body = call(where, lambda client: client.get(f"{AT}/channels"))
    if as_json:
        print_json(body)
        return
    show_channels(body["channels"])


def show_channels(channels: Sequence[dict[str, Any]]) -> None:
    """The table of them, and a line for each that has something under way."""
    columns = ("peer", "direction", "put in", "gone back", "owed", "promised", "paid out", "free", "at risk")
    empty = "There are no channels: `idlemesh wallet deposit` opens one."
    spare = ("gone back", "at risk", "promised", "direction")
    print_table("Channels, in usd", columns, [_channel_row(row) for row in channels], empty, spare)
    for row in channels:
        if row["effect"] is not None and row["effect"]["state"] != "settled":
            typer.echo(_said(row["effect"]))


_FOUND: Final = {
    "known": "in the ledger",
    "taken_up": "in the ledger again: it pays, or `idlemesh wallet withdraw` takes it back",
    "another": "the account has another channel, and keeps that",
    "theirs": "its payer names it when it pays again",
}


def find(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Look on the chain for channels with named peers that the ledger has lost, and take them up again.

    It needs nothing but the node's identity and its wallet, and reads all that ever happened to the contract: on a
    chain that is old that takes minutes.

    Example: idlemesh wallet find
    """
    while (body := post(home, "find", []))["searching"]:
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
    return short(row["peer"]), row["direction"], *(row[name].removesuffix("usd") for name in names)


def deposit(peer: PeerArgument, amount: DepositArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Put dollars into the channel from which a peer is paid; it is opened with the first. They can be taken back.

    The peer brings the deposit to the chain where it can, so that it costs you no gas.

    Example: idlemesh wallet deposit did:key:z6Mk... 5usd
    """
    _effects(home, f"deposit/{in_path(_whole(home, peer))}/{in_path(amount)}", {}, as_json)


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
    path = "claim" if peer is None else f"claim/{in_path(_whole(home, peer))}"
    _effects(home, path, {"close": "1"} if close else {}, as_json)


def withdraw(
    peer: PeerArgument,
    amount: Annotated[str | None, typer.Argument(help="So much, as 5usd; else all that covers nothing.")] = None,
    give_back: Annotated[
        bool, typer.Option("--give-back", help="Give the peer back, at once, what is in its channel to this node.")
    ] = False,
    what_is_left: Annotated[
        bool,
        typer.Option(
            "--what-is-left",
            help="From a seller that was paid in advance by x402, all that it says is left. What it has charged beyond"
            " what is known here is granted.",
        ),
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take dollars back from the channel to a peer. They come after the channel's notice; the node sees to it.

    What was paid in advance to a seller by x402 is asked back from it.

    Example: idlemesh wallet withdraw did:key:z6Mk... 2usd
    """
    query = {"amount": amount} if amount is not None else {}
    query |= {name: "1" for name, said in (("give_back", give_back), ("what_is_left", what_is_left)) if said}
    _effects(home, f"withdraw/{in_path(_whole(home, peer))}", query, as_json)


def _effects(home: Path | None, path: str, query: dict[str, str], as_json: bool) -> None:
    """Have something moved, and say what is known of it."""
    body = post(home, path, list(query.items()))
    if as_json:
        print_json(body)
        return
    if "granted" in body:
        typer.echo(f"The seller has charged {body['granted']} more than was known here: that is granted to it.")
    for effect in body["effects"]:
        typer.echo(_said(effect))
    typer.echo("`idlemesh wallet channels` shows what becomes of it.")


def _said(effect: dict[str, Any]) -> str:
    """A movement of money, and what is known of it."""
    what = f"{effect['kind'].replace('_', ' ')} of {effect['amount']}, {effect['direction']} {short(effect['peer'])}"
    state = STATES.get(effect["state"], effect["state"])
    since = f" ({effect['why']}, since {local_time(1000 * effect['heard'])})" if effect["why"] else ""
    return plain(f"{what}: {state}{since}")


def _whole(home: Path | None, peer: str) -> str:
    """A peer's name, where it is written as the table of channels shortens it. Raises CommandFailed."""
    start, _, end = peer.partition("…")
    if not start or not end:
        return peer
    there = call(open_home(home), lambda client: client.get(f"{AT}/channels"))["channels"]
    found = {row["peer"] for row in there if row["peer"].startswith(start) and row["peer"].endswith(end)}
    if len(found) != 1:
        raise CommandFailed(f"{len(found)} channels are with {peer}: `idlemesh wallet channels --json` has whole names")
    return str(found.pop())
