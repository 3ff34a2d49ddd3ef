"""Google's models through their OpenAI-compatible routes, with the `openai` package: no Google package is needed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from stemma.interpreter.endpoints.openai import OpenAI
from stemma.lang.errors import EndpointError, RequestError

GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta/openai/"
VERTEX_URL = "https://{host}/v1/projects/{project}/locations/{location}/endpoints/openapi"

Token = str | Callable[[], Awaitable[str]]


class Gemini(OpenAI):
    """A Gemini model of the Gemini API. `api_key` defaults to `GEMINI_API_KEY`, then `GOOGLE_API_KEY`.

    Takes the keyword options of `OpenAI`. Raises `EndpointError` when the package or the key is missing.
    """

    def __init__(self, model_name: str, *, api_key: str | None = None, base_url: str = GEMINI_URL, **options: Any):
        key = api_key or os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
        if not key:
            raise EndpointError(f"Gemini({model_name!r}) needs api_key=, or GEMINI_API_KEY in the environment")
        super().__init__(model_name, True, api_key=key, base_url=base_url, **options)


class VertexAI(OpenAI):
    """A model of Vertex AI, `VertexAI("gemini-2.0-flash")`; a name without a publisher is google's.

    `project` and `location` default to `GCP_PROJECT_ID` and `GCP_LOCATION`. `api_key` is an access token, or an async
    function that gets one each time; without it the application default credentials are used, which needs the package
    `google-auth`. Takes the keyword options of `OpenAI`. Raises `RequestError` for options, `EndpointError` when a
    package or the project is missing.
    """

    def __init__(
        self,
        model_name: str,
        safety_settings: Any = None,
        *,
        project: str | None = None,
        location: str | None = None,
        api_key: Token | None = None,
        base_url: str | None = None,
        **options: Any,
    ):
        if safety_settings is not None:
            raise RequestError(
                "safety_settings cannot be sent by name: give the fields that Vertex AI wants as extra_body=",
                param="safety_settings",
            )
        project = project or os.environ.get("GCP_PROJECT_ID")
        location = location or os.environ.get("GCP_LOCATION") or "us-central1"
        if base_url is None and not project:
            raise EndpointError(f"VertexAI({model_name!r}) needs project=, or GCP_PROJECT_ID in the environment")
        host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
        url = base_url or VERTEX_URL.format(host=host, project=project, location=location)
        name = model_name if "/" in model_name else f"google/{model_name}"
        super().__init__(name, True, api_key=api_key or _default_token(model_name), base_url=url, **options)


def _default_token(model_name: str) -> Callable[[], Awaitable[str]]:
    """Gets and refreshes tokens of the application default credentials."""
    try:
        import google.auth  # pyright: ignore[reportMissingImports]
        from google.auth.transport import requests  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise EndpointError(
            f"VertexAI({model_name!r}) needs api_key=, an access token, or the package google-auth. "
            "Try: pip install google-auth"
        ) from error
    import asyncio

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])

    async def token() -> str:
        if not credentials.valid:
            await asyncio.to_thread(credentials.refresh, requests.Request())
        return credentials.token

    return token
