"""The shortest way to finish a text: of the fewest bytes, exactly; in few tokens.

Two steps. For every place of the nondeterministic automaton, the number of bytes to the end of its rule (Knuth's
generalisation of Dijkstra's algorithm to grammars: a call costs what its rule costs, 1977). With the stacks of a state
that bounds from below what the state needs, and exactly so but for `ir.Except` and `ir.Counted`, which only forbid. The
bound guides an A* search over the deterministic states, whose path is then exact.

The path's bytes are spelled in the fewest tokens, but where the mask asks for the canonical token of a forced text.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.charset import ByteTree
from stemma.backend.grammar.nfa import Nfa
from stemma.backend.grammar.trie import TokenTrie
from stemma.lang.errors import ConstraintError

MAX_PLACES = 200_000  # of an automaton whose distances are worked out: about a second of work
MAX_EXPANDED = 5_000  # states that one search looks behind
FAR = 1 << 40  # no way

_LIKED = b"aeinortslcdmpughbfywvkxzjq0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RANK = {byte: rank for rank, byte in enumerate(_LIKED)}


def _refuse(problem: str) -> ConstraintError:
    return ConstraintError(f"finish_in_budget: {problem}", param="finish_in_budget")


def _shortest_in(trees: Sequence[ByteTree]) -> list[int]:
    """The bytes of each tree's shortest character."""
    known: dict[int, int] = {}

    def depth(tree: ByteTree) -> int:
        found = known.get(id(tree))
        if found is None:
            found = known[id(tree)] = min((1 if rest is None else 1 + depth(rest) for _, _, rest in tree), default=FAR)
        return found

    return [depth(tree) for tree in trees]


def distances(nfa: Nfa, shortest: Sequence[int]) -> list[int]:
    """int[places]: the fewest bytes from a place to the end of its rule (place 1 for the main one). FAR: no way."""
    count = len(nfa.edges)
    into: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for place, edges in enumerate(nfa.edges):
        for tree, target in edges:
            into[target].append((place, shortest[tree]))
    for place, targets in enumerate(nfa.empty):
        for target in targets:
            into[target].append((place, 0))
    calls: dict[int, list[tuple[int, int]]] = {}  # by a place that a call needs: (the caller, the other it needs)
    for place, called in nfa.calls.items():
        for start, back in called:
            calls.setdefault(start, []).append((place, back))
            calls.setdefault(back, []).append((place, start))
    best = [FAR] * count
    done = bytearray(count)
    heap = []
    for end in {1, *nfa.ends}:
        best[end] = 0
        heap.append((0, end))
    while heap:
        cost, at = heapq.heappop(heap)
        if done[at]:
            continue
        done[at] = 1
        for place, more in into[at]:
            if cost + more < best[place]:
                best[place] = cost + more
                heapq.heappush(heap, (cost + more, place))
        for place, other in calls.get(at, ()):
            if done[other] and cost + best[other] < best[place]:
                best[place] = cost + best[other]
                heapq.heappush(heap, (best[place], place))
    return best


class ShortestTexts:
    """For the states of one automaton. Results are kept: the states on a path know the rest of it."""

    def __init__(self, dfa: Dfa) -> None:
        nfa = dfa._nfa
        if len(nfa.edges) > MAX_PLACES:
            raise _refuse(f"the constraint is too large for it ({len(nfa.edges)} places, the limit is {MAX_PLACES})")
        self._dfa = dfa
        self._character = _shortest_in(nfa.trees)
        self._to_end = distances(nfa, self._character)
        self._stacks: dict[int, int] = {0: 0}
        self._bounds: dict[int, int] = {}
        self._texts: dict[int, bytes] = {}
        order = sorted(range(256), key=lambda byte: (_RANK.get(byte, len(_RANK)), byte))
        liked: dict[int, int] = {}
        for byte in order:
            liked.setdefault(dfa.columns[byte], byte)
        self._columns = sorted(liked.items(), key=lambda item: order.index(item[1]))  # (column, its byte), liked first

    @property
    def nbytes(self) -> int:
        """About how much memory the distances and the texts hold."""
        return 8 * len(self._to_end) + 100 * (len(self._stacks) + len(self._bounds)) + 200 * len(self._texts)

    def text(self, state: int) -> bytes:
        """The shortest text that leads from `state` to the end of a match. ConstraintError when it is too far away."""
        known = self._texts.get(state)
        return self._search(state) if known is None else known

    def _stack(self, stack: int) -> int:
        """Bytes that the rules still need that `stack` comes back to."""
        todo = []
        while stack not in self._stacks:
            todo.append(stack)
            stack = self._dfa.frame(stack)[1]
        total = self._stacks[stack]
        for above in reversed(todo):
            total = self._stacks[above] = total + self._to_end[self._dfa.frame(above)[0]]
        return total

    def _bound(self, state: int) -> int:
        """At least so many bytes are needed."""
        bound = self._bounds.get(state)
        if bound is None:
            bound = self._bounds[state] = min(self._bounds_of(state), default=FAR)
        return bound

    def _bounds_of(self, state: int) -> Iterator[int]:
        if self._dfa.accepting[state]:
            yield 0
        for stack, tree, place in self._dfa.members(state):
            if tree < len(self._character):  # others lead nowhere
                yield self._character[tree] + self._to_end[place] + self._stack(stack)

    def _search(self, start: int) -> bytes:
        dfa, texts = self._dfa, self._texts
        numbers = itertools.count()
        spent = {start: 0}
        came: dict[int, tuple[int, int]] = {}
        heap = [(self._bound(start), 0, 0, start)]
        done: set[int] = set()
        while heap:
            _, _, _, state = heapq.heappop(heap)
            if state in done:
                continue
            rest = b"" if dfa.accepting[state] else texts.get(state)
            if rest is not None:
                return self._keep(start, state, rest, came)
            done.add(state)
            if len(done) > MAX_EXPANDED:
                break
            row = dfa.row(state)
            here = spent[state] + 1
            for column, byte in self._columns:
                after = int(row[column])
                if after < 0 or here >= spent.get(after, FAR):
                    continue
                bound = len(texts[after]) if after in texts else self._bound(after)
                if bound < FAR:
                    spent[after] = here
                    came[after] = (state, byte)
                    heapq.heappush(heap, (here + bound, -here, next(numbers), after))
        raise _refuse("the shortest match of the constraint is too far away to be found")

    def _keep(self, start: int, end: int, rest: bytes, came: dict[int, tuple[int, int]]) -> bytes:
        self._texts[end] = rest
        while end != start:
            end, byte = came[end]
            rest = bytes((byte,)) + rest
            self._texts[end] = rest
        return rest


def fewest_tokens(trie: TokenTrie, text: bytes) -> list[int]:
    """int[len(text)]: the first token of a spelling of text[i:] in the fewest tokens; -1 where there is none."""
    need = [FAR] * len(text) + [0]
    first = [-1] * len(text)
    for start in range(len(text) - 1, -1, -1):
        node = -1
        for end in range(start, len(text)):
            node = trie.child(node, text[end])
            if node < 0:
                break
            low = int(trie.first[node])
            if low < int(trie.first[node + 1]) and need[end + 1] + 1 < need[start]:
                need[start] = need[end + 1] + 1
                first[start] = int(trie.tokens[low])
    return first


def unspellable() -> ConstraintError:
    return _refuse("the model's vocabulary cannot spell the shortest match of the constraint")
