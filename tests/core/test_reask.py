"""Answers that are not what was asked for: shown their mistake once, then the next target, on all four faces."""

from __future__ import annotations

import pytest

from shared_core import (
    AllTargetsFailed,
    Answer,
    BreakerConfig,
    ChatRequest,
    ErrorKind,
    Finished,
    InvalidOutput,
    ProviderError,
    RetryPolicy,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
    Usage,
    assistant,
    user,
)
from shared_core.routing.reask import REASK_PROMPT, reask
from shared_core.testing import Broken

GOOD = '{"n": 1}'


def wants_json(answer):
    """The check of these tests: the answer must be GOOD, or a call of `f` with the argument `n`."""
    if answer.tool_calls:
        return None if "n" in answer.tool_calls[0].parsed() else "n is missing"
    return None if answer.text == GOOD else "it is not the JSON that was asked for"


REQUEST = ChatRequest((user("A number, please."),), check=wants_json)


def outcomes(got):
    return [(a["target"], a["outcome"], a.get("reask", False)) for a in got.fallback["attempts"]]


def test_an_answer_that_passes_costs_one_request(bench, face):
    b = bench(GOOD, "never")
    got = face(b.router, REQUEST)
    assert (got.text, b.calls) == (GOOD, [1, 0])


def test_the_model_is_shown_its_mistake_once_and_may_mend_it(bench, face):
    b = bench(("One.", GOOD), "never")
    got = face(b.router, REQUEST)
    assert got.text == GOOD
    assert b.calls == [2, 0]
    assert outcomes(got) == [("a", "failed", False), ("a", "answered", True)]
    first, second = b.providers[0].requests
    assert first.messages == REQUEST.messages
    fault = REASK_PROMPT.format(fault="it is not the JSON that was asked for")
    assert second.messages == (*REQUEST.messages, assistant("One."), user(fault))
    assert not got.fallback["used_fallback"]


def test_the_next_target_is_asked_afresh_when_the_second_answer_is_no_better(bench, face):
    b = bench(("One.", "Uno."), GOOD, breaker=BreakerConfig(consecutive_failures=1))
    got = face(b.router, REQUEST)
    assert (got.text, b.calls) == (GOOD, [2, 1])
    assert b.providers[1].requests[0].messages == REQUEST.messages, "it made no mistake yet"
    assert [a.get("error_kind") for a in got.fallback["attempts"]] == ["invalid_output", "invalid_output", None]
    assert b.router.health()["a"].available, "its circuit has nothing to do with it"


def test_nobody_sees_anything_of_an_answer_that_did_not_pass(bench, face):
    b = bench((Answer("One.", reasoning=()), "Uno."), GOOD)
    got = face(b.router, REQUEST)
    assert got.text == GOOD
    assert not {"Restarted", "Continued"} & set(got.kinds)


def test_a_stream_that_breaks_before_its_check_costs_the_caller_nothing(bench, face):
    b = bench(Broken('{"n"'), GOOD, retry=RetryPolicy(total=0))
    got = face(b.router, REQUEST)
    assert (got.text, b.calls) == (GOOD, [1, 1])
    assert not got.fallback["continued"]


def test_when_nobody_passes_the_error_keeps_every_answer(bench, face):
    b = bench(("One.", "Uno."), ("Eins.", "Un."))
    got = face(b.router, REQUEST)
    assert isinstance(got.error, AllTargetsFailed)
    assert [e.answer.text for e in got.error.errors if isinstance(e, InvalidOutput)] == ["One.", "Uno.", "Eins.", "Un."]
    assert isinstance(got.error.__cause__, InvalidOutput)
    assert not got.error.is_retryable
    assert "it is not the JSON" in str(got.error)


@pytest.mark.parametrize(("reasks", "calls"), [(0, [1, 1]), (1, [2, 1]), (3, [4, 1])])
def test_how_often_is_the_policys_to_say(bench, face, reasks, calls):
    b = bench("One.", GOOD, retry=RetryPolicy(total=0, reasks=reasks))
    assert face(b.router, REQUEST).text == GOOD
    assert b.calls == calls


def test_a_reask_is_no_retry_and_leaves_the_retries_to_faults(bench, face):
    b = bench(("One.", ErrorKind.TRANSIENT, GOOD), "never", retry=RetryPolicy(total=1))
    got = face(b.router, REQUEST)
    assert (got.text, b.calls) == (GOOD, [3, 0])
    assert b.providers[0].requests[2].messages[-2] == assistant("One."), "the retry asks what had been asked"
    assert [a.get("retry", False) for a in got.fallback["attempts"]] == [False, False, True]


def test_an_answer_cut_off_at_its_limit_is_not_put_back(bench, face):
    b = bench(Answer('{"n":', finish_reason="length"), GOOD)
    assert face(b.router, REQUEST).text == GOOD
    assert b.calls == [1, 1]


@pytest.mark.parametrize("reason", ["refusal", "content_filter"])
def test_a_refusal_is_not_checked(bench, face, reason):
    refusal = [TextDelta("I would rather not."), Finished(reason)]
    b = bench([*refusal], "never", route_around_policy=False)
    got = face(b.router, REQUEST)
    assert b.calls == [1, 0]
    assert got.text == "I would rather not."


def test_a_tool_call_that_does_not_pass_gets_an_error_for_its_result(bench, face):
    tools = (ToolSpec("f", parameters={"type": "object", "properties": {"n": {"type": "integer"}}}),)
    calls = [ToolCallDelta(0, "c1", "f", "{}"), Finished("tool_calls")]
    better = [ToolCallDelta(0, "c2", "f", GOOD), Finished("tool_calls")]
    b = bench((calls, better), "never")
    got = face(b.router, REQUEST.replace(tools=tools, tool_choice="f"))
    assert [c.id for c in got.calls] == ["c2"]
    asked = b.providers[0].requests[1].messages
    assert asked[-2].tool_calls == (ToolCall("c1", "f", "{}"),)
    (result,) = asked[-1].parts
    assert isinstance(result, ToolResult)
    assert (result.call_id, result.name, result.is_error) == ("c1", "f", True)
    assert "n is missing" in asked[-1].parts[0].content[0].text


def test_words_where_a_tool_was_due_are_answered_with_a_request_for_the_call():
    rejected = ProviderError.of(ErrorKind.INVALID_OUTPUT, "no tool was called")
    rejected.answer = Answer("Certainly!")
    tools = (ToolSpec("f"),)
    asked = reask(REQUEST.replace(tools=tools, tool_choice="any"), rejected)
    assert asked.messages[-1].text.endswith("Call a tool.")
    for choice in ("auto", "none", None):
        free = reask(REQUEST.replace(tools=tools, tool_choice=choice), rejected)
        assert free.messages[-1] == user(REASK_PROMPT.format(fault="no tool was called"))
    rejected.answer = Answer("")
    assert reask(REQUEST, rejected).messages[:-1] == REQUEST.messages, "an empty turn is nobody's"


def test_what_was_spent_on_rejected_answers_is_booked_and_told(bench, face):
    def said(text):
        return Answer(text, usage=Usage(10, 2, reasoning_tokens=1))

    b = bench((said("One."), said("Uno.")), said(GOOD))
    got = face(b.router, REQUEST)
    assert got.finished.usage == Usage(30, 6, reasoning_tokens=3)
    entries = b.router.ledger.entries()
    assert [(e.outcome, str(e.status), e.usage.total_tokens) for e in entries] == [
        ("failed", "posted", 12), ("failed", "posted", 12), ("answered", "posted", 12),
    ]  # fmt: skip


def test_a_bug_in_the_check_surfaces_as_the_bug_it_is(bench, face):
    def broken(answer):
        raise TypeError("a bug of the caller's")

    b = bench(GOOD, GOOD)
    got = face(b.router, REQUEST.replace(check=broken))
    assert isinstance(got.error, TypeError)
    assert b.calls == [1, 0]


def test_one_call_at_a_time_holds_also_where_the_vendor_cannot_be_told(bench, face):
    tools = (ToolSpec("f"), ToolSpec("g"))
    two = [ToolCallDelta(0, "c1", "f", "{}"), ToolCallDelta(1, "c2", "g", "{}"), Finished("tool_calls")]
    b = bench(two)
    for parallel, made in ((False, ["f"]), (True, ["f", "g"]), (None, ["f", "g"])):
        request = ChatRequest((user("Hello"),), tools=tools, parallel_tool_calls=parallel)
        assert [c.name for c in face(b.router, request).calls] == made
