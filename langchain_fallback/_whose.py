"""For whom a call is made, and under which tags: what a run's config says of it, where the call itself says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig

from shared_core.chat.per_call import several

__all__ = ["tags_in_config", "whose"]

_OWN = ("seq:step:", "map:key:", "graph:step:", "branch:", "condition:", "langsmith:")
"""How tags begin that LangChain and LangGraph put on runs themselves."""


def whose(
    kwargs: Mapping[str, Any], tags: Sequence[str] | None, metadata: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """`kwargs` with the run's user (its metadata's "user" or "user_id"), and with its tags beside the call's own."""
    if not tags and not metadata:
        return kwargs
    found: dict[str, Any] = {}
    if metadata and kwargs.get("user") is None:
        user = metadata.get("user")
        user = metadata.get("user_id") if user is None else user
        if user is not None:
            found["user"] = str(user)
    if tags and (own := [tag for tag in tags if not tag.startswith(_OWN)]):
        found["tags"] = tuple(dict.fromkeys((*_listed(kwargs.get("tags")), *own)))
    return {**kwargs, **found} if found else kwargs


def tags_in_config(config: RunnableConfig, kwargs: dict[str, Any]) -> RunnableConfig:
    """`config` with the call's own `tags=`, which LangChain's longer way would take for its own. Changes `kwargs`."""
    tags = _listed(kwargs.pop("tags"))
    return {**config, "tags": [*(config.get("tags") or ()), *tags]}


def _listed(tags: str | Sequence[str] | None) -> Sequence[str]:
    return several("tags", tags) if tags else ()
