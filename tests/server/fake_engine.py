"""A scripted engine with the API of the real one. What a generation does is written in the prompt.

`echo <words>` generates the words after it, one token each; `hang` runs until it is cancelled; `refuse` is refused at
once; `boom` fails with an error event; `slow` waits a little before each token; `stopped` is an engine whose thread has
ended; `die` ends the process; `flood` streams many megabytes as fast as it can.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stemma.backend.messages import (
    GenNode,
    GraphDelta,
    IdsNode,
    RefNode,
    RoleBeginNode,
    RoleEndNode,
    SelectNode,
    TextNode,
    error_object,
)
from stemma.lang.errors import CancelledError, ConstraintError, EngineDeadError, RequestError
from stemma.lang.params import Constraint, SamplingParams

Event = dict[str, Any]


class FakeEngine:
    def __init__(self, config: Any = None) -> None:
        if getattr(config, "served_model_name", None) == "unloadable":
            raise RequestError("the weights of 'unloadable' are missing", param="model_path")
        if getattr(config, "served_model_name", None) == "slow-to-load":
            time.sleep(20)
        if getattr(config, "served_model_name", None) == "slow-second-load":
            mark = Path(os.environ["STEMMA_TEST_MARK"])
            if mark.exists():
                time.sleep(20)
            mark.touch()
        self.config = config
        self.deltas: list[GraphDelta] = []
        self.cancelled: list[tuple[str, Any]] = []
        self.flushes = 0
        self.busy = False
        self._stops: dict[str, threading.Event] = {}

    def submit(self, delta: GraphDelta, on_event: Callable[[Event], None]) -> None:
        texts = [n.text for b in delta.branches for n in b.nodes if isinstance(n, TextNode)]
        if any(t.startswith("refuse") for t in texts):
            raise RequestError("the engine refuses this", param="text")
        if any(t.startswith("must be known") for t in texts) and delta.program not in self._stops:
            raise RequestError(f"the program {delta.program!r} is not known", param="program", status=410)
        for branch in delta.branches:
            for node in branch.nodes:
                if isinstance(node, GenNode):
                    SamplingParams.from_dict(node.params)
                    if node.constraint is not None and Constraint.from_dict(node.constraint).kind == "ebnf":
                        raise ConstraintError("this grammar does not compile", param="ebnf")
        self.deltas.append(delta)
        stop = self._stops.setdefault(delta.program, threading.Event())
        threading.Thread(target=self._run, args=(delta, on_event, stop), daemon=True).start()

    def cancel(self, program: str, branches: Sequence[str] | None = None) -> None:
        self.cancelled.append((program, branches))
        self._stops.setdefault(program, threading.Event()).set()

    def flush_cache(self) -> bool:
        self.flushes += 1
        return not self.busy

    def info(self) -> dict[str, Any]:
        name = getattr(self.config, "model_name", None) or "fake"
        return {
            "model_path": "fake/path", "tokenizer_path": "fake/path", "served_model_name": name,
            "architectures": ["Fake"], "context_length": 128, "vocab_size": 256, "max_total_num_tokens": 100,
            "running": 0, "waiting": 0,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {"error": None, "programs": 0}

    def on_death(self, cause: str) -> None:
        pass

    def shutdown(self) -> None:
        for stop in self._stops.values():
            stop.set()

    # The script

    def _run(self, delta: GraphDelta, emit: Callable[[Event], None], stop: threading.Event) -> None:
        context: dict[str, str] = {}
        for branch in delta.branches:
            text = context.get(branch.parent or "", "")
            for i, node in enumerate(branch.nodes):
                at = {"branch": branch.id, "node": branch.first + i}
                if isinstance(node, TextNode):
                    text += node.text
                elif isinstance(node, IdsNode):
                    text += bytes(node.ids).decode()
                elif isinstance(node, (RoleBeginNode, RoleEndNode)):
                    emit({"event": "text", **at, "text": f"<{node.role}>"})
                elif isinstance(node, SelectNode):
                    emit({"event": "done", **at, "text": node.choices[0], "ids": [], "meta": {"choice": 0}})
                elif isinstance(node, RefNode):
                    raise NotImplementedError("the fake engine finds no quotes")
                else:
                    text += self._gen(text, node, lambda kind, at=at, **rest: emit({"event": kind, **at, **rest}), stop)
            context[branch.id] = text

    def _gen(self, prompt: str, node: GenNode, emit: Callable[..., None], stop: threading.Event) -> str:
        if "die" in prompt:
            time.sleep(0.05)
            os._exit(7)
        if "stopped" in prompt:
            emit("error", error=error_object(EngineDeadError("the engine stopped: KeyError: 5")))
            return ""
        if "hang" in prompt:
            stop.wait(30)
        if stop.is_set():
            emit("error", error=error_object(CancelledError("the program was cancelled")))
            return ""
        if "boom" in prompt:
            emit("error", error=error_object(RequestError("the prompt is too long", param="text")))
            return ""
        if "flood" in prompt:
            while not stop.is_set():
                emit("delta", text="x" * 10_000, ids=[1], meta={})
                time.sleep(0.001)
            emit("error", error=error_object(CancelledError("the program was cancelled")))
            return ""
        params = SamplingParams.from_dict(node.params)
        words = prompt.partition("echo ")[2].split() or ["ok"]
        limit = params.max_new_tokens
        words = words if limit is None else words[:limit]
        counts = {"prompt_tokens": len(prompt), "cached_tokens": 2}
        produced: list[str] = []
        for n, word in enumerate(words):
            if "slow" in prompt and stop.wait(0.03):
                emit("error", error=error_object(CancelledError("the program was cancelled")))
                return ""
            produced.append(f" {word}")
            if node.stream:
                emit("delta", text=produced[-1], ids=[65 + n], meta=counts)
        ids = [65 + n for n in range(len(words))]
        finish = {"type": "length", "length": limit} if len(words) == limit else {"type": "stop", "matched": 0}
        meta = {**counts, "completion_tokens": len(ids), "finish_reason": finish, "e2e_latency": 0.1}
        if node.logprobs is not None:
            meta["output_token_logprobs"] = [[-0.5, i, None] for i in ids]
            if node.logprobs.top:
                meta["output_top_logprobs"] = [[[-0.5, i, None], [-1.5, i + 1, None]] for i in ids]
        emit("done", text="".join(produced), ids=ids, meta=meta)
        return "".join(produced)
