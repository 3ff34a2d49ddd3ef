"""The real engine, whose model hangs as soon as a prompt says so."""

from __future__ import annotations

import time
from typing import Any

from stemma.backend.core import Plan, StepOutput
from stemma.backend.engine import Engine
from stemma.backend.messages import GraphDelta, TextNode


def make(config: Any) -> Engine:
    engine = Engine(config)
    run, submit = engine.runner.run, engine.submit

    def hanging_run(plan: Plan) -> StepOutput:
        time.sleep(60)
        return run(plan)

    def watched_submit(delta: GraphDelta, on_event: Any) -> None:
        if any(isinstance(n, TextNode) and n.text == "hang" for b in delta.branches for n in b.nodes):
            setattr(engine.scheduler.runner, "run", hanging_run)  # noqa: B010
        submit(delta, on_event)

    setattr(engine, "submit", watched_submit)  # noqa: B010
    return engine
