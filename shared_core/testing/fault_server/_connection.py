"""One client's connection: reads requests off a buffer and performs the acts it is handed."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Protocol, cast

from shared_core.testing.fault_server._faults import Fault
from shared_core.testing.fault_server._http import BadRequestError, Head, read_body, read_head
from shared_core.testing.fault_server._http2 import ALPN, Http2
from shared_core.testing.fault_server._log import Entry, Outcome
from shared_core.testing.fault_server._staging import Act, Close, Done, Drip, Hang, Pause, Reset, Send
from shared_core.testing.fault_server._tls import Pipe

_SIP = 131_072
"""A `slow-read` takes at most about twice so many bytes at a time. Less would be less than two packets of loopback, and
the kernel would pause for a fifth of a second at each."""
_LINGER_0 = struct.pack("ii", 1, 0)
_ENDINGS: Mapping[type[Act], Outcome] = {Done: "answered", Close: "closed", Reset: "reset"}


class Host(Protocol):
    """What a connection needs of its server. Every method is called on the server's own thread."""

    def opened(self, connection: Connection) -> Fault | None:
        """A client came: what befalls the connection before any request, if anything."""

    def serve(
        self, connection: Connection, head: Head, body: bytes, reason: str | None = None
    ) -> tuple[Entry, list[Act]]:
        """A request came: its entry in the log, and what to do. `reason` says why its connection's fault cannot be."""

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        """A request is over."""

    def closed(self, connection: Connection) -> None:
        """A connection is over."""

    def clock(self) -> float:
        """Monotonic seconds."""


class Connection(asyncio.Protocol):
    """Acts are performed one by one on the event loop, without a task: cancelling one timer stops everything.

    Reading goes on while a response hangs, so a client that leaves is noticed at once.
    """

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self.number = number
        self._host = host
        self._loop = loop
        self._buffer = bytearray()
        self._head: Head | None = None
        self._entry: Entry | None = None
        self._acts: Iterator[Act] = iter(())
        self._timer: asyncio.TimerHandle | None = None
        self._fate = "ok"
        self._every_s = 0.0
        self._unfit: str | None = None
        self._http2: Http2 | None = None
        self._stale = False
        self._continued = False
        self._transport: Pipe

    # ── asyncio.Protocol ─────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.accepted(cast(asyncio.Transport, transport))

    def accepted(self, pipe: Pipe) -> str:
        """A client came. Returns the connection's fate: `"ok"`, or the kind of an accept fault."""
        self._transport = pipe
        sock = pipe.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fault = self._host.opened(self)
        if fault is not None:
            self._fate, self._every_s = fault.kind, fault.every_s
        if self._fate == "close-on-accept":
            pipe.close()
        elif self._fate == "reset-on-accept":
            self.reset()
        elif self._fate == "never-read":
            pipe.pause_reading()
        elif self._fate == "slow-read":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SIP)
        return self._fate

    def secured(self, alpn: str | None) -> None:
        """A TLS handshake is over; `alpn` is the protocol that was agreed on."""
        if self._fate in ("h2-goaway", "h2-refused-stream"):
            if alpn == ALPN:
                self._http2 = Http2(self._transport, refuses=self._fate == "h2-refused-stream")
            else:
                self._unfit = f"Fault {self._fate!r} befalls HTTP/2 only, and this client does not speak it."

    def data_received(self, data: bytes) -> None:
        if self._fate == "hang-on-accept":
            return
        if self._http2 is not None:
            self._http2.feed(data)
            return
        if self._stale:
            self.reset()
            return
        if self._fate == "slow-read":
            self._transport.pause_reading()
            self._loop.call_later(self._every_s, self._sip)
        self._buffer += data
        if self._entry is None:
            self._next_request()

    def eof_received(self) -> bool:
        # A client that has closed its side is taken for gone: SDKs never half-close.
        self._client_left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_left()
        self._host.closed(self)

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_request(self) -> None:
        try:
            if self._head is None:
                if self._buffer[:1] == b"\x16":  # a TLS handshake at a plain port
                    self.reset()
                    return
                self._head = read_head(self._buffer)
                if self._head is None:
                    return
                self._continued = False
            head = self._head
            if self._fate == "reset-mid-upload":
                self.reset()
                return
            body = read_body(head, self._buffer)
        except BadRequestError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()
            return
        if body is None:
            if not self._continued and head.headers.get("expect", "").lower() == "100-continue":
                self._continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._head = None
        self._entry, acts = self._host.serve(self, head, body, self._unfit)
        if not head.keep_alive:
            acts = [Done(stale=act.stale, close=True) if isinstance(act, Done) else act for act in acts]
        self._acts = iter(acts)
        self._go_on()

    def _sip(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # ── acts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _go_on(self) -> None:
        """Perform the sends that come next, then the one act that follows them."""
        self._timer = None
        entry = self._entry
        if entry is None:
            return
        sends: list[bytes] = []
        act: Act = Hang()
        for act in self._acts:
            if not isinstance(act, Send):
                break
            sends.append(act.data)
            entry.bytes_sent += len(act.data)
            if act.status is not None:
                entry.status = act.status
        # The log is right before the client can have seen the end: nothing interrupts this method.
        if (outcome := _ENDINGS.get(type(act))) is not None:
            self._settle(outcome)
        for data in sends:
            self._transport.write(data)
        if isinstance(act, Pause):
            self._timer = self._loop.call_later(act.seconds, self._go_on)
        elif isinstance(act, Drip):
            self._drip(act)
        elif isinstance(act, Done):
            self._done(act)
        elif isinstance(act, Reset):
            self.reset()
        elif isinstance(act, Close):
            self._transport.close()

    def _drip(self, drip: Drip) -> None:
        if self._entry is None:
            return
        self._entry.bytes_sent += len(drip.data)
        self._transport.write(drip.data)
        self._timer = self._loop.call_later(drip.every_s, self._drip, drip)

    def _done(self, done: Done) -> None:
        self._stale = done.stale
        if done.close:
            self._transport.close()
        elif self._buffer:
            self._loop.call_soon(self._next_if_free)

    def _next_if_free(self) -> None:
        if self._entry is None and self._buffer and not self._transport.is_closing():
            if self._stale:
                self.reset()
            else:
                self._next_request()

    def _settle(self, outcome: Outcome) -> None:
        entry, self._entry = self._entry, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if entry is not None:
            self._host.settle(entry, outcome)

    def _client_left(self) -> None:
        if self._entry is not None:
            self._entry.client_closed_at = self._host.clock()
            self._settle("client-closed")

    def reset(self) -> None:
        """Close with RST, losing whatever is not sent yet."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self._transport.abort()

    def stop(self) -> None:
        """The server stops: end whatever is going on."""
        self._settle("stopped")
        self._transport.abort()
