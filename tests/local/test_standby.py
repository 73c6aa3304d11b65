"""A local model on standby: loaded before it is asked, its prompt read while a hosted target is awaited."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared_core.chat.events import Answer, collect
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import AllTargetsFailed, ErrorKind
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.health import HealthStatus
from shared_core.resilience.retry import RetryPolicy
from shared_core.router import Router
from shared_core.routing.flow import Call
from shared_core.routing.target import Target
from shared_core.testing import Broken, ScriptedProvider
from tests.local.support import alive, answer, ask, begin, gone

FACES = ["invoke", "stream", "ainvoke", "astream"]
ONCE = RetryPolicy(same_target=0, total=0)


def call(router: Router, face: str, request: ChatRequest) -> Answer:
    """One answer through one of the four faces."""

    async def alone() -> Answer:
        if face == "ainvoke":
            return await router.ainvoke(request)
        return collect([event async for event in router.astream(request)])

    if face == "invoke":
        return router.invoke(request)
    return collect(router.stream(request)) if face == "stream" else asyncio.run(alone())


def until(holds: Callable[[], object], within_s: float = 60.0) -> bool:
    """Whether it comes to hold in time. Reading ahead takes only what a busy machine leaves over, so it may last."""
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.003)
    return True


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ── who is told to read what, and until when ─────────────────────────────────────────────────────────────────────────


class Reader(ScriptedProvider):
    """A target on standby that writes down what it is told to read and to drop."""

    local = True
    standby = "prefill"

    def __init__(self, *script, log: list[str]) -> None:
        super().__init__(*script, name="local")
        self.log = log
        self.prompts: list[ChatRequest] = []

    def stand_by(self) -> None:
        self.log.append("load")

    def prefill(self, request: ChatRequest):
        self.prompts.append(request)
        self.log.append("read")
        reader = self

        class Ahead:
            dropped = False

            def drop(self) -> None:
                if not self.dropped:
                    reader.log.append("drop")
                self.dropped = True

        return Ahead()


def told(*script, hosted, log, **options) -> tuple[Router, Reader]:
    """A router with a scripted hosted target before a reader on standby. The hosted one writes down its calls, too."""

    def called(request):
        log.append("hosted")
        return hosted

    reader = Reader(*script, log=log)
    return Router([ScriptedProvider(called, name="hosted"), reader], retry=ONCE, **options), reader


TOLD = [
    # the hosted target's answer, what the local one answers, what happened in which order
    ("it answers: the prompt is dropped", "hello there", "local", ["load", "read", "hosted", "drop"]),
    ("it fails: kept until the local one speaks", ErrorKind.OVERLOADED, "ok", ["load", "read", "hosted", "drop"]),
    ("both fail: dropped at the end", ErrorKind.OVERLOADED, ErrorKind.OVERLOADED, ["load", "read", "hosted", "drop"]),
    ("it breaks off: dropped at its first word", Broken("hello"), " there", ["load", "read", "hosted", "drop"]),
]  # fmt: skip


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("hosted", "local", "happened"), [t[1:] for t in TOLD], ids=[t[0] for t in TOLD])
def test_the_prompt_is_read_before_the_hosted_call_and_dropped_once(face, hosted, local, happened):
    log: list[str] = []
    router, reader = told(local, hosted=hosted, log=log)
    with router:
        try:
            call(router, face, ask("Hello", streaming="stream" in face))
        except AllTargetsFailed:
            log.append("failed")
    assert [entry for entry in log if entry != "failed"] == happened
    assert ("failed" in log) == isinstance(local, ErrorKind)
    assert [p.messages for p in reader.prompts] == [(user("Hello"),)]


def test_a_caller_who_walks_away_drops_the_prompt():
    log: list[str] = []

    async def scene() -> None:
        waiting = asyncio.Event()

        class Hangs(ScriptedProvider):
            async def astream(self, request, guard):
                waiting.set()
                await asyncio.sleep(60)
                yield

        router = Router([Hangs(name="hosted"), Reader("ok", log=log)])
        task = asyncio.create_task(router.ainvoke("Hello"))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await router.aclose()

    asyncio.run(scene())
    assert log == ["load", "read", "drop"]


def test_two_hosted_targets_read_it_once():
    log: list[str] = []
    reader = Reader("ok", log=log)
    with Router(
        [ScriptedProvider(ErrorKind.OVERLOADED, name="a"), ScriptedProvider(ErrorKind.OVERLOADED, name="b"), reader],
        retry=ONCE,
    ) as router:
        assert router.invoke("Hello").text == "ok"
    assert log == ["load", "read", "drop"]


NOBODY = {
    "a local target ahead": lambda reader: [_local("ok"), reader],
    "the reader stands first": lambda reader: [reader, ScriptedProvider("ok", name="hosted")],
    "it is only to be warm": lambda reader: [ScriptedProvider("ok", name="hosted"), _warm(reader)],
    "it is disabled": lambda reader: [
        ScriptedProvider("ok", name="hosted"),
        Target(provider=reader, name="local", enabled=False),
    ],
}


def _local(*script) -> ScriptedProvider:
    provider = ScriptedProvider(*script, name="first")
    provider.local = True
    return provider


def _warm(reader: Reader) -> Reader:
    reader.standby = "warm"
    return reader


@pytest.mark.parametrize("case", NOBODY, ids=list(NOBODY))
def test_nothing_is_read_ahead_where_nothing_is_to_be_gained(case):
    log: list[str] = []
    reader = Reader("ok", log=log)
    with Router(NOBODY[case](reader), retry=ONCE) as router:
        router.invoke("Hello")
    assert log == ([] if case == "it is disabled" else ["load"])


def test_a_router_without_a_standby_names_none_in_its_calls(monkeypatch):
    seen: list[Call] = []
    from shared_core._driver import Driver

    original = Driver._call

    def spied(self, call, relay, ahead, *more):
        seen.append(call)
        assert ahead is None
        return original(self, call, relay, ahead, *more)

    monkeypatch.setattr(Driver, "_call", spied)
    with Router([ScriptedProvider(ErrorKind.OVERLOADED, name="a"), ScriptedProvider("ok", name="b")], retry=ONCE) as r:
        r.invoke("Hello")
    assert [c.standby for c in seen] == [None, None]


# ── with a model ─────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = "word " * 60


@pytest.fixture
def standing_by(random_gguf: Path):
    """Makes routers with a scripted target before a local one on standby, whose worker they share with nobody."""
    made: list[Router] = []

    def make(hosted, standby="prefill", **options):
        options.setdefault("queue", 5000 + len(made))
        local = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", standby=standby, **options))
        router = Router([ScriptedProvider(hosted, name="hosted"), local], retry=ONCE)
        made.append(router)
        return router, local

    yield make
    for router in made:
        router.close()


def supervisor(local: LlamaCppProvider):
    return local._held[local.model]


def test_a_standby_is_loaded_without_being_asked_and_again_after_a_crash(standing_by):
    router, local = standing_by("ok", standby="warm")
    assert until(lambda: supervisor(local).ready)
    first = local.pid
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    assert until(lambda: supervisor(local).ready and local.pid != first)
    assert router.invoke("Hello").text == "ok"
    router.close()
    assert local.pid is None


def test_without_a_standby_nothing_is_loaded(standing_by):
    _, local = standing_by("ok", standby=None)
    assert local.pid is None
    assert not local._held


def test_a_standby_that_cannot_be_loaded_is_logged_and_shown_and_hurts_nobody(standing_by, tmp_path, caplog):
    from shared_core.testing.random_gguf import write_random_gguf

    path = write_random_gguf(tmp_path / "cut.gguf")
    good = path.read_bytes()
    path.write_bytes(good[: len(good) - 40_000] + b"\xff" * 40_000)
    with caplog.at_level(logging.WARNING):
        local = LlamaCppProvider(Target(f"llamacpp:{path}", standby="warm"))
        with Router([ScriptedProvider("ok", name="hosted"), Target(provider=local, name="local")]) as router:
            assert until(lambda: "not ready" in caplog.text), "its weights are not numbers"
            health = router.health()["local"]
            assert router.invoke("Hello").text == "ok"
    assert health.status is HealthStatus.UNHEALTHY
    assert not health.available
    assert "cannot be loaded" in health.unavailable_reason


@pytest.mark.parametrize("face", FACES)
def test_the_failover_finds_its_prompt_read(standing_by, noise, face):
    def hosted(request):
        assert until(lambda: supervisor(local)._schedule._read is not None)
        return ErrorKind.OVERLOADED

    router, local = standing_by(hosted)
    local.warm()
    request = ask(LONG, max_tokens=2, streaming="stream" in face)
    served = call(router, face, request)
    assert served.usage.cached_tokens >= served.usage.input_tokens - 1
    assert served.text == answer(noise, LONG, max_tokens=2).text


def test_a_failover_in_the_middle_of_reading_goes_on_with_what_is_read(standing_by):
    def hosted(request):
        assert until(lambda: local.report().facts["serving"] == 1)
        begun = cpu_s(local.pid)
        # Time enough for some of it on a busy machine; on a quick one it may be all.
        assert until(lambda: cpu_s(local.pid) > begun + 0.2 or local.report().facts["serving"] == 0)
        return ErrorKind.OVERLOADED

    router, local = standing_by(hosted, n_ctx=4096)
    local.warm()
    pid = local.pid
    served = router.invoke(ChatRequest((user("abc " * 700),), max_tokens=2))
    assert served.usage.output_tokens == 2
    assert served.usage.cached_tokens > 64, "what was read ahead was not read again"
    assert local.pid == pid


def test_another_request_is_served_before_a_prompt_is_read_to_its_end(standing_by):
    def hosted(request):
        assert until(lambda: local.report().facts["serving"] == 1)
        answers.append(answer(local, "quick", max_tokens=2))
        return "ok"

    answers: list[Answer] = []
    router, local = standing_by(hosted, n_ctx=4096)
    local.warm()
    pid = local.pid
    ends: list[tuple[str, str]] = []
    learn = supervisor(local)._learn

    def noted(running, kind, message):
        ends.append((running.op, kind))
        learn(running, kind, message)

    supervisor(local)._learn = noted
    assert router.invoke(ChatRequest((user("abc " * 900),), max_tokens=2)).text == "ok"
    assert answers[0].usage.output_tokens == 2
    assert ends[:3] == [("prefill", "cancelled"), ("generate", "start"), ("generate", "done")]
    assert local.pid == pid, "reading was stopped, not killed"


def test_an_answer_of_the_hosted_target_stops_the_reading(standing_by):
    def hosted(request):
        assert until(lambda: local.report().facts["serving"] == 1)
        return "ok"

    router, local = standing_by(hosted, n_ctx=4096)
    local.warm()
    pid = local.pid
    router.invoke(ChatRequest((user("abc " * 900),), max_tokens=2))
    assert until(lambda: local.report().facts["serving"] == 0)
    assert supervisor(local)._schedule.next_reading() == math.inf
    assert local.pid == pid
    assert answer(local, "x", max_tokens=2).usage.output_tokens == 2


def test_a_prompt_that_cannot_be_read_ahead_is_given_up(standing_by):
    def hosted(request):
        assert until(lambda: not supervisor(local)._schedule._ahead)
        return "ok"

    router, local = standing_by(hosted, n_ctx=256)
    local.warm()
    assert router.invoke(ChatRequest((user("x" * 1400),), max_tokens=2)).text == "ok"
    assert answer(local, "x", max_tokens=2).usage.output_tokens == 2


def test_a_crash_while_reading_ahead_is_nobodys_failure(standing_by):
    def hosted(request):
        assert until(lambda: local.report().facts["serving"] == 1)
        killed.append(local.pid)
        os.kill(local.pid, signal.SIGKILL)
        assert gone(killed[0])
        return ErrorKind.OVERLOADED

    killed: list[int] = []
    router, local = standing_by(hosted, n_ctx=4096)
    local.warm()
    served = router.invoke(ChatRequest((user("abc " * 700),), max_tokens=2))
    assert served.usage.output_tokens == 2
    assert alive(local.pid)
    assert local.pid != killed[0]


# ── what is known of it ──────────────────────────────────────────────────────────────────────────────────────────────


def test_health_shows_a_local_targets_facts(standing_by):
    router, local = standing_by(ErrorKind.OVERLOADED, standby=None)
    before = router.health()[router.targets[1].name]
    assert before.facts["state"] == "cold"
    assert before.status is HealthStatus.UNKNOWN
    router.invoke(ChatRequest((user("Hello"),), max_tokens=8))
    health = router.health()[router.targets[1].name]
    assert health.status is HealthStatus.HEALTHY
    facts = health.facts
    assert facts["state"] == "ready"
    assert facts["pid"] == local.pid
    assert facts["n_threads"] == 1
    assert facts["gpu_layers"] == 0
    assert facts["memory_bytes"] > 1_000_000
    assert facts["prompt_tokens_per_s"] > 0
    assert facts["output_tokens_per_s"] > 0
    assert (facts["serving"], facts["waiting"]) == (0, 0)
    assert router.health()["hosted:script"].facts == {}


def test_three_crashes_show_in_the_routers_health_with_the_reason(standing_by):
    router, local = standing_by("ok", standby=None, n_ctx=8192, max_tokens=8000)
    for _ in range(3):
        events = begin(local, "go")
        os.kill(local.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="signal 9"):
            list(events)
    health = router.health()[router.targets[1].name]
    assert health.status is HealthStatus.UNHEALTHY
    assert not health.available
    assert health.unavailable_reason == "its process died 3 times within a minute, last: died with signal 9"
    assert 0 < health.retry_in_s <= 60
    assert "3 times" in str(router.health())


def test_explain_says_how_long_a_turn_is_expected_to_take(standing_by):
    router, local = standing_by("ok", standby=None, n_ctx=8192, max_tokens=8000)
    answer(local, "x" * 50, max_tokens=200)
    events = begin(local, "go")
    plan = router.explain("Hello")
    assert "a turn is expected in" in plan.notes[router.targets[1].name]
    events.close()


def test_a_strategy_sees_the_expected_wait(standing_by):
    router, local = standing_by("ok", standby=None, n_ctx=8192, max_tokens=8000)
    answer(local, "x" * 50, max_tokens=200)
    events = begin(local, "go")
    seen = {}

    def look(request, views):
        seen.update({view.name: view.wait_s for view in views})
        return views

    router.invoke("Hello", strategy=look)
    assert seen["hosted:script"] is None
    assert seen[router.targets[1].name] > 0
    events.close()
