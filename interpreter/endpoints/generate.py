"""Programs on a server that knows only `/generate`, such as SGLang's: the HTTP side of RuntimeEndpoint's fallback."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from stemma.interpreter.endpoints.asking import Answer, Asked, Call
from stemma.interpreter.endpoints.hosted import HostedEndpoint, given
from stemma.interpreter.endpoints.prompt import Prompt, Shape
from stemma.interpreter.endpoints.retry import CONNECT_SECONDS, Failed
from stemma.interpreter.endpoints.selecting import decided
from stemma.interpreter.endpoints.web import Reader, failed_request, failed_response, new_session
from stemma.lang.choices import needs_unconditional
from stemma.lang.errors import EndpointError

if TYPE_CHECKING:
    import requests

# names of SGLang's sampling_params where they differ from ours
_NAMES = {"seed": "sampling_seed"}
_HEALED = 3  # tokens before a choice that its text may merge with
_SPECIAL = frozenset("\\.^$*+?{}[]|()/-")
_LOGPROBS = (
    "output_token_logprobs",
    "input_token_logprobs",
    "output_top_logprobs",
    "input_top_logprobs",
    "output_token_ids_logprobs",
    "input_token_ids_logprobs",
)


class _HttpFailed(Exception):
    """A response with an error status."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(str(failed.error))
        self.failed = failed


class GenerateEndpoint(HostedEndpoint):
    """A server's `/generate`, with SGLang's names. Used by RuntimeEndpoint, which has the options."""

    takes = frozenset(
        {"min_new_tokens", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p", "frequency_penalty"}
        | {"presence_penalty", "repetition_penalty", "ignore_eos", "skip_special_tokens", "no_stop_trim", "seed"}
        | {"logit_bias"}
    )
    constraints = frozenset({"regex", "json_schema", "ebnf", "structural_tag", "choices"})

    def __init__(
        self, base_url: str, headers: dict[str, str], *, verify: bool | str | None = None, **options: Any
    ) -> None:
        self.base_url = base_url
        self._headers, self._verify = headers, verify
        super().__init__(base_url, **options)

    def __repr__(self) -> str:
        return f"RuntimeEndpoint({self.base_url!r}) by /generate"

    def _begin(self) -> None:
        super()._begin()
        self._threads: ThreadPoolExecutor | None = None
        self._session: requests.Session | None = None

    async def disconnect(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._session is not None:
            self._session.close()

    def failed(self, error: Exception) -> Failed:
        return error.failed if isinstance(error, _HttpFailed) else failed_request(error, self.base_url)

    def check_select(self, node: dict[str, Any], shape: Shape) -> None:
        return None  # every select can be scored

    def _check_logprobs(self, wanted: dict[str, Any]) -> None:
        return None  # all kinds are there

    # --- gen

    async def generate(self, prompt: Prompt, asked: Asked, call: Call) -> Answer:
        params = {_NAMES.get(name, name): value for name, value in given(asked.params, self.takes).items()}
        params["max_new_tokens"] = asked.params.max_new_tokens
        constraint = asked.constraint
        if constraint is not None and constraint.kind == "choices":
            params["regex"] = "(" + "|".join(_escaped(choice) for choice in constraint.value) + ")"
        elif constraint is not None:
            params[constraint.kind] = constraint.value
        body: dict[str, Any] = {"text": prompt.as_text(self.marker), "sampling_params": params}
        if asked.logprobs is not None:
            body |= {"return_logprob": True, "logprob_start_len": asked.logprobs.get("start", -1)}
            body["top_logprobs_num"] = asked.logprobs.get("top") or 0
            if asked.logprobs.get("text"):
                body["return_text_in_logprobs"] = True
            if asked.logprobs.get("ids") is not None:
                body["token_ids_logprob"] = asked.logprobs["ids"]
        item = await call.send(lambda: self._stream(body, call) if call.streams else self._ask(body))
        meta = item.get("meta_info") or {}
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise EndpointError(f"{self!r} aborted: {reason.get('message') or 'no reason given'}")
        more = {name: meta[name] for name in ("id", *_LOGPROBS) if meta.get(name) is not None}
        return Answer(str(item["text"]), reason, **_counts(meta), more=more)

    # --- select

    async def choose(self, prompt: Prompt, node: dict[str, Any], call: Call) -> Answer:
        """Score all choices in one batch.

        The text before them rides along: what its token ids and a choice's have in common is not the choice, even
        where a token spans the border.
        """
        before, choices, method = prompt.as_text(self.marker), node["choices"], node["method"]
        length, start, usage = 0, 0, {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0}

        def score(inputs: dict[str, Any], start: int) -> dict[str, Any]:
            params = {"max_new_tokens": 0, "temperature": 0.0}
            return {**inputs, "sampling_params": params, "return_logprob": True, "logprob_start_len": start}

        if before:
            primed = await call.send(lambda: self._ask({"text": before, "sampling_params": {"max_new_tokens": 0}}))
            length = primed["meta_info"]["prompt_tokens"]
            start = max(length - _HEALED - 1, 0)
        texts = [*([before] if before else []), *(before + choice for choice in choices)]
        items = await call.send(lambda: self._ask(score({"text": texts}, start)))
        rows = [item["meta_info"]["input_token_logprobs"] for item in items]
        for item in items:
            for name, value in _counts(item["meta_info"]).items():
                usage[name] += value or 0
        common = rows.pop(0) if before else []
        scored = [_beyond(common, row) for row in rows]
        free = None
        if needs_unconditional(method):
            ids = [[entry[1] for entry in row] for row in scored]
            found = await call.send(lambda: self._ask(score({"input_ids": ids}, 0)))
            free = [[entry[0] for entry in item["meta_info"]["input_token_logprobs"]] for item in found]
        rows = [[entry[0] for entry in row] for row in scored]
        chosen, more = decided(node, rows, free, [[entry[1] for entry in row] for row in scored])
        more["input_token_logprobs"] = scored
        usage["prompt_tokens"] = max(length, usage["prompt_tokens"])
        return Answer(choices[chosen], None, **usage, more=more)

    # --- HTTP, on a bounded pool of threads

    async def _ask(self, body: dict[str, Any]) -> Any:
        return await self._on_thread(body, lambda response, _: response.json())

    async def _stream(self, body: dict[str, Any], call: Call) -> Any:
        loop = asyncio.get_running_loop()

        def read(response: requests.Response, gone: Callable[[], bool]) -> Any:
            item: dict[str, Any] = {}
            shown = ""
            for line in Reader(response).lines():
                data = line.removeprefix(b"data:").strip()
                if gone() or data == b"[DONE]":
                    break
                item = json.loads(data)
                if "error" in item:
                    raise EndpointError(f"{self!r}: {(item['error'] or {}).get('message') or item['error']}")
                text = str(item.get("text") or "")  # all so far
                if len(text) > len(shown):
                    loop.call_soon_threadsafe(call.text, text[len(shown) :])
                    shown = text
            if not (item.get("meta_info") or {}).get("finish_reason"):
                raise EndpointError(f"{self!r} ended the stream before the answer was finished")
            return item

        return await self._on_thread({**body, "stream": True}, read)

    async def _on_thread(self, body: dict[str, Any], read: Callable[[Any, Callable[[], bool]], Any]) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.max_in_flight, "stemma-generate")
            self._session = new_session(self._headers, self.max_in_flight, self._verify)
        session, url, gone = self._session, f"{self.base_url}/generate", False
        assert session is not None
        batch = len(next(v for k, v in body.items() if k in ("text", "input_ids"))) if _is_batch(body) else None
        rids = [f"stemma-{uuid.uuid4().hex}" for _ in range(batch or 1)]
        body = {**body, "rid": rids if batch else rids[0]}

        def exchange() -> Any:
            timeout = (CONNECT_SECONDS, self.timeout)
            with session.post(url, json=body, stream=True, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise _HttpFailed(failed_response(response, f"POST {url}"))
                return read(response, lambda: gone)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, exchange)
        except asyncio.CancelledError:
            gone = True
            self._abort(rids)
            raise

    def _abort(self, rids: list[str]) -> None:
        """Tell the server, without waiting: on a thread of its own, since those of the pool may all be waiting."""
        session, url = self._session, f"{self.base_url}/abort_request"

        def tell() -> None:
            for rid in rids:
                try:
                    if session is not None:
                        session.post(url, json={"rid": rid}, timeout=CONNECT_SECONDS).close()
                except Exception:  # readers have their CancelledError; a server that is gone generates nothing
                    return

        asyncio.get_running_loop().run_in_executor(None, tell)


def _is_batch(body: dict[str, Any]) -> bool:
    return isinstance(body.get("text"), list) or "input_ids" in body


def _beyond(common: list[Any], row: list[Any]) -> list[Any]:
    """The entries of `row` after the ids that it shares with `common`."""
    same = 0
    while same < min(len(common), len(row)) and common[same][1] == row[same][1]:
        same += 1
    return row[same:]


def _counts(meta: dict[str, Any]) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "cached_tokens")
    return {name: meta.get(name) or 0 for name in names}


def _escaped(text: str) -> str:
    """A literal as a regular expression, in the dialect of any grammar engine."""
    return "".join("\\" + c if c in _SPECIAL else {"\n": "\\n", "\t": "\\t"}.get(c, c) for c in text)
