"""Models over the fault server, in every mixture the tests ask for, and a script that answers like a model would."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_openai import ChatOpenAI

from langchain_fallback import LangChainProvider
from shared_core.resilience.deadline import Timeouts
from shared_core.routing.target import Target
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import Usage

GPT = "gpt-5-mini"
CLAUDE = "claude-sonnet-4-5"
GEMINI = "gemini-2.5-flash"
GPT_AUDIO = "gpt-audio"
"""OpenAI's model for sound: its others take none, and this one takes no pictures."""
KEY = "sk-test-0123456789abcdef"  # shaped like a key, so that a leak would be found


def native(server: FaultServer, model: str, **options: Any) -> Target:
    """A target of our own providers."""
    match vendor_of(model):
        case "openai":
            return Target(f"openai:{model}", base_url=server.openai_url, api_key=KEY, **options)
        case "anthropic":
            return Target(f"anthropic:{model}", base_url=server.anthropic_url, api_key=KEY, **options)
        case _:
            return Target(f"google:{model}", base_url=server.google_url, api_key=KEY, **options)


def wrapped(server: FaultServer, model: str) -> BaseChatModel:
    """A ready LangChain model, as a user would have made it: retries and all."""
    match vendor_of(model):
        case "openai":
            return ChatOpenAI(model=model, base_url=server.openai_url, api_key=KEY)
        case "anthropic":
            return ChatAnthropic(model=model, base_url=server.anthropic_url, api_key=KEY)
        case _:
            integration = pytest.importorskip(
                "langchain_google_genai", reason="LangChain's Google class accepts google-genai<3 only"
            )
            google: BaseChatModel = integration.ChatGoogleGenerativeAI(
                model=model, base_url=server.google_url, api_key=KEY
            )
            return google


Vendor = Literal["openai", "anthropic", "google"]
MODELS: Mapping[Vendor, str] = {"openai": GPT, "anthropic": CLAUDE, "google": GEMINI}


def vendor_of(model: str) -> Vendor:
    return "openai" if model.startswith("gpt") else "anthropic" if model.startswith("claude") else "google"


MIXTURES = {
    "native OpenAI, native Anthropic": ((native, GPT), (native, CLAUDE)),
    "native Anthropic, native OpenAI": ((native, CLAUDE), (native, GPT)),
    "ChatOpenAI, ChatAnthropic": ((wrapped, GPT), (wrapped, CLAUDE)),
    "ChatAnthropic, ChatOpenAI": ((wrapped, CLAUDE), (wrapped, GPT)),
    "native OpenAI, ChatAnthropic": ((native, GPT), (wrapped, CLAUDE)),
    "ChatAnthropic, native OpenAI": ((wrapped, CLAUDE), (native, GPT)),
}
"""Name of the mixture: (how, model) of the primary and of the fallback."""


def models_of(server: FaultServer, mixture: str) -> list[Any]:
    return [make(server, model) for make, model in MIXTURES[mixture]]


def names_of(mixture: str) -> tuple[str, str]:
    (_, primary), (_, backup) = MIXTURES[mixture]
    return primary, backup


# ── the matrix of the standard suites ────────────────────────────────────────────────────────────────────────────────

Maker = Callable[..., Any]

PAIRS: tuple[tuple[Vendor, Vendor], ...] = (
    ("openai", "anthropic"),
    ("anthropic", "openai"),
    ("google", "openai"),
    ("openai", "google"),
    ("google", "anthropic"),
    ("anthropic", "google"),
)
"""Vendor of the primary and of the fallback."""

MIXES: Mapping[str, tuple[Maker, Maker]] = {
    "native": (native, native),
    "wrapped": (wrapped, wrapped),
    "native, then wrapped": (native, wrapped),
    "wrapped, then native": (wrapped, native),
}
"""How the primary and the fallback are given: as targets of our own, or as ready LangChain models."""


def overloaded_at_once(seen: SeenRequest) -> Fault:
    """Overloaded right after the first lifecycle frame of a stream; before anything else, where nothing is streamed."""
    return Fault("overload-later", after_words=0) if seen.streamed else Fault("overloaded")


FAULTS: Mapping[str, Any] = {
    "well": None,
    "answers 503": 503,
    "answers 429, come back in 30 s": Fault("rate-limit", retry_after=30),
    "says nothing": "no-response",
    "overloaded at once": overloaded_at_once,
    "cut before the first text": Fault("cut", after_words=0),
}
"""What the primary does to every request, as a step for the server; None is nothing."""

SHAPES = ("plain", "output_version v1", "router=")
"""How the model over the targets is built: as it comes, with content blocks of LangChain v1, around a ready router."""

IMPATIENT = Timeouts(first_token=0.05, reasoning_first_token=0.05, attempt=0.05)
"""Of a primary that says nothing, so that waiting for it in vain is over quickly. The fallback has the usual time."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to build the model, in one state of the world."""

    primary: Vendor
    fallback: Vendor
    mix: str
    fault: str
    shape: str = "plain"

    @property
    def serving(self) -> Vendor:
        """The vendor that answers what both can."""
        return self.primary if self.fault == "well" else self.fallback

    @property
    def name(self) -> str:
        """A class name."""
        words = f"{self.primary} then {self.fallback} {self.mix} primary {self.fault}"
        if self.shape != "plain":
            words += f" {self.shape}"
        return "Test" + "".join(word.capitalize() for word in re.findall(r"\w+", words))

    def start(self) -> FaultServer:
        """Its server, running."""
        server = FaultServer(default=like_a_model).start()
        if (step := FAULTS[self.fault]) is not None:
            for model in (MODELS[self.primary], GPT_AUDIO if self.primary == "openai" else MODELS[self.primary]):
                server.script(model, step)
        return server

    def models(self, server: FaultServer, *, sound: bool = False, ready: dict[str, BaseChatModel] | None = None) -> Any:
        """Primary and fallback; with `sound`, of OpenAI the model that takes it.

        LangChain's models take tenths of a second to build: those in `ready` are used again, new ones put there.
        """
        kept = {} if ready is None else ready
        made: list[Any] = []
        for vendor, make in zip((self.primary, self.fallback), MIXES[self.mix], strict=True):
            model = GPT_AUDIO if sound and vendor == "openai" else MODELS[vendor]
            limits: dict[str, Any] = {"timeouts": IMPATIENT} if not made and self.fault == "says nothing" else {}
            if make is native:
                made.append(native(server, model, **limits))
                continue
            if model not in kept:
                kept[model] = wrapped(server, model)
            made.append(Target(provider=LangChainProvider(kept[model]), **limits) if limits else kept[model])
        return made


def every_cell() -> Iterator[Cell]:
    """The full matrix."""
    for primary, fallback in PAIRS:
        for mix in MIXES:
            for fault in FAULTS:
                yield Cell(primary, fallback, mix, fault)
    for shape in SHAPES[1:]:
        for mix in ("native", "wrapped"):
            for fault in FAULTS:
                yield Cell("openai", "anthropic", mix, fault, shape)


def covering_cells() -> Iterator[Cell]:
    """A quarter of it: every pair of vendors meets every fault, and every mix meets every pair and every fault."""
    mixes = list(MIXES)
    for row, (primary, fallback) in enumerate(PAIRS):
        for column, fault in enumerate(FAULTS):
            yield Cell(primary, fallback, mixes[(row + column) % len(mixes)], fault)
    for shape in SHAPES[1:]:
        for mix, fault in (("native", "well"), ("wrapped", "cut before the first text")):
            yield Cell("openai", "anthropic", mix, fault, shape)


# ── a script that reads the request ──────────────────────────────────────────────────────────────────────────────────

USAGE = Usage(prompt_tokens=40, completion_tokens=12, cached_tokens=8, cache_write_tokens=3, reasoning_tokens=4)


def like_a_model(seen: SeenRequest) -> Answer:
    """Calls a tool when one is forced or named in the question, answers in a schema when one is asked for."""
    body = seen.body
    schema = _output_schema(body)
    if schema is not None:
        return Answer(json.dumps(_example(schema, seen.prompt) if schema else _joke(), ensure_ascii=False), usage=USAGE)
    tools = _tools(body)
    if tools and not _answered(body):
        forced = _forced(body, tools)
        named = next((name for name in tools if name in seen.prompt), None)
        name = forced or named or ("get_weather" if "get_weather" in tools and "weather" in seen.prompt else None)
        if name is not None:
            return Answer("", tool_calls=[ToolCall(name, _example(tools[name], seen.prompt))], usage=USAGE)
    return Answer("A short answer.", usage=USAGE)


_SCHEMAS = ("parameters", "input_schema", "parametersJsonSchema", "parameters_json_schema")


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for tool in body.get("tools") or ():
        for function in tool.get("functionDeclarations") or [tool.get("function") or tool]:
            out[function["name"]] = next((function[name] for name in _SCHEMAS if name in function), {})
    return out


def _answered(body: Mapping[str, Any]) -> bool:
    last = (body.get("messages") or body.get("contents") or [{}])[-1]
    content = last.get("content") or last.get("parts")
    return last.get("role") == "tool" or (
        isinstance(content, list)
        and any(isinstance(b, dict) and (b.get("type") == "tool_result" or "functionResponse" in b) for b in content)
    )


def _forced(body: Mapping[str, Any], tools: Mapping[str, Any]) -> str | None:
    choice = body.get("tool_choice") or (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    if choice in ("required", "any"):
        return next(iter(tools))
    if isinstance(choice, str):
        return None
    if choice.get("type") == "any" or choice.get("mode") == "ANY":
        return next(iter(choice.get("allowedFunctionNames") or tools))
    if choice.get("type") in ("function", "tool"):
        return str((choice.get("function") or choice)["name"])
    return None


def _output_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = body.get("generationConfig") or {}
    if config.get("responseMimeType") == "application/json":
        return config.get("responseJsonSchema") or config.get("responseSchema") or {}
    asked = body.get("response_format") or (body.get("output_config") or {}).get("format")
    if not asked:
        system = json.dumps(body.get("system") or "")
        return {} if "JSON" in system and not body.get("tools") else None
    return (asked.get("json_schema") or asked).get("schema") or {}


def _joke() -> dict[str, str]:
    return {"setup": "Why?", "punchline": "Because."}


def _example(schema: Mapping[str, Any], prompt: str) -> Any:
    """Something that fits the schema, with the question's own words where a model would take them over."""
    kind = schema.get("type") or next((s.get("type") for s in schema.get("anyOf") or () if s.get("type")), "string")
    kind = str(kind).lower()  # Gemini's own schemas shout
    if kind == "object":
        if not schema.get("properties") and schema.get("additionalProperties") is True:  # any object at all
            return _joke()
        return {name: _example(inner, prompt) for name, inner in (schema.get("properties") or {}).items()}
    if kind in ("integer", "number"):
        found = re.search(r"\d+", prompt)
        return int(found[0]) if found else 3
    if kind == "array":
        return []
    if kind == "boolean":
        return True
    if "type" not in schema and "anyOf" not in schema:  # a function without parameters, as Gemini is told of it
        return {}
    quoted = re.search(r"'([^']+)'", prompt)
    return quoted[1] if quoted else "something"
