"""Stop sequences in a stream: nothing that may become one is let out, and nothing else is held back."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopMatcher", "held_back"]


def held_back(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for size in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:size]):
                longest = size
                break
    return longest


class StopMatcher:
    """Feeds text through until one of the stop sequences appears; the earliest wins, and is not let out itself."""

    def __init__(self, stops: Sequence[str], *, delivered: str = "") -> None:
        """`delivered` is text the caller has already; a stop may begin in it, but cannot take it back."""
        self._stops = tuple(s for s in stops if s)
        self._held = ""
        self._old = 0
        """How many characters of `_held` the caller has already."""
        self.matched: str | None = None
        if delivered and self._stops:
            size = held_back(delivered, self._stops)
            self._held, self._old = delivered[len(delivered) - size :], size

    @property
    def active(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._stops)

    @property
    def held(self) -> str:
        """New text that is held back, as it may become a stop sequence."""
        return self._held[self._old :]

    def feed(self, text: str) -> str:
        """What may be let out now. After a match (`matched`) it is always empty."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        hits = [(at, -len(s), s) for s in self._stops if (at := self._held.find(s)) >= 0]
        if hits:
            at, _, self.matched = min(hits)
            return self._let_out(at)
        return self._let_out(len(self._held) - held_back(self._held, self._stops))

    def close(self) -> str:
        """The answer ended: what was held back was no stop sequence after all."""
        return "" if self.matched is not None else self._let_out(len(self._held))

    def _let_out(self, size: int) -> str:
        out = self._held[min(self._old, size) : size]
        self._old = max(0, self._old - size)
        self._held = self._held[size:]
        return out
