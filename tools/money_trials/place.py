"""Where trials keep their files: in memory, where the system has such a folder; what is tried depends on no disk."""

from __future__ import annotations

import os
import tempfile

__all__ = ["folder"]

_MEMORY = "/dev/shm"


def folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """An empty folder, removed when it is left. Who is killed leaves its file to the system, not to a disk."""
    usable = os.access(_MEMORY, os.W_OK | os.X_OK)
    return tempfile.TemporaryDirectory(prefix=f"money-{name}-", dir=_MEMORY if usable else None)
