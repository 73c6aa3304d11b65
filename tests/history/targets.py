"""Every target a conversation may go to, and the body that it would be sent: built by the code that sends, not sent."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage

import shared_core
from langchain_fallback import LangChainProvider
from langchain_fallback._convert import FRAMEWORK, from_langchain
from langchain_fallback._convert.dialect import dialect_of
from shared_core.chat.request import ChatRequest, Native, Origin
from shared_core.history import ANTHROPIC, LLAMA_CPP, Change, HistoryRules
from shared_core.providers import build
from shared_core.providers.google import rules_of
from shared_core.routing.target import Target
from tests.history import wires
from tests.history.origins import KEY, chat_anthropic, chat_openai

TINY = Path(shared_core.__file__).parent / "models" / "tiny.gguf"


@dataclass(frozen=True)
class To:
    """A target: how its body is made, and what its wire accepts."""

    name: str
    make: Callable[[ChatRequest, list[Change]], dict[str, Any]]
    obeys: Callable[[wires.Body], None]
    origin: Origin
    rules: HistoryRules
    typed: str | None = None
    """Whose SDK's types the body must fit besides."""
    vendor: str | None = None
    """Whose thoughts it may be shown again."""
    text_only: bool = False


def request_of(history: Sequence[BaseMessage], **fields: Any) -> ChatRequest:
    """What `FallbackChatModel` makes of a call, with LangChain's own messages riding along."""
    return ChatRequest(from_langchain(history), native=Native(FRAMEWORK, tuple(history)), **fields)


@cache
def provider(spec: str) -> Any:
    return build(Target(spec, api_key=KEY))


def _native(spec: str, rules: Callable[[wires.Body], None], **more: Any) -> To:
    def make(request: ChatRequest, changes: list[Change]) -> dict[str, Any]:
        body: dict[str, Any] = provider(spec)._arguments(request, changes)
        return _plain_google(body) if "contents" in body else body

    return To(spec, make, rules, provider(spec).origin, _rules_of(provider(spec)), **more)


def _rules_of(made: Any) -> HistoryRules:
    if made.name == "anthropic":
        return ANTHROPIC
    if made.name.startswith("google"):
        return rules_of(made.model, made.capabilities, signatures=made.name == "google")
    rules: HistoryRules = made._rules
    return rules


def _plain_google(call: dict[str, Any]) -> dict[str, Any]:
    config = call.get("config")
    instruction = getattr(config, "system_instruction", None) if config is not None else None
    system: dict[str, Any] | None
    if instruction is not None and not isinstance(instruction, str):
        system = {"parts": [p.model_dump(exclude_none=True) for p in instruction.parts]}
    else:
        system = None if instruction is None else {"parts": [{"text": instruction}]}
    contents = [content.model_dump(exclude_none=True) for content in call["contents"]]
    return {"system": system, "contents": contents}


def _legacy_google() -> To:
    spec = "google-legacy:gemini-2.5-flash"

    def make(request: ChatRequest, changes: list[Change]) -> dict[str, Any]:
        call = provider(spec)._arguments(request, changes)["request"]
        as_dict = type(call.contents[0]).to_dict
        options = {"including_default_value_fields": False}
        contents = [as_dict(content, **options) for content in call.contents]
        system = as_dict(call.system_instruction, **options) if call.system_instruction else None
        return {"system": system, "contents": contents}

    return To(spec, make, wires.google, provider(spec).origin, _rules_of(provider(spec)))


def _local() -> To:
    spec = f"llamacpp:{TINY}"

    def make(request: ChatRequest, changes: list[Change]) -> dict[str, Any]:
        job = provider(spec)._job(request, provider(spec).model, changes)
        return {"messages": job["messages"]}

    rules = replace(LLAMA_CPP, media=frozenset())
    return To("llamacpp", make, wires.llamacpp, provider(spec).origin, rules, text_only=True)


def _wrapped(name: str, model: Any, rules: Callable[[wires.Body], None], **more: Any) -> To:
    wrapping = LangChainProvider(model)

    def make(request: ChatRequest, changes: list[Change]) -> dict[str, Any]:
        call: Any = wrapping._call(request, changes)
        if hasattr(call.inner, "_prepare_request"):
            return _plain_google(call.inner._prepare_request(call.messages, **call.kwargs))
        body: dict[str, Any] = call.inner._get_request_payload(call.messages, **call.kwargs)
        return body

    responses = more.get("vendor") == "responses"
    return To(name, make, rules, wrapping.origin, dialect_of(model, responses=responses).rules, **more)


def _targets() -> dict[str, To]:
    found = [
        _native("openai:gpt-5-mini", wires.openai, typed="openai"),
        _native("anthropic:claude-sonnet-4-5", wires.anthropic, typed="anthropic", vendor="anthropic"),
        _native("google:gemini-2.5-flash", wires.google, vendor="google"),
        _native("google:gemini-3-pro", wires.google),
        _native("deepseek:deepseek-reasoner", wires.deepseek, vendor="deepseek", text_only=False),
        _native("moonshot:kimi-k2.5", wires.moonshot),
        _native("mistral:mistral-large-latest", wires.mistral),
        _native("openrouter:meta-llama/llama-4", wires.openrouter),
        _native("vllm:qwen3", wires.local),
        _wrapped("ChatOpenAI", chat_openai(), wires.openai, typed="openai"),
        _wrapped(
            "ChatOpenAI, Responses", chat_openai(True), wires.responses, typed="responses", vendor="responses",
        ),
        _wrapped(
            "ChatAnthropic", chat_anthropic(), wires.anthropic,
            typed="anthropic", vendor="anthropic",
        ),
    ]  # fmt: skip
    if importlib.util.find_spec("langchain_google_genai") is not None:
        from langchain_google_genai import ChatGoogleGenerativeAI

        gemini = ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key=KEY)
        found.append(_wrapped("ChatGoogleGenerativeAI", gemini, wires.google, vendor="google"))
    if importlib.util.find_spec("google.generativeai") is not None:
        found.append(_legacy_google())
    if importlib.util.find_spec("llama_cpp") is not None:
        found.append(_local())
    return {to.name: to for to in found}


TARGETS = _targets()
