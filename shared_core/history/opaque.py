"""Blocks that only their vendor understands: what kind they are, and what of them can be told to anybody else."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shared_core.chat.request import Image, Part, Text

__all__ = ["CITATIONS", "OpaqueKind", "citations", "opaque_kind", "told"]

OpaqueKind = Literal["thought", "citations", "picture", "server block"]

CITATIONS = "citations"
"""The `type` of a block that holds the sources an answer named: ``{"citations": [{"url": …, "title": …}]}``."""

_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_content", "reasoning_details"})


def opaque_kind(data: Mapping[str, Any]) -> OpaqueKind:
    """What a `Reasoning`'s `data` is. Without a `type` it is a signature, an id or a plain thought."""
    kind = data.get("type")
    if kind is None or kind in _THOUGHTS:
        return "thought"
    if kind == CITATIONS:
        return "citations"
    if kind == "image_generation_call" and data.get("result"):
        return "picture"
    return "server block"


def citations(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The block for the sources of one answer, each once; None when there are none."""
    unique = {(c.get("url"), c.get("title")): dict(c) for c in found if c.get("url") or c.get("title")}
    return {"type": CITATIONS, "citations": list(unique.values())} if unique else None


def told(data: Mapping[str, Any]) -> tuple[Part, ...]:
    """What another vendor can be told of a block: sources as plain links, a generated picture; nothing of the rest."""
    match opaque_kind(data):
        case "citations":
            links = [_link(c) for c in data.get("citations") or () if c.get("url")]
            return (Text("\n".join(["\n\nSources:", *links])),) if links else ()
        case "picture":
            try:
                picture = base64.b64decode(data["result"], validate=True)
            except (binascii.Error, TypeError, ValueError):
                return ()
            form = data.get("output_format")
            return (Image(data=picture, media_type=f"image/{form}" if form else None),)
        case _:
            return ()


def _link(citation: Mapping[str, Any]) -> str:
    url, title = str(citation["url"]), str(citation.get("title") or "").strip()
    return f"- {title}: {url}" if title and title != url else f"- {url}"
