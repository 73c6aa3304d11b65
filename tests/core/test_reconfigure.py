"""Changing a router while it runs, and making another of it: nothing that was learnt is lost, or nothing changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shared_core import (
    AllTargetsFailed,
    BreakerConfig,
    Chain,
    ChatRequest,
    CircuitState,
    ConfigurationError,
    ErrorKind,
    MissingKey,
    Price,
    RetryPolicy,
    Router,
    Target,
    Timeouts,
    UnknownOption,
    user,
)
from shared_core.routing.presets import PRESETS
from shared_core.testing import ScriptedProvider, VirtualClock
from tests.timing import LONG_S

HI = ChatRequest((user("Hello"),))


def target(name: str, *script: object, **options: object) -> Target:
    return Target(provider=ScriptedProvider(*(script or (f"from {name}",)), name=name), name=name, **options)  # type: ignore[arg-type]


def settings(router: Router) -> tuple[object, ...]:
    """Everything that a wrong change might have touched."""
    line = router._fleet.line
    return (
        [(r.name, id(r.provider), id(r.gate), r.timeouts, r.retry) for r in line.routes],
        dict(router.chains),
        line.rules,
        line.pinned,
        dict(router.options),
    )


# ── reconfigure ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_option_changes_for_the_next_request_and_the_rest_stays():
    router = Router([target("dear", price=Price(5, 5)), target("cheap", price=Price(1, 1))], timeouts={"total": 9})
    assert router.invoke(HI).target == "dear"
    assert router.reconfigure(strategy="cost", timeouts={"first_token": 3}) == ("strategy", "timeouts")
    assert router.invoke(HI).target == "cheap"
    assert router.options["strategy"] == "cost"
    assert router._fleet.routes[0].timeouts == Timeouts(first_token=3)
    assert router.reconfigure(strategy="cost") == ()
    assert router.reconfigure(strategy="priority", timeouts=None) == ("strategy", "timeouts")
    assert dict(router.options) == {}


def test_it_goes_by_the_name_that_other_routers_use_too():
    router = Router([target("a"), target("b")])
    assert router.update_config(complexity="simple") == ("complexity",)
    assert router.explain(HI).complexity is not None


def test_circuits_health_costs_and_connections_of_targets_that_keep_their_names_are_kept():
    clock = VirtualClock()
    ill = ScriptedProvider(ErrorKind.TIMEOUT, name="ill")
    router = Router(
        [Target(provider=ill, name="ill"), target("well", price=Price(1000, 1000))],
        clock=clock,
        breaker=BreakerConfig(consecutive_failures=2),
    )
    for _ in range(3):
        router.invoke(HI)
    assert router.health()["ill"].circuit is CircuitState.OPEN
    entries = router.ledger.entries()
    router.reconfigure(
        targets=[
            Target(provider=ill, name="ill", tier="fast", weight=3, timeouts={"total": 3}),
            router.targets[1],
            target("new"),
        ],
        retry=RetryPolicy(total=0),
    )
    assert router.health()["ill"].circuit is CircuitState.OPEN
    assert router.health()["well"].calls == 3
    assert (router.targets[0].tier, router.targets[0].weight) == ("fast", 3)
    assert router.ledger.entries() == entries
    before = ill.calls
    assert router.invoke(HI).target == "well"
    assert ill.calls == before, "its circuit is open: no packet"


def test_a_breaker_that_is_to_open_sooner_does_so_from_now_on():
    ill = ScriptedProvider(ErrorKind.TIMEOUT, name="ill")
    router = Router([Target(provider=ill, name="ill"), target("well")], clock=VirtualClock())
    router.invoke(HI)
    router.reconfigure(breaker={"consecutive_failures": 2})
    router.invoke(HI)
    assert router.health()["ill"].circuit is CircuitState.OPEN


def test_a_request_in_flight_ends_as_it_began():
    inside, go_on = threading.Event(), threading.Event()

    def wait(request: ChatRequest) -> object:
        inside.set()
        assert go_on.wait(LONG_S)
        return ErrorKind.TRANSIENT

    slow = ScriptedProvider(wait, "late", name="slow")
    router = Router([Target(provider=slow, name="slow"), target("second")], retry=RetryPolicy(base_s=0.001))
    got: list[str | None] = []
    thread = threading.Thread(target=lambda: got.append(router.invoke(HI).target))
    thread.start()
    assert inside.wait(LONG_S)
    router.reconfigure(targets=[target("only")], retry=RetryPolicy(same_target=0, total=0), strategy="cost")
    go_on.set()
    thread.join(LONG_S)
    assert got == ["slow"], "it was retried, as was said when it began, at a target that is there no more"
    assert router.invoke(HI).target == "only"


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "chepest"},
        {"stratgy": "cost"},
        {"timeouts": {"first_tokn": 3}},
        {"timeouts": {"total": -1}},
        {"preset": "prodction"},
        {"complexity": "hard"},
        {"hedge": {"after": "soon"}},
        {"chains": {"x": {"targets": ["nobody"]}}},
        {"targets": []},
        {"targets": ["opnai:x"]},
        {"targets": [{"spec": "openai:x", "weight": -1}]},
        {"on_stream_break": "resume"},
        {"clock": VirtualClock()},
        {"ledger": "other.db"},
        {"strategy": "cost", "limits": {"rpmm": 3}},
    ],
    ids=str,
)
def test_a_wrong_change_says_so_and_changes_nothing(wrong: dict[str, object]):
    router = Router([target("a"), target("b")], strategy="weighted", chains={"mine": Chain(targets=["b"])})
    router.pin("b")
    before = settings(router)
    with pytest.raises(ConfigurationError):
        router.reconfigure(**{"retry": {"total": 7}, **wrong})
    assert settings(router) == before
    assert router.invoke(HI).target == "b"


def test_what_cannot_be_changed_names_the_way_that_can():
    with pytest.raises(ConfigurationError, match=r"router\.updated\(clock=…\)"):
        Router([target("a")]).reconfigure(clock=VirtualClock())
    with pytest.raises(UnknownOption, match="Did you mean 'strategy'"):
        Router([target("a")]).reconfigure(stratgy="cost")


def test_another_key_lifts_the_lock_of_the_account_and_keeps_the_circuit():
    def keyed(key: str, *script: object) -> Target:
        provider.script = script  # type: ignore[assignment]
        return Target(provider=provider, name="a", api_key=key)

    provider = ScriptedProvider(ErrorKind.AUTH, name="a")
    router = Router([keyed("old", ErrorKind.AUTH)], clock=VirtualClock())
    with pytest.raises(AllTargetsFailed):
        router.invoke(HI)
    with pytest.raises(AllTargetsFailed, match="account locked"):
        router.invoke(HI)
    assert provider.calls == 1, "a locked account is sent nothing"
    router.reconfigure(targets=[keyed("new", "mended")])
    assert router.invoke(HI).text == "mended"
    assert router.health()["a"].calls == 2, "its record goes on"


def test_another_model_under_the_same_name_begins_anew():
    router = Router([Target("openai:x", name="a", api_key="k")])
    gate = router._fleet.routes[0].gate
    router.reconfigure(targets=[Target("openai:x", name="a", api_key="k", weight=2)])
    assert router._fleet.routes[0].gate is gate
    router.reconfigure(targets=[Target("openai:y", name="a", api_key="k")])
    assert router._fleet.routes[0].gate is not gate


def test_a_file_is_read_again_and_what_is_wrong_in_it_is_told_with_its_line(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("A_KEY", "k")
    path = tmp_path / "fallback.toml"
    path.write_text('targets = [{ spec = "openai:x", api_key = "${A_KEY}" }]\n', encoding="utf-8")
    router = Router.from_config(path)
    gate = router._fleet.routes[0].gate
    path.write_text(
        'strategy = "cost"\ntargets = [{ spec = "openai:x", api_key = "${A_KEY}" }, "llamacpp:tiny"]\n',
        encoding="utf-8",
    )
    assert router.reconfigure(path) == ("strategy", "targets")
    assert [t.name for t in router.targets] == ["openai:x", "llamacpp:tiny"]
    assert router._fleet.routes[0].gate is gate
    before = settings(router)
    path.write_text('\nstrategy = "chepest"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"fallback\.toml:2: unknown strategy"):
        router.reconfigure(path)
    path.write_text('targets = [{ spec = "openai:x", api_key = "${NO_KEY}" }]\n', encoding="utf-8")
    with pytest.raises(MissingKey):
        router.reconfigure(path)
    assert settings(router) == before
    assert router.reconfigure({"models": ["llamacpp:tiny"]}, strategy="priority") == ("targets", "strategy")


def test_observers_hear_of_a_change_and_not_of_none():
    seen: list[object] = []
    with Router([target("a"), target("b")], on_event=seen.append) as router:
        router.reconfigure(strategy="cost")
        router.reconfigure(strategy="cost")
        router.flush_events()
    assert [e.as_dict()["options"] for e in seen if e.name == "router_reconfigured"] == [("strategy",)]  # type: ignore[attr-defined]


def test_changes_from_many_threads_leave_a_router_that_answers():
    router = Router([target("a"), target("b")])
    wrong: list[BaseException] = []

    def change(at: int) -> None:
        try:
            for turn in range(30):
                router.reconfigure(strategy=["priority", "cost", "weighted"][(at + turn) % 3])
                router.invoke(HI)
        except BaseException as error:  # told below
            wrong.append(error)

    threads = [threading.Thread(target=change, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert router._fleet.line.rules.strategy_name == router.options.get("strategy", "priority")


# ── updated ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Closing(ScriptedProvider):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_another_router_has_the_change_and_this_one_has_not_and_both_know_the_same():
    ill = ScriptedProvider(ErrorKind.TIMEOUT, name="ill")
    one = Router(
        [Target(provider=ill, name="ill"), target("well")], clock=VirtualClock(), breaker={"consecutive_failures": 1}
    )
    one.invoke(HI)
    two = one.updated(strategy="weighted", retry={"total": 0})
    assert (one.options.get("strategy"), two.options["strategy"]) == (None, "weighted")
    assert two.health()["ill"].circuit is CircuitState.OPEN
    two.invoke(HI)
    assert one.health()["well"].calls == 2
    assert len(one.ledger.entries()) == len(two.ledger.entries()) == 3
    one.add(target("late"))
    assert [t.name for t in two.targets] == ["ill", "well"]


def test_what_two_routers_share_is_closed_with_the_last_of_them():
    shared, own = Closing(name="shared"), Closing(name="own")
    one = Router([Target(provider=shared, name="shared"), Target(provider=own, name="own")])
    two = one.updated(targets=[one.targets[0]])
    one.close()
    assert (shared.closed, own.closed) == (0, 1)
    assert two.invoke(HI).text == "ok"
    two.close()
    assert shared.closed == 1


# ── presets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_fills_in_what_is_not_given(name: str):
    router = Router([target("a")], preset=name)
    rules, preset = router._fleet.line.rules, PRESETS[name]
    assert (rules.timeouts, rules.flow.retry, rules.breaker) == (preset.timeouts, preset.retry, preset.breaker)
    given = Router([target("a")], preset=name, retry=RetryPolicy(total=9), timeouts={"total": 7})._fleet.line.rules
    assert given.flow.retry == RetryPolicy(total=9)
    assert (given.timeouts.total, given.timeouts.idle) == (7, preset.timeouts.idle), "a mapping leaves the rest to it"
    assert given.breaker == preset.breaker


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigurationError, match="Did you mean 'production'"):
        Router([target("a")], preset="prodction")


def test_a_preset_is_chosen_in_files_and_wrappers_too(tmp_path: Path):
    from langchain_fallback import FallbackChatModel
    from llamaindex_fallback import FallbackLLM

    path = tmp_path / "fallback.toml"
    path.write_text('preset = "development"\nmodels = ["llamacpp:tiny"]\n', encoding="utf-8")
    for router in (
        Router.from_config(path),
        FallbackChatModel.from_config(path).router,
        FallbackLLM.from_config(path).router,
        FallbackChatModel(models=["llamacpp:tiny"], preset="development").router,
        FallbackLLM(models=["llamacpp:tiny"], preset="development").router,
    ):
        assert router._fleet.line.rules.timeouts == PRESETS["development"].timeouts


def test_development_writes_the_log_where_nobody_reads_it(monkeypatch):
    import logging

    from shared_core._verbose import show_log

    log, root = logging.getLogger("llm_fallback"), logging.getLogger()
    before = list(log.handlers), log.level
    monkeypatch.setattr(root, "handlers", [])
    try:
        log.setLevel(logging.NOTSET)
        show_log()
        show_log()
        assert log.level == logging.INFO
        assert len(log.handlers) == len(before[0]) + 1
        log.handlers[:], log.level = list(before[0]), logging.ERROR
        root.handlers.append(logging.StreamHandler())
        show_log()
        assert (log.handlers, log.level) == (before[0], logging.ERROR), (
            "a program that has set up its log is left alone"
        )
    finally:
        log.handlers[:] = before[0]
        log.setLevel(before[1])
