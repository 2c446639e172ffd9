"""`idlemesh calibrate`: what honest engines show on one model here, so that audits can tell fraud from it."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import typer
from attrs import frozen

from ledger.records import Sampling
from node.cli.options import HomeOption, JsonOption
from node.cli.output import Advance, CommandFailed, print_json, print_table, progress
from node.config import BadConfig, RemoteSettings, load_config
from node.engine.calibration import ANSWERS, CalibrationFiles, Calibrator, Table
from node.engine.hardware import default_threads
from node.engine.recordings import Recorder, Recording, open_recording
from node.home import Home, open_home
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

Bar = contextlib.AbstractContextManager[Advance]


def calibrate(
    model: Annotated[Path, typer.Argument(help="A GGUF file.")],
    home: HomeOption = None,
    tokens: Annotated[int, typer.Option(help="So many honest tokens in all, earlier calls included.", min=1)] = (
        DEFAULT_TOKENS
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
        result = record_answers(place, model, tokens, threads, gpu_layers, record, quiet=as_json)
        print_json(result) if as_json else show_recording(result)
    else:
        if answers is not None:
            result = check(place, model, threads, gpu_layers, answers, quiet=as_json)
        else:
            result = measure(place, model, tokens, threads, gpu_layers, remote, quiet=as_json)
        print_json(result) if as_json else show(result)
    if result["stopped"]:
        raise typer.Exit(130)


def measure(
    home: Home, path: Path, tokens: int, threads: int | None, gpu_layers: int, remote: str | None, *, quiet: bool
) -> dict[str, Any]:
    """Calibrate until a model has so many honest tokens here, those from before included, or until Ctrl-C.

    `remote`: the name of one in config.toml that runs this model, to be calibrated against this machine.
    After each round all is saved. Raises BadConfig, BadModelFile, BadCalibration, EngineError, TooSmall, HomeError.
    """
    there = _remote(home, remote) if remote is not None else None
    work = _work(home, path, tokens, threads, gpu_layers, there)
    files = CalibrationFiles(home.calibrations)
    table = Table(work.model, files.own(work.model))
    before = sum(one.tokens for one in table.calibrations)
    stopped = _until_stopped(_rounds(work, files, table, _bar(tokens, quiet)))
    return _result(files, table, before, stopped)


def record_answers(
    home: Home, path: Path, tokens: int, threads: int | None, gpu_layers: int, out: Path, *, quiet: bool
) -> dict[str, Any]:
    """Write so many tokens of honest answers to a file, or as many as there are at Ctrl-C, for another machine.

    Raises BadModelFile, EngineError, TooSmall, HomeError, CommandFailed.
    """
    work = _work(home, path, tokens, threads, gpu_layers)
    made: list[int] = []  # tokens of each answer
    try:
        stopped = _until_stopped(_record(work, out, made, _bar(tokens, quiet)))
    except OSError as error:
        raise CommandFailed(f"{out} cannot be written: {error.strerror}") from None
    return {
        "model": work.model.hex(),
        "file": str(out),
        "answers": len(made),
        "tokens": sum(made),
        "stopped": stopped,
    }


def check(
    home: Home, path: Path, threads: int | None, gpu_layers: int, recording: Path, *, quiet: bool
) -> dict[str, Any]:
    """Calibrate this machine's engines as checkers of those that made a recording; what was known of them is replaced.

    Raises BadRecording, BadModelFile, BadCalibration, EngineError, HomeError.
    """
    work = _work(home, path, 0, threads, gpu_layers)
    recorded = open_recording(recording, work.model)
    files = CalibrationFiles(home.calibrations)
    known = [one for one in files.own(work.model) if one.seller not in recorded.sellers]
    table = Table(work.model, known)
    before = sum(one.tokens for one in known)
    bar = _bar(recorded.answers, quiet, "answers")
    stopped = _until_stopped(_check(work, files, table, recorded, bar))
    return _result(files, table, before, stopped)


def _result(files: CalibrationFiles, table: Table, before: int, stopped: bool) -> dict[str, Any]:
    after = sum(one.tokens for one in table.calibrations)
    return {
        "model": table.model.hex(),
        "file": str(files.path(table.model)),
        "tokens": after,
        "added": after - before,
        "stopped": stopped,
        "pairs": [_pair(one) for one in table.calibrations],
    }


def _until_stopped(work: Coroutine[Any, Any, None]) -> bool:
    """Do it; whether Ctrl-C ended it."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        return True
    return False


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
    tokens: int
    threads: int
    gpu_layers: int
    remote: RemoteSettings | None

    @property
    def model(self) -> bytes:
        """The model's digest."""
        return self.manifest.digest

    @property
    def size(self) -> int:
        """Answers of a round."""
        return max(_LEAST_ANSWERS, min(ANSWERS, self.tokens // _TOKENS_PER_ANSWER))

    @contextlib.asynccontextmanager
    async def calibrator(self) -> AsyncIterator[Calibrator]:
        """One for this model."""
        async with contextlib.AsyncExitStack() as stack:
            renderer = TemplateRenderer()
            stack.push_async_callback(renderer.close)
            tokenizers = Tokenizers(self.home.tokenizers, renderer)
            stack.push_async_callback(tokenizers.close)
            tokenizer = tokenizers.open_own(tokenizers.add_own(self.path))
            remote = None
            if self.remote is not None:
                session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
                remote = remote_engine(self.remote, session, tokenizer, self.manifest)
            yield Calibrator(
                self.path, self.manifest, tokenizer, threads=self.threads, gpu_layers=self.gpu_layers, remote=remote
            )


def _work(
    home: Home,
    path: Path,
    tokens: int,
    threads: int | None,
    gpu_layers: int,
    remote: RemoteSettings | None = None,
) -> _Work:
    home.make()
    try:
        manifest = manifest_of(path)
    except OSError as error:
        raise BadModelFile(str(path), f"it cannot be read: {error.strerror}", "Name a .gguf model file.") from None
    return _Work(home, path, manifest, tokens, threads or default_threads(), gpu_layers, remote)


async def _rounds(work: _Work, files: CalibrationFiles, table: Table, bar: Bar) -> None:
    async with work.calibrator() as calibrator:
        rounds, pairs = calibrator.rounds(secrets.randbits(64), work.size), calibrator.pairs
        with bar as advance:
            async with contextlib.aclosing(rounds):
                while table.tokens(pairs) < work.tokens:
                    advance(table.tokens(pairs))
                    # Both kinds of cache sell in turn: an even number of rounds serves all pairs alike.
                    for _ in range(2):
                        for one in await anext(rounds):
                            table.add(one)
                        files.save(work.model, table.calibrations)
            advance(table.tokens(pairs))


async def _record(work: _Work, out: Path, made: list[int], bar: Bar) -> None:
    async with work.calibrator() as calibrator:
        seed, numbers = secrets.randbits(64), count()
        with Recorder(out, work.model, calibrator.engines) as recorder, bar as advance:
            while sum(made) < work.tokens:
                for number in islice(numbers, 2):
                    answered = await calibrator.answer(seed, number, work.size)
                    recorder.add(answered)
                    made += [len(one.answer) for one in answered]
                    advance(sum(made))


async def _check(work: _Work, files: CalibrationFiles, table: Table, recording: Recording, bar: Bar) -> None:
    async with work.calibrator() as calibrator:
        seed, answered, done = secrets.randbits(64), recording.read(), 0
        with bar as advance:
            for number in count():
                made = list(islice(answered, ANSWERS))
                if not made:
                    return
                for one in await calibrator.check(seed, number, made):
                    table.add(one)
                files.save(work.model, table.calibrations)
                done += len(made)
                advance(done)


@contextlib.contextmanager
def _bar(whole: int, quiet: bool, of: str = "tokens") -> Iterator[Advance]:
    with progress("Calibrating", of, quiet) as begin:
        yield begin(whole)


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


def show_recording(result: dict[str, Any]) -> None:
    """What was recorded, for people."""
    typer.echo(f"{result['answers']:,} honest answers of {result['tokens']:,} tokens are in {result['file']}.")
    typer.echo("On the machine that checks this one's answers: idlemesh calibrate MODEL --answers FILE")
