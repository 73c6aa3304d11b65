"""Named chains: who is asked, in which order, how patiently; chosen per request, by core and wrappers alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from shared_core import (
    AllTargetsFailed,
    Chain,
    ConfigurationError,
    DeadlineExceeded,
    ErrorKind,
    InvalidRequest,
    Price,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    UnknownOption,
)
from shared_core.chat.request import ChatRequest, user
from shared_core.routing.chains import BUILT_IN
from shared_core.testing import ScriptedProvider, Silence, VirtualClock

HI = ChatRequest((user("Hello"),))


def asking(chain: str, **more: Any) -> ChatRequest:
    return HI.replace(chain=chain, **more)


class Local(ScriptedProvider):
    local = True


def router(chains: Mapping[str, Any] | None = None, **options: Any) -> Router:
    """Good and dear, cheap, and one on this machine that says nothing of its price."""
    return Router(
        [
            Target(provider=ScriptedProvider("good", name="good"), name="good", price=Price(2, 10)),
            Target(provider=ScriptedProvider("cheap", name="cheap"), name="cheap", price=Price(1, 1)),
            Target(provider=Local("here", name="here"), name="here", price=Price(second=1)),
        ],
        chains=chains,
        **options,
    )


@pytest.mark.parametrize(
    ("chain", "targets", "strategy"),
    [
        ("default", ("good", "cheap", "here"), "priority"),
        ("high-priority", ("good", "cheap", "here"), "priority"),
        ("low-cost", ("here", "cheap", "good"), "cost"),
        ("local-first", ("here", "good", "cheap"), "local_first"),
    ],
)
def test_every_router_has_the_built_in_chains(chain: str, targets: tuple[str, ...], strategy: str):
    r = router()
    plan = r.explain(asking(chain))
    assert (plan.targets, plan.strategy, plan.chain) == (targets, strategy, chain)
    assert str(plan).startswith(f"plan ({chain}: {strategy}):")
    assert plan.as_dict()["chain"] == chain
    answer = r.invoke(asking(chain))
    assert answer.target == targets[0]
    assert answer.fallback["chain"] == chain
    assert set(r.chains) == set(BUILT_IN)


def test_without_a_chain_the_routers_own_settings_hold_and_default_means_them():
    r = router(strategy="cost")
    assert r.explain(HI).strategy == r.explain(asking("default")).strategy == "cost"
    assert "chain" not in r.invoke(HI).fallback


def test_a_default_of_your_own_is_for_requests_that_name_none():
    r = router({"default": Chain(targets=["cheap"])}, strategy="cost")
    assert r.explain(HI).targets == ("cheap",)
    assert r.explain(HI).strategy == "cost", "what a chain leaves out is the router's"
    assert r.explain(asking("low-cost")).targets[0] == "here"


def test_a_chain_names_its_targets_and_nobody_else_is_asked():
    r = router({"two": {"targets": ["cheap", "good"]}})
    r.force_open("cheap")
    assert r.invoke(asking("two")).target == "good"
    r.force_open("good")
    with pytest.raises(AllTargetsFailed, match="cheap"):
        r.invoke(asking("two"))
    assert r.invoke(HI).target == "here"


def test_a_strategy_of_the_call_goes_before_the_chains():
    assert router().explain(asking("low-cost"), strategy="priority").targets[0] == "good"


def test_chains_share_circuits_and_health():
    """A target is one thing, whichever way it was asked."""
    clock = VirtualClock()
    down = ScriptedProvider(ErrorKind.TRANSIENT, name="down")
    r = Router(
        [down, ScriptedProvider("up", name="up")],
        chains={"patient": {"retry": {"same_target": 0, "total": 0}}},
        retry=RetryPolicy(0, 0),
        clock=clock,
    )
    for chain in ("patient", "default", "patient", "default", "patient"):
        assert r.invoke(asking(chain)).text == "up"
    assert len(down.requests) == 5
    assert r.invoke(asking("patient")).text == r.invoke(HI).text == "up"
    assert len(down.requests) == 5, "its circuit is open for all of them"
    assert r.health()["down:script"].calls == 5


@pytest.mark.parametrize(("chain", "asked"), [("default", 2), ("hasty", 1), ("stubborn", 4)])
def test_a_chain_has_retries_of_its_own(chain: str, asked: int):
    chains = {"hasty": Chain(retry=RetryPolicy(0, 0)), "stubborn": {"retry": {"same_target": 3, "total": 5}}}
    down = ScriptedProvider(ErrorKind.TRANSIENT, name="down")
    with Router([down], chains=chains, clock=VirtualClock()) as r, pytest.raises(AllTargetsFailed):
        r.invoke(asking(chain))
    assert len(down.requests) == asked


def test_a_targets_own_retries_go_before_the_chains():
    down = ScriptedProvider(ErrorKind.TRANSIENT, name="down")
    target = Target(provider=down, retry=RetryPolicy(0, 0))
    with (
        Router([target], chains={"stubborn": Chain(retry=RetryPolicy(3, 5))}, clock=VirtualClock()) as r,
        pytest.raises(AllTargetsFailed),
    ):
        r.invoke(asking("stubborn"))
    assert len(down.requests) == 1


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
async def test_a_chain_has_timeouts_of_its_own(streaming: bool):
    """Both its first token and its deadline, sync and async."""
    clock = VirtualClock()
    silent = ScriptedProvider(Silence(), name="silent", clock=clock)
    chains = {"quick": {"timeouts": {"first_token": 1.0, "attempt": 1.0, "total": 2.0}}}
    r = Router([silent], chains=chains, clock=clock, retry=RetryPolicy(0, 0))
    began = clock.monotonic()
    with pytest.raises(AllTargetsFailed):
        if streaming:
            list(r.stream(asking("quick")))
        else:
            r.invoke(asking("quick"))
    assert clock.monotonic() - began == pytest.approx(1.0)
    began = clock.monotonic()
    with pytest.raises(DeadlineExceeded):
        await r.ainvoke(asking("quick", timeout_s=0.5))
    assert clock.monotonic() - began == pytest.approx(0.5), "a request's own deadline goes first"


def test_the_ledger_knows_the_chain():
    r = router()
    r.invoke(asking("low-cost"))
    (entry,) = r.ledger.entries()
    assert entry.chain == "low-cost"


@pytest.mark.parametrize(
    ("chains", "error", "match"),
    [
        ({"x": {"targets": ["goood"]}}, ConfigurationError, "names 'goood', which is no target. Did you mean 'good'"),
        ({"x": {"targets": []}}, ConfigurationError, "names of some targets"),
        ({"x": {"targets": ["good", "good"]}}, ConfigurationError, "each once"),
        ({"x": {"strategy": "cheapest"}}, ConfigurationError, "unknown strategy 'cheapest'"),
        ({"x": {"stratgy": "cost"}}, UnknownOption, "Did you mean 'strategy'"),
        ({"x": {"retry": {"totl": 1}}}, UnknownOption, "Did you mean 'total'"),
        ({"x": 3}, ConfigurationError, "chain 'x' must be a Chain or a mapping"),
        (["x"], ConfigurationError, "chains must map names to chains, not list"),
        ({"x": {"retry": 3}}, ConfigurationError, "Chain.retry must be a RetryPolicy or a mapping, not int"),
        ({"x": {"timeouts": 3}}, ConfigurationError, "Chain.timeouts must be a Timeouts or a mapping, not int"),
    ],
)  # fmt: skip
def test_a_wrong_chain_is_refused_when_the_router_is_made(chains: Any, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        router(chains)


def test_an_unknown_chain_is_refused_before_anything_is_sent():
    provider = ScriptedProvider("x")
    with (
        Router([provider]) as r,
        pytest.raises(InvalidRequest, match=r"no chain is named 'low-cots'\. Did you mean 'low-cost'"),
    ):
        r.invoke(asking("low-cots"))
    assert not provider.requests


def test_chains_may_be_given_as_a_file_would_hold_them():
    timeouts = Timeouts(total=5.0)
    given = {"mine": {"targets": ["here"], "strategy": "priority", "timeouts": {"total": 5.0}}}
    assert router(given).chains["mine"] == Chain(("here",), "priority", None, timeouts)
    assert Chain("here").targets == ("here",)
