"""`idlemesh demo`: the tour."""

from typing import Annotated

import typer

from node.cli.options import JsonOption
from node.cli.output import print_json
from node.demo.tour import Tour


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    honest_only: Annotated[bool, typer.Option("--honest-only", help="The third node is honest, too.")] = False,
    port: Annotated[int | None, typer.Option(help="The owner's port; else 8080, or a free one with --once.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch inference being bought, sold, checked and paid for between three nodes on this machine.

    Example: idlemesh demo --once --json
    """
    tour = Tour(honest_only=honest_only, once=once or as_json, port=port, quiet=as_json)
    figures = tour.run()
    if as_json:
        print_json(figures)
    if not figures["ok"]:
        raise typer.Exit(1)
