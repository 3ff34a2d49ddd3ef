"""What a program may spend, in tokens or money."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

from stemma.lang.errors import BudgetError, RequestError


class Budget:
    """A bound on what programs spend together. One budget may be given to many runs; it is thread-safe.

    `tokens` bounds prompt and completion tokens together, `completion_tokens` only what was generated, `cost` the money
    by `prices`: per million tokens, `{"input": 3.0, "cached": 0.3, "output": 15.0}` (cached prompt tokens cost as
    input where `cached` is not given). It is checked whenever a generation ends: the program is then stopped, so it
    overshoots by at most what is in flight. Raises `RequestError` for bounds that are not positive, or a cost without
    prices.
    """

    def __init__(
        self,
        tokens: int | None = None,
        *,
        completion_tokens: int | None = None,
        cost: float | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        bounds = {"tokens": tokens, "completion_tokens": completion_tokens, "cost": cost}
        for name, bound in bounds.items():
            if bound is not None and not (isinstance(bound, (int, float)) and 0 < bound < math.inf):
                raise RequestError(f"{name} of a budget must be a number > 0, got {bound!r}", param=name)
        if all(bound is None for bound in bounds.values()):
            raise RequestError("a budget needs a bound: tokens, completion_tokens or cost", param="tokens")
        if cost is not None and prices is None:
            raise RequestError("a budget of money needs prices, such as {'input': 3.0, 'output': 15.0}", param="prices")
        if prices is not None and (
            set(prices) - {"input", "cached", "output"} or not {"input", "output"} <= set(prices)
        ):
            raise RequestError(
                f"prices are for input, output and perhaps cached tokens, got {prices!r}", param="prices"
            )
        self.bounds = {name: bound for name, bound in bounds.items() if bound is not None}
        self.prices = dict(prices or {})
        self.spent: dict[str, float] = {"tokens": 0, "completion_tokens": 0, "cost": 0.0}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{self.spent[k]:g} of {v:g} {k}' for k, v in self.bounds.items())})"

    def spend(self, meta: Mapping[str, Any]) -> BudgetError | None:
        """Account for one generation. The error, once a bound is reached: the program must be stopped with it."""
        prompt, cached = meta.get("prompt_tokens") or 0, meta.get("cached_tokens") or 0
        completion = meta.get("completion_tokens") or 0
        with self._lock:
            self.spent["tokens"] += prompt + completion
            self.spent["completion_tokens"] += completion
            if self.prices:
                per = self.prices
                money = (prompt - cached) * per["input"] + cached * per.get("cached", per["input"])
                self.spent["cost"] += (money + completion * per["output"]) / 1e6
            return self.over()

    def over(self) -> BudgetError | None:
        """The error when a bound is reached, else None."""
        for name, bound in self.bounds.items():
            if self.spent[name] >= bound:
                unit = name.replace("_", " ")
                return BudgetError(f"the budget is used up: {self.spent[name]:g} of {bound:g} {unit}")
        return None
