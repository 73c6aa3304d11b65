"""Errors as users of LlamaIndex expect them: a structured answer that nobody gave is a `ValueError` too."""

from __future__ import annotations

from shared_core.errors import AllTargetsFailed, BudgetExceeded, DeadlineExceeded, InvalidOutput

__all__ = ["StructuredOutputFailed", "as_llamaindex"]


class StructuredOutputFailed(AllTargetsFailed, ValueError):
    """Targets answered, and no answer was what was asked for, although each was shown its mistake.

    LlamaIndex's own structured prediction raises a `ValueError` then (pydantic's `ValidationError` is one), so whoever
    catches that catches this. `errors` holds an `InvalidOutput` for every such answer, with the `answer` itself.
    """


def as_llamaindex(error: AllTargetsFailed) -> AllTargetsFailed:
    """`error`, as a `StructuredOutputFailed` where answers that were no use are the best explanation of it."""
    if not isinstance(error.__cause__, InvalidOutput) or isinstance(error, (BudgetExceeded, DeadlineExceeded)):
        return error
    failed = StructuredOutputFailed(
        error.message, error.exceptions, fallback=error.fallback, retry_after_s=error.retry_after_s
    )
    failed.__cause__ = error.__cause__
    return failed.with_traceback(error.__traceback__)
