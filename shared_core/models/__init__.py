"""Models on this machine: found by name, looked at, and fetched from a hub. Nothing here runs one.

The toy model that ships with the package lies here too: see README.md beside this file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared_core._lazy import lazy

if TYPE_CHECKING:
    from shared_core.models.card import ModelCard, model_card, model_cards
    from shared_core.models.gguf import ModelFile, check_model_file
    from shared_core.models.hub import DownloadFailed, Progress, pull
    from shared_core.models.names import Ambiguous, HubModel
    from shared_core.models.places import TINY, ModelNotHere, resolve

__all__ = [
    "TINY",
    "Ambiguous",
    "DownloadFailed",
    "HubModel",
    "ModelCard",
    "ModelFile",
    "ModelNotHere",
    "Progress",
    "check_model_file",
    "model_card",
    "model_cards",
    "pull",
    "resolve",
]

_HOMES = {
    name: f"{__name__}.{home}"
    for home, names in {
        "card": "ModelCard model_card model_cards",
        "gguf": "ModelFile check_model_file",
        "hub": "DownloadFailed Progress pull",
        "names": "Ambiguous HubModel",
        "places": "TINY ModelNotHere resolve",
    }.items()
    for name in names.split()
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
