"""Conduct at the wire: how many packets a failing target gets, when, and what leaving it does. Real SDKs, sockets."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from shared_core import (
    AllTargetsFailed,
    BreakerConfig,
    ChatRequest,
    CircuitState,
    ErrorKind,
    ProviderError,
    RetryPolicy,
    Router,
    Target,
    TextDelta,
    Timeouts,
    user,
)
from shared_core.testing import CANONICAL, Answer, Fault, SeenRequest
from tests.faults import matrix, walls
from tests.timing import timed

pytestmark = pytest.mark.provider

ASK = ChatRequest((user("When does the café open?"),))
LONG = Timeouts(first_token=10, reasoning_first_token=10, idle=10, attempt=10, total=20)
SILENCE_S = 0.15
BUSY_S = 0.6
"""How much later than promised a thing may be seen on a machine that is busy elsewhere. The evidence has no margin."""
CALLERS = 20

each_colour = pytest.mark.parametrize("colour", ["sync", "async"])
each_shape = pytest.mark.parametrize("shape", ["whole", "streamed"])
each_vendor = pytest.mark.parametrize("vendor", [*matrix.MAIN, "google-legacy"])


@pytest.fixture(scope="module")
def bench() -> Iterator[matrix.Bench]:
    with matrix.Bench() as bench:
        yield bench.warm()


ROW = [("openai", "model"), ("anthropic", "model"), ("google", "model"), ("anthropic", "reserve")]


def line_up(bench: matrix.Bench, *steps: Any, windows: Sequence[int | None] = (None,) * 4) -> list[Target]:
    """A target per script, each on the next wire, named by its place. The log starts anew."""
    bench.server.clear()
    targets = []
    for place, (step, window) in enumerate(zip(steps, windows, strict=False)):
        name, which = ROW[place]
        vendor = matrix.VENDORS[name]
        model = getattr(vendor, which)
        bench.server.script(model, step)
        provider = bench.provider(vendor, model)
        capabilities = replace(provider.capabilities, context_window=window)
        targets.append(Target(provider=provider, name=str(place), capabilities=capabilities))
    return targets


def packets(bench: matrix.Bench, count: int) -> list[int]:
    """How many requests each target of a line-up has got."""
    models = [getattr(matrix.VENDORS[name], which) for name, which in ROW[:count]]
    return [bench.server.count(model) for model in models]


def fast(targets: Sequence[Target], timeouts: Timeouts = LONG, **options: Any) -> Router:
    return Router(targets, retry=RetryPolicy(base_s=0, overloaded_base_s=0), timeouts=timeouts, seed=3, **options)


# ── a target that keeps failing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("fault", "most"),
    [
        ("server-error", 2), ("overloaded", 2), ("close-before-headers", 2), ("html-200", 2), ("conflict", 2),
        ("rate-limit-zero", 2), ("billing", 1), ("payment-required", 1), ("unauthorized", 1), ("forbidden", 1),
        ("model-not-found", 1), ("too-large", 1), ("context-overflow", 1), ("proxy-auth", 1), ("no-response", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("face", ["sync-whole", "async-streamed"])
@timed
def test_a_failing_target_gets_at_most_two_requests_and_every_later_one_its_turn(bench, count, fault, most, face):
    """Money, keys, overflow and silence are not asked twice; first tries never count against the two retries."""
    colour, shape = face.split("-")
    windows = [1_000 * 2**place for place in range(count)] if fault == "context-overflow" else [None] * count
    targets = line_up(bench, *[fault] * count, windows=windows)
    limits = replace(LONG, first_token=SILENCE_S, reasoning_first_token=SILENCE_S, attempt=SILENCE_S)
    router = fast(targets, limits if fault == "no-response" else LONG)
    got = bench.call(router, ASK, colour, shape)
    assert isinstance(got.error, AllTargetsFailed)
    sent = packets(bench, count)
    assert all(1 <= n <= most for n in sent), sent
    assert sum(sent) == (count if most == 1 else count + min(2, count)), sent
    # The journal tells the server's own story, request by request.
    assert [a["model"] for a in got.error.fallback["attempts"]] == [seen.model for seen in bench.server.requests]
    assert len(got.error.exceptions) == sum(sent)


@each_colour
@each_shape
@pytest.mark.parametrize("fault", ["billing", "payment-required", "spend-limit"])
def test_money_errors_cost_one_packet_and_lock_the_account(bench, colour, shape, fault):
    """A second target behind the same key is not asked; one behind another key is."""
    server = bench.server
    server.clear()
    server.script("gpt-4o-mini", fault).script("gpt-4.1-mini", "ok").script("claude-haiku-4-5", "ok")
    url, key = server.openai_url, "sk-one-and-the-same"
    targets = [Target(f"openai:{model}", base_url=url, api_key=key) for model in ("gpt-4o-mini", "gpt-4.1-mini")]
    vendor = matrix.VENDORS["anthropic"]
    targets.append(Target(provider=bench.provider(vendor, vendor.reserve), name="another account"))
    router = fast(targets)
    got = bench.call(router, ASK, colour, shape)
    for provider in router.providers[:2]:
        bench.close(provider)
    assert got.text == CANONICAL
    assert [server.count(m) for m in ("gpt-4o-mini", "gpt-4.1-mini", "claude-haiku-4-5")] == [1, 0, 1]
    assert router.last is not None
    assert router.last.skips[0].reason.startswith("account locked: billing")


@each_colour
@each_shape
def test_a_context_overflow_goes_to_larger_windows_only(bench, colour, shape):
    """One packet per target that could be large enough, none to one that is known to be no larger."""
    targets = line_up(bench, "context-overflow", "ok", "context-overflow", "ok", windows=[8_000, 4_000, 16_000, 32_000])
    got = bench.call(fast(targets), ASK, colour, shape)
    assert got.text == CANONICAL
    assert packets(bench, 4) == [1, 0, 1, 1]


@each_colour
@each_shape
@pytest.mark.parametrize("fault", ["no-response", "ping-drip", "header-drip", "hang-after-headers"])
@timed
def test_a_silent_target_is_left_after_its_own_limit_and_not_asked_again(bench, colour, shape, fault):
    """Measured at the server: the socket is closed when the limit is over, and the next target is asked then."""
    first, second = line_up(bench, fault, "ok")
    first = Target(
        provider=first.provider,
        name="0",
        timeouts=replace(LONG, first_token=SILENCE_S, reasoning_first_token=SILENCE_S, attempt=SILENCE_S),
    )
    router = fast([first, second])
    got = bench.call(router, ASK, colour, shape)
    assert got.text == CANONICAL
    assert packets(bench, 2) == [1, 1]
    bench.server.wait_idle()
    left, asked = bench.server.requests
    assert left.outcome == "client-closed"
    assert SILENCE_S - 0.05 <= left.client_closed_at - left.received_at <= SILENCE_S + BUSY_S
    assert asked.received_at - left.received_at >= SILENCE_S - 0.05
    assert router.health()["0"].consecutive_failures == 1


# ── Retry-After ──────────────────────────────────────────────────────────────────────────────────────────────────────

WAIT_S = 0.25
WAITS = [
    pytest.param("openai", Fault("rate-limit", retry_after=WAIT_S), id="openai-seconds"),
    pytest.param("openai", Fault("rate-limit-ms", retry_after=WAIT_S), id="openai-ms"),
    pytest.param("openai", Fault("overloaded", retry_after=WAIT_S), id="openai-overloaded"),
    pytest.param("anthropic", Fault("rate-limit", retry_after=WAIT_S), id="anthropic-seconds"),
    pytest.param("anthropic", Fault("rate-limit-ms", retry_after=WAIT_S), id="anthropic-ms"),
    pytest.param("anthropic", Fault("overloaded", retry_after=WAIT_S), id="anthropic-overloaded"),
    pytest.param("google", Fault("rate-limit", retry_after=WAIT_S), id="google-retry-info"),
    pytest.param("google-legacy", Fault("rate-limit", retry_after=WAIT_S), id="legacy-retry-info"),
]


@each_colour
@pytest.mark.parametrize(("name", "fault"), WAITS)
@timed
def test_a_wait_the_server_asks_for_is_never_shortened(bench, colour, name, fault):
    """Between the two requests, by the server's clock."""
    vendor = matrix.VENDORS[name]
    bench.server.clear()
    bench.server.script(vendor.model, [fault, "ok"])
    router = fast([Target(provider=bench.provider(vendor, vendor.model), name="0")])
    shape = "streamed" if fault.kind == "overloaded" else "whole"
    assert bench.call(router, ASK, colour, shape).text == CANONICAL
    refused, answered = bench.server.requests
    assert WAIT_S <= answered.received_at - refused.finished_at <= WAIT_S + 0.05 + 5 * BUSY_S


@each_colour
@pytest.mark.parametrize("fault", ["rate-limit-date", "rate-limit-skewed"])
@timed
def test_a_date_to_come_back_at_is_read_by_the_servers_own_clock(bench, colour, fault):
    """An hour of difference between the clocks changes nothing: the wait is one or two seconds, and not waited here."""
    targets = line_up(bench, fault)
    got = bench.call(fast(targets, replace(LONG, total=0.9)), ASK, colour, "whole")
    assert isinstance(got.error, AllTargetsFailed)
    (error,) = got.error.exceptions
    assert isinstance(error, ProviderError)
    assert error.retry_after_s is not None
    assert 0.9 < error.retry_after_s <= 2.0
    assert packets(bench, 1) == [1]


@each_colour
@timed
def test_a_parked_target_gets_no_packet_until_its_time_and_is_asked_first_again_after_it(bench, colour):
    """The calls in between go to the next target at once."""
    park = Fault("rate-limit", retry_after=0.4)
    targets = line_up(bench, [park, "ok"], "ok")
    router = Router(targets, retry=RetryPolicy(max_wait_s=0.01), timeouts=LONG)
    for _ in range(6):
        assert bench.call(router, ASK, colour, "whole").text == CANONICAL
    parked = packets(bench, 2)
    assert parked == [1, 6]
    time.sleep(0.41)
    assert bench.call(router, ASK, colour, "whole").text == CANONICAL
    assert packets(bench, 2) == [2, 6]
    refused, again = [r for r in bench.server.requests if r.model == matrix.VENDORS["openai"].model]
    assert again.received_at - refused.finished_at >= 0.4


# ── circuits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def together(colour: str, bench: matrix.Bench, call: Callable[[], str], acall: Callable[[], Any]) -> list[str]:
    """`CALLERS` calls at once: threads, or tasks of one loop."""
    if colour == "sync":
        gate = threading.Barrier(CALLERS)

        def one(_: int) -> str:
            gate.wait()
            return call()

        with ThreadPoolExecutor(CALLERS) as pool:
            return list(pool.map(one, range(CALLERS)))

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(acall() for _ in range(CALLERS)))

    return bench.run(all_of_them())


def served_by(router: Router, bench: matrix.Bench, colour: str) -> list[str]:
    """Who answered each of `CALLERS` concurrent callers."""

    def call() -> str:
        answer = router.invoke(ASK)
        assert answer.text == CANONICAL
        return str(answer.target)

    async def acall() -> str:
        answer = await router.ainvoke(ASK)
        assert answer.text == CANONICAL
        return str(answer.target)

    return together(colour, bench, call, acall)


def tripped(bench: matrix.Bench, *then: Any, open_s: float) -> Router:
    """A router whose first target has failed five times, so that its circuit is open; `then` is what it does next."""
    targets = line_up(bench, ["server-error"] * 5 + list(then), "ok")
    router = fast(targets, breaker=BreakerConfig(open_s=open_s, open_cap_s=open_s))
    while router.health()["0"].circuit is CircuitState.CLOSED:
        assert router.invoke(ASK).text == CANONICAL
    assert packets(bench, 2)[0] == 5
    return router


@each_colour
def test_an_open_circuit_sends_no_packet(bench, colour):
    """Not one, whoever calls; the next target answers everybody."""
    router = tripped(bench, "ok", open_s=60)
    before = bench.server.connections
    for _ in range(3):
        assert set(served_by(router, bench, colour)) == {"1"}
    assert packets(bench, 2)[0] == 5
    # The first target's clients have not so much as connected again: new connections belong to the second.
    assert {r.model for r in bench.server.requests[-3 * CALLERS :]} == {matrix.VENDORS["anthropic"].model}
    assert bench.server.connections - before <= 3 * CALLERS


@each_colour
@timed
def test_a_half_open_circuit_sends_one_probe_for_twenty_callers(bench, colour):
    """Two good probes close it again; whoever comes while one is under way goes to the next target."""
    router = tripped(bench, Answer(delay_s=0.4), Answer(delay_s=0.4), "ok", open_s=0.2)
    time.sleep(0.21)
    for round_ in (1, 2):
        assert sorted(served_by(router, bench, colour)) == ["0"] + ["1"] * (CALLERS - 1)
        assert packets(bench, 2)[0] == 5 + round_
    assert router.health()["0"].circuit is CircuitState.CLOSED
    assert set(served_by(router, bench, colour)) == {"0"}


@each_colour
@timed
def test_a_failing_probe_opens_the_circuit_again_for_everybody(bench, colour):
    """One packet, and nobody but its caller has waited for it."""
    router = tripped(bench, Fault("server-error", delay_s=0.3), open_s=0.2)
    time.sleep(0.21)
    assert set(served_by(router, bench, colour)) == {"1"}
    assert packets(bench, 2)[0] == 6
    assert router.health()["0"].circuit is CircuitState.OPEN


# ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_neutral(bench: matrix.Bench, router: Router) -> SeenRequest:
    """The socket is closed, and health, circuit and slots are as if the call had never been made."""
    bench.server.wait_idle()
    (seen,) = bench.server.requests
    assert seen.outcome == "client-closed"
    assert seen.client_closed_at is not None
    health = router.health()["0"]
    assert (health.success_rate, health.consecutive_failures, health.in_flight) == (None, 0, 0)
    assert health.circuit is CircuitState.CLOSED
    assert health.available
    return seen


def alone(bench: matrix.Bench, vendor: str, step: Any) -> Router:
    bench.server.clear()
    known = matrix.VENDORS[vendor]
    bench.server.script(known.model, step)
    return fast([Target(provider=bench.provider(known, known.model), name="0")])


@each_vendor
@each_shape
@timed
def test_cancelling_a_task_closes_the_socket_and_counts_as_nothing(bench, vendor, shape):
    """While it waits for the first token. The caller gets its CancelledError."""
    router = alone(bench, vendor, "no-response")

    async def main() -> float:
        async def ask() -> None:
            if shape == "whole":
                await router.ainvoke(ASK)
            async for _ in router.astream(ASK):
                raise AssertionError("nothing can have come")

        task = asyncio.create_task(ask())
        await asyncio.to_thread(bench.server.wait_for, lambda server: server.in_flight == 1)
        cancelled = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return cancelled

    cancelled = bench.run(main())
    seen = assert_neutral(bench, router)
    assert -0.01 <= seen.client_closed_at - cancelled <= BUSY_S
    assert router.last is not None
    assert router.last.outcome == "cancelled"


@each_vendor
@pytest.mark.parametrize("step", ["stall", Answer("word " * 500, every_s=0.02)], ids=["stalled", "talking"])
def test_closing_an_async_stream_closes_the_socket_and_counts_as_nothing(bench, vendor, step):
    """In the middle of an answer, whether it talks or is silent."""
    router = alone(bench, vendor, step)

    async def main() -> None:
        async with router.astream(ASK) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    break

    bench.run(main())
    assert_neutral(bench, router)


@each_vendor
@pytest.mark.parametrize("step", ["stall", Answer("word " * 500, every_s=0.02)], ids=["stalled", "talking"])
@pytest.mark.parametrize("how", ["close", "with", "deserted"])
def test_leaving_a_sync_stream_closes_the_socket_and_counts_as_nothing(bench, vendor, step, how):
    """By `close`, by the end of a `with`, or by forgetting it."""
    router = alone(bench, vendor, step)
    stream = router.stream(ASK)
    for event in stream:
        if isinstance(event, TextDelta):
            break
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    assert_neutral(bench, router)
    assert router.last is not None
    assert router.last.outcome == "abandoned"


@each_shape
def test_a_cancelled_probe_decides_nothing(bench, shape):
    """The circuit stays half-open, and the next caller is the probe."""
    router = tripped(bench, "no-response", "ok", open_s=0.05)
    time.sleep(0.06)

    async def main() -> None:
        async def ask() -> None:
            if shape == "whole":
                await router.ainvoke(ASK)
            else:
                async for _ in router.astream(ASK):
                    pass

        task = asyncio.create_task(ask())
        await asyncio.to_thread(bench.server.wait_for, lambda server: server.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    bench.run(main())
    assert router.health()["0"].circuit is CircuitState.HALF_OPEN
    assert router.invoke(ASK).target == "0"
    assert packets(bench, 2)[0] == 7


@timed
def test_a_cancelled_call_of_many_leaves_the_others_alone(bench):
    """Half of twenty tasks on one connection pool are cancelled; the other half get their answers."""
    router = alone(bench, "openai", Answer(delay_s=0.5))

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(router.ainvoke(ASK)) for _ in range(CALLERS)]
        await asyncio.to_thread(bench.server.wait_for, lambda server: server.in_flight == CALLERS)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = bench.run(main())
    assert [type(r).__name__ for r in results] == ["CancelledError", "Answer"] * (CALLERS // 2)
    health = router.health()["0"]
    assert (health.success_rate, health.in_flight) == (1.0, 0)


# ── the deadline ─────────────────────────────────────────────────────────────────────────────────────────────────────

# All wires are measured by `make evidence`; here one vendor meets everything and the others what differs between SDKs.
WALLS = [*walls.walls(["openai"]), *[w for w in walls.walls(["anthropic", "google", "google-legacy"])
                                      if w.what in ("no-response", "ping-drip", "stall", walls.TALKS)]]  # fmt: skip


@pytest.mark.parametrize("wall", WALLS, ids=lambda wall: wall.id)
@timed
def test_the_deadline_is_a_wall(bench, wall):
    """50 ms late at most in a task, 250 ms in a thread, and some margin here for a machine that is busy elsewhere."""
    bench.server.clear()
    assert walls.overshoot(wall, bench) <= walls.PROMISE_S[wall.colour] + BUSY_S


@each_colour
@each_shape
@timed
def test_three_silent_targets_share_one_deadline(bench, colour, shape):
    """Each gets its turn within the deadline, none takes the time of those behind it."""
    targets = line_up(bench, "no-response", "hang-after-headers", "no-response")
    got = bench.call(fast(targets, replace(LONG, total=0.45)), ASK, colour, shape)
    assert isinstance(got.error, AllTargetsFailed)
    assert packets(bench, 3) == [1, 1, 1]
    assert got.took_s <= 0.45 + walls.PROMISE_S[colour] + BUSY_S
    kinds = {e.kind for e in got.error.exceptions if isinstance(e, ProviderError)}
    assert kinds == {ErrorKind.TIMEOUT}
