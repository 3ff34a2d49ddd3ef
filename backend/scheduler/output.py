"""What becomes of a step's tokens: appended, checked for an end, streamed, and turned into a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.backend.core import Bool, FinishReason, Int32, Int64, Plan, RowLogprobs, StepOutput
from stemma.backend.scheduler.branch import Branch, State, Work
from stemma.lang.errors import ConstraintError, StemmaError

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory
    from stemma.backend.scheduler.drafts import Drafter
    from stemma.backend.scheduler.graph import Graph


class Output:
    """Takes a `StepOutput` apart. Plain rows cost no Python: only rows that end or are `special` are seen singly."""

    def __init__(
        self,
        memory: Memory,
        graph: Graph,
        eos_ids: frozenset[int],
        vocab_size: int,
        jump_forward: bool,
        drafter: Drafter,
    ) -> None:
        self.memory, self.graph, self.jump_forward, self.drafter = memory, graph, jump_forward, drafter
        self.eos_ids = eos_ids
        self._is_eos = np.zeros(vocab_size, np.bool_)
        self._is_eos[[i for i in eos_ids if i < vocab_size]] = True
        graph.begin = self.begin

    def process(self, plan: Plan, out: StepOutput, epochs: Int64 | None = None) -> None:
        """Take up a step's results. With `epochs` (those of its rows when it was planned), rows that have moved on
        since are left out, and the next step may be under way."""
        rows, index = self.memory.rows, plan.rows
        ends = plan.start + plan.n
        live = None
        if epochs is None:
            rows.computed[index] = ends
            rows.spent[index] += plan.n
        else:
            live = self._landed(plan, ends, epochs)
        for i, said in out.logprobs.items():
            if i >= len(index):
                continue
            branch = rows.branch[int(index[i])]
            if branch is not None and branch.work is not None and (live is None or live[i]):
                branch.work.records.append((int(ends[i]), said))
        agreed = [self.drafter.agree(plan, out, v) for v in plan.verify if live is None or live[v.index]]
        drawn = plan.sample
        if plan.verify:
            drawn = drawn.copy()
            drawn[[v.index for v in plan.verify]] = False
        taken = drawn
        if live is not None:
            taken = drawn & live & (ends == rows.length[index])  # else the token is known already: it was forced
            rows.drawing[index[taken]] -= 1
        if taken.all():
            row, token, position = index, out.next_ids, ends
        else:
            row, token, position = index[taken], out.next_ids[taken], ends[taken]
            over = ~drawn & (ends == rows.length[index]) & ~rows.sample[index]
            for r in index[over if live is None else over & live]:
                self.settle(rows.branch[int(r)])
        rows.ids[row, position] = token
        rows.length[row] = position + 1
        first = rows.t_first[row] == 0.0
        if first.any():
            rows.t_first[row[first]] = self.memory.clock()
        ended = (self._is_eos[token] & ~rows.ignore_eos[row]) | (position + 1 >= rows.limit[row])
        look = np.flatnonzero(ended | rows.special[row])
        if look.size:
            self._look(row[look].tolist(), token[look].tolist(), ended[look].tolist())
        for branch, tokens in agreed:
            self._try(branch, tokens, appended=False)
        if plan.followers:
            keys = [follower.key for follower in plan.followers]
            said = [out.logprobs.get(len(index) + k) for k in range(len(keys))]
            going = [self._followed(*each) for each in zip(keys, out.followed.tolist(), said, strict=True)]
            self.memory.resume([branch for branch in going if branch is not None])

    def _followed(self, key: int, token: int, said: RowLogprobs | None) -> Branch | None:
        """A branch that waits has its first token, drawn where its prompt was computed for another. The branch, if it
        goes on."""
        branch = self.memory.followed(key)
        if branch is None:
            return None
        work = branch.work
        assert work is not None
        now = self.memory.clock()
        if not work.admitted:
            work.admitted, work.cached, work.t_admit = True, branch.length, now
        work.t_first = work.t_first or now
        if said is not None:
            work.records.append((branch.length, said))
        self._try(branch, [token], appended=False)
        return branch if branch.work is work and branch.state is State.WAITING else None

    def _look(self, rows: list[int], tokens: list[int], ended: list[bool]) -> None:
        """Rows whose token needs a look. Most go a short way: nothing ends, the grammar steps on, text is streamed."""
        branches = self.memory.rows.branch
        for row, token, over in zip(rows, tokens, ended, strict=True):
            branch = branches[row]
            if over or branch is None or (work := branch.work) is None:
                self._try(branch, [token])
                continue
            lean = work.lean
            if lean is None:
                lean = work.lean = self._is_lean(work)
            try:
                if not lean or work.mask_error is not None or (work.step is not None and not work.step(token)):
                    self._try(branch, [token])
                    continue
            except Exception:  # the long way meets it too, and fails this branch only
                self._try(branch, [token])
                continue
            if work.stream:
                self._stream_one(branch, work, token)

    def _is_lean(self, work: Work) -> bool:
        """All that can happen to a token, unless its row ends: the grammar takes a plain step, and it is streamed."""
        params = work.params
        if params is None or work.stop_ids or params.stop or work.logprobs is not None:
            return False
        if work.matcher is not None:
            return work.step is not None and not params.finish_in_budget
        return True

    def _stream_one(self, branch: Branch, work: Work, token: int) -> None:
        """`_stream` of a row that got this token and no other since the last time."""
        text = work.text
        assert text is not None
        if not work.sent:  # the first says more
            text.push(token)
            self._stream(branch, work)
            return
        work.sent += 1
        branch.emit(work.node, "delta", text=text.push_new(token), ids=[token])

    def _landed(self, plan: Plan, ends: Int32, epochs: Int64) -> Bool:
        """Move the rows that a step still matters for to its end. Returns which those are."""
        rows, index, n = self.memory.rows, plan.rows, plan.n
        live = rows.epoch[index] == epochs
        if not live.all():
            index, ends, n = index[live], ends[live], n[live]
        rows.computed[index] = ends
        rows.ahead[index] -= n
        rows.spent[index] += n
        return live

    def settle(self, branch: Branch | None) -> None:
        """A row that samples nothing has computed all it was asked for."""
        assert branch is not None and branch.work is not None
        if branch.on_done is not None:
            branch.on_done(branch)
        else:
            self.finish(branch, branch.work.ending or FinishReason("length", length=0))

    def _try(self, branch: Branch | None, tokens: list[int], *, appended: bool = True) -> None:
        if branch is None:  # released by a failure that spread from a row before it
            return
        try:
            self._take(branch, tokens, appended)
        except StemmaError as error:
            self.graph.fail(branch, error)
        except Exception as error:  # a broken matcher or template must not take the engine down
            self.graph.fail(branch, StemmaError(f"internal error: {type(error).__name__}: {error}"))

    # -- tokens of special rows ------------------------------------------------------------------------------------

    def begin(self, branch: Branch) -> bool:
        """The grammar of a gen is ready: append what it forces before anything is sampled, so that it is prefilled with
        the prompt and shares the prefix cache. True if the generation is over with that. In the scheduler's thread."""
        work = branch.work
        assert work is not None and work.matcher is not None
        if self._closes(work) and not work.matcher.can_finish(work.limit - work.prompt_len):
            least = len(work.matcher.shortest_completion())
            raise ConstraintError(
                f"finish_in_budget: the shortest match of the constraint takes {least} tokens, and there is room for "
                f"{work.limit - work.prompt_len} (max_new_tokens, or what the context leaves); raise max_new_tokens",
                param="max_new_tokens",
            )
        if work.limit > work.prompt_len and self.jump_forward:
            reason = self._jump(branch, work)
            work.fixed_len = branch.length
            if reason is not None and work.logprobs is None:
                self.finish(branch, reason)
                return True
            work.ending = reason
        return False

    def _take(self, branch: Branch, tokens: list[int], appended: bool) -> None:
        """What a step drew for a row. `appended`: its only token stands in the row already."""
        work = branch.work
        assert work is not None
        if work.mask_error is not None:
            raise work.mask_error  # here, where it fails its own branch only
        reason = None
        for token in tokens:
            if not appended:
                self._append(branch, token)
            reason = self._accept_or_close(branch, work, token)
            if reason is not None:
                break
        if reason is None and work.matcher is not None and self.jump_forward:
            reason = self._jump(branch, work)
        if reason is not None:
            self._end(branch, work, reason)
            return
        if work.stream:
            self._stream(branch, work)

    def _append(self, branch: Branch, token: int) -> None:
        rows, row = self.memory.rows, branch.row
        if row < 0:
            branch.set_ids(np.append(branch.ids(), np.int32(token)))
            return
        length = int(rows.length[row])
        rows.ids[row, length] = token
        rows.length[row] = length + 1
        rows.drawing[row] = 0  # what is being drawn for this position is known with that

    def _end(self, branch: Branch, work: Work, reason: FinishReason) -> None:
        """Finish, unless log-probabilities are asked of tokens that have not been run: then they are run first."""
        rows, row = self.memory.rows, branch.row
        if row < 0 or work.logprobs is None or (rows.length[row] - rows.computed[row] <= 1 and not work.rescore):
            self.finish(branch, reason)
            return
        work.ending = reason
        if work.rescore:
            self.memory.requeue(branch)
        else:
            rows.sample[row] = False
            self.memory.changed = True

    # -- closing in time -------------------------------------------------------------------------------------------

    @staticmethod
    def _closes(work: Work) -> bool:
        return work.params is not None and work.params.finish_in_budget and work.matcher is not None

    def _accept_or_close(self, branch: Branch, work: Work, token: int, forced: bool = False) -> FinishReason | None:
        """`_accept`, but a token behind which the text could not be finished in what is left of the budget is replaced
        by the shortest completion."""
        if self._closes(work):
            assert work.matcher is not None
            ahead = work.matcher.clone()
            if ahead.accept(token) and not ahead.can_finish(work.limit - branch.length):
                return self._close(branch, work)
        if forced:
            self._forced(branch, work)
        return self._accept(branch, work, token)

    @staticmethod
    def _forced(branch: Branch, work: Work) -> None:
        """Count the last token, which nobody chose."""
        work.forced += 1
        at, runs = branch.length - work.prompt_len - 1, work.forced_runs
        if runs and sum(runs[-1]) == at:
            runs[-1][1] += 1
        else:
            runs.append([at, 1])

    def _close(self, branch: Branch, work: Work) -> FinishReason:
        """Take the last token back and append the shortest completion: there has been room for it all along."""
        assert work.matcher is not None
        rows, row, length = self.memory.rows, branch.row, branch.length - 1
        tokens = work.matcher.shortest_completion()
        if row < 0:
            branch.set_ids(branch.ids(length).copy())
        else:
            self.memory.discard_ahead(branch)  # it runs the token that is taken back
            computed = int(rows.computed[row])
            self.memory.shrink(row, length)  # more was computed if it was the beginning of a draft that agreed
            rows.length[row] = length
            if work.logprobs is not None and tokens and computed == length:
                work.rescore, work.match_limit = True, length - 1  # the logits there were drawn from, and are gone
        for token in tokens:
            self._append(branch, token)
            self._forced(branch, work)
            reason = self._accept(branch, work, token)
            if reason is not None:
                return reason
        return FinishReason("stop")

    def _accept(self, branch: Branch, work: Work, token: int) -> FinishReason | None:
        """The token is already appended. Says whether the generation ends with it."""
        params = work.params
        assert params is not None
        if token in self.eos_ids and not params.ignore_eos:
            return FinishReason("stop", matched=token)
        if work.matcher is not None and not work.matcher.accept(token):
            raise StemmaError(f"the grammar refused token {token}, which its mask allowed (please report this)")
        if token in work.stop_ids:
            return FinishReason("stop", matched=token)
        if work.text is not None:
            match = work.text.push(token)
            if match is not None:
                return FinishReason("stop", matched=match.stop)
        if work.matcher is not None and work.matcher.is_finished():
            if not work.matcher.is_complete():
                raise ConstraintError("the model's vocabulary cannot spell the rest of any match of the constraint")
            return FinishReason("stop", matched=min(self.eos_ids, default=None))
        length = branch.length
        if length >= work.limit:
            if self._closes(work):  # without room to finish, this token would not have been taken
                return FinishReason("stop")
            return FinishReason("length", length=length - work.prompt_len)
        return None

    def _jump(self, branch: Branch, work: Work) -> FinishReason | None:
        """Append the tokens that the grammar forces; the next step extends by all of them at once."""
        assert work.matcher is not None
        tokens = work.matcher.forced()
        if tokens and work.logprobs is not None:  # what they are given must be computed, not taken from the cache
            known = branch.length - 1
            work.match_limit = known if branch.length > work.prompt_len else min(work.match_limit, known)
        for token in tokens:
            self._append(branch, token)
            reason = self._accept_or_close(branch, work, token, forced=True)
            if reason is not None:
                return reason
        return None

    def _stream(self, branch: Branch, work: Work) -> None:
        assert work.text is not None
        ids = branch.ids()[work.prompt_len + work.sent :].tolist()
        about = {} if work.sent else {"meta": {"prompt_tokens": work.prompt_len, "cached_tokens": _cached(work)}}
        work.sent += len(ids)
        branch.emit(work.node, "delta", text=work.text.new_text(), ids=ids, **about)

    # -- the end of a generation -----------------------------------------------------------------------------------

    def finish(self, branch: Branch, reason: FinishReason) -> None:
        """End the branch's generation, report it, and let the graph go on."""
        work = branch.work
        assert work is not None and work.params is not None
        produced = branch.ids()[work.prompt_len :].tolist()
        keep, remainder = len(produced), ""
        if reason.type == "stop":
            if isinstance(reason.matched, str):
                assert work.text is not None
                keep, remainder = work.text.kept()
            elif produced and (produced[-1] in work.stop_ids or self._stopped_by_eos(work, produced[-1])):
                keep -= 1
        self.memory.account(branch)
        if work.text is not None:
            text = work.text.text()
            if work.stream:
                branch.emit(work.node, "delta", text=work.text.new_text(final=True), ids=produced[work.sent :])
        else:
            visible = produced if work.params.no_stop_trim else produced[:keep]
            text = self.graph.tokenizer.decode(visible, work.params.skip_special_tokens)
        ids = branch.ids().tolist()
        meta = self._meta(work, ids, reason)
        if branch.program.tokens:
            meta["prompt_ids"] = {"start": work.base, "ids": ids[work.base : work.prompt_len]}
        self.memory.truncate(branch, work.prompt_len + keep)
        if branch.row >= 0:
            self.memory.commit(branch)
        self.graph.finished(branch, remainder, text=text, ids=produced, meta=meta)

    def _stopped_by_eos(self, work: Work, last: int) -> bool:
        assert work.params is not None
        return last in self.eos_ids and not work.params.ignore_eos

    def _meta(self, work: Work, ids: list[int], reason: FinishReason) -> dict[str, Any]:
        now = self.memory.clock()
        meta: dict[str, Any] = {
            "prompt_tokens": work.prompt_len,
            "completion_tokens": len(ids) - work.prompt_len,
            "cached_tokens": _cached(work),
            "computed_tokens": work.computed,
            "forced_tokens": work.forced,
            "draft_tokens": work.drafted,
            "accepted_draft_tokens": work.confirmed,
            "finish_reason": reason.to_dict(),
            "queue_time": max(work.t_admit - work.t_start, 0.0) if work.t_admit else 0.0,
            "ttft": work.t_first - work.t_start if work.t_first else now - work.t_start,
            "e2e_latency": now - work.t_start,
            "num_retractions": work.retractions,
        }
        if work.warnings:
            meta["constraint_warnings"] = list(work.warnings)
        if work.forced_runs:
            meta["forced_runs"] = work.forced_runs
        if work.logprobs is not None:
            lists = _logprob_lists(work, ids)
            meta.update(self._with_text(lists) if work.logprobs.text else lists)
        return meta

    def _with_text(self, value: Any) -> Any:
        """Log-probability entries at any depth, each with its token's text as third element."""
        if isinstance(value, dict):
            return {name: self._with_text(inner) for name, inner in value.items()}
        if isinstance(value, list) and len(value) == 3 and type(value[1]) is int:
            return [value[0], value[1], self.graph.tokenizer.decode([value[1]], False)]
        return [self._with_text(inner) for inner in value] if isinstance(value, list) else value


def _cached(work: Work) -> int:
    """Prompt tokens from the cache; what the grammar forces behind the prompt may have been there too."""
    return min(work.cached, work.prompt_len)


Triple = list[Any]  # [logprob or None, token id, None]


def _logprob_lists(work: Work, ids: list[int]) -> dict[str, Any]:
    """The lists of the /generate format, from what the steps said."""
    options = work.logprobs
    assert options is not None
    value: dict[int, float] = {}
    top: dict[int, list[tuple[float, int]]] = {}
    picked: dict[int, list[tuple[float, int]]] = {}
    for end, said in work.records:
        for k, logprob in enumerate(said.input):
            at = said.input_start + k
            value[at] = logprob
            if said.input_top:
                top[at] = said.input_top[k]
            if said.input_ids:
                picked[at] = said.input_ids[k]
        if said.output is not None:
            value[end] = said.output
            if said.output_top is not None:
                top[end] = said.output_top
            if said.output_ids is not None:
                picked[end] = said.output_ids
    shown = lambda pairs: None if pairs is None else [[p, t, None] for p, t in pairs]  # noqa: E731
    out: dict[str, Any] = {}
    spans = {"output": range(work.prompt_len, len(ids))}
    if options.start >= 0:
        spans["input"] = range(options.start, work.prompt_len)
    for name, span in spans.items():
        out[f"{name}_token_logprobs"] = [[value.get(p), ids[p], None] for p in span]
        if options.top:
            out[f"{name}_top_logprobs"] = [shown(top.get(p)) for p in span]
        if options.ids:
            out[f"{name}_token_ids_logprobs"] = [shown(picked.get(p)) for p in span]
    return out
