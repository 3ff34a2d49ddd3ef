"""The record of a program."""

import json

from stemma import ProgramState, ScriptedEndpoint, function, gen, select, user
from stemma.interpreter.graph import ProgramGraph


@function
def program(s: ProgramState):
    s += user("hi")
    forks = s.fork(2)
    forks += "say " + gen("x")
    s += select("y", choices=["a", "b"])
    forks[1] += gen("z")


def graph(replies=None) -> ProgramGraph:
    state = program.run(backend=ScriptedEndpoint(replies))
    state.error()
    return state.graph()


def test_the_graph_goes_through_json_unchanged():
    first = graph()
    again = ProgramGraph.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.to_dict() == first.to_dict()
    assert again.statistics() == first.statistics()
    assert again.take_delta() is None


def test_a_failed_graph_goes_through_json_with_its_errors():
    first = graph({"x": "fine", "z": ValueError("no")})
    again = ProgramGraph.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again.to_dict() == first.to_dict()
    assert again.statistics()["failed"] == 1
    assert "ValueError: no" in json.dumps(first.to_dict())


def test_statistics_count_branches_and_nodes():
    assert graph().statistics() == {
        "branches": 3,
        "depth": 1,
        "nodes": 9,
        "text": 3,
        "gen": 3,
        "select": 1,
        "role_begin": 1,
        "role_end": 1,
        "literal_characters": 10,
        "failed": 0,
    }


def test_every_node_records_its_line_text_and_meta():
    recorded = graph().branches["r.1"].nodes
    assert [node.text for node in recorded] == ["say ", "x", "z"]
    assert all(node.where.rpartition(":")[0].endswith("test_graph.py") for node in recorded)
    assert recorded[1].describe().startswith("gen 'x' at ") and recorded[1].describe().endswith(", fork 1/2")
    assert recorded[2].meta["finish_reason"]["type"] == "stop"


def test_a_lineage_is_the_parents_nodes_up_to_the_fork_and_then_its_own():
    made = ProgramGraph("p")
    made.append(made.root, {"kind": "text", "text": "a"}, text="a")
    (child,) = made.fork(made.root, 1)
    made.append(made.root, {"kind": "text", "text": "b"}, text="b")
    made.append(child, {"kind": "text", "text": "c"}, text="c")
    (grandchild,) = made.fork(child, 1)
    made.append(child, {"kind": "text", "text": "d"}, text="d")
    assert [node.text for node in grandchild.lineage()] == ["a", "c"]
    assert [branch.id for branch in made.root.subtree()] == ["r", "r.0", "r.0.0"]
