"""What each vendor leaves in a conversation: assistant turns, made by LangChain's own parsers from what was sent."""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_fallback._convert import message_of
from shared_core.chat.events import Answer
from shared_core.chat.request import Origin, Reasoning, ToolCall

PNG = b"\x89PNG\r\n\x1a\n-a picture"
KEY = "sk-test-0123456789abcdef"
SIGNATURE = base64.b64encode(b"signed by its vendor").decode()


@dataclass(frozen=True)
class Call:
    """A tool call as the model made it. `raw` arguments are no JSON."""

    id: str
    name: str = "weather"
    args: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None

    @property
    def text(self) -> str:
        return json.dumps(self.args) if self.raw is None else self.raw


@dataclass(frozen=True)
class Said:
    """One assistant turn, before any vendor has put it into its form."""

    text: str = ""
    thought: str | None = None
    """Its thinking, signed or encrypted where the vendor does that."""
    calls: tuple[Call, ...] = ()
    source: tuple[str, str] | None = None
    """Address and title of a page it searched for on the vendor's servers and cites."""
    picture: bool = False
    refusal: bool = False


Turn = Callable[[Said], AIMessage]
"""One assistant turn in a vendor's form."""

MODELS = {
    "openai": "gpt-5-mini-2025-08-07",
    "responses": "gpt-5-mini-2025-08-07",
    "anthropic": "claude-sonnet-4-5-20250929",
    "google": "gemini-2.5-flash",
    "llamacpp": "qwen3-4b.gguf",
    "deepseek": "deepseek-reasoner",
}
"""What each vendor says who answered: a dated release where it has one."""


@cache
def chat_openai(responses: bool = False) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-5-mini", api_key=SecretStr(KEY), use_responses_api=responses)


@cache
def chat_anthropic() -> ChatAnthropic:
    settings: dict[str, Any] = {"model": "claude-sonnet-4-5", "api_key": KEY}
    return ChatAnthropic(**settings)


def _message(result: ChatResult) -> AIMessage:
    generation = result.generations[0]
    message = generation.message
    assert isinstance(message, AIMessage)
    # As `BaseChatModel` does with what a parser leaves beside the message.
    metadata = {**(result.llm_output or {}), **(generation.generation_info or {}), **message.response_metadata}
    return message.model_copy(update={"response_metadata": metadata})


def openai(said: Said) -> AIMessage:
    """Chat Completions through ChatOpenAI."""
    wire: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None, "annotations": []}
    if said.refusal:
        wire |= {"content": None, "refusal": said.text}
    if said.calls:
        wire["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.text}} for c in said.calls
        ]
    if said.source:
        url, title = said.source
        cited = {"url": url, "title": title, "start_index": 0, "end_index": 1}
        wire["annotations"] = [{"type": "url_citation", "url_citation": cited}]
    choice = {"index": 0, "finish_reason": "tool_calls" if said.calls else "stop", "message": wire}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODELS["openai"]}
    return _message(chat_openai()._create_chat_result({**body, "choices": [choice]}))


def responses(said: Said) -> AIMessage:
    """The Responses API through ChatOpenAI: items with ids, encrypted reasoning, calls of server-side tools."""
    from langchain_openai.chat_models.base import _construct_lc_result_from_responses_api
    from openai.types.responses import Response

    output: list[dict[str, Any]] = []
    if said.thought is not None:
        summary = [{"type": "summary_text", "text": said.thought}]
        output.append({"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": SIGNATURE})
    if said.source:
        action = {"type": "search", "query": "q"}
        output.append({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action})
    if said.picture:
        picture = base64.b64encode(PNG).decode()
        output.append({"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": picture})
    if said.text:
        kind = "refusal" if said.refusal else "output_text"
        content: dict[str, Any] = {"type": kind, "refusal" if said.refusal else "text": said.text}
        if not said.refusal:
            content["annotations"] = []
        if said.source:
            url, title = said.source
            cited = {"type": "url_citation", "url": url, "title": title, "start_index": 0, "end_index": 1}
            content["annotations"] = [cited]
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [content]}
        output.append(message)
    for n, call in enumerate(said.calls):
        item = {"type": "function_call", "id": f"fc_{n}", "call_id": call.id, "name": call.name, "arguments": call.text}
        output.append({**item, "status": "completed"})
    body = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": MODELS["responses"],
        "output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    return _message(_construct_lc_result_from_responses_api(Response.model_validate(body)))


def anthropic(said: Said) -> AIMessage:
    """Messages through ChatAnthropic: thinking blocks, searches of its own, citations."""
    from anthropic.types import Message

    content: list[dict[str, Any]] = []
    if said.thought is not None:
        content.append({"type": "thinking", "thinking": said.thought, "signature": SIGNATURE})
        content.append({"type": "redacted_thinking", "data": SIGNATURE})
    if said.source:
        url, title = said.source
        content.append({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}})
        page = {"type": "web_search_result", "url": url, "title": title, "encrypted_content": SIGNATURE}
        content.append({"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [page]})
    if said.text:
        block: dict[str, Any] = {"type": "text", "text": said.text}
        if said.source:
            url, title = said.source
            cited = {"type": "web_search_result_location", "url": url, "title": title, "cited_text": "x"}
            block["citations"] = [{**cited, "encrypted_index": SIGNATURE}]
        content.append(block)
    content += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.args} for c in said.calls]
    body = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": MODELS["anthropic"], "content": content,
        "stop_reason": "tool_use" if said.calls else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    return _message(chat_anthropic()._format_output(Message.model_validate(body)))


def google(said: Said) -> AIMessage:
    """Gemini through ChatGoogleGenerativeAI: thoughts, signed calls and texts, code it ran, pages it looked up."""
    if importlib.util.find_spec("langchain_google_genai") is None:
        return _google_by_hand(said)
    from google.genai.types import GenerateContentResponse
    from langchain_google_genai.chat_models import _response_to_result

    parts: list[dict[str, Any]] = []
    if said.thought is not None:
        parts.append({"text": said.thought, "thought": True})
    if said.source:
        parts.append({"executable_code": {"language": "PYTHON", "code": "print(1)"}})
        parts.append({"code_execution_result": {"outcome": "OUTCOME_OK", "output": "1"}})
    signed = {"thought_signature": SIGNATURE} if said.thought is not None else {}
    if said.text:
        parts.append({"text": said.text, **signed})
    if said.picture:
        parts.append({"inline_data": {"mime_type": "image/png", "data": base64.b64encode(PNG).decode()}})
    for n, call in enumerate(said.calls):
        own = signed if n == 0 else {}
        parts.append({"function_call": {"id": call.id or None, "name": call.name, "args": call.args}, **own})
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "finish_reason": "STOP", "index": 0}
    if said.source:
        url, title = said.source
        candidate["grounding_metadata"] = {"grounding_chunks": [{"web": {"uri": url, "title": title}}]}
    body = {"candidates": [candidate], "model_version": MODELS["google"], "response_id": "r"}
    message = _message(_response_to_result(GenerateContentResponse.model_validate(body)))
    # Gemini may give no ids; the integration then makes them up. Here they must be ours, so that results find them.
    signatures = message.additional_kwargs.get("__gemini_function_call_thought_signatures__") or {}
    for made, call in zip(message.tool_calls, said.calls, strict=True):
        if made["id"] in signatures:
            signatures[call.id] = signatures.pop(made["id"])
        made["id"] = call.id
    return message


def _google_by_hand(said: Said) -> AIMessage:
    """The same, for worlds that leave the integration out: a history may come from one that had it."""
    signed = {"signature": SIGNATURE} if said.thought is not None else {}
    blocks: list[str | dict[str, Any]] = []
    if said.thought is not None:
        blocks.append({"type": "thinking", "thinking": said.thought})
    if said.source:
        blocks.append({"type": "executable_code", "executable_code": "print(1)", "language": "PYTHON", "id": "e1"})
        blocks.append({"type": "code_execution_result", "code_execution_result": "1", "outcome": 1, "tool_call_id": ""})
    if said.text:
        blocks.append({"type": "text", "text": said.text, **({"extras": signed} if signed else {})})
    if said.picture:
        url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        blocks.append({"type": "image_url", "image_url": {"url": url}})
    extra: dict[str, Any] = {}
    if said.calls and signed:
        extra["__gemini_function_call_thought_signatures__"] = {said.calls[0].id: SIGNATURE}
    metadata: dict[str, Any] = {"model_provider": "google_genai", "model_name": MODELS["google"]}
    if said.source:
        url, title = said.source
        metadata["grounding_metadata"] = {"grounding_chunks": [{"web": {"uri": url, "title": title}}]}
    plain = len(blocks) == 1 and blocks[0] == {"type": "text", "text": said.text}
    calls = [{"type": "tool_call", "id": c.id, "name": c.name, "args": c.args} for c in said.calls]
    return AIMessage(
        said.text if plain or not blocks else blocks,
        tool_calls=calls,
        additional_kwargs=extra,
        response_metadata=metadata,
    )


def llamacpp(said: Said) -> AIMessage:
    """llama-cpp-python through LangChain's community class: thoughts stay in the text, ids are long and odd."""
    text = f"<think>{said.thought}</think>{said.text}" if said.thought is not None else said.text
    calls = [{"type": "tool_call", "id": c.id, "name": c.name, "args": c.args} for c in said.calls if c.raw is None]
    broken = [
        {"type": "invalid_tool_call", "id": c.id, "name": c.name, "args": c.raw, "error": "no JSON"}
        for c in said.calls
        if c.raw is not None
    ]
    metadata = {"finish_reason": "stop"}
    return AIMessage(text, tool_calls=calls, invalid_tool_calls=broken, response_metadata=metadata)


def deepseek(said: Said) -> AIMessage:
    """DeepSeek through LangChain's class: the thought lies beside the content, as plain text."""
    message = openai(said)
    extra = {"reasoning_content": said.thought} if said.thought is not None else {}
    named = {"model_provider": "deepseek", "model_name": MODELS["deepseek"]}
    return message.model_copy(
        update={
            "additional_kwargs": {**message.additional_kwargs, **extra},
            "response_metadata": {**message.response_metadata, **named},
        }
    )


def v1(message: AIMessage) -> AIMessage:
    """The same turn with ``output_version="v1"``: LangChain's standard blocks as content."""
    metadata = {**message.response_metadata, "output_version": "v1"}
    return message.model_copy(update={"content": message.content_blocks, "response_metadata": metadata})


_OPAQUE: dict[str, dict[str, Any]] = {
    "anthropic": {"type": "thinking", "thinking": "", "signature": SIGNATURE},
    "google": {"thought_signature": SIGNATURE},
    "responses": {"id": "rs_1", "encrypted_content": SIGNATURE},
    "openai": {},
    "llamacpp": {},
    "deepseek": {"reasoning_content": ""},
}


def ours(vendor: str, origin: Origin) -> Turn:
    """How a `FallbackChatModel` leaves an answer of `vendor`, given by the target of `origin`."""

    def turn(said: Said) -> AIMessage:
        thoughts: Sequence[Reasoning] = ()
        if said.thought is not None:
            data = {k: v or said.thought for k, v in _OPAQUE[vendor].items()}
            thoughts = (Reasoning(said.thought, data),)
        signed = {"thought_signature": SIGNATURE} if vendor == "google" and said.thought is not None else {}
        calls = tuple(ToolCall(c.id, c.name, c.text, signed if n == 0 else {}) for n, c in enumerate(said.calls))
        extra = {"citations": [{"url": said.source[0], "title": said.source[1]}]} if said.source else {}
        answer = Answer(
            said.text, calls, tuple(thoughts), model=MODELS[vendor], provider=origin.provider, target="t", extra=extra
        )
        return message_of(answer, lambda _: origin)

    return turn


ORIGINS: dict[str, Turn] = {
    "openai": openai,
    "responses": responses,
    "anthropic": anthropic,
    "google": google,
    "llamacpp": llamacpp,
    "deepseek": deepseek,
}
"""Name of the vendor: how its integration leaves an answer."""

_SCOPES = {
    "openai": Origin("openai", "gpt-5-mini"),
    "responses": Origin("openai", "gpt-5-mini"),
    "anthropic": Origin("anthropic", "claude-sonnet-4-5"),
    "google": Origin("google", "gemini-2.5-flash"),
    "llamacpp": Origin("llamacpp", MODELS["llamacpp"]),
    "deepseek": Origin("deepseek", "deepseek-reasoner"),
}


def _in_blocks(turn: Turn) -> Turn:
    return lambda said: v1(turn(said))


FORMS: dict[str, Turn] = {
    **ORIGINS,
    **{f"{name}, v1": _in_blocks(turn) for name, turn in ORIGINS.items() if name not in ("llamacpp", "deepseek")},
    **{f"{name}, ours": ours(name, scope) for name, scope in _SCOPES.items() if name != "responses"},
}
"""How an assistant turn looks: as the vendor's own integration leaves it, in LangChain's v1 blocks, or as we do."""
