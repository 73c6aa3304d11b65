"""When to try again and how long to wait first: `RetryPolicy`, and the retry budget of a target."""

from __future__ import annotations

from dataclasses import dataclass, fields

from shared_core.errors import ConfigurationError, ProviderError, is_number

__all__ = ["RetryBudget", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries beyond each target's first try. Waits are full jitter: uniform between 0 and `base * 2**n`, capped.

    Attributes:
        same_target: retries of one target per logical call, 0 or more.
        total: retries of all targets together per logical call, 0 or more. First tries never count.
        transparent: tries of one target per call that count for nothing and wait for nothing, because no byte of the
            request had left (a refused connection, an unknown name, a failed handshake, a full pool), 0 or more.
        base_s: first wait after a transient failure, in seconds.
        overloaded_base_s: first wait after 'overloaded' and after a throttle that names no wait.
        cap_s: longest wait of our own making. A server's Retry-After is a lower bound and is not capped.
        reasks: how often one target is shown an answer of its own that does not fit what was asked for, 0 or more.
        max_wait_s: longest server wait to sit out while another target is free; beyond it the call falls over at once.

    Raises:
        ConfigurationError: a figure is negative or not a number.
    """

    same_target: int = 1
    total: int = 2
    base_s: float = 0.5
    overloaded_base_s: float = 1.0
    cap_s: float = 8.0
    max_wait_s: float = 10.0
    reasks: int = 1
    transparent: int = 1

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not is_number(value, least=0):
                raise ConfigurationError(f"RetryPolicy.{f.name} must be a number >= 0, not {value!r}")
        for name in ("same_target", "total", "reasks", "transparent"):
            if not isinstance(getattr(self, name), int):
                raise ConfigurationError(f"RetryPolicy.{name} must be a whole number, not {getattr(self, name)!r}")

    def wait_s(self, error: ProviderError, retry: int, chance: float) -> float:
        """Seconds to wait before retry number `retry`, from 0. `chance` is uniform in [0, 1).

        A server's own wait is a lower bound, spread by up to a tenth so that callers do not return as one herd.
        """
        asked = error.retry_after_s
        if asked is not None and asked > 0:
            return asked + chance * max(0.05, 0.1 * asked)
        base = self.overloaded_base_s if error.rule.backoff_base_s >= 1.0 else self.base_s
        return chance * min(self.cap_s, base * 2.0**retry)


class RetryBudget:
    """Caps the amplification of an outage: a retry needs more than half of the tokens left (gRPC A6).

    Ten tokens; a retryable failure takes one, a success returns a tenth; at five or fewer nobody retries this target.
    Not thread-safe by itself: its owner holds the lock.
    """

    __slots__ = ("capacity", "refund", "tokens")

    def __init__(self, capacity: float = 10.0, refund: float = 0.1) -> None:
        self.capacity = capacity
        self.refund = refund
        self.tokens = capacity

    def success(self) -> None:
        """A call succeeded."""
        self.tokens = min(self.capacity, self.tokens + self.refund)

    def failure(self) -> None:
        """A call failed in a way that could be retried."""
        self.tokens = max(0.0, self.tokens - 1.0)

    @property
    def allows_retry(self) -> bool:
        """Whether a retry may be made now."""
        return self.tokens > self.capacity / 2
