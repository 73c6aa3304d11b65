"""A record of evidence: the figures, and what it takes to measure them again. One JSON file per section."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.evidence.sections import Section

__all__ = ["FOLDER", "ROOT", "load", "record", "save"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "evidence"


def record(section: Section, figures: Mapping[str, Any], *, command: str) -> dict[str, Any]:
    """The figures with their command, date, versions and machine."""
    return {
        "what": section.what,
        **figures,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(section.packages),
        "machine": machine(),
    }


def versions(packages: tuple[str, ...] | Any) -> dict[str, str]:
    """Of Python and of the distributions named, where installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # another world has another set
            continue
    return found


def machine() -> dict[str, Any]:
    """Its size and how busy it is, nothing that names it."""
    facts: dict[str, Any] = {"cores": os.cpu_count(), "system": platform.system(), "architecture": platform.machine()}
    try:
        facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        facts["load_average"] = round(os.getloadavg()[0], 1)
    except (OSError, ValueError, AttributeError):
        pass  # a system that does not say
    return facts


def save(name: str, facts: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write a section's file; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def load(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """A section's record; None if it was never measured."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
