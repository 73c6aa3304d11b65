"""Pictures, documents and sound in a history: what the target can take, where, and in which form."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeGuard

from shared_core.chat.request import Audio, File, Image, Text
from shared_core.errors import ErrorKind, InvalidRequest, ProviderError
from shared_core.history.rules import HistoryRules, MediaKind

__all__ = ["Media", "is_media", "kind_of", "media_for"]

Media = Image | File | Audio

_KINDS: Mapping[type, MediaKind] = {Image: "image", File: "file", Audio: "audio"}
_PERCENT = re.compile(rb"%([0-9a-fA-F]{2})")
_SCOPED_URL = re.compile(r"gs://|https://generativelanguage\.googleapis\.com/")
_TEXTUAL = re.compile(
    r"text/.+|application/((x-)?(json|ndjson|yaml|toml|sh|tex|javascript|typescript|xml|sql)|.+\+(json|xml))"
)
_ALIASES: Mapping[str, str] = {"image/jpg": "image/jpeg", "audio/x-mp3": "audio/mp3"}


def is_media(part: object) -> TypeGuard[Media]:
    """Whether `part` is a picture, a file or a recording."""
    return type(part) in _KINDS


def kind_of(part: Media) -> MediaKind:
    """'image', 'file', 'audio' or 'video'."""
    if part.media_type is not None and type(part) is File and part.media_type.startswith("video/"):
        return "video"
    return _KINDS[type(part)]


def media_for(part: Media, rules: HistoryRules) -> Media | Text:
    """`part` in a form that the target takes: data URLs become bytes, bytes always know their media type.

    A text file becomes `Text` where files, or files of its type, are not taken.

    Raises:
        ProviderError: kind INCAPABLE; the target cannot take it, and dropping what a user sent is not an answer.
        InvalidRequest: a data URL that is none.
    """
    if part.url is not None and part.url[:5].lower() == "data:":
        part = _inline(part, part.url)
    if type(part) is File and part.media_type is not None:
        part = _as_what_it_is(part, part.media_type)
    if part.data is not None:
        return _bytes_for(part, part.data, rules)
    kind = kind_of(part)
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
    return part


def _as_what_it_is(part: File, media_type: str) -> Media:
    """A picture or a recording that was attached as a file."""
    for prefix, kind in (("image/", Image), ("audio/", Audio)):
        if media_type.startswith(prefix):
            return kind(part.data, part.url, part.file_id, media_type, part.name)
    return part


def _bytes_for(part: Media, data: bytes, rules: HistoryRules) -> Media | Text:
    kind = kind_of(part)
    media_type = _media_type(part, data, kind)
    bare = media_type.partition(";")[0].strip().lower()
    if kind in rules.media and re.fullmatch(rules.media_types, bare):
        return part if media_type == part.media_type else replace(part, media_type=media_type)
    if kind == "file" and _TEXTUAL.fullmatch(bare) and (text := _decoded(data)) is not None:
        return Text(f"\n[file {part.name or bare}]\n{text}\n")
    if kind not in rules.media:
        raise _incapable(f"this target cannot take {kind} parts")
    raise _incapable(f"this target takes no {kind} of type {bare!r}")


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


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


def _media_type(part: Media, data: bytes, kind: MediaKind) -> str:
    """The media type by the first bytes, where they tell (vendors refuse a JPEG that calls itself a PNG)."""
    given = part.media_type
    seen = _sniffed(data)
    if seen is not None and (given is None or (kind == "image" and seen.startswith("image/"))):
        return seen
    if given is None:
        return {"image": "image/png", "audio": "audio/wav"}.get(kind, "application/pdf")
    return _ALIASES.get(given.lower(), given)


def _sniffed(data: bytes) -> str | None:
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
    return "application/pdf" if data.startswith(b"%PDF") else None
