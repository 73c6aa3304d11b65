"""As much of HTTP/2 as it takes to turn a request away: `Http2` sends GOAWAY, or refuses each stream (RFC 9113)."""

from __future__ import annotations

from shared_core.testing.fault_server._tls import Pipe

__all__ = ["ALPN", "Http2"]

ALPN = "h2"
"""What a client that speaks HTTP/2 says so with, in the TLS handshake."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 1, 3, 4, 6, 7
_ACK = 1
_REFUSED_STREAM = (7).to_bytes(4, "big")
_NOTHING_DONE = bytes(8)
"""GOAWAY's body: the last stream that was worked on, none; and no error."""


def frame(kind: int, body: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """One frame."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


class Http2:
    """The server's side of one connection. It never reads a header, and so never knows a request."""

    def __init__(self, pipe: Pipe, *, refuses: bool) -> None:
        self._pipe = pipe
        self._refuses = refuses
        self._buffer = bytearray()
        self._greeted = False
        pipe.write(frame(_SETTINGS))

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        self._buffer += data
        if not self._greeted:
            if len(self._buffer) < len(_PREFACE):
                return
            if not self._buffer.startswith(_PREFACE):
                self._pipe.close()
                return
            del self._buffer[: len(_PREFACE)]
            self._greeted = True
        while len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
            body = bytes(self._buffer[9 : 9 + size])
            del self._buffer[: 9 + size]
            self._answer(kind, flags, stream, body)

    def _answer(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._pipe.write(frame(_SETTINGS, flags=_ACK))
        elif kind == _PING and not flags & _ACK:
            self._pipe.write(frame(_PING, body, flags=_ACK))
        elif kind == _HEADERS and self._refuses:
            self._pipe.write(frame(_RST_STREAM, _REFUSED_STREAM, stream=stream))
        elif kind == _HEADERS:
            self._pipe.write(frame(_GOAWAY, _NOTHING_DONE))
            self._pipe.close()
