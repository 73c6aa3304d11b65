"""The fallback algorithm by hand: every step it asks for, to the figure, and what it writes into the journal."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from shared_core import (
    AllTargetsFailed,
    Answer,
    Capabilities,
    ChatRequest,
    Continued,
    DeadlineExceeded,
    ErrorKind,
    ProviderError,
    Restarted,
    RetryPolicy,
    StreamBroken,
    TextDelta,
    Timeouts,
    user,
)
from shared_core.resilience.admission import Admission, Outcome, Refusal
from shared_core.resilience.breaker import Permit
from shared_core.routing.execution import Execution, Skip
from shared_core.routing.flow import Admit, Call, Settle, Wait, flow
from shared_core.routing.planner import Plan
from shared_core.routing.policy import FlowPolicy
from shared_core.routing.reask import reask
from shared_core.routing.relay import Relay

K = ErrorKind
START = 1000.0
STREAM = ChatRequest((user("Hello"),), streaming=True)
WHOLE = ChatRequest((user("Hello"),))


def route(
    name,
    *,
    window=None,
    continuation="instructed",
    retry=None,
    allows_retry=True,
    local=False,
    standby=None,
    **timeouts,
):
    return SimpleNamespace(
        name=name,
        local=local,
        standby=standby,
        provider=SimpleNamespace(name=f"vendor-{name}", model=f"model-{name}", origin=f"origin-{name}"),
        timeouts=Timeouts(**timeouts),
        capabilities=Capabilities(context_window=window, continuation=continuation),
        retry=retry or RetryPolicy(),
        gate=SimpleNamespace(prefill_rejected=False, allows_retry=allows_retry),
    )


def no(kind=K.TRANSIENT, **fields):
    return ProviderError.of(kind, f"scripted {kind}", **fields)


class InLine(NamedTuple):
    """The next attempt waits in its target's line for so long."""

    seconds: float


class Hand:
    """Performs the steps in place of a driver. `scripts` says per target what comes of each turn, in order.

    A turn is a `Refusal`, or how a call ends (None is a whole answer), or `(seconds, text, how it ends)`. Before it,
    `InLine` says how long the target's line is.
    """

    def __init__(self, *scripts, routes=None, request=STREAM, total=600.0, chance=0.5, **policy):
        self.routes = routes or [route(name) for name, _ in zip("abcdefgh", scripts, strict=False)]
        self.left = {r.name: list(s) for r, s in zip(self.routes, scripts, strict=True)}
        self.now = START
        self.steps = []
        self.calls = []
        self.markers = []
        self.settled = []
        self.journal = Execution("id-1", request, START, START + total)
        self.relay = Relay(streaming=request.streaming)
        steps = flow(
            self.journal,
            Plan(tuple(self.routes)),
            FlowPolicy(**policy),
            self.relay,
            clock=lambda: self.now,
            chance=lambda: chance,
        )
        report = None
        try:
            while True:
                report = self._perform(steps.send(report))
        except StopIteration as stop:
            self.result = stop.value

    def _perform(self, step):
        assert step.route in self.routes
        name = step.route.name
        match step:
            case Admit():
                assert step.request is self.journal.request
                if isinstance(self.left[name][0], InLine):
                    self.steps.append(("line", name, step.lease_s, step.wait_s))
                    self.now += self.left[name].pop(0).seconds
                else:
                    assert step.wait_s == 0.0, "it waits in no line that it was not told of"
                    self.steps.append(("admit", name, step.lease_s))
                if isinstance(self.left[name][0], Refusal):
                    return self.left[name].pop(0)
                self.admission = Admission(Permit(0), self.now)
                return self.admission
            case Call():
                assert step.admission is self.admission
                assert step.attempt is self.journal.attempts[-1] is self.relay.attempt
                self.calls.append(step)
                self.steps.append(("call", name))
                turn = self.left[name].pop(0)
                seconds, text, end = turn if isinstance(turn, tuple) else (0.0, "", turn)
                self.now += seconds
                if text:
                    step.attempt.first_token = self.now
                    out = self.relay.feed(TextDelta(text))
                    self.markers += [e for e in out if not isinstance(e, TextDelta)]
                return end
            case Settle():
                assert step.admission is self.admission
                assert step.attempt is self.calls[-1].attempt
                self.settled.append(step)
                self.steps.append(("settle", name, step.will_retry))
                return None
            case Wait():
                self.steps.append(("wait", name, pytest.approx(step.seconds)))
                self.now += step.seconds
                return None

    @property
    def asked(self):
        """Names of the targets that were called, one letter each."""
        return "".join(c.route.name for c in self.calls)

    @property
    def waits(self):
        return [(name, s) for kind, name, s, *_ in (step for step in self.steps if len(step) == 3) if kind == "wait"]


# ── one attempt ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_streamed_answer_takes_three_steps_and_the_journal_knows_who_gave_it():
    h = Hand([(2.0, "Hi", None)], [], total=600.0)
    assert h.steps == [("admit", "a", 600.0), ("call", "a"), ("settle", "a", False)]
    assert h.result is None
    (call,) = h.calls
    assert (call.request, call.deadline) == (STREAM, START + 600)
    assert (call.first_s, call.idle_s, call.connect_s) == (30.0, 20.0, 5.0)
    (a,) = h.journal.attempts
    assert (a.target, a.provider, a.model, a.number, a.retry, a.seam) == ("a", "vendor-a", "model-a", 1, False, None)
    assert (a.started, a.ended, a.outcome, a.error, a.delivered) == (START, START + 2, "answered", None, 2)
    assert a.origin == "origin-a"
    assert h.settled[0].outcome == Outcome(None, latency_s=2.0, first_token_s=2.0)
    assert h.markers == []
    assert (h.journal.waited_s, h.journal.restarts, h.journal.seams, h.journal.skips) == (0.0, 0, [], [])


def test_a_whole_answer_is_leased_no_longer_than_an_attempt_may_take():
    h = Hand([None], request=WHOLE)
    assert h.steps[0] == ("admit", "a", 120.0)
    assert (h.calls[0].first_s, h.calls[0].idle_s) == (120.0, math.inf)
    assert Hand([None], request=WHOLE, total=100.0).steps[0] == ("admit", "a", 100.0)


def test_a_failed_attempt_is_settled_with_its_error_and_times():
    error = no(K.NOT_FOUND)
    h = Hand([(3.0, "", error)], [None])
    assert h.steps == [
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", False)],
        *[("admit", "b", 597.0), ("call", "b"), ("settle", "b", False)],
    ]
    assert h.settled[0].outcome == Outcome(error, latency_s=3.0)
    a, b = h.journal.attempts
    assert (a.outcome, a.error, a.ended) == ("failed", error, START + 3)
    assert (error.target, error.after_output) == ("a", False)
    assert (b.number, b.retry, b.started) == (2, False, START + 3)


def test_one_character_is_output():
    error = no(K.NOT_FOUND)
    Hand([(0.0, "H", error)], [None])
    assert error.after_output is True


def test_a_model_named_in_the_request_is_the_one_in_the_journal():
    h = Hand([None], request=STREAM.replace(model="newer"))
    assert h.journal.attempts[0].model == "newer"


# ── retries at once ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_retry_waits_its_jittered_time_and_is_marked_as_one():
    h = Hand([no(), None], [])
    assert h.steps == [
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", True), ("wait", "a", 0.25)],
        *[("admit", "a", 599.75), ("call", "a"), ("settle", "a", False)],
    ]
    assert [a.retry for a in h.journal.attempts] == [False, True]
    assert h.journal.waited_s == 0.25


def test_waits_double_and_add_up():
    patient = route("a", retry=RetryPolicy(same_target=9))
    h = Hand([no(), no(), no(), None], routes=[patient], retry=RetryPolicy(total=9))
    assert h.waits == [("a", 0.25), ("a", 0.5), ("a", 1.0)]
    assert h.journal.waited_s == 1.75


def test_a_wait_of_nothing_is_no_step():
    h = Hand([no(), None], chance=0.0)
    assert h.steps == [
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", True)],
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", False)],
    ]


@pytest.mark.parametrize(("total", "asked"), [(0, "ab"), (1, "aab"), (2, "aaab"), (3, "aaaab"), (4, "aaaab")])
def test_retries_at_once_are_counted_over_the_call_and_per_target(total, asked):
    routes = [route("a", retry=RetryPolicy(same_target=3)), route("b")]
    h = Hand([no()] * 4, [None], routes=routes, retry=RetryPolicy(total=total))
    assert h.asked == asked


def test_a_used_up_retry_budget_passes_on_to_the_next_target():
    h = Hand([no()], [None], routes=[route("a", allows_retry=False), route("b")])
    assert h.asked == "ab"
    assert h.waits == []


# ── targets that come back later ─────────────────────────────────────────────────────────────────────────────────────


def test_an_overloaded_target_is_waited_for_only_after_the_others():
    h = Hand([no(K.OVERLOADED), None], [(0.2, "", no(K.NOT_FOUND))])
    assert h.steps == [
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", False)],
        *[("admit", "b", 600.0), ("call", "b"), ("settle", "b", False)],
        ("wait", "a", 0.3),  # half a second from its failure, less what b took
        *[("admit", "a", pytest.approx(599.5)), ("call", "a"), ("settle", "a", False)],
    ]
    assert h.journal.waited_s == pytest.approx(0.3)
    assert h.journal.attempts[2].retry is True


@pytest.mark.parametrize("took", [0.5, 2.0])
def test_a_target_whose_time_has_come_is_not_waited_for(took):
    h = Hand([no(K.OVERLOADED), None], [(took, "", no(K.NOT_FOUND))])
    assert (h.asked, h.waits, h.journal.waited_s) == ("aba", [], 0.0)


@pytest.mark.parametrize(("total", "back"), [(0, ""), (1, "a"), (2, "ab"), (3, "abc"), (4, "abcd"), (9, "abcd")])
def test_coming_back_is_a_retry_and_counted_as_one(total, back):
    overloaded = [[(0.01, "", no(K.OVERLOADED))] * 2 for _ in "abcd"]
    h = Hand(*overloaded, [no(K.NOT_FOUND)], retry=RetryPolicy(total=total))
    assert h.asked == "abcde" + back
    assert isinstance(h.result, AllTargetsFailed)


def test_a_target_whose_end_of_parking_is_known_is_asked_then_and_that_is_no_retry():
    parked = Refusal("parked: throttled", START + 40.0, waits=True)
    h = Hand([parked, None], [no(K.NOT_FOUND)], retry=RetryPolicy(total=0))
    assert h.steps == [
        ("admit", "a", 600.0),
        *[("admit", "b", 600.0), ("call", "b"), ("settle", "b", False)],
        ("wait", "a", 40.0),
        *[("admit", "a", 560.0), ("call", "a"), ("settle", "a", False)],
    ]
    assert h.journal.skips == [Skip("a", "parked: throttled", START + 40.0)]
    assert h.journal.attempts[-1].retry is False


def test_a_parked_target_is_still_asked_when_no_retry_is_left_for_another():
    parked = Refusal("parked: throttled", START + 40.0, waits=True)
    busy = [no(K.OVERLOADED)] * 2
    h = Hand(busy, busy, [parked, None], [no(K.NOT_FOUND)], retry=RetryPolicy(total=1))
    assert h.asked == "abdac", "b may not come back, c was never asked"
    assert h.result is None


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal("circuit open", START + 5.0),
        Refusal("account locked", START + 5.0),
        Refusal("parked for good", None, waits=True),
    ],
)
def test_a_refusal_that_waiting_does_not_lift_is_written_down_and_left(refusal):
    h = Hand([refusal], [None])
    assert h.asked == "b"
    assert h.journal.skips == [Skip("a", refusal.reason, refusal.retry_at)]
    alone = Hand([refusal])
    assert alone.steps == [("admit", "a", 600.0)]
    assert alone.result is not None


def test_a_parked_target_refused_again_at_its_time_is_parked_again():
    again = [Refusal("parked: throttled", START + s, waits=True) for s in (5.0, 9.0)]
    h = Hand([*again, None])
    assert h.waits == [("a", 5.0), ("a", 4.0)]
    assert h.journal.waited_s == 9.0


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FULL = Refusal("no slot is free", START + 15.0, waits=True, line=True)
GUESSED = Refusal("no slot is free", None, waits=True, line=True)


@pytest.mark.parametrize("full", [FULL, GUESSED])
def test_a_place_in_line_is_no_wait_of_ours_and_what_it_took_is_gone_from_the_time_that_is_left(full):
    h = Hand([full, InLine(5.0), (1.0, "Hi", None)], [(2.0, "", no(K.NOT_FOUND))], total=20.0)
    assert h.result is None
    assert h.steps == [
        ("admit", "a", 20.0),
        *[("admit", "b", 20.0), ("call", "b"), ("settle", "b", False)],
        *[("line", "a", 18.0, 18.0), ("call", "a"), ("settle", "a", False)],
    ]
    call = h.calls[1]
    assert (call.first_s, call.deadline) == (13.0, START + 20), "7 of 20 seconds have gone by"
    assert call.attempt.started == START + 7, "the target's time begins when its turn has come"
    assert (h.journal.waited_s, call.attempt.retry) == (5.0, False)
    assert h.settled[1].outcome == Outcome(None, latency_s=1.0, first_token_s=1.0)
    assert h.journal.skips == [Skip("a", full.reason, full.retry_at)]


def test_what_a_line_took_is_added_to_what_was_waited_before():
    h = Hand([no(), FULL, InLine(5.0), None], retry=RetryPolicy(total=1))
    assert h.steps == [
        *[("admit", "a", 600.0), ("call", "a"), ("settle", "a", True), ("wait", "a", 0.25)],
        ("admit", "a", 599.75),
        *[("line", "a", 599.75, 599.75), ("call", "a"), ("settle", "a", False)],
    ]
    assert h.journal.waited_s == 5.25


def test_a_whole_answers_lease_is_no_longer_for_a_place_in_line():
    h = Hand([FULL, InLine(5.0), None], request=WHOLE)
    assert h.steps[1] == ("line", "a", 120.0, 600.0)


def test_who_is_refused_at_the_end_of_a_line_waits_in_it_again_only_when_told_so():
    h = Hand([FULL, InLine(5.0), GUESSED, InLine(3.0), None])
    assert [s for s in h.steps if s[0] == "line"] == [("line", "a", 600.0, 600.0), ("line", "a", 595.0, 595.0)]
    assert (h.journal.waited_s, h.result) == (8.0, None)
    parked = Refusal("parked", START + 50.0, waits=True)
    h = Hand([FULL, InLine(5.0), parked, None])
    assert h.steps[1:3] == [("line", "a", 600.0, 600.0), ("wait", "a", 45.0)]
    assert h.steps[3] == ("admit", "a", 550.0), "this time it has waited by itself, in no line"
    assert (h.journal.waited_s, h.result) == (50.0, None)


def test_whose_turn_had_come_waits_in_no_line_for_its_retry():
    h = Hand([FULL, InLine(5.0), no(), None])
    assert h.steps[-4:] == [
        ("wait", "a", 0.25),
        *[("admit", "a", pytest.approx(594.75)), ("call", "a"), ("settle", "a", False)],
    ]


def test_of_two_lines_the_one_that_is_said_to_move_first_is_joined_and_one_nobody_knows_about_now():
    sooner = FULL._replace(retry_at=START + 14.0)
    h = Hand([FULL, None], [sooner, InLine(1.0), None])
    assert h.asked == "b"
    h = Hand([FULL, None], [(1.0, "", no(K.NOT_FOUND))], [GUESSED, InLine(1.0), None])
    assert h.asked == "bc"
    h = Hand([Refusal("parked", START, waits=True), None], [GUESSED, None])
    assert h.asked == "a", "its own moment, no earlier one"


def test_one_retry_is_one_however_often_its_target_has_no_room():
    """Overloaded, then twice without room: one retry is taken for all of it, and it is not given to somebody else."""
    h = Hand(
        [no(K.OVERLOADED), FULL, InLine(1.0), FULL, InLine(1.0), None], [no(K.NOT_FOUND)], retry=RetryPolicy(total=1)
    )
    assert (h.asked, h.result) == ("aba", None)
    assert [a.retry for a in h.journal.attempts] == [False, False, True]
    again = [no(K.OVERLOADED), FULL, InLine(1.0), no(), None]
    h = Hand(again, [no(K.NOT_FOUND)], retry=RetryPolicy(total=1))
    assert h.asked == "aba", "the one retry is used up"


@pytest.mark.parametrize(("total", "asked"), [(1, "abb"), (2, "abbb"), (3, "abbbb")])
def test_a_retry_whose_target_turns_it_away_at_the_end_of_its_line_goes_back_once(total, asked):
    gone = Refusal("circuit open", None)
    stubborn = route("b", retry=RetryPolicy(same_target=9))
    h = Hand(
        [no(K.OVERLOADED), FULL, InLine(1.0), gone],
        [no(K.OVERLOADED, retry_after_s=60.0)] * 9,
        routes=[route("a"), stubborn],
        retry=RetryPolicy(total=total),
    )
    assert h.asked == asked


@pytest.mark.parametrize(("total", "asked"), [(0, "bc"), (1, "bcb")])
def test_a_refusal_before_the_first_try_neither_costs_a_retry_nor_brings_one(total, asked):
    gone = Refusal("circuit open", None)
    h = Hand([gone], [no(K.OVERLOADED), None], [no(K.NOT_FOUND)], retry=RetryPolicy(total=total))
    assert h.asked == asked


# ── requests that never left ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_try_that_never_left_counts_for_nothing_but_shows_as_a_retry_in_the_journal():
    patient = route("a", retry=RetryPolicy(transparent=2, same_target=1))
    h = Hand([no(K.CONNECT), no(K.CONNECT), no(), None], routes=[patient], retry=RetryPolicy(total=1))
    assert [a.retry for a in h.journal.attempts] == [False, True, True, True]
    assert h.waits == [("a", 0.25)], "it waits for its one retry alone, as before a first"
    assert [s.will_retry for s in h.settled] == [True, True, True, False]


def test_who_could_not_be_reached_once_more_is_left_without_a_retry():
    h = Hand([no(K.CONNECT), no(K.CONNECT)], [None], retry=RetryPolicy(total=9))
    assert (h.asked, h.waits) == ("aab", [])
    refused = Hand([no(K.CONNECT, status=502), None], [], retry=RetryPolicy(total=9))
    assert (refused.asked, refused.waits) == ("aa", [("a", 0.25)]), "somebody has looked at it: that is a try"
    patient = route("a", retry=RetryPolicy(transparent=2))
    assert Hand([no(K.CONNECT)] * 3, [None], routes=[patient, route("b")]).asked == "aaab"
    none = route("a", retry=RetryPolicy(transparent=0))
    assert Hand([no(K.CONNECT), None], [], routes=[none, route("b")]).waits == [("a", 0.25)]


def test_who_could_not_be_reached_and_then_turns_it_away_had_no_retry_to_give_back():
    h = Hand([no(K.CONNECT), Refusal("circuit open", None)], [no(K.OVERLOADED), None], retry=RetryPolicy(total=0))
    assert (h.asked, h.waits) == ("ab", [])


def test_a_continuation_that_never_left_leaves_one_seam():
    h = Hand([CUT], [no(K.CONNECT), (0.0, " breaker", None)])
    assert (h.asked, h.journal.seams) == ("abb", [7])


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_the_deadline_nobody_more_is_asked_and_the_next_in_turn_is_said_to_have_had_no_time():
    h = Hand([(10.0, "", no(K.NOT_FOUND))], [None], [None], total=10.0)
    assert h.asked == "a"
    assert h.journal.skips == [Skip("b", "no time left")]
    assert isinstance(h.result, DeadlineExceeded)
    just = Hand([(9.75, "", no(K.NOT_FOUND))], [None], total=10.0)
    assert just.steps[3] == ("admit", "b", 0.25)


def test_an_attempt_leaves_those_behind_it_the_time_for_a_first_token_or_an_equal_share():
    h = Hand([no(K.NOT_FOUND)], [no(K.NOT_FOUND)], [None], total=40.0)
    assert [c.first_s for c in h.calls] == [pytest.approx(40 / 3), 20.0, 30.0]


def test_a_wait_that_ends_at_the_deadline_is_not_begun_and_its_end_is_told():
    h = Hand([no(K.THROTTLED, retry_after_s=10.0)], chance=0.0, total=10.0)
    assert h.steps == [("admit", "a", 10.0), ("call", "a"), ("settle", "a", False)]
    assert h.result.retry_after_s == 10.0


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def windows(*sizes):
    return [route(name, window=size) for name, size in zip("abcdef", sizes, strict=False)]


def test_a_window_no_larger_than_the_largest_that_overflowed_is_passed_over():
    over = [no(K.CONTEXT_OVERFLOW)]
    h = Hand(over, [], over, [], [no(K.NOT_FOUND)], [None], routes=windows(8000, 8000, 32000, 16000, None, 32001))
    assert h.asked == "acef"
    why = "its context window of {} tokens is no larger than the one that overflowed"
    assert h.journal.skips == [Skip("b", why.format(8000)), Skip("d", why.format(16000))]
    shrinking = Hand(over, over, over, [], routes=windows(32000, None, 33000, 32500))
    assert shrinking.asked == "abc", "an unknown window that overflowed does not unlearn the known one"


def test_the_smallest_window_is_asked_as_long_as_none_has_overflowed_that_is_known():
    assert Hand([no(K.NOT_FOUND)], [None], routes=windows(1, 1)).asked == "ab"
    assert Hand([no(K.CONTEXT_OVERFLOW)], [None], routes=windows(None, 1)).asked == "ab"


# ── streams that break ───────────────────────────────────────────────────────────────────────────────────────────────

CUT = (1.0, "It is a", no(K.STREAM_CUT))


def test_the_next_target_goes_on_in_the_users_own_words():
    h = Hand([CUT], [(0.0, " breaker", None)], continue_prompt="Go on after {tail}.")
    assert h.result is None
    assert h.calls[1].request.messages[-1] == user("Go on after It is a.")
    assert (h.journal.attempts[1].seam, h.journal.seams) == ("instructed", [7])
    assert h.markers == [Continued("b", 7)]
    assert h.relay.delivered == "It is a breaker"
    assert h.journal.restarts == 0


def test_a_seam_without_a_word_was_never_visible_and_one_with_a_letter_was():
    silent = Hand([CUT], [no(K.NOT_FOUND)], [(0.0, " breaker", None)])
    assert silent.journal.seams == [7]
    spoken = Hand([CUT], [(0.0, "!", no(K.NOT_FOUND))], [(0.0, " Well", None)])
    assert spoken.journal.seams == [7, 8]


def test_each_restart_is_counted_and_marked_and_begins_from_the_original_request():
    h = Hand([CUT], [(1.0, "No, it", no(K.STREAM_CUT))], [(0.0, "Whole", None)], on_stream_break="restart")
    assert h.journal.restarts == 2
    assert h.markers == [Restarted("b"), Restarted("c")]
    assert [c.request for c in h.calls] == [STREAM] * 3
    assert [a.seam for a in h.journal.attempts] == [None] * 3
    assert h.journal.seams == []
    assert h.relay.delivered == "Whole"


def test_raise_asks_nobody_else_once_text_has_reached_the_caller():
    h = Hand([CUT], [None], on_stream_break="raise")
    assert (h.asked, type(h.result)) == ("a", StreamBroken)
    before = Hand([no(K.NOT_FOUND)], [None], on_stream_break="raise")
    assert before.result is None


def test_a_refused_prefill_is_asked_again_in_words_at_once_and_costs_no_retry():
    routes = [route("a"), route("b", continuation="prefill")]
    rejected = no(K.BAD_REQUEST, code="prefill_rejected")
    h = Hand([CUT], [rejected, (0.0, " breaker", None)], routes=routes, retry=RetryPolicy(total=0))
    assert h.steps[3:] == [
        *[("admit", "b", 599.0), ("call", "b"), ("settle", "b", True)],
        *[("admit", "b", 599.0), ("call", "b"), ("settle", "b", False)],
    ]
    assert [a.seam for a in h.journal.attempts] == [None, "prefill", "instructed"]
    assert [c.request.continues for c in h.calls] == [False, True, False]
    assert h.journal.seams == [7]
    assert routes[1].gate.prefill_rejected is True
    assert h.settled[1].outcome == Outcome(rejected, latency_s=0.0)


@pytest.mark.parametrize("code", [None, "something_else"])
def test_another_objection_to_a_prefill_is_not_taken_for_its_refusal(code):
    routes = [route("a"), route("b", continuation="prefill"), route("c")]
    h = Hand([CUT], [no(K.BAD_REQUEST, code=code)], [(0.0, " breaker", None)], routes=routes)
    assert (h.asked, routes[1].gate.prefill_rejected) == ("abc", False)


def test_a_target_that_was_not_asked_to_prefill_cannot_have_refused_it():
    rejected = no(K.BAD_REQUEST, code="prefill_rejected")
    h = Hand([CUT], [rejected], [(0.0, " breaker", None)])
    assert (h.asked, h.routes[1].gate.prefill_rejected) == ("abc", False)
    first = Hand([rejected], [None])
    assert (first.asked, type(first.result)) == ("a", AllTargetsFailed)


def test_a_request_at_fault_ends_the_call_and_is_its_cause():
    error = no(K.BAD_REQUEST)
    h = Hand([no(K.NOT_FOUND)], [error], [None])
    assert h.asked == "ab"
    assert h.result.__cause__ is error
    assert "b rejected the request itself" in str(h.result)


def test_of_two_waits_that_end_together_the_one_just_asked_for_is_sat_out_at_once():
    """Chance is a half: 20 s asked for are 21 s waited, 21 s later the parked target is ready too."""
    parked = Refusal("parked", START + 21.0, waits=True)
    hand = Hand([parked, None], [no(K.THROTTLED, retry_after_s=20.0), None])
    assert [c.route.name for c in hand.calls] == ["b", "b"]
    sooner = Refusal("parked", START + 20.9, waits=True)
    hand = Hand([sooner, None], [no(K.THROTTLED, retry_after_s=20.0), None])
    assert [c.route.name for c in hand.calls] == ["b", "a"]
    assert [s.will_retry for s in hand.settled] == [False, False]


def test_a_refused_prefill_gives_no_try_away_and_wins_none():
    routes = [route("a"), route("b", continuation="prefill")]
    rejects = no(K.BAD_REQUEST, code="prefill_rejected")
    hand = Hand(
        [(0.0, "begun", no(K.NOT_FOUND))],
        [rejects, no(), no(), None],
        routes=routes,
        retry=RetryPolicy(total=9),
    )
    assert [c.route.name for c in hand.calls] == ["a", "b", "b", "b"], "one retry, as of any target"
    assert isinstance(hand.result, StreamBroken)
    assert [a.retry for a in hand.journal.attempts] == [False, False, False, True]


def test_an_answer_put_back_to_its_target_is_settled_as_a_failure_that_is_tried_again_without_a_wait():
    rejected = no(K.INVALID_OUTPUT)
    rejected.answer = Answer("Uno.")
    h = Hand([rejected, None], [None], request=WHOLE)
    assert [s[:2] for s in h.steps if s[0] in ("admit", "call", "wait")] == [
        ("admit", "a"), ("call", "a"), ("admit", "a"), ("call", "a"),
    ]  # fmt: skip
    assert [(s.outcome.error, s.will_retry) for s in h.settled] == [(rejected, True), (None, False)]
    assert h.calls[1].request.messages[1:] == reask(WHOLE, rejected).messages[1:]
    assert [a.reask for a in h.journal.attempts] == [False, True]
    assert h.result is None


def test_the_policy_for_broken_streams_is_told_in_the_error():
    h = Hand([(1.0, "Hello", no(K.STREAM_CUT))], [None], on_stream_break="raise")
    assert isinstance(h.result, StreamBroken)
    assert "nobody was asked to continue it" in str(h.result)


# ── reading ahead ────────────────────────────────────────────────────────────────────────────────────────────────────


def standing_by():
    """A hosted target, one that loads and no more, and two local ones that read ahead."""
    kinds = [None, "warm", "prefill", "prefill"]
    return [route(n, local=n != "a", standby=kind) for n, kind in zip("abcd", kinds, strict=True)]


def test_the_first_target_behind_a_hosted_one_that_reads_ahead_is_named_with_the_call():
    routes = standing_by()
    h = Hand([no(K.OVERLOADED)], [no(K.OVERLOADED)], [None], [], routes=routes, prefill=True)
    assert h.asked == "abc"
    assert [call.standby for call in h.calls] == [routes[2], None, None], (
        "while a local one answers, nobody reads ahead"
    )


def test_nobody_reads_ahead_where_nobody_was_told_to_or_nobody_is_behind():
    assert [call.standby for call in Hand([None], [], [], [], routes=standing_by()).calls] == [None]
    alone = Hand([None], [], routes=[route("a"), route("b", local=True, standby="warm")], prefill=True)
    assert [call.standby for call in alone.calls] == [None]


def test_a_parked_retry_that_is_refused_leaves_the_retry_to_the_next_one_that_is_parked():
    h = Hand(
        [no(K.OVERLOADED), Refusal("circuit open", None)],
        [no(K.OVERLOADED, retry_after_s=3.0), None],
        retry=RetryPolicy(total=1),
    )
    assert (h.result, h.asked) == (None, "abb")
