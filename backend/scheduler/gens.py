"""What a gen node becomes: its prompt is tokenised, its parameters are checked, and `Work` says what is to be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stemma.backend.messages import GenNode, LogprobOptions
from stemma.backend.scheduler.branch import Branch, Work
from stemma.lang.errors import RequestError
from stemma.lang.params import SamplingParams

if TYPE_CHECKING:
    from stemma.backend.scheduler.graph import Graph

MAX_TOP_LOGPROBS = 256  # alternatives at each position
MAX_IDS_LOGPROB = 1024  # token ids asked for at each position
MAX_PROMPT_LOGPROBS = 1 << 20  # log-probabilities told about one prompt; each is an object of the answer


def new_work(graph: Graph, branch: Branch, node: GenNode) -> Work:
    """Uses up the branch's literal tail. Raises RequestError naming the parameter."""
    params = SamplingParams.from_dict(node.params)
    base = branch.length
    graph.extend_ids(branch, graph.encode(branch, ()))
    length = branch.length
    if length == 0:
        raise RequestError("the prompt is empty: no text, no input_ids, and the model has no BOS token", param="text")
    work = Work(
        node=branch.cursor,
        params=params,
        prompt_len=length,
        fixed_len=length,
        base=base,
        limit=_limit(graph, length, params, explicit="max_new_tokens" in node.params),
        seed=graph.new_seed() if params.seed is None else params.seed,
        stop_ids=frozenset(params.stop_token_ids),
        stream=node.stream,
        logprobs=node.logprobs,
        t_start=graph.memory.clock(),
        kind=hash((params.max_new_tokens, params.stop, params.stop_token_ids, repr(node.constraint))),
    )
    for token, _ in params.logit_bias:
        if token >= graph.vocab_size:
            raise RequestError(f"logit_bias token ids must be < {graph.vocab_size}, got {token}", param="logit_bias")
    if node.logprobs is not None:
        _check_logprobs(node.logprobs, length, graph.vocab_size)
        if node.logprobs.start >= 0:
            work.match_limit = max(node.logprobs.start - 1, 0)
    if params.finish_in_budget and node.constraint is None:
        raise RequestError("finish_in_budget needs a constraint to finish", param="finish_in_budget")
    if params.stop or node.stream:
        work.text = graph.text.stream(params)
    return work


def _check_logprobs(options: LogprobOptions, length: int, vocab_size: int) -> None:
    """RequestError when more is asked about a prompt of so many tokens than is told."""
    if options.start > length:
        raise RequestError(
            f"logprob_start_len must be at most the prompt's {length} tokens, got {options.start}",
            param="logprob_start_len",
        )
    most = min(vocab_size, MAX_TOP_LOGPROBS)
    if not 0 <= options.top <= most:
        raise RequestError(f"top_logprobs_num must be in [0, {most}], got {options.top}", param="top_logprobs_num")
    if any(not 0 <= t < vocab_size for t in options.ids or ()):
        raise RequestError(
            f"token_ids_logprob must be in [0, {vocab_size}), got {options.ids}", param="token_ids_logprob"
        )
    asked = length - options.start if options.start >= 0 else 0
    each = 1 + options.top + len(options.ids or ())
    if len(options.ids or ()) > MAX_IDS_LOGPROB or asked * each > MAX_PROMPT_LOGPROBS:
        raise RequestError(
            f"{each} log-probabilities at each of {asked} prompt tokens are {asked * each}; the most are "
            f"{MAX_PROMPT_LOGPROBS} for a prompt and {MAX_IDS_LOGPROB} token_ids_logprob at a position: raise "
            "logprob_start_len, lower top_logprobs_num or ask for fewer ids",
            param="logprob_start_len" if asked else "token_ids_logprob",
        )


def _limit(graph: Graph, length: int, params: SamplingParams, explicit: bool) -> int:
    """The longest sequence that this generation may reach. Raises RequestError when it cannot even begin."""
    room = min(graph.context, graph.memory.slots.total)
    asked = params.max_new_tokens
    if length > graph.context or (length == graph.context and asked != 0):
        raise RequestError(
            f"The input ({length} tokens) is longer than the model's context length ({graph.context} tokens).",
            param="text",
        )
    if length > graph.memory.slots.total:
        raise RequestError(
            f"Input length ({length} tokens) exceeds the maximum allowed length "
            f"({graph.memory.slots.total} tokens). Start the engine with a larger max_total_tokens.",
            param="text",
        )
    if asked is None:
        return room
    if explicit and asked and length + asked > graph.context:
        raise RequestError(
            f"Requested token count exceeds the model's maximum context length of {graph.context} tokens. "
            f"You requested a total of {length + asked} tokens: {length} from the input and {asked} for the "
            "completion.",
            param="max_new_tokens",
        )
    return min(length + asked, room)
