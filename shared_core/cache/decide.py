"""Which kept answers may be served, and which answers may be kept: pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from shared_core.chat.events import Finished
from shared_core.errors import AllTargetsFailed, BudgetExceeded, Disposition, ErrorKind, FallbackError, ProviderError

__all__ = ["may_keep", "may_rescue", "may_use_default", "servable"]

R = TypeVar("R")


def servable(planned: Iterable[R], refuses: Callable[[R], bool]) -> Iterator[R]:
    """The targets whose kept answers may be served now, in the order of the plan.

    A target's kept answer is as good as asking it, no better: it is served when the request would go to that target
    now. That is the first of the plan, and each further one as long as all before it refuse (an open circuit, a locked
    account, a wait). So an answer that a stand-in gave during an outage is served while the outage lasts, and not when
    the one it stood in for can be asked again.
    """
    for one in planned:
        yield one
        if not refuses(one):
            return


def may_keep(finished: Finished, *, calls: int, seams: int, said: bool, tool_calls: bool) -> bool:
    """Whether an answer is complete and one target's own: ended by itself, of one piece, and not empty.

    Args:
        finished: its last event.
        calls: tool calls in it.
        seams: how often another target took over within it.
        said: whether there is text in it.
        tool_calls: whether answers with tool calls are wanted.
    """
    if seams or not (said or calls):
        return False
    if calls:
        return tool_calls and finished.reason in ("stop", "tool_calls")
    return finished.reason == "stop"


_REQUESTS_OWN = frozenset(
    {
        ErrorKind.BAD_REQUEST,
        ErrorKind.POLICY,
        ErrorKind.CONTEXT_OVERFLOW,
        ErrorKind.TOO_LARGE,
        ErrorKind.INCAPABLE,
        ErrorKind.INVALID_OUTPUT,
    }
)
"""Failures that speak of the request or of what it made of an answer, and not of the targets."""


def may_rescue(failure: FallbackError) -> bool:
    """Whether a request failed because nobody could be asked or answered: then an older answer may stand in.

    Not when a target rejected the request itself, nor when the request is all that was wrong, nor when part of an
    answer has been delivered (`StreamBroken`), nor when a budget is used up.
    """
    if not isinstance(failure, AllTargetsFailed) or isinstance(failure, BudgetExceeded):
        return False
    cause = failure.__cause__
    if isinstance(cause, ProviderError) and cause.disposition is Disposition.FAIL:
        return False
    tried = [error for error in failure.errors if isinstance(error, ProviderError)]
    if tried:
        return any(error.kind not in _REQUESTS_OWN for error in tried)
    return bool(failure.fallback.get("skipped"))  # circuits, locks and waits; a plan of nobody is the request's doing


def may_use_default(failure: FallbackError) -> bool:
    """Whether the user's own answer may stand in: where an older one may, and where a budget is used up."""
    return isinstance(failure, BudgetExceeded) or may_rescue(failure)
