"""The peers are modelled fairly: beside the real LangChain and the real SDK in virtual time, and what was measured."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from shared_core.errors import ErrorKind, FallbackError, ProviderError
from shared_core.testing import BrownOut, Flap, Load, Outage, RateLimitStorm, SimTarget, simulate
from tools.simulation import charts, scenarios
from tools.simulation.peers import PEERS, langchain, litellm_fallbacks, litellm_group

FIRST, SECOND = "openai:gpt-5-mini", "anthropic:claude-sonnet-4-5"
TARGETS = [SimTarget(FIRST, latency=2.0), SimTarget(SECOND, latency=3.0)]
TROUBLES = [
    [],
    [Outage(10, 50)],
    [Outage(10, 50, kind="connect")],
    [Outage(10, 50, kind="auth")],
    [Flap(5, 55, down=7, up=5)],
    [BrownOut(0, 60, failures=0.4, slower=2)],
    [RateLimitStorm(0, 60, limit=20)],
    [RateLimitStorm(0, 60, limit=20, tells=False), Outage(20, 40, SECOND)],
]


def real_langchain(*, sdk_retries, with_retry):
    """`with_fallbacks` itself, over runnables that do what the SDK does: the real `AsyncOpenAI` around our vendors."""
    httpx = pytest.importorskip("httpx")
    openai = pytest.importorskip("openai")
    runnables = pytest.importorskip("langchain_core.runnables")

    def policy(vendors, chance):
        def model(vendor):
            async def answer(request):
                try:
                    await vendor.call(600.0)
                except ProviderError as error:
                    if error.status is None:
                        raise httpx.ConnectError("lost") from error
                    headers = {} if error.retry_after_s is None else {"retry-after": f"{error.retry_after_s:g}"}
                    return httpx.Response(error.status, headers=headers, json={"error": {"message": "no"}})
                return httpx.Response(200, json={"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                    "choices": [{"index": 0, "finish_reason": "stop",
                                 "message": {"role": "assistant", "content": "hi"}}]})  # fmt: skip

            client = openai.AsyncOpenAI(
                api_key="any",
                max_retries=sdk_retries,
                http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
            )
            client._platform = "Unknown"  # found out in a thread, otherwise

            async def call(_):
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
                return vendor.name

            def refused(_):
                raise AssertionError("a simulation is async")

            runnable = runnables.RunnableLambda(refused, afunc=call)
            return runnable.with_retry() if with_retry else runnable

        first, *rest = map(model, vendors)
        chain = first.with_fallbacks(rest)

        async def ask():
            try:
                return await chain.ainvoke("hi")
            except openai.OpenAIError as error:
                raise FallbackError(str(error)) from error

        return ask

    return policy


def counted(policy, happenings, **options):
    """What every request came to: packets per target, and who served."""
    report = simulate(TARGETS, happenings, seconds=60, load=Load(rps=0.5, poisson=False), policy=policy, **options)
    assert report.broken == ()
    packets: dict[int, Counter[str]] = {}
    for packet in report.packets:
        packets.setdefault(packet.request, Counter())[packet.target] += 1
    return report, [(call.outcome, call.served_by, dict(packets[call.number])) for call in report.calls]


@pytest.fixture
def no_jitter(monkeypatch):
    """The SDK's, tenacity's and the model's chance, all the same: then moments can be compared, too."""
    monkeypatch.setattr("openai._base_client.random", lambda: 0.5)
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)


@pytest.mark.parametrize(("sdk_retries", "with_retry"), [(0, False), (2, False), (1, True)])
@pytest.mark.parametrize("happenings", TROUBLES, ids=lambda happenings: "+".join(type(h).__name__ for h in happenings))
def test_the_model_of_langchain_is_the_real_langchain_with_the_real_sdk(no_jitter, happenings, sdk_retries, with_retry):
    """Both run in virtual time against the same vendors: the same packets, at the same moments, the same answers."""
    real, what_it_did = counted(real_langchain(sdk_retries=sdk_retries, with_retry=with_retry), happenings)
    half = lambda vendors, chance: langchain(sdk_retries=sdk_retries, with_retry=with_retry)(vendors, lambda: 0.5)  # noqa: E731  # the model without jitter
    model, what_is_said = counted(half, happenings)
    assert what_is_said == what_it_did
    assert [(p.target, pytest.approx(p.at)) for p in model.packets] == [(p.target, p.at) for p in real.packets]


# ── LiteLLM, beside what was measured on 1.106 ───────────────────────────────────────────────────────────────────────


def sequential(policy, calls, happenings, targets=TARGETS):
    """So many calls, one after another, as the measurements were made."""
    told = {}

    def one_after_another(vendors, chance):
        ask = policy(vendors, chance)

        async def all_of_them():
            loop, outcomes = asyncio.get_running_loop(), []
            begun = loop.time()
            for _ in range(calls):
                try:
                    outcomes.append(await ask())
                except Exception as error:
                    outcomes.append(type(error).__name__)
            told.update(took=loop.time() - begun, outcomes=Counter(outcomes))
            return "done"

        return all_of_them

    report = simulate(targets, happenings, seconds=1.5, load=Load(rps=1, poisson=False), policy=one_after_another)
    return report, told


QUICK = [SimTarget(FIRST, latency=0.001, spread=0.0), SimTarget(SECOND, latency=0.001, spread=0.0)]


def test_fifty_calls_send_a_hundred_and_fifty_packets_to_a_dead_primary():
    """Measured: 150 packets and 228 s for 50 calls with the defaults, primary always 500, one fallback."""
    report, told = sequential(litellm_fallbacks(), 50, [Outage(0, 1e6, kind="transient")], QUICK)
    assert report.sent[FIRST] == 150
    assert told["outcomes"] == {SECOND: 50}
    assert 215 <= told["took"] <= 260


def test_with_allowed_fails_set_two_packets_reach_it():
    """Measured: allowed_fails=1 lets 2 through, of 50 calls within the cooldown."""
    report, told = sequential(litellm_fallbacks(allowed_fails=1, num_retries=0), 40, [Outage(0, 1e6)], QUICK)
    assert told["outcomes"] == {SECOND: 40}
    assert report.sent[FIRST] == 2 + 2 * int(told["took"] // 5)


def test_a_group_of_one_has_no_cooldown():
    """Measured: thirty calls, thirty packets, each a 503, without retries."""
    report, _ = sequential(litellm_fallbacks(num_retries=0), 30, [Outage(0, 1e6)], QUICK)
    assert report.sent[FIRST] == 30


def test_a_retry_in_a_group_may_meet_the_dead_one_again():
    """Measured: with a fresh group of two and one of them dead, one request in eight fails (one half, three times)."""
    failed = 0
    for seed in range(400):
        group = simulate(
            QUICK, [Outage(0, 1e6)], seconds=1.5, load=Load(rps=1, poisson=False), policy=litellm_group(), seed=seed
        )
        failed += group.failed
    assert 400 / 8 * 0.6 < failed < 400 / 8 * 1.5


def test_money_errors_are_not_retried_by_any_model():
    """They pass for permission errors there: the next target is asked at once."""
    for policy in (langchain(), litellm_fallbacks()):
        report = simulate(TARGETS, [Outage(0, 60, kind=ErrorKind.BILLING)], seconds=60, policy=policy)
        assert report.sent[FIRST] == report.requests


# ── what is compared ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("scenario", "most"), [("outage", 0.1), ("flap", 0.6), ("brown-out", 1.1), ("rate-limit storm", 0.6)]
)
def test_ours_keeps_its_word_where_the_peers_are(scenario, most):
    """No promise broken in any of the troubles, everybody answered, and the dead one left alone."""
    for who in ("priority", "cost", "performance"):
        report = scenarios.run(who, scenario, seconds=420.0)
        assert report.broken == ()
        assert report.availability == 1.0
        packets, calls = report.packets_to(scenarios.PRIMARY, scenarios.START_S), report.calls_from(scenarios.START_S)
        assert packets <= most * len(calls)


def test_a_dead_target_is_counted_for_whoever_asks():
    """The function that others quote."""
    figure = scenarios.dead_target("connect")
    assert figure["packets_per_call"] <= 1.1
    assert figure["answered"] == figure["calls"] > 1000
    assert figure["broken"] == []


def test_charts_are_drawn_from_the_figures_and_from_nothing_else():
    """The same figures, the same bytes; every policy and every trouble is on them."""
    rows = [
        {"who": who, "ours": who in scenarios.OURS, "availability": 0.99, "packets_per_call": 1.5, "p95_s": 3.0,
         "usd_per_1000": 2.5}
        for who in [*scenarios.OURS, *PEERS]
    ]  # fmt: skip
    line = {"who": "priority", "slice_s": 20, "packets_per_s": [1.0, 2.0, 0.0], "p50_s": [1.0, None, 2.0]}
    facts = {
        "troubles": [{"scenario": name, "rows": rows, "over_time": [line]} for name in scenarios.SCENARIOS],
        "seconds": 1200.0,
        "trouble_s": [300.0, 900.0],
    }
    drawn = charts.charts(facts)
    assert drawn == charts.charts(facts)
    assert sorted(drawn) == [
        "simulation-brown-out.svg", "simulation-flap.svg", "simulation-outage.svg", "simulation-over-time.svg",
        "simulation-rate-limit-storm.svg",
    ]  # fmt: skip
    for who in PEERS:
        assert who in drawn["simulation-outage.svg"]


def test_the_charts_in_docs_are_those_of_the_figures():
    """`python -m tools.simulation.charts` would change nothing."""
    assert charts.stale() == []
