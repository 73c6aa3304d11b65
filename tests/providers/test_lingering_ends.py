"""A vendor that has said everything and why it ended, and then keeps the connection: the answer is whole."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared_core import ErrorKind, Router, Target, Timeouts
from shared_core.chat.events import TextDelta
from shared_core.testing import ScriptedProvider
from tests.providers.wire import COLOURS, Colour

WHOLE = {
    "anthropic": (
        'event: message_start\ndata: {"type": "message_start", "message": {"id": "m", "type": "message", '
        '"role": "assistant", "model": "m", "content": [], "stop_reason": null, '
        '"usage": {"input_tokens": 1, "output_tokens": 1}}}\n\n'
        'event: content_block_start\ndata: {"type": "content_block_start", "index": 0, '
        '"content_block": {"type": "text", "text": ""}}\n\n'
        'event: content_block_delta\ndata: {"type": "content_block_delta", "index": 0, '
        '"delta": {"type": "text_delta", "text": "It is whole."}}\n\n'
        'event: content_block_stop\ndata: {"type": "content_block_stop", "index": 0}\n\n'
        'event: message_delta\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, '
        '"usage": {"output_tokens": 4}}\n\n'
        'event: message_stop\ndata: {"type": "message_stop"}\n\n'
    ),
    "google": (
        'data: {"candidates": [{"content": {"role": "model", "parts": [{"text": "It is whole."}]}, "index": 0, '
        '"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 4}}\r\n\r\n'
    ),
    "openai": (
        'data: {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, '
        '"delta": {"role": "assistant", "content": "It is whole."}, "finish_reason": "stop"}]}\n\n'
    ),
}
"""For OpenAI without the usage and the `[DONE]` that should follow."""


@contextmanager
def lingering(stream: str) -> Iterator[str]:
    """The address of a server that answers each request with `stream`, and then waits to be hung up on."""

    def serve(peer: socket.socket) -> None:
        with peer:
            try:
                peer.recv(65_536)
                head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                peer.sendall(f"{head}{len(stream):x}\r\n{stream}\r\n".encode())
                while peer.recv(65_536):
                    continue
            except OSError:
                return  # reset by a client that leaves in the middle of the body

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("vendor", WHOLE)
def test_a_whole_answer_is_not_lost_to_the_limits_of_its_attempt(vendor: str, colour: Colour) -> None:
    """The silence behind it is shorter than what is waited for usage; nobody else goes on with what has ended."""
    backup = ScriptedProvider(" And more of it.", ErrorKind.BAD_REQUEST)
    with lingering(WHOLE[vendor]) as url:
        first = Target(f"{vendor}:m", base_url=url, api_key="any-key-at-all", name="first")
        limits = Timeouts(first_token=10, idle=0.2)
        with Router([first, Target(provider=backup, name="backup")], timeouts=limits) as router:
            if colour == "sync":
                text = "".join(event.text for event in router.stream("Hi") if isinstance(event, TextDelta))
            else:

                async def read() -> str:
                    return "".join([e.text async for e in router.astream("Hi") if isinstance(e, TextDelta)])

                text = asyncio.run(read())
            assert (text, backup.calls) == ("It is whole.", 0)
