"""What the router knows of a simulated vendor: `SimProvider`, an async `Provider` on the virtual loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from shared_core.chat.events import ChatEvent, Finished, Started, TextDelta
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ProviderError
from shared_core.resilience.deadline import Guard
from shared_core.routing.capabilities import Capabilities
from shared_core.testing.simulation._vendor import PIECES, TEXT, SimVendor

__all__ = ["SimProvider"]

_CAPABILITIES = Capabilities()


class SimProvider:
    """Sends each call to its vendor as one packet."""

    interruptible = True

    def __init__(self, vendor: SimVendor) -> None:
        self.vendor = vendor
        provider, _, model = vendor.name.partition(":")
        self.name = provider
        self.model = model or provider
        self.local = vendor.target.local
        self.open = 0
        """Iterators begun and not yet closed."""

    @property
    def capabilities(self) -> Capabilities:
        """Everything that text needs."""
        return _CAPABILITIES

    @property
    def origin(self) -> Origin:
        """Its own scope."""
        return Origin(self.name, self.model)

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Refused: all of a simulation is async.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a simulation runs the async driver; nothing may block in it")

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """One packet, and what comes of it."""
        vendor = self.vendor
        packet, fate = vendor.opened()
        self.open += 1
        sent = 0
        try:
            if not request.streaming:
                await vendor.step(fate.first_s if fate.error is not None else fate.whole_s)
                if fate.error is not None:
                    raise fate.error
                yield Started()
                yield TextDelta(TEXT)
            else:
                await vendor.step(fate.first_s)
                if fate.error is not None and not fate.cut_after:
                    raise fate.error
                yield Started()
                apart = (fate.whole_s - fate.first_s) / (len(PIECES) - 1)
                for piece in PIECES:
                    if sent:
                        await vendor.step(apart, sent=sent)
                    if fate.error is not None and sent == fate.cut_after:
                        raise fate.error
                    sent += 1
                    yield TextDelta(piece)
            packet.outcome = "answered"
            yield Finished(usage=vendor.usage, model=self.model)
        except ProviderError as error:
            packet.outcome = str(error.kind)
            raise
        finally:
            self.open -= 1
            vendor.closed(packet, sent)

    def close(self) -> None:
        """Nothing to free."""

    async def aclose(self) -> None:
        """Nothing to free."""

    def __repr__(self) -> str:
        return f"SimProvider({self.vendor.name})"
