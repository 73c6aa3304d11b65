"""Pictures, documents and sound in a history: what the target can take, where, and in which form."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace

from shared_core.chat.request import Audio, File, Image
from shared_core.errors import ErrorKind, InvalidRequest, ProviderError
from shared_core.history.rules import HistoryRules, MediaKind

__all__ = ["Media", "kind_of", "media_for"]

Media = Image | File | Audio

_KINDS: Mapping[type, MediaKind] = {Image: "image", File: "file", Audio: "audio"}
_PERCENT = re.compile(rb"%([0-9a-fA-F]{2})")
_SCOPED_URL = re.compile(r"gs://|https://generativelanguage\.googleapis\.com/")


def kind_of(part: Media) -> MediaKind:
    """'image', 'file' or 'audio'."""
    return _KINDS[type(part)]


def media_for(part: Media, rules: HistoryRules) -> Media:
    """`part` in a form that the target takes: data URLs become bytes, bytes always know their media type.

    Raises:
        ProviderError: kind INCAPABLE; the target cannot take it, and dropping what a user sent is not an answer.
        InvalidRequest: a data URL that is none.
    """
    kind = kind_of(part)
    if part.url is not None and part.url[:5].lower() == "data:":
        part = _inline(part, part.url)
    if kind not in rules.media:
        raise _incapable(f"this target cannot take {kind} parts")
    handle = part.file_id or (part.url if part.url and _SCOPED_URL.match(part.url) else None)
    if handle is not None:
        if rules.file_id_pattern is None or not re.fullmatch(rules.file_id_pattern, handle):
            raise _incapable(
                f"a {kind} is given by the file handle {handle[:40]!r}, which means nothing to this target",
                hint="pass the bytes (data=) to let any target answer",
            )
    elif part.url is not None and kind not in rules.urls:
        raise _incapable(
            f"this target does not fetch a {kind} by URL", hint="pass the bytes (data=) to let any target answer"
        )
    if part.data is not None and part.media_type is None:
        return replace(part, media_type=_sniff(part.data, kind))
    return part


def _incapable(message: str, hint: str | None = None) -> ProviderError:
    return ProviderError.of(ErrorKind.INCAPABLE, message, hint=hint)


def _inline(part: Media, url: str) -> Media:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise InvalidRequest("a data: URL needs a comma before its data")
    media_type, *flags = [piece.strip() for piece in head.split(";")]
    try:
        raw = _PERCENT.sub(lambda found: bytes.fromhex(found[1].decode()), body.encode())
        data = base64.b64decode(raw, validate=True) if "base64" in flags else raw
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"a data: URL has broken base64: {error}") from error
    return replace(part, url=None, data=data, media_type=part.media_type or media_type or None)


def _sniff(data: bytes, kind: MediaKind) -> str:
    """The media type by the first bytes; the commonest of its kind where they say nothing."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"GIF8"):
        return "image/gif"
    if data[:4] == b"RIFF":
        return "image/webp" if data[8:12] == b"WEBP" else "audio/wav"
    if data.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3")):
        return "audio/mpeg"
    if data.startswith(b"%PDF"):
        return "application/pdf"
    return {"image": "image/png", "file": "application/pdf", "audio": "audio/wav"}[kind]
