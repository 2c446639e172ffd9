"""Commands about what is asked and not granted, and what is let go: disputes, resolve, forgive."""

from typing import Annotated
from urllib.parse import quote

import typer

from node.cli.accounts import PeerArgument
from node.cli.client import call
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, plain, print_json, print_table, short
from node.home import open_home

_ORDER: str = "The disputed order, or at least its first 6 digits; `idlemesh disputes` lists them."
OrderArgument = Annotated[str, typer.Argument(help=_ORDER)]
CostArgument = Annotated[
    str | None, typer.Argument(help="What the order costs in all, as 0.05usd; else what the other side says.")
]
LetGoArgument = Annotated[str, typer.Argument(help="The amount with its unit: 0.05usd, 250000msat.")]
AnywayOption = Annotated[bool, typer.Option("--anyway", help="Also where it was forgiven before: it is let go twice.")]


def disputes(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the orders of which more is asked than granted, on either side. Nothing else waits for them.

    Example: idlemesh disputes
    """
    body = call(open_home(home), lambda client: client.get("/node/v1/disputes"))
    if as_json:
        print_json(body)
        return
    rows = [
        (
            row["order"][:12],
            short(row["peer"]),
            row["direction"],
            row["asked"],
            row["granted"],
            row["disputed"],
            plain(row["reason"]),
        )
        for row in body["disputes"]
    ]
    columns = ("order", "peer", "direction", "asked", "granted", "in dispute", "the buyer says")
    print_table("Disputes", columns, rows, "Nothing is in dispute.", spare=("direction", "asked"))


def resolve(
    order: OrderArgument,
    amount: CostArgument = None,
    anyway: AnywayOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a dispute by giving way: who sold the order asks no more than the amount, who bought it pays as much.

    Example: idlemesh resolve 3fa91c 0.0002usd
    """
    if not order.isalnum():
        raise CommandFailed(f"{order[:80]!r} is no order: `idlemesh disputes` lists those in dispute")
    path = f"/node/v1/disputes/{order}/resolve" + (f"/{quote(amount, safe='')}" if amount is not None else "")
    body = call(open_home(home), lambda client: client.post(path + ("?anyway=1" if anyway else "")))
    print_json(body) if as_json else typer.echo(
        f"Resolved: order {body['order'][:12]} costs {body['cost']}. The other side hears of it when it is reached."
    )


def forgive(peer: PeerArgument, amount: LetGoArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Let go of what a peer owes you and never promised to pay, as when it never came back.

    Example: idlemesh forgive did:key:z6Mk... 0.0002usd
    """
    path = f"/node/v1/forgiveness/{quote(peer, safe=':')}/{quote(amount, safe='')}"
    body = call(open_home(home), lambda client: client.post(path))
    print_json(body) if as_json else typer.echo(
        f"Forgiven: {body['forgiven']} of that peer's debt in all by now; {body['left']} is left without a voucher."
    )
