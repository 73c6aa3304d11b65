"""Where a second target takes over: how it is asked, and how its text is joined to what was already read."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared_core.chat.request import ChatRequest, Native, assistant, system, user
from shared_core.routing.seam import CONTINUE_PROMPT, Seam, resume

ANSWER = (
    "A circuit breaker stops calling a failing service. After five failures it opens, and calls fail at once; "
    "later one probe asks whether the service is well — naïve callers never notice. Then it closes."
)


def join(delivered: str, pieces: list[str], mode: str = "instructed", *, aligned: bool = False) -> str:
    seam = Seam(delivered, mode, word_aligned=aligned)  # type: ignore[arg-type]
    fresh = "".join(seam.feed(piece) for piece in pieces)
    return delivered + fresh + seam.close()


def words(text: str) -> list[str]:
    head, *rest = text.split(" ")
    return [head, *(f" {word}" for word in rest)]


CUTS = range(1, len(ANSWER))


@pytest.mark.parametrize("mode", ["prefill", "instructed"])
@pytest.mark.parametrize("chop", [list, words, lambda t: [t]], ids=["characters", "words", "at once"])
def test_a_whole_repeat_is_suppressed_at_every_cut(mode, chop):
    for cut in CUTS:
        assert join(ANSWER[:cut], chop(ANSWER), mode) == ANSWER


@pytest.mark.parametrize("chop", [list, words], ids=["characters", "words"])
def test_an_exact_continuation_is_left_as_it_is_at_every_cut(chop):
    for cut in CUTS:
        for mode in ("exact", "prefill", "instructed"):
            assert join(ANSWER[:cut], chop(ANSWER[cut:]), mode) == ANSWER, (mode, ANSWER[:cut])


@pytest.mark.parametrize("back", [1, 2, 3, 6, 10])
@pytest.mark.parametrize("chop", [list, words, lambda t: [t]], ids=["characters", "words", "at once"])
def test_an_overlap_of_whole_words_is_removed_wherever_the_cut(back, chop):
    """The target begins with the last words it was quoted, a broken-off one written out, then goes on."""
    starts = [0] + [i + 1 for i, c in enumerate(ANSWER) if c == " "]
    for cut in range(40, len(ANSWER)):
        begun = [s for s in starts if s < cut]
        start = begun[-min(back, len(begun))]
        repeated = ANSWER[start:cut]
        if sum(c.isalnum() for c in repeated) < 3:
            continue  # two letters of a broken word are too few to tell a repeat from chance
        assert join(ANSWER[:cut], chop(ANSWER[start:])) == ANSWER, (ANSWER[:cut], ANSWER[start:])


def test_nothing_is_removed_from_an_exact_continuation_even_if_it_repeats_a_word():
    assert join("It was very,", [" very", " good"], "exact") == "It was very, very good"


def test_a_prefilled_target_may_repeat_its_last_word_on_purpose():
    assert join("no, no", [", no, no way"], "prefill") == "no, no, no, no way"


def test_two_letters_that_merely_agree_are_not_an_overlap():
    assert join("The service is wel", ["l again"]) == "The service is well again"
    assert join("They stop at a", ["s many as five"]) == "They stop at as many as five"


@pytest.mark.parametrize(
    ("delivered", "continuation", "joined"),
    [
        ("It is", "is a machine", "It is a machine"),  # a whole word of two letters
        ("It is,", "is,a machine", "It is,a machine"),  # the comma ends the word
        ("Grade: a", "a cat", "Grade: aa cat"),  # one letter is chance
        ("They stop as", "assume that", "They stop asassume that"),  # two letters of a longer word are chance
        ("The circ", "circuit opens", "The circuit opens"),  # three are not
        ("so — a", "— a cat", "so — a cat"),  # two words, though only one letter
        ("of the", "f the cat", "of thef the cat"),  # a repeat begins where a word does
        ("Yes!", "! No", "Yes!! No"),  # no letter at all
        ("- - -", "- - No", "- - -- - No"),
        ("is it, a b", "a bat", "is it, a ba bat"),  # two words, the second broken off, too few letters
        ("is it, at be", "at best", "is it, at best"),
    ],
)
def test_what_counts_as_a_repeat_of_the_last_words(delivered, continuation, joined):
    for chop in (list, words, lambda t: [t]):
        assert join(delivered, chop(continuation)) == joined


def test_a_repeat_that_stops_short_of_the_reader_adds_nothing():
    assert join(ANSWER[:120], words(ANSWER[:60])) == ANSWER[:120]


@pytest.mark.parametrize(
    ("continuation", "added"),
    [
        ("one two three four", ""),  # it began the whole answer again
        ("one two three", " one two three"),  # three words may be meant
        ("one", " one"),
        ("two three four five", " two three four five"),  # neither the beginning nor the end of what was delivered
    ],
)
def test_only_a_beginning_of_four_words_is_taken_for_the_whole_answer_again(continuation, added):
    delivered = "one two three four five six"
    assert join(delivered, words(continuation), aligned=True) == delivered + added


def test_a_repeat_of_only_the_last_words_adds_nothing():
    assert join("Then it opens at once", ["opens at once"]) == "Then it opens at once"


def test_an_empty_continuation_adds_nothing():
    assert join("Begun", []) == "Begun"
    assert join("Begun", ["", ""]) == "Begun"


def test_words_are_kept_apart_when_the_text_is_known_to_stop_between_words():
    assert join("The circuit", ["breaker opens"], aligned=True) == "The circuit breaker opens"
    assert join("The circ", ["uit opens"], aligned=False) == "The circuit opens"
    assert join("The circuit", [", open"], aligned=True) == "The circuit, open"
    assert join("The circuit", [" breaker"], aligned=True) == "The circuit breaker"
    assert join("The circuit ", ["breaker"], aligned=True) == "The circuit breaker"


def test_one_letter_on_either_side_is_a_word_and_nothing_is_kept_apart_unless_asked_to():
    assert join("It is", ["a cat"], aligned=True) == "It is a cat"
    assert join("It is a", ["cat"], aligned=True) == "It is a cat"
    assert Seam("The circ", "instructed").feed("uit opens") == "uit opens"


def test_white_space_on_both_sides_of_the_seam_is_one_white_space_but_a_new_line_stays():
    assert join("A line ", [" and more"], "prefill") == "A line and more"
    assert join("A line\n", ["\nA paragraph"], "prefill") == "A line\n\nA paragraph"


def test_only_spaces_and_tabs_count_at_the_seam():
    assert join("A line ", ["\nA paragraph"], "prefill") == "A line \nA paragraph"
    assert join("A\t", [" \tline"], "prefill") == "A\tline"
    assert join("Big ", ["X is"], "prefill") == "Big X is"
    assert join("Big X", [" is"], "prefill") == "Big X is"


def test_leading_white_space_before_a_repeat_is_removed_with_it():
    assert join("The breaker opens", ["\n\nThe breaker opens", " at once"]) == "The breaker opens at once"


def test_white_space_before_an_overlap_is_held_back_with_it():
    assert join("The breaker opens", ["\n\n", "breaker", " opens", " now"]) == "The breaker opens now"


def test_only_an_instructed_target_is_expected_to_repeat_words_from_the_middle():
    for mode, at_once in (("prefill", "brown"), ("instructed", "")):
        assert Seam("The quick brown fox", mode).feed("brown") == at_once  # type: ignore[arg-type]


def test_text_flows_at_once_when_it_cannot_be_a_repeat():
    seam = Seam("The quick brown fox", "instructed")
    assert seam.feed(" jumps") == " jumps"
    assert seam.feed(" over") == " over"


def test_an_exact_seam_never_holds_anything_back():
    seam = Seam("The quick brown fox", "exact")
    assert seam.feed("The quick") == "The quick"
    assert seam.close() == ""


@given(st.text(min_size=1, max_size=60), st.lists(st.text(max_size=12), max_size=12))
def test_what_was_delivered_is_never_changed_and_nothing_is_invented(delivered, pieces):
    """Whatever comes, the result begins with the delivered text and adds only an end of what came (and one space)."""
    for mode in ("prefill", "instructed"):
        joined = join(delivered, pieces, mode, aligned=True)
        assert joined.startswith(delivered)
        fresh = joined[len(delivered) :]
        came = "".join(pieces)
        assert came.endswith((fresh, fresh.removeprefix(" "))) or fresh == ""


@given(st.text(min_size=1, max_size=40), st.text(max_size=40), st.integers(1, 5))
def test_how_the_continuation_is_chunked_does_not_matter(delivered, continuation, size):
    pieces = [continuation[i : i + size] for i in range(0, len(continuation), size)]
    for mode in ("prefill", "instructed"):
        assert join(delivered, pieces, mode) == join(delivered, list(continuation), mode)


@given(st.text(min_size=1, max_size=80), st.integers(0, 79), st.integers(1, 7))
def test_any_text_cut_anywhere_and_answered_again_in_full_comes_out_once(text, cut, size):
    cut = min(cut, len(text) - 1)
    assume(cut > 0)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for mode in ("prefill", "instructed"):
        assert join(text[:cut], pieces, mode).rstrip() == text.rstrip()


REQUEST = ChatRequest((system("Be brief."), user("What is it?")), streaming=True, native=Native("x", ["s", "u"]))


def test_prefill_and_exact_put_the_delivered_text_into_the_assistants_mouth():
    for mode in ("prefill", "exact"):
        asked = resume(REQUEST, "It is a", mode)
        assert asked.messages == (*REQUEST.messages, assistant("It is a"))
        assert asked.continues
        assert asked.native == Native("x", ["s", "u"], added=(assistant("It is a"),)), "what rides along goes on too"
    assert REQUEST.messages == (system("Be brief."), user("What is it?"))
    assert not REQUEST.continues


def test_an_instruction_quotes_the_last_words():
    asked = resume(REQUEST, "It is a small machine that watches over calls", "instructed")
    assert asked.messages[:-1] == (*REQUEST.messages, assistant("It is a small machine that watches over calls"))
    assert asked.messages[-1] == user(CONTINUE_PROMPT.replace("{tail}", "small machine that watches over calls"))
    assert not asked.continues
    assert asked.native == Native("x", ["s", "u"], added=asked.messages[-2:])


def test_a_short_beginning_is_quoted_whole_and_the_prompt_can_be_ones_own():
    asked = resume(REQUEST, " It is", "instructed", "Weiter ab: {tail}")
    assert asked.messages[-1] == user("Weiter ab:  It is")


def test_a_request_that_already_continued_an_answer_keeps_one_assistant_turn():
    request = REQUEST.replace(messages=(user("Count."), assistant("one, ")), continues=True)
    for mode in ("exact", "prefill"):
        asked = resume(request, "two, ", mode)
        assert asked.native.messages == ["s"], "the caller's own beginning is in the added message now"
        assert asked.messages == (user("Count."), assistant("one, two, "))


@pytest.mark.parametrize(
    ("delivered", "tail"),
    [
        ("one two three four five six", "one two three four five six"),
        ("one two three four five six seven", "two three four five six seven"),
        ("  one two three four five six seven  ", "two three four five six seven"),
        ("one\n\ntwo three four five six seven", "two three four five six seven"),
        ("a  b", "a  b"),
        (" b", " b"),
        ("one two  three four five six  seven eight", "three four five six  seven eight"),
    ],
)
def test_the_last_six_words_are_quoted_as_they_stand(delivered, tail):
    asked = resume(REQUEST, delivered, "instructed", "<{tail}>")
    assert asked.messages[-1] == user(f"<{tail}>")


def test_an_instruction_is_never_itself_a_continuation():
    request = REQUEST.replace(messages=(user("Count."), assistant("one, ")), continues=True)
    asked = resume(request, "two, ", "instructed")
    assert not asked.continues
    assert [m.role for m in asked.messages] == ["user", "assistant", "user"]
    assert asked.messages[1] == assistant("one, two, ")


def test_only_a_trailing_assistant_turn_the_caller_asked_to_continue_is_joined():
    said = (user("Count."), assistant("one"), user("On."))
    assert resume(REQUEST.replace(messages=said, continues=True), "two", "exact").messages == (*said, assistant("two"))
    said = (user("Count."), assistant("one"))
    assert resume(REQUEST.replace(messages=said), "two", "exact").messages == (*said, assistant("two"))
    longer = (user("Count."), assistant("nil"), user("On."), assistant("one, "))
    asked = resume(REQUEST.replace(messages=longer, continues=True), "two", "exact")
    assert asked.messages == (*longer[:-1], assistant("one, two"))
    native_only = ChatRequest((), native=Native("x", ["m"]), continues=True)
    asked = resume(native_only, "two", "exact")
    assert asked.messages == (assistant("two"),)
    assert asked.native == Native("x", ["m"], added=(assistant("two"),))
