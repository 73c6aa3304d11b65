"""Callers before one local model: priorities, the queue's own limit, turns that would come too late, fair refusals."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from shared_core._clock import SystemClock
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import AllTargetsFailed, ErrorKind, InvalidRequest, ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.breaker import CircuitState
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.retry import RetryPolicy
from shared_core.router import Router
from shared_core.routing.target import Target
from shared_core.testing import ScriptedProvider
from tests.local.support import aanswer, answer, ask, begin, guard
from tests.timing import LONG_S


@pytest.fixture
def endless(random_gguf):
    """Makes providers whose answers last for seconds, with a worker of their own; closes them afterwards."""
    made: list[LlamaCppProvider] = []

    def make(**options) -> LlamaCppProvider:
        options = {"queue": 20, "n_ctx": 8192, "max_tokens": 8000, "startup_timeout_s": 99.0 + len(made), **options}
        made.append(LlamaCppProvider(Target(f"llamacpp:{random_gguf}", **options)))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def supervisor(provider: LlamaCppProvider):
    return provider._held[provider.model]


def waits(provider: LlamaCppProvider, number: int) -> None:
    """Return when so many requests are waiting."""
    end = time.monotonic() + LONG_S
    while supervisor(provider).load[1] != number:
        assert time.monotonic() < end, f"{supervisor(provider).load} are served and waiting, not {number}"
        time.sleep(0.002)


def measured(provider: LlamaCppProvider) -> None:
    """Let the provider know its own speed, and that answers are usually long."""
    answer(provider, "go " * 20, max_tokens=400)


# ── priorities ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_waiting_requests_are_served_by_priority_and_then_as_they_came(endless):
    provider = endless(priority=-1)
    events = begin(provider)
    served: list[str] = []
    give = supervisor(provider)._give

    def noted(call, selector):
        served.append(call.job["messages"][-1]["content"])
        give(call, selector)

    supervisor(provider)._give = noted
    threads = []
    for name, extra in (("a", {}), ("b", {"priority": 5}), ("c", {}), ("d", {"priority": -50}), ("e", {"priority": 5})):

        def one(name: str = name, extra: dict = extra) -> None:
            answer(provider, name, max_tokens=1, extra={"llamacpp": extra})

        threads.append(threading.Thread(target=one))
        threads[-1].start()
        waits(provider, len(threads))
    events.close()
    for thread in threads:
        thread.join(LONG_S)
    assert served == ["b", "e", "a", "c", "d"]


@pytest.mark.parametrize("wrong", [101, -101, 1.5, "high", True, None])
def test_a_priority_out_of_range_is_refused_before_anything_is_sent(noise, wrong):
    with pytest.raises(InvalidRequest, match=r"priority.*a whole number, -100 to 100"):
        answer(noise, "x", extra={"llamacpp": {"priority": wrong}})


def test_a_full_queue_gives_its_last_place_to_a_higher_priority(endless):
    provider = endless(queue=1)
    events = begin(provider)
    failed: list[ProviderError] = []

    def low() -> None:
        try:
            answer(provider, "low")
        except ProviderError as error:
            failed.append(error)

    thread = threading.Thread(target=low)
    thread.start()
    waits(provider, 1)
    high = threading.Thread(target=lambda: answer(provider, "x", max_tokens=1, extra={"llamacpp": {"priority": 1}}))
    high.start()
    thread.join(LONG_S)
    assert failed[0].kind is ErrorKind.OVERLOADED
    assert "a request of higher priority has taken its place" in str(failed[0])
    assert "hint: queue=" in str(failed[0])
    events.close()
    high.join(LONG_S)


# ── limits of their own ──────────────────────────────────────────────────────────────────────────────────────────────


def test_waiting_for_a_turn_does_not_count_against_the_first_token(endless):
    provider = endless(queue_timeout_s=30.0)
    events = begin(provider)
    limits = guard(5.0)
    got = []
    thread = threading.Thread(target=lambda: got.append(list(provider.stream(ask("x", max_tokens=1), limits))))
    thread.start()
    end = time.monotonic() + LONG_S
    while limits.remaining() < 20:  # until it has heard that it is queued: from then on only the deadline counts
        assert time.monotonic() < end
        time.sleep(0.002)
    events.close()
    thread.join(LONG_S)
    assert got[0][-1].usage.output_tokens == 1


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_turn_that_does_not_come_in_time_is_busy_and_leaves_the_queue(endless, face):
    provider = endless(queue_timeout_s=0.05)
    events = begin(provider)
    with pytest.raises(ProviderError, match=r"busy: no turn in time, within 0\.1 s") as caught:
        if face == "sync":
            answer(provider, "x")
        else:
            asyncio.run(aanswer(provider, "x"))
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert supervisor(provider).load == (1, 0)
    events.close()


def test_the_time_to_load_is_no_waiting_for_a_turn(endless):
    provider = endless(queue_timeout_s=0.02)
    assert answer(provider, "x", max_tokens=1).usage.output_tokens == 1


async def test_a_cancelled_task_leaves_the_queue(endless):
    provider = endless()
    await provider.awarm()
    events = begin(provider)
    task = asyncio.create_task(aanswer(provider, "x"))
    await asyncio.to_thread(waits, provider, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert supervisor(provider).load == (1, 0)
    events.close()


# ── turns that would come too late ───────────────────────────────────────────────────────────────────────────────────

TOO_LATE: dict[str, Callable[[LlamaCppProvider], object]] = {
    "its queue limit": lambda p: list(p.stream(ask("x"), guard(0.001))),
    "its deadline": lambda p: list(p.stream(ask("x"), guard(60.0, total_s=0.001))),
}


@pytest.mark.parametrize("case", TOO_LATE, ids=list(TOO_LATE))
def test_who_cannot_be_served_in_time_is_refused_at_once_with_the_estimate(endless, case):
    provider = endless()
    measured(provider)
    events = begin(provider)
    with pytest.raises(ProviderError, match=r"busy: a turn is expected in \d") as caught:
        TOO_LATE[case](provider)
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert (caught.value.retry_after_s is None) == (case == "its deadline")
    assert caught.value.retryable_hint is (False if case == "its deadline" else None), "later would be too late as well"
    assert supervisor(provider).load == (1, 0)
    events.close()


def test_an_idle_model_is_tried_whatever_the_estimate_says(endless):
    provider = endless()
    measured(provider)
    with pytest.raises(ProviderError) as caught:
        answer_within(provider, 0.01)
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert answer_within(provider, 30.0, max_tokens=3).usage.output_tokens == 3


def answer_within(provider, seconds: float, **fields):
    from shared_core.chat.events import collect

    return collect(provider.stream(ask("go", **fields), guard(60.0, total_s=seconds)))


def test_a_busy_model_is_passed_over_and_its_circuit_stays_closed(endless):
    """Being busy is no illness: whoever comes a moment later may find a place."""
    provider = endless(queue=0)
    events = begin(provider)
    local = Target(provider=provider, name="local")
    hosted = ScriptedProvider("from afar", name="hosted")
    with Router([local, Target(provider=hosted, name="hosted")]) as router:
        for _ in range(8):
            assert router.invoke("Hello").target == "hosted"
        health = router.health()["local"]
        assert health.circuit is CircuitState.CLOSED
        assert health.available
        events.close()
        assert router.invoke(ChatRequest((user("x"),), max_tokens=2)).target == "local"


def test_a_request_that_only_a_busy_model_can_serve_waits_and_comes_again(endless):
    provider = endless(queue=0)
    events = begin(provider)

    class Meanwhile(SystemClock):
        """The model becomes free while the router waits for its next try."""

        def sleep(self, seconds: float) -> None:
            waits.append(seconds)
            events.close()

    waits: list[float] = []
    with Router([Target(provider=provider, name="local")], clock=Meanwhile()) as router:
        served = router.invoke(ChatRequest((user("x"),), max_tokens=2))
    assert served.usage.output_tokens == 2
    assert len(waits) == 1


def test_when_nobody_can_be_asked_in_time_the_error_says_why(endless):
    provider = endless(queue=0)
    measured(provider)
    events = begin(provider)
    local = Target(provider=provider, name="local", timeouts=Timeouts(first_token=0.01, attempt=0.01))
    with Router([local], retry=RetryPolicy(same_target=0)) as router, pytest.raises(AllTargetsFailed) as caught:
        router.invoke("Hello")
    assert "a turn is expected in" in str(caught.value)
    assert caught.value.__cause__.kind is ErrorKind.OVERLOADED
    assert caught.value.is_retryable
    events.close()
