"""What each wire accepts, written by hand from the vendors' pages: a body that breaks a rule raises AssertionError.

Every rule is a whitelist: a key or a block that is not named here has no business in the body.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

Body = Mapping[str, Any]

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_IMAGE_URL = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*|https?://\S+")


def _only(block: Body, *allowed: str, where: str = "") -> None:
    extra = block.keys() - set(allowed)
    assert not extra, f"{where or block.get('type') or block.get('role')} has {sorted(extra)}: {block}"


def _object(text: Any) -> None:
    assert isinstance(text, str), f"arguments are {type(text).__name__}"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert isinstance(json.loads(text, parse_constant=refuse), dict), f"arguments {text!r} are no object"


def _pairs(messages: Sequence[Body], id_rule: str) -> None:
    """Each call turn is followed at once by one result per call, in call order; no result stands anywhere else."""
    wanted: list[str] = []
    seen: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert wanted, f"a result without its call: {message}"
            assert wanted.pop(0) == message["tool_call_id"]
            continue
        assert not wanted, f"calls {wanted} have no result"
        wanted = [call["id"] for call in message.get("tool_calls") or ()]
        seen += wanted
    assert not wanted, f"calls {wanted} have no result"
    assert len(set(seen)) == len(seen), f"an id is used twice: {seen}"
    for one in seen:
        assert re.fullmatch(id_rule, one), f"id {one!r}"


# ── Chat Completions ─────────────────────────────────────────────────────────────────────────────────────────────────


def _chat_part(part: Body) -> None:
    match part["type"]:
        case "text":
            _only(part, "type", "text")
        case "image_url":
            _only(part, "type", "image_url")
            _only(part["image_url"], "url", "detail")
            assert _IMAGE_URL.fullmatch(part["image_url"]["url"]), part
        case "file":
            _only(part, "type", "file")
            _only(part["file"], "filename", "file_data", "file_id")
            data = part["file"].get("file_data")
            assert data is None or (data.startswith("data:application/pdf;base64,") and part["file"]["filename"])
        case "input_audio":
            _only(part, "type", "input_audio")
            assert part["input_audio"]["format"] in ("wav", "mp3")
        case kind:
            raise AssertionError(f"a user's content holds a {kind!r}")


def _chat(messages: Sequence[Body], *, ids: str, assistant: Iterable[str] = ()) -> None:
    assert messages, "no messages"
    for message in messages:
        content: Any = message.get("content")
        match message["role"]:
            case "system" | "developer":
                _only(message, "role", "content", "name")
                assert isinstance(content, str) or all(p.keys() == {"type", "text"} for p in content), content
            case "user":
                _only(message, "role", "content", "name")
                if not isinstance(content, str):
                    assert content, "a user's turn is empty"
                    for part in content:
                        _chat_part(part)
            case "assistant":
                _only(message, "role", "content", "tool_calls", "name", *assistant)
                if not isinstance(content, (str, type(None))):
                    assert all(p.keys() == {"type", "text"} and p["type"] == "text" for p in content), content
                assert content is not None or message.get("tool_calls"), "an assistant's turn says nothing"
                for call in message.get("tool_calls") or ():
                    _only(call, "id", "type", "function")
                    _only(call["function"], "name", "arguments", where="function")
                    assert _NAME.fullmatch(call["function"]["name"]), call
                    _object(call["function"]["arguments"])
            case "tool":
                _only(message, "role", "tool_call_id", "content")
                if not isinstance(content, str):
                    assert all(p.keys() == {"type", "text"} for p in content), content
            case role:
                raise AssertionError(f"role {role!r}")
        if "name" in message:
            assert _NAME.fullmatch(message["name"]), message["name"]
    _pairs(messages, ids)


def openai(body: Body) -> None:
    """OpenAI's chat completions: ids of at most 40, results are text."""
    _chat(body["messages"], ids="[a-zA-Z0-9_-]{1,40}")


def _strict(messages: Sequence[Body], *, after_tool: bool) -> None:
    """One system message, first; then user and assistant in turn; nobody says nothing; the user has the last word."""
    roles = [m["role"] for m in messages]
    if roles[0] in ("system", "developer"):
        roles = roles[1:]
    assert roles, "only a system message"
    assert "system" not in roles, roles
    assert "developer" not in roles, roles
    assert roles[0] == "user", roles
    assert roles[-1] != "assistant", roles
    for a, b in itertools.pairwise(roles):
        assert a != b or a == "tool", roles
        assert after_tool or (a, b) != ("tool", "user"), roles
    for message in messages:
        content = message["content"]
        if message["role"] != "tool" and not message.get("tool_calls"):
            texts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
            assert all(t.strip() for t in texts), f"blank: {message}"


def compatible(body: Body) -> None:
    """What most servers that speak the same dialect take, and the templates behind them."""
    _chat(body["messages"], ids="[a-zA-Z0-9_.:-]{1,64}")
    _strict(body["messages"], after_tool=True)
    assert not any("name" in m for m in body["messages"])


def local(body: Body) -> None:
    """The same, in front of a chat template on this machine: those break on null."""
    compatible(body)
    assert all(m["content"] is not None for m in body["messages"])


def openrouter(body: Body) -> None:
    """The same, and the reasoning of the model it relayed."""
    _chat(body["messages"], ids="[a-zA-Z0-9_.:-]{1,64}", assistant=("reasoning_details",))
    _strict(body["messages"], after_tool=True)


def mistral(body: Body) -> None:
    """Mistral: ids of nine letters and digits, no user behind a tool."""
    _chat(body["messages"], ids="[a-zA-Z0-9]{9}")
    _strict(body["messages"], after_tool=False)


def deepseek(body: Body) -> None:
    """DeepSeek and Moonshot when they think: each turn of a tool loop has its `reasoning_content`, no other has."""
    _chat(body["messages"], ids="[a-zA-Z0-9_.:-]{1,64}", assistant=("reasoning_content",))
    _strict(body["messages"], after_tool=True)
    called = False
    for message in body["messages"]:
        if message["role"] == "assistant":
            calls = bool(message.get("tool_calls"))
            assert ("reasoning_content" in message) is (calls or called), message
            called = calls


def moonshot(body: Body) -> None:
    """Moonshot: an empty thought counts as none."""
    deepseek(body)
    assert all(m.get("reasoning_content", "x") for m in body["messages"])


# ── Responses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _input_part(part: Body) -> None:
    match part["type"]:
        case "input_text":
            _only(part, "type", "text")
        case "input_image":
            _only(part, "type", "image_url", "detail", "file_id")
            assert "file_id" in part or _IMAGE_URL.fullmatch(part["image_url"]), part
        case "input_file":
            _only(part, "type", "filename", "file_data", "file_id", "file_url")
            assert part.keys() & {"file_data", "file_id", "file_url"}
        case kind:
            raise AssertionError(f"a user's content holds a {kind!r}")


_ITEM_IDS = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_", "web_search_call": "ws_",
             "image_generation_call": "ig_"}  # fmt: skip


def responses(body: Body) -> None:
    """OpenAI's Responses API: items; call ids of at most 64; nobody else's items."""
    items = body["input"]
    assert items, "no input"
    calls: list[str] = []
    outputs: list[str] = []
    for item in items:
        kind = item.get("type", "message")
        if "id" in item:
            assert str(item["id"]).startswith(_ITEM_IDS[kind]), item
        match kind:
            case "message" if item["role"] == "assistant":
                _only(item, "type", "role", "content", "id", "phase")
                for part in item["content"]:
                    assert part["type"] in ("output_text", "refusal"), part
                    _only(part, "type", "text", "annotations", "refusal")
            case "message":
                _only(item, "type", "role", "content")
                assert item["role"] in ("user", "system", "developer"), item
                if not isinstance(item["content"], str):
                    assert item["content"], "an empty message"
                    for part in item["content"]:
                        _input_part(part)
            case "function_call":
                _only(item, "type", "id", "call_id", "name", "arguments", "status")
                assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", item["call_id"]), item["call_id"]
                assert _NAME.fullmatch(item["name"]), item
                _object(item["arguments"])
                calls.append(item["call_id"])
            case "function_call_output":
                _only(item, "type", "call_id", "output")
                assert item["call_id"] in calls, "an output before its call"
                if not isinstance(item["output"], str):
                    for part in item["output"]:
                        _input_part(part)
                outputs.append(item["call_id"])
            case "reasoning":
                _only(item, "type", "id", "summary", "encrypted_content", "status", "content")
                assert isinstance(item["summary"], list), item
            case "web_search_call":
                _only(item, "type", "id", "status", "action")
            case "image_generation_call":
                _only(item, "type", "id")
            case _:
                raise AssertionError(f"an item of type {kind!r}: {item}")
    assert len(set(calls)) == len(calls), "a call id is used twice"
    assert calls == outputs, "each call has one output, in order"


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _source(source: Body, kinds: str) -> None:
    match source["type"]:
        case "base64":
            _only(source, "type", "media_type", "data")
            assert re.fullmatch(kinds, source["media_type"]), source["media_type"]
        case "url":
            _only(source, "type", "url")
        case "file":
            _only(source, "type", "file_id")
            assert source["file_id"].startswith("file_"), source
        case "text":
            _only(source, "type", "media_type", "data")
        case kind:
            raise AssertionError(f"a source of type {kind!r}")


def _visible(block: Body) -> None:
    match block["type"]:
        case "text":
            _only(block, "type", "text", "cache_control", "citations")
            assert block["text"].strip(), "blank text"
        case "image":
            _only(block, "type", "source", "cache_control")
            _source(block["source"], "image/(png|jpeg|gif|webp)")
        case "document":
            _only(block, "type", "source", "title", "cache_control", "context", "citations")
            _source(block["source"], "application/pdf")
        case kind:
            raise AssertionError(f"a block of type {kind!r}: {block}")


_SERVER = ("server_tool_use", "web_search_tool_result")


def anthropic(body: Body) -> None:
    """Anthropic's messages: turns alternate, results come first and at once, thoughts are signed, tools declared."""
    system = body.get("system")
    if system is not None and not isinstance(system, str):
        assert system, "an empty system"
        for block in system:
            assert block["type"] == "text", block
            _visible(block)
    messages = body["messages"]
    assert messages[0]["role"] == "user", "the user begins"
    assert messages[-1]["role"] == "user", "a model that takes no prefill has the last word"
    waiting: list[str] = []
    used: list[str] = []
    for at, message in enumerate(messages):
        _only(message, "role", "content")
        assert message["role"] == ("user", "assistant")[at % 2], "turns alternate"
        content = message["content"]
        if isinstance(content, str):
            assert content.strip(), "a blank turn"
            assert not waiting, f"calls {waiting} have no result"
            continue
        assert content, "an empty turn"
        if message["role"] == "assistant":
            waiting = list(_anthropic_answer(content))
            used += waiting
            continue
        results = [b["tool_use_id"] for b in content if b["type"] == "tool_result"]
        assert results == waiting, f"calls {waiting} have results {results}"
        assert all(b["type"] == "tool_result" for b in content[: len(results)]), "results come first"
        waiting = []
        for block in content:
            if block["type"] == "tool_result":
                _anthropic_result(block)
            else:
                _visible(block)
    assert len(set(used)) == len(used), "an id is used twice"
    if used:
        assert body.get("tools"), "tool turns need declared tools"
    assert json.dumps(body, default=str).count('"cache_control"') <= 4, "more than four marks"


def _anthropic_answer(content: Sequence[Body]) -> Iterator[str]:
    for block in content:
        match block["type"]:
            case "tool_use":
                _only(block, "type", "id", "name", "input", "cache_control")
                assert re.fullmatch("[a-zA-Z0-9_-]{1,64}", block["id"]), block["id"]
                assert _NAME.fullmatch(block["name"]), block
                assert isinstance(block["input"], dict), block
                yield block["id"]
            case "thinking":
                _only(block, "type", "thinking", "signature")
                assert block["signature"], block
                assert isinstance(block["thinking"], str), block
            case "redacted_thinking":
                _only(block, "type", "data")
                assert block["data"], block
            case kind if kind in _SERVER:
                _only(block, "type", "id", "name", "input", "tool_use_id", "content")
            case "text":
                _visible(block)
            case kind:
                raise AssertionError(f"an assistant's block of type {kind!r}: {block}")


def _anthropic_result(block: Body) -> None:
    _only(block, "type", "tool_use_id", "content", "is_error", "cache_control")
    content = block.get("content") or []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    for inner in content:
        assert "cache_control" not in inner
        _visible(inner)
    if block.get("is_error"):
        assert content, "a failure says something"
        assert all(inner["type"] == "text" for inner in content), "a failure is text"


# ── Gemini ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _google_media(part: Body) -> None:
    if "inline_data" in part:
        _only(part["inline_data"], "data", "mime_type", "display_name", where="inline_data")
        kinds = "image/(png|jpeg|webp|heic|heif)|application/pdf|(text|audio|video)/.+"
        assert re.fullmatch(kinds, part["inline_data"]["mime_type"]), part["inline_data"]["mime_type"]
    else:
        uri = part["file_data"]["file_uri"]
        assert re.match("gs://|https?://", uri), uri


def google(body: Body) -> None:
    """Gemini's contents: calls are answered at once and in order, results are told and never typed anew."""
    if (system := body.get("system")) is not None:
        assert all(p.keys() == {"text"} and p["text"].strip() for p in system["parts"]), system
    contents = body["contents"]
    assert contents[0]["role"] == "user", "the user begins"
    assert contents[-1]["role"] == "user", "the user has the last word"
    calls: list[tuple[Any, str]] = []
    for content in contents:
        _only(content, "role", "parts", where="content")
        assert content["parts"], "an empty content"
        answered: list[tuple[Any, str]] = []
        asked: list[tuple[Any, str]] = []
        for part in content["parts"]:
            signed = ("thought_signature",)
            if "function_call" in part:
                _only(part, "function_call", *signed, where="part")
                _only(part["function_call"], "id", "name", "args", where="function_call")
                call = part["function_call"]
                assert content["role"] == "model"
                assert re.fullmatch("[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", call["name"]), call["name"]
                assert isinstance(call.get("args") or {}, dict)
                asked.append((call.get("id"), call["name"]))
            elif "function_response" in part:
                _only(part, "function_response", where="part")
                found = part["function_response"]
                _only(found, "id", "name", "response", "parts", where="function_response")
                assert content["role"] == "user"
                assert found["response"].keys() in ({"output"}, {"error"}), found
                assert all(isinstance(v, str) for v in found["response"].values()), found
                answered.append((found.get("id"), found["name"]))
            elif "text" in part:
                _only(part, "text", "thought", *signed, where="part")
                assert part["text"].strip() or part.get("thought_signature"), "blank text"
                assert not part.get("thought") or content["role"] == "model"
            elif "inline_data" in part or "file_data" in part:
                _only(part, "inline_data", "file_data", *signed, where="part")
                _google_media(part)
            elif "executable_code" in part or "code_execution_result" in part:
                assert content["role"] == "model"
            else:
                raise AssertionError(f"a part of unknown kind: {part}")
        assert answered == calls, f"calls {calls} have results {answered}"
        calls = asked
    assert not calls, f"calls {calls} have no result"


# ── llama.cpp ────────────────────────────────────────────────────────────────────────────────────────────────────────

MISTRAL_TEMPLATE = """{%- if messages[0].role == 'system' -%}{%- set rest = messages[1:] -%}{%- else -%}
{%- set rest = messages -%}{%- endif -%}{%- set ns = namespace(index=0) -%}
{%- for m in rest -%}{%- if (m.role == 'user' or m.role == 'assistant') and not m.tool_calls -%}
{%- if (m.role == 'user') != (ns.index % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- set ns.index = ns.index + 1 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}[INST]{{ m.content }}[/INST]{%- elif m.role == 'system' -%}
[SYS]{{ m.content }}{%- elif m.role == 'tool' -%}
{%- if not m.tool_call_id -%}{{ raise_exception('a result without an id') }}{%- endif -%}[RESULT]{{ m.content }}
{%- else -%}{{ m.content }}{%- for c in m.tool_calls or [] -%}[CALL]{{ c.function.name }}
{{ c.function.arguments | tojson }}{%- endfor -%}{%- endif -%}{%- endfor -%}"""
"""Alternation as Mistral's own template demands it."""


@cache
def _template() -> Any:
    from shared_core.providers.llama_cpp.prompt import compile_template

    return compile_template(MISTRAL_TEMPLATE)


def llamacpp(body: Body) -> None:
    """A chat template in a GGUF, the strictest there is: it raises on what it does not know."""
    messages = body["messages"]
    _pairs(messages, "[a-zA-Z0-9_-]{1,64}")
    for message in messages:
        _only(message, "role", "content", "tool_calls", "tool_call_id", "name")
        assert isinstance(message["content"], str), "templates break on anything but text"
        for call in message.get("tool_calls") or ():
            assert isinstance(call["function"]["arguments"], dict)
            assert _NAME.fullmatch(call["function"]["name"])
    _strict(messages, after_tool=False)
    rendered = _template()(messages, None)
    assert all(m["content"] in rendered for m in messages)


# ── the vendors' own types ───────────────────────────────────────────────────────────────────────────────────────────


@cache
def _adapter(kind: str) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    forbid = ConfigDict(extra="forbid")
    if kind == "openai":
        from openai.types.chat import ChatCompletionMessageParam

        return TypeAdapter(list[ChatCompletionMessageParam], config=forbid)
    if kind == "responses":
        from openai.types.responses import ResponseInputItemParam

        return TypeAdapter(list[ResponseInputItemParam], config=forbid)
    from anthropic.types import MessageParam

    return TypeAdapter(list[MessageParam], config=forbid)


def typed(kind: str, body: Body) -> None:
    """`body` fits the request types of the vendor's SDK. Gemini's are built with them, so they need no second look."""
    if kind in ("openai", "anthropic"):
        _consume(_adapter(kind).validate_python(body["messages"]))
    elif kind == "responses":
        # What an assistant said may come without the id and status that OpenAI's own items have.
        _consume(_adapter(kind).validate_python([_whole(item) for item in body["input"]]))


def _whole(item: Body) -> Body:
    """`item` with what the SDK's types insist on and the API does not: defaults, and items it knows by their ids."""
    if item.get("role") == "assistant":
        return {"id": "msg_1", "status": "completed", **item}
    if item.get("type") == "image_generation_call":
        return {"status": "completed", "result": "", **item}
    content = item.get("content")
    if isinstance(content, list):
        return {**item, "content": [{"detail": "auto", **p} if p["type"] == "input_image" else p for p in content]}
    return item


def _consume(value: Any) -> None:
    """Look at all of it: the SDKs' types say `Iterable`, which pydantic checks only as it is read."""
    if isinstance(value, dict):
        for inner in value.values():
            _consume(inner)
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for inner in value:
            _consume(inner)
