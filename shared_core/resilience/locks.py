"""`Lock`: closed at once by an answer that waiting does not mend (a bad key, an unpaid bill, no such model).

It ends by `lift` (an operator, a new key), or by a re-check: when its time is over, one attempt is let through, and
what becomes of that one decides. Like the breaker it has no clock or lock of its own: its owner holds one.
"""

from __future__ import annotations

from shared_core.resilience.breaker import Rejection

__all__ = ["Lock"]


class Lock:
    """One lock. `until` is 0 while it is open; once set, it stays until `lift`, also when its time is over."""

    __slots__ = ("checking_until", "reason", "since", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """When a re-check may be made, monotonic seconds."""
        self.since = 0.0
        self.reason = ""
        self.checking_until = 0.0

    def refusal(self, now: float) -> Rejection | None:
        """Why nothing may pass now; None when it is open, or when the next attempt is its re-check."""
        if now < self.until:
            return Rejection(self.reason, self.until)
        if self.until and now < self.checking_until:
            return Rejection(f"{self.reason} (being checked again)", self.checking_until)
        return None

    def check(self, now: float, lease_s: float) -> bool:
        """An attempt starts that ends within `lease_s` seconds. Whether it is the re-check of this lock."""
        if not self.until:
            return False
        self.checking_until = now + lease_s
        return True

    def undecided(self) -> None:
        """The re-check has ended and said nothing: the next attempt is another."""
        self.checking_until = 0.0

    def put(self, now: float, until: float, reason: str) -> None:
        """Close it. A lock that stands is never shortened."""
        if now >= self.until:
            self.since = now
        self.until, self.reason = max(until, self.until), reason
        self.checking_until = 0.0

    def due(self) -> None:
        """Something has changed that may have mended it: the next attempt is the re-check."""
        self.until = min(self.until, self.since)
        self.checking_until = 0.0

    def lift(self) -> bool:
        """Open it. Whether it was closed."""
        was = self.until > 0
        self.until = self.checking_until = 0.0
        self.reason = ""
        return was

    def __repr__(self) -> str:
        state = f"{self.reason!r} until {self.until:g}" if self.until else "open"
        return f"{type(self).__name__}({state})"
