"""`@function(num_api_spec_tokens=N)`: fewer requests, the same values."""

import importlib.util

import pytest

from stemma import Anthropic, OpenAI, ProgramState, ScriptedEndpoint, assistant, function, gen, select, user
from stemma.interpreter.endpoints.speculation import Ahead, follows
from stemma.lang.errors import ProgramError, RequestError
from stemma.lang.params import SamplingParams
from tests.interpreter import services
from tests.interpreter.characters import characters

if importlib.util.find_spec("openai") is None:
    pytest.skip("openai is not installed", allow_module_level=True)


def character(s: ProgramState):
    s += (
        "Name:" + gen("name", stop="\n") + "\nBirthday:" + gen("birthday", stop="\n") + "\nJob:" + gen("job", stop="\n")
    )


plain = function(character)
ahead = function(num_api_spec_tokens=64)(character)
TEXT = " Ada Lovelace\nBirthday: 10 December 1815\nJob: Poet of numbers\nName: next"


def going_on(body) -> str:
    """A model that always writes the same text, wherever it is asked to go on."""
    whole = "Name:" + TEXT
    assert whole.startswith(body["prompt"]), body["prompt"]
    return whole[len(body["prompt"]) :]


@pytest.fixture
def service(start):
    return start(services.openai, going_on)


@pytest.fixture
def completions(service):
    endpoint = OpenAI("m", False, base_url=f"{service.url}/v1", encoding=characters())
    yield endpoint
    endpoint.close()


@pytest.fixture
def chat(service):
    endpoint = OpenAI("m", base_url=f"{service.url}/v1")
    yield endpoint
    endpoint.close()


def test_one_completion_serves_three_gens_with_the_same_values(service, completions):
    expected = plain.run(backend=completions).text()
    assert len(service.requests) == 3
    state = ahead.run(backend=completions)
    assert state.text() == expected == "Name: Ada Lovelace\nBirthday: 10 December 1815\nJob: Poet of numbers"
    assert len(service.requests) == 4
    assert service.bodies[3]["max_tokens"] == 128 and "stop" not in service.bodies[3]
    assert state.get_meta_info("job")["speculated"] and state.get_meta_info("job")["completion_tokens"] == 0
    assert state.usage()["prompt_tokens"] == state.get_meta_info("name")["prompt_tokens"]


def test_a_literal_that_does_not_follow_costs_another_request(service, completions):
    @function(num_api_spec_tokens=64)
    def program(s: ProgramState):
        s += "Name:" + gen("name", stop="\n") + "\nBirthday: 10" + gen("birthday", stop="\n")
        s += " and more" + gen("rest", stop="\n")

    service.reply = lambda body: TEXT if body["prompt"] == "Name:" else " new\n"
    state = program.run(backend=completions)
    assert (state["birthday"], state["rest"]) == (" December 1815", " new") and len(service.requests) == 2


def test_a_gen_that_cannot_be_cut_exactly_gets_its_own_request(service, completions):
    @function(num_api_spec_tokens=3)
    def program(s: ProgramState):
        s += "Name:" + gen("x", 2)

    state = program.run(backend=completions)
    assert state["x"] == " Ada Lovelace" and [b["max_tokens"] for b in service.bodies] == [3, 2]
    assert state.get_meta_info("x")["completion_tokens"] == 5


def test_forks_draw_their_own(service, completions):
    @function(num_api_spec_tokens=64)
    def program(s: ProgramState):
        s += "Name:" + gen("name", stop="\n")
        forks = s.fork(2)
        forks += "\nBirthday:" + gen("birthday", stop="\n")
        forks.join()

    program.run(backend=completions).sync()
    assert len(service.requests) == 3


def test_a_select_or_another_temperature_ends_what_was_written_ahead(service, completions):
    @function(num_api_spec_tokens=64)
    def program(s: ProgramState):
        s += "Name:" + gen("name", stop="\n") + "\nBirthday:" + gen("b", stop="\n", temperature=0.5)

    program.run(backend=completions).sync()
    assert len(service.requests) == 2

    @function(num_api_spec_tokens=64)
    def choosing(s: ProgramState):
        s += "Name:" + gen("name", stop="\n") + "\n" + select("which", ["Birthday", "Job"]) + ":" + gen("y", stop="\n")

    service.likes = ["B"]
    assert choosing.run(backend=completions)["y"] == " 10 December 1815"
    assert len(service.requests) == 5


def test_streaming_gives_each_value_in_one_piece(service, completions):
    state = ahead.run(backend=completions, stream=True)
    assert list(state.text_iter("job")) == [" Poet of numbers"] and len(service.requests) == 1


@function(num_api_spec_tokens=64)
def turn(s: ProgramState):
    s += user("A character, please.")
    s += assistant("Name:" + gen("name", stop="\n") + "\nBirthday:" + gen("birthday", stop="\n") + "\nWelcome.")
    s += user("Thanks.")


def test_a_chat_message_with_several_gens_is_one_request(service, chat):
    service.reply = lambda body: "Name: Ada\nBirthday: 1815\nWelcome."
    state = turn.run(backend=chat)
    assert (state["name"], state["birthday"]) == (" Ada", " 1815")
    assert state.messages()[1]["content"] == "Name: Ada\nBirthday: 1815\nWelcome."
    (body,) = service.bodies
    assert body["messages"] == [{"role": "user", "content": "A character, please."}] and "stop" not in body


def test_a_chat_answer_that_reads_otherwise_is_asked_for_again_and_then_an_error(service, chat):
    replies = iter(["Sure! Name: Ada", "Name: Bo\nBirthday: 1900\nWelcome."])
    service.reply = lambda body: next(replies)
    assert turn.run(backend=chat)["name"] == " Bo" and len(service.requests) == 2
    service.reply = lambda body: "Name: Ada and that is all"
    with pytest.raises(
        ProgramError, match=r"gen 'name' at .*3 answers did not read like .*Birthday:' should come next"
    ):
        turn.run(backend=chat)["name"]
    assert len(service.requests) == 5


def test_reading_a_value_inside_a_chat_message_does_not_hang(service, chat):
    @function(num_api_spec_tokens=64)
    def program(s: ProgramState):
        s += user("A character, please.")
        with s.assistant():
            s += "Name:" + gen("name", stop="\n")
            s += "\nBirthday of" + s.get_var("name", 5) + ":" + gen("birthday", stop="\n")
        return s["birthday"]

    service.reply = lambda body: "Name: Ada\nBirthday of Ada: 1815\n"
    assert program.run(backend=chat).ret_value == " 1815" and len(service.requests) == 1
    service.reply = lambda body: "Name: Ada\nBorn: 1815\n"
    with pytest.raises(ProgramError, match=r"gen 'birthday' at .*does not go on as the program does"):
        program.run(backend=chat)


def test_without_speculation_the_same_chat_message_is_refused(service, chat):
    with pytest.raises(ProgramError, match="num_api_spec_tokens"):
        function(turn.func).run(backend=chat)["name"]
    assert not service.requests


def test_a_service_that_goes_on_from_a_beginning_needs_no_whole_message(start):
    if importlib.util.find_spec("anthropic") is None:
        pytest.skip("anthropic is not installed")
    service = start(services.anthropic, lambda body: "Ada\nBirthday: 1815\nWelcome.")
    endpoint = Anthropic("m", api_key="k", base_url=service.url)
    state = turn.run(backend=endpoint)
    assert (state["name"], state["birthday"]) == ("Ada", " 1815") and len(service.requests) == 1
    assert service.bodies[0]["messages"][-1] == {"role": "assistant", "content": "Name:"}
    endpoint.close()


def test_endpoints_that_know_graphs_are_not_told(completions):
    scripted = ScriptedEndpoint({"name": "a", "birthday": "b", "job": "c"})
    assert ahead.run(backend=scripted)["job"] == "c"
    assert all("hints" not in delta for delta in scripted.deltas)


def test_binding_keeps_it_and_values_are_checked():
    assert ahead.bind(temperature=0).num_api_spec_tokens == 64
    for wrong in (0, -1, True, "8"):
        with pytest.raises(RequestError, match="num_api_spec_tokens"):
            function(num_api_spec_tokens=wrong)  # type: ignore[arg-type]


def no_cut(text: str, tokens: int) -> str | None:
    return None


def params(**given) -> SamplingParams:
    return SamplingParams(**given)


def test_a_value_longer_than_its_limit_is_cut_where_tokens_are_known():
    limited = params(max_new_tokens=3, stop=("\n",))
    assert Ahead("abcdef\n", limited, True).take(limited, no_cut) is None
    taken = Ahead("abcdef\n", limited, True).take(limited, lambda text, n: text[:n])
    assert taken == ("abc", {"type": "length", "length": 3})


def test_an_answer_that_ended_by_itself_gives_its_rest_to_the_last_gen():
    free = params(max_new_tokens=99)
    assert Ahead("the end", free, True).take(free, no_cut) == ("the end", {"type": "stop", "matched": None})
    assert Ahead("cut o", free, False).take(free, no_cut) is None


def test_gens_of_a_message_must_be_separable_and_alike():
    one, other = params(stop=("\n",)), params(stop=("\n",), temperature=0.5)
    assert follows(Ahead("a\nb", one, True), "", [one, "\n", one], no_cut) is None
    with pytest.raises(RequestError, match="same sampling parameters"):
        follows(Ahead("a\nb", one, True), "", [one, "\n", other], no_cut)
    with pytest.raises(RequestError, match="needs stop strings"):
        follows(Ahead("a\nb", params(), True), "", [params(), "\n", params()], no_cut)
