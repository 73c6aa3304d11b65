"""Settings as data, without keys and without addresses in memory: for dumps, for caches and for those who look."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

from langchain_fallback._quiet import address_of
from langchain_fallback.provider import LangChainProvider
from shared_core.errors import is_secret, redact
from shared_core.routing.target import KEYWORDS, Target

__all__ = ["dumped", "identity", "plain"]


def plain(value: Any) -> Any:
    """`value` as something JSON can hold, or None: what cannot be dumped is left out, not shown by its address."""
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, (int, float, bool)):
        return value
    if hasattr(value, "as_options"):  # a ResponseCache: another process has one of its own
        return plain(value.as_options())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: p for f in fields(value) if f.init and (p := plain(getattr(value, f.name))) is not None}
    if isinstance(value, Mapping):
        return {str(k): p for k, v in value.items() if not is_secret(k) and (p := plain(v)) is not None}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(v) for v in items]
    if callable(value) and (code := getattr(value, "__code__", None)) is not None:
        # A strategy of the user's own: its name, and for those that share one (lambdas) what it does.
        kept = hashlib.sha256(repr((code.co_code, code.co_consts, code.co_names)).encode()).hexdigest()[:12]
        return f"{value.__module__}.{value.__qualname__}#{kept}"
    return str(value) if type(value).__module__ == "decimal" else None


def dumped(model: Any) -> Any:
    """One of `models`, without its key."""
    if not isinstance(model, Target):
        return model
    if model.provider is not None:
        return model.provider.chat_model if isinstance(model.provider, LangChainProvider) else model.name
    out: dict[str, Any] = {"spec": model.spec}
    defaults = {f.name: f.default for f in fields(Target)}
    for name in sorted(KEYWORDS - {"api_key", "provider", "model"}):
        value = getattr(model, name)
        if value is not None and value != defaults.get(name) and not (name == "name" and value == model.spec):
            out[name] = redact(value) if name == "base_url" else plain(value)
    out.update(plain(model.options) or {})
    return out if len(out) > 1 else model.spec


def identity(target: Target) -> Any:
    """What tells this target from another, with everything that can change its answers. No secrets."""
    if not isinstance(target.provider, LangChainProvider):
        return dumped(target)
    model = target.provider.chat_model
    where = address_of(model)
    inner = ""
    with suppress(Exception):  # somebody else's property; without it the name has to do
        inner = f" {sorted(model._identifying_params.items())}"
    return f"{target.name}{f' at {redact(where)}' if where else ''}{inner}"
