"""How fast the local model lets go, comes back and takes over: each trial returns plain figures.

    python -m tools.local_trials cancel     a caller goes while the prompt is being read
    python -m tools.local_trials restart    kill -9, then the first token
    python -m tools.local_trials prefill    a failover with and without the prompt read ahead, and its price

The soak is `python -m tools.local_soak`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared_core.chat.events import TextDelta
from shared_core.chat.request import ChatRequest, user
from shared_core.errors import ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.deadline import Guard, Timeouts
from shared_core.resilience.retry import RetryPolicy
from shared_core.router import Router
from shared_core.routing.target import Target
from shared_core.testing import FaultServer
from shared_core.testing.random_gguf import write_random_gguf

__all__ = ["cancel", "prefill", "restart"]

Figures = dict[str, Any]


def _spread(seconds: Sequence[float]) -> Figures:
    """Milliseconds: the middle, the tail and the worst."""
    ranked = sorted(s * 1000 for s in seconds)
    tail = ranked[min(len(ranked) - 1, math.ceil(0.99 * len(ranked)) - 1)]
    return {
        "p50_ms": round(statistics.median(ranked), 2),
        "p99_ms": round(tail, 2),
        "max_ms": round(ranked[-1], 2),
        "times": len(ranked),
    }


@contextmanager
def _random_model(width: int, layers: int, **options: Any) -> Iterator[LlamaCppProvider]:
    """A provider over a random model of that size, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_gguf(Path(folder) / "random.gguf", seed=3, width=width, layers=layers, context=8192)
        provider = LlamaCppProvider(Target(f"llamacpp:{path}", **options))
        try:
            provider.warm()
            yield provider
        finally:
            provider.close()


def _prompt(number: int, words: int) -> ChatRequest:
    """A prompt that begins like no other, so that nothing of it is known already."""
    return ChatRequest((user(f"{number} " * 4 + "word " * words),), streaming=True, max_tokens=4)


def _until_idle(provider: LlamaCppProvider) -> float:
    """When the model was free, to a tenth of a millisecond."""
    supervisor = provider._held[provider.model]
    while supervisor.load[0]:
        time.sleep(0.0001)
    return time.monotonic()


def cancel(*, quick: bool = False, engine: str | None = None, seed: int = 1, times: int | None = None) -> Figures:
    """From the moment a caller goes, at a random point of the evaluation of its prompt, until it is free and until the
    model is. Sync: its limit runs out. Async: its task is cancelled. The prompt takes seconds.
    """
    times, chance = times or (15 if quick else 150), random.Random(seed)
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    caller: dict[str, list[float]] = {"sync": [], "async": []}
    model: dict[str, list[float]] = {"sync": [], "async": []}
    with _random_model(256, 6, n_ctx=8192, **options) as provider:
        pid = provider.pid
        begun = time.monotonic()
        for _ in provider.stream(_prompt(0, 900), _guard(math.inf)):
            break
        whole_s = time.monotonic() - begun
        _until_idle(provider)
        for number in range(1, times + 1):
            after = chance.uniform(0.05, 0.6) * whole_s
            limit = _guard(after)
            try:
                for _ in provider.stream(_prompt(number, 900), limit):
                    break  # the prompt was read before the limit: no cancel in the middle of it
            except ProviderError:
                caller["sync"].append(time.monotonic() - limit.at)
                model["sync"].append(_until_idle(provider) - limit.at)
            _until_idle(provider)
            gone, free = asyncio.run(_cancelled(provider, _prompt(-number, 900), after))
            if free is not None:
                caller["async"].append(free - gone)
                model["async"].append(_until_idle(provider) - gone)
            _until_idle(provider)
        obeyed = provider.pid == pid
    return {
        "prompt_s": round(whole_s, 2),
        "caller_free": {face: _spread(times_) for face, times_ in caller.items()},
        "model_free": {face: _spread(times_) for face, times_ in model.items()},
        "limit": "p99 <= 50 ms",
        "holds": all(_spread(t)["p99_ms"] <= 50 for t in (*caller.values(), *model.values())),
        "never_killed": obeyed,
    }


async def _cancelled(provider: LlamaCppProvider, request: ChatRequest, after: float) -> tuple[float, float | None]:
    """When the task was cancelled and when it was over; None if the prompt had been read before."""

    async def read() -> None:
        async for _ in provider.astream(request, _guard(math.inf)):
            break

    task = asyncio.create_task(read())
    await asyncio.sleep(after)
    gone = time.monotonic()
    if not task.cancel():
        return gone, None
    await asyncio.gather(task, return_exceptions=True)
    return gone, time.monotonic()


def _guard(first_s: float) -> Guard:
    return Guard(time.monotonic, streaming=True, first_s=first_s)


def restart(*, quick: bool = False, engine: str | None = None) -> Figures:
    """From a kill -9 of the toy model's process to the next first token: while idle, in the middle of an answer that
    the router goes on with, and with a standby that starts again by itself.
    """
    times = 3 if quick else 15
    question = ChatRequest((user("Explain how transformers work."),), streaming=True)
    options: dict[str, Any] = {} if engine is None else {"engine": engine}
    idle: list[float] = []
    middle: list[float] = []
    standing: list[float] = []
    answers: set[str] = set()
    # So many crashes would make it unhealthy, which is not what is measured here.
    provider = LlamaCppProvider(Target("llamacpp:tiny", max_restarts=10_000, queue=3, **options))
    with Router([provider]) as router:
        router.warm()
        for _ in range(times):
            _kill(provider)
            begun = time.monotonic()
            idle.append(_first_text(router, question) - begun)
            _forget_crashes(provider)
        for _ in range(times):
            gap, text = _killed_in_the_middle(router, provider, question)
            middle.append(gap)
            answers.add(text)
            _forget_crashes(provider)
            router.reset()  # nor is its circuit: half of all attempts fail here, and each asks for another try
        answers.add(router.invoke(question.replace(streaming=False)).text)
    ready = LlamaCppProvider(Target("llamacpp:tiny", max_restarts=10_000, queue=4, standby="warm", **options))
    with Router([ready]) as router:
        router.warm()
        for _ in range(times):
            _kill(ready)
            while not ready._held[ready.model].ready:
                time.sleep(0.001)
            begun = time.monotonic()
            standing.append(_first_text(router, question) - begun)
            _forget_crashes(ready)
    return {
        "killed_idle": _spread(idle),
        "killed_in_the_middle": _spread(middle),
        "with_standby_once_ready": _spread(standing),
        "the_answer_is_the_same": len(answers) == 1,
        "limit": "<= 600 ms",
        "holds": max(*idle, *middle) <= 0.6 and len(answers) == 1,
    }


def _kill(provider: LlamaCppProvider) -> None:
    supervisor = provider._held[provider.model]
    assert provider.pid is not None
    os.kill(provider.pid, signal.SIGKILL)
    while supervisor.ready:
        time.sleep(0.0005)


def _forget_crashes(provider: LlamaCppProvider) -> None:
    """Each of these kills is to be the first: a further one within a minute would be met with a wait."""
    crashes = provider._held[provider.model]._crashes
    crashes._at.clear()
    crashes.not_before = 0.0


def _first_text(router: Router, request: ChatRequest) -> float:
    at = 0.0
    with router.stream(request) as stream:
        for event in stream:
            if isinstance(event, TextDelta) and not at:
                at = time.monotonic()
    return at


def _killed_in_the_middle(router: Router, provider: LlamaCppProvider, request: ChatRequest) -> tuple[float, str]:
    """Seconds from the kill to the next text that a new process wrote, and the whole answer."""
    killed, gap, pid = 0.0, 0.0, provider.pid
    text = ""
    with router.stream(request) as stream:
        for event in stream:
            if not isinstance(event, TextDelta):
                continue
            text += event.text
            if not killed and provider.pid is not None:
                os.kill(provider.pid, signal.SIGKILL)
                killed = time.monotonic()
            elif killed and not gap and provider.pid not in (None, pid):
                gap = time.monotonic() - killed
    return gap or time.monotonic() - killed, text


def prefill(*, quick: bool = False, seed: int = 1) -> Figures:
    """A hosted target accepts a request, is silent for as long as the local prompt takes and half as long again, and
    fails: from its failure to the first token of the local model, not loaded, warm and with the prompt read ahead. And
    the other way round: what reading ahead costs the calls of a hosted target that is well.
    """
    times, calls = (2, 10) if quick else (7, 100)
    with _random_model(256, 6, n_ctx=8192) as provider:
        begun = time.monotonic()
        for _ in provider.stream(_prompt(0, 600), _guard(math.inf)):
            break
        prompt_s = time.monotonic() - begun
        spec = provider.target.spec
        silence = max(0.5, 1.5 * prompt_s)
        failover = {mode: _failovers(spec, mode, times, silence, seed) for mode in (None, "warm", "prefill")}
        hosted = _hosted(spec, calls)
    took = {str(mode): statistics.median(found) for mode, found in failover.items()}
    return {
        "prompt_tokens_read_in_s": round(prompt_s, 2),
        "hosted_silent_for_s": round(silence, 2),
        "first_token_after_the_failure_ms": {
            "not loaded": round(took["None"] * 1000, 1),
            "standby='warm'": round(took["warm"] * 1000, 1),
            "standby='prefill'": round(took["prefill"] * 1000, 1),
        },
        "gain": round(took["warm"] / took["prefill"], 1),
        "hosted_first_token": hosted,
    }


def _failovers(spec: str, standby: str | None, times: int, silence_s: float, seed: int) -> list[float]:
    """Seconds from the hosted target's failure to the local model's first token."""
    took: list[float] = []
    with FaultServer() as server:
        server.script("gpt-x", ["hang"])
        for number in range(times):
            local = LlamaCppProvider(Target(spec, standby=standby, n_ctx=8192, queue=50 + number))
            hosted = Target("openai:gpt-x", base_url=server.openai_url, api_key="any",
                            timeouts=Timeouts(first_token=silence_s))  # fmt: skip
            with Router([hosted, local], retry=RetryPolicy(same_target=0, total=0)) as router:
                if standby is not None:
                    router.warm()
                stream = router.stream(_prompt(1000 * (seed + 1) + number, 600))
                first = next(event for event in stream if isinstance(event, TextDelta))
                assert first.text is not None
                at = time.monotonic()
                failed = stream.execution.attempts[0]
                assert failed.ended is not None
                took.append(at - failed.ended)
                stream.close()
    return took


def _hosted(spec: str, calls: int) -> Figures:
    """First tokens of a hosted target that answers after 200 ms, with and without a local one that reads ahead."""
    found: dict[str, list[float]] = {"alone": [], "prefill": []}
    with FaultServer() as server:
        from shared_core.testing import Answer

        server.script("gpt-x", [Answer("Seven words are quite enough for this.", delay_s=0.2)])

        def router(standby: str | None, queue: int) -> Router:
            local = LlamaCppProvider(Target(spec, standby=standby, n_ctx=8192, queue=queue))
            return Router([Target("openai:gpt-x", base_url=server.openai_url, api_key="any"), local])

        with router(None, 90) as alone, router("prefill", 91) as reading:
            alone.warm()
            reading.warm()
            for number in range(calls):
                for name, asked in (("alone", alone), ("prefill", reading)):
                    begun = time.monotonic()
                    stream = asked.stream(_prompt(5000 + number, 600))
                    next(event for event in stream if isinstance(event, TextDelta))
                    found[name].append(time.monotonic() - begun)
                    for _ in stream:
                        continue
                time.sleep(0.01)  # what is being read stops
    return {name: _spread(times) for name, times in found.items()}


TRIALS: dict[str, Callable[..., Figures]] = {"cancel": cancel, "restart": restart, "prefill": prefill}


def main() -> int:
    """Print one trial's figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trial", choices=sorted(TRIALS))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    print(json.dumps(TRIALS[given.trial](quick=given.quick), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
