"""Providers: one vendor API or engine each, over its official SDK. Nothing is imported until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.providers.classify import classify_body, classify_error
    from shared_core.providers.registry import build, check, provider_names

_HOMES = {
    "build": "shared_core.providers.registry",
    "check": "shared_core.providers.registry",
    "classify_body": "shared_core.providers.classify",
    "classify_error": "shared_core.providers.classify",
    "provider_names": "shared_core.providers.registry",
}

__all__ = ["build", "check", "classify_body", "classify_error", "provider_names"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
