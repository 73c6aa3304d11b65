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

from shared_core._config_lines import line_of, lines_of
from shared_core.errors import ConfigurationError, MissingKey

__all__ = ["ConfigLike", "changed_by", "configured", "read_config"]

T = TypeVar("T")

ConfigLike = str | os.PathLike[str] | Mapping[str, Any]
"""A path of a `.toml` or `.json` file, or what would stand in one."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_MEANT_AS_ONE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*")


def read_config(source: ConfigLike) -> dict[str, Any]:
    """The settings in `source`, with `${NAME}` and `${NAME:-default}` in any text read from the environment.

    A mapping is copied, never changed. Only text inside `${…}` is replaced; there is no way to run anything.

    Raises:
        ConfigurationError: no such file, another kind of file, a syntax error (with its line), no table at its top, or
            a `${` that is no variable.
        MissingKey: a variable that is not set and has no default; names where it stands.
    """
    path: Path | None = None
    if isinstance(source, Mapping):
        raw: Any = source
        where = "the configuration"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        where = str(path)
        raw = _parsed(path)
    else:
        raise ConfigurationError(f"a configuration is a path or a mapping, not {type(source).__name__}")
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{where} must hold a table of settings, not {type(raw).__name__}")
    try:
        return {str(key): _filled(value, (key,)) for key, value in raw.items()}
    except _NotFilled as error:
        line = None if path is None else lines_of(_text(path), toml=path.suffix == ".toml").get(error.place)
        raise error.why(f"{where}{f':{line}' if line else ''}: {_dotted(error.place)} {error}") from None


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
    except ValueError as error:  # pydantic's is one, of the wrappers' own keywords
        if isinstance(source, Mapping) or str(error).startswith(f"{source}"):
            raise
        path = Path(source)
        line = line_of(str(error), _text(path), toml=path.suffix == ".toml")
        kind = type(error) if isinstance(error, ConfigurationError) else ConfigurationError
        told = kind(f"{source}{f':{line}' if line else ''}: {error}")
        told.__dict__.update(error.__dict__)  # such as the `reason` of a LedgerError
        raise told from (error.__cause__ or error)


def _targets(settings: dict[str, Any]) -> Any:
    for name in ("targets", "models"):
        if isinstance(settings.get(name), (bool, int, float)):
            raise ConfigurationError(f"{name} must be a list of targets, not {type(settings[name]).__name__}")
    given = [settings.pop(name) for name in ("targets", "models") if name in settings]
    if len(given) != 1 or not given[0]:
        what = "both targets and models, which mean the same" if len(given) > 1 else "no targets"
        raise ConfigurationError(f'the configuration lists {what}.\nhint: targets = ["openai:gpt-5-mini", …]')
    return given[0]


def _parsed(path: Path) -> Any:
    if path.suffix not in (".toml", ".json"):
        raise ConfigurationError(f"{path} is neither a .toml nor a .json file")
    try:
        text = _text(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}") from error
    try:
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:  # both parsers say the line and the column
        raise ConfigurationError(f"{path}: {error}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding


class _NotFilled(Exception):
    """A text whose variables cannot be filled in: where it stands, and as what to tell it."""

    def __init__(self, place: tuple[str | int, ...], why: type[ConfigurationError], message: str) -> None:
        self.place = place
        self.why = why
        super().__init__(message)


def _filled(value: Any, place: tuple[str | int, ...]) -> Any:
    match value:
        case str():
            if broken := _MEANT_AS_ONE.search(_VARIABLE.sub("", value)):
                message = f"has {broken.group()!r}, which ends in no '}}'.\nhint: write ${{NAME}} or ${{NAME:-default}}"
                raise _NotFilled(place, ConfigurationError, message)
            return _VARIABLE.sub(lambda found: _variable(found, place), value)
        case Mapping():
            return {key: _filled(inner, (*place, key)) for key, inner in value.items()}
        case list() | tuple():
            return [_filled(inner, (*place, i)) for i, inner in enumerate(value)]
        case _:
            return value


def _variable(found: re.Match[str], place: tuple[str | int, ...]) -> str:
    name, default = found.groups()
    value = os.environ.get(name) or default
    if value is None:
        hint = f"hint: set {name}, or write ${{{name}:-default}}"
        raise _NotFilled(place, MissingKey, f"wants ${{{name}}}, which is not set.\n{hint}")
    return value


def _dotted(place: tuple[str | int, ...]) -> str:
    """`models[1].api_key`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
