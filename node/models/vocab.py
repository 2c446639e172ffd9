"""Vocabularies: text to ids and ids to bytes, by llama.cpp."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from node.models.llama import Handle, library, load


class UnknownToken(ValueError):
    """An id outside the vocabulary."""

    def __init__(self, token: int, size: int) -> None:
        super().__init__(f"token id {token} is outside the vocabulary of {size}; is this the right tokenizer?")
        self.token, self.size = token, size


class Words(Protocol):
    """What a tokenizer needs of a vocabulary, wherever llama.cpp reads its file."""

    @property
    def size(self) -> int:
        """How many ids there are."""
        ...

    @property
    def eog(self) -> frozenset[int]:
        """The ids that end a generation."""
        ...

    @property
    def control(self) -> frozenset[int]:
        """The ids that steer the model (ends of turns, roles) and stand for no text."""
        ...

    @property
    def bos(self) -> int:
        """The id that begins a sequence, -1 for none."""
        ...

    @property
    def eos(self) -> int:
        """The id that ends a sequence, -1 for none."""
        ...

    @property
    def add_bos(self) -> bool:
        """Whether the model was trained with `bos` before every sequence."""
        ...

    @property
    def add_eos(self) -> bool:
        """Whether the model was trained with `eos` after every sequence."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the file, if there is one."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for control tokens. Raises UnknownToken."""
        ...

    def text(self, token: int) -> str:
        """How a token is written in templates, control tokens too; "" for id -1. Raises UnknownToken."""
        ...

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UnknownToken at the first id that the vocabulary does not have."""
        ...

    async def ids(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """The ids of texts one after another, each with whether the text of a control token becomes that token."""
        ...


def open_vocab(path: Path) -> "Vocab":
    """Load the vocabulary of a model or tokenizer file, without weights. Raises BadModelFile, OSError."""
    return Vocab(load(path, vocab_only=True))


class Vocab:
    """Text to ids and ids to bytes, of one vocabulary. Safe to use from several threads."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        with self._use() as vocab:
            self.size: int = library().llama_vocab_n_tokens(vocab)
        self._pieces: dict[int, bytes] = {}

    @contextmanager
    def _use(self) -> Iterator[Any]:
        with self._handle.use() as model:
            yield library().llama_model_get_vocab(model)

    def tokenize(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """Ids of `text`; `parse_special` lets the text of a control token become that token."""
        raw = text.encode("utf-8", "replace")
        with self._use() as vocab:
            room = len(raw) + 8
            ids = (ctypes.c_int32 * room)()
            count = library().llama_tokenize(vocab, raw, len(raw), ids, room, add_special, parse_special)
            if count < 0:
                ids = (ctypes.c_int32 * -count)()
                count = library().llama_tokenize(vocab, raw, len(raw), ids, -count, add_special, parse_special)
        return ids[:count]

    async def ids(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """See `Words.ids`."""
        return [token for text, special in parts for token in self.tokenize(text, parse_special=special)]

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for control tokens. Raises UnknownToken."""
        known = self._pieces.get(token)
        if known is None:
            self.check([token])
            known = self._pieces[token] = self._render(token, special=False)
        return known

    def text(self, token: int) -> str:
        """How a token is written in templates, control tokens too; "" for id -1. Raises UnknownToken."""
        if token < 0:
            return ""
        self.check([token])
        return self._render(token, special=True).decode("utf-8", "replace")

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UnknownToken at the first id that the vocabulary does not have."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise UnknownToken(token, self.size)

    def _render(self, token: int, *, special: bool) -> bytes:
        with self._use() as vocab:
            buffer = ctypes.create_string_buffer(64)
            count = library().llama_token_to_piece(vocab, token, buffer, 64, 0, special)
            if count < 0:
                buffer = ctypes.create_string_buffer(-count)
                count = library().llama_token_to_piece(vocab, token, buffer, -count, 0, special)
        return buffer.raw[:count]

    @cached_property
    def eog(self) -> frozenset[int]:
        """The ids that end a generation."""
        ends = library().llama_vocab_is_eog
        with self._use() as vocab:
            return frozenset(token for token in range(self.size) if ends(vocab, token))

    @cached_property
    def control(self) -> frozenset[int]:
        """The ids that steer the model (ends of turns, roles) and stand for no text."""
        controls = library().llama_vocab_is_control
        with self._use() as vocab:
            return frozenset(token for token in range(self.size) if controls(vocab, token))

    @property
    def takes_any_text(self) -> bool:
        """Whether llama.cpp has an id for every byte, so that no text makes it give up (and the process with it).

        So are byte-level BPE, and SentencePiece with all its byte tokens; of other kinds it is not known.
        """
        llama = library()
        with self._use() as vocab:
            match llama.llama_vocab_type(vocab):
                case llama.LLAMA_VOCAB_TYPE_BPE:
                    return True
                case llama.LLAMA_VOCAB_TYPE_SPM:
                    spelled = {llama.llama_vocab_get_text(vocab, token) for token in range(self.size)}
                    return all(b"<0x%02X>" % byte in spelled for byte in range(256))
                case _:
                    return False

    @property
    def bos(self) -> int:
        """The id that begins a sequence, -1 for none."""
        with self._use() as vocab:
            return int(library().llama_vocab_bos(vocab))

    @property
    def eos(self) -> int:
        """The id that ends a sequence, -1 for none."""
        with self._use() as vocab:
            return int(library().llama_vocab_eos(vocab))

    @property
    def add_bos(self) -> bool:
        """Whether the model was trained with `bos` before every sequence."""
        with self._use() as vocab:
            return bool(library().llama_vocab_get_add_bos(vocab))

    @property
    def add_eos(self) -> bool:
        """Whether the model was trained with `eos` after every sequence."""
        with self._use() as vocab:
            return bool(library().llama_vocab_get_add_eos(vocab))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in the file, if there is one."""
        with self._handle.use() as model:
            raw: bytes | None = library().llama_model_chat_template(model, None)
        return None if raw is None else raw.decode("utf-8", "replace")

    def close(self) -> None:
        """Free the memory; again does nothing."""
        self._handle.close()
