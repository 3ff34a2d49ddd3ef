"""Structural tags: free text, then what a trigger asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stemma.backend.grammar.automaton import DEAD, Dfa
from stemma.backend.grammar.limits import Deadline
from stemma.backend.grammar.tags import parse_structural_tag
from stemma.lang.errors import ConstraintError

TOOLS: dict[str, Any] = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": {"enum": ["x"]}, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "integer"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


@pytest.fixture(scope="module")
def dfa() -> Dfa:
    deadline = Deadline(10.0, "structural_tag")
    lowered = parse_structural_tag(json.dumps(TOOLS), deadline)
    return Dfa(lowered.node, deadline, rules=lowered.rules, trim=lowered.trim)


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("", True),
        ("é <b> <<f", True),
        ("<f=", False),
        ("<<f=b>12</f>", True),
        ('x<f=a>"x"</f> y <f=b>3</f><', True),
        ('<f=b>"x"</f>', False),
        ("<f=c>3</f>", False),
        ("<f=b>3</f><f=", False),
    ],
)
def test_text_is_free_up_to_a_trigger(dfa: Dfa, text: str, legal: bool) -> None:
    state = dfa.run(0, text.encode())
    assert (state != DEAD and dfa.accepting[state]) == legal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triggers": []}, "triggers: must be a list"),
        ({"triggers": ["<f=", "<g="]}, "triggers[1]: no structure's begin"),
        ({"triggers": ["<g="]}, "structures[0].begin"),
        ({"structures": [{"begin": "<f=", "end": ""}]}, "structures[0].schema: is missing"),
        ({"more": 1}, "more: is not a known field"),
        ({"structures": [{"begin": "<f=", "schema": {"type": "x"}, "end": ""}]}, "structures[0].schema: json_schema"),
    ],
)
def test_errors_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        parse_structural_tag(json.dumps(TOOLS | change), Deadline(10.0, "structural_tag"))
    assert message in str(caught.value)
