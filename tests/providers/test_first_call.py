"""The first call of a process or an event loop: what must be built for it is built before its limits begin."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core import DeadlineExceeded, Router, Target, Timeouts
from shared_core.ledger.entry import EntryStatus
from shared_core.providers import build
from shared_core.testing import FaultServer
from tests.providers.wire import ask
from tests.timing import timed

KEY = "sk-test-not-a-real-key-000"
WIRES = ("openai", "anthropic", "google")
LIMIT_S = 0.2
SLOW_S = 2 * LIMIT_S


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.script("m", "ok")
        yield running


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Collecting the garbage of a whole test run takes 0.4 s, which would count as the target's silence."""
    gc.disable()
    yield
    gc.enable()


def provider_at(server: FaultServer, wire: str = "openai") -> Any:
    return build(Target(f"{wire}:m", base_url=getattr(server, f"{wire}_url"), api_key=KEY))


def slow_to_build(provider: Any, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Let each async client take long to build; returns the threads in which they were built."""
    built: list[threading.Thread] = []
    real = provider._build

    def slow(*, sync: bool) -> Any:
        if not sync:
            built.append(threading.current_thread())
            time.sleep(SLOW_S)
        return real(sync=sync)

    monkeypatch.setattr(provider, "_build", slow)
    return built


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("wire", WIRES)
@timed
def test_an_event_loops_first_call_does_not_pay_for_its_client(
    server: FaultServer, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit is shorter than the building; nor is the loop held up. The same on the next event loop."""
    provider = provider_at(server, wire)
    provider.load()
    built = slow_to_build(provider, monkeypatch)
    router = Router([provider], timeouts=Timeouts(first_token=LIMIT_S, reasoning_first_token=LIMIT_S))

    async def go() -> None:
        longest, last = 0.0, time.monotonic()

        async def tick() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        ticking = asyncio.create_task(tick())
        for _ in range(2):
            async for _ in router.astream(ask()):
                pass
        ticking.cancel()
        assert longest < SLOW_S
        await provider.aclose()

    for loops in (1, 2):
        asyncio.run(go())
        assert len(built) == loops
    assert threading.main_thread() not in built
    router.close()


@pytest.mark.parametrize("face", ["invoke", "ainvoke", "stream", "astream"])
def test_a_deadline_is_kept_while_a_provider_is_being_loaded(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    """Nothing is sent, nothing may have been billed, and whoever calls when it is there is answered."""
    provider = provider_at(server)
    real, loaded = provider.load, threading.Event()
    monkeypatch.setattr(provider, "load", lambda: (loaded.wait(60), real()))
    router = Router([provider], timeouts=Timeouts(total=0.05))

    def called(timeout_s: float | None = None) -> None:
        request = ask().replace(timeout_s=timeout_s)
        if face == "invoke":
            router.invoke(request)
        else:
            list(router.stream(request))

    async def acalled(timeout_s: float | None = None) -> None:
        request = ask().replace(timeout_s=timeout_s)
        try:
            if face == "ainvoke":
                await router.ainvoke(request)
            else:
                async for _ in router.astream(request):
                    pass
        finally:
            assert loaded.is_set() == (timeout_s is not None)
            loaded.set()  # an event loop does not end before its threads

    with pytest.raises(DeadlineExceeded, match="while the provider was being loaded"):
        if face.startswith("a"):
            asyncio.run(acalled())
        else:
            called()
    assert loaded.is_set() == face.startswith("a")
    loaded.set()
    (entry,) = router.ledger.entries()
    assert (entry.status, entry.cost_nano) == (EntryStatus.VOIDED, 0)
    assert [health.circuit for health in router.health()] == ["closed"]
    assert [health.consecutive_failures for health in router.health()] == [0]
    if face.startswith("a"):
        asyncio.run(acalled(30.0))
    else:
        called(30.0)
    router.close()


async def test_many_first_calls_at_once_build_one_client(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = provider_at(server)
    built = slow_to_build(provider, monkeypatch)
    await asyncio.gather(*(provider.aload() for _ in range(8)))
    assert len(built) == 1
    await provider.aclose()


def test_warming_up_makes_ready_for_this_event_loop(server: FaultServer) -> None:
    provider = provider_at(server)
    router = Router([provider])

    async def warmed() -> None:
        assert not provider.ready()
        await router.awarm()
        assert provider.ready()

    asyncio.run(warmed())
    asyncio.run(warmed())  # another event loop
    router.close()


async def test_a_closed_provider_builds_anew(server: FaultServer) -> None:
    provider = provider_at(server)
    await provider.aload()
    await provider.aclose()
    assert not provider.ready()
    router = Router([provider])
    assert (await router.ainvoke("Hi")).text
    assert provider.ready()
    await router.aclose()


async def test_the_retired_sdk_has_no_client_per_event_loop(server: FaultServer) -> None:
    provider: Any = build(Target("google-legacy:m", base_url=server.google_url, api_key=KEY))
    await provider.aload()
    assert provider.ready()
    assert not provider._clients._async
    provider.close()
