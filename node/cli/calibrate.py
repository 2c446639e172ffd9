"""`idlemesh calibrate`: what honest engines show on one model here, so that audits can tell fraud from it."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import typer
from attrs import frozen
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ledger.records import Sampling
from node.cli.output import print_table
from node.config import BadConfig, RemoteSettings, load_config
from node.engine.calibration import ANSWERS, CalibrationFiles, Calibrator, Table
from node.engine.hardware import default_threads
from node.home import Home
from node.models.gguf import BadModelFile
from node.models.manifest import Manifest, manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from node.own_remotes import remote_engine
from verify.calibration import EDGES, TEMPERATURES, Calibration
from verify.cutoffs import MILLION
from verify.sampler import SAMPLER

DEFAULT_TOKENS: Final = 200_000
# So few tokens may be wanted that a whole round would be too many.
_LEAST_ANSWERS: Final = 2
_TOKENS_PER_ANSWER: Final = 200  # about, by both checkers and in both rounds
_PER_100_000: Final = 100_000
_PLAIN: Final = Sampling(MILLION, MILLION, 0, 0)
_HOTTEST: Final = Sampling(max(TEMPERATURES), MILLION, 0, 0)
_GREEDY: Final = Sampling(0, MILLION, 0, 0)  # of a remote nothing else can be checked

Advance = Callable[[int], None]


def calibrate(
    home: Home, path: Path, tokens: int, threads: int | None, gpu_layers: int, remote: str | None, *, quiet: bool
) -> dict[str, Any]:
    """Calibrate until a model has so many honest tokens here, those from before included, or until Ctrl-C.

    `remote`: the name of one in config.toml that runs this model, to be calibrated against this machine.
    After each round all is saved. Raises BadConfig, BadModelFile, BadCalibration, EngineError, TooSmall, HomeError.
    """
    home.make()
    there = _remote(home, remote) if remote is not None else None
    try:
        manifest = manifest_of(path)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf model file.") from None
    files = CalibrationFiles(home.calibrations)
    table = Table(manifest.digest, files.own(manifest.digest))
    before = sum(one.tokens for one in table.calibrations)
    stopped = False
    work = _Work(home, path, manifest, files, table, tokens, threads or default_threads(), gpu_layers, there)
    with _bar(tokens, quiet) as advance:
        try:
            asyncio.run(_rounds(work, advance))
        except KeyboardInterrupt:
            stopped = True
    after = sum(one.tokens for one in table.calibrations)
    return {
        "model": manifest.digest.hex(),
        "file": str(files.path(manifest.digest)),
        "tokens": after,
        "added": after - before,
        "stopped": stopped,
        "pairs": [_pair(one) for one in table.calibrations],
    }


def _remote(home: Home, name: str) -> RemoteSettings:
    settings = load_config(home.config if home.config.exists() else None, {})
    known = {one.name: one for one in settings.remotes}
    if name not in known:
        raise BadConfig(f"config.toml has no [[remotes]] of the name {name!r}; it has: {', '.join(known) or 'none'}")
    if known[name].server is None:
        raise BadConfig(
            f'remotes.{name}: say what server it is, as in server = "llama-server b9960": what is honest for one '
            "server says nothing of another"
        )
    return known[name]


@frozen
class _Work:
    home: Home
    path: Path
    manifest: Manifest
    files: CalibrationFiles
    table: Table
    tokens: int
    threads: int
    gpu_layers: int
    remote: RemoteSettings | None


async def _rounds(work: _Work, advance: Advance) -> None:
    async with contextlib.AsyncExitStack() as stack:
        renderer = TemplateRenderer()
        stack.push_async_callback(renderer.close)
        tokenizers = Tokenizers(work.home.tokenizers, renderer)
        stack.push_async_callback(tokenizers.close)
        tokenizer = tokenizers.open_own(tokenizers.add_own(work.path))
        remote = None
        if work.remote is not None:
            session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
            remote = remote_engine(work.remote, session, tokenizer, work.manifest)
        calibrator = Calibrator(
            work.path, work.manifest, tokenizer, threads=work.threads, gpu_layers=work.gpu_layers, remote=remote
        )
        size = max(_LEAST_ANSWERS, min(ANSWERS, work.tokens // _TOKENS_PER_ANSWER))
        rounds = await stack.enter_async_context(contextlib.aclosing(calibrator.rounds(secrets.randbits(64), size)))
        table, pairs = work.table, calibrator.pairs
        while table.tokens(pairs) < work.tokens:
            advance(table.tokens(pairs))
            # Both kinds of cache sell in turn: an even number of rounds serves all pairs alike.
            for _ in range(2):
                for one in await anext(rounds):
                    table.add(one)
                work.files.save(work.manifest.digest, table.calibrations)
        advance(table.tokens(pairs))


@contextlib.contextmanager
def _bar(tokens: int, quiet: bool) -> Iterator[Advance]:
    columns = (
        TextColumn("Calibrating"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("", total=tokens)
        yield lambda now: progress.update(task, completed=now)


def _pair(one: Calibration) -> dict[str, Any]:
    sampling = _PLAIN if one.seller.sampler == SAMPLER else _GREEDY
    return {
        "seller": one.seller.kv if one.seller.sampler == SAMPLER else one.seller.build,
        "checker": one.checker.kv,
        "tokens": one.tokens,
        "temperature": sampling.temperature / MILLION,
        "complete": one.covers(_HOTTEST if one.seller.sampler == SAMPLER else sampling),
        "at_most": {f"over {edge:g}": float(most) for edge, most in zip(EDGES, one.bounds(sampling)[1:], strict=False)},
    }


def show(result: dict[str, Any]) -> None:
    """What was found, for people."""
    columns = ["seller", "checker", "tokens", "T", *(f"over {edge:g}" for edge in EDGES)]
    rows = [
        [
            pair["seller"],
            pair["checker"],
            f"{pair['tokens']:,}" + ("" if pair["complete"] else " (too few)"),
            f"{pair['temperature']:g}",
            *(f"{_PER_100_000 * bound:.0f}" for bound in pair["at_most"].values()),
        ]
        for pair in result["pairs"]
    ]
    title = "Margins of honest tokens: of 100,000 at most so many are over these logits"
    print_table(title, columns, rows, "Nothing was calibrated yet.")
    if result["pairs"]:
        typer.echo(f"Kept in {result['file']}; a running node uses it from its next audit on.")
    if not all(pair["complete"] for pair in result["pairs"]):
        typer.echo("Too few tokens judge nobody: call it again with larger --tokens.")
    if result["stopped"]:
        typer.echo("Stopped before the end: call it again to go on. The round under way is lost.")
