"""Nodes as processes that start in a moment: forked from one that has loaded everything."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE


@contextlib.contextmanager
def fork_server(module: str, path: Path) -> Iterator[Path]:
    """A process of a module that calls `fork_nodes`: it forks a node for each connection to the socket at `path`."""
    command = (sys.executable, "-m", module, str(path))
    with subprocess.Popen(command, stdout=PIPE, stdin=DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield path
        finally:
            process.kill()


def fork_nodes(be_a_node: Callable[[socket.socket], None]) -> None:
    """Fork a node for each connection, until the parent process is gone."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: their connection tells
        gc.collect()
        gc.freeze()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    be_a_node(connection)
                except BaseException:  # noqa: BLE001 - it must not go on as another fork server
                    traceback.print_exc()
                os._exit(0)
            connection.close()
