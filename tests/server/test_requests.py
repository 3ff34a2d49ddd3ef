"""A /generate body becomes programs, and events become results."""

from __future__ import annotations

import json

import pytest

from stemma.backend.messages import GenNode, IdsNode, TextNode, error_object, parse_delta
from stemma.backend.requests import (
    FIELDS,
    UNSUPPORTED,
    UNSUPPORTED_SAMPLING,
    Collector,
    GenerateRequest,
    error_from_event,
)
from stemma.lang.errors import CancelledError, ConstraintError, EndpointError, EngineDeadError, RequestError


def parse(**body) -> GenerateRequest:
    return GenerateRequest.parse(body)


def done(text="x", ids=(1,), branch="r", node=1, **meta):
    return {"event": "done", "branch": branch, "node": node, "text": text, "ids": list(ids), "meta": meta}


def test_one_prompt_is_one_branch():
    (delta,) = parse(text="hi", sampling_params={"max_new_tokens": 3, "regex": "a+"}, stream=True).deltas()
    (branch,) = delta.branches
    assert delta.end and branch.end and branch.id == "r"
    assert branch.nodes == [
        TextNode("hi"),
        GenNode({"max_new_tokens": 3}, {"kind": "regex", "value": "a+"}, None, True),
    ]


def test_ids_prompt():
    (delta,) = parse(input_ids=[1, 2]).deltas()
    assert delta.branches[0].nodes[0] == IdsNode([1, 2])


def test_n_forks_and_gives_each_child_its_seed():
    (delta,) = parse(text="hi", sampling_params={"n": 3, "seed": 5}).deltas()
    assert [(b.id, b.parent, b.at, b.end) for b in delta.branches] == [
        ("r", None, 0, True), ("r.0", "r", 1, True), ("r.1", "r", 1, True), ("r.2", "r", 1, True)
    ]  # fmt: skip
    assert [b.nodes[0].params["seed"] for b in delta.branches[1:] if isinstance(b.nodes[0], GenNode)] == [5, 6, 7]


def test_without_a_seed_the_children_have_none():
    (delta,) = parse(text="hi", sampling_params={"n": 2}).deltas()
    assert all(isinstance(b.nodes[0], GenNode) and "seed" not in b.nodes[0].params for b in delta.branches[1:])


def test_deltas_survive_the_wire():
    import msgspec

    for delta in parse(text=["a", "b"], sampling_params={"n": 2, "logit_bias": {"3": 1}, "stop": "x"}).deltas():
        assert parse_delta(msgspec.json.encode(delta)) == delta


def test_batch_values_are_spread():
    request = parse(
        text=["a", "b"],
        sampling_params=[{"temperature": 0}, None],
        return_logprob=[True, False],
        top_logprobs_num=[2, None],
        logprob_start_len=[0, -1],
        token_ids_logprob=[[7], None],
        rid=["x", "y"],
    )
    first, second = request.items
    assert (first.rid, first.params.greedy, second.params.temperature) == ("x", True, 1.0)
    assert first.logprobs is not None and (first.logprobs.start, first.logprobs.top, first.logprobs.ids) == (0, 2, [7])
    assert second.logprobs is None
    shared = parse(text=["a", "b"], return_logprob=True, token_ids_logprob=[4, 5])
    assert [i.logprobs.ids for i in shared.items if i.logprobs] == [[4, 5], [4, 5]]


def test_programs_are_unique_even_when_rids_repeat():
    assert parse(text="a", rid="x").items[0].program != parse(text="a", rid="x").items[0].program


BAD = {
    "neither": ({}, "exactly one of text and input_ids"),
    "both": ({"text": "a", "input_ids": [1]}, "exactly one of text and input_ids"),
    "text int": ({"text": 3}, "text must be a string"),
    "text mixed": ({"text": ["a", 3]}, "text must be a string"),
    "text object": ({"text": {}}, "text must be a string"),
    "text empty batch": ({"text": []}, "text must not be empty"),
    "ids empty": ({"input_ids": []}, "input_ids must not be empty"),
    "ids inner empty": ({"input_ids": [[1], []]}, "input_ids must not be empty"),
    "ids string": ({"input_ids": "abc"}, "input_ids must be a list of token ids"),
    "ids bool": ({"input_ids": [True]}, "input_ids must be a list of token ids"),
    "ids negative": ({"input_ids": [-1]}, "input_ids must be a list of token ids"),
    "ids huge": ({"input_ids": [2**40]}, "input_ids must be a list of token ids"),
    "ids mixed": ({"input_ids": [[1], 2]}, "input_ids must be a list of token ids"),
    "params list for one": ({"text": "a", "sampling_params": [{}]}, "sampling_params must be an object"),
    "params string": ({"text": "a", "sampling_params": "x"}, "sampling_params must be an object"),
    "params short": ({"text": ["a", "b"], "sampling_params": [{}]}, "1 entries for 2 prompts"),
    "unknown param": ({"text": "a", "sampling_params": {"temprature": 1}}, "did you mean 'temperature'"),
    "range": ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p must be in (0, 1], got 0"),
    "max_new_tokens": ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens must be an integer"),
    "logit_bias list": ({"text": "a", "sampling_params": {"logit_bias": [5]}}, "logit_bias must be an object"),
    "n zero": ({"text": "a", "sampling_params": {"n": 0}}, "n must be an integer >= 1"),
    "n bool": ({"text": "a", "sampling_params": {"n": True}}, "n must be an integer >= 1"),
    "n differs": ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "n must be the same"),
    "regex type": ({"text": "a", "sampling_params": {"regex": 5}}, "regex must be a string"),
    "rid list for one": ({"text": "a", "rid": ["x"]}, "rid must be a string"),
    "rid string for batch": ({"text": ["a"], "rid": "x"}, "rid must be a list"),
    "rid empty": ({"text": "a", "rid": ""}, "non-empty strings"),
    "rid repeated": ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid must be unique"),
    "rid count": ({"text": ["a", "b"], "rid": ["x"]}, "1 entries for 2 prompts"),
    "stream": ({"text": "a", "stream": "yes"}, "stream must be true or false"),
    "log_metrics": ({"text": "a", "log_metrics": 1}, "log_metrics must be true or false"),
    "return_text": ({"text": "a", "return_text_in_logprobs": 1}, "return_text_in_logprobs must be"),
    "return_logprob": ({"text": "a", "return_logprob": 1}, "return_logprob must be true or false"),
    "return_logprob list": ({"text": "a", "return_logprob": [True]}, "return_logprob must be true or false"),
    "start": ({"text": "a", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len must be an integer"),
    "top": ({"text": "a", "return_logprob": True, "top_logprobs_num": "2"}, "top_logprobs_num must be an integer"),
    "ids": ({"text": "a", "return_logprob": True, "token_ids_logprob": 5}, "token_ids_logprob must be a list"),
    "top alone": ({"text": "a", "top_logprobs_num": 2}, "top_logprobs_num needs return_logprob"),
    "misplaced": ({"text": "a", "temperature": 0}, "temperature belongs inside sampling_params"),
    "misspelt": ({"text": "a", "sampling_param": {}}, "did you mean 'sampling_params'"),
    "structural and regex": (
        {"text": "a", "sampling_params": {"regex": "a", "structural_tag": "{}"}},
        "structural_tag cannot be combined with regex",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_are_request_errors_with_the_reason(name):
    body, message = BAD[name]
    with pytest.raises(RequestError) as caught:
        GenerateRequest.parse(body)
    assert message in str(caught.value)


def test_the_exact_message_of_two_constraints():
    with pytest.raises(RequestError, match=r"^Only one of regex, json_schema, or ebnf can be set\.$"):
        parse(text="a", sampling_params={"regex": "a", "ebnf": "root ::= 'a'"})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lenient": True}, "lenient=True needs json_schema"),
        ({"whitespace": "any", "regex": "a"}, "whitespace='any' is for json_schema"),
        ({"lenient": "yes", "json_schema": "{}"}, "lenient must be true or false, got 'yes'"),
    ],
)
def test_options_need_a_constraint_that_has_them(params, message):
    with pytest.raises(RequestError, match=message):
        parse(text="a", sampling_params=params)
    parse(text="a", sampling_params={"lenient": False, "whitespace": None})


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_fields_are_refused_by_name_but_may_be_null(field):
    parse(text="a", **{field: None})
    parse(text=["a", "b"], **{field: [None, None]})
    for value in ("x", ["x"], {"id": "x"}, 1, True):
        with pytest.raises(RequestError, match=f"^{field} is not supported by this version"):
            parse(text="a", **{field: value})


@pytest.mark.parametrize("field", UNSUPPORTED_SAMPLING)
def test_unsupported_sampling_fields_are_refused_by_name(field):
    parse(text="a", sampling_params={field: None})
    with pytest.raises(RequestError, match=f"^{field} is not supported by this version"):
        parse(text="a", sampling_params={field: 5})


JUNK = [None, True, -3, 2.5, float("nan"), "s", [], [None], [1, "a"], [[]], {}, {"a": 1}, [{}], 10**30, "\ud800"]


@pytest.mark.parametrize("field", [*FIELDS, *UNSUPPORTED])
def test_no_value_of_any_field_raises_anything_but_request_error(field):
    for value in JUNK:
        for base in ({"text": "a"}, {"text": ["a", "b"]}):
            try:
                GenerateRequest.parse({**base, field: value}).deltas()
            except RequestError as error:
                assert str(error)


def test_body_must_be_an_object():
    with pytest.raises(RequestError, match="must be an object"):
        GenerateRequest.parse([])  # type: ignore[arg-type]


# Results


def test_single_result_has_the_documented_form():
    collector = Collector(parse(text="hi", rid="q"))
    meta = {"prompt_tokens": 2, "completion_tokens": 1, "cached_tokens": 0, "finish_reason": {"type": "stop"}}
    assert collector.feed(0, done(" ok", [5], **meta)) == 0
    assert collector.done
    assert collector.result() == {"text": " ok", "output_ids": [5], "meta_info": {"id": "q", **meta}}


def test_batches_and_samples_are_flat_and_request_major():
    collector = Collector(parse(text=["a", "b"], rid=["x", "y"], sampling_params={"n": 2}))
    for item, branch, text in ((1, "r.1", "b1"), (0, "r.1", "a1"), (1, "r.0", "b0"), (0, "r.0", "a0")):
        assert not collector.done
        collector.feed(item, done(text, branch=branch, node=0))
    result = collector.result()
    assert isinstance(result, list)
    assert [(r["text"], r["meta_info"]["id"]) for r in result] == [
        ("a0", "x_0"), ("a1", "x_1"), ("b0", "y_0"), ("b1", "y_1")
    ]  # fmt: skip


@pytest.mark.parametrize(("body", "is_list"), [({"text": "a"}, False), ({"text": ["a"]}, True)])
def test_a_list_prompt_gives_a_list(body, is_list):
    collector = Collector(GenerateRequest.parse(body))
    collector.feed(0, done())
    assert isinstance(collector.result(), list) == is_list


def test_streamed_text_is_cumulative_and_indexed_in_a_batch():
    collector = Collector(parse(text=["a", "b"], stream=True))
    for text in ("x", "y"):
        event = {"event": "delta", "branch": "r", "node": 1, "text": text, "ids": [1], "meta": {"prompt_tokens": 4}}
        assert collector.feed(1, event) == 1
    item = collector.stream_item(1)
    assert (item["text"], item["index"], item["output_ids"]) == ("xy", 1, [1, 1])
    assert item["meta_info"]["finish_reason"] is None and item["meta_info"]["prompt_tokens"] == 4
    assert item["meta_info"]["completion_tokens"] == 2
    assert "index" not in Collector(parse(text="a")).stream_item(0)


def test_logprobs_of_deltas_grow():
    collector = Collector(parse(text="a", stream=True, return_logprob=True))
    for i in range(2):
        meta = {"output_token_logprobs": [[-0.5, i, None]]}
        collector.feed(0, {"event": "delta", "branch": "r", "node": 1, "text": "x", "ids": [i], "meta": meta})
    assert collector.item(0)["meta_info"]["output_token_logprobs"] == [[-0.5, 0, None], [-0.5, 1, None]]


def test_text_in_logprobs():
    request = parse(text="a", return_logprob=True, return_text_in_logprobs=True)
    collector = Collector(request, lambda i: f"t{i}")
    tops = [[[-0.5, 1, None], [-0.6, 2, None], [-0.7, 3, None]], None]
    collector.feed(0, done(output_token_logprobs=[[-0.5, 1, None], [None, 2, None]], output_top_logprobs=tops))
    meta = collector.item(0)["meta_info"]
    assert meta["output_token_logprobs"] == [[-0.5, 1, "t1"], [None, 2, "t2"]]
    assert meta["output_top_logprobs"] == [[[-0.5, 1, "t1"], [-0.6, 2, "t2"], [-0.7, 3, "t3"]], None]


def test_events_of_literal_nodes_and_late_events_change_nothing():
    collector = Collector(parse(text="a"))
    assert collector.feed(0, {"event": "text", "branch": "r", "node": 0, "text": "<s>"}) is None
    assert collector.feed(0, {"event": "error", "branch": "r", "node": 0, "error": {}}) is None
    collector.feed(0, done("x"))
    assert collector.feed(0, done("y")) is None and collector.item(0)["text"] == "x"


def test_cancelled_is_an_abort_with_the_text_so_far():
    collector = Collector(parse(text="a", stream=True))
    collector.feed(0, {"event": "delta", "branch": "r", "node": 1, "text": "so far", "ids": [1]})
    collector.feed(0, {"event": "error", "branch": "r", "node": 1, "error": error_object(CancelledError("gone"))})
    item = collector.result()
    assert isinstance(item, dict)
    assert (item["text"], item["meta_info"]["finish_reason"]) == ("so far", {"type": "abort", "message": "gone"})


@pytest.mark.parametrize(
    "error",
    [
        RequestError("bad", param="text", status=413),
        ConstraintError("no", param="regex"),
        CancelledError("c"),
        EngineDeadError("d"),
        EndpointError("e", status=502),
    ],
)
def test_errors_survive_the_wire(error):
    event = json.loads(json.dumps({"event": "error", "error": error_object(error)}))
    back = error_from_event(event)
    assert type(back) is type(error) and str(back) == str(error)
    assert getattr(back, "param", None) == getattr(error, "param", None)
    assert getattr(back, "status", None) == getattr(error, "status", None)


def test_unknown_errors_become_endpoint_errors():
    assert error_object(KeyError("x"))["type"] == "EndpointError"
    back = error_from_event({"error": {"type": "Strange", "message": "m"}})
    assert isinstance(back, EndpointError) and back.status == 500
