"""One HTTP POST over the standard library, within one limit of time: `post`. Follows no redirect, reads no body."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["Undelivered", "post"]

_AGAIN = frozenset({408, 425, 429})


class Undelivered(Exception):
    """The POST was not taken. `final`: it would not be the next time either."""

    def __init__(self, why: str, *, final: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(why)
        self.final = final
        self.retry_after_s = retry_after_s


class _Reader(io.RawIOBase):
    """Reads from a socket until a moment in time, however slowly the bytes come."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._until))
        return self._sock.recv_into(buffer)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _Wire:
    """What `http.client` needs of a socket, all of it within the limit."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_left(self._until))
        self._sock.sendall(data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._until))

    def close(self) -> None:
        self._sock.close()


def post(
    url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, context: ssl.SSLContext | None = None
) -> None:
    """Post `body` to `url`; returns when a status of 2xx has come.

    Raises:
        Undelivered: it has not within `timeout_s` seconds, or another status came. Says nothing of the address.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    until = time.monotonic() + timeout_s
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, port, timeout=timeout_s, context=context or ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.connect()
        connection.sock = _Wire(connection.sock, until)  # as much of a socket as it needs
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {**headers, "connection": "close"})
        response = connection.getresponse()
        status, asked = response.status, response.headers.get("retry-after")
    except TimeoutError:
        raise Undelivered(f"no answer within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise Undelivered(f"its certificate was refused: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Undelivered(f"{type(error).__name__}") from None
    finally:
        connection.close()
    if 200 <= status < 300:
        return
    again = status >= 500 or status in _AGAIN
    raise Undelivered(f"HTTP {status}", final=not again, retry_after_s=_seconds(asked))


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None
