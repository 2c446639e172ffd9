"""The servers that the engine is held against, each a process of its own on loopback."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from attrs import frozen

_START_S: Final = 120.0
_EMBEDDED: Final = """
import json, sys, xllamacpp
path, slots, context, threads, batch, port = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx, params.port = path, slots, slots * context, port
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.n_batch = params.n_ubatch = batch
server = xllamacpp.Server(params)
sys.stdin.read()
"""


class PeerFailed(Exception):
    """A server did not start; the message has its last words."""


@frozen
class Shape:
    """What a server is started with: as many slots and tokens for each as the engine."""

    model: Path
    slots: int
    context: int
    threads: int
    batch: int


@frozen
class Peer:
    """A running server. `ids` says whether it takes prompts as ids."""

    name: str
    url: str
    ids: bool

    async def answer(self, session: aiohttp.ClientSession, prompt: Sequence[int], most: int, **cutoffs: Any) -> int:
        """One answer; how many tokens it has."""
        body: dict[str, Any] = {"temperature": 1.0, "min_p": 0.0, **cutoffs}
        if self.ids:
            path, body = "/completion", {**body, "prompt": list(prompt), "n_predict": most, "ignore_eos": True}
            body |= {"cache_prompt": False, "samplers": ["top_k", "top_p", "temperature"], "repeat_penalty": 1.0}
        else:
            text = " ".join(f"w{token}" for token in prompt)
            path, body = "/v1/completions", {**body, "prompt": text, "max_tokens": most}
            body |= {"logit_bias": {"2": -100.0}, "repeat_penalty": 1.0}
        async with session.post(f"{self.url}{path}", json=body) as response:
            response.raise_for_status()
            found = await response.json()
        return int(found["tokens_predicted"] if self.ids else found["usage"]["completion_tokens"])


def has_xllamacpp() -> bool:
    """Whether PyPI's server can be used."""
    return importlib.util.find_spec("xllamacpp") is not None


@contextlib.contextmanager
def llama_server(shape: Shape, program: Path | None) -> Iterator[Peer]:
    """llama.cpp's own server: this program, or xllamacpp's. Raises PeerFailed."""
    port = _free_port()
    if program is None:
        known = [str(shape.model), shape.slots, shape.context, shape.threads, shape.batch, port]
        command = [sys.executable, "-c", _EMBEDDED, json.dumps(known)]
    else:
        settings = {
            "-m": shape.model,
            "-np": shape.slots,
            "-c": shape.slots * shape.context,
            "-t": shape.threads,
            "-b": shape.batch,
            "-ub": shape.batch,
            "--port": port,
            "--host": "127.0.0.1",
        }
        command = [str(program), *(str(part) for pair in settings.items() for part in pair), "--no-webui"]
    with _running(command, f"http://127.0.0.1:{port}", "/health") as url:
        yield Peer("llama-server" if program else "xllamacpp", url, ids=True)


@contextlib.contextmanager
def llama_cpp_server(shape: Shape, python: Path) -> Iterator[Peer]:
    """`python -m llama_cpp.server` of this interpreter, which needs its extras. Raises PeerFailed."""
    port = _free_port()
    settings = {
        "--model": shape.model,
        "--n_ctx": shape.context,
        "--n_threads": shape.threads,
        "--n_threads_batch": shape.threads,
        "--n_batch": shape.batch,
        "--host": "127.0.0.1",
        "--port": port,
    }
    command = [str(python), "-m", "llama_cpp.server", *(str(part) for pair in settings.items() for part in pair)]
    # Otherwise a request ends those before it.
    command += ["--interrupt_requests", "false"]
    with _running(command, f"http://127.0.0.1:{port}", "/v1/models") as url:
        yield Peer("llama_cpp.server", url, ids=False)


@contextlib.contextmanager
def _running(command: list[str], url: str, ready: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        try:
            _until_ready(process, url + ready, said)
            yield url
        finally:
            process.terminate()
            process.wait()


def _until_ready(process: subprocess.Popen[bytes], url: str, said: Any) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    said.seek(0)
    raise PeerFailed(said.read()[-500:].decode("utf-8", "replace").strip())


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
