"""How commands speak: a table or line for people, JSON for scripts, and one clear line when something is wrong."""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_SHORT_DID: Final = 24


Advance = Callable[[int], None]


class CommandFailed(Exception):
    """A command cannot do what it was asked; the message tells what to do."""


def print_json(body: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def progress(what: str, of: str, quiet: bool) -> Iterator[Callable[[int], Advance]]:
    """A bar on standard error, of so many things once that is known; then it is told how many are done."""
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    console = Console(stderr=True)
    # To a file not even the empty line that a bar leaves.
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, count="")

        def begin(whole: int) -> Advance:
            bar.update(task, total=whole)
            return lambda now: bar.update(task, completed=now, count=f"{now:,} of {whole:,} {of}")

        yield begin


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str, spare: Sequence[str] = ()
) -> None:
    """A table, or a line that says what an empty one means.

    `spare` are the columns that are left out, one after another, where a terminal is too narrow for all; it is said.
    """
    console = Console(markup=False, emoji=False)
    if not rows:
        console.print(empty)
        return
    cells = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    widths = [
        max(cell_len(line) for row in (columns, *cells) for line in row[at].split("\n")) for at in range(len(columns))
    ]
    if not sys.stdout.isatty():  # a file or a program, which wraps nothing
        console.width = max(console.width, _width(widths))
    left_out = left_out_of(columns, widths, spare, console.width)
    table = Table(title=title, title_justify="left", header_style="bold")
    shown = [at for at in range(len(columns)) if at not in left_out]
    for at in shown:
        table.add_column(columns[at], overflow="fold")
    for row in cells:
        table.add_row(*(row[at] for at in shown))
    console.print(table)
    if left_out:
        console.print(f"For a wider terminal, or --json: {', '.join(columns[at] for at in left_out)}.")


def left_out_of(columns: Sequence[str], widths: Sequence[int], spare: Sequence[str], width: int) -> list[int]:
    """Which columns a table that may be so wide goes without, by their places, if `spare` may be left out in order."""
    left = list(range(len(columns)))
    for name in spare:
        if _width([widths[at] for at in left]) <= width:
            break
        left = [at for at in left if columns[at] != name]
    return [at for at in range(len(columns)) if at not in left]


def _width(widths: Sequence[int]) -> int:
    """Of a table with columns of these widths: each has a blank on both sides and a line after it."""
    return sum(widths) + 3 * len(widths) + 1


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


def counted(count: int, one: str, more: str) -> str:
    """So many things: `1 entry`, `2 entries`."""
    return f"{count} {one if count == 1 else more}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def local_time(milliseconds: int) -> str:
    """A moment in this machine's own time."""
    return _local(milliseconds).strftime("%Y-%m-%d %H:%M:%S")


def short_time(milliseconds: int) -> str:
    """The same for a table on a terminal; whole for programs that read on."""
    return _local(milliseconds).strftime("%m-%d %H:%M") if sys.stdout.isatty() else local_time(milliseconds)


def _local(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).astimezone()
