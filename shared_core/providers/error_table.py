"""The error table: what vendors' codes, statuses, words and exception classes mean. Data only; `classify` reads it.

Sources: each vendor's error pages and SDK types as commonly known in 2026; docs/errors.md tells the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from shared_core.errors import ErrorKind

__all__ = [
    "BUGS",
    "CODES",
    "CODES_OF_FAMILY",
    "CODE_SHAPES",
    "GENERIC",
    "LIMITS",
    "MISBUILT",
    "MISREAD",
    "NO_WAIT",
    "OS_ERRORS",
    "PREFILL_REJECTED",
    "REFINED",
    "STATUS",
    "STATUS_OF_FAMILY",
    "TEXTS",
    "TOO_DEEP",
    "TRANSPORT",
    "TRANSPORT_MODULES",
    "TURNED_AWAY",
    "TURNED_AWAY_BY",
    "VENDOR_CODE",
    "WEAK",
    "Family",
    "TextRow",
    "family_of",
    "known_code",
]

Family = Literal["openai", "anthropic", "google"]
K = ErrorKind

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
        "rate_limit_exceeded", "not_found_error", "not_found", "permission_denied", "permission_error",
        "model_not_found", "request_forbidden", "service_unavailable_error", "unavailable", "timeout_error",
        "out_of_range", "authentication_error", "payment_required", "unauthenticated", "conflict_error", "aborted",
        "cancelled",
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
    # Gemini before 3: a schema or tools, not both. Another target may take both.
    _text(K.INCAPABLE, r"function calling with a response mime type", statuses=(400,)),
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
    _text(
        K.AUTH,
        r"api key (?:not valid|expired|is invalid)",
        r"invalid api key",
        r"invalid x-api-key",
        statuses=(400, 401, 403),
    ),
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
        r"does not support (?:tools?|function|image|vision|audio|video|file|pdf|document|json|structured|system)",
        r"does not support (?:the|response_format)",
        r"(?:images?|image input|image_url|vision|audio|tools?|tool use|function calling)"
        r".{0,40}(?:is|are) not (?:currently )?supported",
        r"(?:response_format|structured outputs?).{0,40}(?:is|are) not (?:currently )?supported",
        r"is only supported by certain models",
        r"(?:is|are) (?:deprecated|not supported) for this model",  # Anthropic, of temperature
        r"no endpoints found that support",  # OpenRouter
        r"requires --enable-auto-tool-choice",  # vLLM
        r"tools param requires --jinja",  # llama-server
        r"supports at most \d+ completion tokens",
        r"which is the maximum allowed number of output tokens",  # Anthropic
        r"not a multimodal model",
        statuses=(400, 404, 422, 500, 501),
    ),
    _text(
        K.OVERLOADED,
        r"(?:currently|is|are) overloaded",
        r"at capacity",
        r"no (?:available )?workers",
        statuses=(429, 500, 502, 503),
    ),
    # llama-server, Ollama
    _text(K.OVERLOADED, r"loading model", r"model is loading", r"server busy", statuses=(500, 502, 503)),
)
"""Read in order, the first match wins; only where no distinctive code has spoken."""

BUGS = (
    TypeError, AttributeError, NameError, AssertionError, ImportError, LookupError, RecursionError, NotImplementedError,
)  # fmt: skip
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
TRANSPORT_MODULES = re.compile(
    r"^(?:httpx2?|httpcore2?|h11|h2|requests|urllib3|aiohttp|anyio|openai|anthropic|google|json|simplejson|builtins|langchain_\w+)\b"
)

TURNED_AWAY_BY = frozenset({"RemoteProtocolError", "StreamReset", "ConnectionTerminated"})
TURNED_AWAY = re.compile(
    r"REFUSED_STREAM|StreamReset\b.*error_code:\s*7\b|ConnectionTerminated\b.*last_stream_id:\s*0\b"
)
"""HTTP/2: the server has not looked at the request (REFUSED_STREAM, GOAWAY before the first): as good as not sent."""

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

MISREAD = re.compile(
    r"list index out of range|'(?:str|NoneType)' object (?:has no attribute|is not (?:subscriptable|iterable))"
    r"|'(?:int|float|bool|list)' object has no attribute '(?:model_dump|choices|content|candidates)'"
    r"|object of type '(?:str|NoneType)' has no len|string indices must be integers|type '\w+' is not iterable"
    r"|no generation(?:s| chunks)|unexpected (?:response|type)|received .{0,40}(?:html|str)\b|null value for .?choices"
    r"|'<=' not supported between instances of 'int' and '(?:str|NoneType)'",  # google-genai: an error without a code
    re.IGNORECASE,
)
"""What vendor packages say when they stumble over an answer that is no answer."""

TOO_DEEP = re.compile(r"while decoding a JSON")
"""How a `RecursionError` ends that the brackets of an answer brought about, and not the stack of whoever asked."""

MISBUILT = re.compile(r"GenerateContentResponse|AIMessage|ToolCallBlock|TextBlock")
"""What pydantic could not build where it was the answer that was wrong, and not what was asked."""

NO_WAIT = frozenset(
    {
        K.BILLING, K.NO_ENTITLEMENT, K.AUTH, K.FORBIDDEN, K.BAD_REQUEST, K.POLICY, K.NOT_FOUND, K.INCAPABLE,
        K.CONTEXT_OVERFLOW, K.TOO_LARGE,
    }
)  # fmt: skip
"""Kinds that no wait heals, so a wait in the answer is not reported (Gemini names 10 h for a limit of zero)."""
LIMITS = frozenset({K.THROTTLED, K.RAMP, K.QUOTA_DAY})


OS_ERRORS: tuple[tuple[type[BaseException], ErrorKind], ...] = (
    (ConnectionRefusedError, K.CONNECT),
    (ConnectionError, K.TRANSIENT),
    (TimeoutError, K.TIMEOUT),
)
"""The operating system's own, most specific first."""


def family_of(provider: str) -> Family:
    """Which vendor's dialect a provider speaks; everyone who is not Anthropic or Google speaks OpenAI's."""
    name = provider.lower()
    if name.startswith(("anthropic", "claude")):
        return "anthropic"
    if name.startswith(("google", "gemini", "vertex")):
        return "google"
    return "openai"


def known_code(code: str) -> bool:
    """Whether the table has a row for `code`, whoever uses it."""
    code = code.lower()
    return code in CODES or any(shape.fullmatch(code) for shape, _ in CODE_SHAPES)
