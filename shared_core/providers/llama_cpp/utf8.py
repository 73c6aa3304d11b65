"""Bytes to text, token by token: a character split over tokens is held back until it is whole."""

from __future__ import annotations

import codecs

__all__ = ["Utf8Stream"]


class Utf8Stream:
    """An incremental UTF-8 decoder in linear time. Invalid bytes become U+FFFD at once and hold nothing up."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that are complete now; may be empty."""
        return self._decoder.decode(data)

    def close(self) -> str:
        """Forget an unfinished character at the end: a limit cut it, it says nothing. Always returns ''."""
        self._decoder.reset()
        return ""
