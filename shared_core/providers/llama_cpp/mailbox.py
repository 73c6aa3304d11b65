"""What one caller waits on: messages come from the supervisor's thread and are read from any thread or event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

__all__ = ["Call"]

Message = dict[str, Any]


class Call:
    """One request on its way through the supervisor."""

    def __init__(self, op: str, job: Message | None = None) -> None:
        self.op = op
        self.job = job
        self.id = 0
        """Set when it is handed to the worker."""
        self.accepted = False
        """Whether the worker has said that it has it."""
        self.cancelled = False
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
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

    def get(self, timeout_s: float) -> Message | None:
        """The next message, or None after `timeout_s` seconds without one."""
        try:
            return self._messages.get(timeout=min(max(0.0, timeout_s), threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    async def aget(self) -> Message:
        """The next message, on the running event loop."""
        while True:
            try:
                return self._messages.get_nowait()
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
