"""The engine's own parser accepts what programs send."""

from typing import Any, Literal

import pytest

from stemma import ProgramState, function, gen, select, user
from stemma.interpreter.endpoints.base import Endpoint
from stemma.lang.errors import RequestError
from stemma.lang.params import Constraint, SamplingParams

messages = pytest.importorskip("stemma.backend.messages")


class Parsing(Endpoint):
    """Parses every delta as the engine would, and answers nothing."""

    quiet_seconds = None

    def __init__(self) -> None:
        self.parsed: list[Any] = []

    def submit(self, delta, on_event):
        self.parsed.append(messages.parse_delta(delta))

    def cancel(self, program, branches=None):
        return None


def test_every_kind_of_node_option_and_fork_is_accepted():
    @function
    def program(s: ProgramState):
        s += user("hi" + gen("a", 3, stop=["x"], seed=1, return_logprob=True, token_ids_logprob=[1, 2]))
        forks = s.fork(2)
        forks += gen("b", type=Literal["u", "v"], min_tokens=1) + select("c", choices=["u"], temperature=0.5)
        forks.join()
        s += gen("d", json_schema={"type": "object"}, ignore_eos=True, top_k=3, min_p=0.1, repetition_penalty=1.1)

    endpoint = Parsing()
    program.run(backend=endpoint, max_new_tokens=None, logit_bias={5: 1.5}, seed=3)
    (delta,) = endpoint.parsed
    gens = [n for b in delta.branches for n in b.nodes if hasattr(n, "params")]
    read = [SamplingParams.from_dict(n.params) for n in gens]
    assert [(p.max_new_tokens, p.logit_bias) for p in read] == [(3, ((5, 1.5),))] + [(None, ((5, 1.5),))] * 3
    kinds = [Constraint.from_dict(n.constraint).kind for n in gens if n.constraint]
    assert sorted(kinds) == ["choices", "choices", "json_schema"]


def test_the_parser_would_notice_a_stray_field():
    with pytest.raises(RequestError):
        messages.parse_delta({"program": "p", "branches": [{"id": "r", "nodes": [{"kind": "text", "txt": "a"}]}]})
