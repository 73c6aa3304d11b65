"""Every error this package raises, and what each says to do next.

    FallbackError                         everything below
    ├── ConfigurationError (ValueError)   a target, option or policy is wrong; raised where it is built
    │   ├── UnknownProvider               no such provider; names the nearest
    │   ├── UnknownOption                 no such keyword; names the nearest
    │   ├── MissingKey                    no API key; names the environment variable
    │   ├── MissingDependency             an SDK is not installed; names the extra
    │   ├── InvalidExport                 a vendor's usage export that cannot be read; names line and column
    │   ├── InvalidModelFile              a GGUF that cannot be loaded; carries llama.cpp's own reason
    │   └── LedgerError                   a ledger's file cannot be used; `reason` says why
    ├── InvalidRequest (ValueError)       the request cannot be sent to anyone; raised before anything is sent
    ├── ProviderError                     one attempt failed; `kind` says how, `disposition` what follows
    │   ├── RateLimited                   throttled, ramp, daily quota: a wait with an end
    │   ├── AccountError                  key, billing, permission: a lock that waiting will not lift
    │   ├── RequestRejected               the request itself: malformed, too large, context, policy, incapable
    │   ├── ProviderUnavailable           overloaded, 5xx, connection, malformed answer
    │   ├── ProviderTimeout               silence: no first token, no next token, no whole answer in time
    │   └── InvalidOutput                 a whole answer that is not what was asked for; keeps the answer
    ├── StreamBroken                      a committed stream broke and could not be continued; keeps the partial text
    └── AllTargetsFailed (ExceptionGroup) nobody answered; keeps every attempt's error, the most useful is the cause
        ├── BudgetExceeded                a hard budget kept out who might have answered; says which, and until when
        └── DeadlineExceeded              the logical call ran out of time

A bug is never dressed up as a provider's failure: `TypeError`, `RuntimeError('Event loop is closed')` and the like pass
through untouched.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Self

__all__ = [
    "RULES",
    "AccountError",
    "AllTargetsFailed",
    "BudgetExceeded",
    "ConfigurationError",
    "DeadlineExceeded",
    "Disposition",
    "ErrorKind",
    "FallbackError",
    "InvalidExport",
    "InvalidModelFile",
    "InvalidOutput",
    "InvalidRequest",
    "LedgerError",
    "MissingDependency",
    "MissingKey",
    "ProviderError",
    "ProviderTimeout",
    "ProviderUnavailable",
    "RateLimited",
    "RequestRejected",
    "Rule",
    "Scope",
    "Settlement",
    "StreamBroken",
    "UnknownOption",
    "UnknownProvider",
    "is_number",
    "is_secret",
    "nearest",
    "quieted",
    "redact",
]


class Disposition(enum.Enum):
    """What an error says to do next."""

    RETRY = "retry"
    """The same target may be asked once more, after a wait; then the next target."""
    FALL_OVER = "fall_over"
    """The same target would answer the same; ask the next one."""
    INCAPABLE = "incapable"
    """This target cannot serve this request; it is not sick. Ask one that can."""
    FAIL = "fail"
    """The request itself is at fault, or time is up; asking elsewhere would not help."""


class Scope(enum.Enum):
    """How much of the world one error says something about."""

    REQUEST = "request"
    TARGET = "target"
    ACCOUNT = "account"
    """Everything behind the same key and endpoint."""


class Settlement(enum.Enum):
    """What a failed attempt is presumed to have cost, until the provider's bill says otherwise."""

    VOID = "void"
    """Refused before any work: nothing."""
    UNKNOWN = "unknown"
    """May have been billed: charged at the bound."""
    ACTUAL = "actual"
    """Answered and billed."""


class ErrorKind(enum.StrEnum):
    """The classes of failure the whole product reasons with (one row each in `RULES`)."""

    BAD_REQUEST = "bad_request"
    CONTEXT_OVERFLOW = "context_overflow"
    POLICY = "policy"
    TOO_LARGE = "too_large"
    INCAPABLE = "incapable"
    AUTH = "auth"
    FORBIDDEN = "forbidden"
    BILLING = "billing"
    NO_ENTITLEMENT = "no_entitlement"
    NOT_FOUND = "not_found"
    THROTTLED = "throttled"
    RAMP = "ramp"
    QUOTA_DAY = "quota_day"
    CONFLICT = "conflict"
    TRANSIENT = "transient"
    OVERLOADED = "overloaded"
    CONNECT = "connect"
    MALFORMED = "malformed"
    STREAM_CUT = "stream_cut"
    TIMEOUT = "timeout"
    INVALID_OUTPUT = "invalid_output"
    CONFIG = "config"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rule:
    """What follows from one kind of failure: a row of the error table."""

    disposition: Disposition
    trips_breaker: bool = False
    """Whether it counts as a failure of the target's circuit breaker."""
    locks: Scope | None = None
    """What is closed at once, without counting to five."""
    lock_s: float = 0.0
    """For how long, in seconds: at least this, whatever the error says."""
    trusts_wait: bool = False
    """An end that the error names counts in place of `lock_s`, also when it is sooner."""
    backoff_base_s: float = 0.5
    settlement: Settlement = Settlement.VOID
    prefers_fall_over: bool = False
    """Retry only when no other target is left to try."""


_R, _F, _I, _X = Disposition.RETRY, Disposition.FALL_OVER, Disposition.INCAPABLE, Disposition.FAIL
_UNKNOWN = Settlement.UNKNOWN

RULES: Mapping[ErrorKind, Rule] = MappingProxyType(
    {
        ErrorKind.BAD_REQUEST: Rule(_X),
        ErrorKind.CONTEXT_OVERFLOW: Rule(_I),
        ErrorKind.POLICY: Rule(_X, settlement=Settlement.ACTUAL),
        ErrorKind.TOO_LARGE: Rule(_I),
        ErrorKind.INCAPABLE: Rule(_I),
        ErrorKind.AUTH: Rule(_F, locks=Scope.ACCOUNT, lock_s=900.0),
        ErrorKind.FORBIDDEN: Rule(_F, locks=Scope.TARGET, lock_s=600.0),
        ErrorKind.BILLING: Rule(_F, locks=Scope.ACCOUNT, lock_s=900.0),
        ErrorKind.NO_ENTITLEMENT: Rule(_F, locks=Scope.TARGET, lock_s=900.0),
        ErrorKind.NOT_FOUND: Rule(_F, locks=Scope.TARGET, lock_s=600.0),
        # A wait with an end: the target is parked until then, its circuit stays closed.
        ErrorKind.THROTTLED: Rule(_R, locks=Scope.TARGET, backoff_base_s=1.0),
        ErrorKind.RAMP: Rule(_R, locks=Scope.TARGET, backoff_base_s=1.0),
        ErrorKind.QUOTA_DAY: Rule(_F, locks=Scope.TARGET, lock_s=3600.0, trusts_wait=True),
        ErrorKind.CONFLICT: Rule(_R),
        ErrorKind.TRANSIENT: Rule(_R, trips_breaker=True, settlement=_UNKNOWN),
        ErrorKind.OVERLOADED: Rule(_R, trips_breaker=True, backoff_base_s=1.0, prefers_fall_over=True),
        ErrorKind.CONNECT: Rule(_R, trips_breaker=True),
        ErrorKind.MALFORMED: Rule(_R, trips_breaker=True, settlement=_UNKNOWN),
        ErrorKind.STREAM_CUT: Rule(_R, trips_breaker=True, settlement=_UNKNOWN),
        ErrorKind.TIMEOUT: Rule(_F, trips_breaker=True, settlement=_UNKNOWN),
        # Answered and billed, and useless. The flow shows the model its mistake once; then the next target is asked.
        ErrorKind.INVALID_OUTPUT: Rule(_F, settlement=Settlement.ACTUAL),
        ErrorKind.CONFIG: Rule(_F),
        ErrorKind.CANCELLED: Rule(_F, settlement=_UNKNOWN),
        ErrorKind.UNKNOWN: Rule(_F, trips_breaker=True, settlement=_UNKNOWN),
    }
)
"""The error table. Source: vendors' error pages and SDK types as commonly known in 2026; see docs/errors.md."""


class FallbackError(Exception):
    """The base of every error this package raises."""


class ConfigurationError(FallbackError, ValueError):
    """A target, option or policy is wrong. Raised where it is built; the message names the fix."""


class UnknownProvider(ConfigurationError):
    """No provider of that name; the message names the nearest."""


class UnknownOption(ConfigurationError, TypeError):
    """No such keyword; the message names the nearest valid one."""


class MissingKey(ConfigurationError):
    """A hosted target has no API key; the message names the environment variable."""


class MissingDependency(ConfigurationError, ImportError):
    """A vendor SDK or framework is not installed; the message names the extra to install."""


class InvalidExport(ConfigurationError):
    """A vendor's usage export cannot be read.

    Attributes:
        line: where in the file, from 1, or None where that is not known.
        column: the column or the path of the value, or None.
    """

    def __init__(self, message: str, *, line: int | None = None, column: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class InvalidModelFile(ConfigurationError):
    """A GGUF file is missing, unreadable or corrupt; the message carries llama.cpp's own reason."""


class LedgerError(ConfigurationError):
    """A ledger's file cannot be used. Raised where it is opened, and under a hard budget where it cannot be written.

    Attributes:
        reason: 'locked', 'full', 'read-only', 'corrupt', 'not a database', 'cannot be opened', 'i/o', 'network' (a
            network file system), 'newer' (a newer version's file) or 'not a ledger' (another program's).
    """

    def __init__(self, message: str, *, reason: str = "i/o") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, dict(self.__dict__))


class InvalidRequest(FallbackError, ValueError):
    """The request is impossible (no messages, a broken schema, a negative limit). Nothing was sent."""


class ProviderError(FallbackError):
    """One attempt at one target failed.

    Attributes:
        kind: the class of failure; `RULES[kind]` says what follows.
        target: the target's name, set by the router.
        status: HTTP status, if there was one. In-stream errors keep the error's own status, not 200.
        code: the vendor's own error code or type.
        retry_after_s: seconds the server asked to wait, a lower bound, or None.
        request_id: the vendor's request id, for their support desk.
        response: the SDK's response object, when there is one, for traces that read headers and body.
        retryable_hint: the server's `x-should-retry`, or None.
        after_output: whether content had already arrived from this attempt.
        in_stream: whether it came inside an answer that had begun with 200: the provider had taken the request.
        asked: False where the time was over before the request could be sent: nothing can be billed.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: ErrorKind = ErrorKind.UNKNOWN,
        target: str | None = None,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        response: Any = None,
        retryable_hint: bool | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(redact(message))
        self.kind = kind
        self.target = target
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.response = response
        self.retryable_hint = retryable_hint
        self.hint = hint
        self.after_output = False
        self.in_stream = False
        self.asked = True

    @classmethod
    def of(cls, kind: ErrorKind, message: str, **fields: Any) -> ProviderError:
        """The right subclass for `kind`."""
        return _CLASS_OF.get(kind, ProviderError)(message, kind=kind, **fields)

    @property
    def message(self) -> str:
        """What the provider said, keys redacted."""
        return str(self.args[0])

    @property
    def rule(self) -> Rule:
        """The row of the error table that applies."""
        return RULES[self.kind]

    @property
    def settlement(self) -> Settlement:
        """What the attempt is presumed to have cost. A refusal is free, unless the provider had begun to answer."""
        if not self.asked:
            return Settlement.VOID
        presumed = RULES[self.kind].settlement
        if presumed is Settlement.VOID and self.in_stream:
            return Settlement.UNKNOWN
        if self.kind is ErrorKind.POLICY and (self.status or 0) >= 400:
            return Settlement.VOID  # refused before it was read by the model
        return presumed

    @property
    def disposition(self) -> Disposition:
        """What to do next. `x-should-retry: false` turns a retry into a fall-over."""
        rule = RULES[self.kind]
        if rule.disposition is Disposition.RETRY and self.retryable_hint is False:
            return Disposition.FALL_OVER
        return rule.disposition

    @property
    def unsent(self) -> bool:
        """No byte of the request has left, or been looked at: refused, unresolved, no TLS, no free connection."""
        return self.kind is ErrorKind.CONNECT and self.status is None

    @property
    def is_retryable(self) -> bool:
        """Whether the same request to the same target may succeed later."""
        return RULES[self.kind].disposition is Disposition.RETRY or self.kind is ErrorKind.TIMEOUT

    def __str__(self) -> str:
        facts = [str(self.kind)]
        if self.status is not None:
            facts.append(f"HTTP {self.status}")
        if self.code and self.code != self.kind:
            facts.append(str(self.code))
        if self.retry_after_s is not None:
            facts.append(f"retry after {self.retry_after_s:g} s")
        if self.request_id:
            facts.append(f"request {self.request_id}")
        where = f"{self.target}: " if self.target else ""
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{where}{self.message} [{', '.join(facts)}]{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The SDK's response object holds sockets and locks: it does not travel.
        state = {k: v for k, v in self.__dict__.items() if k != "response"} | {"response": None}
        return _revive, (type(self), self.args, state)


def _revive(cls: type[BaseException], args: tuple[Any, ...], state: Mapping[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class RateLimited(ProviderError):
    """A wait with a known or estimable end: requests, tokens, ramp or day quota."""


class AccountError(ProviderError):
    """The key, the bill or a permission. Waiting a little will not lift it; nobody retries it."""


class RequestRejected(ProviderError):
    """The request itself: malformed, too large, past the context window, against policy, or beyond the target."""


class ProviderUnavailable(ProviderError):
    """The provider is down, overloaded, unreachable or answers nonsense."""


class ProviderTimeout(ProviderError, TimeoutError):
    """Silence: no first token, no next token or no whole answer within the target's own limit."""


class InvalidOutput(ProviderError):
    """A whole answer that is not what was asked for: it does not fit the schema, or lacks the tool call.

    Attributes:
        answer: the answer as it came (`shared_core.Answer`), for those who want it all the same.
    """

    answer: Any = None


_CLASS_OF: Mapping[ErrorKind, type[ProviderError]] = {
    ErrorKind.BAD_REQUEST: RequestRejected,
    ErrorKind.CONTEXT_OVERFLOW: RequestRejected,
    ErrorKind.POLICY: RequestRejected,
    ErrorKind.TOO_LARGE: RequestRejected,
    ErrorKind.INCAPABLE: RequestRejected,
    ErrorKind.AUTH: AccountError,
    ErrorKind.FORBIDDEN: AccountError,
    ErrorKind.BILLING: AccountError,
    ErrorKind.NO_ENTITLEMENT: AccountError,
    ErrorKind.NOT_FOUND: AccountError,
    ErrorKind.THROTTLED: RateLimited,
    ErrorKind.RAMP: RateLimited,
    ErrorKind.QUOTA_DAY: RateLimited,
    ErrorKind.TRANSIENT: ProviderUnavailable,
    ErrorKind.OVERLOADED: ProviderUnavailable,
    ErrorKind.CONNECT: ProviderUnavailable,
    ErrorKind.MALFORMED: ProviderUnavailable,
    ErrorKind.STREAM_CUT: ProviderUnavailable,
    ErrorKind.TIMEOUT: ProviderTimeout,
    ErrorKind.INVALID_OUTPUT: InvalidOutput,
}


class StreamBroken(FallbackError):
    """A stream the caller had begun to read broke, and the policy or the targets left did not allow to go on.

    Attributes:
        partial: the text already delivered.
        usage: tokens reported or estimated until then.
        fallback: the journal's metadata, as an answer would have carried it.
    """

    def __init__(
        self, message: str, *, partial: str, usage: Any = None, fallback: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(redact(message))
        self.partial = partial
        self.usage = usage
        self.fallback = dict(fallback or {})

    @property
    def errors(self) -> tuple[Exception, ...]:
        """Every attempt's error, in the order they happened."""
        cause = self.__cause__
        return cause.errors if isinstance(cause, AllTargetsFailed) else ()

    @property
    def response(self) -> Any:
        """The SDK's response object of the most useful error, for traces that read headers and body."""
        return getattr(self.__cause__, "response", None)

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed soon."""
        return bool(getattr(self.__cause__, "is_retryable", False))

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, dict(self.__dict__))


_SOON_S = 300.0


class AllTargetsFailed(FallbackError, ExceptionGroup[Exception]):
    """Nobody answered. Holds every attempt's error in order; the most useful one is `__cause__`.

    Attributes:
        fallback: the journal's metadata: every target, error, time and hint, and every excluded target with its reason.
        retry_after_s: seconds from now until the soonest target may be tried again, or None if waiting will not help.
    """

    fallback: Mapping[str, Any]
    retry_after_s: float | None

    def __new__(
        cls,
        message: str,
        errors: Sequence[Exception],
        *,
        fallback: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> Self:
        return super().__new__(cls, message, list(errors) or [FallbackError("no target was tried")])

    def __init__(
        self,
        message: str,
        errors: Sequence[Exception],
        *,
        fallback: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, list(errors))
        self.fallback = dict(fallback or {})
        self.retry_after_s = retry_after_s

    @property
    def errors(self) -> tuple[Exception, ...]:
        """Every attempt's error, in the order they happened."""
        return self.exceptions

    @property
    def response(self) -> Any:
        """The SDK's response object of the most useful error, for traces that read headers and body."""
        return getattr(self.__cause__, "response", None)

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed soon: an attempt failed for a passing reason, or nobody could be asked just
        now but within five minutes. Never when the request itself is at fault.
        """
        cause = self.__cause__
        if isinstance(cause, ProviderError) and cause.disposition is Disposition.FAIL:
            return False
        if any(getattr(error, "is_retryable", False) for error in self.exceptions):
            return True
        tried = any(isinstance(error, ProviderError) for error in self.exceptions)
        return not tried and self.retry_after_s is not None and self.retry_after_s <= _SOON_S

    def derive(self, excs: Sequence[Exception], /) -> Self:  # type: ignore[override]  # ours holds Exceptions only
        """A group of the same kind over other errors (`split`, `subgroup`)."""
        return type(self)(self.message, excs, fallback=self.fallback, retry_after_s=self.retry_after_s)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive_group, (type(self), self.message, list(self.exceptions), dict(self.fallback), self.retry_after_s)


class DeadlineExceeded(AllTargetsFailed):
    """The logical call ran out of time (`Timeouts.total`) before anybody had answered."""


class BudgetExceeded(AllTargetsFailed):
    """A hard budget kept out a target that might have answered, and nobody else did.

    Attributes:
        budget: the `Budget` that refused; of several, the first.
        of: which target, user or tag it is about, where it has a limit for each.
        spent: dollars spent in its window, outcomes that are unknown at their bound.
        pending: dollars set aside for attempts under way.
        needed: dollars that the attempt might have cost, at worst; None when nobody knows, which fits no hard budget.
        resets_at: when its window ends (an aware `datetime` in the budget's time zone), None for one that never does.
        errors: of the attempts that were made all the same, at targets within budget.
    """

    def __new__(
        cls,
        message: str,
        errors: Sequence[Exception] = (),
        *,
        fallback: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> Self:
        return super().__new__(cls, message, errors, fallback=fallback, retry_after_s=retry_after_s)

    def __init__(
        self,
        message: str,
        errors: Sequence[Exception] = (),
        *,
        fallback: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, errors, fallback=fallback, retry_after_s=retry_after_s)

    budget: Any = None
    of: str | None = None
    spent: float = 0.0
    pending: float = 0.0
    needed: float | None = None
    resets_at: datetime | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: getattr(self, name) for name in ("budget", "of", "spent", "pending", "needed", "resets_at")}
        return _revive_refusal, (super().__reduce__(), facts)


def _revive_refusal(group: tuple[Any, ...], facts: Mapping[str, Any]) -> AllTargetsFailed:
    error: AllTargetsFailed = group[0](*group[1])
    error.__dict__.update(facts)
    return error


def _revive_group(
    cls: type[AllTargetsFailed],
    message: str,
    errors: list[Exception],
    fallback: dict[str, Any],
    retry_after_s: float | None,
) -> AllTargetsFailed:
    return cls(message, errors, fallback=fallback, retry_after_s=retry_after_s)


def quieted(error: Exception) -> Exception:
    """`error` without the frames of the SDK it came out of: a failure that has been classified explains itself, and
    four of them would fill three screens. What nobody could classify keeps its frames; so do all bugs.
    """
    if not isinstance(error, ProviderError) or error.kind is ErrorKind.UNKNOWN:
        return error
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = None
        if link.__cause__ is not None:
            link = link.__cause__
        else:
            link = None if link.__suppress_context__ else link.__context__
    return error


def is_number(
    value: Any, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf, whole: bool = False
) -> bool:
    """Whether an option is a finite number in that range: neither NaN, nor True, which Python counts as 1.

    `least` and `most` belong to the range, `above` does not.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return least <= value <= most and above < value < math.inf


def nearest(name: str, valid: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the valid name closest to `name`, or the list of valid names."""
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Valid: {', '.join(options)}."


_SECRETS = re.compile(
    r"""
      (?<=://)[^\s/?#'"<>]{1,512}(?=@)                                              # user and password in URLs
    | \b(?:sk|pk|rk|xai|gsk|key|tgp|AIza|AQ)[-_.]?[A-Za-z0-9][A-Za-z0-9_\-]{14,}    # vendor-shaped keys
    | (?i:(?<=header\svalue\s)|(?<=header\svalue:\s))                               # h11, and requests, recite it
      b?(?:'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*")
    | (?i:(?<=bearer\s)[A-Za-z0-9._~+/=\-]{8,})                                     # Authorization: Bearer …
    | (?i:(?<=api_key=)[^\s&'"]{8,} | (?<=[?&]key=)[^\s&'"]{8,})                    # in URLs
    """,
    re.VERBOSE,
)


def redact(text: str) -> str:
    """`text` with everything that looks like a credential replaced by `***`: keys, and who logs in with which password
    in a URL."""
    return _SECRETS.sub("***", text)


_SECRET_NAMES = re.compile(
    r"(?:^|[_-])(?:key|secret|password|passwd|credential|auth|authorization|header|cookie)s?$|api[_-]?key"
    r"|(?:^|(?:auth|access|api|bearer|session|refresh|security)[_-]?)tokens?$",
    re.IGNORECASE,
)


def is_secret(name: object) -> bool:
    """Whether a setting of that name holds a secret, or may: it is left out of everything that is written down.

    Tokens are secrets where they let somebody in, and settings where they are counted (`max_tokens`, `first_token`).
    """
    return bool(_SECRET_NAMES.search(str(name)))
