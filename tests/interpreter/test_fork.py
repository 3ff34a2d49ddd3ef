"""Forks and joins: what is shared, what is gathered, what is never dropped."""

from collections.abc import Callable
from typing import Any

import pytest

from stemma import ProgramState, ScriptedEndpoint, assistant_end, function, gen, user, user_begin, user_end
from stemma.lang.errors import ProgramError, RequestError


def run(body: Callable[[ProgramState], Any], replies: Any = None) -> ProgramState:
    return function(body).run(backend=ScriptedEndpoint(replies))


def test_children_go_on_from_the_parent_and_leave_it_alone():
    def body(s):
        s += "a"
        forks = s.fork(2)
        s += "b"
        for i, fork in enumerate(forks):
            fork += str(i) + gen("x")
        return [fork.text() for fork in forks], len(forks)

    state = run(body)
    assert state.ret_value == (["a0x", "a1x"], 2)
    assert state.text() == "ab"


def test_children_inherit_names_even_before_their_values_exist():
    def body(s):
        s += gen("x")
        s["n"] = 1
        (child,) = s.fork()
        child["n"] = 2
        return child["x"], child["n"], s["n"]

    assert run(body).ret_value == ("x", 2, 1)


def test_a_group_is_appended_to_by_text_by_node_by_list_and_by_function():
    def body(s):
        forks = s.fork(2)
        forks += "a"
        forks += ["b", "c"]
        forks += lambda i: f"{i}"
        forks += gen("x")
        forks[1] += "!"
        return [fork.text() for fork in forks]

    assert run(body).ret_value == ["ab0x", "ac1x!"]


def test_a_list_of_another_length_than_the_group_is_an_error():
    def body(s):
        forks = s.fork(2)
        forks += ["a"]

    with pytest.raises(RequestError, match="a list for 2 forks must have as many items, got 1"):
        run(body)


def test_a_child_cannot_be_exchanged():
    def body(s):
        forks = s.fork(2)
        forks[0] = forks[1]

    with pytest.raises(RequestError, match="fork 0 cannot be replaced"):
        run(body)


def test_join_gathers_the_childrens_values_in_order():
    def body(s):
        forks = s.fork(3)
        forks += lambda i: gen("x", type=int)
        forks.join()
        return s["x"], s.raw("x")

    assert run(body, {"x": ["1", "2", "3"]}).ret_value == ([1, 2, 3], ["1", "2", "3"])


def test_join_keeps_places_of_children_that_did_not_bind_a_name():
    def body(s):
        forks = s.fork(2)
        forks[1] += gen("x")
        forks.join()
        return s["x"]

    assert run(body).ret_value == [None, "x"]


def test_join_that_would_overwrite_a_name_of_the_parent_is_an_error():
    def body(s):
        s += gen("x")
        with s.fork(2) as forks:
            forks += gen("x")

    with pytest.raises(RequestError, match="join would overwrite 'x'"):
        run(body)


def test_a_second_fork_stage_may_use_the_names_of_the_first():
    def body(s):
        seen = []
        for _ in range(2):
            forks = s.fork(2)
            forks += gen("x")
            forks.join()
            seen.append(s["x"])
        return seen

    assert run(body, ["a", "b", "c", "d"]).ret_value == [["a", "b"], ["c", "d"]]


def test_join_by_text_appends_what_each_child_said():
    def body(s):
        s += "head "
        s += user_begin()
        forks = s.fork(2)
        forks += lambda i: f"[{i}:" + gen("x") + "]"
        forks.join("concate_and_append")
        s += user_end()
        return s.text()

    assert run(body, ["p", "q"]).ret_value == "head user: [0:p][1:q]\n"


def test_join_by_text_keeps_roles():
    def body(s):
        forks = s.fork(1)
        forks += user("hi" + gen("x"))
        forks.join("concate_and_append")
        return s.messages()

    assert run(body).ret_value == [{"role": "user", "content": "hix"}]


def test_an_unknown_join_mode_is_an_error():
    with pytest.raises(RequestError, match="mode must be gather_variable or concate_and_append, got 'zip'"):
        run(lambda s: s.fork(1).join("zip"))


def test_a_joined_child_takes_nothing_more():
    def body(s):
        forks = s.fork(2)
        forks.join()
        forks[1] += "late"

    with pytest.raises(ProgramError, match="fork 1/2 was joined"):
        run(body)


@pytest.mark.parametrize("size", [-1, 1.5, True, "2"])
def test_fork_takes_a_count(size):
    with pytest.raises(RequestError, match="fork takes a number of copies"):
        run(lambda s: s.fork(size))


def test_a_fork_of_none_is_an_empty_group():
    def body(s):
        forks = s.fork(0)
        forks.join()
        return len(forks)

    assert run(body).ret_value == 0


def test_roles_open_before_the_fork_are_closed_in_the_child():
    def body(s):
        s += user_begin()
        (child,) = s.fork(1)
        child += "hi" + user_end()
        with pytest.raises(RequestError, match="no message is open"):
            child += assistant_end()
        return child.messages()

    assert run(body).ret_value == [{"role": "user", "content": "hi"}]


def test_an_error_names_the_fork_it_happened_in():
    def body(s):
        for outer in s.fork(2):
            for inner in outer.fork(3):
                inner += gen("x")

    error = run(body, {"x": ["a", "b", "c", "d", ValueError("no"), "e"]}).error()
    assert error is not None and "fork 1/2, fork 1/3: ValueError: no" in str(error)


def test_a_failed_child_leaves_its_siblings_and_parent_alone():
    def body(s):
        forks = s.fork(2)
        forks += gen("x")
        s += gen("y")
        with pytest.raises(ProgramError):
            forks[0]["x"]
        return forks[1]["x"], s["y"]

    assert run(body, {"x": [ValueError("no"), "fine"], "y": "z"}).ret_value == ("fine", "z")


def test_cancelling_one_fork_leaves_the_others_alone():
    def body(s):
        forks = s.fork(2)
        forks += gen("x")
        forks[0].cancel()
        with pytest.raises(ProgramError, match="fork 0/2 was cancelled"):
            forks[0]["x"]
        return forks[1]["x"]

    assert run(body).ret_value == "x"
