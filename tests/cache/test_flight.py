"""Identical requests at the same time are one request; whoever leaves, and however, the others have their answer."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared_core import (
    AllTargetsFailed,
    ChatRequest,
    DeadlineExceeded,
    ErrorKind,
    Price,
    ProviderError,
    Router,
    StreamBroken,
    Target,
    TextDelta,
    ToolSpec,
    user,
)
from shared_core.cache import MemoryStore, flight
from shared_core.ledger.entry import Purpose
from shared_core.testing import ScriptedProvider
from tests.cache.gated import Gated, auntil, until
from tests.timing import timed

ASK = ChatRequest((user("Hello"),))
PRICE = Price(input=1, output=2)


@pytest.fixture(params=["kept", "only shared"])
def options(request):
    """With a cache, and with single-flight alone."""
    return {"cache": True} if request.param == "kept" else {"single_flight": True}


@pytest.fixture
def gated():
    """A provider that waits for `go`; let go at the end, whatever happens."""
    provider = Gated()
    yield provider
    provider.go()


def routed(provider: Gated, **options) -> Router:
    return Router(Target(provider=provider, name="a", price=PRICE), **options)


def waiting(router: Router) -> int:
    """How many callers read what is in flight."""
    return sum(flight._readers for flight in router._cached._flights._flights.values())


def by_status(answers) -> Counter:
    return Counter(answer.fallback["cache"] for answer in answers)


def text_of(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class TestShared:
    def test_a_thousand_tasks_are_one_request(self, gated, options):
        """Whole and streamed ones; each has all of the answer, its own metadata and no cost."""
        router = routed(gated, **options)

        async def main():
            async def stream():
                return [event async for event in router.astream(ASK)]

            whole = [asyncio.create_task(router.ainvoke(ASK)) for _ in range(500)]
            streamed = [asyncio.create_task(stream()) for _ in range(500)]
            await auntil(lambda: waiting(router) == 1000, "everybody waits")
            gated.go()
            return await asyncio.gather(*whole), await asyncio.gather(*streamed)

        answers, streams = asyncio.run(main())
        assert gated.calls == 1
        assert {a.text for a in answers} | {text_of(s) for s in streams} == {"Hello world"}
        facts = [a.fallback for a in answers] + [s[-1].fallback for s in streams]
        assert Counter(f["cache"] for f in facts) == {"miss" if "cache" in options else "off": 1, "joined": 999}
        assert len({f["id"] for f in facts}) == 1000
        assert sum(f["cost_usd"] for f in facts) == 14e-6
        assert sum(row.cost_nano for row in router.ledger.entries()) == 14_000
        assert router.ledger.entries()[-1].purpose is Purpose.CACHE
        assert len(router._cached._flights) == 0

    def test_a_thousand_threads_and_tasks_of_several_loops_are_one_request(self, gated):
        """Sync and async, whole and streamed, mixed: kept after that, so whoever comes late asks nobody either."""
        router = routed(gated, cache=True)
        barrier = threading.Barrier(41)

        def thread(number: int):
            barrier.wait()
            if number % 2:
                return [router.invoke(ASK).text for _ in range(20)]
            return [text_of(router.stream(ASK)) for _ in range(20)]

        def loop(number: int):
            async def one(number: int):
                if number % 2:
                    return (await router.ainvoke(ASK)).text
                return text_of([event async for event in router.astream(ASK)])

            async def main():
                return await asyncio.gather(*(one(n) for n in range(60)))

            barrier.wait()
            return asyncio.run(main())

        with ThreadPoolExecutor(40) as pool:
            jobs = [pool.submit(thread, n) for n in range(35)] + [pool.submit(loop, n) for n in range(5)]
            barrier.wait()
            until(lambda: waiting(router) > 100, "most of them wait")
            gated.go()
            texts = [text for job in jobs for text in job.result(30)]
        assert len(texts) == 1000
        assert set(texts) == {"Hello world"}
        assert gated.calls == 1
        stats = router.cache.stats()
        assert stats.joined + stats.hits == 999

    @pytest.mark.parametrize("how", ["invoke", "ainvoke"])
    def test_who_has_looked_too_early_looks_again(self, how):
        """Between its look and its turn to lead, another caller has asked and kept: nobody is asked twice."""

        class Racing(MemoryStore):
            raced = False

            def get(self, key, now):
                if self.raced:
                    return super().get(key, now)
                self.raced = True
                router.invoke(ASK)
                return None

        provider = ScriptedProvider("Hello world")
        router = Router(provider, cache=Racing())
        answer = router.invoke(ASK) if how == "invoke" else asyncio.run(router.ainvoke(ASK))
        assert (answer.text, answer.fallback["cache"], provider.calls) == ("Hello world", "hit", 1)
        assert len(router._cached._flights) == 0

    def test_other_requests_are_not_shared(self, gated):
        """What says something else, and what may be asked of others."""
        router = routed(gated, single_flight=True)
        others = [ASK, ASK.replace(seed=1), ASK.replace(tools=(ToolSpec("t"),)), ASK.replace(cache=False)]

        async def main():
            tasks = [asyncio.create_task(router.ainvoke(r)) for r in others]
            await auntil(lambda: gated.calls == len(others))
            gated.go()
            await asyncio.gather(*tasks)

        asyncio.run(main())

    def test_it_can_be_switched_off(self, gated):
        """With the cache on."""
        router = routed(gated, cache=True, single_flight=False)

        async def main():
            tasks = [asyncio.create_task(router.ainvoke(ASK)) for _ in range(3)]
            await auntil(lambda: gated.calls == 3)
            gated.go()
            await asyncio.gather(*tasks)

        asyncio.run(main())

    def test_a_stream_is_read_as_it_comes(self, gated, options):
        """Also by who joined late: first what there was, then what comes."""
        router = routed(gated, **options)

        async def main():
            first, second = router.astream(ASK), router.astream(ASK)
            kinds = [type(await anext(first)).__name__, (await anext(first)).text]
            kinds += [type(await anext(second)).__name__, (await anext(second)).text]
            assert kinds == ["Started", "Hello", "Started", "Hello"]
            gated.go()
            rest = [text_of([e async for e in one]) for one in (first, second)]
            assert rest == [" world", " world"]

        asyncio.run(main())
        assert gated.calls == 1

    def test_a_leader_who_does_not_read_keeps_nobody_waiting(self, gated, options):
        """A thread that asked for a stream and went for lunch."""
        router = routed(gated, **options)
        lazy = iter(router.stream(ASK))
        next(lazy)
        gated.go()
        assert router.invoke(ASK).text == "Hello world"
        assert text_of(lazy) == "Hello world"
        assert gated.calls == 1

    def test_who_joins_while_a_leader_sets_off_finds_a_request_under_way(self, monkeypatch):
        """Between its place at the head and its first event a thread has several things to put down: all or none."""
        provider = ScriptedProvider("Hello world")
        router = routed(provider, single_flight=True)
        pool = ThreadPoolExecutor(1)
        joined = []
        copied = flight.contextvars.copy_context

        def slowly():
            if not joined:
                joined.append(pool.submit(lambda: router.invoke(ASK).text))
                until(lambda: waiting(router) == 2 or joined[0].done(), "somebody has joined")
            return copied()

        monkeypatch.setattr(flight.contextvars, "copy_context", slowly)
        with pool:
            assert text_of(router.stream(ASK)) == "Hello world"
            assert joined[0].result(30) == "Hello world"
        assert provider.calls == 1

    def test_a_sync_call_on_the_loop_of_the_one_in_flight_asks_for_itself(self, gated, options):
        """Waiting would block the very loop that the answer comes by."""
        router = routed(gated, **options)

        async def main():
            first = asyncio.create_task(router.ainvoke(ASK))
            await auntil(lambda: gated.calls == 1)
            threading.Timer(0.05, gated.go).start()
            answer = router.invoke(ASK)
            return answer.text, (await first).text

        assert asyncio.run(main()) == ("Hello world", "Hello world")
        assert gated.calls == 2

    def test_each_follower_has_its_own_check(self, gated, options):
        """An answer that does not pass it is not for this one, which then asks by itself."""
        router = routed(gated, **options)

        def strict(answer):
            return "not this one" if gated.calls == 1 else None

        async def main():
            first = asyncio.create_task(router.ainvoke(ASK.replace(check=lambda answer: None)))
            await auntil(lambda: gated.calls == 1)
            second = asyncio.create_task(router.ainvoke(ASK.replace(check=strict)))
            await auntil(lambda: waiting(router) == 2)
            gated.go()
            return await asyncio.gather(first, second)

        one, two = asyncio.run(main())
        assert one.text == two.text == "Hello world"
        assert gated.calls == 2
        assert two.fallback["cache"] != "joined"


class TestLeaving:
    def test_a_waiter_that_is_cancelled_fails_nobody(self, gated, options):
        """Nine hundred of a thousand, at once."""
        router = routed(gated, **options)

        async def main():
            tasks = [asyncio.create_task(router.ainvoke(ASK)) for _ in range(1000)]
            await auntil(lambda: waiting(router) == 1000)
            for task in tasks[100:]:
                task.cancel()
            await auntil(lambda: waiting(router) == 100)
            gated.go()
            return await asyncio.gather(*tasks, return_exceptions=True)

        results = asyncio.run(main())
        assert {r.text for r in results[:100]} == {"Hello world"}
        assert all(isinstance(r, asyncio.CancelledError) for r in results[100:])
        assert gated.calls == 1

    @pytest.mark.parametrize("how", ["ainvoke", "astream"])
    def test_a_leader_that_is_cancelled_leaves_its_request_to_the_others(self, gated, options, how):
        """What is in flight goes on: nothing is asked twice."""
        router = routed(gated, **options)

        async def stream():
            return text_of([e async for e in router.astream(ASK)])

        async def main():
            lead = asyncio.create_task(router.ainvoke(ASK) if how == "ainvoke" else stream())
            await auntil(lambda: gated.calls == 1)
            others = [asyncio.create_task(router.ainvoke(ASK)), asyncio.create_task(stream())]
            await auntil(lambda: waiting(router) == 3)
            lead.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lead
            gated.go()
            return await asyncio.gather(*others)

        whole, streamed = asyncio.run(main())
        assert whole.text == streamed == "Hello world"
        assert gated.calls == 1
        assert gated.open == 0

    def test_a_leader_that_walks_away_from_its_stream_does_too(self, gated, options):
        """In a thread."""
        router = routed(gated, **options)
        lead = router.stream(ASK)
        next(lead)
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(lambda: router.invoke(ASK).text) for _ in range(2)]
            until(lambda: waiting(router) == 3)
            lead.close()
            gated.go()
            assert [o.result(30) for o in others] == ["Hello world"] * 2
        assert gated.calls == 1
        assert gated.open == 0

    @pytest.mark.parametrize("how", ["ainvoke", "astream"])
    def test_the_last_one_takes_it_along(self, gated, options, how):
        """The connection is closed before it is gone, and whoever comes after asks anew."""
        router = routed(gated, **options)

        async def stream():
            return text_of([e async for e in router.astream(ASK)])

        async def main():
            tasks = [asyncio.create_task(router.ainvoke(ASK) if how == "ainvoke" else stream()) for _ in range(3)]
            await auntil(lambda: waiting(router) == 3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await auntil(lambda: gated.open == 0)
            assert len(router._cached._flights) == 0
            gated.go()
            assert (await router.ainvoke(ASK)).text == "Hello world"

        asyncio.run(main())
        assert gated.calls == 2
        assert router.ledger.entries()[0].outcome in ("cancelled", "abandoned")

    def test_alone_a_leader_that_is_cancelled_has_closed_its_connection(self, gated, options):
        """As without single-flight."""
        router = routed(gated, **options)

        async def main():
            lead = asyncio.create_task(router.ainvoke(ASK))
            await auntil(lambda: gated.calls == 1)
            lead.cancel()
            with pytest.raises(asyncio.CancelledError):
                await lead
            assert gated.open == 0

        asyncio.run(main())
        assert router.last.outcome == "cancelled"

    def test_a_loop_that_ends_leaves_its_request_to_who_is_elsewhere(self, gated, options):
        """The flight cannot go on; a follower in a thread asks anew, and nobody fails."""
        router = routed(gated, **options)
        joined = threading.Event()

        async def main():
            lead = asyncio.create_task(router.ainvoke(ASK))
            await auntil(lambda: gated.calls == 1)
            joined.set()
            await auntil(lambda: waiting(router) == 2)
            del lead  # `asyncio.run` cancels it, and with it its loop's tasks

        with ThreadPoolExecutor(2) as pool:
            loop = pool.submit(lambda: asyncio.run(main()))
            assert joined.wait(30)
            other = pool.submit(lambda: router.invoke(ASK).text)
            loop.result(30)
            gated.go()
            assert other.result(30) == "Hello world"
        assert gated.calls == 2
        assert gated.open == 0


class TestDeadlines:
    @timed
    def test_each_caller_keeps_its_own_deadline(self, options):
        """A follower in a hurry goes without; the others do not."""
        gated = Gated()
        router = routed(gated, **options)

        async def stream():
            return text_of([e async for e in router.astream(ASK)])

        async def main():
            lead = asyncio.create_task(stream())
            await auntil(lambda: gated.calls == 1)
            with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
                await router.ainvoke(ASK.replace(timeout_s=0.05))
            with pytest.raises(StreamBroken) as broken:
                async for _ in router.astream(ASK.replace(timeout_s=0.05)):
                    pass
            assert broken.value.partial == "Hello"
            with pytest.raises(DeadlineExceeded):
                await asyncio.to_thread(router.invoke, ASK.replace(timeout_s=0.05))
            gated.go()
            return await lead

        assert asyncio.run(main()) == "Hello world"
        assert gated.calls == 1

    @timed
    def test_a_leader_whose_time_is_up_does_not_take_the_others_along(self, options):
        """They ask anew, with the time that is theirs."""
        gated = Gated()
        router = routed(gated, **options)

        async def main():
            lead = asyncio.create_task(router.ainvoke(ASK.replace(timeout_s=0.1)))
            await auntil(lambda: gated.calls == 1)
            other = asyncio.create_task(router.ainvoke(ASK))
            await auntil(lambda: waiting(router) == 2)
            with pytest.raises(DeadlineExceeded):
                await lead
            await auntil(lambda: gated.calls == 2)
            gated.go()
            return (await other).text

        assert asyncio.run(main()) == "Hello world"


class TestFailures:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_failure_is_shared_once_and_not_kept(self, options, streaming):
        """Each has an error of its own; the next call asks again."""
        provider = Gated(fail=ProviderError.of(ErrorKind.BAD_REQUEST, "no"))
        router = routed(provider, **options)

        async def one():
            if not streaming:
                return await router.ainvoke(ASK)
            return [e async for e in router.astream(ASK.replace(check=lambda answer: None))]

        async def main():
            tasks = [asyncio.create_task(one()) for _ in range(20)]
            await auntil(lambda: waiting(router) == 20)
            provider.go()
            return await asyncio.gather(*tasks, return_exceptions=True)

        errors = asyncio.run(main())
        assert all(isinstance(e, AllTargetsFailed) for e in errors)
        assert len({id(e) for e in errors}) == 20
        assert len({str(e) for e in errors}) == 1
        assert all(e.__cause__ is not None for e in errors)
        assert provider.calls == 1
        with pytest.raises(AllTargetsFailed):
            router.invoke(ASK)
        assert provider.calls == 2

    def test_a_bug_is_a_bug_for_all(self, options):
        """And hides nothing."""
        provider = Gated(fail=TypeError("a bug"))
        router = routed(provider, **options)

        async def main():
            tasks = [asyncio.create_task(router.ainvoke(ASK)) for _ in range(5)]
            await auntil(lambda: waiting(router) == 5)
            provider.go()
            return await asyncio.gather(*tasks, return_exceptions=True)

        assert [type(e) for e in asyncio.run(main())] == [TypeError] * 5
        assert len(router._cached._flights) == 0

    def test_a_stream_that_breaks_breaks_for_who_has_read_of_it(self, options):
        """Whoever wanted it whole has seen nothing yet, and asks anew."""
        provider = Gated(fail=ProviderError.of(ErrorKind.STREAM_CUT, "cut"))
        router = routed(provider, on_stream_break="raise", **options)

        async def stream():
            try:
                return text_of([event async for event in router.astream(ASK)])
            except StreamBroken as error:
                return error.partial

        async def main():
            lead = asyncio.create_task(stream())
            await auntil(lambda: provider.calls == 1)
            reader, whole = asyncio.create_task(stream()), asyncio.create_task(router.ainvoke(ASK))
            await auntil(lambda: waiting(router) == 3)
            provider.go()
            first = await asyncio.gather(lead, reader)
            return first, await asyncio.gather(whole, return_exceptions=True)

        first, (whole,) = asyncio.run(main())
        assert first == ["Hello", "Hello"]
        assert isinstance(whole, AllTargetsFailed)
        assert provider.calls >= 2


class TestRandom:
    @pytest.mark.parametrize("seed", range(6))
    def test_whoever_comes_and_goes_the_others_are_answered(self, seed):
        """Threads and tasks, whole and streamed, cancelled and leaving at random: one request at a time, none left."""
        import random

        rng = random.Random(seed)
        provider = Gated()
        router = routed(provider, single_flight=True)
        stay = []

        async def one(number: int):
            kind = rng.choice(["whole", "stream", "thread"])
            if kind == "whole":
                return (await router.ainvoke(ASK)).text
            if kind == "thread":
                return (await asyncio.to_thread(router.invoke, ASK)).text
            return text_of([e async for e in router.astream(ASK)])

        async def main():
            tasks = [asyncio.create_task(one(n)) for n in range(30)]
            await auntil(lambda: waiting(router) >= 15)
            for task in tasks:
                if rng.random() < 0.4:
                    task.cancel()
                else:
                    stay.append(task)
                if rng.random() < 0.2:
                    await asyncio.sleep(0)
            provider.go()
            return await asyncio.gather(*stay)

        texts = asyncio.run(main())
        assert set(texts) == {"Hello world"}
        until(lambda: provider.open == 0, "no call is left open")
        until(lambda: len(router._cached._flights) == 0, "nothing is left in flight")
