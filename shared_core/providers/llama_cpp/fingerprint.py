"""Which weights a model file holds: what an answer was kept for must still be what would give it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["engine_build", "fingerprint"]

_WHOLE = 64 * 2**20
"""A file up to this many bytes is read whole, some 50 ms."""
_HEAD = 16 * 2**20
"""Of a larger one this much of the beginning: the header, the vocabulary and the chat template."""
_SAMPLES, _SAMPLE = 256, 64 * 2**10
"""And so many samples of this size, evenly spread over the weights."""


def fingerprint(parts: Sequence[Path]) -> tuple[Any, ...]:
    """A digest of each file with its size and the time it was last written, in nanoseconds.

    Two files of different weights have different samples; one that was changed in a place between them has another
    time. Reading all of a large file would take longer than most answers.

    Raises:
        OSError: a file cannot be read.
    """
    return tuple(_of(path) for path in parts)


def _of(path: Path) -> tuple[Any, ...]:
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        seen = hashlib.sha256()
        if stat.st_size <= _WHOLE:
            while block := file.read(2**20):
                seen.update(block)
            return (seen.hexdigest(), stat.st_size)
        seen.update(file.read(_HEAD))
        for number in range(_SAMPLES):
            file.seek(_HEAD + (stat.st_size - _HEAD - _SAMPLE) * number // (_SAMPLES - 1))
            seen.update(file.read(_SAMPLE))
        return (seen.hexdigest(), stat.st_size, stat.st_mtime_ns)


def engine_build(engine: str) -> str | None:
    """The version of the package that runs the model."""
    with suppress(importlib.metadata.PackageNotFoundError):  # built by hand: the same as no version
        return importlib.metadata.version("xllamacpp" if engine == "xllamacpp" else "llama-cpp-python")
    return None
