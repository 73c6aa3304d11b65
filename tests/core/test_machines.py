"""Random walks of the retry budget, the planner, the seam and the flow, each beside a model small enough to read."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared_core import (
    AllTargetsFailed,
    BreakerConfig,
    Capabilities,
    ChatRequest,
    Constraints,
    ErrorKind,
    Image,
    OutputSchema,
    RetryPolicy,
    Router,
    Target,
    ToolSpec,
    user,
)
from shared_core.resilience.retry import RetryBudget
from shared_core.routing.seam import Seam
from shared_core.testing import ScriptedProvider, VirtualClock

from .conftest import FACES

K = ErrorKind
WALK = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Budget(RuleBasedStateMachine):
    """A retry budget beside exact arithmetic."""

    @initialize()
    def begin(self) -> None:
        self.budget, self.tokens = RetryBudget(), Fraction(10)

    @rule()
    def success(self) -> None:
        self.budget.success()
        self.tokens = min(Fraction(10), self.tokens + Fraction(1, 10))

    @rule()
    def failure(self) -> None:
        self.budget.failure()
        self.tokens = max(Fraction(0), self.tokens - 1)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "budget"):
            assert abs(self.budget.tokens - float(self.tokens)) < 1e-6
            if abs(self.tokens - 5) > Fraction(1, 1000):
                assert self.budget.allows_retry is (self.tokens > 5)


Budget.TestCase.settings = WALK
TestRetryBudgetWalk = Budget.TestCase


class Planning(RuleBasedStateMachine):
    """Targets come and change, requests are planned; the model judges each target by itself, in plain words."""

    @initialize()
    def begin(self) -> None:
        self.targets: dict[str, dict] = {}
        self.strategy = "priority"
        self.calls = 0
        self.router: Router | None = None

    @precondition(lambda self: len(self.targets) < 6)
    @rule(
        tools=st.booleans(),
        images=st.booleans(),
        json_schema=st.booleans(),
        window=st.sampled_from([None, 10, 1000]),
        local=st.booleans(),
        enabled=st.booleans(),
    )
    def add(self, **facts) -> None:
        self.targets["abcdef"[len(self.targets)]] = facts
        self.router = None

    @rule(strategy=st.sampled_from(["priority", "round_robin"]))
    def choose(self, strategy: str) -> None:
        self.strategy, self.router = strategy, None

    def _router(self) -> Router:
        if self.router is None:
            made = []
            for name, t in self.targets.items():
                provider = ScriptedProvider("ok", name=name)
                provider.local = t["local"]
                capabilities = Capabilities(
                    tools=t["tools"], images=t["images"], json_schema=t["json_schema"], context_window=t["window"]
                )
                made.append(Target(provider=provider, name=name, capabilities=capabilities, enabled=t["enabled"]))
            self.router, self.calls = Router(made, strategy=self.strategy, clock=VirtualClock()), 0
        return self.router

    @precondition(lambda self: self.targets)
    @rule(
        tools=st.booleans(),
        image=st.booleans(),
        schema=st.booleans(),
        long=st.booleans(),
        local_only=st.booleans(),
        deny=st.sampled_from([None, "a", "b"]),
    )
    def plan(self, tools, image, schema, long, local_only, deny) -> None:
        router = self._router()
        parts = ["x" * 600 if long else "x"]
        request = ChatRequest(
            (user(parts[0]), *([user(Image(data=b"x"))] if image else [])),
            tools=(ToolSpec("look"),) if tools else (),
            output=OutputSchema({"type": "object"}) if schema else None,
            constraints=Constraints(local_only=local_only, deny=frozenset({deny} if deny else ())),
        )
        able = [
            name
            for name, t in self.targets.items()
            if t["enabled"]
            and (t["local"] or not local_only)
            and name != deny
            and (t["tools"] or not tools)
            and (t["images"] or not image)
            and (t["json_schema"] or not schema)
            and (t["window"] is None or t["window"] >= 100 or not long)
        ]
        if self.strategy == "round_robin" and able:
            first = self.calls % len(able)
            able = able[first:] + able[:first]
        plan = router.explain(request)
        assert list(plan.targets) == able
        assert {name for name, _ in plan.excluded} == set(self.targets) - set(able)
        assert all(reason for _, reason in plan.excluded)
        try:
            answer = router.invoke(request)
        except AllTargetsFailed:
            assert not able
        else:
            assert answer.target == able[0]
        self.calls += 1


Planning.TestCase.settings = WALK
TestPlannerWalk = Planning.TestCase


def joined(delivered: str, continuation: str) -> str:
    """What a seam must give for a continuation known whole: a repeat of all of it removed, else of the last words."""
    if continuation.startswith(delivered):
        return continuation
    spoken, said = delivered.split(" "), continuation.split(" ")
    for n in range(min(len(spoken), len(said)), 0, -1):
        if spoken[-n:] == said[:n]:
            return " ".join([*spoken, *said[n:]])
    return delivered + continuation


WORDS = [f"w{chr(97 + i)}x{i}" for i in range(20)]


class Joining(RuleBasedStateMachine):
    """A continuation comes in arbitrary pieces; the seam must give what its model gives for the whole of it."""

    @initialize(cut=st.integers(1, 19), manner=st.sampled_from(["whole", "rest", "overlap"]), back=st.integers(1, 19))
    def begin(self, cut: int, manner: str, back: int) -> None:
        self.delivered = " ".join(WORDS[:cut])
        start = {"whole": 0, "rest": cut, "overlap": max(0, cut - back)}[manner]
        self.coming = (" " if manner == "rest" else "") + " ".join(WORDS[start:])
        self.expected = joined(self.delivered, self.coming)
        assert self.expected == " ".join(WORDS)
        self.seam = Seam(self.delivered, "instructed")
        self.got = self.delivered

    @rule(size=st.integers(1, 30))
    def piece(self, size: int) -> None:
        head, self.coming = self.coming[:size], self.coming[size:]
        self.got += self.seam.feed(head)
        assert self.expected.startswith(self.got), "never a letter too much, at any time"

    @invariant()
    def complete_when_over(self) -> None:
        if getattr(self, "coming", None) == "" and hasattr(self, "seam"):
            assert self.got + self.seam.close() == self.expected


Joining.TestCase.settings = WALK
TestSeamWalk = Joining.TestCase


RETRIED = {K.TRANSIENT, K.CONNECT, K.MALFORMED, K.STREAM_CUT, K.CONFLICT}
LOCKED = {K.NOT_FOUND: 600.0, K.FORBIDDEN: 600.0, K.NO_ENTITLEMENT: 900.0, K.AUTH: 900.0, K.BILLING: 900.0}
PASSED = {K.TOO_LARGE, K.INCAPABLE, K.CONFIG, K.UNKNOWN}
FATAL = {K.BAD_REQUEST, K.POLICY}
COUNTED = {K.TRANSIENT, K.CONNECT, K.MALFORMED, K.STREAM_CUT, K.OVERLOADED, K.UNKNOWN}


class Flowing(RuleBasedStateMachine):
    """One router, targets that change their minds and time that passes; the model says who is asked how often."""

    @initialize()
    def begin(self) -> None:
        self.clock = VirtualClock()
        self.providers = {n: ScriptedProvider("ok", name=n, clock=self.clock) for n in "abc"}
        self.router = Router(
            [Target(provider=p, name=n) for n, p in self.providers.items()],
            clock=self.clock,
            seed=1,
            breaker=BreakerConfig(consecutive_failures=10**6, minimum_calls=10**6),
            retry=RetryPolicy(base_s=0, overloaded_base_s=0),
        )
        self.kind: dict[str, ErrorKind | None] = dict.fromkeys("abc")
        self.locked = dict.fromkeys("abc", 0.0)
        self.tokens = dict.fromkeys("abc", 10.0)

    @rule(
        name=st.sampled_from("abc"),
        kind=st.sampled_from([None, *[K.OVERLOADED] * 8, *RETRIED, *LOCKED, *PASSED, *FATAL]),
    )
    def change(self, name: str, kind: ErrorKind | None) -> None:
        self.kind[name] = kind
        self.providers[name].script = ("ok" if kind is None else kind,)

    @rule(seconds=st.sampled_from([1.0, 599.0, 601.0, 901.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def _ask(self, name: str, asked: list[str]) -> ErrorKind | None:
        kind = self.kind[name]
        asked.append(name)
        if kind is None:
            self.tokens[name] = min(10.0, self.tokens[name] + 0.1)
        elif kind in COUNTED:
            self.tokens[name] = max(0.0, self.tokens[name] - 1)
        if kind in LOCKED:
            self.locked[name] = self.clock.monotonic() + LOCKED[kind]
        return kind

    def _model(self) -> tuple[list[str], str | None]:
        """Who is asked, in order, and who answers."""
        asked: list[str] = []
        later: list[str] = []
        retries = 2
        names = list("abc")
        for i, name in enumerate(names):
            if self.clock.monotonic() < self.locked[name]:
                continue
            kind = self._ask(name, asked)
            if kind is None:
                return asked, name
            if kind in FATAL:
                return asked, None
            if kind is K.CONNECT:  # nothing has left: once more, and it counts for nothing
                self._ask(name, asked)
                continue
            may = retries > 0 and self.tokens[name] > 5
            if kind is K.OVERLOADED and may and i < 2:
                later.append(name)
            elif (kind in RETRIED or kind is K.OVERLOADED) and may:
                retries -= 1
                if self._ask(name, asked) is None:
                    return asked, name
        for name in later:
            if retries > 0:
                retries -= 1
                if self._ask(name, asked) is None:
                    return asked, name
        return asked, None

    @rule(face=st.sampled_from(list(FACES)))
    def call(self, face: str) -> None:
        expected, server = self._model()
        got = FACES[face](self.router)
        assert [a.target for a in self.router.last.attempts] == expected
        assert (got.finished.target if got.finished else None) == server
        assert (got.error is None) is (server is not None)


Flowing.TestCase.settings = WALK
TestFlowWalk = Flowing.TestCase
