"""Commands on stakes that arbiters can take: bond, unbond."""

from typing import Annotated, Any

import typer

from node.cli.client import call
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, local_time, print_json, print_table
from node.cli.show import slash_line
from node.cli.wallet_calls import AT, STATES, in_path, post
from node.home import open_home

BondOption = Annotated[str, typer.Option("--bond", help="The beginning of its id; not needed where there is one.")]


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
        while (found := post(home, "find-bonds", []))["searching"]:
            if not as_json:
                typer.echo("still searching ...", err=True)
        print_json(found) if as_json else typer.echo(f"Found {len(found['bonds'])} that the ledger did not know.")
        return
    if amount is None:
        body = call(open_home(home), lambda client: client.get(f"{AT}/bonds"))
        print_json(body) if as_json else _show_bonds(body)
        return
    said = {"quorum": quorum, "notice": notice, "challenge": challenge, "sink": sink, "bond": one or None}
    query = [*(("arbiter", one) for one in arbiter or ()), *((k, str(v)) for k, v in said.items() if v is not None)]
    body = post(home, f"bonds/{in_path(amount)}", query)
    print_json(body) if as_json else _show_act(body)


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
    body = post(home, "unbond", [(name, value) for name, value in said.items() if value])
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
    for row in body["bonds"]:
        for slash in row["slashes"]:
            typer.echo(slash_line(slash))


def _show_act(body: dict[str, Any]) -> None:
    typer.echo(f"{body['act']}, bond {body['bond'][:14]}: {STATES.get(body['state'], body['state'])}")
    if body["act"] == "approve":
        typer.echo("The stake itself follows: give the same command again.")
    typer.echo("`idlemesh wallet bond` shows what is locked.")
