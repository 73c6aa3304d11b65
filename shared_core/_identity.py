"""What tells one target's answers from another's: the identity that the cache keeps an answer under."""

from __future__ import annotations

import hashlib
from typing import Any

from shared_core.cache.keys import form
from shared_core.errors import ConfigurationError
from shared_core.routing.planner import Route
from shared_core.routing.target import Target

__all__ = ["identity_of"]


def identity_of(route: Route, model: str | None) -> Any:
    """What can change this target's answers, besides the request; None while it is not known.

    Raises:
        Unkeyable: something of it cannot be told by value.
    """
    provider, target = route.provider, route.target
    own = getattr(provider, "identity", None)  # an optional part of the protocol
    told = None
    if own is not None and (told := own(model)) is None:
        return None
    origin = provider.origin
    return (
        type(provider).__qualname__,
        provider.name,
        provider.model,
        (origin.provider, origin.model, origin.endpoint),
        target.spec,
        target.base_url,
        target.account,
        _key_of(target),
        form(target.options, "options") if own is None else None,  # else it has told those that matter
        form(route.capabilities, "capabilities"),
        form(told, "identity"),
    )


def _key_of(target: Target) -> str | None:
    """Which account the vendor bills and sees, by a digest: what one of them is told is not for another."""
    if target.provider is not None:
        return None
    from shared_core.providers.registry import key_for

    try:
        key = key_for(target)
    except ConfigurationError:  # it was there when the target was built, and is not any more
        return None
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()
