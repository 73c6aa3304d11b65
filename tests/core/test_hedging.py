"""A second target beside a slow one, in real time, on every face, and over sockets."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import (
    AllTargetsFailed,
    BreakerConfig,
    Capabilities,
    ChatEvent,
    ChatRequest,
    CircuitState,
    ErrorKind,
    Finished,
    Guard,
    Origin,
    Price,
    ProviderError,
    RetryPolicy,
    Router,
    Started,
    StreamBroken,
    Target,
    TextDelta,
    Timeouts,
    Usage,
    _race,
    user,
)
from shared_core.routing.hedge import Hedge
from shared_core.testing import FaultServer, VirtualClock
from shared_core.testing.fault_server import slow
from tests.timing import LONG_S, auntil, timed

from .conftest import FACES
from .test_hedging_steps import first_call

K = ErrorKind
STREAM = ChatRequest((user("Hello"),), streaming=True)
WHOLE = ChatRequest((user("Hello"),))
AT_ONCE = Hedge(after=0.02, min_s=0.0, budget=1.0)


def failing(kind: ErrorKind) -> ProviderError:
    return ProviderError.of(kind, f"scripted {kind}")


# ── in real time ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Timed:
    """Brings its first word after `first_s`, or when `first_s()` says so; then the rest, or ends as `fails` says.

    Obeys its guard. A function orders what happens in two targets, however busy the machine is.
    """

    model = "m"
    local = False
    interruptible = True
    capabilities = Capabilities()

    def __init__(
        self, name: str, first_s: float | Callable[[], bool], fails: ErrorKind | None = None, cut: bool = False
    ) -> None:
        self.name, self.first_s, self.fails, self.cut = name, first_s, fails, cut
        self.origin = Origin(name, "m")
        self.calls = self.open = self.left = 0

    def _ready(self) -> Callable[[], bool]:
        if callable(self.first_s):
            return self.first_s
        until = time.monotonic() + self.first_s
        return lambda: time.monotonic() >= until

    def _words(self) -> Any:
        if self.fails is not None and not self.cut:
            raise failing(self.fails)
        for word in (f"from {self.name}", " and", " on"):
            yield TextDelta(word)
        if self.cut:
            raise failing(K.STREAM_CUT)
        yield Finished(usage=Usage(3, 3))

    def stream(self, request: ChatRequest, guard: Any) -> Any:
        self.calls += 1
        self.open += 1
        try:
            yield Started()
            ready = self._ready()
            while not ready():
                if guard.remaining() <= 0:
                    self.left += 1
                    raise ProviderError.of(K.TIMEOUT, "the guard has run out")
                time.sleep(0.001)
            yield from self._words()
        finally:
            self.open -= 1

    async def astream(self, request: ChatRequest, guard: Any) -> Any:
        self.calls += 1
        self.open += 1
        try:
            yield Started()
            ready = self._ready()
            while not ready():  # noqa: ASYNC110  # sync and async wait for the same word
                await asyncio.sleep(0.001)
            for event in self._words():
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
        finally:
            self.open -= 1

    def close(self) -> None: ...

    async def aclose(self) -> None: ...


def bool_of(other: Timed) -> bool:
    """Whether the other one has been asked."""
    return other.calls > 0


def fleet(*timed: Timed, **options: Any) -> Router:
    return Router(
        [Target(provider=one, name=one.name, price=Price(1, 1)) for one in timed],
        **{"hedge": AT_ONCE, "retry": RetryPolicy(base_s=0.001), "ledger": None, **options},
    )


def quiet(*timed: Timed) -> bool:
    """Nothing is left open. A thread that was cut off may need a moment."""
    until = time.monotonic() + LONG_S
    while any(one.open for one in timed) and time.monotonic() < until:
        time.sleep(0.001)
    return not any(one.open for one in timed)


@pytest.mark.parametrize("interruptible", [True, False])
def test_the_quicker_of_two_answers_on_every_face_and_the_other_leaves_nothing_open(face, interruptible):
    for winner, asked in (("b", 1), ("a", 1), ("a", 0)):
        a, b = Timed("a", 0.0), Timed("b", 60.0)
        if asked:
            first, other = (b, a) if winner == "b" else (a, b)
            first.first_s, other.first_s = partial(bool_of, other), 60.0
        a.interruptible = b.interruptible = interruptible
        router = fleet(a, b, hedge=AT_ONCE if asked else Hedge(after=20.0))
        begun = time.monotonic()
        got = face(router)
        took = time.monotonic() - begun
        assert (got.text, got.finished.target) == (f"from {winner} and on", winner)
        assert took < 30.0, "nobody waited for the slow one"
        assert (a.calls, b.calls) == (1, asked)
        assert quiet(a, b)
        assert [h.in_flight for h in router.health()] == [0, 0]
        facts = got.fallback
        assert (facts.get("hedged") or {}).get("winner", "a") == winner
        assert len(facts["attempts"]) == a.calls + b.calls, "the journal counts what was sent"
        entries = {entry.target: str(entry.status) for entry in router.ledger.entries()}
        assert len(entries) == a.calls + b.calls
        loser = {"a": "b", "b": "a"}[winner]
        assert entries.get(loser) in (None, "unknown"), "a loser may have cost something"
        health = router.health()[loser]
        assert (health.consecutive_failures, health.success_rate, health.circuit) == (0, None, CircuitState.CLOSED)
        router.close()


@pytest.mark.parametrize("face", ["invoke", "stream"])
def test_a_loser_whose_thread_gets_its_turn_too_late_sends_nothing(face, monkeypatch):
    """A busy machine may begin a thread after the race that it was to run in."""
    held: list[Callable[[], None]] = []
    really = _race.in_thread
    monkeypatch.setattr(_race, "in_thread", lambda job: really(job) if held else held.append(job))
    a, b = Timed("a", 0.0), Timed("b", 0.0)
    router = fleet(a, b)
    assert FACES[face](router).finished.target == "b"
    (late,) = held
    late()
    assert (a.calls, b.calls) == (0, 1)
    assert [h.in_flight for h in router.health()] == [0, 0]
    router.close()


async def test_a_second_call_that_is_in_the_journal_has_been_sent_though_the_race_is_decided_at_that_moment():
    """What the first one brings may be heard before the task of the second has had its first step."""
    first, execution = first_call()
    sent: list[str] = []

    async def answer(name: str) -> AsyncIterator[ChatEvent]:
        sent.append(name)
        await asyncio.sleep(60.0)
        yield Started()

    def begun(name: str) -> _race.AsyncHeat:
        guard = Guard(time.monotonic, streaming=True)
        return _race.AsyncHeat(first, guard, answer(name), time.monotonic, asyncio.Event())

    cut = begun("cut off before its first step")
    cut.drop()
    second = begun("second")
    await second.begun()
    second.drop()
    await _race.AsyncHeat.gone([cut, second])
    assert sent == ["second"]
    assert execution.attempts == [first.attempt]


class Leisurely(Timed):
    """Closing takes it a while, as it takes a socket; a cancellation meanwhile would leave it open."""

    closed = 0

    async def astream(self, request: ChatRequest, guard: Any) -> Any:
        try:
            async for event in super().astream(request, guard):
                yield event
        finally:
            await asyncio.sleep(0.01)
            self.closed += 1


@pytest.mark.parametrize("face", ["ainvoke", "astream"])
@pytest.mark.parametrize("winner", ["a", "b"])
async def test_what_is_cut_off_is_left_to_close_in_peace(face, winner):
    """The loser is dropped when the race is decided and once more when the call ends; the winner has just ended."""
    a, b = Leisurely("a", 60.0), Leisurely("b", 60.0)
    first, other = (a, b) if winner == "a" else (b, a)
    first.first_s = partial(bool_of, other)
    router = fleet(a, b)
    if face == "ainvoke":
        assert (await router.ainvoke(WHOLE)).target == winner
    else:
        assert [event async for event in router.astream(WHOLE)][-1].target == winner
    await auntil(lambda: not a.open and not b.open)
    await auntil(lambda: (a.closed, b.closed) == (1, 1))
    await router.aclose()


def test_without_the_option_nobody_is_asked_twice_and_no_thread_is_begun(face):
    a, b = Timed("a", 0.05), Timed("b", 0.0)
    router = fleet(a, b, hedge=None)
    before = set(threading.enumerate())  # an earlier test's may end meanwhile
    assert face(router).text == "from a and on"
    assert (a.calls, b.calls) == (1, 0)
    assert not {t for t in threading.enumerate() if t.name.startswith("llm-fallback")} - before


class Unopened(Timed):
    """Fails before there is anything to read from."""

    def stream(self, request: ChatRequest, guard: Any) -> Any:
        self.calls += 1
        raise failing(K.TRANSIENT)


def test_a_call_that_cannot_even_be_opened_has_failed_and_is_not_late():
    a, b = Unopened("a", 0.0), Timed("b", 0.0)
    router = fleet(a, b, hedge=Hedge(after=20.0, budget=1.0), retry=RetryPolicy(same_target=0))
    begun = time.monotonic()
    answer = router.invoke(WHOLE)
    assert (answer.target, a.calls, b.calls) == ("b", 1, 1)
    assert time.monotonic() - begun < 10.0
    assert "hedged" not in answer.fallback


FORKED = """
    import os, threading
    from shared_core import Router, Target
    from shared_core.testing import ScriptedProvider

    def lanes():
        return [t for t in threading.enumerate() if t.name == "llm-fallback-lane"]

    targets = [Target(provider=ScriptedProvider(), name=name) for name in "ab"]
    router = Router(targets, hedge={"after": 20.0, "budget": 1.0})
    assert not lanes()
    router.invoke("Hi")
    assert len(lanes()) == 1  # it waits for more work
    child = os.fork()
    if child == 0:
        answered = router.invoke("Hi").fallback.get("hedged") is None  # not by a thread that stayed in the parent
        os._exit(0 if answered and len(lanes()) == 1 else 7)
    _, status = os.waitpid(child, 0)
    print("child", os.waitstatus_to_exitcode(status))
    router.invoke("Hi")
    print("parent", len(lanes()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_begins_threads_of_its_own_and_a_waiting_one_is_used_again():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORKED)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.split("\n")[:2] == ["child 0", "parent 1"], ended.stderr


ends = st.sampled_from([None, None, K.TRANSIENT, K.AUTH, K.BAD_REQUEST, K.TIMEOUT, "cut"])


def failed_or_again(one: Timed, other: Timed) -> bool:
    """Whether the other one has failed before it brought anything, or this one is asked for a second time."""
    return one.calls > 1 or (other.calls > 0 and not other.open and other.fails is not None and not other.cut)


def script_of(leads: str, kinds: list[Any]) -> list[Timed]:
    """`a` and `b`, and maybe `c`. Who leads is the first of two to bring anything; the other waits for it to fail."""
    timed = [
        Timed(n, 0.0, None if kind == "cut" else kind, kind == "cut") for n, kind in zip("abc", kinds, strict=False)
    ]
    a, b = timed[:2]
    if leads == "a":
        a.first_s, b.first_s = partial(bool_of, b), partial(failed_or_again, b, a)
    elif leads == "b":
        a.first_s, b.first_s = partial(failed_or_again, a, b), partial(bool_of, a)
    return timed


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from(["a", "b", "nobody"]), st.lists(ends, min_size=2, max_size=3), st.sampled_from(["invoke", "stream"])
)
def test_sync_and_async_race_alike(leads, kinds, face):
    """Random scripts: the same attempts with the same ends, the same text, the same error and the same winner."""
    results = []
    for name in (face, "a" + face):
        timed = script_of(leads, kinds)
        hedge = Hedge(after=0.005 if leads != "nobody" else 20.0, min_s=0.0, budget=1.0)
        router = fleet(*timed, hedge=hedge, retry=RetryPolicy(total=0))
        got = FACES[name](router)
        journal = router.last
        assert quiet(*timed)
        assert [h.in_flight for h in router.health()] == [0] * len(timed)
        assert [t.calls for t in timed] == [sum(a.target == t.name for a in journal.attempts) for t in timed], (
            "attempts in the journal are requests that were sent"
        )
        results.append(
            (
                got.text,
                type(got.error),
                [(a.target, a.outcome, a.hedge, a.seam) for a in journal.attempts],
                journal.hedged and (journal.hedged.beside, journal.hedged.target, journal.hedged.winner),
                [(h.calls, h.success_rate) for h in router.health()],
                sorted((e.target, str(e.status)) for e in router.ledger.entries()),
            )
        )
        router.close()
    assert results[0] == results[1]


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.015, 0.02, 0.025, 0.04, 0.06, 0.09])
async def test_a_caller_who_leaves_a_race_leaves_nothing_behind(after_s):
    a, b = Timed("a", 0.08), Timed("b", 0.05)
    router = fleet(a, b)
    task = asyncio.ensure_future(router.ainvoke(WHOLE))
    await asyncio.sleep(after_s)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task  # or it was answered before
    await auntil(lambda: (a.open, b.open) == (0, 0))
    assert [h.in_flight for h in router.health()] == [0, 0]
    assert all(h.success_rate in (None, 1.0) and not h.consecutive_failures for h in router.health())
    assert len(router.ledger.entries()) == a.calls + b.calls
    others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task() and "AsyncHeat" in repr(t)]
    assert not others, "no task is left"


@pytest.mark.parametrize("face", ["stream", "astream"])
def test_a_reader_who_stops_cuts_the_winner_off_too(face):
    a, b = Timed("a", 60.0), Timed("b", 0.0)
    router = fleet(a, b)
    if face == "stream":
        with router.stream(WHOLE) as events:
            for event in events:
                if isinstance(event, TextDelta):
                    break
    else:

        async def main() -> None:
            async with router.astream(WHOLE) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        break

        asyncio.run(main())
    assert quiet(a, b)
    assert router.last.outcome == "abandoned"
    assert [h.in_flight for h in router.health()] == [0, 0]
    assert len(router.ledger.entries()) == 2


@timed
def test_the_deadline_is_a_wall_in_a_race_too(face):
    a, b = Timed("a", 5.0), Timed("b", 5.0)
    begun = time.monotonic()
    got = face(fleet(a, b, timeouts=Timeouts(total=0.15)))
    assert isinstance(got.error, AllTargetsFailed)
    assert time.monotonic() - begun < 1.0
    assert quiet(a, b)
    assert (a.calls, b.calls) == (1, 1)


def test_a_broken_winner_is_continued_by_the_one_that_lost(stream_face):
    a = Timed("a", lambda: a.calls > 1)  # it loses, and answers when it is asked again
    b = Timed("b", partial(bool_of, a), cut=True)
    got = stream_face(fleet(a, b))
    assert got.error is None or isinstance(got.error, StreamBroken)
    assert got.text.startswith("from b and on")
    assert (a.calls, b.calls) == (2, 1)
    assert got.fallback["continued"]


def test_an_open_circuit_and_constraints_hold_beside_a_slow_target_too(face):
    a, b, c = Timed("a", 60.0), Timed("b", 0.0), Timed("c", 0.0)
    router = fleet(a, b, c)
    router.force_open("b")
    assert face(router).finished.target == "c"
    assert b.calls == 0
    a, b = Timed("a", 0.06), Timed("b", 0.0)
    got = FACES["invoke"](fleet(a, b), WHOLE.replace(constraints={"deny": ["b"]}))
    assert (got.finished.target, b.calls) == ("a", 0)


def test_the_share_of_second_requests_holds_over_many_calls():
    a, b = Timed("a", 0.004), Timed("b", 0.0)
    router = fleet(a, b, hedge=Hedge(after=0.001, min_s=0, budget=0.05))
    for _ in range(60):
        router.invoke(WHOLE)
    assert 1 <= b.calls <= 3
    router.close()


def test_the_percentile_is_learnt_from_calls_and_kept_when_options_change():
    clock = VirtualClock()
    a, b = Timed("a", 0.0), Timed("b", 0.0)
    router = fleet(a, b, hedge={"samples": 3, "budget": 1.0, "min_s": 0.0})
    for _ in range(3):
        router.invoke(WHOLE)
    assert b.calls == 0
    router.reconfigure(hedge={"samples": 3, "budget": 1.0, "min_s": 0.03})
    a.first_s = 60.0
    assert router.invoke(WHOLE).fallback["hedged"]["winner"] == "b"
    router.reconfigure(hedge=None)
    a.first_s = 0.03
    assert "hedged" not in router.invoke(WHOLE).fallback
    assert clock.sleeps == []


def test_a_slow_first_token_does_not_open_the_circuit_of_one_that_lost():
    a, b = Timed("a", 60.0), Timed("b", 0.0)
    router = fleet(a, b, breaker=BreakerConfig(consecutive_failures=1))
    for _ in range(3):
        assert router.invoke(WHOLE).target == "b"
    assert router.health()["a"].circuit is CircuitState.CLOSED
    assert a.calls == 3


# ── over real sockets ────────────────────────────────────────────────────────────────────────────────────────────────


def served(server: FaultServer, **options: Any) -> Router:
    return Router(
        [
            Target(f"openai:{model}", base_url=server.openai_url, api_key="sk-test-not-a-real-key-000", name=model)
            for model in ("gpt-slow", "gpt-quick")
        ],
        **{"hedge": Hedge(after=0.2, min_s=0.0, budget=1.0, burst=100), **options},
    )


def test_the_losers_connection_closes_at_once_and_what_was_sent_is_what_is_told(face):
    with FaultServer() as server:
        server.script("gpt-slow", slow(30))
        router = served(server)
        router.warm()
        got = face(router)
        assert got.finished.target == "gpt-quick"
        server.wait_idle()
        outcomes = {seen.model: seen.outcome for seen in server.requests}
        assert outcomes == {"gpt-slow": "client-closed", "gpt-quick": "answered"}
        assert len(server.requests) == len(got.fallback["attempts"]) == 2
        router.close()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_no_connection_is_lost_to_the_pool_under_many_races(colour):
    """A hundred losers cut off at odd moments: then both targets still answer, within their pools."""
    dice = random.Random(4)
    with FaultServer() as server:
        server.script("gpt-slow", lambda request: slow(dice.choice([0.0, 0.004, 0.008, 0.012, 5])))
        server.script("gpt-quick", lambda request: slow(dice.choice([0.0, 0.002, 0.004])))
        router = served(server, hedge=Hedge(after=0.006, min_s=0.0, budget=1.0, burst=100))
        router.warm()
        if colour == "sync":
            for _ in range(100):
                router.invoke(WHOLE)
        else:

            async def main() -> None:
                for _ in range(10):
                    await asyncio.gather(*(router.ainvoke(WHOLE) for _ in range(10)))
                await asyncio.to_thread(server.wait_idle)
                server.script("gpt-slow", "ok")
                for _ in range(3):
                    assert (await router.ainvoke(WHOLE)).text
                await router.aclose()

            asyncio.run(main())
        if colour == "sync":
            server.wait_idle()
            server.script("gpt-slow", "ok")
            for _ in range(3):
                assert router.invoke(WHOLE).text
        assert all(h.in_flight == 0 and not h.consecutive_failures for h in router.health())
        assert any(e.outcome == "cancelled" for e in router.ledger.entries())
        router.close()
