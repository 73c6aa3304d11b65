"""What is done in which order with a cache: look, join an identical request in flight, ask, keep; then last resorts.

`CacheFlow.steps` decides it once, as a generator: it yields what it needs (a look into the store, an answer to be had)
and is sent what came of it. It waits for nothing and calls nobody; `Cached` performs the steps, sync and async.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from shared_core._kept_books import KeptBooks, Show
from shared_core._readers import LOST, Unfit
from shared_core._shelf import Hit, Shelf
from shared_core.cache.decide import may_rescue, may_use_default
from shared_core.cache.entry import Kept
from shared_core.cache.flight import Flight, Flights
from shared_core.errors import FallbackError
from shared_core.routing.planner import Route

if TYPE_CHECKING:
    from shared_core._books import Books
    from shared_core._cache_keys import Asked, Keys

__all__ = ["Ask", "CacheFlow", "Default", "Follow", "Learn", "Look", "Report", "Steps"]


class Learn(NamedTuple):
    """Find out what tells these targets' answers from others': it may mean to read a file."""

    routes: Sequence[Route]
    model: str | None


class Look(NamedTuple):
    """Is there an answer of one of these targets? Report: a `Hit`, or None."""

    routes: Sequence[Route]
    stale: bool


class Ask(NamedTuple):
    """Ask the targets, as the leader of `flight` if there is one. Report: None when answered, else why not."""

    flight: Flight | None


class Follow(NamedTuple):
    """Read what another caller's request brings. Report: None when answered, `LOST`, or why not."""

    flight: Flight


class Default(NamedTuple):
    """Call the user's hook. Report: its answer, or None."""

    error: FallbackError


Step = Learn | Look | Show | Ask | Follow | Default
Report = Hit | BaseException | Kept | None
Steps = Generator[Step, Report, FallbackError | None]


class CacheFlow:
    """Decides for the requests of one router. `defaults` is whether its user has an answer for when all has failed."""

    def __init__(
        self, keys: Keys, shelf: Shelf, flights: Flights | None, kept_books: KeptBooks, books: Books, *, defaults: bool
    ) -> None:
        self._keys, self._shelf, self._flights, self._defaults = keys, shelf, flights, defaults
        self._kept_books, self._books = kept_books, books

    def steps(self, asked: Asked) -> Steps:
        """Returns None when the request is answered, else the error for its caller."""
        execution, plan = asked.execution, asked.plan
        execution.held = True  # a failure is told here, if it is one in the end
        flights = None if asked.base is None else self._flights
        looked = asked.seen >= 0  # a moment ago, in vain
        if asked.keeps:
            execution.cache = "miss" if asked.reads else "refresh"
            if new := self._keys.unknown(asked):
                yield Learn(new, asked.model)
                looked = False
        alone = counted = False
        while True:
            if asked.reads and not looked and (yield from self._look(asked, plan.routes)):
                return None
            looked = False
            if asked.keeps and not counted:
                counted = True
                self._shelf.count("misses" if asked.reads else "refreshed")
            failure: Report
            if flights is None:
                failure = yield Ask(None)
            else:
                flight, leads = flights.board(
                    self._keys.of_flight(asked, alone=alone), execution, whole=not execution.request.streaming
                )
                try:
                    # Somebody may have kept it between our look and now. Without this, a thousand at once were two.
                    unsure = leads and asked.reads and self._shelf.kept != asked.seen
                    if unsure and (yield from self._look(asked, plan.routes, flight=flight)):
                        return None
                    failure = (yield Ask(flight)) if leads else (yield Follow(flight))
                except BaseException:
                    if leads and not flight.begun:
                        flight.end(lost=True)
                    raise
                if failure is LOST or isinstance(failure, Unfit):
                    if self._kept_books.now() < execution.deadline:
                        alone = alone or failure is not LOST
                        continue
                    failure = self._kept_books.late(execution, "")
            if failure is None:
                return None
            if isinstance(failure, FallbackError):
                return (yield from self._last_resorts(asked, failure))
            assert isinstance(failure, BaseException)
            raise failure

    def _look(
        self, asked: Asked, routes: Sequence[Route], *, stale: bool = False, flight: Flight | None = None
    ) -> Generator[Step, Report, bool]:
        """Show what is kept, if there is anything. Who has joined `flight` meanwhile is then sent to look, too."""
        hit = yield Look(routes, stale)
        if hit is None:
            return False
        assert isinstance(hit, Hit)
        show = self._shelf.fitting(asked, hit)
        if show is None:
            return False
        if flight is not None:
            flight.end(lost=True)
        yield show
        return True

    def _last_resorts(self, asked: Asked, failure: FallbackError) -> Generator[Step, Report, FallbackError | None]:
        """A kept answer of anybody in the plan, past its time if that is allowed; then the user's own answer."""
        execution = asked.execution
        if asked.reads and may_rescue(failure) and (yield from self._look(asked, asked.plan.routes, stale=True)):
            return None
        if self._defaults and may_use_default(failure):
            kept = yield Default(failure)
            if isinstance(kept, Kept):
                yield Show(kept, None, None, "default", None)
                return None
        execution.held = False
        self._books.failed(execution, failure)
        return failure
