"""merge_identical and drop_unread: fewer nodes are sent, and nothing that is read changes."""

import random
import threading
from typing import Any

import pytest

from stemma import ProgramError, ProgramState, ScriptedEndpoint, assistant, function, gen, select, user
from stemma.backend.engine import Engine
from stemma.interpreter.graph import FILLED


class Echo(ScriptedEndpoint):
    """Answers with a digest of the prompt, so that a wrong prefix shows; keeps what it was asked. Knows no names."""

    capabilities = frozenset()

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(self._digest)

    def _digest(self, prompt: str, node: dict[str, Any]) -> str:
        self.asked.append(prompt)
        if node["kind"] == "select":
            return node["choices"][sum(prompt.encode()) % len(node["choices"])]
        return f"<{sum(prompt.encode()) % 9973}>"


def sent(endpoint: ScriptedEndpoint) -> int:
    return sum(n["kind"] in FILLED for d in endpoint.deltas for b in d["branches"] for n in b["nodes"])


@function
def twins(s: ProgramState):
    s += "start"
    forks = s.fork(4)
    for i, fork in enumerate(forks):
        fork += " same" if i % 2 else " sa"
        if not i % 2:
            fork += "me"
        fork += gen("x") + "!" + select("y", choices=["a", "b"])
        fork += f" {i % 2} " + gen("z")
    forks.join()


def values(state: ProgramState, *names: str) -> list[Any]:
    return [state[name] for name in names]


def test_identical_nodes_run_once_however_their_text_was_split():
    plain, merging = Echo(), Echo()
    a = twins.run(backend=plain, temperature=0)
    b = twins.run(backend=merging, temperature=0, merge_identical=True)
    assert values(a, "x", "y", "z") == values(b, "x", "y", "z")
    assert (sent(plain), sent(merging)) == (12, 4)  # x, y, and z for each of two texts
    used = b.usage()
    assert used["merged"] == 8 and used["nodes"] == 12
    assert used["completion_tokens"] < a.usage()["completion_tokens"]
    assert b.graph().branches["r.3"].nodes[1].meta["merged_with"] == "r.0:2"


@pytest.mark.parametrize(
    ("options", "runs"),
    [({"temperature": 0}, 1), ({"top_k": 1}, 1), ({"temperature": 1}, 2), ({"temperature": 1, "seed": 3}, 2)],
)
def test_only_what_is_determined_is_merged(options: dict[str, Any], runs: int):
    """A run's seed is another one at each place, so that forks differ; only a gen's own seed is the same."""
    endpoint = Echo()

    @function
    def two(s):
        forks = s.fork(2)
        forks += "a" + gen("x")

    two.run(backend=endpoint, merge_identical=True, **options).sync()
    assert sent(endpoint) == runs


def test_the_same_seed_merges_and_other_parameters_do_not():
    endpoint = Echo()

    @function
    def several(s):
        for node in (gen("x", seed=1), gen("y", seed=1), gen("x", seed=2), gen("x", seed=1, max_tokens=3)):
            (fork,) = s.fork(1)
            fork += node

    several.run(backend=endpoint, merge_identical=True).sync()
    assert sent(endpoint) == 3


def test_an_endpoint_that_goes_by_names_gets_every_name():
    endpoint = ScriptedEndpoint({"x": "1", "y": "2"})

    @function
    def named(s):
        a, b, c = s.fork(3)
        a += gen("x")
        b += gen("y")
        c += gen("x")
        return a["x"], b["y"], c["x"]

    assert named.run(backend=endpoint, temperature=0, merge_identical=True).ret_value == ("1", "2", "1")
    assert sent(endpoint) == 2


def test_a_node_that_comes_when_the_first_has_its_answer_gets_it_at_once():
    endpoint = Echo()

    @function
    def later(s):
        s += "a"
        first, second = s.fork(2)
        first += gen("x")
        told = first["x"]
        second += gen("x") + " more " + gen("y")
        assert second["x"] == told
        return second["y"]

    state = later.run(backend=endpoint, temperature=0, merge_identical=True)
    assert endpoint.asked[-1] == f"a{state.graph().branches['r.0'].nodes[0].text} more "
    assert state.ret_value == state.graph().branches["r.1"].nodes[2].text and sent(endpoint) == 2


def test_forks_from_text_before_and_between_merged_nodes_stand_on_the_right_text():
    @function
    def nested(s):
        a, b = s.fork(2)
        for fork in (a, b):
            fork += user("one")
            early = fork.fork(2)
            fork += assistant(gen("x")) + user("two")
            middle = fork.fork(2)
            fork += assistant(gen("y"))
            early += "e" + gen("e")
            middle += "m" + gen("m")
            early.join()
            middle.join()
        a += "left" + gen("end")
        b += "right" + gen("end")
        return [fork.text() for fork in (a, b)], a["e"], b["e"], a["m"], b["m"]

    plain, merging = Echo(), Echo()
    without = nested.run(backend=plain, temperature=0).ret_value
    assert nested.run(backend=merging, temperature=0, merge_identical=True).ret_value == without
    assert (sent(plain), sent(merging)) == (14, 6)


def test_streamed_pieces_reach_every_listener():
    @function
    def three(s):
        forks = s.fork(3)
        forks += gen("x")
        forks.join()

    endpoint = ScriptedEndpoint({"x": "one two three"})
    state = three.run(backend=endpoint, temperature=0, merge_identical=True, stream=True)
    assert state["x"] == ["one two three"] * 3
    nodes = [state.graph().branches[f"r.{i}"].nodes[0] for i in range(3)]
    assert [node.pieces for node in nodes] == [["one", " two", " three"]] * 3
    assert sent(endpoint) == 1


def test_a_failure_reaches_all_that_follow_and_is_not_merged_into_later():
    answers = iter([ValueError("once"), "fine"])
    endpoint = ScriptedEndpoint({"x": lambda prompt, node: next(answers)})

    @function
    def failing(s):
        a, b, c = s.fork(3)
        a += gen("x")
        b += gen("x") + " and " + gen("x")
        for fork in (a, b):
            with pytest.raises(ProgramError, match="once"):
                fork["x"]
        c += gen("x")
        return c["x"]

    assert failing.run(backend=endpoint, temperature=0, merge_identical=True).ret_value == "fine"


class Held(Echo):
    """Answers nothing before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def _digest(self, prompt: str, node: dict[str, Any]) -> str:
        assert self.go.wait(10)
        return super()._digest(prompt, node)


def test_cancelling_the_first_does_not_take_the_answer_from_the_others():
    endpoint = Held()

    @function
    def racing(s):
        a, b = s.fork(2)
        a += "q" + gen("x")
        b += "q" + gen("x") + gen("y")
        s._run.flush()
        a.cancel()
        endpoint.go.set()
        with pytest.raises(ProgramError, match="cancelled"):
            a["x"]
        return b["x"], b["y"]

    x, y = racing.run(backend=endpoint, temperature=0, merge_identical=True).ret_value
    assert x.startswith("<") and y.startswith("<") and x != y
    assert endpoint.cancels == []  # there was nothing that only the cancelled branch stood on


def test_what_only_cancelled_branches_stand_on_is_cancelled():
    endpoint = Held()

    @function
    def stopping(s):
        a, b, c = s.fork(3)
        for fork in (a, b):
            fork += "q" + gen("x")
        c += "other" + gen("x")
        s._run.flush()
        a.cancel()
        assert endpoint.cancels == []
        b.cancel()
        endpoint.go.set()
        return c["x"]

    stopping.run(backend=endpoint, temperature=0, merge_identical=True)
    assert [branches for _, branches in endpoint.cancels] == [["r.0"]]


def random_program(seed: int):
    """A program that forks, repeats itself and reads at random; the same for the same seed."""

    @function
    def program(s):
        rng = random.Random(seed)
        states, read = [s], []
        for step in range(rng.randint(6, 16)):
            state = rng.choice(states)
            match rng.randrange(6):
                case 0 | 1:
                    state += rng.choice(["a", "b", " ", "ab"])
                case 2:
                    state += gen(f"g{step}", max_tokens=rng.choice([3, 4]))
                case 3:
                    state += select(f"g{step}", choices=["red", "green"])
                case 4:
                    states += list(state.fork(rng.randint(1, 3)))
                case 5:
                    read.append(state.text())
        return [*read, *(state.text() for state in states)]

    return program


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_say_the_same_merged_or_not(seed: int):
    program = random_program(seed)
    plain, merging = Echo(), Echo()
    without = program.run(backend=plain, temperature=0).ret_value
    state = program.run(backend=merging, temperature=0, merge_identical=True)
    assert state.ret_value == without
    assert sent(merging) == sent(plain) - state.usage()["merged"]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_have_the_same_tokens_on_the_engine(engine: Engine, seed: int):
    program = random_program(seed)

    def ids(**options: Any) -> dict[str, Any]:
        state = program.run(backend=engine, temperature=0, **options)
        state.sync()
        return {n.address: n.ids for b in state.graph().branches.values() for n in b.nodes if n.kind in FILLED}

    assert ids(merge_identical=True) == ids()


def test_values_other_than_true_and_false_are_refused():
    with pytest.raises(ValueError, match="merge_identical must be true or false, got 3"):
        twins.run(merge_identical=3, backend=Echo())


# --- drop_unread


def test_what_nothing_read_is_not_run_and_says_so_when_it_is_read_late():
    endpoint = ScriptedEndpoint()

    @function
    def wasteful(s):
        s += "Q" + gen("answer")
        forks = s.fork(2)
        forks += " why? " + gen("why")
        forks.join()
        kept = s["answer"]
        s += gen("more") + " and " + gen("last")
        return kept

    state = wasteful.run(backend=endpoint, drop_unread=True)
    assert state.ret_value == "answer"
    assert sent(endpoint) == 3  # the read sent what was said by then; the two after it went nowhere
    state.sync()
    assert state.usage()["dropped"] == 2 and [u.status for u in state.usage_by_node()].count("dropped") == 2
    with pytest.raises(ProgramError, match=r"gen 'more' at .*test_rewrite.py:\d+.*was not run: nothing had read it"):
        state["more"]
    with pytest.raises(ProgramError, match="drop_unread"):
        state.text()


def test_a_run_without_the_option_drops_nothing():
    endpoint = ScriptedEndpoint()
    state = function(lambda s: s.append(gen("x"))).run(backend=endpoint)
    assert state["x"] == "x" and state.usage()["dropped"] == 0


def test_a_program_that_read_nothing_sends_nothing():
    endpoint = ScriptedEndpoint()
    state = function(lambda s: s.append("a" + gen("x"))).run(backend=endpoint, drop_unread=True)
    assert endpoint.deltas == [] and state.usage()["dropped"] == 1 and endpoint.open_branches == set()


def test_both_together(engine: Engine):
    @function
    def both(s):
        s += "once"
        forks = s.fork(3)
        forks += gen("x", max_tokens=4)
        forks.join()
        read = s["x"]
        s += gen("never", max_tokens=50)
        return read

    state = both.run(backend=engine, temperature=0, merge_identical=True, drop_unread=True)
    used = state.usage()
    assert len(set(state.ret_value)) == 1 and (used["merged"], used["dropped"]) == (2, 1)
