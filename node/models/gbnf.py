"""GBNF, llama.cpp's notation for grammars, read from hostile text into what llguidance takes.

    root  ::= "[" value ("," value)* "]"      a rule and a new line; "root" is where it begins
    value ::= root | [0-9]{1,9} | "\\x41" .   literals, classes, any character; * + ? {n} {n,} {n,m}; # a comment

Names have letters, digits, "-" and "_". Escapes are \\t \\r \\n \\\\ \\" \\[ \\] \\- \\^ and, for code points, \\xNN,
\\uNNNN and \\UNNNNNNNN.

A rule is **regular** if it does not lead back to itself and, with all that it names and repeats written out, has at
most MAX_TOKEN characters and classes. Neighbours in a sequence that are
regular are one token, and tokens take the longest match: `[a-z]+ list` never lets `list` begin with a letter. A grammar
that is regular as a whole is one token, so this does not touch it.
"""

import re
from collections.abc import Iterator
from typing import Final

from attrs import define, field, frozen

MAX_CHARACTERS: Final = 65_536
MAX_RULES: Final = 8_192  # groups in parentheses are rules too
MAX_NESTING: Final = 64  # parentheses
MAX_REPEATS: Final = 2_000  # as llama.cpp's
# Rules within rules, on any way from the root: llguidance reads them recursively, and there is only so much stack.
MAX_DEPTH: Final = 256
MAX_TOKEN: Final = 10_000
# Alternatives, and what they are made of, in rules that are not regular: they cost time with their square.
MAX_PARTS: Final = 3_000

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_BLANK: Final = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES: Final = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_REPEATS: Final = re.compile(r"\{[ \t]*([0-9]{1,9})[ \t]*(?:(,)[ \t]*([0-9]{1,9})?[ \t]*)?\}")
_ESCAPE: Final = re.compile(r"\\(?:([trn\\\"\[\]^-])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")
_PLAIN: Final = {"t": "\t", "r": "\r", "n": "\n"}
_SIGNS: Final = {"*": (0, None), "+": (1, None), "?": (0, 1)}
# Every spelling of a forced text is allowed, not only the one that a tokenizer would give.
_HEADER: Final = '%llguidance {"no_forcing": true}'
_ANY: Final = r"[\x{0}-\x{10FFFF}]"


class BadGrammar(ValueError):
    """A grammar that cannot be used here; the message says why and what to do, and holds nothing of its text."""


class EmptyGrammar(BadGrammar):
    """A grammar without a text: every way through its rules leads on without end."""

    def __init__(self) -> None:
        super().__init__("the rules of the grammar lead back to themselves without end: give them a way out")


@frozen
class _Element:
    """A pattern of one character or a literal, or a rule by its number; how often it stands in a row."""

    pattern: str = ""
    size: int = 1
    rule: int = -1
    least: int = 1
    most: int | None = 1


_Sequence = list[_Element]


def lark_of(gbnf: str) -> str:
    """The same grammar in the dialect of Lark that llguidance reads. Raises BadGrammar."""
    if len(gbnf) > MAX_CHARACTERS:
        raise BadGrammar(f"the grammar has {len(gbnf)} characters: give at most {MAX_CHARACTERS}")
    rules, root = _Reader(gbnf).rules()
    order = _reachable(rules, root)
    if not _ends(rules, order, root):
        raise EmptyGrammar
    return _Writer(rules, order).lark(root)


@define
class _Reader:
    """Position in the text, and the rules so far: each a list of alternatives."""

    text: str
    at: int = 0
    names: dict[str, int] = field(factory=dict)
    bodies: dict[int, list[_Sequence]] = field(factory=dict)
    used_at: dict[int, int] = field(factory=dict)
    count: int = 0

    def rules(self) -> tuple[dict[int, list[_Sequence]], int]:
        """All rules by number, and the number of the root."""
        self._skip(_BLANK_LINES)
        while self.at < len(self.text):
            self._rule()
            self._skip(_BLANK_LINES)
        for number, place in self.used_at.items():
            if number not in self.bodies:
                raise self._bad("a rule is used that is not defined; define it, or check its spelling", place)
        if "root" not in self.names:
            raise BadGrammar('the grammar has no rule "root": name the rule with which it begins so')
        return self.bodies, self.names["root"]

    def _rule(self) -> None:
        number = self._named(self._take(_NAME, 'a rule begins with its name and "::="').group())
        self._skip(_BLANK)
        if not self.text.startswith("::=", self.at):
            raise self._bad('after the name of a rule comes "::="')
        if number in self.bodies:
            raise self._bad("a rule is defined twice; join the two with |")
        self.at += 3
        self._skip(_BLANK_LINES)
        self.bodies[number] = self._alternatives(0)
        if self.at < len(self.text) and self.text[self.at] not in "\r\n":
            raise self._bad("a rule ends with its line; put parentheses around what goes on in the next")

    def _alternatives(self, nesting: int) -> list[_Sequence]:
        found = [self._sequence(nesting)]
        while self.text.startswith("|", self.at):
            self.at += 1
            self._skip(_BLANK_LINES)
            found.append(self._sequence(nesting))
        return found

    def _sequence(self, nesting: int) -> _Sequence:
        found: _Sequence = []
        while (element := self._element(nesting)) is not None:
            found.append(self._repeated(element))
            self._skip(_BLANK_LINES if nesting else _BLANK)
        return found

    def _element(self, nesting: int) -> _Element | None:
        match self.text[self.at : self.at + 1]:
            case '"':
                return self._literal()
            case "[":
                return self._class()
            case ".":
                self.at += 1
                return _Element(_ANY)
            case "(":
                return self._group(nesting + 1)
            case character if character and _NAME.match(character):
                place = self.at
                number = self._named(self._take(_NAME, "").group())
                self.used_at.setdefault(number, place)
                return _Element(rule=number)
        return None

    def _group(self, nesting: int) -> _Element:
        if nesting > MAX_NESTING:
            raise self._bad(f"parentheses nest more than {MAX_NESTING} deep; give the inner ones a rule of their own")
        number = self._number()
        self.at += 1
        self._skip(_BLANK_LINES)
        self.bodies[number] = self._alternatives(nesting)
        if not self.text.startswith(")", self.at):
            raise self._bad("a parenthesis is not closed, or holds something that is no GBNF")
        self.at += 1
        return _Element(rule=number)

    def _repeated(self, element: _Element) -> _Element:
        sign = self.text[self.at : self.at + 1]
        if sign in _SIGNS:
            self.at += 1
            least, most = _SIGNS[sign]
        elif sign == "{":
            found = self._take(_REPEATS, "repetitions are written {n}, {n,} or {n,m}")
            least = int(found[1])
            most = least if found[2] is None else None if found[3] is None else int(found[3])
        else:
            return element
        if max(least, most or 0) > MAX_REPEATS or (most is not None and most < least):
            raise self._bad(f"repetitions are from n to m with n <= m <= {MAX_REPEATS}")
        return _Element(element.pattern, element.size, element.rule, least, most)

    def _literal(self) -> _Element:
        self.at += 1
        codes = []
        while not self.text.startswith('"', self.at):
            codes.append(self._code("a literal is not closed"))
        self.at += 1
        return _Element("".join(map(_escaped, codes)), len(codes))

    def _class(self) -> _Element:
        self.at += 1
        negated = self.text.startswith("^", self.at)
        self.at += negated
        ranges = []
        while not self.text.startswith("]", self.at):
            low = high = self._code("a class is not closed")
            if self.text.startswith("-", self.at) and not self.text.startswith("-]", self.at):
                self.at += 1
                high = self._code("a class is not closed")
            if high < low:
                raise self._bad("a range in a class runs backwards")
            ranges.append(f"{_escaped(low)}-{_escaped(high)}")
        if not ranges:
            raise self._bad("a class is empty")
        self.at += 1
        return _Element(f"[{'^' if negated else ''}{''.join(ranges)}]")

    def _code(self, unless: str) -> int:
        """One character or escape, as a code point."""
        if not self.text.startswith("\\", self.at):
            if self.at >= len(self.text) or self.text[self.at] in "\r\n":
                raise self._bad(unless)
            code = ord(self.text[self.at])
            self.at += 1
        else:
            plain, *hexadecimal = self._take(_ESCAPE, "an escape is none of GBNF's").groups()
            code = ord(_PLAIN.get(plain, plain)) if plain else int(next(filter(None, hexadecimal)), 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self._bad("a character is outside Unicode")
        return code

    def _named(self, name: str) -> int:
        if name not in self.names:
            self.names[name] = self._number()
        return self.names[name]

    def _number(self) -> int:
        self.count += 1
        if self.count > MAX_RULES:
            raise BadGrammar(f"the grammar has more than {MAX_RULES} rules and groups: give a smaller one")
        return self.count

    def _skip(self, blank: re.Pattern[str]) -> None:
        found = blank.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _take(self, pattern: re.Pattern[str], unless: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self._bad(unless)
        self.at = found.end()
        return found

    def _bad(self, reason: str, place: int | None = None) -> BadGrammar:
        line = self.text.count("\n", 0, self.at if place is None else place) + 1
        return BadGrammar(f"line {line} of the grammar: {reason}")


def _escaped(code: int) -> str:
    return chr(code) if code < 128 and chr(code).isalnum() else rf"\x{{{code:X}}}"


def _rules_in(body: list[_Sequence]) -> Iterator[int]:
    return (element.rule for sequence in body for element in sequence if element.rule >= 0)


def _reachable(rules: dict[int, list[_Sequence]], root: int) -> list[int]:
    """The rules that the root leads to, each once, depth first. Raises BadGrammar."""
    found, path = {root: None}, [_rules_in(rules[root])]
    while path:
        if len(path) > MAX_DEPTH:
            raise BadGrammar(f"rules lead to rules more than {MAX_DEPTH} deep: give a plainer grammar")
        rule = next(path[-1], None)
        if rule is None:
            path.pop()
        elif rule not in found:
            found[rule] = None
            path.append(_rules_in(rules[rule]))
    return list(found)


def _ends(rules: dict[int, list[_Sequence]], order: list[int], root: int) -> bool:
    """Whether the root has a text of some length at all."""
    users: dict[int, list[tuple[int, int]]] = {rule: [] for rule in order}
    missing: dict[tuple[int, int], int] = {}  # by rule and alternative, the rules in it not known to have a text
    ready = []
    for rule in order:
        for way, sequence in enumerate(rules[rule]):
            needed = {element.rule for element in sequence if element.rule >= 0 and element.least > 0}
            missing[rule, way] = len(needed)
            for one in needed:
                users[one].append((rule, way))
            if not needed:
                ready.append(rule)
    known: set[int] = set()
    while ready:
        if (rule := ready.pop()) in known:
            continue
        known.add(rule)
        for user in users[rule]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user[0])
    return root in known


class _Writer:
    """Regular rules become Lark's terminals, the others its rules."""

    def __init__(self, rules: dict[int, list[_Sequence]], order: list[int]) -> None:
        self._rules, self._order = rules, order
        self._sizes: dict[int, int] = {}  # of the regular ones
        self._lines: list[str] = []
        self._find_regular()
        self._check_parts()

    def lark(self, root: int) -> str:
        """The whole text."""
        for rule in self._order:
            body = self._rules[rule]
            if rule in self._sizes:
                self._lines.append(f"T{rule}: {' | '.join(map(self._regular, body))}")
            else:
                self._lines.append(f"r{rule}: {' | '.join(map(self._recursive, body))}")
        return "\n".join([_HEADER, f"start: {self._name(root)}", *self._lines, ""])

    def _find_regular(self) -> None:
        users: dict[int, list[int]] = {rule: [] for rule in self._order}
        open_rules = {rule: set(_rules_in(self._rules[rule])) for rule in self._order}
        for rule, used in open_rules.items():
            for one in used:
                users[one].append(rule)
        ready = [rule for rule, used in open_rules.items() if not used]
        while ready:
            rule = ready.pop()
            size = sum(self._size(element) for sequence in self._rules[rule] for element in sequence)
            if size > MAX_TOKEN:
                continue
            self._sizes[rule] = size
            for user in users[rule]:
                open_rules[user].discard(rule)
                if not open_rules[user]:
                    ready.append(user)

    def _check_parts(self) -> None:
        bodies = [self._rules[rule] for rule in self._order if rule not in self._sizes]
        if sum(len(sequence) + 1 for body in bodies for sequence in body) > MAX_PARTS:
            raise BadGrammar("the grammar has too many rules that lead to others and back: give a plainer one")

    def _size(self, element: _Element) -> int:
        one = element.size if element.rule < 0 else self._sizes[element.rule]
        return max(one, 1) * max(element.least, element.most or 1, 1)

    def _name(self, rule: int) -> str:
        return f"{'T' if rule in self._sizes else 'r'}{rule}"

    def _item(self, element: _Element) -> str:
        text = self._name(element.rule) if element.rule >= 0 else f"/{element.pattern}/" if element.pattern else '""'
        match element.least, element.most:
            case 1, 1:
                return text
            case 0, None:
                return f"{text}*"
            case 1, None:
                return f"{text}+"
            case 0, 1:
                return f"{text}?"
        # A pattern of several characters is one item in Lark, too.
        return f"{text}{{{element.least},{'' if element.most is None else element.most}}}"

    def _regular(self, sequence: _Sequence) -> str:
        return " ".join(map(self._item, sequence)) or '""'

    def _recursive(self, sequence: _Sequence) -> str:
        items: list[str] = []
        run: _Sequence = []
        size = 0
        for element in sequence:
            regular = element.rule < 0 or element.rule in self._sizes
            size = size + self._size(element) if regular else 0
            if run and not 0 < size <= MAX_TOKEN:
                items.append(self._token(run))
                run, size = [], self._size(element) if regular else 0
            if regular:
                run.append(element)
            else:
                items.append(self._item(element))
        if run:
            items.append(self._token(run))
        return " ".join(items) or '""'

    def _token(self, run: _Sequence) -> str:
        name = f"U{len(self._lines)}"
        self._lines.append(f"{name}: {self._regular(run)}")
        return name
