"""The programs of `stemma bench programs`, each written twice: as a program, and request by request.

Sizes are those of the comparison on a GPU (a shared system text of about a thousand tokens, 64 to 128 programs)
divided: numbers of programs, gens and the system text by `scale`, each program's own text by `prompt_scale`. All gens
are greedy and ignore the end of sequence: both sides generate equally many tokens.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import stemma
from stemma.backend.text.tokenizer import Tokenizer
from stemma.interpreter.state import ProgramState
from stemma.lang.api import gen, select

_TEXT = """time people water place story house world night school friend river letter music garden winter answer
question reason light paper market village doctor teacher summer mother father picture window morning evening street
company country weather history language number moment kitchen station mountain table train book city road small great
early simple happy quiet bright strong certain open often almost always never after before under"""
_WORDS = _TEXT.split()
VERDICTS = ("excellent", "good", "fair", "poor")
ASPECTS = ("clarity", "accuracy", "style", "structure", "depth", "tone")
FIELDS = ("Name", "Place", "Year", "Subject", "Opinion", "Summary")
BRANCHES = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths in tokens, after scaling."""

    system: int
    question: int
    essay: int
    document: int
    long: int  # tokens of gens
    middle: int
    short: int
    field: int

    @classmethod
    def scaled(cls, scale: float, prompt_scale: float) -> Sizes:
        by = lambda n, s=scale: max(round(n / s), 1)  # noqa: E731
        question, essay, document = (by(n, prompt_scale) for n in (160, 930, 400))  # 120, 700 and 300 English words
        return cls(by(1000), question, essay, document, long=by(64), middle=by(48), short=by(4), field=by(12))


def prose(rng: random.Random, tokens: int, tokenizer: Tokenizer) -> str:
    """Words in sentences: at least that many tokens, and at most one word more."""
    text, left = "", 0
    while len(tokenizer.encode(text)) < tokens:
        word = rng.choice(_WORDS)
        begins, left = left == 0, (left or rng.randint(6, 14)) - 1
        text += (" " if text else "") + (word.capitalize() if begins else word) + ("" if left else ".")
    return text


class Client(Protocol):
    """What a program written request by request has: the server's `/generate`."""

    def gen(self, text: str, tokens: int) -> str: ...
    def select(self, text: str, choices: Sequence[str]) -> str: ...


Body = Callable[[Client, ThreadPoolExecutor, dict[str, Any]], list[str]]


@dataclass(frozen=True, slots=True)
class Case:
    """One program. `by_requests` gives the generated texts in the order of `generated`."""

    name: str
    shape: str
    program: Any
    by_requests: Body
    items: list[dict[str, Any]]
    requests: int  # of one program, written request by request
    target: float


def generated(state: ProgramState) -> list[str]:
    """What a run generated and selected: its forks in order, then the program's own."""
    branches = sorted(state.graph().branches.values(), key=lambda b: (b.parent is None, b.id))
    return [node.text or "" for b in branches for node in b.nodes if node.kind in ("gen", "select")]


def cases(
    scale: float, prompt_scale: float, tokenizer: Tokenizer, seed: int = 0, programs: int | None = None
) -> list[Case]:
    """The three programs with their items. programs: how many of each; None: as many as the scale says."""
    words = functools.partial(prose, tokenizer=tokenizer)
    rng = random.Random(seed)
    sizes = Sizes.scaled(scale, prompt_scale)
    system = words(rng, sizes.system) + "\n\n"
    count = programs or max(round(64 / scale), 1)
    forms = programs or 2 * count
    questions = [{"system": system, "question": words(rng, sizes.question), "n": sizes} for _ in range(count)]
    essays = [{"system": system, "essay": words(rng, sizes.essay), "n": sizes} for _ in range(count)]
    documents = [{"system": system, "document": words(rng, sizes.document), "n": sizes} for _ in range(forms)]
    n = sizes
    return [
        Case(
            "tree_of_thought",
            f"fork {BRANCHES}: gen {n.middle}, gen {n.long}, gen {n.short}; join; gen {n.long}",
            tree_of_thought,
            _tree_by_requests,
            questions,
            3 * BRANCHES + 1,
            2.0,
        ),
        Case(
            "judge",
            f"fork {len(ASPECTS)}: gen {n.middle}; join; gen {n.long}; select of {len(VERDICTS)}",
            judge,
            _judge_by_requests,
            essays,
            len(ASPECTS) + 3,
            2.0,
        ),
        Case(
            "form",
            f"{len(FIELDS)} times literal, gen {n.field}",
            form,
            _form_by_requests,
            documents,
            len(FIELDS),
            3.0,
        ),
    ]


# -- tree of thought


@stemma.function
def tree_of_thought(s: ProgramState, system: str, question: str, n: Sizes) -> None:
    s += system + f"Question: {question}\n"
    forks = s.fork(BRANCHES)
    for i, fork in enumerate(forks):
        fork += f"Plan {i + 1}:" + gen("plan", max_tokens=n.middle)
        fork += "\nSteps:" + gen("steps", max_tokens=n.long)
        fork += "\nScore:" + gen("score", max_tokens=n.short)
    forks.join()
    for i in range(BRANCHES):
        s += f"Idea {i + 1}:" + s.ref("plan", i) + s.ref("steps", i) + s.ref("score", i) + "\n"
    s += "Answer:" + gen("answer", max_tokens=n.long)


def _tree_by_requests(client: Client, pool: ThreadPoolExecutor, item: dict[str, Any]) -> list[str]:
    n: Sizes = item["n"]
    text = item["system"] + f"Question: {item['question']}\n"

    def think(i: int) -> list[str]:
        mine, said = text + f"Plan {i + 1}:", []
        for after, tokens in (("\nSteps:", n.middle), ("\nScore:", n.long), ("", n.short)):
            said.append(client.gen(mine, tokens))
            mine += said[-1] + after
        return said

    thoughts = list(pool.map(think, range(BRANCHES)))
    for i, said in enumerate(thoughts):
        text += f"Idea {i + 1}:" + "".join(said) + "\n"
    return [*(t for said in thoughts for t in said), client.gen(text + "Answer:", n.long)]


@stemma.function
def nested_tree(s: ProgramState, system: str, n: Sizes) -> None:
    """3 × 3 thoughts; each level is joined into the one above, by quotes that nobody reads."""
    s += system + "Question: why?\n"
    plans = s.fork(3)
    for i, plan in enumerate(plans):
        plan += f"Plan {i + 1}:" + gen("plan", max_tokens=n.field)
        steps = plan.fork(3)
        steps += lambda k: f"\nStep {k + 1}:" + gen("step", max_tokens=n.field)
        steps.join("concate_and_append")
        plan += "\nSo:" + gen("sum", max_tokens=n.field)
    plans.join()
    s += "Sums:" + s.ref("sum", 0) + s.ref("sum", 1) + s.ref("sum", 2) + "\nAnswer:" + gen("answer", max_tokens=n.field)


# -- judge


@stemma.function
def judge(s: ProgramState, system: str, essay: str, n: Sizes) -> None:
    s += system + f"Essay: {essay}\n"
    forks = s.fork(len(ASPECTS))
    for aspect, fork in zip(ASPECTS, forks, strict=True):
        fork += f"About its {aspect}:" + gen("view", max_tokens=n.middle)
    forks.join()
    for i, aspect in enumerate(ASPECTS):
        s += f"{aspect}:" + s.ref("view", i) + "\n"
    s += "In all:" + gen("summary", max_tokens=n.long) + "\nVerdict: " + select("verdict", list(VERDICTS))


def _judge_by_requests(client: Client, pool: ThreadPoolExecutor, item: dict[str, Any]) -> list[str]:
    n: Sizes = item["n"]
    text = item["system"] + f"Essay: {item['essay']}\n"
    views = list(pool.map(lambda aspect: client.gen(text + f"About its {aspect}:", n.middle), ASPECTS))
    for aspect, view in zip(ASPECTS, views, strict=True):
        text += f"{aspect}:" + view + "\n"
    text += "In all:"
    summary = client.gen(text, n.long)
    return [*views, summary, client.select(text + summary + "\nVerdict: ", VERDICTS)]


# -- form


@stemma.function
def form(s: ProgramState, system: str, document: str, n: Sizes) -> None:
    s += system + f"Document: {document}\n"
    for name in FIELDS:
        s += f"{name}:" + gen(name.lower(), max_tokens=n.field) + "\n"


def _form_by_requests(client: Client, pool: ThreadPoolExecutor, item: dict[str, Any]) -> list[str]:
    text, said = item["system"] + f"Document: {item['document']}\n", []
    for name in FIELDS:
        text += f"{name}:"
        said.append(client.gen(text, item["n"].field))
        text += said[-1] + "\n"
    return said
