"""`idlemesh calibrate`: what honest engines show on one model here, so that audits can tell fraud from it."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ledger.records import Sampling
from node.cli.output import print_table
from node.engine.calibration import ANSWERS, CalibrationFiles, Calibrator, Table
from node.engine.hardware import default_threads
from node.home import Home
from node.models.gguf import BadModelFile
from node.models.manifest import Manifest, manifest_of
from node.models.template import TemplateRenderer
from node.models.tokenizers import Tokenizers
from verify.calibration import EDGES, Calibration
from verify.cutoffs import MILLION

DEFAULT_TOKENS: Final = 200_000
# So few tokens may be wanted that a whole round would be too many.
_LEAST_ANSWERS: Final = 2
_TOKENS_PER_ANSWER: Final = 200  # about, by both checkers and in both rounds
_PER_100_000: Final = 100_000
_PLAIN: Final = Sampling(MILLION, MILLION, 0, 0)

Advance = Callable[[int], None]


def calibrate(
    home: Home, path: Path, tokens: int, threads: int | None, gpu_layers: int, *, quiet: bool
) -> dict[str, Any]:
    """Calibrate until a model has so many honest tokens here, those from before included, or until Ctrl-C.

    After each round all is saved. Raises BadModelFile, BadCalibration, EngineError, TooSmall, HomeError.
    """
    home.make()
    try:
        manifest = manifest_of(path)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf model file.") from None
    files = CalibrationFiles(home.calibrations)
    table = Table(manifest.digest, gpu_layers, files.own(manifest.digest))
    before = table.tokens
    stopped = False
    with _bar(tokens, before, quiet) as advance:
        try:
            asyncio.run(
                _rounds(home, path, manifest, files, table, tokens, threads or default_threads(), gpu_layers, advance)
            )
        except KeyboardInterrupt:
            stopped = True
    return {
        "model": manifest.digest.hex(),
        "file": str(files.path(manifest.digest)),
        "tokens": table.tokens,
        "added": table.tokens - before,
        "stopped": stopped,
        "pairs": [_pair(one) for one in table.calibrations],
    }


async def _rounds(
    home: Home,
    path: Path,
    manifest: Manifest,
    files: CalibrationFiles,
    table: Table,
    tokens: int,
    threads: int,
    gpu_layers: int,
    advance: Advance,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        renderer = TemplateRenderer()
        stack.push_async_callback(renderer.close)
        tokenizers = Tokenizers(home.tokenizers, renderer)
        stack.push_async_callback(tokenizers.close)
        tokenizer = tokenizers.open_own(tokenizers.add_own(path))
        calibrator = Calibrator(path, manifest, tokenizer, threads=threads, gpu_layers=gpu_layers)
        size = max(_LEAST_ANSWERS, min(ANSWERS, tokens // _TOKENS_PER_ANSWER))
        rounds = await stack.enter_async_context(contextlib.aclosing(calibrator.rounds(secrets.randbits(64), size)))
        while table.tokens < tokens:
            # Both kinds of cache sell in turn: an even number of rounds serves all pairs alike.
            for found in [await anext(rounds), await anext(rounds)]:
                for one in found:
                    table.add(one)
            files.save(manifest.digest, table.calibrations)
            advance(table.tokens)


@contextlib.contextmanager
def _bar(tokens: int, done: int, quiet: bool) -> Iterator[Advance]:
    columns = (
        TextColumn("Calibrating"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("", total=tokens, completed=done)
        yield lambda now: progress.update(task, completed=now)


def _pair(one: Calibration) -> dict[str, Any]:
    return {
        "seller": one.seller.kv,
        "checker": one.checker.kv,
        "tokens": one.tokens,
        "complete": one.complete,
        "at_most": {f"over {edge:g}": float(bound) for edge, bound in zip(EDGES, one.bounds(_PLAIN)[1:], strict=False)},
    }


def show(result: dict[str, Any]) -> None:
    """What was found, for people."""
    columns = ["seller's cache", "checker's", "tokens", *(f"over {edge:g}" for edge in EDGES)]
    rows = [
        [
            pair["seller"],
            pair["checker"],
            f"{pair['tokens']:,}" + ("" if pair["complete"] else " (too few)"),
            *(f"{_PER_100_000 * bound:.0f}" for bound in pair["at_most"].values()),
        ]
        for pair in result["pairs"]
    ]
    title = "Margins of honest tokens: of 100,000 at most so many are over these logits, at temperature 1"
    print_table(title, columns, rows, "Nothing was calibrated yet.")
    typer.echo(f"Kept in {result['file']}; a running node uses it from its next audit on.")
    if result["stopped"]:
        typer.echo("Stopped before the end: call it again to go on.")
