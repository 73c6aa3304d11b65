"""What callers may hand in, made into what the core works with: targets, requests and option groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared_core.chat.quick import quickly
from shared_core.chat.request import ChatRequest, Message, user
from shared_core.errors import ConfigurationError, InvalidRequest
from shared_core.ledger.entry import Ledger
from shared_core.ledger.pricing import find_price
from shared_core.routing.price import FREE, Price
from shared_core.routing.provider import Provider
from shared_core.routing.target import Target, built

__all__ = ["RequestLike", "TargetLike", "as_request", "as_target", "ledger_of", "option", "price_of"]

TargetLike = Target | str | Mapping[str, Any] | Provider
RequestLike = ChatRequest | str | Message | Sequence[Message]
_request = quickly(ChatRequest)


def option(what: str, cls: type[Any], value: Any) -> Any:
    """`value` as a `cls`, the defaults for None."""
    return cls() if value is None else built(what, cls, value)


def as_target(item: TargetLike) -> Target:
    match item:
        case Target():
            return item
        case str():
            return Target(item)
        case Mapping():
            fields = dict(item)
            spec = fields.pop("spec", None) or fields.pop("target", None)
            return Target(spec, **fields)
        case Provider():
            return Target(provider=item)
        case _:
            raise ConfigurationError(
                f"a target is a 'provider:model' string, a Target, a mapping or a Provider, not {type(item).__name__}"
            )


def as_request(request: RequestLike, *, streaming: bool) -> ChatRequest:
    match request:
        case ChatRequest():
            return request if request.streaming is streaming else request.replace(streaming=streaming)
        case str():
            return _request((user(request),), streaming=streaming)
        case Message():
            return _request((request,), streaming=streaming)
        case [Message(), *_] if all(isinstance(m, Message) for m in request):
            return _request(tuple(request), streaming=streaming)
        case _:
            raise InvalidRequest(f"a request is a string, Messages or a ChatRequest, not {type(request).__name__}")


def price_of(target: Target, provider: Provider) -> Callable[[], Price | None]:
    if target.price is not None:
        price = target.price
        return lambda: price
    if provider.local:
        return lambda: FREE
    return lambda: find_price(target.provider_name, provider.model)


def ledger_of(given: Any) -> Ledger:
    """The ledger of a router: one in the file that is named, or the one that is given.

    Raises:
        LedgerError: the file cannot be used.
        ConfigurationError: it is no ledger.
    """
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        from shared_core.ledger.sqlite import SQLiteLedger

        return SQLiteLedger(given)
    if not all(callable(getattr(given, name, None)) for name in ("record", "entries", "costs", "close")):
        raise ConfigurationError(f"ledger= takes a path or a Ledger, not {type(given).__name__}")
    found: Ledger = given
    return found
