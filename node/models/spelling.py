"""Ids as text and text as ids, for engines that take and give text alone.

Text that comes back is cut into ids again: the ids always spell exactly that text, and are those that the model chose
wherever the text comes a token at a time, since then its table has one entry.
"""

from collections.abc import Sequence
from functools import cached_property

from node.models.vocab import Words


class Misread(ValueError):
    """A prompt that, written as text, would be read as other control tokens: somebody's words would steer the model."""

    def __init__(self) -> None:
        super().__init__("a message spells a control token of the model, which cannot be told apart there as text")


class Spelling:
    """One vocabulary, both ways."""

    def __init__(self, words: Words) -> None:
        self._words = words

    @property
    def end(self) -> int | None:
        """The id that ends an answer; None where the vocabulary has none."""
        if self._words.eos in self._words.eog:
            return self._words.eos
        return min(self._words.eog, default=None)

    async def prompt(self, ids: Sequence[int]) -> str:
        """The text of a prompt, control tokens included; without the first token that servers add by themselves.

        Raises Misread, UnknownToken.
        """
        control = self._words.control | self._words.eog
        if self._words.add_bos and ids and ids[0] == self._words.bos:
            ids = ids[1:]
        spelled = (self._words.text(i).encode() if i in control else self._words.piece(i) for i in ids)
        text = b"".join(spelled).decode("utf-8", "replace")
        read = await self._words.ids([(text, True)]) if text else []
        if [i for i in read if i in control] != [i for i in ids if i in control]:
            raise Misread
        return text

    async def ids(self, text: str) -> tuple[int, ...]:
        """Ids that spell this part of an answer, none of them a control token. Raises UnicodeEncodeError."""
        raw = text.encode()
        known = self._by_bytes.get(raw)
        if known is not None:
            return (known,)
        ids = await self._words.ids([(text, False)])
        if b"".join(map(self._words.piece, ids)) == raw:
            return tuple(ids)
        return self._longest_first(raw)

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        hidden = self._words.control | self._words.eog
        table: dict[bytes, int] = {}
        for token in range(self._words.size):
            if token not in hidden and (piece := self._words.piece(token)):
                table.setdefault(piece, token)
        return table

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_bytes), default=0)

    def _longest_first(self, raw: bytes) -> tuple[int, ...]:
        """Where the tokenizer would add something of its own (a space before the first word), the table alone."""
        ids: list[int] = []
        start = 0
        while start < len(raw):
            for length in range(min(self._longest, len(raw) - start), 0, -1):
                token = self._by_bytes.get(raw[start : start + length])
                if token is not None:
                    ids.append(token)
                    start += length
                    break
            else:
                start += 1  # the vocabulary has nothing for this byte: it cannot have been the model's
        return tuple(ids)
