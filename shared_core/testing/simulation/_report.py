"""What came of a simulation: `SimulationReport`, one frozen value that prints, plots and compares."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from shared_core.resilience.health import percentile
from shared_core.testing.simulation._values import Happening
from shared_core.testing.simulation._vendor import Asked, Packet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Circuit", "SimCall", "SimPacket", "SimulationReport", "Slice"]

_SLICES = 60


class SimCall(NamedTuple):
    """One logical request, as its caller saw it. Times are virtual seconds."""

    number: int
    at: float
    ended: float | None
    outcome: str
    """'answered', 'failed', 'cancelled' or 'abandoned'."""
    served_by: str | None
    first_token: float | None
    packets: int
    error: str | None


class SimPacket(NamedTuple):
    """One request on the wire. Times are virtual seconds."""

    target: str
    request: int
    at: float
    ended: float | None
    outcome: str
    """'answered', the kind of error, or 'left' by its sender."""
    circuit: str
    """The state of the target's circuit when it was sent."""
    bill_nano: int
    """What the vendor bills for it, in nano-dollars."""


class Circuit(NamedTuple):
    """A change of a target's circuit, parking or account, at virtual second `at`."""

    at: float
    target: str
    state: str
    for_s: float | None


class Slice(NamedTuple):
    """What happened to the requests that came in from `at` on. Latencies are of the answered ones."""

    at: float
    requests: int
    answered: int
    failed: int
    served: Mapping[str, int]
    packets: Mapping[str, int]
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """Who was asked, who answered, how long it took and what it cost. Prints as a table; `plot()` draws it.

    Attributes:
        name: the strategy, or what the run was called.
        seed: run it again with this.
        seconds: how long requests came in.
        targets: names, in order of preference.
        scenario: what happened to them.
        calls: every logical request.
        packets: every request on the wire.
        circuits: every change of a circuit, in order.
        broken: promises that were not kept, in words; empty.
        ledger_nano: what the router's own ledger adds up to, in nano-dollars; None without a router.
    """

    name: str
    seed: int
    seconds: float
    targets: tuple[str, ...]
    scenario: tuple[Happening, ...] = field(repr=False)
    calls: tuple[SimCall, ...] = field(repr=False)
    packets: tuple[SimPacket, ...] = field(repr=False)
    circuits: tuple[Circuit, ...] = field(repr=False)
    broken: tuple[str, ...] = ()
    ledger_nano: int | None = None

    # ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def requests(self) -> int:
        """Logical requests."""
        return len(self.calls)

    @property
    def answered(self) -> int:
        """Of these, answered whole."""
        return sum(call.outcome == "answered" for call in self.calls)

    @property
    def failed(self) -> int:
        """Of these, that ended in an error."""
        return sum(call.outcome == "failed" for call in self.calls)

    @property
    def cancelled(self) -> int:
        """Of these, given up by their callers."""
        return self.requests - self.answered - self.failed

    @property
    def availability(self) -> float | None:
        """Answered over answered and failed; None of nothing."""
        ended = self.answered + self.failed
        return self.answered / ended if ended else None

    @property
    def sent(self) -> Mapping[str, int]:
        """Packets per target."""
        return self._per_target(packet.target for packet in self.packets)

    @property
    def served(self) -> Mapping[str, int]:
        """Answers per target."""
        return self._per_target(call.served_by for call in self.calls if call.outcome == "answered")

    @property
    def cost_usd(self) -> float:
        """What the vendors bill for all packets, in dollars."""
        return sum(packet.bill_nano for packet in self.packets) / 1e9

    def latency_s(self, share: float = 0.5, *, first_token: bool = False) -> float | None:
        """A percentile (`share` from 0 to 1) of the time to an answer, or to the first token of the streamed ones."""
        if first_token:
            return percentile([c.first_token - c.at for c in self.calls if c.first_token is not None], share)
        return percentile([c.ended - c.at for c in self.calls if c.outcome == "answered" and c.ended], share)

    def packets_to(self, target: str, start: float = 0.0, end: float | None = None) -> int:
        """Packets sent to `target` from `start` to `end`, in seconds."""
        until = float("inf") if end is None else end
        return sum(packet.target == target and start <= packet.at < until for packet in self.packets)

    def calls_from(self, start: float = 0.0, end: float | None = None) -> tuple[SimCall, ...]:
        """The logical requests that came in from `start` to `end`, in seconds."""
        until = float("inf") if end is None else end
        return tuple(call for call in self.calls if start <= call.at < until)

    def serves_again(self, target: str, after: float) -> float | None:
        """How many seconds after second `after` the first answer of `target` came; None if never."""
        times = [p.ended for p in self.packets if p.target == target and p.outcome == "answered"]
        return min((at - after for at in times if at is not None and at >= after), default=None)

    def slices(self, width_s: float | None = None) -> tuple[Slice, ...]:
        """The run in pieces of `width_s` seconds, a sixtieth of it when left out."""
        width = width_s or self.seconds / _SLICES
        count = max(1, round(self.seconds / width))
        calls: list[list[SimCall]] = [[] for _ in range(count)]
        packets: list[Counter[str]] = [Counter() for _ in range(count)]
        for call in self.calls:
            calls[min(count - 1, int(call.at / width))].append(call)
        for packet in self.packets:
            packets[min(count - 1, int(packet.at / width))][packet.target] += 1
        return tuple(self._slice(n * width, calls[n], packets[n]) for n in range(count))

    def _slice(self, at: float, calls: Sequence[SimCall], packets: Counter[str]) -> Slice:
        answered = [call for call in calls if call.outcome == "answered"]
        took = [call.ended - call.at for call in answered if call.ended is not None]
        served = Counter(call.served_by for call in answered)
        return Slice(
            at,
            len(calls),
            len(answered),
            sum(call.outcome == "failed" for call in calls),
            {name: served[name] for name in self.targets},
            {name: packets[name] for name in self.targets},
            percentile(took, 0.5),
            percentile(took, 0.95),
        )

    def _per_target(self, names: Any) -> Mapping[str, int]:
        count = Counter(names)
        return {name: count[name] for name in self.targets}

    @property
    def digest(self) -> str:
        """A fingerprint of everything that happened: equal for equal runs, to the last microsecond and packet."""
        whole = repr((self.name, self.seed, self.seconds, self.targets, self.calls, self.packets, self.circuits))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    # ── for people and programs ──────────────────────────────────────────────────────────────────────────────────────

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "name": self.name,
            "seed": self.seed,
            "seconds": self.seconds,
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "availability": self.availability,
            "p50_s": _rounded(self.latency_s(0.5)),
            "p95_s": _rounded(self.latency_s(0.95)),
            "p99_s": _rounded(self.latency_s(0.99)),
            "packets": dict(self.sent),
            "served": dict(self.served),
            "cost_usd": round(self.cost_usd, 6),
            "broken": list(self.broken),
            "digest": self.digest,
        }

    def _rows(self) -> list[tuple[str, str]]:
        share = self.availability
        rows = [
            ("requests", f"{self.requests:,}"),
            ("answered", f"{self.answered:,}"),
            ("failed", f"{self.failed:,}"),
            ("cancelled", f"{self.cancelled:,}"),
            ("availability", "–" if share is None else f"{share:.3%}"),
            ("answered after", " / ".join(_told(self.latency_s(s)) for s in (0.5, 0.95, 0.99)) + " (p50 / p95 / p99)"),
        ]
        if any(call.first_token is not None for call in self.calls):
            first = (_told(self.latency_s(s, first_token=True)) for s in (0.5, 0.95, 0.99))
            rows.append(("first token after", " / ".join(first)))
        rows += [
            (name, f"{self.sent[name]:,} packets, {self.served[name]:,} answers, {self._changes(name)}")
            for name in self.targets
        ]
        rows.append(("cost", f"${self.cost_usd:,.4f}"))
        if self.broken:
            rows.append(("BROKEN PROMISES", f"{len(self.broken)}; the first: {self.broken[0]}"))
        return rows

    def _changes(self, target: str) -> str:
        opened = sum(change.target == target and change.state == "open" for change in self.circuits)
        return f"circuit opened {opened} times" if opened else "circuit never opened"

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(head) for head, _ in rows)
        lines = [f"simulation of {self.seconds:g} s, {self.name}, seed {self.seed}"]
        return "\n".join(lines + [f"  {head.ljust(width)}  {text}" for head, text in rows])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(head)}</th><td>{escape(text)}</td></tr>" for head, text in self._rows())
        title = f"{self.seconds:g} simulated seconds: {escape(self.name)}, seed {self.seed}"
        return f"<table><caption>{title}</caption>{rows}</table>"

    def to_pandas(self) -> pd.DataFrame:
        """One row per logical request. Needs pandas."""
        import pandas as pd

        frame = pd.DataFrame(self.calls, columns=list(SimCall._fields))
        frame["took"] = frame["ended"] - frame["at"]
        return frame

    def plot(self) -> Figure:
        """Who served, how long it took, and what the circuits did, over time. Needs matplotlib."""
        from shared_core.testing.simulation._plot import draw

        return draw(self)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _told(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def reported(
    *,
    name: str,
    seed: int,
    seconds: float,
    targets: tuple[str, ...],
    scenario: tuple[Happening, ...],
    asked: Sequence[Asked],
    packets: Sequence[Packet],
    circuits: Sequence[Circuit],
    broken: Sequence[str],
    ledger_nano: int | None,
) -> SimulationReport:
    """The report of what was written down."""
    return SimulationReport(
        name,
        seed,
        seconds,
        targets,
        scenario,
        tuple(
            SimCall(
                one.number,
                one.at,
                one.ended,
                one.outcome,
                one.served_by,
                one.first_token,
                len(one.packets),
                one.error,
            )
            for one in asked
        ),
        tuple(
            SimPacket(one.target, one.request, one.at, one.ended, one.outcome, one.circuit, one.bill_nano)
            for one in packets
        ),
        tuple(circuits),
        tuple(broken),
        ledger_nano,
    )
