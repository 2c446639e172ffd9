"""Commands that show what this node is, does and has done: id, status, peers, offers, receipts, audit, export."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli import show
from node.cli.client import call
from node.cli.files import new_file
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, print_json
from node.home import open_home
from node.owner_client import OwnerClient
from node.ports import SystemEntropy

ReceiptArgument = Annotated[str, typer.Argument(help="The receipt's id, or at least its first 6 digits.")]


def show_id(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print this node's did:key, which others name to buy from it; made at the first time.

    Example: idlemesh id
    """
    did = open_home(home).identity(SystemEntropy()).did
    print_json({"did": did}) if as_json else typer.echo(did)


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say what the running node does now: its models, the memory they take, and whether it sells, and if not, why.

    Example: idlemesh status
    """
    _list(home, "/node/v1/status", as_json, show.status)


def peers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the named peers, what was seen of them, and what is wrong with them now.

    Example: idlemesh peers
    """
    _list(home, "/node/v1/peers", as_json, show.peers)


def offers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the open offers: this node's own and those of its peers.

    Example: idlemesh offers --json
    """
    _list(home, "/node/v1/offers", as_json, show.offers)


def receipts(
    receipt: Annotated[str | None, typer.Argument(help="One receipt's id; else the newest are listed.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the newest receipts, or show one with its audits.

    Example: idlemesh receipts 3fa91c
    """
    if receipt is None:
        _list(home, "/node/v1/receipts", as_json, show.receipts)
    else:
        _list(home, f"/node/v1/receipts/{_plain(receipt)}", as_json, show.receipt)


def audit(receipt: ReceiptArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Replay a bought answer on this node's own weights, or have other sellers score it: was the seller honest?

    Example: idlemesh audit 3fa91c
    """
    path = f"/node/v1/receipts/{_plain(receipt)}/audit"
    body = call(open_home(home), lambda client: client.post(path))
    print_json(body) if as_json else show.audit(body)


def export(
    receipt: ReceiptArgument,
    home: HomeOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Put in salt and token ids: whoever has them can read.")] = False,
    out: Annotated[Path | None, typer.Option(help="A file that is not there yet; else standard output.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one file with offer, order, receipt and acknowledgement, for anyone to verify. It is JSON in any case.

    Example: idlemesh export 3fa91c --ids --out receipt.json
    """
    query = {"ids": "1"} if ids else {}

    async def fetch(client: OwnerClient) -> Any:
        return await client.get(f"/node/v1/receipts/{_plain(receipt)}/export", **query)

    body = call(open_home(home), fetch)
    if out is None:
        print_json(body)
        return
    with new_file(out) as written:
        written.write(json.dumps(body, indent=1).encode() + b"\n")
    print_json({"written": str(out)}) if as_json else typer.echo(
        f"Written to {out}; check it with: idlemesh verify {out}"
    )


def _list(home: Path | None, path: str, as_json: bool, printer: Any) -> None:
    body = call(open_home(home), lambda client: client.get(path))
    print_json(body) if as_json else printer(body)


def _plain(receipt: str) -> str:
    if not receipt.isalnum():
        raise CommandFailed(f"{receipt[:80]!r} is no receipt id: `idlemesh receipts` lists them")
    return receipt
