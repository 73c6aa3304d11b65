"""The cells of LlamaIndex's matrix: who is the primary, who the fallback, how they are given, what the primary does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llamaindex_fallback import FallbackLLM, LlamaIndexProvider
from llamaindex_fallback.testing import read_and_answer
from shared_core import BreakerConfig, Target, Timeouts
from shared_core.testing import Answer, Fault, FaultServer, SeenRequest, Usage
from tests.llamaindex.world import CLAUDE, GEMINI, KEY, PRIMARY, wrapped, wrapped_claude, wrapped_gemini

Vendor = Literal["openai", "anthropic", "google"]
MODELS: Mapping[Vendor, str] = {"openai": PRIMARY, "anthropic": CLAUDE, "google": GEMINI}
PAIRS: tuple[tuple[Vendor, Vendor], ...] = (
    ("openai", "anthropic"),
    ("anthropic", "openai"),
    ("google", "openai"),
    ("openai", "google"),
    ("google", "anthropic"),
    ("anthropic", "google"),
)
"""Vendor of the primary and of the fallback."""


def address_of(server: FaultServer, vendor: Vendor) -> str:
    return {"openai": server.openai_url, "anthropic": server.anthropic_url, "google": server.google_url}[vendor]


def native(server: FaultServer, vendor: Vendor, **limits: Any) -> Target:
    """A target of our own providers."""
    return Target(f"{vendor}:{MODELS[vendor]}", base_url=address_of(server, vendor), api_key=KEY, **limits)


def ready(server: FaultServer, vendor: Vendor) -> Any:
    """A LlamaIndex LLM as a user would have made it, retries and all."""
    match vendor:
        case "openai":
            return wrapped(server, MODELS[vendor], max_retries=3)
        case "anthropic":
            return wrapped_claude(server, max_retries=3)
        case "google":
            return wrapped_gemini(server, max_retries=3)


def around(server: FaultServer, vendor: Vendor, **limits: Any) -> Target:
    """A target that asks a ready LLM."""
    return Target(provider=LlamaIndexProvider(ready(server, vendor)), **limits)


MIXES: Mapping[str, tuple[Callable[..., Target], Callable[..., Target]]] = {
    "native": (native, native),
    "wrapped": (around, around),
    "native, then wrapped": (native, around),
    "wrapped, then native": (around, native),
}
"""How the primary and the fallback are given."""


# ── what befalls the primary ─────────────────────────────────────────────────────────────────────────────────────────


class Model:
    """Both vendors' model: it reads and answers, and counts the tokens that it says it used."""

    def __init__(self) -> None:
        self.used: list[tuple[int, int]] = []
        """Tokens of the prompt and of the answer, of each answer it gave."""

    @property
    def answered(self) -> int:
        return len(self.used)

    def answer(self, seen: SeenRequest) -> Answer:
        """The answer, with figures of its own: no two answers have the same."""
        answer = read_and_answer(seen)
        prompt, completion = 1_007 + 7 * self.answered, 103 + 3 * self.answered
        self.used.append((prompt, completion))
        usage = Usage(prompt_tokens=prompt, completion_tokens=completion)
        return Answer(answer.text, tool_calls=answer.tool_calls, continue_from=answer.continue_from, usage=usage)


def cut(seen: SeenRequest) -> Fault:
    """A stream ends in the middle of its text, and HTTP sees nothing wrong: the harder case, since integrations take it
    for a whole one. In the middle of a tool call, or of the body of a whole answer, the connection is reset.
    """
    answer = read_and_answer(seen)
    if not seen.streamed:
        return Fault("cut", after_words=2, answer=answer)
    return Fault("cut-tool", answer=answer) if answer.tool_calls else Fault("cut-eof", after_words=2, answer=answer)


def overloaded(seen: SeenRequest) -> Fault:
    """Overloaded right after the first frame of a stream; before anything else, where nothing is streamed."""
    return Fault("overload-later", after_words=0) if seen.streamed else Fault("overloaded")


FAULTS: Mapping[str, Any] = {
    "well": None,
    "answers 503": 503,
    "says nothing": "no-response",
    "cut in the middle": cut,
    "overloaded after the first frame": overloaded,
}
"""What the primary does to every request, as a step for the server; None is nothing."""

IMPATIENT = Timeouts(first_token=0.02, reasoning_first_token=0.02, attempt=0.02)
"""Of a primary that says nothing, so that waiting for it in vain is over quickly. The fallback has the usual time."""
NEVER = BreakerConfig(consecutive_failures=10_000, minimum_calls=10_000)
"""So that every call of a scenario meets the fault, and not only the first ones."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to build the LLM, in one state of the world."""

    primary: Vendor
    fallback: Vendor
    mix: str
    fault: str

    @property
    def serving(self) -> Vendor:
        """The vendor that answers."""
        return self.primary if self.fault == "well" else self.fallback

    def __str__(self) -> str:
        return f"{self.primary} then {self.fallback}, {self.mix}, primary {self.fault}"

    def script(self, server: FaultServer, model: Model) -> None:
        """Both vendors' behaviour, from now on."""
        fault = FAULTS[self.fault]
        server.script(MODELS[self.fallback], model.answer)
        server.script(MODELS[self.primary], model.answer if fault is None else fault)

    def llm(self, server: FaultServer, **options: Any) -> FallbackLLM:
        """The LLM under test."""
        first, second = MIXES[self.mix]
        limits: dict[str, Any] = {"timeouts": IMPATIENT} if self.fault == "says nothing" else {}
        targets = [first(server, self.primary, **limits), second(server, self.fallback)]
        retry = {"same_target": 0, "total": 0}
        return FallbackLLM(targets, **{"retry": retry, "breaker": NEVER, **options})


def every_cell() -> Iterator[Cell]:
    """The full matrix."""
    for primary, fallback in PAIRS:
        for mix in MIXES:
            for fault in FAULTS:
                yield Cell(primary, fallback, mix, fault)


def covering_cells() -> Iterator[Cell]:
    """A quarter of it: every pair of vendors meets every fault, and every mix meets every pair and every fault."""
    mixes = list(MIXES)
    for row, (primary, fallback) in enumerate(PAIRS):
        for column, fault in enumerate(FAULTS):
            yield Cell(primary, fallback, mixes[(row + column) % len(mixes)], fault)
