"""From a constraint to a grammar, and the cache of grammars that an engine keeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from stemma.backend.grammar import ir
from stemma.backend.grammar.after import behind
from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.base import Grammar, Vocabulary
from stemma.backend.grammar.composed import finder_of, lower_composed
from stemma.backend.grammar.ebnf import parse_ebnf
from stemma.backend.grammar.give_way import not_collecting
from stemma.backend.grammar.json_schema import Lowered, read_schema
from stemma.backend.grammar.limits import MAX_SIZE, TIME_LIMIT, Deadline
from stemma.backend.grammar.longest import longest_text
from stemma.backend.grammar.masks import Walker, index_of
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.backend.grammar.regex import parse_regex
from stemma.backend.grammar.tags import parse_structural_tag
from stemma.lang.errors import ConstraintError
from stemma.lang.params import Constraint

MASK_BYTES = 32 << 20  # of mask rows that one grammar keeps


def lower(constraint: Constraint, deadline: Deadline, *, lenient: bool = False) -> Lowered:
    """The front end for the constraint's kind. ConstraintError for a value that it cannot read."""
    lowered = _lower(constraint, deadline, lenient)
    return lowered if constraint.after is None else lowered._replace(node=behind(constraint.after, lowered.node))


def _lower(constraint: Constraint, deadline: Deadline, lenient: bool) -> Lowered:
    kind, value = constraint.kind, constraint.value
    if not isinstance(value, str):
        return Lowered(_choices(value))
    if kind == "regex":
        return Lowered(parse_regex(value, deadline))
    if kind == "ebnf":
        return parse_ebnf(value, deadline)
    lenient, whitespace = lenient or constraint.lenient, constraint.whitespace
    if kind == "json_schema":
        return read_schema(value, deadline, lenient=lenient, whitespace=whitespace)
    if kind == "composed":
        return lower_composed(constraint, deadline, lambda leaf: lower(leaf, deadline, lenient=lenient))
    return parse_structural_tag(value, deadline, lenient=lenient, whitespace=whitespace)


def _choices(choices: tuple[str, ...]) -> ir.Node:
    texts = []
    for i, choice in enumerate(choices):
        try:
            texts.append(choice.encode())
        except UnicodeEncodeError:
            raise ConstraintError(
                f"choices[{i}] holds a lone surrogate, which is no character: {choice!r}", param="choices"
            ) from None
    size = sum(map(len, texts))
    if size > MAX_SIZE:
        raise ConstraintError(
            f"choices hold {size} bytes in {len(texts)} strings, the limit is {MAX_SIZE}", param="choices"
        )
    return ir.words(texts)


def compile_constraint(
    constraint: Constraint,
    vocab: Vocabulary,
    *,
    walker: str | None = None,
    time_limit: float = TIME_LIMIT,
    lenient: bool = False,
) -> RegularGrammar:
    """Compile for one vocabulary. May run in any thread. `walker`: see `masks.index_of`. `lenient`, as in the
    constraint: drop what cannot be enforced of a schema. The grammar's `warnings` say what says nothing.

    Raises ConstraintError, naming the value and where there is one the position, when the constraint is malformed, not
    supported, too large, matches nothing, or takes longer than `time_limit` seconds.
    """
    tokens = index_of(vocab, walker)
    deadline = Deadline(time_limit, constraint.kind)
    with not_collecting(), naming(constraint.kind):
        lowered = lower(constraint, deadline, lenient=lenient)
        dfa = tokens.automaton(lowered.node, deadline, tokens.trie.alphabet, lowered.rules, trim=lowered.trim)
        refuse_nothing(dfa, constraint)
        return ready_grammar(dfa, vocab, tokens, lowered.warnings, longest_text(lowered.node, lowered.rules))


@contextlib.contextmanager
def naming(kind: str) -> Iterator[None]:
    """A ConstraintError of the automaton, which does not know what it was made of, gets the constraint's kind."""
    try:
        yield
    except ConstraintError as error:
        if error.param is None:
            raise ConstraintError(f"{kind}: {error}", param=kind) from None
        raise


def refuse_nothing(dfa: Dfa, constraint: Constraint) -> None:
    """Raises ConstraintError when there is no match over the automaton's alphabet."""
    if dfa.matches_nothing:
        raise ConstraintError(
            f"{constraint.kind}: the model's vocabulary cannot spell any match of {str(constraint.value)[:80]!r}",
            param=constraint.kind,
        )


def ready_grammar(
    dfa: Dfa, vocab: Vocabulary, tokens: Walker, warnings: tuple[str, ...], longest: int | None = None
) -> RegularGrammar:
    """The grammar of an automaton, with its first mask: every generation needs it, and here nobody waits."""
    grammar = RegularGrammar(dfa, vocab, tokens, MASK_BYTES, warnings)
    grammar.longest = longest
    grammar.matcher().mask()
    return grammar


def compile_schema(
    schema: str | dict | bool,
    vocab: Vocabulary,
    *,
    lenient: bool = False,
    whitespace: str | None = None,
    walker: str | None = None,
    time_limit: float = TIME_LIMIT,
) -> RegularGrammar:
    """Compile a JSON schema, given as text or as the value it stands for. See `compile_constraint`, `Constraint`."""
    text = schema if isinstance(schema, str) else json.dumps(schema)
    constraint = Constraint("json_schema", text, lenient, whitespace)
    return compile_constraint(constraint, vocab, walker=walker, time_limit=time_limit)


def matches(constraint: Constraint, text: str | bytes) -> bool:
    """Whether the whole text satisfies the constraint; needs no vocabulary. Raises as `compile_constraint` does."""
    deadline = Deadline(TIME_LIMIT, constraint.kind)
    lowered = lower(constraint, deadline)
    dfa = Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)
    state = dfa.run(0, text.encode() if isinstance(text, str) else text)
    return state != DEAD and dfa.accepting[state]


def find_captures(constraint: Constraint, text: str, seconds: float = TIME_LIMIT) -> dict[str, list[list[int]]] | None:
    """Where the captures of a composed constraint are in a text that it matched: start and end in characters, by name.

    None if the text as a whole is no match. Raises ConstraintError when finding them takes longer than `seconds`.
    """
    with _finding:
        return finder_of(constraint, lower).find(text, seconds)


_finding = threading.Lock()


def warm_up() -> None:
    """Load what the first constraint would wait for: the compiled automaton and walk, and the Unicode tables. Takes up
    to seconds, and longer for the first time on a machine, when they are compiled."""
    tokens = [bytes([i]) for i in range(128)]
    tiny = Vocabulary(tokens, len(tokens), frozenset(), lambda text: list(text.encode("ascii", "ignore")))
    grammar = compile_constraint(Constraint("regex", r"abc(?i:\w)\s[a-z]{100}x{40}"), tiny)
    grammar.dfa.warm_up()
    matcher = grammar.matcher()
    for token in b"abcd e":
        matcher.forced()
        matcher.mask()
        matcher.accept(token)


LOOK_EVERY = 64  # hits between two looks at the cache's size: grammars grow while they are used
PEER_BYTES = 1 << 20  # what a grammar of another engine is counted as: they do not tell


def _crowded(grammar: Grammar) -> bool:
    """A native grammar whose automaton has grown so far that the next user had better have a fresh one."""
    return isinstance(grammar, RegularGrammar) and grammar.dfa.crowded


def _bytes_of(constraint: Constraint, grammar: Grammar) -> int:
    return _size(constraint) + (grammar.nbytes if isinstance(grammar, RegularGrammar) else PEER_BYTES)


def _size(constraint: Constraint) -> int:
    """Bytes of a constraint's own text, about: up to 4 for each character."""
    value = constraint.value
    return sys.getsizeof(value) if isinstance(value, str) else sum(map(sys.getsizeof, value), sys.getsizeof(value))


_hashing = threading.Lock()  # of megabytes: many threads at once would keep the interpreter from the engine's


def _digest(constraint: Constraint) -> bytes:
    """Stands for a constraint that is remembered without its text."""
    value = constraint.value
    options = repr((constraint.kind, constraint.lenient, constraint.whitespace, constraint.after))
    hashed = hashlib.blake2b(options.encode("utf-8", "surrogatepass"), digest_size=32)
    with _hashing:
        for text in (value,) if isinstance(value, str) else value:
            coded = text.encode("utf-8", "surrogatepass")
            hashed.update(len(coded).to_bytes(8, "little"))
            hashed.update(coded)
    return hashed.digest()


class GrammarCache:
    """Compiled constraints of one vocabulary; the least recently used go when they hold more than `max_bytes`.

    Thread-safe. Each constraint is compiled once, by the thread that asks first; others wait for it. A constraint that
    failed to compile is remembered too, by its digest, and fails again at once; at most `max_failures` of them, with
    at most `max_failure_bytes` of messages.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        max_bytes: int = 256 << 20,
        *,
        max_failures: int = 1024,
        max_failure_bytes: int = 4 << 20,
        compile: Callable[[Constraint, Vocabulary], Grammar] = compile_constraint,
    ) -> None:
        self._vocab = vocab
        self._max_bytes = max_bytes
        self._max_failures = max_failures
        self._max_failure_bytes = max_failure_bytes
        self._compile = compile
        self._grammars: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._failures: OrderedDict[bytes, tuple[str, str | None]] = OrderedDict()
        self._failure_bytes = 0
        self._found = 0
        self._running: dict[Constraint, Future[Grammar]] = {}
        self._lock = threading.Lock()

    def peek(self, constraint: Constraint) -> Grammar | None:
        """The grammar if it is here already. Never compiles, never waits for a compilation."""
        with self._lock:
            grammar = self._grammars.get(constraint)
            if grammar is None or _crowded(grammar):
                return None
            self._grammars.move_to_end(constraint)
            self._found += 1
            if self._found % LOOK_EVERY == 0:
                self._evict()
            return grammar

    def clear(self) -> None:
        """Forget the grammars; who uses one keeps it."""
        with self._lock:
            self._grammars.clear()

    def get(self, constraint: Constraint) -> Grammar:
        """The grammar, compiled now if need be. Raises what `compile_constraint` raises."""
        digest = _digest(constraint)
        with self._lock:
            if (grammar := self._grammars.get(constraint)) and not _crowded(grammar):
                self._grammars.move_to_end(constraint)
                return grammar
            if failure := self._failures.get(digest):
                self._failures.move_to_end(digest)
                raise ConstraintError(failure[0], param=failure[1])
            running, ours = self._running.get(constraint), Future[Grammar]()
            if running is None:
                self._running[constraint] = ours
        return running.result() if running else self._compile_for_all(constraint, digest, ours)

    def _compile_for_all(self, constraint: Constraint, digest: bytes, ours: Future[Grammar]) -> Grammar:
        try:
            grammar = self._compile(constraint, self._vocab)
        except BaseException as error:
            with self._lock:
                if isinstance(error, ConstraintError):
                    self._remember(digest, str(error), error.param)
                del self._running[constraint]
            ours.set_exception(error)
            raise
        with self._lock:
            self._grammars[constraint] = grammar
            self._grammars.move_to_end(constraint)
            del self._running[constraint]
            self._evict()
        ours.set_result(grammar)
        return grammar

    def _remember(self, digest: bytes, message: str, param: str | None) -> None:
        self._failures[digest] = (message, param)
        self._failure_bytes += len(message)
        while self._failures and (
            len(self._failures) > self._max_failures or self._failure_bytes > self._max_failure_bytes
        ):
            _, (dropped, _) = self._failures.popitem(last=False)
            self._failure_bytes -= len(dropped)

    def _evict(self) -> None:
        """Drop the oldest until the rest fits; the newest stays whatever its size."""
        held = {key: _bytes_of(key, grammar) for key, grammar in self._grammars.items()}
        total = sum(held.values())
        while total > self._max_bytes and len(self._grammars) > 1:
            key, _ = self._grammars.popitem(last=False)
            total -= held[key]
