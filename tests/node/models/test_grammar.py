"""Grammars: GBNF from anybody, bounded and translated, and the masks that it makes of a vocabulary."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.models import grammar
from node.models.gbnf import MAX_CHARACTERS, MAX_REPEATS, lark_of
from node.models.grammar import BadGrammar, ForbiddenToken, Grammar, GrammarGaveUp, Grammars
from node.models.vocab import Vocab, open_vocab

DEMO = Path(__file__).parents[3] / "node" / "models" / "demo" / "demo-Q8_0.gguf"


@pytest.fixture(scope="module")
def vocab() -> Iterator[Vocab]:
    vocab = open_vocab(DEMO)
    yield vocab
    vocab.close()


@pytest.fixture(scope="module")
def grammars(vocab: Vocab) -> Grammars:
    return Grammars(vocab)


def written(vocab: Vocab, grammar: Grammar, seed: int, most: int = 300) -> str | None:
    """A text of tokens drawn evenly from what the grammar allows; None if it has not ended by then."""
    random, matcher, ids = np.random.default_rng(seed), grammar.start(), list[int]()
    for _ in range(most):
        token = int(random.choice(np.flatnonzero(matcher.mask())))
        matcher.take(token)
        if matcher.ended:
            return b"".join(map(vocab.piece, ids)).decode()
        ids.append(token)
    return None


def follows(vocab: Vocab, grammar: Grammar, text: str) -> bool:
    """Whether the grammar allows this text, byte by byte, and may end there."""
    ids = {vocab.piece(token): token for token in range(vocab.size)}
    matcher = grammar.start()
    try:
        for byte in text.encode():
            matcher.take(ids[bytes([byte])])
    except ForbiddenToken:
        return False
    return bool(matcher.mask()[list(vocab.eog)].all())


@pytest.mark.parametrize(
    ("gbnf", "good", "bad"),
    [
        ('root ::= "a" | "bc"', ["a", "bc"], ["", "b", "ab", "bcd"]),
        ('root ::= "a"? [b-d]* "\\"" .', ['"x', 'ab"\n', 'bbd""'], ["aa", 'e"x', '"']),
        ("root ::= [^a-c\\]-]+", ["xyz", "[^", "é"], ["a", "x]", "-", ""]),
        ('root ::= ("x" | "y"){2} "z"{1,2} "w"{1,}', ["xyzw", "yyzzwww"], ["xzw", "xxzzzw", "xyz"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\t\\n\\\\"', ["Aé😀\t\n\\"], ["A", "Aé"]),
        ("root ::= [a&&b~~|/.*+?(){}^$#-]+", ["a&|~b", "/.*+?(){}^$#-"], ["c", "\\"]),
        ('root ::= one-two # a comment ::= "x"\n\n# another\none-two ::= (\n "a" |\n "b"\n)', ["a", "b"], ["x", "ab"]),
        ('root ::= "(" root ")" | ""', ["", "(())"], ["(", "())"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["", "ab", "a"]),
        ('root ::= item ("," item)*\nitem ::= [0-9]+ | "[" root "]"', ["1", "[1,[22]],3"], ["[", "1,", "[]"]),
        ("root ::= " + "(" * 60 + '"a"' + ")*" * 60, ["", "aaa"], ["b"]),
        (f'root ::= "a"{{{MAX_REPEATS}}}', ["a" * MAX_REPEATS], ["a" * (MAX_REPEATS - 1)]),
        ('root ::= [ab]* "a" [ab]{18}', ["a" + "b" * 18], ["b" * 19, "a"]),
        ('root ::= ""', [""], ["a"]),
        ('root ::= "\\xff"', ["ÿ"], ["y"]),
    ],
)
def test_a_grammar_allows_what_it_says(
    vocab: Vocab, grammars: Grammars, gbnf: str, good: list[str], bad: list[str]
) -> None:
    grammar = grammars.compile(gbnf)
    assert [text for text in good if not follows(vocab, grammar, text)] == []
    assert [text for text in bad if follows(vocab, grammar, text)] == []


HOSTILE = {
    "empty": "",
    "no root": 'x ::= "a"',
    "unknown rule": "root ::= foo",
    "twice": 'root ::= "a"\nroot ::= "b"',
    "not closed": 'root ::= ("a"',
    "a parenthesis too many": 'root ::= "a")',
    "an open literal": 'root ::= "a',
    "an open class": "root ::= [a",
    "an empty class": "root ::= []",
    "a range backwards": "root ::= [z-a]",
    "no escape": 'root ::= "\\d"',
    "half an escape": 'root ::= "\\',
    "half of a pair": 'root ::= "\\uD800"',
    "outside Unicode": 'root ::= "\\U00110000"',
    "not UTF-8": 'root ::= "\udc80"',
    "no name": '::= "a"',
    "another notation": "start: /a/",
    "repeated a million times": 'root ::= "a"{1000000}',
    "repeated to a number of 1,000 digits": 'root ::= "a"{' + "9" * 1_000 + "}",
    "repeated backwards": 'root ::= "a"{2,1}',
    "repeated twice": 'root ::= "a"**',
    "nothing to repeat": "root ::= *",
    "nested deep": "root ::= " + "(" * 30_000 + ")" * 30_000,
    "a long chain": "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(4_000)) + '\nr4000 ::= "a"',
    "itself": "root ::= root",
    "on and on": 'root ::= "a" root',
    "in a circle": "root ::= a\na ::= b\nb ::= a",
    "no character": "root ::= [^\\x00-\\U0010FFFF]",
    "too long": 'root ::= "a"' + " " * MAX_CHARACTERS,
    "many ways back": "root ::= " + 'root "a" | ' * 4_000 + '"b"',
    "too many groups": "root ::= " + "()" * 20_000,
    "many overlapping classes": "root ::= " + " ".join(f"[^{n}]*" for n in range(2_000)),
}


class Pieces:
    """A vocabulary of these pieces, and an end."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = (*pieces, b"")
        self.size = len(self._pieces)
        self.eog = self.control = frozenset({self.size - 1})

    def piece(self, token: int) -> bytes:
        return self._pieces[token]


def test_a_vocabulary_of_the_longest_pieces_is_followed() -> None:
    words = Pieces(*(b"a" * n for n in range(1, grammar.MAX_PIECE + 1)))
    assert Grammars(words).compile('root ::= "a"+').start().mask().sum() == grammar.MAX_PIECE


@pytest.mark.parametrize(
    "pieces",
    [
        [b"a" * (grammar.MAX_PIECE + 1)],
        [b"a" * n for n in range(1, 5_000)],
        [b"a", b"b" * 5_000_000],
        [b"a"] * (grammar.MAX_ALIKE + 1),
    ],
    ids=["one too long", "longer and longer", "one of 5 MB", "many alike"],
)
def test_a_vocabulary_that_cannot_be_followed_is_refused(
    pieces: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadGrammar, match="ask without one"):
        Grammars(Pieces(*pieces)).compile('root ::= "a"+')
    assert capfd.readouterr().err == ""


def test_a_panic_is_a_refusal_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_PIECE", 10_000)
    with pytest.raises(BadGrammar, match="vocabulary"):
        Grammars(Pieces(b"a", b"a" * 5_000)).compile('root ::= "a"+')


@pytest.mark.parametrize("gbnf", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_grammar_that_cannot_be_used_is_refused(grammars: Grammars, gbnf: str) -> None:
    with pytest.raises(BadGrammar):
        grammars.compile(gbnf)


@pytest.mark.parametrize(
    "gbnf",
    [
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1} | root" for n in range(40)) + '\nr40 ::= "a"',
        "root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(50)) + '\nr50 ::= "a"',
        'root ::= (("a"{2000}){2000}){2000}',
        'root ::= (root | root root | "a")*',
        "root ::= " + '("a" root)? ' * 4_000,
        "root ::= ([a-z]{1,50}){1,900} root?",
        "root ::= " + "|".join(f'"{n * 7919}"' for n in range(5_000)),
        'root ::= "x" .* "a" .* root?',
        "root ::= " + "(root | " * 50 + '"a"' + ")*" * 50,
    ],
    ids=[
        "doubling without end",
        "doubling",
        "repeated",
        "ambiguous",
        "wide",
        "counters",
        "many words",
        "overlapping",
        "nested",
    ],
)
def test_a_grammar_that_grows_is_followed_or_given_up(vocab: Vocab, grammars: Grammars, gbnf: str) -> None:
    try:
        grammar = grammars.compile(gbnf)
        for seed in range(3):
            written(vocab, grammar, seed, 60)
    except (BadGrammar, GrammarGaveUp) as error:
        assert "plainer" in str(error)  # noqa: PT017  (either is right)


@settings(deadline=None, max_examples=200)
@given(st.text('root ::=|"[]()*+?{}0,9\\ab-\n#.^x', max_size=60).map(lambda text: f"root ::= {text}"))
def test_any_text_is_read_or_refused(grammars: Grammars, gbnf: str) -> None:
    try:
        grammars.compile(gbnf)
    except BadGrammar as error:
        assert len(str(error)) < 200  # noqa: PT017  (either is right)


def test_the_refusal_names_the_line_and_nothing_of_the_text() -> None:
    with pytest.raises(BadGrammar, match="line 3") as caught:
        lark_of('root ::= "a"\n# hush\nsecret ::= "hush" [')
    assert "hush" not in str(caught.value)


def test_only_an_end_may_follow_a_complete_grammar(vocab: Vocab, grammars: Grammars) -> None:
    matcher = grammars.compile('root ::= "a"').start()
    assert not matcher.mask()[list(vocab.eog)].any()
    matcher.take(int(np.flatnonzero(matcher.mask())[0]))
    assert set(np.flatnonzero(matcher.mask())) == set(vocab.eog)
    matcher.take(min(vocab.eog))
    assert matcher.ended
    assert not matcher.mask().any()


def test_an_end_is_one_choice_where_more_may_follow(vocab: Vocab, grammars: Grammars) -> None:
    mask = grammars.compile('root ::= "a"*').start().mask()
    assert mask[list(vocab.eog)].all()
    assert {vocab.piece(int(token))[:1] for token in np.flatnonzero(mask)} == {b"a", b""}


def test_control_tokens_are_never_allowed(vocab: Vocab, grammars: Grammars) -> None:
    matcher = grammars.compile("root ::= .*").start()
    others = sorted(vocab.control - vocab.eog)
    assert others
    assert not matcher.mask()[others].any()
    for token in [*others, -1, vocab.size]:
        with pytest.raises(ForbiddenToken):
            matcher.take(token)


def test_every_spelling_of_a_text_is_allowed(vocab: Vocab, grammars: Grammars) -> None:
    mask = grammars.compile('root ::= "name" root?').start().mask()
    assert {vocab.piece(int(token)) for token in np.flatnonzero(mask)} >= {b"n", b"name"}


def test_a_forbidden_token_leaves_the_matcher_where_it_was(vocab: Vocab, grammars: Grammars) -> None:
    matcher = grammars.compile('root ::= "ab"').start()
    before = matcher.mask()
    for token in np.flatnonzero(~before):
        with pytest.raises(ForbiddenToken):
            matcher.take(int(token))
    assert (matcher.mask() == before).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_exactly_what_the_mask_allows_can_be_taken(vocab: Vocab, grammars: Grammars, seed: int) -> None:
    grammar = grammars.compile('root ::= "[" (word ("," word)*)? "]"\nword ::= [a-z]{1,9} | root')
    random, matcher, ids = np.random.default_rng(seed), grammar.start(), list[int]()
    for _ in range(int(random.integers(8))):
        token = int(random.choice(np.flatnonzero(matcher.mask())))
        matcher.take(token)
        if matcher.ended:
            return
        ids.append(token)
    mask = matcher.mask()
    for token in random.integers(0, vocab.size, 40):
        other = grammar.start()
        for one in ids:
            other.take(one)
        try:
            other.take(int(token))
            taken = True
        except ForbiddenToken:
            taken = False
        assert taken == mask[token]


def test_answers_to_one_grammar_do_not_touch_each_other(vocab: Vocab, grammars: Grammars) -> None:
    grammar = grammars.compile('root ::= "a" [0-9]+ "b"')
    first, second = grammar.start(), grammar.start()
    first.take(int(np.flatnonzero(first.mask())[0]))
    assert (second.mask() == grammar.start().mask()).all()
    assert not (first.mask() == second.mask()).all()


def test_a_grammar_is_compiled_once(grammars: Grammars) -> None:
    assert grammars.compile('root ::= "once"') is grammars.compile('root ::= "once"')


def test_what_is_written_matches_the_same_regular_expression(vocab: Vocab, grammars: Grammars) -> None:
    grammar = grammars.compile('root ::= ([a-c]{1,3} "-"){1,4} [0-9]+ ("é" | "\\n")?')
    for seed in range(30):
        text = written(vocab, grammar, seed)
        assert text is None or re.fullmatch(r"([a-c]{1,3}-){1,4}[0-9]+[é\n]?", text)
