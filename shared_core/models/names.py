"""What stands behind `llamacpp:`: a path, the name of a file to be found, or a file of a model hub."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared_core.errors import ConfigurationError

__all__ = ["Ambiguous", "HubModel", "bytes_in_words", "count_in_words", "parts_of", "pick", "split_name"]

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NOT_A_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""GGUF files that lie beside models and are none: a projector for pictures, statistics for quantising."""


class Ambiguous(ConfigurationError):
    """A name or glob that several models bear; the message lists them."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """`hf:<owner>/<repo>[@<revision>]/<file or glob>`; the file may be left out where the repository has but one."""

    repo: str
    pattern: str = "*"
    revision: str = "main"

    @classmethod
    def of(cls, text: str) -> HubModel | None:
        """What `text` names; None where it names no file of a hub.

        Raises:
            ConfigurationError: it begins with 'hf:' and goes on otherwise.
        """
        if not text.startswith("hf:"):
            return None
        rest = text.removeprefix("hf:").removeprefix("//").rstrip("/")
        owner, _, rest = rest.partition("/")
        name, _, pattern = rest.partition("/")
        name, _, revision = name.partition("@")
        file_for_repo = not pattern and name.lower().endswith(".gguf")
        if file_for_repo or not _REPO.fullmatch(f"{owner}/{name}") or ".." in pattern.split("/"):
            raise ConfigurationError(
                f"{text!r} is not 'hf:<owner>/<repo>/<file or glob>'.\n"
                "hint: such as 'hf:Qwen/Qwen2.5-7B-Instruct-GGUF/*q4_k_m*.gguf'; @<revision> may follow the repo"
            )
        return cls(f"{owner}/{name}", pattern or "*", revision or "main")

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repo}{at}/{self.pattern}"


def split_name(name: str) -> tuple[str, int, int] | None:
    """(stem, number, count) of one part of a model in several files, such as 'm-00001-of-00003.gguf'; else None."""
    found = _PART.fullmatch(name)
    return None if found is None else (found["stem"], int(found["number"]), int(found["count"]))


def parts_of(name: str) -> tuple[str, ...]:
    """Every file of the model that `name` is (a part of), the first one first: llama.cpp opens that one."""
    found = split_name(name)
    if found is None:
        return (name,)
    stem, _, count = found
    suffix = name[-5:]  # .gguf, however it is spelt
    return tuple(f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1))


def pick(files: Iterable[str], pattern: str, *, what: str) -> tuple[str, ...]:
    """The files of the one model among `files` that `pattern` names, parts in order.

    `pattern` is a path as it stands in `files`, or a glob, in whichever case: of the whole path if it has a slash,
    else of the last part. Where it is a glob, what is no model ('mmproj', 'imatrix') does not count unless it says so.

    Raises:
        Ambiguous: several match.
        ConfigurationError: none does, or parts of it are missing. Each lists the names. `what` names the place.
    """
    there = [name for name in files if name.lower().endswith(".gguf")]
    if pattern in there:
        matching = [pattern]
    else:
        wanted = pattern.lower()
        matching = [
            name
            for name in there
            if fnmatch.fnmatchcase(name.lower() if "/" in wanted else name.lower().rpartition("/")[2], wanted)
            and (not _NOT_A_MODEL.search(name) or _NOT_A_MODEL.search(pattern))
        ]
    models = sorted({parts_of(name) for name in matching})
    if not models:
        has = f"It has {_listed(sorted({parts_of(n)[0] for n in there}))}." if there else "It has no GGUF file at all."
        raise ConfigurationError(f"{what} has no file {pattern!r}. {has}\nhint: name one of its .gguf files")
    if len(models) > 1:
        raise Ambiguous(
            f"{what}: {pattern!r} matches {len(models)} models: {_listed([model[0] for model in models])}.\n"
            "hint: name one of them"
        )
    if missing := [part for part in models[0] if part not in there]:
        raise ConfigurationError(
            f"{what}: {models[0][0]} is one model in {len(models[0])} files, and {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing.\nhint: all of them must be there"
        )
    return models[0]


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def bytes_in_words(count: float) -> str:
    """'4.1 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_in_words(count: float) -> str:
    """'7.6 billion'."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"
