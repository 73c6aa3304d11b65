"""The one interface every vendor, engine and wrapped framework model implements: `Provider`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol, runtime_checkable

from shared_core.chat.events import ChatEvent
from shared_core.chat.request import ChatRequest, Origin
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities

__all__ = ["Prefill", "Provider"]


class Prefill(Protocol):
    """A prompt that is being read ahead."""

    def drop(self) -> None:
        """It is not needed any more. Any thread, never blocks; idempotent."""
        ...


@runtime_checkable
class Provider(Protocol):
    """Turns a `ChatRequest` into `ChatEvent`s, sync and async, whole and streamed, for one model at one endpoint.

    The contract, checked for any implementation by `shared_core.testing.check_provider`:

    * `request.streaming` says which call to make on the wire; the events are the same either way.
    * `request.model`, when set, replaces the provider's own model for this call.
    * The last event is `Finished`. Ending without it means broken, and the router treats it so.
    * Failures are `ProviderError`s (their `kind` from the error table, the SDK's exception as `__cause__`). A bug in
      our or the caller's code passes through untouched. Exactly one request leaves per call: no retries of its own.
    * Nothing is sent before the first `next()`.
    * Sync reads never block past `guard.remaining()` where `interruptible` is true; otherwise the router runs the
      call in a thread it can walk away from. Async calls are cancelled by the router.
    * Closing the iterator closes the connection. Any thread and any event loop may call; messages are never mutated.

    For the router's cache a provider may tell more, as plain data:

    * `identity(model) -> Any`: what its answers depend on beside its class, name, model and origin; `model` is one that
      takes the place of its own. Asked once, off the event loop: it may read a file. None while it is not known.
    * `settings() -> Any`: the same for what may change while it lives; asked with each request.
    * `says_all(native) -> bool`: whether `Finished.native` holds nothing that the events do not tell. Without it an
      answer that comes with one is not kept.

    A vendor with a list of models that is free to read may have `ping(guard) -> bool` and `aping(guard)`, for health
    checks: True when it was read, False where there is none, and the errors of a call. One request; sync it obeys the
    guard as `stream` does, async the router limits it.

    What runs a model on this machine may have more, none of which blocks or does I/O beyond reading its own state:

    * `wait_s(request) -> float | None`: seconds until a request would have its turn; None unmeasured.
    * `report() -> SelfReport`: what it knows of itself, for `Router.health()`.
    * `standby`: 'warm' or 'prefill' if it is to be ready before it is asked; then `stand_by()` begins to load it in the
      background, and with 'prefill' `prefill(request) -> Prefill` lets it read a prompt that it may be asked.
    """

    name: str
    """The vendor or engine: 'openai', 'anthropic', 'google', 'llamacpp', …"""
    model: str
    local: bool
    """Runs on this machine: allowed under `local_only`, free unless priced."""
    interruptible: bool
    """Sync reads obey the guard by themselves."""

    @property
    def capabilities(self) -> Capabilities:
        """What this model can take."""
        ...

    @property
    def origin(self) -> Origin:
        """The scope within which this provider's opaque blocks may be replayed."""
        ...

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync."""
        ...

    def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async."""
        ...

    def close(self) -> None:
        """Free sockets and processes, from any thread; idempotent."""
        ...

    async def aclose(self) -> None:
        """The same for what belongs to the running event loop, then `close`."""
        ...
