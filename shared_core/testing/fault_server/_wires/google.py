"""The Gemini wire: generateContent, whole, as server-sent events, or as a streamed JSON array."""

from __future__ import annotations

import json
import re
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
    dump,
    integer,
    last_text,
    load,
    plain,
    sse,
    strings,
    text_of,
)

_RPC = "type.googleapis.com/google.rpc."
_METRIC = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
_HELP: Json = {
    "@type": _RPC + "Help",
    "links": [
        {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
    ],
}
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details.\n* Quota exceeded for metric: "
    + _METRIC
    + ", limit: {limit}, model: {model}"
)


def _quota(period: str, limit: int, **more: Any) -> VendorError:
    failure: Json = {
        "@type": _RPC + "QuotaFailure",
        "violations": [
            {
                "quotaMetric": _METRIC,
                "quotaId": f"GenerateRequests{period}PerProjectPerModel-FreeTier",
                "quotaDimensions": {"location": "global", "model": "{model}"},
                **({"quotaValue": str(limit)} if limit else {}),
            }
        ],
    }
    message = _QUOTA.replace("{limit}", str(limit))
    return VendorError(status=429, type="RESOURCE_EXHAUSTED", message=message, details=(failure, _HELP), **more)


def _error(status: int, type_: str, message: str, code: str | None = None, **more: Any) -> VendorError:
    return VendorError(status=status, type=type_, message=message, code=code, **more)


def _page(status: int, title: str) -> str:
    return (
        f"<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <title>Error {status} ({title})!!1</title>\n"
        f"  <p><b>{status}.</b> <ins>That’s an error.</ins>\n"
    )


ERRORS: Mapping[str, VendorError] = {
    "bad-request": _error(400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "context-overflow": _error(
        400, "INVALID_ARGUMENT",
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ),
    "key-invalid": _error(
        400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", "API_KEY_INVALID"
    ),
    "unauthorized": _error(
        401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", "ACCESS_TOKEN_TYPE_UNSUPPORTED"
    ),
    "payment-required": _error(402, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
    "billing": _error(402, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
    "spend-limit": _error(
        429, "RESOURCE_EXHAUSTED", "Your project has exceeded its spend-based rate limit (rolling 10 minutes).",
        retry_after=600,
    ),
    "billing-inactive": _error(
        400, "FAILED_PRECONDITION",
        "Gemini API free tier is not available in your country. Please enable billing on your project in Google AI "
        "Studio.",
    ),
    "forbidden": _error(403, "PERMISSION_DENIED", "The caller does not have permission"),
    "region": _error(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    "model-not-found": _error(
        404, "NOT_FOUND",
        "models/{model} is not found for API version v1beta, or is not supported for generateContent. Call ListModels "
        "to see the list of available models and their supported methods.",
    ),
    "request-timeout": _error(408, "DEADLINE_EXCEEDED", "Request timed out."),
    "conflict": _error(409, "ABORTED", "The operation was aborted due to a conflict."),
    "too-large": _error(413, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes."),
    "unprocessable": _error(422, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "cancelled": _error(499, "CANCELLED", "The operation was cancelled."),
    "server-error": _error(
        500, "INTERNAL", "An internal error has occurred. Please retry or report in https://developers.generativeai.google/guide/troubleshooting"
    ),
    "bad-gateway": _error(502, "UNAVAILABLE", "Bad gateway", html=_page(502, "Server Error")),
    "unavailable": _error(503, "UNAVAILABLE", "The service is currently unavailable."),
    "gateway-timeout": _error(504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    "edge-520": _error(520, "UNKNOWN", "Unknown error", html=_page(520, "Unknown Error")),
    "overloaded": _error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "rate-limit": _quota("PerMinute", 10),
    "quota-day": _quota("PerDay", 250, retry_after=35643),
    "quota-zero": _quota("PerDay", 0, retry_after=36000),
    "reject-prefill": _error(
        400, "INVALID_ARGUMENT", "Please ensure that the conversation ends with a user role.",
    ),
}  # fmt: skip

STATUSES: Mapping[int, str] = {
    400: "bad-request", 401: "unauthorized", 402: "payment-required", 403: "forbidden", 404: "model-not-found",
    408: "request-timeout", 409: "conflict", 413: "too-large", 422: "unprocessable", 429: "rate-limit",
    499: "cancelled", 500: "server-error", 502: "bad-gateway", 503: "unavailable", 504: "gateway-timeout",
    520: "edge-520",
}  # fmt: skip

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "content_filter": "SAFETY"}
_METHODS: Mapping[str, Operation] = {
    "generateContent": "chat",
    "streamGenerateContent": "chat",
    "countTokens": "count",
}
_MODEL_PATH = re.compile(r"/(?:models|tunedModels)/(?P<model>[^/:]+)(?::(?P<method>\w+))?$")


class GoogleWire:
    """Gemini's `models/{model}:generateContent`, `:streamGenerateContent`, `:countTokens` and `models`."""

    name: WireName = "google"

    def read(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Ask:
        operation: Operation = "unknown"
        found = _MODEL_PATH.search(path)
        model = found["model"] if found else ""
        rpc = (found["method"] or "") if found else ""
        if method == "POST" and rpc in _METHODS:
            operation = _METHODS[rpc]
        elif method == "GET" and found and not rpc:
            operation = "model"
        elif method == "GET" and path.endswith("/models"):
            operation = "models"
        data, valid = load(body)
        inner = _pick(data, "generateContentRequest", "generate_content_request")
        spoken_to = inner if isinstance(inner, dict) else data
        config = _pick(data, "generationConfig", "generation_config") or {}
        turns = [(str(turn.get("role") or "user"), text_of(turn.get("parts"))) for turn in _contents(spoken_to)]
        system = _pick(spoken_to, "systemInstruction", "system_instruction") or {}
        return Ask(
            wire=self.name,
            operation=operation,
            method=method,
            path=path,
            query=query,
            model=model,
            body=data,
            valid_json=valid,
            streamed=rpc == "streamGenerateContent",
            sse=query.get("alt") == "sse",
            prompt=last_text(turns, "user"),
            said=last_text(turns, "model"),
            prefilled=bool(turns) and turns[-1][0] == "model",
            prompt_words=sum(count_words(text) for _, text in turns) + count_words(text_of(system.get("parts"))),
            tools=_tool_names(data),
            max_tokens=integer(_pick(config, "maxOutputTokens", "max_output_tokens")),
            stop=strings(_pick(config, "stopSequences", "stop_sequences")),
        )

    def check(self, ask: Ask) -> VendorError | None:
        if not ask.valid_json:
            return _error(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Unexpected token.")
        if ask.operation == "chat" and not _contents(ask.body):
            return _error(400, "INVALID_ARGUMENT", "* GenerateContentRequest.contents: contents is not specified\n")
        return None

    def whole(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json:
        parts: list[Json] = []
        if spoken.reasoning:
            parts.append({"text": spoken.reasoning, "thought": True})
        if spoken.text or not spoken.tool_calls:
            parts.append({"text": spoken.text})
        parts += [_call(call) for call in spoken.tool_calls]
        return self._response(ask, spoken, number, parts, finish=_finish(spoken))

    def stream(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        said: list[tuple[FrameKind, list[Json]]] = [
            ("reasoning", [{"text": piece, "thought": True}]) for piece in spoken.reasoning_pieces
        ]
        said += [("text", [{"text": piece}]) for piece in spoken.text_pieces]
        said += [("tool", [_call(call)]) for call in spoken.tool_calls]
        frames: list[Frame] = []
        done = 0
        for kind, parts in said:
            done += sum(count_words(part.get("text", "")) for part in parts)
            frames.append(self._frame(ask, kind, self._response(ask, spoken, number, parts, tokens=done), bool(frames)))
        last = self._response(ask, spoken, number, [{"text": ""}], finish=_finish(spoken))
        frames.append(self._frame(ask, "finish", last, bool(frames)))
        if not ask.sse:
            frames.append(Frame("end", b"]"))
        return frames

    def role_only(self, ask: Ask, spoken: Spoken, number: int, now: int) -> list[Frame]:
        return [self._frame(ask, "open", self._response(ask, spoken, number, None, tokens=0), later=False)]

    def _frame(self, ask: Ask, kind: FrameKind, response: Json, later: bool) -> Frame:
        if ask.sse:
            return Frame(kind, sse(response, newline="\r\n"))
        return Frame(kind, ((",\r\n" if later else "[") + dump(response)).encode())

    def _response(
        self,
        ask: Ask,
        spoken: Spoken,
        number: int,
        parts: list[Json] | None,
        *,
        finish: str | None = None,
        tokens: int | None = None,
    ) -> Json:
        content: Json = {"role": "model"} if parts is None else {"parts": parts, "role": "model"}
        candidate: Json = {"content": content, "index": 0}
        if finish:
            candidate["finishReason"] = finish
        return {
            "candidates": [candidate],
            **({"usageMetadata": _usage(spoken, tokens)} if spoken.counted else {}),
            "modelVersion": ask.model,
            "responseId": f"fault{number:017d}",
        }

    def malformed(self) -> Frame:
        return Frame("text", b'data: {"candidates":[{"content":{"parts":[{"te\r\n\r\n')

    def ping(self, ask: Ask) -> bytes:
        # Gemini sends no comments, and its SDK takes one for a broken chunk; blank lines are what every reader skips.
        return b"\r\n"

    def empty(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame]:
        return self._alone(ask, _without_candidates(self._response(ask, spoken, number, [])))

    def blocked(self, ask: Ask, spoken: Spoken, number: int, now: int) -> Json | list[Frame] | None:
        response = _without_candidates(self._response(ask, spoken, number, [], tokens=0))
        ratings = [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH"}]
        return self._alone(ask, {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": ratings}, **response})

    def _alone(self, ask: Ask, response: Json) -> Json | list[Frame]:
        """One response that is the whole answer."""
        if not ask.streamed:
            return response
        frames = [self._frame(ask, "usage", response, later=False)]
        return frames if ask.sse else [*frames, Frame("end", b"]")]

    def error_for(self, kind: str, ask: Ask) -> VendorError | None:
        return ERRORS.get(kind)

    def error_for_status(self, status: int, ask: Ask) -> VendorError:
        if status in STATUSES:
            return ERRORS[STATUSES[status]]
        return _error(status, "UNKNOWN", f"HTTP status {status}")

    def error_body(self, error: VendorError, ask: Ask, number: int) -> Json | list[Json]:
        body = self._error(error, ask)
        return [body] if ask.streamed and not ask.sse else body

    def _error(self, error: VendorError, ask: Ask) -> Json:
        details: list[Any] = [json.loads(dump(detail).replace("{model}", ask.model)) for detail in error.details]
        if error.code:
            info = {"@type": _RPC + "ErrorInfo", "reason": error.code, "domain": "googleapis.com"}
            details.append({**info, "metadata": {"service": "generativelanguage.googleapis.com"}})
        if error.retry_after is not None:
            text = error.retry_after if isinstance(error.retry_after, str) else f"{plain(error.retry_after)}s"
            details.append({"@type": _RPC + "RetryInfo", "retryDelay": text})
        inner: Json = {
            "code": error.status,
            "message": error.message.replace("{model}", ask.model),
            "status": error.type,
        }
        if details:
            inner["details"] = details
        return {"error": inner}

    def error_frame(self, error: VendorError, ask: Ask, number: int, *, later: bool) -> Frame:
        body = self._error(error, ask)
        if ask.sse:
            return Frame("end", sse(body, newline="\r\n"))
        return Frame("end", ((",\r\n" if later else "[") + dump(body) + "]").encode())

    def headers(self, number: int, now: float, *, throttled: bool) -> dict[str, str]:
        return {
            "server": "scaffolding on HTTPServer2",
            "server-timing": "gfet4t7; dur=1",
            "vary": "Origin, X-Origin, Referer",
        }

    def retry_headers(self, retry_after: float | str) -> dict[str, str]:
        return {}  # Gemini says it in the body: google.rpc.RetryInfo

    def count(self, ask: Ask) -> Json:
        return {
            "totalTokens": ask.prompt_words,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": ask.prompt_words}],
        }

    def models(self, names: list[str]) -> Json:
        return {"models": [self.model(name) for name in names]}

    def model(self, name: str) -> Json:
        return {
            "name": f"models/{name}",
            "version": "001",
            "displayName": name,
            "inputTokenLimit": 1_048_576,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }


def _pick(body: Json, *names: str) -> Any:
    """Gemini takes both spellings of a field."""
    return next((body[name] for name in names if name in body), None)


def _contents(body: Json) -> list[Json]:
    contents = body.get("contents")
    if isinstance(contents, dict):
        contents = [contents]
    return [turn for turn in contents if isinstance(turn, dict)] if isinstance(contents, list) else []


def _tool_names(body: Json) -> tuple[str, ...]:
    tools = body.get("tools") or []
    declared = [_pick(tool, "functionDeclarations", "function_declarations") or [] for tool in tools]
    return tuple(str(function.get("name")) for group in declared for function in group)


def _without_candidates(response: Json) -> Json:
    return {key: value for key, value in response.items() if key != "candidates"}


def _call(call: ToolCall) -> Json:
    args: Any = call.args
    if isinstance(args, str):
        try:
            args = json.loads(args)
        except ValueError:
            args = {"": args}
    function: Json = {"name": call.name, "args": dict(args)}
    return {"functionCall": {"id": call.id, **function} if call.id else function}


def _finish(spoken: Spoken) -> str:
    return _FINISH.get(spoken.finish, spoken.finish)


def _usage(spoken: Spoken, tokens: int | None = None) -> Json:
    """The usage; `tokens` is what has been said so far, thoughts included, where that is not everything."""
    said = spoken.completion_tokens if tokens is None else min(tokens, spoken.completion_tokens)
    thoughts = min(spoken.reasoning_tokens, said)
    usage: Json = {
        "promptTokenCount": spoken.prompt_tokens,
        "candidatesTokenCount": said - thoughts,
        "totalTokenCount": spoken.prompt_tokens + said,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": spoken.prompt_tokens}],
    }
    if spoken.cached_tokens:
        usage["cachedContentTokenCount"] = spoken.cached_tokens
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage
