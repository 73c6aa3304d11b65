"""The error table, read row by row: what each vendor's failures mean, and what is no failure of a vendor at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared_core.errors import RULES, Disposition, ErrorKind, ProviderError
from shared_core.providers.classify import classify_body, classify_error, timeout_error
from shared_core.providers.error_table import CODES, GENERIC, STATUS, TEXTS
from shared_core.resilience.deadline import Guard

K = ErrorKind


def openai(code: str | None = None, kind: str = "invalid_request_error", message: str = "said") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


def anthropic(kind: str, message: str = "said", code: str | None = None) -> dict[str, Any]:
    details = {"details": {"error_code": code}} if code else {}
    return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}


def google(status: str, message: str = "said", *details: dict[str, Any], code: int = 429) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


def quota(quota_id: str, value: str = "20") -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": quota_id, "quotaValue": value}],
    }


def info(reason: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}


BODIES: list[tuple[str, int | None, Any, ErrorKind]] = [
    # ── OpenAI ───────────────────────────────────────────────────────────────────────────────────────────────────
    ("openai", 400, openai(), K.BAD_REQUEST),
    ("openai", 422, openai(), K.BAD_REQUEST),
    ("openai", 400, openai("context_length_exceeded"), K.CONTEXT_OVERFLOW),
    ("openai", 400, openai("bio_policy"), K.POLICY),
    ("openai", 400, openai("misalignment_policy_violation"), K.POLICY),
    ("openai", 400, openai("some_new_policy_violation"), K.POLICY),
    ("openai", 400, openai("content_filter"), K.POLICY),
    (
        "openai",
        400,
        openai("unsupported_value", message="'temperature' does not support 0.5 with this model"),
        K.INCAPABLE,
    ),
    ("openai", 401, openai("invalid_api_key"), K.AUTH),
    ("openai", 403, openai("unsupported_country_region_territory", "request_forbidden"), K.FORBIDDEN),
    ("openai", 403, openai("model_not_found"), K.FORBIDDEN),
    ("openai", 404, openai("model_not_found"), K.NOT_FOUND),
    ("openai", 408, openai(None, "timeout"), K.TRANSIENT),
    ("openai", 409, openai(None, "conflict"), K.CONFLICT),
    ("openai", 413, openai(), K.TOO_LARGE),
    ("openai", 429, openai("rate_limit_exceeded", "requests"), K.THROTTLED),
    ("openai", 429, openai("rate_limit_exceeded", "tokens"), K.THROTTLED),
    ("openai", 429, openai("slow_down", "rate_limit_error"), K.RAMP),
    ("openai", 503, openai("slow_down", "rate_limit_error"), K.RAMP),
    ("openai", 429, openai("insufficient_quota", "insufficient_quota"), K.BILLING),
    ("openai", 429, openai("credit_balance_exhausted", "insufficient_quota"), K.BILLING),
    ("openai", 429, openai("organization_spend_limit_exceeded", "insufficient_quota"), K.BILLING),
    ("openai", 429, openai("project_spend_limit_exceeded", "insufficient_quota"), K.BILLING),
    ("openai", 429, openai("organization_usage_limit_exceeded", "insufficient_quota"), K.BILLING),
    ("openai", 429, openai("billing_not_active", "billing_not_active"), K.BILLING),
    (
        "openai",
        429,
        openai("rate_limit_exceeded", "tokens", "Request too large for gpt-x on tokens per min"),
        K.TOO_LARGE,
    ),
    ("openai", 429, openai("rate_limit_exceeded", "requests", "Limit reached on requests per day (RPD)"), K.QUOTA_DAY),
    ("openai", 500, openai(None, "server_error"), K.TRANSIENT),
    ("openai", 502, "<html><title>502 Bad Gateway</title></html>", K.TRANSIENT),
    ("openai", 504, "<html><title>504</title></html>", K.TRANSIENT),
    ("openai", 520, "", K.TRANSIENT),
    ("openai", 524, "", K.TRANSIENT),
    ("openai", 503, openai("server_is_overloaded", "service_unavailable_error"), K.OVERLOADED),
    ("openai", 503, openai("flex_unavailable"), K.OVERLOADED),
    ("openai", 429, openai("flex_unavailable"), K.OVERLOADED),
    ("openai", 200, openai(None, "server_error"), K.TRANSIENT),
    ("openai", None, {"message": "Overloaded", "code": 502}, K.TRANSIENT),
    ("openai", 418, openai(), K.BAD_REQUEST),
    ("openai", 599, "", K.TRANSIENT),
    ("openai", 307, "", K.CONFIG),
    ("openai", 407, "<html></html>", K.CONFIG),
    ("openai", 400, openai("a_code_nobody_knows"), K.BAD_REQUEST),
    ("openai", 500, openai("a_code_nobody_knows"), K.TRANSIENT),
    # ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────
    (
        "anthropic",
        400,
        anthropic("invalid_request_error", "`temperature` is deprecated for this model."),
        K.INCAPABLE,
    ),
    ("anthropic", 400, anthropic("invalid_request_error"), K.BAD_REQUEST),
    (
        "anthropic",
        400,
        anthropic(
            "invalid_request_error",
            "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
        ),
        K.BILLING,
    ),
    (
        "anthropic",
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        K.BILLING,
    ),
    ("anthropic", 400, anthropic("invalid_request_error", "x", "enforced_spend_limit_reached"), K.BILLING),
    ("anthropic", 401, anthropic("authentication_error"), K.AUTH),
    ("anthropic", 402, anthropic("billing_error"), K.BILLING),
    ("anthropic", 403, anthropic("permission_error"), K.FORBIDDEN),
    ("anthropic", 403, anthropic("permission_error", "x", "organization_on_hold"), K.FORBIDDEN),
    ("anthropic", 404, anthropic("not_found_error"), K.NOT_FOUND),
    ("anthropic", 409, anthropic("conflict_error"), K.CONFLICT),
    ("anthropic", 413, anthropic("request_too_large"), K.TOO_LARGE),
    ("anthropic", 429, anthropic("rate_limit_error"), K.THROTTLED),
    ("anthropic", 429, anthropic("rate_limit_error", "x", "ramp_limit_exceeded"), K.RAMP),
    ("anthropic", 429, anthropic("rate_limit_error", "x", "enforced_spend_limit_reached"), K.BILLING),
    ("anthropic", 429, anthropic("rate_limit_error", "x", "contract_spend_limit_reached"), K.BILLING),
    ("anthropic", 429, anthropic("rate_limit_error", "x", "linked_organization_spend_limit_reached"), K.BILLING),
    ("anthropic", 500, anthropic("api_error"), K.TRANSIENT),
    ("anthropic", 504, anthropic("timeout_error"), K.TRANSIENT),
    ("anthropic", 529, anthropic("overloaded_error"), K.OVERLOADED),
    ("anthropic", 200, anthropic("overloaded_error"), K.OVERLOADED),
    ("anthropic", 200, anthropic("api_error"), K.TRANSIENT),
    ("anthropic", 200, anthropic("rate_limit_error"), K.THROTTLED),
    # ── Gemini ───────────────────────────────────────────────────────────────────────────────────────────────────
    ("google", 400, google("INVALID_ARGUMENT", code=400), K.BAD_REQUEST),
    ("google", 400, {"error": {"code": "invalid_request", "message": "said"}}, K.BAD_REQUEST),
    ("google", 400, google("INVALID_ARGUMENT", "x", info("API_KEY_INVALID"), code=400), K.AUTH),
    (
        "google",
        400,
        google("FAILED_PRECONDITION", "User location is not supported for the API use.", code=400),
        K.FORBIDDEN,
    ),
    ("google", 400, google("FAILED_PRECONDITION", "Please enable billing on your project.", code=400), K.BILLING),
    ("google", 400, google("FAILED_PRECONDITION", "x", code=400), K.FORBIDDEN),
    ("google", 402, google("RESOURCE_EXHAUSTED", "x", code=402), K.BILLING),
    ("google", 402, {"error": {"code": "payment_required", "message": "said"}}, K.BILLING),
    ("google", 403, google("PERMISSION_DENIED", code=403), K.FORBIDDEN),
    ("google", 404, google("NOT_FOUND", code=404), K.NOT_FOUND),
    (
        "google",
        429,
        google("RESOURCE_EXHAUSTED", "check your plan and billing details", quota("PerMinutePerProject")),
        K.THROTTLED,
    ),
    ("google", 429, google("RESOURCE_EXHAUSTED", "x", quota("GenerateRequestsPerDayPerProjectPerModel")), K.QUOTA_DAY),
    ("google", 429, {"error": {"code": "quota_exceeded", "message": "said"}}, K.QUOTA_DAY),
    ("google", 429, {"error": {"code": "rate_limit_exceeded", "message": "said"}}, K.THROTTLED),
    (
        "google",
        429,
        google("RESOURCE_EXHAUSTED", "Quota exceeded for metric, limit: 0, model: x", quota("PerDay")),
        K.NO_ENTITLEMENT,
    ),
    ("google", 429, google("RESOURCE_EXHAUSTED", "x", quota("PerDay", "0")), K.NO_ENTITLEMENT),
    ("google", 429, google("RESOURCE_EXHAUSTED", "spend based limit"), K.THROTTLED),
    ("google", 499, google("CANCELLED", code=499), K.CANCELLED),
    ("google", 500, google("INTERNAL", code=500), K.TRANSIENT),
    ("google", 503, google("UNAVAILABLE", code=503), K.OVERLOADED),
    ("google", 504, google("DEADLINE_EXCEEDED", code=504), K.TIMEOUT),
    ("google", 429, [google("RESOURCE_EXHAUSTED", "x", quota("PerDay"))], K.QUOTA_DAY),
    # ── gateways ─────────────────────────────────────────────────────────────────────────────────────────────────
    (
        "openrouter",
        402,
        {"error": {"code": 402, "message": "x", "metadata": {"error_type": "in_flight_budget_exhausted"}}},
        K.THROTTLED,
    ),
    ("openrouter", 402, {"error": {"code": "weight_exceeds_budget", "message": "x"}}, K.TOO_LARGE),
    ("openrouter", 402, {"error": {"code": 402, "message": "This request requires more credits"}}, K.BILLING),
    ("openrouter", 403, {"error": {"code": 403, "message": "Key limit exceeded (total limit)"}}, K.BILLING),
    ("openrouter", 403, {"error": {"code": 403, "message": "Guardrail budget exceeded"}}, K.BILLING),
    ("openrouter", 403, {"error": {"code": 403, "message": "Your input requires moderation"}}, K.POLICY),
    ("openrouter", 404, {"error": {"code": 404, "message": "No endpoints found that support tool use"}}, K.INCAPABLE),
    ("openai-compatible", 412, {"error": {"code": "virtual_key_budget_exceeded", "message": "x"}}, K.BILLING),
    ("openai-compatible", 429, {"error": {"type": "budget_exceeded", "message": "x"}}, K.BILLING),
    ("cloudflare", 401, {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]}, K.AUTH),
    # ── local servers ────────────────────────────────────────────────────────────────────────────────────────────
    ("ollama", 400, {"error": "registry.ollama.ai/library/gemma does not support tools"}, K.INCAPABLE),
    (
        "ollama",
        404,
        {"error": {"message": "model 'x' not found, try pulling it first", "type": "api_error"}},
        K.NOT_FOUND,
    ),
    (
        "llama-server",
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
                "n_ctx": 512,
            }
        },
        K.CONTEXT_OVERFLOW,
    ),
    (
        "llama-server",
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        K.OVERLOADED,
    ),
    (
        "llama-server",
        500,
        {
            "error": {
                "code": 500,
                "message": "image input is not supported - hint: provide the mmproj",
                "type": "server_error",
            }
        },
        K.INCAPABLE,
    ),
    (
        "vllm",
        400,
        {"object": "error", "message": "The model `x` does not exist", "type": "NotFoundError", "code": 404},
        K.BAD_REQUEST,
    ),
    (
        "vllm",
        400,
        {"message": '"auto" tool choice requires --enable-auto-tool-choice', "type": "BadRequestError"},
        K.INCAPABLE,
    ),
    ("deepseek", 402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}, K.BILLING),
    ("moonshot", 429, {"error": {"message": "x", "type": "exceeded_current_quota_error"}}, K.BILLING),
    ("moonshot", 429, {"error": {"message": "x", "type": "engine_overloaded_error"}}, K.OVERLOADED),
]


@pytest.mark.parametrize(("provider", "status", "body", "kind"), BODIES)
def test_an_error_body_means_its_row_of_the_table(
    provider: str, status: int | None, body: Any, kind: ErrorKind
) -> None:
    """Whether it comes as a dict, as JSON text, or as bytes."""
    assert classify_body(provider, status, body).kind is kind
    assert classify_body(provider, status, json.dumps(body)).kind is kind
    assert classify_body(provider, status, json.dumps(body).encode()).kind is kind


OVERFLOWS = [
    ("openai", "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."),
    ("openai", "Your input exceeds the context window of this model. Please adjust your input and try again."),
    ("anthropic", "prompt is too long: 210000 tokens > 200000 maximum"),
    ("anthropic", "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000"),
    ("google", "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."),
    ("vllm", "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
    ("vllm", "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
    ("llama-server", "the request exceeds the available context size, try increasing it"),
    ("ollama", "prompt too long; exceeded max context length by 17 tokens"),
    ("ollama", "the input length exceeds the context length"),
    ("lmstudio", "Trying to keep the first 6000 tokens when context the overflows."),
    (
        "mistral",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    ),
    ("xai", "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
    ("together", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097."),
    ("groq", "Please reduce the length of the messages or completion."),
    ("llamacpp", "Requested tokens (520) exceed context window of 512"),
]


@pytest.mark.parametrize(("provider", "message"), OVERFLOWS)
def test_a_prompt_that_is_too_long_is_known_by_everybodys_words(provider: str, message: str) -> None:
    assert (
        classify_body(provider, 400, {"error": {"message": message, "type": "invalid_request_error"}}).kind
        is K.CONTEXT_OVERFLOW
    )


@pytest.mark.parametrize(
    "message",
    [
        "This model does not support assistant message prefill. The conversation must end with a user message.",
        "Prefilling assistant messages is not supported for this model.",
        "This model does not support a conversation that ends with an assistant message.",
        "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant",
        "Assistant response prefill is incompatible with enable_thinking.",
    ],
)
def test_a_rejected_prefill_has_a_code_of_its_own(message: str) -> None:
    """So that the router can ask the same target again without it."""
    error = classify_body("anthropic", 400, {"error": {"message": message, "type": "invalid_request_error"}})
    assert (error.kind, error.code) == (K.BAD_REQUEST, "prefill_rejected")


def test_what_the_oracle_forbids_to_retry_is_never_retried() -> None:
    """Money, keys, the request's own faults, a day's quota, and silence."""
    never = {
        K.BILLING,
        K.AUTH,
        K.FORBIDDEN,
        K.NOT_FOUND,
        K.BAD_REQUEST,
        K.CONTEXT_OVERFLOW,
        K.POLICY,
        K.TOO_LARGE,
        K.QUOTA_DAY,
        K.NO_ENTITLEMENT,
        K.TIMEOUT,
        K.CONFIG,
        K.INCAPABLE,
    }
    assert all(RULES[kind].disposition is not Disposition.RETRY for kind in never)


def test_anthropics_504_is_not_asked_again() -> None:
    """Its own advice is to stream; the wait would be as long again."""
    error = classify_body("anthropic", 504, anthropic("timeout_error"))
    assert (error.kind, error.disposition) == (K.TRANSIENT, Disposition.FALL_OVER)


@pytest.mark.parametrize(("value", "hint"), [("true", True), ("false", False), ("TRUE", True), ("maybe", None)])
def test_the_servers_advice_is_kept(value: str, hint: bool | None) -> None:
    error = classify_body("openai", 500, openai(None, "server_error"), {"X-Should-Retry": value})
    assert error.retryable_hint is hint
    if hint is False:
        assert error.disposition is Disposition.FALL_OVER


def test_money_errors_carry_no_wait_and_a_true_hint_does_not_make_them_retried() -> None:
    body = openai("insufficient_quota", "insufficient_quota")
    error = classify_body("openai", 429, body, {"retry-after": "3", "x-should-retry": "true"})
    assert (error.kind, error.retry_after_s, error.disposition) == (K.BILLING, None, Disposition.FALL_OVER)


def test_every_row_of_the_code_and_status_tables_is_a_kind_with_a_rule() -> None:
    assert {*CODES.values(), *STATUS.values(), *(row.kind for row in TEXTS)} <= set(RULES)
    assert all(code == code.lower() for code in (*CODES, *GENERIC))


def test_keys_in_a_vendors_message_are_redacted() -> None:
    body = openai("invalid_api_key", message="Incorrect API key provided: sk-proj-abcdefghijklmnopqrstuvwx.")
    assert "abcdefghijkl" not in str(classify_body("openai", 401, body))


def test_an_html_page_is_told_by_its_title() -> None:
    error = classify_body("openai", 502, "<!doctype html><html><head><title>502 Bad Gateway</title></head></html>")
    assert error.message == "502 Bad Gateway"


# ── exceptions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def caused(outer: BaseException, *causes: BaseException) -> BaseException:
    last = outer
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return outer


def sdk(name: str, module: str, base: type[Exception] = Exception, **fields: Any) -> Exception:
    """An exception of a class of that name and module: the classifier knows them by nothing else."""
    error: Exception = type(name, (base,), {"__module__": module})("it failed")
    for key, value in fields.items():
        setattr(error, key, value)
    return error


BUGS = [
    TypeError("bad argument"),
    AttributeError("no such attribute"),
    KeyError("missing"),
    RuntimeError("Event loop is closed"),
    caused(sdk("APIConnectionError", "openai"), RuntimeError("Event loop is closed")),
    caused(sdk("APIConnectionError", "openai"), sdk("ConnectError", "httpx"), RuntimeError("Event loop is closed")),
    caused(sdk("APIConnectionError", "openai"), TypeError("a header must be str")),
    RuntimeError("something of ours"),
    ValueError("a value of ours"),
    FileNotFoundError("no such file"),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    GeneratorExit(),
]


@pytest.mark.parametrize("exc", BUGS, ids=[f"{i}-{type(e).__name__}" for i, e in enumerate(BUGS)])
def test_a_bug_or_a_cancellation_is_never_a_providers_failure(exc: BaseException) -> None:
    assert classify_error(exc, provider="openai") is None


EXCEPTIONS: list[tuple[Exception, ErrorKind]] = [
    (sdk("ConnectError", "httpx"), K.CONNECT),
    (sdk("ConnectTimeout", "httpx2"), K.CONNECT),
    (sdk("PoolTimeout", "httpcore"), K.CONNECT),
    (sdk("ReadTimeout", "httpx"), K.TIMEOUT),
    (sdk("WriteTimeout", "httpx2"), K.TIMEOUT),
    (sdk("ReadError", "httpx2"), K.TRANSIENT),
    (sdk("WriteError", "httpx"), K.TRANSIENT),
    (sdk("RemoteProtocolError", "httpx2"), K.TRANSIENT),
    (sdk("LocalProtocolError", "httpx"), K.CONFIG),
    (sdk("ProxyError", "httpx"), K.CONFIG),
    (sdk("DecodingError", "httpx"), K.MALFORMED),
    (sdk("APIConnectionError", "openai"), K.TRANSIENT),
    (sdk("APITimeoutError", "anthropic"), K.TIMEOUT),
    (sdk("APIResponseValidationError", "openai", status_code=200, body={}), K.MALFORMED),
    (sdk("ConnectionError", "requests.exceptions", OSError), K.TRANSIENT),
    (sdk("ConnectTimeout", "requests.exceptions", OSError), K.CONNECT),
    (sdk("ChunkedEncodingError", "requests.exceptions", OSError), K.TRANSIENT),
    (ConnectionRefusedError("refused"), K.CONNECT),
    (ConnectionResetError("reset"), K.TRANSIENT),
    (TimeoutError("slow"), K.TIMEOUT),
    (json.JSONDecodeError("bad", "{", 1), K.MALFORMED),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), K.MALFORMED),
    (sdk("ModelAuthenticationError", "langchain_core.exceptions"), K.AUTH),
    (sdk("ModelPermissionDeniedError", "langchain_core.exceptions"), K.FORBIDDEN),
    (sdk("ModelInvalidRequestError", "langchain_core.exceptions"), K.BAD_REQUEST),
    (sdk("ModelNotFoundError", "langchain_core.exceptions"), K.NOT_FOUND),
    (sdk("ContextOverflowError", "langchain_core.exceptions"), K.CONTEXT_OVERFLOW),
    (sdk("ModelRefusalError", "langchain_core.exceptions"), K.POLICY),
    (sdk("ModelRateLimitError", "langchain_core.exceptions"), K.THROTTLED),
    (sdk("ModelAPIError", "langchain_core.exceptions"), K.TRANSIENT),
    (sdk("ModelTimeoutError", "langchain_core.exceptions"), K.TIMEOUT),
    (ValueError("No generation chunks were returned"), K.MALFORMED),
    (sdk("RateLimitError", "openai", status_code=429, body=openai("insufficient_quota")["error"]), K.BILLING),
    (sdk("APIStatusError", "anthropic", status_code=200, body=anthropic("overloaded_error")), K.OVERLOADED),
    (sdk("APIError", "openai", body={"message": "overloaded", "code": "server_is_overloaded"}), K.OVERLOADED),
    (
        sdk("ClientError", "google.genai.errors", code=429, details=google("RESOURCE_EXHAUSTED", "x", quota("PerDay"))),
        K.QUOTA_DAY,
    ),
    (
        sdk("ResourceExhausted", "google.api_core.exceptions", code=429, details=[quota("PerDay")], message="x"),
        K.QUOTA_DAY,
    ),
    (sdk("SomethingNew", "openai"), K.UNKNOWN),
]


@pytest.mark.parametrize(
    ("exc", "kind"), EXCEPTIONS, ids=[f"{i}-{type(e).__name__}" for i, (e, _) in enumerate(EXCEPTIONS)]
)
def test_an_exception_is_known_by_its_shape_and_not_by_its_import(exc: Exception, kind: ErrorKind) -> None:
    provider = "google" if type(exc).__module__.startswith("google") else "openai"
    error = classify_error(exc, provider=provider)
    assert error is not None
    assert error.kind is kind


WRAPPED = [
    (sdk("APIConnectionError", "openai"), sdk("ConnectError", "httpx"), K.CONNECT),
    (sdk("APITimeoutError", "openai"), sdk("ConnectTimeout", "httpx"), K.CONNECT),
    (sdk("APITimeoutError", "anthropic"), sdk("ReadTimeout", "httpx2"), K.TIMEOUT),
    (sdk("APIConnectionError", "openai"), sdk("RemoteProtocolError", "httpx2"), K.TRANSIENT),
    (
        sdk("ModelRateLimitError", "langchain_openai"),
        sdk("RateLimitError", "openai", status_code=429, body=openai("insufficient_quota")["error"]),
        K.BILLING,
    ),
    (
        sdk("ConnectionError", "requests.exceptions", OSError),
        sdk("NewConnectionError", "urllib3.exceptions"),
        K.CONNECT,
    ),
]


@pytest.mark.parametrize(("outer", "cause", "kind"), WRAPPED)
def test_the_cause_of_a_wrapper_is_what_counts(outer: Exception, cause: Exception, kind: ErrorKind) -> None:
    error = classify_error(caused(outer, cause), provider="openai")  # type: ignore[arg-type]  # it returns what it was given
    assert error is not None
    assert error.kind is kind


@pytest.mark.parametrize(
    ("text", "unsent"),
    [
        ("<StreamReset stream_id:1, error_code:7, remote_reset:True>", True),
        ("<StreamReset stream_id:1, error_code:8, remote_reset:True>", False),
        ("ErrorCodes.REFUSED_STREAM", True),
        ("<ConnectionTerminated error_code:0, last_stream_id:0, additional_data:None>", True),
        ("<ConnectionTerminated error_code:0, last_stream_id:3, additional_data:None>", False),
        ("Server disconnected without sending a response.", False),
    ],
)
def test_a_request_that_http2_turned_away_has_not_been_sent(text: str, unsent: bool) -> None:
    exc = type("RemoteProtocolError", (Exception,), {"__module__": "httpx"})(text)
    found = classify_error(exc, provider="openai")
    assert found is not None
    assert found.unsent is unsent
    assert found.kind is (ErrorKind.CONNECT if unsent else ErrorKind.TRANSIENT)


def test_a_provider_error_inside_is_handed_out_as_it_is() -> None:
    inside = ProviderError.of(K.BILLING, "out of money")
    assert classify_error(inside, provider="openai") is inside
    assert classify_error(caused(Exception("wrapped"), inside), provider="openai") is inside  # type: ignore[arg-type]


def test_a_limit_of_ours_is_told_in_our_words() -> None:
    assert timeout_error("first token", 30.0).message == "no first token within 30 s"
    assert timeout_error("idle", 20.0).kind is K.TIMEOUT
    assert timeout_error("deadline", 2.0).message == "the deadline of the call ran out after 2 s of this attempt"
    assert timeout_error("deadline", -3.1).message == "the deadline of the call had run out when this attempt began"


def test_a_limit_that_ran_out_is_told_as_what_it_was() -> None:
    def said(**limits: float) -> str:
        guard = Guard(lambda: 10.0, streaming=streaming, **limits)
        guard.touch()
        return guard.ran_out()

    streaming = True
    assert Guard(lambda: 10.0, streaming=True, first_s=5).ran_out() == "no first token in time"
    assert said(first_s=5, idle_s=3) == "the stream fell silent"
    assert said(deadline=1.0) == "the deadline of the call ran out"
    streaming = False
    assert said(first_s=5) == "no whole answer in time"


def raised_in(module: str, statement: str) -> Exception:
    """The exception of a statement that runs in a function of that module."""
    space: dict[str, Any] = {"__name__": module}
    exec(f"def read(response):\n    {statement}", space)
    try:
        space["read"]("<html>")
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


STUMBLES = [
    "[][0]",
    "response.choices",
    "response.model_dump()",
    "None.message",
    "len(None)",
    "response['choices']",
    "'error' in 42",
    "[].model_dump()",
    "raise ValueError('Unexpected response type')",
]


@pytest.mark.parametrize("statement", STUMBLES)
def test_a_vendor_package_that_stumbles_over_an_answer_tells_of_a_malformed_one(statement: str) -> None:
    """The same mistake in code that is not a vendor's is a bug, and surfaces."""
    error = classify_error(raised_in("langchain_openai.chat_models.base", statement), provider="langchain")
    assert error is not None
    assert error.kind is K.MALFORMED
    assert classify_error(raised_in("my_program.callbacks", statement), provider="langchain") is None


MISBUILT = [
    "__import__('google.genai').genai.types.GenerateContentResponse.model_validate({'candidates': 'none'})",
    "__import__('langchain_core.messages').messages.AIMessage(content={'not': 'text'})",
    "__import__('pydantic').create_model('ToolCallBlock', tool_kwargs=(dict, ...))(tool_kwargs='x')",
]


@pytest.mark.parametrize("statement", MISBUILT)
def test_an_answer_that_a_vendor_package_cannot_put_into_its_own_words_is_malformed(statement: str) -> None:
    """What it cannot build of a request is another matter, and so is what the user's own code builds."""
    error = classify_error(raised_in("langchain_google_genai.chat_models", statement), provider="google")
    assert error is not None
    assert error.kind is K.MALFORMED
    own = classify_error(raised_in("my_program.callbacks", statement), provider="google")
    assert own is None or own.kind is not K.MALFORMED
    asked = "__import__('google.genai').genai.types.GenerateContentConfig(temperature='hot')"
    refused = classify_error(raised_in("langchain_google_genai.chat_models", asked), provider="google")
    assert refused is not None
    assert refused.kind is K.INCAPABLE


def test_a_vendor_package_that_refuses_to_send_makes_the_target_incapable() -> None:
    statement = "raise ValueError('Block of type audio is not supported')"
    error = classify_error(raised_in("langchain_anthropic.chat_models", statement), provider="langchain")
    assert error is not None
    assert error.kind is K.INCAPABLE
    assert classify_error(raised_in("my_program", statement), provider="langchain") is None
