"""One connection serves call after call, streamed or whole; a stream that is left in the middle gives its own up."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core.chat.events import Finished, TextDelta
from shared_core.providers import build, transport
from shared_core.routing.target import Target
from shared_core.testing import Fault, FaultServer
from tests.providers.wire import COLOURS, Colour, ask, guard
from tests.timing import LONG_S, timed

KEY = "sk-test-not-a-real-key-000"
WIRES = ("openai", "anthropic", "google")
MIXED = (True, True, False, True, True, False, True)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def provider_at(url: str, wire: str = "openai") -> Any:
    made: Any = build(Target(f"{wire}:m", base_url=url, api_key=KEY))
    made.load()
    return made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a body that is sent is waited for, however long a busy machine takes to bring it."""
    monkeypatch.setattr(transport, "_REST_S", LONG_S)
    if importlib.util.find_spec("openai._streaming_cleanup"):  # the newest SDK waits by itself, for 0.1 s
        monkeypatch.setattr("openai._streaming_cleanup._DRAIN_TIMEOUT", LONG_S)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("wire", WIRES)
def test_streamed_and_whole_calls_share_one_connection(server: FaultServer, wire: str, colour: Colour) -> None:
    provider = provider_at(getattr(server, f"{wire}_url"), wire)
    server.clear()
    server.script("m", "ok")

    async def go() -> None:
        for streaming in MIXED:
            events = [e async for e in provider.astream(ask(streaming=streaming), guard(streaming=streaming))]
            assert isinstance(events[-1], Finished)
        await provider.aclose()

    if colour == "async":
        asyncio.run(go())
    else:
        for streaming in MIXED:
            events = list(provider.stream(ask(streaming=streaming), guard(streaming=streaming)))
            assert isinstance(events[-1], Finished)
    assert server.connections == 1
    provider.close()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_broken_answer_gives_its_connection_up(server: FaultServer, colour: Colour) -> None:
    """Whatever is wrong with the stream, the next call begins on a connection of its own."""
    provider = provider_at(server.openai_url)
    server.clear()
    server.script("m", [Fault("malformed-chunk"), "ok"])

    async def listen(streaming: bool = True) -> list[Any]:
        if colour == "sync":
            return list(provider.stream(ask(streaming=streaming), guard(streaming=streaming)))
        return [e async for e in provider.astream(ask(streaming=streaming), guard(streaming=streaming))]

    async def go() -> None:
        with pytest.raises(Exception, match="JSON"):
            await listen()
        assert isinstance((await listen())[-1], Finished)
        await provider.aclose()

    asyncio.run(go())
    assert server.connections == 2


# ── what comes behind the last event, byte by byte ───────────────────────────────────────────────────────────────────


def frame(text: str) -> bytes:
    data = f"data: {text}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(content: str, finish: str = "null") -> bytes:
    shown = f'{{"index":0,"delta":{{"content":"{content}"}},"finish_reason":{finish}}}'
    return frame(f'{{"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{shown}]}}')


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = HEAD + delta("one ") + delta("two")
FINISH = delta("", '"stop"')
DONE = frame("[DONE]")
LAST = b"0\r\n\r\n"


class Speaker:
    """A server that sends exactly these bytes, with pauses (seconds) between them, and watches the client leave."""

    def __init__(self, *script: bytes | float) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.connections = 0
        self.left = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        # An OSError: the client left while we spoke. That is as good as leaving while we were silent.
        with peer, contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while request := peer.recv(65_536):
                if not request.endswith((b"}", b"]")):
                    continue  # the body is still to come
                for step in self._script:
                    if isinstance(step, bytes):
                        peer.sendall(step)
                    else:
                        time.sleep(step)
        self.left.set()

    def close(self) -> None:
        self._listener.close()


def hear(provider: Any, colour: Colour, times: int) -> float:
    """Listen to whole streams; returns how long the last one took."""

    async def go() -> float:
        for _ in range(times):
            begun = time.monotonic()
            events = [e async for e in provider.astream(ask(streaming=True), guard(streaming=True))]
            assert isinstance(events[-1], Finished)
        took = time.monotonic() - begun
        await provider.aclose()
        return took

    if colour == "async":
        return asyncio.run(go())
    for _ in range(times):
        begun = time.monotonic()
        assert isinstance(list(provider.stream(ask(streaming=True), guard(streaming=True)))[-1], Finished)
    return time.monotonic() - begun


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("colour", COLOURS)
def test_the_last_bytes_may_come_a_little_later(colour: Colour) -> None:
    speaker = Speaker(WORDS, FINISH, DONE, 0.005, LAST)
    hear(provider_at(speaker.url), colour, 4)
    speaker.close()
    assert speaker.connections == 1


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "rest",
    [(), (b"4000\r\n" + b"x" * 0x4000 + b"\r\n",), (b"nonsense\r\n",)],
    ids=["silence", "much more", "no HTTP"],
)
@timed
def test_what_is_not_the_end_of_the_body_costs_the_connection_and_hardly_any_time(
    colour: Colour, rest: tuple[bytes, ...]
) -> None:
    speaker = Speaker(WORDS, FINISH, DONE, *rest)
    took = hear(provider_at(speaker.url), colour, 2)
    assert speaker.left.wait(LONG_S)
    speaker.close()
    assert speaker.connections == 2
    assert took < transport._REST_S + 0.5  # half a second for a busy machine


@pytest.mark.parametrize("colour", COLOURS)
def test_the_guard_ends_the_wait_for_the_last_bytes(colour: Colour, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is whole by then, so it is delivered."""
    monkeypatch.setattr(transport, "_REST_S", 60.0)
    monkeypatch.setattr("shared_core.providers.base._TAIL_S", 0.1)
    speaker = Speaker(WORDS, FINISH, DONE)
    assert hear(provider_at(speaker.url), colour, 1) < LONG_S
    assert speaker.left.wait(LONG_S)
    speaker.close()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("script", [(WORDS,), (WORDS, FINISH)], ids=["in the middle", "before the usage"])
def test_leaving_early_closes_at_once(
    colour: Colour, script: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a cancelled task: nobody waits for the rest of an answer that is not wanted."""
    monkeypatch.setattr(transport, "_REST_S", 60.0)
    speaker = Speaker(*script)
    provider = provider_at(speaker.url)

    async def go() -> None:
        heard = asyncio.Event()

        async def listen() -> None:
            async for event in provider.astream(ask(streaming=True), guard(streaming=True)):
                if isinstance(event, TextDelta):
                    heard.set()

        task = asyncio.create_task(listen())
        await asyncio.wait_for(heard.wait(), LONG_S)
        await asyncio.sleep(0.02)  # until it waits for what never comes
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(speaker.left.wait, LONG_S)
        await provider.aclose()

    if colour == "async":
        asyncio.run(go())
    else:
        events = provider.stream(ask(streaming=True), guard(streaming=True))
        while not isinstance(next(events), TextDelta):
            pass
        events.close()
        assert speaker.left.wait(LONG_S)
    speaker.close()


def test_a_task_cancelled_while_the_last_bytes_are_awaited_closes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_REST_S", 60.0)
    monkeypatch.setattr("shared_core.providers.base._TAIL_S", 60.0)
    if importlib.util.find_spec("openai._streaming_cleanup"):  # the newest SDK waits by itself, for 0.1 s
        monkeypatch.setattr("openai._streaming_cleanup._DRAIN_TIMEOUT", 60.0)
    speaker = Speaker(WORDS, FINISH, DONE)
    provider = provider_at(speaker.url)

    async def go() -> None:
        words: list[str] = []
        heard = asyncio.Event()

        async def listen() -> None:
            async for event in provider.astream(ask(streaming=True), guard(streaming=True)):
                if isinstance(event, TextDelta):
                    words.append(event.text)
                    if len(words) == 2:
                        heard.set()

        task = asyncio.create_task(listen())
        await asyncio.wait_for(heard.wait(), LONG_S)
        await asyncio.sleep(0.03)  # all is sent in one piece, so it has read as far as it can
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(speaker.left.wait, LONG_S)
        await provider.aclose()

    asyncio.run(go())
    speaker.close()
