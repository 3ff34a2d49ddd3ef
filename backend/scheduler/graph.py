"""Program graphs: deltas become branches, and branches run their nodes one after the other without asking the client.

`register` may be called from any thread; everything else belongs to the scheduler's thread. The file is long because
it is one state machine: whoever changes a branch's state should see all who do.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stemma.backend.grammar.base import Grammar
from stemma.backend.messages import (
    ANSWERED,
    BranchDelta,
    GenNode,
    GraphDelta,
    IdsNode,
    RefNode,
    RoleBeginNode,
    RoleEndNode,
    TextNode,
    check_salt,
    error_object,
)
from stemma.backend.scheduler.admit import Memory
from stemma.backend.scheduler.after import AfterToken
from stemma.backend.scheduler.branch import Branch, Mark, Program, Sink, State, Work, asked
from stemma.backend.scheduler.gens import new_work
from stemma.backend.scheduler.pressure import Deadlines, Pressure, check_known, size_of
from stemma.backend.scheduler.refs import check_refs, quoted, woken
from stemma.backend.scheduler.select import start_select
from stemma.backend.scheduler.tools import Compile, TextTools
from stemma.lang.errors import (
    CancelledError,
    ConstraintError,
    DeadlineError,
    EngineDeadError,
    RequestError,
    StemmaError,
)
from stemma.lang.params import Constraint

PROGRAM_TTL = 60.0  # a program is forgotten after this many lease times without a delta


class Graph:
    """All programs of one engine."""

    def __init__(
        self,
        memory: Memory,
        text: TextTools,
        compile: Compile,
        *,
        context: int,
        vocab_size: int,
        seed: int,
        lease: float,
        max_queued: int | None = None,
    ) -> None:
        self.memory, self.text, self.compile = memory, text, compile
        self.tokenizer = text.tokenizer
        self.context, self.vocab_size, self.lease = context, vocab_size, lease
        self.programs: dict[str, Program] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._serials = itertools.count(1)
        self.max_chars: int | None = None  # more characters are surely more tokens than the context has
        self.deadlines = Deadlines()
        self.pressure = Pressure(max_queued, memory.rows.max_rows, memory.clock)
        self._ready: deque[Branch] = deque()
        self._advancing = False
        self.begin: Callable[[Branch], bool] = lambda branch: False  # before a constrained gen is queued: is it over?

    def next_serial(self) -> int:
        """Arrival numbers of programs and branches."""
        return next(self._serials)

    def new_seed(self) -> int:
        """For a draw that was given none."""
        return self._random.getrandbits(63)

    # -- deltas ----------------------------------------------------------------------------------------------------

    def register(self, delta: GraphDelta, sink: Sink) -> list[Branch]:
        """Check a delta against what is known and append its nodes. Nothing is changed if it is refused.

        Returns the branches to `advance`. Raises RequestError naming the branch and the field.
        """
        with self._lock:
            program = self.programs.get(delta.program)
            self._check(delta, program)
            self.pressure.check(delta, program, len(self.memory.waiting), len(self.programs))
            if program is None:
                program = self.programs[delta.program] = Program(delta.program, self.next_serial(), self.memory.rows)
                if delta.cache_salt is not None:
                    program.namespace = ("salt", delta.cache_salt)
            program.touched = self.memory.clock()
            program.ended = program.ended or delta.end
            program.tokens = program.tokens or delta.tokens
            if delta.hints is not None:
                if delta.hints.priority is not None:
                    program.priority = delta.hints.priority
                if delta.hints.expected_len is not None:
                    program.expected_len = delta.hints.expected_len
            touched = [self._append(program, given, sink) for given in delta.branches]
            if delta.timeout is not None:
                ends = tuple((given.id, given.first + len(given.nodes)) for given in delta.branches)
                self.deadlines.add(program, ends, delta.timeout, program.touched)
            return list(program.branches.values()) if delta.end else touched

    def _check(self, delta: GraphDelta, program: Program | None) -> None:
        if program is not None and program.ended and delta.branches:
            raise RequestError(f"program {delta.program!r} has ended; use a new program id", param="program")
        salt = check_salt(delta.cache_salt)
        if program is not None and salt is not None and program.namespace != ("salt", salt):
            raise RequestError(
                f"program {delta.program!r} has another cache_salt, or began without one; it is set by its first delta",
                param="cache_salt",
            )
        if program is None:
            check_known(delta, self.pressure.gone)
        counts = {} if program is None else {b.id: len(b.nodes) for b in program.branches.values()}
        for given in delta.branches:
            known = given.id in counts
            where = f"branch {given.id!r} of program {delta.program!r}"
            if given.first != counts.get(given.id, 0):
                raise RequestError(
                    f"{where}: first must be {counts.get(given.id, 0)}, got {given.first}", param="first"
                )
            if not known and given.parent is not None:
                if given.parent not in counts:
                    raise RequestError(f"{where}: unknown parent {given.parent!r}", param="parent")
                if not 0 <= given.at <= counts[given.parent]:
                    raise RequestError(
                        f"{where}: at must be in [0, {counts[given.parent]}], got {given.at}", param="at"
                    )
            if known and program is not None and given.nodes and (old := program.branches.get(given.id)) and old.ended:
                raise RequestError(f"{where} has ended and takes no more nodes", param="nodes")
            counts[given.id] = given.first + len(given.nodes)
        check_refs(delta, program, counts)

    def _append(self, program: Program, given: BranchDelta, sink: Sink) -> Branch:
        branch = program.branches.get(given.id)
        if branch is None:
            parent = None if given.parent is None else program.branches[given.parent]
            branch = program.branches[given.id] = Branch(program, given.id, parent, given.at, self.next_serial())
            if parent is not None:
                parent.children.append(branch)
                branch.claims = bool(parent.expects) and parent.expects > sum(c.claims for c in parent.children)
        if branch.settled:
            branch.settled = False
            program.unsettled += 1
            self.pressure.unsettled += 1
        program.size += size_of(given.nodes)
        branch.sinks.extend([sink] * len(given.nodes))
        branch.nodes.extend(given.nodes)
        program.left += sum(map(asked, given.nodes))
        branch.ended = branch.ended or given.end
        if given.hints is not None and given.hints.expected_forks is not None:
            branch.expects = given.hints.expected_forks + sum(c.claims for c in branch.children)
        return branch

    # -- running nodes ---------------------------------------------------------------------------------------------

    def advance(self, *branches: Branch) -> None:
        """Run each branch's literal nodes up to the next generation, and start that. Children follow their parents."""
        self._ready.extend(branches)
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._ready:
                self._advance(self._ready.popleft())
        finally:
            self._advancing = False

    def _advance(self, branch: Branch) -> None:
        if not branch.started and not self._start(branch):
            return
        if not branch.marks and branch.state is not State.DONE:
            self.mark(branch, 0)
        if branch.state is State.REFERRING:
            branch.state = State.IDLE  # look again
        while branch.state is State.IDLE and branch.cursor < len(branch.nodes):
            try:
                self._run(branch)
            except StemmaError as error:
                self.fail(branch, error)
            except Exception as error:  # a template that breaks, a tokenizer that panics: this branch, not the engine
                self.fail(branch, StemmaError(f"internal error: {type(error).__name__}: {error}"))
        if branch.state is State.DONE and branch.error is not None and branch.cursor < len(branch.nodes):
            self._report(branch, branch.error)
        if branch.state in (State.IDLE, State.DONE) and branch.cursor >= len(branch.nodes):
            self._settle(branch)

    def _start(self, branch: Branch) -> bool:
        """Inherit the parent's state at the fork point, once it is there."""
        parent = branch.parent
        assert parent is not None
        if parent.error is not None and len(parent.marks) <= branch.at:
            branch.started = True
            branch.state, branch.error = State.DONE, parent.error
            self._report(branch, parent.error)
            self._ready.extend(branch.children)
            return True
        if len(parent.marks) <= branch.at:
            return False
        mark = parent.marks[branch.at]
        branch.set_ids(parent.final_ids(mark.n_ids))
        branch.tail, branch.roles = mark.tail, mark.roles
        branch.started = True
        return True

    def _run(self, branch: Branch) -> None:
        node = branch.nodes[branch.cursor]
        if isinstance(node, TextNode):
            if node.text:
                branch.tail += ((node.text, False),)
        elif isinstance(node, RefNode):
            text = quoted(branch, node)
            if text is None:
                self._refer(branch, node)
                return
            branch.texts[branch.cursor] = text
            if text:
                branch.tail += ((text, False),)
        elif isinstance(node, RoleBeginNode):
            begin, _ = self.text.markers(node.role, branch.roles)
            branch.tail += ((begin, True),)
            branch.emit(branch.cursor, "text", text=begin)
        elif isinstance(node, RoleEndNode):
            _, end = self.text.markers(node.role, branch.roles)
            branch.tail += ((end, True),)
            branch.roles += (node.role,)
            branch.emit(branch.cursor, "text", text=end)
        elif isinstance(node, IdsNode):
            for token in node.ids:
                if not 0 <= token < self.vocab_size:
                    raise RequestError(
                        f"input_ids must be token ids in [0, {self.vocab_size}), got {token}", param="input_ids"
                    )
            self.extend_ids(branch, self.encode(branch, ()) if branch.tail else [])
            self.extend_ids(branch, node.ids)
        elif isinstance(node, GenNode):
            self._start_gen(branch, node)
            return
        else:
            start_select(self, branch, node)
            return
        self.mark(branch, branch.cursor + 1)

    def _refer(self, branch: Branch, node: RefNode) -> None:
        """Wait for the nodes that a reference means. The row and slots are for those who can run meanwhile."""
        branch.state = State.REFERRING
        branch.program.branches[node.branch].dependents[branch] = node.end
        if branch.row >= 0:
            self.memory.release(branch)
        self.memory.hold_lease(branch)

    def mark(self, branch: Branch, cursor: int) -> None:
        branch.cursor = cursor
        branch.marks.append(Mark(branch.length, branch.tail, branch.roles))
        self._ready.extend(woken(branch, cursor))
        self._ready.extend(c for c in branch.children if c.at == cursor and not c.started)

    def encode(self, branch: Branch, more: tuple[tuple[str, bool], ...]) -> list[int]:
        """Ids of the branch's literal tail (and `more` after it), with BOS where a sequence begins."""
        start = branch.length == 0
        size = sum(len(text) for text, _ in branch.tail) + sum(len(text) for text, _ in more)
        if self.max_chars is not None and size > self.max_chars:  # it would take long to find out how many they are
            raise RequestError(
                f"The input ({size} characters) is longer than the model's context length ({self.context} tokens).",
                param="text",
            )
        ids = self.tokenizer.encode_pieces(branch.tail + more, start=start)
        bos = self.tokenizer.bos_id
        if start and self.tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids

    def extend_ids(self, branch: Branch, ids: list[int]) -> None:
        """Append literal ids; the tail is used up."""
        branch.tail = ()
        length = branch.length
        if length + len(ids) > self.context:
            raise RequestError(
                f"The input ({length + len(ids)} tokens) is longer than the model's context length "
                f"({self.context} tokens).",
                param="text",
            )
        if branch.row >= 0:
            rows = self.memory.rows
            rows.ids[branch.row, length : length + len(ids)] = ids
            rows.length[branch.row] = length + len(ids)
        else:
            branch.set_ids(np.concatenate([branch.ids(), np.array(ids, np.int32)]))

    # -- gen -------------------------------------------------------------------------------------------------------

    def _start_gen(self, branch: Branch, node: GenNode) -> None:
        work = new_work(self, branch, node)
        branch.work = work
        if node.timeout is not None:
            with self._lock:
                self.deadlines.add(branch.program, ((branch.id, branch.cursor + 1),), node.timeout, self.memory.clock())
        if node.constraint is None:
            self._queue(branch)
            return
        constraint = Constraint.from_dict(node.constraint)
        if constraint.after is not None:
            work.marker = self._special_token(constraint.after)
            if work.marker >= 0:  # a special token is not part of any text
                constraint = replace(constraint, after=None)
        branch.state = State.COMPILING
        self.compile(constraint, _Compiled(self, branch, work))
        if branch.state is State.COMPILING and branch.row >= 0:
            self.memory.release(branch)  # others may use the row while this branch waits for its grammar
            self.memory.hold_lease(branch)

    def _special_token(self, marker: str) -> int:
        """The id of the special token that is written so; -1 if there is none."""
        ids = self.tokenizer.encode_pieces(((marker, True),))
        return ids[0] if len(ids) == 1 and not self.tokenizer.decode(ids) else -1

    def compiled(self, branch: Branch, work: Work, made: Grammar | Exception) -> None:
        """The grammar of a waiting gen is ready, or cannot be made. In the scheduler's thread."""
        if branch.state is not State.COMPILING or branch.work is not work:
            return  # cancelled meanwhile
        branch.state = State.IDLE
        if isinstance(made, Exception):
            error = made if isinstance(made, StemmaError) else ConstraintError(f"{type(made).__name__}: {made}")
            self.fail(branch, error)
            return
        try:
            work.matcher = made.matcher()
            work.warnings = getattr(made, "warnings", ())  # other engines' grammars have none
            longest = getattr(made, "longest", None)
            if longest is not None and work.marker < 0:
                work.longest = longest + 1  # a token has at least a byte; and one that ends the text
            if work.marker >= 0:
                work.matcher = AfterToken(work.matcher, work.marker, self.vocab_size, self.tokenizer.eos_ids)
            work.step = getattr(work.matcher, "step", None)
            work.ready = getattr(work.matcher, "ready", None)
            over = self.begin(branch)
        except StemmaError as error:
            self.fail(branch, error)
            return
        if not over:
            self._queue(branch)

    def _queue(self, branch: Branch) -> None:
        work = branch.work
        assert work is not None
        rows, row = self.memory.rows, branch.row
        if row >= 0:
            computed, length = int(rows.computed[row]), int(rows.length[row])
            if computed == length or computed > self.memory.match_limit(branch, length):
                self.memory.release(branch)  # a token computed already must be computed again, for its logits
                self.memory.drop_lease(branch)
        if branch.row >= 0:  # straight on, without a place in the queue
            work.cached, work.admitted, work.t_admit = int(rows.computed[branch.row]), True, self.memory.clock()
            self.memory.set_work(branch)
            branch.state = State.RUNNING
        else:
            self.memory.queue(branch)

    def finished(self, branch: Branch, remainder: str, **result: Any) -> None:
        """The branch's generation has ended and its ids are final; `remainder` is text whose token was cut."""
        work = branch.work
        assert work is not None
        branch.work = None
        branch.state = State.IDLE
        self.memory.admission.lengths.observe(work.kind, len(result["ids"]))
        if remainder:
            branch.tail = ((remainder, False),)
        branch.program.left -= asked(branch.nodes[work.node])
        branch.emit(work.node, "done", **result)
        self.mark(branch, work.node + 1)
        self.advance(branch)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _settle(self, branch: Branch) -> None:
        """Nothing left to run: give the row back, and keep or end the lease."""
        if branch.row >= 0:
            self.memory.release(branch)
        program = branch.program
        awaited = branch.ended and branch.expects and not program.ended
        if (branch.ended and not awaited) or program.ended or branch.state is State.DONE:
            self.memory.forget(branch)
        else:
            self.memory.hold_lease(branch)
        with self._lock:
            if branch.cursor < len(branch.nodes):
                return  # a delta came in this moment; its own advance follows
            if not branch.settled:
                branch.settled = True
                program.unsettled -= 1
                self.pressure.settled()
            self._drop_if_over(program)

    def _drop_if_over(self, program: Program) -> None:
        if program.ended and program.unsettled == 0 and self.programs.get(program.id) is program:
            del self.programs[program.id]
            program.dissolve()

    def fail(self, branch: Branch, error: BaseException, blame: bool = True) -> None:
        """End a branch and everything forked after the failed node. Every node without its answer gets the error.

        With `blame` the next node is the one that failed: it gets the error too if it is a literal.
        """
        event = error_object(error)
        if branch.on_done is not None and branch.parent is not None:  # a scored choice: its select fails
            branch = branch.parent
        failed_at = branch.cursor
        literal = failed_at < len(branch.nodes) and not isinstance(branch.nodes[failed_at], ANSWERED)
        if branch.state is State.DONE:
            return
        if branch.scoring is not None:
            for scored in [part.branch for part in branch.scoring.parts if part.branch is not None]:
                self.memory.forget(scored)
                scored.state = State.DONE
            branch.scoring = None
        self.memory.forget(branch)
        branch.work = None
        branch.state, branch.error = State.DONE, event
        if literal and blame:
            branch.emit(failed_at, "error", error=event)
        self._report(branch, event)
        self.advance(branch, *(c for c in branch.children if not c.started))

    def _report(self, branch: Branch, event: dict[str, Any]) -> None:
        open_nodes = branch.open_nodes()
        branch.cursor = len(branch.nodes)
        self._ready.extend(woken(branch, branch.cursor))
        for node in open_nodes:
            branch.program.left -= asked(branch.nodes[node])
            branch.emit(node, "error", error=event)

    def cancel(self, program_id: str, branch_ids: list[str] | None = None, reason: str = "cancelled") -> bool:
        """Cancel branches and all that was forked from them (None: the whole program). False if it is unknown."""
        with self._lock:
            program = self.programs.get(program_id)
            if program is None:
                return False
            branches = list(program.branches.values())
            if branch_ids is None:
                program.ended = True
                self.pressure.forget(program_id, reason)
        chosen = set(branches if branch_ids is None else [b for b in branches if b.id in set(branch_ids)])
        for branch in branches:  # parents come before children
            if branch.parent in chosen:
                chosen.add(branch)
        for branch in sorted(branches, key=lambda b: b.state is not State.REFERRING):  # each by its own cancel
            if branch in chosen:
                branch.ended = True
                if branch.state is not State.DONE:
                    branch.started = True
                    self.fail(
                        branch, CancelledError(f"program {program_id!r} branch {branch.id!r}: {reason}"), blame=False
                    )
        with self._lock:
            self._drop_if_over(program)  # all its branches may have failed before
        return True

    def fail_all(self, cause: BaseException) -> None:
        """The runner broke: every waiting caller gets the cause."""
        held = self._lock.acquire(timeout=1)  # a stuck thread may hold it, and this one may be the watchdog's
        programs = list(self.programs.values())
        self.programs.clear()
        self.pressure.unsettled = 0
        if held:
            self._lock.release()
        dead = isinstance(cause, EngineDeadError)
        event = error_object(cause if dead else EngineDeadError(f"the engine stopped: {type(cause).__name__}: {cause}"))
        for program in programs:
            for branch in list(program.branches.values()):
                branch.state, branch.error = State.DONE, event
                self._report(branch, event)
                branch.sinks[:] = [_nobody] * len(branch.sinks)  # each node is answered once

    def expire(self, now: float) -> None:
        """End the leases of programs that have sent nothing for long, and forget those silent for very long."""
        for program in list(self.programs.values()):
            idle = now - program.touched
            if idle < self.lease or program.unsettled:
                continue
            for branch in program.branches.values():
                self.memory.drop_lease(branch)
            if idle > self.lease * PROGRAM_TTL:
                self.cancel(program.id, reason=f"no delta came for {idle:.0f} s")
        for program in self.pressure.surplus(list(self.programs.values())):
            self.cancel(program.id, reason="too many programs lay idle, this one longest")

    def oldest(self, count: int) -> list[dict[str, Any]]:
        """The programs that have been silent for longest: id, seconds, branches, and the nodes of the first ones."""
        now, programs = self.memory.clock(), list(self.programs.values())
        return [
            {
                "program": p.id,
                "silent": round(now - p.touched, 3),
                "unsettled": p.unsettled,
                "branches": len(p.branches),
                "nodes": {b.id: f"{b.cursor} of {len(b.nodes)}, {b.state.value}" for b in [*p.branches.values()][:4]},
            }
            for p in sorted(programs, key=lambda p: p.touched)[:count]
        ]

    def enforce_deadlines(self, now: float) -> bool:
        """Fail what has taken longer than it may, running or waiting. True if there was any."""
        due = self.deadlines.next
        if due is None or due > now:
            return False
        with self._lock:
            overdue = self.deadlines.take(now, self.programs)
        for branch, seconds in overdue:
            branch.started = True
            self.fail(branch, DeadlineError(f"it took longer than its timeout of {seconds:g} s"), blame=False)
        return bool(overdue)


class _Compiled:
    """What becomes of a grammar when it is ready."""

    def __init__(self, graph: Graph, branch: Branch, work: Work) -> None:
        self._graph, self._branch, self._work = graph, branch, work

    def __call__(self, made: Grammar | Exception) -> None:
        self._graph.compiled(self._branch, self._work, made)

    def wanted(self) -> bool:
        """Whether the branch still waits for it. From any thread."""
        return self._branch.state is State.COMPILING and self._branch.work is self._work


def _nobody(event: dict[str, Any]) -> None:
    """The sink of nodes that were answered already."""
