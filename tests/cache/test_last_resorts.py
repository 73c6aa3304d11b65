"""When everything is down: a marked answer past its time, if that is allowed; then the user's own."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shared_core import (
    AllTargetsFailed,
    Answer,
    BudgetExceeded,
    ChatRequest,
    Constraints,
    DeadlineExceeded,
    ErrorKind,
    InvalidRequest,
    RequestFailed,
    RequestSucceeded,
    Router,
    StreamBroken,
    Target,
    user,
)
from shared_core.cache.decide import may_rescue, may_use_default
from shared_core.ledger.entry import Purpose
from shared_core.testing import Broken, ScriptedProvider, Silence

ASK = ChatRequest((user("Hello"),))
DOWN = ErrorKind.TRANSIENT
STALE = {"ttl_s": 10, "stale_if_error_s": 100}


def default(request, error):
    return f"Sorry: {type(error).__name__}"


async def adefault(request, error):
    await asyncio.sleep(0)
    return Answer("Sorry, later.", extra={"why": str(type(error))})


class TestStale:
    def test_an_answer_past_its_time_stands_in_when_everything_is_down(self, bench, face):
        """Marked, with its age; it costs nothing."""
        b = bench(("once", DOWN), cache=STALE)
        face(b.router)
        b.clock.advance(60)
        got = face(b.router)
        assert (got.text, got.fallback["cache"]) == ("once", "stale")
        assert got.fallback["age_s"] >= 60
        assert [a["error_kind"] for a in got.fallback["attempts"]][:1] == ["transient"]
        assert b.router.cache.stats().stale == 1
        assert b.router.ledger.entries()[-1].purpose is Purpose.CACHE

    def test_it_is_asked_first_and_not_for_longer_than_allowed(self, bench, face):
        """The targets go before it; past the window there is an error."""
        b = bench(("once", "again", DOWN), cache=STALE)
        face(b.router)
        b.clock.advance(60)
        assert (got := face(b.router)).text == "again"
        assert got.fallback["cache"] == "miss"
        b.clock.advance(111)
        assert isinstance(face(b.router).error, AllTargetsFailed)

    def test_by_default_there_is_none(self, bench, face):
        """Nobody gets an old answer without having asked for it."""
        b = bench(("once", DOWN), cache={"ttl_s": 10})
        face(b.router)
        b.clock.advance(11)
        assert isinstance(face(b.router).error, AllTargetsFailed)

    def test_a_refresh_takes_none(self, bench, face):
        """Who asks for a new answer is not helped with an old one."""
        b = bench(("once", DOWN), cache=STALE)
        face(b.router)
        b.clock.advance(60)
        assert face(b.router, ASK.replace(cache="refresh")).error is not None

    def test_a_fresh_answer_of_a_stand_in_helps_as_well(self, bench, face):
        """The primary fails, with its circuit closed, and so does the stand-in, which has answered a moment ago."""
        b = bench(DOWN, ("from b", DOWN), cache=True, retry={"total": 0})
        assert face(b.router).text == "from b"
        got = face(b.router)
        assert (got.text, got.fallback["cache"], got.finished.target) == ("from b", "hit", "b")

    @pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.POLICY, ErrorKind.CONTEXT_OVERFLOW], ids=str)
    def test_a_request_that_is_at_fault_itself_is_not_covered_up(self, bench, face, kind):
        """It would be tomorrow as well."""
        b = bench(("once", kind), cache=STALE, default_answer=default)
        face(b.router)
        b.clock.advance(60)
        assert isinstance(face(b.router).error, AllTargetsFailed)

    def test_a_stream_that_has_begun_is_not_finished_with_another_answer(self, bench, stream_face):
        """What was read was another answer's beginning."""
        b = bench(
            ("once", Broken("half an", ErrorKind.STREAM_CUT), DOWN),
            cache=STALE,
            default_answer=default,
            on_stream_break="raise",
        )
        stream_face(b.router)
        b.clock.advance(60)
        assert isinstance(stream_face(b.router).error, StreamBroken)

    def test_observers_hear_of_a_stand_in_and_of_no_failure(self, bench, face, caplog):
        """One warning in the log, no error."""
        seen = []
        b = bench(("once", DOWN), cache=STALE, on_event=seen.append)
        face(b.router)
        b.clock.advance(60)
        with caplog.at_level(logging.WARNING, "llm_fallback"):
            face(b.router)
        b.router.flush_events()
        assert [e.name for e in seen if e.execution == seen[-1].execution][-2:] == ["cache_hit", "request_succeeded"]
        assert not any(isinstance(e, RequestFailed) for e in seen)
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert isinstance(seen[-1], RequestSucceeded)


class TestDefault:
    @pytest.mark.parametrize("hook", [default, adefault], ids=["sync", "async"])
    def test_the_users_own_answer_is_the_very_last_resort(self, bench, face, hook):
        """Sync or async, in every face; marked; nobody served it."""
        b = bench(DOWN, default_answer=hook)
        got = face(b.router)
        assert got.text.startswith("Sorry")
        assert got.fallback["cache"] == "default"
        assert got.finished.target is None
        assert got.fallback["attempts"]
        assert b.router.last.outcome == "answered"

    def test_an_old_answer_goes_before_it(self, bench, face):
        """It is an answer to the request, at least."""
        b = bench(("once", DOWN), cache=STALE, default_answer=default)
        face(b.router)
        b.clock.advance(60)
        assert face(b.router).fallback["cache"] == "stale"
        b.clock.advance(100)
        assert face(b.router).fallback["cache"] == "default"
        assert b.router.cache.stats().defaults == 1

    def test_none_has_the_error_raised(self, bench, face):
        """The hook may look at the error and decide."""
        seen = []
        b = bench(DOWN, default_answer=lambda request, error: seen.append((request, error)))
        error = face(b.router).error
        assert isinstance(error, AllTargetsFailed)
        assert seen[0][1] is error
        assert seen[0][0].messages == ASK.messages

    def test_a_deadline_that_has_passed_is_a_reason(self, bench, face):
        """It is there at once."""
        b = bench(Silence(), default_answer=default)
        got = face(b.router, ASK.replace(timeout_s=5.0))
        assert got.text == "Sorry: DeadlineExceeded"

    def test_a_hook_that_fails_does_not_hide_why_it_was_asked(self, bench, face, caplog):
        """The error is the first one, with a note."""

        def broken(request, error):
            raise ZeroDivisionError("oops")

        b = bench(DOWN, default_answer=broken)
        error = face(b.router).error
        assert isinstance(error, AllTargetsFailed)
        assert any("ZeroDivisionError: oops" in note for note in error.__notes__)
        assert "default_answer failed" in caplog.text

    def test_what_is_no_answer_is_none(self, bench, face):
        """And says what would be."""
        b = bench(DOWN, default_answer=lambda request, error: 7)
        error = face(b.router).error
        assert any("a text, an Answer or None, not int" in note for note in error.__notes__)

    def test_it_has_to_pass_the_check_of_the_request(self, bench, face):
        """Or whoever reads it would fall over it."""
        b = bench(DOWN, default_answer=default)
        strict = ASK.replace(check=lambda answer: "no JSON")
        error = face(b.router, strict).error
        assert isinstance(error, AllTargetsFailed)
        assert any("no JSON" in note for note in error.__notes__)

    def test_an_async_hook_that_hangs_is_not_waited_for(self, monkeypatch):
        """Whatever the face."""
        monkeypatch.setattr("shared_core._last_resort._GRACE_S", 0.05)

        async def hangs(request, error):
            await asyncio.Event().wait()

        router = Router(ScriptedProvider(DOWN), default_answer=hangs, timeouts={"total": 0.05}, retry={"total": 0})
        with pytest.raises(AllTargetsFailed):
            router.invoke(ASK)
        with pytest.raises(AllTargetsFailed):
            asyncio.run(router.ainvoke(ASK))

    def test_bugs_and_impossible_requests_are_raised_as_they_are(self, bench):
        """They are nobody's outage."""
        asked = []
        b = bench((TypeError("a bug"), "x"), default_answer=lambda *given: asked.append(given))
        with pytest.raises(TypeError, match="a bug"):
            b.router.invoke(ASK)
        with pytest.raises(InvalidRequest):
            b.router.invoke(ASK.replace(chain="no such chain"))
        with pytest.raises(AllTargetsFailed):
            b.router.invoke(ASK.replace(constraints=Constraints(allow={"nobody"})))
        assert asked == []

    def test_it_is_never_kept(self, bench, face):
        """The next call asks again."""
        b = bench((ErrorKind.AUTH, "well"), default_answer=default, cache=True)
        assert face(b.router).fallback["cache"] == "default"
        b.router.reset()
        assert face(b.router).text == "well"

    def test_when_all_circuits_are_open_it_is_there_at_once(self, bench, face):
        """No packet, no wait."""
        b = bench("x", default_answer=default)
        b.router.force_open("a")
        assert face(b.router).text == "Sorry: AllTargetsFailed"
        assert b.calls == [0]


class TestDecision:
    def test_what_may_be_rescued(self):
        """Outages and lateness; not refusals of the request, budgets only by the user's own answer."""
        from shared_core import ProviderError

        def failed(*kinds, cls=AllTargetsFailed, **facts):
            error = cls("m", [ProviderError.of(k, "x") for k in kinds], fallback=facts)
            error.__cause__ = error.errors[0] if kinds else None
            return error

        assert may_rescue(failed(DOWN))
        assert may_rescue(failed(ErrorKind.AUTH))
        assert may_rescue(failed(ErrorKind.TIMEOUT, cls=DeadlineExceeded))
        assert may_rescue(failed(ErrorKind.CONTEXT_OVERFLOW, DOWN))
        assert may_rescue(failed(skipped=[{"target": "a", "reason": "circuit open"}]))
        assert not may_rescue(failed(ErrorKind.BAD_REQUEST, DOWN))
        assert not may_rescue(failed(ErrorKind.CONTEXT_OVERFLOW))
        assert not may_rescue(failed())
        broke = BudgetExceeded("spent")
        assert not may_rescue(broke)
        assert may_use_default(broke)


def test_a_router_with_a_default_answer_alone_has_no_cache():
    """Nothing is kept, nothing is shared."""
    router = Router(Target(provider=ScriptedProvider("x"), name="a"), default_answer=default)
    assert router.cache is None
    assert [router.invoke(ASK).fallback["cache"] for _ in range(2)] == ["off", "off"]
