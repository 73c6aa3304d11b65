"""What the core's tests share: a router over scripted targets on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from shared_core import ChatRequest, Finished, Restarted, Router, Target, TextDelta, ToolCall, user
from shared_core.testing import ScriptedProvider, VirtualClock


@dataclass
class Got:
    """What a caller got from one call, whichever face it used."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finished: Finished | None = None
    error: BaseException | None = None
    kinds: list[str] = field(default_factory=list)

    @property
    def fallback(self) -> Any:
        return self.finished.fallback if self.finished else getattr(self.error, "fallback", {})

    def take(self, event: Any) -> None:
        self.kinds.append(type(event).__name__)
        match event:
            case TextDelta():
                self.text += event.text
            case Restarted():
                self.text = ""
            case ToolCall():
                self.calls.append(event)
            case Finished():
                self.finished = event


REQUEST = ChatRequest((user("Hello"),))


def whole(router: Router, request: ChatRequest = REQUEST) -> Got:
    got = Got()
    try:
        answer = router.invoke(request)
        got.text, got.calls = answer.text, list(answer.tool_calls)
        got.finished = Finished(
            answer.finish_reason, usage=answer.usage, target=answer.target, fallback=answer.fallback
        )
    except Exception as error:
        got.error = error
    return got


def streamed(router: Router, request: ChatRequest = REQUEST) -> Got:
    got = Got()
    try:
        for event in router.stream(request):
            got.take(event)
    except Exception as error:
        got.error = error
    return got


def awhole(router: Router, request: ChatRequest = REQUEST) -> Got:
    async def main() -> Got:
        got = Got()
        try:
            answer = await router.ainvoke(request)
            got.text, got.calls = answer.text, list(answer.tool_calls)
            got.finished = Finished(
                answer.finish_reason, usage=answer.usage, target=answer.target, fallback=answer.fallback
            )
        except Exception as error:
            got.error = error
        return got

    return asyncio.run(main())


def astreamed(router: Router, request: ChatRequest = REQUEST) -> Got:
    async def main() -> Got:
        got = Got()
        try:
            async for event in router.astream(request):
                got.take(event)
        except Exception as error:
            got.error = error
        return got

    return asyncio.run(main())


FACES: dict[str, Callable[..., Got]] = {"invoke": whole, "stream": streamed, "ainvoke": awhole, "astream": astreamed}


@pytest.fixture(params=list(FACES))
def face(request):
    """Each of the four faces in turn."""
    return FACES[request.param]


@pytest.fixture(params=["stream", "astream"])
def stream_face(request):
    """Both streamed faces in turn."""
    return FACES[request.param]


@dataclass
class Bench:
    """A router over scripted targets named a, b, c, …, and the clock they share."""

    router: Router
    clock: VirtualClock
    providers: list[ScriptedProvider]

    @property
    def calls(self) -> list[int]:
        return [p.calls for p in self.providers]


@pytest.fixture
def bench() -> Callable[..., Bench]:
    """`bench(script_of_a, script_of_b, …, **router_options)`; a script is one step or a tuple of steps."""

    def build(*scripts: Any, targets: list[dict[str, Any]] | None = None, **options: Any) -> Bench:
        clock = VirtualClock()
        providers = [
            ScriptedProvider(*(s if isinstance(s, tuple) else (s,)), name=name, model="m", clock=clock)
            for name, s in zip("abcdefgh", scripts, strict=False)
        ]
        extras = targets or [{} for _ in providers]
        made = [Target(provider=p, name=p.name, **extra) for p, extra in zip(providers, extras, strict=True)]
        return Bench(Router(made, clock=clock, seed=7, **options), clock, providers)

    return build
