"""Provider names: which there are, what each needs, and how a `Target` becomes a `Provider`.

`check` finds what is wrong with a target before anything is imported or sent; `build` makes the provider.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from shared_core.errors import (
    ConfigurationError,
    MissingDependency,
    MissingKey,
    UnknownProvider,
    nearest,
)
from shared_core.providers import compatible
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target

__all__ = ["ALIASES", "Entry", "build", "canonical", "check", "key_for", "provider_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a provider name stands for."""

    module: str
    cls: str
    sdk: str
    """The module that must be installed."""
    extra: str
    package: str
    """What its SDK is called where packages are installed from."""
    key_env: tuple[str, ...] = ()
    needs_key: bool = True
    options: frozenset[str] | None = None
    """Keywords a target may carry; None leaves them to the provider."""


_HTTP = frozenset({"headers", "query", "params"})
_OPENAI = Entry(
    module="shared_core.providers.openai", cls="OpenAIProvider", sdk="openai", extra="openai", package="openai",
    options=_HTTP | {"organization", "project", "think_tags", "stream_usage"},
)  # fmt: skip

_ENTRIES: dict[str, Entry] = {
    "anthropic": Entry(
        module="shared_core.providers.anthropic", cls="AnthropicProvider", sdk="anthropic", extra="anthropic",
        package="anthropic", key_env=("ANTHROPIC_API_KEY",), options=_HTTP,
    ),
    "google": Entry(
        module="shared_core.providers.google", cls="GoogleProvider", sdk="google.genai", extra="google",
        package="google-genai", key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "google-legacy": Entry(
        module="shared_core.providers.google_legacy", cls="GoogleLegacyProvider", sdk="google.generativeai",
        extra="google-legacy", package="google-generativeai", key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "llamacpp": Entry(
        module="shared_core.providers.llama_cpp", cls="LlamaCppProvider", sdk="llama_cpp", extra="local",
        package="llama-cpp-python", needs_key=False,
    ),
}  # fmt: skip

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "claude": "anthropic",
        "gemini": "google",
        "google-genai": "google",
        "google-generativeai": "google-legacy",
        "azure": "azure-openai",
        "grok": "xai",
        "x-ai": "xai",
        "togetherai": "together",
        "together-ai": "together",
        "fireworks-ai": "fireworks",
        "workers-ai": "cloudflare",
        "cloudflare-workers-ai": "cloudflare",
        "nim": "nvidia",
        "nvidia-nim": "nvidia",
        "moonshotai": "moonshot",
        "kimi": "moonshot",
        "mistralai": "mistral",
        "lm-studio": "lmstudio",
        "llama.cpp": "llamacpp",
        "llama-cpp": "llamacpp",
        "llama-cpp-python": "llamacpp",
        "gguf": "llamacpp",
        "local": "llamacpp",
        "llama-cpp-server": "llama-server",
        "llamacpp-server": "llama-server",
        "compatible": "openai-compatible",
        "openai-like": "openai-compatible",
    }
)
"""Other names people use."""


def provider_names() -> tuple[str, ...]:
    """Every provider a target may name, without aliases, sorted."""
    return tuple(sorted({*_ENTRIES, *compatible.ROWS}))


def canonical(name: str) -> str:
    """The provider that `name` stands for.

    Raises:
        UnknownProvider: none does; the message names the nearest.
    """
    name = name.strip().lower().replace("_", "-")
    name = ALIASES.get(name, name)
    if name not in _ENTRIES and name not in compatible.ROWS:
        close = nearest(name, {*provider_names(), *ALIASES})
        if not close.startswith("Did"):
            close = nearest(name, provider_names())
        raise UnknownProvider(f"unknown provider {name!r}. {close}")
    return name


def _entry(name: str) -> Entry:
    return _ENTRIES.get(name, _OPENAI)


def _keys(name: str) -> tuple[tuple[str, ...], bool]:
    row = compatible.ROWS.get(name)
    return (row.key_env, row.needs_key) if row is not None else (_entry(name).key_env, _entry(name).needs_key)


_UNSENDABLE = re.compile(r"\A\s|\s\Z|[\0\r\n]")


def key_for(target: Target) -> str | None:
    """The target's key: its own, else the vendor's environment variable, else None. Never logged by anyone.

    Raises:
        MissingKey: the provider needs one and there is none; the message names the variable.
    """
    if target.api_key:
        return target.api_key.strip()  # a key that was read from a file ends with a line break
    name = canonical(target.provider_name)
    variables, needed = _keys(name)
    key = next((value for variable in variables if (value := os.environ.get(variable, "").strip())), None)
    if key is None and needed:
        if target.base_url is not None and compatible.is_loopback(target.base_url):
            return None  # a server of one's own on this machine: it decides
        names = " or ".join(f"`{v}`" for v in variables)
        raise MissingKey(f"Target {target.spec!r} has no key.\nhint: set {names} or pass api_key=")
    return key


def check(target: Target) -> None:
    """Refuse a target that cannot work, before anything is imported or sent.

    Raises:
        ConfigurationError: UnknownProvider, UnknownOption, MissingDependency, MissingKey or InvalidModelFile; each
            message says what to do.
    """
    if target.provider is not None:
        return
    name = canonical(target.provider_name)
    entry = _entry(name)
    if entry.options is not None:
        target.refuse_options_but(entry.options)
    for option in _HTTP:
        if not isinstance(target.options.get(option) or {}, Mapping):  # what it is instead may be a key
            raise ConfigurationError(f"Target {target.spec!r}: {option} must be a mapping of names and values")
    if name != "llamacpp" and target.base_url is not None:
        _check_address(target, target.base_url, bare=name in compatible.ROWS)
    for header, value in (target.options.get("headers") or {}).items():
        if isinstance(value, str) and _UNSENDABLE.search(value):  # the HTTP library's refusal would recite it
            raise ConfigurationError(
                f"Target {target.spec!r}: the value of the header {header!r} has a line break, or white space at an end"
            )
    if not _installed(entry.sdk):
        raise MissingDependency(
            f"Target {target.spec!r} needs the {entry.package} package.\n"
            f'hint: pip install "llm-fallback[{entry.extra}]"'
        )
    key_for(target)
    if (row := compatible.ROWS.get(name)) is not None:
        compatible.base_url(row, target.base_url)
    if name == "llamacpp":
        _check_llamacpp(target)


def _check_address(target: Target, url: str, *, bare: bool) -> None:
    """Refuse an address that no request can go to; it is not repeated, for it may hold a password.

    Args:
        target: whose it is.
        url: the address.
        bare: whether 'host:port' will do.
    """
    try:
        parts = urlsplit(url.strip() if "://" in url or not bare else f"http://{url.strip()}")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, half an IPv6 address
        good = False
    if not good:
        raise ConfigurationError(
            f"Target {target.spec!r}: base_url is no address of a server.\nhint: base_url='https://host[:port]/path'"
        )


def _check_llamacpp(target: Target) -> None:
    # The engine knows its files and options; its client part imports no llama.cpp.
    module = importlib.import_module("shared_core.providers.llama_cpp")
    checker = getattr(module, "check_target", None)
    if checker is not None:
        checker(target)
    elif not target.model.startswith(("hf:", "http:", "https:")):
        module.check_model_file(target.model)


def _installed(module: str) -> bool:
    """Whether `module` could be imported; nothing of it is, nor of its parents."""
    parts = module.split(".")
    spec = importlib.util.find_spec(parts[0])
    for part in parts[1:]:
        if spec is None or spec.submodule_search_locations is None:
            return False
        # `find_spec("a.b")` would import `a`; looking into its folders does not.
        spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec is not None


def build(target: Target) -> Provider:
    """The provider of a target: its own when it has one, else a new one. Opens nothing.

    Raises:
        ConfigurationError: as `check`.
    """
    if target.provider is not None:
        return target.provider
    check(target)
    entry = _entry(canonical(target.provider_name))
    made: Provider = getattr(importlib.import_module(entry.module), entry.cls)(target)
    return made
