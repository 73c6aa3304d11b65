"""Where models lie on this machine, and which file a name means. Reads folders; imports nothing, sends nothing.

    a path                      itself, `~` and relative paths included
    'tiny'                      the toy model that ships with the package
    a bare name                 looked for in the working directory, then in `folders()`, first find wins
    hf:<owner>/<repo>/<file>    what is in the hub's cache

Whatever is not there is downloaded by `hub.pull` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared_core.errors import ConfigurationError, InvalidModelFile, nearest
from shared_core.models.names import Ambiguous, HubModel, parts_of, pick, split_name

__all__ = ["TINY", "Found", "ModelNotHere", "cached", "find", "folders", "hub_cache", "resolve", "short"]

TINY = Path(__file__).with_name("tiny.gguf")
"""The toy model that ships with the package: `llamacpp:tiny`."""

_MOST_FILES = 20_000
"""Entries of a folder that are looked at: somebody may name `/`."""
_DEPTH = 5


class ModelNotHere(InvalidModelFile):
    """A model of a hub that is not on this machine; the message says how to fetch it."""


@dataclass(frozen=True, slots=True)
class Found:
    """One model on this machine."""

    path: Path
    """Its file; the first one of several parts."""
    folder: str
    """Which of the places it was found in, for people."""
    spec: str
    """What to write behind `llamacpp:`."""


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads: HF_HUB_CACHE, or `hub` inside HF_HOME (~/.cache/huggingface)."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if given := os.environ.get(variable):
            return _expanded(given)
    home = os.environ.get("HF_HOME")
    return (_expanded(home) if home else _cache_home() / "huggingface") / "hub"


def folders() -> tuple[Path, ...]:
    """Where bare names are looked for before the hub's cache: LLM_FALLBACK_MODELS, our own, other programs' folders."""
    named = [_expanded(part) for part in os.environ.get("LLM_FALLBACK_MODELS", "").split(os.pathsep) if part]
    usual = ("models", ".lmstudio/models", ".cache/lm-studio/models", ".local/share/nomic.ai/GPT4All")
    return (
        *named,
        _cache_home() / "llm-fallback" / "models",
        _cache_home() / "llama.cpp",
        *(Path.home() / folder for folder in usual),
    )


def resolve(model: str) -> Path:
    """The file that 'llamacpp:<model>' means.

    Raises:
        ModelNotHere: a hub's file that is not in its cache.
        InvalidModelFile: a bare name that is nowhere.
        Ambiguous: a name or glob that several models bear.
    """
    if model in ("", "tiny"):
        return TINY
    if (wanted := HubModel.of(model)) is not None:
        path = cached(wanted)
        if path is None:
            raise ModelNotHere(
                f"{wanted} is not on this machine yet.\n"
                f"hint: llm-fallback models pull '{wanted}', or warm() the router; see docs/local-model.md"
            )
        return path
    path = Path(model).expanduser()
    if path.exists() or len(path.parts) != 1 or model.startswith("~"):
        return path.absolute()
    return _named(model)


def _named(name: str) -> Path:
    wanted = {name.lower(), f"{name.lower()}.gguf"}
    for folder in folders():
        there = {
            path.relative_to(folder).as_posix(): path for path in _files(folder) if _called(path.name.lower(), wanted)
        }
        if there:
            return there[pick(there, "*", what=str(folder))[0]]
    for found in _in_hub_cache():
        if _called(found.path.name.lower(), wanted):
            return found.path
    places = ", ".join(short(folder) for folder in (Path.cwd(), *folders(), hub_cache()))
    close = nearest(name, {found.path.name for found in find()} - {TINY.name} | {"tiny"})
    raise InvalidModelFile(
        f"model {name!r}: there is no such file, nor a model of that name in {places}.\nhint: {close} "
        "`llm-fallback models` lists what is there; LLM_FALLBACK_MODELS names other folders"
    )


def _called(file: str, wanted: set[str]) -> bool:
    whole = split_name(file)
    return file in wanted or (whole is not None and f"{whole[0]}.gguf" in wanted)


def find() -> Iterator[Found]:
    """Every model in the places that are looked into, each once: the toy model, `folders()`, the hub's cache."""
    seen = {TINY.resolve()}
    yield Found(TINY, "ships with llm-fallback", "tiny")
    everything: list[Iterator[Found]] = [_in_folder(folder) for folder in folders()]
    for found in (found for each in [*everything, _in_hub_cache()] for found in each):
        real = found.path.resolve()
        if real not in seen:
            seen.add(real)
            yield found


def _in_folder(folder: Path) -> Iterator[Found]:
    for path in sorted(_files(folder)):
        if path.name == parts_of(path.name)[0]:
            yield Found(path, short(folder), short(path))


def _in_hub_cache() -> Iterator[Found]:
    cache = hub_cache()
    for storage in sorted(cache.glob("models--*--*")):
        repo = storage.name.removeprefix("models--").replace("--", "/", 1)
        for snapshot in _snapshots(storage, "main"):
            for path in sorted(_files(snapshot)):
                name = path.relative_to(snapshot).as_posix()
                if path.name == parts_of(path.name)[0]:
                    yield Found(path, "hub cache", f"hf:{repo}/{name}")


def cached(model: HubModel) -> Path | None:
    """The file in the hub's cache, without asking the hub: the newest snapshot that has all of it; else None.

    Raises:
        Ambiguous: the glob matches several models there.
    """
    storage = hub_cache() / f"models--{model.repo.replace('/', '--')}"
    for snapshot in _snapshots(storage, model.revision):
        names = {path.relative_to(snapshot).as_posix() for path in _files(snapshot)}
        try:
            first = pick(names, model.pattern, what=f"the cache of {model.repo}")[0]
        except Ambiguous:
            raise
        except ConfigurationError:
            continue  # not in this one, or not all of its parts
        return snapshot / first
    return None


def _snapshots(storage: Path, revision: str) -> Iterator[Path]:
    """Folders of one repository's files, best first: the one that the revision points to; for 'main' any other too."""
    everything = storage / "snapshots"
    try:
        commit = (storage / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    if (everything / commit).is_dir():
        yield everything / commit
    if revision == "main":  # a newer commit may be known of which other files alone were fetched
        try:
            others = [p for p in everything.iterdir() if p.is_dir() and p.name != commit]
        except OSError:
            return
        yield from sorted(others, key=lambda p: -p.stat().st_mtime)


def _files(folder: Path, depth: int = _DEPTH) -> list[Path]:
    """GGUF files below a folder; none where it cannot be read. A link whose file is gone does not count."""
    found: list[Path] = []
    left = _MOST_FILES
    waiting = [(folder, depth)]
    while waiting:
        here, below = waiting.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            if entry.name.lower().endswith(".gguf") and os.path.isfile(entry.path):
                found.append(Path(entry.path))
            elif below > 0 and left > 0 and entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), below - 1))
    return found


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser().absolute()


def _cache_home() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return _expanded(given) if given else Path.home() / ".cache"


def short(path: Path) -> str:
    """A path as people write it."""
    try:
        return f"~/{path.relative_to(Path.home())}" if path != Path.home() else "~"
    except (ValueError, RuntimeError):
        return str(path)
