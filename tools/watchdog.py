"""What a process has started goes when the process goes, also when it is killed and can do nothing any more."""

import subprocess
from pathlib import Path
from typing import Final

# The end of its input is the end of whoever holds the other side of the pipe.
_SCRIPT: Final = 'cat > /dev/null; kill -9 "$1" 2> /dev/null; rm -rf "$2"'


class Watchdog:
    """Kills a process and removes its folder once this process is gone; `close` sends it away before either ends."""

    def __init__(self, pid: int, folder: Path) -> None:
        command = ["sh", "-c", _SCRIPT, "watchdog", str(pid), str(folder)]
        # In a session of its own: what ends a whole group of processes at once does not end it.
        self._process: Final = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """It does nothing any more."""
        self._process.kill()
        self._process.communicate()
