"""A chain of the tests, and whatever else they start, goes with whoever started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_STARTS_A_CHAIN = """
import sys
from tests.chain import running
with running() as chain:
    print(chain._process.pid, chain.folder, flush=True)
    sys.stdin.read()
"""


def test_a_chain_goes_with_a_process_that_is_killed() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _STARTS_A_CHAIN]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid, folder = starter.stdout.readline().split()
        os.kill(int(pid), 0)
        starter.send_signal(signal.SIGSTOP)  # it can do nothing about what comes
        starter.kill()
    deadline = time.monotonic() + 20
    while _is_there(int(pid)) or Path(folder).exists():
        assert time.monotonic() < deadline, "the chain is still there"
        time.sleep(0.02)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that nobody has waited for yet is only a name.
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.startswith("Z")
