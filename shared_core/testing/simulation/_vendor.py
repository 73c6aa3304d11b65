"""The vendor's side: `SimVendor` decides what becomes of each packet, and writes the bill."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from shared_core.chat.events import Usage
from shared_core.errors import ErrorKind, ProviderError
from shared_core.testing.simulation._values import Chaos, Happening, SimTarget, combined

__all__ = ["ASKING", "PIECES", "TEXT", "Asked", "Packet", "SimVendor"]

TEXT = " ".join(f"word{n}" for n in range(24))
"""What every target answers: it shows whether an answer was put together properly."""
_WORDS = 4
PIECES: Sequence[str] = tuple(
    ("" if begin == 0 else " ") + " ".join(TEXT.split()[begin : begin + _WORDS]) for begin in range(0, 24, _WORDS)
)
"""The same as a stream brings it."""
_REFUSED_S = (0.02, 0.2)
"""How quickly a vendor says no."""
_STATUS = {
    ErrorKind.BAD_REQUEST: 400,
    ErrorKind.AUTH: 401,
    ErrorKind.BILLING: 402,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NO_ENTITLEMENT: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.THROTTLED: 429,
    ErrorKind.RAMP: 429,
    ErrorKind.QUOTA_DAY: 429,
    ErrorKind.TRANSIENT: 500,
    ErrorKind.OVERLOADED: 503,
}


@dataclass(slots=True)
class Asked:
    """One logical request, as its caller sees it. Times are virtual seconds."""

    number: int
    at: float
    streaming: bool
    deadline: float = math.inf
    ended: float | None = None
    outcome: str = "running"
    first_token: float | None = None
    served_by: str | None = None
    packets: list[Packet] = field(default_factory=list)
    text: str = ""
    error: str | None = None


@dataclass(slots=True)
class Packet:
    """One request on the wire. Times are virtual seconds."""

    target: str
    request: int
    at: float
    circuit: str = ""
    ended: float | None = None
    outcome: str = "running"
    bill_nano: int = 0


ASKING: ContextVar[Asked] = ContextVar("asking")
"""The request on whose behalf the running task works; tasks that it starts inherit it."""


class _Fate(NamedTuple):
    """What becomes of a packet: an error after `first_s`, or an answer whose first token and end come then."""

    error: ProviderError | None
    first_s: float
    whole_s: float
    cut_after: int | None = None
    """After so many pieces the stream breaks."""


class SimVendor:
    """One target's server. `call` sends one packet and awaits the whole answer; it is what a policy is made of."""

    def __init__(
        self,
        target: SimTarget,
        happenings: Sequence[Happening],
        chaos: Chaos,
        *,
        seed: int,
        clock: Callable[[], float],
        packets: list[Packet],
        prompt_tokens: int,
    ) -> None:
        self.target = target
        self.name = target.name
        self.in_flight = 0
        """Packets that have not ended."""
        self.before: Callable[[Packet], None] = _nothing
        """Called with each packet before it is sent."""
        self._happenings = happenings
        self._chaos = chaos
        self._troubled = bool(chaos.delay or chaos.drop or chaos.silence)
        self._clock = clock
        self._packets = packets
        self._price = target.priced
        self._input = prompt_tokens
        self._chance = Random(f"{seed} {target.name}")  # a test's chance, not a secret
        self._ill = Random(f"{seed} {target.name} chaos")  # as above
        self._served_until = -math.inf  # GCRA: the theoretical arrival time of the next request
        self._whole_usage = Usage(self._input, target.tokens)
        self._whole_nano = 0 if self._price is None else self._price.cost_nano(self._whole_usage)

    @property
    def usage(self) -> Usage:
        """What a whole answer uses."""
        return self._whole_usage

    def opened(self) -> tuple[Packet, _Fate]:
        """A packet arrives."""
        asked, now = ASKING.get(), self._clock()
        packet = Packet(self.name, asked.number, now)
        self.before(packet)
        asked.packets.append(packet)
        self._packets.append(packet)
        self.in_flight += 1
        return packet, self._fate(now, asked.streaming)

    def closed(self, packet: Packet, pieces: int = 0) -> None:
        """It is over: answered, refused, or its sender has left, after `pieces` of the answer."""
        packet.ended = self._clock()
        self.in_flight -= 1
        if packet.outcome == "answered":
            packet.bill_nano = self._whole_nano
        else:
            if packet.outcome == "running":
                packet.outcome = "left"
            if pieces and self._price is not None:
                part = Usage(self._input, self.target.tokens * pieces // len(PIECES))
                packet.bill_nano = self._price.cost_nano(part)

    async def call(self, timeout_s: float = math.inf) -> str:
        """Send one packet, await the whole answer.

        Raises:
            ProviderError: what became of it instead; `status` and `retry_after_s` as a server would say them. A
                timeout after `timeout_s` seconds of silence.
        """
        packet, fate = self.opened()
        try:
            async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                await self.step(fate.first_s if fate.error is not None else fate.whole_s)
            if fate.error is not None:
                raise fate.error
            packet.outcome = "answered"
            return TEXT
        except TimeoutError:
            packet.outcome = str(ErrorKind.TIMEOUT)
            raise ProviderError.of(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s") from None
        except ProviderError as error:
            packet.outcome = str(error.kind)
            raise
        finally:
            self.closed(packet)

    async def step(self, seconds: float, *, sent: int = 0) -> None:
        """Let the vendor take its time for one step, in which chaos may have its say.

        Raises:
            ProviderError: the connection is lost: before anything came, or after `sent` pieces.
        """
        if self._troubled:
            chaos, chance = self._chaos, self._ill.random
            if chance() < chaos.drop:
                await asyncio.sleep(seconds * chance())
                raise ProviderError.of(ErrorKind.STREAM_CUT if sent else ErrorKind.CONNECT, "the connection was lost")
            if chance() < chaos.silence:
                seconds = math.inf
            elif chance() < chaos.delay:
                seconds += chance() * chaos.delay_s
        if math.isinf(seconds):
            await asyncio.get_running_loop().create_future()  # until somebody loses patience
        elif seconds > 0:
            await asyncio.sleep(seconds)

    def _fate(self, now: float, streaming: bool) -> _Fate:
        target, chance = self.target, self._chance
        weather = combined(self._happenings, now)
        factor = weather.slower * (math.exp(chance.gauss(0.0, target.spread)) if target.spread else 1.0)
        whole_s = target.latency * factor
        first_s = min((target.latency / 5 if target.first_token is None else target.first_token) * factor, whole_s)
        luck, soon = chance.random(), chance.uniform(*_REFUSED_S)
        if luck < weather.failures:
            return self._failing(weather.kind, first_s, whole_s, soon, streaming)
        if chance.random() < target.failures:
            return self._failing(ErrorKind(target.failure), first_s, whole_s, soon, streaming)
        limits = [limit for limit in (target.rate_limit, weather.rate_limit) if limit is not None]
        if limits and (wait := self._over(min(limits), now)) > 0:
            wait_s = float(math.ceil(wait)) if weather.tells else None
            return _Fate(self._error(ErrorKind.THROTTLED, wait_s), soon, soon)
        return _Fate(None, first_s, whole_s)

    def _failing(self, kind: ErrorKind, first_s: float, whole_s: float, soon: float, streaming: bool) -> _Fate:
        if kind is ErrorKind.TIMEOUT:
            return _Fate(self._error(kind), math.inf, math.inf)
        if kind is ErrorKind.STREAM_CUT and streaming:
            return _Fate(self._error(kind), first_s, whole_s, self._chance.randrange(len(PIECES)))
        wait_s = 3600.0 if kind is ErrorKind.QUOTA_DAY else None
        return _Fate(self._error(kind, wait_s), soon, soon)

    def _error(self, kind: ErrorKind, retry_after_s: float | None = None) -> ProviderError:
        return ProviderError.of(kind, f"simulated {kind}", status=_STATUS.get(kind), retry_after_s=retry_after_s)

    def _over(self, limit: float, now: float) -> float:
        """Seconds until the vendor would serve this request; 0 when it does. A tenth of a minute's worth may burst."""
        interval = 60.0 / limit
        burst = max(1.0, limit / 10)
        arrival = max(self._served_until, now)
        wait = arrival - now - (burst - 1) * interval
        if wait > 1e-9:
            return wait
        self._served_until = arrival + interval
        return 0.0

    def __repr__(self) -> str:
        return f"SimVendor({self.name}, {self.in_flight} in flight)"


def _nothing(packet: Packet) -> None:
    """Nobody wants to know."""
