"""Where a second target takes over a committed stream: how it is asked, and how its text is joined to what was read.

`resume` writes the request; `Seam` reads the continuation and holds back what repeats the text already delivered. Three
ways to ask, by what the target can do:

    exact        the raw prompt goes on after the delivered text (llama.cpp): all of it is new, nothing is removed
    prefill      the delivered text becomes the beginning of the assistant's turn: only a whole repeat is removed
    instructed   a user turn asks for it, quoting the last words: whole repeats and overlaps are removed, and words
                 kept apart
"""

from __future__ import annotations

from typing import Literal

from shared_core.chat.request import ChatRequest, assistant, user

__all__ = ["CONTINUE_PROMPT", "Seam", "resume"]

Mode = Literal["exact", "prefill", "instructed"]

CONTINUE_PROMPT = (
    "Your previous answer was cut off by a technical fault. Continue it from exactly where it stopped. "
    'Begin by repeating its last words, "{tail}", and then go on. '
    "Do not apologise, do not comment, do not start over."
)
"""Asked of a target that can neither prefill nor continue a raw prompt. `{tail}` is the end of the delivered text."""

_LONGEST_OVERLAP = 600  # characters at the end of the delivered text that may come again
_SHORTEST_PARTIAL = 3  # letters of a broken-off word that must agree to be taken for a repeat


def resume(request: ChatRequest, delivered: str, mode: Mode, prompt: str = CONTINUE_PROMPT) -> ChatRequest:
    """`request` as it must be put to a target that goes on after `delivered`. The original is unchanged."""
    keep = None
    if request.continues and request.messages and request.messages[-1].role == "assistant":
        # The caller had already asked to continue an answer of their own: theirs and ours are one text.
        keep = len(request.messages) - 1
        delivered = request.messages[-1].text + delivered
    if mode != "instructed":
        return request.extended(assistant(delivered), keep=keep, continues=True)
    return request.extended(assistant(delivered), user(prompt.replace("{tail}", _tail(delivered))), keep=keep)


def _tail(text: str, words: int = 6) -> str:
    """The last few words, cut at a word's beginning."""
    pieces = text.rstrip().rsplit(maxsplit=words)
    return text.rstrip() if len(pieces) <= words else text.rstrip()[len(pieces[0]) :].lstrip()


class Seam:
    """Joins a continuation to the delivered text. Feed it deltas; it returns what is new.

    It holds text back only while that text may still turn out to repeat what was delivered; `close` gives up the rest.
    """

    __slots__ = ("_delivered", "_held", "_mode", "_open", "_word_aligned")

    def __init__(self, delivered: str, mode: Mode, *, word_aligned: bool = False) -> None:
        """`word_aligned` says that the delivered text came in whole words, so that it stops between two words."""
        self._delivered = delivered
        self._mode = mode
        self._word_aligned = word_aligned
        self._held = ""
        self._open = mode == "exact" or not delivered

    def feed(self, text: str) -> str:
        """What of `text`, and of anything held back before, is new and may be delivered."""
        if self._open:
            return text
        self._held += text
        held, delivered = self._held, self._delivered
        if held.startswith(delivered):
            return self._join(held[len(delivered) :])
        if delivered.startswith(held) or self._may_overlap(held):
            return ""
        return self._decide()

    def close(self) -> str:
        """The continuation is over: what is still held back and new."""
        if self._open:
            return ""
        if self._delivered.startswith(self._held) and len(self._held.split()) > 3:
            return self._join("")  # it began the whole answer again and stopped short of where the reader is
        return self._decide()

    def _may_overlap(self, held: str) -> bool:
        """Whether `held` is still inside the end of the delivered text, so that more of it may come."""
        if self._mode == "prefill":
            return False
        tail = self._delivered[-_LONGEST_OVERLAP:]
        piece = held.lstrip()  # white space may come before a repeat
        return any(tail.startswith(piece, i) and self._word_starts(tail, i) for i in range(len(tail)))

    @staticmethod
    def _word_starts(text: str, index: int) -> bool:
        return index == 0 or not (text[index - 1].isalnum() and text[index].isalnum())

    def _decide(self) -> str:
        held = self._held
        if self._mode == "prefill":
            return self._join(held)
        cut = self._overlap(held)
        return self._join(held[cut:]) if cut else self._spaced(self._join(held))

    def _overlap(self, held: str) -> int:
        """How many characters at the beginning of `held` repeat the end of the delivered text."""
        lead = len(held) - len(held.lstrip())
        for skip in {0, lead}:
            piece = held[skip:]
            for size in range(min(len(piece), _LONGEST_OVERLAP), 1, -1):  # one character is never a repeat
                if self._delivered.endswith(piece[:size]) and self._is_repeat(piece, size):
                    return skip + size
        return 0

    def _is_repeat(self, piece: str, size: int) -> bool:
        """Whether an agreement of `size` characters is a repeat, not chance: whole words, or a broken-off one."""
        same = piece[:size]
        if not self._word_starts(self._delivered, len(self._delivered) - size):
            return False
        letters = sum(c.isalnum() for c in same)
        if letters == 0:
            return False
        whole_words = size == len(piece) or not (same[-1].isalnum() and piece[size].isalnum())
        words = len(same.split())
        if words >= 2:
            return whole_words or letters >= _SHORTEST_PARTIAL
        return letters >= 2 if whole_words else letters >= _SHORTEST_PARTIAL

    def _join(self, fresh: str) -> str:
        """Open the seam. White space on both sides is one white space."""
        self._open = True
        return fresh.lstrip(" \t") if self._delivered[-1] in " \t" else fresh

    def _spaced(self, fresh: str) -> str:
        """Keep two words apart where the delivered text is known to stop between words."""
        if self._word_aligned and fresh[:1].isalnum() and self._delivered[-1:].isalnum():
            return " " + fresh
        return fresh
