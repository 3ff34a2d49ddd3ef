"""Evaluate the demo model on held-out prompts and print a markdown table.

A backend answers two questions only: ``generate`` (greedy replies) and ``score`` (the best
of some choices by mean token log-probability).  Other engines can be added to ``BACKENDS``.
"""

from __future__ import annotations

import argparse
import json
import queue
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.demo_model import evalset
from examples.demo_model.data import render_prompt

BEGIN, FINISH = "<!-- evaluation begin -->", "<!-- evaluation end -->"


class Backend(Protocol):
    """What the evaluation needs from an engine; prompts are complete texts with their special tokens."""

    def generate(self, prompts: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
        """Greedy replies, each with whether the model ended it by itself."""
        ...

    def score(self, prompt: str, choices: list[str]) -> int:
        """Index of the choice with the highest mean token log-probability."""
        ...


class TransformersBackend:
    """Reference backend: transformers in float32."""

    def __init__(self, model: Path, device: str, batch: int) -> None:
        self.tok = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.model.to(device).eval()
        self.device, self.batch = device, batch
        self.eos = self.tok.convert_tokens_to_ids("<|im_end|>")
        messages = [
            {"role": "system", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ]
        assert self.tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == render_prompt(
            messages
        )

    def _ids(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def generate(self, prompts: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
        """Batched greedy decoding with left padding."""
        rows = [self._ids(p) for p in prompts]
        out: list[tuple[str, bool]] = [("", False)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for at in range(0, len(order), self.batch):
            part = order[at : at + self.batch]
            width = max(len(rows[i]) for i in part)
            ids = torch.tensor(
                [[self.tok.pad_token_id] * (width - len(rows[i])) + rows[i] for i in part], device=self.device
            )
            mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in part], device=self.device)
            result = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
            )[:, width:].tolist()
            for i, new in zip(part, result, strict=True):
                stopped = self.eos in new
                out[i] = (
                    self.tok.decode(new[: new.index(self.eos)] if stopped else new, skip_special_tokens=True),
                    stopped,
                )
        return out

    @torch.inference_mode()
    def score(self, prompt: str, choices: list[str]) -> int:
        """Score the choices as replies."""
        head = self._ids(prompt)
        means = []
        tails = [self._ids(c) for c in choices]
        width = max(map(len, tails))
        ids = torch.tensor([head + t + [self.tok.pad_token_id] * (width - len(t)) for t in tails], device=self.device)
        logp = self.model(input_ids=ids).logits[:, len(head) - 1 : -1].float().log_softmax(-1)
        for row, t in enumerate(tails):
            means.append(sum(float(logp[row, i, token]) for i, token in enumerate(t)) / len(t))
        return max(range(len(choices)), key=means.__getitem__)


class StemmaBackend:
    """The engine of this project: all prompts at once, shared beginnings computed once."""

    def __init__(self, model: Path, device: str, batch: int) -> None:
        from stemma.backend.engine import Engine

        self.engine = Engine(model, device=device, max_running_requests=batch)
        (self.eos,) = self.engine.tokenizer.eos_ids

    def _ids(self, text: str) -> list[int]:
        return self.engine.tokenizer.encode(text, special=True)

    def generate(
        self, prompts: list[str], max_new_tokens: int, shapes: list[str] | None = None
    ) -> list[tuple[str, bool]]:
        """Greedy replies; with `shapes`, each must match its regular expression."""
        plain = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
        params = [plain] * len(prompts) if shapes is None else [{**plain, "regex": shape} for shape in shapes]
        results = self.engine.generate(input_ids=[self._ids(p) for p in prompts], sampling_params=params)
        return [(r["text"], r["meta_info"]["finish_reason"] == {"type": "stop", "matched": self.eos}) for r in results]

    def score(self, prompt: str, choices: list[str]) -> int:
        """A select after the prompt."""
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        nodes = [{"kind": "ids", "ids": self._ids(prompt)}, {"kind": "select", "choices": choices}]
        delta = {"program": uuid.uuid4().hex, "branches": [{"id": "r", "nodes": nodes}], "end": True}
        self.engine.submit(delta, answer.put)
        return answer.get()["meta"]["choice"]


BACKENDS: dict[str, Callable[[Path, str, int], Backend]] = {
    "stemma": StemmaBackend,
    "transformers": TransformersBackend,
}


def run(backend: Backend, items: list[evalset.Item]) -> tuple[list[tuple[str, float, float]], list[dict[str, str]]]:
    """Points per section, the stop rate last, and the failures."""
    points: dict[str, float] = defaultdict(float)
    possible: dict[str, float] = defaultdict(float)
    failures = []
    budgets: dict[int, list[evalset.Item]] = defaultdict(list)
    for item in items:
        points[item.section] += 0.0
        if item.choices:
            got = item.choices[backend.score(item.prompt, item.choices)]
            _count(item, got, points, possible, failures)
        else:
            budgets[item.budget].append(item)
    for budget, group in budgets.items():
        for item, (text, stopped) in zip(group, backend.generate([i.prompt for i in group], budget), strict=True):
            _count(item, text, points, possible, failures)
            if item.chat:
                points["ends by itself within the budget"] += stopped
                possible["ends by itself within the budget"] += 1
    if isinstance(backend, StemmaBackend):  # once more with the asked format as a constraint
        shaped = [(item, shape) for item in items if (shape := item.shape())]
        replies = backend.generate([i.prompt for i, _ in shaped], 140, [shape for _, shape in shaped])
        for (item, _), (text, _) in zip(shaped, replies, strict=True):
            enforced = replace(item, section=item.section.split(", unseen")[0] + ", format enforced by a regex")
            _count(enforced, text, points, possible, failures)
    return [(name, points[name], possible[name]) for name in points], failures


def _count(
    item: evalset.Item, got: str, points: dict[str, float], possible: dict[str, float], failures: list[dict[str, str]]
) -> None:
    good, of = evalset.grade(item, got)
    points[item.section] += good
    possible[item.section] += of
    if good < of:
        failures.append({"section": item.section, "prompt": item.prompt, "expected": item.expect, "got": got})


def table(rows: list[tuple[str, float, float]]) -> str:
    """The markdown table."""
    lines = ["| what | right | of | share |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {good:.0f} | {of:.0f} | {100 * good / of:.1f} % |" for name, good, of in rows]
    return "\n".join(lines)


def write_card(card: Path, text: str) -> None:
    """Replace the part of the card between the evaluation marks."""
    old = card.read_text(encoding="utf-8")
    head, rest = old.split(BEGIN)
    card.write_text(f"{head}{BEGIN}\n{text}\n{FINISH}{rest.split(FINISH)[1]}", encoding="utf-8")


def main() -> None:
    """Run the evaluation."""
    parser = argparse.ArgumentParser(
        description="Evaluate a demo model on held-out prompts (greedy) and print a markdown table. "
        "First checks that the prompts are not in the training data.",
        epilog="Example: python -m examples.demo_model.evaluate --model backend/demo_model --limit 20",
    )
    parser.add_argument(
        "--model", type=Path, default=Path("backend/demo_model"), help="model folder (default: backend/demo_model)"
    )
    parser.add_argument(
        "--backend",
        choices=sorted(BACKENDS),
        default="stemma",
        help="engine that runs the model (default: stemma)",
    )
    parser.add_argument("--device", default="cpu", help="device that the model runs on (default: cpu)")
    parser.add_argument("--batch", type=int, default=64, help="prompts at once (default: 64)")
    parser.add_argument(
        "--limit", type=int, default=0, help="at most this many items per section; 0 means all (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, default=2024, help="seed of the evaluation set (default: 2024, the one in the model card)"
    )
    parser.add_argument("--failures", type=Path, help="write the failed items to this JSON-lines file")
    parser.add_argument("--card", type=Path, help="write the table between the evaluation marks of this markdown file")
    args = parser.parse_args()
    items = evalset.build(args.seed)
    evalset.assert_disjoint(items)
    if args.limit:
        seen: dict[str, int] = defaultdict(int)
        kept = []
        for item in items:
            seen[item.section] += 1
            if seen[item.section] <= args.limit:
                kept.append(item)
        items = kept
    start = time.time()
    rows, failures = run(BACKENDS[args.backend](args.model, args.device, args.batch), items)
    text = table(rows)
    print(text)
    print(f"\n{len(items)} items in {time.time() - start:.0f} s")
    if args.failures:
        args.failures.write_text("".join(json.dumps(f, ensure_ascii=False) + "\n" for f in failures), encoding="utf-8")
    if args.card:
        write_card(args.card, text)


if __name__ == "__main__":
    main()
