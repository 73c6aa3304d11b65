"""The four faces of a router with a cache: what is served, shown, counted and told; and what is not kept."""

from __future__ import annotations

import asyncio
import math

import pytest

from shared_core import (
    Answer,
    CacheHit,
    ChatRequest,
    ConfigurationError,
    Constraints,
    ErrorKind,
    Finished,
    InvalidRequest,
    Native,
    Origin,
    Price,
    Reasoning,
    ReasoningDelta,
    RequestStarted,
    RequestSucceeded,
    ResponseCache,
    Router,
    Started,
    Target,
    TextDelta,
    ToolCall,
    ToolSpec,
    UnknownOption,
    Usage,
    user,
)
from shared_core.cache import MemoryStore
from shared_core.ledger.entry import Purpose
from shared_core.testing import Broken, ScriptedProvider, VirtualClock
from tests.cache.conftest import FACES

ASK = ChatRequest((user("Hello"),))
PRICE = {"price": Price(input=1, output=2)}
SIGNED = Answer("Hi.", reasoning=(Reasoning("Let me think.", {"signature": b"\1\2"}),), origin=Origin("a", "m"))
CALLING = Answer("", tool_calls=(ToolCall("1", "look", '{"at": 1}'),), finish_reason="tool_calls")


def status(got) -> str:
    return got.fallback["cache"]


@pytest.fixture(params=["memory", "file"])
def kept_in(request, tmp_path):
    """The option that says where answers are kept."""
    return {} if request.param == "memory" else {"path": tmp_path / "c.db"}


class TestServed:
    @pytest.mark.parametrize("second", list(FACES))
    @pytest.mark.parametrize("first", list(FACES))
    def test_an_answer_is_served_to_every_face(self, bench, kept_in, first, second):
        """What was asked whole is streamed, what was streamed is had whole; the target is asked once."""
        b = bench("one two three", targets=[PRICE], cache=kept_in)
        one, two = FACES[first](b.router), FACES[second](b.router)
        assert (one.text, two.text) == ("one two three", "one two three")
        assert (status(one), status(two)) == ("miss", "hit")
        assert b.calls == [1]
        assert two.finished.usage == one.finished.usage
        assert two.finished.target == "a"

    def test_the_metadata_says_that_it_cost_nothing_and_what_it_saved(self, bench, face):
        """Usage is that of the answer, and marked as cached."""
        b = bench("one two three", targets=[PRICE], cache=True)
        first = face(b.router).fallback
        b.clock.advance(60)
        facts = face(b.router).fallback
        assert first["cost_usd"] == 16e-6
        served = {"cache": "hit", "target": "a", "provider": "a", "model": "m"}
        paid = {"cost_usd": 0.0, "saved_usd": 16e-6, "usage_cached": True}
        assert facts == facts | served | paid
        assert facts["age_s"] == 60
        assert facts["attempts"] == []
        assert facts["used_fallback"] is False
        assert facts["id"] != first["id"]

    def test_the_ledger_has_a_row_that_costs_nothing(self, bench, face):
        """With what the answer cost when it was given, for whoever counts savings."""
        b = bench("one two three", targets=[PRICE], cache=True)
        request = ASK.replace(user="ann", tags=("t",))
        face(b.router, request)
        face(b.router, request)
        asked, cached = b.router.ledger.entries()
        assert (asked.purpose, asked.cost_nano) == (Purpose.CALL, 16_000)
        assert (cached.purpose, cached.cost_nano, cached.bound_nano) == (Purpose.CACHE, 0, 16_000)
        assert (cached.target, cached.user, cached.tags, cached.usage) == ("a", "ann", ("t",), asked.usage)
        assert b.router.costs().total_usd == 16e-6
        report = b.router.costs()
        assert report.saved_usd == 16e-6

    def test_observers_hear_of_it(self, bench, face):
        """Beside what they hear of every request."""
        seen = []
        b = bench("one", targets=[PRICE], cache=True, on_event=seen.append)
        face(b.router)
        face(b.router)
        b.router.flush_events()
        kinds = [type(e) for e in seen]
        assert kinds == [RequestStarted, RequestSucceeded, RequestStarted, CacheHit, RequestSucceeded]
        hit = seen[3]
        assert (hit.status, hit.target, hit.execution) == ("hit", "a", seen[4].execution)
        assert seen[4].cost_usd == 0.0
        assert b.router.last.cache == "hit"

    def test_statistics_count_and_clear_forgets(self, bench, face):
        """What was looked for, found, saved, and how much there is."""
        b = bench("one two three", targets=[PRICE], cache=True)
        for _ in range(4):
            face(b.router)
        face(b.router, ASK.replace(seed=1))
        stats = b.router.cache.stats()
        assert (stats.hits, stats.misses, stats.kept, stats.items) == (3, 2, 2, 2)
        assert stats.hit_rate == 0.6
        assert stats.saved_usd == 48e-6
        (day,) = stats.days.values()
        assert (day.hits, day.saved_usd) == (3, 48e-6)
        assert b.router.cache.clear() == 2
        assert status(face(b.router)) == "miss"
        assert "60%" in str(stats)
        assert stats.as_dict()["saved_usd"] == 48e-6
        assert "saved usd" in stats._repr_html_()

    def test_it_lasts_as_long_as_it_was_told(self, bench, face):
        """And is asked for again after."""
        b = bench("one", cache={"ttl_s": 10})
        face(b.router)
        b.clock.advance(9.9)
        assert status(face(b.router)) == "hit"
        b.clock.advance(0.1)
        assert status(face(b.router)) == "miss"

    def test_a_file_outlives_its_router(self, tmp_path, face):
        """Another router over the same target finds it; one over another target does not."""
        path = tmp_path / "c.db"
        make = lambda model: Router(  # noqa: E731  # said once, used often
            Target(provider=ScriptedProvider("x", model=model), name="a"), cache=path
        )
        with make("m") as router:
            assert status(face(router)) == "miss"
        with make("m") as router:
            assert status(face(router)) == "hit"
        with make("n") as router:
            assert status(face(router)) == "miss"

    def test_thoughts_and_signatures_come_back_with_their_origin(self, bench, face):
        """Opaque blocks as they were, for the one who wrote them."""
        script = [Started(), ReasoningDelta("Let me think.", {"signature": b"\1\2"}), TextDelta("Hi."), Finished()]
        b = bench(script, cache=True)
        face(b.router)
        answer = b.router.invoke(ASK)
        assert answer.fallback["cache"] == "hit"
        assert answer.reasoning == (Reasoning("Let me think.", {"signature": b"\1\2"}),)
        assert answer.origin == b.providers[0].origin
        assert answer.message.origin == Origin("a", "m")


class TestReplayed:
    def test_a_stream_comes_in_the_pieces_it_came_in(self, bench, stream_face):
        """And at once, unless a pace was chosen."""
        b = bench("one two three", cache=True)
        first = stream_face(b.router)
        second = stream_face(b.router)
        assert second.kinds == first.kinds == ["Started", "TextDelta", "TextDelta", "TextDelta", "Finished"]
        assert b.clock.sleeps == []

    def test_a_pace_is_kept_between_the_pieces(self, bench, stream_face):
        """So many seconds between two of them."""
        b = bench("one two three", cache={"pace": 0.05})
        stream_face(b.router)
        assert stream_face(b.router).text == "one two three"
        assert b.clock.sleeps == [0.05, 0.05]

    def test_the_pace_gives_way_to_the_deadline(self, bench, stream_face):
        """The answer is there: nobody is made to wait for it for too long."""
        b = bench("one two three four five", cache={"pace": 2.0})
        request = ASK.replace(timeout_s=5.0)
        stream_face(b.router, request)
        got = stream_face(b.router, request)
        assert got.text == "one two three four five"
        assert sum(b.clock.sleeps) < 5.0

    def test_pieces_can_be_of_a_size(self, bench, stream_face):
        """Whatever size they came in."""
        b = bench("one two three", cache={"chunk": 5})
        stream_face(b.router)
        assert stream_face(b.router).kinds.count("TextDelta") == 3

    def test_a_whole_answer_is_had_at_once(self, bench):
        """The pace is for those who watch it come."""
        b = bench("one two three", cache={"pace": 1.0})
        b.router.invoke(ASK)
        assert b.router.invoke(ASK).text == "one two three"
        assert asyncio.run(b.router.ainvoke(ASK)).text == "one two three"
        assert b.clock.sleeps == []


class TestPerCall:
    def test_false_neither_reads_nor_keeps(self, bench, face):
        """The call goes as if there were no cache."""
        b = bench("one", cache=True)
        assert status(face(b.router, ASK.replace(cache=False))) == "off"
        assert status(face(b.router)) == "miss"
        assert status(face(b.router, ASK.replace(cache=False))) == "off"
        assert b.calls == [3]

    def test_refresh_asks_anew_and_keeps(self, bench, face):
        """The next call gets the new answer."""
        b = bench(("old", "new"), cache=True)
        face(b.router)
        fresh = face(b.router, ASK.replace(cache="refresh"))
        assert (fresh.text, status(fresh)) == ("new", "refresh")
        after = face(b.router, ASK.replace(cache=True))
        assert (after.text, status(after)) == ("new", "hit")
        assert b.router.cache.stats().refreshed == 1

    def test_faces_take_it_as_a_keyword(self, bench):
        """Beside the request's own."""
        b = bench("one", cache=True)
        b.router.invoke(ASK)
        assert b.router.invoke(ASK, cache=False).fallback["cache"] == "off"
        assert b.router.invoke(ASK, cache="refresh").fallback["cache"] == "refresh"
        assert list(b.router.stream(ASK, cache=False))[-1].fallback["cache"] == "off"

        async def main() -> tuple[str, str]:
            answer = await b.router.ainvoke(ASK, cache="refresh")
            events = [e async for e in b.router.astream(ASK, cache="refresh")]
            return answer.fallback["cache"], events[-1].fallback["cache"]

        assert asyncio.run(main()) == ("refresh", "refresh")

    def test_anything_else_is_refused(self):
        """With what there is."""
        with pytest.raises(InvalidRequest, match="refresh"):
            ChatRequest((user("x"),), cache="new")

    def test_without_a_cache_the_word_changes_nothing(self, bench, face):
        """A program may say it everywhere."""
        b = bench("one")
        assert b.router.cache is None
        assert status(face(b.router, ASK.replace(cache="refresh"))) == "off"


class TestNotKept:
    @pytest.mark.parametrize(
        "script",
        [
            [Started(), TextDelta("half"), Finished("length")],
            [Started(), TextDelta("no"), Finished("content_filter")],
            [Started(), TextDelta("I will not"), Finished("refusal")],
            [Started(), TextDelta("?"), Finished("other")],
            [Started(), Finished("stop")],
            CALLING,
            Answer("Text and", tool_calls=CALLING.tool_calls, finish_reason="tool_calls"),
        ],
        ids=["length", "filter", "refusal", "other", "empty", "calls", "text and calls"],
    )
    def test_only_whole_clean_answers_are_kept(self, bench, face, script):
        """Not what was cut short, filtered or refused, nor what calls tools."""
        b = bench(script, cache=True)
        face(b.router)
        assert status(face(b.router)) == "miss"
        assert b.router.cache.stats().items == 0
        assert b.router.cache.stats().unkept == 2

    def test_tool_calls_are_kept_where_that_is_wanted(self, bench, face):
        """And come back whole."""
        b = bench(CALLING, cache={"tool_calls": True})
        request = ASK.replace(tools=(ToolSpec("look"),))
        face(b.router, request)
        again = face(b.router, request)
        assert status(again) == "hit"
        assert again.calls == list(CALLING.tool_calls)
        assert again.finished.reason == "tool_calls"

    def test_an_answer_of_two_targets_is_nobodys(self, bench, stream_face):
        """Continued by another: it would be neither's answer to the request."""
        b = bench(Broken("one two", ErrorKind.STREAM_CUT), " three", cache=True)
        got = stream_face(b.router)
        assert got.fallback["continued"] is True
        assert b.router.cache.stats().items == 0

    def test_an_answer_that_was_begun_anew_is_its_targets(self, bench, stream_face):
        """What came before the restart is no part of it."""
        b = bench(Broken("one two", ErrorKind.STREAM_CUT), "from the start", on_stream_break="restart", cache=True)
        stream_face(b.router)
        b.router.force_open("a")
        again = stream_face(b.router)
        assert (again.text, status(again), again.finished.target) == ("from the start", "hit", "b")

    def test_failures_are_not_kept(self, bench, face):
        """The next call asks again."""
        b = bench((ErrorKind.BAD_REQUEST, "well"), cache=True)
        assert face(b.router).error is not None
        assert face(b.router).text == "well"

    @pytest.mark.parametrize("kind", ["stream", "astream"])
    def test_a_reader_who_leaves_keeps_nothing(self, bench, kind):
        """Half an answer is not one."""
        b = bench("one two three", cache={"single_flight": False})

        async def read() -> None:
            async with b.router.astream(ASK) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        break

        if kind == "astream":
            asyncio.run(read())
        else:
            with b.router.stream(ASK) as events:
                for event in events:
                    if isinstance(event, TextDelta):
                        break
        assert b.router.cache.stats().items == 0
        assert b.providers[0].open == 0
        assert b.router.last.outcome == "abandoned"


class TestChecked:
    def test_a_kept_answer_is_checked_again(self, bench, face):
        """By the check of whoever asks: another's may let other things pass."""
        b = bench(("yes", "perhaps no"), cache=True)
        easy = ASK.replace(check=lambda answer: None)
        hard = ASK.replace(check=lambda answer: None if "no" in answer.text else "say no")
        assert status(face(b.router, easy)) == "miss"
        assert status(face(b.router, easy)) == "hit"
        first = face(b.router, hard)
        assert (first.text, status(first)) == ("perhaps no", "miss")
        assert status(face(b.router, hard)) == "hit"
        assert status(face(b.router, easy)) == "hit"

    def test_an_unchecked_answer_is_not_served_to_who_checks(self, bench, face):
        """One that was asked for with a check may have been corrected on the way: it is another request."""
        b = bench("yes", cache=True)
        face(b.router)
        assert status(face(b.router, ASK.replace(check=lambda answer: None))) == "miss"


class TestTenants:
    def test_tenants_do_not_see_each_others_answers(self, tmp_path, face):
        """By name, in one file."""
        make = lambda tenant: Router(  # noqa: E731  # said once, used often
            Target(provider=ScriptedProvider("x"), name="a"), cache={"path": tmp_path / "c.db", "tenant": tenant}
        )
        with make("red") as red, make("blue") as blue, make(None) as none:
            assert status(face(red)) == "miss"
            assert status(face(blue)) == "miss"
            assert status(face(none)) == "miss"
            assert status(face(red)) == "hit"

    def test_a_tenant_may_be_read_from_the_request(self, bench, face):
        """Whoever it names nobody for goes uncached."""
        b = bench("x", cache={"tenant": lambda request: request.user})
        ann, bob = ASK.replace(user="ann"), ASK.replace(user="bob")
        assert [status(face(b.router, r)) for r in (ann, bob, ann, ASK, ASK)] == [
            "miss", "miss", "hit", "uncacheable", "uncacheable",
        ]  # fmt: skip


class TestWhatCannotBeTold:
    def test_a_request_that_cannot_be_told_by_value_is_answered_uncached(self, bench, face):
        """And says so."""
        b = bench("x", cache=True)
        odd = ASK.replace(extra={"a": {"hook": object()}})
        assert [status(face(b.router, odd)) for _ in range(2)] == ["uncacheable", "uncacheable"]
        assert b.router.cache.stats().uncacheable == 2
        assert b.calls == [2]

    def test_native_objects_that_nobody_tells_are_not_cached_for_who_may_read_them(self, bench, face):
        """Never a wrong hit: a ready provider may read what rides along."""
        b = bench("x", cache=True)
        odd = ASK.replace(native=Native("mine", [object()]))
        assert [status(face(b.router, odd)) for _ in range(2)] == ["miss", "miss"]
        told = ASK.replace(native=Native("mine", ["a"], form=lambda n: n.messages))
        other = ASK.replace(native=Native("mine", ["b"], form=lambda n: n.messages))
        assert [status(face(b.router, r)) for r in (told, other, told)] == ["miss", "miss", "hit"]

    def test_a_target_that_cannot_be_told_by_value_is_not_cached(self, face):
        """An option that is a live object may change what it answers."""
        provider = ScriptedProvider("x")
        router = Router(Target(provider=provider, name="a", hook=object()), cache=True)
        assert [status(face(router)) for _ in range(2)] == ["miss", "miss"]

    def test_a_provider_tells_what_its_answers_depend_on(self, face):
        """Once by `identity`, each time by `settings`."""

        class Tuned(ScriptedProvider):
            mood = "good"
            weights = "v1"

            def identity(self, model=None):
                return self.weights

            def settings(self):
                return {"mood": self.mood}

        provider = Tuned("x")
        router = Router(provider, cache=ResponseCache())
        assert [status(face(router)) for _ in range(2)] == ["miss", "hit"]
        provider.mood = "bad"
        assert [status(face(router)) for _ in range(2)] == ["miss", "hit"]
        newer = Tuned("x")
        newer.weights = "v2"
        other = Router(newer, cache=router.cache)
        assert status(face(other)) == "miss"
        newer.weights = None
        third = Router(newer, cache=router.cache)
        assert [status(face(third)) for _ in range(2)] == ["miss", "miss"]

    @pytest.mark.parametrize("what", ["identity", "settings"])
    def test_a_provider_that_cannot_tell_is_answered_uncached(self, face, what):
        """A cache is never the reason why a request fails."""

        class Odd(ScriptedProvider):
            pass

        def fails(self, *given):
            raise RuntimeError("not now")

        setattr(Odd, what, fails)
        router = Router(Odd("x"), cache=True)
        assert [(got := face(router)).text, status(got)] == ["x", "miss"]
        assert status(face(router)) == "miss"

    def test_an_object_whose_properties_fail_is_answered_uncached(self, bench, face):
        """Somebody else's, in a vendor's option."""

        class Odd:
            @property
            def cache_form(self):
                raise RuntimeError("not now")

        b = bench("x", cache=True)
        assert status(face(b.router, ASK.replace(extra={"a": {"b": Odd()}}))) == "uncacheable"

    def test_targets_of_one_model_are_told_apart(self, face):
        """By endpoint, key, options and what they say they can take."""
        cache = ResponseCache()
        seen = []
        for more in (
            {},
            {"base_url": "http://127.0.0.1:9/v1"},
            {"api_key": "sk-one"},
            {"api_key": "sk-two"},
            {"temperature_default": 1},
            {"capabilities": {"max_output": 5}},
            {"name": "b"},
        ):
            with Router(Target(provider=ScriptedProvider("x"), **{"name": "a", **more}), cache=cache) as router:
                seen.append((status(face(router)), status(face(router))))
        assert seen == [("miss", "hit")] * 7
        assert "sk-one" not in repr(cache) + str(cache.stats().as_dict())


class TestConstraints:
    def test_a_kept_answer_of_a_forbidden_target_is_not_served(self, bench, face):
        """Constraints hold for what was answered before, too."""
        b = bench("of a", "of b", cache=True)
        assert face(b.router).text == "of a"
        kept_out = ASK.replace(constraints=Constraints(deny={"a"}))
        assert [face(b.router, kept_out).text for _ in range(2)] == ["of b", "of b"]
        assert b.calls == [1, 1]
        nobody = ASK.replace(constraints=Constraints(allow={"c"}))
        assert face(b.router, nobody).error is not None


class TestOptions:
    def test_unknown_and_impossible_options_are_refused(self):
        """Where they are given."""
        with pytest.raises(UnknownOption, match="ttl_s"):
            Router(ScriptedProvider(), cache={"ttl": 5})
        with pytest.raises(ConfigurationError, match="default_answer"):
            Router(ScriptedProvider(), default_answer="sorry")
        with pytest.raises(ConfigurationError, match="single_flight must be True or False"):
            Router(ScriptedProvider(), single_flight="no")

    def test_a_configuration_file_can_say_it(self, tmp_path):
        """As a table."""
        path = tmp_path / "f.toml"
        path.write_text('targets = ["ollama:x"]\n[cache]\nttl_s = 60\nmax_items = 5\n')
        with Router.from_config(path) as router:
            assert router.cache.ttl_s == 60

    def test_two_routers_may_share_one(self, bench):
        """With all it has kept."""
        cache = ResponseCache(store=MemoryStore(max_items=7), ttl_s=math.inf)
        clock = VirtualClock()
        first = Router(Target(provider=ScriptedProvider("x"), name="a"), cache=cache, clock=clock)
        second = Router(Target(provider=ScriptedProvider("y"), name="a"), cache=cache, clock=clock)
        assert first.invoke(ASK).text == second.invoke(ASK).text == "x"

    def test_without_metadata_there_is_none(self, bench, face):
        """As of every answer of that router."""
        b = bench("x", cache=True, metadata=False)
        face(b.router)
        assert face(b.router).finished.fallback == {}
        assert b.router.last.cache == "hit"

    def test_usage_is_a_value(self):
        """What a hit reports is what the answer used."""
        router = Router(ScriptedProvider(Answer("x", usage=Usage(5, 7, cached_tokens=2))), cache=True)
        router.invoke(ASK)
        assert router.invoke(ASK).usage == Usage(5, 7, cached_tokens=2)
