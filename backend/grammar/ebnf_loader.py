r"""Grammar text to rules, in two notations: GBNF (`root ::= …`, as llama.cpp has it) and Lark (`start: …`).

A notation is a table of tokens and the meaning of its literals; what is common (alternatives, rows, repeats, groups)
is read once. References become `ir.Call`; whether rules recurse, and how, is not looked at here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, NoReturn

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.ebnf_common import COMMON
from stemma.backend.grammar.limits import MAX_ATOMS, MAX_DEPTH, MAX_PATTERN, Deadline
from stemma.backend.grammar.regex import parse_regex
from stemma.backend.grammar.regex_scan import Anchor, Boundary, Look, scan
from stemma.lang.errors import ConstraintError

_GBNF = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\n]*)
    |(?P<head>[\w-]++\s*+::=)|(?P<name>[\w-]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*+")|(?P<class>\[(?:[^\]\\\n]|\\.)*+\])
    |(?P<bounds>\{\s*\d*\s*(?:,\s*\d*\s*)?\})|(?P<op>[*+?])|(?P<mark>[()|.])""",
    re.VERBOSE | re.ASCII,
)
_LARK = re.compile(
    r"""(?P<skip>[ \t\r\n]+|(?://|\#)[^\n]*)
    |(?P<head>[!?]{0,2}[A-Za-z_]\w*+(?:\.-?\d+)?[ \t]*+:)|(?P<template>[!?]{0,2}[A-Za-z_]\w*+\{)
    |(?P<parameters>\}(?:\.-?\d+)?[ \t]*+:)|(?P<name>[A-Za-z_]\w*)
    |(?P<statement>%\w+)|(?P<string>"(?:[^"\\\n]|\\.)*+"(?:i\b)?)|(?P<regex>/(?!/)(?:\\.|[^/\\\n])*+/[imslux]*)
    |(?P<number>\d+)|(?P<op>[*+?])|(?P<mark>->|\.\.|[()\[\]|~.,}])""",
    re.VERBOSE | re.ASCII,
)
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]++\s*+::=", re.MULTILINE | re.ASCII)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\", '"': '"'}
_DEFINITIONS = ("end", "head", "statement", "template head")  # what a rule ends before
_COUNTS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_UNCLOSED = {'"': "this string is never closed; add '\"' on the same line", "[": "this class is never closed; add ']'"}


class Token(NamedTuple):
    kind: str
    text: str
    at: int


@dataclass(slots=True)
class Rules:
    """`bodies[i]` is what `ir.Call(i)` matches, `names[i]` its name. `node`: the whole text."""

    node: ir.Node
    names: list[str]
    bodies: list[ir.Node]


def refuse(text: str, position: int, problem: str) -> NoReturn:
    """ConstraintError with line, column, and a caret under the place (a window of the line, when long)."""
    begin = text.rfind("\n", 0, position) + 1
    line, column = text.count("\n", 0, position) + 1, position - begin + 1
    first = max(begin, position - 60)
    window = text[first : position + 40].split("\n", 1)
    shown = "".join(c if c.isprintable() else " " for c in text[first:position] + window[0][position - first :])
    raise ConstraintError(
        f"ebnf: {problem} (line {line}, column {column})\n  {shown}\n  {' ' * (position - first)}^", param="ebnf"
    )


def read_rules(text: str, deadline: Deadline) -> Rules:
    """The rules of a grammar: GBNF if a line begins with `name ::=`, else Lark."""
    if len(text) > MAX_PATTERN:
        raise ConstraintError(f"ebnf: the grammar has {len(text)} characters, the limit is {MAX_PATTERN}", param="ebnf")
    if surrogate := re.search(r"[\ud800-\udfff]", text):
        refuse(text, surrogate.start(), "a lone surrogate is no character")
    reader = _Gbnf if _GBNF_RULE.search(text) else _Lark
    return reader(text, deadline).rules()


@dataclass(slots=True)
class _Reader:
    text: str
    deadline: Deadline
    tokens: list[Token] = field(default_factory=list)
    next: int = 0
    numbers: dict[str, int] = field(default_factory=dict)  # of the rules, by name
    bodies: dict[int, ir.Node] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)  # rule: where it is first mentioned
    terminal: str = ""  # the terminal whose definition is being read

    table = _GBNF
    start = "root"
    notation = "GBNF"

    def rules(self) -> Rules:
        self._tokenize()
        while (token := self._peek()).kind != "end":
            self.deadline.check()
            self._definition(token)
        for number, at in self.uses.items():
            if number not in self.bodies:
                name = next(name for name, n in self.numbers.items() if n == number)
                refuse(self.text, at, f"the rule '{name}' is not defined")
        if self.numbers.get(self.start) not in self.bodies:
            known = ", ".join(list(self.numbers)[:5]) or "none"
            raise ConstraintError(
                f"ebnf: a grammar in {self.notation} notation begins with the rule '{self.start}', which is not "
                f"defined; its rules: {known}",
                param="ebnf",
            )
        names = sorted(self.numbers, key=self.numbers.__getitem__)
        return Rules(self._root(), names, [self.bodies[i] for i in range(len(names))])

    def _root(self) -> ir.Node:
        return ir.Call(self.numbers[self.start])

    def _definition(self, token: Token) -> None:
        raise NotImplementedError

    def _literal(self, token: Token) -> ir.Node:
        raise NotImplementedError

    # -- tokens

    def _tokenize(self) -> None:
        at = 0
        while at < len(self.text):
            match = self.table.match(self.text, at)
            if match is None:
                self._refuse_character(at)
            if match.lastgroup != "skip":
                self.tokens.append(Token(match.lastgroup or "", match.group(), at))
                if len(self.tokens) > MAX_ATOMS:
                    refuse(self.text, at, f"the grammar has more than {MAX_ATOMS} parts")
            at = match.end()
        self.tokens.append(Token("end", "the end of the grammar", len(self.text)))
        self.deadline.check()

    def _refuse_character(self, at: int) -> NoReturn:
        char = self.text[at]
        refuse(self.text, at, _UNCLOSED.get(char, f"unexpected {char!r}"))

    def _peek(self) -> Token:
        return self.tokens[self.next]

    def _take(self, *texts: str) -> Token | None:
        """The next token, if it is one of these marks."""
        token = self._peek()
        if token.kind not in ("mark", "op") or token.text not in texts:
            return None
        self.next += 1
        return token

    def _expect(self, kind: str, what: str) -> Token:
        token = self._peek()
        if token.kind != kind:
            refuse(self.text, token.at, f"expected {what}, got {token.text[:40]!r}")
        self.next += 1
        return token

    # -- expressions

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _define(self, token: Token, name: str) -> None:
        number = self._number(name)
        if number in self.bodies:
            refuse(self.text, token.at, f"the rule '{name}' is defined twice")
        self.bodies[number] = self._alternatives(0)

    def _call(self, name: str, at: int) -> ir.Node:
        number = self._number(name)
        self.uses.setdefault(number, at)
        return ir.Call(number)

    def _alternatives(self, depth: int) -> ir.Node:
        options = [self._row(depth)]
        while self._take("|"):
            options.append(self._row(depth))
        return ir.alt(options)

    def _row(self, depth: int) -> ir.Node:
        self.deadline.check()
        parts = []
        while (atom := self._atom(depth)) is not None:
            parts.append(self._repeated(atom))
        return ir.seq(parts)

    def _atom(self, depth: int) -> ir.Node | None:
        token = self._peek()
        if group := self._take("(", "["):
            if depth >= MAX_DEPTH:
                refuse(self.text, token.at, f"groups are nested more than {MAX_DEPTH} deep")
            inner = self._alternatives(depth + 1)
            close = ")" if group.text == "(" else "]"
            if not self._take(close):
                got = self._peek()
                refuse(self.text, got.at, f"expected '{close}', '|' or more of the group, got {got.text[:40]!r}")
            return inner if close == ")" else ir.repeat(inner, 0, 1)
        if token.kind in _DEFINITIONS or token.text in ("|", ")", "]", "->", "}", ","):
            return None
        if token.kind in ("op", "bounds") or token.text == "~":
            refuse(self.text, token.at, f"nothing to repeat before {token.text!r}")
        self.next += 1
        return self._literal(token)

    def _repeated(self, node: ir.Node) -> ir.Node:
        while self._peek().kind in ("op", "bounds") or self._peek().text == "~":
            token = self.tokens[self.next]
            self.next += 1
            low, high = _COUNTS[token.text] if token.kind == "op" else self._bounds(token)
            if high is not None and low > high:
                refuse(self.text, token.at, f"the repeat's lower bound {low} is above its upper bound {high}")
            if max(low, high or 0) > MAX_PATTERN:
                refuse(self.text, token.at, f"the repeat count is above the limit of {MAX_PATTERN}")
            node = ir.repeat(node, low, high)
        return node

    def _bounds(self, token: Token) -> tuple[int, int | None]:
        low, comma, high = (part.strip() for part in token.text[1:-1].partition(","))
        if not low and not high:
            refuse(self.text, token.at, "a repeat needs a count: {n}, {n,}, {,m} or {n,m}")
        return self._count(low or "0", token), self._count(high, token) if high else None if comma else int(low)

    def _count(self, digits: str, token: Token) -> int:
        if len(digits) > 9:
            refuse(self.text, token.at, f"the repeat count is above the limit of {MAX_PATTERN}")
        return int(digits)

    def _unescaped(self, body: str, at: int, more: str = "") -> list[tuple[str, bool]]:
        """The characters of a string or class that stands at `at`, each with whether it was escaped."""
        found, i = [], 0
        while i < len(body):
            if body[i] != "\\":
                found.append((body[i], False))
                i += 1
                continue
            match = _ESCAPE.match(body, i)
            plain = match and match.group(4)
            if match is None or (plain and plain not in _PLAIN_ESCAPES and plain not in more):
                refuse(self.text, at + i, rf"unknown escape '\{plain or ''}'; write '\\' for a backslash")
            code = None if plain else int(match.group(1) or match.group(2) or match.group(3), 16)
            if code is not None and (code > charset.LAST or 0xD800 <= code <= 0xDFFF):
                refuse(self.text, at + i, f"{match.group()} is no character")
            found.append((_PLAIN_ESCAPES.get(plain or "", plain or "") if code is None else chr(code), True))
            i = match.end()
        return found

    def _string(self, body: str, at: int, more: str = "") -> str:
        return "".join([char for char, _ in self._unescaped(body, at, more)])


class _Gbnf(_Reader):
    __slots__ = ()

    def _definition(self, token: Token) -> None:
        head = self._expect("head", "a rule: name ::= …")
        self._define(head, head.text[:-3].rstrip())

    def _literal(self, token: Token) -> ir.Node:
        if token.kind == "name":
            return self._call(token.text, token.at)
        if token.kind == "string":
            return ir.words([self._string(token.text[1:-1], token.at + 1, "[]'").encode()])
        if token.kind == "class":
            return ir.Chars(self._class(token))
        return ir.Chars(charset.ALL)

    def _class(self, token: Token) -> charset.Ranges:
        body, at = token.text[1:-1], token.at + 1
        negated = body.startswith("^")
        chars = self._unescaped(body[negated:], at + negated, "[]-^'/")
        pairs, i = [], 0
        while i < len(chars):
            low = high = chars[i][0]
            if i + 2 < len(chars) and chars[i + 1] == ("-", False):
                high = chars[i + 2][0]
                i += 2
            if low > high:
                refuse(self.text, token.at, f"the range {low!r} to {high!r} is empty")
            pairs.append((ord(low), ord(high)))
            i += 1
        ranges = charset.ranges(pairs)
        found = charset.complement(ranges) if negated else ranges
        if not found or not pairs:
            refuse(self.text, token.at, f"the class {token.text} matches nothing" if not negated else "an empty class")
        return found


@lru_cache(maxsize=64)
def _common(name: str) -> ir.Node:
    return parse_regex(COMMON[name], Deadline(10.0, "ebnf"))


def _is_terminal(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


MAX_INSTANCES = 1_000  # of templates in one grammar
MAX_INSTANCE_DEPTH = 50  # of templates that use each other


@dataclass(slots=True)
class _Lark(_Reader):
    ignored: int | None = None  # the rule of what may stand between terminals
    templates: dict[str, tuple[list[str], int]] = field(default_factory=dict)  # parameters, and where the body begins
    instances: dict[tuple[str, tuple[ir.Node, ...]], int] = field(default_factory=dict)  # the rule of each
    bound: dict[str, ir.Node] = field(default_factory=dict)  # parameters of the template that is being written out
    depth: int = 0  # of templates that are being written out

    table = _LARK
    start = "start"
    notation = "Lark"

    def _tokenize(self) -> None:
        _Reader._tokenize(self)
        if any(token.text == "%ignore" for token in self.tokens):
            self.ignored = self._number("%ignore")
            self.bodies[self.ignored] = ir.EMPTY
        for i, token in enumerate(self.tokens):
            if token.kind == "template" and (parameters := self._parameters(i + 1)) is not None:
                name = token.text.lstrip("!?")[:-1]
                if name in self.templates:
                    refuse(self.text, token.at, f"the template '{name}' is defined twice")
                self.tokens[i] = Token("template head", token.text, token.at)
                self.templates[name] = parameters, i + 2 * len(parameters) + 1

    def _parameters(self, i: int) -> list[str] | None:
        """The names from token `i` on, if they are parameters of a definition, and not arguments."""
        names: list[str] = []
        while self.tokens[i].kind == "name":
            names.append(self.tokens[i].text)
            i += 1
            if self.tokens[i].kind == "parameters":
                return names
            if self.tokens[i].text != ",":
                return None
            i += 1
        return None

    def _root(self) -> ir.Node:
        start = ir.Call(self.numbers["start"])
        return start if self.ignored is None else ir.seq([ir.Call(self.ignored), start])

    def _refuse_character(self, at: int) -> NoReturn:
        if self.text[at] == "/":
            refuse(self.text, at, "this regex is never closed; add '/' on the same line")
        _Reader._refuse_character(self, at)

    def _definition(self, token: Token) -> None:
        self.next += 1
        if token.kind == "statement":
            self._statement(token)
        elif token.kind == "head":
            name = token.text[:-1].rstrip().lstrip("!?").partition(".")[0]
            if name != name.lower() and name != name.upper():
                refuse(self.text, token.at, f"'{name}' is neither all lower case (a rule) nor all upper (a terminal)")
            self.terminal = name if _is_terminal(name) else ""
            self._define(token, name)
        elif token.kind == "template head":  # read where it is used
            while self._peek().kind not in _DEFINITIONS:
                self.next += 1
        else:
            refuse(self.text, token.at, f"expected a rule (name: …), got {token.text[:40]!r}")

    def _row(self, depth: int) -> ir.Node:
        node = _Reader._row(self, depth)
        if self._take("->"):
            self._expect("name", "a name after '->'")
        return node

    def _template(self, token: Token) -> ir.Node:
        """A use of a template: a rule for each different list of arguments."""
        name = token.text.lstrip("!?")[:-1]
        if self.terminal:
            refuse(self.text, token.at, f"the terminal '{self.terminal}' uses the template '{name}'")
        arguments: list[ir.Node] = []
        while True:
            argument = self._atom(self.depth)
            if argument is None:
                refuse(self.text, self._peek().at, f"expected an argument of '{name}', got {self._peek().text[:40]!r}")
            arguments.append(argument)
            if not self._take(","):
                break
        if not self._take("}"):
            refuse(self.text, self._peek().at, f"expected ',' or '}}', got {self._peek().text[:40]!r}")
        if name not in self.templates:
            refuse(self.text, token.at, f"the template '{name}' is not defined")
        parameters, body = self.templates[name]
        if len(parameters) != len(arguments):
            refuse(self.text, token.at, f"'{name}' takes {len(parameters)} arguments, got {len(arguments)}")
        key = name, tuple(arguments)
        if key not in self.instances:
            if len(self.instances) >= MAX_INSTANCES or self.depth >= MAX_INSTANCE_DEPTH:
                refuse(self.text, token.at, f"the template '{name}' is used with too many different arguments")
            self.instances[key] = self._number(f"{name}{{{len(self.instances)}}}")
            outside = self.next, self.bound, self.depth
            self.next, self.bound, self.depth = body, dict(zip(parameters, arguments, strict=True)), self.depth + 1
            self.bodies[self.instances[key]] = self._alternatives(0)
            if self._peek().kind not in _DEFINITIONS:
                refuse(self.text, self._peek().at, f"unexpected {self._peek().text[:40]!r}")
            self.next, self.bound, self.depth = outside
        return ir.Call(self.instances[key])

    def _statement(self, token: Token) -> None:
        if token.text == "%ignore":
            self.terminal = "%ignore"
            ignored = self._alternatives(0)
            number = self._number("%ignore")
            self.bodies[number] = ir.repeat(ir.alt([ignored, ir.without_empty(self.bodies[number])]), 0, None)
            return
        if token.text != "%import":
            refuse(self.text, token.at, f"'{token.text}' is not supported")
        library = self._peek()
        if library.text != "common":
            refuse(self.text, library.at, "only '%import common.…' is supported; copy other rules into the grammar")
        self.next += 1
        if self._take("("):
            while True:
                name = self._expect("name", "a terminal's name")
                self._import(name, name.text)
                if not self._take(","):
                    break
            if not self._take(")"):
                refuse(self.text, self._peek().at, "expected ',' or ')'")
            return
        if not self._take("."):
            refuse(self.text, self._peek().at, "expected '.' and a terminal's name")
        name = self._expect("name", "a terminal's name")
        alias = self._expect("name", "a name after '->'").text if self._take("->") else name.text
        self._import(name, alias)

    def _import(self, token: Token, alias: str) -> None:
        if token.text not in COMMON:
            refuse(self.text, token.at, f"'common' has no terminal '{token.text}'; it has: {', '.join(COMMON)}")
        number = self._number(alias)
        if number in self.bodies:
            refuse(self.text, token.at, f"the rule '{alias}' is defined twice")
        self.bodies[number] = _common(token.text)

    def _literal(self, token: Token) -> ir.Node:
        if token.kind == "template":
            return self._template(token)
        if token.kind == "name" and token.text in self.bound:
            return self.bound[token.text]
        if token.kind == "name":
            call = self._call(token.text, token.at)
            if _is_terminal(token.text):
                return self._spaced(call)
            if self.terminal:
                refuse(self.text, token.at, f"the terminal '{self.terminal}' uses the rule '{token.text}'")
            return call
        if token.kind == "regex":
            return self._spaced(self._regex(token))
        if token.kind != "string":
            refuse(self.text, token.at, f"unexpected {token.text!r}")
        if self._take(".."):
            return self._spaced(self._range(token, self._expect("string", "a string after '..'")))
        ignore_case = token.text.endswith("i")
        text = self._string(token.text[1 : -1 - ignore_case], token.at + 1, "'")
        return self._spaced(parse_regex("(?i)" + re.escape(text), self.deadline) if ignore_case else _word(text))

    def _spaced(self, node: ir.Node) -> ir.Node:
        """A terminal in a rule; what is ignored may follow it."""
        return node if self.terminal or self.ignored is None else ir.seq([node, ir.Call(self.ignored)])

    def _range(self, first: Token, last: Token) -> ir.Node:
        low, high = (self._string(token.text[1:-1], token.at + 1) for token in (first, last))
        if len(low) != 1 or len(high) != 1 or low > high:
            refuse(self.text, first.at, f"a range goes from one character to a later one, not {low!r} to {high!r}")
        return ir.chars(charset.ranges([(ord(low), ord(high))]))

    def _regex(self, token: Token) -> ir.Node:
        body, _, flags = token.text[1:].rpartition("/")
        if unknown := set(flags) & set("lx"):
            refuse(self.text, token.at, f"the regex flag '{min(unknown)}' is not supported")
        flags = "".join(sorted(set(flags) - {"u"}))
        pattern = f"(?{flags}){body}" if flags else body
        try:
            for atom in scan(pattern).atoms:
                if isinstance(atom, Anchor | Look | Boundary):  # it would ask what stands around the terminal
                    refuse(self.text, token.at, f"{atom.name} in a terminal is not supported")
            return parse_regex(pattern, self.deadline)
        except ConstraintError as error:
            if error.param != "regex":
                raise
            refuse(self.text, token.at, str(error).replace("\n", "\n  ") + "\n ")

    def _bounds(self, token: Token) -> tuple[int, int | None]:
        low = self._count(self._expect("number", "a count after '~'").text, token)
        if not self._take(".."):
            return low, low
        return low, self._count(self._expect("number", "a count after '..'").text, token)


def _word(text: str) -> ir.Node:
    return ir.words([text.encode()])
