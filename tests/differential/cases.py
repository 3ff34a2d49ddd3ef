"""Random programs and request mixes, as graph deltas."""

from __future__ import annotations

import json
import random
from typing import Any

Delta = dict[str, Any]

WORDS = [
    "The capital of France is ",
    "Name: Ada",
    "once upon a time ",
    "yes",
    " no",
    " 12 + 30",
    "\n",
    "héllo ",
    "{",
    "42",
]
REGEXES = [
    r"[0-9]{1,4}",
    r"(yes|no|maybe) sir",
    r"Name: [A-Z][a-z]{1,6}, age: [0-9]{2}",
    r"\{\"a\": (true|false)\}",
    r"[a-z ]+",
]

PERSON = {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}}
TREE = {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}
SCHEMAS = [
    json.dumps({"type": "object", "properties": PERSON, "required": ["name", "age"]}),
    json.dumps({"type": "array", "items": {"enum": ["red", "green", 3]}, "maxItems": 3}),
    json.dumps(
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": TREE, "additionalProperties": False}}}
    ),
]
EBNF = ['root ::= "(" root* ")"', 'start: "yes" (" " WORD)~1..2\nWORD: /[a-z]{1,3}/']


def literal(rng: random.Random) -> Delta:
    return {"kind": "text", "text": "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 5)))}


def generation(rng: random.Random) -> Delta:
    params: dict[str, Any] = {"max_new_tokens": rng.choice([0, 1, 2, 5, 9, 14]), "temperature": 0.0}
    if rng.random() < 0.3:
        params |= {"temperature": rng.choice([0.7, 1.3]), "seed": rng.randint(0, 9)}
        if rng.random() < 0.5:
            params |= {"top_p": 0.8, "top_k": 20, "min_p": 0.01}
    if rng.random() < 0.2:
        params["stop"] = rng.sample(["a", "e", " ", "th", "\n", "is"], rng.randint(1, 2))
    if rng.random() < 0.15:
        params |= {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2}
    if rng.random() < 0.1:
        params["min_new_tokens"] = min(2, params["max_new_tokens"])
    if rng.random() < 0.1:
        params["ignore_eos"] = True
    if rng.random() < 0.1:
        params["logit_bias"] = {str(rng.randint(10, 200)): 2.5}
    node: Delta = {"kind": "gen", "params": params, "stream": rng.random() < 0.2}
    if rng.random() < 0.3:
        node["constraint"] = {"kind": "regex", "value": rng.choice(REGEXES)}
        params["max_new_tokens"] = rng.choice([3, 12, 20])
    elif rng.random() < 0.25:
        kind = rng.choice(["json_schema", "ebnf"])
        node["constraint"] = {"kind": kind, "value": rng.choice(SCHEMAS if kind == "json_schema" else EBNF)}
        params["max_new_tokens"] = rng.choice([8, 30])
    elif rng.random() < 0.15:
        node["constraint"] = {"kind": "choices", "value": ["red", "green", "red green", "blue"]}
    if "constraint" in node and rng.random() < 0.1:
        node["constraint"]["after"] = rng.choice(["e", " a", "th"])
    if "constraint" in node and rng.random() < 0.3:
        params["finish_in_budget"] = True
    if rng.random() < 0.15:
        node["logprobs"] = {"start": rng.choice([-1, 0, 1]), "top": rng.choice([0, 2]), "ids": None}
    return node


def choice(rng: random.Random) -> Delta:
    method = rng.choice(["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"])
    return {
        "kind": "select",
        "choices": rng.sample(["yes", "no", "maybe", " yes sir", "42"], rng.randint(1, 3)),
        "method": method,
    }


def nodes(rng: random.Random) -> list[Delta]:
    out: list[Delta] = []
    for _ in range(rng.randint(1, 3)):
        pick = rng.random()
        if pick < 0.35:
            out.append(literal(rng))
        elif pick < 0.85:
            out.append(generation(rng))
        else:
            select = choice(rng)
            if select["method"] == "unconditional_likelihood_normalized":
                out.append(literal(rng))  # without a context both likelihoods are the same number: an exact tie
            out.append(select)
    return out


def program(rng: random.Random, name: str) -> Delta:
    """A tree of branches under one of a few shared openings, sometimes a chat."""
    opening = rng.choice(
        [
            [{"kind": "text", "text": "Please answer the question in one short sentence. " * rng.randint(1, 3)}],
            [{"kind": "role_begin", "role": "user"}, literal(rng), {"kind": "role_end", "role": "user"},
             {"kind": "role_begin", "role": "assistant"}],
            [{"kind": "ids", "ids": [rng.randint(4, 300) for _ in range(rng.randint(1, 30))]}],
        ]
    )  # fmt: skip
    branches: list[Delta] = [{"id": "r", "nodes": [*opening, *nodes(rng)]}]
    for i in range(rng.choice([0, 0, 1, 2, 4])):
        parent = rng.choice(branches)
        at = rng.randint(0, len(parent["nodes"]))
        branches.append({"id": f"b{i}", "parent": parent["id"], "at": at, "nodes": nodes(rng)})
    return {"program": name, "branches": branches, "end": True}


def samples(rng: random.Random, name: str) -> Delta:
    """Several generations behind one prompt that repeats itself: they draw from one distribution, and say what was said
    before."""
    opening = [{"kind": "text", "text": "".join(rng.sample(WORDS, 3)) * rng.randint(2, 6)}]
    branches: list[Delta] = [{"id": "r", "nodes": opening}]
    one = generation(rng)
    for i in range(rng.choice([2, 3, 6])):
        node = generation(rng) if rng.random() < 0.4 else {**one, "params": {**one["params"], "seed": i // 2}}
        more = nodes(rng) if rng.random() < 0.3 else []
        branches.append({"id": f"s{i}", "parent": "r", "at": 1, "nodes": [node, *more]})
    return {"program": name, "branches": branches, "end": True}


def joined(delta: Delta, rng: random.Random) -> None:
    """Add a branch that quotes what others come to say."""
    sources = [
        {"kind": "ref", "branch": b["id"], "node": k}
        for b in delta["branches"]
        for k, node in enumerate(b["nodes"])
        if node["kind"] != "ids"
    ]
    quotes = rng.sample(sources, min(len(sources), rng.randint(1, 4)))
    texts = [node for quote in quotes for node in (literal(rng), quote)]
    root = delta["branches"][0]
    delta["branches"].append({"id": "j", "parent": "r", "at": len(root["nodes"]), "nodes": [*texts, *nodes(rng)]})


def mix(seed: int) -> list[Delta]:
    rng = random.Random(seed)
    programs = [hinted(program(rng, f"p{i}"), random.Random(1000 * seed + i)) for i in range(rng.choice([1, 2, 3, 4]))]
    if rng.random() < 0.4:
        programs.append(samples(rng, "samples"))
    for delta in programs:
        if rng.random() < 0.25:
            joined(delta, rng)
    return programs


def hinted(delta: Delta, rng: random.Random) -> Delta:
    """With hints to the scheduler, some of them wrong."""
    if rng.random() < 0.3:
        delta["hints"] = {"priority": rng.randint(-2, 2)}
    if rng.random() < 0.2:
        delta["hints"] = {**delta.get("hints", {}), "expected_len": rng.choice([0, 5, 1000])}
    for branch in delta["branches"]:
        if rng.random() < 0.2:
            branch["hints"] = {"expected_forks": rng.randint(0, 4)}
    return delta


def answerable(delta: Delta) -> set[tuple[str, str, int]]:
    """Addresses that must be answered exactly once."""
    return {
        (delta["program"], b["id"], k)
        for b in delta["branches"]
        for k, n in enumerate(b["nodes"])
        if n["kind"] in ("gen", "select")
    }


def result_of(event: Delta) -> Any:
    """What may not depend on how the work was scheduled. Log-probabilities are compared apart, with a tolerance."""
    if event["event"] == "error":
        return ("error", event["error"]["type"], event["error"]["message"])
    meta = event["meta"]
    return (event["text"], tuple(event["ids"]), str(meta["finish_reason"]), meta["prompt_tokens"], meta.get("choice"))


def logprobs_of(event: Delta) -> list[float]:
    meta = event.get("meta") or {}
    rows = [*(meta.get("output_token_logprobs") or []), *(meta.get("input_token_logprobs") or [])]
    flat = [r for row in rows for r in (row if row and isinstance(row[0], list) else [row])]
    return [r[0] for r in flat if r and r[0] is not None] + list(meta.get("scores") or [])
