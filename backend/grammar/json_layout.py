"""Where white space may stand between the parts of a JSON text, and how much of it.

Nothing stands before or behind the whole value, whatever the policy: behind its end a model could only go on with
blanks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stemma.backend.grammar import charset, ir
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.regex import parse_regex
from stemma.lang.errors import ConstraintError

JSON_SPACE: charset.Ranges = ((9, 10), (13, 13), (32, 32))
MOST = 64  # characters in one place, with "any"
WORDS = 64  # a policy with so few texts is written out, so that what it forces stays forced


@dataclass(frozen=True, slots=True)
class Layout:
    """`comma`: between members and items. `colon`: what may stand behind a key. `inside`: behind an opening bracket and
    before a closing one. `rules`: what the nodes call, to stand first among the rules."""

    comma: ir.Node = field(default_factory=lambda: ir.words([b",", b", "]))
    colon: ir.Node = field(default_factory=lambda: ir.words([b":", b": "]))
    inside: ir.Node = ir.EMPTY
    rules: tuple[ir.Node, ...] = ()

    def key(self, spellings: Iterable[bytes]) -> ir.Node:
        """A name, in quotes already, and its colon."""
        if isinstance(self.colon, ir.Words):
            return ir.words(text + colon for text in spellings for colon in self.colon.words)
        return ir.seq([ir.words(spellings), self.colon])


def layout_of(whitespace: str | None, deadline: Deadline) -> Layout:
    """The layout of a policy, as `Constraint.whitespace` names it. ConstraintError if it is no pattern of blanks."""
    if whitespace is None:
        return Layout()
    if whitespace == "compact":
        return Layout(ir.words([b","]), ir.words([b":"]))
    if whitespace == "any":
        blanks: ir.Node = ir.repeat(ir.chars(JSON_SPACE), 0, MOST)
    else:
        blanks = _blanks(whitespace, deadline)
    if isinstance(blanks, ir.Words):
        texts = blanks.words
        if len(texts) ** 2 <= WORDS:
            around = [[a + mark + b for a in texts for b in texts] for mark in (b",", b":")]
            return Layout(ir.words(around[0]), ir.words(around[1]), blanks)
    call = ir.Call(0, nullable=blanks.nullable)
    comma, colon = (ir.seq([call, ir.words([mark]), call]) for mark in (b",", b":"))
    return Layout(comma, colon, call, (blanks,))


def _blanks(pattern: str, deadline: Deadline) -> ir.Node:
    try:
        node = parse_regex(pattern, deadline)
        odd = _odd_character(node)
    except ConstraintError as error:
        if error.param == deadline.what:
            raise
        raise ConstraintError(f"whitespace: {error}", param="whitespace") from None
    if odd is not None:
        raise ConstraintError(
            f'whitespace must be "compact", "any" or a regex of JSON white space (space, \\t, \\n, \\r); {pattern!r} '
            f"also matches {chr(odd)!r}",
            param="whitespace",
        )
    return node


def _odd_character(node: ir.Node) -> int | None:
    """A character that some match holds and that is no JSON white space."""
    if isinstance(node, ir.Chars):
        allowed = charset.complement(JSON_SPACE)
        return next((max(a, low) for a, b in node.ranges for low, high in allowed if a <= high and low <= b), None)
    if isinstance(node, ir.Words):
        return next((ord(c) for word in node.words for c in word.decode() if c not in " \t\n\r"), None)
    if isinstance(node, ir.Graph):
        parts: Iterable[ir.Node] = [label for _, label, _ in node.edges]
    elif isinstance(node, ir.Seq | ir.Alt):
        parts = node.parts if isinstance(node, ir.Seq) else node.options
    else:
        assert isinstance(node, ir.Repeat)
        parts = [node.node]
    return next((odd for part in parts if (odd := _odd_character(part)) is not None), None)
