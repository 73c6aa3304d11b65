"""Reading an error body in any of the shapes vendors and SDKs keep it in: `read_body`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared_core.providers.error_table import GENERIC, known_code

__all__ = ["ErrorBody", "read_body"]


@dataclass(slots=True)
class ErrorBody:
    """What an error body says: a message, and every code in it, most specific first."""

    message: str = ""
    codes: list[str] = field(default_factory=list)
    status: int | None = None
    details: list[Mapping[str, Any]] = field(default_factory=list)
    html: bool = False

    @property
    def code(self) -> str | None:
        """The most telling code, as the vendor spells it."""
        telling = [c for c in self.codes if c.lower() not in GENERIC and known_code(c)]
        return next(iter(telling or self.codes), None)


_CODE_KEYS = ("error_code", "code", "reason", "type", "status", "innererror", "metadata", "details", "error_type")


def read_body(body: Any) -> ErrorBody:
    said = ErrorBody()
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        text = body.strip()
        if text[:1] in "{[" and text:
            try:
                return read_body(json.loads(text))
            except ValueError:
                pass
        said.html = "<html" in text[:500].lower() or text[:9].lower() == "<!doctype"
        title = re.search(r"<title>(.*?)</title>", text, re.IGNORECASE | re.DOTALL) if said.html else None
        said.message = title.group(1).strip() if title else ("an HTML page" if said.html else text)
        return said
    if isinstance(body, (list, tuple)):
        return read_body(body[0]) if body else said
    if not isinstance(body, Mapping):
        return said
    inner: Any = body.get("error", body.get("errors"))
    if isinstance(inner, (list, tuple)) and inner:
        inner = inner[0]
    if isinstance(inner, str):  # Ollama: {"error": "…"}
        inner = {"message": inner, **{k: v for k, v in body.items() if k in _CODE_KEYS}}
    elif not isinstance(inner, Mapping):
        inner = body
    message = inner.get("message") or inner.get("detail") or inner.get("error_description") or ""
    said.message = message if isinstance(message, str) else json.dumps(message, default=str)
    details = inner.get("details")
    if isinstance(details, (list, tuple)):
        said.details = [d for d in details if isinstance(d, Mapping)]
    said.codes = list(dict.fromkeys(_codes(inner)))
    status = inner.get("code", inner.get("status_code"))
    if isinstance(status, int) and 300 <= status <= 599:
        said.status = status
    return said


def _codes(node: Any, depth: int = 0) -> Iterator[str]:
    """Every short word under a key that holds codes, most specific key first."""
    if depth > 3:
        return
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _codes(item, depth + 1)
    elif isinstance(node, Mapping):
        for key in _CODE_KEYS:
            value = node.get(key)
            if isinstance(value, str):
                if 0 < len(value) <= 80 and " " not in value:
                    yield value
            elif value is not None:
                yield from _codes(value, depth + 1)
