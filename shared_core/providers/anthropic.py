"""Anthropic's messages, over the official `anthropic` SDK."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from shared_core.chat.answer_tool import ANSWER_TOOL, answer_tool
from shared_core.chat.events import (
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from shared_core.chat.request import (
    ChatRequest,
    File,
    Image,
    Message,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers import transport
from shared_core.providers.base import SdkProvider, broken, malformed
from shared_core.providers.models import facts
from shared_core.providers.registry import key_for
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.history import Change

__all__ = ["AnthropicProvider", "closed"]

_URL = "https://api.anthropic.com"
_MAX_TOKENS = 8_192
"""The API insists on a limit. Where neither the request nor the model's facts give one: what current models take."""
_WHOLE_MAX_TOKENS = 21_333
"""For a whole answer without a limit of its own: what the SDK's own arithmetic still expects within ten minutes."""
_EARLIEST_MAX_TOKENS = 4_096

_SDK_PARAMETERS = frozenset(
    {
        "container", "inference_geo", "metadata", "output_config", "service_tier", "stop_sequences", "system",
        "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "max_tokens", "extra_headers",
        "extra_query", "extra_body", "cache_control",
    }
)  # fmt: skip

_FINISH: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
    "pause_turn": "other",
}


class AnthropicProvider(SdkProvider):
    """One Claude model at Anthropic, or at an endpoint that speaks its messages.

    Options of the target: `headers` and `query` (sent with every request), `params` (defaults for every call,
    overridden by the request).
    """

    sdk = "anthropic"
    extra = "anthropic"
    name = "anthropic"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._sdk_parameters: frozenset[str] | None = None

    # ── what it is ───────────────────────────────────────────────────────────────────────────────────────────────

    def _url(self) -> str:
        import os

        return self.target.base_url or os.environ.get("ANTHROPIC_BASE_URL", "").strip().rstrip("/") or _URL

    @property
    def endpoint(self) -> str | None:
        """The address, where it is not the vendor's own."""
        url = self._url()
        return None if url == _URL else url

    @property
    def capabilities(self) -> Capabilities:
        """What the model can take: what the target says, else what is known about it."""
        if self.target.capabilities is not None:
            return self.target.capabilities
        known = facts("anthropic", self.model)
        return Capabilities(
            pdfs=True,
            audio=False,
            continuation="prefill" if known.prefill else "instructed",
            reasoning=False,  # it thinks only when asked to
            context_window=known.context_window,
            max_output=known.max_output,
        )

    # ── the SDK ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _build(self, *, sync: bool) -> Any:
        anthropic = self._module()
        http = transport.http_module(anthropic)
        options = self.target.options
        key = key_for(self.target)
        client = (anthropic.Anthropic if sync else anthropic.AsyncAnthropic)(
            api_key=key or "none",
            base_url=self._url(),
            max_retries=0,
            default_headers=dict(options.get("headers") or {}) or None,
            default_query=dict(options.get("query") or {}) or None,
            http_client=transport.http_client(http) if sync else transport.async_http_client(http),
        )
        client.auth_token = None  # the SDK reads ANTHROPIC_AUTH_TOKEN by itself and would send it beside the key
        return client

    def _method(self, client: Any) -> Any:
        return client.messages.with_raw_response.create

    def _listing(self, client: Any) -> Callable[..., Any]:
        return partial(client.models.with_raw_response.list, limit=1)

    def _fold(self, request: ChatRequest) -> _Fold:
        stripped = ""
        if request.continues and self._continues(facts("anthropic", request.model or self.model).prefill):
            last = request.messages[-1].text
            stripped = last[len(last.rstrip()) :]
        answer_tool = ANSWER_TOOL if self._forces_schema(request) else None
        names = {self._wire_name(t.name): t.name for t in request.tools}
        # After tool results Claude may have nothing to add; at any other time an empty answer is no answer.
        may_be_empty = bool(request.messages) and any(isinstance(p, ToolResult) for p in request.messages[-1].parts)
        return _Fold(names, answer_tool=answer_tool, stripped=stripped, may_be_empty=may_be_empty or request.continues)

    def _explain(self, error: ProviderError) -> None:
        super()._explain(error)
        if error.kind is ErrorKind.AUTH and error.hint is None:
            error.hint = "check `ANTHROPIC_API_KEY` or api_key="

    def _wire_name(self, name: str) -> str:
        from shared_core.history import ANTHROPIC, wire_name

        return wire_name(name, ANTHROPIC)

    # ── request to wire ──────────────────────────────────────────────────────────────────────────────────────────

    def _forces_schema(self, request: ChatRequest) -> bool:
        """Whether a JSON answer has to be had by a forced tool: an older model, or any JSON object at all."""
        if request.output is None:
            return False
        return not request.output.schema or not facts("anthropic", request.model or self.model).json_schema

    def _arguments(self, request: ChatRequest, changes: list[Change] | None = None) -> dict[str, Any]:
        from shared_core.history import ANTHROPIC, prepare, with_stubs

        model = request.model or self.model
        known = facts("anthropic", model)
        prepared = prepare(
            request.messages,
            origin=self._origin(request.model),
            rules=ANTHROPIC,
            keep_trailing_assistant=request.continues and self._continues(known.prefill),
            changes=changes,
        )
        call: dict[str, Any] = {"model": model, "max_tokens": self._max_tokens(request, known.max_output)}
        system = [_text_block(p.text) for m in prepared if m.role == "system" for p in m.parts if isinstance(p, Text)]
        if system:
            if any(m.cache_hint for m in prepared if m.role == "system"):
                system[-1] |= _CACHE
            call["system"] = system
        call["messages"] = [_message(m) for m in prepared if m.role != "system"]
        self._tools(call, request, with_stubs(request.tools, prepared, ANTHROPIC))
        # The API's range ends at 1; what OpenAI calls 2 is as random as it gets here.
        if not known.sampling:
            pass  # it samples as it likes, and refuses to be told
        elif request.temperature is not None:
            call["temperature"] = min(request.temperature, 1.0)
        elif request.top_p is not None:  # the models that can be told take one of the two, not both
            call["top_p"] = request.top_p
        stops = [s for s in request.stop if s.strip()]  # blank ones are refused
        if stops:
            call["stop_sequences"] = stops
        if request.user is not None:
            call["metadata"] = {"user_id": request.user}
        if request.streaming:
            call["stream"] = True
        body: dict[str, Any] = {}
        given = {**(self.target.options.get("params") or {}), **(request.extra.get("anthropic") or {})}
        for key, value in given.items():
            (call if key in _SDK_PARAMETERS else body)[key] = value
        if (call.get("thinking") or {}).get("type") in ("enabled", "adaptive"):
            self._make_room_for_thinking(call, prepared)
        self._adapt(call, body)
        self._hush(model)
        if body:
            call["extra_body"] = {**body, **(call.get("extra_body") or {})}
        return call

    def _continues(self, prefill: bool) -> bool:
        """A target that declares its continuation is believed, whatever we know about the model."""
        declared = self.target.capabilities
        return declared.continuation == "prefill" if declared is not None else prefill

    def _max_tokens(self, request: ChatRequest, longest: int | None) -> int:
        if request.max_tokens is not None:
            return request.max_tokens if longest is None else min(request.max_tokens, longest)
        if longest is None:
            return _EARLIEST_MAX_TOKENS if (request.model or self.model).startswith("claude-3-") else _MAX_TOKENS
        return longest if request.streaming else min(longest, _WHOLE_MAX_TOKENS)

    def _tools(self, call: dict[str, Any], request: ChatRequest, tools: Sequence[ToolSpec]) -> None:
        wire = [_tool(t) for t in tools]
        choice: dict[str, Any] | None = None
        if request.tools and request.tool_choice is not None:
            choice = {"type": request.tool_choice}
            if request.tool_choice not in ("auto", "any", "none"):
                choice = {"type": "tool", "name": self._wire_name(request.tool_choice)}
        if request.output is not None:
            if not self._forces_schema(request):
                call["output_config"] = {"format": {"type": "json_schema", "schema": closed(request.output.schema)}}
            else:
                wire.append(_tool(answer_tool(request.output)))
                # With other tools on offer the model must stay free to call them first.
                choice = {"type": "any"} if request.tools else {"type": "tool", "name": ANSWER_TOOL}
        if not wire:
            return
        if request.parallel_tool_calls is False and (choice or {}).get("type") != "none":
            choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
        if choice is None and not request.tools and request.output is None:
            choice = {"type": "none"}  # only stubs for the history's sake
        call["tools"] = wire
        if choice is not None:
            call["tool_choice"] = choice

    def _make_room_for_thinking(self, call: dict[str, Any], prepared: Sequence[Message]) -> None:
        """Thinking has its own rules: no sampling, no forced tool, and every open tool turn begins with a thought."""
        if _turn_without_thought(prepared):
            del call["thinking"]  # another model began the turn: this one request goes without
            return
        for name in ("temperature", "top_p", "top_k"):
            call.pop(name, None)
        if (call.get("tool_choice") or {}).get("type") in ("any", "tool"):
            call["tool_choice"] = {"type": "auto"}
        budget = call["thinking"].get("budget_tokens")
        if isinstance(budget, int) and call["max_tokens"] <= budget:
            call["max_tokens"] = budget + _EARLIEST_MAX_TOKENS

    def _adapt(self, call: dict[str, Any], body: dict[str, Any]) -> None:
        """Move what this SDK's method does not know by name into the body."""
        if self._sdk_parameters is None:
            import inspect

            anthropic = self._module()
            self._sdk_parameters = frozenset(inspect.signature(anthropic.resources.Messages.create).parameters)
        for name in [n for n in call if n not in self._sdk_parameters]:
            body.setdefault(name, call.pop(name))

    def _hush(self, model: str) -> None:
        """No `DeprecationWarning` in our name when a model nears its end: which model to use is the caller's choice."""
        resource = getattr(getattr(self._module().resources, "messages", None), "messages", None)
        if model in getattr(resource, "DEPRECATED_MODELS", ()):
            warnings.filterwarnings("ignore", "The model ", DeprecationWarning, r"shared_core\.providers\.")


_CACHE: Mapping[str, Any] = {"cache_control": {"type": "ephemeral"}}


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _message(message: Message) -> dict[str, Any]:
    """One prepared message as the wire's."""
    blocks = [_block(p) for p in message.parts]
    if message.cache_hint and blocks:
        at = next((i for i in range(len(blocks) - 1, -1, -1) if "thinking" not in blocks[i]["type"]), None)
        if at is not None:  # thinking blocks take no mark
            blocks[at] |= _CACHE
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return {"role": message.role, "content": blocks[0]["text"]}
    return {"role": message.role, "content": blocks}


def _block(part: Part) -> dict[str, Any]:
    match part:
        case Text():
            return _text_block(part.text)
        case Image():
            return {"type": "image", "source": _source(part, "image/png")}
        case File():
            if part.data is not None and (part.media_type or "").startswith("text/"):
                text = part.data.decode("utf-8", "replace")
                source = {"type": "text", "media_type": "text/plain", "data": text}
            else:
                source = _source(part, "application/pdf")
            return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}
        case Reasoning():
            return _thought(part)
        case ToolCall():
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": part.parsed()}
        case ToolResult():
            block: dict[str, Any] = {"type": "tool_result", "tool_use_id": part.call_id}
            if part.content:
                block["content"] = [_block(p) for p in part.content]
            if part.is_error:
                block["is_error"] = True
            return block
        case _:
            raise ProviderError.of(ErrorKind.INCAPABLE, f"anthropic takes no {type(part).__name__.lower()}")


def _thought(part: Reasoning) -> dict[str, Any]:
    """A thinking block as it was issued, whichever way it came back to us: LangChain keeps its text elsewhere."""
    if "signature" in part.data:
        text = part.data.get("thinking", part.text)
        return {"type": "thinking", "thinking": text, "signature": part.data["signature"]}
    return {"type": "redacted_thinking", "data": part.data.get("data", "")}


def _source(part: Image | File, default: str) -> dict[str, Any]:
    if part.file_id is not None:
        return {"type": "file", "file_id": part.file_id}
    if part.url is not None:
        return {"type": "url", "url": part.url}
    return {"type": "base64", "media_type": part.media_type or default, "data": part.base64}


def _tool(tool: ToolSpec) -> dict[str, Any]:
    wire: dict[str, Any] = {"name": tool.name, "input_schema": dict(tool.parameters)}
    if tool.description:
        wire["description"] = tool.description
    if tool.strict:
        wire["strict"] = True
        wire["input_schema"] = closed(tool.parameters)
    return wire


def closed(schema: Any) -> Any:
    """The schema with every object closed, as Anthropic's structured outputs demand."""
    if isinstance(schema, Mapping):
        out = {key: closed(value) for key, value in schema.items()}
        if out.get("type") == "object" and "properties" in out:
            out.setdefault("additionalProperties", False)
        return out
    return [closed(item) for item in schema] if isinstance(schema, (list, tuple)) else schema


def _turn_without_thought(messages: Sequence[Message]) -> bool:
    """Whether the model is to go on with a turn (after tool results, or a text) that does not begin with a thought."""
    last = messages[-1] if messages else None
    if last is None or not (last.role == "assistant" or any(isinstance(p, ToolResult) for p in last.parts)):
        return False
    before = next((m for m in reversed(messages) if m.role == "assistant"), None)
    return before is None or not isinstance(before.parts[0], Reasoning)


# ── wire to events ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Fold:
    """Reads messages, as raw stream events or whole."""

    def __init__(
        self, names: Mapping[str, str], *, answer_tool: str | None, stripped: str, may_be_empty: bool = False
    ) -> None:
        self.content = False
        self.complete = False
        self._names = names
        self._answer_tool = answer_tool
        self._seam = stripped
        self._may_be_empty = may_be_empty
        self._id: str | None = None
        self._model: str | None = None
        self._reason: str | None = None
        self._stopped = False
        self._sequence: str | None = None
        self._usage: dict[str, int] = {}
        self._extra: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._answered = False
        self._citations: list[Any] = []

    def feed(self, chunk: Any) -> Sequence[ChatEvent]:
        return list(self._read(chunk))

    def _read(self, chunk: Any) -> Iterator[ChatEvent]:
        match getattr(chunk, "type", None):
            case "message_start":
                self._envelope(chunk.message)
                yield Started(self._id, self._model)
            case "content_block_start":
                yield from self._open(chunk.index, chunk.content_block)
            case "content_block_delta":
                yield from self._delta(chunk.index, chunk.delta)
            case "content_block_stop":
                yield from self._close(chunk.index)
            case "message_delta":
                self._reason = getattr(chunk.delta, "stop_reason", None) or self._reason
                self._sequence = getattr(chunk.delta, "stop_sequence", None) or self._sequence
                self._count(getattr(chunk, "usage", None))
                self.complete = self._reason is not None
            case "message_stop":
                self._stopped = True
            case _:  # an event of a future API: nothing of ours
                return

    def _envelope(self, message: Any) -> None:
        self._id = getattr(message, "id", None) or self._id
        self._model = getattr(message, "model", None) or self._model
        self._count(getattr(message, "usage", None))

    def _open(self, index: int, block: Any) -> Iterator[ChatEvent]:
        kind = getattr(block, "type", None)
        state: dict[str, Any] = {"type": kind, "text": "", "signature": "", "json": False}
        self._blocks[index] = state
        if kind == "text":
            yield from self._text(getattr(block, "text", ""))
        elif kind == "thinking":
            state["signature"] = getattr(block, "signature", "") or ""
            yield from self._thought(state, getattr(block, "thinking", ""))
        elif kind == "redacted_thinking":
            self.content = True
            yield ReasoningDelta("", {"type": "redacted_thinking", "data": getattr(block, "data", "")})
        elif kind == "tool_use":
            self.content = True
            given = getattr(block, "input", None)
            state["given"] = json.dumps(given, ensure_ascii=False) if given else ""
            if block.name == self._answer_tool:
                self._answered = True
                state["answer"] = True
            else:
                yield ToolCallDelta(index, block.id, self._names.get(block.name, block.name))

    def _delta(self, index: int, delta: Any) -> Iterator[ChatEvent]:
        state = self._blocks.setdefault(index, {"type": None, "text": "", "signature": "", "json": False})
        match getattr(delta, "type", None):
            case "text_delta":
                yield from self._text(delta.text)
            case "thinking_delta":
                yield from self._thought(state, delta.thinking)
            case "signature_delta":
                state["signature"] += delta.signature
            case "input_json_delta":
                if delta.partial_json and state["type"] == "tool_use":
                    state["json"] = True
                    yield self._arguments(index, state, delta.partial_json)
            case "citations_delta":
                self._citations.append(_plain(getattr(delta, "citation", None)))

    def _arguments(self, index: int, state: Mapping[str, Any], text: str) -> ChatEvent:
        return TextDelta(text) if state.get("answer") else ToolCallDelta(index, arguments=text)

    def _text(self, text: str) -> Iterator[ChatEvent]:
        if self._seam and text:
            text = self._sewn(text)
        if text:
            self.content = True
            yield TextDelta(text)

    def _sewn(self, text: str) -> str:
        """The API refuses a prefill that ends in blanks, so they were cut off; the model may now say them again."""
        blank = text[: len(text) - len(text.lstrip())]
        rest = text[len(blank) :]
        shared = 0
        while shared < min(len(blank), len(self._seam)) and blank[shared] == self._seam[shared]:
            shared += 1
        if rest:
            self._seam = ""
            return rest if shared < len(blank) and shared == 0 else blank[shared:] + rest
        self._seam = self._seam[shared:] if shared else ""
        return blank[shared:] if shared else ""

    def _thought(self, state: dict[str, Any], text: str) -> Iterator[ChatEvent]:
        state["text"] += text or ""
        if text:
            self.content = True
            yield ReasoningDelta(text)

    def _close(self, index: int) -> Iterator[ChatEvent]:
        state = self._blocks.get(index)
        if state is None:
            return
        if state["type"] == "thinking" and state["signature"]:
            yield ReasoningDelta("", {"type": "thinking", "thinking": state["text"], "signature": state["signature"]})
        elif state["type"] == "tool_use" and not state["json"] and state.get("given"):
            yield self._arguments(index, state, state["given"])

    def _count(self, usage: Any) -> None:
        """Figures in `message_delta` are cumulative, and only some are repeated there: the latest of each wins."""
        if usage is None:
            return
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            value = getattr(usage, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                self._usage[name] = value
        thinking = getattr(getattr(usage, "output_tokens_details", None), "thinking_tokens", None)
        if isinstance(thinking, int):
            self._usage["thinking_tokens"] = thinking
        tier = getattr(usage, "service_tier", None)
        if tier:
            self._extra["service_tier"] = tier

    def _total(self) -> Usage | None:
        if not self._usage:
            return None
        read = max(0, self._usage.get("cache_read_input_tokens", 0))
        written = max(0, self._usage.get("cache_creation_input_tokens", 0))
        output = max(0, self._usage.get("output_tokens", 0))
        thinking = min(max(0, self._usage.get("thinking_tokens", 0)), output)
        return Usage(max(0, self._usage.get("input_tokens", 0)) + read + written, output, read, written, thinking)

    def end(self, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        if not self.complete and not self._stopped:
            raise broken("the stream ended without a stop reason")
        if not self.content and self._reason == "end_turn" and not self._may_be_empty:
            raise malformed("the answer has no content", request_id=facts.get("request_id"))
        reason = _FINISH.get(self._reason or "end_turn", "other")
        if self._answered and reason == "tool_calls":
            reason = "stop"
        extra = {**self._extra, **facts}
        if self._sequence is not None:
            extra["stop_sequence"] = self._sequence
        if self._citations:
            extra["citations"] = list(self._citations)
        return [Finished(reason, self._reason, self._total(), self._id, self._model, extra)]

    def whole(self, response: Any, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        blocks = getattr(response, "content", None)
        if isinstance(response, (str, bytes)) or not isinstance(blocks, (list, tuple)):
            raise malformed("the server answered 200 with no message", request_id=facts.get("request_id"))
        self._envelope(response)
        self._reason = getattr(response, "stop_reason", None)
        self._sequence = getattr(response, "stop_sequence", None)
        if not blocks and self._reason is None:
            raise malformed("the answer has no content", request_id=facts.get("request_id"))
        events: list[ChatEvent] = [Started(self._id, self._model)]
        for index, block in enumerate(blocks):
            events += self._open(index, block)
            events += self._close(index)
            for citation in getattr(block, "citations", None) or ():
                self._citations.append(_plain(citation))
        self.complete = True
        return [*events, *self.end(facts)]


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(exclude_none=True) if dump is not None else value
