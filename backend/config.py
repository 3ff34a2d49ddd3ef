"""EngineConfig: every option of the engine, frozen, checked at birth. The command line is generated from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stemma.lang.errors import RequestError

MAX_PAGE = 256  # tokens
DEMO_MODEL = Path(__file__).parent / "demo_model"


def _opt(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of one engine. Rooms receive values from it, never the config itself."""

    model_path: str = _opt(
        "demo", "directory in Hugging Face form (config.json, *.safetensors, tokenizer.json), or 'demo'"
    )
    served_model_name: str | None = _opt(None, "name shown by /v1/models; default: the directory's name")
    load_format: str = _opt(
        "auto", "'auto' reads the weights; 'dummy' makes random ones from config.json", ("auto", "dummy")
    )
    dtype: str = _opt("auto", "'auto': float32 on CPU, bfloat16 on GPU", ("auto", "float32", "bfloat16"))
    device: str = _opt("auto", "where the model runs; 'auto': an NVIDIA GPU if there is one", ("auto", "cpu", "cuda"))
    context_length: int | None = _opt(None, "longest sequence in tokens; default: the model's")
    max_running_requests: int = _opt(256, "most branches in one step")
    max_total_tokens: int | None = _opt(
        None, "KV slots, rounded down to whole pages; default: what fits in memory, at least one full context"
    )
    page_size: int = _opt(
        1, "tokens in a page of the KV pool, a power of two up to 256; only whole pages are shared between prompts"
    )
    mem_fraction_static: float | None = _opt(
        None,
        "share of the free memory for weights and KV pool, where max_total_tokens is not given; default on CPU: a "
        "quarter of what is free beside the weights, at most 1 GiB, for the pool",
    )
    chunked_prefill_size: int = _opt(2048, "most prompt tokens computed in one step; -1: prompts are not cut")
    max_prefill_tokens: int = _opt(
        16384, "most prompt tokens of the requests that one step admits, cached ones aside; a longer one comes alone"
    )
    disable_same_step_sharing: bool = _opt(
        False, "requests wait for a prefix that another one computes in this step, instead of using it at once"
    )
    disable_mixed_chunk: bool = _opt(
        False, "no decoding in steps that compute prompts: prompts first, running requests wait"
    )
    schedule_policy: str = _opt(
        "program",
        "order of the waiting queue: finish programs; longest cached prefix; first come; depth-first in the prefix "
        "cache by waiting requests; at random; longest output first",
        ("program", "lpm", "fcfs", "dfs-weight", "random", "lof"),
    )
    schedule_conservativeness: float = _opt(
        1.0,
        "times how much longer than expected an output is taken to be at admission; higher means fewer retractions "
        "and fewer branches at once, 0 expects next to nothing",
    )
    disable_radix_cache: bool = _opt(False, "compute every prompt in full")
    radix_eviction_policy: str = _opt(
        "lru",
        "which cached prefix is given up first: the least recently used, the least often used, or 'slru': those used "
        "fewer than two times, then the others",
        ("lru", "lfu", "slru"),
    )
    host_cache_tokens: int = _opt(
        0, "tokens evicted from the KV pool that are kept in host memory and copied back when that is cheaper; 0: none"
    )
    host_cache_path: str | None = _opt(
        None, "an existing directory, on a fast disk, where they are kept in an unnamed file instead of memory"
    )
    grammar_backend: str = _opt(
        "native", "engine of constraints; the others are optional extras", ("native", "llguidance", "xgrammar")
    )
    grammar_workers: int = _opt(
        1, "processes that compile constraints; 0: a thread of the engine does, which can stall its steps"
    )
    grammar_cache_mb: int = _opt(256, "MiB of compiled constraints that are kept for when they come again")
    disable_mask_overlap: bool = _opt(
        False, "work out constraint masks after the forward pass, not in a thread while it runs"
    )
    disable_jump_forward: bool = _opt(False, "sample forced tokens one by one")
    overlap_schedule: str = _opt(
        "auto",
        "plan and launch each step before the results of the one before it are known, which changes no output; 'auto': "
        "'on' on GPU, 'off' on CPU",
        ("auto", "on", "off"),
    )
    disable_family_attention: bool = _opt(
        False, "attention reads the prefix that running requests share once for each of them, not once for all"
    )
    draft: str = _opt(
        "off",
        "tokens proposed ahead of sampling and verified in one step, which changes no output: 'forced' proposes how "
        "the text that a constraint forces is likely spelled, 'ngram' also what followed the last tokens where they "
        "occurred before, 'auto' both as far as it pays",
        ("off", "forced", "ngram", "auto"),
    )
    random_seed: int = _opt(0, "seed of dummy weights and of requests that give none")
    lease_seconds: float = _opt(60.0, "how long a program's branch may stay idle before its lease ends")
    max_queued_requests: int | None = _opt(
        None,
        "most branches that may wait for a row; more are refused with status 429. 0: no limit. Default: no limit in "
        "process, 64 times max_running_requests on a server",
    )
    watchdog_timeout: float = _opt(
        300.0,
        "seconds that one step may take before the engine counts as stuck: the stacks of all threads go to stderr, "
        "waiting callers get an error, a server restarts the engine. 0: no watchdog",
    )
    drain_timeout: float = _opt(
        25.0, "seconds that running requests may go on when the engine or server is told to stop; then they fail"
    )
    num_threads: int | None = _opt(None, "CPU threads of one operation; default: the physical cores")

    def __post_init__(self) -> None:
        for f in fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            if choices and value not in choices:
                raise RequestError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}", param=f.name)
        for name in (
            "context_length",
            "max_running_requests",
            "max_total_tokens",
            "max_prefill_tokens",
            "grammar_cache_mb",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} must be an integer >= 1, got {value!r}", param=name)
        size = self.page_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_PAGE or size & (size - 1):
            raise RequestError(f"page_size must be a power of two in [1, {MAX_PAGE}], got {size!r}", param="page_size")
        if self.max_total_tokens is not None and self.max_total_tokens < self.page_size:
            raise RequestError(
                f"max_total_tokens must be at least one page of {self.page_size} tokens (page_size), got "
                f"{self.max_total_tokens}",
                param="max_total_tokens",
            )
        host = self.host_cache_tokens
        if isinstance(host, bool) or not isinstance(host, int) or host < 0 or 0 < host < self.page_size:
            raise RequestError(
                f"host_cache_tokens must be 0 or an integer of at least one page ({self.page_size}), got {host!r}",
                param="host_cache_tokens",
            )
        if host and self.disable_radix_cache:
            raise RequestError(
                f"host_cache_tokens={host} needs the radix cache, which disable_radix_cache turns off",
                param="host_cache_tokens",
            )
        if self.host_cache_path is not None and not host:
            raise RequestError(
                f"host_cache_path={self.host_cache_path!r} needs host_cache_tokens", param="host_cache_path"
            )
        if self.disable_radix_cache and self.radix_eviction_policy != "lru":
            raise RequestError(
                f"radix_eviction_policy={self.radix_eviction_policy!r} needs the radix cache, which "
                "disable_radix_cache turns off",
                param="radix_eviction_policy",
            )
        if (
            isinstance(self.grammar_workers, bool)
            or not isinstance(self.grammar_workers, int)
            or self.grammar_workers < 0
        ):
            raise RequestError(
                f"grammar_workers must be an integer >= 0, got {self.grammar_workers!r}", param="grammar_workers"
            )
        queued = self.max_queued_requests
        if queued is not None and (isinstance(queued, bool) or not isinstance(queued, int) or queued < 0):
            raise RequestError(
                f"max_queued_requests must be an integer >= 0, got {queued!r}", param="max_queued_requests"
            )
        for name in ("watchdog_timeout", "drain_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise RequestError(f"{name} must be a number of seconds >= 0, got {value!r}", param=name)
        if self.lease_seconds <= 0:
            raise RequestError(f"lease_seconds must be > 0, got {self.lease_seconds!r}", param="lease_seconds")
        chunk = self.chunked_prefill_size
        if isinstance(chunk, bool) or not isinstance(chunk, int) or (chunk < 1 and chunk != -1):
            raise RequestError(
                f"chunked_prefill_size must be an integer >= 1, or -1 for no cutting, got {chunk!r}",
                param="chunked_prefill_size",
            )
        share = self.mem_fraction_static
        if share is not None and (
            isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.0 < share < 1.0
        ):
            raise RequestError(
                f"mem_fraction_static must be between 0 and 1, both excluded, got {share!r}",
                param="mem_fraction_static",
            )
        given = self.schedule_conservativeness
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0.0 <= given < math.inf:
            raise RequestError(
                f"schedule_conservativeness must be a number >= 0, got {given!r}", param="schedule_conservativeness"
            )

    @property
    def model_dir(self) -> Path:
        return DEMO_MODEL if self.model_path == "demo" else Path(self.model_path)

    @property
    def model_name(self) -> str:
        if self.served_model_name:
            return self.served_model_name
        return "stemma-demo" if self.model_path == "demo" else self.model_dir.name
