"""Health checks: on demand and in the background, by list, by call and by the target's own report."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_core import (
    Answer,
    Budget,
    CircuitState,
    ConfigurationError,
    HealthCheck,
    HealthStatus,
    LedgerEntry,
    Price,
    ProviderError,
    Router,
    Target,
    TargetTest,
    TargetTests,
)
from shared_core._probes import Probes
from shared_core.errors import ErrorKind as K
from shared_core.resilience.deadline import Guard
from shared_core.resilience.health import SelfReport
from shared_core.resilience.health_check import Standing, next_check
from shared_core.telemetry.events import CircuitChanged, TargetChanged, TargetProbed, TargetRecovered
from shared_core.testing import FaultServer, ScriptedProvider, VirtualClock
from tests.timing import LONG_S, timed, until

Colour = Literal["sync", "async"]
COLOURS: tuple[Colour, ...] = ("sync", "async")
WIRES = ("openai", "anthropic", "google")


def target(server: FaultServer, wire: str, name: str | None = None, **fields: Any) -> Target:
    url = {"openai": server.openai_url, "anthropic": server.anthropic_url}.get(wire, server.google_url)
    return Target(f"{wire}:m", base_url=url, api_key="sk-test-0123456789", name=name or wire, **fields)


def check(router: Router, name: str, colour: Colour = "sync", **options: Any) -> TargetTest:
    if colour == "sync":
        return router.test_target(name, **options)

    async def go() -> TargetTest:
        try:
            return await router.atest_target(name, **options)
        finally:
            await alone(router)

    return asyncio.run(go())


async def alone(router: Router) -> None:
    """Close what belongs to this event loop, which is about to end; the router goes on."""
    for provider in router.providers:
        await provider.aclose()


async def all_of(router: Router, **options: Any) -> TargetTests:
    try:
        return await router.atest_targets(**options)
    finally:
        await alone(router)


class Pinged(ScriptedProvider):
    """A scripted provider with a list of models: `pings` plays one step per reading, the last repeats."""

    def __init__(self, *script: Any, pings: tuple[object, ...] = (True,), **fields: Any) -> None:
        super().__init__(*script, **fields)
        self.pings, self.pinged = pings, 0

    def ping(self, guard: Guard) -> bool:
        step = self.pings[min(self.pinged, len(self.pings) - 1)]
        self.pinged += 1
        if isinstance(step, K):
            raise ProviderError.of(step, f"scripted {step}")
        if isinstance(step, BaseException):
            raise step
        return bool(step)

    async def aping(self, guard: Guard) -> bool:
        return self.ping(guard)


class Reporting(ScriptedProvider):
    """One that knows of itself how it is, as a local model does."""

    unhealthy: str | None = None

    def report(self) -> SelfReport:
        return SelfReport({"state": "ready"}, self.unhealthy)


def at(provider: Any, name: str = "a", **fields: Any) -> Target:
    return Target(provider=provider, name=name, **fields)


def probes_of(router: Router) -> Probes:
    assert router._probes is not None
    return router._probes


# ── on demand ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("wire", WIRES)
def test_a_vendor_that_lists_its_models_is_asked_for_them_and_nothing_else(wire, colour):
    with FaultServer() as server, Router([target(server, wire)]) as router:
        test = check(router, wire, colour)
        assert (test.ok, test.how, test.error, test.circuit) == (True, "models", None, CircuitState.CLOSED)
        assert bool(test)
        assert 0 < test.latency_s < 5
        assert test.cost_usd == 0
        (seen,) = server.requests
        assert seen.path.partition("?")[0].endswith("/models")
        health = router.health()[wire]
        assert (health.status, health.calls, health.success_rate) == (HealthStatus.HEALTHY, 0, None)
        assert health.last_probe_ok is True


FOUND: dict[str, tuple[Any, str | None, bool]] = {
    # What the list of models answers with; the kind of error found, and whether a call was made instead.
    "a bad key": (401, "auth", False),
    "overloaded": (503, "overloaded", False),
    "no such address": (404, None, True),
    "not allowed there": (405, None, True),
    "a page": ("html-200", "malformed", False),
    "reset": ("reset-before-headers", "transient", False),
    "silence": ("hang", "timeout", False),
    "a header without end": ("header-drip", "timeout", False),
}


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("what", FOUND)
@timed  # silence ends with a short limit, within which the request is to arrive
def test_what_is_wrong_with_the_list_is_told_like_the_error_of_a_call(what, wire, colour):
    step, kind, called = FOUND[what]
    with FaultServer({"@models": [step]}) as server, Router([target(server, wire)]) as router:
        router.warm()
        test = check(router, wire, colour, timeout_s=0.25 if kind == "timeout" else 5.0)
        assert test.kind == kind, test
        assert test.ok is (kind is None)
        assert test.how == ("call" if called else "models")
        assert len(server.requests) == 1 + called
        entries = router.ledger.entries()
        assert [(e.purpose, e.error_kind) for e in entries] == [("probe", kind)]
        assert kind is None or entries[0].cost_nano == 0
        if kind == "auth":
            assert router.health()[wire].locked_for_s is not None, "a bad key is a bad key"
        if called:
            check(router, wire, colour)
            assert sum("/models" in r.path and ":" not in r.path.rpartition("/")[2] for r in server.requests) == 1, (
                "it is remembered that there is no list"
            )


@pytest.mark.parametrize("colour", COLOURS)
def test_a_vendor_without_a_list_gets_a_call_of_one_token(colour):
    provider = ScriptedProvider("OK", name="x")
    with Router([at(provider)]) as router:
        test = check(router, "a", colour)
        assert (test.ok, test.how) == (True, "call")
        (request,) = provider.requests
        assert (request.max_tokens, request.streaming) == (1, False)
        assert [e.purpose for e in router.ledger.entries()] == ["probe"]
        assert router.last is None, "it is nobody's request"
        assert provider.open == 0


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("wire", [*WIRES, "google-legacy"])
def test_a_call_of_one_token_goes_to_every_vendor(wire, colour):
    with FaultServer() as server, Router([target(server, wire)]) as router:
        test = check(router, wire, colour, how="call")
        assert (test.ok, test.how) == (True, "call"), test
        (seen,) = server.requests
        assert "OK" in str(seen.prompt)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_target_that_only_objects_to_the_test_itself_is_well(colour):
    with Router([at(ScriptedProvider(K.BAD_REQUEST))]) as router:
        test = check(router, "a", colour)
        assert (test.ok, test.kind) == (True, "bad_request")
        assert router.health()["a"].status is HealthStatus.HEALTHY


def test_one_who_thinks_gets_more_than_a_token():
    provider = ScriptedProvider("OK")
    able = replace(provider.capabilities, reasoning=True)
    with Router([at(provider, capabilities=able)]) as router:
        assert router.test_target("a").ok
    assert provider.requests[0].max_tokens == 16


@pytest.mark.parametrize("colour", COLOURS)
def test_a_local_model_reports_of_itself_and_nothing_is_sent(colour):
    provider = Reporting("OK")
    with Router([at(provider)]) as router:
        test = check(router, "a", colour)
        assert (test.ok, test.how, provider.calls) == (True, "report", 0)
        provider.unhealthy = "its worker died"
        test = check(router, "a", colour)
        assert (test.ok, test.how, provider.calls) == (False, "report", 0)
        assert "its worker died" in str(test.error)
        assert check(router, "a", colour, how="call").how == "call"


@pytest.mark.parametrize("colour", COLOURS)
def test_an_open_circuit_is_probed_by_a_call_at_once_and_two_successes_close_it(colour):
    clock = VirtualClock()
    provider = Pinged(*[K.TRANSIENT] * 5, "OK")
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock, retry={"same_target": 0}) as router:
        for _ in range(5):
            router.invoke("Hi")
        assert router.health()["a"].circuit is CircuitState.OPEN
        first = check(router, "a", colour)
        assert (first.ok, first.how, first.circuit) == (True, "call", CircuitState.HALF_OPEN)
        second = check(router, "a", colour)
        assert (second.ok, second.circuit) == (True, CircuitState.CLOSED)
        assert provider.pinged == 0, "that a list can be read shows nothing about calls that fail"
        assert router.invoke("Hi").target == "a"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_failed_probe_opens_the_circuit_again_for_longer(colour):
    clock = VirtualClock()
    with Router([at(ScriptedProvider(K.TRANSIENT))], clock=clock, retry={"same_target": 0}, seed=1) as router:
        for _ in range(5):
            with pytest.raises(Exception, match="failed"):
                router.invoke("Hi")
        before = router.health()["a"].retry_in_s
        test = check(router, "a", colour)
        assert (test.ok, test.circuit, test.kind) == (False, CircuitState.OPEN, "transient")
        after = router.health()["a"].retry_in_s
        assert before is not None
        assert after is not None
        assert after > before


@pytest.mark.parametrize("colour", COLOURS)
def test_a_probe_of_a_caller_is_never_taken_away(colour):
    clock = VirtualClock()
    provider = ScriptedProvider(*[K.TRANSIENT] * 5, "one two three")
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock, retry={"same_target": 0}) as router:
        for _ in range(5):
            router.invoke("Hi")
        clock.advance(60)
        stream = iter(router.stream("Hi"))
        next(stream)  # the caller holds the probe
        calls = provider.calls
        test = check(router, "a", colour)
        assert (test.ok, test.how) == (False, "")
        assert "a probe is under way" in str(test.error)
        assert provider.calls == calls
        list(stream)
        assert check(router, "a", colour).ok


def test_a_caller_falls_over_while_a_check_holds_the_probe():
    clock = VirtualClock()
    asked: list[str | None] = []
    provider = ScriptedProvider(*[K.TRANSIENT] * 5, lambda _: asked.append(router.invoke("Hi").target) or "OK")
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock, retry={"same_target": 0}) as router:
        for _ in range(5):
            router.invoke("Hi")
        assert router.test_target("a").ok
    assert asked == ["b"]


@pytest.mark.parametrize("colour", COLOURS)
def test_what_is_forced_open_or_parked_stays_so(colour):
    clock = VirtualClock()
    provider = Pinged(ProviderError.of(K.THROTTLED, "slow down", retry_after_s=40))
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock) as router:
        router.invoke("Hi")
        sent = provider.calls
        test = check(router, "a", colour)
        assert (test.ok, test.how) == (False, "")
        assert "parked" in str(test.error)
        router.force_open("b")
        assert "forced open" in str(check(router, "b", colour).error)
        assert (provider.calls, provider.pinged) == (sent, 0)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_locked_account_is_checked_again_by_a_call(colour):
    clock = VirtualClock()
    provider = Pinged(K.BILLING, "OK")
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock) as router:
        router.invoke("Hi")
        assert router.health()["a"].locked_for_s == 900.0
        test = check(router, "a", colour)
        assert (test.ok, test.how, provider.pinged) == (True, "call", 0)
        assert router.health()["a"].locked_for_s is None
        assert router.invoke("Hi").target == "a"


def test_callers_and_checks_together_never_have_two_probes_in_flight():
    clock = VirtualClock()
    inside = [0, 0]
    lock = threading.Lock()

    def answer(_: object) -> str:
        with lock:
            inside[0] += 1
            inside[1] = max(inside)
        time.sleep(0.002)
        with lock:
            inside[0] -= 1
        return "OK"

    provider = ScriptedProvider(*[K.TRANSIENT] * 5, answer)
    targets = [at(provider), at(ScriptedProvider(), "b")]
    options: dict[str, Any] = {"retry": {"same_target": 0}, "breaker": {"successes_to_close": 1000}}
    with Router(targets, clock=clock, **options) as router:
        for _ in range(5):
            router.invoke("Hi")
        clock.advance(60)

        def caller() -> None:
            for _ in range(20):
                router.invoke("Hi")

        def checker() -> None:
            for _ in range(20):
                router.test_target("a")

        threads = [threading.Thread(target=one) for one in (caller, checker) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert router.health()["a"].circuit is CircuitState.HALF_OPEN
        assert router.health()["a"].in_flight == 0
    assert provider.calls > 6
    assert inside[1] == 1, "one probe at a time, whoever makes it"


def test_the_list_alone_does_not_make_calls_that_fail_forgotten():
    clock = VirtualClock()
    provider = Pinged(K.TRANSIENT)
    options = {"retry": {"same_target": 0}, "breaker": {"failure_rate": 1.0}}
    with Router([at(provider), at(ScriptedProvider(), "b")], clock=clock, **options) as router:
        for _ in range(4):
            router.invoke("Hi")
        assert router.test_target("a").how == "models"
        router.invoke("Hi")
        assert router.health()["a"].circuit is CircuitState.OPEN, "the fifth in a row"


def test_lists_that_fail_open_a_circuit_before_a_user_finds_out():
    with Router([at(Pinged("OK", pings=(K.CONNECT,))), at(ScriptedProvider(), "b")], clock=VirtualClock()) as router:
        for _ in range(5):
            assert not router.test_target("a").ok
        assert router.health()["a"].circuit is CircuitState.OPEN
        assert router.invoke("Hi").target == "b"


@pytest.mark.parametrize("colour", COLOURS)
@timed
def test_all_targets_are_tested_at_the_same_time_and_the_table_says_how(colour):
    with FaultServer({"@models": ["hang"]}) as server:
        targets = [target(server, wire) for wire in WIRES]
        with Router([*targets, at(ScriptedProvider("OK"), "<b>")]) as router:
            router.warm()
            begun = time.monotonic()
            tests = (
                router.test_targets(timeout_s=1.0) if colour == "sync" else asyncio.run(all_of(router, timeout_s=1.0))
            )
            took = time.monotonic() - begun
        assert took < 2.9, "one after another they would take 3 s"
        assert [test.ok for test in tests] == [False, False, False, True]
        assert not tests.ok
        assert len(tests) == 4
        assert tests["<b>"].how == "call"
        with pytest.raises(KeyError):
            tests["nobody"]
        page = tests._repr_html_()
        assert "&lt;b&gt;" in page
        assert "<b>yes" not in page.replace('<b style="color:#2e7d32">yes', "")
        assert "not well: " in str(tests)
        assert "sk-test" not in page + str(tests) + repr(tests)
        assert tests["openai"]._repr_html_().count("<tr>") == 2


@pytest.mark.parametrize("colour", COLOURS)
def test_a_call_that_a_hard_budget_forbids_is_not_made(colour):
    provider = ScriptedProvider("OK")
    dear = Price(input=1_000_000, output=1_000_000)
    with Router([at(provider, price=dear)], budgets=[Budget(0.001, window="day")]) as router:
        test = check(router, "a", colour)
        assert (test.ok, test.how, provider.calls) == (False, "", 0)
        assert "over budget" in str(test.error)
        assert router.health()["a"].in_flight == 0


def test_a_disabled_target_can_be_tested():
    with Router([at(ScriptedProvider()), at(ScriptedProvider(), "b")]) as router:
        router.disable("a")
        assert router.test_target("a").ok


def test_what_makes_no_sense_is_refused():
    with Router([at(ScriptedProvider())]) as router:
        with pytest.raises(ConfigurationError, match="no target is named 'x'"):
            router.test_target("x")
        with pytest.raises(ConfigurationError, match="no list of models"):
            router.test_target("a", how="models")
        with pytest.raises(ConfigurationError, match="timeout_s"):
            router.test_target("a", timeout_s=0)
        with pytest.raises(ConfigurationError, match="how"):
            router.test_target("a", how="guess")  # type: ignore[arg-type]  # what a program may write
    with pytest.raises(ConfigurationError, match="closed"):
        router.test_target("a")


@pytest.mark.parametrize("colour", COLOURS)
def test_a_bug_of_a_provider_is_raised_and_leaves_nothing_open(colour):
    clock = VirtualClock()
    with Router([at(Pinged("OK", pings=(TypeError("bug"), True)))], clock=clock) as router:
        with pytest.raises(TypeError, match="bug"):
            check(router, "a", colour)
        health = router.health()["a"]
        assert (health.in_flight, health.calls, health.status) == (0, 0, HealthStatus.UNKNOWN)
        assert check(router, "a", colour).ok


async def test_cancelling_a_test_leaves_nothing_open():
    with FaultServer({"@models": ["hang"], "m": ["hang"]}) as server:
        async with Router([target(server, "openai")]) as router:
            await router.awarm()
            for how in ("models", "call"):
                task = asyncio.create_task(router.atest_target("openai", how=how))
                await asyncio.to_thread(server.wait_for, lambda server: server.in_flight == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                health = router.health()["openai"]
                assert (health.in_flight, health.calls) == (0, 0)
                assert health.circuit is CircuitState.CLOSED
                await asyncio.to_thread(server.wait_idle)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "bad",
    [
        {"interval_s": 0}, {"interval_s": float("nan")}, {"timeout_s": -1}, {"timeout_s": True}, {"jitter": 2},
        {"jitter": "much"}, {"max_tokens": 0}, {"max_tokens": 1.5}, {"how": "guess"}, {"query": " "}, {"targets": "a"},
        {"interval": 3}, {"targets": ["nobody"]},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_when_they_are_given(bad):
    with pytest.raises(ConfigurationError):
        Router([at(ScriptedProvider())], health_check=bad)


@pytest.mark.parametrize("given", [True, {}, {"interval_s": 30}, HealthCheck()])
def test_health_checks_are_switched_on_by_true_a_mapping_or_a_value(given):
    with Router([at(ScriptedProvider())], health_check=given) as router:
        assert probes_of(router).check == HealthCheck()


@pytest.mark.parametrize("given", [None, False])
def test_they_are_off_by_default_and_cost_nothing(given):
    with Router([at(ScriptedProvider())], health_check=given) as router:
        router.start()
        router.invoke("Hi")
        assert router._probes is None


def test_they_are_read_from_a_file(tmp_path):
    path = tmp_path / "fallback.toml"
    path.write_text('targets = ["openai:gpt-5-mini"]\n[health_check]\ninterval_s = 7\nhow = "models"\n')
    with Router.from_config(path, targets=[at(ScriptedProvider())]) as router:
        assert probes_of(router).check == HealthCheck(interval_s=7, how="models")


def test_they_are_switched_on_and_off_while_the_router_runs(monkeypatch):
    quiet(monkeypatch)
    clock, provider = VirtualClock(), Pinged()
    with Router([at(provider)], clock=clock) as router:
        assert router.reconfigure(health_check={"interval_s": 10}) == ("health_check",)
        checked(router, clock, 100)
        assert provider.pinged >= 7
        with pytest.raises(ConfigurationError):
            router.reconfigure(health_check={"interval_s": -1})
        router.reconfigure(health_check=False)
        before = provider.pinged
        checked(router, clock, 100)
        assert provider.pinged == before


def test_switching_them_on_begins_them_though_nobody_asks():
    """A router whose first request was long ago, or is yet to come: there is no next one to begin with."""
    provider = Pinged()
    with Router([at(provider)]) as router:
        router.invoke("Hello")
        router.start()  # nothing to begin yet
        router.reconfigure(health_check={"interval_s": 0.01})
        until(lambda: provider.pinged >= 2)


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────

CLEAR = Standing(clear=True, refused=False, retry_at=None, heard=100.0, failed=False)


@given(st.floats(0, 0.999), st.floats(0, 1), st.floats(0.1, 1000))
def test_a_target_that_is_well_is_checked_when_an_interval_has_passed_give_or_take_the_jitter(chance, jitter, interval):
    due = next_check(HealthCheck(interval_s=interval, jitter=jitter), CLEAR, 0.0, chance)
    assert 100.0 + interval * (1 - jitter) - 1e-6 <= due <= 100.0 + interval * (1 + jitter) + 1e-6


@given(st.floats(0, 0.999))
def test_the_end_of_a_pause_is_waited_for_and_never_cut_short(chance):
    standing = CLEAR._replace(refused=True, retry_at=130.0)
    assert 130.0 <= next_check(HealthCheck(), standing, 0.0, chance) <= 131.0
    broken = standing._replace(clear=False)
    assert next_check(HealthCheck(), broken, 0.0, chance) == 130.0, "or a user would be the one who finds out"
    assert next_check(HealthCheck(), standing._replace(retry_at=None), 0.0, chance) == float("inf")


@given(st.floats(0, 0.999))
def test_one_that_is_due_for_its_probe_is_looked_at_within_a_second(chance):
    standing = CLEAR._replace(clear=False)
    assert 100.0 < next_check(HealthCheck(), standing, 0.0, chance) <= 101.0
    assert next_check(HealthCheck(), standing._replace(heard=None), 0.0, chance) == float("-inf")


def test_a_check_that_failed_is_soon_followed_by_another():
    steady = HealthCheck(interval_s=30, jitter=0)
    assert next_check(steady, CLEAR._replace(failed=True), 0.0, 0.5) == 106.0
    assert next_check(steady, CLEAR, 0.0, 0.5) == 130.0


def test_a_thousand_processes_do_not_check_at_once():
    chance = random.Random(1)
    unheard = CLEAR._replace(heard=None)
    due = sorted(next_check(HealthCheck(), unheard, 0.0, chance.random()) for _ in range(1000))
    busiest = max(sum(at <= other < at + 1 for other in due) for at in due)
    assert busiest < 70, "in any one of thirty seconds"
    again = sorted(next_check(HealthCheck(), CLEAR, 0.0, chance.random()) for _ in range(1000))
    assert max(sum(at <= other < at + 1 for other in again) for at in again) < 140


# ── in the background, on a virtual clock ────────────────────────────────────────────────────────────────────────────


def checked(router: Router, clock: VirtualClock, seconds: float) -> None:
    """Let time pass as the thread would see it."""
    until = clock.monotonic() + seconds
    while clock.monotonic() < until:
        wait = probes_of(router).tick()
        clock.advance(min(max(wait, 0.01), until - clock.monotonic()))


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread: the test turns the handle."""
    monkeypatch.setattr(Probes, "start", lambda self: None)


def test_targets_that_nobody_asks_are_checked_once_an_interval(monkeypatch):
    quiet(monkeypatch)
    clock, provider = VirtualClock(), Pinged()
    with Router([at(provider)], clock=clock, health_check=True) as router:
        checked(router, clock, 600)
        assert 15 <= provider.pinged <= 26, "600 s, 30 s apart, a fifth more or less"
        assert provider.calls == 0
        assert len(router.ledger.entries()) == provider.pinged


def test_a_target_in_use_is_not_checked(monkeypatch):
    quiet(monkeypatch)
    clock, used, idle = VirtualClock(), Pinged(), Pinged()
    with Router([at(used), at(idle, "b")], clock=clock, health_check=True) as router:
        router.invoke("Hi")
        for _ in range(100):
            router.invoke("Hi")
            checked(router, clock, 6)
        assert used.pinged == 0
        assert idle.pinged >= 15


def test_disabled_targets_and_those_that_are_not_named_are_left_alone(monkeypatch):
    quiet(monkeypatch)
    clock = VirtualClock()
    a, b, c = Pinged(), Pinged(), Pinged()
    with Router([at(a), at(b, "b"), at(c, "c")], clock=clock, health_check={"targets": ["a", "b"]}) as router:
        router.disable("b")
        checked(router, clock, 300)
        assert (a.pinged > 5, b.pinged, c.pinged) == (True, 0, 0)
        router.enable("b")
        checked(router, clock, 100)
        assert b.pinged >= 1


def test_a_dead_primary_is_probed_in_its_users_stead_and_gets_its_traffic_back(monkeypatch):
    quiet(monkeypatch)
    clock, seen = VirtualClock(), []
    down = [True]
    primary = Pinged(lambda _: K.CONNECT if down[0] else "from a")
    with Router(
        [at(primary), at(ScriptedProvider("from b"), "b")],
        clock=clock,
        health_check=True,
        retry={"same_target": 0},
        on_event=seen.append,
    ) as router:
        for _ in range(5):
            router.invoke("Hi")
        assert router.health()["a"].circuit is CircuitState.OPEN
        by_users = primary.calls
        for _ in range(10):
            checked(router, clock, 30)
            assert router.invoke("Hi").target == "b"
        assert by_users < primary.calls <= by_users + 25, "about one probe per open time"
        down[0] = False
        checked(router, clock, 40)
        assert router.health()["a"].circuit is CircuitState.CLOSED
        assert router.invoke("Hi").text == "from a"
        router.flush_events()
        probes = [e for e in router.ledger.entries() if e.target == "a" and e.purpose == "probe"]
        users = [e for e in router.ledger.entries() if e.target == "a" and e.purpose == "call"]
        assert len(users) == by_users + 1, "no user was asked to find out"
        assert len(probes) == primary.calls - by_users - 1 + primary.pinged
        assert all(isinstance(e, LedgerEntry) for e in probes)
        assert [type(e) for e in seen if isinstance(e, TargetRecovered)] == [TargetRecovered]
        assert all(e.background for e in seen if isinstance(e, TargetProbed))
        assert {e.state for e in seen if isinstance(e, CircuitChanged)} >= {"circuit half-open", "circuit closed"}


def test_open_circuits_get_no_packet_before_their_time(monkeypatch):
    quiet(monkeypatch)
    clock = VirtualClock()
    arrived: list[tuple[float, float | None]] = []

    def answer(_: object) -> K:
        gate = router._fleet.named("a").gate
        arrived.append((clock.monotonic(), gate.breaker.open_until))
        return K.TRANSIENT

    with Router(
        [at(ScriptedProvider(answer)), at(ScriptedProvider(), "b")],
        clock=clock,
        health_check={"interval_s": 1},
        retry={"same_target": 0},
    ) as router:
        opened: list[tuple[float, float]] = []
        for _ in range(5):
            router.invoke("Hi")
        for _ in range(400):
            until = router._fleet.named("a").gate.breaker.open_until
            if until is not None:
                opened.append((clock.monotonic(), until))
            checked(router, clock, 0.5)
        for now, until in opened:
            assert not [at for at, _ in arrived if now < at < until - 1e-9]
        assert len(arrived) > 10


def test_a_bug_in_one_target_keeps_nobody_from_being_checked(monkeypatch, caplog):
    quiet(monkeypatch)
    clock, fine = VirtualClock(), Pinged()
    with Router([at(Pinged(pings=(TypeError("bug"),))), at(fine, "b")], clock=clock, health_check=True) as router:
        checked(router, clock, 200)
        assert fine.pinged >= 5
        assert "the health check of a failed" in caplog.text
        assert router.health()["a"].status is HealthStatus.UNHEALTHY


def test_a_target_whose_rates_are_used_up_is_not_hammered(monkeypatch):
    quiet(monkeypatch)
    clock, provider = VirtualClock(), Pinged()
    targets = [at(provider, limits={"concurrency": 1}), at(ScriptedProvider(), "b")]
    with Router(targets, clock=clock, health_check={"interval_s": 10}) as router:
        stream = iter(router.stream("Hi"))
        next(stream)  # holds the one slot
        looks = 0
        until = clock.monotonic() + 100
        while clock.monotonic() < until:
            clock.advance(max(probes_of(router).tick(), 0.01))
            looks += 1
        assert provider.pinged == 0
        assert looks <= 110, "about once a second"
        stream.close()


def test_where_only_lists_are_to_be_read_one_without_is_left_alone(monkeypatch, caplog):
    quiet(monkeypatch)
    clock, provider = VirtualClock(), ScriptedProvider()
    with Router([at(provider)], clock=clock, health_check={"how": "models"}) as router:
        checked(router, clock, 100)
        assert provider.calls == 0
        assert router.health()["a"].status is HealthStatus.UNKNOWN
        assert not caplog.records


def test_a_target_that_is_added_is_checked_and_one_that_is_removed_is_not(monkeypatch):
    quiet(monkeypatch)
    clock, first, second = VirtualClock(), Pinged(), Pinged()
    with Router([at(first), at(ScriptedProvider(), "z")], clock=clock, health_check=True) as router:
        checked(router, clock, 100)
        router.remove("a")
        router.add(at(second, "b"))
        before = first.pinged
        checked(router, clock, 200)
        assert first.pinged == before
        assert second.pinged >= 4


# ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────────


def health_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llm-fallback-health"]


def threads_by_now() -> int:
    """How many there are when those of earlier tests have ended."""
    assert eventually(lambda: gc.collect() >= 0 and not health_threads())
    return 0


def eventually(what: Any, timeout_s: float = LONG_S) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if what():
            return True
        time.sleep(0.005)
    return False


def test_one_daemon_thread_starts_with_the_first_request_and_ends_with_the_router():
    before = threads_by_now()
    provider = Pinged()
    router = Router([at(provider)], health_check={"interval_s": 0.02})
    assert len(health_threads()) == before, "nothing happens before it is used"
    router.invoke("Hi")
    router.invoke("Hi")
    mine = health_threads()
    assert len(mine) == before + 1
    assert all(thread.daemon for thread in mine)
    assert eventually(lambda: provider.pinged > 3)
    router.close()
    assert eventually(lambda: len(health_threads()) == before)
    pinged = provider.pinged
    time.sleep(0.05)
    assert provider.pinged <= pinged + 1


def test_start_begins_without_a_request():
    provider = Pinged()
    with Router([at(provider)], health_check={"interval_s": 0.02}) as router:
        router.start()
        assert eventually(lambda: provider.pinged > 1)


def test_a_router_that_was_forgotten_takes_its_thread_along():
    before = threads_by_now()
    router = Router([at(Pinged())], health_check={"interval_s": 50})
    router.invoke("Hi")
    gone = weakref.ref(router)
    assert len(health_threads()) == before + 1
    del router
    assert eventually(lambda: gc.collect() >= 0 and gone() is None and len(health_threads()) == before)


def test_an_outage_at_the_wire_ends_without_a_user_finding_out():
    with FaultServer({"m": [503]}) as server:
        targets = [target(server, "openai", "a"), at(ScriptedProvider("from b"), "b")]
        breaker = {"open_s": 0.05, "open_cap_s": 0.1}
        with Router(targets, health_check={"interval_s": 0.2}, breaker=breaker, retry={"same_target": 0}) as router:
            for _ in range(5):
                assert router.invoke("Hi").target == "b"
            server.script("m", "ok")
            assert eventually(lambda: router.health()["a"].circuit is CircuitState.CLOSED)
            assert router.invoke("Hi").target == "a"
        server.wait_idle()


def test_a_check_that_hangs_holds_up_neither_requests_nor_closing():
    with FaultServer({"@models": ["hang"]}) as server:
        router = Router([target(server, "openai", "a")], health_check={"interval_s": 0.02, "timeout_s": 100})
        assert router.invoke("Hi").target == "a"
        assert eventually(lambda: server.count("@models") > 0 or len(server.requests) > 1)
        begun = time.monotonic()
        router.invoke("Hi")
        router.close()
        assert time.monotonic() - begun < LONG_S, "and not a hundred"


PROGRAM = """
    import os, sys, threading, time
    from shared_core import Router, Target
    from shared_core.testing import ScriptedProvider

    class Pinged(ScriptedProvider):
        pinged = 0
        def ping(self, guard):
            Pinged.pinged += 1
            return True

    def until(what):
        end = time.monotonic() + 20
        while not what() and time.monotonic() < end:
            time.sleep(0.005)
        return what()

    router = Router([Target(provider=Pinged(), name="a")], health_check={"interval_s": 0.02})
    router.invoke("Hi")
    assert until(lambda: Pinged.pinged > 1)
    child = os.fork()
    if child == 0:
        Pinged.pinged = 0
        time.sleep(0.03)
        quiet = Pinged.pinged == 0                  # its thread did not come along
        router.invoke("Hi")                         # and begins anew
        os._exit(0 if quiet and until(lambda: Pinged.pinged > 1) else 7)
    _, status = os.waitpid(child, 0)
    print("child", os.waitstatus_to_exitcode(status))
    before = Pinged.pinged
    print("parent", until(lambda: Pinged.pinged > before))
    # Neither closed nor joined: the program ends all the same.
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_begins_anew_and_no_thread_keeps_a_program_alive():
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout.split("\n")[:2] == ["child 0", "parent True"], ended.stderr
    assert ended.returncode == 0


# ── operating ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_change_an_operator_makes_is_told():
    seen: list[Any] = []
    with Router([at(ScriptedProvider()), at(ScriptedProvider(), "b")], on_event={TargetChanged: seen.append}) as router:
        router.add(at(ScriptedProvider(), "c"))
        router.replace("c", at(ScriptedProvider(), "d"))
        router.disable("b")
        router.enable("b")
        router.pin("b")
        router.unpin()
        router.unpin()
        router.remove("d")
        router.flush_events()
    assert [(e.change, e.target, e.other) for e in seen] == [
        ("added", "c", None), ("replaced", "d", "c"), ("disabled", "b", None), ("enabled", "b", None),
        ("pinned", "b", None), ("unpinned", "b", None), ("removed", "d", None),
    ]  # fmt: skip
    assert {e.execution for e in seen} == {""}


def test_circuits_are_forced_by_hand_and_that_is_told():
    seen: list[Any] = []
    with Router([at(ScriptedProvider(K.TRANSIENT, "OK")), at(ScriptedProvider(), "b")], on_event=seen.append) as router:
        router.force_open("a")
        assert router.invoke("Hi").target == "b"
        router.force_close("a")
        assert isinstance(router.invoke("Hi"), Answer)
        router.disable_breaker("a")
        router.reset("a")
        with pytest.raises(ConfigurationError):
            router.force_close("nobody")
        router.flush_events()
    told = [(e.state, e.reason) for e in seen if isinstance(e, CircuitChanged)]
    assert told == [
        ("circuit forced open", "by hand"), ("circuit closed", "by hand"), ("circuit disabled", "by hand"),
        ("circuit closed", "by hand"),
    ]  # fmt: skip


def test_force_close_leaves_locks_and_pauses_as_they_are():
    clock = VirtualClock()
    with Router([at(ScriptedProvider(K.BILLING)), at(ScriptedProvider(), "b")], clock=clock) as router:
        router.invoke("Hi")
        router.force_close("a")
        assert router.health()["a"].locked_for_s == 900.0
        router.reset("a")
        assert router.health()["a"].locked_for_s is None
