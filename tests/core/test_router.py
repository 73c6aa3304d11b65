"""The router: bad input, walking away, concurrency, closing, and what it prints."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time

import pytest

from shared_core import (
    AllTargetsFailed,
    AttemptFailed,
    Capabilities,
    ChatRequest,
    CircuitChanged,
    ConfigurationError,
    ErrorKind,
    FellOver,
    Finished,
    InvalidRequest,
    Price,
    ProviderError,
    RequestFailed,
    RequestStarted,
    RequestSucceeded,
    RetryPolicy,
    Router,
    Started,
    StreamContinued,
    Target,
    TextDelta,
    Timeouts,
    ToolCallDelta,
    UnknownOption,
    Usage,
    assistant,
    router_options,
    system,
    user,
)
from shared_core.routing.price import FREE
from shared_core.testing import Broken, ScriptedProvider, Silence, VirtualClock
from tests.timing import LONG_S, auntil, timed, until

from .conftest import REQUEST

K = ErrorKind


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda p: Router([]), ConfigurationError, "at least one target"),
        (lambda p: Router([p, p]), ConfigurationError, "two targets share the name 'scripted:script'"),
        (lambda p: Router([p], stratgy="x"), UnknownOption, "Did you mean 'strategy'"),
        (lambda p: Router([p], on_stream_break="retry"), ConfigurationError, "continue, restart, raise"),
        (lambda p: Router([p], timeouts={"totl": 3}), UnknownOption, "Did you mean 'total'"),
        (lambda p: Router([p], timeouts={"total": 0}), ConfigurationError, "positive"),
        (lambda p: Router([p], timeouts=5), ConfigurationError, "Timeouts or a mapping"),
        (lambda p: Router([p], retry={"same_target": -1}), ConfigurationError, ">= 0"),
        (lambda p: Router([3]), ConfigurationError, "a target is"),
        (lambda p: Router([""]), ConfigurationError, "a target needs a spec"),
        (lambda p: Router(["gpt-5"]), ConfigurationError, "'provider:model'"),
        (lambda p: Router([":x"]), ConfigurationError, "'provider:model'"),
        (lambda p: Router(["opnai:x"]), ConfigurationError, "Did you mean 'openai'"),
        (lambda p: Router([{"spec": "openai:x", "wieght": 3, "api_key": "k"}]), ConfigurationError, "weight"),
        (lambda p: Target("openai:x", weight=-1), ConfigurationError, "weight"),
        (lambda p: Target("openai:x", tier="huge"), ConfigurationError, "tier"),
        (lambda p: Target("openai:x", provider="openai"), ConfigurationError, "not both"),
        (lambda p: Target("openai:x", price={"input": -1}), ConfigurationError, "Price.input"),
        (lambda p: Target("openai:x", price={"imput": 1}), UnknownOption, "Did you mean 'input'"),
        (lambda p: Target(provider=p, wieght=2), UnknownOption, "Did you mean 'weight'"),
        (lambda p: Target("openai:x", capabilities={"context_window": 0}), ConfigurationError, "context_window"),
    ],
)
def test_impossible_configurations_are_refused_where_they_are_built(build, error, match):
    with pytest.raises(error, match=match):
        build(ScriptedProvider())


@pytest.mark.parametrize(
    "wrong", [0, -1, float("nan"), True, "5", None], ids=["zero", "negative", "nan", "bool", "string", "none"]
)
def test_timeouts_must_be_positive_numbers(wrong):
    with pytest.raises(ConfigurationError, match=r"Timeouts\.idle"):
        Timeouts(idle=wrong)


@pytest.mark.parametrize("request_", [3, [], ["hello"], None])
def test_requests_that_are_none_are_refused(request_):
    router = Router(ScriptedProvider())
    for face in (router.invoke, router.stream):
        with pytest.raises(InvalidRequest):
            face(request_)


def test_strings_messages_and_lists_of_messages_are_requests():
    provider = ScriptedProvider("ok")
    router = Router(provider)
    for request in ("Hi", user("Hi"), [system("Be brief."), user("Hi")], ChatRequest((user("Hi"),), streaming=True)):
        assert router.invoke(request).text == "ok"
    assert [len(r.messages) for r in provider.requests] == [1, 1, 2, 1]
    assert not any(r.streaming for r in provider.requests), "invoke does not stream under the hood"


def test_targets_may_be_strings_mappings_targets_and_providers_mixed():
    router = Router(
        [
            "openai:gpt-5-mini",
            {"spec": "openai:gpt-5-nano", "api_key": "k", "name": "nano"},
            Target("openai:gpt-5", api_key="k"),
            ScriptedProvider(),
        ]
        if __import__("os").environ.get("OPENAI_API_KEY")
        else [
            {"spec": "openai:gpt-5-nano", "api_key": "k", "name": "nano"},
            Target("openai:gpt-5", api_key="k"),
            ScriptedProvider(),
        ]
    )
    assert [t.name for t in router.targets][-3:] == ["nano", "openai:gpt-5", "scripted:script"]


def test_the_options_for_wrappers_are_the_constructors_own():
    options = router_options()
    assert {"strategy", "retry", "timeouts", "breaker", "on_stream_break", "on_event", "ledger"} <= set(options)
    assert "targets" not in options
    assert "unknown" not in options


# ── walking away ─────────────────────────────────────────────────────────────────────────────────────────────────────


def neutral(router: Router) -> None:
    health = router.health().targets[0]
    assert (health.in_flight, health.success_rate, health.circuit) == (0, None, "closed")


def test_a_stream_closed_early_is_abandoned_and_says_nothing_about_the_target():
    provider = ScriptedProvider("one two three four")
    router = Router(provider)
    for close in ("close", "with", "del"):
        stream = router.stream("Hi")
        assert isinstance(next(iter(stream)), Started)
        if close == "close":
            stream.close()
        elif close == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        assert provider.open == 0
        neutral(router)
        assert router.last.outcome == "abandoned"
        assert router.last.attempts[0].outcome == "abandoned"
    assert [e.status for e in router.ledger.entries()] == ["unknown"] * 3


async def test_an_async_stream_closed_early_is_abandoned_too():
    provider = ScriptedProvider("one two three four")
    router = Router(provider)
    stream = router.astream("Hi")
    async for event in stream:
        if isinstance(event, TextDelta):
            break
    await stream.aclose()
    assert provider.open == 0
    neutral(router)
    async with router.astream("Hi") as stream:
        await anext(stream)
    assert provider.open == 0
    assert router.last.outcome == "abandoned"


class Hanging(ScriptedProvider):
    """Says one word, then awaits for ever."""

    async def astream(self, request, guard):
        self.open += 1
        try:
            yield Started()
            if request.streaming:
                yield TextDelta("one")
            await asyncio.Event().wait()
        finally:
            self.open -= 1


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelling_a_task_is_neutral_leaks_nothing_and_is_not_swallowed(streaming):
    provider = Hanging()
    router = Router([provider, ScriptedProvider("never", name="second")])

    async def call():
        if streaming:
            return [e async for e in router.astream("Hi")]
        return await router.ainvoke("Hi")

    task = asyncio.create_task(call())
    await auntil(lambda: provider.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.open == 0
    neutral(router)
    assert router.last.outcome == "cancelled"
    assert router.providers[1].calls == 0


async def test_a_silent_async_target_is_cancelled_at_its_limit_and_the_callers_task_is_not():
    provider = Hanging()
    silent = Target(provider=provider, name="first", timeouts=Timeouts(idle=0.03, attempt=0.03))
    router = Router([silent, ScriptedProvider("one two", name="second")])
    assert (await router.ainvoke("Hi")).text == "one two"
    assert "".join([e.text async for e in router.astream("Hi") if isinstance(e, TextDelta)]) == "one two"
    assert asyncio.current_task().cancelling() == 0
    assert provider.open == 0


@timed
async def test_a_slow_reader_is_not_taken_for_a_silent_target():
    provider = ScriptedProvider("one two three")
    router = Router(provider, timeouts=Timeouts(idle=0.02, first_token=0.02))
    words = []
    async for event in router.astream("Hi"):
        if isinstance(event, TextDelta):
            words.append(event.text)
            await asyncio.sleep(0.03)
    assert "".join(words) == "one two three"


async def test_wait_for_around_a_call_works_as_usual():
    router = Router(Hanging())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(router.ainvoke("Hi"), 0.02)
    neutral(router)


def test_ctrl_c_passes_through_and_settles():
    router = Router(ScriptedProvider(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        router.invoke("Hi")
    neutral(router)
    assert router.last.outcome == "cancelled"


# ── sync providers that cannot interrupt themselves ──────────────────────────────────────────────────────────────────


class Blocking(ScriptedProvider):
    """Blocks in its own thread; the router has to walk away from it."""

    interruptible = False

    def __init__(self, *args, gate=None, **kw):
        super().__init__(*args, **kw)
        self.gate = gate or threading.Event()
        self.threads = []

    def stream(self, request, guard):
        self.threads.append(threading.current_thread())
        yield Started()
        if self.script[0] == "hang":
            self.gate.wait(2 * LONG_S)
        yield from super().stream(request, guard)


def test_a_blocking_provider_runs_beside_the_caller_and_is_left_at_its_limit():
    hung = Blocking("hang", name="hung")
    first = Target(provider=hung, name="first", timeouts=Timeouts(attempt=0.05, first_token=0.05))
    router = Router([first, ScriptedProvider("ok", name="second")])
    begun = time.monotonic()
    assert router.invoke("Hi").text == "ok"
    assert "".join(e.text for e in router.stream("Hi") if isinstance(e, TextDelta)) == "ok"
    assert time.monotonic() - begun < LONG_S
    assert threading.current_thread() not in hung.threads
    assert router.last.attempts[0].error.kind is K.TIMEOUT
    hung.gate.set()


def test_threads_are_used_again_and_keep_the_callers_context(monkeypatch):
    import contextvars

    from shared_core import _lane

    monkeypatch.setattr(_lane._stock, "_idle", [])
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Reading(Blocking):
        def stream(self, request, guard):
            seen.append(variable.get())
            yield from super().stream(request, guard)

    provider = Reading("ok")
    router = Router(provider)
    variable.set("mine")
    for _ in range(5):
        assert router.invoke("Hi").text == "ok"
        until(lambda: _lane._stock._idle)  # the thread goes back to the stock a moment after its answer has arrived
    assert seen == ["mine"] * 5
    assert len({t.ident for t in provider.threads}) <= 2


def test_errors_and_bugs_of_a_blocking_provider_arrive_as_they_are():
    assert Router([Blocking(K.NOT_FOUND), ScriptedProvider("ok", name="b")]).invoke("Hi").text == "ok"
    with pytest.raises(ZeroDivisionError):
        Router(Blocking(ZeroDivisionError())).invoke("Hi")


# ── together ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_half_open_twenty_threads_send_one_probe():
    clock = VirtualClock()
    release = threading.Event()

    class Slow(ScriptedProvider):
        def stream(self, request, guard):
            if self.calls >= 5:
                release.wait(2 * LONG_S)
            yield from super().stream(request, guard)

    primary = Slow(*[K.TIMEOUT] * 5, "well again", name="a", clock=clock)
    router = Router([primary, ScriptedProvider("backup", name="b")], clock=clock)
    for _ in range(5):
        router.invoke("Hi")
    clock.advance(10.0)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(router.invoke("Hi").text)) for _ in range(20)]
    for t in threads:
        t.start()
    while len(texts) < 19:
        time.sleep(0.001)
    release.set()
    for t in threads:
        t.join()
    assert primary.calls == 6
    assert sorted(texts) == ["backup"] * 19 + ["well again"]


async def test_at_half_open_twenty_tasks_send_one_probe():
    clock = VirtualClock()

    class Slow(ScriptedProvider):
        async def astream(self, request, guard):
            async for event in super().astream(request, guard):
                await asyncio.sleep(0.01)
                yield event

    primary = Slow(*[K.TIMEOUT] * 5, "well again", name="a", clock=clock)
    router = Router([primary, ScriptedProvider("backup", name="b")], clock=clock)
    for _ in range(5):
        await router.ainvoke("Hi")
    clock.advance(10.0)
    texts = [a.text for a in await asyncio.gather(*(router.ainvoke("Hi") for _ in range(20)))]
    assert primary.calls == 6
    assert texts.count("well again") == 1


def test_one_router_serves_many_threads():
    provider = ScriptedProvider("ok")
    router = Router(provider)
    threads = [threading.Thread(target=lambda: [router.invoke("Hi") for _ in range(50)]) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert provider.calls == 400
    assert router.health().targets[0].in_flight == 0
    assert router.costs().targets[0].answers == 400


def test_a_router_works_in_one_event_loop_after_another():
    router = Router(ScriptedProvider("ok"))
    assert [asyncio.run(router.ainvoke("Hi")).text for _ in range(3)] == ["ok"] * 3


# ── operating ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operator_can_close_a_target_and_lift_it_again():
    router = Router([ScriptedProvider("a", name="a"), ScriptedProvider("b", name="b")])
    router.force_open("a:script")
    assert router.invoke("Hi").target == "b:script"
    router.reset("a:script")
    assert router.invoke("Hi").target == "a:script"
    router.force_open("a:script")
    router.reset()
    assert router.invoke("Hi").target == "a:script"
    with pytest.raises(ConfigurationError, match="Did you mean 'a:script'"):
        router.reset("a:scrip")


def test_a_breaker_can_be_switched_off_by_hand():
    provider = ScriptedProvider(K.TIMEOUT, name="a")
    router = Router(provider, clock=VirtualClock())
    router.disable_breaker("a:script")
    for _ in range(20):
        with pytest.raises(AllTargetsFailed):
            router.invoke("Hi")
    assert provider.calls == 20
    assert router.health()["a:script"].circuit == "disabled"


def test_a_closed_router_says_so_and_closing_is_idempotent():
    class Closing(ScriptedProvider):
        closed = 0

        def close(self):
            type(self).closed += 1

    with Router(Closing()) as router:
        router.invoke("Hi")
    router.close()
    assert Closing.closed == 1
    with pytest.raises(ConfigurationError, match="closed"):
        router.invoke("Hi")

    async def main():
        async with Router(Closing()) as r:
            await r.ainvoke("Hi")

    asyncio.run(main())
    assert Closing.closed == 2


def test_repr_names_targets_and_no_key():
    router = Router([Target("openai:gpt-5-mini", api_key="sk-verysecretverysecret")])
    for text in (repr(router), repr(router.targets), str(router.explain()), repr(router.health())):
        assert "secret" not in text
    assert "openai:gpt-5-mini" in repr(router)


def test_a_target_loses_its_key_when_it_travels():
    target = Target("openai:gpt-5-mini", api_key="sk-verysecretverysecret", n=3)
    data = pickle.dumps(target)
    assert b"verysecret" not in data
    back = pickle.loads(data)
    assert (back.spec, back.api_key, back.options) == ("openai:gpt-5-mini", None, {"n": 3})


def test_capabilities_are_the_honest_intersection():
    router = Router(
        [
            Target(
                provider=ScriptedProvider(name="a"), name="a", capabilities=Capabilities(context_window=100, pdfs=True)
            ),
            Target(provider=ScriptedProvider(name="b"), name="b", capabilities=Capabilities(tools=False, max_output=7)),
            Target(
                provider=ScriptedProvider(name="c"),
                name="c",
                capabilities=Capabilities(context_window=3),
                enabled=False,
            ),
        ]
    )
    c = router.capabilities()
    assert (c.context_window, c.max_output, c.tools, c.pdfs, c.images) == (100, 7, False, False, True)


def test_health_prints_as_a_table_for_people():
    router = Router([ScriptedProvider("ok", name="a"), ScriptedProvider("ok", name="b")])
    router.invoke("Hi")
    router.force_open("b:script")
    text, page = str(router.health()), router.health()._repr_html_()
    assert text.splitlines()[0].split()[:4] == ["target", "status", "circuit", "calls"]
    assert "HEALTHY" in text
    assert "no: circuit forced open" in text
    assert page.count("<tr>") == 3
    assert router.health()["a:script"].calls == 1
    assert len(router.health()) == 2
    with pytest.raises(KeyError):
        router.health()["c"]


def test_the_journal_prints_as_a_table_for_people():
    router = Router([ScriptedProvider(K.NOT_FOUND, name="a"), ScriptedProvider("ok", name="b")])
    router.invoke("Hi")
    assert "a:script failed, b:script answered" in repr(router.last)
    page = router.last._repr_html_()
    assert "not_found" in page
    assert page.count("<tr>") == 3


def test_metadata_can_be_switched_off():
    assert Router(ScriptedProvider("ok"), metadata=False).invoke("Hi").fallback == {}


# ── money ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def priced(provider: ScriptedProvider, **price) -> Target:
    return Target(provider=provider, name=provider.name, price=Price(**price))


def test_an_answer_costs_its_tokens_and_a_refusal_nothing():
    router = Router(
        [
            priced(ScriptedProvider(K.NOT_FOUND, name="a"), input=100, output=100),
            priced(ScriptedProvider("three words here", name="b"), input=1, output=2),
        ]
    )
    answer = router.invoke("Hi")
    assert answer.fallback["cost_usd"] == pytest.approx((10 * 1 + 3 * 2) / 1e6)
    assert [a["cost_usd"] for a in answer.fallback["attempts"]] == [0.0, pytest.approx(16e-6)]
    entries = router.ledger.entries()
    assert [(e.target, e.status, e.cost_nano) for e in entries] == [("a", "voided", 0), ("b", "posted", 16_000)]
    assert router.costs().total_usd == pytest.approx(16e-6)
    assert "total" in str(router.costs())
    assert "16" in router.costs()._repr_html_()


def test_an_unknown_outcome_is_charged_at_the_bound_and_shown_apart():
    router = Router(
        [
            priced(ScriptedProvider(K.TRANSIENT, name="a"), input=1, output=1),
            priced(ScriptedProvider("ok", name="b"), input=1, output=1),
        ],
        retry=RetryPolicy(total=0),
    )
    answer = router.invoke(ChatRequest((user("x" * 40),), max_tokens=1000))
    assert answer.fallback["cost_usd"] == pytest.approx(11e-6)
    assert answer.fallback["cost_at_most_usd"] == pytest.approx((11 + 10 + 1000) / 1e6)
    report = router.costs()
    assert (report.total_usd, report.at_most_usd) == (pytest.approx(11e-6), pytest.approx(1021e-6))


def test_an_unknown_price_is_unknown_and_never_nothing():
    router = Router(ScriptedProvider("ok"))
    assert router.invoke("Hi").fallback["cost_usd"] is None
    assert router.costs().rows()[0]["cost_usd"] is None
    assert "unknown" in str(router.costs())


def test_a_local_target_costs_nothing_unless_priced():
    provider = ScriptedProvider("ok")
    provider.local = True
    assert Router(provider).invoke("Hi").fallback["cost_usd"] == 0.0
    router = Router([priced(provider, second=3600)], clock=(clock := VirtualClock()))
    provider._clock, provider._latency_s = clock, 2.0
    assert router.invoke("Hi").fallback["cost_usd"] == pytest.approx(7200.0)


def test_tags_and_users_are_booked():
    router = Router([priced(ScriptedProvider("ok"), input=1)])
    router.invoke(REQUEST.replace(user="ann", tags=("docs", "night")))
    assert router.costs().by_user == {"ann": 10_000}
    assert router.costs().by_tag == {"docs": 10_000, "night": 10_000}


def test_usage_nobody_reported_is_estimated_and_marked():
    router = Router([priced(ScriptedProvider([Started(), TextDelta("x" * 40), Finished()]), output=1)])
    answer = router.invoke(ChatRequest((user("y" * 8),)))
    assert answer.usage == Usage(2, 10, estimated=True)
    assert router.ledger.entries()[0].status == "estimated"


def test_the_price_table_knows_models_and_does_not_guess():
    from shared_core.ledger import find_price

    mini = find_price("openai", "gpt-5-mini")
    assert mini is not None
    assert mini.cost_nano(Usage(1_000_000, 1_000_000)) == 2_250_000_000
    assert mini.cost_nano(Usage(1_000_000, 0, cached_tokens=1_000_000)) == 25_000_000
    assert find_price("openai", "gpt-x") is None
    assert find_price("nobody", "nothing") is None
    tiered = find_price("google", "gemini-2.5-pro")
    assert tiered is not None
    assert tiered.cost_nano(Usage(199_999, 0)) == 249_998_750
    assert tiered.cost_nano(Usage(200_001, 0)) == 500_002_500, "the whole request is repriced above the threshold"


def test_money_is_rounded_up_to_whole_nano_dollars():
    assert Price(input="0.0001").cost_nano(Usage(1, 0)) == 1
    assert FREE.cost_nano(Usage(10**9, 10**9), 1e6) == 0
    assert Price(request="0.5").cost_nano(Usage()) == 500_000_000
    for wrong in (-1, float("nan"), float("inf"), "dear"):
        with pytest.raises(ConfigurationError, match=r"Price\.output"):
            Price(output=wrong)


# ── being watched ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_observers_are_told_what_happened_in_order_sync_and_async():
    seen, later = [], []

    async def listen(event):
        await asyncio.sleep(0)
        later.append(event.name)

    router = Router(
        [ScriptedProvider(K.TRANSIENT, name="a"), ScriptedProvider("ok", name="b")],
        on_event=[seen.append, listen],
        clock=VirtualClock(),
    )
    router.invoke("Hi")
    assert router.flush_events()
    assert [type(e) for e in seen] == [RequestStarted, AttemptFailed, AttemptFailed, FellOver, RequestSucceeded]
    assert [e.will_retry for e in seen[1:3]] == [True, False]
    assert (seen[3].source, seen[3].target, seen[3].reason) == ("a:script", "b:script", "transient")
    assert seen[4].used_fallback
    assert later == [e.name for e in seen]
    assert seen[0].as_dict()["event"] == "request_started"
    router.close()


def test_observers_hear_of_circuits_seams_failures_and_desertion():
    seen = []
    router = Router(
        [ScriptedProvider(Broken("one two"), name="a"), ScriptedProvider("one two three", name="b")],
        on_event=seen.append,
        clock=VirtualClock(),
    )
    for _ in range(5):
        list(router.stream("Hi"))
    stream = iter(router.stream("Hi"))
    next(stream)
    stream.close()
    router.force_open("a:script")
    router.force_open("b:script")
    with pytest.raises(AllTargetsFailed):
        router.invoke("Hi")
    router.flush_events()
    seams = [e for e in seen if isinstance(e, StreamContinued)]
    assert (seams[0].target, seams[0].at_character, seams[0].how) == ("b:script", 7, "instructed")
    circuits = [(e.scope, e.state) for e in seen if isinstance(e, CircuitChanged)]
    assert circuits == [
        ("a:script", "circuit open"),
        ("a:script", "circuit forced open"),
        ("b:script", "circuit forced open"),
    ]
    assert [e.outcome for e in seen if isinstance(e, RequestFailed)] == ["abandoned", "failed"]
    router.close()


@pytest.mark.parametrize("bad", ["raise", "hang"])
def test_a_raising_or_hanging_observer_hurts_no_request(bad, caplog):
    release = threading.Event()

    def observer(event):
        if bad == "raise":
            raise RuntimeError("observer's own bug")
        release.wait(2 * LONG_S)

    router = Router(ScriptedProvider("ok"), on_event=observer)
    begun = time.monotonic()
    for _ in range(20):
        assert router.invoke("Hi").text == "ok"
    assert time.monotonic() - begun < LONG_S
    release.set()
    router.flush_events()
    router.close()


def test_observers_that_cannot_keep_up_lose_events_and_the_loss_is_counted():
    from shared_core.telemetry.dispatch import Dispatcher

    release = threading.Event()
    dispatcher = Dispatcher([lambda e: release.wait(LONG_S)], capacity=3)
    for _ in range(10):
        dispatcher.emit(RequestStarted("x", 0.0, (), "priority", False))
    assert dispatcher.dropped >= 6
    release.set()
    dispatcher.close()


def test_nobody_watching_costs_no_thread():
    before = set(threading.enumerate())  # an earlier test's may end meanwhile
    Router([ScriptedProvider(K.NOT_FOUND, name="a"), ScriptedProvider("ok", name="b")]).invoke("Hi")
    assert not set(threading.enumerate()) - before


# ── errors as values ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_travel_between_processes_without_sockets_or_keys():
    error = ProviderError.of(
        K.THROTTLED, "slow down sk-abcdefghijklmnopqrstuvwx", status=429, retry_after_s=3, response=object()
    )
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.kind, back.status, back.retry_after_s, back.response) == (
        type(error),
        K.THROTTLED,
        429,
        3,
        None,
    )
    assert "abcdefghijk" not in str(back)
    router = Router(
        [ScriptedProvider(K.TIMEOUT, name="a"), ScriptedProvider(Silence("x"), name="b")], clock=VirtualClock()
    )
    with pytest.raises(AllTargetsFailed) as caught:
        router.invoke("Hi")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert len(again.errors) == 2
    assert again.fallback["attempts"][0]["error_kind"] == "timeout"


def test_a_failure_is_an_exception_group_that_except_star_can_split():
    router = Router([ScriptedProvider(K.AUTH, name="a"), ScriptedProvider(K.NOT_FOUND, name="b")])
    kinds = []
    try:
        router.invoke("Hi")
    except* ProviderError as group:
        kinds = [e.kind for e in group.exceptions]
    assert kinds == [K.AUTH, K.NOT_FOUND]


@pytest.mark.parametrize(
    ("kinds", "cause", "retryable"),
    [
        ((K.TRANSIENT, K.AUTH), K.AUTH, True),
        ((K.NOT_FOUND, K.FORBIDDEN), K.FORBIDDEN, False),
        ((K.TIMEOUT, K.UNKNOWN), K.TIMEOUT, True),
    ],
)
def test_the_cause_is_the_error_the_caller_can_do_something_about(kinds, cause, retryable):
    router = Router([ScriptedProvider(k, name=n) for k, n in zip(kinds, "ab", strict=True)], clock=VirtualClock())
    with pytest.raises(AllTargetsFailed) as caught:
        router.invoke("Hi")
    assert caught.value.__cause__.kind is cause
    assert caught.value.is_retryable is retryable


def test_warming_up_does_what_first_calls_would_and_sends_nothing():
    done = []

    class Cold(ScriptedProvider):
        def load(self):
            done.append("load")

        def warm(self):
            done.append("warm")

    router = Router(
        [Cold(name="a"), Target(provider=Cold(name="b"), name="b", enabled=False), ScriptedProvider(name="c")]
    )
    router.warm()
    assert done == ["load", "warm"]
    asyncio.run(router.awarm())
    assert done == ["load", "warm"] * 2
    router.invoke("Hi")
    assert done == ["load", "warm"] * 2, "a warm provider is not loaded again by its first call"
    assert [p.calls for p in router.providers] == [1, 0, 0]


def test_a_first_call_loads_its_provider_once_and_before_its_limit_starts():
    clock = VirtualClock()

    class Cold(ScriptedProvider):
        loads = 0

        def load(self):
            self.loads += 1
            clock.advance(9.0)

    provider = Cold("ok", clock=clock)
    router = Router(provider, clock=clock, timeouts=Timeouts(attempt=1.0))
    assert router.invoke("Hi").text == "ok"
    assert router.health()["scripted:script"].latency_p50_s == 0.0, "loading is no slowness of the target's"
    router.invoke("Hi")
    assert provider.loads == 1


async def test_an_async_first_call_loads_in_a_thread_and_the_event_loop_goes_on():
    where = []
    ticks = 0

    class Cold(ScriptedProvider):
        def load(self):
            where.append(threading.current_thread())
            until(lambda: ticks >= 3)

    router = Router(Cold("ok"))

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert (await router.ainvoke("Hi")).text == "ok"
    assert (await router.ainvoke("Hi")).text == "ok"
    ticking.cancel()
    assert len(where) == 1
    assert where[0] is not threading.main_thread()


def test_an_answer_goes_back_into_the_conversation_as_its_own_origins():
    router = Router([ScriptedProvider(K.NOT_FOUND, name="a"), ScriptedProvider("ok", name="b", model="m")])
    answer = router.invoke("Hi")
    assert answer.message == assistant("ok", origin=router.providers[1].origin)
    *_, finished = router.stream("Hi")
    assert finished.origin == router.providers[1].origin


def test_tool_calls_whose_ids_a_provider_left_out_get_unique_ones():
    step = [ToolCallDelta(0, None, "look"), ToolCallDelta(1, "own", "look"), Finished("tool_calls")]
    router = Router(ScriptedProvider(step))
    ids = [[c.id for c in router.invoke("Hi").tool_calls] for _ in range(2)]
    assert [i[1] for i in ids] == ["own", "own"]
    assert ids[0][0] != ids[1][0]
    assert all(i[0].startswith("call_") and i[0].endswith("_0") and "-" not in i[0] for i in ids)


def test_a_blocking_target_earns_the_callers_own_thread_by_a_hundred_instant_calls_and_loses_it_by_a_slow_one(
    monkeypatch,
):
    from shared_core import _driver, _lane

    spent_s = 0.0
    for module in (_driver, _lane):  # on a busy machine no call is sure to be instant
        monkeypatch.setattr(module, "perf_counter", lambda: spent_s)

    class Napping(Blocking):
        nap_s = 0.0

        def stream(self, request, guard):
            nonlocal spent_s
            spent_s += self.nap_s
            yield from super().stream(request, guard)

    provider = Napping(*["ok"] * 60, *[K.CONFLICT] * 60, "ok")
    router = Router(provider, clock=VirtualClock(), retry=RetryPolicy(total=0))
    main = threading.current_thread()

    def call(times):
        for _ in range(times):
            try:
                router.invoke("Hi")
            except AllTargetsFailed:
                continue

    call(110)  # what a call took is noted a moment after its answer has arrived
    assert main not in provider.threads[:100]
    assert provider.threads[-1] is main
    provider.nap_s = 0.006
    call(1)
    provider.nap_s = 0.0
    call(1)
    assert provider.threads[-1] is not main, "six milliseconds are no longer instant"


def test_trust_is_earned_slowly_and_lost_fast():
    from shared_core._lane import Calm

    calm, route = Calm(), Router(ScriptedProvider())._fleet.routes[0]
    for _ in range(100):
        assert not calm.of(route)
        calm.took(route, 0.0004)
    assert calm.of(route)
    calm.took(route, 0.0005)
    assert not calm.of(route)
    for _ in range(500):
        calm.took(route, 0.0004)
    calm.took(route, 0.0049)
    calm.took(route, 0.0049)
    assert calm.of(route), "two hundred less twice fifty"
    calm.took(route, 0.005)
    for _ in range(99):
        calm.took(route, 0.0)
        assert not calm.of(route)
