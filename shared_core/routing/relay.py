"""What reaches the caller, and when: `Relay` holds an attempt's events back until it commits, then lets them through.

Committed means that visible output has reached the caller: text, or one complete tool call. Lifecycle, role-only and
empty frames never commit; neither does thinking. Until then a failure costs the caller nothing. Tool calls are
assembled here and go out only when the stream has finished properly, so that a tool is never called by half a
request.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared_core.chat.events import (
    ChatEvent,
    Continued,
    Finished,
    ReasoningDelta,
    Restarted,
    Started,
    TextDelta,
    ToolCallAssembler,
    ToolCallDelta,
    collect,
)
from shared_core.chat.request import AnswerCheck, ToolCall
from shared_core.errors import ErrorKind, InvalidOutput, ProviderError
from shared_core.routing.execution import Attempt
from shared_core.routing.seam import Mode, Seam

__all__ = ["Relay"]

_NOTHING: Sequence[ChatEvent] = ()


class Relay:
    """The path from the attempts of one request to its caller. Pure: it is fed events and returns what to deliver."""

    __slots__ = (
        "_aligned",
        "_calls",
        "_check",
        "_chunks",
        "_held",
        "_last",
        "_marker",
        "_one_call",
        "_pieces",
        "_prefix",
        "_seam",
        "_started",
        "_whole",
        "attempt",
        "committed",
        "finished",
        "open",
    )

    def __init__(
        self, *, streaming: bool, request: str = "", check: AnswerCheck | None = None, one_call: bool = False
    ) -> None:
        """`request` is the request's id, which makes tool-call ids that a provider left out unique.

        With a `check` nothing is let through before the whole answer has passed it. With `one_call` the first tool call
        is let through and no other: not every vendor can be told to make one at a time.
        """
        self._check = check
        self._one_call = one_call
        self._whole = not streaming or check is not None
        self._prefix = f"call_{request}" if request else "call"
        self._pieces: list[str] = []
        self._aligned = True  # no chunk so far ended inside a word
        self._last = ""
        self._chunks = 0
        self._started = False
        self.committed = False
        """Whether text or a whole tool call has reached the caller."""
        self.begin(None)

    def begin(self, attempt: Attempt | None, *, seam: Mode | None = None, restart: bool = False) -> None:
        """Turn to the next attempt. What the last one held back is forgotten.

        Args:
            attempt: whose events come next.
            seam: how it was asked to go on with the delivered text, or None when it answers from the start.
            restart: its text replaces what was delivered.
        """
        self.attempt = attempt
        self.finished: Finished | None = None
        self._held: list[ChatEvent] = []
        self._calls = ToolCallAssembler(self._prefix)
        self._marker: ChatEvent | None = None
        self._seam: Seam | None = None
        if attempt is not None and seam is not None:
            self._seam = Seam(self.delivered, seam, word_aligned=self._aligned and self._chunks > 2)
            self._marker = Continued(attempt.target, len(self.delivered))
        elif attempt is not None and restart:
            self._marker = Restarted(attempt.target)
        self.open = False
        """Whether this attempt's text goes straight through."""

    @property
    def delivered(self) -> str:
        """The text that has reached the caller."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def feed(self, event: ChatEvent) -> Sequence[ChatEvent]:
        """Take one event of the current attempt; returns what the caller may have now."""
        kind = type(event)
        if kind is TextDelta:
            return self._text(event)  # type: ignore[arg-type]  # `kind` says which it is
        if kind is Started:
            if self._started:
                return _NOTHING
            self._held.append(event)
            return _NOTHING
        if kind is ReasoningDelta:
            if self.open:
                return (event,)
            self._held.append(event)
            return _NOTHING
        if kind is ToolCallDelta:
            self._calls.feed(event)  # type: ignore[arg-type]
            return _NOTHING
        if kind is ToolCall:
            # A provider may hand over whole calls; they wait for the proper end like assembled ones.
            self._calls.add(event)  # type: ignore[arg-type]
            return _NOTHING
        if kind is Finished:
            self.finished = event  # type: ignore[assignment]
            return self._finish()
        return _NOTHING

    def objection(self, finished: Finished) -> ProviderError | None:
        """What is wrong with the answer that `finished` would complete, by the request's check; None when it passes.

        A refusal is an answer, if not the one that was hoped for: it passes.
        """
        if self._check is None or finished.reason in ("refusal", "content_filter"):
            return None
        answer = collect([*self._held, *self._made(), finished])
        fault = self._check(answer)
        if fault is None:
            return None
        error = ProviderError.of(ErrorKind.INVALID_OUTPUT, fault)
        assert isinstance(error, InvalidOutput)
        error.answer = answer
        return error

    def _text(self, event: TextDelta) -> Sequence[ChatEvent]:
        text = event.text
        if not text:
            return _NOTHING
        if self.open:
            self._note(text)
            return (event,)
        if self._whole:
            self._held.append(event)
            return _NOTHING
        if self._seam is not None:
            text = self._seam.feed(text)
            if not text:
                return _NOTHING
        return self._commit(text)

    def _note(self, text: str) -> None:
        if self._last.isalnum() and text[0].isalnum():
            self._aligned = False
        self._last = text[-1]
        self._chunks += 1
        self._pieces.append(text)
        attempt = self.attempt
        if attempt is not None:
            attempt.delivered += len(text)

    def _release(self) -> list[ChatEvent]:
        """The marker of a seam or restart, then what was held back: once for each attempt."""
        out: list[ChatEvent] = []
        if self._marker is not None:
            out.append(self._marker)
            if type(self._marker) is Restarted:
                self._pieces.clear()
                self._aligned, self._last, self._chunks = True, "", 0
        for event in self._held:
            if type(event) is Started:
                if self._started:
                    continue
                self._started = True
            out.append(event)
        self._held.clear()
        return out

    def _commit(self, text: str) -> Sequence[ChatEvent]:
        out = self._release()
        self.open = True
        self.committed = True
        self._note(text)
        out.append(TextDelta(text))
        return out

    def _finish(self) -> Sequence[ChatEvent]:
        out: list[ChatEvent] = []
        if self._seam is not None and not self.open and (rest := self._seam.close()):
            out += self._commit(rest)
        if not self.open:
            for event in (released := self._release()):
                if type(event) is TextDelta:
                    self._note(event.text)
                    self.committed = True
            out += released
            self.open = True
        if self._calls:
            self.committed = True
            out += self._made()
        return out

    def _made(self) -> Sequence[ToolCall]:
        return self._calls.calls()[: 1 if self._one_call else None]
