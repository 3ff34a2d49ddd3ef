"""Sets of numbers, and the automaton of their decimal spellings.

Exact: bounds and multiples are compared digit by digit, never as floats. Numbers have at most `DIGITS` digits before
and behind the point; exponents are written only where no bound or multiple asks for the value.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from stemma.backend.grammar import ir
from stemma.backend.grammar.limits import Deadline
from stemma.lang.errors import ConstraintError

DIGITS = 24
MAX_MODULUS = 10_000
_MAX_STATES = 50_000
_DIGIT = ir.chars(((0x30, 0x39),))
_NONZERO = ir.chars(((0x31, 0x39),))


def exact(value: float | int) -> Fraction:
    """The number as it is written in the schema: 0.1 is a tenth."""
    return Fraction(value) if isinstance(value, int) else Fraction(Decimal(repr(value)))


def _word(text: str) -> ir.Node:
    return ir.words([text.encode()])


_WHOLE = ir.alt([_word("0"), ir.seq([_NONZERO, ir.repeat(_DIGIT, 0, DIGITS - 1)])])
_FRACTION = ir.repeat(ir.seq([_word("."), ir.repeat(_DIGIT, 1, DIGITS)]), 0, 1)
_SIGNS = ir.alt([_word("+"), _word("-")])
_EXPONENT = ir.repeat(
    ir.seq([ir.chars(((0x45, 0x45), (0x65, 0x65))), ir.repeat(_SIGNS, 0, 1), ir.repeat(_DIGIT, 1, 3)]), 0, 1
)
_MINUS = ir.repeat(_word("-"), 0, 1)


@dataclass(frozen=True, slots=True)
class NumberSet:
    """Numbers between the bounds (each open or closed), whole or not, multiples of all of `multiples` and of none of
    `not_multiples`, and not `excluded`; or just the `finite` ones, as spellings."""

    low: Fraction | None = None
    low_open: bool = False
    high: Fraction | None = None
    high_open: bool = False
    whole: bool | None = None
    multiples: frozenset[Fraction] = frozenset()
    not_multiples: frozenset[Fraction] = frozenset()
    excluded: frozenset[Fraction] = frozenset()
    finite: frozenset[str] | None = None

    def accepts(self, value: Fraction) -> bool:
        if self.finite is not None:
            return value in {Fraction(text) for text in self.finite}
        return (
            (self.low is None or (value > self.low if self.low_open else value >= self.low))
            and (self.high is None or (value < self.high if self.high_open else value <= self.high))
            and (self.whole is None or (value.denominator == 1) == self.whole)
            and all((value / m).denominator == 1 for m in self.multiples)
            and all((value / m).denominator != 1 for m in self.not_multiples)
            and value not in self.excluded
        )

    def both(self, other: NumberSet) -> NumberSet:
        if self.finite is not None:
            kept = frozenset(t for t in self.finite if other.accepts(Fraction(t)))
            if other.finite is not None:
                kept |= {t for t in other.finite if self.accepts(Fraction(t))}
            return NumberSet(finite=kept)
        if other.finite is not None:
            return other.both(self)
        low, low_open = _tighter(self.low, self.low_open, other.low, other.low_open, 1)
        high, high_open = _tighter(self.high, self.high_open, other.high, other.high_open, -1)
        whole = other.whole if self.whole is None else self.whole
        clash = self.whole is not None and other.whole is not None and self.whole != other.whole
        multiples, not_multiples = self.multiples | other.multiples, self.not_multiples | other.not_multiples
        if clash or multiples & not_multiples:
            return NumberSet(finite=frozenset())
        return NumberSet(
            low,
            low_open,
            high,
            high_open,
            whole,
            multiples,
            not_multiples,
            self.excluded | other.excluded,
        )

    def without(self) -> list[NumberSet]:
        """The numbers that are not in the set, as a union."""
        if self.finite is not None:
            return [NumberSet(excluded=frozenset(Fraction(text) for text in self.finite))]
        found = []
        if self.low is not None:
            found.append(NumberSet(high=self.low, high_open=not self.low_open))
        if self.high is not None:
            found.append(NumberSet(low=self.high, low_open=not self.high_open))
        if self.whole is not None:
            found.append(NumberSet(whole=not self.whole))
        found.extend(NumberSet(not_multiples=frozenset([m])) for m in self.multiples)
        found.extend(NumberSet(multiples=frozenset([m])) for m in self.not_multiples)
        found.extend(NumberSet(finite=frozenset(number_texts(value))) for value in self.excluded)
        return found

    def is_empty(self, deadline: Deadline) -> bool:
        if self.finite is not None:
            return not self.finite
        if self.low is not None and self.high is not None:
            if self.low > self.high or (self.low == self.high and (self.low_open or self.high_open)):
                return True
        elif not self.excluded and not self.not_multiples and self.whole is not False:
            return False
        return self.node(deadline) == ir.NOTHING

    def node(self, deadline: Deadline) -> ir.Node:
        if self.finite is not None:
            return ir.words(text.encode() for text in self.finite)
        simple = not (self.multiples or self.not_multiples or self.excluded or self.low_open or self.high_open)
        if simple and self.high is None and self.whole is not False:
            if self.whole and self.low is None:
                return ir.alt([_word("0"), ir.seq([_MINUS, _NONZERO, ir.repeat(_DIGIT, 0, DIGITS - 1)])])
            if self.whole and self.low == 0:
                return _WHOLE
            if self.whole and self.low == 1:
                return ir.seq([_NONZERO, ir.repeat(_DIGIT, 0, DIGITS - 1)])
            if not self.whole and (self.low is None or self.low == 0):
                return ir.seq([_MINUS if self.low is None else ir.EMPTY, _WHOLE, _FRACTION, _EXPONENT])
        return _automaton(self, _Clock(deadline))


ANY_NUMBER = NumberSet()


class _Clock:
    """A deadline that does not tell two calls of a cached function apart."""

    def __init__(self, deadline: Deadline) -> None:
        self.check = deadline.check

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Clock)

    def __hash__(self) -> int:
        return 0


def _tighter(
    a: Fraction | None, a_open: bool, b: Fraction | None, b_open: bool, sign: int
) -> tuple[Fraction | None, bool]:
    if a is None or b is None:
        return (b, b_open) if a is None else (a, a_open)
    if a == b:
        return a, a_open or b_open
    return (a, a_open) if (a - b) * sign > 0 else (b, b_open)


def number_texts(value: Fraction) -> list[str]:
    """The plain decimal spelling, if there is one."""
    digits, places = value.numerator, 0
    bottom = value.denominator
    while bottom != 1 and places < 400:
        value *= 10
        digits, bottom, places = value.numerator, value.denominator, places + 1
    if bottom != 1:
        return []
    sign, text = "-" if digits < 0 else "", str(abs(digits)).rjust(places + 1, "0")
    return [sign + (text[:-places] + "." + text[-places:] if places else text)]


class _Bound(NamedTuple):
    value: Fraction
    whole: str
    fraction: str


class _Modulus(NamedTuple):
    """x is a multiple when x * 10**places is one of `modulus`."""

    value: Fraction
    modulus: int
    places: int


class _State(NamedTuple):
    phase: str  # S start, N behind '-', Z behind a leading '0', I in the whole part, D behind '.', F in the fraction
    negative: bool
    read: int  # digits in this phase
    signs: tuple[int, ...]  # for each bound: how the digits compare with its magnitude
    rests: tuple[int, ...]  # for each modulus: the remainder so far; -1 once it cannot be a multiple
    zero: bool  # every digit was 0
    whole: bool  # every digit of the fraction was 0


def _bound(value: Fraction) -> _Bound:
    (text,) = number_texts(abs(value)) or [""]
    if not text:
        raise ConstraintError(f"the bound {value} has no finite decimal spelling")
    whole, _, fraction = text.partition(".")
    return _Bound(value, whole.lstrip("0"), fraction)


def _modulus(value: Fraction) -> _Modulus:
    places, scaled = 0, value
    while scaled.denominator != 1 and places <= DIGITS:
        scaled *= 10
        places += 1
    if scaled.denominator != 1 or scaled.numerator > MAX_MODULUS:
        raise ConstraintError(f"{float(value):g} needs remainders of {scaled.numerator}, the limit is {MAX_MODULUS}")
    return _Modulus(value, scaled.numerator, places)


def check_multiple(value: Fraction) -> None:
    """ConstraintError if multiples of the value cannot be told by their digits."""
    _modulus(value)


@lru_cache(maxsize=1024)
def _automaton(numbers: NumberSet, clock: _Clock) -> ir.Node:
    return _Spelling(numbers).node(clock)


class _Spelling:
    def __init__(self, numbers: NumberSet) -> None:
        self.numbers = numbers
        values = {v for v in (numbers.low, numbers.high) if v is not None} | numbers.excluded
        self.bounds = [_bound(value) for value in sorted(values)]
        self.moduli = [_modulus(value) for value in sorted(numbers.multiples | numbers.not_multiples)]

    def step(self, at: _State, char: str) -> _State | None:
        if char == "-":
            return at._replace(phase="N", negative=True) if at.phase == "S" else None
        if char == ".":
            if at.phase not in "ZI" or self.numbers.whole:
                return None
            signs = tuple(self._resolved(at, i) for i in range(len(self.bounds)))
            return at._replace(phase="D", read=0, signs=signs)
        digit = int(char)
        if at.phase == "Z" or (at.read >= DIGITS and at.phase in "IF"):
            return None
        in_fraction = at.phase in "DF"
        after = "F" if in_fraction else "Z" if digit == 0 and at.phase in "SN" else "I"
        signs = []
        for bound, sign in zip(self.bounds, at.signs, strict=True):
            against = bound.fraction if in_fraction else bound.whole
            other = int(against[at.read]) if at.read < len(against) else 0
            signs.append(sign or (digit > other) - (digit < other) if in_fraction or at.read < len(against) else sign)
        if after == "Z":
            signs = [0] * len(signs)
        rests = tuple(
            rest
            if rest < 0
            else (-1 if digit else rest)
            if in_fraction and at.read >= m.places
            else (10 * rest + digit) % m.modulus
            for m, rest in zip(self.moduli, at.rests, strict=True)
        )
        count = 0 if after == "Z" else at.read + 1
        whole = at.whole and not (in_fraction and digit)
        return _State(after, at.negative, count, tuple(signs), rests, at.zero and digit == 0, whole)

    def _resolved(self, at: _State, i: int) -> int:
        """The comparison of the whole part with a bound's, now that its length is known."""
        digits = 0 if at.phase == "Z" else at.read
        longer = (digits > len(self.bounds[i].whole)) - (digits < len(self.bounds[i].whole))
        return longer or at.signs[i]

    def accepts(self, at: _State) -> bool:
        if at.phase not in "ZIF" or (at.negative and at.zero):
            return False
        order = {b.value: self._compare(at, i) for i, b in enumerate(self.bounds)}
        n = self.numbers
        if n.low is not None and not (order[n.low] > 0 or (order[n.low] == 0 and not n.low_open)):
            return False
        if n.high is not None and not (order[n.high] < 0 or (order[n.high] == 0 and not n.high_open)):
            return False
        if any(order[value] == 0 for value in n.excluded) or (n.whole is False and at.whole):
            return False
        for m, rest in zip(self.moduli, at.rests, strict=True):
            read = min(at.read, m.places) if at.phase == "F" else 0
            multiple = rest >= 0 and rest * 10 ** (m.places - read) % m.modulus == 0
            if multiple != (m.value in n.multiples):
                return False
        return True

    def _compare(self, at: _State, i: int) -> int:
        """Of the number read with bound i."""
        bound = self.bounds[i]
        sign = at.signs[i]
        if at.phase != "F":
            sign = self._resolved(at, i)
        if sign == 0 and any(c != "0" for c in bound.fraction[at.read if at.phase == "F" else 0 :]):
            sign = -1
        negative = at.negative and not at.zero
        if negative != (bound.value < 0):
            return -1 if negative else 1
        return -sign if negative else sign

    def node(self, clock: _Clock) -> ir.Node:
        start = _State("S", False, 0, (0,) * len(self.bounds), (0,) * len(self.moduli), True, True)
        ids, order, moves = {start: 0}, [start], []
        for at in order:
            row: dict[int, list[int]] = {}
            for char in "-.0123456789":
                after = self.step(at, char)
                if after is not None:
                    if after not in ids:
                        ids[after] = len(order)
                        order.append(after)
                    row.setdefault(ids[after], []).append(ord(char))
            moves.append(row)
            if len(order) % 64 == 0:
                clock.check()
            if len(order) > _MAX_STATES:
                raise ConstraintError("the numbers' bounds and multiples need too many states together")
        return _trimmed([self.accepts(at) for at in order], moves)


def _trimmed(accepting: list[bool], moves: list[dict[int, list[int]]]) -> ir.Node:
    sources: list[list[int]] = [[] for _ in moves]
    for source, row in enumerate(moves):
        for target in row:
            sources[target].append(source)
    live = {i for i, accepts in enumerate(accepting) if accepts}
    todo = list(live)
    while todo:
        new = [source for source in sources[todo.pop()] if source not in live]
        live.update(new)
        todo += new
    if 0 not in live:
        return ir.NOTHING
    number = {state: i for i, state in enumerate(sorted(live))}
    edges = [
        (number[source], ir.chars(_ranges(points)), number[target])
        for source in number
        for target, points in moves[source].items()
        if target in number
    ]
    return ir.graph(len(number), edges, [number[i] for i in number if accepting[i]])


def _ranges(points: list[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for point in sorted(points):
        if found and found[-1][1] == point - 1:
            found[-1] = (found[-1][0], point)
        else:
            found.append((point, point))
    return tuple(found)
