"""In which order a request goes with a cache: the steps themselves, with what came of each sent by hand. No I/O."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared_core import AllTargetsFailed, ChatRequest, DeadlineExceeded, ErrorKind, ProviderError, Router, Target, user
from shared_core._cache_flow import Ask, Default, Follow, Learn, Look
from shared_core._kept_books import Show
from shared_core._readers import LOST, Unfit
from shared_core._shelf import Hit
from shared_core.cache.entry import Kept
from shared_core.cache.response_cache import Found
from shared_core.testing import ScriptedProvider, VirtualClock
from tests.cache.gated import Gated, until

ASK = ChatRequest((user("Hello"),))
KEPT = Kept("kept")


class Hand:
    """Asks a router's flow for steps, and answers them."""

    def __init__(self, request: ChatRequest = ASK, router: Router | None = None, **options) -> None:
        self.clock = VirtualClock()
        self.router = router or Router(
            Target(provider=ScriptedProvider("x"), name="a"), clock=self.clock, **{"cache": True, **options}
        )
        self.cached = self.router._cached
        self.asked = self.cached._keys.asked(*self.router._open(request, None), request.cache)
        self.steps = self.cached._flow.steps(self.asked)

    def send(self, report=None):
        """The next step; a look notes how many there were by then."""
        step = self.steps.send(report)
        if isinstance(step, Look):
            self.asked.seen = self.cached._shelf.kept
        return step

    def end(self, report=None):
        """What the request comes to, once it has this report."""
        with pytest.raises(StopIteration) as ended:
            self.steps.send(report)
        return ended.value.value

    def hit(self, *, stale: bool = False) -> Hit:
        return Hit(Found(KEPT, 1.0, stale), self.asked.plan.routes[0])

    @property
    def flights(self) -> int:
        return len(self.cached._flights)


def failed(kind: ErrorKind = ErrorKind.TRANSIENT) -> AllTargetsFailed:
    cause = ProviderError.of(kind, "no")
    error = AllTargetsFailed("nobody", [cause])
    error.__cause__ = cause
    return error


def kinds(hand: Hand, *reports) -> list[str]:
    return [type(hand.send(report)).__name__ for report in reports]


class TestOrder:
    def test_a_miss_is_learned_looked_for_and_asked(self):
        """Once each."""
        hand = Hand()
        step = hand.send()
        assert isinstance(step, Learn)
        assert [route.name for route in step.routes] == ["a"]
        assert isinstance(hand.send(), Look)
        step = hand.send(None)
        assert isinstance(step, Ask)
        assert hand.flights == 1
        step.flight.end()
        assert hand.end(None) is None
        assert hand.flights == 0
        assert hand.asked.execution.cache == "miss"

    def test_what_is_found_is_shown_and_that_is_all(self):
        """Nobody is asked."""
        hand = Hand()
        hand.send()
        hand.send()
        step = hand.send(hand.hit())
        assert isinstance(step, Show)
        assert (step.kept, step.target, step.status, step.age_s) == (KEPT, "a", "hit", 1.0)
        assert hand.end() is None

    def test_a_refresh_looks_for_nothing(self):
        """It is asked at once, and nothing old stands in."""
        hand = Hand(ASK.replace(cache="refresh"))
        assert kinds(hand, None, None) == ["Learn", "Ask"]
        assert isinstance(hand.end(failed()), AllTargetsFailed)

    def test_what_does_not_pass_the_check_is_not_shown(self):
        """It has passed another's."""
        hand = Hand(ASK.replace(check=lambda answer: "not this one"))
        hand.send()
        hand.send()
        assert isinstance(hand.send(hand.hit()), Ask)

    def test_the_second_look_is_for_what_was_kept_since_the_first(self):
        """By a flight that ended between our look and our turn; those who have joined meanwhile look for themselves."""
        hand = Hand()
        hand.send()
        hand.send()
        hand.cached.cache.keep(b"k" * 32, KEPT, 0.0)
        assert isinstance(hand.send(None), Look)
        assert hand.flights == 1
        assert isinstance(hand.send(hand.hit()), Show)
        assert hand.flights == 0
        assert hand.end() is None

    def test_who_comes_while_it_is_in_flight_follows(self):
        """And asks for itself when that is lost; alone when the answer was not for it."""
        lead = Hand()
        lead.send()
        lead.send()
        flight = lead.send(None).flight
        lead.cached._keys.learn(lead.asked.plan.routes, None)
        hand = Hand(router=lead.router)
        assert isinstance(hand.send(None), Look)
        step = hand.send(None)
        assert isinstance(step, Follow)
        assert step.flight is flight
        assert isinstance(hand.send(LOST), Look)
        assert isinstance(hand.send(None), Follow)
        assert isinstance(hand.send(Unfit("not this one")), Look)
        step = hand.send(None)
        assert isinstance(step, Ask)
        assert step.flight.key == hand.asked.execution.id

    def test_nobody_asks_again_when_its_time_is_up(self):
        """What was waited for is lost, and so is the time."""
        hand = Hand(ASK.replace(timeout_s=5.0))
        hand.send()
        hand.send()
        hand.send(None)
        hand.clock.advance(5.0)
        assert hand.send(LOST) == Look(hand.asked.plan.routes, stale=True)
        error = hand.end(None)
        assert isinstance(error, DeadlineExceeded)
        assert hand.router.last.outcome == "failed"

    def test_without_single_flight_nobody_leads(self):
        """The targets are asked, that is all."""
        hand = Hand(single_flight=False)
        assert kinds(hand, None, None) == ["Learn", "Look"]
        assert hand.send(None) == Ask(None)

    def test_without_a_cache_nothing_is_looked_for(self):
        """Shared, not kept."""
        hand = Hand(cache=None, single_flight=True)
        step = hand.send()
        assert isinstance(step, Ask)
        assert step.flight is not None

    def test_a_bug_is_raised_as_it_is(self):
        """Nothing stands in for it."""
        hand = Hand(default_answer=lambda request, error: "sorry")
        hand.send()
        hand.send()
        hand.send(None)
        with pytest.raises(ZeroDivisionError):
            hand.steps.send(ZeroDivisionError())


class TestLastResorts:
    def test_an_old_answer_then_the_users_own_then_the_error(self):
        """In this order, each only if the one before is not there."""
        hand = Hand(default_answer=lambda request, error: "sorry")
        hand.send()
        hand.send()
        hand.send(None)
        error = failed()
        step = hand.send(error)
        assert isinstance(step, Look)
        assert step.stale is True
        assert hand.send(None) == Default(error)
        assert hand.end(None) is error
        assert hand.router.last.outcome == "failed"

    @pytest.mark.parametrize("stale", [True, False])
    def test_what_is_found_then_says_how_old_it_is(self, stale):
        """Past its time, or that of a stand-in within it."""
        hand = Hand()
        hand.send()
        hand.send()
        hand.send(None)
        hand.send(failed())
        step = hand.send(hand.hit(stale=stale))
        assert step.status == ("stale" if stale else "hit")
        assert hand.end() is None

    def test_a_request_at_fault_has_none(self):
        """Its error is what there is to say."""
        hand = Hand(default_answer=lambda request, error: "sorry")
        hand.send()
        hand.send()
        hand.send(None)
        error = failed(ErrorKind.BAD_REQUEST)
        assert hand.end(error) is error


class TestGivenUp:
    def test_a_leader_that_is_gone_before_it_began_leaves_nobody_waiting(self):
        """Whoever has joined by then asks for itself."""
        hand = Hand()
        hand.send()
        hand.send()
        flight = hand.send(None).flight
        woken = []
        flight.wake(lambda: woken.append(True), at_end=True)
        hand.steps.close()
        assert (flight.lost, flight.over, woken, hand.flights) == (True, True, [True], 0)

    def test_what_has_begun_goes_on_without_its_leader(self):
        """It belongs to nobody."""
        hand = Hand()
        hand.send()
        hand.send()
        flight = hand.send(None).flight
        flight.drive(iter(()))
        hand.steps.close()
        assert (flight.over, hand.flights) == (False, 1)

    def test_a_leader_that_is_interrupted_leaves_its_request_to_the_others(self):
        """Ctrl-C in the thread that asks: the others ask anew, and are answered."""

        class Interrupted(Gated):
            def stream(self, request, guard):
                try:
                    yield from super().stream(request, guard)
                finally:
                    self.fail = None  # once is enough

        provider = Interrupted(fail=KeyboardInterrupt())
        router = Router(provider, cache=True)
        with ThreadPoolExecutor(3) as pool:
            lead = pool.submit(router.invoke, ASK)
            until(lambda: provider.calls == 1, "the first one asks")
            others = [pool.submit(router.invoke, ASK) for _ in range(2)]
            flights = router._cached._flights
            until(lambda: sum(f._readers for f in flights._flights.values()) == 3, "the others wait")
            provider.go()
            assert isinstance(lead.exception(20), KeyboardInterrupt)
            assert [other.result(20).text for other in others] == ["Hello world"] * 2
        assert provider.calls == 2
        assert len(flights) == 0
