"""Closes the runs of cancelled calls, which LangChain's `agenerate` leaves open when its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseCallbackHandler, BaseCallbackManager, Callbacks
from langchain_core.outputs import LLMResult

__all__ = ["OpenRuns"]


class OpenRuns(BaseCallbackHandler):
    """The runs of one `agenerate` that have begun and not ended.

    It listens beside the caller's own handlers, before all of them, so that no run is ever ended twice.
    """

    run_inline = True

    def __init__(self) -> None:
        self._open: dict[UUID, AsyncCallbackManagerForLLMRun] = {}

    def beside(self, callbacks: Callbacks) -> Callbacks:
        """The caller's callbacks and this one. Nothing of the caller's is changed."""
        if isinstance(callbacks, BaseCallbackManager):
            manager = callbacks.copy()
            manager.handlers.insert(0, self)
            return manager
        return [self, *(callbacks or ())]

    @staticmethod
    def note(run: AsyncCallbackManagerForLLMRun | None) -> None:
        """A run is about to be worked on."""
        if run is not None:
            for handler in run.handlers:
                if isinstance(handler, OpenRuns):
                    handler._open[run.run_id] = run
                    return

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run is known once LangChain hands out its manager."""

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """It has ended."""
        self._open.pop(run_id, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """It has ended."""
        self._open.pop(run_id, None)

    async def close(self, error: asyncio.CancelledError) -> None:
        """End what is still open with `error`. Goes through also when the task is cancelled once more."""
        await asyncio.shield(asyncio.ensure_future(self._close(error)))

    async def _close(self, error: asyncio.CancelledError) -> None:
        for run in list(self._open.values()):
            await run.on_llm_error(error, response=LLMResult(generations=[[]]))
