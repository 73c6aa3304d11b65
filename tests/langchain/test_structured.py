"""Structured answers that do not fit: one reask, then the next target; every method, face and way of asking."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.exceptions import ModelError, OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser
from pydantic import BaseModel, field_validator

from langchain_fallback import FallbackChatModel
from langchain_fallback.errors import OutputNotValid
from langchain_fallback.structured import CheckedFormat
from shared_core import AllTargetsFailed, RetryPolicy
from shared_core.errors import ConfigurationError
from shared_core.testing import Answer, FaultServer, SeenRequest, ToolCall
from shared_core.testing.fault_server import Usage
from tests.langchain.cells import CLAUDE, MIXTURES, models_of, names_of

METHODS = ("function_calling", "json_schema", "json_mode")
USAGE = Usage(prompt_tokens=20, completion_tokens=5)


class Reading(BaseModel):
    """A thermometer's reading."""

    place: str
    degrees: int

    @field_validator("degrees")
    @classmethod
    def possible(cls, value: int) -> int:
        if value < -273:
            raise ValueError("nothing is that cold")
        return value


class ReadingDict(TypedDict):
    """A thermometer's reading."""

    place: str
    degrees: int


GOOD = {"place": "Bern", "degrees": 4}
COLD = {"place": "Bern", "degrees": -300}
SHAPES: dict[str, Any] = {"pydantic": Reading, "typed dict": ReadingDict, "schema": Reading.model_json_schema()}


def said(value: Any) -> Callable[[SeenRequest], Answer]:
    """Says `value` the way it was asked: by the tool that is there, or as text."""

    def answer(seen: SeenRequest) -> Answer:
        text = value if isinstance(value, str) else json.dumps(value)
        tools = seen.body.get("tools")
        if not tools or isinstance(value, str):
            return Answer(text, usage=USAGE)
        declared = tools[0].get("functionDeclarations")
        function = declared[0] if declared else tools[0].get("function") or tools[0]
        return Answer("", tool_calls=[ToolCall(function["name"], value)], usage=USAGE)

    return answer


async def ask(runnable: Any, face: str) -> Any:
    question = "How warm is it in Bern, as JSON?"
    match face:
        case "invoke":
            return runnable.invoke(question)
        case "ainvoke":
            return await runnable.ainvoke(question)
        case "stream":
            parts = list(runnable.stream(question))
        case _:
            parts = [part async for part in runnable.astream(question)]
    if isinstance(parts[-1], dict) and set(parts[-1]) & {"raw", "parsed", "parsing_error"}:
        whole: dict[str, Any] = {}
        for part in parts:
            for key, value in part.items():
                whole[key] = whole[key] + value if key == "raw" and key in whole else value
        return whole
    return parts[-1]


FACES = ("invoke", "ainvoke", "stream", "astream")


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mixture", MIXTURES)
async def test_an_answer_that_does_not_validate_is_shown_its_mistake_and_mended(
    server: FaultServer, mixture: str, method: Any, face: str
) -> None:
    primary, backup = names_of(mixture)
    server.script(primary, [said(COLD), said(GOOD)])
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    both = await ask(model.with_structured_output(Reading, method=method, include_raw=True), face)
    assert both["parsed"] == Reading(**GOOD)
    assert both["parsing_error"] is None
    assert (server.count(primary), server.count(backup)) == (2, 0)
    assert "nothing is that cold" in str(server.requests[-1].body)
    facts = both["raw"].response_metadata["fallback"]
    assert [a.get("reask", False) for a in facts["attempts"]] == [False, True]


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_next_target_is_asked_when_the_mistake_stays(
    server: FaultServer, shape: str, method: Any, face: str, include_raw: bool
) -> None:
    mixture = "ChatOpenAI, ChatAnthropic" if include_raw else "native Anthropic, native OpenAI"
    primary, backup = names_of(mixture)
    server.script(primary, said({"place": "Bern", "degrees": "warm"}))
    server.script(backup, said(GOOD))
    model = FallbackChatModel(models=models_of(server, mixture), max_retries=0)
    # JSON mode knows no schema unless it is told one, so a dict's own is what the check looks at.
    answer = await ask(model.with_structured_output(SHAPES[shape], method=method, include_raw=include_raw), face)
    parsed = answer["parsed"] if include_raw else answer
    assert dict(parsed) == GOOD
    assert isinstance(parsed, Reading if shape == "pydantic" else dict)
    assert (server.count(primary), server.count(backup)) == (2, 1)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", METHODS)
async def test_when_nobody_is_valid_the_error_is_a_parsers_and_ours_and_keeps_every_answer(
    server: FaultServer, method: Any, face: str
) -> None:
    server.default = said("It is rather cold.")
    model = FallbackChatModel(models=models_of(server, "native OpenAI, ChatAnthropic"), max_retries=0)
    with pytest.raises(OutputNotValid) as caught:
        await ask(model.with_structured_output(Reading, method=method), face)
    error = caught.value
    assert isinstance(error, OutputParserException)
    assert isinstance(error, ModelError)
    assert isinstance(error, AllTargetsFailed)
    assert not error.is_retryable
    assert error.llm_output == "It is rather cold."
    assert [e.answer.text for e in error.errors] == ["It is rather cold."] * 4


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("method", METHODS)
async def test_with_include_raw_nothing_is_raised_and_the_last_answer_is_there(
    server: FaultServer, method: Any, face: str
) -> None:
    server.default = said("It is rather cold.")
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"), max_retries=0)
    both = await ask(model.with_structured_output(Reading, method=method, include_raw=True), face)
    assert both["raw"].text == "It is rather cold."
    assert both["parsed"] is None
    if method != "function_calling":  # LangChain's tool parsers say None where no tool was called
        assert isinstance(both["parsing_error"], OutputParserException)
    facts = both["raw"].response_metadata["fallback"]
    assert [a["error_kind"] for a in facts["attempts"]] == ["invalid_output"] * 4


async def test_an_outage_behind_invalid_answers_is_not_hidden(server: FaultServer) -> None:
    server.script(names_of("native OpenAI, native Anthropic")[0], said("no"))
    server.script(CLAUDE, 503)
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"), max_retries=0)
    with pytest.raises(OutputNotValid) as caught:
        model.with_structured_output(Reading, method="json_schema").invoke("?")
    assert caught.value.is_retryable, "the second target may be back soon"


@pytest.mark.parametrize("face", FACES)
async def test_a_plain_schema_is_checked_too(server: FaultServer, face: str) -> None:
    """As agents bind it: `response_format` beside tools, and no parser of ours behind it."""
    primary, backup = names_of("native OpenAI, native Anthropic")
    server.script(primary, said({"place": "Bern"}))
    server.script(backup, said(GOOD))
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"), max_retries=0)
    wanted = {"type": "json_schema", "json_schema": {"name": "reading", "schema": Reading.model_json_schema()}}
    answer = await ask(model.bind(response_format=wanted) | JsonOutputParser(), face)
    assert answer == GOOD
    assert (server.count(primary), server.count(backup)) == (2, 1)


async def test_validate_false_takes_the_first_answer_and_streams_it_as_it_comes(server: FaultServer) -> None:
    server.default = said(json.dumps({"place": "Bern", "degrees": "warm"}))
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    runnable = model.with_structured_output(ReadingDict, method="json_schema", validate=False)
    parts = [part async for part in runnable.astream("?")]
    assert len(parts) > 2, "LangChain's parser shows the object growing"
    assert parts[-1] == {"place": "Bern", "degrees": "warm"}
    assert server.count() == 1


def test_an_answer_cut_off_at_its_limit_goes_to_the_next_target_at_once(server: FaultServer) -> None:
    primary, backup = names_of("native OpenAI, native Anthropic")
    server.script(primary, Answer('{"place": "Bern", "degrees": 4', finish="length"))
    server.script(backup, said(GOOD))
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    assert model.with_structured_output(Reading, method="json_schema").invoke("?") == Reading(**GOOD)
    assert (server.count(primary), server.count(backup)) == (1, 1)


def test_the_caller_reads_what_all_billed_answers_used(server: FaultServer) -> None:
    server.script(names_of("native OpenAI, native Anthropic")[0], [said("no"), said(GOOD)])
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    with get_usage_metadata_callback() as used:
        model.with_structured_output(Reading).invoke("?")
    (figures,) = used.usage_metadata.values()
    assert (figures["input_tokens"], figures["output_tokens"]) == (40, 10)
    assert server.count() == 2


def test_reasks_are_the_retry_policys_to_say(server: FaultServer) -> None:
    server.default = said("no")
    model = FallbackChatModel(
        models=models_of(server, "native OpenAI, native Anthropic"), retry=RetryPolicy(total=0, reasks=0)
    )
    with pytest.raises(OutputNotValid):
        model.with_structured_output(Reading).invoke("?")
    assert server.count() == 2


def test_json_mode_needs_no_schema_and_the_others_do(server: FaultServer) -> None:
    server.default = said('{"any": "thing"}')
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    assert model.with_structured_output(method="json_mode").invoke("JSON, please.") == {"any": "thing"}
    with pytest.raises(ConfigurationError, match="needs a schema"):
        model.with_structured_output(method="json_schema")


def test_options_of_a_call_may_be_bound_along(server: FaultServer) -> None:
    server.default = said(GOOD)
    model = FallbackChatModel(models=models_of(server, "native OpenAI, native Anthropic"))
    assert model.with_structured_output(Reading, max_tokens=77, reasoning_effort="low").invoke("?").degrees == 4
    body = server.requests[-1].body
    assert body["max_completion_tokens"] == 77
    assert body["reasoning_effort"] == "low"


def test_a_bound_shape_survives_pickling_and_is_a_plain_format_to_others() -> None:
    wanted = CheckedFormat({"type": "json_object"})
    assert pickle.loads(pickle.dumps(wanted)) == {"type": "json_object"}
    assert wanted == {"type": "json_object"}


def test_the_messages_of_the_caller_stay_as_they_were(server: FaultServer) -> None:
    server.script(names_of("ChatOpenAI, ChatAnthropic")[0], [said("no"), said(GOOD)])
    model = FallbackChatModel(models=models_of(server, "ChatOpenAI, ChatAnthropic"))
    history: list[Any] = [AIMessage("Hello."), ("human", "How warm is it?")]
    before = [AIMessage("Hello."), ("human", "How warm is it?")]
    model.with_structured_output(Reading).invoke(history)
    assert history == before
