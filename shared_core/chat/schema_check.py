"""Does an answer fit its JSON schema? The keywords that a model's answers are held to, and no more."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared_core.chat.events import Answer

__all__ = ["CUT_OFF", "SchemaCheck", "complaint", "violations"]

CUT_OFF = "it was cut off at its length limit"
_LONGEST = 2_000  # characters of a complaint that the model is told
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def complaint(error: Exception) -> str:
    """What a validation failed on, in words for the model: pydantic's findings without its addresses of web pages."""
    findings = getattr(error, "errors", None)
    if callable(findings):  # pydantic's, of either major version
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in findings())
    else:
        said = str(error)
    return said[:_LONGEST]


def violations(text: str, schema: Mapping[str, Any]) -> str:
    """The first thing wrong with `text` under `schema`, in words; empty when all is well. `{}` asks for any object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    if not schema:
        return "" if isinstance(value, dict) else "it is not a JSON object"
    return next(_wrong(value, schema, schema, "$"), "")


class SchemaCheck:
    """An `AnswerCheck`: the answer's text is JSON in a schema. One that calls tools is not the last word and passes."""

    __slots__ = ("_schema",)

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def __call__(self, answer: Answer) -> str | None:
        """What is wrong with `answer`; None when it fits."""
        if answer.tool_calls:
            return None
        return CUT_OFF if answer.finish_reason == "length" else violations(answer.text, self._schema) or None


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return kind == "number" or isinstance(value, int) or value.is_integer()
    return isinstance(value, _KINDS.get(kind, ()))


def _same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _wrong(value: Any, schema: Any, root: Mapping[str, Any], path: str) -> Iterator[str]:
    if schema is True:
        return
    if schema is False:
        yield f"{path} may not be there"
        return
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        node: Any = root
        for step in ref[1:].strip("/").split("/") if ref != "#" else ():
            node = node[step.replace("~1", "/").replace("~0", "~")]
        yield from _wrong(value, node, root, path)
        return
    kind = schema.get("type")
    if kind is not None and not any(_is(value, k) for k in (kind if isinstance(kind, (list, tuple)) else [kind])):
        yield f"{path} is not of type {kind}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{path} is not {schema['const']!r}"
    if "enum" in schema and not any(_same(value, v) for v in schema["enum"]):
        yield f"{path} is none of {list(schema['enum'])!r}"
    for part in schema.get("allOf", ()):
        yield from _wrong(value, part, root, path)
    if "anyOf" in schema and all(any(True for _ in _wrong(value, part, root, path)) for part in schema["anyOf"]):
        yield f"{path} fits no alternative"
    if "oneOf" in schema:
        fits = sum(next(_wrong(value, part, root, path), None) is None for part in schema["oneOf"])
        if fits != 1:
            yield f"{path} fits {fits} alternatives, not one"
    if isinstance(value, dict):
        yield from _object(value, schema, root, path)
    elif isinstance(value, list):
        yield from _array(value, schema, root, path)
    elif isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            yield f"{path} has {len(value)} characters"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{path} does not match {schema['pattern']!r}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        if not low <= value <= high or not above < value < below:
            yield f"{path} is {value}, out of range"
        step = schema.get("multipleOf")
        if step and abs(value / step - round(value / step)) > 1e-9:
            yield f"{path} is no multiple of {step}"


def _object(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], path: str) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name} is missing"
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        yield f"{path} has {len(value)} members"
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        yield from _wrong(item, known.get(name, others), root, f"{path}.{name}")


def _array(value: list[Any], schema: Mapping[str, Any], root: Mapping[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        yield f"{path} has {len(value)} items"
    if schema.get("uniqueItems") and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]):
        yield f"{path} repeats an item"
    items = schema.get("items", True)
    heads = schema.get("prefixItems", items if isinstance(items, (list, tuple)) else ())
    rest = True if isinstance(items, (list, tuple)) else items
    for i, item in enumerate(value):
        yield from _wrong(item, heads[i] if i < len(heads) else rest, root, f"{path}[{i}]")
