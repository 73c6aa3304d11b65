"""What one caller waits on: messages come from the supervisor's thread and are read from any thread or event loop."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import Callable
from typing import Any

from shared_core.providers.llama_cpp.schedule import Work

__all__ = ["Call"]

Message = dict[str, Any]


class Call:
    """One request on its way through the supervisor.

    Args:
        op: 'generate', 'count', 'prefill' or 'warm'.
        job: what the worker is sent; may be a function that makes it, called in the supervisor's thread.
        priority: higher ones are served first.
        work: how much it is, for estimates.
        within_s: seconds it may wait for its turn, not counting the model's loading.
        unattended: nobody reads its messages, so that a failure is to be logged.
    """

    def __init__(
        self,
        op: str,
        job: Message | Callable[[], Message] | None = None,
        *,
        priority: int = 0,
        work: Work = Work(),
        within_s: float = math.inf,
        unattended: bool = False,
    ) -> None:
        self.op = op
        self.job = job
        self.priority = priority
        self.work = work
        self.within_s = within_s
        self.unattended = unattended
        self.id = 0
        """Set when it is handed to the worker."""
        self.accepted = False
        """Whether the worker has said that it has it."""
        self.cancelled = False
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, message: Message) -> None:
        """Deliver a message. Any thread."""
        self._messages.put(message)
        with self._lock:
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            loop, future = waiter
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:
                # That loop is closed, so nobody is waiting on it any more.
                return

    def wake(self) -> None:
        """Let who waits in `get` look at its limit again. Any thread."""
        self._messages.put(None)

    def get(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s` seconds without one, or when woken."""
        try:
            return self._messages.get(timeout=min(max(0.0, timeout_s), threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    async def aget(self) -> Message:
        """The next message, on the running event loop."""
        while True:
            try:
                message = self._messages.get_nowait()
                if message is not None:
                    return message
            except queue.Empty:
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                with self._lock:
                    self._waiter = (loop, future)
                if self._messages.empty():  # or it came between the two
                    await future


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
