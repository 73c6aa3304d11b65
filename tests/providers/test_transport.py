"""Sockets under a guard: limits on received bytes, resolution and connecting; clients per thread, loop and process."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared_core.chat.events import Finished, TextDelta, collect
from shared_core.errors import ErrorKind, MissingKey
from shared_core.providers import build, transport
from shared_core.routing.target import Target
from shared_core.testing import Fault, FaultServer
from tests.providers.wire import COLOURS, SHORT_S, Colour, ask, call, fail, guard
from tests.timing import LONG_S, timed

VENDORS = ("openai", "anthropic")
LATEST_S = SHORT_S + 0.25 + 0.5  # the limit, the promised overshoot, and half a second for a busy machine


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def provider_at(server: FaultServer, vendor: str, **options: Any) -> Any:
    server.clear()
    server.script("m", "ok")
    url = server.openai_url if vendor == "openai" else server.anthropic_url
    made: Any = build(Target(f"{vendor}:m", base_url=url, api_key="sk-test-not-a-real-key-000", **options))
    made.load()
    return made


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("every_s", [0.001, 0.02, 0.1])
@timed
def test_a_drip_of_pings_cannot_stretch_the_limit(server: FaultServer, vendor: str, every_s: float) -> None:
    """The SDKs' own timeout is per read and would never fire here."""
    provider = provider_at(server, vendor)
    server.script("m", Fault("ping-drip", every_s=every_s))
    begun = time.monotonic()
    error = fail(provider, ask(streaming=True), limit=guard(streaming=True, first_s=SHORT_S))
    assert error.kind is ErrorKind.TIMEOUT
    assert error.message == f"no first token within {SHORT_S} s"
    assert SHORT_S <= time.monotonic() - begun <= LATEST_S


@pytest.mark.parametrize("vendor", VENDORS)
@timed
def test_silence_in_the_middle_is_told_apart_from_silence_at_the_start(server: FaultServer, vendor: str) -> None:
    provider = provider_at(server, vendor)
    server.script("m", Fault("stall", after_words=3))
    limit = guard(streaming=True, idle_s=SHORT_S)
    text = ""
    with pytest.raises(TimeoutError, match=r"no content for 0\.15 s in the middle") as caught:
        for event in provider.stream(ask(streaming=True), limit):
            if isinstance(event, TextDelta):
                text += event.text
                limit.touch()
    assert text == "The café on"
    assert caught.value.after_output  # type: ignore[attr-defined]  # a ProviderTimeout


@pytest.mark.parametrize("fault", ["hang-on-accept", "never-read"])
@timed
def test_a_server_that_never_answers_or_never_reads_costs_the_limit_and_no_more(
    server: FaultServer, fault: str
) -> None:
    """A large upload stalls on a peer that does not read; writes obey the guard as reads do."""
    provider = provider_at(server, "openai")
    server.script_accept([fault])
    limit_s = 1.0  # serialising sixteen megabytes takes its share of it
    begun = time.monotonic()
    error = fail(provider, ask("x" * 16_000_000), limit=guard(streaming=False, first_s=limit_s))
    assert error.kind is ErrorKind.TIMEOUT
    assert limit_s <= time.monotonic() - begun <= limit_s + LATEST_S
    assert server.connections == 1  # it got as far as connecting


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("colour", COLOURS)
def test_nobody_listening_is_a_failed_connect(server: FaultServer, vendor: str, colour: Colour) -> None:
    url = server.refused_url("openai" if vendor == "openai" else "anthropic")
    provider = build(Target(f"{vendor}:m", base_url=url, api_key="sk-test-not-a-real-key-000"))
    assert fail(provider, ask(), colour).kind is ErrorKind.CONNECT


@pytest.mark.parametrize("colour", COLOURS)
@timed
def test_a_black_hole_costs_the_connect_limit(server: FaultServer, colour: Colour) -> None:
    target = Target("openai:m", base_url=server.black_hole_url("openai"), api_key="sk-test-not-a-real-key-000")
    provider: Any = build(target)
    provider.load()
    begun = time.monotonic()
    error = fail(provider, ask(), colour, guard(streaming=False, connect_s=SHORT_S))
    assert error.kind is ErrorKind.CONNECT
    assert time.monotonic() - begun <= LATEST_S


@timed
def test_a_resolver_that_hangs_cannot_stretch_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`getaddrinfo` has no timeout of its own."""
    release = threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        release.wait(5)
        raise socket.gaierror("too late")

    provider: Any = build(Target("openai:m", base_url="http://model.example/v1", api_key="sk-test-not-a-real-key-000"))
    provider.load()
    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begun = time.monotonic()
    error = fail(provider, ask(), limit=guard(streaming=False, first_s=SHORT_S))
    release.set()
    assert error.kind is ErrorKind.TIMEOUT
    assert time.monotonic() - begun <= LATEST_S


def test_a_name_without_an_address_is_a_failed_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    provider: Any = build(Target("openai:m", base_url="http://model.example/v1", api_key="sk-test-not-a-real-key-000"))
    provider.load()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert fail(provider, ask()).kind is ErrorKind.CONNECT


def test_a_dead_first_address_leaves_time_for_the_second(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connect limit covers all addresses together; each gets its share."""
    port = server.port
    known = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),  # the server listens on IPv4 only
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    real = socket.getaddrinfo
    # A literal address is looked up too, inside create_connection; only the name is ours to answer.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: known if host == "model.example" else real(host, *a, **k)
    )
    server.clear()
    server.script("m", "ok")
    url = f"http://model.example:{port}/v1"
    provider = build(Target("openai:m", base_url=url, api_key="sk-test-not-a-real-key-000"))
    assert isinstance(call(provider, ask())[-1], Finished)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_cancelling_the_task_closes_the_connection(server: FaultServer, vendor: str, streaming: bool) -> None:
    """A model that nobody listens to any more must not go on generating at our expense."""
    provider = provider_at(server, vendor)
    server.script("m", "stall" if streaming else "no-response")

    async def go() -> None:
        heard = asyncio.Event()

        async def listen() -> None:
            async for event in provider.astream(ask(streaming=streaming), guard(streaming=streaming)):
                if isinstance(event, TextDelta):
                    heard.set()

        task = asyncio.create_task(listen())
        if streaming:
            await asyncio.wait_for(heard.wait(), LONG_S)
        else:
            await asyncio.to_thread(server.wait_for, lambda s: s.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_for, lambda s: s.requests[-1].client_closed_at is not None)
        await provider.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("colour", COLOURS)
def test_closing_an_unfinished_answer_closes_the_connection(server: FaultServer, vendor: str, colour: Colour) -> None:
    provider = provider_at(server, vendor)
    server.script("m", "stall")

    async def go() -> None:
        events = provider.astream(ask(streaming=True), guard(streaming=True))
        while not isinstance(await anext(events), TextDelta):
            pass
        await events.aclose()
        await asyncio.to_thread(server.wait_for, lambda s: s.requests[-1].client_closed_at is not None)
        await provider.aclose()

    if colour == "async":
        asyncio.run(go())
        return
    events = provider.stream(ask(streaming=True), guard(streaming=True))
    while not isinstance(next(events), TextDelta):
        pass
    events.close()
    server.wait_for(lambda s: s.requests[-1].client_closed_at is not None)


@pytest.mark.parametrize("vendor", VENDORS)
def test_nothing_is_sent_before_the_first_event_is_asked_for(server: FaultServer, vendor: str) -> None:
    provider = provider_at(server, vendor)
    events = provider.stream(ask(streaming=True), guard(streaming=True))
    assert server.count() == 0
    next(events)
    assert server.count() == 1
    events.close()


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_provider_serves_many_event_loops_one_after_another(server: FaultServer, vendor: str) -> None:
    """An SDK client keeps its sockets on the loop that opened them; the next loop must not meet them."""
    provider = provider_at(server, vendor)

    async def go() -> str:
        return collect([e async for e in provider.astream(ask(streaming=True), guard(streaming=True))]).text

    assert len({asyncio.run(go()) for _ in range(4)}) == 1
    gc.collect()
    assert len(provider._clients._async) <= 1
    provider.close()


@pytest.mark.parametrize("vendor", VENDORS)
def test_many_threads_share_one_client_and_a_stream_may_change_threads(server: FaultServer, vendor: str) -> None:
    provider = provider_at(server, vendor)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: collect(call(provider, ask(streaming=True))).text, range(24)))
        assert len(set(texts)) == 1
        events = provider.stream(ask(streaming=True), guard(streaming=True))
        gathered = []
        while (event := pool.submit(next, events, None).result()) is not None:
            gathered.append(event)
    assert collect(gathered).text == texts[0]
    assert server.count() == 25


def test_a_guard_binds_its_own_thread_and_only_within_the_block() -> None:
    class Nothing:
        def remaining(self) -> float:
            return -1.0

    with transport.guarded(Nothing()):
        with pytest.raises(TimeoutError):
            transport._allowed(5.0, TimeoutError)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(transport._allowed, 5.0, TimeoutError).result() == 5.0
    assert transport._allowed(5.0, TimeoutError) == 5.0


@pytest.mark.parametrize("colour", COLOURS)
def test_a_leaked_connection_pool_is_replaced_and_the_call_goes_on(
    server: FaultServer, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled requests may leave their slots taken for ever (httpcore #1093); nothing was sent then."""
    monkeypatch.setattr(transport, "POOL_WAIT_S", 0.05)
    provider = provider_at(server, "openai")

    def leak(client: Any) -> Any:
        client._client._transport._pool._max_connections = 0
        return client

    async def go() -> str:
        leaked = leak(provider._clients.on_loop())
        text = collect([e async for e in provider.astream(ask(), guard(streaming=False))]).text
        assert provider._clients.on_loop() is not leaked
        await provider.aclose()
        return text

    if colour == "async":
        assert asyncio.run(go())
    else:
        leaked = leak(provider._clients.sync())
        assert collect(call(provider, ask())).text
        assert provider._clients.sync() is not leaked
    assert server.count() == 1


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_pickled_provider_works_elsewhere_and_carries_no_key(
    server: FaultServer, vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = provider_at(server, vendor)
    call(provider, ask())
    frozen = pickle.dumps(provider)
    assert b"sk-test" not in frozen
    monkeypatch.setenv(f"{vendor.upper()}_API_KEY", "sk-test-from-environment-00")
    thawed = pickle.loads(frozen)
    assert isinstance(call(thawed, ask())[-1], Finished)
    headers = server.requests[-1].headers
    assert headers.get("authorization", headers.get("x-api-key", "")).endswith("t-00")


def test_a_copy_within_the_process_keeps_its_key(server: FaultServer) -> None:
    provider = copy.deepcopy(provider_at(server, "openai"))
    assert isinstance(call(provider, ask())[-1], Finished)


def test_a_pickled_provider_without_a_key_says_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    provider = build(Target("anthropic:m", api_key="sk-test-not-a-real-key-000"))
    with pytest.raises(MissingKey, match="ANTHROPIC_API_KEY"):
        call(pickle.loads(pickle.dumps(provider)), ask())


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_closed_provider_opens_again_when_it_is_used(vendor: str) -> None:
    with FaultServer() as server:
        provider = provider_at(server, vendor)
        call(provider, ask())
        assert server.open_connections == 1
        provider.close()
        provider.close()
        server.wait_for(lambda s: s.open_connections == 0)
        assert isinstance(call(provider, ask())[-1], Finished)
        provider.close()


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_key_is_nowhere_to_be_read(server: FaultServer, vendor: str) -> None:
    """Even one of an unusual shape, quoted back by the server."""
    provider = provider_at(server, vendor)
    object.__setattr__(provider.target, "api_key", "plain secret word")
    server.script("m", Fault("key-invalid", message="The key 'plain secret word' is wrong."))
    error = fail(provider, ask())
    assert error.kind is ErrorKind.AUTH
    assert "plain secret word" not in f"{error} {error!r} {provider!r} {provider.target!r}"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_server_that_dawdles_after_the_end_does_not_hold_up_a_whole_answer(
    server: FaultServer, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the text and the reason have arrived; what is missing is the usage, and that can be lived without."""
    monkeypatch.setattr("shared_core.providers.base._TAIL_S", 0.1)
    provider = provider_at(server, "openai")
    fold = provider._fold(ask(streaming=True))
    original = type(fold).feed

    def ends_early(self: Any, chunk: Any) -> Any:
        events = original(self, chunk)
        if self.content:  # as if the reason had come with the first word; the server then says nothing more
            self.complete, self._reason = True, "stop"
        return events

    monkeypatch.setattr(type(fold), "feed", ends_early)
    server.script("m", Fault("stall", after_words=1))
    begun = time.monotonic()
    events = call(provider, ask(streaming=True), colour)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage is None
    assert time.monotonic() - begun < LONG_S


@pytest.mark.parametrize("spec", ["openai:gpt-5-mini", "anthropic:claude-haiku-4-5", "google:gemini-2.5-flash"])
def test_a_forked_child_talks_over_connections_of_its_own(spec: str) -> None:
    """Two processes on one connection would read each other's answers, or wait for ever."""
    code = """
        import os, sys
        from shared_core import Router, Target, Timeouts
        from shared_core.testing import FaultServer
        with FaultServer() as server:
            vendor = sys.argv[1].partition(":")[0]
            target = Target(sys.argv[1], base_url=server.url_for(vendor), api_key="sk-none")
            router = Router(target, timeouts=Timeouts(attempt=20))
            router.invoke("from the parent")
            children = []
            for _ in range(2):
                if (pid := os.fork()) == 0:
                    try:
                        for _ in range(2):
                            router.invoke("from a child")
                        os._exit(0)
                    finally:
                        os._exit(1)
                children.append(pid)
            router.invoke("from the parent again")
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
            router.invoke("and again")
            assert (server.connections, len(server.requests)) == (3, 7), server.connections
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), spec], check=True, timeout=120)
