"""The tokenizers a node has: its own models' and those fetched from peers, as files named by digest.

A file from a peer may be well-formed and still make llama.cpp abort the whole process. So it is tried once in
a process of its own, with limits, and is stored only if that process ends well.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL
from hashlib import sha256
from pathlib import Path
from typing import Final

from node.models.gguf import BadModelFile
from node.models.manifest import tokenizer_file
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer, check_tokenizer
from node.models.vocab import open_vocab

_PROBE: Final = Path(__file__).with_name("tokenizer_probe.py")
_PROBE_TIMEOUT: Final = 60.0  # seconds; the largest vocabularies take one


class DangerousTokenizer(BadModelFile):
    """A tokenizer that llama.cpp did not survive, or not in time."""

    def __init__(self, path: str, ended: str) -> None:
        super().__init__(path, f"loading it failed ({ended})", "Fetch the tokenizer from another peer.")
        self.ended = ended


class NoTokenizer(LookupError):
    """No tokenizer of this digest is here."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(f"the tokenizer {digest.hex()[:16]}… is not here; fetch it from a peer first")
        self.digest = digest


class Tokenizers:
    """A folder of tokenizer files, opened once each."""

    def __init__(self, folder: Path, renderer: TemplateRenderer) -> None:
        self._folder, self._renderer = folder, renderer
        self._open: dict[bytes, Tokenizer] = {}
        self._checked: dict[bytes, bytes] = {}
        self._trying = asyncio.Lock()

    def has(self, digest: bytes) -> bool:
        """Whether a tokenizer of this digest is here."""
        return self._path(digest).exists()

    def raw(self, digest: bytes) -> bytes:
        """The file's bytes, checked, as peers fetch them. Raises NoTokenizer, TokenizerMismatch,
        BadModelFile.
        """
        if digest not in self._checked:
            try:
                raw = self._path(digest).read_bytes()
            except FileNotFoundError:
                raise NoTokenizer(digest) from None
            check_tokenizer(raw, digest)
            self._checked[digest] = raw
        return self._checked[digest]

    def add_own(self, model: Path) -> bytes:
        """Keep the tokenizer of one's own model file; its digest. Raises BadModelFile, OSError."""
        raw = tokenizer_file(model)
        digest = sha256(raw).digest()
        self._write(raw, self._path(digest))
        return digest

    async def add(self, raw: bytes, digest: bytes) -> None:
        """Keep a tokenizer from a peer, if it is what it should be and does no harm.

        Raises TokenizerMismatch, BadModelFile, OSError.
        """
        check_tokenizer(raw, digest)
        untried = self._path(digest).with_suffix(f".untried.{os.getpid()}")
        async with self._trying:
            try:
                self._write(raw, untried)
                await _probe(untried)
                untried.replace(self._path(digest))
            finally:
                untried.unlink(missing_ok=True)

    def open(self, digest: bytes) -> Tokenizer:
        """The tokenizer, loaded at its first use. Raises NoTokenizer, TokenizerMismatch, BadModelFile."""
        if digest not in self._open:
            self.raw(digest)
            self._open[digest] = Tokenizer(open_vocab(self._path(digest)), digest, self._renderer)
        return self._open[digest]

    def close(self) -> None:
        """Free the memory; again does nothing. The renderer belongs to who gave it."""
        for tokenizer in self._open.values():
            tokenizer.close()
        self._open.clear()

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.gguf"

    def _write(self, raw: bytes, path: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(raw)
        partial.replace(path)


async def _probe(path: Path) -> None:
    # -I and its own sys.path: the probe imports what this process would, wherever it was started.
    command = (sys.executable, "-I", str(_PROBE), json.dumps(sys.path), str(path))
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT):
            code = await process.wait()
    except TimeoutError:
        raise DangerousTokenizer(str(path), f"not within {_PROBE_TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise DangerousTokenizer(str(path), f"code {code}")
