"""Where a setting stands in a configuration file, and which setting a message is about."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["line_of", "lines_of"]

Place = tuple[str | int, ...]
"""How one gets to a setting: `("chains", "nightly", "retry", "total")`, `("models", 1, "weight")`."""

# What messages call that whose options stand under these names.
_CALLED = {
    "targets": "Target",
    "models": "Target",
    "timeouts": "Timeouts",
    "retry": "RetryPolicy",
    "breaker": "BreakerConfig",
    "limits": "Limits",
    "hedge": "Hedge",
    "health_check": "HealthCheck",
    "price": "Price",
    "capabilities": "Capabilities",
    "budgets": "Budget",
    "chains": "Chain",
}
_ENOUGH = 3  # fewer points could be chance
_LONGEST = 2_000  # lines of TOML; what is longer is not parsed once for each of its lines
_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def line_of(message: str, text: str, *, toml: bool) -> int | None:
    """The line, from 1, of the setting in `text` that `message` complains of; None if it cannot be told.

    A message names the option (`Timeouts.total must be …, not -5`, `Chain has no option 'retries'`) or quotes the value
    (`unknown strategy 'csot'`), and often what it belongs to (`chain 'nightly' names 'tiny'`). The setting for which
    most of this speaks is the one; of several, the first in the file.
    """
    complaint = re.split(r"Did you mean|Valid:|\nhint:", message)[0]
    quoted = set(re.findall(r"'([^']*)'", complaint))
    words = set(re.findall(r"\w+", complaint))
    refused = complaint.rpartition(", not ")[2].strip().rstrip(".")

    def weighed(value: Any, place: Place, around: int) -> Iterator[tuple[int, Place]]:
        if place:
            name = place[-1]
            points = around + (3 if name in quoted else 2 if name in words else 0)
            points += 3 if isinstance(value, str) and quoted & {value, value.partition(":")[0]} else 0
            points += 2 if refused in (repr(value), type(value).__name__) else 0
            yield points, place
            around += 2 if name in quoted else 1 if name in words or _CALLED.get(str(name)) in words else 0
        if isinstance(value, Mapping):
            around += 2 if quoted & {value.get("name"), value.get("spec")} else 0
            for key, inner in value.items():
                yield from weighed(inner, (*place, key), around)
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from weighed(inner, (*place, i), around)

    lines = lines_of(text, toml=toml)
    data = tomllib.loads(text) if toml else json.loads(text)
    found = [(-points, lines[place]) for points, place in weighed(data, (), 0) if points >= _ENOUGH and place in lines]
    return min(found)[1] if found else None


def lines_of(text: str, *, toml: bool) -> dict[Place, int]:
    """The line, from 1, in which each setting of `text` begins. `text` must be well formed."""
    return _toml_lines(text.splitlines()) if toml else _json_lines(text)


def _toml_lines(lines: Sequence[str]) -> dict[Place, int]:
    """What is there after a line and was not before it, stands in it: no grammar is written twice."""
    found: dict[Place, int] = {}
    begun = 1
    for end in range(1, len(lines) + 1 if len(lines) <= _LONGEST else 0):
        read = "\n".join(lines[:end])
        for closed in ("", "]", "]]", "]]]"):  # in the middle of a list, or of a list in a list
            try:
                data = tomllib.loads(read + closed)
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a text, which began where the last line that can be read ended
            for place in _places(data):
                found.setdefault(place, begun)
            begun = end + 1
            break
    return found


def _json_lines(text: str) -> dict[Place, int]:
    found: dict[Place, int] = {}
    place: list[str | int] = []
    key = False  # whether a text that comes now is a key
    for token in _JSON.finditer(text):
        word, line = token.group(), text.count("\n", 0, token.start()) + 1
        if key and word[0] == '"':
            place[-1] = json.loads(word)
            found[tuple(place)] = line  # of a key that stands there twice, the last one counts
        elif word not in ("}", "]", ",", ":"):
            found.setdefault(tuple(place), line)
        if word in ("{", "["):
            place.append("" if word == "{" else 0)
        elif word in ("}", "]"):
            place.pop()
        elif word == "," and isinstance(place[-1], int):
            place[-1] += 1
        key = word == "{" or (word == "," and isinstance(place[-1], str))
    return found


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
    yield place
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from _places(below, (*place, key))
