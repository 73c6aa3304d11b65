"""Configuration from a file or a mapping: TOML or JSON, with keys taken from the environment."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from shared_core.errors import ConfigurationError, MissingKey

__all__ = ["ConfigLike", "changed_by", "configured", "read_config"]

T = TypeVar("T")

ConfigLike = str | os.PathLike[str] | Mapping[str, Any]
"""A path of a `.toml` or `.json` file, or what would stand in one."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def read_config(source: ConfigLike) -> dict[str, Any]:
    """The settings in `source`, with `${NAME}` and `${NAME:-default}` in any text read from the environment.

    A mapping is copied, never changed. Only text inside `${…}` is replaced; there is no way to run anything.

    Raises:
        ConfigurationError: no such file, another kind of file, a syntax error (with its line), or no table at its top.
        MissingKey: a variable that is not set and has no default; names where it stands.
    """
    if isinstance(source, Mapping):
        raw: Any = source
        where = "the configuration"
    else:
        path = Path(source)
        where = str(path)
        raw = _parsed(path)
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{where} must hold a table of settings, not {type(raw).__name__}")
    return {str(key): _filled(value, f"{where}: {key}") for key, value in raw.items()}


def configured(
    source: ConfigLike, options: Mapping[str, Any], build: Callable[[Any, dict[str, Any]], T], *, instead: str = ""
) -> T:
    """What `build` makes of the targets and the other settings in `source`, before which `options` go.

    `targets` and `models` mean the same, so that one file serves everybody. Where the setting named `instead` is given,
    they are left where they are, and `build` gets None. What is wrong is told with its file, and if it can be found
    with its line: the first that holds what the message puts in quotes, a wrong option, a wrong name.

    Raises:
        ConfigurationError: the file cannot be read, it lists targets twice or not at all, or `build` refuses them.
        MissingKey: a variable that is not set.
    """
    settings = {**read_config(source), **options}
    with _told_with_its_line(source):
        return build(None if instead in settings else _targets(settings), settings)


def changed_by(source: ConfigLike | None, options: Mapping[str, Any], change: Callable[[Mapping[str, Any]], T]) -> T:
    """What `change` makes of the settings in `source`, before which `options` go. `models` mean `targets` here, too.

    Raises:
        ConfigurationError: the file cannot be read, it lists targets twice, or `change` refuses them.
        MissingKey: a variable that is not set.
    """
    if source is None:
        return change(options)
    settings = read_config(source)
    if "models" in settings or "targets" in settings:
        settings["targets"] = _targets(settings)
    with _told_with_its_line(source):
        return change({**settings, **options})


@contextmanager
def _told_with_its_line(source: ConfigLike) -> Iterator[None]:
    """Adds to what is wrong in a file where it stands."""
    try:
        yield
    except ConfigurationError as error:
        if isinstance(source, Mapping) or str(error).startswith(f"{source}"):
            raise
        told = type(error)(f"{source}{_line(Path(source), str(error))}: {error}")
        raise told from error.__cause__


def _targets(settings: dict[str, Any]) -> Any:
    given = [settings.pop(name) for name in ("targets", "models") if name in settings]
    if len(given) != 1 or not given[0]:
        what = "both targets and models, which mean the same" if len(given) > 1 else "no targets"
        raise ConfigurationError(f'the configuration lists {what}.\nhint: targets = ["openai:gpt-5-mini", …]')
    return given[0]


def _line(path: Path, message: str) -> str:
    lines = [line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines()]
    at = ""
    for word in re.findall(r"'([^']+)'", message.partition("Did you mean")[0]):
        whole = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
        at = next((f":{number}" for number, line in enumerate(lines, 1) if whole.search(line)), at)
    return at


def _parsed(path: Path) -> Any:
    if path.suffix not in (".toml", ".json"):
        raise ConfigurationError(f"{path} is neither a .toml nor a .json file")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from error
    try:
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # both parsers say the line and the column
        raise ConfigurationError(f"{path}: {error}") from error


def _filled(value: Any, where: str) -> Any:
    match value:
        case str():
            return _VARIABLE.sub(lambda found: _variable(found, where), value)
        case Mapping():
            return {key: _filled(inner, f"{where}.{key}") for key, inner in value.items()}
        case list() | tuple():
            return [_filled(inner, f"{where}[{i}]") for i, inner in enumerate(value)]
        case _:
            return value


def _variable(found: re.Match[str], where: str) -> str:
    name, default = found.groups()
    value = os.environ.get(name) or default
    if value is None:
        raise MissingKey(
            f"{where} wants ${{{name}}}, which is not set.\nhint: set {name}, or write ${{{name}:-default}}"
        )
    return value
