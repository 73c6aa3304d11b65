"""`FaultServer`: a model vendor on loopback that fails the way it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from shared_core.testing.fault_server._certificates import authority
from shared_core.testing.fault_server._connection import Connection
from shared_core.testing.fault_server._faults import Fault, WireName
from shared_core.testing.fault_server._http import Head
from shared_core.testing.fault_server._log import Entry, Outcome, SeenRequest, table
from shared_core.testing.fault_server._names import Names
from shared_core.testing.fault_server._script import Queue, Ready, Step, label, read_step
from shared_core.testing.fault_server._staging import (
    REDIRECTED,
    Act,
    Turn,
    script_error,
    side_answer,
    stage,
    unfit,
    unknown,
)
from shared_core.testing.fault_server._tls import Tls
from shared_core.testing.fault_server._wires import wire_for

ANY = "*"
"""Scripts every model that has no script of its own."""
MODELS = "@models"
"""Scripts the list of models (`GET /v1/models`)."""
COUNT_TOKENS = "@count_tokens"
"""Scripts token counts."""

_HOST = "127.0.0.1"
_TURNS = 10
"""Of the event loop, from a client in the kernel's queue to its request in the log: five, and more over TLS."""
_CATCH_UP_S = 1.0
"""How long the server's thread is waited for at most; a script of the caller's own may be holding it."""


class FaultServer:
    """OpenAI, Anthropic and Gemini on one loopback port, scripted per model and request.

        with FaultServer() as s:
            s.script("gpt-x", [503, 503, "ok"])
            client = OpenAI(base_url=s.openai_url, api_key="any", max_retries=0)

    A caller can rely on: nothing leaves 127.0.0.1; every request is in `requests`, in order; a hanging fault ends when
    its client leaves or the server stops; `stop()` closes every socket and joins the thread. All methods are
    thread-safe.
    """

    def __init__(
        self,
        scripts: Mapping[str, Step | Sequence[Step]] | None = None,
        *,
        default: Step = "ok",
        port: int = 0,
        tls: bool = False,
        wall_clock: Callable[[], float] = time.time,
        on_request: Callable[[SeenRequest], None] | None = None,
    ) -> None:
        """`default` is the step of models without a script. `wall_clock` gives `Date` and HTTP dates their time.

        With `tls` it serves https only, with a certificate that `ca_pem` vouches for.

        `on_request` is called on the server's thread soon after a request is over, at the latest while it stops.
        """
        self._default = read_step(default)
        self._port = port
        self._tls = tls
        self._wall_clock = wall_clock
        self._on_request = on_request
        self._changed = threading.Condition()  # guards everything below it
        self._queues: dict[str, Queue] = {}
        self._accepts: Queue | None = None
        self._entries: list[Entry] = []
        self._served = 0
        self._accepted = 0
        self._open: set[Connection] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._spare: list[socket.socket] = []
        self._names = Names()
        for model, steps in (scripts or {}).items():
            self.script(model, steps)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> Self:
        """Listen. A server that was stopped listens on the same port again; its scripts and its log are kept."""
        if self._thread is not None:
            return self
        listener = socket.create_server((_HOST, self._port), backlog=1024)
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._loop = loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(loop, listener, ready), name="fault-server", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    def stop(self) -> None:
        """Close every socket at once and join the thread. Requests in flight end as `stopped`. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join(5)
        while self._spare:
            self._spare.pop().close()
        self._names.close()
        self._names = Names()

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket, ready: threading.Event) -> None:
        """The server's thread."""
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(loop.create_server(lambda: self._protocol(loop), sock=listener))
        ready.set()
        try:
            loop.run_forever()
        finally:
            server.close()
            for connection in list(self._open):
                connection.stop()
            # Two turns: one in which the transports call `connection_lost`, one in which they have closed.
            for _ in range(2):
                loop.run_until_complete(asyncio.sleep(0))
            asyncio.set_event_loop(None)
            loop.close()

    def _protocol(self, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        with self._changed:
            self._accepted += 1
            connection = Connection(self, loop, self._accepted)
        return Tls(connection, authority()) if self._tls else connection

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def port(self) -> int:
        if not self._port:
            raise RuntimeError("The FaultServer has no port yet. hint: start it, `with FaultServer() as s:`.")
        return self._port

    @property
    def url(self) -> str:
        return f"{self._scheme}://{_HOST}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    @property
    def ca_pem(self) -> str:
        """The certificate that a client must trust: of this process's own authority, made when first asked for."""
        return authority().ca_pem

    @property
    def ca_file(self) -> str:
        """The same as a file, for `SSL_CERT_FILE` and the like. It is gone when the process ends."""
        return authority().ca_file

    @property
    def openai_url(self) -> str:
        """`base_url` for OpenAI's SDK and everything compatible."""
        return self.url + "/v1"

    @property
    def anthropic_url(self) -> str:
        """`base_url` for Anthropic's SDK."""
        return self.url

    @property
    def google_url(self) -> str:
        """`http_options.base_url` for google-genai, `api_endpoint` for google-generativeai over REST."""
        return self.url

    def url_for(self, wire: WireName) -> str:
        """The base URL of a wire by its name."""
        return _base(self.url, wire)

    def refused_url(self, wire: WireName = "openai") -> str:
        """An address where connecting is refused, reserved for as long as the server runs."""
        self._must_run("refused_url")
        sock = socket.socket()
        sock.bind((_HOST, 0))  # bound, never listening: nobody else can take the port
        self._spare.append(sock)
        return _base(f"{self._scheme}://{_HOST}:{sock.getsockname()[1]}", wire)

    def black_hole_url(self, wire: WireName = "openai") -> str:
        """An address where connecting never completes, for as long as the server runs (Linux)."""
        self._must_run("black_hole_url")
        hole = socket.create_server((_HOST, 0), backlog=0)
        self._spare.append(hole)
        for _ in range(3):  # fill the queue that nobody accepts from; what comes after is dropped
            plug = socket.socket()
            plug.setblocking(False)
            plug.connect_ex(hole.getsockname())
            self._spare.append(plug)
        return _base(f"{self._scheme}://{_HOST}:{hole.getsockname()[1]}", wire)

    def nxdomain_url(self, wire: WireName = "openai") -> str:
        """An address whose host name does not exist, in this process, for as long as the server runs."""
        return self._named("nxdomain_url", self._names.nowhere, wire)

    def dns_slow_url(self, wire: WireName = "openai", delay_s: float = 60.0) -> str:
        """An address of this server by a name whose look-up takes `delay_s` seconds, in this process."""
        return self._named("dns_slow_url", lambda: self._names.slow(delay_s), wire)

    def dns_flap_url(self, wire: WireName = "openai") -> str:
        """An address of this server by a name of which every other look-up fails, the first one too."""
        return self._named("dns_flap_url", self._names.flapping, wire)

    def _named(self, what: str, name: Callable[[], str], wire: WireName) -> str:
        self._must_run(what)
        return _base(f"{self._scheme}://{name()}:{self.port}", wire)

    def _must_run(self, what: str) -> None:
        if self._thread is None:
            raise RuntimeError(f"{what} needs a running server. hint: start it, `with FaultServer() as s:`.")

    # ── scripts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def script(self, model: str, steps: Step | Sequence[Step], *, loop_last: bool = True) -> Self:
        """Say what happens to the next requests for `model`, one step each; replaces what was said before.

        When the steps are used up the last one repeats; with `loop_last=False` the default step takes over. `model` may
        also be `"*"` (every model without a script of its own), `"@models"` (the list of models) or `"@count_tokens"`.
        Raises `ValueError` for an unknown step.
        """
        queue = Queue(steps, loop_last=loop_last)
        with self._changed:
            self._queues[model.removeprefix("models/")] = queue
        return self

    def script_accept(self, steps: Step | Sequence[Step], *, loop_last: bool = False) -> Self:
        """Say what happens to the next connections, before any request: accept faults, or `"ok"`."""
        queue = Queue(steps, loop_last=loop_last, place="accept")
        if not self._tls and (needy := [str(step) for step in queue.steps if isinstance(step, Fault) and step.row.tls]):
            raise ValueError(f"Fault {needy[0]!r} needs TLS. hint: FaultServer(tls=True).")
        with self._changed:
            self._accepts = queue
        return self

    @property
    def default(self) -> Ready:
        """The step of models without a script."""
        return self._default

    @default.setter
    def default(self, step: Step) -> None:
        self._default = read_step(step)

    def _take(self, key: str, *, wild: bool) -> Ready:
        with self._changed:
            for name in (key, ANY) if wild else (key,):
                if name in self._queues and (step := self._queues[name].take()) is not None:
                    return step
        return self._default if wild else read_step("ok")

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def requests(self) -> list[SeenRequest]:
        """Every request so far, in the order of arrival, as it stands now."""
        with self._changed:
            return [entry.seen() for entry in self._entries]

    def count(self, model: str | None = None) -> int:
        """How many requests arrived, for one model or in all."""
        with self._changed:
            return sum(1 for entry in self._entries if model is None or entry.ask.model == model)

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        with self._changed:
            return self._accepted

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        with self._changed:
            return len(self._open)

    @property
    def in_flight(self) -> int:
        """How many requests are not over yet."""
        with self._changed:
            return sum(1 for entry in self._entries if entry.outcome == "pending")

    def clear(self) -> None:
        """Forget the log (`connections` too). Scripts stay where they are.

        What clients have sent by now is read first, so that a request which its caller gave up long ago does not turn
        up in the new log.
        """
        self._catch_up()
        with self._changed:
            self._entries.clear()
            self._accepted = 0
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[FaultServer], bool], timeout: float = 10.0) -> None:
        """Block until `predicate(self)` holds; asked again whenever the log changes. Raises `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(f"Still not so after {timeout} s. The log: {self!r}")

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Block until no request is in flight, nor on its way. Raises `TimeoutError`."""
        self._catch_up()
        self.wait_for(lambda server: server.in_flight == 0, timeout)

    def _catch_up(self) -> None:
        """Let the server's thread take up what its kernel has: clients that have connected, and what they have sent."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or thread is threading.current_thread():
            return
        done = threading.Event()

        def turn(left: int) -> None:
            if left:
                loop.call_soon(turn, left - 1)
            else:
                done.set()

        with contextlib.suppress(RuntimeError):  # it is being stopped in another thread
            loop.call_soon_threadsafe(turn, _TURNS)
            done.wait(_CATCH_UP_S)

    def __repr__(self) -> str:
        state = self.url if self._thread is not None else "stopped"
        with self._changed:
            recent = ", ".join(f"{e.ask.model or e.ask.operation}: {e.step} → {e.outcome}" for e in self._entries[-5:])
            more = "…, " if len(self._entries) > 5 else ""
            return f"<FaultServer {state} requests={len(self._entries)} connections={self._accepted} [{more}{recent}]>"

    def _repr_html_(self) -> str:
        return table(self.requests)

    # ── what connections call, on the server's thread ────────────────────────────────────────────────────────────

    def opened(self, connection: Connection) -> Fault | None:
        with self._changed:
            self._open.add(connection)
            step = self._accepts.take() if self._accepts is not None else None
            self._changed.notify_all()
        return step if isinstance(step, Fault) else None

    def closed(self, connection: Connection) -> None:
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def clock(self) -> float:
        return time.monotonic()

    def serve(
        self, connection: Connection, head: Head, body: bytes, reason: str | None = None
    ) -> tuple[Entry, list[Act]]:
        path, query = head.path, head.query
        wire = wire_for(path, head.headers)
        ask = wire.read(head.method, path, query, body)
        with self._changed:
            entry = Entry(
                index=self._served,
                connection=connection.number,
                ask=ask,
                path=head.target,
                headers=head.headers,
                received_at=self.clock(),
            )
            self._served += 1
            self._entries.append(entry)
        turn = Turn(wire=wire, ask=ask, number=entry.index + 1, now=self._wall_clock(), seen=entry.seen)
        if reason is None:
            acts = self._acts(turn, entry)
        else:
            entry.step, acts = "unfit", unfit(turn, reason)
        with self._changed:
            self._changed.notify_all()
        return entry, acts

    def _acts(self, turn: Turn, entry: Entry) -> list[Act]:
        operation = turn.ask.operation
        if operation == "unknown":
            entry.step = "unknown-path"
            return unknown(turn)
        step: Ready
        if REDIRECTED in turn.ask.query:
            step = Fault("redirect-loop")
        elif operation == "chat":
            step = self._take(turn.ask.model, wild=True)
        else:
            step = self._take(COUNT_TOKENS if operation == "count" else MODELS, wild=False)
        entry.step = label(step)
        try:
            if operation != "chat" and not isinstance(step, Fault):
                return side_answer(turn, self._model_names())
            return stage(turn, step)
        except Exception as error:  # noqa: BLE001 - an answer function is the user's; its error is shown, not swallowed
            entry.outcome = "script-error"
            return script_error(turn, error)

    def _model_names(self) -> list[str]:
        with self._changed:
            return [name for name in self._queues if name not in {ANY, MODELS, COUNT_TOKENS}]

    def settle(self, entry: Entry, outcome: Outcome) -> None:
        with self._changed:
            entry.finished_at = self.clock()
            if entry.outcome == "pending":
                entry.outcome = outcome
            self._changed.notify_all()
        if self._on_request is not None and self._loop is not None:
            self._loop.call_soon(self._on_request, entry.seen())  # later: the answer does not wait for it


def _base(url: str, wire: WireName) -> str:
    return url + "/v1" if wire == "openai" else url
