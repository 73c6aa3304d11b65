"""How long a call and its attempts may take: `Timeouts` (settings) and `Guard` (one attempt's running limit)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Literal

from shared_core.errors import ConfigurationError
from shared_core.resilience.rate_limit import Window

__all__ = ["Guard", "Limit", "Timeouts"]

Limit = Literal["first token", "idle", "whole answer", "deadline"]

_RAN_OUT: dict[Limit, str] = {
    "first token": "no first token in time",
    "idle": "the stream fell silent",
    "whole answer": "no whole answer in time",
    "deadline": "the deadline of the call ran out",
}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds. All must be positive; `inf` switches one off.

    Attributes:
        connect: to reach the server (DNS, TCP, TLS).
        first_token: until the first content of a streamed answer. Pings, comments and role-only frames are not content.
        reasoning_first_token: the same for models that think before they speak.
        idle: between two content events of a stream.
        attempt: for one attempt at a whole (not streamed) answer.
        total: for the logical call: all waits, retries and targets together.

    Raises:
        ConfigurationError: a limit is zero, negative or not a number.
    """

    connect: float = 5.0
    first_token: float = 30.0
    reasoning_first_token: float = 60.0
    idle: float = 20.0
    attempt: float = 120.0
    total: float = 600.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value <= 0:
                raise ConfigurationError(f"Timeouts.{f.name} must be a positive number of seconds, not {value!r}")


class Guard:
    """The limit one attempt runs under right now, on the clock it was given.

    The driver moves it at each content event; providers obey `remaining()` in every blocking read, so that a server
    that only drips keep-alives cannot stretch it. Whoever sees it expire raises; `which` says what ran out.
    """

    __slots__ = (
        "_clock", "_idle_s", "_suspended", "at", "connect_s", "cuts", "deadline", "learn", "notes", "started",
        "streaming", "which",
    )  # fmt: skip

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        streaming: bool,
        first_s: float = math.inf,
        idle_s: float = math.inf,
        connect_s: float = 5.0,
        deadline: float = math.inf,
    ) -> None:
        """`first_s` limits the first token (streamed) or the whole answer; `deadline` is absolute."""
        self._clock = clock
        self._idle_s = idle_s
        self._suspended: tuple[float, Limit] | None = None
        self.learn: Callable[[Iterable[Window], float], None] | None = None
        """Who heeds the vendor's rate limits; nobody where the attempt is nobody's."""
        self.cuts: dict[object, Callable[[], None]] | None = None
        """Where the attempt may be cut off from another thread: what ends its blocking reads, by who does them."""
        self.notes: list[str] = []
        """What the provider has to say about this attempt, for the journal: what of the conversation did not travel."""
        self.streaming = streaming
        self.connect_s = connect_s
        self.deadline = deadline
        self.started = clock()
        self._set(self.started + first_s, "first token" if streaming else "whole answer")

    def _set(self, at: float, which: Limit) -> None:
        self.at: float = min(at, self.deadline)
        """When the current limit runs out, on the guard's clock."""
        self.which: Limit = which if at <= self.deadline else "deadline"
        """The name of the current limit."""

    def touch(self) -> None:
        """A content event arrived: the idle limit starts anew. Whole answers keep their one limit."""
        if self.streaming:
            self._set(self._clock() + self._idle_s, "idle")

    def heard(self, windows: Iterable[Window]) -> None:
        """The provider has read in its vendor's headers what is left of its rate limits."""
        if self.learn is not None:
            self.learn(windows, self._clock())

    def suspend(self) -> None:
        """What follows is no silence of the target (a local model loads): until `resume` only the deadline counts."""
        if self._suspended is None:
            self._suspended = (self.remaining(), self.which)
            self._set(math.inf, self.which)

    def resume(self) -> None:
        """The limit goes on with what was left of it at `suspend`; never past the deadline."""
        if self._suspended is not None:
            left, which = self._suspended
            self._suspended = None
            self._set(self._clock() + left, which)

    def cut(self) -> None:
        """The attempt is not wanted any more: its time is up, and who blocks for it is woken. Any thread."""
        self._idle_s = -math.inf
        self._set(-math.inf, self.which)
        for wake in tuple((self.cuts or {}).values()):
            wake()

    def remaining(self) -> float:
        """Seconds until the current limit; zero or less when it has run out."""
        return self.at - self._clock()

    @property
    def expired(self) -> bool:
        """Whether the current limit has run out."""
        return self._clock() >= self.at

    def ran_out(self) -> str:
        """What an error says when the current limit has run out."""
        return _RAN_OUT[self.which]

    def __repr__(self) -> str:
        return f"Guard({self.which} in {self.remaining():.3f} s)"
