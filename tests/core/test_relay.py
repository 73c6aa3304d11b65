"""What reaches the caller and what is held back, event by event, through attempts that break, restart and go on."""

from __future__ import annotations

import pytest

from shared_core import ChatRequest, Continued, ErrorKind, Finished, Restarted, TextDelta, ToolCall, Usage, user
from shared_core.chat.events import ReasoningDelta, Started, ToolCallDelta
from shared_core.routing.execution import Attempt, Execution
from shared_core.routing.relay import Relay

DONE = Finished(usage=Usage(1, 2))


def attempt(target: str = "a") -> Attempt:
    journal = Execution("id-1", ChatRequest((user("Hello"),), streaming=True), 0.0, 10.0)
    return journal.begin(target, "vendor", "model", 0.0, retry=False, seam=None)


def feed(relay: Relay, *events):
    """What comes out, text as strings."""
    out = [e for event in events for e in relay.feed(event)]
    return [e.text if isinstance(e, TextDelta) else e for e in out]


def text(*chunks: str) -> list[TextDelta]:
    return [TextDelta(chunk) for chunk in chunks]


def streaming(**options) -> tuple[Relay, Attempt]:
    relay, first = Relay(streaming=True, **options), attempt()
    relay.begin(first)
    return relay, first


def test_a_new_relay_has_delivered_nothing_and_is_committed_to_nothing():
    relay = Relay(streaming=True)
    assert (relay.attempt, relay.finished, relay.delivered) == (None, None, "")
    assert (relay.committed, relay.open) == (False, False)


def test_nothing_passes_before_the_first_text_and_what_was_held_goes_before_it_in_its_order():
    relay, mine = streaming()
    begun, thought = Started("r-1", "m"), ReasoningDelta("hmm")
    assert feed(relay, begun, thought) == []
    assert feed(relay, TextDelta("")) == [], "nothing is no text"
    assert (relay.committed, relay.open, mine.delivered) == (False, False, 0)
    assert feed(relay, TextDelta("Hi")) == [begun, thought, "Hi"]
    assert (relay.committed, relay.open, mine.delivered) == (True, True, 2)
    again = ReasoningDelta("oh")
    assert feed(relay, again, *text("", " there")) == [again, " there"], "from then on everything passes at once"
    assert (relay.delivered, mine.delivered) == ("Hi there", 8)
    assert feed(relay, Started("r-2")) == [], "an answer begins once"
    assert feed(relay, DONE) == []
    assert relay.finished is DONE


def test_what_an_attempt_held_back_is_forgotten_with_it():
    relay, _ = streaming()
    feed(relay, Started("r-1"), ReasoningDelta("a's"), ToolCallDelta(0, "1", "find"))
    second = attempt("b")
    relay.begin(second)
    assert (relay.attempt, relay.finished, relay.open) == (second, None, False)
    begun = Started("r-2")
    assert feed(relay, begun, *text("Hi")) == [begun, "Hi"]
    assert feed(relay, DONE) == [], "no call that another attempt has begun"
    assert second.delivered == 2


def test_an_answer_that_began_is_not_said_to_begin_again_by_the_next_attempt():
    relay, _ = streaming()
    feed(relay, Started("r-1"), *text("Hi"))
    relay.begin(attempt("b"), restart=True)
    assert feed(relay, Started("r-2"), *text("Hello")) == [Restarted("b"), "Hello"]


def test_one_that_says_twice_that_it_begins_is_heard_once():
    relay, _ = streaming()
    begun, thought = Started("r-1"), ReasoningDelta("hmm")
    assert feed(relay, begun, Started("r-2"), thought, *text("Hi")) == [begun, thought, "Hi"]


def test_a_whole_answer_is_held_until_it_is_whole():
    relay, mine = Relay(streaming=False), attempt()
    relay.begin(mine)
    begun = Started("r-1")
    assert feed(relay, begun, *text("one", " two")) == []
    assert (relay.committed, relay.open, relay.delivered, mine.delivered) == (False, False, "", 0)
    assert feed(relay, DONE) == [begun, "one", " two"]
    assert (relay.committed, relay.open, relay.delivered, mine.delivered) == (True, True, "one two", 7)


def test_an_answer_without_a_word_commits_to_nothing():
    relay, _ = streaming()
    begun = Started("r-1")
    assert feed(relay, begun, ReasoningDelta("hmm"), DONE) == [begun, ReasoningDelta("hmm")]
    assert (relay.committed, relay.open, relay.delivered) == (False, True, "")


def test_calls_of_tools_are_joined_kept_until_the_end_and_commit():
    relay, _ = streaming(request="q7")
    pieces = [ToolCallDelta(0, None, "find", '{"a"'), ToolCallDelta(0, None, None, ": 1}"), ToolCall("w", "whole")]
    assert feed(relay, *pieces) == []
    assert relay.committed is False
    assert feed(relay, DONE) == [ToolCall("call_q7_0", "find", '{"a": 1}'), ToolCall("w", "whole")]
    assert relay.committed is True
    plain, _ = streaming()
    assert feed(plain, ToolCallDelta(0, None, "find"), DONE) == [ToolCall("call_0", "find")]


def test_text_before_calls_goes_before_them():
    relay = Relay(streaming=False)
    relay.begin(attempt())
    call = ToolCall("1", "find")
    assert feed(relay, call, *text("Look:"), DONE) == ["Look:", call]


def test_where_one_call_was_asked_for_the_first_is_let_through_and_no_other():
    relay, _ = streaming(one_call=True)
    assert feed(relay, ToolCall("1", "find"), ToolCall("2", "tell"), DONE) == [ToolCall("1", "find")]
    every, _ = streaming()
    assert feed(every, ToolCall("1", "find"), ToolCall("2", "tell"), DONE)[-1] == ToolCall("2", "tell")


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_with_a_check_a_stream_shows_nothing_before_the_whole_answer():
    relay, _ = streaming(check=lambda _: None)
    assert feed(relay, *text("one", " two")) == []
    assert relay.objection(DONE) is None
    assert feed(relay, DONE) == ["one", " two"]


def test_an_objection_carries_the_whole_answer_its_calls_and_what_is_wrong():
    relay, _ = streaming(check=lambda answer: f"{answer.text} is not right", one_call=True)
    feed(relay, *text("one", " two"), ToolCall("1", "find"), ToolCall("2", "tell"))
    error = relay.objection(DONE)
    assert error is not None
    assert (error.kind, error.message) == (ErrorKind.INVALID_OUTPUT, "one two is not right")
    assert (error.answer.text, error.answer.usage) == ("one two", Usage(1, 2))
    assert error.answer.tool_calls == (ToolCall("1", "find"),)


@pytest.mark.parametrize(("reason", "objects"), [("stop", True), ("refusal", False), ("content_filter", False)])
def test_a_refusal_is_an_answer_and_passes_every_check(reason, objects):
    relay, _ = streaming(check=lambda _: "wrong")
    feed(relay, *text("No."))
    assert (relay.objection(Finished(reason)) is not None) is objects
    assert streaming()[0].objection(Finished(reason)) is None


# ── a second target ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_goes_on_is_named_with_the_place_and_what_it_says_again_is_left_out():
    relay, _ = streaming()
    feed(relay, *text("It is a circuit"))
    second = attempt("b")
    relay.begin(second, seam="instructed")
    thought = ReasoningDelta("hmm")
    assert feed(relay, thought, *text("It is", " a circuit")) == [], "so far a repeat"
    assert feed(relay, *text(" breaker")) == [Continued("b", 15), thought, " breaker"]
    assert feed(relay, *text("!"), DONE) == ["!"], "the place is told once"
    assert (relay.delivered, second.delivered) == ("It is a circuit breaker!", 9)


def test_what_a_seam_still_holds_at_the_end_is_let_out():
    relay, _ = streaming()
    feed(relay, *text("It is a cir"))
    relay.begin(attempt("b"), seam="prefill")
    assert feed(relay, *text("It")) == [], "perhaps the beginning of a repeat"
    assert feed(relay, DONE) == [Continued("b", 11), "It"]
    assert relay.delivered == "It is a cirIt"


def test_one_who_has_nothing_to_add_is_named_all_the_same():
    relay, _ = streaming()
    feed(relay, *text("It is a breaker."))
    relay.begin(attempt("b"), seam="instructed")
    assert feed(relay, *text("It is a breaker."), DONE) == [Continued("b", 16)]


def test_a_restart_is_marked_and_replaces_what_was_delivered():
    relay, first = streaming()
    feed(relay, *text("It is"))
    second = attempt("b")
    relay.begin(second, restart=True)
    assert relay.delivered == "It is", "as long as nothing else has come"
    assert feed(relay, *text("A", " breaker")) == [Restarted("b"), "A", " breaker"]
    assert (relay.delivered, first.delivered, second.delivered) == ("A breaker", 5, 9)
    relay.begin(None, restart=True)
    assert feed(relay, *text("?")) == ["?"], "nobody's attempt is nobody's restart"
    relay.begin(None, seam="instructed")
    assert feed(relay, *text("It")) == ["It"]


@pytest.mark.parametrize(
    ("chunks", "between"),
    [
        (["It", " is", " a"], " "),
        (["It", " is"], ""),
        (["It", " i", "s", " a"], ""),
        (["It", " ", "is", " a"], " "),
        (["It i", "s a", ", so", " a"], ""),
    ],
)
def test_words_are_kept_apart_at_a_seam_when_the_text_so_far_came_in_whole_words(chunks, between):
    relay, _ = streaming()
    feed(relay, *text(*chunks))
    relay.begin(attempt("b"), seam="instructed")
    feed(relay, *text("breaker"), DONE)
    assert relay.delivered == "".join(chunks) + between + "breaker"


@pytest.mark.parametrize(("chunks", "between"), [(["It", " is", " a"], " "), (["It", " is"], "")])
def test_after_a_restart_words_are_judged_by_the_new_text_alone(chunks, between):
    relay, _ = streaming()
    feed(relay, *text("Th", "ere", " was"))
    relay.begin(attempt("b"), restart=True)
    feed(relay, *text(*chunks))
    relay.begin(attempt("c"), seam="instructed")
    feed(relay, *text("breaker"), DONE)
    assert relay.delivered == "".join(chunks) + between + "breaker"


@pytest.mark.parametrize(
    ("mode", "comes", "reads"),
    [
        ("exact", ["So ha ha", " ha"], "So ha haSo ha ha ha"),  # the raw prompt went on: all of it is new
        ("prefill", ["ha ha", " ha"], "So ha haha ha ha"),  # its own turn went on: only a whole repeat is none
        ("instructed", ["ha ha", " ha"], "So ha ha ha"),  # it was told to begin with the last words
    ],
)
def test_what_a_continuation_repeats_is_removed_by_the_way_it_was_asked_for(mode, comes, reads):
    relay, _ = streaming()
    feed(relay, *text("So", " ha", " ha"))
    relay.begin(attempt("b"), seam=mode)
    feed(relay, *text(*comes), DONE)
    assert relay.delivered == reads
