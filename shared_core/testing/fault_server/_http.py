"""HTTP/1.1 in bytes: reading a request's head and body out of a buffer, writing heads and chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal
from urllib.parse import parse_qsl, unquote

_REASONS: dict[int, str] = {status.value: status.phrase for status in HTTPStatus}
_REASONS |= {499: "Client Closed Request", 520: "Web Server Returned an Unknown Error", 529: "Overloaded"}


class BadRequestError(Exception):
    """The bytes are not an HTTP/1 request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request's head."""

    method: str
    target: str
    headers: Mapping[str, str]
    http_1_0: bool

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def keep_alive(self) -> bool:
        connection = self.headers.get("connection", "").lower()
        return "keep-alive" in connection if self.http_1_0 else "close" not in connection


def read_head(buffer: bytearray) -> Head | None:
    """Take a complete head off the buffer's front; None while it is incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    text = buffer[:end].decode("latin-1")
    del buffer[: end + 4]
    first, *lines = text.split("\r\n")
    try:
        method, target, version = first.split(" ")
        pairs = [item.split(":", 1) for item in lines]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
    except ValueError:
        raise BadRequestError(first) from None
    if not version.startswith("HTTP/1."):
        raise BadRequestError(first)
    return Head(method=method, target=target, headers=headers, http_1_0=version == "HTTP/1.0")


def read_body(head: Head, buffer: bytearray) -> bytes | None:
    """Take a complete body off the buffer's front; None while it is incomplete."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        return _read_chunked(buffer)
    try:
        length = int(head.headers.get("content-length", "0"))
    except ValueError:
        raise BadRequestError("content-length") from None
    if len(buffer) < length:
        return None
    body = bytes(buffer[:length])
    del buffer[:length]
    return body


def _read_chunked(buffer: bytearray) -> bytes | None:
    at, body = 0, bytearray()
    while (end := buffer.find(b"\r\n", at)) >= 0:
        try:
            size = int(buffer[at:end].split(b";")[0], 16)
        except ValueError:
            raise BadRequestError("chunk size") from None
        start = end + 2
        if len(buffer) < start + size + 2:
            return None
        if size == 0:
            del buffer[: start + 2]
            return bytes(body)
        body += buffer[start : start + size]
        at = start + size + 2
    return None


Framing = Literal["length", "chunked", "close"]


def head_bytes(status: int, headers: Mapping[str, str], *, now: float, length: int | None, framing: Framing) -> bytes:
    """A response head. `framing` says how the body ends: by its length, by a last chunk, or with the connection.

    A header given in `headers` replaces the server's own of that name.
    """
    merged = {"date": formatdate(now, usegmt=True)}
    if framing == "length":
        merged["content-length"] = str(length)
    elif framing == "chunked":
        merged["transfer-encoding"] = "chunked"
    else:
        merged["connection"] = "close"
    for name, value in headers.items():
        merged[name.lower()] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in merged.items())
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n{lines}\r\n".encode("latin-1", "replace")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
