"""EngineConfig: every option of the engine, frozen, checked at birth. The command line is generated from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from stemma.lang.errors import RequestError

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
    max_total_tokens: int | None = _opt(None, "KV slots; default: what fits in memory, at least one full context")
    chunked_prefill_size: int = _opt(2048, "most prompt tokens computed in one step")
    schedule_policy: str = _opt(
        "lpm", "order of the waiting queue: longest prefix match, or first come", ("lpm", "fcfs")
    )
    schedule_conservativeness: float = _opt(
        0.3,
        "share of a running branch's remaining max_new_tokens kept free at admission; higher means fewer retractions",
    )
    disable_radix_cache: bool = _opt(False, "compute every prompt in full")
    grammar_backend: str = _opt(
        "native", "engine of constraints; the others are optional extras", ("native", "llguidance", "xgrammar")
    )
    grammar_workers: int = _opt(
        1, "processes that compile constraints; 0: a thread of the engine does, which can stall its steps"
    )
    disable_mask_overlap: bool = _opt(
        False, "work out constraint masks after the forward pass, not in a thread while it runs"
    )
    disable_jump_forward: bool = _opt(False, "sample forced tokens one by one")
    draft: str = _opt(
        "off",
        "tokens proposed ahead of sampling and verified in one step, which changes no output: 'forced' proposes how "
        "the text that a constraint forces is likely spelled",
        ("off", "forced"),
    )
    random_seed: int = _opt(0, "seed of dummy weights and of requests that give none")
    lease_seconds: float = _opt(60.0, "how long a program's branch may stay idle before its lease ends")
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
            "chunked_prefill_size",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} must be an integer >= 1, got {value!r}", param=name)
        if (
            isinstance(self.grammar_workers, bool)
            or not isinstance(self.grammar_workers, int)
            or self.grammar_workers < 0
        ):
            raise RequestError(
                f"grammar_workers must be an integer >= 0, got {self.grammar_workers!r}", param="grammar_workers"
            )
        if self.lease_seconds <= 0:
            raise RequestError(f"lease_seconds must be > 0, got {self.lease_seconds!r}", param="lease_seconds")
        if not 0.0 <= self.schedule_conservativeness <= 1.0:
            raise RequestError(
                f"schedule_conservativeness must be in [0, 1], got {self.schedule_conservativeness!r}",
                param="schedule_conservativeness",
            )

    @property
    def model_dir(self) -> Path:
        return DEMO_MODEL if self.model_path == "demo" else Path(self.model_path)

    @property
    def model_name(self) -> str:
        if self.served_model_name:
            return self.served_model_name
        return "stemma-demo" if self.model_path == "demo" else self.model_dir.name
