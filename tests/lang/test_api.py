"""The constructors: what they build, and what they refuse at once."""

import re

import pytest

import stemma
from stemma import gen, gen_int, gen_string, greedy_token_selection, select, system, user
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.nodes import Gen, NodeList, RoleBegin, RoleEnd, Select, Text, as_nodes
from stemma.lang.params import Constraint


def test_gen_keeps_only_what_was_given():
    node = gen("x", max_tokens=5, stop=["\n"], temperature=0)
    assert isinstance(node, Gen)
    assert dict(node.overrides) == {"max_new_tokens": 5, "stop": ("\n",), "temperature": 0.0}
    assert node.constraint is None


def test_a_stop_list_changed_later_changes_nothing():
    stops = ["\n"]
    node = gen("x", stop=stops)
    stops.append("###")
    assert isinstance(node, Gen) and dict(node.overrides)["stop"] == ("\n",)


def test_min_tokens_may_exceed_the_default_max_tokens():
    node = gen("x", min_tokens=500)
    assert isinstance(node, Gen) and dict(node.overrides) == {"min_new_tokens": 500}


def test_nodes_know_the_line_that_wrote_them():
    node, message = gen("x"), user("hi")
    line = test_nodes_know_the_line_that_wrote_them.__code__.co_firstlineno + 1
    assert re.search(rf"test_api\.py:{line}$", node.where)
    assert all(part.where == node.where for part in message)


def test_plus_builds_a_list_in_order():
    listed = "Q: " + gen("a") + "." + select("b", choices=["x"]) + user("u")
    assert [type(node) for node in listed] == [Text, Gen, Text, Select, RoleBegin, Text, RoleEnd]


def test_equal_nodes_from_different_lines_are_equal():
    first = gen("a", 3)
    assert first == gen("a", 3)


def test_a_message_holds_its_expression_between_its_roles():
    assert [str(node) for node in system("be kind")] == ["system_begin", "text 'be kind'", "system_end"]
    assert len(user()) == 2


@pytest.mark.parametrize("value", [None, 3, 2.5, object(), {"a": 1}])
def test_only_text_and_nodes_can_be_appended(value):
    with pytest.raises(RequestError, match="only text and nodes"):
        as_nodes(value)
    with pytest.raises(RequestError, match="only text and nodes"):
        _ = gen("a") + value


def test_empty_text_is_nothing_and_lists_are_flattened():
    assert as_nodes("") == ()
    assert len(as_nodes(["a", ("b", gen("c")), NodeList()])) == 3


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"n": 0}, "n", "n must be an integer >= 1, got 0"),
        ({"temperature": -1}, "temperature", "got -1"),
        ({"stop": [""]}, "stop", "empty string"),
        ({"top_k": 0}, "top_k", "got 0"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_new_tokens", "at most max_new_tokens"),
        ({"regex": "a", "type": int}, "regex", "only one constraint may be given, got type and regex"),
        ({"json_schema": "{", "name": "x"}, "json_schema", "must be JSON"),
        ({"json_schema": {"a": object()}}, "json_schema", "must be JSON"),
        ({"regex": 5}, "regex", "must be a string, got 5"),
        ({"regex": "a", "lenient": True}, "lenient", "not for regex"),
        ({"whitespace": "any"}, "whitespace", "needs json_schema"),
        ({"json_schema": {}, "whitespace": ""}, "whitespace", "must be"),
        ({"json_schema": {}, "lenient": 1}, "lenient", "must be true or false, got 1"),
        ({"dtype": int, "type": int}, "type", "mean the same"),
        ({"type": list}, "type", "got <class 'list'>"),
        ({"choices_method": greedy_token_selection}, "choices_method", "needs choices"),
        ({"choices": []}, "choices", "at least one"),
        ({"choices": "ab"}, "choices", "got the string 'ab'"),
        ({"choices": ["a", ""]}, "choices", r"choices\[1\] must be a non-empty string"),
        ({"choices": ["a", "a"]}, "choices", r"choices\[1\] repeats 'a'"),
        ({"choices": ["a"], "max_tokens": 3, "regex": "b"}, "max_tokens", "remove max_tokens=3, regex='b'"),
        ({"return_logprob": 1}, "return_logprob", "got 1"),
        ({"return_logprob": False, "top_logprobs_num": 3}, "top_logprobs_num", "needs return_logprob=True"),
        ({"logprob_start_len": -2}, "logprob_start_len", "got -2"),
        ({"token_ids_logprob": 5}, "token_ids_logprob", "got 5"),
        ({"name": ""}, "name", "non-empty string"),
        ({"seed": "x"}, "seed", "got 'x'"),
    ],
)
def test_a_wrong_argument_is_an_error_at_the_call_naming_it(options, param, message):
    with pytest.raises(RequestError, match=message) as caught:
        gen(**options)
    assert caught.value.param == param


def test_n_is_the_number_of_samples_and_none_means_as_the_run_says():
    made = gen("x", n=1), gen("x", n=3), gen("x")
    assert [getattr(node, "samples", ...) for node in made] == [1, 3, None]


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"regex": "[a-z]+"}, Constraint("regex", "[a-z]+")),
        ({"json_schema": {"type": "object"}}, Constraint("json_schema", '{"type": "object"}')),
        ({"json_schema": ' {"type":"object"}'}, Constraint("json_schema", '{"type": "object"}')),
        ({"ebnf": "root ::= 'a'"}, Constraint("ebnf", "root ::= 'a'")),
        ({"structural_tag": {"a": 1}}, Constraint("structural_tag", '{"a": 1}')),
        ({"json_schema": True, "lenient": True}, Constraint("json_schema", "true", lenient=True)),
        ({"json_schema": {}, "whitespace": "any"}, Constraint("json_schema", "{}", whitespace="any")),
        ({"regex": "a", "lenient": False}, Constraint("regex", "a")),
    ],
)
def test_each_constraint_reaches_the_node(options, constraint):
    node = gen("x", **options)
    assert isinstance(node, Gen) and node.constraint == constraint


def test_two_constraints_are_a_constraint_error():
    with pytest.raises(ConstraintError):
        gen("x", regex="a", ebnf="b")


def test_gen_int_and_gen_string_fix_the_type():
    number, text = gen_int("n", stop="."), gen_string("t", 8)
    assert isinstance(number, Gen) and number.type and number.type.name == "int"
    assert isinstance(text, Gen) and text.type and text.type.name == "str"
    with pytest.raises(RequestError, match="gen_int fixes the type"):
        gen_int("n", regex="a")


def test_gen_with_choices_is_a_select():
    node = gen("x", choices=("a", "b"), choices_method="greedy_token_selection", temperature=0.5, seed=3)
    assert isinstance(node, Select)
    assert (node.choices, node.method, node.temperature, node.seed) == (("a", "b"), greedy_token_selection, 0.5, 3)


@pytest.mark.parametrize("choices", [None, [], "ab", ["a", 3]])
def test_select_needs_a_list_of_strings(choices):
    with pytest.raises(RequestError) as caught:
        select("x", choices=choices)
    assert caught.value.param == "choices"


def test_every_public_word_exists():
    assert all(hasattr(stemma, name) for name in stemma.__all__ if name != "Engine")
