"""What a step costs: seconds as a function of how many tokens, rows and cached tokens it touches.

    seconds = table(tokens) + per_context * context + per_pair * pairs + per_row * rows

`table` is linear between its points and continues with its last slope; it holds the matrix products and everything that
a step costs whatever it does. `context` is the number of cached tokens that attention reads (with `shared_once`, those
that a family of rows shares count once); `pairs` counts (token, token before it) pairs: the arithmetic of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from stemma.backend.core import Plan
from stemma.lang.errors import RequestError


class Load(NamedTuple):
    """What a step touches."""

    tokens: int
    rows: int
    context: int  # cached tokens read, shared ones once for each row
    shared: int  # of them, those that a family of rows has in common, without the first reading
    pairs: int

    @classmethod
    def of(cls, plan: Plan) -> Load:
        ends = plan.start + plan.n
        context = int(ends.sum(dtype=np.int64))
        if len(plan.ids) == len(plan.rows):
            pairs = context
        else:
            n = plan.n.astype(np.int64)
            pairs = int((n * plan.start + n * (n + 1) // 2).sum())
        shared = sum((group.count - 1) * group.shared for group in plan.groups)
        return cls(len(plan.ids), len(plan.rows), context, shared, pairs)


@dataclass(frozen=True, slots=True)
class CostModel:
    """See the module's docstring. Times in seconds; `points` are (tokens, seconds), tokens ascending."""

    name: str
    points: tuple[tuple[float, float], ...]
    per_context: float = 0.0
    per_pair: float = 0.0
    per_row: float = 0.0
    shared_once: bool = False

    def __post_init__(self) -> None:
        tokens = [t for t, _ in self.points]
        if not tokens or tokens != sorted(set(tokens)):
            raise RequestError(f"the points of a cost model must have ascending token counts, got {tokens}")
        if min(s for _, s in self.points) <= 0 or min(self.per_context, self.per_pair, self.per_row) < 0:
            raise RequestError(f"a step must cost time: no negative cost, and no point at 0 seconds: {self}")

    def table(self, tokens: int) -> float:
        points = self.points
        if tokens <= points[0][0] or len(points) == 1:
            return points[0][1]
        k = 1
        while k < len(points) - 1 and tokens > points[k][0]:
            k += 1
        (t0, s0), (t1, s1) = points[k - 1], points[k]
        return s0 + (s1 - s0) * (tokens - t0) / (t1 - t0)

    def seconds(self, load: Load) -> float:
        """Seconds of one step. `load.context` and `load.pairs` may be float64 arrays: then of several."""
        context = load.context - load.shared if self.shared_once else load.context
        fixed = self.table(load.tokens) + self.per_row * load.rows
        return fixed + self.per_context * context + self.per_pair * load.pairs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self.to_dict())) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> CostModel:
        """Raises RequestError if the file is not a cost model."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise RequestError(f"{path} is no cost model: {error}") from None


_REST = 0.00075  # seconds of a step that are neither products nor attention (measured: 0.5 to 1 ms)
_LAYERS_AND_HEAD = ((1, 3.90), (32, 4.08), (64, 4.19), (128, 4.55), (256, 6.09), (512, 11.10), (1024, 21.0))

PRESETS = {
    # Llama-3.1-8B in bf16 on one H200: matrix products as measured (3.66 ms for the layers at one token, 5.68 at 256,
    # 50,000 tokens a second in prefill), KV of 131,072 bytes a token read at 4.3 TB/s, 524,288 operations a pair at
    # 700 TFLOP/s. With attention that reads what a family shares once: h200-8b-family.
    "h200-8b": CostModel(
        "h200-8b",
        tuple((float(n), ms / 1e3 + _REST) for n, ms in _LAYERS_AND_HEAD),
        per_context=131_072 / 4.3e12,
        per_pair=524_288 / 700e12,
        per_row=1e-6,
    ),
    # The bundled model on one thread of a 2-core machine, from `stemma bench simulate --calibrate --threads 1`: 772
    # steps, the total time within 4.3 %, half of the steps within 9 %, nine tenths within 29 %.
    "cpu-demo": CostModel(
        "cpu-demo",
        (
            (1.0, 0.00121),
            (2.0, 0.00159),
            (4.0, 0.00169),
            (8.0, 0.00304),
            (9.0, 0.00416),
            (16.0, 0.00501),
            (32.0, 0.0065),
            (64.0, 0.01016),
            (128.0, 0.01621),
            (256.0, 0.03016),
            (512.0, 0.0548),
        ),
        per_context=3.43e-7,
        per_pair=2.80e-7,
        per_row=4.02e-5,
    ),
}
PRESETS["h200-8b-family"] = CostModel(**{**PRESETS["h200-8b"].to_dict(), "name": "h200-8b-family", "shared_once": True})


def cost_model(name: str) -> CostModel:
    """A preset by name, or a file that `save` wrote."""
    if name in PRESETS:
        return PRESETS[name]
    if Path(name).exists():
        return CostModel.load(name)
    raise RequestError(f"no cost model {name!r}: one of {', '.join(PRESETS)}, or a JSON file of --calibrate")


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted model and how far it is off: share of the total time, and the median and 90th percentile of a step's
    relative error."""

    model: CostModel
    steps: int
    total_error: float
    median_error: float
    p90_error: float


def fit(name: str, loads: Sequence[Load], seconds: Sequence[float], knots: Sequence[int]) -> Fit:
    """Least squares of relative errors, no coefficient below zero.

    `knots`: token counts of the table's points; those outside the measured range are left out.
    """
    y = np.asarray(seconds, np.float64)
    tokens = np.array([load.tokens for load in loads], np.float64)
    inner = [float(k) for k in knots if tokens.min() < k < tokens.max()]
    points = sorted({float(tokens.min()), *inner, float(tokens.max())})
    hats = np.stack([np.interp(tokens, points, np.eye(len(points))[k]) for k in range(len(points))], 1)
    rest = np.array([(load.context, load.pairs, load.rows) for load in loads], np.float64)
    matrix = np.concatenate([hats, rest], 1) / y[:, None]
    coefficients = _not_negative(matrix, np.ones(len(y)))
    table = np.maximum(coefficients[: len(points)], 1e-9)
    model = CostModel(
        name,
        tuple((t, float(s)) for t, s in zip(points, table, strict=True)),
        per_context=float(coefficients[-3]),
        per_pair=float(coefficients[-2]),
        per_row=float(coefficients[-1]),
    )
    said = np.array([model.seconds(load) for load in loads])
    errors = np.abs(said - y) / y
    return Fit(
        model, len(y), float(abs(said.sum() - y.sum()) / y.sum()), float(np.median(errors)),
        float(np.quantile(errors, 0.9)),
    )  # fmt: skip


def _not_negative(matrix: np.ndarray, target: np.ndarray, sweeps: int = 5000) -> np.ndarray:
    """Least squares with coefficients >= 0, by coordinate descent on the normal equations."""
    scale = np.maximum(np.sqrt((matrix * matrix).sum(0)), 1e-300)
    columns = matrix / scale
    gram, goal = columns.T @ columns, columns.T @ target
    x = np.zeros(matrix.shape[1])
    for _ in range(sweeps):
        largest = 0.0
        for k in range(len(x)):
            if gram[k, k] <= 0:
                continue
            new = max(0.0, x[k] + (goal[k] - gram[k] @ x) / gram[k, k])
            largest, x[k] = max(largest, abs(new - x[k])), new
        if largest < 1e-10:
            break
    return x / scale
