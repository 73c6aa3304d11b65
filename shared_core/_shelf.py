"""What is kept of a router's answers: found for a request that it may be served to, and put there when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from shared_core._kept_books import Show
from shared_core.cache.decide import may_keep, servable
from shared_core.cache.entry import Kept, events_of_kept, pieces_of
from shared_core.cache.response_cache import Counted, Found, ResponseCache
from shared_core.chat.events import ChatEvent, Finished, TextDelta, collect
from shared_core.routing.planner import Route

if TYPE_CHECKING:
    from shared_core._cache_keys import Asked, Keys
    from shared_core._clock import Clock

__all__ = ["Hit", "Shelf"]


class Hit(NamedTuple):
    """What was found, and the target that has said it."""

    found: Found
    route: Route


class Shelf:
    """One router's place in a cache, or nothing at all: then it finds and keeps nothing."""

    def __init__(self, cache: ResponseCache | None, keys: Keys, clock: Clock) -> None:
        self._cache, self._keys, self._now = cache, keys, clock.monotonic
        self.instant = True
        """Whether a look takes microseconds, so that an event loop may do it."""
        self._pace, self._chunk = 0.0, None
        self._when: Callable[[], float] = clock.monotonic
        self.count: Callable[[Counted], object] = _not_counted
        """One more of them."""
        if cache is not None:
            self.count = cache.count
            self.instant, self._pace, self._chunk = cache.store.instant, cache.pace, cache.chunk
            self._when = clock.time if cache.store.persistent else clock.monotonic

    @property
    def kept(self) -> int:
        """How many answers have been kept: as long as that stays, so does what there is not."""
        return 0 if self._cache is None else self._cache.kept

    def find(self, asked: Asked, routes: Sequence[Route], stale: bool) -> Hit | None:
        """What is kept of the targets that would be asked now; with `stale`, of any of them and also past its time."""
        cache = self._cache
        assert cache is not None
        asked.seen = cache.kept
        # Whether a target refuses is asked only once it turns out that nothing is kept of it.
        for route in routes if stale else servable(routes, self._refuses):
            key = self._keys.of(asked, route)
            if key is not None and (found := cache.find((key,), self._when(), stale=stale)) is not None:
                return Hit(found, route)
        return None

    def _refuses(self, route: Route) -> bool:
        return route.gate.peek(self._now()) is not None

    @staticmethod
    def fitting(asked: Asked, hit: Hit) -> Show | None:
        """What is to be shown of it; None if it does not pass the check of this request: it has passed another's."""
        found, route = hit
        check = asked.execution.request.check
        if check is not None and check(found.kept.answer(route.name, {})) is not None:
            return None
        return Show(found.kept, route.name, route.provider.name, "stale" if found.stale else "hit", found.age_s)

    def keep(self, asked: Asked, events: Sequence[ChatEvent]) -> None:
        """Keep the answer that these events make, if it may be kept."""
        if (keep := self.worth(asked, events)) is not None:
            keep()

    def worth(self, asked: Asked, events: Sequence[ChatEvent]) -> Callable[[], object] | None:
        """What keeps the answer that these events make, if it may be kept."""
        cache = self._cache
        assert cache is not None
        last, execution = events[-1], asked.execution
        assert isinstance(last, Finished)
        served = execution.served_by
        for route in asked.plan.routes:
            if route.name == last.target:
                break
        else:
            return None
        if served is None:
            return None
        answer = collect(events)
        whole = may_keep(
            last,
            calls=len(answer.tool_calls),
            seams=len(execution.seams),
            said=bool(answer.text),
            tool_calls=cache.tool_calls,
        )
        if whole and last.native is not None:
            says_all = getattr(route.provider, "says_all", None)  # an optional part of the protocol
            whole = says_all is not None and says_all(last.native)
        key = self._keys.of(asked, route) if whole else None
        if key is None:
            cache.count("unkept")
            return None
        return partial(cache.keep, key, Kept.of(answer, pieces_of(events), served.cost_nano), self._when())

    def replay(self, asked: Asked, show: Show, last: Finished) -> Iterator[tuple[ChatEvent, float]]:
        """The events of an answer that is there, up to `last`, each with the seconds to wait before it."""
        execution = asked.execution
        streaming = execution.request.streaming
        pace = self._pace if streaming and show.status != "default" else 0.0
        begun = False
        for event in events_of_kept(show.kept, last, chunk=self._chunk, whole=not streaming):
            if pace and type(event) is TextDelta:
                late = self._now() + pace >= execution.deadline
                yield event, 0.0 if late or not begun else pace
                begun = True
            else:
                yield event, 0.0


def _not_counted(what: Counted) -> None:
    """Where there is no cache there are no figures of one."""
