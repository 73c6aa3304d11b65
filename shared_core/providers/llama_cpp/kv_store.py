"""What the model has read before: saved states of its context, the least recently used dropped first. No llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["SavedState", "StateStore", "common_prefix"]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # the first `low` are equal; comparing slices is done in C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class SavedState:
    """The keys and values of some tokens."""

    __slots__ = ("data", "size", "tokens")

    def __init__(self, tokens: list[int], data: Any, size: int) -> None:
        self.tokens, self.data, self.size = tokens, data, size


class StateStore:
    """Saved states up to `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._states: list[SavedState] = []
        """The most recently used last."""

    def __len__(self) -> int:
        return len(self._states)

    def best(self, tokens: Sequence[int]) -> tuple[SavedState | None, int]:
        """The state that begins like `tokens` for longest, and for how long; it counts as used."""
        found, longest = None, 0
        for state in self._states:
            if (same := common_prefix(state.tokens, tokens)) > longest:
                found, longest = state, same
        if found is not None:
            self._states.remove(found)
            self._states.append(found)
        return found, longest

    def put(self, state: SavedState) -> None:
        """Keep a state. Those whose tokens it begins with are superseded."""
        for old in [s for s in self._states if state.tokens[: len(s.tokens)] == s.tokens]:
            self._drop(old)
        if state.size > self.limit:
            return
        while self.size + state.size > self.limit:
            self._drop(self._states[0])
        self._states.append(state)
        self.size += state.size

    def _drop(self, state: SavedState) -> None:
        self._states.remove(state)
        self.size -= state.size
