"""How commands speak: a table or line for people, JSON for scripts, and one clear line when something is wrong."""

import json
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table

_SHORT_DID: Final = 24


class CommandFailed(Exception):
    """A command cannot do what it was asked; the message tells what to do."""


def print_json(body: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table, or a line that says what an empty one means."""
    if not rows:
        Console(markup=False, emoji=False).print(empty)
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else plain(str(cell)) for cell in row))
    Console(markup=False, emoji=False).print(table)


def print_facts(facts: dict[str, Any]) -> None:
    """One thing, a line for each of its facts."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):{width}}  {plain(str(value))}")


def fail(error: BaseException | str) -> NoReturn:
    """Say what is wrong, and end with status 1."""
    typer.secho(f"idlemesh: {plain(str(error))}", err=True, fg=typer.colors.RED)
    raise SystemExit(1)


def plain(text: str) -> str:
    """Text from others without what steers a terminal: control characters but newlines and tabs."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")


def short(did: str | None) -> str:
    """A did:key short enough for a table on a terminal; whole for programs that read on, and where it is short."""
    if did is None or not sys.stdout.isatty() or len(did) <= _SHORT_DID:
        return did or ""
    return f"{did[:12]}…{did[-6:]}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def local_time(milliseconds: int) -> str:
    """A moment in this machine's own time."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
