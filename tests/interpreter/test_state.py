"""What `s` records, and what reading it gives."""

from collections.abc import Callable
from typing import Any, Literal

import pytest

from stemma import ProgramState, ScriptedEndpoint, assistant, function, gen, select, user, user_begin, user_end
from stemma.lang.errors import ProgramError, RequestError, TruncatedError


def run(body: Callable[[ProgramState], Any], replies: Any = None, **options: Any) -> ProgramState:
    return function(body).run(backend=ScriptedEndpoint(replies), **options)


def test_values_have_the_type_that_the_gen_asked_for():
    def body(s):
        s += gen("n", type=int) + gen("b", dtype=bool) + gen("t", type=str) + gen("l", type=Literal["x", "y"])
        return s["n"], s["b"], s["t"], s["l"], s.raw("t")

    state = run(body, {"n": "42", "b": "True", "t": '"hi\\n"', "l": "y"})
    assert state.ret_value == (42, True, "hi\n", "y", '"hi\\n"')


def test_text_that_is_not_of_the_type_is_an_error_at_the_reader_naming_the_gen():
    class Cut(ScriptedEndpoint):
        def submit(self, delta, on_event):
            meta = {"finish_reason": {"type": "length", "length": 2}}
            on_event({"event": "done", "branch": "r", "node": 0, "text": '"ab', "ids": [], "meta": meta})

    def body(s):
        s += gen("t", 2, type=str)
        return s["t"]

    with pytest.raises(
        TruncatedError, match=r"gen 't' at .*test_state.py:\d+: '\"ab' is not.*cut off by max_tokens"
    ) as e:
        function(body).run(backend=Cut())
    assert isinstance(e.value.__cause__, ValueError) and isinstance(e.value, ProgramError)
    assert (e.value.tokens, e.value.limit, e.value.text) == (2, 2, '"ab')


def test_an_unknown_name_is_a_key_error_listing_the_names():
    state = run(lambda s: s.append(gen("a")))
    with pytest.raises(KeyError, match="no value named 'b'; names: 'a'"):
        state["b"]


def test_in_tells_whether_a_name_is_bound_without_waiting():
    def body(s):
        s += gen("a")
        return "a" in s, "b" in s

    assert run(body).ret_value == (True, False)


def test_a_value_set_by_hand_and_a_gen_of_the_same_name_last_one_wins():
    def body(s):
        s += gen("x")
        s["x"] = 3
        first = s["x"]
        s += gen("x")
        return first, s["x"]

    assert run(body).ret_value == (3, "x")


def test_meta_info_is_the_endpoints_and_a_copy():
    state = run(lambda s: s.append("a b" + gen("x")))
    meta = state.get_meta_info("x")
    assert meta["prompt_tokens"] == 2 and meta["finish_reason"]["type"] == "stop"
    meta.clear()
    assert state.get_meta_info("x")


def test_meta_info_of_a_value_set_by_hand_is_a_key_error():
    state = run(lambda s: s.set_var("x", 3))
    with pytest.raises(KeyError, match="not made by a gen or select"):
        state.get_meta_info("x")


def test_select_appends_its_choice_and_tells_the_scores():
    state = run(lambda s: s.append("It is " + select("x", choices=["hot", "cold"])), {"x": "cold"})
    assert (state.text(), state["x"]) == ("It is cold", "cold")
    assert state.get_meta_info("x")["choice"] == 1


def test_branching_on_a_value_goes_the_way_of_the_value():
    def body(s):
        s += select("tool", choices=["search", "stop"])
        if s["tool"] == "search":
            s += gen("query")

    assert run(body, {"tool": "search", "query": "cats"})["query"] == "cats"
    assert "query" not in run(body, {"tool": "stop"})


def test_messages_and_text_of_a_chat():
    def body(s):
        s += user("hi")
        with s.assistant():
            s += gen("a")
        s += user_begin() + "more" + user_end() + "\n"

    state = run(body, {"a": "hello"})
    assert state.messages() == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "more"},
    ]
    assert state.text() == "user: hi\nassistant: hello\nuser: more\n\n"


def test_an_open_message_comes_last_as_far_as_it_got():
    def body(s):
        s += user("hi")
        with s.assistant():
            s += "So, " + gen("a")
            return s.messages()

    assert run(body).ret_value[-1] == {"role": "assistant", "content": "So, a"}


def test_text_outside_the_roles_cannot_be_a_message():
    with pytest.raises(RequestError, match=r"text at .*test_state.py:\d+ is outside of every role"):
        run(lambda s: s.append(user("hi") + "stray")).messages()


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        (lambda: user(user("x")), "user_begin at .* is inside the user message opened at"),
        (lambda: [user_begin(), assistant("x")], "assistant_begin at .* is inside the user message"),
        (lambda: user_end(), "user_end at .*: no message is open"),
        (lambda: [user_begin(), assistant("x").nodes[-1]], "assistant_end at .*: the open message is user's"),
    ],
)
def test_unbalanced_roles_are_errors_at_the_line(expr, message):
    with pytest.raises(RequestError, match=message):
        run(lambda s: s.append(expr()))


def test_a_role_closes_even_if_its_block_raises():
    def body(s):
        with pytest.raises(LookupError), s.user():
            s += "hi"
            raise LookupError
        s += assistant("yes")

    assert [m["role"] for m in run(body).messages()] == ["user", "assistant"]


def test_a_failed_branch_does_not_hide_the_error_of_a_role_block():
    def body(s):
        with s.user():
            s += gen("x")
            with pytest.raises(ProgramError):
                s["x"]
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(body, {"x": ValueError("no")})


def test_a_var_scope_captures_the_text_inside():
    def body(s):
        s += "a"
        with s.var_scope("whole"):
            s += "b" + gen("x") + "c"
        s += "d"
        return s["whole"]

    assert run(body).ret_value == "bxc"


def test_a_var_scope_ends_even_if_its_block_raises_and_is_an_error_while_open():
    def body(s):
        with pytest.raises(LookupError), s.var_scope("part"):
            s += "b"
            with pytest.raises(ProgramError, match="still open"):
                s["part"]
            raise LookupError
        return s["part"]

    assert run(body).ret_value == "b"


def test_appending_after_the_program_finished_raises_at_once():
    state = run(lambda s: s.append("a"))
    for late in (lambda: state.append("b"), lambda: state.append(""), lambda: state.fork(2)):
        with pytest.raises(ProgramError, match="the program has finished"):
            late()
    assert state.text() == "a"


def test_appending_after_a_failure_raises_the_failure_at_once():
    def body(s):
        s += gen("x")
        with pytest.raises(ProgramError):
            s.sync()
        with pytest.raises(ProgramError, match=r"gen 'x' at .*boom"):
            s += "more"

    run(body, {"x": ValueError("boom")})


def test_text_iter_of_a_stream_gives_pieces_that_make_up_the_text():
    def body(s):
        s += "Q: " + gen("a") + "; " + select("b", choices=["u"]) + gen("c")

    state = run(body, {"a": "one two three", "c": ""}, stream=True)
    pieces = list(state.text_iter())
    assert pieces == ["Q: ", "one", " two", " three", "; ", "u"]
    assert "".join(pieces) == state.text()


def test_text_iter_of_a_name_waits_for_the_name_and_streams_it():
    def body(s):
        s += gen("first")
        if s["first"]:
            s += "..." + gen("a")

    state = run(body, {"first": "x", "a": "one two"}, stream=True)
    assert list(state.text_iter("a")) == ["one", " two"]
    assert state["a"] == "one two"


def test_a_streamed_select_gives_its_choice():
    state = run(lambda s: s.append(select("a", choices=["u", "v"])), stream=True)
    assert list(state.text_iter("a")) == ["u"]


def test_text_iter_of_a_name_that_never_comes_is_a_key_error():
    with pytest.raises(KeyError, match="no value named 'a'"):
        list(run(lambda s: s.append("x"), stream=True).text_iter("a"))


def test_text_iter_without_streaming_gives_whole_texts():
    assert list(run(lambda s: s.append("Q" + gen("a")), {"a": "one two"}).text_iter()) == ["Q", "one two"]


def test_text_iter_inside_a_program_ends_with_what_was_said():
    def body(s):
        s += "Q" + gen("a")
        return list(s.text_iter()), list(s.text_iter("a"))

    assert run(body).ret_value == (["Q", "a"], ["a"])


def test_a_set_value_can_be_iterated():
    assert list(run(lambda s: s.set_var("x", 3)).text_iter("x")) == ["3"]


def test_reading_from_outside_waits_for_names_the_body_has_yet_to_bind():
    state = run(lambda s: s.append(gen("a") + gen("b")), stream=True)
    assert (state["a"], state.raw("b"), state.get_meta_info("b")["completion_tokens"]) == ("a", "b", 1)
    assert state.ret_value is None


def test_usage_adds_up_the_whole_program():
    def body(s):
        s += "a b" + gen("x")
        for fork in s.fork(2):
            fork += gen("y")

    usage = run(body, {"x": "c d", "y": "e"}).usage()
    assert usage["prompt_tokens"] == 2 + 3 + 3 and usage["completion_tokens"] == 4
    assert {"cached_tokens", "computed_tokens", "forced_tokens"} < set(usage)
    assert usage["wall_seconds"] > 0


def test_error_is_none_when_all_went_well():
    assert run(lambda s: s.append(gen("x"))).error() is None
    assert "1 nodes, names: x" in repr(run(lambda s: s.append(gen("x"))))
