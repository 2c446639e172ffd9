"""All commands with their options and help."""

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ledger.chainfile import NotAChainFile
from ledger.database import Database, LedgerError
from ledger.journal import BrokenChain
from node.api.comparisons import comparison_rows
from node.api.owner import account_rows
from node.backup import NotABackup
from node.cli import accounts as settling
from node.cli import ask as asking
from node.cli import calibrate as calibrating
from node.cli import disputes as disputing
from node.cli import records as keeping
from node.cli import show
from node.cli.client import call
from node.cli.keys import key
from node.cli.ledger import ledger, place_on_disk
from node.cli.options import HomeOption, JsonOption
from node.cli.output import CommandFailed, fail, print_json
from node.cli.wallet import wallet
from node.config import BadConfig, load_config, parse_peer
from node.demo.tour import Tour, TourFailed
from node.engine.calibration import TooSmall, Unlike
from node.engine.port import EngineError
from node.engine.recordings import BadRecording
from node.exchange.book import Book
from node.exchange.heads import stored_meetings
from node.home import Home, HomeError, NotRunning, open_home
from node.models.catalogue import NameTaken
from node.models.gguf import BadModelFile
from node.owner_client import CallFailed, OwnerClient
from node.ports import SystemClock, SystemEntropy
from node.serve import say_started_json, serve
from verify.calibration import BadCalibration

app = typer.Typer(
    name="idlemesh",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(key, name="key")
app.add_typer(ledger, name="ledger")
ledger.command()(keeping.records)
app.add_typer(wallet, name="wallet")

ReceiptArgument = Annotated[str, typer.Argument(help="The receipt's id, or at least its first 6 digits.")]

# What goes wrong for reasons that the user can mend: said in one line, without a traceback.
_EXPECTED: Final = (
    BadCalibration,
    BrokenChain,
    CommandFailed,
    CallFailed,
    HomeError,
    BadConfig,
    BadModelFile,
    EngineError,
    NameTaken,
    BadRecording,
    NotABackup,
    NotAChainFile,
    LedgerError,
    TooSmall,
    Unlike,
    TourFailed,
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


@app.command()
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
        list[str] | None, typer.Option(help="Buy from this peer; may be given more than once.", metavar="DID@URL")
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
    serve(where, settings, say_started_json if as_json else show.started)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    home: HomeOption = None,
    model: Annotated[str, typer.Option(help="A model's name, or auto.")] = "auto",
    route: Annotated[str | None, typer.Option(help="auto, local, peers or remotes.")] = None,
    privacy: Annotated[str | None, typer.Option(help="public, internal, confidential or restricted.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is always the same, 1 the model's own variety.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the running node one question; the last line says who answered, tokens, cost and receipt.

    Example: idlemesh ask "What is a receipt?"
    """
    if not question.strip():
        raise CommandFailed('there is no question: write one in quotes, as idlemesh ask "What is a receipt?"')
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    body |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    headers = {"X-IdleMesh-Route": route, "X-IdleMesh-Privacy": privacy}
    body = {name: value for name, value in body.items() if value is not None}
    sent = {name: value for name, value in headers.items() if value is not None}
    result = call(open_home(home), lambda client: asking.ask(client, body, sent, quiet=as_json))
    if as_json:
        print_json(result)


@app.command("id")
def show_id(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Print this node's did:key, which others name to buy from it; made at the first time.

    Example: idlemesh id
    """
    did = open_home(home).identity(SystemEntropy()).did
    print_json({"did": did}) if as_json else typer.echo(did)


def _list(home: Path | None, path: str, as_json: bool, printer: Any) -> None:
    body = call(open_home(home), lambda client: client.get(path))
    print_json(body) if as_json else printer(body)


@app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say what the running node does now: its models, the memory they take, and whether it sells, and if not, why.

    Example: idlemesh status
    """
    _list(home, "/node/v1/status", as_json, show.status)


@app.command()
def peers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the named peers, what was seen of them, and what is wrong with them now.

    Example: idlemesh peers
    """
    _list(home, "/node/v1/peers", as_json, show.peers)


@app.command()
def offers(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the open offers: this node's own and those of its peers.

    Example: idlemesh offers --json
    """
    _list(home, "/node/v1/offers", as_json, show.offers)


@app.command()
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


@app.command()
def accounts(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Rebuild every balance from the journal, and say whether its chain is whole. Works without a running node.

    Example: idlemesh accounts
    """
    where = open_home(home)
    try:
        where.running()
    except NotRunning:
        body = asyncio.run(_accounts_from_disk(where))
    else:
        body = call(where, lambda client: client.get("/node/v1/accounts"))
    print_json(body) if as_json else show.accounts(body)
    if body["chain"] != "intact":
        raise typer.Exit(1)


app.command()(settling.settle)
app.command()(settling.settlements)
app.command()(settling.confirm)
app.command()(settling.net)
app.command()(disputing.disputes)
app.command()(disputing.resolve)
app.command()(disputing.forgive)


app.command()(settling.retry)
app.command()(settling.dismiss)


async def _accounts_from_disk(home: Home) -> dict[str, Any]:
    place, identity = place_on_disk(home), home.identity(SystemEntropy())
    with home.lock():
        async with await Database.open(place, identity.did) as database:
            meetings = (await Book.open(database, identity, SystemClock())).experience.meetings
            compared = comparison_rows(await stored_meetings(database, meetings), meetings.cut)
            return await account_rows(database, identity.did) | compared


@app.command()
def audit(receipt: ReceiptArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Replay a bought answer on this node's own weights, or have other sellers score it: was the seller honest?

    Example: idlemesh audit 3fa91c
    """
    path = f"/node/v1/receipts/{_plain(receipt)}/audit"
    body = call(open_home(home), lambda client: client.post(path))
    print_json(body) if as_json else show.audit(body)


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="A GGUF file.")],
    home: HomeOption = None,
    tokens: Annotated[int, typer.Option(help="So many honest tokens in all, earlier calls included.", min=1)] = (
        calibrating.DEFAULT_TOKENS
    ),
    threads: Annotated[int | None, typer.Option(help="Compared with one thread; else the cores.", min=1)] = None,
    gpu_layers: Annotated[int, typer.Option(help="Layers on the GPU, as in config.toml; -1 is all.", min=-1)] = -1,
    remote: Annotated[
        str | None, typer.Option(help="A [[remotes]] of config.toml that runs this model: compare its greedy answers.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Only write honest answers to this file, for --answers on another machine.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Check what --record wrote on a machine that you trust to be honest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what honest engines show on a model, so that audits of it mean something. Ctrl-C keeps what is done.

    Sellers of another build or backend take two machines: one records its answers, the other checks them.

    Example: idlemesh calibrate llama.gguf --tokens 1000000
    """
    if sum(one is not None for one in (remote, record, answers)) > 1:
        raise typer.BadParameter("choose one of --remote, --record and --answers")
    place = open_home(home)
    if record is not None:
        result = calibrating.record(place, model, tokens, threads, gpu_layers, record, quiet=as_json)
        print_json(result) if as_json else calibrating.show_recording(result)
    else:
        if answers is not None:
            result = calibrating.check(place, model, threads, gpu_layers, answers, quiet=as_json)
        else:
            result = calibrating.calibrate(place, model, tokens, threads, gpu_layers, remote, quiet=as_json)
        print_json(result) if as_json else calibrating.show(result)
    if result["stopped"]:
        raise typer.Exit(130)


@app.command()
def export(
    receipt: ReceiptArgument,
    home: HomeOption = None,
    ids: Annotated[bool, typer.Option("--ids", help="Put in salt and token ids: whoever has them can read.")] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write; else standard output.")] = None,
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
    show.write_file(out, body)
    print_json({"written": str(out)}) if as_json else typer.echo(
        f"Written to {out}; check it with: idlemesh verify {out}"
    )


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A file that `idlemesh export` wrote.")], as_json: JsonOption = False
) -> None:
    """Check an exported receipt offline: signatures, arithmetic, commitments. Ends with status 1 if any fails.

    Example: idlemesh verify receipt.json
    """
    body = show.verify_file(file)
    print_json(body) if as_json else show.checks(body)
    if not body["valid"]:
        raise typer.Exit(1)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    honest_only: Annotated[bool, typer.Option("--honest-only", help="The third node is honest, too.")] = False,
    port: Annotated[int | None, typer.Option(help="The owner's port; else 8080, or a free one with --once.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Watch inference being bought, sold, checked and paid for between three nodes on this machine.

    Example: idlemesh demo --once --json
    """
    tour = Tour(honest_only=honest_only, once=once or as_json, port=port, quiet=as_json)
    figures = tour.run()
    if as_json:
        print_json(figures)
    if not figures["ok"]:
        raise typer.Exit(1)


def _plain(receipt: str) -> str:
    if not receipt.isalnum():
        raise CommandFailed(f"{receipt[:80]!r} is no receipt id: `idlemesh receipts` lists them")
    return receipt


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="idlemesh")
    except _EXPECTED as error:
        fail(error)
