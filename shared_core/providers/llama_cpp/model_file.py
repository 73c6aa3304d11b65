"""The file behind a target: found, and its header read, without llama.cpp, so that configuring can refuse a bad one.

Reading and finding are `shared_core.models`; these are the names that the engine and its tests know them by.
"""

from __future__ import annotations

from shared_core.models.gguf import ModelFile, check_model_file
from shared_core.models.places import TINY
from shared_core.models.places import resolve as resolve_path

__all__ = ["TINY", "ModelFile", "check_model_file", "resolve_path"]
