"""Programs, branches and what they are doing. State only; `graph.py` gives the nodes their meaning."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stemma.backend.cache.base import Namespace
from stemma.backend.core import FinishReason, Int32, RowLogprobs
from stemma.backend.grammar.base import Matcher
from stemma.backend.messages import ANSWERED, GenNode, LogprobOptions, Node, SelectNode
from stemma.lang.params import SamplingParams

if TYPE_CHECKING:
    from stemma.backend.scheduler.drafts import Ngrams, Shared

_log = logging.getLogger("stemma")
MAX_DRAFT = 8  # tokens of one draft of forced text
ASKED = SamplingParams().max_new_tokens  # tokens that a gen asks for that says nothing
ASKED_MOST = 4096  # tokens that a gen is taken to produce at most, also one without a limit
Event = dict[str, Any]
Sink = Callable[[Event], None]


class State(Enum):
    """IDLE: nothing to run (or waiting for its parent). REFERRING: waiting for the text of nodes that it refers to.
    COMPILING: its grammar is being made. WAITING: queued. RUNNING: has a row. SCORING: its choices run as branches of
    their own. DONE: ended, failed or cancelled."""

    IDLE = "idle"
    REFERRING = "referring"
    COMPILING = "compiling"
    WAITING = "waiting"
    RUNNING = "running"
    SCORING = "scoring"
    DONE = "done"


class TextOut(Protocol):
    """The text of one generation as it grows (`text.stream.TextStream`)."""

    def push(self, token_id: int) -> Any: ...
    def push_new(self, token_id: int) -> str: ...
    def new_text(self, final: bool = False) -> str: ...
    def text(self) -> str: ...
    def kept(self) -> tuple[int, str]: ...


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of a branch after some number of nodes: what a fork at that point inherits."""

    n_ids: int
    tail: tuple[tuple[str, bool], ...]  # literal text not tokenised yet: (text, holds special tokens)
    roles: tuple[str, ...]


@dataclass(slots=True)
class Work:
    """What a branch with a row is computing: a generation, or (score_from >= 0) the log-probabilities of a choice."""

    node: int
    params: SamplingParams | None
    prompt_len: int
    limit: int
    seed: int = 0
    score_from: int = -1
    score_next: int = 0  # the last token of what a scored branch scores; it need not be computed
    score_ids: tuple[int, ...] = ()  # token ids whose log-probabilities a scored branch tells at each of its positions
    match_limit: int = 1 << 30  # most tokens that may come from the cache (input logprobs need the rest computed)
    marker: int = -1  # the special token that the constraint begins behind
    matcher: Matcher | None = None
    step: Callable[[int], bool] | None = None  # the matcher's own, if it has one: see `RegularMatcher.step`
    ready: Callable[[], Int32 | None] | None = None  # likewise
    lean: bool | None = None  # its tokens may take the short way through `Output`; None: not asked yet
    mask_error: Exception | None = None  # why the matcher's row for the next token could not be made
    warnings: tuple[str, ...] = ()  # what the constraint says that does not bind
    fixed_len: int = 0  # the prompt, and what the grammar forces right behind it: known before the first step
    draft: list[int] = field(default_factory=list)  # a guess at the next tokens, to be verified in the next step
    draft_room: int = MAX_DRAFT
    draft_masks: list[Int32] = field(default_factory=list)  # the matcher's rows behind each token of the draft
    draft_kind: int = 0  # what the draft rests on (`drafts.Drafter`)
    draft_rates: list[float] = field(default_factory=list)  # how often draft tokens of each kind were right, lately
    draft_guess: tuple[int, int, int] | None = None  # (position, token, kind) to compare with what comes
    draft_pause: int = 0  # tokens between two looks, as nothing was found lately
    draft_after: int = 0  # the length from which on the next look is
    ngrams: Ngrams | None = None  # the runs of its own tokens, once it is drafted
    ending: FinishReason | None = None  # it ends so once its last tokens, which were not sampled, are run
    text: TextOut | None = None  # only with stop strings or streaming
    stop_ids: frozenset[int] = frozenset()
    stream: bool = False
    sent: int = 0  # output tokens already streamed
    logprobs: LogprobOptions | None = None
    records: list[tuple[int, RowLogprobs]] = field(default_factory=list)  # (end position of the step, what it said)
    cached: int = 0
    computed: int = 0
    rescore: bool = False  # the last computed token must be run again, for the log-probability of the one behind it
    forced: int = 0
    drafted: int = 0
    confirmed: int = 0  # of the drafted ones, those that were drawn too
    forced_runs: list[list[int]] = field(default_factory=list)  # [first output position, how many]
    base: int = 0  # ids that the branch had before this node's literal text
    retractions: int = 0
    kind: int = 0  # stands for constraint, max_new_tokens and stops: outputs of a kind have like lengths
    longest: int | None = None  # most output tokens that the constraint's matches have, where known
    queued: int = 0  # its number in the waiting queue, which it keeps when it is retracted
    admitted: bool = False
    t_start: float = 0.0  # by the scheduler's clock, like the two below
    t_admit: float = 0.0
    t_first: float = 0.0


@dataclass(slots=True)
class Part:
    """A sequence to score, as an edge of the trie of all: its first `shared` scored tokens are those of part `source`.

    `at`: the position of the first token that is not shared. Where another one goes on differently there, the branch of
    part `teller` computes the position before it, and tells the log-probabilities of all `asked` ids at each of its
    own. Only what lies behind may need a branch of its own.
    """

    ids: Int32
    source: int
    shared: int
    at: int
    teller: int = -1
    asked: tuple[int, ...] = ()
    branch: Branch | None = None


@dataclass(slots=True)
class Scoring:
    """A select in flight: the choices as a trie of token ids, each of whose edges is a scored branch."""

    node: int
    op: SelectNode
    parts: list[Part]  # the choices in their context, then (for some methods) alone
    n_context: int
    base: int  # ids that the branch had before this node's literal text
    remaining: int
    t_start: float  # by the scheduler's clock


class Branch:
    """An append-only sequence: `nodes` to run, `cursor` the next one, `ids` the tokens so far (while it has no row)."""

    __slots__ = (
        "_ids",
        "at",
        "children",
        "claims",
        "cursor",
        "dependents",
        "ended",
        "error",
        "expects",
        "handle",
        "id",
        "marks",
        "nodes",
        "on_done",
        "parent",
        "program",
        "roles",
        "row",
        "scoring",
        "serial",
        "settled",
        "sinks",
        "started",
        "state",
        "tail",
        "texts",
        "work",
    )

    def __init__(self, program: Program, id: str, parent: Branch | None, at: int, serial: int) -> None:
        self.program, self.id, self.parent, self.at, self.serial = program, id, parent, at, serial
        self.nodes: list[Node] = []
        self.sinks: list[Sink] = []
        self.cursor = 0
        self.marks: list[Mark] = []  # marks[k]: after k nodes
        self.tail: tuple[tuple[str, bool], ...] = ()
        self.roles: tuple[str, ...] = ()
        self._ids: Int32 = np.empty(0, np.int32)
        self.row = -1
        self.handle: Any = None
        self.state = State.IDLE
        self.ended = False
        self.settled = True  # nothing left to do for it
        self.started = parent is None  # false: its parent has not reached the fork point
        self.error: Event | None = None
        self.claims = False  # its parent's prefix is pinned for it
        self.expects = 0  # forks that are still to come, as its client says: its prefix stays pinned for them
        self.work: Work | None = None
        self.scoring: Scoring | None = None
        self.children: list[Branch] = []
        self.texts: dict[int, str] = {}  # what nodes came to say whose text the client did not give
        self.dependents: dict[Branch, int] = {}  # who refers to this branch, and waits for how many of its nodes
        self.on_done: Callable[[Branch], None] | None = None

    def ids(self, n: int | None = None) -> Int32:
        """The first n tokens (all if None). A view: copy it to keep it."""
        if self.row >= 0:
            rows = self.program.rows
            return rows.ids[self.row, : int(rows.length[self.row]) if n is None else n]
        return self._ids if n is None else self._ids[:n]

    def set_ids(self, ids: Int32) -> None:
        """Replace the tokens of a branch without a row."""
        assert self.row < 0
        self._ids = ids

    def final_ids(self, n: int) -> Int32:
        """The first n tokens, which are final, to keep: without a row nobody writes to them, so it is a view."""
        return self.ids(n).copy() if self.row >= 0 else self._ids[:n]

    @property
    def length(self) -> int:
        return int(self.program.rows.length[self.row]) if self.row >= 0 else len(self._ids)

    def emit(self, node: int, event: str, **fields: Any) -> None:
        """Send an event about one of this branch's nodes to whoever sent the node. A listener that raises is logged."""
        if event in ("done", "text"):
            self.texts[node] = fields["text"]
        try:
            self.sinks[node]({"event": event, "branch": self.id, "node": node, **fields})
        except Exception:  # theirs, not ours: the engine serves others too
            _log.exception("the listener of program %r raised on a %r event", self.program.id, event)

    def open_nodes(self) -> list[int]:
        """The nodes that expect an answer and have none: gens, selects and role markers."""
        return [k for k in range(self.cursor, len(self.nodes)) if isinstance(self.nodes[k], ANSWERED)]


class Program:
    """A tree of branches. `namespace` isolates its prefixes in the cache."""

    __slots__ = (
        "attained",
        "branches",
        "ended",
        "expected_len",
        "id",
        "left",
        "namespace",
        "ngrams",
        "priority",
        "rows",
        "serial",
        "size",
        "tokens",
        "touched",
        "unsettled",
    )

    def __init__(self, id: str, serial: int, rows: Any) -> None:
        self.id, self.serial, self.rows = id, serial, rows
        self.namespace: Namespace = ()
        self.branches: dict[str, Branch] = {}
        self.ended = False
        self.tokens = False  # whether results tell the ids of their prompts
        self.unsettled = 0  # branches with something left to do
        self.attained = 0  # tokens run through the model for it
        self.size = 0  # bytes of its literals, about
        self.left = 0  # tokens that its gens which are known and not over may still produce, at most
        self.priority = 0  # higher goes first
        self.expected_len: int | None = None  # how long its outputs will be, as its client expects
        self.ngrams: Shared | None = None  # the runs of its branches' tokens, once one of several is drafted
        self.touched = 0.0  # when the last delta came, by the scheduler's clock

    def dissolve(self) -> None:
        """It is over: let go of the branches and these of each other, so that no garbage collector need find them."""
        for branch in self.branches.values():
            branch.children, branch.scoring, branch.on_done = [], None, None
        self.branches, self.ngrams = {}, None


def asked(node: Node) -> int:
    """How many tokens a node may produce, as far as that counts for the order of programs; 0 for all but gens."""
    most = node.params.get("max_new_tokens", ASKED) if isinstance(node, GenNode) else 0
    return min(most, ASKED_MOST) if isinstance(most, int) else ASKED_MOST
