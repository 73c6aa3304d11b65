"""What callbacks, tracers, counters and the log are told: one run per call, ended once, whoever served."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.tracers.langchain import LangChainTracer

from langchain_fallback import FallbackChatModel
from shared_core.errors import AllTargetsFailed, StreamBroken
from shared_core.testing import CANONICAL, Answer, Fault, FaultServer
from shared_core.testing.fault_server import Usage, cut
from tests.langchain.cells import CLAUDE, GPT, models_of, native, wrapped
from tests.timing import timed

MIXED = (
    "native OpenAI, native Anthropic",
    "ChatOpenAI, ChatAnthropic",
    "ChatAnthropic, native OpenAI",
)
FACES = ("invoke", "ainvoke", "stream", "astream", "batch", "abatch")
STATES = ("healthy", "failing over", "continued", "restarted")
USAGE = Usage(prompt_tokens=50, completion_tokens=30, cached_tokens=20, reasoning_tokens=10)


class Witness(BaseCallbackHandler):
    """Writes down what it is told about runs."""

    def __init__(self) -> None:
        self.started: list[UUID] = []
        self.ended: list[tuple[UUID, LLMResult]] = []
        self.failed: list[tuple[UUID, BaseException]] = []
        self.tokens: list[Any] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self.started.append(run_id)

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        self.tokens.append(chunk)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self.ended.append((run_id, response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.failed.append((run_id, error))

    @property
    def closed(self) -> list[UUID]:
        return [run_id for run_id, _ in (*self.ended, *self.failed)]


async def soon(holds: Callable[[], Any]) -> None:
    """Wait until `holds()`, or 10 s: LangChain tells some things from tasks and threads that nobody can wait for."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0.001)


async def ask(model: Any, face: str, config: Any) -> Any:
    """The answer by one of the faces: a message, or the sum of the chunks; of a batch, the first of two."""
    match face:
        case "invoke":
            return model.invoke("Hello", config)
        case "ainvoke":
            return await model.ainvoke("Hello", config)
        case "batch":
            return model.batch(["Hello", "Hello"], config)[0]
        case "abatch":
            return (await model.abatch(["Hello", "Hello"], config))[0]
        case "stream":
            chunks = list(model.stream("Hello", config))
        case _:
            chunks = [chunk async for chunk in model.astream("Hello", config)]
    return sum(chunks[1:], chunks[0])


def model_in(state: str, server: FaultServer, mixture: str) -> FallbackChatModel:
    models = models_of(server, mixture)
    primary = GPT if "OpenAI" in mixture.partition(",")[0] else CLAUDE
    server.default = Answer(usage=USAGE)
    if state == "failing over":
        server.script(primary, 503)
    elif state != "healthy":
        server.script(primary, cut(after_words=5))
    return FallbackChatModel(
        models=models, max_retries=0, on_stream_break="restart" if state == "restarted" else "continue"
    )


# ── one run per call ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("state", "face"),
    [(s, f) for s in STATES for f in FACES if "stream" in f or s in STATES[:2]],
    ids=lambda v: v.replace(" ", "_"),
)
@pytest.mark.parametrize("mixture", MIXED)
async def test_every_call_is_one_run_that_begins_once_and_ends_once(
    server: FaultServer, mixture: str, state: str, face: str
) -> None:
    model, witness = model_in(state, server, mixture), Witness()
    with get_usage_metadata_callback() as counted:
        message = await ask(model, face, {"callbacks": [witness]})
    calls = 2 if "batch" in face else 1
    assert len(set(witness.started)) == len(witness.started) == calls
    assert sorted(witness.closed) == sorted(witness.started)
    assert witness.failed == []
    facts = message.response_metadata["fallback"]
    assert facts["used_fallback"] == (state != "healthy")
    (served,) = counted.usage_metadata
    assert served == message.response_metadata["model_name"]
    told = counted.usage_metadata[served]
    # Continued: what was delivered has been paid for twice, so the answer's usage is the sum of both attempts.
    delivered = facts["attempts"] if state == "continued" else facts["attempts"][-1:]
    for key in ("input_tokens", "output_tokens"):
        assert told[key] == calls * sum(attempt["usage"][key] for attempt in delivered)  # type: ignore[literal-required]
    if state in ("healthy", "failing over"):
        assert (told["input_tokens"], told["output_tokens"]) == (50 * calls, 30 * calls), "the server's own figures"
        assert told["input_token_details"]["cache_read"] == 20 * calls
    if "stream" in face:
        words = "".join(chunk.message.text for chunk in witness.tokens)
        assert words.endswith(CANONICAL)
        assert (words == CANONICAL) == (state != "restarted"), "each token is told once"


@pytest.mark.parametrize("face", FACES)
async def test_a_call_nobody_answers_is_one_run_that_ends_with_the_error(server: FaultServer, face: str) -> None:
    server.default = 503
    model, witness = FallbackChatModel(models=models_of(server, MIXED[0]), max_retries=0), Witness()
    with pytest.raises(AllTargetsFailed):
        await ask(model, face, {"callbacks": [witness]})
    # `abatch` raises the first error and leaves the other calls to end.
    await soon(lambda: len(witness.started) == len(witness.closed))
    assert sorted(witness.closed) == sorted(witness.started)
    assert all(isinstance(error, AllTargetsFailed) for _, error in witness.failed)


@pytest.mark.parametrize("face", ["stream", "astream"])
async def test_a_stream_that_may_not_be_continued_ends_its_run_with_what_had_come(
    server: FaultServer, face: str
) -> None:
    server.script(GPT, cut(after_words=5))
    model = FallbackChatModel(models=models_of(server, MIXED[0]), max_retries=0, on_stream_break="raise")
    witness = Witness()
    with pytest.raises(StreamBroken) as caught:
        await ask(model, face, {"callbacks": [witness]})
    ((_, error),) = witness.failed
    assert error is caught.value
    assert "".join(chunk.message.text for chunk in witness.tokens) == caught.value.partial != ""
    assert CANONICAL.startswith(caught.value.partial)


# ── cancelled and abandoned ──────────────────────────────────────────────────────────────────────────────────────────


async def consume(chunks: Any) -> None:
    async for _ in chunks:
        pass


async def events_v3(model: FallbackChatModel, config: Any) -> None:
    await consume(await model.astream_events("Hello", config, version="v3"))


CANCELLED: dict[str, tuple[Callable[[FallbackChatModel, Any], Any], int]] = {
    "ainvoke": (lambda m, c: m.ainvoke("Hello", c), 1),
    "ainvoke that streams": (lambda m, c: m.model_copy(update={"streaming": True}).ainvoke("Hello", c), 1),
    "abatch": (lambda m, c: m.abatch(["Hello"] * 3, c), 3),
    "agenerate": (lambda m, c: m.agenerate([[HumanMessage("Hello")]] * 3, callbacks=c["callbacks"]), 3),
    "astream": (lambda m, c: consume(m.astream("Hello", c)), 1),
    "astream_events v2": (lambda m, c: consume(m.astream_events("Hello", c, version="v2")), 1),
    "with_retry": (lambda m, c: m.with_retry().ainvoke("Hello", c), 1),
}
"""How a call is begun, and how many runs it is."""


@pytest.mark.parametrize("how", CANCELLED)
@pytest.mark.parametrize("make", [native, wrapped])
async def test_a_cancelled_call_ends_its_runs_with_the_cancellation_and_is_cancelled(
    server: FaultServer, how: str, make: Any
) -> None:
    server.default = Fault("no-response")
    begin, runs = CANCELLED[how]
    model, witness = FallbackChatModel(models=[make(server, GPT)]), Witness()
    task = asyncio.ensure_future(begin(model, {"callbacks": [witness]}))
    await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == runs)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(witness.started) == runs
    await soon(lambda: len(witness.closed) >= runs)  # `abatch` is over with the first of its calls
    assert sorted(witness.closed) == sorted(witness.started), "each ended, and once"
    assert all(type(error) is asyncio.CancelledError for _, error in witness.failed)
    assert len(witness.failed) == runs
    assert model.router.last is not None
    assert model.router.last.outcome == "cancelled"


@pytest.mark.parametrize("how", ["ainvoke", "agenerate", "ainvoke that streams"])
async def test_no_run_stays_open_wherever_in_a_call_the_cancellation_falls(server: FaultServer, how: str) -> None:
    begin, _ = CANCELLED[how]
    model = FallbackChatModel(models=[native(server, GPT)])
    await model.ainvoke("Hello")
    cancelled = 0
    for turns in range(60):
        witness = Witness()
        witness.run_inline = True
        task = asyncio.ensure_future(begin(model, {"callbacks": [witness]}))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
        await soon(lambda witness=witness: sorted(witness.closed) == sorted(witness.started))
        assert sorted(witness.closed) == sorted(witness.started), f"after {turns} turns of the loop"
    assert cancelled > 5, "how many turns a call takes depends on how busy the machine is"


async def test_no_run_stays_open_however_late_a_cancellation_comes() -> None:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    model = FallbackChatModel(models=[FakeListChatModel(responses=["hello"])])
    ends = set()
    for turns in range(40):  # the call itself takes fewer turns of the loop than this
        witness = Witness()
        witness.run_inline = True
        task = asyncio.ensure_future(model.ainvoke("Hello", {"callbacks": [witness]}))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
            ends.add("answered")
        except asyncio.CancelledError:
            ends.add("cancelled")
        await soon(lambda witness=witness: sorted(witness.closed) == sorted(witness.started))
        assert sorted(witness.closed) == sorted(witness.started), f"after {turns} turns of the loop"
    assert ends == {"answered", "cancelled"}


async def test_a_second_cancellation_does_not_keep_the_first_from_ending_the_run(server: FaultServer) -> None:
    server.default = Fault("no-response")
    model, witness = FallbackChatModel(models=[native(server, GPT)]), Witness()
    task = asyncio.ensure_future(model.ainvoke("Hello", {"callbacks": [witness]}))
    await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 1)
    for _ in range(6):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(lambda: witness.closed)
    assert witness.closed == witness.started != []


async def test_a_cancelled_v3_stream_ends_its_run(server: FaultServer) -> None:
    server.default = Fault("no-response")
    model, witness = FallbackChatModel(models=[native(server, GPT)]), Witness()
    stream = await model.astream_events("Hello", {"callbacks": [witness]}, version="v3")
    reader = asyncio.ensure_future(consume(stream))
    await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 1)
    await stream.aclose()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await soon(lambda: witness.closed)
    assert [type(error) for _, error in witness.failed] == [asyncio.CancelledError]
    assert witness.closed == witness.started


@timed
async def test_cancelling_who_waits_for_a_thread_leaves_the_thread_to_end_its_own_run(server: FaultServer) -> None:
    server.clear()
    server.default = Answer("late", delay_s=0.3)
    model, witness = FallbackChatModel(models=[native(server, GPT)]), Witness()
    task = asyncio.ensure_future(asyncio.to_thread(model.invoke, "Hello", {"callbacks": [witness]}))
    await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await soon(lambda: witness.ended)
    assert witness.closed == witness.started
    assert witness.failed == []


@pytest.mark.parametrize("make", [native, wrapped])
@pytest.mark.parametrize("face", ["stream", "astream", "astream, left to the loop", "stream_events v3"])
async def test_an_abandoned_stream_ends_its_run_and_is_booked(server: FaultServer, face: str, make: Any) -> None:
    server.default = Answer("word " * 4000, every_s=0.002)
    model, witness = FallbackChatModel(models=[make(server, GPT)]), Witness()
    config: Any = {"callbacks": [witness]}
    match face:
        case "stream":
            chunks = model.stream("Hello", config)
            next(chunks)
            chunks.close()  # type: ignore[attr-defined]  # a generator
        case "astream":
            achunks = model.astream("Hello", config)
            await anext(achunks)
            await achunks.aclose()  # type: ignore[attr-defined]  # a generator
        case "stream_events v3":
            events = model.stream_events("Hello", config, version="v3")
            assert next(iter(events.text))
            del events
            gc.collect()
        case _:
            async for _ in model.astream("Hello", config):
                break
    await soon(lambda: witness.failed and model.router.last)  # the inner generator is left to the loop's own clean-up
    assert [type(error) for _, error in witness.failed] == [GeneratorExit]
    assert witness.closed == witness.started
    (entry,) = model.router.ledger.entries()
    assert entry.outcome == "abandoned"
    assert entry.usage.estimated
    assert entry.usage.output_tokens >= 1
    await asyncio.to_thread(server.wait_idle)
    assert [seen.outcome for seen in server.requests] == ["client-closed"]


# ── who served, for LangSmith ────────────────────────────────────────────────────────────────────────────────────────


class Collector:
    """Stands where LangSmith's client would, and keeps what it would send."""

    def __init__(self) -> None:
        self.created: dict[Any, dict[str, Any]] = {}
        self.updated: dict[Any, dict[str, Any]] = {}

    def create_run(self, **run: Any) -> None:
        self.created[run["id"]] = run

    def update_run(self, run_id: Any, **run: Any) -> None:
        self.updated.setdefault(run_id, {}).update(run)


async def traced(model: FallbackChatModel, face: str, config: Any, /, **kwargs: Any) -> Any:
    if face == "stream_events v3":
        return model.stream_events("Hello", config, version="v3", **kwargs).output
    if face == "astream_events v3":
        return await (await model.astream_events("Hello", config, version="v3", **kwargs)).output
    return await ask(model.bind(**kwargs) if kwargs else model, face, config)


TRACED = ("invoke", "ainvoke", "stream", "astream", "stream_events v3", "astream_events v3")


@pytest.mark.parametrize("face", TRACED)
@pytest.mark.parametrize("mixture", MIXED)
@pytest.mark.parametrize("state", ["healthy", "failing over"])
async def test_the_finished_run_names_the_model_that_served(
    server: FaultServer, mixture: str, face: str, state: str
) -> None:
    model, collector = model_in(state, server, mixture), Collector()
    tracer = LangChainTracer(client=collector)  # type: ignore[arg-type]  # only the two methods are called
    message = await traced(model, face, {"callbacks": [tracer]})
    await soon(lambda: collector.updated)  # the message of a v3 stream is there before its run has ended
    (began,), (ended,) = collector.created.values(), collector.updated.values()
    first, second = {GPT: ("openai", GPT), CLAUDE: ("anthropic", CLAUDE)}, model.router.targets[1].model
    announced = began["extra"]["metadata"]
    assert (announced["ls_provider"], announced["ls_model_name"]) == first[model.router.targets[0].model]
    served = ended["extra"]["metadata"]
    expected = first[second] if state == "failing over" else first[model.router.targets[0].model]
    assert (served["ls_provider"], served["ls_model_name"]) == expected
    assert served["ls_model_type"] == "chat"
    shown = message.model_dump()
    assert "lc_gateway_metadata" not in str(shown), "what is said to the tracer stays with the tracer"
    assert ended["outputs"]["generations"][0][0]["message"]["kwargs"]["usage_metadata"]["total_tokens"] == 80


async def test_a_model_named_for_one_call_is_named_as_the_vendor_names_it(server: FaultServer) -> None:
    collector = Collector()
    model = FallbackChatModel(models=[native(server, GPT), native(server, CLAUDE)])
    for face in TRACED[:4]:
        collector.updated.clear()
        await traced(model, face, {"callbacks": [LangChainTracer(client=collector)]}, model="gpt-4.1")  # type: ignore[arg-type]
        (ended,) = collector.updated.values()
        assert ended["extra"]["metadata"]["ls_model_name"] == "gpt-4.1"
        assert server.requests[-1].model == "gpt-4.1"


def test_without_langchains_private_hook_answers_are_as_they_were(server: FaultServer, monkeypatch: Any) -> None:
    from langchain_fallback._convert import answers

    monkeypatch.setattr(answers, "_SERVED", "")
    model, witness = model_in("failing over", server, MIXED[0]), Witness()
    assert model.invoke("Hello", {"callbacks": [witness]}).text == CANONICAL
    ((_, result),) = witness.ended
    assert result.generations[0][0].generation_info is None


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def levels(caplog: pytest.LogCaptureFixture) -> list[int]:
    ours = [r for r in caplog.records if r.name.startswith("llm_fallback")]
    return [r.levelno for r in ours if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("at", [logging.DEBUG, logging.INFO, logging.WARNING])
@pytest.mark.parametrize(
    ("state", "face", "expected"),
    [
        ("healthy", "invoke", []),
        ("healthy", "astream", []),
        ("failing over", "invoke", [logging.WARNING]),
        ("failing over", "astream", [logging.WARNING]),
        ("continued", "astream", [logging.WARNING]),
        ("restarted", "stream", [logging.WARNING]),
    ],
)
async def test_a_recovered_fallback_is_one_warning_and_a_healthy_call_is_none(
    server: FaultServer, caplog: pytest.LogCaptureFixture, state: str, face: str, expected: list[int], at: int
) -> None:
    caplog.set_level(at, logger="llm_fallback")
    model = model_in(state, server, MIXED[0])
    await ask(model, face, None)
    assert levels(caplog) == expected
    if expected:
        (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert f"openai:{GPT}: " in line, "who failed, and of what"
        assert f"target='anthropic:{CLAUDE}'" in line


async def test_a_circuit_that_opens_on_the_way_makes_it_no_second_warning(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script(GPT, 401)
    model = FallbackChatModel(models=models_of(server, MIXED[0]), max_retries=0)
    model.invoke("Hello")
    assert levels(caplog) == [logging.WARNING]


@pytest.mark.parametrize("face", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_call_nobody_answers_is_one_error(
    server: FaultServer, caplog: pytest.LogCaptureFixture, face: str
) -> None:
    server.default = 503
    model = FallbackChatModel(models=models_of(server, MIXED[0]), max_retries=0)
    with pytest.raises(AllTargetsFailed):
        await ask(model, face, None)
    assert levels(caplog) == [logging.ERROR]


async def test_a_caller_who_leaves_is_no_error(server: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="llm_fallback")
    server.default = Answer("word " * 4000, every_s=0.002)
    model = FallbackChatModel(models=[native(server, GPT)])
    chunks = model.stream("Hello")
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]  # a generator
    server.default = Answer(delay_s=30.0)  # longer than anybody takes to leave
    task = asyncio.ensure_future(model.ainvoke("Hello"))
    await asyncio.to_thread(server.wait_for, lambda s: len(s.requests) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert levels(caplog) == []


def test_an_open_circuit_is_no_news_with_every_request(server: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    """Through an outage of an hour a log would hold nothing else."""
    model = FallbackChatModel(models=models_of(server, MIXED[0]), max_retries=0)
    with caplog.at_level(logging.WARNING, "llm_fallback"):
        model.router.force_open(model.router.targets[0].name)
        for _ in range(3):
            assert model.invoke("Hello").response_metadata["fallback"]["used_fallback"]
    assert caplog.records == []
