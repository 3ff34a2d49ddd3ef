"""What becomes of a step's tokens: appended, checked for an end, streamed, and turned into a result."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.backend.core import FinishReason, Plan, StepOutput
from stemma.backend.scheduler.branch import Branch, Work
from stemma.lang.errors import ConstraintError, StemmaError

if TYPE_CHECKING:
    from stemma.backend.scheduler.admit import Memory
    from stemma.backend.scheduler.graph import Graph


class Output:
    """Takes a `StepOutput` apart. Plain rows cost no Python: only rows that end or are `special` are seen singly."""

    def __init__(
        self, memory: Memory, graph: Graph, eos_ids: frozenset[int], vocab_size: int, jump_forward: bool
    ) -> None:
        self.memory, self.graph, self.jump_forward = memory, graph, jump_forward
        self.eos_ids = eos_ids
        self._is_eos = np.zeros(vocab_size, np.bool_)
        self._is_eos[[i for i in eos_ids if i < vocab_size]] = True

    def process(self, plan: Plan, out: StepOutput) -> None:
        rows, index = self.memory.rows, plan.rows
        ends = plan.start + plan.n
        rows.computed[index] = ends
        rows.spent[index] += plan.n
        for i, said in out.logprobs.items():
            branch = rows.branch[int(index[i])]
            if branch is not None and branch.work is not None:
                branch.work.records.append((int(ends[i]), said))
        if plan.sample.all():
            row, token, position = index, out.next_ids, ends
        else:
            drawn = plan.sample
            row, token, position = index[drawn], out.next_ids[drawn], ends[drawn]
            for r in index[~drawn & (ends == rows.length[index]) & ~rows.sample[index]]:
                self.settle(rows.branch[int(r)])
        rows.ids[row, position] = token
        rows.length[row] = position + 1
        first = position == rows.prompt_len[row]
        if first.any():
            rows.t_first[row[first]] = time.perf_counter()
        ended = (self._is_eos[token] & ~rows.ignore_eos[row]) | (position + 1 >= rows.limit[row])
        for k in np.flatnonzero(ended | rows.special[row]).tolist():
            branch = rows.branch[int(row[k])]
            if branch is None:  # released by a failure that spread from a row before it
                continue
            try:
                self._take(branch, int(token[k]))
            except StemmaError as error:
                self.graph.fail(branch, error)
            except Exception as error:  # a broken matcher or template must not take the engine down
                self.graph.fail(branch, StemmaError(f"internal error: {type(error).__name__}: {error}"))

    def settle(self, branch: Branch | None) -> None:
        """A row that samples nothing has computed all it was asked for."""
        assert branch is not None and branch.work is not None
        if branch.on_done is not None:
            branch.on_done(branch)
        else:
            self.finish(branch, FinishReason("length", length=0))

    # -- one token of one special row ------------------------------------------------------------------------------

    def _take(self, branch: Branch, token: int) -> None:
        work = branch.work
        assert work is not None
        reason = self._accept(branch, work, token)
        # a forced token at the very end would never be run, so its log-probability would stay unknown
        if reason is None and work.matcher is not None and self.jump_forward and work.logprobs is None:
            reason = self._jump(branch, work)
        if reason is not None:
            self.finish(branch, reason)
            return
        if work.matcher is not None:
            work.mask = work.matcher.mask()  # here, where a grammar that grew too large fails its own branch only
        if work.stream:
            self._stream(branch, work)

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
            return FinishReason("length", length=length - work.prompt_len)
        return None

    def _jump(self, branch: Branch, work: Work) -> FinishReason | None:
        """Append the tokens that the grammar forces; the next step extends by all of them at once."""
        assert work.matcher is not None
        rows, row = self.memory.rows, branch.row
        run = [int(rows.length[row]) - work.prompt_len, 0]
        for token in work.matcher.forced():
            if not run[1]:
                work.forced_runs.append(run)
            run[1] += 1
            length = int(rows.length[row])
            rows.ids[row, length] = token
            rows.length[row] = length + 1
            work.forced += 1
            reason = self._accept(branch, work, token)
            if reason is not None:
                return reason
        return None

    def _stream(self, branch: Branch, work: Work) -> None:
        assert work.text is not None
        ids = branch.ids()[work.prompt_len + work.sent :].tolist()
        about = {} if work.sent else {"meta": {"prompt_tokens": work.prompt_len, "cached_tokens": work.cached}}
        work.sent += len(ids)
        branch.emit(work.node, "delta", text=work.text.new_text(), ids=ids, **about)

    # -- the end of a generation -----------------------------------------------------------------------------------

    def finish(self, branch: Branch, reason: FinishReason) -> None:
        """End the branch's generation, report it, and let the graph go on."""
        work = branch.work
        assert work is not None and work.params is not None and branch.row >= 0
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
        now = time.perf_counter()
        meta: dict[str, Any] = {
            "prompt_tokens": work.prompt_len,
            "completion_tokens": len(ids) - work.prompt_len,
            "cached_tokens": work.cached,
            "computed_tokens": work.computed,
            "forced_tokens": work.forced,
            "finish_reason": reason.to_dict(),
            "queue_time": max(work.t_admit - work.t_start, 0.0) if work.t_admit else 0.0,
            "ttft": work.t_first - work.t_start if work.t_first else now - work.t_start,
            "e2e_latency": now - work.t_start,
            "num_retractions": work.retractions,
        }
        if work.forced_runs:
            meta["forced_runs"] = work.forced_runs
        if work.logprobs is not None:
            meta.update(_logprob_lists(work, ids))
        return meta


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
