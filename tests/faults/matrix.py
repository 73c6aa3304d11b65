"""The fault matrix: every fault x vendor x colour x shape as data, and what runs a cell over real SDKs and sockets.

A cell is one persistently failing target. It is run alone, and beside a healthy target on another wire, which answers
in as many manners as an interrupted answer can be taken over in. `run_cell` says what was not as `oracle` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from shared_core import (
    AllTargetsFailed,
    Capabilities,
    ChatRequest,
    Continued,
    ErrorKind,
    Finished,
    ProviderError,
    RetryPolicy,
    Router,
    StreamBroken,
    Target,
    TextDelta,
    Timeouts,
    ToolSpec,
    user,
)
from shared_core.ledger.entry import EntryStatus
from shared_core.providers import build, transport
from shared_core.testing import CANONICAL, FAULTS, Answer, FaultServer
from tests.faults import oracle

T = TypeVar("T")
Colour = Literal["sync", "async"]
Shape = Literal["whole", "streamed"]
Manner = Literal["repeats", "continues", "overlaps"]
"""How the second target takes over: says everything again, says only the rest, or begins with the last two words."""

SHORT_S = 0.12
"""The limit that a silent target runs into."""
PATIENT_S = 0.8
"""The same where the machine was too busy for that."""
TOTAL_S = 8.0
"""The deadline of every call."""
IMPATIENT_S = 0.9
"""The deadline where the server asks for a longer wait than that and nobody else is left."""
MAX_WAIT_S = 0.2
RETRY = RetryPolicy(base_s=0, overloaded_base_s=0, max_wait_s=MAX_WAIT_S)


@dataclass(frozen=True)
class Vendor:
    """One SDK, and the wire and model it is met with."""

    name: str
    wire: Literal["openai", "anthropic", "google"]
    model: str
    reserve: str
    """Another model of it, for when it is the healthy second."""
    tells_usage: bool = True
    """Whether its streams are asked to say what they used: Mistral refuses the question."""


VENDORS = {
    vendor.name: vendor
    for vendor in (
        Vendor("openai", "openai", "gpt-4o-mini", "gpt-4.1-mini"),
        Vendor("anthropic", "anthropic", "claude-sonnet-4-5", "claude-haiku-4-5"),
        Vendor("google", "google", "gemini-2.5-flash", "gemini-2.5-pro"),
        Vendor("google-legacy", "google", "gemini-2.0-flash", "gemini-2.0-pro"),
        Vendor("mistral", "openai", "mistral-small", "mistral-large", tells_usage=False),
        Vendor("ollama", "openai", "qwen3", "llama3"),
        Vendor("openai-compatible", "openai", "own-model", "own-other"),
    )
}
MAIN = ("openai", "anthropic", "google")
COMPATIBLE = ("mistral", "ollama", "openai-compatible")
SECOND = {"openai": "anthropic", "anthropic": "google", "google": "openai"}
"""Which vendor stands behind a failing one, by wire."""

SAMPLE = (
    "no-response", "reset-before-headers", "refused", "billing", "context-overflow", "unauthorized", "rate-limit",
    "rate-limit:short", "overloaded", "server-error", "bad-gateway", "html-200", "content-filter", "usage-missing",
    "cut", "cut-eof", "stall", "missing-terminal", "malformed-chunk", "overload-later",
)  # fmt: skip
"""What the OpenAI-compatible rows are put through: they share OpenAI's provider."""


@dataclass(frozen=True)
class Cell:
    """One fault at one vendor, met in one way."""

    fault: str
    vendor: str
    colour: Colour
    shape: Shape

    @property
    def id(self) -> str:
        return f"{self.fault}-{self.vendor}-{self.colour}-{self.shape}"

    @property
    def line(self) -> oracle.Line:
        return oracle.line(self.fault, VENDORS[self.vendor].wire, self.vendor)

    @property
    def kind(self) -> ErrorKind | None:
        """The kind of error that each attempt must end with."""
        return self.line.streamed if self.shape == "streamed" else self.line.whole

    @property
    def committed(self) -> bool:
        """Whether words have reached the caller when it strikes."""
        return self.shape == "streamed" and self.line.words > 0


def cells() -> list[Cell]:
    """Every cell that exists: a fault is left out where its table says that it cannot befall that wire or shape."""
    found = []
    faces = list(itertools.product(("sync", "async"), ("whole", "streamed")))
    for fault, (vendor, taken) in itertools.product(
        oracle.ORACLE,
        [
            *((VENDORS[name], faces) for name in MAIN),
            (VENDORS["google-legacy"], faces[:2]),  # its SDK is sync; async is the same call in a thread
            *((VENDORS[name], faces[::3]) for name in COMPATIBLE),  # each face once: they share OpenAI's provider
        ],
    ):
        row = FAULTS[oracle.kind_name(fault)]
        if vendor.wire not in oracle.ONLY.get(fault, row.wires) or (vendor.name in COMPATIBLE and fault not in SAMPLE):
            continue
        for colour, shape in taken:
            possible = row.streamed if shape == "streamed" else row.whole and fault != "cut:late"
            if possible:
                found.append(Cell(fault, vendor.name, colour, shape))  # type: ignore[arg-type]  # mypy widens the literals
    return found


KNOWN: Mapping[tuple[str, str, Shape], str] = {}
"""Cells (fault, vendor, shape) that are known not to hold, and why: expected to fail in the tests, and counted as
mismatches in the evidence."""


def known_defect(cell: Cell) -> str | None:
    """Why this cell is known not to hold, if so."""
    return KNOWN.get((cell.fault, cell.vendor, cell.shape))


@dataclass
class Got:
    """What a caller got from one call."""

    text: str = ""
    finish: str | None = None
    calls: int = 0
    error: BaseException | None = None
    events: list[str] = field(default_factory=list)
    took_s: float = 0.0


@dataclass(frozen=True)
class CellResult:
    """What became of one cell: nothing in `mismatches` when all is as the oracle has it."""

    cell: Cell
    calls: int
    """Calls made: alone, and one per manner in which the second target takes over."""
    requests: int
    """Requests the failing target got in all of them."""
    mismatches: tuple[str, ...]
    took_s: float


class Bench:
    """A fault server, one provider per vendor, and one event loop. Use it in `with`."""

    def __init__(self, *, tls: bool = False) -> None:
        self.tls = tls
        self.short_s = SHORT_S
        self.server = FaultServer(tls=tls)
        self._loop: asyncio.Runner
        self._ready: dict[tuple[str, str], Any] = {}
        self._trusted = ""

    def __enter__(self) -> Self:
        self.server.start()
        self._trust()
        self._loop = asyncio.Runner()
        return self

    def _trust(self) -> None:
        """Let the SDKs trust the server's own authority, those built on httpx and the one built on requests."""
        for name in ("httpx", "httpx2"):
            transport.tls_context(import_module(name)).load_verify_locations(cadata=self.server.ca_pem)
        self._trusted = os.environ.get("REQUESTS_CA_BUNDLE", "")
        os.environ["REQUESTS_CA_BUNDLE"] = self.server.ca_file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for provider in self._ready.values():
            self.close(provider)
        os.environ.pop("REQUESTS_CA_BUNDLE")
        if self._trusted:
            os.environ["REQUESTS_CA_BUNDLE"] = self._trusted
        self._loop.close()
        self.server.stop()

    def provider(self, vendor: Vendor, model: str) -> Any:
        """The vendor's provider on this server, shared by all cells."""
        key = (vendor.name, model)
        if key not in self._ready:
            self._ready[key] = self.fresh(vendor, model, self.server.url_for(vendor.wire))
        return self._ready[key]

    def warm(self) -> Self:
        """One good call per vendor and colour: what is loaded at the first call is not what is measured."""
        for vendor in VENDORS.values():
            self.server.script(vendor.model, "ok")
            router = router_of([Target(provider=self.provider(vendor, vendor.model), name="first")])
            for colour in ("sync", "async"):
                assert self.call(router, ChatRequest((user("Hello"),)), colour, "whole").text == CANONICAL  # type: ignore[arg-type]  # mypy widens the literals
        return self

    def fresh(self, vendor: Vendor, model: str, url: str) -> Any:
        """A provider with connections of its own, its clients built: that may take longer than a short limit."""
        provider: Any = build(Target(f"{vendor.name}:{model}", base_url=url, api_key="sk-matrix-0000000000"))
        provider.load()
        if vendor.name != "google-legacy":  # it has no async client

            async def make() -> None:
                provider._clients.on_loop()

            self.run(make())
        return provider

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the bench's own event loop."""
        return self._loop.run(main)

    def close(self, provider: Any) -> None:
        """Free a provider's sockets, on the loop they belong to too."""
        self.run(provider.aclose())

    def call(self, router: Router, request: ChatRequest, colour: Colour, shape: Shape) -> Got:
        """One call through one of the router's four faces."""
        got = Got()
        begun = time.monotonic()
        try:
            if colour == "sync":
                for event in self._events(router, request, shape):
                    self._take(got, event)
            else:
                self.run(self._acall(router, request, shape, got))
        except Exception as error:
            got.error = error
        got.took_s = time.monotonic() - begun
        return got

    @staticmethod
    def _events(router: Router, request: ChatRequest, shape: Shape) -> Iterator[Any]:
        if shape == "streamed":
            yield from router.stream(request)
        else:
            yield router.invoke(request)

    async def _acall(self, router: Router, request: ChatRequest, shape: Shape, got: Got) -> None:
        if shape == "streamed":
            async for event in router.astream(request):
                self._take(got, event)
        else:
            self._take(got, await router.ainvoke(request))

    @staticmethod
    def _take(got: Got, event: Any) -> None:
        if hasattr(event, "finish_reason"):
            got.text, got.finish, got.calls = event.text, event.finish_reason, len(event.tool_calls)
            return
        got.events.append(type(event).__name__)
        match event:
            case TextDelta():
                got.text += event.text
            case Finished():
                got.finish = event.reason
            case _ if type(event).__name__ == "ToolCall":
                got.calls += 1
            case _:
                pass


# ── one cell ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_LOOKUP = ToolSpec("lookup", "Look something up", {"type": "object", "properties": {"query": {"type": "string"}}})
_BIG = {"never-read": 4_500_000, "reset-mid-upload": 1_000_000, "slow-read": 1_000_000}
"""Characters of the prompt where the upload is what fails: more than any socket buffers."""


def request_of(cell: Cell) -> ChatRequest:
    """What is asked."""
    text = "When does the café open? " + "x" * _BIG.get(cell.fault, 0)
    return ChatRequest((user(text),), tools=(_LOOKUP,) if cell.fault == "cut-tool" else ())


CONNECTING = frozenset({"black-hole", "dns-slow", "tls-stall"})
"""Silent faults that end with the limit on connecting."""


def timeouts_of(cell: Cell, short_s: float = SHORT_S) -> Timeouts:
    """Short for the limit that a silent fault runs into, generous for everything else."""
    long = Timeouts(connect=5, first_token=5, reasoning_first_token=5, idle=5, attempt=5, total=TOTAL_S)
    if cell.fault not in oracle.SILENT:
        return long
    if cell.fault in CONNECTING and cell.kind is ErrorKind.CONNECT:
        return replace(long, connect=short_s)
    if cell.committed:
        return replace(long, idle=short_s)
    # Its request takes a while to write; and the second target keeps its share of the deadline.
    limit = min(2.0, 5 * short_s) if cell.fault == "never-read" else short_s
    return replace(long, first_token=limit, reasoning_first_token=limit, attempt=limit)


def run_cell(cell: Cell, bench: Bench) -> CellResult:
    """Run a cell alone and beside a healthy target, and compare with the oracle.

    What is silent is run again with a longer limit before it counts as wrong: a busy machine may not have got the
    request on its way within the short one.
    """
    result = _run_cell(cell, bench)
    if result.mismatches and cell.fault in oracle.SILENT:
        bench.short_s = PATIENT_S
        try:
            return _run_cell(cell, bench)
        finally:
            bench.short_s = SHORT_S
    return result


def _run_cell(cell: Cell, bench: Bench) -> CellResult:
    begun = time.monotonic()
    if cell.fault == "stale-keep-alive":
        calls, requests, wrong = 1, 2, _stale(cell, bench)
    elif cell.fault == "dns-flap":
        calls, requests, wrong = 1, 1, _flap(cell, bench)
    else:
        requests, wrong = _alone(cell, bench)
        calls = 1
        for manner in _manners(cell):
            more, found = _beside(cell, bench, manner)
            requests += more
            wrong += [f"beside a second that {manner}: {text}" for text in found]
            calls += 1
    return CellResult(cell, calls, requests, tuple(wrong), time.monotonic() - begun)


def _manners(cell: Cell) -> Sequence[Manner]:
    if not cell.committed:
        return ("repeats",)
    wire = SECOND[VENDORS[cell.vendor].wire]
    # A prefilled model goes on by itself; only one that is told to continue begins with the last words.
    return ("repeats", "continues") if wire == "anthropic" else ("repeats", "continues", "overlaps")


def _answer(manner: Manner) -> Answer:
    if manner == "repeats":
        return Answer(repeat_whole=True)
    return Answer(continue_from=True, overlap_words=2 if manner == "overlaps" else 0)


class _Sick:
    """The failing target of one call, wherever its fault is to be put, and what it saw."""

    def __init__(self, cell: Cell, bench: Bench) -> None:
        self._cell, self._bench = cell, bench
        self._own: FaultServer | None = None
        vendor = VENDORS[cell.vendor]
        place = FAULTS[oracle.kind_name(cell.fault)].place
        self._place = place
        if place == "request":
            self.provider = bench.provider(vendor, vendor.model)
            bench.server.script(vendor.model, oracle.step_of(cell.fault))
        else:
            # The server is shared with the healthy target, so what befalls connections gets a server of its own.
            tls = bench.tls or FAULTS[oracle.kind_name(cell.fault)].tls
            self._own = FaultServer(tls=tls).start()
            if place == "accept":
                self._own.script_accept(oracle.step_of(cell.fault), loop_last=True)
                url = self._own.url_for(vendor.wire)
            else:
                url = getattr(self._own, f"{cell.fault.replace('-', '_')}_url")(vendor.wire)
            self.provider = bench.fresh(vendor, vendor.model, url)

    def target(self) -> Target:
        known: Capabilities = self.provider.capabilities
        # The second's window is larger, which is what an overflow may fall over to; elsewhere it is unknown.
        window = 1_000 if self._cell.fault == "context-overflow" else None
        return Target(
            provider=self.provider,
            name="first",
            capabilities=replace(known, context_window=window),
            timeouts=timeouts_of(self._cell, self._bench.short_s),
        )

    def packets(self) -> int | None:
        """Requests (or connections, where no request can arrive) at the server; None where nothing listens."""
        if self._place == "request":
            return self._bench.server.count(VENDORS[self._cell.vendor].model)
        assert self._own is not None
        return self._own.connections if self._place == "accept" else None

    def arrived(self) -> int:
        """Requests at the server of its own."""
        assert self._own is not None
        return self._own.count()

    def settled(self, attempts: int) -> int | None:
        """`packets()`, once the server has had time to accept or read what its kernel has."""
        with contextlib.suppress(TimeoutError):  # then the figure says so
            if self._place == "accept" and self._own is not None:
                self._own.wait_for(lambda server: server.connections >= attempts)
            elif self._place == "request":
                self._bench.server.wait_for(lambda _: (self.packets() or 0) >= attempts)
        return self.packets()

    def close(self) -> None:
        if self._own is not None:
            self._bench.close(self.provider)
            self._own.stop()


def router_of(targets: Sequence[Target], total_s: float = TOTAL_S) -> Router:
    """A router whose retries are quick and whose limits are generous."""
    long = Timeouts(first_token=TOTAL_S, reasoning_first_token=TOTAL_S, idle=TOTAL_S, attempt=TOTAL_S, total=total_s)
    return Router(targets, retry=RETRY, timeouts=long, seed=1)


def _alone(cell: Cell, bench: Bench) -> tuple[int, list[str]]:
    bench.server.clear()
    sick = _Sick(cell, bench)
    try:
        total_s = IMPATIENT_S if cell.line.wait == "long" else TOTAL_S
        router = router_of([sick.target()], total_s)
        got = bench.call(router, request_of(cell), cell.colour, cell.shape)
        wrong = _judge_events(cell, got)
        expected = 1
        if cell.kind is None:
            wrong += _judge_answer(cell, got, cell.line.text, cell.line.finish)
        else:
            effect = effect_of(cell)
            expected = _tries(cell, router, effect.alone)
            wrong += _judge_failure(cell, router, got, expected)
        wrong += _judge_packets(cell, router, sick, expected) + _judge_books(cell, router)
        wrong += _judge_wait(cell, router)
        return sick.packets() or 0, [f"alone: {text}" for text in wrong + _judge_time(got, total_s)]
    finally:
        sick.close()


def _beside(cell: Cell, bench: Bench, manner: Manner) -> tuple[int, list[str]]:
    bench.server.clear()
    vendor = VENDORS[SECOND[VENDORS[cell.vendor].wire]]
    healthy = bench.provider(vendor, vendor.reserve)
    bench.server.script(vendor.reserve, _answer(manner))
    sick = _Sick(cell, bench)
    try:
        known: Capabilities = healthy.capabilities
        second = Target(provider=healthy, name="second", capabilities=replace(known, context_window=None))
        router = router_of([sick.target(), second])
        got = bench.call(router, request_of(cell), cell.colour, cell.shape)
        wrong = _judge_events(cell, got)
        asked = bench.server.count(vendor.reserve)
        expected = 1
        if cell.kind is None:
            wrong += _judge_answer(cell, got, cell.line.text, cell.line.finish)
            wrong += _same("requests to the second", asked, 0)
        else:
            effect = effect_of(cell)
            expected = _tries(cell, router, effect.beside)
            wrong += _same("requests to the second", asked, int(effect.second))
            if effect.second:
                wrong += _judge_answer(cell, got, CANONICAL, "stop")
                wrong += _same("Continued events", got.events.count("Continued"), int(cell.committed))
                wrong += _judge_attempts(cell, router)
            else:
                wrong += _judge_failure(cell, router, got, expected)
        wrong += _judge_packets(cell, router, sick, expected) + _judge_books(cell, router)
        return sick.packets() or 0, wrong + _judge_time(got, TOTAL_S)
    finally:
        sick.close()


def _stale(cell: Cell, bench: Bench) -> list[str]:
    """The connection of the answer before is reset when it is used again: one free retry, and nobody notices."""
    bench.server.clear()
    vendor = VENDORS[cell.vendor]
    provider = bench.fresh(vendor, vendor.model, bench.server.url_for(vendor.wire))
    bench.server.script(vendor.model, ["stale-keep-alive", "ok"])
    try:
        router = router_of([Target(provider=provider, name="first")])
        wrong = []
        for _ in range(2):
            got = bench.call(router, request_of(cell), cell.colour, cell.shape)
            wrong += _judge_answer(cell, got, CANONICAL, "stop")
        wrong += _same("requests that arrived", bench.server.count(vendor.model), 2)
        attempts = router.last.attempts if router.last else []
        # "stale keep-alive reset before any response byte, request sent: transient, R 1"
        kinds = [a.error.kind if isinstance(a.error, ProviderError) else None for a in attempts]
        # openai leaves a stream at `[DONE]`, before its connection is free: that one is never used again.
        if len(kinds) == 1 and len({seen.connection for seen in bench.server.requests}) == 2:
            return wrong + _same("attempts", kinds, [None])
        return wrong + _same("attempts", kinds, [ErrorKind.TRANSIENT, None])
    finally:
        bench.close(provider)


def _flap(cell: Cell, bench: Bench) -> list[str]:
    """The first look-up fails and the second does not: one retry, and nobody notices but the journal."""
    sick = _Sick(cell, bench)
    try:
        router = router_of([sick.target()])
        got = bench.call(router, request_of(cell), cell.colour, cell.shape)
        wrong = _judge_answer(cell, got, CANONICAL, "stop")
        attempts = router.last.attempts if router.last else []
        kinds = [a.error.kind if isinstance(a.error, ProviderError) else None for a in attempts]
        wrong += _same("attempts", kinds, [ErrorKind.CONNECT, None])
        wrong += _same("books", _books(router), [EntryStatus.VOID, EntryStatus.POSTED])
        return wrong + _same("requests that arrived", sick.arrived(), 1)
    finally:
        sick.close()


# ── judging ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def effect_of(cell: Cell) -> oracle.Effect:
    """What must follow from this cell's failure."""
    assert cell.kind is not None
    effect = oracle.EFFECTS[cell.kind]
    row = cell.line
    if row.never:
        effect = replace(effect, alone=1, beside=1)
    if row.wait == "long":
        effect = replace(effect, alone=1, beside=1, lock="parked")
    if row.window:
        effect = replace(effect, beside=1)
    if cell.committed:
        # The text is out: the next target goes on with it at once (A14), or this one if there is no other.
        effect = replace(effect, beside=1)
    return effect


def _tries(cell: Cell, router: Router, expected: int) -> int:
    """How many attempts at the failing target are right: `expected`, or one more where time or the network decides."""
    tries = sum(a.target == "first" for a in router.last.attempts) if router.last else 0
    # "no byte left: R 1 free" and then "reset: R 1"; a window that was empty may have room again by now.
    one_more = cell.line.or_else is ErrorKind.CONNECT or cell.line.window
    return tries if one_more and tries == expected + 1 else expected


def _same(what: str, found: Any, expected: Any) -> list[str]:
    return [] if found == expected else [f"{what}: {found!r}, expected {expected!r}"]


def _judge_events(cell: Cell, got: Got) -> list[str]:
    """The order of a stream: one Finished, last, or none and an error."""
    wrong = []
    if cell.shape == "streamed":
        wrong += _same("Finished events", got.events.count("Finished"), 0 if got.error else 1)
        if got.error is None:
            wrong += _same("last event", got.events[-1:], ["Finished"])
    if got.calls:
        wrong.append(f"{got.calls} tool call(s) that nobody finished making")
    return wrong


def _judge_answer(cell: Cell, got: Got, text: str, finish: str) -> list[str]:
    if got.error is not None:
        return [f"failed: {type(got.error).__name__}: {str(got.error)[:300]}"]
    return _same("text", got.text, text) + _same("finish", got.finish, finish)


def _judge_time(got: Got, total_s: float) -> list[str]:
    return [] if got.took_s <= total_s + 0.25 else [f"took {got.took_s:.2f} s, the deadline was {total_s} s"]


def _judge_packets(cell: Cell, router: Router, sick: _Sick, expected: int) -> list[str]:
    """What the journal says was sent is what the server saw."""
    attempts = [a for a in router.last.attempts if a.target == "first"] if router.last else []
    wrong = _same("attempts at the first", len(attempts), expected)
    packets = sick.settled(len(attempts))
    return wrong if packets is None else wrong + _same("packets at the server", packets, len(attempts))


def _books(router: Router) -> list[EntryStatus]:
    """What the ledger says of each attempt at the failing target."""
    return [entry.status for entry in router.ledger.entries() if entry.target == "first"]


def _judge_books(cell: Cell, router: Router) -> list[str]:
    """Column $: every attempt has its row, and the row says what may have been spent."""
    attempts = [a for a in router.last.attempts if a.target == "first"] if router.last else []
    expected = []
    for attempt in attempts:
        error = attempt.error
        kind = error.kind if isinstance(error, ProviderError) else None
        told = VENDORS[cell.vendor].tells_usage or cell.shape == "whole"
        answered = EntryStatus.POSTED if told else EntryStatus.ESTIMATED
        expected.append(cell.line.books or (answered if kind is None else oracle.BOOKS[kind]))
    return _same("books", [str(status) for status in _books(router)], [str(status) for status in expected])


def _judge_wait(cell: Cell, router: Router) -> list[str]:
    """A wait that the server names is a lower bound."""
    attempts = router.last.attempts if router.last else []
    if not cell.line.pause_s or len(attempts) < 2:
        return []
    gap = attempts[1].started - (attempts[0].ended or 0.0)
    return [] if gap >= cell.line.pause_s else [f"waited {gap:.3f} s, the server asked for {cell.line.pause_s} s"]


def _judge_attempts(cell: Cell, router: Router) -> list[str]:
    """Every failed attempt at the first target has the expected kind, and its gate has learned what it should."""
    assert cell.kind is not None
    assert router.last is not None
    kinds = [a.error.kind for a in router.last.attempts if a.target == "first" and isinstance(a.error, ProviderError)]
    right = {cell.kind, cell.line.or_else}
    wrong = [] if set(kinds) <= right else [f"kinds: {[str(k) for k in kinds]}, expected {cell.kind}"]
    effect = effect_of(cell)
    health = router.health()["first"]
    wrong += _same("counted as failures", health.consecutive_failures, len(kinds) if effect.trips else 0)
    wrong += _same("success rate", health.success_rate, 0.0 if effect.trips else None)
    reason = (health.unavailable_reason or "").partition(":")[0]
    empty = cell.line.window and reason == "rate limit"
    if cell.line.wait != "short" and not empty:  # what is short may be over by now
        wrong += _same("lock", reason, effect.lock or "")
    return wrong


def _judge_failure(cell: Cell, router: Router, got: Got, attempts: int) -> list[str]:
    """A typed error that names every attempt; a broken stream keeps the exact partial text."""
    error = got.error
    if error is None:
        return [f"answered {got.text!r}, expected an error"]
    expected = StreamBroken if cell.committed else AllTargetsFailed
    if type(error) is not expected:
        return [f"{type(error).__name__}, expected {expected.__name__}: {str(error)[:300]}"]
    wrong = _judge_attempts(cell, router)
    assert isinstance(error, (StreamBroken, AllTargetsFailed))
    named = error.fallback["attempts"]
    wrong += _same("attempts named", [a["target"] for a in named], ["first"] * attempts)
    for number, attempt in enumerate(named, 1):
        if f"  {number}. first" not in str(error) or attempt.get("error_kind") not in str(error):
            wrong.append(f"the message does not tell of attempt {number}: {error}")
    if isinstance(error, StreamBroken):
        wrong += _same("partial text", error.partial, got.text)
        if not CANONICAL.startswith(error.partial) or len(error.partial.split()) < cell.line.words:
            wrong.append(f"partial text is no beginning of the answer: {error.partial!r}")
    else:
        wrong += _same("text delivered", got.text, "")
        wrong += _same("errors kept", len(error.exceptions), attempts)
    return wrong


# ── three legs ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Legs:
    """A stream that breaks twice: three vendors, how the second breaks, and in which manner they take over."""

    vendors: tuple[str, str, str]
    colour: Colour
    fault: str
    manner: Manner

    @property
    def id(self) -> str:
        return f"{'-'.join(self.vendors)}-{self.colour}-{self.fault}-{self.manner}"


def legs() -> list[Legs]:
    """Every order of the three vendors, each fault that strikes in mid-stream at the second, each manner."""
    return [
        Legs(order, colour, fault, manner)  # type: ignore[arg-type]  # mypy widens the literals
        for order in itertools.permutations(MAIN)
        for colour in ("sync", "async")
        for fault in ("cut", "overload-later", "cut-eof")
        for manner in ("repeats", "continues", "overlaps")
    ]


def run_legs(case: Legs, bench: Bench) -> list[str]:
    """The exact answer arrives once although two vendors broke off in the middle of it."""
    bench.server.clear()
    targets, models = [], []
    for place, name in enumerate(case.vendors):
        vendor = VENDORS[name]
        model = vendor.reserve if place else vendor.model
        models.append(model)
        manner: Manner = "continues" if name == "anthropic" and case.manner == "overlaps" else case.manner
        answer = _answer(manner)
        if place == 0:
            bench.server.script(model, oracle.step_of("cut"))
        elif place == 1:
            # A model that says everything again must get past what is known before it breaks.
            bench.server.script(model, replace(oracle.step_of(case.fault), after_words=8, answer=answer))
        else:
            bench.server.script(model, answer)
        targets.append(Target(provider=bench.provider(vendor, model), name=f"leg {place + 1}"))
    router = router_of(targets)
    got = bench.call(router, ChatRequest((user("When does the café open?"),)), case.colour, "streamed")
    cell = Cell("cut", case.vendors[0], case.colour, "streamed")
    wrong = _judge_events(cell, got) + _judge_answer(cell, got, CANONICAL, "stop") + _judge_time(got, TOTAL_S)
    wrong += _same("packets", [bench.server.count(model) for model in models], [1, 1, 1])
    wrong += _same("Continued events", got.events.count(Continued.__name__), 2)
    metadata = router.last.metadata() if router.last else {}
    if got.error is None:
        wrong += _same("seams in the metadata", len(metadata.get("continued_at", ())), 2)
    return wrong
