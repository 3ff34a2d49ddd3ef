r"""The lexer before the regex parser: atoms, classes, escapes, anchors and flags.

interegular's parser knows neither `\uXXXX` nor anchors, keeps classes as sets of single characters, and reports errors
without a position. So the scanner reads the pattern first, checks it, and writes it again with one private-use
character for every atom; what is left for the parser is the structure: groups, alternation and repetition.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import NoReturn

from stemma.backend.grammar import charset, limits
from stemma.backend.grammar.charset import Ranges
from stemma.backend.grammar.unicode_classes import property_named
from stemma.lang.errors import ConstraintError

FIRST_PLACEHOLDER = 0xF0000

_QUANTIFIER = re.compile(r"[*+?]|\{(?=\d|,\d|,\})(\d*)(,?)(\d*)\}")
_NAMED = re.compile(r"\?P?<[A-Za-z_]\w*>")
_FLAGS = re.compile(r"\?([a-zA-Z]*)(-[a-zA-Z]*)?([:)])")
_SIMPLE = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "a": 7}
_NAMED_CLASSES = "dDwWsSpP"
_REFUSED_GROUPS = (
    ("?>", "atomic group '(?>…)'"),
    ("?P=", "backreference '(?P=…)'"),
    ("?(", "conditional group '(?(…)…)'"),
)


_LOOKS = {"?=": (True, False), "?!": (True, True), "?<=": (False, False), "?<!": (False, True)}


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place where `^` (start) or `$` (end) was asked for, at `position` in the pattern. `lines`: of a line, not of
    the text. `strict`: `\\Z`, which allows no line feed behind itself."""

    start: bool
    position: int
    lines: bool = False
    strict: bool = False

    @property
    def name(self) -> str:
        return "an anchor"


@dataclass(frozen=True, slots=True)
class Look:
    """What follows in its group is to be found ahead of (or behind) this place, or not to be found if `negative`."""

    ahead: bool
    negative: bool
    position: int

    @property
    def name(self) -> str:
        return "lookahead" if self.ahead else "lookbehind"


@dataclass(frozen=True, slots=True)
class Boundary:
    """`\\b`: a character of `word` on one side of this place only; `negated`: `\\B`."""

    word: Ranges
    negated: bool
    position: int

    @property
    def name(self) -> str:
        return "a word boundary"


@dataclass(frozen=True, slots=True)
class Possessive:
    """`[…]*+` and the like: one of `ranges`, `low` to `high` times, as often as it goes. `position` is the last `+`."""

    ranges: Ranges
    low: int
    high: int | None
    position: int


Atom = Ranges | bytes | Anchor | Possessive | Look | Boundary


@dataclass(frozen=True, slots=True)
class Scanned:
    """`text` is for the parser; `atoms[i]` is what the placeholder `FIRST_PLACEHOLDER + i` stands for."""

    text: str
    atoms: list[Atom]


def refuse(pattern: str, position: int, problem: str) -> NoReturn:
    """ConstraintError that shows the pattern (a window of it, when long) with a caret under `position`."""
    start = max(0, position - 50)
    window = pattern[start : position + 30]
    shown = "".join(c if c.isprintable() else "." for c in window)
    left, right = "…" if start else "", "…" if position + 30 < len(pattern) else ""
    caret = " " * (len(left) + position - start) + "^"
    raise ConstraintError(f"regex: {problem} (position {position})\n  {left}{shown}{right}\n  {caret}", param="regex")


def _as_text(bounds: tuple[int, int | None] | None) -> str:
    """A repetition in the one form that the parser is given."""
    return "" if bounds is None else f"{{{bounds[0]},{'' if bounds[1] is None else bounds[1]}}}"


def scan(pattern: str, *, ecma: bool = False) -> Scanned:
    """`ecma`: `\\w` and `\\s` mean what JavaScript says, whose dialect JSON Schema's patterns have.

    Raises ConstraintError, with a caret, for bad syntax and for what this version does not support."""
    if len(pattern) > limits.MAX_PATTERN:
        raise ConstraintError(
            f"regex: the pattern has {len(pattern)} characters, the limit is {limits.MAX_PATTERN}; it starts with "
            f"{pattern[:40]!r}",
            param="regex",
        )
    return _Scanner(pattern, ecma=ecma).run()


@dataclass(slots=True)
class _Scanner:
    pattern: str
    ecma: bool = False
    at: int = 0
    flags: frozenset[str] = frozenset()
    # where each open group began, the flags outside, and what closes it
    groups: list[tuple[int, frozenset[str], str]] = field(default_factory=list)
    out: list[str] = field(default_factory=list)
    literal: list[str] = field(default_factory=list)  # a run of plain characters, not yet written
    atoms: list[Atom] = field(default_factory=list)
    known: dict[Atom, str] = field(default_factory=dict)

    def run(self) -> Scanned:
        while self.at < len(self.pattern):
            self._next()
        if self.groups:
            self._refuse(self.groups[-1][0], "this group is never closed; add ')'")
        self._flush()
        return Scanned("".join(self.out), self.atoms)

    def _refuse(self, position: int, problem: str) -> NoReturn:
        refuse(self.pattern, position, problem)

    def _next(self) -> None:
        start, char = self.at, self.pattern[self.at]
        if char == "(":
            self._flush()
            self._open()
        elif char == ")":
            self._close()
        elif char == "|":
            self._write("|")
            self.at += 1
        elif char in "*+?":
            self._refuse(start, f"nothing to repeat before {char!r}; write '\\{char}' for the character")
        elif char in "^$":
            self.at += 1
            self._emit(Anchor(char == "^", start, lines="m" in self.flags), start)
        else:
            self._emit(self._atom(), start)

    # -- groups

    def _open(self) -> None:
        start = self.at
        self.at += 1
        for prefix, what in _REFUSED_GROUPS:
            if self.pattern.startswith(prefix, self.at):
                self._refuse(start, f"{what} is not supported; rewrite the pattern without it")
        flags = self.flags
        if self.pattern.startswith("?#", self.at):
            end = self.pattern.find(")", self.at)
            if end < 0:
                self._refuse(start, "this comment is never closed; add ')'")
            self.at = end + 1
            return
        look = next((prefix for prefix in _LOOKS if self.pattern.startswith(prefix, self.at)), None)
        if look is not None:
            self.at += len(look)
        elif named := _NAMED.match(self.pattern, self.at):
            self.at = named.end()
        elif given := _FLAGS.match(self.pattern, self.at):
            self.at = given.end()
            flags = self._with_flags(start, given)
            if given[3] == ")":
                if self.out or self.groups or self.literal:
                    self._refuse(start, "flags for the whole pattern must stand at its start; or write '(?i:…)'")
                self.flags = flags
                return
        elif self.pattern.startswith("?", self.at):
            self._refuse(start, "unknown kind of group")
        if len(self.groups) >= limits.MAX_DEPTH:
            self._refuse(start, f"groups are nested more than {limits.MAX_DEPTH} deep")
        self.groups.append((start, self.flags, ")" if look is None else "))"))
        self.flags = flags
        self._write("(" if look is None else f"({self._placeholder(Look(*_LOOKS[look], start), start)}(")

    def _with_flags(self, start: int, given: re.Match[str]) -> frozenset[str]:
        added, removed = given[1], (given[2] or "")[1:]
        for flag in added + removed:
            if flag not in "imsau":
                self._refuse(start, f"flag {flag!r} is not supported; i, m, s, a and u are")
        if given[3] == ")" and given[2]:
            self._refuse(start, "flags can be switched off only for a group: '(?-i:…)'")
        kept = self.flags - {"a"} if "u" in added else self.flags
        return (kept | set(added)) - set(removed)

    def _close(self) -> None:
        if not self.groups:
            self._refuse(self.at, "unbalanced ')'; write '\\)' for the character")
        _, self.flags, closing = self.groups.pop()
        self._write(closing)
        self.at += 1
        if closing == "))" and _QUANTIFIER.match(self.pattern, self.at):
            self._refuse(self.at, "lookahead and lookbehind cannot be repeated")
        bounds, mode = self._quantifier()
        if mode == "+":
            self._refuse(self.at - 1, "possessive repeats are supported for a single character or class only")
        self._write(_as_text(bounds))

    def _quantifier(self) -> tuple[tuple[int, int | None] | None, str]:
        """Read the repetition at this place, if any: its bounds, and "?" if it is lazy, "+" if possessive."""
        found = _QUANTIFIER.match(self.pattern, self.at)
        if found is None:
            return None, ""
        start, self.at = self.at, found.end()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0], (0, None))
        if found[0][0] == "{":
            if max(len(found[1]), len(found[3])) > 9:
                self._refuse(start, "this repeat count is too large")
            low = int(found[1] or 0)
            high = low if not found[2] else int(found[3]) if found[3] else None
            if high is not None and low > high:
                self._refuse(start, f"the least count {low} is above the greatest {high}")
        mode = self.pattern[self.at : self.at + 1]
        mode = mode if mode in ("?", "+") else ""
        self.at += len(mode)
        if again := _QUANTIFIER.match(self.pattern, self.at):
            self._refuse(self.at, f"{again[0]!r} repeats a repeat; put a group around the first")
        return (low, high), mode

    # -- atoms

    def _emit(self, atom: Ranges | Anchor | Boundary, start: int) -> None:
        if isinstance(atom, Anchor | Boundary):
            if _QUANTIFIER.match(self.pattern, self.at):
                self._refuse(self.at, f"{atom.name} cannot be repeated")
            self._write(self._placeholder(atom, start))
            return
        bounds, mode = self._quantifier()
        if bounds and mode == "+":
            self._write(self._placeholder(Possessive(atom, *bounds, self.at - 1), start))
        elif bounds or len(atom) != 1 or atom[0][0] != atom[0][1]:
            self._write(self._placeholder(atom, start) + _as_text(bounds))
        else:
            self.literal.append(chr(atom[0][0]))

    def _placeholder(self, atom: Atom, position: int) -> str:
        mark = self.known.get(atom)
        if mark is None:
            if len(self.atoms) >= limits.MAX_ATOMS:
                self._refuse(position, f"more than {limits.MAX_ATOMS} different literals and classes")
            mark = self.known[atom] = chr(FIRST_PLACEHOLDER + len(self.atoms))
            self.atoms.append(atom)
        return mark

    def _write(self, text: str) -> None:
        self._flush()
        self.out.append(text)

    def _flush(self) -> None:
        if self.literal:
            run = "".join(self.literal).encode()
            self.literal.clear()
            self.out.append(self._placeholder(run, self.at))

    def _atom(self) -> Ranges | Anchor | Boundary:
        start, char = self.at, self.pattern[self.at]
        self.at += 1
        if char == ".":
            return charset.ALL if "s" in self.flags else charset.complement(((10, 10),))
        if char == "[":
            return self._class(start)
        if char == "\\":
            following = self.pattern[self.at : self.at + 1]
            if following in ("A", "Z", "z") and following:
                self.at += 1
                return Anchor(following == "A", start, strict=True)
            if following in ("b", "B") and following:
                self.at += 1
                return Boundary(self._named_class("w", start), following == "B", start)
            return self._fold(self._escape(start, inside=False))
        return self._fold(self._point(ord(char), start))

    def _point(self, point: int, start: int) -> Ranges:
        if not 0 <= point <= charset.LAST or 0xD800 <= point <= 0xDFFF:
            self._refuse(start, f"U+{point:04X} is not a character (a lone surrogate cannot be written in UTF-8)")
        return ((point, point),)

    def _fold(self, of: Ranges) -> Ranges:
        return charset.ignoring_case(of) if "i" in self.flags else of

    def _class(self, start: int) -> Ranges:
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        first, members = self.at, []
        while True:
            if self.at >= len(self.pattern):
                self._refuse(start, "this class is never closed; add ']'")
            if self.pattern[self.at] == "]" and self.at > first:
                break
            members.extend(self._class_member())
        self.at += 1
        of = self._fold(charset.ranges(members))
        return charset.complement(of) if negated else of

    def _class_member(self) -> Ranges:
        start = self.at
        if self.pattern.startswith("[:", start) and ":]" in self.pattern[start : start + 20]:
            self._refuse(start, "POSIX classes are not supported; write the characters, or \\w, \\d, \\s")
        if self.pattern.startswith("&&", start):
            self._refuse(start, "class intersection is not supported; write '\\&' for the character")
        low = self._class_char()
        if not self.pattern.startswith("-", self.at) or self.pattern.startswith("-]", self.at):
            return low
        self.at += 1
        if self.at >= len(self.pattern):
            return low
        high = self._class_char()
        ends = (low, high)
        if any(len(e) != 1 or e[0][0] != e[0][1] for e in ends) or low[0][0] > high[0][0]:
            self._refuse(start, f"bad range {self.pattern[start : self.at]!r} in a class")
        return charset.ranges([(low[0][0], high[0][0])])

    def _class_char(self) -> Ranges:
        start, char = self.at, self.pattern[self.at]
        self.at += 1
        return self._escape(start, inside=True) if char == "\\" else self._point(ord(char), start)

    # -- escapes; self.at is behind the backslash, `start` on it

    def _escape(self, start: int, *, inside: bool) -> Ranges:
        if self.at >= len(self.pattern):
            self._refuse(start, "a lone '\\' at the end; write '\\\\' for the character")
        char = self.pattern[self.at]
        self.at += 1
        if char in _SIMPLE:
            return self._point(_SIMPLE[char], start)
        if char in _NAMED_CLASSES:
            return self._named_class(char, start)
        if char in "xuU":
            return self._hexadecimal(start, {"x": 2, "u": 4, "U": 8}[char])
        if char.isdigit() and char.isascii():
            return self._octal(start, inside)
        if char == "b" and inside:
            return self._point(8, start)
        if char == "c" and (letter := self.pattern[self.at : self.at + 1]).isascii() and letter.isalpha():
            self.at += 1  # JavaScript's control characters
            return self._point(ord(letter) & 31, start)
        if char == "N":
            return self._named_character(start)
        if char.isascii() and char.isalpha():
            self._refuse(start, f"unknown escape '\\{char}'")
        return self._point(ord(char), start)

    def _named_class(self, char: str, start: int) -> Ranges:
        if char in "pP":
            of = self._category(start)
        elif char in "dD":
            of = charset.DIGITS
        elif self.ecma:
            of = charset.ASCII_WORD if char in "wW" else charset.ECMA_SPACE
        elif "a" in self.flags:
            of = charset.ASCII_WORD if char in "wW" else charset.ASCII_SPACE
        else:
            of = charset.of_regex(r"\w" if char in "wW" else r"\s")
        return charset.complement(of) if char.isupper() else of

    def _category(self, start: int) -> Ranges:
        found = re.compile(r"\{(\^?)([^{}]*)\}|([A-Za-z])").match(self.pattern, self.at)
        if found is None:
            self._refuse(start, "this class needs a name, such as \\p{Lu} or \\p{Greek}")
        name = found[2] or found[3] or ""
        of = property_named(name)
        if of is None:
            known = "categories (\\p{Lu}), scripts (\\p{Greek}), \\p{Any}, \\p{ASCII} and \\p{Assigned} are"
            self._refuse(start, f"the Unicode property {name!r} is not known or not supported; {known}")
        self.at = found.end()
        return charset.complement(of) if found[1] else of

    def _hexadecimal(self, start: int, digits: int) -> Ranges:
        point = self._hex_digits(digits)
        if point is None:
            self._refuse(start, f"this escape needs {digits} hexadecimal digits")
        if 0xD800 <= point <= 0xDBFF and self.pattern.startswith("\\u", self.at):
            self.at += 2
            low = self._hex_digits(4)
            if low is not None and 0xDC00 <= low <= 0xDFFF:
                point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00)
        return self._point(point, start)

    def _hex_digits(self, digits: int) -> int | None:
        text = self.pattern[self.at : self.at + digits]
        if len(text) < digits or not all(c in "0123456789abcdefABCDEF" for c in text):
            return None
        self.at += digits
        return int(text, 16)

    def _octal(self, start: int, inside: bool) -> Ranges:
        digits = re.compile("[0-7]{1,3}").match(self.pattern, start + 1)
        text = digits[0] if digits else ""
        if text[:1] == "0" or len(text) == 3 or (inside and text):
            point = int(text, 8)
            if point > 0o377:
                self._refuse(start, f"octal escape '\\{text}' is above \\377")
            self.at = start + 1 + len(text)
            return self._point(point, start)
        self._refuse(start, "backreferences are not supported; write the group's pattern again")

    def _named_character(self, start: int) -> Ranges:
        found = re.compile(r"\{([^}]+)\}").match(self.pattern, self.at)
        try:
            point = ord(unicodedata.lookup(found[1])) if found else -1
        except (KeyError, TypeError):
            point = -1
        if found is None or point < 0:
            self._refuse(start, "unknown character name; write '\\N{…}' with a name of the Unicode standard")
        self.at = found.end()
        return self._point(point, start)
