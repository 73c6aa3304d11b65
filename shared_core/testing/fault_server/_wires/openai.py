"""The OpenAI wire: chat completions, as OpenAI and the many compatible vendors speak them."""

from __future__ import annotations

from collections.abc import Mapping
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

_ORGANIZATION = "org-faultserver"


def _error(status: int, type_: str, code: str | None, message: str, **more: Any) -> VendorError:
    return VendorError(status=status, type=type_, code=code, message=message, **more)


_INVALID = "invalid_request_error"
_LIMIT = "rate_limit_exceeded"
_RPM = (
    "Rate limit reached for {model} in organization org-faultserver on requests per min (RPM): Limit 500, Used 500, "
    "Requested 1. Please try again in 120ms."
)
_QUOTA = "You exceeded your current quota, please check your plan and billing details."
_SERVER = (
    "The server had an error while processing your request. Sorry about that! You can retry your request, or contact "
    "us if the error persists."
)

ERRORS: Mapping[str, VendorError] = {
    "bad-request": _error(400, _INVALID, None, "Invalid value for 'messages': expected an array of messages."),
    "context-overflow": _error(
        400, _INVALID, "context_length_exceeded",
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 140312 tokens. "
        "Please reduce the length of the messages.",
    ),
    "content-policy": _error(
        400, _INVALID, "content_filter",
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a "
        "different prompt.",
    ),
    "key-invalid": _error(
        401, _INVALID, "invalid_api_key", "Incorrect API key provided: sk-fault********************0000."
    ),
    "unauthorized": _error(401, _INVALID, "invalid_api_key", "You didn't provide a valid API key."),
    "payment-required": _error(
        402, "insufficient_quota", "credit_balance_exhausted", "Your credit balance is exhausted."
    ),
    "billing": _error(429, "insufficient_quota", "insufficient_quota", _QUOTA),
    "spend-limit": _error(
        429, "insufficient_quota", "project_spend_limit_exceeded", "This project has reached its spend limit."
    ),
    "billing-inactive": _error(
        429, "billing_not_active", "billing_not_active",
        "Your account is not active, please check your billing details on our website.",
    ),
    "forbidden": _error(403, _INVALID, "model_not_found", "Project does not have access to model `{model}`."),
    "region": _error(
        403, "request_forbidden", "unsupported_country_region_territory", "Country, region, or territory not supported"
    ),
    "model-not-found": _error(
        404, _INVALID, "model_not_found", "The model `{model}` does not exist or you do not have access to it."
    ),
    "request-timeout": _error(408, "timeout", None, "Request timed out."),
    "conflict": _error(409, "conflict", None, "The resource was updated by another request."),
    "too-large": _error(413, _INVALID, None, "Request body is too large."),
    "unprocessable": _error(422, _INVALID, None, "Unprocessable entity."),
    "server-error": _error(500, "server_error", None, _SERVER),
    "bad-gateway": _error(502, "server_error", None, "Bad gateway.", html=edge_page(502, "Bad Gateway")),
    "unavailable": _error(503, "server_error", None, "The engine is currently overloaded, please try again later."),
    "gateway-timeout": _error(504, "server_error", None, "Gateway timeout.", html=edge_page(504, "Gateway Time-out")),
    "edge-520": _error(520, "server_error", None, "Unknown error.", html=edge_page(520, "Web server error")),
    "overloaded": _error(
        503, "service_unavailable_error", "server_is_overloaded",
        "Our servers are currently overloaded. Please try again later.",
    ),
    "no-retry": _error(500, "server_error", None, _SERVER, headers={"x-should-retry": "false"}),
    "rate-limit": _error(429, "requests", _LIMIT, _RPM),
    "ramp": _error(
        429, "rate_limit_error", "slow_down",
        "Your request rate has increased too quickly. Please reduce it and ramp up gradually.", retry_after=1,
    ),
    "quota-day": _error(
        429, "requests", _LIMIT,
        "Rate limit reached for {model} in organization org-faultserver on requests per day (RPD): Limit 200, "
        "Used 200, Requested 1. Please try again in 7m12s.", retry_after=432,
    ),
    "tpm-too-large": _error(
        429, "tokens", _LIMIT,
        "Request too large for {model} in organization org-faultserver on tokens per min (TPM): Limit 30000, Requested "
        "40312. The input or output tokens must be reduced in order to run successfully.",
    ),
    "reject-prefill": _error(
        400, _INVALID, None, "This model does not support a conversation that ends with an assistant message."
    ),
}  # fmt: skip

STATUSES: Mapping[int, str] = {
    400: "bad-request", 401: "unauthorized", 402: "payment-required", 403: "forbidden", 404: "model-not-found",
    408: "request-timeout", 409: "conflict", 413: "too-large", 422: "unprocessable", 429: "rate-limit",
    500: "server-error", 502: "bad-gateway", 503: "unavailable", 504: "gateway-timeout", 520: "edge-520",
}  # fmt: skip

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}


class OpenAIWire:
    """OpenAI's `/chat/completions` and `/models`."""

    name: WireName = "openai"

    def read(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Ask:
        operation: Operation = "unknown"
        model = ""
        if method == "POST" and path.endswith("/chat/completions"):
            operation = "chat"
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
            prompt_words=sum(count_words(text) for _, text in turns),
            tools=tuple(str(tool.get("function", {}).get("name")) for tool in data.get("tools") or ()),
            max_tokens=integer(data.get("max_completion_tokens")) or integer(data.get("max_tokens")),
            stop=strings(data.get("stop")),
            include_usage=bool((data.get("stream_options") or {}).get("include_usage")),
        )

    def check(self, ask: Ask) -> VendorError | None:
        if not ask.valid_json:
            return _error(400, _INVALID, None, "We could not parse the JSON body of your request.")
        if not ask.model:
            return _error(400, _INVALID, None, "you must provide a model parameter")
        if not _messages(ask.body):
            return _error(400, _INVALID, "missing_required_parameter", "Missing required parameter: 'messages'.")
        return None

    def whole(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json:
        message: Json = {
            "role": "assistant",
            "content": spoken.text or (None if spoken.tool_calls else ""),
            "refusal": None,
        }
        if spoken.reasoning:
            message["reasoning_content"] = spoken.reasoning
        if spoken.tool_calls:
            message["tool_calls"] = [
                {"id": _call_id(call, number, i), "type": "function",
                 "function": {"name": call.name, "arguments": call.arguments}}
                for i, call in enumerate(spoken.tool_calls)
            ]  # fmt: skip
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(spoken)}
        return {
            **_envelope(ask, number, now, "chat.completion"),
            "choices": [choice],
            **({"usage": _usage(spoken)} if spoken.counted else {}),
            "service_tier": "default",
        }

    def stream(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        frames = self.role_only(ask, spoken, number, now)

        def add(kind: FrameKind, delta: Json, finish: str | None = None) -> None:
            frames.append(self._chunk(ask, number, now, kind, delta, finish))

        for piece in spoken.reasoning_pieces:
            add("reasoning", {"reasoning_content": piece})
        for piece in spoken.text_pieces:
            add("text", {"content": piece})
        for i, call in enumerate(spoken.tool_calls):
            head = {"index": i, "id": _call_id(call, number, i), "type": "function"}
            add("tool", {"tool_calls": [{**head, "function": {"name": call.name, "arguments": ""}}]})
            for piece in spoken.answer.pieces(call.arguments):
                add("tool", {"tool_calls": [{"index": i, "function": {"arguments": piece}}]})
        add("finish", {}, _finish(spoken))
        if ask.include_usage and spoken.counted:
            chunk = {**_envelope(ask, number, now, "chat.completion.chunk"), "choices": [], "usage": _usage(spoken)}
            frames.append(Frame("usage", sse(chunk)))
        frames.append(Frame("end", sse("[DONE]")))
        return frames

    def role_only(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        delta: Json = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(ask, number, now, "open", delta)]

    def _chunk(self, ask: Ask, number: int, now: int, kind: FrameKind, delta: Json, finish: str | None = None) -> Frame:
        chunk = _envelope(ask, number, now, "chat.completion.chunk")
        chunk["choices"] = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if ask.include_usage:
            chunk["usage"] = None
        return Frame(kind, sse(chunk))

    def malformed(self) -> Frame:
        return Frame(
            "text", b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"delta":{"con\n\n'
        )

    def ping(self, ask: Ask) -> bytes:
        return b": ping\n\n"

    def empty(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame]:
        if not ask.streamed:
            return {**self.whole(ask, spoken, number, now), "choices": []}
        chunk = {**_envelope(ask, number, now, "chat.completion.chunk"), "choices": [], "usage": _usage(spoken)}
        return [Frame("usage", sse(chunk)), Frame("end", sse("[DONE]"))]

    def blocked(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame] | None:
        return None

    def error_for(self, kind: str, ask: Ask) -> VendorError | None:
        return ERRORS.get(kind)

    def error_for_status(self, status: int, ask: Ask) -> VendorError:
        if status in STATUSES:
            return ERRORS[STATUSES[status]]
        return _error(status, "server_error" if status >= 500 else _INVALID, None, f"HTTP status {status}.")

    def error_body(self, error: VendorError, ask: Ask, number: int) -> Json:
        message = error.message.replace("{model}", ask.model)
        return {"error": {"message": message, "type": error.type, "param": None, "code": error.code}}

    def error_frame(self, error: VendorError, ask: Ask, number: int, *, later: bool) -> Frame:
        return Frame("end", sse(self.error_body(error, ask, number)))

    def headers(self, number: int, now: float, *, throttled: bool) -> dict[str, str]:
        return {
            "x-request-id": f"req_{number:032x}",
            "openai-organization": _ORGANIZATION,
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-limit-tokens": "200000",
            "x-ratelimit-remaining-requests": "0" if throttled else "499",
            "x-ratelimit-remaining-tokens": "199000",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-reset-tokens": "6m0s",
        }

    def retry_headers(self, retry_after: float | str) -> dict[str, str]:
        return {"retry-after": plain(retry_after)}

    def count(self, ask: Ask) -> Json:
        raise NotImplementedError("OpenAI counts no tokens")

    def models(self, names: list[str]) -> Json:
        return {"object": "list", "data": [self.model(name) for name in names]}

    def model(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "system"}


def _messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _envelope(ask: Ask, number: int, now: int, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{number:029d}",
        "object": kind,
        "created": now,
        "model": ask.model,
        "system_fingerprint": "fp_faultserver",
    }


def _call_id(call: ToolCall, number: int, index: int) -> str:
    return call.id or f"call_{number:021d}{index:03d}"


def _finish(spoken: Spoken) -> str:
    return _FINISH.get(spoken.finish, spoken.finish)


def _usage(spoken: Spoken) -> Json:
    return {
        "prompt_tokens": spoken.prompt_tokens,
        "completion_tokens": spoken.completion_tokens,
        "total_tokens": spoken.prompt_tokens + spoken.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": spoken.cached_tokens,
            "cache_write_tokens": spoken.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": spoken.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
