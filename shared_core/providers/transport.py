"""HTTP clients for vendor SDKs whose every blocking socket operation obeys the attempt's `Guard`.

The SDKs' own `timeout=` is per read, so a server that drips keep-alives stretches it for ever. Here the limit is
enforced below the SSE decoder and the HTTP parser, on received bytes: each connect, TLS handshake, write and read gets
what is left of the guard, and nothing more once it has run out. Redirects are off: one call sends one request.

An HTTP connection serves another request only when the response before was read to its end. Some SDKs stop at the
last event, a few bytes short of that; `Body` reads them, so that the next call need not connect anew.

Works alike on httpx and httpx2, whichever the SDK was built on; neither is imported here. The async side needs no such
limit, because the router cancels the awaiting task; it only needs one client per event loop (`Clients`).
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import socket
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

from shared_core._forks import after_fork
from shared_core.resilience.deadline import Guard

__all__ = [
    "Body",
    "Clients",
    "Limiter",
    "PerLoop",
    "Until",
    "async_http_client",
    "body_of",
    "guarded",
    "http_client",
    "http_module",
    "preload",
    "request_timeout",
    "tls_context",
    "with_connections_of",
]

MAX_CONNECTIONS = 1000
MAX_KEEPALIVE = 100
POOL_WAIT_S = 2.0
"""How long a request waits for a free connection. Only a leaked pool ever gets there; it is rebuilt then."""
_REST_S = 0.05
"""How long the last bytes of a body may take once the answer is whole. A handshake costs as much and more; 40 ms is
what a delayed acknowledgement may hold up a server's last packet."""
_REST_BYTES = 8_192
_FOREVER_S = 1e8  # beyond this a socket timeout overflows; it is three years
_WRITE_BYTES = 16_384  # small enough that no single send can outlive the limit by much


class Limiter(Protocol):
    """What limits a blocking call: a `Guard`, or anything else with a `remaining()`."""

    def remaining(self) -> float:
        """Seconds left; zero or less when time is up."""
        ...


class _Current(threading.local):
    limiter: Limiter | None = None


_current = _Current()


@contextmanager
def guarded(limiter: Limiter) -> Iterator[None]:
    """Within this block every socket operation of this thread, on clients made here, obeys `limiter`.

    Enter it around each single call into the SDK (`create`, `next`), never across a `yield`: the caller's code between
    two events is not ours to limit, and the next event may be asked for by another thread.
    """
    before = _current.limiter
    _current.limiter = limiter
    try:
        yield
    finally:
        _current.limiter = before


def _allowed(given: float | None, expired: type[Exception]) -> float | None:
    """The timeout for one socket operation: what was asked for, but no more than the guard has left."""
    limiter = _current.limiter
    if limiter is None:
        return given
    left = limiter.remaining()
    if left <= 0:
        raise expired("the attempt's time is up")
    if left > _FOREVER_S:
        return given
    return left if given is None else min(given, left)


class _GuardedStream:
    """A network stream of httpcore whose reads and writes obey the guard, re-armed on every received byte."""

    def __init__(self, inner: Any, errors: ModuleType) -> None:
        self._inner = inner
        self._errors = errors
        self._user: Limiter | None = None

    def _used(self) -> None:
        """The attempt whose thread this is uses the connection now: if it is cut off, so is the connection."""
        self._user = limiter = _current.limiter
        cuts = getattr(limiter, "cuts", None)
        if cuts is not None:
            cuts[self] = lambda: self._cut(limiter)

    def _cut(self, user: Limiter | None) -> None:
        if self._user is not user:
            return  # it serves somebody else by now
        found = self._inner.get_extra_info("socket")
        with suppress(OSError):  # it was closed a moment ago
            # The plain socket's method: that of a TLS socket would take its layer away under the thread that reads.
            socket.socket.shutdown(found, socket.SHUT_RDWR)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._used()
        data: bytes = self._inner.read(max_bytes, timeout=_allowed(timeout, self._errors.ReadTimeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._used()
        for at in range(0, len(buffer), _WRITE_BYTES):
            self._inner.write(buffer[at : at + _WRITE_BYTES], timeout=_allowed(timeout, self._errors.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> _GuardedStream:
        allowed = _allowed(timeout, self._errors.ConnectTimeout)
        return _GuardedStream(self._inner.start_tls(ssl_context, server_hostname, allowed), self._errors)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _GuardedBackend:
    """A network backend of httpcore that resolves and connects within the guard."""

    def __init__(self, inner: Any, errors: ModuleType) -> None:
        self._inner = inner
        self._errors = errors

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> _GuardedStream:
        # The sum over all addresses is limited, not each: httpcore would give every one of them the whole timeout.
        limit = Until(timeout)
        addresses = self._resolve(host, port, limit)
        for index, address in enumerate(addresses):
            share = limit.remaining() / (len(addresses) - index)
            try:
                allowed = _allowed(None if share > _FOREVER_S else share, self._errors.ConnectTimeout)
                stream = self._inner.connect_tcp(
                    address, port, timeout=allowed, local_address=local_address, socket_options=socket_options
                )
                return _GuardedStream(stream, self._errors)
            except (self._errors.ConnectError, self._errors.ConnectTimeout):
                if index == len(addresses) - 1 or limit.remaining() <= 0:
                    raise
        raise self._errors.ConnectError(f"{host} has no address")

    def _resolve(self, host: str, port: int, limit: Until) -> list[str]:
        """The host's addresses. `getaddrinfo` knows no timeout, so it runs in a thread one can walk away from."""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [host]
        found: list[str] = []
        failure: list[OSError] = []

        def resolve() -> None:
            try:
                known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found.extend(dict.fromkeys(str(address[4][0]) for address in known))
            except OSError as error:
                failure.append(error)

        left = _allowed(None if limit.remaining() > _FOREVER_S else limit.remaining(), self._errors.ConnectTimeout)
        if left is None:
            resolve()
        else:
            thread = threading.Thread(target=resolve, name=f"resolve-{host}", daemon=True)
            thread.start()
            thread.join(max(0.0, left))
            if not found and not failure:
                raise self._errors.ConnectTimeout(f"resolving {host} took too long")
        if failure:
            raise self._errors.ConnectError(str(failure[0])) from failure[0]
        return found

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> _GuardedStream:
        allowed = _allowed(timeout, self._errors.ConnectTimeout)
        stream = self._inner.connect_unix_socket(path, timeout=allowed, socket_options=socket_options)
        return _GuardedStream(stream, self._errors)

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class Until:
    """A limit in seconds from now on the monotonic clock. Sockets live in real time, whatever clock the guard reads."""

    def __init__(self, seconds: float | None) -> None:
        self._clock = time.monotonic
        self._at = math.inf if seconds is None else self._clock() + seconds

    def remaining(self) -> float:
        return self._at - self._clock()


def http_module(sdk: ModuleType) -> ModuleType:
    """The HTTP library an SDK was built on, httpx or httpx2, found by asking the SDK rather than by its version.

    Raises:
        RuntimeError: it uses neither.
    """
    for cls in getattr(getattr(sdk, "DefaultHttpxClient", None), "__mro__", ()):
        root = cls.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return import_module(root)
    for module in (sdk, sys.modules.get(f"{sdk.__name__}._api_client")):
        for name in ("httpx2", "httpx"):
            if isinstance(found := getattr(module, name, None), ModuleType):
                return found
    raise RuntimeError(f"{sdk.__name__} is built on neither httpx nor httpx2")


_contexts: dict[str, Any] = {}


def tls_context(http: ModuleType) -> Any:
    """The TLS context all clients of `http` share. Reading the certificate store takes tens of milliseconds: once."""
    if http.__name__ not in _contexts:
        _contexts[http.__name__] = http.create_ssl_context()
    return _contexts[http.__name__]


def with_connections_of(pools: dict[Any, Any], client: Any, proxy: str | None = None) -> Any:
    """An SDK's async client, on the HTTP client that `pools` has for its address, or is given now.

    A client whose HTTP client is neither the SDK's own make nor LangChain's is the caller's, and is returned as it is.
    """
    if type(getattr(client, "_client", None)).__name__.lstrip("_") != "AsyncHttpxClientWrapper":
        return client
    sdk = sys.modules[type(client).__module__.partition(".")[0]]
    key = (sdk.__name__, str(client.base_url), repr(client.timeout), proxy)
    if key not in pools:
        options = {} if proxy is None else {"proxy": proxy}
        tls = tls_context(http_module(sdk))  # read once: it would take 30 ms on the event loop
        made = sdk.DefaultAsyncHttpxClient(base_url=client.base_url, timeout=client.timeout, verify=tls, **options)
        pools[key] = _without_leaks(http_module(sdk), made)
    return client.copy(http_client=pools[key])


def _options(http: ModuleType) -> dict[str, Any]:
    return {
        "verify": tls_context(http),
        "limits": http.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_KEEPALIVE),
        "timeout": http.Timeout(None, connect=5.0),
        # A redirect of an API call is a misconfiguration; following it would also send a second request.
        "follow_redirects": False,
    }


def http_client(http: ModuleType, **options: Any) -> Any:
    """A sync client of `http` (httpx or httpx2) whose sockets obey `guarded`.

    Raises:
        RuntimeError: this version of the library keeps its connection pool elsewhere, so limits could not be enforced.
    """
    client = http.Client(**{**_options(http), **options})
    errors = import_module("httpcore2" if http.__name__ == "httpx2" else "httpcore")
    transports = [client._transport, *(t for t in client._mounts.values() if t is not None)]
    for transport in transports:
        pool: Any = getattr(transport, "_pool", None)
        inner = getattr(pool, "_network_backend", None)
        if inner is None:
            client.close()
            raise RuntimeError(f"{http.__name__} {http.__version__} has no connection pool we know; deadlines need one")
        pool._network_backend = _GuardedBackend(inner, errors)
    return client


def async_http_client(http: ModuleType, **options: Any) -> Any:
    """An async client of `http`. It belongs to the event loop that first uses it."""
    return _without_leaks(http, http.AsyncClient(**{**_options(http), **options}))


class _Uncut:
    """Awaits the closing of a response to its end: a cancellation is held back until then, and raised there.

    httpcore 1 closes in steps. Cancelled between two of them, a connection is neither closed nor free: the pool counts
    it as in use for ever, and its socket stays open. A shielded task would do as well, for twenty times the microsecond
    that this takes. What waits for the peer is not held up: its future is cancelled, and says so to who waits for it.
    """

    __slots__ = ("_closing",)

    def __init__(self, closing: Coroutine[Any, Any, None]) -> None:
        self._closing = closing

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._closing.__await__()
        held: BaseException | None = None
        while True:
            try:
                step = next(steps)
            except StopIteration:
                if held is not None:
                    raise held from None
                return
            except Exception as error:
                if held is not None:
                    raise held from error
                raise
            try:
                yield step
            except asyncio.CancelledError as error:
                held = error
            except BaseException:  # the task itself is thrown away
                steps.close()
                raise


class _UncutStream:
    """The body of an async response, which is closed to the end once its closing has begun."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._inner)

    async def aclose(self) -> None:
        await _Uncut(self._inner.aclose())


def _without_leaks(http: ModuleType, client: Any) -> Any:
    """`client`, an async one, which loses no connection to a cancellation at the wrong moment."""
    stream = _body_classes(http)[2]

    async def ask(inner: Callable[[Any], Coroutine[Any, Any, Any]], pool: Any, request: Any) -> Any:
        try:
            response = await inner(request)
        except BaseException:
            for lost in _nobodys(pool):
                await _Uncut(lost.aclose())
            raise
        response.stream = stream(response.stream)
        return response

    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, http.AsyncHTTPTransport):  # what a caller brought is left as it is
            pool = getattr(transport, "_pool", None)
            transport.handle_async_request = functools.partial(ask, transport.handle_async_request, pool)
    return client


def _nobodys(pool: Any) -> list[Any]:
    """Connections of a pool that are neither in use nor free: their request was cancelled after the handshake, before
    its first byte. None of a pool that we do not know."""
    used = {id(request.connection) for request in getattr(pool, "_requests", ())}
    return [
        connection
        for connection in getattr(pool, "connections", ())
        if id(connection) not in used and not connection.is_idle() and not connection.is_closed()
    ]


def preload() -> None:
    """Import what HTTP libraries and sockets import at their first call: 60 ms that would count as the target's."""
    import_module("encodings.idna")  # every name lookup
    with suppress(ImportError):  # anyio moved it: the first call imports it then
        import_module("anyio._backends._asyncio")  # async calls; anyio looks for its backend when it is first used


def request_timeout(http: ModuleType, guard: Guard) -> Any:
    """The `timeout=` of one SDK call: only connecting and the pool are limited here, the rest is the guard's."""
    connect = None if math.isinf(guard.connect_s) else guard.connect_s
    return http.Timeout(None, connect=connect, pool=POOL_WAIT_S)


class Body:
    """The body of a streamed response: httpx's own, but it can be closed without giving up the connection."""

    whole = False
    """The answer has arrived, so that closing first reads what is left, if that is at once there. False in the middle
    of an answer, which a close must cut off."""

    def __init__(self, inner: Any, http: ModuleType) -> None:
        self._inner = inner
        self._parts: Any = None
        self._lost = (http.TransportError, TimeoutError)


class _SyncBody(Body):
    def __iter__(self) -> Iterator[bytes]:
        self._parts = iter(self._inner)
        return self._parts  # type: ignore[no-any-return]  # the inner generator itself: no cost per chunk

    def close(self) -> None:
        try:
            if self.whole and self._parts is not None:
                outer = _current.limiter
                with guarded(Until(_REST_S if outer is None else min(_REST_S, outer.remaining()))):
                    self._finish()
        finally:
            self._inner.close()

    def _finish(self) -> None:
        left = _REST_BYTES
        try:
            for part in self._parts:  # after a failed read it is exhausted
                left -= len(part)
                if left < 0:
                    return
        except self._lost:
            return  # nothing is lost but the connection


class _AsyncBody(Body):
    def __aiter__(self) -> AsyncIterator[bytes]:
        self._parts = aiter(self._inner)
        return self._parts  # type: ignore[no-any-return]  # as above

    async def aclose(self) -> None:
        try:
            if self.whole and self._parts is not None:
                await self._finish()
        finally:
            await self._inner.aclose()

    async def _finish(self) -> None:
        left = _REST_BYTES
        try:
            async with asyncio.timeout(_REST_S):
                async for part in self._parts:  # after a failed or cancelled read it is exhausted
                    left -= len(part)
                    if left < 0:
                        return
        except self._lost:
            return


@functools.cache
def _body_classes(http: ModuleType) -> tuple[type[Body], type[Body], type[_UncutStream]]:
    # httpx asks a response's stream for its class before reading it.
    return (
        type("SyncBody", (_SyncBody, http.SyncByteStream), {}),
        type("AsyncBody", (_AsyncBody, http.AsyncByteStream), {}),
        type("UncutStream", (_UncutStream, http.AsyncByteStream), {}),
    )


def body_of(http: ModuleType, response: Any) -> Body:
    """Put a `Body` into a response of `http` whose reading has not begun."""
    sync, other, _ = _body_classes(http)
    response.stream = (sync if isinstance(response.stream, http.SyncByteStream) else other)(response.stream, http)
    body: Body = response.stream
    return body


S = TypeVar("S")
A = TypeVar("A")

_parents: list[Any] = []
"""In a forked child, the clients of the parent: kept, as finalising one takes locks that nobody here might release."""


class PerLoop(Generic[A]):
    """One value per event loop, made at first use on it. Those of closed loops are dropped. Thread-safe."""

    def __init__(self, build: Callable[[], A]) -> None:
        self._build = build
        self._lock = threading.Lock()
        after_fork(self._in_child)
        self._values: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, A] = weakref.WeakKeyDictionary()

    def _in_child(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it

    def get(self) -> A:
        """The running loop's."""
        loop = asyncio.get_running_loop()
        found = self._values.get(loop)
        if found is None:
            with self._lock:
                # Open connections hold their loop, so that the dictionary alone would never let go of it.
                for ended in [other for other in self._values if other.is_closed()]:
                    del self._values[ended]
                found = self._values[loop] = self._build()
        return found

    def pop(self) -> A | None:
        """The running loop's, which is then forgotten; None if it has none."""
        with self._lock:
            return self._values.pop(asyncio.get_running_loop(), None)

    def clear(self) -> None:
        """Forget those of all loops."""
        with self._lock:
            self._values.clear()


class Clients(Generic[S, A]):
    """One sync client for all threads and one async client per event loop, made at first use.

    An async client keeps its connections on the loop that made them; used from another, every call would fail with
    'Event loop is closed'. Clients of closed loops are dropped. A forked child has clients of its own: two processes on
    one connection would read each other's answers.
    """

    def __init__(self, build_sync: Callable[[], S], build_async: Callable[[], A]) -> None:
        self._build_sync = build_sync
        self._build_async = build_async
        self._sync: S | None = None
        self._begin()
        after_fork(self._anew)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, A] = weakref.WeakKeyDictionary()

    def _anew(self) -> None:
        """In a forked child: leave the parent's connections alone, and any lock that a thread of it may have held."""
        _parents.append((self._sync, dict(self._async)))
        self._sync = None
        self._begin()

    def sync(self) -> S:
        """The client for this process's threads."""
        with self._lock:
            if self._sync is None:
                self._sync = self._build_sync()
            return self._sync

    def on_loop(self) -> A:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            for other in [other for other in self._async if other.is_closed()]:
                del self._async[other]
            client = self._async.get(loop)
            if client is None:
                client = self._async[loop] = self._build_async()
            return client

    def ready(self) -> bool:
        """Whether the running event loop has its client. Costs a fraction of a microsecond."""
        return asyncio.get_running_loop() in self._async

    def build_for(self, loop: asyncio.AbstractEventLoop) -> A:
        """The client of `loop`, built here, in another thread, so that the loop need not wait for it."""
        with self._building:  # many first calls at once build one; `_lock` stays free for loops that have theirs
            client = self._async.get(loop)
            if client is None:
                made = self._build_async()
                with self._lock:
                    client = self._async.setdefault(loop, made)
            return client

    def drop(self, client: S | A) -> None:
        """Forget a client whose pool has leaked: the next call builds another. Calls in flight on it go on."""
        with self._lock:
            if self._sync is client:
                self._sync = None
            for loop, mine in list(self._async.items()):
                if mine is client:
                    del self._async[loop]

    def close(self) -> None:
        """Close the sync client, and ask running loops to close theirs."""
        with self._lock:
            client, self._sync = self._sync, None
            others = list(self._async.items())
            self._async.clear()
        if client is not None:
            client.close()  # type: ignore[attr-defined]  # every SDK client has it; S is left open for tests
        for loop, other in others:
            if loop.is_running():
                loop.call_soon_threadsafe(_close_soon, other)

    def __del__(self) -> None:
        # Deserted without `close()`: the sockets go with it, as they would with an SDK's own client.
        if not sys.is_finalizing() and (client := getattr(self, "_sync", None)) is not None:
            client.close()

    async def aclose(self) -> None:
        """Close the running loop's client, then everything else."""
        with self._lock:
            client = self._async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()  # type: ignore[attr-defined]  # as above
        self.close()


_closing: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references to its tasks


def _close_soon(client: Any) -> None:
    task = asyncio.get_running_loop().create_task(client.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
