"""What commands print for people, and the files they read and write."""

import json
from pathlib import Path
from typing import Any

import typer

from ledger.bundle import MAX_FILE, NotABundle, check, from_json
from node.app import Node
from node.cli.output import CommandFailed, print_facts, print_table, short
from node.config import Config

Body = dict[str, Any]


def started(node: Node, config: Config) -> None:
    """Where the node is and what it does."""
    typer.echo(f"This node is {node.did}")
    typer.echo(f"It answers at {node.url}/v1 (OpenAI-compatible); Ctrl-C stops it.")
    if config.sell.price is not None:
        typer.echo(f"It sells at {config.sell.price} for a million tokens in:out.")
    for peer in config.peers:
        typer.echo(f"It may buy from {peer.did} at {peer.url}")


def peers(body: Body) -> None:
    """The named peers."""
    rows = [
        (
            p["did"],
            "cheat" if p["condemned"] else p["reputation"],
            p["delivered"],
            p["failed"],
            p["audits_passed"],
            p["trouble"],
        )
        for p in body["peers"]
    ]
    columns = ("peer", "reputation", "delivered", "failed", "audits passed", "trouble now")
    print_table("Peers", columns, rows, "No peers are named: idlemesh up --peer DID@URL")


def offers(body: Body) -> None:
    """The open offers."""
    rows = [
        ("this node" if o["own"] else o["seller"], o["model"], o["quantization"], o["context"], o["input"], o["output"])
        for o in body["offers"]
    ]
    columns = ("seller", "model", "weights", "context", "a million in", "a million out")
    print_table(
        "Offers", columns, rows, "No offers are open: sell with --sell IN:OUT, or name peers with --peer DID@URL"
    )


def receipts(body: Body) -> None:
    """The newest receipts."""
    rows = [
        (
            r["id"][:12],
            r["role"],
            short(r["seller"] if r["role"] == "bought" else r["buyer"]),
            r["model"],
            f"{r['prompt_tokens']} + {r['output_tokens']}",
            r["cost"],
            _payment(r),
            r["verdicts"][-1]["outcome"] if r["verdicts"] else "",
        )
        for r in body["receipts"]
    ]
    columns = ("receipt", "", "with", "model", "tokens", "cost", "paid", "audit")
    print_table("Receipts", columns, rows, "There are no receipts yet.")


def _payment(receipt: Body) -> str:
    if not receipt["acknowledged"]:
        return "not yet"
    return receipt["paid"] if receipt["accepted"] else f"{receipt['paid']}, disputed"


def receipt(body: Body) -> None:
    """One receipt."""
    print_facts({name: value for name, value in body.items() if name != "verdicts" and value is not None})
    for verdict in body["verdicts"]:
        typer.echo(_verdict_line(verdict))


def _verdict_line(verdict: Body) -> str:
    if not verdict["tokens"]:
        return f"audit: {verdict['reason']}"
    return (
        f"audit: {verdict['outcome']}: {verdict['reason']} ({verdict['tokens']} tokens checked, {verdict['odd']} odd, "
        f"mean margin {verdict['margin_mean']:.6f}, largest {verdict['margin_max']:.3f})"
    )


def audit(body: Body) -> None:
    """What an audit found."""
    typer.echo(_verdict_line(body))


def accounts(body: Body) -> None:
    """Every balance."""
    rows = [
        (short(a["peer"]), a["direction"], a["earned"], a["authorized"], a["unpaid"], a["available"], a["limit"])
        for a in body["accounts"]
    ]
    columns = ("peer", "direction", "earned", "authorized", "unpaid", "available", "credit limit")
    print_table("Accounts", columns, rows, "Nobody owes anything.")
    if body["chain"] == "intact":
        typer.echo(f"The journal is whole: {body['entries']} entries, each chained to the one before.")
    else:
        typer.secho(f"The journal is BROKEN: {body['why']}", fg=typer.colors.RED)


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
        "valid": all(one.passed is not False for one in done),
        "checks": [{"name": one.name, "passed": one.passed, "detail": one.detail} for one in done],
    }


def checks(body: Body) -> None:
    """The checks of a receipt, one a line."""
    marks = {True: "ok      ", False: "WRONG   ", None: "not here"}
    for one in body["checks"]:
        typer.echo(f"{marks[one['passed']]}  {one['name']}: {one['detail']}")
    typer.echo("The receipt is valid." if body["valid"] else "The receipt is NOT valid.")


def write_file(path: Path, body: Body) -> None:
    """Write an exported receipt. Raises CommandFailed."""
    try:
        path.write_text(json.dumps(body, indent=1) + "\n")
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None
