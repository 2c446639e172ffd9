"""`idlemesh ledger`: care for the ledger's database while the node does not run."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ledger.database import Place, upgrade_tables
from node.cli.output import print_json
from node.config import load_config
from node.home import Home, open_home

ledger = typer.Typer(
    help="The ledger's database. Example: idlemesh ledger upgrade", no_args_is_help=True, rich_markup_mode=None
)


def ledger_place(home: Home, config: Path | None = None) -> Place:
    """Where a home's ledger is, by these settings, else by its config.toml. Raises BadConfig."""
    file = config or (home.config if home.config.exists() else None)
    return load_config(file, {}).ledger.place(home.ledger)


@ledger.command()
def upgrade(
    home: Annotated[
        Path | None, typer.Option("--home", help="The node's folder; else IDLEMESH_HOME, else ~/.idlemesh.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings; else config.toml in the home folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
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
