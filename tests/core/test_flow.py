"""The fallback algorithm: who is asked, how often, after what wait, and what the caller gets. Four faces, one table."""

from __future__ import annotations

import pytest

from shared_core import (
    AllTargetsFailed,
    BreakerConfig,
    Capabilities,
    ChatRequest,
    DeadlineExceeded,
    ErrorKind,
    Finished,
    ProviderError,
    RetryPolicy,
    StreamBroken,
    TextDelta,
    Timeouts,
    ToolCall,
    ToolCallDelta,
    ToolSpec,
    Usage,
    user,
)
from shared_core.testing import Broken, Silence

from .conftest import REQUEST

K = ErrorKind
ANSWER = "the whole answer, once"


def failing(kind: ErrorKind, **fields: object) -> ProviderError:
    return ProviderError.of(kind, f"scripted {kind}", **fields)


# kind -> (requests to the failing target, does the next target answer?)
CONDUCT = {
    K.BAD_REQUEST: (1, False),
    K.CONTEXT_OVERFLOW: (1, True),
    K.POLICY: (1, False),
    K.TOO_LARGE: (1, True),
    K.INCAPABLE: (1, True),
    K.AUTH: (1, True),
    K.FORBIDDEN: (1, True),
    K.BILLING: (1, True),
    K.NO_ENTITLEMENT: (1, True),
    K.NOT_FOUND: (1, True),
    K.THROTTLED: (2, True),
    K.RAMP: (2, True),
    K.QUOTA_DAY: (1, True),
    K.CONFLICT: (2, True),
    K.TRANSIENT: (2, True),
    K.INVALID_OUTPUT: (1, True),
    K.OVERLOADED: (1, True),
    K.CONNECT: (2, True),
    K.MALFORMED: (2, True),
    K.STREAM_CUT: (2, True),
    K.TIMEOUT: (1, True),
    K.CONFIG: (1, True),
    K.CANCELLED: (1, True),
    K.UNKNOWN: (1, True),
}


@pytest.mark.parametrize("kind", list(K))
def test_each_kind_of_failure_costs_its_target_so_many_requests_and_the_next_answers_or_not(kind, bench, face):
    b = bench(kind, ANSWER)
    got = face(b.router)
    requests, answered = CONDUCT[kind]
    assert b.calls == [requests, 1 if answered else 0]
    if answered:
        assert got.text == ANSWER
        assert got.fallback["target"] == "b"
        assert got.fallback["used_fallback"]
    else:
        assert isinstance(got.error, AllTargetsFailed)
        assert "rejected the request itself" in str(got.error)
    assert len(got.fallback["attempts"]) == sum(b.calls), "the journal counts what was sent"


ALONE = {**{k: n for k, (n, _) in CONDUCT.items()}, K.OVERLOADED: 2}


@pytest.mark.parametrize("kind", list(K))
def test_alone_a_failing_target_gets_at_most_two_requests_and_the_error_names_each(kind, bench, face):
    b = bench(kind)
    got = face(b.router)
    assert b.calls == [ALONE[kind]]
    assert isinstance(got.error, AllTargetsFailed)
    assert len(got.error.errors) == ALONE[kind]
    assert all(isinstance(e, ProviderError) and e.kind is kind and e.target == "a" for e in got.error.errors)
    assert got.error.__cause__ in got.error.errors
    assert str(got.error).count(f"scripted {kind}") >= ALONE[kind]


def test_a_healthy_primary_serves_alone(bench, face):
    b = bench(ANSWER, "never")
    got = face(b.router)
    assert (got.text, b.calls) == (ANSWER, [1, 0])
    assert not got.fallback["used_fallback"]


def test_every_target_gets_its_turn_though_the_retries_run_out(bench, face):
    b = bench(K.TRANSIENT, K.TRANSIENT, K.TRANSIENT, K.TRANSIENT, ANSWER)
    assert face(b.router).text == ANSWER
    assert b.calls == [2, 2, 1, 1, 1], "two retries in all, first tries for everybody"


def test_an_overloaded_target_steps_back_until_the_others_have_had_their_turn(bench, face):
    b = bench((K.OVERLOADED, ANSWER), K.NOT_FOUND)
    got = face(b.router)
    assert (got.text, b.calls) == (ANSWER, [2, 1])
    assert [a["target"] for a in got.fallback["attempts"]] == ["a", "b", "a"]
    assert got.fallback["attempts"][2]["retry"] is True


def test_a_retry_succeeds_on_the_same_target(bench, face):
    b = bench((K.TRANSIENT, ANSWER), "never")
    got = face(b.router)
    assert (got.text, b.calls) == (ANSWER, [2, 0])
    assert len(b.clock.sleeps) == 1
    assert 0 <= b.clock.sleeps[0] <= 0.5
    assert not got.fallback["used_fallback"]
    assert got.fallback["waited_s"] == pytest.approx(b.clock.sleeps[0], abs=1e-6)


@pytest.mark.parametrize("asked", [0.5, 3.0, 10.0])
def test_a_short_server_wait_is_sat_out_and_never_shortened(bench, face, asked):
    b = bench((failing(K.THROTTLED, retry_after_s=asked), ANSWER), "never")
    assert face(b.router).text == ANSWER
    assert b.calls == [2, 0]
    assert asked <= b.clock.sleeps[0] <= asked * 1.1 + 0.05


def test_a_wait_longer_than_ten_seconds_parks_the_target_and_falls_over_at_once(bench, face):
    b = bench(failing(K.THROTTLED, retry_after_s=10.1), ANSWER)
    assert face(b.router).text == ANSWER
    assert (b.calls, b.clock.sleeps) == ([1, 1], [])
    assert face(b.router).text == ANSWER, "parked: the next call does not ask it"
    assert b.calls == [1, 2]


def test_a_long_wait_is_sat_out_when_nobody_else_is_left(bench, face):
    b = bench((failing(K.THROTTLED, retry_after_s=45.0), ANSWER))
    assert face(b.router).text == ANSWER
    assert 45.0 <= b.clock.sleeps[0] <= 49.5


def test_a_wait_beyond_the_deadline_is_not_begun(bench, face):
    b = bench(failing(K.THROTTLED, retry_after_s=45.0), timeouts=Timeouts(total=40))
    got = face(b.router)
    assert (b.calls, b.clock.sleeps) == ([1], [])
    assert isinstance(got.error, AllTargetsFailed)
    assert got.error.retry_after_s is not None
    assert 45.0 <= got.error.retry_after_s <= 49.5
    assert f"may be tried again in {got.error.retry_after_s:.1f} s" in str(got.error)


def test_a_target_parked_by_an_earlier_call_is_waited_for_when_nobody_else_is_left(bench, face):
    b = bench((failing(K.THROTTLED, retry_after_s=45.0), ANSWER), retry=RetryPolicy(total=0))
    assert isinstance(face(b.router).error, AllTargetsFailed)
    got = face(b.router)
    assert got.text == ANSWER
    assert b.calls == [2], "waiting is not a retry: nothing was sent for this call before"
    assert 44.0 <= b.clock.sleeps[0] <= 45.0


def test_a_parked_target_is_asked_last_not_skipped(bench, face):
    b = bench((failing(K.THROTTLED, retry_after_s=20.0), ANSWER), (ANSWER, K.NOT_FOUND))
    face(b.router)
    got = face(b.router)
    assert got.text == ANSWER
    assert [a["target"] for a in got.fallback["attempts"]] == ["b", "a"]
    assert got.fallback["skipped"][0]["target"] == "a"


def test_whoever_is_ready_first_is_asked_first_when_all_have_asked_to_wait(bench, face):
    b = bench((failing(K.THROTTLED, retry_after_s=30.0), "late"), (failing(K.THROTTLED, retry_after_s=20.0), ANSWER))
    got = face(b.router)
    assert got.text == ANSWER
    assert [a["target"] for a in got.fallback["attempts"]] == ["a", "b", "b"]
    assert 20.0 <= b.clock.sleeps[0] <= 22.0
    b = bench((failing(K.THROTTLED, retry_after_s=20.0), ANSWER), (failing(K.THROTTLED, retry_after_s=30.0), "late"))
    got = face(b.router)
    assert got.text == ANSWER
    assert [a["target"] for a in got.fallback["attempts"]] == ["a", "b", "a"]
    assert len(b.clock.sleeps) == 1
    assert 20.0 <= b.clock.sleeps[0] <= 22.0


@pytest.mark.parametrize("kind", [K.NOT_FOUND, K.FORBIDDEN, K.NO_ENTITLEMENT, K.QUOTA_DAY, K.AUTH, K.BILLING])
def test_a_locked_target_is_not_waited_for_though_the_deadline_would_allow_it(bench, face, kind):
    b = bench(kind, timeouts=Timeouts(total=1e6))
    face(b.router)
    got = face(b.router)
    assert isinstance(got.error, AllTargetsFailed)
    assert (b.calls, b.clock.sleeps) == ([1], [])
    assert got.error.retry_after_s is not None
    assert got.error.retry_after_s > 500


def test_the_same_target_is_retried_once_at_most_though_two_retries_are_left(bench, face):
    b = bench(K.TRANSIENT, retry=RetryPolicy(total=5))
    face(b.router)
    assert b.calls == [2]


def test_retries_can_be_switched_off_and_raised_per_target(bench, face):
    b = bench(K.TRANSIENT, K.TRANSIENT, retry=RetryPolicy(total=0))
    face(b.router)
    assert b.calls == [1, 1]
    b = bench(K.TRANSIENT, K.TRANSIENT, retry=RetryPolicy(total=9), targets=[{"retry": {"same_target": 4}}, {}])
    face(b.router)
    assert b.calls == [5, 2]


def test_an_exhausted_retry_budget_leaves_first_tries_only(bench, face):
    b = bench(K.CONFLICT, ANSWER)
    b.router._fleet.routes[0].gate.budget.tokens = 5.0
    assert face(b.router).text == ANSWER
    assert b.calls == [1, 1]


def test_x_should_retry_false_turns_a_retry_into_a_fall_over(bench, face):
    b = bench(failing(K.TRANSIENT, retryable_hint=False), ANSWER)
    assert face(b.router).text == ANSWER
    assert b.calls == [1, 1]


def test_an_open_circuit_sends_nothing_and_the_journal_says_so(bench, face):
    b = bench(K.TIMEOUT, ANSWER)
    for _ in range(5):
        face(b.router)
    assert b.calls[0] == 5
    got = face(b.router)
    assert (got.text, b.calls[0]) == (ANSWER, 5)
    assert got.fallback["skipped"] == [{"target": "a", "reason": "circuit open"}]
    assert got.fallback["used_fallback"]


def test_when_every_circuit_is_open_the_call_fails_at_once_and_says_when(bench, face):
    b = bench(K.TIMEOUT, breaker=BreakerConfig(consecutive_failures=1))
    face(b.router)
    got = face(b.router)
    assert b.calls == [1]
    assert isinstance(got.error, AllTargetsFailed)
    assert got.error.retry_after_s is not None
    assert 5.0 <= got.error.retry_after_s <= 10.0
    assert b.clock.sleeps == []
    assert "circuit open" in str(got.error)


def test_it_returns_to_a_healed_primary(bench, face):
    b = bench((K.TIMEOUT,) * 5 + (ANSWER,), "second")
    for _ in range(5):
        assert face(b.router).text == "second"
    b.clock.advance(10.0)
    assert face(b.router).text == ANSWER
    assert face(b.router).text == ANSWER
    assert b.router.health()["a"].circuit == "closed"


def test_a_context_overflow_goes_only_to_a_larger_or_unknown_window(bench, face):
    windows = [8_000, 8_000, 4_000, None, 32_000]
    caps = [{"capabilities": Capabilities(context_window=w)} for w in windows]
    b = bench(K.CONTEXT_OVERFLOW, "never", "never", K.NOT_FOUND, ANSWER, targets=caps)
    got = face(b.router)
    assert (got.text, b.calls) == (ANSWER, [1, 0, 0, 1, 1])
    assert [s["target"] for s in got.fallback["skipped"]] == ["b", "c"]
    assert "no larger" in got.fallback["skipped"][0]["reason"]


def test_content_policy_is_routed_around_only_when_asked(bench, face):
    b = bench(K.POLICY, ANSWER, route_around_policy=True)
    assert face(b.router).text == ANSWER
    b = bench(K.POLICY, ANSWER)
    assert isinstance(face(b.router).error, AllTargetsFailed)


@pytest.mark.parametrize("bug", [TypeError("a bug"), RuntimeError("Event loop is closed"), KeyError("x")])
def test_a_bug_surfaces_as_itself_and_blames_no_target(bench, face, bug):
    b = bench(bug, "never")
    got = face(b.router)
    assert got.error is bug
    assert b.calls == [1, 0]
    health = b.router.health()["a"]
    assert (health.in_flight, health.success_rate, health.circuit) == (0, None, "closed")
    assert b.providers[0].open == 0


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_silent_target_is_left_after_its_limit_and_not_asked_again(bench, face):
    b = bench(Silence(), ANSWER)
    begun = b.clock.monotonic()
    got = face(b.router)
    assert (got.text, b.calls) == (ANSWER, [1, 1])
    limit = 30.0 if "astream" in face.__name__ or "streamed" in face.__name__ else 120.0
    assert b.clock.monotonic() - begun == pytest.approx(limit)
    assert got.fallback["attempts"][0]["error_kind"] == "timeout"


def test_a_model_that_thinks_first_gets_longer_for_its_first_token(bench, stream_face):
    b = bench(Silence(), ANSWER, targets=[{"capabilities": Capabilities(reasoning=True)}, {}])
    begun = b.clock.monotonic()
    stream_face(b.router)
    assert b.clock.monotonic() - begun == pytest.approx(60.0)


def test_an_attempt_leaves_the_targets_behind_it_time_for_their_first_token(bench, face):
    b = bench(Silence(), Silence(), ANSWER, timeouts=Timeouts(total=60))
    begun = b.clock.monotonic()
    assert face(b.router).text == ANSWER
    assert b.clock.monotonic() - begun < 60
    assert b.calls == [1, 1, 1]
    first, second = (a["duration_s"] for a in b.router.last.metadata()["attempts"][:2])
    assert first == pytest.approx(20.0)  # 60 less an equal share of 20 for each of the two behind
    assert second == pytest.approx(20.0)


def test_a_long_deadline_shortens_nothing(bench, face):
    b = bench(Silence(), Silence(), ANSWER)
    face(b.router)
    first = b.router.last.metadata()["attempts"][0]["duration_s"]
    assert first == pytest.approx(30.0 if "streamed" in face.__name__ else 120.0)


def test_being_cut_short_for_others_is_not_held_against_a_target(bench, face):
    b = bench(Silence(), ANSWER, timeouts=Timeouts(total=10), breaker=BreakerConfig(consecutive_failures=1))
    assert face(b.router).text == ANSWER
    assert b.router.health()["a"].circuit == "closed"


def test_its_own_limit_is_held_against_it(bench, face):
    b = bench(Silence(), ANSWER, breaker=BreakerConfig(consecutive_failures=1))
    face(b.router)
    assert b.router.health()["a"].circuit == "open"


def test_the_deadline_ends_the_call_and_says_so(bench, face):
    b = bench(Silence(), timeouts=Timeouts(total=5))
    begun = b.clock.monotonic()
    got = face(b.router)
    assert isinstance(got.error, DeadlineExceeded)
    assert b.clock.monotonic() - begun == pytest.approx(5.0)
    assert "no answer within 5 s" in str(got.error)
    assert len(got.error.errors) == 1
    assert b.router.health()["a"].success_rate is None, "our deadline is not the target's fault"


def test_a_request_may_bring_its_own_deadline(bench, face):
    b = bench(Silence())
    begun = b.clock.monotonic()
    got = face(b.router, REQUEST.replace(timeout_s=2.0))
    assert isinstance(got.error, DeadlineExceeded)
    assert b.clock.monotonic() - begun == pytest.approx(2.0)


def test_no_attempt_begins_after_the_deadline(bench, face):
    b = bench((Silence(),), "never", timeouts=Timeouts(total=5, first_token=100, attempt=100))
    b.providers[0]._latency_s = 6.0
    got = face(b.router)
    assert isinstance(got.error, DeadlineExceeded)
    assert b.calls == [1, 0]
    assert got.fallback["skipped"][-1]["reason"] == "no time left"


def test_a_retry_that_would_eat_the_time_of_those_behind_is_left(bench, face):
    b = bench(failing(K.THROTTLED, retry_after_s=8.0), ANSWER, timeouts=Timeouts(total=12))
    assert face(b.router).text == ANSWER
    assert (b.calls, b.clock.sleeps) == ([1, 1], [])


# ── streams that break ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [K.STREAM_CUT, K.TRANSIENT, K.OVERLOADED, K.MALFORMED, None])
@pytest.mark.parametrize("second", [ANSWER, "answer, once", "whole answer, once", ", once"])
def test_a_broken_stream_is_continued_by_the_next_target_and_read_once(bench, stream_face, kind, second):
    b = bench(Broken("the whole answer", kind), second)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert b.calls == [1, 1]
    assert got.fallback["continued"]
    assert got.fallback["continued_at"] == [16]
    assert got.fallback["attempts"][1]["continued_by"] == "instructed"
    assert got.kinds.count("Continued") == 1
    assert got.kinds.count("Started") == 1
    assert got.kinds[-1] == "Finished"


def test_a_stall_is_continued_too(bench, stream_face):
    b = bench(Silence("the whole"), ANSWER)
    begun = b.clock.monotonic()
    assert stream_face(b.router).text == ANSWER
    assert b.clock.monotonic() - begun == pytest.approx(20.0)


def test_a_stream_can_break_twice(bench, stream_face):
    b = bench(Broken("the"), Broken("the whole answer"), ANSWER)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert got.fallback["continued_at"] == [3, 16]


def test_a_target_that_breaks_before_it_said_anything_new_leaves_no_seam(bench, stream_face):
    b = bench(Broken("the whole"), Broken("the"), ANSWER)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert got.fallback["continued_at"] == [9]


def test_before_the_commit_a_failure_costs_the_caller_nothing(bench, stream_face):
    b = bench(Broken(""), ANSWER)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert not got.fallback["continued"]


def test_alone_a_cut_target_may_finish_its_own_answer(bench, stream_face):
    b = bench((Broken("the whole"), ANSWER))
    assert stream_face(b.router).text == ANSWER
    assert b.calls == [2]


def test_a_cut_target_goes_on_before_those_that_never_began(bench, stream_face):
    b = bench((K.OVERLOADED, K.OVERLOADED), (K.OVERLOADED, K.OVERLOADED), (Broken("the whole"), ANSWER))
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert [a["target"] for a in got.fallback["attempts"]] == ["a", "b", "c", "c"]


def test_nobody_can_go_on_and_the_partial_text_is_kept(bench, stream_face):
    b = bench(Broken("the whole", K.STREAM_CUT), K.NOT_FOUND)
    got = stream_face(b.router)
    assert isinstance(got.error, StreamBroken)
    assert got.error.partial == got.text == "the whole"
    assert got.error.usage.estimated
    assert isinstance(got.error.__cause__, AllTargetsFailed)
    assert [a["target"] for a in got.fallback["attempts"]] == ["a", "b", "a"]


def test_raise_hands_over_the_partial_text_at_once(bench, stream_face):
    b = bench(Broken("the whole"), "never", on_stream_break="raise")
    got = stream_face(b.router)
    assert isinstance(got.error, StreamBroken)
    assert got.error.partial == "the whole"
    assert b.calls == [1, 0]


def test_restart_marks_the_reset_and_answers_whole(bench, stream_face):
    b = bench(Broken("the whole"), ANSWER, on_stream_break="restart")
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert got.kinds.count("Restarted") == 1
    assert got.fallback["restarted"] == 1
    assert b.providers[1].requests[0].messages == REQUEST.messages


def test_the_continuing_target_is_asked_by_what_it_can_do(bench, stream_face):
    for mode, last in (("exact", "assistant"), ("prefill", "assistant"), ("instructed", "user")):
        b = bench(Broken("the whole"), " answer, once", targets=[{}, {"capabilities": Capabilities(continuation=mode)}])
        got = stream_face(b.router)
        assert got.text == ANSWER
        asked = b.providers[1].requests[0]
        assert asked.messages[-1].role == last
        assert asked.continues is (mode != "instructed")
        assert got.fallback["attempts"][1]["continued_by"] == mode


def test_a_target_that_rejects_prefill_is_asked_again_in_words_and_remembered(bench, stream_face):
    rejects = failing(K.BAD_REQUEST, code="prefill_rejected")
    caps = [{}, {"capabilities": Capabilities(continuation="prefill")}]
    b = bench(Broken("the whole"), (rejects, ANSWER), targets=caps)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert [a.get("continued_by") for a in got.fallback["attempts"]] == [None, "prefill", "instructed"]
    assert got.fallback["continued_at"] == [9]
    assert stream_face(b.router).text == ANSWER
    assert not b.providers[1].requests[-1].continues, "it is not offered a prefill again"


def test_a_refused_prefill_is_no_try(bench, stream_face):
    rejects = failing(K.BAD_REQUEST, code="prefill_rejected")
    caps = [{}, {"capabilities": Capabilities(continuation="prefill")}]
    b = bench(Broken("the whole"), (rejects, K.TRANSIENT, ANSWER), targets=caps)
    got = stream_face(b.router)
    assert got.text == ANSWER
    assert [a.get("retry", False) for a in got.fallback["attempts"]][:3] == [False, False, False]
    assert b.calls[1] == 3


def test_an_objection_to_the_continuation_request_does_not_end_the_call(bench, stream_face):
    b = bench(Broken("the whole"), K.BAD_REQUEST, ANSWER)
    assert stream_face(b.router).text == ANSWER


def test_usage_of_a_continued_answer_adds_up_the_legs(bench, stream_face):
    b = bench(Broken("the whole"), ANSWER)
    usage = stream_face(b.router).finished.usage
    assert usage.estimated
    assert usage.output_tokens == 4 + 3  # b's own count, and a's nine characters at four a token


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TOOL = ToolSpec("look", "Look.", {"type": "object", "properties": {"at": {"type": "string"}}})
ASK = ChatRequest((user("Look at it"),), tools=(TOOL,))
CALL = [ToolCallDelta(0, "c1", "look", '{"at":'), ToolCallDelta(0, None, None, ' "it"}')]
DONE = Finished("tool_calls", usage=Usage(1, 1))


def test_tool_calls_come_whole_and_after_the_proper_end(bench, face):
    b = bench([*CALL, DONE])
    got = face(b.router, ASK)
    assert got.calls == [ToolCall("c1", "look", '{"at": "it"}')]
    if got.kinds:
        assert got.kinds[-2:] == ["ToolCall", "Finished"]
        assert "ToolCallDelta" not in got.kinds


def test_half_a_tool_call_never_reaches_the_caller(bench, face):
    b = bench([CALL[0]], [*CALL, DONE])
    got = face(b.router, ASK)
    assert got.calls == [ToolCall("c1", "look", '{"at": "it"}')]
    assert len(got.fallback["attempts"]) == 3


def test_text_before_a_broken_tool_call_is_continued_and_the_tool_called_once(bench, stream_face):
    b = bench([TextDelta("I look."), CALL[0]], [TextDelta("I look."), *CALL, DONE])
    got = stream_face(b.router, ASK)
    assert got.text == "I look."
    assert len(got.calls) == 1


def test_whole_calls_from_a_provider_wait_for_the_end_too(bench, stream_face):
    call = ToolCall("c9", "look", "{}")
    b = bench([call, ToolCall("c10", "look", "{}")], [call, DONE])
    got = stream_face(b.router, ASK)
    assert got.calls == [call]


def test_several_calls_keep_their_order(bench, face):
    events = [ToolCallDelta(1, "second", "look"), ToolCallDelta(0, "first", "look"), ToolCallDelta(1, None, None, "{}")]
    b = bench([*events, DONE])
    assert [c.id for c in face(b.router, ASK).calls] == ["first", "second"]
    assert [c.arguments for c in face(b.router, ASK).calls] == ["{}", "{}"]
