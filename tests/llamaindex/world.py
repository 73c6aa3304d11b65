"""Two models on one fault server, asked through a FallbackLLM natively or through LlamaIndex's own OpenAI class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Self

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation import get_dispatcher

from llamaindex_fallback import FallbackLLM
from shared_core import Target
from shared_core.testing import FaultServer

KEY = "sk-not-a-real-key-0123456789abcdef"
PRIMARY, SECONDARY = "gpt-5-mini", "gpt-4.1-mini"
CLAUDE, GEMINI = "claude-haiku-4-5", "gemini-2.5-flash"
MODELS = (PRIMARY, SECONDARY, CLAUDE, GEMINI)
NO_RETRY = {"same_target": 0, "total": 0}


def native(server: FaultServer, model: str, **options: Any) -> Target:
    return Target(f"openai:{model}", base_url=server.openai_url, api_key=KEY, **options)


def wrapped(server: FaultServer, model: str, **options: Any) -> Any:
    """LlamaIndex's own OpenAI class; where a world leaves it out, a test that needs it is skipped."""
    integration = pytest.importorskip("llama_index.llms.openai", reason="LlamaIndex's OpenAI class needs openai<3")
    return integration.OpenAI(model=model, api_base=server.openai_url, api_key=KEY, **{"max_retries": 0, **options})


def wrapped_claude(server: FaultServer, model: str = CLAUDE, **options: Any) -> Any:
    """LlamaIndex's own Anthropic class; skips where it is left out, or stands on an SDK that it does not work with."""
    integration = pytest.importorskip("llama_index.llms.anthropic", reason="LlamaIndex's Anthropic class is left out")
    if int(version("anthropic").partition(".")[0]) >= 1:  # it passes a temperature, which the SDK has no word for
        pytest.skip("LlamaIndex's Anthropic class does not work over anthropic>=1")
    settings = {"max_tokens": 1024, "max_retries": 0, **options}
    return integration.Anthropic(model=model, base_url=server.anthropic_url, api_key=KEY, **settings)


def wrapped_gemini(server: FaultServer, model: str = GEMINI, **options: Any) -> Any:
    """LlamaIndex's own Gemini class; skips where it is left out. It is told its limits, or it would ask its server."""
    integration = pytest.importorskip(
        "llama_index.llms.google_genai", reason="LlamaIndex's Gemini class needs google-genai<3"
    )
    settings = {"max_tokens": 1024, "context_window": 1_000_000, "max_retries": 0, **options}
    return integration.GoogleGenAI(model=model, http_options={"base_url": server.google_url}, api_key=KEY, **settings)


def claude(server: FaultServer, **options: Any) -> Target:
    return Target(f"anthropic:{CLAUDE}", base_url=server.anthropic_url, api_key=KEY, **options)


def gemini(server: FaultServer, **options: Any) -> Target:
    return Target(f"google:{GEMINI}", base_url=server.google_url, api_key=KEY, **options)


KINDS: Mapping[str, Callable[[FaultServer], list[Any]]] = {
    "native": lambda server: [native(server, PRIMARY), native(server, SECONDARY)],
    "wrapped": lambda server: [wrapped(server, PRIMARY), wrapped(server, SECONDARY)],
    "wrapped then native": lambda server: [wrapped(server, PRIMARY), native(server, SECONDARY)],
    "native then wrapped": lambda server: [native(server, PRIMARY), wrapped(server, SECONDARY)],
    "anthropic then wrapped": lambda server: [claude(server), wrapped(server, SECONDARY)],
    "google then native": lambda server: [gemini(server), native(server, SECONDARY)],
}


OPEN: dict[object, FallbackLLM] = {}
"""Kept for the session, since a vendor's SDK client takes some 30 ms to build; closed at its end."""


def fallback_llm(server: FaultServer, kind: str | list[Any] = "native", **options: Any) -> FallbackLLM:
    """An LLM in whose world nothing has happened yet."""
    key = (server.port, kind, repr(options)) if isinstance(kind, str) else object()
    if key not in OPEN:
        models = KINDS[kind](server) if isinstance(kind, str) else kind
        OPEN[key] = FallbackLLM(models, **{"retry": NO_RETRY, **options})
    OPEN[key].router.reset()
    return managed(OPEN[key])


def names_of(llm: FallbackLLM) -> tuple[str, str]:
    """The names of its two targets."""
    first, second = llm.router.targets
    return first.name, second.name


def script_all(server: FaultServer, *steps: Any) -> None:
    """The same for every model."""
    for model in MODELS:
        server.script(model, list(steps))


# ── the eight faces, called alike ────────────────────────────────────────────────────────────────────────────────────

FACES = (
    "chat",
    "achat",
    "stream_chat",
    "astream_chat",
    "complete",
    "acomplete",
    "stream_complete",
    "astream_complete",
)
STREAMED = tuple(face for face in FACES if "stream" in face)

Response = ChatResponse | CompletionResponse


async def call(llm: Any, face: str, prompt: str = "When does it open?", **options: Any) -> list[Response]:
    """Every response of one call; a whole answer is a list of one."""
    asked: Any = prompt if "complete" in face else [ChatMessage(role="user", content=prompt)]
    answer = getattr(llm, face)(asked, **options)
    if face.startswith("a"):
        answer = await answer
    if "stream" not in face:
        return [answer]
    if face.startswith("a"):
        return [response async for response in answer]
    return list(answer)


def text_of(response: Response) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


def fallback_of(response: Response) -> dict[str, Any]:
    return response.additional_kwargs["fallback"]


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Events(BaseEventHandler):
    """Keeps every instrumentation event while it is in `with`."""

    seen: list[Any] = []  # noqa: RUF012  # a pydantic field: copied per instance

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self, *, of: str = "LLM") -> list[str]:
        return [type(e).__name__ for e in self.seen if of in type(e).__name__]

    def count(self, name: str) -> int:
        return self.names(of=name).count(name)

    def __enter__(self) -> Self:
        self.seen.clear()
        get_dispatcher().add_event_handler(self)
        return self

    def __exit__(self, *_: object) -> None:
        get_dispatcher().event_handlers.remove(self)


class WordHash(BaseEmbedding):
    """An embedding that needs no model: each word counts in one of 64 places."""

    @classmethod
    def class_name(cls) -> str:
        return "WordHash"

    def _embed(self, text: str) -> list[float]:
        places = [0.001] * 64
        for word in text.lower().split():
            places[sum(word.strip(".,?!").encode()) % 64] += 1.0
        return places

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


def managed(llm: FallbackLLM, *handlers: Any) -> FallbackLLM:
    llm.callback_manager = CallbackManager(list(handlers))
    return llm
