"""A long chain in a file of SQLite is checked on several cores.

Theory of operation. Helper processes read and check stretches of the chain, each by turns, while this one takes what
they found in order and moves the books. They only make it faster: where anything does not fit, or a process ends,
`NotAgreed` is raised, and whoever asked reads all of it in one process, which says what is wrong and where.
"""

import json
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import IO, Final, cast

from attrs import frozen

from ledger.journal import BrokenChain, Replay
from ledger.retention import Gaps
from ledger.stretch import Stretch

# So many entries are checked at a time: what is found in them fits a pipe, so that a helper need not wait.
_ENTRIES: Final = 500
# So many stretches each helper is asked for ahead.
_AHEAD: Final = 2
# Below so many entries, starting processes takes longer than they save.
WORTHWHILE: Final = 25_000
# One process moves the books at about the speed at which one checks; with two there is always something to move.
_MOST: Final = 2
_HELPER: Final = Path(__file__).with_name("helper.py")


class NotAgreed(Exception):
    """The helpers found something wrong, or could not work."""


@frozen
class _Helper:
    """One process."""

    process: "subprocess.Popen[bytes]"
    asks: IO[bytes]
    answers: IO[bytes]

    def ask(self, after: int, until: int) -> None:
        self.asks.write(b"%d %d\n" % (after, until))
        self.asks.flush()

    def end(self) -> None:
        self.process.kill()
        with suppress(OSError):  # what it was asked and did not read
            self.asks.close()
        self.answers.close()
        self.process.wait()


class Helpers:
    """Processes that check stretches of one chain. Made by `helping`."""

    def __init__(self, helpers: list[_Helper], last: int) -> None:
        self._helpers, self._last = helpers, last

    def read_on(self, replayed: Replay, gaps: Gaps, until: int) -> int:
        """Check what follows in the chain up to an entry, and its records; returns how many are stored.

        Raises NotAgreed.
        """
        told = 0
        try:
            for stretch in self._stretches(replayed.head.sequence, min(until, self._last)):
                replayed.pass_over(stretch.previous, stretch.head, stretch.moves)
                gaps.account_for(stretch.dropped)
                for digest, sequence in stretch.missing.items():
                    gaps.miss(sequence, digest)
                told += stretch.records
        except (BrokenChain, OSError, EOFError, pickle.UnpicklingError) as error:
            raise NotAgreed from error
        return told

    def _stretches(self, first: int, last: int) -> Iterator[Stretch]:
        cuts, turns = iter(range(first, last, _ENTRIES)), cycle(self._helpers)
        asked: deque[_Helper] = deque()

        def ask(stretches: int) -> None:
            for after in islice(cuts, stretches):
                helper = next(turns)
                helper.ask(after, min(after + _ENTRIES, last))
                asked.append(helper)

        ask(_AHEAD * len(self._helpers))
        while asked:
            yield cast(Stretch, pickle.load(asked.popleft().answers))
            ask(1)


@contextmanager
def helping(file: str, chain: int, last: int, count: int) -> Iterator[Helpers]:
    """So many processes for a chain that ends with the entry `last`. Raises NotAgreed."""
    command = [sys.executable, "-I", str(_HELPER), json.dumps(sys.path), file, str(chain)]
    with ExitStack() as stack:
        helpers = []
        try:
            for _ in range(count):
                helpers.append(_start(command))
                stack.callback(helpers[-1].end)
        except OSError as error:
            raise NotAgreed from error
        yield Helpers(helpers, last)


def _start(command: list[str]) -> _Helper:
    # A session of its own: Ctrl-C is for this process, and the helper ends when its input does.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    return _Helper(process, cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout))


def how_many(entries: int) -> int:
    """How many processes help to check so many entries on this machine; 0 where they would not help."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST) if cores > 1 and entries >= WORTHWHILE else 0
