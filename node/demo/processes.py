"""The demo's nodes as processes of their own: started, reached by their home folders, and stopped."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

from node.home import Home, Running

_STOP_S: Final = 15.0


class NodeDidNotStart(Exception):
    """A node of the demo ended before it was ready; the message is its last words."""


@frozen(eq=False)
class NodeProcess:
    """A node that runs."""

    name: str
    home: Home
    running: Running
    process: subprocess.Popen[str]


@contextlib.contextmanager
def start_node(name: str, folder: Path, arguments: list[str]) -> Iterator[NodeProcess]:
    """Run `python -m …` as a node in a folder until the context is left. Raises NodeDidNotStart."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        try:
            home = Home(folder)
            _wait_until_ready(name, process, log)
            yield NodeProcess(name, home, home.running(), process)
        finally:
            _stop(process)


def _wait_until_ready(name: str, process: "subprocess.Popen[str]", log: Path) -> None:
    """A ready node says so in one line of JSON; one that cannot start ends, and its output with it."""
    line = process.stdout.readline() if process.stdout else ""
    try:
        json.loads(line)
    except ValueError:
        _stop(process)
        words = log.read_text().strip().splitlines()
        raise NodeDidNotStart(f"{name} did not start: {words[-1] if words else 'it said nothing'}") from None


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
