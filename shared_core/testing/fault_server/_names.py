"""Host names of the server's own whose look-up fails: the process's `socket.getaddrinfo`, for these names only.

A real name server would need the machine's resolver to be told of it. Everything in this process that looks a name up
by way of `socket.getaddrinfo` (httpx, requests, asyncio, aiohttp's default) meets these faults; other names pass on.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

from shared_core.testing.fault_server._certificates import DOMAIN

__all__ = ["Names"]

_numbers = itertools.count(1)
_lock = threading.Lock()
_known: dict[str, Callable[[], None]] = {}
"""For each name what befalls a look-up of it: it raises, takes its time, or lets it pass. Guarded by the lock."""
_real: Callable[..., Any] | None = None


def _lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    befall = _known.get(name.lower()) if isinstance(name, str) else None
    real = _real or socket.getaddrinfo
    if befall is None:
        return real(host, port, *args, **kwargs)
    befall()
    return real("127.0.0.1", port, *args, **kwargs)


class Names:
    """One server's names. `close` forgets them and ends every look-up that still takes its time."""

    def __init__(self) -> None:
        self._mine: list[str] = []
        self._over = threading.Event()

    def nowhere(self) -> str:
        """A name that does not exist."""

        def befall() -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        return self._add("nxdomain", befall)

    def slow(self, delay_s: float) -> str:
        """A name whose look-up takes `delay_s` seconds."""

        def befall() -> None:
            if self._over.wait(delay_s):
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        return self._add("slow", befall)

    def flapping(self) -> str:
        """A name of which every other look-up fails, the first one too."""
        turns = itertools.count()

        def befall() -> None:
            if next(turns) % 2 == 0:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        return self._add("flap", befall)

    def _add(self, what: str, befall: Callable[[], None]) -> str:
        global _real
        name = f"{what}-{next(_numbers)}.{DOMAIN}"
        with _lock:
            if _real is None:
                _real, socket.getaddrinfo = socket.getaddrinfo, _lookup
            _known[name] = befall
            self._mine.append(name)
        return name

    def close(self) -> None:
        global _real
        self._over.set()
        with _lock:
            while self._mine:
                _known.pop(self._mine.pop(), None)
            # Somebody else may have put a function of his own over ours: then ours stays, and lets everything pass.
            if not _known and _real is not None and socket.getaddrinfo is _lookup:
                socket.getaddrinfo, _real = _real, None
