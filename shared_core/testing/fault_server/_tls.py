"""TLS between a socket and a `Connection`, in memory: so that a handshake, too, can fail the way it is told to."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Any, Protocol, cast

from shared_core.testing.fault_server._certificates import Authority

__all__ = ["Pipe", "Tls"]

_HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"
"""A fatal alert, as a server sends it that shares no cipher or version with its client (RFC 8446, section 6)."""
_CHUNK = 65_536


class Pipe(Protocol):
    """What a connection needs of what it writes to: a transport of asyncio, or `Tls` over one."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def is_closing(self) -> bool: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, name: str) -> Any: ...


class Reader(Protocol):
    """The `Connection` behind it."""

    def accepted(self, pipe: Pipe) -> str:
        """A client came. Returns the connection's fate."""

    def secured(self, alpn: str | None) -> None:
        """The handshake is over; what was agreed on."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool: ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class Tls(asyncio.Protocol):
    """A protocol to the socket and a transport to its reader."""

    def __init__(self, reader: Reader, authority: Authority) -> None:
        self._reader = reader
        self._authority = authority
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ready = False
        self._pause = False
        self._fate = "ok"
        self._raw: asyncio.Transport
        self._tls: ssl.SSLObject

    # ── to the socket ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._fate = self._reader.accepted(self)
        certificates = self._authority
        context = {
            "tls-expired": lambda: certificates.expired,
            "tls-wrong-host": lambda: certificates.misnamed,
            "h2-goaway": lambda: certificates.http2,
            "h2-refused-stream": lambda: certificates.http2,
        }.get(self._fate, lambda: certificates.good)()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def data_received(self, data: bytes) -> None:
        if self._fate == "tls-stall":
            return
        if self._fate == "tls-handshake-fail":
            self._raw.write(_HANDSHAKE_FAILURE)
            self._raw.close()
            return
        self._incoming.write(data)
        if not self._ready and not self._shake():
            return
        self._read()

    def eof_received(self) -> bool:
        return self._reader.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reader.connection_lost(exc)

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError:  # the client's word is not TLS, or it does not like our certificate
            self._flush()
            self._raw.close()
            return False
        self._flush()
        self._ready = True
        self._reader.secured(self._tls.selected_alpn_protocol())
        if self._pause:
            self._raw.pause_reading()
        return not self._raw.is_closing()

    def _read(self) -> None:
        while not self._raw.is_closing():
            try:
                data = self._tls.read(_CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:  # an alert, or nonsense
                self._raw.close()
                return
            if not data:  # the client has said good-bye
                self._reader.eof_received()
                self.close()
                return
            self._reader.data_received(data)
        self._flush()

    def _flush(self) -> None:
        if (data := self._outgoing.read()) and not self._raw.is_closing():
            self._raw.write(data)

    # ── to the reader ────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, data: bytes) -> None:
        if data and self._ready and not self._raw.is_closing():
            with suppress(ssl.SSLError):  # the session is over; the socket will say so too
                self._tls.write(data)
            self._flush()

    def close(self) -> None:
        if self._ready:
            with suppress(ssl.SSLError):  # it would wait for the client's good-bye: ours is enough
                self._tls.unwrap()
            self._flush()
        self._raw.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        self._pause = True
        if self._ready:
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._pause = False
        if not self._raw.is_closing():
            self._raw.resume_reading()

    def get_extra_info(self, name: str) -> Any:
        return self._raw.get_extra_info(name)
