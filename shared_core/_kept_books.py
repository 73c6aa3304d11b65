"""What is written down and told of an answer that nobody was asked for: journal, ledger, statistics, events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shared_core._clock import Clock
from shared_core.cache.entry import Kept
from shared_core.cache.response_cache import ResponseCache
from shared_core.chat.events import Finished, Usage
from shared_core.chat.quick import quickly
from shared_core.errors import DeadlineExceeded, ErrorKind, FallbackError, ProviderError, StreamBroken
from shared_core.ledger.entry import EntryStatus, LedgerEntry, Purpose
from shared_core.routing.execution import Execution
from shared_core.telemetry.events import CacheHit, RequestSucceeded

if TYPE_CHECKING:
    from shared_core._books import Books

__all__ = ["CacheStatus", "KeptBooks", "Show"]

_entry = quickly(LedgerEntry)
CacheStatus = Literal["hit", "joined", "stale", "default"]
"""How an answer came about that nobody was asked for."""


class Show(NamedTuple):
    """Hand over an answer that is there. The end."""

    kept: Kept
    target: str | None
    provider: str | None
    status: CacheStatus
    age_s: float | None


class KeptBooks:
    """Keeps the books of one router's cache, beside those of its calls."""

    def __init__(self, cache: ResponseCache | None, books: Books, clock: Clock) -> None:
        self.cache = cache
        self._books, self._clock = books, clock
        self.now = clock.monotonic

    def enter(self, execution: Execution, step: Show) -> tuple[str | None, dict[str, Any]]:
        """Journal, statistics, ledger and events of an answer that nobody was asked for; its target and metadata."""
        kept, status = step.kept, step.status
        execution.outcome = "answered"
        execution.cache = status
        execution.ended = now = self.now()
        books, at = self._books, self._clock.time()
        books.last = execution
        saved = kept.cost_nano
        if self.cache is not None:
            if status == "default":
                self.cache.count("defaults")
            else:
                self.cache.saved("hits" if status == "hit" else "joined" if status == "joined" else "stale", saved, at)
        if status != "default":
            self._record(execution, step, at)
        saved_usd = None if saved is None or status == "default" else saved / 1e9
        used_fallback = step.target != execution.primary
        facts: dict[str, Any] = {}
        told = books.events.active
        if self._books.metadata or told:
            facts = dict(execution.metadata())
            facts["target"], facts["provider"], facts["model"] = step.target, step.provider, kept.model
            facts["used_fallback"], facts["cache"] = used_fallback, status
            if status != "default":
                facts["saved_usd"] = saved_usd
                facts["usage_cached"] = True
            if step.age_s is not None:
                facts["age_s"] = round(step.age_s, 6)
        if told:
            books.events.emit(CacheHit(execution.id, at, step.target, status, step.age_s, saved_usd))
            books.events.emit(
                RequestSucceeded(
                    execution.id,
                    at,
                    step.target or "default",
                    len(execution.attempts),
                    now - execution.started,
                    used_fallback,
                    facts["cost_usd"],
                )
            )
        return step.target, facts if self._books.metadata else {}

    def _record(self, execution: Execution, step: Show, at: float) -> None:
        """The ledger's row: nothing was sent, it cost nothing. `bound_nano` is what the answer cost when given."""
        request, kept = execution.request, step.kept
        self._books.ledger.record(
            _entry(
                execution.id,
                0,
                step.target or "",
                step.provider or "",
                kept.model or "",
                at,
                "answered",
                EntryStatus.POSTED,
                kept.usage,
                0,
                kept.cost_nano,
                self.now() - execution.started,
                user=request.user,
                tags=request.tags,
                chain=request.chain,
                purpose=Purpose.CACHE,
                response_id=kept.response_id,
            )
        )

    def joined(self, execution: Execution, last: Finished, leader: Execution) -> Finished:
        """A follower's last event: the leader's answer, under its own name and at no cost."""
        served = leader.served_by
        kept = Kept(
            "",
            usage=last.usage or Usage(),
            response_id=last.response_id,
            model=last.model,
            cost_nano=served.cost_nano if served is not None else None,
        )
        target, facts = self.enter(execution, Show(kept, last.target, last.provider, "joined", None))
        if facts:
            facts["joined"] = leader.id
            facts["continued"] = bool(leader.seams)
            facts["used_fallback"] = leader.used_fallback
        return replace(last, target=target, fallback=facts)

    def late(self, execution: Execution, delivered: str) -> FallbackError:
        """The error of a follower whose own deadline has come."""
        execution.ended = self.now()
        execution.outcome = "failed"
        total = execution.deadline - execution.started
        message = f"no answer within {total:g} s (waiting for an identical request that is in flight)"
        cause = ProviderError.of(ErrorKind.TIMEOUT, "the identical request in flight has not been answered in time")
        cause.code = "deadline"
        failed = DeadlineExceeded(message, [cause], fallback=execution.metadata())
        failed.__cause__ = cause
        if not delivered:
            return failed
        broken = StreamBroken(
            f"the answer broke off after {len(delivered)} characters\n{message}",
            partial=delivered,
            usage=None,
            fallback=execution.metadata(),
        )
        broken.__cause__ = failed
        return broken

    def left(self, execution: Execution, how: str) -> None:
        """A follower has gone."""
        error: BaseException = GeneratorExit() if how == "abandoned" else asyncio.CancelledError()
        self._books.interrupted(execution, None, error)
