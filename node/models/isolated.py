"""A stranger's vocabulary: its table here, llama.cpp with its file in a process of its own."""

import base64
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from node.models.gguf import BadModelFile
from node.models.vocab import UnknownToken
from node.models.worker import NotStarted, Worker, WorkerFailed

_WORKER: Final = Path(__file__).with_name("tokenizer_worker.py")
_START_TIMEOUT: Final = 60.0  # seconds; the largest vocabularies take one
_TEXT_TIMEOUT: Final = 10.0
_MAX_FRAME: Final = 64 * 2**20  # bytes; a vocabulary of 250,000 has some five million
_MAX_IDS: Final = 2**20


class DangerousTokenizer(BadModelFile):
    """A tokenizer that llama.cpp did not survive, or not in time."""

    def __init__(self, path: str, ended: str) -> None:
        super().__init__(path, f"using it failed ({ended})", "Fetch the tokenizer from another peer.")
        self.ended = ended


class IsolatedVocab:
    """A `Words` whose file only a worker process touches. Made by `open`."""

    def __init__(self, path: Path, worker: Worker) -> None:
        self._path, self._worker = path, worker
        table = worker.greeting
        try:
            self._pieces: Final = [base64.b64decode(piece, validate=True) for piece in table["pieces"]]
            self._texts: Final = {int(token): str(text) for token, text in table["texts"].items()}
            self.control: Final = self._ids(table["control"])
            self.eog: Final = self._ids(table["eog"])
            self.bos, self.eos = (self._id_or_none(table[name]) for name in ("bos", "eos"))
            self.add_bos, self.add_eos = table["add_bos"] is True, table["add_eos"] is True
            template = table["chat_template"]
            self.chat_template: str | None = None if template is None else str(template)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DangerousTokenizer(str(path), f"its table makes no sense: {type(error).__name__}") from None

    @classmethod
    async def open(cls, path: Path) -> "IsolatedVocab":
        """Start the process that loads a file. Raises BadModelFile."""
        command = (sys.executable, "-I", str(_WORKER), json.dumps(sys.path), str(path))
        worker = Worker(command, _START_TIMEOUT, _MAX_FRAME)
        try:
            await worker.start()
            if "unfit" in worker.greeting:
                raise DangerousTokenizer(str(path), str(worker.greeting["unfit"])[:200])
            return cls(path, worker)
        except NotStarted:
            raise DangerousTokenizer(str(path), "its process ended") from None
        except BaseException:
            await worker.close()
            raise

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self._pieces)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for control tokens. Raises UnknownToken."""
        self.check([token])
        return self._pieces[token]

    def text(self, token: int) -> str:
        """How a token is written in templates, control tokens too; "" for id -1. Raises UnknownToken."""
        if token < 0:
            return ""
        known = self._texts.get(token)
        return self.piece(token).decode("utf-8", "replace") if known is None else known

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UnknownToken at the first id that the vocabulary does not have."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise UnknownToken(token, self.size)

    async def ids(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """See `Words.ids`. Raises BadModelFile where the worker does not survive the text."""
        try:
            answer = await self._worker.ask(json.dumps({"parts": list(parts)}).encode(), _TEXT_TIMEOUT)
        except (WorkerFailed, TimeoutError):
            raise DangerousTokenizer(str(self._path), "at a text") from None
        found = answer.get("ids")
        if not isinstance(found, list) or len(found) > _MAX_IDS or not self._known(found):
            raise DangerousTokenizer(str(self._path), "its answer makes no sense")
        return found

    async def close(self) -> None:
        """End the process; again does nothing, and the next text starts it again."""
        await self._worker.close()

    @cached_property
    def _range(self) -> range:
        return range(len(self._pieces))

    def _known(self, ids: Sequence[Any]) -> bool:
        return all(type(token) is int and token in self._range for token in ids)

    def _ids(self, listed: list[Any]) -> frozenset[int]:
        if not self._known(listed):
            raise ValueError("ids outside the vocabulary")
        return frozenset(listed)

    def _id_or_none(self, token: Any) -> int:
        if token != -1 and not self._known([token]):
            raise ValueError("an id outside the vocabulary")
        return int(token)
