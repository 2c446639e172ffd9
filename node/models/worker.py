"""A process that works for this one, for what is too dangerous to do here: strangers' templates and tokenizers.

It says one JSON frame when it is ready and answers each frame with one. It is started at first use, kept, killed when
it overstays, and started again when it is needed again. Callers take turns.
"""

import asyncio
import json
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from typing import Any


class WorkerFailed(Exception):
    """The process ended instead of answering."""


class NotStarted(WorkerFailed):
    """The process does not start, or not in time."""


class Worker:
    """One such process; `most` bounds its frames, in bytes, `start_timeout` is in seconds."""

    def __init__(self, command: Sequence[str], start_timeout: float, most: int) -> None:
        self._command, self._start_timeout, self._most = tuple(command), start_timeout, most
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self.greeting: dict[str, Any] = {}

    async def start(self) -> None:
        """Start it now, if it is not running; `greeting` is its first frame then. Raises NotStarted."""
        async with self._turn:
            await self._ready()

    async def ask(self, raw: bytes, patience_s: float) -> dict[str, Any]:
        """Its answer to one frame. Raises NotStarted, WorkerFailed, and TimeoutError after `patience_s` seconds."""
        async with self._turn:
            process = await self._ready()
            try:
                async with asyncio.timeout(patience_s):
                    return await self._exchange(process, raw)
            except TimeoutError:
                await self._kill()
                raise
            except (EOFError, OSError, ValueError):
                await self._kill()
                raise WorkerFailed("it ended its process") from None
            except BaseException:  # cancelled in between: the answer to come would be taken for the next one's
                await self._kill()
                raise

    async def close(self) -> None:
        """End it; again does nothing."""
        async with self._turn:
            await self._kill()

    async def _ready(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        await self._kill()
        # A session of its own: Ctrl-C is for the node, and the worker ends when its stdin does.
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        try:
            async with asyncio.timeout(self._start_timeout):
                self.greeting = await self._read(process)
        except (EOFError, OSError, ValueError):  # TimeoutError is an OSError
            await self._kill()
            raise NotStarted("its process does not start") from None
        except BaseException:
            await self._kill()
            raise
        return process

    async def _exchange(self, process: Process, raw: bytes) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(len(raw).to_bytes(4, "big") + raw)
        await process.stdin.drain()
        return await self._read(process)

    async def _read(self, process: Process) -> dict[str, Any]:
        assert process.stdout is not None
        length = int.from_bytes(await process.stdout.readexactly(4), "big")
        if length > self._most:
            raise EOFError(f"an answer of {length} bytes")
        answer = json.loads(await process.stdout.readexactly(length))
        if not isinstance(answer, dict):
            raise EOFError("an answer of another kind")
        return answer

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        await process.stdout.read()  # to the end, so that no open pipe is left behind
        await process.wait()
