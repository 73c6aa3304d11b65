"""How parent and worker talk: length-prefixed JSON frames over one socket. No I/O here but `send` and `receive`."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

__all__ = ["MAX_FRAME", "FrameError", "Frames", "frame", "receive"]

MAX_FRAME = 256 * 1024 * 1024
"""Bytes. A longer frame means that the two sides have lost step, not that somebody wrote a long prompt."""

_HEAD = struct.Struct(">I")


class FrameError(Exception):
    """The bytes are not frames: the other side is broken."""


def frame(message: dict[str, Any]) -> bytes:
    """One message as bytes. Lone surrogates travel as escapes, so any Python string passes."""
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    return _HEAD.pack(len(body)) + body


class Frames:
    """Cuts a byte stream back into messages, however it was chopped up on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that are complete now.

        Raises:
            FrameError: a frame is absurdly long or not a JSON object.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _HEAD.size:
                (length,) = _HEAD.unpack_from(self._buffer, at)
                if length > MAX_FRAME:
                    raise FrameError(f"a frame of {length} bytes")
                end = at + _HEAD.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[at + _HEAD.size : end])
                at = end
                try:
                    message = json.loads(body)
                except ValueError as error:
                    raise FrameError(f"a frame that is not JSON: {error}") from error
                if not isinstance(message, dict):
                    raise FrameError(f"a frame holding a {type(message).__name__}")
                yield message
        finally:
            del self._buffer[:at]


def receive(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """Messages from a blocking socket until the other side closes it."""
    frames = Frames()
    while data := sock.recv(65536):
        yield from frames.feed(data)
