"""The one door to llguidance: which tokens a grammar allows next.

A grammar comes from whoever asks, so from a hostile buyer too: `node.models.gbnf` bounds and rewrites it, llguidance
works within LIMITS, and neither repeats its text in errors. What ends an answer is decided here, not there: the
end-of-generation ids are allowed where the grammar is complete; other control tokens never are.
"""

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Set
from functools import cached_property
from importlib.metadata import version
from typing import Final, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from node.models.gbnf import MAX_CHARACTERS, BadGrammar, lark_of

__all__ = ["MAX_CHARACTERS", "BadGrammar", "ForbiddenToken", "Grammar", "GrammarGaveUp", "Grammars", "Matcher"]

# Compiled grammars that are kept for each vocabulary; one with many states takes some 20 MB.
KEPT: Final = 16
# Masks are the same for the same version alone.
GRAMMAR: Final = f"llguidance {version('llguidance')}"
# llguidance's own, but for the states of the lexer (1 to 2 kB each) and a silence about the text in its errors.
_LIMITS: Final = llguidance.LLParserLimits(max_lexer_states=10_000, verbose_errors=False)
# Bytes of a token; with one more, llguidance panics.
MAX_PIECE: Final = 1_024
# Ids that stand for the same bytes; llguidance takes time with the square of their number.
MAX_ALIKE: Final = 4_096


class ForbiddenToken(ValueError):
    """A token that the grammar does not allow at its place."""

    def __init__(self, token: int) -> None:
        super().__init__(f"the grammar does not allow token {token} here; take one that its mask allows")
        self.token = token


class GrammarGaveUp(RuntimeError):
    """A grammar became too complex in the middle of an answer."""

    def __init__(self) -> None:
        super().__init__("the grammar became too complex while it was followed; ask with a plainer one")


class Vocabulary(Protocol):
    """What a grammar must know of a vocabulary; `node.models.vocab.Words` is more."""

    @property
    def size(self) -> int:
        """How many ids there are."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; none for control tokens."""
        ...

    @property
    def eog(self) -> Set[int]:
        """The ids that end a generation."""
        ...

    @property
    def control(self) -> Set[int]:
        """The ids that stand for no text."""
        ...


class Grammars:
    """Compiles grammars for one vocabulary and keeps the last ones. Safe to use from several threads."""

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, gbnf: str) -> "Grammar":
        """The grammar of this GBNF text, which takes some milliseconds; the first for a large vocabulary a second.

        Raises BadGrammar.
        """
        with self._lock:
            found = self._known.get(gbnf)
            if found is None:
                found = self._known[gbnf] = Grammar(self._tokens, lark_of(gbnf))
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(gbnf)
            return found

    @cached_property
    def _tokens(self) -> "_Tokens":
        return _Tokens(self._vocab)


class Grammar:
    """A grammar of one vocabulary. Safe to use from several threads."""

    def __init__(self, tokens: "_Tokens", lark: str) -> None:
        self._tokens = tokens
        self._lock = threading.Lock()
        with _panics_as(BadGrammar("this grammar cannot be followed: give a plainer one")):
            grammar = llguidance.LLMatcher.grammar_from_lark(lark)
            self._first = llguidance.LLMatcher(tokens.tokenizer, grammar, log_level=0, limits=_LIMITS)
        if self._first.is_error():
            raise BadGrammar("the grammar is too large or too complex for this node: give a plainer one")
        try:
            mask = self.start().mask()
        except GrammarGaveUp:
            raise BadGrammar("the grammar is too complex to follow: give a plainer one") from None
        if not mask.any():
            raise BadGrammar("the grammar allows no token of this model to begin with: check its rule root")

    def start(self) -> "Matcher":
        """A matcher at the beginning of an answer."""
        with self._lock:
            return Matcher(self._tokens, self._first.deep_copy())


class Matcher:
    """Follows one answer through a grammar. For one thread at a time."""

    def __init__(self, tokens: "_Tokens", matcher: llguidance.LLMatcher) -> None:
        self._tokens = tokens
        self._matcher = matcher
        self._over = False

    @property
    def ended(self) -> bool:
        """Whether an end-of-generation id was taken: nothing may follow, and the mask allows nothing."""
        return self._over

    def mask(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (V,), the caller's own. Raises GrammarGaveUp."""
        tokens = self._tokens
        if self._over:
            return np.zeros(tokens.size, np.bool_)
        with _panics_as(GrammarGaveUp()):
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            complete = self._matcher.is_accepting()
        # A complete grammar that nothing can follow stops; that is no error.
        if self._matcher.is_error() and not complete:
            raise GrammarGaveUp
        mask = np.unpackbits(bits, count=tokens.size, bitorder="little").view(np.bool_)
        mask[tokens.control] = False
        mask[tokens.eog] = complete
        return mask

    def take(self, token: int) -> None:
        """Go on behind this token.

        Raises GrammarGaveUp, and ForbiddenToken, after which the matcher stands where it stood.
        """
        with _panics_as(GrammarGaveUp()):
            self._take(token)

    def _take(self, token: int) -> None:
        if self._over or not 0 <= token < self._tokens.size:
            raise ForbiddenToken(token)
        if token in self._tokens.ends:
            if not self._matcher.is_accepting():
                raise ForbiddenToken(token)
            self._over = True
        elif token in self._tokens.controls or self._matcher.validate_tokens([token]) != 1:
            raise ForbiddenToken(token)
        elif not self._matcher.consume_token(token):
            raise GrammarGaveUp


class _Tokens:
    """A vocabulary as llguidance sees it: one id more, which ends an answer in place of the model's own."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.size = vocab.size
        self.ends = frozenset(vocab.eog)
        self.controls = frozenset(vocab.control) - self.ends
        self.eog = np.array(sorted(self.ends), np.intp)
        self.control = np.array(sorted(self.controls), np.intp)
        # A piece that begins with the byte 0xff is a special token to llguidance, never text; none is to be had of it.
        silent = self.ends | self.controls
        self.tokens = [b"\xff<%d>" % token if token in silent else vocab.piece(token) for token in range(self.size)]
        self.tokens.append(b"\xff<end>")
        _check_pieces(self.tokens)
        # What llguidance reads of a tokenizer.
        self.eos_token_id, self.bos_token_id = self.size, None
        self.special_token_ids = [*sorted(silent), self.size]
        with _panics_as(BadGrammar("this model's vocabulary cannot be held to a grammar: ask without one")):
            self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), eos_token=self.size)

    def __call__(self, text: bytes | str) -> list[int]:
        """llguidance's way to tokenize what a grammar forces; it is not asked for that here."""
        return []


def _check_pieces(pieces: list[bytes]) -> None:
    longest = max(map(len, pieces))
    if longest > MAX_PIECE:
        why = f"this model has a token of {longest} bytes, and grammars follow at most {MAX_PIECE}"
        raise BadGrammar(f"{why}: ask without one, or ask another model")
    alike = max(Counter(filter(None, pieces)).values())
    if alike > MAX_ALIKE:
        why = f"this model has {alike} tokens of the same text, and grammars follow at most {MAX_ALIKE}"
        raise BadGrammar(f"{why}: ask without one, or ask another model")


@contextlib.contextmanager
def _panics_as(error: Exception) -> Iterator[None]:
    """Raises this error where llguidance panics: what that raises is no Exception, and has no name to import."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error from None
