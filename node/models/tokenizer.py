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
from node.models.grammar import Grammars
from node.models.template import Message, NotShown, TemplateError, TemplateRenderer, TextTooLong
from node.models.text import TextStream
from node.models.vocab import Words

# For models without a template of their own: plain, and without control tokens that they may not have.
PLAIN_TEMPLATE: Final = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_MAX_PLAIN: Final = 2**20  # characters of a text without a template
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

    def __init__(self, vocab: Words, digest: bytes, renderer: TemplateRenderer) -> None:
        self.digest = digest
        self._vocab, self._renderer = vocab, renderer

    @property
    def words(self) -> Words:
        """The vocabulary."""
        return self._vocab

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._vocab.size

    @property
    def eog(self) -> frozenset[int]:
        """The ids that end an answer."""
        return self._vocab.eog

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles grammars for this vocabulary."""
        return Grammars(self._vocab)

    @property
    def template(self) -> str:
        """The chat template."""
        return self._vocab.chat_template or PLAIN_TEMPLATE

    async def encode(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> tuple[int, ...]:
        """The prompt of a conversation, up to where the answer begins. Raises TemplateError (NotShown where tools or
        a message's `name` would be left out), and BadModelFile where a stranger's file does not survive the text.
        """
        text = await self._rendered(messages, tools)
        if tools and await self._reads(text, messages, None):
            raise NotShown("tools")
        if any("name" in message and message.get("role") != "tool" for message in messages):
            nameless = [{key: message[key] for key in message if key != "name"} for message in messages]
            if await self._reads(text, nameless, tools):
                raise NotShown("names")
        return self._begun(await self._vocab.ids(self._parts(text)))

    async def plain(self, text: str, *, whole: bool = False) -> tuple[int, ...]:
        """The ids of a text without a template, all of it plain; `whole` for one that nothing will follow.

        Raises TextTooLong, BadModelFile.
        """
        if len(text) > _MAX_PLAIN:
            raise TextTooLong(len(text), _MAX_PLAIN)
        ids = self._begun(await self._vocab.ids([(text, False)]))
        return (*ids, self._vocab.eos) if whole and self._vocab.add_eos and ids[-1:] != (self._vocab.eos,) else ids

    def spell(self, token: int) -> bytes:
        """A token's bytes, those of a control token's name for a control token. Raises UnknownToken."""
        return self._vocab.text(token).encode() if token in self._invisible else self._vocab.piece(token)

    async def _rendered(self, messages: Sequence[Message], tools: Sequence[Message] | None) -> str:
        return await self._renderer.render(
            self.template,
            self._marked(messages),
            self._marked(tools),
            bos_token=self._vocab.text(self._vocab.bos),
            eos_token=self._vocab.text(self._vocab.eos),
        )

    async def _reads(self, text: str, messages: Sequence[Message], tools: Sequence[Message] | None) -> bool:
        """Whether a conversation that says less reads the same."""
        try:
            return await self._rendered(messages, tools) == text
        except TemplateError:
            return False

    def _begun(self, ids: list[int]) -> tuple[int, ...]:
        if self._vocab.add_bos and ids[:1] != [self._vocab.bos]:
            ids.insert(0, self._vocab.bos)
        return tuple(ids)

    def stream(self, stops: Sequence[str] = (), earlier: Sequence[int] = ()) -> TextStream:
        """A new rendering of an answer's ids; of a continued answer's, behind the earlier ones."""
        stream = TextStream(self._vocab.piece, self._invisible, stops)
        stream.resume(earlier)
        return stream

    def text(self, ids: Sequence[int]) -> str:
        """The whole text of an answer. Raises UnknownToken."""
        stream = self.stream()
        return stream.feed(ids) + stream.finish()

    def check(self, ids: Sequence[int]) -> None:
        """Raises UnknownToken at the first id that is not in the vocabulary."""
        self._vocab.check(ids)

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

    def _parts(self, text: str) -> list[tuple[str, bool]]:
        """The template's text, where control tokens count, and the marks in it, which are plain text."""
        parts: list[tuple[str, bool]] = []
        for index, part in enumerate(_MARK.split(text)):
            if index % 2 == 0:
                parts += [(part, True)] if part else []
            elif int(part) in self._vocab.control:
                parts.append((self._vocab.text(int(part)), False))
        return parts
