"""`idlemesh verify`: an exported receipt is checked, offline."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ledger.bundle import MAX_FILE, Bundle, NotABundle, check, from_json
from ledger.codec import Malformed
from ledger.records import Checkpoint, Order, Receipt, Signed, amount_of, open_record
from node.cli.options import JsonOption
from node.cli.output import CommandFailed, local_time, print_json

Body = dict[str, Any]


def verify(
    file: Annotated[Path, typer.Argument(help="A file that `idlemesh export` wrote.")], as_json: JsonOption = False
) -> None:
    """Check an exported receipt offline: signatures, arithmetic, commitments. Ends with status 1 if any fails.

    Example: idlemesh verify receipt.json
    """
    body = verify_file(file)
    print_json(body) if as_json else checks(body)
    if not body["valid"]:
        raise typer.Exit(1)


def verify_file(path: Path) -> Body:
    """Check an exported receipt. Raises CommandFailed when the file is none."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise CommandFailed(f"{path} is larger than an exported receipt can be")
        bundle = from_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise CommandFailed(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise CommandFailed(f"{path} is not JSON: it should be a file that `idlemesh export` wrote") from None
    except NotABundle as error:
        raise CommandFailed(f"{path}: {error}") from None
    done = check(bundle)
    return {
        **_whose(bundle),
        "valid": all(one.passed is not False for one in done),
        "checks": [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in done],
    }


def _whose(bundle: Bundle) -> Body:
    """Who sold what to whom, as the records say; nothing if they cannot be read."""
    try:
        order = open_record(bundle.order, Order)
        if bundle.receipt is None:
            return _whose_cut(bundle.checkpoint or b"", order)
        receipt = open_record(bundle.receipt, Receipt)
    except Malformed:
        return {}
    said = receipt.record
    return {
        "receipt": receipt.digest.hex(),
        "seller": receipt.signer,
        "buyer": order.signer,
        "prompt_tokens": said.prompt_tokens,
        "output_tokens": said.output_tokens,
        "cost": str(amount_of(said)),
        "finished_ms": said.finished_ms,
    }


def _whose_cut(raw: bytes, order: Signed[Order]) -> Body:
    """The same of an answer that was cut off, which only a checkpoint speaks for."""
    checkpoint = open_record(raw, Checkpoint)
    return {
        "checkpoint": checkpoint.digest.hex(),
        "seller": checkpoint.signer,
        "buyer": order.signer,
        "output_tokens": checkpoint.record.tokens,
    }


def checks(body: Body) -> None:
    """The checks of a receipt, one a line."""
    if "receipt" in body:
        typer.echo(f"Receipt {body['receipt']} of {local_time(body['finished_ms'])}")
    elif "checkpoint" in body:
        typer.echo(f"Checkpoint {body['checkpoint']} of an answer that was cut off")
    if "seller" in body:
        typer.echo(f"sold by   {body['seller']}\nbought by {body['buyer']}")
    marks = {True: "ok      ", False: "WRONG   ", None: "not here"}
    for one in body["checks"]:
        typer.echo(f"{marks[one['passed']]}  {one['name']}: {one['detail']}")
    typer.echo("The receipt is valid." if body["valid"] else "The receipt is NOT valid.")
