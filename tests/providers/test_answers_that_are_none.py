"""Answers that are good JSON and no answers: at every vendor, native, each is `malformed` and not somebody's bug."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core.errors import ErrorKind
from shared_core.providers import build
from shared_core.routing.target import Target
from shared_core.testing import Fault, FaultServer
from tests.providers.wire import COLOURS, Colour, ask, fail

GEMINI_CALL = {"parts": [{"functionCall": {"name": "f", "args": "x"}}]}

NONE: list[tuple[str, Any]] = [
    ("openai", "42"),
    ("openai", '"text"'),
    ("openai", {}),
    ("openai", {"choices": "none"}),
    ("openai", {"choices": [{"index": 0, "message": "x", "finish_reason": "stop"}]}),
    ("openai", {"choices": [{"index": 0, "message": {"role": "assistant", "content": {"a": 1}}}]}),
    ("anthropic", "42"),
    ("anthropic", "[]"),
    ("anthropic", {}),
    ("anthropic", {"type": "message", "content": "none"}),
    ("google", "42"),
    ("google", "[]"),
    ("google", {}),
    ("google", {"candidates": "none"}),
    ("google", {"candidates": [{"content": GEMINI_CALL, "finishReason": "STOP"}]}),
    ("google", {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": 5}),
    *((vendor, "[" * 100_000) for vendor in ("openai", "anthropic", "google")),  # deeper than any stack
]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(("vendor", "body"), NONE, ids=[f"{vendor}-{str(body)[:60]}" for vendor, body in NONE])
def test_an_answer_that_is_none_is_malformed(server: FaultServer, vendor: str, body: Any, colour: Colour) -> None:
    """So it is asked for once more, then elsewhere, and counts for the circuit."""
    server.script("m", Fault("status", status=200, body=body, headers={"content-type": "application/json"}))
    url = {"openai": server.openai_url, "anthropic": server.anthropic_url, "google": server.google_url}[vendor]
    provider = build(Target(f"{vendor}:m", base_url=url, api_key="any-key-at-all"))
    assert fail(provider, ask(), colour).kind is ErrorKind.MALFORMED


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("code", [None, "429"])
def test_an_error_in_a_gemini_stream_without_a_number_is_no_bug(server: FaultServer, code: Any, colour: Colour) -> None:
    """Google's SDK stumbles over it; the caller must not."""
    body = f'data: {{"error": {{"message": "gone", "code": {json.dumps(code)}}}}}\r\n\r\n'
    server.script("m", Fault("status", status=200, body=body, headers={"content-type": "text/event-stream"}))
    provider = build(Target("google:m", base_url=server.google_url, api_key="any-key-at-all"))
    assert fail(provider, ask(streaming=True), colour).kind is ErrorKind.MALFORMED
