"""Changing a router while it works: targets added, taken out, replaced, switched off, asked first."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from shared_core import AllTargetsFailed, Chain, ConfigurationError, ErrorKind, RetryPolicy, Router, Target, TextDelta
from shared_core.chat.request import ChatRequest, user
from shared_core.testing import ScriptedProvider, VirtualClock

HI = ChatRequest((user("Hello"),))


class Closing(ScriptedProvider):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def target(name: str, *script: Any, **options: Any) -> Target:
    return Target(provider=Closing(*(script or (f"from {name}",)), name=name), name=name, **options)


def names(router: Router) -> list[str]:
    return [one.name for one in router.targets]


def test_a_target_is_added_where_it_is_wanted():
    with Router([target("a"), target("b")]) as router:
        router.add(target("c"))
        assert router.add(target("first"), position=0).name == "first"
        assert names(router) == ["first", "a", "b", "c"]
        assert router.invoke(HI).target == "first"
        assert router.explain(HI.replace(chain="low-cost")).targets == ("first", "a", "b", "c")
        assert router.health()["first"].calls == 1
        router.add("llamacpp:tiny")
        assert names(router)[-1] == "llamacpp:tiny"


def test_a_target_is_taken_out_and_chains_lose_it():
    with Router(
        [target("a"), target("b")], chains={"both": {"targets": ["a", "b"]}, "one": {"targets": ["b"]}}
    ) as router:
        assert router.remove("a").name == "a"
        assert names(router) == ["b"]
        assert router.explain(HI.replace(chain="both")).targets == ("b",)
        with pytest.raises(ConfigurationError, match="at least one target"):
            router.remove("b")
        router.add(target("a"))
        assert router.explain(HI.replace(chain="both")).targets == ("a", "b"), "who comes back is in its chains again"
        with pytest.raises(ConfigurationError, match="chain 'one' would be left without a target"):
            router.remove("b")
        assert names(router) == ["b", "a"], "what cannot be is not begun"


def test_a_target_is_replaced_in_its_place_and_in_chains():
    with Router([target("old", ErrorKind.TRANSIENT), target("b")], chains={"x": {"targets": ["old"]}}) as router:
        router.force_open("old")
        router.replace("old", target("new"))
        assert names(router) == ["new", "b"]
        assert router.invoke(HI).target == "new", "its circuit is its own"
        assert router.invoke(HI.replace(chain="x")).target == "new"
        assert router.chains["x"] == Chain(("new",))
        with pytest.raises(ConfigurationError, match="share the name 'b'"):
            router.replace("new", target("b"))
        assert router.chains["x"] == Chain(("new",))
        router.replace("new", target("new", "anew"))
        assert router.invoke(HI).text == "anew"


def test_a_disabled_target_is_not_asked_and_keeps_its_record():
    with Router([target("a"), target("b")], chains={"x": {"retry": {"total": 0}}}) as router:
        router.invoke(HI)
        router.disable("a")
        assert router.explain(HI).excluded == (("a", "disabled"),)
        assert router.invoke(HI).target == router.invoke(HI.replace(chain="x")).target == "b"
        router.disable("a")
        assert router.health()["a"].calls == 1
        router.enable("a")
        assert router.invoke(HI).target == router.invoke(HI.replace(chain="x")).target == "a"
        assert router.health()["a"].calls == 3
        router.disable("a")
        router.disable("b")
        with pytest.raises(AllTargetsFailed, match="disabled"):
            router.invoke(HI)


def test_a_pinned_target_is_first_whatever_the_strategy_and_the_chain():
    with Router([target("a"), target("b"), target("c", weight=99)], strategy="weighted") as router:
        router.pin("b")
        assert router.explain(HI).targets[0] == "b"
        assert router.explain(HI.replace(chain="low-cost")).targets[0] == "b"
        assert {router.invoke(HI).target for _ in range(9)} == {"b"}
        router.force_open("b")
        assert router.invoke(HI).target == "c", "the others are behind it"
        router.unpin()
        assert router.explain(HI).targets[0] == "c"
        router.pin("a")
        router.remove("a")
        assert router.explain(HI).targets[0] == "c", "who is gone is pinned no more"


def test_a_model_named_by_the_request_goes_before_the_pinned_target():
    with Router([target("a"), target("b")]) as router:
        router.pin("a")
        assert router.invoke(HI.replace(model="b")).target == "b"


@pytest.mark.parametrize("act", ["remove", "enable", "disable", "pin", "force_open"])
def test_an_unknown_name_names_the_nearest(act: str):
    with Router([target("backup")]) as router, pytest.raises(ConfigurationError, match="Did you mean 'backup'"):
        getattr(router, act)("bakcup")


def test_a_taken_name_and_a_target_that_cannot_be_built_change_nothing():
    with Router([target("a")]) as router:
        for wrong, says in ((target("a"), "share the name 'a'"), ("opnai:x", "Did you mean 'openai'")):
            with pytest.raises(ConfigurationError, match=says):
                router.add(wrong)
        assert names(router) == ["a"]


def test_a_call_in_flight_ends_as_it_would_have():
    """Sync, in the middle of its stream: the target is taken out, and closed only after the call."""
    clock = VirtualClock()
    slow = Closing("one two three", name="slow")
    with Router([Target(provider=slow, name="slow"), target("b")], clock=clock) as router:
        stream = router.stream(HI)
        said = [next(stream) for _ in range(3)]
        router.remove("slow")
        clock.sleep(3600)
        router.add(target("c"))
        assert not slow.closed
        said += list(stream)
        assert "".join(event.text for event in said if isinstance(event, TextDelta)) == "one two three"
        assert router.invoke(HI).target == "b"
        router.add(target("d"))
        assert slow.closed == 1, "an operation later, once it is idle"
    assert slow.closed == 1


def test_what_was_taken_out_lately_is_closed_with_the_router():
    gone = Closing("x", name="gone")
    with Router([Target(provider=gone, name="gone"), target("b")]) as router:
        router.remove("gone")
        assert not gone.closed, "a request may have planned it a moment ago"
    assert gone.closed == 1


async def test_async_calls_in_flight_are_kept_too():
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Waiting(ScriptedProvider):
        async def astream(self, request: Any, guard: Any) -> Any:
            begun.set()
            await go_on.wait()
            async for event in super().astream(request, guard):
                yield event

    async with Router([Target(provider=Waiting("kept", name="a"), name="a"), target("b")]) as router:
        call = asyncio.create_task(router.ainvoke(HI))
        await begun.wait()
        router.remove("a")
        go_on.set()
        assert (await call).text == "kept"


def test_threads_may_change_and_ask_at_once():
    """Whoever asks gets a whole answer from somebody who was there; nobody is lost, and nothing is torn."""
    router = Router([target("stays")], retry=RetryPolicy(0, 0))
    stop = threading.Event()
    wrong: list[BaseException] = []

    def guarded(work: Any) -> Any:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:  # shown below, in the test's own thread
                wrong.append(error)

        return run

    def change(name: str) -> Any:
        def work() -> None:
            router.add(target(name), position=0)
            router.pin(name)
            router.disable(name)
            router.enable(name)
            router.replace(name, target(name))
            router.unpin()
            router.remove(name)

        return work

    asked: list[str] = []
    jobs = [change("x"), change("y"), *[lambda: asked.append(router.invoke(HI).text)] * 3]
    threads = [threading.Thread(target=guarded(job)) for job in jobs]
    for thread in threads:
        thread.start()
    while len(asked) < 300 and not wrong:
        stop.wait(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(asked) <= {"from stays", "from x", "from y"}
    assert names(router) == ["stays"]
    router.close()


def test_a_standby_that_is_added_reads_ahead_from_then_on():
    with Router([target("a")]) as router:
        assert not router._fleet.line.rules.flow.prefill
        router.add(Target("llamacpp:tiny", standby="prefill"))
        assert router._fleet.line.rules.flow.prefill
        router.remove("llamacpp:tiny")
        assert not router._fleet.line.rules.flow.prefill
