"""`Target`: provider, model, endpoint, credentials, price and limits. What is healthy or not, priced and chosen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from shared_core.errors import ConfigurationError, UnknownOption, is_number, nearest, redact
from shared_core.resilience.deadline import Timeouts
from shared_core.resilience.rate_limit import Limits
from shared_core.resilience.retry import RetryPolicy
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.price import SPELLINGS, Price
from shared_core.routing.provider import Provider

__all__ = ["KEYWORDS", "Target", "built"]


@dataclass(frozen=True, init=False, eq=False)
class Target:
    """One model at one endpoint under one key.

    ``Target("openai:gpt-5-mini")``, ``Target("llamacpp:/models/qwen.gguf", n_gpu_layers=-1)``, or around a ready
    `Provider`: ``Target(provider=ScriptedProvider([...]), name="local")``.

    Args:
        spec: 'provider:model'. Everything after the first colon is the model, further colons included.
        name: what plans, journals and metrics call it; the spec when left out. Unique within a router.
        base_url: another endpoint that speaks the provider's wire format.
        api_key: the key; left out, the vendor's usual environment variable. Never shown, logged, dumped or pickled; nor
            are a user and password in `base_url`, nor headers and query parameters whose names speak of credentials.
        price: what it costs; left out, the price table decides. Local models cost nothing unless priced.
        capabilities: what it can take, in place of what is known about the model.
        timeouts, retry, limits: in place of the router's.
        weight: share for the `weighted` strategy, 0 or more.
        tier: 'fast', 'standard' or 'best', for complexity routing.
        enabled: False keeps it configured but unused.
        provider: a ready provider, in place of `spec`.
        **options: passed to the provider: `headers`, `organization`, `api_version`, `n_ctx`, `n_gpu_layers`, …. A ready
            `provider` they only tell apart.

    Raises:
        ConfigurationError: the spec has no provider or model, or a figure is out of range.
    """

    spec: str
    name: str
    provider_name: str
    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    price: Price | None = None
    capabilities: Capabilities | None = None
    timeouts: Timeouts | None = None
    retry: RetryPolicy | None = None
    limits: Limits | None = None
    weight: float = 1.0
    tier: str | None = None
    enabled: bool = True
    provider: Provider | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __init__(
        self,
        spec: str | None = None,
        /,
        *,
        name: str | None = None,
        model: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        price: Price | Mapping[str, Any] | None = None,
        capabilities: Capabilities | Mapping[str, Any] | None = None,
        timeouts: Timeouts | Mapping[str, float] | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        weight: float = 1.0,
        tier: str | None = None,
        enabled: bool = True,
        provider: Provider | str | None = None,
        **options: Any,
    ) -> None:
        ready: Provider | None = None
        if isinstance(provider, str):
            if spec is not None:
                raise ConfigurationError(f"give either {spec!r} or provider={provider!r}, not both")
            spec = f"{provider}:{model or ''}"
        elif provider is not None:
            ready = provider
            spec = spec or f"{provider.name}:{model or provider.model}"
        if not (spec and isinstance(spec, str)):
            raise ConfigurationError("a target needs a spec such as 'openai:gpt-5-mini', or provider=")
        vendor, _, rest = spec.partition(":")
        if not vendor or not rest:
            raise ConfigurationError(f"target {spec!r} must be 'provider:model', such as 'openai:gpt-5-mini'")
        texts: dict[str, Any] = {"name": name, "base_url": base_url, "api_key": api_key}
        for key, given in texts.items():
            if not isinstance(given, str | None):  # its value is not told: it may be a key
                raise ConfigurationError(f"Target.{key} must be a text, not {type(given).__name__}")
        if not isinstance(enabled, bool):
            raise ConfigurationError(f"Target.enabled must be True or False, not {enabled!r}")
        share: Any = weight
        if not is_number(share, least=0):
            raise ConfigurationError(f"Target.weight must be a number >= 0, not {weight!r}")
        if tier not in (None, "fast", "standard", "best"):
            raise ConfigurationError(f"Target.tier must be 'fast', 'standard' or 'best', not {tier!r}")
        values = {
            "spec": spec,
            "name": name or spec,
            "provider_name": vendor.strip().lower().replace("_", "-"),
            "model": rest.strip(),
            "base_url": base_url.rstrip("/") if base_url else None,
            "api_key": api_key,
            "price": built("Target.price", Price, price),
            "capabilities": built("Target.capabilities", Capabilities, capabilities),
            "timeouts": built("Target.timeouts", Timeouts, timeouts),
            "retry": built("Target.retry", RetryPolicy, retry),
            "limits": built("Target.limits", Limits, limits),
            "weight": weight,
            "tier": tier,
            "enabled": enabled,
            "provider": ready,
            "options": dict(options),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        if ready is not None:  # it has been given what it takes: further options only tell it apart, unless misspelled
            self.refuse_options_but(frozenset(one for one in options if not get_close_matches(one, KEYWORDS, 1, 0.75)))

    def refuse_options_but(self, valid: frozenset[str]) -> None:
        """Refuse an option that the provider does not take.

        Raises:
            UnknownOption: naming the nearest valid option or keyword.
        """
        for option in self.options:
            if option not in valid:
                close = nearest(option, valid | KEYWORDS)
                raise UnknownOption(f"Target {self.spec!r} has no option {option!r}. {close}")

    def switched(self, *, enabled: bool) -> Target:
        """The same target, enabled or not."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, enabled=enabled)
        return twin

    @property
    def account(self) -> str:
        """Names the account behind this target without revealing it: same provider, endpoint and key, same account."""
        if self.provider is not None and self.api_key is None:
            return f"{self.provider_name}#{self.name}"
        digest = hashlib.sha256(f"{self.provider_name}\0{self.base_url}\0{self.api_key}".encode()).hexdigest()[:12]
        return f"{self.provider_name}#{digest}"

    def __getstate__(self) -> dict[str, Any]:
        # Credentials never travel in clear: the other side reads the environment.
        url = _USERINFO.sub("", self.base_url) if self.base_url else self.base_url
        return {**self.__dict__, "api_key": None, "base_url": url, "options": _without_credentials(self.options)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __copy__(self) -> Target:
        return self  # it cannot be changed

    def __deepcopy__(self, memo: dict[int, Any]) -> Target:
        twin = memo[id(self)] = object.__new__(type(self))
        twin.__dict__.update(deepcopy(self.__dict__, memo))  # within one process credentials may stay
        return twin

    def __repr__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        if self.base_url:
            shown["base_url"] = redact(self.base_url)
        return f"Target({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


_USERINFO = re.compile(r"(?<=://)[^\s/?#]*@")
_CREDENTIAL = re.compile(r"auth|key|token|cookie|secret|passw|credential|bearer|signature|jwt", re.IGNORECASE)
_CARRIERS = frozenset({"headers", "query", "extra_headers", "extra_query"})
"""Options that a credential may be in, wherever they stand."""


def _without_credentials(options: Mapping[str, Any], *, carrier: bool = False) -> dict[str, Any]:
    """`options` without the headers and query parameters whose names speak of credentials."""
    return {
        name: _without_credentials(value, carrier=name in _CARRIERS) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if not (carrier and _CREDENTIAL.search(str(name)))
    }


def built(what: str, cls: type[Any], value: Any) -> Any:
    """`value` as a `cls`: as it is, or built from a mapping whose unknown names are refused."""
    if value is None or isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{what} must be a {cls.__name__} or a mapping, not {type(value).__name__}")
    valid = [f.name for f in fields(cls) if f.init]
    if cls is Price:
        valid += SPELLINGS
    for key in value:
        if key not in valid:
            raise UnknownOption(f"{cls.__name__} has no option {key!r}. {nearest(key, valid)}")
    for one in fields(cls) if cls is not Price else ():
        if one.init and one.default is MISSING and one.default_factory is MISSING and one.name not in value:
            raise ConfigurationError(f"{what}: a {cls.__name__} needs {one.name}")
    return cls(**value)


KEYWORDS = frozenset({f.name for f in fields(Target)} - {"spec", "provider_name", "options"})
"""What every target takes by keyword; whatever else it is given must be an option of its provider."""
