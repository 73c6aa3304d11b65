"""Models over the fault server, in every mixture the tests ask for, and a script that answers like a model would."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_openai import ChatOpenAI

from shared_core.routing.target import Target
from shared_core.testing import Answer, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import Usage

GPT = "gpt-5-mini"
CLAUDE = "claude-sonnet-4-5"
KEY = "sk-test-0123456789abcdef"  # shaped like a key, so that a leak would be found


def native(server: FaultServer, model: str) -> Target:
    """A target of our own providers."""
    if model == GPT:
        return Target(f"openai:{GPT}", base_url=server.openai_url, api_key=KEY)
    return Target(f"anthropic:{CLAUDE}", base_url=server.anthropic_url, api_key=KEY)


def wrapped(server: FaultServer, model: str) -> BaseChatModel:
    """A ready LangChain model, as a user would have made it: retries and all."""
    if model == GPT:
        return ChatOpenAI(model=GPT, base_url=server.openai_url, api_key=KEY)
    return ChatAnthropic(model=CLAUDE, base_url=server.anthropic_url, api_key=KEY)


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


# ── a script that reads the request ──────────────────────────────────────────────────────────────────────────────────

USAGE = Usage(prompt_tokens=40, completion_tokens=12, cached_tokens=8, reasoning_tokens=4)


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


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for tool in body.get("tools") or ():
        function = tool.get("function") or tool
        out[function["name"]] = function.get("parameters") or function.get("input_schema") or {}
    return out


def _answered(body: Mapping[str, Any]) -> bool:
    last = (body.get("messages") or [{}])[-1]
    content = last.get("content")
    return last.get("role") == "tool" or (
        isinstance(content, list) and any(isinstance(b, dict) and b.get("type") == "tool_result" for b in content)
    )


def _forced(body: Mapping[str, Any], tools: Mapping[str, Any]) -> str | None:
    choice = body.get("tool_choice")
    if choice in ("required", "any") or (isinstance(choice, dict) and choice.get("type") == "any"):
        return next(iter(tools))
    if isinstance(choice, dict) and choice.get("type") in ("function", "tool"):
        return (choice.get("function") or choice)["name"]
    return None


def _output_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
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
    quoted = re.search(r"'([^']+)'", prompt)
    return quoted[1] if quoted else "something"
