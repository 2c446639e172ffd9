"""Commands about what is owed: accounts, settle, settlements, confirm, net, retry, dismiss."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from node.cli import show
from node.cli.client import call
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, plain, print_json, print_table, short
from node.home import Home, NotRunning, open_home
from node.owner_client import CallFailed

PeerArgument = Annotated[str, typer.Argument(help="The peer's did:key; `idlemesh accounts --json` shows it.")]
EffectArgument = Annotated[str, typer.Argument(help="The beginning of its id; `idlemesh accounts` shows it.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask back, also where it is more than is owed.")]
AmountArgument = Annotated[str, typer.Argument(help="The amount with its unit: 0.05usd, 250000msat.")]


def accounts(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Rebuild every balance from the journal, and say whether its chain is whole. Works without a running node.

    Example: idlemesh accounts
    """
    where = open_home(home)
    try:
        where.running()
    except NotRunning:
        # A ledger takes a second to import, and where a node runs nobody waits for that.
        from node.cli.from_disk import accounts_from_disk

        body = asyncio.run(accounts_from_disk(where))
    else:
        body = call(where, lambda client: client.get("/node/v1/accounts"))
    print_json(body) if as_json else show.accounts(body)
    if body["chain"] != "intact":
        raise typer.Exit(1)


def settle(
    peer: PeerArgument,
    amount: AmountArgument,
    yes: YesOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a peer to count a payment that you made by other means (cash, a transfer, a favour).

    The same again does no harm; another amount takes the place of one that the peer has not confirmed yet.

    Example: idlemesh settle did:key:z6Mk... 5usd
    """
    body = _settled(open_home(home), peer, amount, yes)
    if as_json:
        print_json(body)
    elif body["confirmed"]:
        typer.echo(f"Settled: both sides count {body['amount']} as paid.")
    else:
        if body["replaced"] is not None:
            typer.echo(
                f"This takes the place of the {body['replaced']} that you asked for before, which was not confirmed."
            )
        typer.echo(f"Asked. It counts once the owner there confirms {body['amount']}; this node asks on while it runs.")


def settlements(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show what peers say they have paid, and you have not confirmed yet.

    Example: idlemesh settlements
    """
    body = call(open_home(home), lambda client: client.get("/node/v1/settlements"))
    if as_json:
        print_json(body)
        return
    rows = [(short(asked["peer"]), asked["amount"]) for asked in body["waiting"]]
    print_table("Payments to confirm", ("peer", "amount"), rows, "No peer has asked to settle anything.")


def confirm(peer: PeerArgument, amount: AmountArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Confirm that a peer's payment has arrived: it counts on both sides, once.

    Example: idlemesh confirm did:key:z6Mk... 5usd
    """
    body = _post(open_home(home), peer, amount, "confirm")
    print_json(body) if as_json else typer.echo(f"Confirmed: {body['amount']} counts as paid.")


def net(peer: PeerArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Set off what you and a peer owe each other: help for help, without money.

    Example: idlemesh net did:key:z6Mk...
    """
    body = call(open_home(home), lambda client: client.post(f"/node/v1/nettings/{quote(peer, safe=':')}"))
    print_json(body) if as_json else typer.echo(f"Set off: {', '.join(body['netted'])} is owed on neither side now.")


def retry(effect: EffectArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Ask a rail once more for a payment that failed, or on which it contradicts itself: it is paid once at most.

    Example: idlemesh retry 3fa91c
    """
    body = _on_effect(home, effect, "retry")
    if as_json:
        print_json(body)
    else:
        state = body["effects"][0]["state"] if body["effects"] else "done"
        typer.echo(f"Asked again: {body['id'][:12]} is {state}. `idlemesh accounts` shows what becomes of it.")


def dismiss(
    effect: EffectArgument,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put aside a payment that failed, or on which its rail contradicts itself, once you have looked there.

    What of it still counts as owed may be paid again after this.

    Example: idlemesh dismiss 3fa91c
    """
    body = _on_effect(home, effect, "dismiss")
    print_json(body) if as_json else typer.echo(f"Put aside: {body['id'][:12]}. The account goes on.")


def _settled(home: Home, peer: str, amount: str, yes: bool) -> Any:
    """Ask; where it is more than is owed, only if the owner means it."""
    try:
        return _post(home, peer, amount, "ask?in_advance=1" if yes else "ask")
    except CallFailed as error:
        from node.api.settlements import ABOVE_DEBT  # as above

        if error.code != ABOVE_DEBT:
            raise
        if not sys.stdin.isatty():
            raise CommandFailed(f"{error}: --yes asks all the same") from None
        said = plain(str(error))
        if not typer.confirm(f"{said[:1].upper()}{said[1:]}. Ask all the same?", err=True):
            raise CommandFailed("nothing was asked") from None
        return _post(home, peer, amount, "ask?in_advance=1")


def _on_effect(home: Path | None, effect: str, what: str) -> Any:
    path = f"/node/v1/effects/{quote(effect, safe='')}/{what}"
    return call(open_home(home), lambda client: client.post(path))


def _post(home: Home, peer: str, amount: str, what: str) -> Any:
    path = f"/node/v1/settlements/{quote(peer, safe=':')}/{quote(amount, safe='')}/{what}"
    return call(home, lambda client: client.post(path))
