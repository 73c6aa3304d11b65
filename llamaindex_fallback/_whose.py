"""For whom a call is made, and under which tags: what `instrument_tags` says of it, beside the call itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["whose"]

_OURS = ("_", "llm_fallback")
"""How names begin that only this package means something by."""


def whose(options: dict[str, Any], around: Mapping[str, Any]) -> None:
    """Add the `user` and `tags` of the tags `around` a call: its "user" or "user_id", its "tags", and every other one
    as 'name:value', where that is a text or a number. Changes `options`.
    """
    if options.get("user") is None:
        user = around.get("user")
        user = around.get("user_id") if user is None else user
        if user is not None:
            options["user"] = str(user)
    tags = [*_listed(options.get("tags")), *_listed(around.get("tags"))]
    tags += [
        f"{name}:{value}"
        for name, value in around.items()
        if name not in ("user", "user_id", "tags") and isinstance(value, (str, int)) and not name.startswith(_OURS)
    ]
    if tags:
        options["tags"] = tuple(dict.fromkeys(tags))


def _listed(tags: Any) -> tuple[str, ...]:
    return (tags,) if isinstance(tags, str) else tuple(str(tag) for tag in tags or ())
