"""All commands, and where each of them is."""

from importlib.metadata import version
from typing import Annotated

import typer

from node.cli.lazy import group
from node.cli.output import fail

key = group(
    {"api": "keys:api", "backup": "keys:backup", "restore": "keys:restore"},
    help="Keys of this node.\n\nExample: idlemesh key api",
)
ledger = group(
    {
        "upgrade": "ledger:upgrade",
        "verify": "ledger:verify",
        "export": "ledger:export",
        "import": "ledger:import_",
        "statement": "ledger:statement",
        "records": "records:records",
    },
    help="The journal of this node.\n\nExample: idlemesh ledger verify",
)
slash = group(
    {
        "list": "wallet_slashes:list_running",
        "draft": "wallet_slashes:draft",
        "sign": "wallet_slashes:sign",
        "bring": "wallet_slashes:bring",
        "answer": "wallet_slashes:answer",
        "end": "wallet_slashes:end",
        "pay-out": "wallet_slashes:pay_out",
    },
    help="What arbiters take of a stake: signed by hand, answered, carried out.\n\nExample: idlemesh wallet slash list",
)
wallet = group(
    {
        "create": "wallet_keys:create",
        "import": "wallet_keys:import_key",
        "address": "wallet_keys:address",
        "channels": "wallet_channels:channels",
        "find": "wallet_channels:find",
        "deposit": "wallet_channels:deposit",
        "claim": "wallet_channels:claim",
        "withdraw": "wallet_channels:withdraw",
        "bond": "wallet_bonds:bond",
        "unbond": "wallet_bonds:unbond",
        "slash": "main:slash",
    },
    help="Money on a chain: see [stablecoin] in config.toml.\n\nExample: idlemesh wallet address",
)
app = group(
    {
        "up": "up:up",
        "ask": "ask:ask",
        "id": "look:show_id",
        "status": "look:status",
        "peers": "look:peers",
        "offers": "look:offers",
        "receipts": "look:receipts",
        "accounts": "accounts:accounts",
        "settle": "accounts:settle",
        "settlements": "accounts:settlements",
        "confirm": "accounts:confirm",
        "net": "accounts:net",
        "disputes": "disputes:disputes",
        "resolve": "disputes:resolve",
        "forgive": "disputes:forgive",
        "retry": "accounts:retry",
        "dismiss": "accounts:dismiss",
        "audit": "look:audit",
        "calibrate": "calibrate:calibrate",
        "export": "look:export",
        "verify": "verify:verify",
        "demo": "demo:demo",
        "key": "main:key",
        "ledger": "main:ledger",
        "wallet": "main:wallet",
    },
    name="idlemesh",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"idlemesh {version('idlemesh')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Spare computers become a market for language-model inference. Start with `idlemesh demo`."""


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="idlemesh")
    except Exception as error:
        from node.cli.expected import EXPECTED  # it knows all of a node: imported where something went wrong

        if not isinstance(error, EXPECTED):
            raise
        fail(error)
