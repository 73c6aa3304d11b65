"""What is raised when nobody answers: LangChain's own error classes, truthful about retrying, with every attempt."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
from typing import Any

import pytest
from langchain_core import exceptions as langchain
from langchain_core.callbacks import BaseCallbackHandler

from langchain_fallback import FallbackChatModel, errors
from shared_core import AllTargetsFailed, RetryPolicy, StreamBroken
from shared_core.errors import (
    BudgetExceeded,
    ConfigurationError,
    DeadlineExceeded,
    ErrorKind,
    InvalidRequest,
    ProviderError,
    quieted,
)
from shared_core.testing import FaultServer
from shared_core.testing.fault_server import cut
from tests.langchain.cells import CLAUDE, GPT, models_of
from tests.langchain.test_faces import FACES, chunks_of

NATIVE, WRAPPED = "native OpenAI, native Anthropic", "ChatOpenAI, ChatAnthropic"

CASES: dict[str, tuple[Any, Any, type[Exception], bool]] = {
    # what both vendors answer: (OpenAI, Anthropic), LangChain's class, is it worth another try?
    "keys refused": (401, 401, langchain.ModelAuthenticationError, False),
    "no permission": (403, 403, langchain.ModelPermissionDeniedError, False),
    "no such model": (404, 404, langchain.ModelNotFoundError, False),
    "throttled": (429, 429, langchain.ModelRateLimitError, True),
    "down": (503, 503, langchain.ModelAPIError, True),
    "too long": ("context-overflow", "context-overflow", langchain.ContextOverflowError, False),
    "malformed": (400, 400, langchain.ModelInvalidRequestError, False),
    "key refused, the other down": (401, 503, langchain.ModelError, True),
    "too long, the other down": (503, "context-overflow", langchain.ContextOverflowError, True),
    "lost connections": ("reset", "reset", langchain.ModelError, True),
}


def model_over(server: FaultServer, mixture: str, **options: Any) -> FallbackChatModel:
    return FallbackChatModel(models=models_of(server, mixture), retry=RetryPolicy(0, 0), **options)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("mixture", [NATIVE, WRAPPED])
@pytest.mark.parametrize("case", CASES)
async def test_a_failure_is_langchains_own_kind_of_error_and_still_ours(
    server: FaultServer, case: str, mixture: str, face: str
) -> None:
    first, second, expected, worth_it = CASES[case]
    server.script(GPT, first)
    server.script(CLAUDE, second)
    with pytest.raises(AllTargetsFailed) as caught:
        await chunks_of(model_over(server, mixture), face)
    error = caught.value
    assert isinstance(error, expected)
    assert isinstance(error, langchain.ModelError)
    assert error.is_retryable is worth_it
    assert all(isinstance(e, ProviderError) for e in error.errors)
    assert error.errors[0].target.split("#")[0].endswith(GPT)
    assert error.__cause__ in error.errors
    if "lost" not in case:
        assert error.response is not None, "tracers read headers and body from it"
        assert error.response.status_code == error.__cause__.status


async def test_a_tracer_hears_the_servers_own_answer(server: FaultServer) -> None:
    heard: list[BaseException] = []

    class Listener(BaseCallbackHandler):
        def on_llm_error(self, error: BaseException, **_: Any) -> None:
            heard.append(error)

    server.default = 503
    with pytest.raises(langchain.ModelAPIError):
        model_over(server, NATIVE, callbacks=[Listener()]).invoke("Hello")
    (error,) = heard
    assert error.response.status_code == 503  # type: ignore[attr-defined]  # what tracers look for


@pytest.mark.parametrize("face", ["stream", "astream"])
async def test_a_stream_that_nobody_could_finish_keeps_what_was_said(server: FaultServer, face: str) -> None:
    server.script(GPT, cut(after_words=3))
    server.script(CLAUDE, 503)
    with pytest.raises(StreamBroken) as caught:
        await chunks_of(model_over(server, NATIVE), face)
    error = caught.value
    assert isinstance(error, langchain.ModelConnectionError)
    assert error.is_retryable
    assert error.partial
    assert [e.kind for e in error.errors][-1] is ErrorKind.OVERLOADED
    assert isinstance(error.__cause__, langchain.ModelError)


def test_time_running_out_is_a_timeout(server: FaultServer) -> None:
    server.default = "hang"
    with pytest.raises(DeadlineExceeded) as caught:
        model_over(server, NATIVE, timeout=0.2).invoke("Hello")
    assert isinstance(caught.value, langchain.ModelTimeoutError)


def test_an_impossible_request_is_an_invalid_one_and_nothing_is_sent(server: FaultServer) -> None:
    for call in (lambda m: m.invoke("Hello", temperature=9), lambda m: list(m.stream("Hello", temperature=9))):
        with pytest.raises(InvalidRequest) as caught:
            call(model_over(server, NATIVE))
        assert isinstance(caught.value, langchain.ModelInvalidRequestError)
        assert not caught.value.is_retryable
    assert server.count() == 0


def test_a_conversation_longer_than_every_window_overflows_before_anything_is_sent(server: FaultServer) -> None:
    with pytest.raises(langchain.ContextOverflowError) as caught:
        model_over(server, NATIVE).invoke("word " * 2_000_000)
    assert server.count() == 0
    assert "tokens, its context window is" in str(caught.value)


def test_open_circuits_are_worth_another_try_soon(server: FaultServer) -> None:
    server.default = 503
    model = model_over(server, NATIVE, breaker={"consecutive_failures": 1})
    for _ in range(2):
        with pytest.raises(AllTargetsFailed) as caught:
            model.invoke("Hello")
    assert not [e for e in caught.value.errors if isinstance(e, ProviderError)], "nobody was asked the second time"
    assert caught.value.is_retryable


def test_a_refused_key_does_not_become_worth_retrying_because_its_account_is_closed(server: FaultServer) -> None:
    server.default = 401
    model = model_over(server, NATIVE)
    for _ in range(2):
        with pytest.raises(AllTargetsFailed) as caught:
            model.invoke("Hello")
        assert not caught.value.is_retryable


EVERY = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass)
    if cls.__module__ == errors.__name__ and issubclass(cls, AllTargetsFailed)
]  # fmt: skip


@pytest.mark.parametrize("cls", EVERY)
def test_every_group_pickles_splits_and_stays_itself(cls: Any) -> None:
    inner = ProviderError.of(ErrorKind.AUTH, "no", target="a")
    error = cls("nobody", [inner], fallback={"id": "1"}, retry_after_s=2.0)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert str(again) == "nobody"
        assert again.retry_after_s == 2.0
    kept, left = error.split(ProviderError)
    assert type(kept) is cls
    assert left is None
    caught = []
    try:
        raise error
    except* ProviderError as group:
        caught += group.exceptions
    assert caught == [inner]


def test_what_is_langchains_already_is_left_alone_and_what_is_no_models_fault_too() -> None:
    error = errors.ModelsFailed("nobody", [ValueError("x")])
    assert errors.as_langchain(error) is error
    wrong = ConfigurationError("an option")
    assert errors.as_langchain(wrong) is wrong
    spent = errors.as_langchain(BudgetExceeded("spent"))
    assert isinstance(spent, langchain.ModelError)
    assert not spent.is_retryable
    noted = AllTargetsFailed("nobody", [])
    noted.add_note("a note")
    assert errors.as_langchain(noted).__notes__ == ["a note"]


def test_the_traceback_of_an_outage_fits_on_a_screen(server: FaultServer) -> None:
    """Four SDKs' frames would fill three; what each vendor said stays. A failure nobody knows keeps its frames."""
    server.default = 503
    try:
        model_over(server, WRAPPED).invoke("Hello")
    except AllTargetsFailed as error:
        text = "".join(traceback.format_exception(error))
        assert text.count("InternalServerError") >= 1
        assert "site-packages/openai" not in text
        assert "site-packages/anthropic" not in text
        assert len(text.splitlines()) < 60
    unknown = ProviderError.of(ErrorKind.UNKNOWN, "what was that?")
    try:
        raise unknown
    except ProviderError:
        assert quieted(unknown).__traceback__ is not None


async def test_a_broken_stream_says_whether_anybody_was_asked_to_go_on(server: FaultServer) -> None:
    server.script(GPT, cut(after_words=3))
    with pytest.raises(StreamBroken, match="nobody was asked to continue it"):
        await chunks_of(model_over(server, NATIVE, on_stream_break="raise"), "stream")
    assert server.count(CLAUDE) == 0
