"""The same world with real vendors: whichever of their keys are set, one is enough.

What real vendors do not do on request (fail, hang, vanish) is still played by the fault server: a `Switch` in front of
each vendor sends a call either to the real address or to loopback, through the same SDK.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any

from shared_core import Capabilities, ChatEvent, ChatRequest, Guard, Origin, Provider, Target, TextDelta, Timeouts
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers.registry import build
from tools.demo.world import World

__all__ = ["MODELS", "LiveWorld", "NoKey", "Switch", "chosen"]

MODELS: Mapping[str, str] = {
    "OPENAI_API_KEY": "openai:gpt-5-mini",
    "ANTHROPIC_API_KEY": "anthropic:claude-sonnet-4-5",
    "GEMINI_API_KEY": "google:gemini-2.5-flash",
}
"""Which model is asked where which key is set; `--model` names others."""


class NoKey(Exception):
    """LIVE=1 without any key."""


def chosen(models: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """The first and the second hosted model: those named, else one for each key that is set. One may be both.

    Raises:
        NoKey: none is named and no key is set; the message says which are looked for.
    """
    specs = list(models) or [spec for key, spec in MODELS.items() if environ.get(key, "").strip()]
    if not specs:
        raise NoKey(f"LIVE=1 needs a key.\nhint: set {' or '.join(MODELS)}")
    return specs[0], specs[1] if len(specs) > 1 else specs[0]


class LiveWorld(World):
    """Real vendors. Calls cost real money, well under a cent for the whole show."""

    patience_s = 15.0
    longest = 2000  # models that think first spend most of it on that

    def __init__(self, models: Sequence[str] = (), gguf: str | None = None) -> None:
        self._models = chosen(models)
        self._switches: list[Switch] = []
        super().__init__(gguf)

    def hosted(self) -> tuple[Target, Target]:
        """The vendors whose keys are set; with one key, the same model twice under two names."""
        first, second = self._models
        name = second if second != first else f"{second} (again)"
        return self._switched(first, first, self.impatient()), self._switched(second, name, None)

    def _switched(self, spec: str, name: str, timeouts: Timeouts | None) -> Target:
        real = Target(spec)
        stages = {"anthropic": self.stage.anthropic_url, "google": self.stage.google_url}
        played = Target(spec, base_url=stages.get(real.provider_name, self.stage.openai_url), api_key="not-a-key")
        switch = Switch(build(real), build(played))
        self._switches.append(switch)
        return Target(spec, provider=switch, name=name, timeouts=timeouts)

    def instructions(self, text: str) -> str | None:
        """Real vendors have words of their own; where ours matter they are asked for them."""
        return f"Answer with exactly this text and nothing else:\n{text}"

    def healthy(self) -> None:
        """Real calls go to real vendors."""
        super().healthy()
        for switch in self._switches:
            switch.played, switch.cut_after_words = False, None

    def failing(self) -> None:
        """The first vendor's failures are played; the second answers for real."""
        super().failing()
        self._switches[0].played = True

    def cutting(self, text: str, after_words: int) -> None:
        """The first vendor answers for real until we cut the connection; the second one's 503 is played."""
        super().cutting(text, after_words)
        self._switches[0].cut_after_words = after_words
        self._switches[1].played = True
        self.stage.script(self.second.model, 503)  # last, because with one key both have the same model

    def down(self) -> None:
        """Every call goes to an address that refuses it."""
        super().down()
        for switch in self._switches:
            switch.played = True


class Switch:
    """A `Provider` in front of two of one vendor: the real address, and the one where the vendor is played."""

    def __init__(self, real: Provider, stage: Provider) -> None:
        self._real = real
        self._stage = stage
        self.played = False
        """Whether calls go to the stage."""
        self.cut_after_words: int | None = None
        """Break a real stream after so many words."""
        self.name, self.model, self.local = real.name, real.model, real.local
        self.interruptible = real.interruptible and stage.interruptible

    @property
    def capabilities(self) -> Capabilities:
        """The real vendor's."""
        return self._real.capabilities

    @property
    def origin(self) -> Origin:
        """The real vendor's."""
        return self._real.origin

    def load(self) -> None:
        """Import the SDK before anybody's limit starts."""
        for provider in (self._real, self._stage):
            load: Any = getattr(provider, "load", None)
            if load is not None:
                load()

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, from where the switch stands."""
        words = 0
        events: Any = self._now().stream(request, guard)  # every provider's iterator can be closed
        with closing(events):
            for event in events:
                yield event
                words += self._spoken(event)
                self._maybe_cut(words, request)

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """The same, async."""
        words = 0
        events: Any = self._now().astream(request, guard)
        async with aclosing(events):
            async for event in events:
                yield event
                words += self._spoken(event)
                self._maybe_cut(words, request)

    def _now(self) -> Provider:
        return self._stage if self.played else self._real

    @staticmethod
    def _spoken(event: ChatEvent) -> int:
        return len(event.text.split()) if isinstance(event, TextDelta) else 0

    def _maybe_cut(self, words: int, request: ChatRequest) -> None:
        if request.streaming and not self.played and self.cut_after_words is not None and words >= self.cut_after_words:
            raise ProviderError.of(ErrorKind.STREAM_CUT, "the demonstration cut the connection here")

    def close(self) -> None:
        """Close both."""
        self._real.close()
        self._stage.close()

    async def aclose(self) -> None:
        """The same, async."""
        await self._real.aclose()
        await self._stage.aclose()
