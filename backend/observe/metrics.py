"""Counters and histograms, and their text form for Prometheus. For one thread."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

TTFT = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)  # seconds
E2E = (*TTFT, 800)
ITL = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2,
    4, 6, 8,
)  # fmt: skip
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum}"
        yield f"{name}_count{{{labels}}} {total}"


class Metrics:
    """What a server has done since it started. `prefix` begins every name, `model` is the label model_name."""

    def __init__(self, prefix: str = "stemma_", model: str = "") -> None:
        self.prefix = prefix
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._labels = f'model_name="{escaped}"'
        self.counters = {
            "num_requests_total": 0,
            "num_errors_total": 0,
            "prompt_tokens_total": 0,
            "generation_tokens_total": 0,
            "cached_tokens_total": 0,
            "retractions_total": 0,
            "slow_clients_total": 0,
            "refused_requests_total": 0,
        }
        self.histograms = {
            "time_to_first_token_seconds": Histogram(TTFT),
            "inter_token_latency_seconds": Histogram(ITL),
            "e2e_request_latency_seconds": Histogram(E2E),
            "queue_time_seconds": Histogram(TTFT),
        }

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] += by

    def observe(self, event: Mapping[str, Any]) -> None:
        """An event of a generation or select. The latency between its tokens is the mean, counted for each token."""
        if event["event"] == "error":
            self.count("num_errors_total")
        if event["event"] != "done":
            return
        meta = event.get("meta") or {}
        tokens = meta.get("completion_tokens") or 0
        self.count("num_requests_total")
        self.count("prompt_tokens_total", meta.get("prompt_tokens") or 0)
        self.count("cached_tokens_total", meta.get("cached_tokens") or 0)
        self.count("generation_tokens_total", tokens)
        self.count("retractions_total", meta.get("num_retractions") or 0)
        whole, first, queued = meta.get("e2e_latency"), meta.get("ttft"), meta.get("queue_time")
        if whole is not None:
            self.histograms["e2e_request_latency_seconds"].add(whole)
        if first is not None:
            self.histograms["time_to_first_token_seconds"].add(first)
        if queued is not None:
            self.histograms["queue_time_seconds"].add(queued)
        if whole is not None and first is not None and tokens > 1:
            self.histograms["inter_token_latency_seconds"].add(max(whole - first, 0.0) / (tokens - 1), tokens - 1)

    def render(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> str:
        """The text form, with gauges and counters that are known elsewhere."""
        lines: list[str] = []
        for kind, values in (("gauge", gauges), ("counter", {**self.counters, **counters})):
            for name, value in values.items():
                lines += [f"# TYPE {self.prefix}{name} {kind}", f"{self.prefix}{name}{{{self._labels}}} {value}"]
        for name, histogram in self.histograms.items():
            lines.append(f"# TYPE {self.prefix}{name} histogram")
            lines += histogram.lines(self.prefix + name, self._labels)
        return "\n".join(lines) + "\n"
