"""Our errors as LangChain's own: what `FallbackChatModel` raises is caught by whoever catches LangChain's `ModelError`.

    AllTargetsFailed  ModelsFailed                  also ModelError; by what went wrong one of
                      ├── AuthenticationFailed          also ModelAuthenticationError
                      ├── PermissionDenied              also ModelPermissionDeniedError
                      ├── RejectedByModels              also ModelInvalidRequestError
                      ├── ModelsNotFound                also ModelNotFoundError
                      ├── ContextOverflow               also ContextOverflowError
                      ├── RateLimitReached              also ModelRateLimitError
                      ├── ModelsUnavailable             also ModelAPIError
                      ├── ModelsUnreachable             also ModelConnectionError
                      ├── ModelsTooSlow                 also ModelTimeoutError
                      └── OutputNotValid                also OutputParserException
    DeadlineExceeded  ModelDeadlineExceeded         also ModelTimeoutError
    StreamBroken      ModelStreamBroken             also ModelConnectionError
    InvalidRequest    InvalidModelRequest           also ModelInvalidRequestError
    BudgetExceeded    ModelBudgetExceeded           also ModelError; an AllTargetsFailed, too

Each stays what it was: `except AllTargetsFailed` and `except* RateLimited` work as on a `Router`. `is_retryable`
says whether the same call may succeed soon, `response` is the SDK's, `errors` holds every attempt's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
    OutputParserException,
)

from shared_core.errors import (
    AllTargetsFailed,
    BudgetExceeded,
    DeadlineExceeded,
    ErrorKind,
    FallbackError,
    InvalidOutput,
    InvalidRequest,
    ProviderError,
    StreamBroken,
)

__all__ = [
    "AuthenticationFailed",
    "ContextOverflow",
    "InvalidModelRequest",
    "ModelBudgetExceeded",
    "ModelDeadlineExceeded",
    "ModelStreamBroken",
    "ModelsFailed",
    "ModelsNotFound",
    "ModelsTooSlow",
    "ModelsUnavailable",
    "ModelsUnreachable",
    "OutputNotValid",
    "PermissionDenied",
    "RateLimitReached",
    "RejectedByModels",
    "as_langchain",
]


class ModelsFailed(AllTargetsFailed, ModelError):
    """Nobody answered, for several reasons or for one that LangChain has no word for."""

    is_retryable = AllTargetsFailed.is_retryable


class AuthenticationFailed(ModelsFailed, ModelAuthenticationError):
    """Every key was refused."""


class PermissionDenied(ModelsFailed, ModelPermissionDeniedError):
    """Every account lacks the permission, the entitlement or the money."""


class RejectedByModels(ModelsFailed, ModelInvalidRequestError):
    """The request itself was rejected."""


class ModelsNotFound(ModelsFailed, ModelNotFoundError):
    """No target knows its model."""


class ContextOverflow(ModelsFailed, ContextOverflowError):
    """The conversation is longer than a context window, and nobody with a larger one answered."""


class RateLimitReached(ModelsFailed, ModelRateLimitError):
    """Every target is throttled."""


class ModelsUnavailable(ModelsFailed, ModelAPIError):
    """Every target is down or overloaded."""


class ModelsUnreachable(ModelsFailed, ModelConnectionError):
    """No target could be reached."""


class ModelsTooSlow(ModelsFailed, ModelTimeoutError):
    """Every target fell silent."""


class OutputNotValid(ModelsFailed, OutputParserException):
    """Nobody's answer was what was asked for. `llm_output` is the last one's text."""

    observation: str | None = None
    send_to_llm = False

    @property
    def llm_output(self) -> str | None:  # type: ignore[override]  # LangChain's is a plain attribute
        """The text of the last rejected answer."""
        answers = [e.answer for e in self.exceptions if isinstance(e, InvalidOutput) and e.answer is not None]
        return str(answers[-1].text) if answers else None


class ModelDeadlineExceeded(DeadlineExceeded, ModelTimeoutError):
    """The call ran out of time before anybody had answered."""

    is_retryable = AllTargetsFailed.is_retryable


class ModelStreamBroken(StreamBroken, ModelConnectionError):
    """A stream that had been read in part broke, and nobody could go on with it; `partial` is what was delivered."""

    is_retryable = StreamBroken.is_retryable


class InvalidModelRequest(InvalidRequest, ModelInvalidRequestError):
    """The request is impossible; nothing was sent."""


class ModelBudgetExceeded(BudgetExceeded, ModelError):
    """A hard budget kept out a target that might have answered, and nobody else did."""

    is_retryable = BudgetExceeded.is_retryable


_K = ErrorKind
_BY_KIND: Mapping[ErrorKind, type[ModelsFailed]] = {
    _K.AUTH: AuthenticationFailed,
    **dict.fromkeys((_K.FORBIDDEN, _K.NO_ENTITLEMENT, _K.BILLING), PermissionDenied),
    **dict.fromkeys((_K.BAD_REQUEST, _K.POLICY, _K.TOO_LARGE, _K.INCAPABLE), RejectedByModels),
    _K.NOT_FOUND: ModelsNotFound,
    _K.CONTEXT_OVERFLOW: ContextOverflow,
    **dict.fromkeys((_K.THROTTLED, _K.RAMP, _K.QUOTA_DAY), RateLimitReached),
    **dict.fromkeys((_K.TRANSIENT, _K.OVERLOADED, _K.MALFORMED, _K.CONFLICT), ModelsUnavailable),
    **dict.fromkeys((_K.CONNECT, _K.STREAM_CUT), ModelsUnreachable),
    _K.TIMEOUT: ModelsTooSlow,
    _K.INVALID_OUTPUT: OutputNotValid,
}
_DECISIVE = frozenset({_K.BAD_REQUEST, _K.POLICY, _K.CONTEXT_OVERFLOW, _K.INVALID_OUTPUT})
"""Where one attempt says this, it says what the caller can do, whatever befell the others."""


def _class_of(failed: AllTargetsFailed) -> type[ModelsFailed]:
    cause = failed.__cause__
    if isinstance(cause, ProviderError) and cause.kind in _DECISIVE:
        return _BY_KIND[cause.kind]
    kinds = {error.kind if isinstance(error, ProviderError) else None for error in failed.exceptions}
    classes = {_BY_KIND.get(kind, ModelsFailed) if kind is not None else ModelsFailed for kind in kinds}
    return classes.pop() if len(classes) == 1 else ModelsFailed


def as_langchain(error: FallbackError) -> FallbackError:
    """`error` as one that is LangChain's too; itself where it is one already, or where LangChain has nothing like it.

    To be raised as it is: cause, notes and traceback are those of `error`.
    """
    twin: FallbackError
    match error:
        case ModelError():
            return error
        case DeadlineExceeded():
            twin = _group(ModelDeadlineExceeded, error)
        case BudgetExceeded():
            twin = _group(ModelBudgetExceeded, error)
            twin.__dict__.update(error.__dict__)
        case AllTargetsFailed():
            twin = _group(_class_of(error), error)
        case StreamBroken():
            twin = ModelStreamBroken(error.args[0], partial=error.partial, usage=error.usage, fallback=error.fallback)
            if isinstance(cause := error.__cause__, AllTargetsFailed):
                twin.__cause__ = as_langchain(cause)
        case InvalidRequest():
            twin = InvalidModelRequest(*error.args)
        case _:
            return error
    if twin.__cause__ is None:
        twin.__cause__ = error.__cause__
    for note in getattr(error, "__notes__", ()):
        twin.add_note(note)
    return twin.with_traceback(error.__traceback__)


def _group(cls: type[Any], error: AllTargetsFailed) -> FallbackError:
    made: FallbackError = cls(
        error.message, error.exceptions, fallback=error.fallback, retry_after_s=error.retry_after_s
    )
    return made
