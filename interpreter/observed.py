"""What one may ask of a program besides its values: its graph, what it used, a trace of it, a record of it.

These are methods of `ProgramState`, in a file of their own. All of them are about the whole program.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.interpreter.usage import NodeUsage, Prices, model_name, totals, usages
from stemma.lang.errors import StemmaError

if TYPE_CHECKING:
    from stemma.interpreter.explain import Plan
    from stemma.interpreter.replay import Record
    from stemma.interpreter.runtime import Run
    from stemma.interpreter.trace import Trace


class Observed:
    """The part of a program's state that looks at the program from outside."""

    _run: Run

    def usage(self, timeout: float | None = None, prices: Prices | None = None) -> dict[str, float]:
        """Totals over the whole program. Waits for what is running, failed or not.

        `prompt_tokens`, `completion_tokens`, `cached_tokens`, `computed_tokens`, `forced_tokens`; `nodes` (gens and
        selects) and how many of them `failed`, were `merged` and `dropped`; `retries`; `wall_seconds`. With `prices`,
        money for a million tokens as `{model: {"input": …, "output": …, "cached": …}}` ("*" for any model), also
        `cost`. Raises `TimeoutError`, and `RequestError` for a model that has no price.
        """
        self._settled(timeout)
        used = self._run.usage()
        return used if prices is None else {**used, **totals(usages(self._run.graph, prices, self._model(prices)))}

    def usage_by_node(self, timeout: float | None = None, prices: Prices | None = None) -> list[NodeUsage]:
        """The same for each gen and select: tokens, latency, time to the first token, retries, cost. Waits for all."""
        self._settled(timeout)
        return usages(self._run.graph, prices, self._model(prices))

    def explain(self, timeout: float | None = None) -> Plan:
        """What the program asked for, what its branches share, and the tokens that this saved. Waits for all."""
        self._settled(timeout)
        return self._run.graph.explain()

    def trace(self, timeout: float | None = None, prices: Prices | None = None) -> Trace:
        """Everything that happened, to look at: `print` it, `save("run.html")` it. Waits for what is running.

        Run with `trace=True` to see the tokens of the prompts on an endpoint that is not in this process.
        """
        from stemma.interpreter.trace import Trace  # it knows about pages, which programs do without

        self._settled(timeout)
        return Trace.of(self._run.graph, endpoint=self._run.endpoint, prices=prices)

    def record(self, timeout: float | None = None) -> Record:
        """The run as a record that `ReplayEndpoint` answers from. Waits for what is running."""
        from stemma.interpreter.replay import Record  # it defines an endpoint, which programs do without

        runs = self._recorded(timeout)
        try:
            return Record(runs, self._model(prices=True))
        except (StemmaError, OSError):  # an endpoint that is gone cannot say; the answers are what matters
            return Record(runs)

    def save(self, path: str | Path, timeout: float | None = None) -> Path:
        """Write the record of the run to a JSON file, for `ReplayEndpoint.load(path)`. Returns the path."""
        return self.record(timeout).save(path)

    def _repr_html_(self) -> str:
        """What a notebook shows: the trace so far, without waiting."""
        from stemma.interpreter.trace import Trace

        return Trace.of(self._run.graph, endpoint=self._run.endpoint)._repr_html_()

    def _recorded(self, timeout: float | None) -> list[dict[str, Any]]:
        self._settled(timeout)
        return [self._run.graph.to_dict()]

    def _settled(self, timeout: float | None) -> None:
        """Wait until every gen and select has its answer or has failed."""
        for _ in self._run.settle(self._run.filled(list(self._run.graph.branches.values())), timeout):
            pass

    def _model(self, prices: Any) -> str | None:
        """Asked for only when there is something to price: it may cost a request."""
        return model_name(self._run.endpoint.info()) if prices is not None else None
