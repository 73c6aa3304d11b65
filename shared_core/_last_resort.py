"""The user's own answer for when everything has failed: called, waited for, and looked at, sync and async."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

from shared_core._lane import in_thread
from shared_core.cache.entry import Kept
from shared_core.chat.events import Answer
from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, FallbackError
from shared_core.routing.execution import Execution

__all__ = ["DefaultAnswer", "LastResort"]

T = TypeVar("T")
_log = logging.getLogger("llm_fallback.cache")

DefaultAnswer = Callable[[ChatRequest, FallbackError], "str | Answer | Awaitable[str | Answer | None] | None"]
"""A user's own answer for when everything has failed: told the request and the error; None lets the error be raised."""

_GRACE_S = 1.0
"""What a default answer may take at least, in seconds, however late it is."""


class LastResort:
    """Asks the user's hook, which may be sync or async, in either world.

    Raises:
        ConfigurationError: it cannot be called.
    """

    def __init__(self, default: DefaultAnswer, now: Callable[[], float]) -> None:
        if not callable(default):
            raise ConfigurationError(f"default_answer must be a function of the request and the error, not {default!r}")
        self._default, self._now = default, now

    def call(self, execution: Execution, error: FallbackError) -> Kept | None:
        """Its answer, or None."""
        default = self._default
        try:
            said = default(execution.request, error)
            if inspect.isawaitable(said):
                said = _awaited_in_thread(said, self._grace(execution))
        except Exception as problem:  # noqa: BLE001  # a last resort that fails must not hide why it was needed
            return self._hook_failed(error, problem)
        return self._fitting(execution, error, said)

    async def acall(self, execution: Execution, error: FallbackError) -> Kept | None:
        """Its answer, or None."""
        default = self._default
        try:
            async with asyncio.timeout(self._grace(execution)):
                if _is_async(default):
                    said: Any = default(execution.request, error)
                else:
                    said = await asyncio.to_thread(default, execution.request, error)
                if inspect.isawaitable(said):
                    said = await said
        except Exception as problem:  # noqa: BLE001  # a last resort that fails must not hide why it was needed
            return self._hook_failed(error, problem)
        return self._fitting(execution, error, said)

    def _grace(self, execution: Execution) -> float:
        return max(_GRACE_S, execution.deadline - self._now())

    def _fitting(self, execution: Execution, error: FallbackError, said: Any) -> Kept | None:
        """The user's own answer, if it is one."""
        if said is None:
            return None
        answer = Answer(said) if isinstance(said, str) else said
        if not isinstance(answer, Answer):
            wrong = TypeError(f"default_answer must return a text, an Answer or None, not {type(said).__name__}")
            return self._hook_failed(error, wrong)
        check = execution.request.check
        if check is not None and (fault := check(answer)) is not None:
            error.add_note(f"default_answer gave an answer that does not pass: {fault}")
            return None
        return replace(Kept.of(answer), origin=None)

    @staticmethod
    def _hook_failed(error: FallbackError, problem: Exception) -> None:
        error.add_note(f"default_answer failed as well: {type(problem).__name__}: {problem}")
        _log.error("default_answer failed", exc_info=problem)


def _is_async(hook: Any) -> bool:
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__)


def _awaited_in_thread(said: Awaitable[T], limit_s: float) -> T:
    """What `said` comes to, on an event loop of its own in another thread: a sync call has none."""

    async def bounded() -> T:
        async with asyncio.timeout(limit_s):
            return await said

    done: Future[T] = Future()

    def job() -> None:
        try:
            done.set_result(asyncio.run(bounded()))
        except BaseException as error:  # noqa: BLE001  # carried to the caller's thread, where it is raised
            done.set_exception(error)

    in_thread(job)
    return done.result(limit_s + _GRACE_S)
