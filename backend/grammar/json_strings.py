"""Sets of strings: what the string keywords of a schema say together, and what their opposite is."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.chardfa import Language, Product, words_language
from stemma.backend.grammar.json_formats import PATTERNS
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.regex_search import ANYTHING, parse_search, parse_whole, split_lookahead

_CACHED = 512
SHORT = 16  # characters; greater lengths are counted, not written out


class _Cache:
    """Languages and terminals, shared by all schemas of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], object]) -> object:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        return made


_languages, _nodes, _empty = _Cache(), _Cache(), _Cache()


@dataclass(frozen=True, slots=True)
class StringSet:
    """Strings of `low` to `high` characters in all of `yes` and none of `no`; or just the `finite` ones."""

    low: int = 0
    high: int | None = None
    yes: frozenset[Language] = frozenset()
    no: frozenset[Language] = frozenset()
    finite: frozenset[str] | None = None

    def accepts(self, text: str, deadline: Deadline) -> bool:
        if self.finite is not None:
            return text in self.finite
        for language in self.yes | self.no:
            language.prepare(deadline)
        return (
            self.low <= len(text)
            and (self.high is None or len(text) <= self.high)
            and all(language.accepts(text) for language in self.yes)
            and not any(language.accepts(text) for language in self.no)
        )

    def both(self, other: StringSet, deadline: Deadline) -> StringSet:
        if self.finite is not None:
            return replace(self, finite=frozenset(t for t in self.finite if other.accepts(t, deadline)))
        if other.finite is not None:
            return other.both(self, deadline)
        highs = [h for h in (self.high, other.high) if h is not None]
        low, high = max(self.low, other.low), min(highs) if highs else None
        return StringSet(low, high, self.yes | other.yes, self.no | other.no)

    def without(self) -> list[StringSet]:
        """The strings that are not in the set, as a union."""
        if self.finite is not None:
            return [StringSet(no=frozenset([words_language(tuple(self.finite))]))] if self.finite else [ANY_STRING]
        found = [StringSet(high=self.low - 1)] if self.low else []
        if self.high is not None:
            found.append(StringSet(low=self.high + 1))
        found.extend(StringSet(no=frozenset([language])) for language in self.yes)
        for language in self.no:
            if isinstance(language.node, ir.Words):
                found.append(StringSet(finite=frozenset(word.decode() for word in language.node.words)))
            else:
                found.append(StringSet(yes=frozenset([language])))
        return found

    def is_empty(self, deadline: Deadline) -> bool:
        if self.finite is not None:
            return not self.finite
        if self.high is not None and self.high < self.low:
            return True
        if self.yes & self.no:
            return True
        if not self.no and (not self.yes or (len(self.yes) == 1 and not self.low and self.high is None)):
            return False
        if not self.yes and self.high is None and all(_is_words(language) for language in self.no):
            return False
        return bool(_empty.get(self, lambda: self._product(deadline).is_empty()))

    def _product(self, deadline: Deadline) -> Product:
        key = sorted(self.yes, key=lambda x: x.key), sorted(self.no, key=lambda x: x.key)
        return Product(*key, self.low, self.high, deadline)

    def texts(self, deadline: Deadline) -> tuple[ir.Node, int | None]:
        """The IR of the texts themselves, and the greatest number of characters if that is left to be counted."""
        return _nodes.get(self, lambda: self._texts(deadline))  # type: ignore[return-value]

    def _texts(self, deadline: Deadline) -> tuple[ir.Node, int | None]:
        low, high = self.low, self.high
        if self.finite is not None:
            return ir.words(text.encode() for text in self.finite), None
        if len(self.yes) == 1 and not self.no:
            (language,) = self.yes
            shortest, longest = lengths(language.node)
            if shortest >= low and (high is None or shortest <= high):
                within = high is None or (longest is not None and longest <= high)
                return language.node, None if within else high
        if self.yes or self.no:
            if self.is_empty(deadline):
                return ir.NOTHING, None
            if high is not None and high <= SHORT:
                return self._product(deadline).node(), None
            return replace(self, high=None)._product(deadline).node(), high
        if high is not None and high > SHORT:
            return ir.repeat(ir.chars(charset.ALL), low, None), high
        return ir.repeat(ir.chars(charset.ALL), low, high), None


ANY_STRING = StringSet()


def _is_words(language: Language) -> bool:
    return isinstance(language.node, ir.Words)


def lengths(node: ir.Node) -> tuple[int, int | None]:
    """The least and the greatest number of characters of a match (None: without bound); both may be too wide."""
    if isinstance(node, ir.Chars):
        return 1, 1
    if isinstance(node, ir.Words):
        counts = [len(word.decode()) for word in node.words]
        return min(counts), max(counts)
    if isinstance(node, ir.Repeat):
        low, high = lengths(node.node)
        return low * node.low, None if high is None or node.high is None else high * node.high
    if isinstance(node, ir.Seq | ir.Alt):
        parts = [lengths(part) for part in (node.parts if isinstance(node, ir.Seq) else node.options)]
        highs = [high for _, high in parts if high is not None]
        whole, join = len(highs) == len(parts), sum if isinstance(node, ir.Seq) else max
        low = sum(p[0] for p in parts) if isinstance(node, ir.Seq) else min(p[0] for p in parts)
        return low, join(highs) if whole else None
    return 0, None


def _language(key: str, make: Callable[[], ir.Node]) -> Language:
    found = _languages.get(key, lambda: Language(key, make()))
    assert isinstance(found, Language)
    return found


def pattern_set(pattern: str, deadline: Deadline) -> StringSet:
    """The strings in which `pattern` is found."""
    rest, conditions = split_lookahead(pattern)
    found = _language(f"search {rest}", lambda: parse_search(rest, deadline))
    yes = [] if found.node == ANYTHING else [found]
    no = []
    for wanted, condition in conditions:
        language = _language(f"search {condition}", lambda: parse_search(condition, deadline))  # noqa: B023
        (yes if wanted else no).append(language)
    return StringSet(yes=frozenset(yes), no=frozenset(no))


def format_set(name: str, deadline: Deadline) -> StringSet:
    pattern = PATTERNS[name]
    return StringSet(yes=frozenset([_language(f"whole {pattern}", lambda: parse_whole(pattern, deadline))]))
