"""All eight faces, native and wrapped, healthy and broken: the same text, the same end, the same metadata."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time

import pytest
from llama_index.core.base.llms.types import ChatMessage

from llamaindex_fallback import FallbackLLM
from shared_core import AllTargetsFailed, InvalidRequest, StreamBroken, UnknownOption
from shared_core.testing import CANONICAL, Answer, Fault
from shared_core.testing.fault_server import cut
from tests.llamaindex.world import (
    FACES,
    KINDS,
    PRIMARY,
    SECONDARY,
    STREAMED,
    call,
    fallback_llm,
    fallback_of,
    names_of,
    native,
    script_all,
    text_of,
)
from tests.timing import timed

EACH = list(itertools.product(FACES, KINDS))


def check_whole(face, responses, *, target):
    """What holds for every complete answer, however it came."""
    last = responses[-1]
    assert text_of(last) == CANONICAL
    assert fallback_of(last)["target"] == target
    assert last.raw["fallback"] == fallback_of(last)
    assert last.raw["usage"]["total_tokens"] == last.additional_kwargs["total_tokens"] > 0
    if "stream" in face:
        assert "".join(r.delta or "" for r in responses) == CANONICAL
        for earlier, later in itertools.pairwise(responses):
            assert text_of(later) == text_of(earlier) + (later.delta or "")
        assert all(r.raw is None for r in responses[:-1]), "metadata and usage belong to exactly one response"


@pytest.mark.parametrize(("face", "kind"), EACH)
async def test_a_healthy_primary_answers_alone(server, face, kind):
    """One request goes out, and the metadata says that no fallback was needed."""
    llm = fallback_llm(server, kind)
    responses = await call(llm, face)
    check_whole(face, responses, target=names_of(llm)[0])
    assert not fallback_of(responses[-1])["used_fallback"]
    assert [r.model for r in server.requests] == [llm.router.targets[0].model]
    assert server.requests[0].streamed == ("stream" in face), "a whole answer is asked for whole, a stream as a stream"


@pytest.mark.parametrize(
    ("face", "kind", "fault"),
    [(*each, 503) for each in EACH]
    + [
        (face, kind, fault)
        for face, kind in itertools.product(FACES, ("native", "wrapped"))
        for fault in ("rate-limit", "reset", "html-200", "overload-first", "role-only-error")
        if face in STREAMED or fault not in ("overload-first", "role-only-error")
    ],
)
async def test_a_broken_primary_costs_the_caller_nothing(server, face, kind, fault):
    """The second model answers the whole text, and the first attempt's error is told."""
    llm = fallback_llm(server, kind)
    script_all(server, fault)
    server.script(SECONDARY, "ok")
    responses = await call(llm, face)
    check_whole(face, responses, target=names_of(llm)[1])
    facts = fallback_of(responses[-1])
    assert facts["used_fallback"]
    assert facts["attempts"][0]["error"]
    assert [r.model for r in server.requests] == [t.model for t in llm.router.targets]


@pytest.mark.parametrize(("face", "kind"), [e for e in EACH if e[0] in STREAMED])
@pytest.mark.parametrize(
    "fault", [cut(after_words=5), cut(after_words=5, eof=True), Fault("overload-later", after_words=5)]
)
async def test_a_stream_cut_in_the_middle_goes_on_with_the_next_model(server, face, kind, fault):
    """No word is lost, none is said twice, and the last response says where the seam is."""
    script_all(server, fault)
    server.script(SECONDARY, [Answer(CANONICAL, continue_from=True, overlap_words=2)])
    llm = fallback_llm(server, kind)
    responses = await call(llm, face)
    check_whole(face, responses, target=names_of(llm)[1])
    facts = fallback_of(responses[-1])
    assert facts["continued"]
    assert 0 < facts["continued_at"][0] < len(CANONICAL)


@pytest.mark.parametrize(("face", "kind"), [e for e in EACH if e[0] in STREAMED])
async def test_a_restarted_stream_starts_over_visibly(server, face, kind):
    """With on_stream_break='restart' the cumulative text falls back to nothing, marked, and then is whole."""
    script_all(server, cut(after_words=5))
    server.script(SECONDARY, "ok")
    llm = fallback_llm(server, kind, on_stream_break="restart")
    responses = await call(llm, face)
    marks = [i for i, r in enumerate(responses[:-1]) if "fallback" in r.additional_kwargs]
    assert len(marks) == 1
    assert fallback_of(responses[marks[0]]) == {"restarted": names_of(llm)[1]}
    assert text_of(responses[marks[0]]) == ""
    assert "".join(r.delta or "" for r in responses[marks[0] :]) == CANONICAL
    assert text_of(responses[-1]) == CANONICAL


@pytest.mark.parametrize(("face", "kind"), [e for e in EACH if e[0] in STREAMED])
async def test_a_broken_stream_raises_with_its_text_when_asked_to(server, face, kind):
    """With on_stream_break='raise' the partial text is in the error."""
    script_all(server, cut(after_words=5))
    server.script(SECONDARY, "ok")
    with pytest.raises(StreamBroken) as caught:
        await call(fallback_llm(server, kind, on_stream_break="raise"), face)
    assert caught.value.partial
    assert CANONICAL.startswith(caught.value.partial)


@pytest.mark.parametrize(("face", "kind"), EACH)
async def test_when_all_are_down_every_error_is_told(server, face, kind):
    """AllTargetsFailed holds both errors, and no key."""
    script_all(server, 503)
    llm = fallback_llm(server, kind)
    with pytest.raises(AllTargetsFailed) as caught:
        await call(llm, face)
    assert tuple(getattr(e, "target", None) for e in caught.value.errors) == names_of(llm)
    assert "not-a-real-key" not in str(caught.value)
    assert [r.model for r in server.requests] == [t.model for t in llm.router.targets]


@pytest.mark.parametrize("kind", KINDS)
async def test_streams_return_at_once_and_send_nothing_until_read(server, kind):
    """An abandoned stream that nobody read has cost nothing."""
    llm = fallback_llm(server, kind)
    messages = [ChatMessage(role="user", content="hi")]
    assert inspect.isgenerator(llm.stream_chat(messages))
    assert inspect.isgenerator(llm.stream_complete("hi"))
    for begun in (llm.astream_chat(messages), llm.astream_complete("hi")):
        assert inspect.iscoroutine(begun)
        assert inspect.isasyncgen(await begun)
    assert server.count() == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_the_event_loop_keeps_turning_while_a_model_is_slow(server, kind):
    """Eight slow calls at once take as long as one, and the loop ticks meanwhile."""
    llm = fallback_llm(server, kind)
    await call(llm, "achat")  # SDKs load at the first call
    for delay_s in (0.15, 1.0, 5.0):  # on a busy machine the calls themselves take as long as a model that is not slow
        script_all(server, Answer(CANONICAL, delay_s=delay_s))
        took, ticks = await together(llm)
        if took < 8 * delay_s and ticks >= 5:
            return
    raise AssertionError(f"{took} s, {ticks} ticks")


async def together(llm) -> tuple[float, int]:
    """How long eight calls take, and how often the loop turned."""
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticker = asyncio.create_task(tick())
    began = time.monotonic()
    await asyncio.gather(*(call(llm, face) for face in FACES if face.startswith("a") for _ in range(2)))
    ticker.cancel()
    return time.monotonic() - began, ticks


@pytest.mark.parametrize("kind", ["native", "wrapped"])
@pytest.mark.parametrize("face", STREAMED)
async def test_walking_away_from_a_stream_hangs_up(server, face, kind):
    """The connection is closed although the answer was not read to its end."""
    script_all(server, Answer("word " * 2000, every_s=0.01))
    llm = fallback_llm(server, kind)
    prompt = "hi" if "complete" in face else [ChatMessage(role="user", content="hi")]
    stream = getattr(llm, face)(prompt)
    if face.startswith("a"):
        stream = await stream
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0.02)  # the loop closes what the decorators left behind
    else:
        next(stream)
        stream.close()
    await asyncio.to_thread(server.wait_idle)
    assert server.requests[0].client_closed_at is not None


async def test_options_of_a_call_reach_the_wire(server):
    """Per-call options win over the LLM's own, and unset ones are not sent."""
    llm = fallback_llm(server, [native(server, SECONDARY)], temperature=0.5, max_tokens=50)
    await call(llm, "achat", temperature=0.1, stop="STOP", seed=7, extra={"openai": {"service_tier": "flex"}})
    body = server.requests[0].body
    assert body["temperature"] == 0.1
    assert body["stop"] == ["STOP"]
    assert body["seed"] == 7
    assert body["service_tier"] == "flex"
    assert 50 in (body.get("max_tokens"), body.get("max_completion_tokens"))
    assert "top_p" not in body


@timed
async def test_a_timeout_is_the_deadline_of_the_whole_call(server):
    """Both targets hang; the call is over when its own time is."""
    script_all(server, "hang")
    llm = fallback_llm(server, timeout=0.3)
    began = time.monotonic()
    with pytest.raises(AllTargetsFailed):
        await call(llm, "achat")
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("face", FACES)
async def test_a_misspelt_call_option_names_the_nearest(server, face):
    """A typo is an error, not a silent default."""
    with pytest.raises(UnknownOption, match="temperature"):
        await call(fallback_llm(server), face, temperatur=0.1)
    assert server.count() == 0


async def test_an_impossible_request_is_refused_before_anything_is_sent(server):
    """No messages, no answer."""
    with pytest.raises(InvalidRequest):
        fallback_llm(server).chat([])
    assert server.count() == 0


async def test_many_loops_in_a_row_fail_over_for_no_reason_of_their_own(server):
    """An `asyncio.run` per call is fine: a closed loop is nobody's outage."""
    for kind in KINDS:
        llm = fallback_llm(server, kind)

        def once(llm: FallbackLLM = llm):
            return asyncio.run(call(llm, "achat"))[-1]

        for _ in range(3):
            assert not fallback_of(await asyncio.to_thread(once))["used_fallback"]


def test_threads_share_one_llm(server):
    """Sixteen threads, one LLM: everyone gets the whole answer."""
    from concurrent.futures import ThreadPoolExecutor

    llm = fallback_llm(server, [native(server, PRIMARY)])
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda _: llm.complete("hi").text, range(32)))
    assert texts == [CANONICAL] * 32
