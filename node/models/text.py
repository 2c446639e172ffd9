"""Ids to text while they come: whole characters only, control tokens unseen, stop strings found and held
back.

The result is a pure function of the ids and the stop strings, however they are grouped: seller and buyer run
it over the same ids and agree on the token that completed a stop string. Tokens after that one are not owed.
"""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Fed ids, gives text that is safe to show: no part of a character, no part of a stop string."""

    def __init__(
        self,
        piece: Callable[[int], bytes],
        invisible: frozenset[int] = frozenset(),
        stops: Sequence[str] = (),
    ) -> None:
        """`piece` gives a token's bytes; tokens of `invisible` stand for none. An empty stop string stops
        nothing.
        """
        self._piece, self._invisible = piece, invisible
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._decoded = 0
        self.tokens = 0
        self.shown = 0  # characters let go so far
        self.stopped_at: int | None = None

    @property
    def ends_at(self) -> int:
        """Where the text of the tokens so far ends, in characters, a character begun included."""
        return self._decoded + bool(self._decoder.getstate()[0])

    def shows(self, token: int) -> bool:
        """Whether a token stands for text."""
        return token not in self._invisible

    def resume(self, earlier: Sequence[int]) -> None:
        """Go on behind these ids, in which no stop string is complete: what comes may complete one that they begin,
        or a character. Their text is not given again, and they do not count. Looks at as many as matter, from the end.
        """
        enough = 4 * (1 + max(map(len, self._stops), default=0))  # bytes: no character has more than four
        pieces: list[bytes] = []
        for token in reversed(earlier):
            if token not in self._invisible:
                pieces.append(self._piece(token))
                enough -= len(pieces[-1])
                if enough <= 0:
                    break
        text = self._decoder.decode(b"".join(reversed(pieces)))
        self._hold(text)

    def feed(self, ids: Sequence[int]) -> str:
        """The text that these ids let go; nothing more after a stop string. Raises what `piece` raises."""
        shown = []
        for token in ids:
            if self.stopped_at is not None:
                break
            self.tokens += 1
            shown.append(self._take(b"" if token in self._invisible else self._piece(token)))
        return "".join(shown)

    def finish(self) -> str:
        """What was held back until now, when no more ids will come; a broken character becomes U+FFFD."""
        if self.stopped_at is not None:
            return ""
        last = self._decoder.decode(b"", final=True)
        rest, self._held = self._held + last, ""
        self.shown += len(rest)
        self._decoded += len(last)
        return rest

    def _take(self, piece: bytes) -> str:
        fresh = self._decoder.decode(piece)
        self._decoded += len(fresh)
        text = self._held + fresh
        starts = [text.find(stop) for stop in self._stops]
        found = [start for start in starts if start >= 0]
        if found:
            self.stopped_at, self._held = self.tokens, ""
            return self._let_go(text[: min(found)])
        return self._let_go(self._hold(text))

    def _hold(self, text: str) -> str:
        """Hold back the end of a text that may begin a stop string; the rest of it."""
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _let_go(self, text: str) -> str:
        self.shown += len(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
