"""What a vendor's failure means: exceptions, statuses, codes, headers and in-stream error bodies, read by tables.

Everything is read by duck type (`status_code`, `code`, `body`, `details`, class and module names), so no SDK is
imported to classify another's error. The order: the vendor's own codes, then well-known text, then the status. A code
nobody knows falls back to its status. A bug (`TypeError`, 'Event loop is closed') is not classified: `classify_error`
returns None and the caller lets it surface. The tables are in `error_table`; docs/errors.md tells them in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers.error_body import ErrorBody, read_body
from shared_core.providers.error_table import (
    BUGS,
    CODE_SHAPES,
    CODES,
    CODES_OF_FAMILY,
    GENERIC,
    LIMITS,
    MISBUILT,
    MISREAD,
    NO_WAIT,
    OS_ERRORS,
    PREFILL_REJECTED,
    REFINED,
    STATUS,
    STATUS_OF_FAMILY,
    TEXTS,
    TOO_DEEP,
    TRANSPORT,
    TRANSPORT_MODULES,
    TURNED_AWAY,
    TURNED_AWAY_BY,
    VENDOR_CODE,
    WEAK,
    Family,
    family_of,
)
from shared_core.providers.waits import retry_after_s

__all__ = ["classify_body", "classify_error", "family_of", "is_bug", "retry_after_s", "timeout_error"]

K = ErrorKind
_MESSAGE_CHARS = 1_000


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


def _decide(family: Family, status: int | None, said: ErrorBody) -> tuple[ErrorKind, str | None]:
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


def _google_quota(said: ErrorBody) -> ErrorKind | None:
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
    said = read_body(body)
    if not said.message:
        said.message = message or ""
    kind, own_code = _decide(family, status, said)
    if said.html and status is not None and status < 300:
        kind = K.MALFORMED
    shown = status if status is not None and not 200 <= status < 300 else said.status
    hint = {"true": True, "false": False}.get(head.get("x-should-retry", "").lower())
    gave_up = (shown == 504 or "timeout_error" in said.codes) and shown != 408
    if family == "anthropic" and kind is K.TRANSIENT and gave_up:
        hint = False  # its own advice is to stream; asking again would wait as long again
    wait = None if kind in NO_WAIT else retry_after_s(head, body, message=said.message, now=now, resets=kind in LIMITS)
    text = said.message.strip() or (f"HTTP status {shown}" if shown else "the provider reported an error")
    error = ProviderError.of(
        kind,
        text[:_MESSAGE_CHARS],
        status=shown,
        code=own_code or said.code,
        retry_after_s=wait,
        request_id=request_id or head.get("x-request-id") or head.get("request-id"),
        response=response,
        retryable_hint=hint,
    )
    error.in_stream = status is None or status < 300 or getattr(response, "status_code", None) == 200
    return error


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
            re.IGNORECASE,
        ):
            return True
    # What an SDK wrapped as a connection error may be a bug of ours that happened while it was sending.
    wrapped = type(exc).__name__ in ("APIConnectionError", "APITimeoutError")
    return wrapped and isinstance(exc.__cause__, (*BUGS, RuntimeError))


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
    """google.api_core keeps details as a list (REST: dicts, gRPC: protobuf messages), and the rest in the message."""
    plain = [d if isinstance(d, Mapping) else _protobuf(d) for d in details]
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


def _transport_kind(exc: BaseException) -> ErrorKind | None:
    for name, module in _names(exc):
        if name in TRANSPORT and TRANSPORT_MODULES.match(module):
            return K.CONNECT if name in TURNED_AWAY_BY and TURNED_AWAY.search(str(exc)) else TRANSPORT[name]
    if type(exc).__name__ in ("gaierror", "SSLError", "SSLCertVerificationError", "SSLZeroReturnError"):
        return K.CONNECT
    return next((kind for cls, kind in OS_ERRORS if isinstance(exc, cls)), None)


def _weak_kind(exc: BaseException) -> ErrorKind | None:
    return next((WEAK[name] for name, module in _names(exc) if name in WEAK and module != "builtins"), None)


def _raised_by_vendor(exc: BaseException, *, beneath: str = "") -> bool:
    """Whether the innermost frame is in an SDK or a framework's vendor package: its own refusal to send this.

    Frames of modules that match `beneath` do not count: who called them is asked for.
    """
    trace = exc.__traceback__
    module = type(exc).__module__
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", "")
        if not (beneath and re.match(beneath, name)):
            module = name
        trace = trace.tb_next
    return bool(VENDOR_CODE.match(module))


def _misread(exc: Exception) -> bool:
    """Whether a vendor package stumbled over an answer that is none: `choices[0]` of nothing, HTML in place of JSON."""
    if isinstance(exc, RecursionError):
        return bool(TOO_DEEP.search(str(exc))) and _raised_by_vendor(exc, beneath=r"json\b")
    if not isinstance(exc, (IndexError, AttributeError, TypeError, ValueError)):
        return False
    if MISBUILT.match(str(getattr(exc, "title", ""))):  # pydantic's ValidationError says what it should have become
        return _raised_by_vendor(exc, beneath=r"pydantic|langchain_core\.|llama_index\.core\.")
    return bool(MISREAD.search(str(exc))) and _raised_by_vendor(exc)


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
    if not isinstance(exc, Exception):
        return None
    if _misread(exc):
        return _plain(K.MALFORMED, exc, exc)
    if is_bug(exc):
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
    vague = error.kind in (K.BAD_REQUEST, K.TRANSIENT) and error.code != PREFILL_REJECTED
    if vague and any(name == "ContextOverflowError" for name, _ in _names(exc)):
        # A framework that already recognised the overflow knows text that we do not.
        return ProviderError.of(
            K.CONTEXT_OVERFLOW, error.message, status=error.status, code=error.code, request_id=error.request_id,
            response=error.response,
        )  # fmt: skip
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
    if which == "deadline" and seconds <= 0:  # loading an SDK, or waiting for a turn, took all there was
        text = "the deadline of the call had run out when this attempt began"
    else:
        text = _LIMIT_TEXT.get(which, "{s:g} s ran out").format(s=round(seconds, 2))
    error = ProviderError.of(K.TIMEOUT, text, code=which.replace(" ", "_"))
    error.__cause__ = cause
    return error
