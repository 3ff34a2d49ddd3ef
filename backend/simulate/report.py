"""Figures of a simulation, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.backend.simulate.simulation import ProgramResult, Result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 99th percentile and maximum; zeros of nothing."""
    if not len(values):
        return {"mean": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    a = np.asarray(values, np.float64)
    p50, p99 = np.quantile(a, [0.5, 0.99])
    return {"mean": float(a.mean()), "p50": float(p50), "p99": float(p99), "max": float(a.max())}


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all are equal, 1/n when one has everything."""
    a = np.asarray(values, np.float64)
    return float(a.sum() ** 2 / (len(a) * (a * a).sum())) if len(a) and a.any() else 1.0


def hit_rate(programs: Sequence[ProgramResult]) -> float:
    prompt = sum(p.prompt for p in programs)
    return sum(p.cached for p in programs) / prompt if prompt else 0.0


def summary(result: Result) -> dict[str, Any]:
    """Everything about a run, JSON-ready. Times in seconds; docs/simulator.md says what each figure is."""
    programs = [p for p in result.programs if not p.error]
    generated = sum(p.generated for p in programs)
    hits = hit_rate(programs)
    alone = [p.slowdown for p in programs if p.slowdown]
    out: dict[str, Any] = {
        "programs": len(result.programs),
        "failed": len(result.programs) - len(programs),
        "errors": sorted({p.error for p in result.programs if p.error})[:5],
        "seconds": result.seconds,
        "throughput": {
            "programs": len(programs) / result.seconds if result.seconds else 0.0,
            "output_tokens": generated / result.seconds if result.seconds else 0.0,
        },
        "latency": spread([p.latency for p in programs]),
        "ttft": spread([p.ttft for p in programs]),
        "hit_rate": hits,
        "oracle_hit_rate": result.oracle,
        "hit_share_of_oracle": hits / result.oracle if result.oracle else None,
        "tokens": {
            "prompt": sum(p.prompt for p in programs),
            "cached": sum(p.cached for p in programs),
            "computed": sum(p.computed for p in programs),
            "generated": generated,
        },
        "utilisation": {"busy": result.busy, "rows": result.rows, "slots": result.slots, "waiting": result.waiting},
        "retractions": result.retractions,
        "longest_wait": spread([p.longest_wait for p in programs]),
        "slowdown": {**spread(alone), "jain": jain([1 / s for s in alone]), "sample": len(alone)} if alone else None,
        "kinds": {},
        "simulator": {
            "wall": result.wall,
            "cpu": result.cpu,
            "programs_per_second": len(result.programs) / result.cpu if result.cpu else 0.0,
            "steps": result.steps,
            "coasted_steps": result.coasted,
        },
    }
    for kind in sorted({p.kind for p in programs}):
        these = [p for p in programs if p.kind == kind]
        out["kinds"][kind] = {
            "programs": len(these),
            "latency": spread([p.latency for p in these]),
            "hit_rate": hit_rate(these),
        }
    return out


COLUMNS = (
    ("load", 5), ("policy", 9), ("router", 12), ("prog/s", 7), ("tok/s", 7), ("mean s", 7), ("p50 s", 7), ("p99 s", 8),
    ("ttft s", 7), ("hit %", 6), ("of best", 7), ("busy %", 6), ("rows", 6), ("retr", 6), ("wait s", 7), ("slow", 6),
    ("slow99", 7), ("jain", 5),
)  # fmt: skip


def table(rows: Sequence[tuple[str, str, str, dict[str, Any]]]) -> str:
    """Lines of (load, policy, router, summary). *of best*: hits as a share of a cache without bounds; *wait*: the
    longest of one generation; *slow*: mean slowdown against running alone, *slow99* its 99th percentile."""
    lines = [" ".join(f"{name:>{width}}" for name, width in COLUMNS)]
    for load, policy, router, s in rows:
        slow, share = s["slowdown"], s["hit_share_of_oracle"]
        cells = (
            load, policy, router, f"{s['throughput']['programs']:.2f}", f"{s['throughput']['output_tokens']:.0f}",
            f"{s['latency']['mean']:.2f}", f"{s['latency']['p50']:.2f}", f"{s['latency']['p99']:.2f}",
            f"{s['ttft']['mean']:.2f}", f"{100 * s['hit_rate']:.1f}", f"{100 * share:.1f}" if share else "-",
            f"{100 * s['utilisation']['busy']:.0f}", f"{s['utilisation']['rows']:.0f}", str(s["retractions"]),
            f"{s['longest_wait']['max']:.2f}", f"{slow['mean']:.2f}" if slow else "-",
            f"{slow['p99']:.2f}" if slow else "-", f"{slow['jain']:.2f}" if slow else "-",
        )  # fmt: skip
        lines.append(" ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)))
        if s["failed"]:
            lines.append(f"      {s['failed']} programs failed: {'; '.join(s['errors'])}")
    return "\n".join(lines)
