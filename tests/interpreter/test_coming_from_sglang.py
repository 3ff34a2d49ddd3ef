"""Programs as they are written for SGLang, run after changing the import; and what was wrong there, put right."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

import stemma as sgl
from stemma.lang.errors import ProgramError, RequestError


@pytest.fixture
def say():
    """An endpoint that answers each name from a mapping."""

    def make(**replies: Any) -> sgl.ScriptedEndpoint:
        return sgl.ScriptedEndpoint(replies)

    return make


# --- the shared programs of its test suite


def test_few_shot_qa(say):
    @sgl.function
    def few_shot_qa(s, question):
        s += "The following are questions with answers.\n\n"
        s += "Q: What is the capital of France?\nA: Paris\n"
        s += "Q: " + question + "\n"
        s += "A:" + sgl.gen("answer", stop="\n", temperature=0)

    cities = {"states": "Washington", "Japan": "Tokyo", "Italy": "Rome"}

    def answer(prompt: str, node: Any) -> str:
        return next(f" {city}\n\nQ: more" for word, city in cities.items() if prompt.rstrip("?\nA:").endswith(word))

    endpoint = sgl.ScriptedEndpoint({"answer": answer})
    ret = few_shot_qa.run(question="What is the capital of the United states?", temperature=0, backend=endpoint)
    assert "washington" in ret["answer"].strip().lower()
    rets = few_shot_qa.run_batch(
        [{"question": f"What is the capital of {c}?"} for c in ("Japan", "Italy")], temperature=0.1, backend=endpoint
    )
    assert [ret["answer"].strip().lower() for ret in rets] == ["tokyo", "rome"]


def test_mt_bench(say):
    @sgl.function
    def answer_mt_bench(s, question_1, question_2):
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(question_1)
        s += sgl.assistant(sgl.gen("answer_1"))
        with s.user():
            s += question_2
        with s.assistant():
            s += sgl.gen("answer_2")

    ret = answer_mt_bench.run("one", "two", temperature=0.7, max_new_tokens=64, backend=say(answer_1="a", answer_2="b"))
    assert len(ret.messages()) in (4, 5) and ret.messages()[-1] == {"role": "assistant", "content": "b"}


def test_select(say):
    @sgl.function
    def true_or_false(s, statement):
        s += "Determine whether the statement below is True, False, or Unknown.\n"
        s += "Statement: " + statement + "\n" + "Answer:"
        s += sgl.select("answer", ["True", "False", "Unknown"])

    assert true_or_false.run("Paris is in France.", backend=say(answer="True"))["answer"] == "True"

    @sgl.function
    def by_gen(s):
        s += "It is" + sgl.gen("answer", choices=["yes", "no"])

    assert by_gen.run(backend=say(answer="no"))["answer"] == "no"


def test_decode_int_and_dtypes(say):
    @sgl.function
    def decode_int(s):
        s += "The number of hours in a day is " + sgl.gen_int("hours") + "\n"
        s += "The number of days in a year is " + sgl.gen_int("days") + "\n"
        s += "A true statement: " + sgl.gen("flag", dtype=bool) + " " + sgl.gen("ratio", dtype="float")
        s += sgl.gen_string("name")

    ret = decode_int.run(temperature=0.1, backend=say(hours="24", days="365", flag="true", ratio="0.5", name='"x"'))
    assert int(ret["hours"]) == 24 and int(ret["days"]) == 365
    assert ret["flag"] is True and ret["ratio"] == 0.5 and ret["name"] == "x"


def test_decode_json_in_a_scope(say):
    @sgl.function
    def decode_json(s):
        s += "Generate a JSON object to describe the basic city information of Paris.\n"
        with s.var_scope("json_output"):
            s += "{\n"
            s += '  "name": ' + sgl.gen(regex=r'"[\w\d\s]*"') + ",\n"
            s += '  "population": ' + sgl.gen(regex=r"[-+]?[0-9]+") + "\n"
            s += "}"

    replies = iter(['"Paris"', "2148000"])
    ret = decode_json.run(temperature=0.0, backend=sgl.ScriptedEndpoint(lambda prompt, node: next(replies)))
    made = json.loads(ret["json_output"])
    assert made == {"name": "Paris", "population": 2148000}


def test_expert_answer_reads_a_value_inside_an_expression(say):
    @sgl.function
    def expert_answer(s, question):
        s += "Question: " + question + "\n"
        s += "A good person to answer this question is" + sgl.gen("expert", stop=[".", "\n"]) + ".\n"
        s += "For example, " + s["expert"] + " would answer that " + sgl.gen("answer", stop=".") + "."

    ret = expert_answer.run("Capital of France?", backend=say(expert=" a geographer. x", answer="it is Paris. y"))
    assert "paris" in ret.text().lower() and "a geographer would answer" in ret.text()


def test_tool_use_and_a_program_called_like_a_function(say):
    def calculate(expression: str) -> str:
        return str(eval(expression))

    @sgl.function
    def tool_use(s, lhs, rhs):
        s += "Please perform computations using a calculator.\n"
        s += f"What is {lhs} * {rhs}?\ncalculate(" + sgl.gen("expression", stop=")") + ") = "
        with s.var_scope("answer"):
            s += calculate(s["expression"])

    tool_use(lhs=257, rhs=983, backend=say(expression="257*983"))
    ret = tool_use.run(257, 983, backend=say(expression="257*983"))
    assert int(ret["answer"]) == 257 * 983


def test_react_branches_on_a_select_and_loops():
    @sgl.function
    def webthink(s, question):
        s += "Question: " + question
        for i in range(1, 5):
            s += f"Thought {i}:" + sgl.gen(stop=["\n"])
            s += f"\nAction {i}:" + sgl.select("action", ["Search", "Finish"])
            if s["action"] == "Finish":
                s += "[" + sgl.gen("answer", stop="]") + "]"
                break
            s += "[" + sgl.gen("arg", stop="]") + "]"

    actions = iter(["Search", "Finish"])

    def reply(prompt: str, node: Any) -> Any:
        if node["kind"] == "select":
            return next(actions)
        return {"arg": "Finland", "answer": "states"}.get(node["name"], " hm")

    ret = webthink.run("?", backend=sgl.ScriptedEndpoint(reply))
    assert ret["answer"] == "states" and "[Finland]" in ret.text()


def test_parallel_decoding_and_encoding(say):
    @sgl.function
    def parallel_decoding(s, topic):
        s += "Act as a helpful assistant.\nUSER: Give some tips for " + topic + ".\n"
        s += "ASSISTANT: Okay. Here are two concise tips, each under 8 words:\n"
        forks = s.fork(2)
        for i in range(2):
            forks[i] += f"Tip {i}:" + sgl.gen("detailed_tip", max_tokens=16, stop="\n")
        forks.join()
        for i in range(2):
            s += f"Tip {i}:" + forks[i]["detailed_tip"] + "\n"
        s += "In summary, " + sgl.gen("summary", max_tokens=16)

    ret = parallel_decoding.run("writing", backend=say(detailed_tip=" write", summary="write"))
    assert isinstance(ret["summary"], str) and ret["detailed_tip"] == [" write", " write"]

    @sgl.function
    def parallel_encoding(s, question, contexts):
        s += "USER: I will ask a question based on some statements.\n"
        forks = s.fork(len(contexts))
        forks += lambda i: f"Statement {i}: " + contexts[i] + "\n"
        forks.join(mode="concate_and_append")
        s += "Now, please answer: " + question + "\nASSISTANT:" + sgl.gen("answer", max_tokens=16)

    ret = parallel_encoding.run("Who?", ["a", "b"], backend=say(answer="Noah"))
    assert ret["answer"] == "Noah" and "Statement 0: a\nStatement 1: b\nNow" in ret.text()


def test_stream(say):
    @sgl.function
    def qa(s, question):
        s += sgl.system("You are a helpful assistant.")
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer"))

    ret = qa(question="List 3 countries", stream=True, backend=say(answer="a b c"))
    assert "".join(ret.text_iter()).endswith("a b c" + ret.text()[-len(ret.text().split("a b c")[1]) :])
    ret = qa(question="List 3 countries", stream=True, backend=say(answer="a b c"))
    assert list(ret.text_iter("answer")) == ["a", " b", " c"]

    async def main() -> list[Any]:
        ret = qa.run(question="x", stream=True, backend=say(answer="a b"))
        return [pair async for pair in ret.text_async_iter("answer", return_meta_data=True)]

    pairs = asyncio.run(main())
    assert [text for text, _ in pairs] == ["a", " b"] and pairs[-1][1]["completion_tokens"] == 2


def test_multi_stage_fork_with_a_nested_program(say):
    @sgl.function
    def tip(s, i):
        s += f"Tip {i}:" + sgl.gen("tip")

    @sgl.function
    def stages(s):
        s += "Companies:"
        forks = s.fork(2)
        for i, fork in enumerate(forks):
            tip(fork, i)
            inner = fork.fork(2)
            inner += sgl.gen("deep")
            inner.join()
        forks.join()
        return s["tip"], s["deep"]

    assert stages.run(backend=say(tip="t", deep="d")).ret_value == (["t", "t"], [["d", "d"], ["d", "d"]])


def test_bind_and_copy_and_ret_value(say):
    @sgl.function
    def program(s, a, b):
        s += a + b
        with s.copy() as c:
            c += sgl.gen("x")
        return s["x"]

    assert program.bind(a="1").run(b="2", backend=say(x="y")).ret_value == ["y"]
    assert program.bind(a="1").run(a="9", b="2", backend=say(x="y")).text() == "92"


def test_a_choices_method_of_ones_own():
    seen: dict[str, Any] = {}

    class Longest(sgl.ChoicesSamplingMethod):
        @property
        def requires_unconditional_logprobs(self) -> bool:
            return True

        def __call__(self, **given: Any) -> sgl.ChoicesDecision:
            seen.update(given)
            return sgl.ChoicesDecision(max(given["choices"], key=len), {"why": "longest"})

    @sgl.function
    def program(s):
        s += (
            "It is " + sgl.select("x", ["a", "bbb", "cc"], choices_method=Longest()) + ". " + sgl.gen("y", max_tokens=2)
        )
        return s["x"]

    with sgl.Engine() as engine:
        ret = program.run(backend=engine, temperature=0)
        assert ret.ret_value == "bbb" and ret.text().startswith("It is bbb. ")
        meta = ret.get_meta_info("x")
        assert meta["why"] == "longest" and meta["choice"] == 1
        assert [len(v) for v in (seen["choices"], seen["normalized_prompt_logprobs"])] == [3, 3]
        assert all(isinstance(entry[0], float) for row in seen["input_token_logprobs"] for entry in row)
        assert len(seen["unconditional_token_logprobs"]) == 3
        assert list(ret.text_iter("x")) == ["bbb"]

    class Wrong(sgl.ChoicesSamplingMethod):
        def __call__(self, **given: Any) -> sgl.ChoicesDecision:
            return sgl.ChoicesDecision("none of them")

    @sgl.function
    def wrong(s):
        s += sgl.select("x", ["a", "b"], choices_method=Wrong()) + sgl.gen("y")

    meta = {"input_token_logprobs": [[[-1.0, 1, None]]] * 2, "normalized_prompt_logprobs": [-1.0, -1.0]}
    endpoint = _Scores(meta)
    with pytest.raises(ProgramError, match=r"Wrong must answer a ChoicesDecision for one of \('a', 'b'\)"):
        wrong.run(backend=endpoint).text(5)
    with pytest.raises(ProgramError, match="the endpoint gives no log-probabilities of the choices"):
        wrong.run(backend=_Scores({})).text(5)
    with pytest.raises(RequestError, match="draws by scores, which Wrong does not give"):
        sgl.select("x", ["a"], temperature=1.0, choices_method=Wrong())


class _Scores(sgl.Endpoint):
    quiet_seconds = None

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def submit(self, delta: Any, on_event: Any) -> None:
        for branch in delta["branches"]:
            for index, node in enumerate(branch["nodes"], branch["first"]):
                if node["kind"] in ("gen", "select"):
                    at = {"branch": branch["id"], "node": index}
                    on_event({"event": "done", **at, "text": "a", "ids": [], "meta": self.meta})

    def cancel(self, program: str, branches: Any = None) -> None:
        return None


@pytest.mark.parametrize(
    ("model_type", "text", "reasoning", "answer"),
    [
        ("qwen3", "<think>\nhm\n</think>\n\nYes", "hm", "Yes"),
        ("qwen3", "Yes", "", "Yes"),
        ("deepseek-r1", "hm</think>Yes", "hm", "Yes"),
        ("deepseek-r1", "still thinking", "still thinking", ""),
        ("kimi", "◁think▷hm◁/think▷Yes", "hm", "Yes"),
        (sgl.Reasoning("<r>", "</r>"), "<r>hm</r>Yes", "hm", "Yes"),
    ],
)
def test_separate_reasoning(say, model_type, text, reasoning, answer):
    @sgl.function
    def program(s):
        s += sgl.user("Is it?")
        s += sgl.assistant("Well: " + sgl.separate_reasoning(sgl.gen("a"), model_type=model_type))
        s += "It was " + s.ref("a")

    ret = program.run(backend=say(a=text))
    assert ret["a"] == answer and ret["a_reasoning_content"] == reasoning and ret.raw("a") == text
    assert "Well: " + text in ret.text() and ret.text().endswith("It was " + answer)
    assert ret.get_meta_info("a")["finish_reason"]["type"] == "stop"


def test_what_cannot_be_separated_says_so():
    with pytest.raises(RequestError, match=r"model_type must be one of .*qwen3.*got 'gpt-9'"):
        sgl.separate_reasoning(sgl.gen("x"), model_type="gpt-9")
    with pytest.raises(RequestError, match="has a gen without a name"):
        sgl.separate_reasoning(sgl.gen(), model_type="qwen3")
    with pytest.raises(RequestError, match="has no gen"):
        sgl.separate_reasoning("text", model_type="qwen3")
    with pytest.raises(RequestError, match="needs a model_type"):
        sgl.separate_reasoning(sgl.gen("x"))


def test_the_module_level_helpers(say):
    endpoint = say(x="1")
    assert sgl.flush_cache(endpoint) is True
    assert sgl.get_server_info(endpoint)["endpoint"] == "ScriptedEndpoint"


def test_a_server_of_ones_own():
    with sgl.Runtime(engine_factory="tests.server.fake_engine:FakeEngine") as runtime:
        assert runtime.url.startswith("http://")
        assert sgl.get_server_info(runtime)["model_path"]
        sgl.flush_cache(runtime)
        made = json.loads(runtime.generate("Hello", {"max_new_tokens": 3}))
        assert isinstance(made["text"], str)
    runtime.shutdown()
    assert runtime._process.poll() is not None
    with pytest.raises(sgl.EndpointError, match=r"(?s)the server ended at once; it said: .*--no-such-option"):
        sgl.Runtime(no_such_option=1)


# --- what was wrong there


def test_appending_after_the_end_is_an_error_and_not_a_hang(say):
    ret = sgl.function(lambda s: s.append(sgl.gen("x"))).run(backend=say(x="1"))
    with pytest.raises(ProgramError, match="the program has finished"):
        ret += "more"


def test_stop_lists_are_not_changed(say):
    stops = ["a"]
    expr = sgl.gen("x", stop=stops)
    for _ in range(3):
        sgl.function(lambda s: s.append(sgl.assistant(expr))).run(backend=say(x="1")).sync()
    assert stops == ["a"]
    sgl.function(lambda s: s.append(sgl.gen("x", stop=("a",)))).run(backend=say(x="1")).sync()


def test_a_parameter_may_have_the_name_of_a_sampling_option(say):
    @sgl.function
    def program(s, temperature, n):
        s += f"{temperature} {n}" + sgl.gen("x")

    assert program.run(temperature="hot", n=3, backend=say(x="!")).text() == "hot 3!"


def test_the_first_parameter_may_have_any_name_and_the_docstring_stays(say):
    @sgl.function
    def program(state, word: str):
        """What it does."""
        state += word

    assert program.__doc__ == "What it does." and program.__name__ == "program"
    assert program.run("hi", backend=say()).text() == "hi"


def test_methods_can_be_programs(say):
    class Asker:
        def __init__(self, topic: str) -> None:
            self.topic = topic

        @sgl.function
        def ask(self, s, what):
            s += f"{self.topic}: {what}? " + sgl.gen("x")

    assert Asker("sea").ask.run("deep", backend=say(x="yes")).text() == "sea: deep? yes"
    (ret,) = Asker("sea").ask.run_batch([("deep",)], backend=say(x="yes"))
    assert ret["x"] == "yes"


def test_a_role_or_scope_left_by_an_exception_is_closed(say):
    @sgl.function
    def program(s):
        try:
            with s.user():
                s += "half"
                raise LookupError
        except LookupError:
            pass
        s += sgl.assistant(sgl.gen("x"))
        return [m["role"] for m in s.messages()]

    assert program.run(backend=say(x="1")).ret_value == ["user", "assistant"]


def test_a_pending_name_is_known_and_a_later_binding_wins(say):
    @sgl.function
    def program(s):
        s += sgl.gen("x")
        assert "x" in s
        s["x"] = "mine"
        s.sync()
        return s["x"]

    assert program.run(backend=say(x="theirs")).ret_value == "mine"


def test_a_failed_child_does_not_shift_the_list(say):
    @sgl.function
    def program(s):
        forks = s.fork(3)
        forks += lambda i: str(i) + sgl.gen("x")
        forks.join(on_error="collect")
        return s["x"]

    def reply(prompt: str, node: Any) -> Any:
        return RuntimeError("no") if prompt == "0" else prompt

    first, second, third = program.run(backend=sgl.ScriptedEndpoint(reply)).ret_value
    assert isinstance(first, ProgramError) and (second, third) == ("1", "2")


def test_an_empty_batch_is_an_iterator_when_asked_for_one(say):
    program = sgl.function(lambda s: None)
    assert program.run_batch([], backend=say()) == []
    assert list(program.run_batch([], backend=say(), generator_style=True)) == []


def test_use_thread_false_raises_where_it_runs(say):
    @sgl.function
    def program(s):
        s += sgl.gen("x")

    assert program.run(backend=say(x="1"), use_thread=False)["x"] == "1"
    with pytest.raises(ProgramError, match="no scripted reply"):
        program.run(backend=say(y="1"), use_thread=False)
    with pytest.raises(RequestError, match="use_thread must be true or false, got 'no'"):
        program.run(backend=say(), use_thread="no")


def test_programs_leave_no_threads_behind(say):
    @sgl.function
    def program(s):
        forks = s.fork(8)
        forks += sgl.gen("x")

    before = threading.active_count()
    for _ in range(20):
        program.run(backend=say(x="1"))
    assert threading.active_count() <= before + 17  # the threads that all scripted endpoints share, and the timers
