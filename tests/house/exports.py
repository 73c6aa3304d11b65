"""The public surface, read from the code; `python -m tests.house.exports` pins it in exports.txt."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

PACKAGES = ("shared_core", "langchain_fallback", "llamaindex_fallback")
PINNED = Path(__file__).with_name("exports.txt")


def public_modules() -> list[str]:
    """Every module a user may import: no part of its name begins with an underscore."""
    names: list[str] = []
    for package in PACKAGES:
        names.append(package)
        found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        names += [info.name for info in found if not any(part.startswith("_") for part in info.name.split("."))]
    return sorted(names)


def without_all() -> list[str]:
    """Public modules that hold something and do not say what of it is public."""
    return [
        name
        for name in public_modules()
        if not hasattr(module := importlib.import_module(name), "__all__")
        and any(
            not attribute.startswith("_") and not isinstance(value, ModuleType) and attribute != "annotations"
            for attribute, value in vars(module).items()
        )
    ]


def surface() -> str:
    """One line per public name, `module: name`, sorted."""
    lines = [
        f"{module}: {name}"
        for module in public_modules()
        for name in sorted(getattr(importlib.import_module(module), "__all__", ()))
    ]
    return "".join(f"{line}\n" for line in lines)


def dangling() -> list[str]:
    """Names that an `__all__` promises and the module does not have."""
    return [
        line
        for line in surface().splitlines()
        if not hasattr(importlib.import_module(line.partition(": ")[0]), line.partition(": ")[2])
    ]


def shadowed() -> list[str]:
    """Public names of packages that a module of the package has too."""
    packages = [module for module in map(importlib.import_module, public_modules()) if hasattr(module, "__path__")]
    return [
        f"{package.__name__}.{info.name}"
        for package in packages
        for info in pkgutil.iter_modules(package.__path__)
        if info.name in getattr(package, "__all__", ())
    ]


if __name__ == "__main__":
    PINNED.write_text(surface(), encoding="utf-8")
    sys.stdout.write(f"{PINNED.name}: {len(surface().splitlines())} public names\n")
