"""`idlemesh up`: a node runs."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from node.api.server import is_loopback, is_wildcard
from node.app import Node
from node.cli.options import HomeOption, JsonOption
from node.config import Config, load_config, parse_peer
from node.home import open_home
from node.serve import say_started_json, serve


def up(
    home: HomeOption = None,
    config: Annotated[Path | None, typer.Option(help="Settings; else config.toml in the home folder.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 takes a free one.")] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            help="A GGUF file; may be given more than once, the first is loaded now. Else the demo model.",
            metavar="FILE",
        ),
    ] = None,
    sell: Annotated[
        str | None, typer.Option(help="Sell at IN:OUT for a million tokens, as 0.05usd:0.15usd.", metavar="IN:OUT")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Buy from this peer; may be given more than once, also for each process of one.", metavar="DID@URL"
        ),
    ] = None,
    open_credit: Annotated[
        str | None, typer.Option(help="What each buyer may owe in all, as 0.01usd.", metavar="AMOUNT")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a node until Ctrl-C.

    Example: idlemesh up --model llama.gguf --sell 0.05usd:0.15usd
    """
    where = open_home(home)
    file = config or (where.config if where.config.exists() else None)
    settings = load_config(
        file,
        {
            "node": {"host": host, "port": port},
            "sell": {"price": sell, "open_credit": open_credit},
        },
        tuple(parse_peer(text) for text in peer or ()),
        model or (),
    )
    serve(where, settings, say_started_json if as_json else _say_started)


def _say_started(node: Node, config: Config) -> None:
    """Where the node is and what it does."""
    typer.echo(f"This node is {node.did}")
    typer.echo(f"It answers at {node.url}/v1 (OpenAI-compatible); Ctrl-C stops it.")
    for model in node.own.models:
        when = "" if model.engine.state == "loaded" else "; it is loaded when it is first used"
        sold = f", sold at {model.price} for a million tokens in:out" if model.price else ""
        typer.echo(f"It runs {model.name}{sold}{when}.")
    if config.prices:
        typer.echo(f"Others buy from it with: idlemesh up --peer {node.did}@{node.url}")
        typer.echo(_reach(config.node.host, node.url))
        if config.idle.enabled:
            typer.echo("It sells while this machine is idle: `idlemesh status` says whether it does now.")
    if config.paid is not None and config.paid.port:
        where = f"{config.paid.host}:{config.paid.port}"
        typer.echo(f"Anyone who pays by x402 is answered at {where}, by this machine's models alone.")
    for remote in config.remotes:
        typer.echo(f"It may ask the remote {remote.name} at {remote.url}, with prompts up to {remote.privacy}.")
    for peer in config.peers:
        typer.echo(f"It may buy from {peer.did} at {peer.url}")


def _reach(host: str, url: str) -> str:
    """From where a seller can be reached."""
    if is_wildcard(host):
        return f"There {urlsplit(url).hostname} must be this machine's address in their network."
    return "Only this machine can reach it there: --host lets others in." if is_loopback(host) else ""
