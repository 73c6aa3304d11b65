"""Reads a lock file: one entry per requirement, hashes and comments kept with it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_START = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """One locked requirement, `text` being its lines in the lock file."""

    name: str
    version: str
    text: str

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(_HASH.findall(self.text))


def read(path: Path) -> list[Pin]:
    """All pins of the lock file at `path`, in order (a package may be pinned once per Python version)."""
    pins: list[Pin] = []
    block: list[str] = []
    head: re.Match[str] | None = None

    def finish() -> None:
        if head is not None:
            pins.append(Pin(head[1].lower().replace("_", "-"), head[2], "\n".join(block) + "\n"))

    for line in path.read_text(encoding="utf-8").splitlines():
        if start := _START.match(line):
            finish()
            head, block = start, [line]
        elif head is not None:
            block.append(line)
    finish()
    return pins
