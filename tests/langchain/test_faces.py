"""Four faces, six mixtures of models, and every state of the world: what the caller gets and what the wire saw."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_fallback import FallbackChatModel
from shared_core.errors import AllTargetsFailed
from shared_core.testing import CANONICAL, Answer, Fault, FaultServer
from shared_core.testing.fault_server import Usage, cut, overload
from tests.langchain.cells import MIXTURES, models_of, names_of

FACES = ("invoke", "stream", "ainvoke", "astream")
USAGE = Usage(prompt_tokens=50, completion_tokens=30, cached_tokens=20, reasoning_tokens=10)
GOOD = Answer(usage=USAGE)


async def chunks_of(model: Any, face: str, prompt: Any = "Hello", **kwargs: Any) -> list[Any]:
    """Everything a face gives, as it came."""
    if face == "invoke":
        return [model.invoke(prompt, **kwargs)]
    if face == "ainvoke":
        return [await model.ainvoke(prompt, **kwargs)]
    if face == "stream":
        return list(model.stream(prompt, **kwargs))
    return [chunk async for chunk in model.astream(prompt, **kwargs)]


def merged(chunks: list[Any]) -> AIMessage:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def faces_and_mixtures(*faces: str) -> Any:
    return pytest.mark.parametrize(
        ("mixture", "face"), [(m, f) for m in MIXTURES for f in faces or FACES], ids=lambda v: v.replace(" ", "_")
    )


@faces_and_mixtures()
async def test_a_healthy_primary_answers_and_nobody_else_is_asked(server: FaultServer, mixture: str, face: str) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, GOOD)
    message = merged(await chunks_of(FallbackChatModel(models=models_of(server, mixture)), face))
    assert message.text == CANONICAL
    assert message.content == CANONICAL, "plain text is a plain string, whoever answers"
    assert (server.count(primary), server.count(backup)) == (1, 0)
    assert not message.response_metadata["fallback"]["used_fallback"]
    assert server.requests[0].streamed is ("stream" in face), "invoke never streams on the wire"


@faces_and_mixtures()
async def test_when_the_primary_is_down_the_fallback_gives_the_same_answer(
    server: FaultServer, mixture: str, face: str
) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, 503)
    server.script(backup, GOOD)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    message = merged(await chunks_of(model, face))
    assert message.content == CANONICAL
    assert (server.count(primary), server.count(backup)) == (1, 1), "one request each: nobody's own retries"
    facts = message.response_metadata["fallback"]
    assert facts["used_fallback"]
    assert facts["target"].endswith(backup)
    assert [a["outcome"] for a in facts["attempts"]] == ["failed", "answered"]
    assert facts["attempts"][0]["status"] == 503


@faces_and_mixtures("stream", "astream")
@pytest.mark.parametrize(
    "fault",
    [cut(after_words=5), cut(after_words=5, eof=True), overload(after_words=5), Fault("missing-terminal")],
    ids=["reset", "ends_early", "overload_later", "no_terminal_event"],
)
async def test_a_stream_that_breaks_is_continued_by_the_next_target(
    server: FaultServer, mixture: str, face: str, fault: Fault
) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, fault)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    chunks = await chunks_of(model, face)
    message = merged(chunks)
    assert message.text == CANONICAL
    assert (server.count(primary), server.count(backup)) == (1, 1)
    assert message.response_metadata["fallback"]["continued"]
    assert len({chunk.id for chunk in chunks}) == 1


@faces_and_mixtures()
async def test_an_overload_before_the_first_word_costs_the_caller_nothing(
    server: FaultServer, mixture: str, face: str
) -> None:
    primary, _ = names_of(mixture)
    server.script(primary, overload() if "stream" in face else 503)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    message = merged(await chunks_of(model, face))
    assert message.content == CANONICAL
    assert not message.response_metadata["fallback"]["continued"]


@faces_and_mixtures()
async def test_when_everybody_is_down_the_error_names_each_of_them(
    server: FaultServer, mixture: str, face: str
) -> None:
    server.default = 503
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    with pytest.raises(AllTargetsFailed) as caught:
        await chunks_of(model, face)
    error = caught.value
    assert len(error.errors) == 2
    assert {e.status for e in error.errors} <= {503, 529}
    assert all(name in str(error) for name in names_of(mixture))
    assert error.response is not None, "traces read the response's headers"


@faces_and_mixtures()
async def test_metadata_and_usage_arrive_exactly_once(server: FaultServer, mixture: str, face: str) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, 503)
    server.script(backup, GOOD)
    chunks = await chunks_of(FallbackChatModel(models=models_of(server, mixture), max_retries=0), face)
    for key in ("model_name", "fallback"):
        assert sum(key in chunk.response_metadata for chunk in chunks) == 1, key
    reasons = [k for c in chunks for k in ("finish_reason", "stop_reason") if k in c.response_metadata]
    assert len(reasons) == len(set(reasons)) >= 1
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    usage = merged(chunks).usage_metadata
    assert usage is not None
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (50, 30, 80)
    assert usage["input_token_details"]["cache_read"] == 20
    metadata = merged(chunks).response_metadata
    assert metadata["model_name"] == backup
    assert metadata["model_provider"] == {"gpt-5-mini": "openai", "claude-sonnet-4-5": "anthropic"}[backup]
    if isinstance(chunks[-1], AIMessageChunk):
        assert [c.chunk_position for c in chunks if c.chunk_position] == ["last"]
        assert "fallback" in chunks[-1].response_metadata, "nothing comes after the chunk that says it is the last"
        assert len({chunk.id for chunk in chunks}) == 1


@faces_and_mixtures()
@pytest.mark.parametrize("state", ["well", "down"])
async def test_a_chain_gives_the_same_text_with_the_primary_up_and_down(
    server: FaultServer, mixture: str, face: str, state: str
) -> None:
    if state == "down":
        server.script(names_of(mixture)[0], 503)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    chain = (
        ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{question}")]) | model | StrOutputParser()
    )
    assert "".join(await chunks_of(chain, face, {"question": "When does it open?"})) == CANONICAL
    assert server.requests[-1].prompt == "When does it open?"


@pytest.mark.parametrize("mixture", MIXTURES)
async def test_a_batch_survives_the_primary(server: FaultServer, mixture: str) -> None:
    server.script(names_of(mixture)[0], 503)
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    assert [m.content for m in model.batch(["a", "b", "c"])] == [CANONICAL] * 3
    assert [m.content for m in await model.abatch(["a", "b", "c"])] == [CANONICAL] * 3


@pytest.mark.parametrize("mixture", MIXTURES)
async def test_leaving_a_stream_frees_the_connection(server: FaultServer, mixture: str) -> None:
    server.default = Answer("word " * 4000, every_s=0.002)
    model = FallbackChatModel(models=models_of(server, mixture))
    stream = model.stream("Hello")
    next(stream)
    stream.close()
    astream = model.astream("Hello")
    await anext(astream)
    await astream.aclose()
    await asyncio.to_thread(server.wait_idle)  # LangChain leaves its inner generator to the loop's own clean-up
    assert [seen.outcome for seen in server.requests] == ["client-closed"] * 2


async def test_restart_marks_the_reset_and_the_metadata_say_so(server: FaultServer) -> None:
    server.script("gpt-5-mini", cut(after_words=5))
    model = FallbackChatModel(
        models=models_of(server, "native OpenAI, native Anthropic"), max_retries=0, on_stream_break="restart"
    )
    for face in ("stream", "astream"):
        shown = ""
        chunks = await chunks_of(model, face)
        for chunk in chunks:
            if chunk.response_metadata.get("fallback_restarted"):
                (mark,) = chunk.response_metadata["fallback_restarted"]
                assert mark["discard"] == len(shown)
                shown = ""
            shown += chunk.text
        assert shown == CANONICAL
        assert merged(chunks).response_metadata["fallback"]["restarted"] == 1
        model.router.reset()


@pytest.mark.parametrize("face", FACES)
async def test_thinking_goes_back_to_who_thought_it_and_to_nobody_else(server: FaultServer, face: str) -> None:
    server.default = Answer("Seven.", reasoning="three plus four")
    model = FallbackChatModel(models=models_of(server, "native Anthropic, native OpenAI"), max_retries=0)
    thought = merged(await chunks_of(model, face))
    assert [b["type"] for b in thought.content_blocks] == ["reasoning", "text"]
    assert thought.text == "Seven."
    assert "fallback_origin" in thought.response_metadata
    history = [HumanMessage("hi"), thought, HumanMessage("And five plus six?")]
    await chunks_of(model, face, history)
    assert "signature" in str(server.requests[-1].body["messages"])
    server.script(names_of("native Anthropic, native OpenAI")[0], 503)
    await chunks_of(model, face, history)
    assert server.requests[-1].wire == "openai"
    assert "Seven." in str(server.requests[-1].body)
    for private in ("signature", "three plus four"):
        assert private not in str(server.requests[-1].body)
