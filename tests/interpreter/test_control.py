"""Deadlines, budgets, races, quotes of values that are not there yet, and joins that outlive a failed child."""

import threading
import time
from typing import Any, cast

import pytest

from stemma import Budget, ProgramState, ScriptedEndpoint, assistant, function, gen, user
from stemma.lang.errors import BudgetError, CancelledError, ProgramError, RequestError


@function
def two(s: ProgramState):
    s += "one " + gen("a") + " two " + gen("b")


# --- deadlines


def test_a_program_that_takes_too_long_fails_where_it_is_read_and_leaves_the_endpoint():
    endpoint = ScriptedEndpoint(latency=30.0)
    state = two.run(backend=endpoint, timeout=0.05)
    with pytest.raises(ProgramError, match=r"gen 'b' at .*stopped.*longer than its timeout of 0.05 s") as caught:
        state.get_var("b", 5)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert endpoint.open_branches == set()


def test_what_was_there_before_the_deadline_stays_readable():
    endpoint = ScriptedEndpoint(latency=lambda prompt, node: 0.0 if node["name"] == "a" else 30.0)
    state = two.run(backend=endpoint, timeout=0.5)
    assert isinstance(state.error(5), ProgramError)
    assert state["a"] == "a"


def test_a_program_that_ends_in_time_is_not_disturbed_by_its_deadline():
    state = two.run(backend=ScriptedEndpoint(), timeout=0.5)
    state.sync()
    time.sleep(0.6)
    assert state.text() == "one a two b" and state.error() is None


def test_a_gen_has_a_clock_of_its_own_that_starts_when_it_can_start():
    latency = {"a": 0.15, "b": 30.0}

    @function
    def program(s: ProgramState):
        s += "one " + gen("a") + gen("b", timeout=0.1) + gen("c")

    endpoint = ScriptedEndpoint(latency=lambda prompt, node: latency[node["name"]])
    start = time.monotonic()
    state = program.run(backend=endpoint)
    with pytest.raises(ProgramError, match=r"gen 'c' .*because of gen 'b' at .*longer than its timeout of 0.1 s"):
        state.get_var("c", 5)
    assert state["a"] == "a"
    assert 0.2 < time.monotonic() - start < 5
    assert [branches for _, branches in endpoint.cancels] == [["r"]]


def test_a_gen_that_times_out_spares_what_was_forked_before_it():
    @function
    def program(s: ProgramState):
        s += "x"
        fork = s.fork(1)[0]
        fork += gen("mine")
        s += gen("late", timeout=0.03)
        return fork["mine"]

    latency = {"mine": 0.2, "late": 30.0}
    endpoint = ScriptedEndpoint(latency=lambda prompt, node: latency[node["name"]])
    assert program.run(backend=endpoint).ret_value == "mine"


@pytest.mark.parametrize("timeout", [0, -1, "1", True, float("inf")])
def test_a_timeout_must_be_seconds(timeout):
    with pytest.raises(RequestError, match="timeout must be a number of seconds > 0, got"):
        two.run(backend=ScriptedEndpoint(), timeout=timeout)
    with pytest.raises(RequestError, match="timeout must be a number of seconds > 0, got"):
        gen("x", timeout=timeout)


# --- budgets


def test_a_program_stops_when_its_budget_is_used_up():
    @function
    def program(s: ProgramState):
        for i in range(1000):
            s += "Go on: " + gen(f"g{i}")
            s.sync()

    endpoint = ScriptedEndpoint(lambda prompt, node: "some more words")
    budget = Budget(completion_tokens=20)
    with pytest.raises(ProgramError, match=r"the budget is used up: 2\d of 20 completion tokens") as caught:
        program.run(backend=endpoint, budget=budget)
    assert isinstance(caught.value.__cause__, BudgetError) and isinstance(caught.value.__cause__, CancelledError)
    assert 20 <= budget.spent["completion_tokens"] <= 26
    assert endpoint.open_branches == set()


def test_a_budget_that_holds_changes_nothing():
    state = two.run(backend=ScriptedEndpoint(), budget=1000)
    assert state.text() == "one a two b"


def test_one_budget_bounds_a_whole_batch_and_money_is_counted_by_prices():
    prices = {"input": 1.0, "output": 10.0}
    budget = Budget(cost=100 / 1e6, prices=prices)
    endpoint = ScriptedEndpoint()
    results = two.run_batch([()] * 50, backend=endpoint, budget=budget, num_threads=1, on_error="return")
    failed = [r for r in results if isinstance(r, ProgramError)]
    assert 0 < len(failed) < 50 and "budget is used up" in str(failed[-1])
    usage = [s.usage() for s in results if isinstance(s, ProgramState)]
    money = sum(u["prompt_tokens"] + 10 * u["completion_tokens"] for u in usage) / 1e6
    assert money <= budget.spent["cost"] <= money + 30 / 1e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "needs a bound"),
        ({"tokens": 0}, "must be a number > 0, got 0"),
        ({"cost": 1.0}, "needs prices"),
        ({"cost": 1.0, "prices": {"in": 1}}, "prices are for input"),
    ],
)
def test_a_budget_must_make_sense(wrong, message):
    with pytest.raises(RequestError, match=message):
        Budget(**wrong)


# --- races


def test_a_race_cancels_the_losers():
    latency = {"0": 30.0, "1": 0.02, "2": 30.0}

    @function
    def program(s: ProgramState):
        forks = s.fork(3)
        forks += lambda i: str(i) + gen("x")
        return forks.race(timeout=5)["x"]

    endpoint = ScriptedEndpoint(lambda prompt, node: prompt + "!", latency=lambda prompt, node: latency[prompt])
    assert program.run(backend=endpoint).ret_value == "1!"
    assert [branches for _, branches in endpoint.cancels] == [["r.0"], ["r.2"]]


def test_an_endpoint_that_cannot_cancel_spoils_no_race(caplog):
    class Stubborn(ScriptedEndpoint):
        def cancel(self, program: str, branches: Any = None) -> None:
            raise ConnectionError("gone")

    @function
    def program(s: ProgramState):
        forks = s.fork(2)
        forks += lambda i: str(i) + gen("x")
        winner = forks.race(timeout=5)
        assert forks[0].error(5) is not None
        return winner["x"]

    endpoint = Stubborn(latency=lambda prompt, node: 0.0 if prompt == "1" else 0.5)
    assert program.run(backend=endpoint).ret_value == "x"
    assert "could not be told to cancel fork 0/2" in caplog.text


def test_too_few_right_arrivals_are_an_error_with_its_cause():
    @function
    def program(s: ProgramState):
        forks = s.fork(3)
        forks += lambda i: str(i) + gen("x")
        forks.first(3, when=lambda fork: fork["x"] != "1")

    def reply(prompt: str, node: Any) -> Any:
        return LookupError("lost") if prompt == "0" else prompt

    with pytest.raises(ProgramError, match=r"only 1 of 3 forks arrived as asked for at .*test_control.*lost"):
        program.run(backend=ScriptedEndpoint(reply))


@pytest.mark.parametrize("k", [0, 4, True, "1"])
def test_first_takes_a_number_of_forks(k):
    @function
    def program(s: ProgramState):
        s.fork(3).first(k)

    with pytest.raises(RequestError, match="first takes a number from 1 to 3"):
        program.run(backend=ScriptedEndpoint())


def test_a_race_that_takes_too_long_says_so():
    @function
    def program(s: ProgramState):
        forks = s.fork(2)
        forks += gen("x")
        forks.race(timeout=0.05)

    with pytest.raises(TimeoutError, match="next fork was not ready in time"):
        program.run(backend=ScriptedEndpoint(latency=30.0))


# --- quotes


def test_a_quote_is_sent_once_its_value_is_there_and_the_program_does_not_wait():
    said: list[float] = []

    @function
    def program(s: ProgramState):
        start = time.monotonic()
        forks = s.fork(2)
        forks += lambda i: f"tip {i}: " + gen("tip")
        forks.join()
        s += "All: " + s.ref("tip", 0) + " and " + s.ref("tip", -1) + gen("sum")
        said.append(time.monotonic() - start)

    endpoint = ScriptedEndpoint(lambda prompt, node: prompt.upper(), latency=0.05)
    state = program.run(backend=endpoint)
    assert said[0] < 0.05
    assert state["sum"] == "ALL: TIP 0:  AND TIP 1: "
    assert endpoint.open_branches == set()


def test_a_fork_behind_a_quote_starts_when_the_quote_is_there():
    @function
    def program(s: ProgramState):
        first = s.fork(1)[0]
        first += gen("x")
        s += first.ref("x") + "."
        forks = s.fork(2)
        forks += gen("y")
        forks.join("concate_and_append")
        return s.text()

    endpoint = ScriptedEndpoint(lambda prompt, node: f"[{prompt}]", latency=0.02)
    assert program.run(backend=endpoint).ret_value == "[].[[].][[].]"


def test_a_quote_of_a_failed_value_fails_the_branch_but_not_what_came_before_it():
    @function
    def program(s: ProgramState):
        fork = s.fork(1)[0]
        fork += gen("bad")
        s += "a" + gen("good") + fork.ref("bad") + gen("after")

    def reply(prompt: str, node: Any) -> Any:
        return LookupError("lost") if node["name"] == "bad" else "ok"

    state = program.run(backend=ScriptedEndpoint(reply))
    with pytest.raises(ProgramError, match=r"gen 'after'.* because of gen 'bad' at .*lost"):
        state.get_var("after", 5)
    assert state.get_var("good", 5) == "ok"
    with pytest.raises(ProgramError, match="lost"):
        state.text(5)


def test_a_quote_of_a_value_that_has_failed_already_still_sends_what_came_before_it():
    @function
    def program(s: ProgramState):
        fork = s.fork(1)[0]
        fork += gen("bad")
        assert fork.error() is not None
        s += "a" + gen("good") + fork.ref("bad")
        return s.get_var("good", 5)

    def reply(prompt: str, node: Any) -> Any:
        return LookupError("lost") if node["name"] == "bad" else "ok"

    assert program.run(backend=ScriptedEndpoint(reply)).ret_value == "ok"


def test_what_cannot_be_quoted_says_why():
    @function
    def program(s: ProgramState, other: ProgramState):
        with pytest.raises(KeyError, match="no value named 'x'"):
            s.ref("x")
        with s.var_scope("open"), pytest.raises(ProgramError, match="quoted while its var_scope is still open"):
            s.ref("open")
        forks = s.fork(2)
        forks[0] += gen("x")
        forks.join()
        with pytest.raises(RequestError, match="'x' is a list of 2; ref needs an index in it, got None"):
            s.ref("x")
        with pytest.raises(RequestError, match="fork 1 has not bound 'x'"):
            s.ref("x", 1)
        with pytest.raises(RequestError, match="ref 'a' is a value of another program"):
            s += other.ref("a")

    program.run(two.run(backend=ScriptedEndpoint()), backend=ScriptedEndpoint())


def test_messages_wait_for_a_quote():
    @function
    def program(s: ProgramState):
        fork = s.fork(1)[0]
        fork += gen("x")
        s += user("Is it " + fork.ref("x") + "?") + assistant(gen("y"))
        return s.messages()

    messages = program.run(backend=ScriptedEndpoint(latency=0.02)).ret_value
    assert messages == [{"role": "user", "content": "Is it x?"}, {"role": "assistant", "content": "y"}]


# --- joins


def failing_second(prompt: str, node: Any) -> Any:
    return LookupError("lost") if prompt == "1" else prompt


@pytest.mark.parametrize("early", [True, False])
def test_a_failed_child_may_be_collected_or_skipped(early):
    @function
    def program(s: ProgramState, how: str):
        forks = s.fork(3)
        forks += lambda i: str(i) + gen("x")
        if early:
            forks[1].error()
        forks.join(on_error=how)  # pyright: ignore[reportArgumentType] - one of them is wrong
        return s["x"]

    endpoint = ScriptedEndpoint(failing_second)
    assert program.run("skip", backend=endpoint).ret_value == ["0", "2"]
    first, second, third = program.run("collect", backend=endpoint).ret_value
    assert (first, third) == ("0", "2") and isinstance(second, ProgramError) and "lost" in str(second)
    with pytest.raises(ProgramError, match=r"fork 1/3.*lost"):
        program.run("raise", backend=endpoint)
    with pytest.raises(RequestError, match="on_error must be raise, collect or skip, got 'drop'"):
        program.run("drop", backend=endpoint)


def test_copy_gives_lists_of_one():
    @function
    def program(s: ProgramState):
        s += "a"
        with s.copy() as c:
            c += gen("x")
        return s["x"], s.text()

    assert program.run(backend=ScriptedEndpoint()).ret_value == (["x"], "a")


def test_position_ids_offset_is_refused():
    with pytest.raises(RequestError, match="position_ids_offset=\\[1\\] is not built"):
        function(lambda s: cast(Any, s).fork(2, position_ids_offset=[1])).run(backend=ScriptedEndpoint())


def test_no_thread_is_left_behind_per_program():
    before = threading.active_count()
    for _ in range(50):
        two.run(backend=ScriptedEndpoint(latency=0.001), timeout=60).sync()
    assert threading.active_count() <= before + 20
