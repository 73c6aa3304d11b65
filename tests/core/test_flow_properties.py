"""Random scripts: the promises that hold whatever the targets do, and that sync and async are one algorithm."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shared_core import (
    AllTargetsFailed,
    Capabilities,
    ErrorKind,
    ProviderError,
    RetryPolicy,
    Router,
    StreamBroken,
    Target,
    Timeouts,
)
from shared_core.resilience.breaker import CircuitState
from shared_core.testing import Broken, ScriptedProvider, Silence, VirtualClock

from .conftest import FACES

ANSWER = "one two three four five six seven eight nine ten"
K = ErrorKind
PASSING = {K.THROTTLED, K.RAMP, K.TRANSIENT, K.OVERLOADED, K.CONNECT, K.MALFORMED, K.STREAM_CUT, K.CONFLICT}


@st.composite
def _throttles(draw):
    wait = draw(st.sampled_from([0.2, 5.0, 9.0, 12.0, 700.0]))
    return ProviderError.of(K.THROTTLED, "slow down", retry_after_s=wait)


steps = st.one_of(
    st.just(ANSWER),
    st.sampled_from([k for k in K if k is not K.CANCELLED]),
    st.integers(0, 10).map(lambda n: Broken(" ".join(ANSWER.split()[:n]))),
    st.integers(0, 10).map(lambda n: Broken(" ".join(ANSWER.split()[:n]), None)),
    st.integers(0, 9).map(lambda n: Silence(" ".join(ANSWER.split()[:n]))),
    _throttles(),
)
scripts = st.lists(st.lists(steps, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4)
breaks = st.sampled_from(["continue", "restart", "raise"])
modes = st.sampled_from(["exact", "prefill", "instructed"])
totals = st.sampled_from([3.0, 25.0, 100.0, 600.0])


def fresh(step):
    """Errors are written to while they travel: every router gets its own."""
    if isinstance(step, ProviderError):
        return ProviderError.of(step.kind, step.message, retry_after_s=step.retry_after_s)
    return step


def build(script, *, on_stream_break="continue", total=600.0, mode="instructed", clock=None):
    clock = clock or VirtualClock()
    providers = [
        ScriptedProvider(*map(fresh, s), name=n, clock=clock, capabilities=Capabilities(continuation=mode))
        for n, s in zip("abcd", script, strict=False)
    ]
    router = Router(
        [Target(provider=p, name=p.name) for p in providers],
        clock=clock,
        seed=3,
        on_stream_break=on_stream_break,
        timeouts=Timeouts(total=total),
    )
    return router, providers, clock


SETTINGS = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(scripts, breaks, totals)
def test_the_promises_hold_on_every_face_whatever_the_targets_do(script, on_stream_break, total):
    for name, face in FACES.items():
        router, providers, clock = build(script, on_stream_break=on_stream_break, total=total)
        begun = clock.monotonic()
        got = face(router)
        journal = router.last
        left = Counter(a.target for a in journal.attempts if not getattr(a.error, "unsent", False))

        # Whole or honest: the exact answer once, or a typed error; a partial text is always said to be one.
        if got.error is None:
            assert got.text == ANSWER
            assert got.finished is not None
            assert got.fallback["attempts"][-1]["outcome"] == "answered"
        else:
            assert isinstance(got.error, (AllTargetsFailed, StreamBroken))
            assert ANSWER.startswith(got.text)
            if isinstance(got.error, StreamBroken):
                assert got.error.partial == got.text
            elif on_stream_break != "restart":
                assert got.text == ""
        # The journal counts what was sent.
        assert Counter(a.target for a in journal.attempts) == Counter({p.name: p.calls for p in providers if p.calls})
        # Conduct: at most two requests a target, two retries in all, within the deadline.
        assert all(count <= 2 for count in left.values())
        assert left.total() <= len(script) + 2
        assert all(p.calls - left[p.name] <= 2 for p in providers), "what never left is tried once more at most"
        assert clock.monotonic() - begun <= total + 1e-6
        # Nothing is left open, nothing unsettled.
        assert [p.open for p in providers] == [0] * len(providers)
        assert all(h.in_flight == 0 for h in router.health())
        assert all(a.ended is not None and a.outcome in ("answered", "failed") for a in journal.attempts)
        # Every target had its turn, unless the request was at fault, the reader was told, or time was up.
        late = clock.monotonic() - begun >= total - 1e-6
        fatal = any(e.kind in (K.BAD_REQUEST, K.POLICY) for e in journal.errors if isinstance(e, ProviderError))
        skipped = {s.target for s in journal.skips}
        if got.error is not None and not late and not fatal and on_stream_break != "raise":
            assert all(p.calls or p.name in skipped for p in providers), name
        # Money errors, silence and refusals are never retried.
        for a, again in zip(journal.attempts, journal.attempts[1:], strict=False):
            if a.target == again.target:
                assert a.error.kind in PASSING, a
        # No server's wait is shortened.
        for i, a in enumerate(journal.attempts):
            wait = getattr(a.error, "retry_after_s", None)
            if wait and a.error.kind is K.THROTTLED:
                later = [x for x in journal.attempts[i + 1 :] if x.target == a.target]
                assert all(x.started - a.ended >= wait for x in later)


@SETTINGS
@given(scripts, breaks, totals, modes)
def test_sync_and_async_are_one_algorithm(script, on_stream_break, total, mode):
    """The same script gives the same attempts, times, events, text and error on both drivers."""
    for sync, async_ in (("invoke", "ainvoke"), ("stream", "astream")):
        results = []
        for name in (sync, async_):
            router, providers, clock = build(script, on_stream_break=on_stream_break, total=total, mode=mode)
            got = FACES[name](router)
            journal = router.last.metadata()
            journal.pop("id")
            results.append(
                (
                    got.text,
                    got.kinds,
                    str(type(got.error)),
                    str(got.error),
                    journal,
                    clock.sleeps,
                    clock.monotonic(),
                    [p.calls for p in providers],
                    [(h.circuit, h.calls, h.success_rate) for h in router.health()],
                    router.costs(),
                )
            )
        assert results[0] == results[1]


@SETTINGS
@given(st.integers(1, 9), modes, st.sampled_from(["whole", "rest"]))
def test_a_healthy_second_target_always_gives_the_exact_answer(cut, mode, second):
    text = " ".join(ANSWER.split()[:cut])
    rest = ANSWER if second == "whole" and mode != "exact" else ANSWER[len(text) :]
    for name in ("stream", "astream"):
        router, _, _ = build([(Broken(text),), (rest,)], mode=mode)
        assert FACES[name](router).text == ANSWER


class Traffic(RuleBasedStateMachine):
    """Many calls through one router while targets fail and heal and time passes, beside a model of what may be sent."""

    @initialize()
    def begin(self) -> None:
        self.clock = VirtualClock()
        self.providers = [ScriptedProvider(ANSWER, name=n, clock=self.clock) for n in "abc"]
        self.router = Router([Target(provider=p, name=p.name) for p in self.providers], clock=self.clock, seed=5)
        self.parked = dict.fromkeys("abc", 0.0)

    @rule(which=st.integers(0, 2), step=steps.filter(lambda s: s not in (K.POLICY, K.BAD_REQUEST)))
    def change(self, which: int, step: object) -> None:
        provider = self.providers[which]
        if isinstance(step, ProviderError):
            wait = step.retry_after_s
            provider.script = (lambda _: ProviderError.of(K.THROTTLED, "slow down", retry_after_s=wait),)
        else:
            provider.script = (step,)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(face=st.sampled_from(list(FACES)))
    def call(self, face: str) -> None:
        before = [p.calls for p in self.providers]
        open_until = [
            r.gate.breaker.open_until or 0.0 if r.gate.state is CircuitState.OPEN else 0.0
            for r in self.router._fleet.routes
        ]
        got = FACES[face](self.router)
        sent = [p.calls - b for p, b in zip(self.providers, before, strict=True)]
        for until, n, target in zip(open_until, sent, "abc", strict=True):
            if self.clock.monotonic() < until:  # a silent target, or a wait, may have taken the call past it
                assert n == 0, f"packets to the open circuit of {target}"
            assert n <= 2
        assert got.text == ANSWER or got.error is not None
        self.clock.sleeps.clear()

    @invariant()
    def nothing_in_flight(self) -> None:
        if hasattr(self, "router"):
            assert all(h.in_flight == 0 for h in self.router.health())
            assert all(p.open == 0 for p in self.providers)
            assert all(0 <= r.gate.budget.tokens <= 10 for r in self.router._fleet.routes)


Traffic.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase


def test_the_policy_of_no_retries_sends_exactly_one_request_each():
    clock = VirtualClock()
    providers = [ScriptedProvider(K.TRANSIENT, name=n, clock=clock) for n in "abc"]
    router = Router(list(providers), clock=clock, retry=RetryPolicy(same_target=0))
    for face in FACES.values():
        face(router)
        router.reset()
    assert [p.calls for p in providers] == [4, 4, 4]
