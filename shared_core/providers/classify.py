"""What a vendor's failure means: exceptions, statuses, codes, headers and in-stream error bodies, read by tables.

Everything is read by duck type (`status_code`, `code`, `body`, `details`, `headers`, class and module names), so no SDK is
imported to classify another's error. The order: the vendor's own codes, then well-known text, then the status. A code nobody
knows falls back to its status. A bug (`TypeError`, 'Event loop is closed') is not classified: `classify_error` returns None
and the caller lets it surface.

Sources: each vendor's error pages and SDK types as of 2026-11; see docs/errors.md for the table in words.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from shared_core.errors import ErrorKind, ProviderError

__all__ = ["classify_body", "classify_error", "family_of", "is_bug", "retry_after_s", "timeout_error"]

Family = Literal["openai", "anthropic", "google"]
K = ErrorKind

LONGEST_WAIT_S = 7 * 86_400.0
"""A server that asks for more than a week is not believed."""
_MESSAGE_CHARS = 1_000

# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────

STATUS: Mapping[int, ErrorKind] = {
    400: K.BAD_REQUEST,
    401: K.AUTH,
    402: K.BILLING,
    403: K.FORBIDDEN,
    404: K.NOT_FOUND,
    405: K.CONFIG,
    407: K.CONFIG,
    408: K.TRANSIENT,
    409: K.CONFLICT,
    410: K.NOT_FOUND,
    412: K.BAD_REQUEST,
    413: K.TOO_LARGE,
    415: K.BAD_REQUEST,
    422: K.BAD_REQUEST,
    424: K.TRANSIENT,
    425: K.TRANSIENT,
    429: K.THROTTLED,
    498: K.OVERLOADED,  # Groq: flex capacity exceeded
    499: K.CANCELLED,
    500: K.TRANSIENT,
    501: K.INCAPABLE,
    503: K.OVERLOADED,
    529: K.OVERLOADED,
    530: K.CONNECT,  # an edge that cannot reach the origin: no byte of the request got there
}
"""The last resort, when code and text say nothing. Other statuses: see `_by_status`."""

STATUS_OF_FAMILY: Mapping[tuple[Family, int], ErrorKind] = {
    ("google", 504): K.TIMEOUT,
}

CODES: Mapping[str, ErrorKind] = {
    # context
    "context_length_exceeded": K.CONTEXT_OVERFLOW,
    "context_window_exceeded": K.CONTEXT_OVERFLOW,
    "model_context_window_exceeded": K.CONTEXT_OVERFLOW,
    "exceed_context_size_error": K.CONTEXT_OVERFLOW,  # llama-server
    # size
    "request_too_large": K.TOO_LARGE,
    "string_above_max_length": K.TOO_LARGE,
    "array_above_max_length": K.TOO_LARGE,
    "weight_exceeds_budget": K.TOO_LARGE,  # OpenRouter 402: this one request is dearer than the budget
    # policy
    "content_filter": K.POLICY,
    "content_policy_violation": K.POLICY,
    "responsibleaipolicyviolation": K.POLICY,  # Azure
    "invalid_prompt": K.POLICY,  # OpenAI reasoning models: the prompt was flagged
    "moderation_blocked": K.POLICY,
    "bio_policy": K.POLICY,
    "misalignment_policy_violation": K.POLICY,
    # capability
    "unsupported_value": K.INCAPABLE,
    "unsupported_parameter": K.INCAPABLE,
    "unsupported_country_region_territory": K.FORBIDDEN,
    "unimplemented": K.INCAPABLE,
    # key and permission
    "invalid_api_key": K.AUTH,
    "incorrect_api_key": K.AUTH,
    "authentication_error": K.AUTH,
    "invalid_authentication_error": K.AUTH,
    "api_key_invalid": K.AUTH,  # Gemini says it with a 400
    "api_key_expired": K.AUTH,
    "unauthenticated": K.AUTH,
    "account_deactivated": K.AUTH,
    "permission_error": K.FORBIDDEN,
    "permission_denied": K.FORBIDDEN,
    "organization_on_hold": K.FORBIDDEN,
    "request_forbidden": K.FORBIDDEN,
    "access_denied": K.FORBIDDEN,
    "service_disabled": K.FORBIDDEN,
    "api_key_service_blocked": K.FORBIDDEN,
    "api_key_ip_address_blocked": K.FORBIDDEN,
    "api_key_http_referrer_blocked": K.FORBIDDEN,
    "consumer_suspended": K.FORBIDDEN,
    # money
    "insufficient_quota": K.BILLING,
    "credit_balance_exhausted": K.BILLING,
    "organization_spend_limit_exceeded": K.BILLING,
    "project_spend_limit_exceeded": K.BILLING,
    "organization_usage_limit_exceeded": K.BILLING,
    "billing_not_active": K.BILLING,
    "billing_hard_limit_reached": K.BILLING,
    "billing_error": K.BILLING,
    "billing_disabled": K.BILLING,
    "payment_required": K.BILLING,
    "insufficient_balance": K.BILLING,
    "insufficient_credits": K.BILLING,
    "insufficient_user_quota": K.BILLING,
    "exceeded_current_quota_error": K.BILLING,  # Moonshot
    "enforced_spend_limit_reached": K.BILLING,
    "contract_spend_limit_reached": K.BILLING,
    "linked_organization_spend_limit_reached": K.BILLING,
    "budget_exceeded": K.BILLING,  # LiteLLM, Portkey and other gateways
    # limits with an end
    "rate_limit_exceeded": K.THROTTLED,
    "rate_limit_error": K.THROTTLED,
    "rate_limit_reached_error": K.THROTTLED,
    "in_flight_budget_exhausted": K.THROTTLED,  # OpenRouter 402 with Retry-After
    "slow_down": K.RAMP,
    "ramp_limit_exceeded": K.RAMP,
    # capacity
    "server_is_overloaded": K.OVERLOADED,
    "service_unavailable_error": K.OVERLOADED,
    "flex_unavailable": K.OVERLOADED,
    "resource_unavailable": K.OVERLOADED,
    "overloaded_error": K.OVERLOADED,
    "engine_overloaded_error": K.OVERLOADED,
    "capacity_exceeded": K.OVERLOADED,
    "unavailable": K.OVERLOADED,
    # the rest
    "model_not_found": K.NOT_FOUND,
    "deploymentnotfound": K.NOT_FOUND,  # Azure
    "not_found_error": K.NOT_FOUND,
    "conflict_error": K.CONFLICT,
    "server_error": K.TRANSIENT,
    "api_error": K.TRANSIENT,
    "internal_error": K.TRANSIENT,
    "internal_server_error": K.TRANSIENT,
    "timeout_error": K.TRANSIENT,
    "invalid_request_error": K.BAD_REQUEST,
}
"""Codes, types and reasons of all vendors, lower case. Distinctive enough to share one table."""

CODES_OF_FAMILY: Mapping[tuple[Family, str], ErrorKind] = {
    ("google", "quota_exceeded"): K.QUOTA_DAY,
    ("google", "invalid_request"): K.BAD_REQUEST,
    ("google", "invalid_argument"): K.BAD_REQUEST,
    ("google", "out_of_range"): K.BAD_REQUEST,
    ("google", "failed_precondition"): K.FORBIDDEN,
    ("google", "resource_exhausted"): K.THROTTLED,
    ("google", "not_found"): K.NOT_FOUND,
    ("google", "cancelled"): K.CANCELLED,
    ("google", "aborted"): K.CONFLICT,
    ("google", "internal"): K.TRANSIENT,
    ("google", "deadline_exceeded"): K.TIMEOUT,
}

REFINED: Mapping[tuple[Family, int, str], ErrorKind] = {
    ("google", 400, "failed_precondition"): K.FORBIDDEN,  # the region, or billing that is not set up: not the request
}
"""Generic codes that say more than the status they come with."""

CODE_SHAPES: tuple[tuple[re.Pattern[str], ErrorKind], ...] = (
    (re.compile(r".*_budget_exceeded$"), K.BILLING),  # Portkey, nrouter and the like
    (re.compile(r".*_spend_limit_(?:exceeded|reached)$"), K.BILLING),
    (re.compile(r".*_policy(?:_violation)?$"), K.POLICY),
)
"""Families of codes whose members vendors keep adding."""

GENERIC = frozenset(
    {
        "invalid_request_error", "invalid_request", "invalid_argument", "api_error", "server_error", "internal",
        "internal_error", "internal_server_error", "failed_precondition", "resource_exhausted", "rate_limit_error",
        "rate_limit_exceeded", "not_found_error", "not_found", "permission_denied", "permission_error", "model_not_found",
        "request_forbidden", "service_unavailable_error", "unavailable", "timeout_error", "out_of_range",
        "authentication_error", "payment_required", "unauthenticated", "conflict_error", "aborted", "cancelled",
    }
)  # fmt: skip
"""Codes that only repeat the status. Text may refine them, and so may a code that is not generic."""

PREFILL_REJECTED = "prefill_rejected"


@dataclass(frozen=True, slots=True)
class TextRow:
    """Well-known words of an error message, and what they mean."""

    pattern: re.Pattern[str]
    kind: ErrorKind
    code: str | None = None
    statuses: frozenset[int] = frozenset()
    """Only for these; empty for any error."""


def _text(kind: ErrorKind, *phrases: str, code: str | None = None, statuses: Iterable[int] = ()) -> TextRow:
    return TextRow(re.compile("|".join(f"(?:{p})" for p in phrases), re.IGNORECASE), kind, code, frozenset(statuses))


TEXTS: tuple[TextRow, ...] = (
    _text(
        K.BAD_REQUEST,
        r"assistant message prefill",
        r"prefill\w* (?:the )?assistant (?:message|response)s? (?:is|are) not supported",
        r"does not support (?:assistant |response )?prefill",
        r"prefill is incompatible",  # llama-server with thinking on
        r"does not support a conversation that ends with an assistant",
        r"expected last role user or tool",  # Mistral
        r"conversation must end with a user message",
        r"last message (?:must|should) (?:be|have role).{0,12}user",
        code=PREFILL_REJECTED,
        statuses=(400, 422, 500),
    ),
    _text(
        K.CONTEXT_OVERFLOW,
        r"maximum context length",  # OpenAI, vLLM, OpenRouter, DeepSeek, Mistral, Fireworks
        r"maximum prompt length",  # xAI
        r"exceeds? the context window",  # OpenAI responses, llama-cpp-python
        r"exceeds? (?:the )?(?:available |max(?:imum)? |model'?s? )*context (?:size|length|window|limit)",
        r"exceed context (?:window|limit)",  # Anthropic: input length and `max_tokens` exceed context limit
        r"exceeded max(?:imum)? context length",  # Ollama
        r"prompt is too long",  # Anthropic
        r"prompt too long",
        r"input is too long",  # Bedrock
        r"input token count .{0,40}exceeds the maximum number of tokens",  # Gemini
        r"too large for model with \d+ maximum context",  # Mistral
        r"tokens to keep from the initial prompt is greater than the context",  # LM Studio
        r"when context the overflows",  # LM Studio (its own word order)
        r"`inputs` tokens \+ `max_new_tokens` must be",  # TGI, Together
        r"reduce the length of the (?:messages|prompt|input)",
        r"context (?:size|length|window) (?:has been )?exceeded",
        r"decoder prompt .{0,60}longer than the maximum model length",  # vLLM
        statuses=(400, 413, 422, 500),
    ),
    # A request larger than a whole minute's tokens never fits, however long one waits.
    _text(K.TOO_LARGE, r"request too large for", r"(?:body|payload) (?:is )?too large", statuses=(400, 413, 429)),
    _text(
        K.BILLING,
        r"specified api usage limits",  # Anthropic, your own limit, told with a 400
        r"credit balance is too low",
        r"spend(?:ing)? limit",
        r"exceeded your current quota, please check your plan and billing",
        r"(?:check|set ?up|enable|activate).{0,30}billing",
        r"billing (?:account|is|has|not)",
        r"insufficient (?:balance|credits?|funds)",
        r"(?:run|ran) out of credits?",
        r"prepa(?:y|id).{0,40}(?:deplet|exhaust|empty)",
        r"requires more credits",  # OpenRouter
        statuses=(400, 402, 403, 412),
    ),
    # Unmistakable even with a 429, where Gemini tells every throttled caller to check plan and billing.
    _text(K.BILLING, r"insufficient (?:balance|credits?|funds)", r"credit balance is too low", statuses=(429,)),
    _text(K.BILLING, r"\b(?:key|guardrail|budget)\b.{0,30}(?:limit|budget).{0,20}exceeded", statuses=(402, 403, 412)),
    _text(K.NO_ENTITLEMENT, r"\blimit: 0\b", statuses=(429,)),
    _text(
        K.QUOTA_DAY,
        r"\((?:RPD|TPD)\)",
        r"(?:requests|tokens)[ _-]per[ _-]day",
        r"per[ _-]?day(?:per|\b)",
        r"daily (?:quota|limit|free allocation)",
        r"free-models-per-day",  # OpenRouter
        statuses=(429,),
    ),
    _text(K.RAMP, r"acceleration limit", r"ramp up gradually", r"increased? too quickly", statuses=(429, 503)),
    _text(
        K.FORBIDDEN,
        r"(?:user )?location is not supported",
        r"(?:country|region|territory).{0,30}not supported",
        statuses=(400, 403),
    ),
    _text(K.AUTH, r"api key (?:not valid|expired|is invalid)", r"invalid api key", r"invalid x-api-key", statuses=(400, 401, 403)),
    _text(
        K.POLICY,
        r"content (?:management|filter\w*|moderation) policy",
        r"blocked by (?:our )?content",
        r"usage polic(?:y|ies)",
        r"(?:flagged|violat\w+).{0,60}(?:polic|safety|moderation)",
        r"requires moderation",  # OpenRouter 403
        statuses=(400, 403, 422),
    ),
    _text(
        K.INCAPABLE,
        r"does not support (?:tools?|function|image|vision|audio|video|file|pdf|document|json|structured|response_format|system|the)",
        r"(?:images?|image input|image_url|vision|audio|tools?|tool use|function calling|response_format|structured outputs?)"
        r".{0,40}(?:is|are) not (?:currently )?supported",
        r"is only supported by certain models",
        r"no endpoints found that support",  # OpenRouter
        r"requires --enable-auto-tool-choice",  # vLLM
        r"tools param requires --jinja",  # llama-server
        r"supports at most \d+ completion tokens",
        r"which is the maximum allowed number of output tokens",  # Anthropic
        r"not a multimodal model",
        statuses=(400, 404, 422, 500, 501),
    ),
    _text(K.OVERLOADED, r"(?:currently|is|are) overloaded", r"at capacity", r"no (?:available )?workers", statuses=(429, 500, 502, 503)),
    _text(K.OVERLOADED, r"loading model", r"model is loading", r"server busy", statuses=(500, 502, 503)),  # llama-server, Ollama
)
"""Read in order, the first match wins; only where no distinctive code has spoken."""

BUGS = (TypeError, AttributeError, NameError, AssertionError, ImportError, LookupError, RecursionError, NotImplementedError)
"""Never a provider's fault, wherever in the chain they are."""

TRANSPORT: Mapping[str, ErrorKind] = {
    # httpx, httpx2, httpcore, httpcore2: one vocabulary
    "ConnectError": K.CONNECT,
    "ConnectTimeout": K.CONNECT,
    "PoolTimeout": K.CONNECT,
    "ProxyError": K.CONFIG,
    "UnsupportedProtocol": K.CONFIG,
    "InvalidURL": K.CONFIG,
    "LocalProtocolError": K.CONFIG,  # an illegal header value, such as a key that ends in a newline
    "TooManyRedirects": K.CONFIG,
    "ReadTimeout": K.TIMEOUT,
    "WriteTimeout": K.TIMEOUT,
    "ReadError": K.TRANSIENT,
    "WriteError": K.TRANSIENT,
    "CloseError": K.TRANSIENT,
    "RemoteProtocolError": K.TRANSIENT,
    "DecodingError": K.MALFORMED,
    "NetworkError": K.TRANSIENT,
    "ProtocolError": K.TRANSIENT,
    "TransportError": K.TRANSIENT,
    "TimeoutException": K.TIMEOUT,
    # requests and urllib3
    "NewConnectionError": K.CONNECT,
    "NameResolutionError": K.CONNECT,
    "SSLError": K.CONNECT,
    "ChunkedEncodingError": K.TRANSIENT,
    "ContentDecodingError": K.MALFORMED,
    "IncompleteRead": K.TRANSIENT,
    "InvalidSchema": K.CONFIG,
    "MissingSchema": K.CONFIG,
    "ConnectTimeoutError": K.CONNECT,
    "ReadTimeoutError": K.TIMEOUT,
    # aiohttp (google-genai may use it)
    "ClientConnectorError": K.CONNECT,
    "ClientConnectorDNSError": K.CONNECT,
    "ClientConnectorSSLError": K.CONNECT,
    "ConnectionTimeoutError": K.CONNECT,
    "ServerTimeoutError": K.TIMEOUT,
    "SocketTimeoutError": K.TIMEOUT,
    "ServerDisconnectedError": K.TRANSIENT,
    "ClientOSError": K.TRANSIENT,
    "ClientPayloadError": K.TRANSIENT,
    # parsing what arrived
    "APIResponseValidationError": K.MALFORMED,
    "JSONDecodeError": K.MALFORMED,
    "UnicodeDecodeError": K.MALFORMED,
    "UnknownApiResponseError": K.MALFORMED,
}
"""Class names of strong evidence, whatever library they come from."""
_TRANSPORT_MODULES = re.compile(
    r"^(?:httpx2?|httpcore2?|h11|h2|requests|urllib3|aiohttp|anyio|openai|anthropic|google|json|simplejson|builtins|langchain_\w+)\b"
)

WEAK: Mapping[str, ErrorKind] = {
    # Wrappers whose cause usually says more.
    "APITimeoutError": K.TIMEOUT,
    "APIConnectionError": K.TRANSIENT,
    "MaxRetryError": K.CONNECT,
    "RetryError": K.TRANSIENT,
    "Timeout": K.TIMEOUT,
    "ConnectionError": K.TRANSIENT,
    "RequestException": K.TRANSIENT,
    # langchain_core.exceptions
    "ModelAuthenticationError": K.AUTH,
    "ModelPermissionDeniedError": K.FORBIDDEN,
    "ModelInvalidRequestError": K.BAD_REQUEST,
    "ModelNotFoundError": K.NOT_FOUND,
    "ContextOverflowError": K.CONTEXT_OVERFLOW,
    "ModelRefusalError": K.POLICY,
    "ModelRateLimitError": K.THROTTLED,
    "ModelConnectionError": K.TRANSIENT,
    "ModelTimeoutError": K.TIMEOUT,
    "ModelAPIError": K.TRANSIENT,
}
"""Class names looked up only when nothing in the chain was more precise."""

VENDOR_CODE = re.compile(
    r"^(?:openai|anthropic|google|httpx2?|langchain_(?:openai|anthropic|google_\w+|mistralai|groq|ollama|aws|community|core)"
    r"|llama_index\.llms|pydantic|pydantic_core)\b"
)
"""Modules whose own `ValueError`s mean 'I cannot send this', not 'you have a bug'."""

NO_WAIT = frozenset({K.BILLING, K.NO_ENTITLEMENT, K.AUTH, K.FORBIDDEN, K.BAD_REQUEST, K.POLICY, K.NOT_FOUND, K.INCAPABLE,
                     K.CONTEXT_OVERFLOW, K.TOO_LARGE})  # fmt: skip
"""Kinds that no wait heals, so a wait in the answer is not reported (Gemini names 10 h for a limit of zero)."""
LIMITS = frozenset({K.THROTTLED, K.RAMP, K.QUOTA_DAY})


def family_of(provider: str) -> Family:
    """Which vendor's dialect a provider speaks; everyone who is not Anthropic or Google speaks OpenAI's."""
    name = provider.lower()
    if name.startswith(("anthropic", "claude")):
        return "anthropic"
    if name.startswith(("google", "gemini", "vertex")):
        return "google"
    return "openai"


def _known(code: str) -> bool:
    code = code.lower()
    return code in CODES or any(shape.fullmatch(code) for shape, _ in CODE_SHAPES)


# ── reading a body ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Said:
    """What an error body says: a message, and every code in it, most specific first."""

    message: str = ""
    codes: list[str] = field(default_factory=list)
    status: int | None = None
    details: list[Mapping[str, Any]] = field(default_factory=list)
    html: bool = False

    @property
    def code(self) -> str | None:
        """The most telling code, as the vendor spells it."""
        telling = [c for c in self.codes if c.lower() not in GENERIC and _known(c)]
        return next(iter(telling or self.codes), None)


_CODE_KEYS = ("error_code", "code", "reason", "type", "status", "innererror", "metadata", "details", "error_type")


def _read(body: Any) -> _Said:
    said = _Said()
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip()
        if text[:1] in "{[" and text:
            try:
                return _read(json.loads(text))
            except ValueError:
                pass
        said.html = "<html" in text[:500].lower() or text[:9].lower() == "<!doctype"
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL) if said.html else None
        said.message = title.group(1).strip() if title else ("an HTML page" if said.html else text)
        return said
    if isinstance(body, (list, tuple)):
        return _read(body[0]) if body else said
    if not isinstance(body, Mapping):
        return said
    inner: Any = body.get("error", body.get("errors"))
    if isinstance(inner, (list, tuple)) and inner:
        inner = inner[0]
    if isinstance(inner, str):  # Ollama: {"error": "…"}
        inner = {"message": inner, **{k: v for k, v in body.items() if k in _CODE_KEYS}}
    elif not isinstance(inner, Mapping):
        inner = body
    message = inner.get("message") or inner.get("detail") or inner.get("error_description") or ""
    said.message = message if isinstance(message, str) else json.dumps(message, default=str)
    details = inner.get("details")
    if isinstance(details, (list, tuple)):
        said.details = [d for d in details if isinstance(d, Mapping)]
    said.codes = list(dict.fromkeys(_codes(inner)))
    status = inner.get("code", inner.get("status_code"))
    if isinstance(status, int) and 300 <= status <= 599:
        said.status = status
    return said


def _codes(node: Any, depth: int = 0) -> Iterator[str]:
    """Every short word under a key that holds codes, most specific key first."""
    if depth > 3:
        return
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _codes(item, depth + 1)
    elif isinstance(node, Mapping):
        for key in _CODE_KEYS:
            value = node.get(key)
            if isinstance(value, str):
                if 0 < len(value) <= 80 and " " not in value:
                    yield value
            elif value is not None:
                yield from _codes(value, depth + 1)


# ── waits ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_AGAIN = re.compile(
    r"(?:try|retry|come back|available)(?: your request)?(?: again)? (?:in|after) (?:about )?([\d.]+) ?(ms|milliseconds?|s|sec\w*|m|min\w*|h|hours?)?\b"
    r"|(?:try|retry|come back|available)(?: again)? (?:in|after) ((?:[\d.]+(?:ms|[dhms]))+)",
    re.IGNORECASE,
)
_REMAINING = re.compile(r"^(?P<head>(?:x|anthropic)-ratelimit-)(?:(?P<dim>[\w-]+)-)?remaining(?P<tail>-[\w-]+)?$")


def _sane(seconds: float | None) -> float | None:
    if seconds is None or not math.isfinite(seconds) or not 0 <= seconds <= LONGEST_WAIT_S:
        return None
    return seconds


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip())
    except ValueError:
        return None


def _duration_s(text: Any) -> float | None:
    """'6m0s', '120ms', '1h2m', '37s' in seconds; None when it is none of these."""
    text = str(text).strip().lower()
    found = _DURATION.fullmatch(text)
    if not text or found is None or not any(found.groups()):
        return None
    days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000


def _date_s(text: Any, headers: Mapping[str, str], now: float | None) -> float | None:
    """Seconds until a date (HTTP or RFC 3339), by the server's own clock so that ours may be wrong."""
    at = _date(text)
    if at is None:
        return None
    base = _date(headers.get("date"))
    if base is None:
        base = time.time() if now is None else now
    return at - base


def _date(text: Any) -> float | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        at = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError):  # what the standard library raises for a date that is none
            return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _reset_s(value: str, headers: Mapping[str, str], now: float | None) -> float | None:
    """A rate limit's reset: a duration (OpenAI), an RFC 3339 date (Anthropic), an epoch in seconds or milliseconds."""
    number = _number(value)
    if number is None:
        seconds = _duration_s(value)
        return _date_s(value, headers, now) if seconds is None else seconds
    if number < 1e9:
        return number
    base = _date(headers.get("date"))
    if base is None:
        base = time.time() if now is None else now
    return (number / 1000 if number > 1e11 else number) - base


def retry_after_s(
    headers: Mapping[str, str], body: Any = None, *, message: str = "", now: float | None = None, resets: bool = True
) -> float | None:
    """How long the server asks to wait, in seconds; None when it does not say, or says nonsense.

    Read in this order: `retry-after-ms`, `retry-after` (float seconds or a date, relative to the response's own `Date`),
    Gemini's `RetryInfo`, the reset of whatever dimension has nothing remaining, and last the text 'try again in 41.7s'.
    NaN, infinity, negative figures and more than a week are passed over as if they were not there.

    Args:
        headers: of the response, any case.
        body: the error body, in any of the shapes SDKs keep it in.
        message: the error's text when there is no body.
        now: wall-clock seconds, used only where the response carries no `Date`.
        resets: whether exhausted dimensions and text count; only an error of the limits class should ask for them.
    """
    lower = {str(k).lower(): str(v) for k, v in headers.items()}
    millis = _number(lower.get("retry-after-ms"))
    if (wait := _sane(None if millis is None else millis / 1000)) is not None:
        return wait
    if (text := lower.get("retry-after")) is not None:
        number = _number(text)
        if (wait := _sane(_date_s(text, lower, now) if number is None else number)) is not None:
            return wait
    said = _read(body)
    for detail in said.details:
        if str(detail.get("@type", "")).endswith("RetryInfo"):
            if (wait := _sane(_duration_s(detail.get("retryDelay", "")))) is not None:
                return wait
    if not resets:
        return None
    waits = []
    for name, value in lower.items():
        found = _REMAINING.match(name)
        if found is None or _number(value) != 0:
            continue
        dim, tail = found["dim"], found["tail"] or ""
        reset = lower.get(f"{found['head']}{dim + '-' if dim else ''}reset{tail}")
        if reset is not None and (wait := _sane(_reset_s(reset, lower, now))) is not None:
            waits.append(wait)
    if waits:
        return max(waits)
    again = _AGAIN.search(said.message or message)
    if again is None:
        return None
    if again[3]:
        return _sane(_duration_s(again[3]))
    number = _number(again[1].rstrip("."))
    unit = (again[2] or "s").lower()
    scale = 0.001 if unit.startswith(("ms", "milli")) else {"s": 1.0, "m": 60.0, "h": 3600.0}[unit[0]]
    return _sane(None if number is None else number * scale)


# ── deciding ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_status(family: Family, status: int | None) -> ErrorKind:
    if status is None or 200 <= status < 300:
        return K.TRANSIENT  # an error inside a stream that began well and names no code of its own
    kind = STATUS_OF_FAMILY.get((family, status)) or STATUS.get(status)
    if kind is not None:
        return kind
    if 300 <= status < 400:
        return K.CONFIG
    return K.BAD_REQUEST if 400 <= status < 500 else K.TRANSIENT


def _by_code(family: Family, code: str) -> ErrorKind | None:
    code = code.lower()
    kind = CODES_OF_FAMILY.get((family, code)) or CODES.get(code)
    if kind is None:
        kind = next((k for shape, k in CODE_SHAPES if shape.fullmatch(code)), None)
    return kind


def _decide(family: Family, status: int | None, said: _Said) -> tuple[ErrorKind, str | None]:
    """The kind, and our own code where the text was more telling than the vendor's."""
    own = status if status is not None and not 200 <= status < 300 else said.status
    specific = [c for c in said.codes if c.lower() not in GENERIC]
    google = _google_quota(said) if family == "google" and own in (429, None) else None
    if google is not None:
        return google, None
    # Money first: Anthropic's spend limit and OpenAI's quota come under a generic rate-limit type.
    kinds = [k for c in specific if (k := _by_code(family, c)) is not None]
    for kind in (K.BILLING, *kinds):
        if kind in kinds:
            return kind, None
    for row in TEXTS:
        if (not row.statuses or own is None or own in row.statuses) and row.pattern.search(said.message):
            return row.kind, row.code
    if own is not None:
        refined = next((k for c in said.codes if (k := REFINED.get((family, own, c.lower()))) is not None), None)
        return refined or _by_status(family, own), None
    # Inside a stream there is no status, so the generic code is all there is.
    generic = next((k for c in said.codes if (k := _by_code(family, c)) is not None), None)
    return generic or _by_status(family, None), None


def _google_quota(said: _Said) -> ErrorKind | None:
    """What Gemini's `QuotaFailure` says about a 429, when there is one."""
    violations = [v for d in said.details for v in d.get("violations") or () if isinstance(v, Mapping)]
    if re.search(r"\blimit: 0\b", said.message) or any(str(v.get("quotaValue")) == "0" for v in violations):
        return K.NO_ENTITLEMENT
    ids = " ".join(f"{v.get('quotaId', '')} {v.get('quotaMetric', '')}" for v in violations).lower()
    if "perday" in ids or "per_day" in ids:
        return K.QUOTA_DAY
    if "perminute" in ids or "per_minute" in ids:
        return K.THROTTLED
    return None


def classify_body(
    provider: str,
    status: int | None,
    body: Any,
    headers: Mapping[str, str] | None = None,
    *,
    message: str | None = None,
    response: Any = None,
    request_id: str | None = None,
    now: float | None = None,
) -> ProviderError:
    """The `ProviderError` for an error body: an HTTP error's, or one that came inside a stream.

    Args:
        provider: its name; says whose dialect the body is in.
        status: the HTTP status; None or 200 for an error inside a stream.
        body: a dict, a list holding one, JSON text, HTML, or nothing.
        headers: of the response.
        message: to use when the body has none.
    """
    head = {str(k).lower(): str(v) for k, v in (headers or {}).items()}
    family = family_of(provider)
    said = _read(body)
    if not said.message:
        said.message = message or ""
    kind, own_code = _decide(family, status, said)
    if said.html and status is not None and status < 300:
        kind = K.MALFORMED
    shown = status if status is not None and not 200 <= status < 300 else said.status
    hint = {"true": True, "false": False}.get(head.get("x-should-retry", "").lower())
    if family == "anthropic" and kind is K.TRANSIENT and (shown == 504 or "timeout_error" in said.codes) and shown != 408:
        hint = False  # its own advice is to stream; asking again would wait as long again
    wait = None if kind in NO_WAIT else retry_after_s(head, body, message=said.message, now=now, resets=kind in LIMITS)
    text = said.message.strip() or (f"HTTP status {shown}" if shown else "the provider reported an error")
    return ProviderError.of(
        kind,
        text[:_MESSAGE_CHARS],
        status=shown,
        code=own_code or said.code,
        retry_after_s=wait,
        request_id=request_id or head.get("x-request-id") or head.get("request-id"),
        response=response,
        retryable_hint=hint,
    )


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception, its causes and contexts, and the members of groups; each once."""
    seen: set[int] = set()
    stack = [exc]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            stack.extend(reversed(one.exceptions))
        if one.__cause__ is not None:
            stack.append(one.__cause__)
        elif one.__context__ is not None and not one.__suppress_context__:
            stack.append(one.__context__)


def is_bug(exc: BaseException) -> bool:
    """Whether `exc` is a mistake in somebody's code and no statement about a provider.

    'Event loop is closed' counts wherever it hides: SDKs wrap it as a retryable connection error, and a chain that
    believed them would walk through every provider although none is down.
    """
    if isinstance(exc, BUGS):
        return True
    for one in _chain(exc):
        if isinstance(one, RuntimeError) and re.search(
            r"event loop is closed|attached to a different loop|bound to a different event loop|no running event loop"
            r"|client has been closed|cannot be called from a running event loop",
            str(one),
        ):
            return True
    # What an SDK wrapped as a connection error may be a bug of ours that happened while it was sending.
    cause = exc.__cause__
    return cause is not None and isinstance(cause, BUGS) and type(exc).__name__ in ("APIConnectionError", "APITimeoutError")


def _names(exc: BaseException) -> Iterator[tuple[str, str]]:
    for cls in type(exc).__mro__:
        yield cls.__name__, cls.__module__


def _status_of(exc: BaseException) -> int | None:
    """The HTTP status an exception carries, under whichever name its SDK uses."""
    for name in ("status_code", "http_status", "code"):
        value = getattr(exc, name, None)
        value = getattr(value, "value", value)  # google.api_core keeps an http.HTTPStatus
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
            return value
    value = getattr(getattr(exc, "response", None), "status_code", None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _headers_of(exc: BaseException) -> Mapping[str, str]:
    headers = getattr(getattr(exc, "response", None), "headers", None)
    if headers is None:
        headers = getattr(exc, "headers", None)
    try:
        return {str(k).lower(): str(v) for k, v in dict(headers or {}).items()}
    except (TypeError, ValueError):  # something that only looks like headers
        return {}


def _body_of(exc: BaseException) -> Any:
    body = getattr(exc, "body", None)
    if body is None or body == "":
        body = getattr(exc, "details", None)
        if callable(body):
            body = None
    if isinstance(body, (list, tuple)) and not any(isinstance(item, Mapping) and "error" in item for item in body):
        body = _api_core_body(exc, body)
    if not body:
        response = getattr(exc, "response", None)
        try:
            body = getattr(response, "text", None)
        except Exception:  # noqa: BLE001 - an unread streamed response raises its library's own error; there is no body then
            body = None
        if not isinstance(body, (str, bytes)):
            body = None
    if isinstance(body, Mapping) and "error" not in body:
        extra = {k: v for k in ("code", "type", "status") if isinstance(v := getattr(exc, k, None), str)}
        body = {**extra, **body}
    return body


def _api_core_body(exc: BaseException, details: Any) -> Any:
    """google.api_core keeps details as a list (REST: dicts, gRPC: protobuf messages) and puts the rest in the message."""
    plain = [d for d in details if isinstance(d, Mapping)]
    for d in details:
        if not isinstance(d, Mapping):
            plain.append(_protobuf(d))
    status = getattr(exc, "reason", None)
    grpc = getattr(getattr(exc, "grpc_status_code", None), "name", None)
    return {"error": {"message": getattr(exc, "message", str(exc)), "details": plain, "reason": status, "status": grpc}}


def _protobuf(detail: Any) -> Mapping[str, Any]:
    name = getattr(getattr(detail, "DESCRIPTOR", None), "full_name", type(detail).__name__)
    out: dict[str, Any] = {"@type": name}
    if name.endswith("RetryInfo"):
        delay = detail.retry_delay
        out["retryDelay"] = f"{delay.seconds + delay.nanos / 1e9}s"
    elif name.endswith("QuotaFailure"):
        out["violations"] = [
            {"quotaId": getattr(v, "quota_id", ""), "quotaMetric": getattr(v, "quota_metric", "") or v.subject}
            for v in detail.violations
        ]
    elif name.endswith("ErrorInfo"):
        out["reason"] = detail.reason
    return out


def _is_vendor_error(exc: BaseException) -> bool:
    """An exception of an SDK, of a framework's wrapper around one, or with a response to show."""
    if getattr(exc, "response", None) is not None and not isinstance(exc, (OSError, ValueError)):
        return True
    return any(
        re.match(r"(?:openai|anthropic|google|httpx2?|requests|langchain_\w+|groq|mistralai|cohere|ollama)\b", module)
        for _, module in _names(exc)
    )


_OS: tuple[tuple[type[BaseException], ErrorKind], ...] = (
    (ConnectionRefusedError, K.CONNECT),
    (ConnectionError, K.TRANSIENT),
    (TimeoutError, K.TIMEOUT),
)


def _transport_kind(exc: BaseException) -> ErrorKind | None:
    for name, module in _names(exc):
        if name in TRANSPORT and _TRANSPORT_MODULES.match(module):
            return TRANSPORT[name]
    if type(exc).__name__ in ("gaierror", "SSLError", "SSLCertVerificationError", "SSLZeroReturnError"):
        return K.CONNECT
    return next((kind for cls, kind in _OS if isinstance(exc, cls)), None)


def _weak_kind(exc: BaseException) -> ErrorKind | None:
    return next((WEAK[name] for name, module in _names(exc) if name in WEAK and module != "builtins"), None)


def _raised_by_vendor(exc: BaseException) -> bool:
    """Whether the innermost frame is inside an SDK or a framework's vendor package: its own refusal to send something."""
    trace = exc.__traceback__
    module = type(exc).__module__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return bool(VENDOR_CODE.match(module))


def classify_error(
    exc: BaseException,
    *,
    provider: str,
    response_headers: Mapping[str, str] | None = None,
    now: float | None = None,
) -> ProviderError | None:
    """What an exception from an SDK, a transport or a wrapped framework model says about the provider.

    Returns None when it says nothing: a bug, a cancellation, Ctrl-C. The caller lets those surface untouched. The
    `ProviderError` keeps the SDK's response; setting `__cause__` is the caller's `raise … from exc`.

    Args:
        exc: the exception as it was caught.
        provider: the provider's name; says whose dialect error bodies are in.
        response_headers: of the response the error came in, where the exception itself does not carry them.
        now: wall-clock seconds, for dates in responses without a `Date` of their own.
    """
    if isinstance(exc, ProviderError):
        return exc
    if not isinstance(exc, Exception) or is_bug(exc):
        return None
    chain = [one for one in _chain(exc) if isinstance(one, Exception)]
    for one in chain:
        if isinstance(one, ProviderError):
            return one
        if (found := _from_status(one, provider, response_headers, now)) is not None:
            return found
    strong = [(one, kind) for one in chain if (kind := _transport_kind(one)) is not None]
    if strong:
        # The first is the SDK's or HTTP library's own word; the operating system's, deeper down, is only more detail.
        one, kind = strong[0]
        return _plain(kind, one, exc)
    for one in chain:
        if (weak := _weak_kind(one)) is not None:
            return _plain(weak, one, exc)
    if isinstance(exc, ValueError):
        if re.search(r"no generation(?:s| chunks)", str(exc), re.IGNORECASE):  # LangChain, for an empty or HTML answer
            return _plain(K.MALFORMED, exc, exc)
        if _raised_by_vendor(exc):
            return _plain(K.CONFIG if isinstance(exc, UnicodeError) else K.INCAPABLE, exc, exc)
    if _is_vendor_error(exc) and not isinstance(exc, (ValueError, RuntimeError)):
        return _plain(K.UNKNOWN, exc, exc)
    return None


def _from_status(
    exc: Exception, provider: str, headers: Mapping[str, str] | None, now: float | None
) -> ProviderError | None:
    """The error for an exception that carries an HTTP status or an error body; None for any other."""
    if not _is_vendor_error(exc):
        return None
    if type(exc).__name__ == "APIResponseValidationError":
        return None  # it has a good status; what is wrong is the answer, and its class name says so
    status = _status_of(exc)
    body = _body_of(exc) if status is not None or getattr(exc, "body", None) is not None else None
    if status is None and not body:
        return None
    if isinstance(body, str) and body.lstrip()[:1] not in ("{", "[", "<"):
        body = {"message": body}
    family = next((name for _, module in _names(exc) if (name := _family_of_module(module))), None) or provider
    error = classify_body(
        family,
        status,
        body,
        {**(headers or {}), **_headers_of(exc)},
        message=str(getattr(exc, "message", None) or exc),
        response=getattr(exc, "response", None),
        request_id=getattr(exc, "request_id", None),
        now=now,
    )
    if error.kind in (K.BAD_REQUEST, K.TRANSIENT) and error.code != PREFILL_REJECTED:
        # A framework that already recognised the overflow knows text that we do not.
        if any(name == "ContextOverflowError" for name, _ in _names(exc)):
            return ProviderError.of(K.CONTEXT_OVERFLOW, error.message, status=error.status, code=error.code,
                                    request_id=error.request_id, response=error.response)  # fmt: skip
    return error


def _family_of_module(module: str) -> Family | None:
    root = module.partition(".")[0]
    if root in ("anthropic", "langchain_anthropic"):
        return "anthropic"
    if root in ("google", "langchain_google_genai", "langchain_google_vertexai"):
        return "google"
    return None


def _plain(kind: ErrorKind, exc: Exception, outer: Exception) -> ProviderError:
    text = str(exc) or str(outer) or type(exc).__name__
    return ProviderError.of(
        kind,
        f"{type(exc).__name__}: {text}"[:_MESSAGE_CHARS] if text != type(exc).__name__ else text,
        response=getattr(exc, "response", None) or getattr(outer, "response", None),
    )


_LIMIT_TEXT = {
    "first token": "no first token within {s:g} s",
    "idle": "no content for {s:g} s in the middle of the stream",
    "whole answer": "no whole answer within {s:g} s",
    "deadline": "the deadline of the call ran out after {s:g} s of this attempt",
}


def timeout_error(which: str, seconds: float, *, cause: BaseException | None = None) -> ProviderError:
    """The error for a limit of ours that ran out, named in our words: 'no first token within 30 s'."""
    text = _LIMIT_TEXT.get(which, "{s:g} s ran out").format(s=round(seconds, 2))
    error = ProviderError.of(K.TIMEOUT, text, code=which.replace(" ", "_"))
    error.__cause__ = cause
    return error
