"""Chat, streams, limits, stop sequences, sampling, tools and schemas, through a real worker over random weights."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from shared_core.chat.events import ChatEvent, Finished, Started, TextDelta, collect
from shared_core.chat.request import Image, Message, OutputSchema, ToolSpec, assistant, system, tool, user
from shared_core.errors import ErrorKind, InvalidRequest, ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target
from tests.local.conftest import ENGINES
from tests.local.support import aanswer, answer, ask, guard


@pytest.fixture(scope="module", params=ENGINES)
def noise(request, random_gguf):
    """The random model with a warm worker, on either engine."""
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", n_ctx=512, queue=64, engine=request.param))
    provider.warm()
    yield provider
    provider.close()


CITY = {"type": "object", "properties": {"city": {"enum": ["Lima", "Oslo"]}}, "required": ["city"]}
WEATHER = ToolSpec("get_weather", "The weather", CITY)


def test_it_is_a_provider(noise: LlamaCppProvider):
    assert isinstance(noise, Provider)
    assert noise.capabilities.continuation == "exact"
    assert noise.capabilities.context_window == 512
    assert not noise.capabilities.images


def test_an_answer_arrives_as_started_text_and_one_finished(noise):
    events = list(noise.stream(ask("hello", max_tokens=8), guard()))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert all(isinstance(e, TextDelta) and e.text for e in events[1:-1])
    assert events[-1].reason == "length"
    usage = events[-1].usage
    assert usage is not None
    assert usage.output_tokens == 8
    assert usage.input_tokens > 5


@pytest.mark.parametrize("streaming", [True, False])
async def test_sync_and_async_whole_and_streamed_say_the_same(noise, streaming):
    one = await asyncio.to_thread(answer, noise, "hello", max_tokens=12, streaming=streaming)
    two = await aanswer(noise, "hello", max_tokens=12, streaming=streaming)
    assert one.text == two.text
    assert one.text


def test_the_same_question_twice_is_answered_the_same_and_reuses_the_prompt(noise):
    one, two = (answer(noise, "tell me more", max_tokens=10) for _ in range(2))
    assert one.text == two.text
    assert two.usage.cached_tokens == two.usage.input_tokens - 1 or two.usage.cached_tokens == two.usage.input_tokens


def test_another_question_in_between_changes_nothing(noise):
    one = answer(noise, "first", max_tokens=10)
    answer(noise, system("be brief"), "second", max_tokens=10)
    assert answer(noise, "first", max_tokens=10).text == one.text


def test_a_stop_sequence_ends_the_answer_and_is_not_part_of_it(noise):
    whole = answer(noise, "hello", max_tokens=20).text
    stop = whole[3:6]
    cut = answer(noise, "hello", max_tokens=20, stop=(stop,))
    assert cut.text == whole[: whole.find(stop)]
    assert (cut.finish_reason, cut.raw_finish_reason) == ("stop", "stop_sequence")


def test_a_seed_repeats_an_answer_and_another_seed_does_not(noise):
    one, same, other = (answer(noise, "x", max_tokens=16, temperature=1.5, seed=s).text for s in (7, 7, 8))
    assert one == same
    assert one != other


def test_without_a_seed_answers_differ_and_the_seed_is_reported(noise):
    one, two = (answer(noise, "x", max_tokens=16, temperature=1.5) for _ in range(2))
    assert one.text != two.text
    assert answer(noise, "x", max_tokens=16, temperature=1.5, seed=one.extra["seed"]).text == one.text


@pytest.mark.parametrize(
    ("extra", "good"),
    [({"top_k": 1}, True), ({"repeat_penalty": 1.3, "min_p": 0.1}, True), ({"topk": 1}, False), ({"min_p": 7}, False)],
)
def test_sampling_options_are_checked(noise, extra, good):
    if good:
        assert answer(noise, "x", max_tokens=3, temperature=0.9, extra={"llamacpp": extra}).usage.output_tokens >= 1
    else:
        with pytest.raises(InvalidRequest):
            answer(noise, "x", extra={"llamacpp": extra})


def test_a_prompt_past_the_window_is_refused_with_both_numbers_before_anything_is_generated(own):
    noise = own(n_ctx=512, fit_max_tokens=False)
    with pytest.raises(ProviderError, match=r"takes 4\d\d tokens and max_tokens asks for 200.*window is 512") as caught:
        next(iter(noise.stream(ask("abc " * 110, max_tokens=200), guard())))
    assert caught.value.kind is ErrorKind.CONTEXT_OVERFLOW


def test_a_prompt_alone_past_the_window_is_refused(noise):
    with pytest.raises(ProviderError) as caught:
        answer(noise, "abc " * 400)
    assert caught.value.kind is ErrorKind.CONTEXT_OVERFLOW


def test_without_a_limit_an_answer_may_fill_the_window_and_no_more(noise):
    got = answer(noise, "abc " * 110)
    assert got.usage.total_tokens <= 513
    assert got.finish_reason in ("length", "stop")


def test_max_tokens_is_fitted_to_the_room_left(own):
    got = answer(own(n_ctx=256), "hi", max_tokens=4000)
    assert got.usage.total_tokens <= 257


def test_counting_tokens_agrees_with_the_answer(noise):
    request = ask(system("be brief"), "count me", max_tokens=1)
    assert noise.count_tokens(request) == answer(noise, *request.messages, max_tokens=1).usage.input_tokens


def test_a_marker_in_a_message_stays_text(noise):
    plain, spelled = (noise.count_tokens(ask(t)) for t in ("x", "x<|im_end|>"))
    assert spelled - plain == len("<|im_end|>")  # a byte-level vocabulary: one token a character, not one control token


def test_media_is_refused_as_incapable(noise):
    with pytest.raises(ProviderError) as caught:
        answer(noise, Message("user", (Image(data=b"x"),)))
    assert caught.value.kind is ErrorKind.INCAPABLE


def test_any_history_can_be_told(noise):
    turns = (
        system("s"),
        user("u"),
        Message("assistant", (*assistant("thinking").parts,)),
        tool("c1", "42", name="get_weather"),
        user("go on"),
    )
    assert answer(noise, *turns, max_tokens=2, tools=(WEATHER,)).usage.output_tokens == 2


# ── schemas and tools, by grammar ────────────────────────────────────────────────────────────────────────────────────

LINK = {
    "type": "object",
    "properties": {"v": {"enum": [1]}, "next": {"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
TAGGED = {
    "type": "object",
    "properties": {"kind": {"const": 'a"b'}, "tags": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}},
    "required": ["kind", "tags"],
}
CHECKED = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 1, "maximum": 3}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
SCHEMAS = {
    "a closed object": CHECKED,
    "an enum": {"enum": ["red", "green"]},
    "an array of two or three": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "a constant with a quote": TAGGED,
    "a schema that refers to itself": {"$defs": {"link": LINK}, "$ref": "#/$defs/link"},
    "one of two": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    "a date": {"type": "string", "format": "date"},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_even_random_weights_answer_in_the_schema(noise, schema, seed):
    from shared_core.chat.schema_check import violations

    got = answer(noise, "x", output=OutputSchema(schema), temperature=1.0, seed=seed, max_tokens=300)
    if got.finish_reason == "stop":
        assert violations(got.text, schema) == ""
    else:  # deep recursion may run into the limit, and then says so
        assert got.finish_reason == "length"


def test_a_schema_that_cannot_be_held_to_makes_the_model_incapable(noise):
    with pytest.raises(ProviderError, match="not") as caught:
        answer(noise, "x", output=OutputSchema({"not": {"type": "string"}}))
    assert caught.value.kind is ErrorKind.INCAPABLE


def test_a_partial_answer_that_does_not_fit_the_schema_does_not_end_the_process(noise):
    """llama.cpp aborts when a grammar is fed a token that it does not allow."""
    pid = noise.pid
    got = answer(noise, "x", assistant("Sure, here is"), continues=True, output=OutputSchema(CHECKED), max_tokens=4)
    assert got.finish_reason == "length"
    assert noise.pid == pid


def test_what_only_a_check_can_see_is_held_back_until_it_was_checked(noise):
    schema = {"type": "string", "maxLength": 2, "pattern": "^never this$"}
    events: list[ChatEvent] = []
    with pytest.raises(ProviderError, match="does not fit the schema") as caught:
        events.extend(noise.stream(ask("x", output=OutputSchema(schema), max_tokens=50), guard()))
    assert caught.value.kind is ErrorKind.MALFORMED
    assert not any(isinstance(e, TextDelta) for e in events)


@pytest.mark.parametrize("choice", ["any", "get_weather"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_forced_tool_call_is_a_call_of_a_tool_with_valid_arguments(noise, choice, seed):
    fields = {"tools": (WEATHER,), "tool_choice": choice, "parallel_tool_calls": False}
    got = answer(noise, "x", **fields, temperature=1.0, seed=seed, max_tokens=200)
    assert got.finish_reason == "tool_calls"
    assert [c.name for c in got.tool_calls] == ["get_weather"]
    assert json.loads(got.tool_calls[0].arguments)["city"] in ("Lima", "Oslo")
    assert got.text == ""


# ── going on with a partial answer ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("partial", ["Hello wor", "The ", "a", "één twee dr", "line one\nline tw", "no-space-" * 20])
def test_a_continuation_begins_right_behind_the_partial_text(noise, partial):
    got = answer(noise, "x", assistant(partial), continues=True, max_tokens=6)
    assert got.usage.output_tokens == 6
    whole = answer(noise, "x", max_tokens=1)
    assert whole.usage.input_tokens <= got.usage.input_tokens


def test_an_answer_of_the_random_model_goes_on_from_its_own_words(noise):
    whole = answer(noise, "hello", max_tokens=24).text
    for cut in range(1, len(whole) - 1, 3):
        rest = answer(noise, "hello", assistant(whole[:cut]), continues=True, max_tokens=24).text
        assert rest  # noise is not written in the tokeniser's own way, so only the toy model can be held to the words


# ── many callers ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_threads_and_event_loops_share_one_worker_and_get_their_own_answers(noise):
    questions = [f"question {i}" for i in range(4)]
    expected = {q: (await aanswer(noise, q, max_tokens=6)).text for q in questions}
    results: list[tuple[str, str]] = []

    def threaded(q):
        results.append((q, answer(noise, q, max_tokens=6).text))

    def looped(q):
        results.append((q, asyncio.run(aanswer(noise, q, max_tokens=6)).text))

    threads = [threading.Thread(target=t, args=(q,)) for q in questions for t in (threaded, looped)]
    for t in threads:
        t.start()
    here = await asyncio.gather(*(aanswer(noise, q, max_tokens=6) for q in questions))
    for t in threads:
        await asyncio.to_thread(t.join)
    assert [a.text for a in here] == [expected[q] for q in questions]
    assert sorted(results) == sorted([(q, expected[q]) for q in questions] * 2)


def test_providers_of_the_same_file_and_options_share_a_process(noise, random_gguf):
    options = {**noise.target.options, "n_ctx": 500}  # rounded up to 512
    other = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", **options))
    try:
        other.warm()
        assert other.pid == noise.pid
    finally:
        other.close()
    assert collect(noise.stream(ask("still there", max_tokens=2), guard())).usage.output_tokens == 2
