"""A model's tokenizer: conversations to prompt ids, answer ids to text.

What users, tools and documents say must not be able to end a turn or speak as the system. Templates put
contents and control tokens into one text, so contents are marked before: each place where a content spells a
control token ("<|end|>") is replaced by U+FDD0, the token's id, U+FDD1 (noncharacters, taken out of what
users send), the template rendered, and each mark then tokenized as plain text. The model reads exactly what
the user wrote, in ordinary tokens, and only the template's own text makes control tokens. What remains: a
template that itself cuts or joins contents could still let a control token arise from their parts; and one
that measures their length measures the marks.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

from node.models.gguf import MalformedGguf, read_gguf
from node.models.template import Message, TemplateRenderer
from node.models.text import TextStream
from node.models.vocab import Vocab

# For models without a template of their own: plain, and without control tokens that they may not have.
PLAIN_TEMPLATE: Final = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_MARK: Final = re.compile("\ufdd0([0-9]{1,9})\ufdd1")
_RESERVED: Final = str.maketrans("", "", "\ufdd0\ufdd1")


class TokenizerMismatch(ValueError):
    """A tokenizer file that is not the one its digest names."""

    def __init__(self, expected: bytes, got: bytes) -> None:
        super().__init__(f"this tokenizer is {got.hex()[:16]}…, not {expected.hex()[:16]}…; fetch it from another peer")
        self.expected, self.got = expected, got


def check_tokenizer(raw: bytes, digest: bytes) -> None:
    """Check the bytes of a tokenizer file against its digest and form. Raises TokenizerMismatch,
    BadModelFile.
    """
    got = sha256(raw).digest()
    if got != digest:
        raise TokenizerMismatch(digest, got)
    gguf = read_gguf(raw)
    if gguf.tensors or len(gguf.raw) != len(raw):
        raise MalformedGguf(gguf.path, "more than a tokenizer is in it")


class Tokenizer:
    """One vocabulary with its chat template; `digest` is its name. Shares its renderer with others."""

    def __init__(self, vocab: Vocab, digest: bytes, renderer: TemplateRenderer) -> None:
        self.digest = digest
        self._vocab, self._renderer = vocab, renderer

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._vocab.size

    @property
    def eog(self) -> frozenset[int]:
        """The ids that end an answer."""
        return self._vocab.eog

    @property
    def template(self) -> str:
        """The chat template."""
        return self._vocab.chat_template or PLAIN_TEMPLATE

    async def encode(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> tuple[int, ...]:
        """The prompt of a conversation, up to where the answer begins. Raises TemplateError."""
        text = await self._renderer.render(
            self.template,
            self._marked(messages),
            self._marked(tools),
            bos_token=self._vocab.text(self._vocab.bos),
            eos_token=self._vocab.text(self._vocab.eos),
        )
        ids = self._ids_of(text)
        if self._vocab.add_bos and ids[:1] != [self._vocab.bos]:
            ids.insert(0, self._vocab.bos)
        return tuple(ids)

    def stream(self, stops: Sequence[str] = ()) -> TextStream:
        """A new rendering of an answer's ids."""
        return TextStream(self._vocab.piece, self._invisible, stops)

    def text(self, ids: Sequence[int]) -> str:
        """The whole text of an answer. Raises UnknownToken."""
        stream = self.stream()
        return stream.feed(ids) + stream.finish()

    def check(self, ids: Sequence[int]) -> None:
        """Raises UnknownToken at the first id that is not in the vocabulary."""
        self._vocab.check(ids)

    def close(self) -> None:
        """Free the memory; again does nothing."""
        self._vocab.close()

    @cached_property
    def _invisible(self) -> frozenset[int]:
        return self._vocab.control | self._vocab.eog

    @cached_property
    def _spelled(self) -> dict[str, int]:
        texts = {self._vocab.text(token): token for token in sorted(self._vocab.control, reverse=True)}
        return {text: token for text, token in texts.items() if text}

    @cached_property
    def _spellings(self) -> re.Pattern[str] | None:
        longest_first = sorted(self._spelled, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def _marked(self, content: Any) -> Any:
        """The same messages with every spelled control token as a mark."""
        match content:
            case str():
                return self._mark(content)
            case Mapping():
                return {self._mark(str(key)): self._marked(value) for key, value in content.items()}
            case list() | tuple():
                return [self._marked(item) for item in content]
            case _:
                return content

    def _mark(self, text: str) -> str:
        plain = text.translate(_RESERVED)
        if self._spellings is None:
            return plain
        return self._spellings.sub(lambda found: f"\ufdd0{self._spelled[found[0]]}\ufdd1", plain)

    def _ids_of(self, text: str) -> list[int]:
        """Tokenize the template's text with control tokens, the marks in it as plain text."""
        ids: list[int] = []
        for index, part in enumerate(_MARK.split(text)):
            if index % 2 == 0:
                ids += self._vocab.tokenize(part, parse_special=True) if part else []
            elif int(part) in self._vocab.control:
                ids += self._vocab.tokenize(self._vocab.text(int(part)), parse_special=False)
        return ids
