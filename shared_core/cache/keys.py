"""What makes two requests the same: a canonical form of everything that can change an answer, and its digest.

Every field of a request is classified here, as part of the key or not, with the reason why not. Importing this module
fails when a field has been added to one of these classes and not to the tables below: a cache that does not know what a
field means would serve one request's answer to another.

Equal requests have equal keys whatever the order in which dictionaries were filled, whether numbers were written as
integers or as floats, and whether defaults were left out or spelled out. Texts count as given, code point by code
point. What cannot be told by value (a function, an open file, an object of somebody else's class) makes a request
`Unkeyable`: it is not cached, rather than answered with what may be another's answer.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import marshal
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final, get_args

from shared_core.chat.request import (
    Audio,
    ChatRequest,
    File,
    Image,
    Message,
    Native,
    Origin,
    OutputSchema,
    Part,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

__all__ = ["IN_KEY", "NOT_IN_KEY", "Unkeyable", "check_classified", "digest", "form", "native_form", "request_form"]

VERSION: Final = 1
"""Of the form below. Raised when the same request is told differently: older entries are then never found again."""


class Unkeyable(Exception):  # a finding, not a failure: it never leaves this package
    """Something in a request cannot be told by value; the message says what and where."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MEDIA = _names("data url file_id media_type name")
IN_KEY: Final[Mapping[type, frozenset[str]]] = MappingProxyType(
    {
        ChatRequest: _names(
            "messages tools tool_choice parallel_tool_calls output max_tokens temperature top_p stop seed model extra "
            "native continues check"
        ),
        Message: _names("role parts name origin"),
        Text: _names("text"),
        Image: _MEDIA | {"detail"},
        File: _MEDIA,
        Audio: _MEDIA,
        ToolCall: _names("id name arguments data"),
        ToolResult: _names("call_id content name is_error"),
        Reasoning: _names("text data"),
        Origin: _names("provider model endpoint"),
        ToolSpec: _names("name description parameters strict"),
        OutputSchema: _names("schema name strict anyhow"),
        Native: _names("framework messages options added"),
    }
)
"""By class, the fields that are part of the key. Of `check` it is whether there is one: what it looks for cannot be
told by value, so it is run again on the answer that was kept."""

_WHO = "says who is asked; an entry is kept for whoever answered, and served only where that one may answer"
NOT_IN_KEY: Final[Mapping[type, Mapping[str, str]]] = MappingProxyType(
    {
        ChatRequest: {
            "streaming": "the same answer, in pieces or whole",
            "cache": "how the cache itself is used",
            "chain": _WHO,
            "constraints": _WHO,
            "strategy": _WHO,
            "complexity": _WHO,
            "hedge": _WHO,
            "timeout_s": "how long an answer is waited for, not what it says",
            "user": "who asked: `tenant` keeps users apart where they must be",
            "tags": "labels for the ledger",
        },
        Message: {"cache_hint": "what a vendor keeps of a prompt changes its price, not its answer"},
        Native: {"form": "tells the others by value"},
    }
)
"""By class, the fields that are not part of the key, each with the reason. A field that no longer exists may stay."""


def check_classified(
    in_key: Mapping[type, frozenset[str]] = IN_KEY, not_in_key: Mapping[type, Mapping[str, str]] = NOT_IN_KEY
) -> None:
    """Refuse to go on while something of a request is not classified.

    Raises:
        TypeError: naming the class and the fields.
    """
    if unknown := {cls.__name__ for cls in get_args(Part)} - {cls.__name__ for cls in in_key}:
        raise TypeError(f"{', '.join(sorted(unknown))}: a kind of message part that the cache key does not know")
    for cls, known in in_key.items():
        there = {field.name for field in fields(cls)}
        if unknown := there - known - set(not_in_key.get(cls, ())):
            raise TypeError(
                f"{cls.__name__} has fields that are not classified for the cache: {', '.join(sorted(unknown))}\n"
                "hint: can it change an answer? Then it belongs in IN_KEY and in the form of its class in "
                "shared_core/cache/keys.py, else in NOT_IN_KEY with the reason"
            )
        if gone := known - there:
            raise TypeError(f"{cls.__name__} has no fields {', '.join(sorted(gone))}, which its cache key tells")


check_classified()


# ── by value ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def digest(told: Any) -> bytes:
    """32 bytes that are the same for the same form, on every machine and in every process.

    Raises:
        Unkeyable: something in it is no plain value, or it is nested too deeply.
    """
    # Version 2 of marshal writes values only (no object identities), at the speed of C. Its output is never read back.
    try:
        written = marshal.dumps(told, 2)
    except ValueError:  # a text of a class of its own, say: told by value, it is a text
        try:
            written = marshal.dumps(_exactly(told), 2)
        except (ValueError, RecursionError) as error:
            raise Unkeyable(str(error)) from None
    return hashlib.sha256(written).digest()


def _exactly(told: Any) -> Any:
    """The same form of nothing but Python's own types."""
    return tuple(_exactly(item) for item in told) if type(told) is tuple else form(told)


def form(value: Any, at: str = "") -> Any:
    """`value` in canonical form: tuples, texts, numbers and bytes, dictionaries sorted, equal numbers alike.

    Knows plain data, enums, decimals, frozen values (dataclasses), pydantic objects and classes by their schema, and
    objects that tell themselves by a `cache_form()` method of their own.

    Raises:
        Unkeyable: it, or something in it, cannot be told by value.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is int or kind is bytes:
        return value
    if kind is float:
        return int(value) if value.is_integer() else value
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple(value, at)
    if isinstance(value, Mapping):
        return _mapping(value, at)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return form(float(value), at)
    if isinstance(value, (list, tuple)):
        return _items(value, at)
    if isinstance(value, AbstractSet):
        return _set(value, at)
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if whole else ("decimal", str(value.normalize()))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, enum.Enum):
        return ("enum", kind.__qualname__, form(value.value, at))
    return _object(value, at)


def _mapping(value: Mapping[Any, Any], at: str) -> Any:
    try:
        pairs = sorted(value.items())
    except TypeError:  # keys of several kinds, or values that were compared: keys told by value are neither
        pairs = sorted(((form(k, at), v) for k, v in value.items()), key=lambda pair: marshal.dumps(pair[0], 2))
    out: list[Any] = ["{"]  # tells it from a list
    for key, item in pairs:
        out.append(key if type(key) is str else form(key, at))
        kind = type(item)
        out.append(item if kind is str or item is None or kind is bool or kind is int else form(item, f"{at}.{key}"))
    return tuple(out)


def _items(value: Any, at: str) -> Any:
    return ("[", *(item if type(item) is str else form(item, f"{at}[]") for item in value))


def _set(value: AbstractSet[Any], at: str) -> Any:
    return ("set", *sorted((form(item, at) for item in value), key=lambda item: marshal.dumps(item, 2)))


_SIMPLE: dict[type, Callable[[Any, str], Any]] = {
    dict: _mapping,
    list: _items,
    tuple: _items,
    set: _set,
    frozenset: _set,
    MappingProxyType: _mapping,
}


def _object(value: Any, at: str) -> Any:
    where = f"{at.lstrip('.') or 'it'}: {type(value).__module__}.{type(value).__qualname__}"
    try:
        return _told(value, at, where)
    except (Unkeyable, RecursionError):
        raise
    except Exception as error:  # somebody else's object, whose properties may do anything
        raise Unkeyable(f"{where} does not tell its value: {type(error).__name__}: {error}") from error


def _told(value: Any, at: str, where: str) -> Any:
    kind = type(value)
    own = getattr(value, "cache_form", None)
    if own is not None and not isinstance(value, type):
        return ("own", kind.__qualname__, form(own(), at))
    if isinstance(value, type):
        schema = getattr(value, "model_json_schema", None)
        if schema is None:
            raise Unkeyable(f"{where} is a class, whose meaning cannot be told by value")
        return ("class", value.__module__, value.__qualname__, form(schema(), at))
    secret = getattr(value, "get_secret_value", None)
    if secret is not None:
        return ("secret", hashlib.sha256(repr(secret()).encode()).hexdigest())
    if dataclasses.is_dataclass(value):
        told = ((f.name, form(getattr(value, f.name), f"{at}.{f.name}")) for f in fields(value) if f.compare)
        return ("value", kind.__qualname__, *told)
    known = getattr(kind, "model_fields", None)
    if isinstance(known, Mapping):
        extra = getattr(value, "model_extra", None) or {}
        shown = sorted(name for name, about in known.items() if not getattr(about, "exclude", None))
        told = ((name, form(getattr(value, name, None), f"{at}.{name}")) for name in shown)
        return ("model", kind.__module__, kind.__qualname__, *told, form(extra, at))
    iso = getattr(value, "isoformat", None)
    if iso is not None:
        return ("time", kind.__qualname__, iso())
    if hasattr(value, "__fspath__"):
        return ("path", str(value))
    raise Unkeyable(f"{where} cannot be told by value")


# ── a request ────────────────────────────────────────────────────────────────────────────────────────────────────────


def request_form(request: ChatRequest) -> Any:
    """Everything of `request` that can change its answer, whoever gives it; but for what rides along in `native`, which
    only targets that speak its framework read (`native_form`).

    Raises:
        Unkeyable: something in it cannot be told by value.
    """
    output = request.output
    extra = request.extra and {name: told for name, told in request.extra.items() if told}
    return (
        VERSION,
        tuple([_message(message) for message in request.messages]),
        tuple([_tool(tool) for tool in request.tools]) if request.tools else None,
        request.tool_choice,
        request.parallel_tool_calls,
        None if output is None else (_mapping(output.schema, "output"), output.name, output.strict, output.anyhow),
        request.max_tokens,
        None if request.temperature is None else form(request.temperature),
        None if request.top_p is None else form(request.top_p),
        tuple(request.stop) if request.stop else None,
        request.seed,
        request.model,
        _mapping(extra, "extra") if extra else None,
        request.continues,
        request.check is not None,
    )


def native_form(native: Native | None) -> Any:
    """What rides along, as far as it can change the answer of a target that reads it.

    Raises:
        Unkeyable: nobody says how to tell it by value, or something in it cannot be.
    """
    if native is None:
        return None
    if native.form is None:
        raise Unkeyable(f"the objects of {native.framework} ride along, and nothing tells them by value")
    return (
        native.framework,
        form(native.form(native), native.framework),
        tuple([_message(message) for message in native.added]),
    )


def _message(message: Message) -> Any:
    parts, origin = message.parts, message.origin
    if len(parts) == 1 and type(first := parts[0]) is Text:
        told: Any = first.text
    else:
        told = tuple([_PARTS[type(part)](part) for part in parts])
    if origin is None:
        return (message.role, message.name, told)
    return (message.role, message.name, told, (origin.provider, origin.model, origin.endpoint))


def _media(part: Any) -> Any:
    return (
        type(part).__name__, part.data, part.url, part.file_id, part.media_type, part.name,
        getattr(part, "detail", None),
    )  # fmt: skip


def _call(call: ToolCall) -> Any:
    return ("call", call.id, call.name, call.arguments, _mapping(call.data, "tool call") if call.data else None)


def _result(result: ToolResult) -> Any:
    told = tuple([_PARTS[type(part)](part) for part in result.content])
    return ("result", result.call_id, told, result.name, result.is_error)


def _thought(part: Reasoning) -> Any:
    return ("reasoning", part.text, _mapping(part.data, "reasoning") if part.data else None)


_PARTS: Final[Mapping[type, Callable[[Any], Any]]] = {
    Text: lambda part: ("text", part.text),
    Image: _media,
    File: _media,
    Audio: _media,
    ToolCall: _call,
    ToolResult: _result,
    Reasoning: _thought,
}


def _tool(tool: ToolSpec) -> Any:
    return (tool.name, tool.description, _mapping(tool.parameters, f"tool {tool.name}"), tool.strict)
