"""Both Google providers against a server that fails in every known way: the right error, one packet, in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from urllib3.connection import HTTPConnection

from shared_core.chat.events import collect
from shared_core.errors import ErrorKind as K
from shared_core.routing.target import Target
from shared_core.testing import CANONICAL, FAULTS, Fault, FaultServer
from tests.providers.wire import COLOURS, SHORT_S, TIMED, Colour, ask, call, fail, guard, suffer
from tests.timing import LONG_S, timed

KEY = "AIza-test-not-a-real-key-000000"
NAMES = ("google", "google-legacy")

# The Gemini table of the vendor's error pages; None: the answer arrives in spite of the fault.
SAME: Mapping[str, K | None] = {
    "no-response": K.TIMEOUT,
    "reset-before-headers": K.TRANSIENT,
    "close-before-headers": K.TRANSIENT,
    "reset-after-headers": K.TRANSIENT,
    "hang-after-headers": K.TIMEOUT,
    "header-drip": K.TIMEOUT,
    "garbage-status-line": K.TRANSIENT,
    "giant-headers": K.TRANSIENT,
    "continue-only": K.TIMEOUT,
    "redirect-loop": K.CONFIG,
    "proxy-auth": K.CONFIG,
    "stale-keep-alive": None,
    "bad-request": K.BAD_REQUEST,
    "context-overflow": K.CONTEXT_OVERFLOW,
    "content-policy": K.POLICY,  # 200 with promptFeedback.blockReason
    "key-invalid": K.AUTH,  # 400 INVALID_ARGUMENT: the status lies
    "unauthorized": K.AUTH,
    "payment-required": K.BILLING,
    "billing": K.BILLING,
    "spend-limit": K.THROTTLED,  # a rolling ten minutes
    "billing-inactive": K.BILLING,
    "forbidden": K.FORBIDDEN,
    "region": K.FORBIDDEN,
    "model-not-found": K.NOT_FOUND,
    "conflict": K.CONFLICT,
    "too-large": K.TOO_LARGE,
    "unprocessable": K.BAD_REQUEST,
    "server-error": K.TRANSIENT,
    "bad-gateway": K.TRANSIENT,
    "unavailable": K.OVERLOADED,
    "gateway-timeout": K.TIMEOUT,  # 504 DEADLINE_EXCEEDED
    "edge-520": K.TRANSIENT,
    "overloaded": K.OVERLOADED,
    "cancelled": K.CANCELLED,
    "rate-limit": K.THROTTLED,
    "rate-limit-zero": K.THROTTLED,
    "rate-limit-negative": K.THROTTLED,
    "rate-limit-huge": K.THROTTLED,
    "rate-limit-malformed": K.THROTTLED,
    "rate-limit-bare": K.THROTTLED,
    "rate-limit-date": K.THROTTLED,
    "rate-limit-skewed": K.THROTTLED,
    "quota-day": K.QUOTA_DAY,
    "quota-zero": K.NO_ENTITLEMENT,
    "html-200": K.MALFORMED,
    "corrupt-gzip": K.MALFORMED,
    "empty-choices": K.MALFORMED,
    "usage-missing": None,
    "content-filter": None,
    "truncated-json": K.MALFORMED,
    "ping-drip": K.TIMEOUT,
    "stall": K.TIMEOUT,
    "cut-eof": K.STREAM_CUT,
    "cut-tool": K.TRANSIENT,  # Gemini sends a call in one piece, so nothing of it had arrived
    "role-only-error": K.TRANSIENT,
    "role-only-hang": K.TIMEOUT,
    "malformed-chunk": K.MALFORMED,
    "missing-terminal": K.STREAM_CUT,
    "overload-first": K.OVERLOADED,
    "overload-later": K.OVERLOADED,
    "reject-prefill": None,
}
DIFFERENT: Mapping[tuple[str, bool], K | None] = {
    ("cut", False): K.TRANSIENT,
    ("cut", True): K.STREAM_CUT,
    ("wrong-content-length", False): K.TRANSIENT,
    ("wrong-content-length", True): None,  # every event has arrived: the answer is whole
}
ELSEWHERE = frozenset({"status", "request-timeout", "bad-utf8"})  # said below, in tests of their own


def cases() -> Iterator[Any]:
    for row in FAULTS.values():
        if row.place != "request" or "google" not in row.wires or row.harmless or row.name in ELSEWHERE:
            continue
        for streaming, there in ((False, row.whole), (True, row.streamed)):
            if there:
                kind = DIFFERENT[row.name, streaming] if (row.name, streaming) in DIFFERENT else SAME[row.name]
                shape = "stream" if streaming else "whole"
                yield pytest.param(row.name, streaming, kind, id=f"{row.name}-{shape}")


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def target(server: FaultServer, name: str, **options: Any) -> Target:
    return Target(f"{name}:gemini-test", base_url=server.google_url, api_key=KEY, **options)


def provider_for(server: FaultServer, name: str) -> Any:
    from shared_core.providers import build

    server.clear()
    made: Any = build(target(server, name))
    made.load()
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("fault", "streaming", "kind"), list(cases()))
def test_each_fault_becomes_its_kind_of_error_and_costs_one_packet(
    server: FaultServer, name: str, colour: Colour, fault: str, streaming: bool, kind: K | None
) -> None:
    """No retries (google-genai can, 401 makes google-auth try three times), no redirects, no stretched limits."""
    suffer(server, target(server, name), colour, fault, streaming=streaming, kind=kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_408_of_the_server_is_a_server_that_is_slow(server: FaultServer, name: str, streaming: bool) -> None:
    provider = provider_for(server, name)
    server.script("gemini-test", "request-timeout")
    assert fail(provider, ask(streaming=streaming)).kind in (K.TIMEOUT, K.TRANSIENT)
    assert server.count() == 1
    provider.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("colour", COLOURS)
def test_an_error_after_text_says_that_text_had_come(server: FaultServer, name: str, colour: Colour) -> None:
    provider = provider_for(server, name)
    for fault in ("cut", "cut-eof", "overload-later"):
        server.script("gemini-test", fault)
        assert fail(provider, ask(streaming=True), colour).after_output, fault
    provider.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_wait_a_server_asks_for_is_kept(server: FaultServer, name: str) -> None:
    """google.rpc.RetryInfo, in the body."""
    provider = provider_for(server, name)
    server.script("gemini-test", "rate-limit")
    for streaming in (False, True):
        assert fail(provider, ask(streaming=streaming)).retry_after_s == 1.0
    provider.close()


@pytest.mark.parametrize("name", NAMES)
@timed
def test_a_stalled_stream_ends_with_the_idle_limit(server: FaultServer, name: str) -> None:
    """The driver moves the guard at each event; reads obey where it stands now, not where it stood at the start."""
    provider = provider_for(server, name)
    server.script("gemini-test", "stall")
    limit = guard(streaming=True, first_s=30.0, idle_s=SHORT_S)
    begun = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        for _ in provider.stream(ask(streaming=True), limit):
            limit.touch()
    assert "no content for" in str(caught.value)
    assert time.monotonic() - begun < 1.5
    provider.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("url", ["refused_url"])
def test_a_server_that_is_not_there_is_said_so(server: FaultServer, name: str, colour: Colour, url: str) -> None:
    from shared_core.providers import build

    address = server.refused_url("google")
    provider: Any = build(Target(f"{name}:g", base_url=address, api_key=KEY))
    error = fail(provider, ask(), colour)
    assert error.kind is K.CONNECT
    assert KEY not in str(error)


@pytest.mark.parametrize("name", NAMES)
@timed
def test_connecting_obeys_its_own_limit(server: FaultServer, name: str) -> None:
    """google-genai passes `timeout=None` with every request unless told otherwise: connecting would know no limit."""
    from shared_core.providers import build

    try:
        address = server.black_hole_url("google")
    except (OSError, NotImplementedError, RuntimeError) as reason:  # Linux only
        pytest.skip(f"no black hole here: {reason}")
    provider: Any = build(Target(f"{name}:g", base_url=address, api_key=KEY))
    provider.load()
    for colour in COLOURS:
        begun = time.monotonic()
        error = fail(provider, ask(), colour, guard(streaming=False, connect_s=SHORT_S))
        assert error.kind is K.CONNECT, error
        assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("name", NAMES)
def test_leaving_a_stream_closes_its_connection(server: FaultServer, name: str) -> None:
    provider = provider_for(server, name)
    server.script("gemini-test", "stall")
    events = provider.stream(ask(streaming=True), guard(streaming=True))
    next(events)
    events.close()
    server.wait_idle()
    provider.close()


@pytest.mark.parametrize("name", NAMES)
async def test_leaving_an_async_stream_closes_its_connection(server: FaultServer, name: str) -> None:
    provider = provider_for(server, name)
    server.script("gemini-test", "stall")
    events = provider.astream(ask(streaming=True), guard(streaming=True))
    await anext(events)
    await events.aclose()
    server.wait_idle()
    await provider.aclose()


@timed
async def test_the_legacy_sdk_does_not_block_the_event_loop(server: FaultServer) -> None:
    import asyncio

    provider = provider_for(server, "google-legacy")
    server.script("gemini-test", "hang")
    ticks = 0
    task = asyncio.ensure_future(anext(provider.astream(ask(), guard(streaming=False))))
    try:
        async with asyncio.timeout(0.1):
            while not task.done():
                ticks += 1
                await asyncio.sleep(0.005)
    except TimeoutError:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ticks >= 5
    server.wait_idle()  # the thread was woken and has let its connection go
    await provider.aclose()


async def test_calls_of_the_legacy_sdk_that_run_together_do_not_cut_each_other_off(server: FaultServer) -> None:
    """A connection that a call has given back may be another's by the time its caller leaves."""
    import asyncio

    provider = provider_for(server, "google-legacy")
    server.script("gemini-test", "ok")

    async def several() -> list[str]:
        return [
            collect([event async for event in provider.astream(ask(), guard(streaming=False))]).text for _ in range(8)
        ]

    texts = [text for some in await asyncio.gather(*(several() for _ in range(8))) for text in some]
    assert texts == [CANONICAL] * 64
    await provider.aclose()


@timed
def test_a_connection_of_the_legacy_sdk_is_closed_by_the_thread_that_reads_it(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were its caller, whose time is up, to close it too, the pool could get it twice and give it to two calls."""
    closed_by: set[str] = set()
    closed = threading.Event()
    close = HTTPConnection.close

    def noted(connection: HTTPConnection) -> None:
        closed_by.add(threading.current_thread().name)
        time.sleep(0.03)  # a busy machine: the other thread has time to come here too
        close(connection)
        closed.set()

    provider = provider_for(server, "google-legacy")
    monkeypatch.setattr(HTTPConnection, "close", noted)
    server.script("gemini-test", "hang-after-headers")
    assert fail(provider, ask(), limit=guard(streaming=False, first_s=0.05)).kind is K.TIMEOUT
    assert closed.wait(LONG_S)
    assert threading.current_thread().name not in closed_by
    provider.close()


@pytest.mark.parametrize("name", NAMES)
def test_two_keys_live_side_by_side_and_stay_out_of_urls(server: FaultServer, name: str) -> None:
    from shared_core.providers import build

    server.clear()
    server.script("gemini-test", "ok")
    for key in ("first-key-000000000001AAAA", "other-key-000000000002BBBB"):
        made: Any = build(Target(f"{name}:gemini-test", base_url=server.google_url, api_key=key))
        call(made, ask())
        call(made, ask(streaming=True))
        assert key not in repr(made)
        made.close()
    assert [r.headers["x-goog-api-key"][-4:] for r in server.requests] == ["AAAA", "AAAA", "BBBB", "BBBB"]
    assert not any("key" in r.path for r in server.requests)


def test_every_timed_fault_is_in_the_table() -> None:
    assert {f for f in TIMED if "google" in FAULTS[f].wires} <= set(SAME)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "fault", ["close-on-accept", "reset-on-accept", "hang-on-accept", "reset-mid-upload", "never-read"]
)
@timed
def test_a_connection_that_is_refused_service_ends_in_time(server: FaultServer, name: str, fault: str) -> None:
    """Also while a large request is being sent."""
    provider = provider_for(server, name)
    server.script_accept([fault])
    begun = time.monotonic()
    error = fail(provider, ask("x" * 8_000_000), limit=guard(streaming=False, first_s=0.6, connect_s=SHORT_S))
    assert error.kind in ({K.TIMEOUT} if fault in ("hang-on-accept", "never-read") else {K.TRANSIENT, K.CONNECT}), error
    took = time.monotonic() - begun
    assert took < 3.0
    if fault == "never-read":  # sending is not connecting: only the whole answer's limit ends it
        assert took > 0.5
    provider.close()


def test_an_answer_to_be_continued_by_the_sdk_costs_one_request_all_the_same(server: FaultServer) -> None:
    """Left alone, google-genai sends the request again, and bills it, until the model says that it is done."""
    provider = provider_for(server, "google")
    candidate = {
        "content": {"role": "model", "parts": [{"text": "half"}]},
        "finishReason": "CONTINUATION",
        "continuationToken": "dG9rZW4=",
    }
    server.script("gemini-test", Fault("status", status=200, body={"candidates": [candidate]}))
    answer = collect(call(provider, ask()))
    assert (answer.finish_reason, answer.raw_finish_reason) == ("length", "CONTINUATION")
    assert server.count() == 1
    provider.close()
