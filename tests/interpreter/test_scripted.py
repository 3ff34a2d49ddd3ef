"""The scripted fake: what a script may say, and that it holds programs to the contract."""

import pytest

from stemma import ProgramState, ScriptedEndpoint, function, gen, select
from stemma.lang.errors import ProgramError


@function
def two(s: ProgramState):
    s += "a" + gen("x") + "b" + gen("y")


def test_a_list_is_used_up_in_turn():
    assert two.run(backend=ScriptedEndpoint(["1", "2"])).text() == "a1b2"
    assert "used up" in str(two.run(backend=ScriptedEndpoint(["1"])).error())


def test_a_function_is_given_the_prompt_and_the_node():
    endpoint = ScriptedEndpoint(lambda prompt, node: f"({prompt}|{node['name']})")
    assert two.run(backend=endpoint).text() == "a(a|x)b(a(a|x)b|y)"
    assert endpoint.prompts["x"] == "a"


def test_a_mapping_may_hold_texts_lists_functions_and_exceptions():
    script = {"x": ["1"], "y": lambda prompt, node: OSError("down")}
    error = two.run(backend=ScriptedEndpoint(script)).error()
    assert error is not None and "gen 'y'" in str(error) and "OSError: down" in str(error)


@pytest.mark.parametrize(
    ("replies", "message"),
    [({}, "no scripted reply for gen 'x'; replies: \\[\\]"), ({"x": 3}, "must be a string or an exception, got 3")],
)
def test_a_script_without_an_answer_is_an_error(replies, message):
    with pytest.raises(ProgramError, match=message):
        two.run(backend=ScriptedEndpoint(replies)).text()


def test_replies_are_cut_at_stop_strings():
    state = function(lambda s: s.append(gen("x", stop=[".", "\n"]))).run(backend=ScriptedEndpoint({"x": "a\nb."}))
    assert state["x"] == "a" and state.get_meta_info("x")["finish_reason"]["matched"] == "\n"


def test_replies_must_match_the_constraint():
    program = function(lambda s: s.append(gen("x", regex="[0-9]+")))
    assert program.run(backend=ScriptedEndpoint({"x": "42"}))["x"] == "42"
    with pytest.raises(ProgramError, match=r"'four' does not match the regex '\[0-9\]\+'"):
        program.run(backend=ScriptedEndpoint({"x": "four"})).text()


def test_a_select_takes_its_reply_or_the_first_choice_and_nothing_else():
    program = function(lambda s: s.append(select("x", choices=["a", "b"])))
    assert program.run(backend=ScriptedEndpoint({"x": "b"}))["x"] == "b"
    assert program.run(backend=ScriptedEndpoint({}))["x"] == "a"
    assert program.run(backend=ScriptedEndpoint(["b"]))["x"] == "b"
    assert program.run(backend=ScriptedEndpoint([]))["x"] == "a"
    with pytest.raises(ProgramError, match="'c' is none of the choices"):
        program.run(backend=ScriptedEndpoint({"x": "c"})).text()


def test_a_closed_endpoint_answers_with_errors():
    endpoint = ScriptedEndpoint()
    endpoint.close()
    with pytest.raises(ProgramError, match="the endpoint is closed"):
        two.run(backend=endpoint).text()


def test_a_script_may_run_another_program_on_the_same_endpoint():
    def reply(prompt, node):
        return two.run(backend=endpoint).text() if node["name"] == "outer" else node["name"]

    endpoint = ScriptedEndpoint(reply)
    assert function(lambda s: s.append(gen("outer"))).run(backend=endpoint).get_var("outer", timeout=5) == "axby"


def test_deltas_name_the_nodes_and_their_lines():
    endpoint = ScriptedEndpoint()
    two.run(backend=endpoint).sync()
    nodes = endpoint.deltas[0]["branches"][0]["nodes"]
    assert [node["name"] for node in nodes] == [None, "x", None, "y"]
    assert all("test_scripted.py" in node["where"] for node in nodes)
