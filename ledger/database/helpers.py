"""A long chain in a file of SQLite is verified on several cores.

Theory of operation. Helper processes verify the parts between waypoints, each those of its share one after another and
then some that others have not begun, while this one verifies what comes after the last waypoint. They only make it
faster: where anything does not fit, or a process ends, `NotAgreed` is raised, and whoever asked reads all of it in one
process, which says what is wrong and where.
"""

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Final, cast

from attrs import frozen

from ledger.stretch import Found

# Below so many entries, starting processes takes longer than they save.
WORTHWHILE: Final = 25_000
# Each takes some 30 MiB.
_MOST: Final = 16
# Where no part is finished for so long, a helper hangs: the longest take a minute.
_PATIENCE_S: Final = 300.0
_HELPER: Final = Path(__file__).with_name("helper.py")
Span = tuple[int, int]


class NotAgreed(Exception):
    """The helpers found something wrong, or could not work."""


@frozen
class _Helper:
    """One process."""

    process: "subprocess.Popen[bytes]"
    asks: IO[bytes]
    answers: IO[bytes]

    def verify(self, own: deque[Span], all_spans: Sequence[deque[Span]], found: dict[Span, Found]) -> None:
        """Take one part after another until there is none, and note what is found in each. Any error ends it."""
        try:
            while (span := _next(own, all_spans)) is not None:
                self.asks.write(b"%d %d\n" % span)
                self.asks.flush()
                found[span] = cast(Found, pickle.load(self.answers))
        except Exception:
            for spans in all_spans:  # nobody needs the others any more
                spans.clear()
            raise

    def end(self) -> None:
        self.process.kill()
        with suppress(OSError):  # what it was asked and did not read
            self.asks.close()
        self.answers.close()
        self.process.wait()


def _next(own: deque[Span], all_spans: Sequence[deque[Span]]) -> Span | None:
    """The next of one's own parts: its books are at hand then. After those, the last of whoever has most to do."""
    with suppress(IndexError):
        return own.popleft()
    with suppress(IndexError):
        return max(all_spans, key=len).pop()
    return None


class Helpers:
    """Processes that verify the parts between waypoints. Made by `helping`."""

    def __init__(self, working: Sequence["Future[None]"], found: Mapping[Span, Found]) -> None:
        self._working, self._found = working, found

    def found(self) -> list[Found]:
        """What was found in each part, from the first to the last, when all are verified. Raises NotAgreed."""
        verified = -1
        while wait(self._working, _PATIENCE_S).not_done:
            if len(self._found) == verified:
                raise NotAgreed("nothing goes on")
            verified = len(self._found)
        try:
            for working in self._working:
                working.result()
        except Exception as error:
            raise NotAgreed from error
        return [self._found[span] for span in sorted(self._found)]


@contextmanager
def helping(file: str, chain: int, chain_id: str, waypoints: Sequence[int], count: int) -> Iterator[Helpers]:
    """So many processes that verify a chain up to its last waypoint, from now on. Raises NotAgreed."""
    command = [sys.executable, "-I", str(_HELPER), json.dumps(sys.path), file, str(chain), chain_id]
    parts, found = list(pairwise([0, *waypoints])), dict[Span, Found]()
    spans = [deque(parts[len(parts) * n // count : len(parts) * (n + 1) // count]) for n in range(count)]
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(count, "ledger-helper"))
        helpers = []
        try:
            for _ in range(count):
                helpers.append(_start(command))
                stack.callback(helpers[-1].end)
            working = [
                threads.submit(helper.verify, own, spans, found) for helper, own in zip(helpers, spans, strict=True)
            ]
        except (OSError, RuntimeError) as error:  # there may be no more processes, or no more threads
            raise NotAgreed from error
        yield Helpers(working, found)


def _start(command: list[str]) -> _Helper:
    # A session of its own: Ctrl-C is for this process, and the helper ends when its input does.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    return _Helper(process, cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))


def how_many(waypoints: Sequence[int]) -> int:
    """How many processes verify a chain with these waypoints on this machine; 0 where they would not help."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(waypoints), _MOST) if cores > 1 and waypoints and waypoints[-1] >= WORTHWHILE else 0
