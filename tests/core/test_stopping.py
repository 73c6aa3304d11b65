"""Closing a stream from another thread while one reads it: a stop button."""

from __future__ import annotations

import random
import threading
import time

import pytest

from shared_core import CircuitState, ErrorKind, Finished, ProviderError, Router, Target, TextDelta
from shared_core._streams import AnswerStream, Stop
from shared_core.resilience.deadline import Guard
from shared_core.testing import FaultServer, ScriptedProvider

GENEROUS_S = 10.0
WIRES = {"openai": "openai_url", "anthropic": "anthropic_url", "google": "google_url"}
CACHES = pytest.mark.parametrize("cache", [None, {"single_flight": False}, True], ids=["plain", "kept", "shared"])


def until(condition, what):
    end = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < end, f"{what} has not come"
        time.sleep(0.002)


class Reader(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, stream, face="for"):
        super().__init__(daemon=True)
        self.stream, self.face = stream, face
        self.text = ""
        self.error = None
        self.begun = threading.Event()
        self.start()

    def run(self):
        try:
            for event in self.stream if self.face == "for" else iter(self.next, None):
                if isinstance(event, TextDelta):
                    self.text += event.text
                    self.begun.set()
        except BaseException as error:
            self.error = error

    def next(self):
        return next(self.stream, None)

    def ended(self):
        self.join(GENEROUS_S)
        assert self.error is None, self.error
        return not self.is_alive()


def target(server, wire, **options):
    return Target(f"{wire}:m", base_url=getattr(server, WIRES[wire]), api_key="k", name="a", **options)


def is_settled(router, stream):
    """Told once as abandoned, nothing held, nobody blamed."""
    journal = stream.execution
    assert journal.outcome == "abandoned"
    assert [attempt.outcome for attempt in journal.attempts] == ["abandoned"]
    assert [entry.outcome for entry in router.ledger.entries()] == ["abandoned"]
    health = router.health()["a"]
    assert (health.in_flight, health.circuit, health.consecutive_failures) == (0, CircuitState.CLOSED, 0)


@CACHES
@pytest.mark.parametrize("face", ["for", "next"])
@pytest.mark.parametrize("fault", ["no-response", "ping-drip", "stall"])
@pytest.mark.parametrize("wire", WIRES)
def test_close_wakes_a_reader_that_waits_and_frees_its_connection(wire, fault, face, cache):
    other = ScriptedProvider("never asked", name="b")
    with FaultServer({"m": [fault, "ok"]}, default="ok") as server:
        with Router([target(server, wire), Target(provider=other, name="b")], cache=cache) as router:
            router.warm()
            stream = router.stream("Hello")
            reader = Reader(stream, face)
            until(lambda: server.count("m") == 1, "the request")
            if fault == "stall":
                assert reader.begun.wait(GENEROUS_S)
            stream.close()
            assert reader.ended()
            stream.close()
            is_settled(router, stream)
            assert bool(reader.text) is (fault == "stall")
            until(lambda: server.in_flight == 0, "the connection's end")
            assert other.calls == 0
            assert list(stream) == []
            assert router.invoke("Hello").target == "a", "nothing is left of it"


@CACHES
def test_close_ends_a_pause_between_two_tries(cache):
    refused = ProviderError.of(ErrorKind.THROTTLED, "slow down", retry_after_s=8.0)
    provider = ScriptedProvider(refused, "late", name="a")
    with Router([Target(provider=provider, name="a")], cache=cache) as router:
        waits = threading.Event()
        router.on(lambda event: waits.set(), "request_waits")
        stream = router.stream("Hello")
        reader = Reader(stream)
        assert waits.wait(GENEROUS_S)
        begun = time.monotonic()
        stream.close()
        assert reader.ended()
        assert time.monotonic() - begun < 6.0
        assert stream.execution.outcome == "abandoned"
        assert provider.calls == 1


@CACHES
def test_close_ends_a_race_of_two_silent_targets(cache):
    with FaultServer({"m": ["no-response"]}) as server:
        targets = [Target("openai:m", base_url=server.openai_url, api_key="k", name=name) for name in ("a", "b")]
        hedge = {"after": 0.02, "min_s": 0.0, "budget": 1.0, "burst": 100}
        with Router(targets, hedge=hedge, cache=cache) as router:
            router.warm()
            stream = router.stream("Hello")
            reader = Reader(stream)
            until(lambda: server.count("m") == 2, "the second request")
            stream.close()
            assert reader.ended()
            assert stream.execution.outcome == "abandoned"
            assert {entry.outcome for entry in router.ledger.entries()} <= {"abandoned", "cancelled"}
            assert len(list(router.ledger.entries())) == 2
            until(lambda: server.in_flight == 0, "the connections' end")
            assert [health.in_flight for health in router.health()] == [0, 0]


class Blocks(ScriptedProvider):
    """Says a word and then nothing, and knows of no way to be woken, as a ready model of some framework."""

    interruptible = False

    def __init__(self):
        super().__init__(name="a")
        self.go_on = threading.Event()

    def stream(self, request, guard):
        yield TextDelta("word ")
        self.go_on.wait(GENEROUS_S)


@CACHES
def test_close_walks_away_from_a_target_that_cannot_be_woken(cache):
    provider = Blocks()
    with Router([Target(provider=provider, name="a")], cache=cache) as router:
        stream = router.stream("Hello")
        reader = Reader(stream)
        assert reader.begun.wait(GENEROUS_S)
        stream.close()
        assert reader.ended()
        is_settled(router, stream)
        provider.go_on.set()


def test_a_shared_answer_goes_on_without_those_who_leave_and_ends_with_the_last():
    with FaultServer({"m": ["stall"]}) as server:
        with Router([target(server, "openai")], cache=True) as router:
            router.warm()
            streams, readers = [], []
            for _ in range(3):
                streams.append(router.stream("Hello"))
                readers.append(Reader(streams[-1]))
                assert readers[-1].begun.wait(GENEROUS_S)
            for gone in (1, 2):
                streams[gone].close()
                assert readers[gone].ended()
                assert readers[0].is_alive()
                assert server.in_flight == 1
            streams[0].close()
            assert readers[0].ended()
            until(lambda: server.in_flight == 0, "the connection's end")
            until(lambda: router.health()["a"].in_flight == 0, "the end of the attempt")
            assert server.count("m") == 1


class Words(ScriptedProvider):
    """Says a word at a time, when it is told to."""

    def __init__(self):
        super().__init__(name="a")
        self.tell = threading.Semaphore(1)

    def stream(self, request, guard):
        for word in ("one ", "two ", "three"):
            assert self.tell.acquire(timeout=GENEROUS_S)
            yield TextDelta(word)
        yield Finished("stop")


def test_who_reads_for_others_too_leaves_with_the_next_word_and_they_get_all_of_it():
    provider = Words()
    with Router([Target(provider=provider, name="a")], cache=True) as router:
        first = router.stream("Hello")
        leader = Reader(first)
        assert leader.begun.wait(GENEROUS_S)
        follower = Reader(router.stream("Hello"))
        assert follower.begun.wait(GENEROUS_S)
        first.close()
        provider.tell.release()
        assert leader.ended()
        provider.tell.release()
        assert follower.ended()
        assert follower.text == "one two three"
        assert leader.text in ("one ", "one two ")


def test_closing_at_any_moment_is_safe():
    """A hundred streams closed at odd moments: while one waits, between two events, at the end. None raises."""
    dice = random.Random(7)
    with FaultServer(default="ok") as server:
        with Router([target(server, "openai")]) as router:
            router.warm()
            for _ in range(100):
                stream = router.stream("Hello")
                reader = Reader(stream, dice.choice(["for", "next"]))
                if dice.random() < 0.5:
                    reader.begun.wait(GENEROUS_S)
                time.sleep(dice.random() * 0.002)
                stream.close()
                assert reader.ended()
                assert stream.execution.outcome in ("abandoned", "answered", "running")
            until(lambda: server.in_flight == 0, "the last connection's end")
            assert router.health()["a"].in_flight == 0
            assert router.health()["a"].circuit is CircuitState.CLOSED
            assert router.invoke("Hello").text


def test_closing_in_the_readers_own_thread_is_as_it_was():
    with Router([Target(provider=ScriptedProvider("a b c d"), name="a")]) as router:
        with router.stream("Hello") as stream:
            for event in stream:
                if isinstance(event, TextDelta):
                    break
            assert next(stream), "leaving the loop has not closed it"
        assert list(stream) == []
        assert stream.execution.outcome == "abandoned"
        unread = router.stream("Hello")
        unread.close()
        assert list(unread) == []


def test_an_error_of_a_targets_own_is_no_busy_generator():
    """What is swallowed is told by Python itself, and only of a stream that is being closed."""

    def broken():
        yield TextDelta("x")
        raise ValueError("generator already executing")

    stream = AnswerStream(None, broken(), Stop(quiet=True))
    with pytest.raises(ValueError, match="already"):
        list(stream)
    stream = AnswerStream(None, broken(), Stop(quiet=True))
    next(stream)
    with pytest.raises(ValueError, match="already"):
        next(stream)

    def bad_end():
        try:
            yield TextDelta("x")
        finally:
            raise ValueError("a bug")

    stream = AnswerStream(None, bad_end(), Stop(quiet=True))
    next(stream)
    with pytest.raises(ValueError, match="a bug"):
        stream.close()


def test_an_attempt_that_begins_after_the_button_was_pressed_has_no_time():
    stop = Stop(quiet=True)
    stop.request()
    guard = Guard(time.monotonic, streaming=True)
    stop.watch(guard)
    assert guard.expired
    begun = time.monotonic()
    stop.pause(5.0)
    assert time.monotonic() - begun < 4.0
