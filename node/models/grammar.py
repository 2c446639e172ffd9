"""The one door to llguidance: which tokens a grammar allows next.

A grammar comes from whoever asks, so from a hostile buyer too: `node.models.gbnf` bounds and rewrites it, llguidance
works within LIMITS, and neither repeats its text in errors. What ends an answer is decided here, not there: the
end-of-generation ids are allowed where the grammar is complete; other control tokens never are.
"""

import threading
from collections import OrderedDict
from collections.abc import Set
from functools import cached_property
from typing import Final, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from node.models.gbnf import MAX_CHARACTERS, BadGrammar, lark_of

__all__ = ["MAX_CHARACTERS", "BadGrammar", "ForbiddenToken", "Grammar", "GrammarGaveUp", "Grammars", "Matcher"]

# Compiled grammars that are kept for each vocabulary; one with many states takes some 20 MB.
KEPT: Final = 16
# llguidance's own, but for the states of the lexer (1 to 2 kB each) and a silence about the text in its errors.
_LIMITS: Final = llguidance.LLParserLimits(max_lexer_states=10_000, verbose_errors=False)


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
        """Go on behind this token. Raises ForbiddenToken, after which the matcher stands where it stood."""
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
        # What llguidance reads of a tokenizer.
        self.eos_token_id, self.bos_token_id = self.size, None
        self.special_token_ids = [*sorted(silent), self.size]
        self.tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), eos_token=self.size)

    def __call__(self, text: bytes | str) -> list[int]:
        """llguidance's way to tokenize what a grammar forces; it is not asked for that here."""
        return []
