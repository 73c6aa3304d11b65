"""A stand-in's answer is served while the one it stood in for cannot be asked, and not a call longer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from shared_core import ChatRequest, Constraints, ErrorKind, ProviderError, Router, Target, user
from shared_core.cache.decide import servable
from shared_core.testing import ScriptedProvider, VirtualClock
from tests.cache.conftest import FACES

ASK = ChatRequest((user("Hello"),))


class TestDecision:
    @given(st.lists(st.booleans(), max_size=6))
    def test_a_target_is_served_from_what_is_kept_if_all_before_it_refuse(self, refusing):
        """And only then; the order is that of the plan."""
        allowed = list(servable(range(len(refusing)), lambda i: refusing[i]))
        assert allowed == [i for i in range(len(refusing)) if all(refusing[:i])]


class TestOutage:
    @pytest.mark.parametrize("kind", [ErrorKind.AUTH, ErrorKind.BILLING, ErrorKind.NOT_FOUND], ids=str)
    def test_while_the_primary_is_locked_the_stand_in_is_asked_once(self, bench, face, kind):
        """Every repeat is served, and the locked one gets no packet."""
        b = bench((kind, "healed"), "from b", cache=True)
        got = [face(b.router) for _ in range(5)]
        assert [g.text for g in got] == ["from b"] * 5
        assert [g.fallback["cache"] for g in got] == ["miss", "hit", "hit", "hit", "hit"]
        assert [g.fallback["used_fallback"] for g in got] == [True] * 5
        assert b.calls == [1, 1]

    def test_when_the_primary_is_back_it_is_asked(self, bench, face):
        """What the stand-in said in the meantime is not served for it; and each keeps its own."""
        b = bench((ErrorKind.AUTH, "from a"), "from b", cache=True)
        face(b.router)
        assert face(b.router).text == "from b"
        b.router.reset("a")
        back = face(b.router)
        assert (back.text, back.fallback["cache"], back.fallback["used_fallback"]) == ("from a", "miss", False)
        assert face(b.router).text == "from a"
        b.router.force_open("a")
        again = face(b.router)
        assert (again.text, again.fallback["cache"]) == ("from a", "hit")  # its own answer is as good as ever
        assert b.calls == [2, 1]

    def test_a_wait_that_has_passed_is_no_reason_any_more(self, bench, face):
        """A parked primary is asked again the moment it may be."""
        slow_down = ProviderError.of(ErrorKind.THROTTLED, "slow down", retry_after_s=60.0)
        b = bench((slow_down, "from a"), "from b", cache=True)
        assert face(b.router).text == "from b"
        b.clock.advance(59)
        assert face(b.router).fallback["cache"] == "hit"
        b.clock.advance(1.5)
        assert face(b.router).text == "from a"

    def test_a_disabled_or_forbidden_primary_is_out_of_the_plan(self, bench, face):
        """The next one is first, and what it has said is served."""
        b = bench("from a", "from b", cache=True)
        b.router.disable("a")
        assert [face(b.router).text for _ in range(2)] == ["from b", "from b"]
        b.router.enable("a")
        assert face(b.router).text == "from a"
        only_b = ASK.replace(constraints=Constraints(allow={"b"}))
        assert face(b.router, only_b).fallback["cache"] == "hit"
        assert b.calls == [1, 1]

    def test_another_order_is_another_primary(self, bench, face):
        """By strategy, by pin, by chain: whoever would be asked is served from what it said."""
        b = bench("from a", "from b", cache=True)
        face(b.router)
        b.router.pin("b")
        assert [face(b.router).text for _ in range(2)] == ["from b", "from b"]
        b.router.unpin()
        assert face(b.router).fallback["cache"] == "hit"
        assert b.calls == [1, 1]


class Aliasing(RuleBasedStateMachine):
    """Three targets that open, close, go and come back; every answer is that of whom a plain model would ask."""

    @initialize(face=st.sampled_from(sorted(FACES)))
    def begin(self, face: str) -> None:
        self.face = FACES[face]
        self.clock = VirtualClock()
        self.providers = [ScriptedProvider(f"from {n}", name=n, model="m") for n in "abc"]
        self.router = Router(
            [Target(provider=p, name=p.name) for p in self.providers], cache={"ttl_s": 100}, clock=self.clock
        )
        self.open: set[str] = set()
        self.off: set[str] = set()
        self.kept: dict[tuple[str, int], float] = {}
        self.calls = dict.fromkeys("abc", 0)

    @rule(name=st.sampled_from("abc"))
    def opens(self, name: str) -> None:
        self.router.force_open(name)
        self.open.add(name)

    @rule(name=st.sampled_from("abc"))
    def closes(self, name: str) -> None:
        self.router.reset(name)
        self.open.discard(name)

    @rule(name=st.sampled_from("abc"))
    def goes(self, name: str) -> None:
        self.router.disable(name)
        self.off.add(name)

    @rule(name=st.sampled_from("abc"))
    def comes(self, name: str) -> None:
        self.router.enable(name)
        self.off.discard(name)

    @rule(seconds=st.sampled_from([1.0, 40.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def forgets(self) -> None:
        self.router.cache.clear()
        self.kept.clear()

    @rule(seed=st.integers(0, 1), use=st.sampled_from([None, False, "refresh"]), deny=st.sampled_from(["", "a", "b"]))
    def asks(self, seed: int, use, deny: str) -> None:
        request = ASK.replace(seed=seed, cache=use, constraints=Constraints(deny={deny} if deny else set()))
        got = self.face(self.router, request)
        now = self.clock.monotonic()
        plan = [n for n in "abc" if n not in self.off and n != deny]
        if use is None:
            for name in plan:
                if now - self.kept.get((name, seed), -1e9) < 100:
                    assert (got.text, got.fallback["cache"]) == (f"from {name}", "hit")
                    return
                if name not in self.open:
                    break
        first = next((n for n in plan if n not in self.open), None)
        if first is None:
            # Nobody can be asked: what is kept of anybody in the plan is as good as there is, but for a refresh.
            name = next((n for n in plan if now - self.kept.get((n, seed), -1e9) < 100), None)
            if use is not None or name is None:
                assert got.error is not None
            else:
                assert got.text == f"from {name}"
            return
        assert got.text == f"from {first}"
        assert got.fallback["cache"] == {None: "miss", False: "off", "refresh": "refresh"}[use]
        self.calls[first] += 1
        if use is not False:
            self.kept[first, seed] = now

    @invariant()
    def nobody_else_was_asked(self) -> None:
        if hasattr(self, "providers"):
            assert {p.name: p.calls for p in self.providers} == self.calls


def test_every_answer_is_that_of_whom_a_plain_model_would_ask():
    """Whatever opens, goes, comes back, is forgotten or forbidden, in any order."""
    run_state_machine_as_test(Aliasing, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
