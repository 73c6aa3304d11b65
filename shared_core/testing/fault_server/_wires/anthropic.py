"""The Anthropic wire: messages and token counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from shared_core.testing.fault_server._answers import Spoken, ToolCall, count_words
from shared_core.testing.fault_server._faults import WireName
from shared_core.testing.fault_server._wires.base import (
    Ask,
    Frame,
    FrameKind,
    Json,
    Operation,
    VendorError,
    edge_page,
    integer,
    last_text,
    load,
    plain,
    sse,
    strings,
    text_of,
)


def _error(status: int, type_: str, message: str, code: str | None = None, **more: Any) -> VendorError:
    return VendorError(status=status, type=type_, code=code, message=message, **more)


_INVALID = "invalid_request_error"
_RPM = (
    "This request would exceed your organization's rate limit of 50 requests per minute (model: {model}). Please "
    "reduce the rate of requests."
)
_SPENT = "You have reached your specified API usage limits. You will regain access on 2030-01-01 at 00:00 UTC."

ERRORS: Mapping[str, VendorError] = {
    "bad-request": _error(400, _INVALID, "messages: Input should be a valid list"),
    "context-overflow": _error(400, _INVALID, "prompt is too long: 214043 tokens > 200000 maximum"),
    "content-policy": _error(400, _INVALID, "Output blocked by content filtering policy"),
    "key-invalid": _error(401, "authentication_error", "invalid x-api-key"),
    "unauthorized": _error(401, "authentication_error", "invalid x-api-key"),
    "payment-required": _error(
        402, "billing_error",
        "Your credit balance is too low to access the API. Please go to Plans & Billing to upgrade.",
    ),
    "billing": _error(
        429, "rate_limit_error",
        "Your organization has reached its spend limit. Access returns on 2030-01-01 at 00:00 UTC.",
        "enforced_spend_limit_reached",
    ),
    "spend-limit": _error(400, _INVALID, _SPENT),
    "billing-inactive": _error(403, "permission_error", "This organization is on hold.", "organization_on_hold"),
    "forbidden": _error(
        403, "permission_error", "Your API key does not have permission to use the specified resource."
    ),
    "region": _error(403, "forbidden", "Request not allowed"),
    "model-not-found": _error(404, "not_found_error", "model: {model}"),
    "request-timeout": _error(408, "timeout_error", "Request timed out."),
    "conflict": _error(409, "conflict_error", "The request conflicts with another one in progress."),
    "too-large": _error(413, "request_too_large", "Request exceeds the maximum size"),
    "unprocessable": _error(422, _INVALID, "Unprocessable entity"),
    "server-error": _error(500, "api_error", "Internal server error"),
    "bad-gateway": _error(502, "api_error", "Bad gateway", html=edge_page(502, "Bad Gateway")),
    "unavailable": _error(503, "api_error", "Service unavailable"),
    "gateway-timeout": _error(
        504, "timeout_error", "The request timed out while processing. Use streaming for long requests."
    ),
    "edge-520": _error(520, "api_error", "Unknown error", html=edge_page(520, "Web server error")),
    "overloaded": _error(529, "overloaded_error", "Overloaded"),
    "no-retry": _error(500, "api_error", "Internal server error", headers={"x-should-retry": "false"}),
    "rate-limit": _error(429, "rate_limit_error", _RPM),
    "ramp": _error(
        429, "rate_limit_error",
        "Your usage has increased too quickly (acceleration limit). Please ramp up gradually.",
        "ramp_limit_exceeded", retry_after=1,
    ),
    "reject-prefill": _error(
        400, _INVALID,
        "This model does not support assistant message prefill. The conversation must end with a user message.",
    ),
}  # fmt: skip

STATUSES: Mapping[int, str] = {
    400: "bad-request", 401: "unauthorized", 402: "payment-required", 403: "forbidden", 404: "model-not-found",
    408: "request-timeout", 409: "conflict", 413: "too-large", 422: "unprocessable", 429: "rate-limit",
    500: "server-error", 502: "bad-gateway", 503: "unavailable", 504: "gateway-timeout", 520: "edge-520",
    529: "overloaded",
}  # fmt: skip

_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class AnthropicWire:
    """Anthropic's `/v1/messages`, `/v1/messages/count_tokens` and `/v1/models`."""

    name: WireName = "anthropic"

    def read(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Ask:
        operation: Operation = "unknown"
        model = ""
        if method == "POST" and path.endswith("/messages"):
            operation = "chat"
        elif method == "POST" and path.endswith("/messages/count_tokens"):
            operation = "count"
        elif method == "GET" and path.endswith("/models"):
            operation = "models"
        elif method == "GET" and "/models/" in path:
            operation, model = "model", path.rsplit("/models/", 1)[1]
        data, valid = load(body)
        turns = [(str(m.get("role")), text_of(m.get("content"))) for m in _messages(data)]
        return Ask(
            wire=self.name,
            operation=operation,
            method=method,
            path=path,
            query=query,
            model=model or str(data.get("model", "")),
            body=data,
            valid_json=valid,
            streamed=data.get("stream") is True,
            prompt=last_text(turns, "user"),
            said=last_text(turns, "assistant"),
            prefilled=bool(turns) and turns[-1][0] == "assistant",
            prompt_words=sum(count_words(text) for _, text in turns) + count_words(text_of(data.get("system"))),
            tools=tuple(str(tool.get("name")) for tool in data.get("tools") or ()),
            max_tokens=integer(data.get("max_tokens")),
            stop=strings(data.get("stop_sequences")),
        )

    def check(self, ask: Ask) -> VendorError | None:
        if not ask.valid_json:
            return _error(400, _INVALID, "The request body is not valid JSON")
        if not ask.model:
            return _error(400, _INVALID, "model: Field required")
        if not _messages(ask.body):
            return _error(400, _INVALID, "messages: Field required")
        if ask.operation == "chat" and ask.max_tokens is None:
            return _error(400, _INVALID, "max_tokens: Field required")
        if ask.prefilled and ask.said != ask.said.rstrip():
            return _error(400, _INVALID, "messages: final assistant content cannot end with trailing whitespace")
        return None

    def whole(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json:
        content: list[Json] = []
        if spoken.reasoning:
            content.append({"type": "thinking", "thinking": spoken.reasoning, "signature": _signature(number)})
        if spoken.text or not spoken.tool_calls:
            content.append({"type": "text", "text": spoken.text})
        for i, call in enumerate(spoken.tool_calls):
            content.append(
                {"type": "tool_use", "id": _call_id(call, number, i), "name": call.name, "input": _input(call)}
            )
        message = self._message(ask, spoken, number)
        message["content"] = content
        message["stop_reason"] = _finish(spoken)
        message["stop_sequence"] = spoken.stop_sequence
        if spoken.counted:
            message["usage"]["output_tokens"] = spoken.completion_tokens
        return message

    def stream(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        frames = self.role_only(ask, spoken, number, now)[:1]
        index = 0

        def block(kind: FrameKind, start: Json, deltas: list[Json]) -> None:
            nonlocal index
            first: FrameKind = "tool" if kind == "tool" else "open"
            frames.append(_event(first, "content_block_start", index=index, content_block=start))
            if index == 0:
                frames.append(Frame("open", self.ping(ask)))
            for delta in deltas:
                frames.append(_event(kind, "content_block_delta", index=index, delta=delta))
            frames.append(_event("close" if kind == "text" else kind, "content_block_stop", index=index))
            index += 1

        if spoken.reasoning:
            deltas: list[Json] = [{"type": "thinking_delta", "thinking": piece} for piece in spoken.reasoning_pieces]
            deltas.append({"type": "signature_delta", "signature": _signature(number)})
            block("reasoning", {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        if spoken.text or not spoken.tool_calls:
            deltas = [{"type": "text_delta", "text": piece} for piece in spoken.text_pieces]
            block("text", {"type": "text", "text": ""}, deltas)
        for i, call in enumerate(spoken.tool_calls):
            deltas = [{"type": "input_json_delta", "partial_json": ""}]
            deltas += [
                {"type": "input_json_delta", "partial_json": piece} for piece in spoken.answer.pieces(call.arguments)
            ]
            block("tool", {"type": "tool_use", "id": _call_id(call, number, i), "name": call.name, "input": {}}, deltas)
        delta = {"stop_reason": _finish(spoken), "stop_sequence": spoken.stop_sequence}
        usage = {**_input_usage(spoken), "output_tokens": spoken.completion_tokens, **_thinking_usage(spoken)}
        counted = {"usage": usage} if spoken.counted else {}
        frames.append(_event("finish", "message_delta", delta=delta, **counted))
        frames.append(_event("end", "message_stop"))
        return frames

    def role_only(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        block = {"type": "text", "text": ""}
        return [
            _event("open", "message_start", message=self._message(ask, spoken, number)),
            _event("open", "content_block_start", index=0, content_block=block),
            Frame("open", self.ping(ask)),
        ]

    def _message(self, ask: Ask, spoken: Spoken, number: int) -> Json:
        message: Json = {
            "id": f"msg_01{number:022d}",
            "type": "message",
            "role": "assistant",
            "model": ask.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        if spoken.counted:
            written = {"ephemeral_5m_input_tokens": spoken.cache_write_tokens, "ephemeral_1h_input_tokens": 0}
            message["usage"] = {
                **_input_usage(spoken),
                "cache_creation": written,
                "output_tokens": 1,
                "service_tier": "standard",
                **_thinking_usage(spoken),
            }
        return message

    def malformed(self) -> Frame:
        text = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_del\n\n'
        )
        return Frame("text", text)

    def ping(self, ask: Ask) -> bytes:
        return sse({"type": "ping"}, event="ping")

    def empty(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame]:
        if not ask.streamed:
            return {**self.whole(ask, spoken, number, now), "content": []}
        frames = self.stream(ask, spoken, number, now)
        return [frames[0], *(frame for frame in frames if frame.kind in {"finish", "end"})]

    def blocked(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame] | None:
        return None

    def error_for(self, kind: str, ask: Ask) -> VendorError | None:
        return ERRORS.get(kind)

    def error_for_status(self, status: int, ask: Ask) -> VendorError:
        if status in STATUSES:
            return ERRORS[STATUSES[status]]
        return _error(status, "api_error" if status >= 500 else _INVALID, f"HTTP status {status}")

    def error_body(self, error: VendorError, ask: Ask, number: int) -> Json:
        inner: Json = {"type": error.type, "message": error.message.replace("{model}", ask.model)}
        if error.code:
            inner["details"] = {"error_code": error.code}
        return {"type": "error", "error": inner, "request_id": _request_id(number)}

    def error_frame(self, error: VendorError, ask: Ask, number: int, *, later: bool) -> Frame:
        return Frame("end", sse(self.error_body(error, ask, number), event="error"))

    def headers(self, number: int, now: float, *, throttled: bool) -> dict[str, str]:
        reset = (datetime.fromtimestamp(int(now), UTC) + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "request-id": _request_id(number),
            "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "0" if throttled else "49",
            "anthropic-ratelimit-requests-reset": reset,
            "anthropic-ratelimit-tokens-limit": "100000",
            "anthropic-ratelimit-tokens-remaining": "99000",
            "anthropic-ratelimit-tokens-reset": reset,
            "anthropic-ratelimit-input-tokens-limit": "80000",
            "anthropic-ratelimit-input-tokens-remaining": "79000",
            "anthropic-ratelimit-input-tokens-reset": reset,
            "anthropic-ratelimit-output-tokens-limit": "20000",
            "anthropic-ratelimit-output-tokens-remaining": "20000",
            "anthropic-ratelimit-output-tokens-reset": reset,
        }

    def retry_headers(self, retry_after: float | str) -> dict[str, str]:
        return {"retry-after": plain(retry_after)}

    def count(self, ask: Ask) -> Json:
        return {"input_tokens": ask.prompt_words}

    def models(self, names: list[str]) -> Json:
        data = [self.model(name) for name in names]
        return {
            "data": data,
            "has_more": False,
            "first_id": names[0] if names else None,
            "last_id": names[-1] if names else None,
        }

    def model(self, name: str) -> Json:
        return {"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"}


def _messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _event(kind: FrameKind, event: str, **fields: Any) -> Frame:
    return Frame(kind, sse({"type": event, **fields}, event=event))


def _request_id(number: int) -> str:
    return f"req_011C{number:020d}"


def _signature(number: int) -> str:
    return f"EqQBfault{number:08d}=="


def _call_id(call: ToolCall, number: int, index: int) -> str:
    return call.id or f"toolu_01{number:019d}{index:03d}"


def _input(call: ToolCall) -> Any:
    if not isinstance(call.args, str):
        return dict(call.args)
    try:
        return json.loads(call.args)
    except ValueError:
        return call.args


def _finish(spoken: Spoken) -> str:
    return "stop_sequence" if spoken.stop_sequence is not None else _FINISH.get(spoken.finish, spoken.finish)


def _input_usage(spoken: Spoken) -> Json:
    return {
        "input_tokens": max(0, spoken.prompt_tokens - spoken.cached_tokens - spoken.cache_write_tokens),
        "cache_creation_input_tokens": spoken.cache_write_tokens,
        "cache_read_input_tokens": spoken.cached_tokens,
    }


def _thinking_usage(spoken: Spoken) -> Json:
    return {"output_tokens_details": {"thinking_tokens": spoken.reasoning_tokens}} if spoken.reasoning_tokens else {}
