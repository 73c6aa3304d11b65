"""The small decisions inside the flow, one by one, at their edges."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from shared_core import (
    AllTargetsFailed,
    Capabilities,
    ChatRequest,
    DeadlineExceeded,
    Disposition,
    ErrorKind,
    FallbackError,
    ProviderError,
    RetryPolicy,
    StreamBroken,
    TextDelta,
    Timeouts,
    Usage,
    user,
)
from shared_core.routing import flow as f
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan
from shared_core.routing.relay import Relay

K = ErrorKind
REQUEST = ChatRequest((user("Hello"),), streaming=True)
WHOLE = ChatRequest((user("Hello"),))


def route(name="a", *, reasoning=False, rejected=False, continuation="prefill", **timeouts):
    return SimpleNamespace(
        name=name,
        timeouts=Timeouts(**timeouts),
        capabilities=Capabilities(reasoning=reasoning, continuation=continuation),
        gate=SimpleNamespace(prefill_rejected=rejected),
    )


def turn(name="a", not_before=0.0, **kw):
    made = f._Turn(route(name, **kw))
    made.not_before = not_before
    return made


def relay(delivered=""):
    made = Relay(streaming=True)
    if delivered:
        made.feed(TextDelta(delivered))
    return made


def error(kind=K.TRANSIENT, **kw):
    return ProviderError.of(kind, "no", **kw)


def test_the_parked_target_ready_first_is_taken_if_that_is_before_the_deadline():
    a, b, c = turn("a", 7.0), turn("b", 5.0), turn("c", 9.0)
    assert f._soonest([a, b, c], 100.0) is b
    assert f._soonest([a, b, c], 5.0) is None, "at the deadline is too late"
    assert f._soonest([a, b, c], 5.1) is b
    assert f._soonest([], 1.0) is None


@pytest.mark.parametrize(
    ("request_", "left", "behind", "expected"),
    [
        (REQUEST, 600.0, [], (30.0, 20.0)),
        (REQUEST, 12.0, [], (12.0, 20.0)),
        (REQUEST, 600.0, [{}, {}], (30.0, 20.0)),
        (REQUEST, 60.0, [{}, {}], (20.0, 20.0)),  # two behind keep a third each
        (REQUEST, 70.0, [{}], (30.0, 20.0)),
        (REQUEST, 50.0, [{}], (25.0, 20.0)),
        (REQUEST, 50.0, [{"first_token": 5.0}], (30.0, 20.0)),
        (WHOLE, 600.0, [{}, {}], (120.0, math.inf)),
        (WHOLE, 600.0, [], (120.0, math.inf)),
        (WHOLE, 100.0, [{}, {}], (40.0, math.inf)),  # 100 less twice 30
        (WHOLE, 100.0, [{"first_token": 10.0}], (90.0, math.inf)),
        (WHOLE, 100.0, [{"reasoning": True, "reasoning_first_token": 45.0}], (55.0, math.inf)),
        (WHOLE, 100.0, [], (100.0, math.inf)),
    ],
)
def test_an_attempt_keeps_its_limits_and_leaves_the_others_theirs(request_, left, behind, expected):
    turns = [turn("x", reasoning=b.pop("reasoning", False), **b) for b in [dict(b) for b in behind]]
    assert f._limits(route(), request_, left, turns) == pytest.approx(expected)


def test_a_model_that_thinks_first_has_its_own_first_token_limit():
    assert f.first_token_s(route()) == 30.0
    assert f.first_token_s(route(reasoning=True)) == 60.0


@pytest.mark.parametrize(
    ("delivered", "policy", "continuation", "rejected", "mode"),
    [
        ("", "continue", "prefill", False, None),
        ("text", "continue", "prefill", False, "prefill"),
        ("text", "continue", "prefill", True, "instructed"),
        ("text", "continue", "exact", True, "exact"),
        ("text", "continue", "instructed", False, "instructed"),
        ("text", "restart", "prefill", False, None),
        ("text", "raise", "prefill", False, None),
    ],
)
def test_how_a_target_is_asked_to_go_on(delivered, policy, continuation, rejected, mode):
    got = f._mode(
        route(continuation=continuation, rejected=rejected), relay(delivered), f.FlowPolicy(on_stream_break=policy)
    )
    assert got == mode


@pytest.mark.parametrize(
    ("kind", "delivered", "after", "around", "expected"),
    [
        (K.TRANSIENT, "", False, False, Disposition.RETRY),
        (K.POLICY, "", False, False, Disposition.FAIL),
        (K.POLICY, "", False, True, Disposition.FALL_OVER),
        (K.BAD_REQUEST, "", False, True, Disposition.FAIL),
        (K.BAD_REQUEST, "text", False, False, Disposition.INCAPABLE),
        (K.BAD_REQUEST, "text", True, False, Disposition.FAIL),
        (K.TIMEOUT, "text", False, False, Disposition.FALL_OVER),
    ],
)
def test_what_follows_an_error_in_its_situation(kind, delivered, after, around, expected):
    e = error(kind)
    e.after_output = after
    assert f._verdict(e, relay(delivered), f.FlowPolicy(route_around_policy=around)) is expected


@pytest.mark.parametrize(
    ("kind", "wait", "asked", "left", "behind", "delivered", "expected"),
    [
        (K.TRANSIENT, 1.0, None, 600.0, 0, "", False),
        (K.TRANSIENT, 1.0, None, 600.0, 1, "", False),
        (K.TRANSIENT, 10.0, None, 10.0, 0, "", True),  # ends exactly at the deadline
        (K.TRANSIENT, 9.9, None, 10.0, 0, "", False),
        (K.TRANSIENT, 1.0, None, 600.0, 1, "text", True),
        (K.TRANSIENT, 1.0, None, 600.0, 0, "text", False),
        (K.OVERLOADED, 1.0, None, 600.0, 1, "", True),
        (K.OVERLOADED, 1.0, None, 600.0, 0, "", False),
        (K.THROTTLED, 10.5, 10.0, 600.0, 1, "", False),  # ten seconds are sat out
        (K.THROTTLED, 10.6, 10.1, 600.0, 1, "", True),
        (K.THROTTLED, 99.0, 90.0, 600.0, 0, "", False),
        (K.THROTTLED, 5.0, 5.0, 9.9, 1, "", True),  # the one behind keeps half of what is left
        (K.THROTTLED, 5.0, 5.0, 10.0, 1, "", False),
        (K.TRANSIENT, 0.9, None, 600.0, 1, "", False),
    ],
)
def test_whether_those_behind_go_before_a_retry(kind, wait, asked, left, behind, delivered, expected):
    turns = [turn() for _ in range(behind)]
    got = f._should_yield(
        error(kind, retry_after_s=asked), relay(delivered), wait, 1000.0, 1000.0 + left, turns, RetryPolicy()
    )
    assert got is expected


def test_no_wait_at_all_is_no_long_wait_even_when_none_is_tolerated():
    e = error(K.TRANSIENT)
    assert not f._should_yield(e, relay(), 0.1, 0.0, 600.0, [turn()], RetryPolicy(max_wait_s=0.5))
    e = error(K.TRANSIENT, retry_after_s=0.6)
    assert f._should_yield(e, relay(), 0.1, 0.0, 600.0, [turn()], RetryPolicy(max_wait_s=0.5))


def test_only_our_own_deadline_is_out_of_time():
    assert f._out_of_time(error(K.TIMEOUT, code="deadline"))
    assert not f._out_of_time(error(K.TIMEOUT))
    assert not f._out_of_time(ValueError("deadline"))


# ── the error ────────────────────────────────────────────────────────────────────────────────────────────────────────


def journal(*attempts, started=0.0, deadline=600.0, skips=(), excluded=()):
    x = Execution("id-1", REQUEST, started, deadline, excluded=tuple(excluded))
    for number, (name, e, ended) in enumerate(attempts):
        attempt = x.begin(name, "p", "m", float(number), retry=False, seam=None)
        attempt.ended, attempt.error, attempt.outcome = ended, e, "failed"
        if e is not None:
            e.target = name
    for name, reason, at in skips:
        x.skip(name, reason, at)
    return x


def fail(
    x,
    *,
    routes=("a", "b"),
    parked=(),
    fatal=None,
    now=3.0,
    delivered="",
    excluded=(),
    too_small=frozenset(),
    broke="continue",
):
    plan = Plan(tuple(route(n) for n in routes), tuple(excluded), too_small=too_small)
    return f._failure(x, relay(delivered), plan, list(parked), fatal, now, broke)


def test_the_message_names_every_attempt_refusal_exclusion_and_what_to_do():
    x = journal(
        ("a", error(K.TRANSIENT, status=500), 0.5),
        ("b", error(K.THROTTLED, status=429, retry_after_s=9.0), 1.25),
        skips=[("c", "circuit open", 10.0), ("e", "no time left", None)],
    )
    e = fail(x, routes=("a", "b", "c"), excluded=[("d", "cannot call tools")])
    assert type(e) is AllTargetsFailed
    assert str(e) == (
        "all 3 target(s) failed (2 attempt(s) in 3.00 s)\n"
        "  1. a, 0.50 s: no [transient, HTTP 500]\n"
        "  2. b, 0.25 s: no [throttled, HTTP 429, retry after 9 s]\n"
        "  -  c: circuit open\n"
        "  -  e: no time left\n"
        "  -  d: cannot call tools\n"
        "hint: the soonest target may be tried again in 7.0 s"
    )
    assert e.retry_after_s == 7.0
    assert x.outcome == "failed"
    assert x.ended == 3.0
    assert e.fallback["attempts"][1]["retry_after_s"] == 9.0
    assert e.fallback["duration_s"] == 3.0


def test_the_soonest_of_refusals_and_parked_targets_is_told_and_never_a_time_past():
    x = journal(("a", error(), 1.0), skips=[("b", "circuit open", 50.0)])
    assert fail(x, parked=[turn("a", 8.0)]).retry_after_s == 5.0
    assert fail(x, parked=[turn("a", 1.0)]).retry_after_s == 0.0
    assert fail(journal(("a", error(), 1.0))).retry_after_s is None


def test_a_request_at_fault_is_said_to_be_and_waiting_is_not_advised():
    fatal = error(K.BAD_REQUEST)
    x = journal(("a", fatal, 1.0), skips=[("b", "circuit open", 50.0)])
    e = fail(x, fatal=fatal, now=700.0)
    assert type(e) is AllTargetsFailed, "late or not"
    assert str(e).startswith("a rejected the request itself; nobody else was asked (1 attempt(s)")
    assert e.retry_after_s is None
    assert e.__cause__ is fatal


def test_running_out_of_time_is_a_kind_of_its_own():
    late = fail(journal(("a", error(K.TRANSIENT), 1.0), deadline=3.0), now=3.0)
    assert type(late) is DeadlineExceeded
    assert str(late).startswith("no answer within 3 s (1 attempt(s) in 3.00 s)")
    cut = fail(journal(("a", error(K.TIMEOUT, code="deadline"), 2.9), deadline=3.0), now=2.99)
    assert type(cut) is DeadlineExceeded
    earlier = journal(("a", error(K.TIMEOUT, code="deadline"), 1.0), ("b", error(), 2.0), deadline=30.0)
    assert type(fail(earlier)) is AllTargetsFailed, "only the last attempt's deadline is the call's"


def test_nobody_was_asked_and_the_reasons_are_the_error():
    e = fail(journal(skips=[("a", "circuit open", None)]), excluded=[("b", "disabled")])
    assert [str(x) for x in e.errors] == ["a: circuit open; b: disabled"]
    assert isinstance(e.errors[0], FallbackError)
    assert e.__cause__ is e.errors[0]
    nobody = fail(journal(), routes=())
    assert str(nobody) == "no target can serve this request (0 attempt(s) in 3.00 s)"
    assert str(nobody.errors[0]) == "there is no target to ask"


def test_a_conversation_too_long_for_every_window_is_an_overflow_though_nobody_was_asked():
    excluded = [("a", "its window is 10"), ("b", "disabled")]
    e = fail(journal(), routes=(), excluded=excluded, too_small=frozenset({"a"}))
    (only,) = e.errors
    assert (only.kind, only.message, only.target) == (K.CONTEXT_OVERFLOW, "its window is 10", "a")
    assert e.__cause__ is only


def test_an_attempt_without_an_error_is_told_by_its_outcome():
    x = journal(("a", None, None))
    assert "  1. a, 0.00 s: failed" in str(fail(x))


def test_the_cause_is_the_most_useful_error_and_the_first_among_equals():
    order = [K.TIMEOUT, K.THROTTLED, K.QUOTA_DAY, K.CONFIG, K.INCAPABLE, K.TOO_LARGE, K.NOT_FOUND, K.FORBIDDEN]
    order += [K.NO_ENTITLEMENT, K.BILLING, K.AUTH, K.CONTEXT_OVERFLOW, K.POLICY, K.BAD_REQUEST]
    for n in range(2, len(order) + 1):
        errors = [error(k) for k in order[:n]]
        e = fail(journal(*[(f"t{i}", x, 1.0) for i, x in enumerate(errors)]))
        assert e.__cause__ is errors[-1], order[:n]
    first, second = error(K.TRANSIENT), error(K.OVERLOADED)
    assert fail(journal(("a", first, 1.0), ("b", second, 1.0))).__cause__ is first


def test_a_broken_stream_keeps_its_text_its_usage_and_the_whole_story():
    x = journal(("a", error(K.STREAM_CUT), 1.0), ("b", error(K.NOT_FOUND), 2.0))
    x.attempts[0].delivered = 4
    x.attempts[0].usage = Usage(1, 1, estimated=True)
    x.attempts[1].usage = Usage(9, 9)
    e = fail(x, delivered="text")
    assert type(e) is StreamBroken
    assert str(e).startswith(
        "the answer broke off after 4 characters and nobody could continue it\nall 2 target(s) failed"
    )
    assert (e.partial, e.usage) == ("text", Usage(1, 1, estimated=True))
    assert e.fallback["attempts"][0]["error_kind"] == "stream_cut"
    assert type(e.__cause__) is AllTargetsFailed
    assert e.__cause__.__cause__ is x.attempts[1].error
    x.attempts[0].usage = None
    assert fail(x, delivered="text").usage is None
    x.attempts[1].delivered = 1
    x.attempts[0].delivered = 0
    x.attempts[0].usage = Usage(3, 3)
    assert fail(x, delivered="text").usage == Usage(9, 9), "of an attempt the reader saw something of"


def test_times_in_the_message_count_from_the_start_of_the_call():
    x = journal(("a", error(), 1.0), started=1.0, deadline=5.5)
    assert "(1 attempt(s) in 2.00 s)" in str(fail(x))
    assert str(fail(x, now=6.0)).startswith("no answer within 4.5 s (1 attempt(s) in 5.00 s)")


def test_a_broken_stream_says_whether_anybody_was_asked_to_go_on():
    asked, left = (
        str(fail(journal(("a", error(K.STREAM_CUT), 1.0)), delivered="Hello", broke=b)) for b in ("continue", "raise")
    )
    assert asked.startswith("the answer broke off after 5 characters and nobody could continue it\n")
    assert left.startswith(
        "the answer broke off after 5 characters and nobody was asked to continue it (on_stream_break='raise')\n"
    )


def test_what_has_been_classified_keeps_no_frames():
    known = error(K.TRANSIENT)
    try:
        raise known
    except ProviderError:
        assert known.__traceback__ is not None
    fail(journal(("a", known, 1.0)))
    assert known.__traceback__ is None
