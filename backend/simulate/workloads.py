"""Made-up programs of the kinds that people run, and when they arrive. Seeded: equal arguments, equal traces.

Lengths scatter around their nominal values (log-normal, sigma 0.35) and clients ask for twice the nominal output, since
they rarely know better; with `exact` every length is nominal and outputs end by length, as in a benchmark. Programs of
one application share its system prompt; a few applications have most of the programs (Zipf).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import accumulate

from stemma.backend.simulate.trace import Gen, Node, Output, Text, TraceBranch, TraceProgram, Wait
from stemma.lang.errors import RequestError

SIGMA = 0.35


class Draw:
    """The lengths of one program."""

    def __init__(self, rng: random.Random, kind: str, apps: int, exact: bool) -> None:
        self.rng, self.exact = rng, exact
        weights = list(accumulate(1.0 / (k + 1) for k in range(apps)))
        self.app = f"{kind}/{rng.choices(range(apps), cum_weights=weights)[0]}"

    def n(self, nominal: int, least: int = 1) -> int:
        if self.exact:
            return nominal
        return max(least, round(nominal * math.exp(self.rng.gauss(0.0, SIGMA))))

    def text(self, nominal: int) -> Text:
        return Text(self.n(nominal))

    def system(self, nominal: int) -> Text:
        return Text(nominal, self.app)

    def gen(self, nominal: int) -> Gen:
        return Gen(nominal, nominal) if self.exact else Gen(min(self.n(nominal), 2 * nominal), 2 * nominal)

    def pause(self, mean: float) -> Wait:
        return Wait(self.rng.expovariate(1.0 / mean) if not self.exact else mean)


def tree_of_thought(d: Draw) -> list[TraceBranch]:
    """A question, four lines of thought of three generations each, and a verdict over all of them."""
    children = [
        TraceBranch(f"r.{k}", [d.text(12), d.gen(48), d.text(8), d.gen(64), d.text(8), d.gen(4)], "r", 2)
        for k in range(4)
    ]
    joined: list[Node] = []
    for child in children:
        joined += [Text(6), Output(child.id, 1), Output(child.id, 3)]
    return [TraceBranch("r", [d.system(1000), d.text(160), *joined, d.gen(64)]), *children]


def judge(d: Draw) -> list[TraceBranch]:
    """An essay, six judgements beside each other, and a summary."""
    children = [TraceBranch(f"r.{k}", [d.text(14), d.gen(48)], "r", 2) for k in range(6)]
    joined: list[Node] = []
    for child in children:
        joined += [Text(4), Output(child.id, 1)]
    return [TraceBranch("r", [d.system(1000), d.text(930), *joined, d.gen(64), d.text(6), d.gen(4)]), *children]


def form(d: Draw) -> list[TraceBranch]:
    """A document and six fields in a row: one delta, no round trip."""
    nodes: list[Node] = [d.system(1000), d.text(400)]
    for _ in range(6):
        nodes += [d.text(8), d.gen(12)]
    return [TraceBranch("r", nodes)]


def chat(d: Draw) -> list[TraceBranch]:
    """A conversation: the person reads and types between the turns."""
    nodes: list[Node] = [d.system(500)]
    turns = 4 if d.exact else 1 + min(int(d.rng.expovariate(1 / 3.0)), 11)
    for turn in range(turns):
        nodes += [d.pause(8.0)] * (turn > 0) + [d.text(60), d.gen(180)]
    return [TraceBranch("r", nodes)]


def agent(d: Draw) -> list[TraceBranch]:
    """Calls of tools, whose results come after a while, and an answer."""
    nodes: list[Node] = [d.system(1500), d.text(150)]
    for _ in range(5 if d.exact else d.rng.randint(2, 8)):
        nodes += [d.gen(60), d.pause(0.8), d.text(300)]
    return [TraceBranch("r", [*nodes, d.gen(150)])]


def map_reduce(d: Draw) -> list[TraceBranch]:
    """Parts of a long document, each summarised alone, and a summary of the summaries."""
    count = 8 if d.exact else d.rng.randint(4, 16)
    children = [TraceBranch(f"r.{k}", [d.text(900), d.gen(100)], "r", 1) for k in range(count)]
    joined: list[Node] = []
    for child in children:
        joined += [Text(4), Output(child.id, 1)]
    return [TraceBranch("r", [d.system(300), *joined, d.gen(200)]), *children]


def plain(d: Draw) -> list[TraceBranch]:
    """One request."""
    return [TraceBranch("r", [d.system(200), d.text(350), d.gen(150)])]


KINDS: dict[str, Callable[[Draw], list[TraceBranch]]] = {
    f.__name__: f for f in (tree_of_thought, judge, form, chat, agent, map_reduce, plain)
}
MIXTURE = {
    "plain": 5.0,
    "chat": 3.0,
    "form": 2.0,
    "agent": 2.0,
    "judge": 1.0,
    "tree_of_thought": 1.0,
    "map_reduce": 0.5,
}


def parse_mixture(text: str) -> dict[str, float]:
    """`mixture`, the name of a kind, or `judge=2,form=1`."""
    if text == "mixture":
        return dict(MIXTURE)
    out: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in KINDS:
            raise RequestError(f"no workload {name!r}; one of mixture, {', '.join(KINDS)}", param="workload")
        try:
            out[name] = float(weight) if weight else 1.0
        except ValueError:
            raise RequestError(f"the weight of {name} must be a number, got {weight!r}", param="workload") from None
    return out


def arrivals(rng: random.Random, rate: float, burst: float) -> Iterator[float]:
    """Arrival times at `rate` a second. `burst` is the coefficient of variation of the gaps (gamma): 1 is Poisson."""
    at, shape = 0.0, 1.0 / (burst * burst)
    while True:
        at += rng.gammavariate(shape, 1.0 / (shape * rate))
        yield at


def workload(
    mixture: dict[str, float],
    count: int,
    rate: float,
    *,
    seed: int = 0,
    apps: int = 20,
    burst: float = 1.0,
    exact: bool = False,
    first: int = 0,
) -> Iterator[TraceProgram]:
    """`count` programs of a mixture (kind to weight), `rate` a second. rate inf: all at once, at the beginning.

    Shapes and arrival times have generators of their own: another rate, or another burst, has the same programs.
    """
    when = arrivals(random.Random(f"arrivals {seed}"), rate, burst) if math.isfinite(rate) else iter(lambda: 0.0, None)
    rng = random.Random(f"shapes {seed}")
    kinds, weights = list(mixture), list(accumulate(mixture.values()))
    for k in range(count):
        kind = rng.choices(kinds, cum_weights=weights)[0]
        shape = random.Random(rng.getrandbits(64))
        branches = KINDS[kind](Draw(shape, kind, apps, exact))
        yield TraceProgram(f"p{first + k}", next(when), branches, kind)
