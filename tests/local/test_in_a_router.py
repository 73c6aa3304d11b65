"""The local model as a target: a crash in the middle of its answer does not show in the answer."""

from __future__ import annotations

import os
import signal

import pytest

from shared_core.chat.events import Continued, Finished, TextDelta
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.router import Router
from shared_core.routing.target import Target
from tests.local.support import answer, ask

QUESTION = "Explain what a circuit breaker does."


@pytest.fixture
def killable():
    """A provider that shares its worker with the router's target, so that the test knows whom to kill."""
    provider = LlamaCppProvider(Target("llamacpp:tiny", queue=9))
    yield provider
    provider.close()


@pytest.mark.parametrize("after", [1, 30])
def test_an_answer_whose_process_was_killed_goes_on_exactly(tiny, killable, after):
    texts, continued, last = [], 0, None
    router = Router([Target("llamacpp:tiny", queue=9)])
    try:
        with router.stream(ask(QUESTION)) as stream:
            for event in stream:
                if isinstance(event, TextDelta):
                    texts.append(event.text)
                    if len(texts) == after:
                        killable.warm()
                        os.kill(killable.pid, signal.SIGKILL)
                continued += isinstance(event, Continued)
                last = event
    finally:
        router.close()
    assert "".join(texts) == answer(tiny, QUESTION).text
    assert isinstance(last, Finished)
    assert continued <= 1  # the toy model is fast: its answer may have been on its way before the process died


async def test_the_same_for_an_async_caller(tiny, killable):
    texts = []
    router = Router([Target("llamacpp:tiny", queue=9)])
    try:
        async for event in router.astream(ask(QUESTION)):
            if isinstance(event, TextDelta):
                texts.append(event.text)
                if len(texts) == 5:
                    killable.warm()
                    os.kill(killable.pid, signal.SIGKILL)
    finally:
        await router.aclose()
    assert "".join(texts) == answer(tiny, QUESTION).text


def test_a_router_serves_a_whole_answer(tiny):
    router = Router(["llamacpp:tiny"])
    try:
        got = router.invoke(ask("What is the capital of France?", streaming=False))
    finally:
        router.close()
    assert got.text == "The capital of France is Paris."
    assert got.fallback["target"] == "llamacpp:tiny"
