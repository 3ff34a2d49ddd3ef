"""The words of SGLang's frontend, one by one: the order of arguments, and what they mean."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import pytest

import stemma as sgl
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.nodes import Gen

GEN = (
    "name max_tokens min_tokens n stop stop_token_ids stop_regex temperature top_p top_k min_p "
    "frequency_penalty presence_penalty ignore_eos return_logprob logprob_start_len top_logprobs_num "
    "return_text_in_logprobs dtype choices choices_method regex json_schema"
)
NOT_TYPED = {"min_tokens", "dtype", "choices", "choices_method", "regex", "json_schema"}
MODULE = (
    "function gen gen_int gen_string select image video system user assistant system_begin "
    "system_end user_begin user_end assistant_begin assistant_end separate_reasoning "
    "set_default_backend flush_cache get_server_info Runtime RuntimeEndpoint Engine OpenAI Anthropic "
    "VertexAI LiteLLM Crusoe ServerArgs global_config token_length_normalized greedy_token_selection "
    "unconditional_likelihood_normalized"
)


def positional(word: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(word).parameters.values() if p.kind in kinds]


def test_positional_arguments_are_in_the_same_order():
    assert positional(sgl.gen) == GEN.split()
    for word in (sgl.gen_int, sgl.gen_string):
        assert positional(word) == [name for name in GEN.split() if name not in NOT_TYPED]
    assert positional(sgl.select) == ["name", "choices", "temperature", "choices_method"]
    assert positional(sgl.separate_reasoning) == ["expr", "model_type"]
    assert positional(sgl.function) == ["func", "num_api_spec_tokens"]
    assert positional(sgl.RuntimeEndpoint) == ["base_url", "api_key", "verify", "chat_template_name"]
    assert positional(sgl.OpenAI)[:4] == ["model_name", "is_chat_model", "chat_template", "is_azure"]
    node = sgl.gen("x", 5, 2, 1, ["a"], [7], None, 0.5, 0.9, 3, 0.1, 0.2, 0.3, True, True, -1, 2, True)
    assert isinstance(node, Gen)
    assert dict(node.overrides) == {
        "max_new_tokens": 5, "min_new_tokens": 2, "stop": ("a",), "stop_token_ids": (7,), "temperature": 0.5,
        "top_p": 0.9, "top_k": 3, "min_p": 0.1, "frequency_penalty": 0.2, "presence_penalty": 0.3, "ignore_eos": True,
    }  # fmt: skip
    number = sgl.gen_int("x", 5, 1, "a")
    assert isinstance(number, Gen) and dict(number.overrides) == {"max_new_tokens": 5, "stop": ("a",)}


@pytest.mark.parametrize("name", MODULE.split())
def test_every_name_is_there_or_says_what_to_use(name):
    try:
        getattr(sgl, name)
    except AttributeError as error:
        assert str(error).startswith(f"stemma has no {name!r}: ") and len(str(error)) > 40


def test_other_names_are_plain_attribute_errors():
    with pytest.raises(AttributeError, match=r"has no attribute 'generate_everything'"):
        sgl.generate_everything  # noqa: B018


@pytest.mark.parametrize("stop_regex", [r"\d+", [r"\d"]])
def test_stop_regex_is_refused_by_name(stop_regex):
    with pytest.raises(RequestError, match=r"stop_regex=.* is not built"):
        sgl.gen("x", stop_regex=stop_regex)
    program = sgl.function(lambda s: None)
    with pytest.raises(RequestError, match=r"stop_regex=.* is not built"):
        program.run(stop_regex=stop_regex, backend=sgl.ScriptedEndpoint({}))


# --- several samples


def test_several_samples_are_a_list_and_the_text_goes_on_with_the_first():
    taken: list[str] = []

    def reply(prompt: str, node: Any) -> str:
        if node["name"] == "after":
            return f"<{prompt}>"
        with lock:
            taken.append(prompt)
            return f"{len(taken)}"

    lock = threading.Lock()

    @sgl.function
    def program(s):
        s += "Q" + sgl.gen("x", n=3, type=int) + "." + sgl.gen("after")
        return s["x"]

    state = program.run(backend=sgl.ScriptedEndpoint(reply))
    values = state.ret_value
    assert sorted(values) == [1, 2, 3] and all(isinstance(v, int) for v in values) and taken == ["Q"] * 3
    assert state["after"] == f"<Q{values[0]}.>" and state.raw("x") == [str(v) for v in values]
    meta = state.get_meta_info("x")
    assert len(meta["samples"]) == 3 and meta["finish_reason"] == meta["samples"][0]["finish_reason"]
    assert str(state.ref("x", 1)) == "ref 'x'"


def test_samples_share_their_prompt_are_one_submission_and_draw_differently():
    @sgl.function
    def program(s, seed):
        s += "Once upon a time there was a small town by the sea, and in it" + sgl.gen("x", 8, n=4, seed=seed)
        s += "." + sgl.gen("y", 2)

    with sgl.Engine() as engine:
        state = program.run(5, backend=engine, temperature=1.0)
        assert len(set(state["x"])) > 1 and state["x"] == program.run(5, backend=engine, temperature=1.0)["x"]
        assert state.explain().to_dict()  # the graph of it is a fork like any other
        prompt = state.get_meta_info("x")["prompt_tokens"]
        engine.flush_cache()
        usage = program.run(5, backend=engine, temperature=1.0).usage()
        assert usage["computed_tokens"] < 2 * prompt + 8 * 4 + 8


def test_samples_of_the_run_and_of_a_failed_one_and_wrong_numbers():
    program = sgl.function(lambda s: s.append(sgl.gen("x") + sgl.select("y", ["a", "b"]) + sgl.gen("z", n=1)))
    state = program.run(n=2, backend=sgl.ScriptedEndpoint({"x": "1", "y": "a", "z": "2"}))
    assert (state["x"], state["y"], state["z"]) == (["1", "1"], "a", "2")
    failing = program.run(n=2, backend=sgl.ScriptedEndpoint({"x": ["1", RuntimeError("no")], "y": "a", "z": "2"}))
    with pytest.raises(ProgramError, match=r"gen 'x' .*no"):
        failing.get_var("x", timeout=5)
    wrong: list[Any] = [0, -1, 1.5, True, "2"]
    for n in wrong:
        with pytest.raises(RequestError, match="n must be an integer >= 1"):
            sgl.gen("x", n=n)


def test_samples_in_an_async_program_and_of_a_form():
    @sgl.function
    async def program(s):
        s += sgl.gen("form", constraint="a" + sgl.capture("digit", sgl.regex("[0-9]")), n=2)
        return await s["form"], await s["digit"]

    state = program.run(backend=sgl.ScriptedEndpoint({"form": ["a1", "a2"]}))
    form, digit = state.ret_value
    assert sorted(form) == ["a1", "a2"] and digit == [text[1] for text in form]


def test_a_gen_without_a_name_cannot_be_read():
    @sgl.function
    def program(s):
        s += sgl.gen(n=3) + sgl.gen("x")

    seen: list[Any] = []
    state = program.run(backend=sgl.ScriptedEndpoint(lambda prompt, node: seen.append(node["name"]) or "a"))
    with pytest.raises(KeyError, match=r"no value named None; names: 'x'"):
        state[None]  # pyright: ignore[reportArgumentType]
    assert state.text() == "aa" and seen == [None, "x"]  # nobody could read the others, so they are not drawn


# --- log-probabilities with text


@pytest.mark.parametrize("where", ["gen", "run"])
def test_log_probabilities_may_carry_the_tokens_text(where):
    asked = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}

    @sgl.function
    def program(s):
        s += "The sea is" + sgl.gen("x", 4, logprob_start_len=0, **(asked if where == "gen" else {}))

    with sgl.Engine() as engine:
        state = program.run(backend=engine, temperature=0, **(asked if where == "run" else {}))
        meta = state.get_meta_info("x")
    text = "".join(entry[2] for entry in meta["output_token_logprobs"])
    assert text.removesuffix("<|im_end|>").startswith(state["x"][:4])
    assert all(isinstance(entry[2], str) for row in meta["output_top_logprobs"] for entry in row)
    assert "".join(entry[2] for entry in meta["input_token_logprobs"]).endswith("The sea is")
    with pytest.raises(RequestError, match="return_text_in_logprobs must be true or false, got 1"):
        sgl.gen("x", return_text_in_logprobs=1)  # pyright: ignore[reportArgumentType]


# --- the constant prefix


def test_the_constant_prefix_is_computed_ahead():
    ran: list[Any] = []

    @sgl.function
    def few_shot(s, question, style="short"):
        ran.append(style)
        s += "Questions and answers, of the kind that is asked again and again.\n" + sgl.user(f"Be {style}.")
        s += "Q: " + question + "\nA:" + sgl.gen("answer", 4)

    with sgl.Engine() as engine:
        kept = few_shot.cache(engine)
        assert kept > 10 and ran == ["short"]
        assert few_shot.run("Why?", backend=engine).get_meta_info("answer")["cached_tokens"] >= kept - 2
        assert few_shot.bind(question="Why?").cache(engine) > kept < few_shot.cache(engine, question="Why?")


def test_the_prefix_ends_at_the_first_thing_that_is_not_known():
    prompts: list[str] = []
    endpoint = sgl.ScriptedEndpoint(lambda prompt, node: prompts.append(prompt) or "")

    @sgl.function
    def reads(s):
        s += "before" + sgl.gen("x")
        s += "after" + s["x"]

    @sgl.function
    async def awaits(s, what):
        s += "async"
        await s["x"] if len(what) else None

    @sgl.function
    def forks(s, /, items):
        s += "shared"
        for item in items:
            s += item

    @sgl.function
    def nothing(s):
        s += sgl.gen("x")

    @sgl.function
    def catches(s, what):
        s += "one"
        try:
            s += f"{what}"
        except Exception:
            s += "two"

    for program in (reads, awaits, forks, nothing, catches):
        program.cache(endpoint)
    assert prompts == ["before", "async", "shared", "one"]
    with pytest.raises(LookupError, match="mine"):
        sgl.function(_raises).cache(endpoint)
    with pytest.raises(RequestError, match="backend must be"):
        nothing.cache("http://x")


def _raises(s: sgl.ProgramState) -> None:
    s += "x"
    raise LookupError("mine")
