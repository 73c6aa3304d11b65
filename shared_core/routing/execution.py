"""The journal of one request: every attempt, refusal and seam, in order. The flow writes it, everybody else reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shared_core.chat.answer_tool import Unusual
from shared_core.chat.events import Usage
from shared_core.chat.quick import quickly
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ProviderError
from shared_core.routing.complexity import Judgement
from shared_core.routing.hedge import Hedged

__all__ = ["Attempt", "Execution", "Skip"]

Ended = Literal["running", "answered", "failed", "cancelled", "abandoned"]


@dataclass(slots=True)
class Attempt:
    """One try at one target. Times are seconds on the router's monotonic clock."""

    target: str
    provider: str
    model: str
    number: int
    """From 1, over the whole request."""
    started: float
    retry: bool = False
    seam: str | None = None
    """How a broken stream was continued here: 'exact', 'prefill' or 'instructed'."""
    reask: bool = False
    """Whether the target was shown an answer of its own that had not passed the request's check."""
    hedge: bool = False
    """Whether it was made beside another one that was slow to begin."""
    first_token: float | None = None
    """When its first content came; of a whole answer, when that came."""
    streamed: bool = True
    """Whether the answer was to come as a stream."""
    ended: float | None = None
    outcome: Ended = "running"
    error: BaseException | None = None
    usage: Usage | None = None
    cost_nano: int | None = None
    """Nano-dollars; None is unknown."""
    bound_nano: int | None = None
    """What an attempt of unknown cost can have cost at most, in nano-dollars."""
    response_id: str | None = None
    origin: Origin | None = None
    """The scope within which opaque blocks of this attempt's answer may be replayed."""
    notes: list[str] = field(default_factory=list)
    """What of the conversation did not travel to this target as it was, in words."""
    delivered: int = 0
    """Characters of this attempt that reached the caller."""
    capped_at: int | None = None
    """Output tokens it was limited to because a hard budget needs a limit and the request had none."""
    output_by: Unusual | None = None
    """How it was made to answer in a schema that its model has no means of its own for."""

    @property
    def duration_s(self) -> float | None:
        """From start to end."""
        return None if self.ended is None else self.ended - self.started

    @property
    def first_token_s(self) -> float | None:
        """From start to the first content."""
        return None if self.first_token is None else self.first_token - self.started

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for metadata, logs and tables."""
        facts: dict[str, Any] = {
            "target": self.target,
            "provider": self.provider,
            "model": self.model,
            "outcome": self.outcome,
            "duration_s": _rounded(self.duration_s),
            "first_token_s": _rounded(self.first_token_s),
            "cost_usd": None if self.cost_nano is None else self.cost_nano / 1e9,
        }
        if self.retry:
            facts["retry"] = True
        if self.reask:
            facts["reask"] = True
        if self.hedge:
            facts["hedge"] = True
        if self.seam:
            facts["continued_by"] = self.seam
        if self.output_by:
            facts["output_by"] = self.output_by
        if self.capped_at is not None:
            facts["capped_at"] = self.capped_at
        if self.notes:
            facts["history"] = list(self.notes)
        if self.usage is not None:
            facts["usage"] = {
                "input_tokens": self.usage.input_tokens,
                "output_tokens": self.usage.output_tokens,
                "estimated": self.usage.estimated,
            }
        error = self.error
        if error is not None:
            facts["error"] = _brief(error)
        if isinstance(error, ProviderError):
            facts["error_kind"] = str(error.kind)
            facts["status"] = error.status
            if error.retry_after_s is not None:
                facts["retry_after_s"] = error.retry_after_s
            if error.request_id:
                facts["request_id"] = error.request_id
        return facts


@dataclass(frozen=True, slots=True)
class Skip:
    """A target of the plan that was passed over, and why."""

    target: str
    reason: str
    retry_at: float | None = None


_skip = quickly(Skip)


@dataclass(slots=True)
class Execution:
    """One logical request from entry to answer. `deadline` is absolute on the router's clock."""

    id: str
    request: ChatRequest
    started: float
    deadline: float
    strategy: str = "priority"
    primary: str | None = None
    """The first target of the plan: serving from any other is a fallback."""
    excluded: tuple[tuple[str, str], ...] = ()
    attempts: list[Attempt] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    seams: list[int] = field(default_factory=list)
    """Where another target took over, in characters of the answer."""
    restarts: int = 0
    outcome: Ended = "running"
    ended: float | None = None
    waited_s: float = 0.0
    cache: str = "off"
    """What the router's cache had to do with it: 'miss', 'hit', 'refresh', 'joined', 'stale', 'default', …"""
    held: bool = False
    """Whether a failure is not the end of it: a kept answer or a default one may stand in."""
    complexity: Judgement | None = None
    """How complex the request was taken to be; None where nobody asked."""
    hedged: Hedged | None = None
    """A second request that was made beside a slow one."""
    probe: bool = False
    """It is a health check: nobody is told of it as of a request."""

    def begin(self, target: str, provider: str, model: str, now: float, *, retry: bool, seam: str | None) -> Attempt:
        """Open the next attempt."""
        attempt = Attempt(target, provider, model, len(self.attempts) + 1, now, retry, seam)
        attempt.streamed = self.request.streaming
        self.attempts.append(attempt)
        return attempt

    def skip(self, target: str, reason: str, retry_at: float | None = None) -> None:
        """Note a target that was passed over."""
        self.skips.append(_skip(target, reason, retry_at))

    @property
    def errors(self) -> tuple[Exception, ...]:
        """Every failed attempt's error, in order."""
        return tuple(a.error for a in self.attempts if isinstance(a.error, Exception))

    @property
    def served_by(self) -> Attempt | None:
        """The attempt that finished the answer."""
        for attempt in reversed(self.attempts):  # not always the last one: somebody may have been asked beside it
            if attempt.outcome == "answered":
                return attempt
        return None

    @property
    def recovered(self) -> bool:
        """Whether another target stepped in while the request was under way: news, which an open circuit is not."""
        return len(self.attempts) > 1 and self.used_fallback

    @property
    def used_fallback(self) -> bool:
        """Whether anybody but the first target of the plan had a part in the answer."""
        return self._fell_over(self.served_by)

    def _fell_over(self, served: Attempt | None) -> bool:
        return served is not None and bool(served.target != self.primary or self.seams or self.restarts)

    @property
    def cost_nano(self) -> int | None:
        """What attempts of known cost add up to, in nano-dollars; None when the answer itself has no price."""
        return self._cost(self.served_by)

    def _cost(self, served: Attempt | None) -> int | None:
        if served is not None:
            if served.cost_nano is None:
                return None
            if len(self.attempts) == 1:
                return served.cost_nano
        return sum([a.cost_nano or 0 for a in self.attempts])

    def metadata(self) -> Mapping[str, Any]:
        """What the answer carries as `fallback` metadata."""
        served = self.served_by
        cost = self._cost(served)
        facts: dict[str, Any] = {
            "id": self.id,
            "target": served.target if served else None,
            "provider": served.provider if served else None,
            "model": served.model if served else None,
            "used_fallback": self._fell_over(served),
            "continued": bool(self.seams),
            "strategy": self.strategy,
            "attempts": [a.as_dict() for a in self.attempts],
            "cost_usd": None if cost is None else cost / 1e9,
            "duration_s": _rounded((self.ended or self.started) - self.started),
            "cache": self.cache,
        }
        if self.request.chain is not None:
            facts["chain"] = self.request.chain
        if self.complexity is not None:
            facts["complexity"] = self.complexity.as_dict()
        if self.hedged is not None:
            facts["hedged"] = self.hedged.as_dict()
        uncertain = sum([a.bound_nano or 0 for a in self.attempts])
        if uncertain and cost is not None:
            facts["cost_at_most_usd"] = (cost + uncertain) / 1e9
        if self.seams:
            facts["continued_at"] = list(self.seams)
        if self.restarts:
            facts["restarted"] = self.restarts
        if self.waited_s:
            facts["waited_s"] = _rounded(self.waited_s)
        if self.skips:
            facts["skipped"] = [{"target": s.target, "reason": s.reason} for s in self.skips]
        if self.excluded:
            facts["excluded"] = [{"target": t, "reason": r} for t, r in self.excluded]
        return facts

    def __repr__(self) -> str:
        tries = ", ".join(f"{a.target} {a.outcome}" for a in self.attempts)
        return f"Execution({self.id}, {self.outcome}: {tries or 'no attempts'})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{a.number}</td><td>{escape(a.target)}</td><td>{escape(a.outcome)}</td>"
            f"<td>{_rounded(a.duration_s)}</td><td>{escape(_brief(a.error)) if a.error else ''}</td></tr>"
            for a in self.attempts
        ) + "".join(
            f"<tr><td></td><td>{escape(t)}</td><td>passed over</td><td></td><td>{escape(r)}</td></tr>"
            for t, r in [*((s.target, s.reason) for s in self.skips), *self.excluded]
        )
        head = "<tr><th>#</th><th>target</th><th>outcome</th><th>seconds</th><th>why it was left</th></tr>"
        return f"<table><caption>request {escape(self.id)}: {escape(self.outcome)}</caption>{head}{rows}</table>"


def _brief(error: BaseException) -> str:
    text = str(error) if isinstance(error, ProviderError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= 500 else text[:499] + "…"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
