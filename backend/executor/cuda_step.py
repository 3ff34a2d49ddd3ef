"""CudaStep: a step that is under way on the GPU (`core.Launched`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import Int32, Int64, Plan, RowLogprobs, StepOutput
from stemma.backend.executor.draws import every_draw
from stemma.backend.executor.logprobs import check_ids, input_logprobs, output_logprobs
from stemma.backend.executor.sampler import sample

if TYPE_CHECKING:
    from stemma.backend.executor.cuda_runner import CudaRunner


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turns torch's error into a `MemoryError` that says what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).split(". ", 1)[0]
        raise MemoryError(f"{first}. {advice}") from error


class CudaStep:
    """Made by `CudaRunner.launch`: the forward pass is enqueued; so is sampling, unless the plan is late."""

    def __init__(self, runner: CudaRunner, plan: Plan) -> None:
        self._runner, self._plan = runner, plan
        self._places = np.flatnonzero(plan.sample)
        self._draws = every_draw(plan, self._places)
        with out_of_memory(runner.step_advice(len(plan.ids))):
            self._hidden, self._logits, self._best = runner.enqueue(plan, self._draws)
        self._logprobs: dict[int, RowLogprobs] = {}
        self._drawn: tuple[Tensor, torch.cuda.Event] | None = None
        if not plan.late:
            self.sample()

    @torch.inference_mode()
    def sample(self) -> None:
        """Enqueues drawing and the copy of the ids. Log-probabilities are worked out here, and waited for."""
        runner, plan = self._runner, self._plan
        with out_of_memory(runner.step_advice(len(plan.ids))):
            raw, outputs = self._ask_logprobs()
            if self._places.size:
                ids = self._draw()
                self._drawn = runner.send_back(ids)
                runner.relay(ids, self._places, self._draws)
            if raw is not None:
                drawn = self._wait()[self._draws.where]
                at = np.searchsorted(self._places, [r.index for r in outputs])
                output_logprobs(outputs, raw, drawn[at].tolist(), self._logprobs)
        del self._hidden, self._logits, self._best

    def _draw(self) -> Tensor:
        runner, draws, s = self._runner, self._draws, self._plan.sampling
        if s.all_greedy and not s.any_penalty and not draws.plan.masks and not s.bias:
            return self._best
        logits = self._logits.float()
        return sample(logits, draws.plan, draws.places, runner.kernels, runner.masks)

    def _ask_logprobs(self) -> tuple[Tensor | None, list[Any]]:
        """The raw rows of logits that output log-probabilities are wanted of, and who wants them."""
        runner, plan = self._runner, self._plan
        outputs = []
        for request in plan.logprobs:
            check_ids(request, runner.vocab_size)
            result = self._logprobs[request.index] = RowLogprobs()
            if request.input_from >= 0:
                input_logprobs(plan, request, self._hidden, runner.model.logits, runner.vocab_size, result)
            if request.output and plan.sample[request.index]:
                outputs.append(request)
        if not outputs:
            return None, []
        rows = self._draws.where[np.searchsorted(self._places, [r.index for r in outputs])]
        return self._logits[torch.from_numpy(rows).to(runner.device)].float(), outputs

    def _wait(self) -> Int64:
        """The drawn ids [N]."""
        assert self._drawn is not None
        host, event = self._drawn
        event.synchronize()
        return host.numpy()

    def result(self) -> StepOutput:
        """Waits for the ids."""
        next_ids = np.full(len(self._plan.rows), -1, np.int32)
        verified: dict[int, Int32] = {}
        if self._places.size:
            drawn = self._wait()[self._draws.where]
            next_ids[self._places] = drawn[: self._places.size]
            verified = self._draws.verified(drawn)
        return StepOutput(next_ids, self._logprobs, verified)
