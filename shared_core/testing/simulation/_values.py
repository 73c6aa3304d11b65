"""What a simulation is made of: targets, what happens to them, who asks, what else goes wrong. All frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from shared_core.chat.request import ChatRequest
from shared_core.errors import ConfigurationError, ErrorKind, is_number
from shared_core.routing.price import Price

__all__ = [
    "BrownOut",
    "Chaos",
    "ClockStep",
    "Flap",
    "Happening",
    "Load",
    "Outage",
    "RateLimitStorm",
    "SimTarget",
    "Weather",
]


class Weather(NamedTuple):
    """What the happenings of one instant do to one target."""

    failures: float = 0.0
    """Share of requests that fail."""
    kind: ErrorKind = ErrorKind.OVERLOADED
    slower: float = 1.0
    rate_limit: float | None = None
    """Requests per minute."""
    tells: bool = True
    """Whether a 429 says when to come back."""


def _kind(what: str, kind: ErrorKind | str) -> None:
    if kind not in tuple(ErrorKind):
        raise ConfigurationError(f"{what} must be one of {', '.join(ErrorKind)}, not {kind!r}")


def _share(what: str, value: float) -> None:
    if not is_number(value, least=0, most=1):
        raise ConfigurationError(f"{what} must be a share from 0 to 1, not {value!r}")


def _positive(what: str, value: float, *, zero: bool = False, whole: bool = False) -> None:
    if not is_number(value, least=0, whole=whole) or (value == 0 and not zero):
        number = "whole number" if whole else "number"
        raise ConfigurationError(f"{what} must be a {number} {'>=' if zero else '>'} 0, not {value!r}")


def _switch(what: str, value: bool) -> None:
    if type(value) is not bool:
        raise ConfigurationError(f"{what} must be True or False, not {value!r}")


_GIVEN = ("name", "price", "provider", "spec")
"""Keywords of `Target` that a simulation gives it."""


@dataclass(frozen=True, slots=True)
class SimTarget:
    """One scripted target: how quick, how reliable, how dear it is in fair weather. Times are seconds.

    Attributes:
        name: what the router and the report call it, such as 'openai:gpt-5-mini'.
        latency: the usual (median) time to a whole answer.
        first_token: the usual time to the first token of a stream; a fifth of `latency` when left out.
        spread: how much both vary: the sigma of a log-normal factor; 0 is exact.
        failures: share of requests that fail by chance, 0 to 1.
        failure: how they fail: an `ErrorKind`.
        rate_limit: requests per minute that the vendor serves; more get a 429 that says when to come back. None: all.
        price: what the vendor bills, a `Price` or dollars per million (input, output) tokens. None is unknown.
        tokens: output tokens of an answer.
        local: runs on this machine.
        options: further keywords of its `Target`: `weight`, `tier`, `timeouts`, `capabilities`, ….

    Raises:
        ConfigurationError: a figure is out of range.
    """

    name: str
    latency: float = 2.0
    first_token: float | None = None
    spread: float = 0.25
    failures: float = 0.0
    failure: ErrorKind | str = ErrorKind.TRANSIENT
    rate_limit: float | None = None
    price: Price | tuple[float, float] | None = (0.25, 2.0)
    tokens: int = 200
    local: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: Any = self  # whatever it was given
        if not isinstance(given.name, str) or not given.name:
            raise ConfigurationError(f"SimTarget.name must be a text such as 'openai:gpt-5-mini', not {given.name!r}")
        taken = [one for one in _GIVEN if one in given.options] if isinstance(given.options, Mapping) else None
        if taken is None or taken:
            wrong = repr(taken[0] if taken else given.options)
            raise ConfigurationError(f"SimTarget.options takes a mapping of further keywords of Target, not {wrong}")
        price = given.price
        if not (price is None or isinstance(price, Price) or (isinstance(price, tuple) and len(price) == 2)):
            raise ConfigurationError(
                f"SimTarget.price must be a Price, dollars per million tokens (input, output), or None; not {price!r}"
            )
        _ = self.priced  # a pair is refused that is no price
        _switch("SimTarget.local", self.local)
        _positive("SimTarget.latency", self.latency)
        if self.first_token is not None:
            _positive("SimTarget.first_token", self.first_token)
        _positive("SimTarget.spread", self.spread, zero=True)
        _share("SimTarget.failures", self.failures)
        _kind("SimTarget.failure", self.failure)
        if self.rate_limit is not None:
            _positive("SimTarget.rate_limit", self.rate_limit)
        _positive("SimTarget.tokens", self.tokens, whole=True)

    @property
    def priced(self) -> Price | None:
        """The price as a `Price`."""
        return Price(*self.price) if isinstance(self.price, tuple) else self.price


@dataclass(frozen=True, slots=True)
class Happening:
    """Something happens to a target from `start` to `end`, in seconds. `target` is its name, or its place from 0."""

    start: float
    end: float
    target: str | int = 0

    def __post_init__(self) -> None:
        _positive(f"{type(self).__name__}.start", self.start, zero=True)
        name, end, where = type(self).__name__, self.end, self.target
        if not (is_number(end, above=self.start) or end == math.inf):
            raise ConfigurationError(f"{name}.end must come after its start, not at {end!r}")
        if type(where) not in (str, int):
            raise ConfigurationError(f"{name}.target must be a target's name, or its place from 0, not {where!r}")

    def weather(self, now: float) -> Weather | None:
        """What it does at `now`; None when nothing."""
        return self._while(now) if self.start <= now < self.end else None

    def _while(self, now: float) -> Weather | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Outage(Happening):
    """Every request fails: at once with 'overloaded' (503) or another kind of error, or by silence ('timeout')."""

    kind: ErrorKind | str = ErrorKind.OVERLOADED

    def __post_init__(self) -> None:
        Happening.__post_init__(self)
        _kind("Outage.kind", self.kind)

    def _while(self, now: float) -> Weather | None:
        return Weather(1.0, ErrorKind(self.kind))


@dataclass(frozen=True, slots=True)
class Flap(Happening):
    """Down for `down` seconds, up for `up`, and so on."""

    down: float = 10.0
    up: float = 10.0
    kind: ErrorKind | str = ErrorKind.OVERLOADED

    def __post_init__(self) -> None:
        Happening.__post_init__(self)
        _positive("Flap.down", self.down)
        _positive("Flap.up", self.up)
        _kind("Flap.kind", self.kind)

    def _while(self, now: float) -> Weather | None:
        into = (now - self.start) % (self.down + self.up)
        return Weather(1.0, ErrorKind(self.kind)) if into < self.down else None


@dataclass(frozen=True, slots=True)
class BrownOut(Happening):
    """It works, badly: a share of `failures` fails, and everything takes `slower` times as long."""

    failures: float = 0.3
    slower: float = 4.0
    kind: ErrorKind | str = ErrorKind.OVERLOADED

    def __post_init__(self) -> None:
        Happening.__post_init__(self)
        _share("BrownOut.failures", self.failures)
        _positive("BrownOut.slower", self.slower)
        _kind("BrownOut.kind", self.kind)

    def _while(self, now: float) -> Weather | None:
        return Weather(self.failures, ErrorKind(self.kind), self.slower)


@dataclass(frozen=True, slots=True)
class RateLimitStorm(Happening):
    """The vendor serves `limit` requests per minute and answers the others 429, saying when to come back if `tells`."""

    limit: float = 30.0
    tells: bool = True

    def __post_init__(self) -> None:
        Happening.__post_init__(self)
        _positive("RateLimitStorm.limit", self.limit)
        _switch("RateLimitStorm.tells", self.tells)

    def _while(self, now: float) -> Weather | None:
        return Weather(rate_limit=self.limit, tells=self.tells)


@dataclass(frozen=True, slots=True)
class ClockStep:
    """The wall clock is put forward by `seconds` (back, if negative). Monotonic time goes on as before."""

    at: float
    """Seconds from the beginning."""
    seconds: float

    def __post_init__(self) -> None:
        _positive("ClockStep.at", self.at, zero=True)
        if not is_number(self.seconds):
            raise ConfigurationError(f"ClockStep.seconds must be a number, not {self.seconds!r}")


@dataclass(frozen=True, slots=True)
class Load:
    """Who asks.

    Attributes:
        rps: requests per second.
        poisson: at random moments, as independent users do; otherwise at even ones.
        burst: how many ask at once each time (and that much less often).
        streaming: share of the requests that are streamed, 0 to 1.
        timeout_s: the deadline of each; the router's when left out.
        request: what they ask.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    rps: float = 2.0
    poisson: bool = True
    burst: int = 1
    streaming: float = 0.0
    timeout_s: float | None = None
    request: ChatRequest | str = "x" * 1600

    def __post_init__(self) -> None:
        _positive("Load.rps", self.rps)
        _switch("Load.poisson", self.poisson)
        _positive("Load.burst", self.burst, whole=True)
        _share("Load.streaming", self.streaming)
        if self.timeout_s is not None:
            _positive("Load.timeout_s", self.timeout_s)
        if not isinstance(self.request, (ChatRequest, str)):
            raise ConfigurationError(f"Load.request must be a ChatRequest or a text, not {self.request!r:.80}")


@dataclass(frozen=True, slots=True)
class Chaos:
    """What else goes wrong, by chance, at every step. All are shares from 0 to 1 but `delay_s` and `clock_steps`.

    Attributes:
        delay: of a vendor's steps (its first byte, its end, each piece of a stream), that come late.
        delay_s: by up to so many seconds.
        drop: of these steps, at which the connection is lost.
        silence: of these steps, after which nothing comes any more.
        cancel: of the requests, whose caller cancels at a random await.
        abandon: of the streams, whose reader leaves in the middle.
        clock_steps: steps of the wall clock per minute, of an hour or a day, forward or back.

    Raises:
        ConfigurationError: a figure is out of range.
    """

    delay: float = 0.0
    delay_s: float = 5.0
    drop: float = 0.0
    silence: float = 0.0
    cancel: float = 0.0
    abandon: float = 0.0
    clock_steps: float = 0.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name in ("delay_s", "clock_steps"):
                _positive(f"Chaos.{one.name}", getattr(self, one.name), zero=True)
            else:
                _share(f"Chaos.{one.name}", getattr(self, one.name))


def combined(happenings: Sequence[Happening], now: float) -> Weather:
    """All that happens to one target at `now`: failures add up, the strictest limit counts."""
    whole = FAIR
    for happening in happenings:
        one = happening.weather(now)
        if one is None:
            continue
        limits = [limit for limit in (whole.rate_limit, one.rate_limit) if limit is not None]
        whole = Weather(
            1.0 - (1.0 - whole.failures) * (1.0 - one.failures),
            one.kind if one.failures >= whole.failures and one.failures else whole.kind,
            whole.slower * one.slower,
            min(limits) if limits else None,
            whole.tells and one.tells,
        )
    return whole


FAIR = Weather()
