"""Stemma: a structured-generation language compiled onto its own serving engine.

Public names load lazily, so `import stemma` stays light: no torch, no numpy, no HTTP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it
_NAMES = {
    "function": "interpreter.program",
    "set_default_backend": "interpreter.default_endpoint",
    "flush_cache": "interpreter.default_endpoint",
    "get_server_info": "interpreter.default_endpoint",
    "gen": "lang.api",
    "gen_int": "lang.api",
    "gen_string": "lang.api",
    "select": "lang.api",
    "system": "lang.api",
    "user": "lang.api",
    "assistant": "lang.api",
    "system_begin": "lang.api",
    "system_end": "lang.api",
    "user_begin": "lang.api",
    "user_end": "lang.api",
    "assistant_begin": "lang.api",
    "assistant_end": "lang.api",
    "separate_reasoning": "lang.api",
    "image": "lang.media",
    "video": "lang.media",
    "Tool": "lang.tools",
    "describe_tools": "lang.tools",
    "tool_result": "interpreter.tools",
    "ToolCall": "interpreter.tools",
    "Event": "interpreter.events",
    "NodeEvent": "interpreter.events",
    "NodeStarted": "interpreter.events",
    "NodeDelta": "interpreter.events",
    "NodeFinished": "interpreter.events",
    "NodeFailed": "interpreter.events",
    "Forked": "interpreter.events",
    "Joined": "interpreter.events",
    "ToolStarted": "interpreter.events",
    "ToolFinished": "interpreter.events",
    "ProgramEnded": "interpreter.events",
    "Reasoning": "lang.reasoning",
    "ChoicesSamplingMethod": "lang.choices",
    "ChoicesDecision": "lang.choices",
    "regex": "lang.compose",
    "literal": "lang.compose",
    "choice": "lang.compose",
    "json": "lang.compose",
    "ebnf": "lang.compose",
    "sequence": "lang.compose",
    "repeat": "lang.compose",
    "optional": "lang.compose",
    "capture": "lang.compose",
    "Regex": "lang.bounds",
    "token_length_normalized": "lang.choices",
    "greedy_token_selection": "lang.choices",
    "unconditional_likelihood_normalized": "lang.choices",
    "SamplingParams": "lang.params",
    "Constraint": "lang.params",
    "StemmaError": "lang.errors",
    "ProgramError": "lang.errors",
    "TruncatedError": "lang.errors",
    "RequestError": "lang.errors",
    "ConstraintError": "lang.errors",
    "EndpointError": "lang.errors",
    "CancelledError": "lang.errors",
    "EngineDeadError": "lang.errors",
    "DeadlineError": "lang.errors",
    "ReplayError": "lang.errors",
    "BudgetError": "lang.errors",
    "Program": "interpreter.program",
    "get_default_backend": "interpreter.default_endpoint",
    "ProgramState": "interpreter.state",
    "ProgramStateGroup": "interpreter.group",
    "AsyncProgramState": "interpreter.async_state",
    "AsyncProgramStateGroup": "interpreter.async_state",
    "Batch": "interpreter.batch",
    "BatchRecord": "interpreter.checkpoint",
    "Budget": "interpreter.budget",
    "Endpoint": "interpreter.endpoints.base",
    "RuntimeEndpoint": "interpreter.endpoints.runtime",
    "Runtime": "interpreter.endpoints.server_process",
    "ScriptedEndpoint": "interpreter.endpoints.scripted",
    "OpenAI": "interpreter.endpoints.openai",
    "Anthropic": "interpreter.endpoints.anthropic",
    "LiteLLM": "interpreter.endpoints.litellm",
    "Gemini": "interpreter.endpoints.gemini",
    "VertexAI": "interpreter.endpoints.gemini",
    "ReplayEndpoint": "interpreter.replay",
    "Record": "interpreter.replay",
    "ProgramGraph": "interpreter.graph",
    "Plan": "interpreter.explain",
    "Trace": "interpreter.trace",
    "total_usage": "interpreter.usage",
    "Engine": "backend.engine",
}

# `from stemma import *` must not hide the standard library's json
__all__ = ["__version__", *(n for n in _NAMES if n != "json")]  # pyright: ignore[reportUnsupportedDunderAll]


_TEMPLATES = "an engine takes the model's own template; endpoints without one take chat_template="

# names of SGLang that are not here, and what there is instead
_ELSEWHERE = {
    "global_config": "give the options to run(…), and set_default_backend(x) instead of default_backend",
    "ServerArgs": "Engine(…) and Runtime(…) take the options as keywords; `stemma serve --help` lists them",
    "Crusoe": "it speaks OpenAI's API: OpenAI(model, base_url=…, api_key=…)",
    "Shortfin": "it speaks HTTP: RuntimeEndpoint(url)",
    "compile": "nothing has to be compiled; prog.trace(…) gives the graph",
    "pin": "prog.cache(…) computes a program's constant prefix ahead; an engine keeps what is used",
    "unpin": "flush_cache() empties the cache",
    "BaseBackend": "subclass Endpoint",
    "SglFunction": "Program",
    "register_chat_template": _TEMPLATES,
    "get_chat_template": _TEMPLATES,
    "get_chat_template_by_model_path": _TEMPLATES,
    "register_chat_template_matching_function": _TEMPLATES,
    "ChatTemplate": "a dict of role: (text before, text after), as chat_template= of an endpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        if name in _ELSEWHERE:
            raise AttributeError(f"stemma has no {name!r}: {_ELSEWHERE[name]}")
        raise AttributeError(f"module 'stemma' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"stemma.{_NAMES[name]}")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.split(".")[0] == "stemma":
            raise
        raise ImportError(
            f"stemma.{name} needs the package {missing!r}, which the light client does not install. "
            "Try: pip install 'stemma-lang[engine]'"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_NAMES})


if TYPE_CHECKING:
    from stemma.backend.engine import Engine as Engine
    from stemma.interpreter.async_state import AsyncProgramState as AsyncProgramState
    from stemma.interpreter.async_state import AsyncProgramStateGroup as AsyncProgramStateGroup
    from stemma.interpreter.batch import Batch as Batch
    from stemma.interpreter.budget import Budget as Budget
    from stemma.interpreter.checkpoint import BatchRecord as BatchRecord
    from stemma.interpreter.default_endpoint import flush_cache as flush_cache
    from stemma.interpreter.default_endpoint import get_default_backend as get_default_backend
    from stemma.interpreter.default_endpoint import get_server_info as get_server_info
    from stemma.interpreter.default_endpoint import set_default_backend as set_default_backend
    from stemma.interpreter.endpoints.anthropic import Anthropic as Anthropic
    from stemma.interpreter.endpoints.base import Endpoint as Endpoint
    from stemma.interpreter.endpoints.gemini import Gemini as Gemini
    from stemma.interpreter.endpoints.gemini import VertexAI as VertexAI
    from stemma.interpreter.endpoints.litellm import LiteLLM as LiteLLM
    from stemma.interpreter.endpoints.openai import OpenAI as OpenAI
    from stemma.interpreter.endpoints.runtime import RuntimeEndpoint as RuntimeEndpoint
    from stemma.interpreter.endpoints.scripted import ScriptedEndpoint as ScriptedEndpoint
    from stemma.interpreter.endpoints.server_process import Runtime as Runtime
    from stemma.interpreter.events import Event as Event
    from stemma.interpreter.events import Forked as Forked
    from stemma.interpreter.events import Joined as Joined
    from stemma.interpreter.events import NodeDelta as NodeDelta
    from stemma.interpreter.events import NodeEvent as NodeEvent
    from stemma.interpreter.events import NodeFailed as NodeFailed
    from stemma.interpreter.events import NodeFinished as NodeFinished
    from stemma.interpreter.events import NodeStarted as NodeStarted
    from stemma.interpreter.events import ProgramEnded as ProgramEnded
    from stemma.interpreter.events import ToolFinished as ToolFinished
    from stemma.interpreter.events import ToolStarted as ToolStarted
    from stemma.interpreter.explain import Plan as Plan
    from stemma.interpreter.graph import ProgramGraph as ProgramGraph
    from stemma.interpreter.group import ProgramStateGroup as ProgramStateGroup
    from stemma.interpreter.program import Program as Program
    from stemma.interpreter.program import function as function
    from stemma.interpreter.replay import Record as Record
    from stemma.interpreter.replay import ReplayEndpoint as ReplayEndpoint
    from stemma.interpreter.state import ProgramState as ProgramState
    from stemma.interpreter.tools import ToolCall as ToolCall
    from stemma.interpreter.tools import tool_result as tool_result
    from stemma.interpreter.trace import Trace as Trace
    from stemma.interpreter.usage import total_usage as total_usage
    from stemma.lang.api import assistant as assistant
    from stemma.lang.api import assistant_begin as assistant_begin
    from stemma.lang.api import assistant_end as assistant_end
    from stemma.lang.api import gen as gen
    from stemma.lang.api import gen_int as gen_int
    from stemma.lang.api import gen_string as gen_string
    from stemma.lang.api import select as select
    from stemma.lang.api import separate_reasoning as separate_reasoning
    from stemma.lang.api import system as system
    from stemma.lang.api import system_begin as system_begin
    from stemma.lang.api import system_end as system_end
    from stemma.lang.api import user as user
    from stemma.lang.api import user_begin as user_begin
    from stemma.lang.api import user_end as user_end
    from stemma.lang.bounds import Regex as Regex
    from stemma.lang.choices import ChoicesDecision as ChoicesDecision
    from stemma.lang.choices import ChoicesSamplingMethod as ChoicesSamplingMethod
    from stemma.lang.choices import greedy_token_selection as greedy_token_selection
    from stemma.lang.choices import token_length_normalized as token_length_normalized
    from stemma.lang.choices import unconditional_likelihood_normalized as unconditional_likelihood_normalized
    from stemma.lang.compose import capture as capture
    from stemma.lang.compose import choice as choice
    from stemma.lang.compose import ebnf as ebnf
    from stemma.lang.compose import json as json
    from stemma.lang.compose import literal as literal
    from stemma.lang.compose import optional as optional
    from stemma.lang.compose import regex as regex
    from stemma.lang.compose import repeat as repeat
    from stemma.lang.compose import sequence as sequence
    from stemma.lang.errors import BudgetError as BudgetError
    from stemma.lang.errors import CancelledError as CancelledError
    from stemma.lang.errors import ConstraintError as ConstraintError
    from stemma.lang.errors import DeadlineError as DeadlineError
    from stemma.lang.errors import EndpointError as EndpointError
    from stemma.lang.errors import EngineDeadError as EngineDeadError
    from stemma.lang.errors import ProgramError as ProgramError
    from stemma.lang.errors import ReplayError as ReplayError
    from stemma.lang.errors import RequestError as RequestError
    from stemma.lang.errors import StemmaError as StemmaError
    from stemma.lang.errors import TruncatedError as TruncatedError
    from stemma.lang.media import image as image
    from stemma.lang.media import video as video
    from stemma.lang.params import Constraint as Constraint
    from stemma.lang.params import SamplingParams as SamplingParams
    from stemma.lang.reasoning import Reasoning as Reasoning
    from stemma.lang.tools import Tool as Tool
    from stemma.lang.tools import describe_tools as describe_tools
