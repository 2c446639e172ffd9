"""The tokenizers a node has: its own models' and those fetched from peers, as files named by digest.

A file from a peer may be well-formed and still make llama.cpp abort the whole process. So only a process of its own,
with limits, ever loads it (`node.models.isolated`), and it is stored only if that process survives its trial.
"""

import asyncio
import os
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path
from typing import Final

from node.models.isolated import IsolatedVocab
from node.models.manifest import tokenizer_file
from node.models.template import TemplateRenderer
from node.models.tokenizer import Tokenizer, check_tokenizer
from node.models.vocab import Vocab, open_vocab

# So many processes of strangers' tokenizers are kept; another one is started when it is needed.
_WORKERS: Final = 4


class NoTokenizer(LookupError):
    """No tokenizer of this digest is here."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(f"the tokenizer {digest.hex()[:16]}… is not here; fetch it from a peer first")
        self.digest = digest


class Tokenizers:
    """A folder of tokenizer files, opened once each."""

    def __init__(self, folder: Path, renderer: TemplateRenderer) -> None:
        self._folder, self._renderer = folder, renderer
        self._own: dict[bytes, Vocab] = {}
        self._strange: OrderedDict[bytes, IsolatedVocab] = OrderedDict()
        self._open: dict[bytes, Tokenizer] = {}
        self._checked: dict[bytes, bytes] = {}
        self._trusted: set[bytes] = set()
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
        self._trusted.add(digest)
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
                trial = await IsolatedVocab.open(untried)
                await trial.close()
                untried.replace(self._path(digest))
            finally:
                untried.unlink(missing_ok=True)

    async def open(self, digest: bytes) -> Tokenizer:
        """The tokenizer, loaded at its first use: one's own here, a stranger's in its own process.

        Raises NoTokenizer, TokenizerMismatch, BadModelFile.
        """
        if digest in self._trusted:
            return self.open_own(digest)
        async with self._trying:
            if digest not in self._open:
                self.raw(digest)
                self._strange[digest] = vocab = await IsolatedVocab.open(self._path(digest))
                self._open[digest] = Tokenizer(vocab, digest, self._renderer)
            if digest in self._strange:
                self._strange.move_to_end(digest)
            for idle in list(self._strange)[:-_WORKERS]:
                await self._strange[idle].close()
        return self._open[digest]

    def open_own(self, digest: bytes) -> Tokenizer:
        """The tokenizer of one's own model, after `add_own`, loaded at its first use.

        Raises NoTokenizer, TokenizerMismatch, BadModelFile.
        """
        if digest not in self._trusted:
            raise NoTokenizer(digest)
        if digest not in self._own:
            self.raw(digest)
            self._own[digest] = open_vocab(self._path(digest))
            self._open[digest] = Tokenizer(self._own[digest], digest, self._renderer)
        return self._open[digest]

    async def close(self) -> None:
        """Free the memory; again does nothing. The renderer belongs to who gave it."""
        for vocab in self._own.values():
            vocab.close()
        for stranger in self._strange.values():
            await stranger.close()
        for opened in (self._own, self._strange, self._open):
            opened.clear()

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}.gguf"

    def _write(self, raw: bytes, path: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(raw)
        partial.replace(path)
