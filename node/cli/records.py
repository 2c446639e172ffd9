"""`idlemesh ledger records`: which signed records the journal keeps, and which of them `idlemesh export` takes."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any, Final

import typer
from attrs import frozen

from ledger.chainfile import ChainReader
from ledger.journal import Kept
from ledger.records import Checkpoint, Receipt
from node.cli.ledger import all_told, did_of_home
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, print_json, print_table, short_time
from node.home import Home, open_home

_SHORTEST_PREFIX: Final = 6
_LISTED: Final = 1_000  # at the most


@frozen
class Found:
    """A record that is kept, with when it was written down (milliseconds since 1970)."""

    kept: Kept
    time_ms: int


def records(
    order: Annotated[
        str | None, typer.Argument(help="An order or a record, or at least its first 6 digits; else the newest.")
    ] = None,
    limit: Annotated[int, typer.Option(help="So many of the newest.", min=1, max=_LISTED)] = 20,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the signed records that the journal keeps, and which `idlemesh export` takes. Without a running node, too.

    Of an answer that was cut off there is no receipt: its last checkpoint is exported instead.

    Example: idlemesh ledger records 3fa91c
    """
    prefix = None if order is None else order.lower()
    if prefix is not None and (len(prefix) < _SHORTEST_PREFIX or not set(prefix) <= set("0123456789abcdef")):
        raise CommandFailed(f"{prefix[:80]!r} is no order: give at least {_SHORTEST_PREFIX} of its hexadecimal digits")
    found = asyncio.run(_find(open_home(home), prefix, limit))
    rows = _rows(found)
    if as_json:
        print_json({"records": rows})
        return
    shown = [
        (
            row["id"][:12],
            row["kind"],
            short_time(row["time_ms"]),
            (row["order"] or "")[:12],
            "yes" if row["export"] else "",
        )
        for row in rows
    ]
    nothing = "The journal keeps no records yet." if prefix is None else f"The journal keeps nothing of {prefix[:64]}."
    print_table("Records", ("record", "kind", "written", "order", "for export"), shown, nothing)


async def _find(home: Home, prefix: str | None, limit: int) -> list[Found]:
    found: deque[Found] = deque(maxlen=limit if prefix is None else _LISTED)
    async for told in all_told(home, ChainReader(did_of_home(home))):
        found.extend(Found(kept, told.entry.time_ms) for kept in told.records if prefix is None or _is(kept, prefix))
    return list(found)


def _is(kept: Kept, prefix: str) -> bool:
    return any(digest is not None and digest.hex().startswith(prefix) for digest in (kept.order, kept.digest))


def _rows(found: Iterable[Found]) -> list[dict[str, Any]]:
    exported = _exported(one.kept for one in found)
    return [
        {
            "id": one.kept.digest.hex(),
            "kind": one.kept.kind,
            "order": one.kept.order.hex() if one.kept.order else None,
            "time_ms": one.time_ms,
            "export": one.kept.digest in exported,
        }
        for one in found
    ]


def _exported(records: Iterable[Kept]) -> set[bytes]:
    """Of each order the receipt, or the last checkpoint where there is none."""
    best: dict[bytes, Kept] = {}
    for one in records:
        standing = best.get(one.order or b"")
        ended = standing is not None and standing.kind == Receipt.kind
        if one.order and (one.kind == Receipt.kind or (one.kind == Checkpoint.kind and not ended)):
            best[one.order] = one
    return {one.digest for one in best.values()}
