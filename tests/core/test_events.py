"""Who is told what: filters, hooks that raise or hang, event loops, forks, and the page that lists every event."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from shared_core import AttemptFailed, ConfigurationError, FellOver, ProviderError, Router, Target, telemetry
from shared_core.errors import ErrorKind as K
from shared_core.telemetry import events
from shared_core.telemetry.dispatch import Dispatcher, kinds_of
from shared_core.telemetry.events import (
    CircuitChanged,
    Event,
    RequestFailed,
    RequestStarted,
    RequestSucceeded,
    TargetRecovered,
    TargetUnhealthy,
    event_name,
)
from shared_core.testing import ScriptedProvider, VirtualClock
from tests.timing import LONG_S

ROOT = Path(__file__).parents[2]
KINDS: list[type[Event]] = [getattr(events, name) for name in events.__all__ if name != "Event"]


def unhealthy(n: int = 0) -> TargetUnhealthy:
    return TargetUnhealthy("", float(n), f"t{n}", None)


# ── whom ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_observer_hears_of_everything_a_mapping_of_what_it_names():
    every: list[Event] = []
    fell: list[Event] = []
    both: list[Event] = []
    with Router([ScriptedProvider(K.MALFORMED, name="a"), ScriptedProvider(name="b")], on_event=every.append) as router:
        router.invoke("Hi")
        router.flush_events()
    with Router(
        [ScriptedProvider(K.MALFORMED, name="a"), ScriptedProvider(name="b")],
        on_event={FellOver: [fell.append, both.append], "attempt_failed": both.append},
        clock=VirtualClock(),
    ) as router:
        router.invoke("Hi")
        router.flush_events()
    assert {type(event) for event in every} >= {RequestStarted, AttemptFailed, FellOver, RequestSucceeded}
    assert [type(event) for event in fell] == [FellOver]
    assert {type(event) for event in both} == {FellOver, AttemptFailed}


def test_an_observer_may_say_itself_what_it_wants_to_hear():
    class Pager:
        events = ("target_unhealthy", TargetRecovered)

        def __init__(self) -> None:
            self.told: list[Event] = []

        def __call__(self, event: Event) -> None:
            self.told.append(event)

    pager = Pager()
    dispatcher = Dispatcher([pager])
    for event in (unhealthy(), CircuitChanged("", 1.0, "a", "parked", None, None), TargetRecovered("", 2.0, "a")):
        dispatcher.emit(event)
    assert dispatcher.flush()
    dispatcher.close()
    assert [type(event) for event in pager.told] == [TargetUnhealthy, TargetRecovered]


def test_observers_come_and_go_while_a_router_runs():
    late: list[Event] = []
    with Router([ScriptedProvider()]) as router:
        router.invoke("Hi")
        remove = router.on(late.append, "request_succeeded", RequestFailed)
        router.invoke("Hi")
        router.flush_events()
        remove()
        remove()
        router.invoke("Hi")
        router.flush_events()
    assert [type(event) for event in late] == [RequestSucceeded]


def test_the_same_observer_may_be_added_twice_and_leaves_once():
    heard: list[Event] = []
    dispatcher = Dispatcher()
    first = dispatcher.add(heard.append)
    dispatcher.add(heard.append)
    first()
    dispatcher.emit(unhealthy())
    assert dispatcher.flush()
    dispatcher.close()
    assert len(heard) == 1


@pytest.mark.parametrize("bad", [5, [5], {"nothing": print}, {5: print}, {RequestFailed: 5}, {"request_faild": print}])
def test_what_cannot_be_told_is_refused_when_it_is_given(bad):
    with pytest.raises(ConfigurationError) as caught:
        Router([ScriptedProvider()], on_event=bad)
    assert "faild" not in str(bad) or "request_failed" in str(caught.value), "the nearest is named"
    with Router([ScriptedProvider()]) as router, pytest.raises(ConfigurationError):
        router.on(print, "nothing")


def test_the_base_class_stands_for_every_kind():
    assert kinds_of([Event, "circuit_changed"]) == (Event, CircuitChanged)


def test_a_requests_steps_are_only_made_if_somebody_hears_of_them():
    dispatcher = Dispatcher({"target_unhealthy": print, CircuitChanged: print})
    assert not dispatcher.active
    assert not dispatcher.alert or logging.getLogger("llm_fallback").isEnabledFor(logging.WARNING)
    remove = dispatcher.add(print, ["fell_over"])
    assert dispatcher.active
    remove()
    assert not dispatcher.active
    assert Dispatcher([print]).active


def test_nobody_to_tell_starts_no_thread():
    before = set(threading.enumerate())  # an earlier test's may end meanwhile
    dispatcher = Dispatcher({"target_recovered": print})
    dispatcher.emit(unhealthy())
    assert not set(threading.enumerate()) - before
    dispatcher.close()


# ── never in the way ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_hook_that_hangs_costs_events_and_nothing_else():
    hold = threading.Event()
    dispatcher = Dispatcher([lambda _: hold.wait(2 * LONG_S)], capacity=10)
    begun = time.monotonic()
    for n in range(1_000):
        dispatcher.emit(unhealthy(n))
    assert time.monotonic() - begun < LONG_S, "and not for the hook"
    assert dispatcher.dropped >= 988
    assert not dispatcher.flush(0.05)
    hold.set()
    assert dispatcher.flush(LONG_S)
    dispatcher.close()


def test_a_thread_whose_hook_hung_when_it_was_closed_ends_all_the_same(caplog, monkeypatch):
    begun, hold = threading.Event(), threading.Event()
    dispatcher = Dispatcher([lambda _: (begun.set(), hold.wait(2 * LONG_S))], capacity=3)
    before = set(threading.enumerate())
    for n in range(10):
        dispatcher.emit(unhealthy(n))
        assert begun.wait(LONG_S)
    (thread,) = set(threading.enumerate()) - before
    quiet = dispatcher._quiet
    monkeypatch.setattr(dispatcher, "_quiet", lambda timeout_s: quiet(0.01))
    with caplog.at_level("WARNING", "llm_fallback"):
        dispatcher.close()
    assert "observers are stuck; 3 events wait to be told" in caplog.text
    hold.set()
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_a_hook_that_raises_is_logged_and_the_next_one_is_told(caplog):
    def broken(_: Event) -> None:
        raise RuntimeError("broken hook")

    async def abroken(_: Event) -> None:
        raise RuntimeError("broken async hook")

    told: list[Event] = []
    dispatcher = Dispatcher([broken, abroken, told.append])
    dispatcher.emit(unhealthy())
    assert dispatcher.flush()
    dispatcher.close()
    assert len(told) == 1
    assert caplog.text.count("the request is not affected") == 2


def test_a_hook_that_would_end_its_thread_silences_nobody(caplog):
    """`sys.exit` in a hook ends neither the program nor what the others are told, now and later."""

    def leaves(_: Event) -> None:
        sys.exit(3)

    async def aleaves(_: Event) -> None:
        raise asyncio.CancelledError

    told: list[Event] = []
    dispatcher = Dispatcher([leaves, aleaves, told.append])
    dispatcher.emit(unhealthy())
    dispatcher.emit(unhealthy())
    assert dispatcher.flush(LONG_S)
    dispatcher.close()
    assert len(told) == 2
    assert caplog.text.count("the request is not affected") == 4


def test_async_hooks_run_one_after_another_on_one_loop_of_their_own():
    loops: list[asyncio.AbstractEventLoop] = []
    running = [0, 0]

    async def hook(_: Event) -> None:
        loops.append(asyncio.get_running_loop())
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0)
        running[0] -= 1

    async def program() -> None:
        async with Router([ScriptedProvider()], on_event=hook) as router:
            for _ in range(3):
                await router.ainvoke("Hi")
            await asyncio.to_thread(router.flush_events)
            assert asyncio.get_running_loop() not in loops, "the program's own loop is not held up"

    asyncio.run(program())
    assert len(loops) == 6
    assert len(set(loops)) == 1
    assert running[1] == 1


PROGRAM = """
    import os
    from shared_core.telemetry.dispatch import Dispatcher
    from shared_core.telemetry.events import TargetRecovered
    told = []
    dispatcher = Dispatcher([told.append])
    dispatcher.emit(TargetRecovered("", 1.0, "parent"))
    assert dispatcher.flush()
    if os.fork() == 0:
        dispatcher.emit(TargetRecovered("", 1.0, "child"))
        os._exit(0 if dispatcher.flush() and [e.target for e in told] == ["parent", "child"] else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    dispatcher.emit(TargetRecovered("", 1.0, "parent"))
    assert dispatcher.flush() and len(told) == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_observers_of_a_forked_child_are_told_too():
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


# ── events as values ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_is_a_frozen_value_with_a_name_and_a_level(kind):
    example: Any = kind(*[f"{one.name}" for one in fields(kind)])
    with pytest.raises(FrozenInstanceError):
        example.at = 5.0
    assert example.name == event_name(kind)
    assert example.as_dict()["event"] == event_name(kind)
    assert set(example.as_dict()) == {"event", *(one.name for one in fields(kind))}
    assert example.level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    assert kind.quoted <= {one.name for one in fields(kind)}
    assert kind.__doc__
    assert not hasattr(example, "__dict__"), "events are many and small"


def test_every_event_is_public_by_its_name():
    assert sorted(telemetry.__all__) == sorted(events.__all__)
    for kind in KINDS:
        assert getattr(telemetry, kind.__name__) is kind


WAITS: dict[str, tuple[list[Any], dict[str, Any] | None, int, list[bool]]] = {
    # What the target answers, its limits, how many requests, and which waits are told: in line, or for a named pause.
    "a back-off": ([K.TRANSIENT, "ok"], None, 1, []),
    "a named pause": ([ProviderError.of(K.THROTTLED, "slow down", retry_after_s=3), "ok"], None, 1, [False]),
    "in line": (["ok"], {"requests_per_minute": 60, "burst_s": 1}, 2, [True]),
}


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("what", WAITS)
def test_waits_for_rates_and_named_pauses_are_told_and_back_offs_are_not(what, colour):
    script, limits, requests, told = WAITS[what]
    heard: list[Any] = []
    targets = [Target(provider=ScriptedProvider(*script, name="a"), name="a", limits=limits)]
    with Router(targets, clock=VirtualClock(), on_event={"request_waits": heard.append}) as router:
        for _ in range(requests):
            if colour == "sync":
                router.invoke("Hi")
            else:
                asyncio.run(router.ainvoke("Hi"))
        assert router.flush_events()
    assert [event.in_line for event in heard] == told
    assert all((event.target, event.for_s > 0) == ("a", True) for event in heard)


def test_the_log_says_who_needs_to_look(caplog):
    with caplog.at_level(logging.DEBUG, "llm_fallback"):
        clock = VirtualClock()
        down = ScriptedProvider(K.TRANSIENT, name="a")
        with Router([Target(provider=down, name="a"), ScriptedProvider(name="b")], clock=clock) as router:
            for _ in range(5):
                router.invoke("Hi")
    level = {r.getMessage().split(" ")[0]: r.levelname for r in caplog.records}
    assert level["request_started"] == "DEBUG"
    assert level["attempt_failed"] == "INFO"
    assert level["circuit_changed"] == "INFO"
    assert level["target_unhealthy"] == "INFO"
    warned = [r for r in caplog.records if r.levelname == "WARNING"]
    assert all("request_succeeded" in r.getMessage() for r in warned)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_night_at_warning_level_tells_of_who_stepped_in_after_a_failure_and_not_of_each_call(caplog, colour):
    clock = VirtualClock()
    ill = ScriptedProvider(*[K.TRANSIENT] * 8, *["well"] * 200, name="a")
    well = ScriptedProvider(name="b")
    with caplog.at_level(logging.WARNING, "llm_fallback"):
        with Router([Target(provider=p, name=p.name) for p in (ill, well)], clock=clock, seed=3) as router:
            served = []
            for _ in range(150):
                ask = router.invoke if colour == "sync" else lambda text: asyncio.run(router.ainvoke(text))
                served.append(ask("Hi").target)
                clock.advance(1.0)
            failed = sum(entry.target == "a" and entry.outcome != "answered" for entry in router.ledger.entries())
    assert {r.levelname for r in caplog.records} == {"WARNING"}
    said = [r.getMessage().split(" ")[0] for r in caplog.records]
    stepped_in = said.count("request_succeeded")
    assert len(said) == stepped_in
    assert 3 <= stepped_in <= failed < served.count("b") // 2, (
        "a line for those whose target failed, none for who passed"
    )
    assert served[-1] == "a"


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows() -> dict[str, str]:
    page = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    table = page.partition("## Every event")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, re.MULTILINE))


def test_the_page_lists_every_event_there_is_and_no_other():
    assert sorted(rows()) == sorted(event_name(kind) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_page_names_every_field_of_an_event(kind):
    told = re.findall(r"`(\w+)`", rows()[event_name(kind)])
    assert told == [one.name for one in fields(kind) if one.name not in ("execution", "at")]
