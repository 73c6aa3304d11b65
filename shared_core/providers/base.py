"""What providers over a vendor SDK share: one call, sync and async, whole and streamed, guarded and classified.

A vendor's file says how to build its client, how to put a request into the SDK's words (`_arguments`), and how to read
what comes back (`Fold`, which does no I/O). The two drivers here do the rest.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

from shared_core._forks import after_fork
from shared_core.chat.events import ChatEvent
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ErrorKind, MissingDependency, ProviderError, redact
from shared_core.providers import transport
from shared_core.providers.classify import classify_error, timeout_error
from shared_core.providers.waits import windows
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

if TYPE_CHECKING:
    from shared_core.history import Change

__all__ = ["Fold", "SdkProvider", "broken", "malformed", "response_facts"]

_TAIL_S = 2.0
"""How long to wait, in all, for usage and the terminal frame once it is known why the answer ended."""
_END: Any = object()


class Fold(Protocol):
    """Reads one answer: chunks or a whole response in, events out. No I/O."""

    content: bool
    """Whether any content was seen."""
    complete: bool
    """Whether the vendor has said why the answer ended. What may still come is usage."""

    def feed(self, chunk: Any) -> Sequence[ChatEvent]:
        """The events of one chunk of a stream."""
        ...

    def end(self, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        """The last events of a stream that ended.

        Raises:
            ProviderError: it ended without saying why, so it is broken.
        """
        ...

    def whole(self, response: Any, facts: Mapping[str, Any]) -> Sequence[ChatEvent]:
        """The events of a whole answer.

        Raises:
            ProviderError: kind MALFORMED; it is no answer.
        """
        ...


def malformed(message: str, **fields: Any) -> ProviderError:
    """The provider answered 200 with something that is no answer."""
    return ProviderError.of(ErrorKind.MALFORMED, message, **fields)


def broken(message: str) -> ProviderError:
    """The stream ended before the answer did."""
    return ProviderError.of(ErrorKind.STREAM_CUT, message)


def response_facts(headers: Mapping[str, str] | None) -> dict[str, Any]:
    """What is worth keeping of a response's headers: the request id and the rate limits."""
    facts: dict[str, Any] = {}
    limits: dict[str, str] = {}
    for name, value in (headers or {}).items():
        name = name.lower()
        if name in ("x-request-id", "request-id"):
            facts["request_id"] = value
        elif "ratelimit" in name or name in ("retry-after", "retry-after-ms"):
            limits[name] = value
    if limits:
        facts["rate_limits"] = limits
    return facts


class SdkProvider:
    """A `Provider` over a vendor's official SDK. Made from a `Target`; nothing is imported or opened until used."""

    name: str
    model: str
    local: bool = False
    interruptible: bool = True
    sdk: ClassVar[str]
    """The SDK's module."""
    extra: ClassVar[str]
    """The extra of this package that installs it."""
    loop_clients: ClassVar[bool] = True
    """Whether async calls have a client of their own per event loop; otherwise they use the sync one in a thread."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.model = target.model
        self._clients: transport.Clients[Any, Any] = transport.Clients(
            lambda: self._build(sync=True), lambda: self._build(sync=False)
        )
        self._loading = threading.Lock()
        self._loaded = False
        after_fork(self._unlock)

    def _unlock(self) -> None:
        """In a forked child: whoever was loading was a thread of the parent."""
        self._loading = threading.Lock()

    # ── for a vendor's file ──────────────────────────────────────────────────────────────────────────────────────

    def _build(self, *, sync: bool) -> Any:
        """An SDK client with retries off and an HTTP client of ours."""
        raise NotImplementedError

    def _arguments(self, request: ChatRequest, changes: list[Change] | None = None) -> dict[str, Any]:
        """The keyword arguments of the SDK's method; what of the conversation did not travel goes to `changes`."""
        raise NotImplementedError

    def _told(self, request: ChatRequest, guard: Guard) -> dict[str, Any]:
        """The same, with a note for the journal where something did not travel."""
        changes: list[Change] = []
        arguments = self._arguments(request, changes)
        if changes:
            from shared_core.history import summary

            guard.notes.extend(summary(changes))
        return arguments

    def _method(self, client: Any) -> Any:
        """The SDK's method, in its raw-response form."""
        raise NotImplementedError

    def _fold(self, request: ChatRequest) -> Fold:
        """A fresh reader for one answer."""
        raise NotImplementedError

    def _listing(self, client: Any) -> Callable[..., Any] | None:
        """The SDK's method that lists models, in its raw-response form, where that is free; None where it has none."""
        return None

    @property
    def endpoint(self) -> str | None:
        """The address, where it is not the vendor's own."""
        raise NotImplementedError

    @property
    def capabilities(self) -> Capabilities:
        """What this model can take: what the target says, else what is known about the model."""
        raise NotImplementedError

    # ── the rest of the contract ─────────────────────────────────────────────────────────────────────────────────

    @property
    def origin(self) -> Origin:
        """The scope within which this provider's opaque blocks may be replayed."""
        return self._origin(None)

    def _origin(self, model: str | None) -> Origin:
        endpoint = self.endpoint
        return Origin(self.name, model or self.model, redact(endpoint) if endpoint else endpoint)

    def load(self) -> None:
        """Import and build what the first call needs, so that it does not pay for it (0.4 to 2 s). Sends nothing."""
        if self._loaded:
            return
        self._module()
        importlib.import_module("shared_core.history")
        _ = self.capabilities  # reads the price table's context windows when no fact of ours is known
        transport.preload()
        self._method(self._clients.sync())  # SDKs import their resources when they are first touched
        self._loaded = True

    async def aload(self) -> None:
        """The same for this event loop, whose client is its own, without holding it up."""
        if not self.ready():
            await asyncio.to_thread(self._load_for, asyncio.get_running_loop())

    def ready(self) -> bool:
        """Whether an async call on the running event loop finds everything built. Costs a fraction of a microsecond."""
        return self._loaded and (not self.loop_clients or self._clients.ready())

    def _load_for(self, loop: asyncio.AbstractEventLoop) -> None:
        self.load()
        if self.loop_clients:
            self._method(self._clients.build_for(loop))

    def _module(self) -> ModuleType:
        with self._loading:
            try:
                return importlib.import_module(self.sdk)
            except ImportError as error:
                if error.name is not None and error.name.partition(".")[0] != self.sdk.partition(".")[0]:
                    raise  # the SDK is there, but broken: say what it misses, not that it is missing
                raise MissingDependency(
                    f'{self.name!r} needs the {self.sdk} package.\nhint: pip install "llm-fallback[{self.extra}]"'
                ) from error

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync. Nothing is sent before the first `next()`."""
        self.load()
        http = self._http()
        fold = self._fold(request)
        arguments = self._told(request, guard) | {"timeout": transport.request_timeout(http, guard)}
        response: Any = None
        body: transport.Body | None = None
        try:
            with self._failures(guard, fold), transport.guarded(guard):
                response, parsed = self._send(arguments)
            facts = self._facts_of(response, guard)
            if not request.streaming:
                yield from fold.whole(parsed, facts)
                return
            self._check_stream(parsed, response)
            body = transport.body_of(http, response.http_response)
            chunks = iter(parsed)
            seen = False
            limit: transport.Limiter = guard
            while True:
                if fold.complete and limit is guard:
                    limit = _Tail(guard)
                    body.whole = True
                try:
                    with self._failures(guard, fold), transport.guarded(limit):
                        chunk = next(chunks, _END)
                except ProviderError:
                    if fold.complete:  # the answer is whole; only its usage is lost
                        break
                    raise
                if chunk is _END:
                    break
                seen = True
                yield from fold.feed(chunk)
            if not seen:
                self._check_silent(response)
            yield from fold.end(facts)
        finally:
            if body is not None:
                body.whole = False  # whoever leaves early is not kept waiting
            if response is not None and request.streaming:
                response.http_response.close()

    def _send(self, arguments: dict[str, Any]) -> tuple[Any, Any]:
        for last in (False, True):
            client = self._clients.sync()
            try:
                response = self._method(client)(**arguments)
                return response, response.parse()
            except Exception as error:
                if last or not _is_pool_timeout(error):
                    raise
                # Every slot of the pool is taken by calls that are long gone (httpcore #1093): nothing was sent.
                self._clients.drop(client)
        raise AssertionError("unreachable")

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async. The router cancels it when time is up; cancelling closes the connection."""
        await self.aload()
        http = self._http()
        fold = self._fold(request)
        arguments = self._told(request, guard) | {"timeout": transport.request_timeout(http, guard)}
        response: Any = None
        body: transport.Body | None = None
        try:
            with self._failures(guard, fold):
                response, parsed = await self._asend(arguments)
            facts = self._facts_of(response, guard)
            if not request.streaming:
                for event in fold.whole(parsed, facts):
                    yield event
                return
            self._check_stream(parsed, response)
            body = transport.body_of(http, response.http_response)
            chunks = aiter(parsed)
            seen = False
            tail: _Tail | None = None
            while True:
                if fold.complete and tail is None:
                    tail = _Tail(guard)
                    body.whole = True
                try:
                    with self._failures(guard, fold):
                        if tail is not None:
                            async with asyncio.timeout(tail.remaining()):
                                chunk = await anext(chunks, _END)
                        else:
                            chunk = await anext(chunks, _END)
                except ProviderError:
                    if fold.complete:  # the answer is whole; only its usage is lost
                        break
                    raise
                if chunk is _END:
                    break
                seen = True
                for event in fold.feed(chunk):
                    yield event
            if not seen:
                self._check_silent(response)
            for event in fold.end(facts):
                yield event
        finally:
            if body is not None:
                body.whole = False  # whoever leaves early is not kept waiting
            if response is not None and request.streaming:
                await response.http_response.aclose()

    async def _asend(self, arguments: dict[str, Any]) -> tuple[Any, Any]:
        for last in (False, True):
            client = self._clients.on_loop()
            try:
                response = await self._method(client)(**arguments)
                parsed = response.parse()
                return response, await parsed if inspect.isawaitable(parsed) else parsed
            except Exception as error:
                if last or not _is_pool_timeout(error):
                    raise
                self._clients.drop(client)
        raise AssertionError("unreachable")

    def ping(self, guard: Guard) -> bool:
        """Read the vendor's list of models, which is free: address, connection and key are well. One request.

        Returns:
            False if there is no such list: nothing is known then.

        Raises:
            ProviderError: it failed, classified like a call.
        """
        self.load()
        listing = self._listing(self._clients.sync())
        if listing is None:
            return False
        try:
            with self._failures(guard, _NO_ANSWER), transport.guarded(guard):
                self._check_list(listing(timeout=transport.request_timeout(self._http(), guard)))
        except ProviderError as error:
            return _listed(error)
        return True

    async def aping(self, guard: Guard) -> bool:
        """The same, async. Whoever awaits it sees to the limit."""
        await self.aload()
        if not self.loop_clients or (listing := self._listing(self._clients.on_loop())) is None:
            return False
        try:
            with self._failures(guard, _NO_ANSWER):
                self._check_list(await listing(timeout=transport.request_timeout(self._http(), guard)))
        except ProviderError as error:
            return _listed(error)
        return True

    def _check_list(self, response: Any) -> None:
        kind = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
        if kind and "json" not in kind:
            raise malformed(f"expected a list of models, got {kind}", **_of(response))

    @staticmethod
    def _facts_of(response: Any, guard: Guard) -> dict[str, Any]:
        """What is worth keeping of a good response's headers. The rate limits are heeded before the answer is read."""
        facts = response_facts(response.headers)
        if "rate_limits" in facts:
            guard.heard(windows(response.headers))
        return facts

    def _http(self) -> ModuleType:
        return transport.http_module(self._module())

    @contextmanager
    def _failures(self, guard: Guard, fold: Fold) -> Iterator[None]:
        """Whatever fails in here becomes a `ProviderError`, unless it is a bug."""
        allowed = guard.remaining()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - classified by table; what the table does not know is raised again
            self._fail(error, guard, fold, allowed)

    def _fail(self, error: Exception, guard: Guard, fold: Fold, allowed: float) -> NoReturn:
        found = classify_error(error, provider=self.name)
        if found is None:
            raise error
        timed_out = found.kind in (ErrorKind.TIMEOUT, ErrorKind.CONNECT) and found.status is None
        if timed_out and guard.expired:
            found = timeout_error(guard.which, allowed if guard.which == "idle" else guard.at - guard.started)
        elif fold.content and _lost(found, error):
            found = broken(f"the connection was lost in the middle of the answer: {found.message}")
        found.after_output = fold.content
        self._explain(found)
        if found is error:
            raise found
        raise found from error

    def _explain(self, error: ProviderError) -> None:
        """Take this target's own key out of the message, and say where a key comes from when one was refused."""
        key = self.target.api_key
        if key and len(key) >= 6 and key in error.message:
            error.args = (error.message.replace(key, "***"), *error.args[1:])

    def _check_stream(self, parsed: Any, response: Any) -> None:
        if not hasattr(parsed, "__next__") and not hasattr(parsed, "__anext__"):
            raise malformed("the server did not answer with a stream", **_of(response))

    def _check_silent(self, response: Any) -> None:
        """A stream without a single event was cut, or was no event stream at all: an edge's page, a JSON error."""
        kind = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
        if kind and kind != "text/event-stream":
            raise malformed(f"expected an event stream, got {kind}", **_of(response))

    def close(self) -> None:
        """Free sockets, from any thread; idempotent. A later call opens new ones."""
        self._clients.close()

    async def aclose(self) -> None:
        """The same for what belongs to the running event loop, then `close`."""
        await self._clients.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        # Clients hold sockets and locks, and the target drops its key: the other side builds anew from its environment.
        return type(self), (self.target,)

    def __copy__(self) -> SdkProvider:
        return type(self)(self.target)

    def __deepcopy__(self, memo: dict[int, Any]) -> SdkProvider:
        return type(self)(self.target)  # within one process the key may stay

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}:{self.model})"


def _of(response: Any) -> dict[str, Any]:
    facts = response_facts(response.headers)
    return {"status": response.status_code, "request_id": facts.get("request_id"), "response": response.http_response}


class _NoAnswer:
    """Stands for the reader of an answer where none is awaited."""

    content = False
    complete = False


_NO_ANSWER: Any = _NoAnswer()


def _listed(error: ProviderError) -> bool:
    """False when the address has no list of models, as engines and relays may not; any other error is one."""
    if error.status in (404, 405, 501):
        return False
    raise error


def _lost(found: ProviderError, error: Exception) -> bool:
    """Whether the connection failed; an error that the vendor told us inside the stream is something else."""
    lost = found.status is None and found.kind in (ErrorKind.TRANSIENT, ErrorKind.CONNECT)
    return lost and getattr(error, "body", None) is None


def _is_pool_timeout(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ == "PoolTimeout":
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Tail:
    """What is left for the frames behind the end of the answer."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._until = transport.Until(_TAIL_S)

    def remaining(self) -> float:
        # Half of what the attempt has left: were the attempt's own limit to strike first, a whole answer would be
        # thrown away as one that fell silent, or gone on with elsewhere.
        return min(self._guard.remaining() / 2, self._until.remaining())
