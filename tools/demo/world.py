"""The world the demonstration plays in: two hosted vendors that can be made to fail, and a model on this machine.

A fault server on loopback plays the vendors; the real vendor SDKs talk to it over real sockets.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from shared_core import Target, Timeouts
from shared_core.testing import FaultServer, SeenRequest
from shared_core.testing.fault_server import cut, hang, status
from tools.tiny_model.explanations import EXPLANATIONS

__all__ = ["SAYS", "World"]

SAYS = {question: told.answer for told in EXPLANATIONS.values() for question in told.questions}
"""What the tiny model answers to which question. The vendors played here say the same, so that seams can be checked."""


class World:
    """Two hosted targets and a local one, and the power to break them.

    Attributes:
        stage: the fault server.
        first, second: the hosted targets, in order of preference.
        local: a GGUF, run by llama.cpp on this machine.
        local_knows: whether the local model is the one whose answers are in `SAYS`.
        patience_s: how long silence of the first target is borne, in seconds.
        longest: tokens an answer may have. It also bounds what an attempt that broke off can have cost.
    """

    patience_s = 1.5
    longest = 200

    def __init__(self, gguf: str | None = None) -> None:
        self.stage = FaultServer()
        self.stage.start()
        self.local = Target(f"llamacpp:{gguf or 'tiny'}", fit_max_tokens=True)
        self.local_knows = gguf is None
        self.first, self.second = self.hosted()
        self.healthy()

    def hosted(self) -> tuple[Target, Target]:
        """The two vendors. Neither gets a key: on loopback nobody asks for one."""
        return (
            Target("openai:gpt-5-mini", base_url=self.stage.openai_url, timeouts=self.impatient()),
            Target("anthropic:claude-sonnet-4-5", base_url=self.stage.anthropic_url),
        )

    @property
    def targets(self) -> tuple[Target, ...]:
        """Whom to ask, in order."""
        return (self.first, self.second, self.local)

    def impatient(self) -> Timeouts:
        """Limits that make silence a failure soon enough for an audience."""
        s = self.patience_s
        return Timeouts(first_token=s, reasoning_first_token=s, idle=s, attempt=s)

    def instructions(self, text: str) -> str | None:
        """A system prompt that makes a vendor say exactly `text`; None where it does so by itself."""
        return None

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def healthy(self) -> None:
        """Both vendors answer."""
        self.stage.start()
        for target in (self.first, self.second):
            self.stage.script(target.model, _said)

    def failing(self) -> None:
        """The first vendor says 503, then 429 with a Retry-After of one second, then nothing; the second is well."""
        self.stage.script(self.first.model, [503, status(429, retry_after=1), hang()])

    def cutting(self, text: str, after_words: int) -> None:
        """The first vendor loses the connection after so many words of its answer, `text`; the second says 503."""
        self.stage.script(self.second.model, 503)
        self.stage.script(self.first.model, cut(after_words=after_words, answer=text))

    def down(self) -> None:
        """Neither vendor can be reached: their addresses refuse connections."""
        self.stage.stop()

    # ── who opens, closes ────────────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """The show is over."""
        self.stage.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _said(request: SeenRequest) -> str:
    return SAYS.get(request.prompt, f"You asked: {request.prompt}")
