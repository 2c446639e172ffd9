"""Run the commands of a set-up so that they show that they move, stop when they must, and do not meet."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TAIL = 65_536  # bytes of a log that are looked at: verbose compilers print lines of several thousand


class SetUpError(Exception):
    """Why the environment could not be made, and what the user can do about it."""


def stage(log: str) -> str:
    """How far a command is, read off the end of its log: cmake's count of steps, or what pip does last."""
    if steps := re.findall(r"^\s*\[\s*(\d+/\d+|\d+%)\]", log, re.MULTILINE):
        return f"[{steps[-1]}]"
    if acts := re.findall(r"^\s*((?:Collecting|Downloading|Installing) [\w.-]+)", log, re.MULTILINE):
        return str(acts[-1])
    return ""


def tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def watched(title: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command with its output in a log; say its title, the time it has taken and its stage, on standard error.

    SetUpError with the end of the log if it fails.
    """
    terminal = sys.stderr.isatty()
    print(title, end="" if terminal else "\n", file=sys.stderr, flush=True)
    started = time.monotonic()
    with log.open("wb") as output:
        # A session of its own, so that stopping it stops the compilers that it started.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5 if terminal else 15)
            seconds = int(time.monotonic() - started)
            moved = f"{seconds // 60}:{seconds % 60:02} {stage(tail(log))}"
            if terminal:
                # Cut to the width: a line that wraps cannot be written over, and would scroll instead.
                line = f"{title}  {moved}"[: shutil.get_terminal_size().columns - 1]
                print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            elif process.returncode is None:
                print(f"  {moved}", file=sys.stderr, flush=True)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    finally:
        if terminal:
            print(file=sys.stderr)
    if process.returncode:
        last = "\n".join(f"  {line[:200]}" for line in tail(log).splitlines()[-20:])
        raise SetUpError(f"{title}: failed ({process.returncode}). The end of {log}:\n{last}")


@contextlib.contextmanager
def alone(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock on a file, until this process ends at the latest; say `waiting` if another has it."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
