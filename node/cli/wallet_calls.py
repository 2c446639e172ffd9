"""What the commands of the wallet ask the running node, and how they say what became of it."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from node.cli.client import call
from node.home import open_home

AT: Final = "/node/v1/wallet"
# What a movement's state means to people.
STATES: Final = {
    "planned": "on its way",
    "unknown": "on its way, and not known yet: the node asks on",
    "waiting": "sent, and in no block yet",
    "mined": "in a block that is not deep enough yet",
    "settled": "done",
    "failed": "failed",
}


def in_path(text: str) -> str:
    """A part of a path."""
    return quote(text, safe=":")


def post(home: Path | None, path: str, query: list[tuple[str, str]], body: object = None) -> Any:
    """Have the wallet do something. Raises HomeError, CallFailed."""
    whole = f"{AT}/{path}" + (f"?{urlencode(query)}" if query else "")
    return call(open_home(home), lambda client: client.post(whole, body))
