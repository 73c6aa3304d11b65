"""A JSON schema as a llama.cpp grammar (GBNF), so that the model can write nothing else. Pure text, no llama.cpp.

Our own rather than the library's: that one lets raw newlines into strings, ignores number ranges, and cannot follow a
schema that refers to itself. What no grammar can say is either checked after the answer or refused, never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["UnsupportedSchema", "gbnf", "tool_call_gbnf"]

Schema = Mapping[str, Any] | bool

_DAY_28 = r'("0" [1-9] | "1" [0-9] | "2" [0-8])'
_BY_FOUR = r'("0" [48] | [2468] [048] | [13579] [26])'
_DATE = (
    rf'([0-9]{{4}} "-" ((("0" [1-9] | "1" [0-2]) "-" {_DAY_28}) | (("0" [13-9] | "1" [0-2]) "-" ("29" | "30"))'
    rf' | (("0" [13578] | "1" [02]) "-31")) | ([0-9] [0-9] {_BY_FOUR} | ({_BY_FOUR} | "00") "00") "-02-29")'
)
_TIME = (
    r'([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    r'("Z" | [+-] [0-2] [0-9] ":" [0-5] [0-9])'
)
_PRIMITIVES = {
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": r'"-"? ("0" | [1-9] [0-9]{0,17}) ("." [0-9]{1,18})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": r'"true" | "false"',
    "null": r'"null"',
    "value": "object | array | string | number | boolean | null",
    "object": r'"{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"',
    "array": r'"[" ws (value (ws "," ws value)*)? ws "]"',
    # Bounded: a model that may write blanks for ever, will.
    "ws": r'[ ]? | "\n" [ \t]{0,20}',
    "date": rf'"\"" {_DATE} "\""',
    "time": rf'"\"" {_TIME} "\""',
    "date-time": rf'"\"" {_DATE} "T" {_TIME} "\""',
    "uuid": r'"\"" [0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12} "\""',
}  # fmt: skip
_NEEDS = {
    "string": ("char",),
    "object": ("value", "string", "ws"),
    "array": ("value", "ws"),
    "value": ("object", "array", "string", "number", "boolean", "null"),
}
_FORMATS = frozenset({"date", "time", "date-time", "uuid"})
_CHECKED_AFTER = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "pattern", "uniqueItems",
    "minProperties", "maxProperties",
)  # fmt: skip
"""Keywords that the grammar leaves out and `schema_check` looks at afterwards."""
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REFUSED = ("not", "if", "then", "else", "patternProperties", "propertyNames", "dependentSchemas", "dependentRequired",
            "contains", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef")  # fmt: skip
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_TELLTALE = (
    ("object", ("properties", "additionalProperties", "required")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("pattern", "format", "minLength", "maxLength")),
)
"""What a schema without a type is about."""
_SMALL_RANGE = 512
"""An integer range of at most this many values becomes a list of them."""


class UnsupportedSchema(Exception):
    """The schema says something that neither the grammar nor the check can hold the model to."""


def gbnf(schema: Schema) -> tuple[str, bool]:
    """The grammar with the root rule `root`, and whether it says all that the schema says.

    Raises:
        UnsupportedSchema: naming the keyword.
    """
    writer = _Writer(schema)
    writer.rule("root", writer.visit(schema or {"type": "object"}, "root"))
    return writer.text(), writer.exact


def tool_call_gbnf(functions: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """The grammar of what stands between `<tool_call>` and its end, for one call of one of the functions.

    Raises:
        UnsupportedSchema: naming the keyword.
    """
    writer: _Writer | None = None
    options: list[str] = []
    exact = True
    rules: dict[str, str] = {}
    for index, function in enumerate(functions):
        writer = _Writer(function.get("parameters") or {"type": "object"}, prefix=f"t{index}-")
        body = writer.visit(function.get("parameters") or {"type": "object"}, f"{writer.prefix}args")
        name = _literal(json.dumps(function["name"]))
        options.append(f'{name} gap "," gap "\\"arguments\\"" gap ":" gap {body}')
        exact = exact and writer.exact
        rules |= writer.rules
    rules |= {"ws": _PRIMITIVES["ws"], "gap": "[ \\n]?"}
    rules["root"] = 'gap "{" gap "\\"name\\"" gap ":" gap (' + " | ".join(options) + ') gap "}" gap "</tool_call>"'
    return "\n".join(f"{name} ::= {body}" for name, body in rules.items()), exact


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _literal(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c, c) for c in text) + '"'


def _json_literal(value: Any) -> str:
    return _literal(json.dumps(value, ensure_ascii=False))


class _Writer:
    def __init__(self, root: Schema, prefix: str = "") -> None:
        self._root = root
        self.prefix = prefix
        self.rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self.exact = True

    def rule(self, name: str, body: str) -> str:
        name = re.sub(r"[^a-zA-Z0-9-]", "-", name)
        unique, n = name, 1
        while unique in self.rules or unique in _PRIMITIVES:
            n += 1
            unique = f"{name}-{n}"
        self.rules[unique] = body
        return unique

    def primitive(self, name: str) -> str:
        if name not in self.rules:
            self.rules[name] = _PRIMITIVES[name]
            for other in _NEEDS.get(name, ()):
                self.primitive(other)
        return name

    def text(self) -> str:
        return "\n".join(f"{name} ::= {body}" for name, body in self.rules.items())

    def visit(self, schema: Schema, name: str) -> str:
        """An expression, already in brackets where it needs them."""
        if schema is True or schema == {}:
            return self.primitive("value")
        if schema is False:
            raise UnsupportedSchema("`false` allows nothing")
        for keyword in _REFUSED:
            if keyword in schema:
                raise UnsupportedSchema(f"the keyword {keyword!r}")
        ref = schema.get("$ref")
        if ref is not None:
            return self._reference(str(ref), name)
        if "const" in schema:
            return _json_literal(schema["const"])
        if "enum" in schema:
            return "(" + " | ".join(_json_literal(v) for v in schema["enum"]) + ")"
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                if "properties" in schema:
                    raise UnsupportedSchema(f"{keyword!r} beside 'properties'")
                if keyword == "oneOf":
                    self.exact = False
                return "(" + " | ".join(self.visit(s, f"{name}-{i}") for i, s in enumerate(schema[keyword])) + ")"
        if "allOf" in schema:
            return self.visit(self._merged(schema), name)
        guesses = (k for k, words in _TELLTALE if any(w in schema for w in words))
        kind = schema.get("type") or next(guesses, list(_TYPES))
        if isinstance(kind, (list, tuple)):
            rest = {k: v for k, v in schema.items() if k != "type"}
            kinds = [k for k in kind if k != "integer" or "number" not in kind]
            return "(" + " | ".join(self.visit({**rest, "type": k}, f"{name}-{k}") for k in kinds) + ")"
        checked = {k for k in _CHECKED_AFTER if k in schema}
        if kind == "integer" and _range_in_grammar(schema):
            checked -= set(_RANGE)
        if checked:
            self.exact = False
        match kind:
            case "object":
                return self._object(schema, name)
            case "array":
                return self._array(schema, name)
            case "string":
                return self._string(schema, name)
            case "integer":
                return self._integer(schema)
            case _:
                return self.primitive(str(kind))

    def _reference(self, ref: str, name: str) -> str:
        if ref in self._refs:
            return self._refs[ref]
        if not ref.startswith("#"):
            raise UnsupportedSchema(f"a reference to another document, {ref!r}")
        node: Any = self._root
        for step in ref[1:].strip("/").split("/") if ref != "#" else ():
            key = step.replace("~1", "/").replace("~0", "~")
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is None:
            raise UnsupportedSchema(f"a reference to {ref!r}, which is not there")
        rule = self.rule(f"{self.prefix}ref-{ref.rsplit('/', 1)[-1].strip('#') or 'root'}", "")
        self._refs[ref] = rule  # before the visit: it may refer to itself
        body = self.visit(node, rule)
        if body == rule:
            raise UnsupportedSchema(f"{ref!r} refers to nothing but itself")
        self.rules[rule] = body
        return rule

    def _merged(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            while isinstance(part, Mapping) and "$ref" in part and len(schema["allOf"]) >= 1:
                node: Any = self._root
                for step in str(part["$ref"]).lstrip("#/").split("/"):
                    node = node.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
                if node is None:
                    raise UnsupportedSchema(f"a reference to {part['$ref']!r}, which is not there")
                part = node
            if not isinstance(part, Mapping):
                continue
            if "allOf" in part:
                part = self._merged(part)
            for key, value in part.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, ()), *value]
                elif key in merged and merged[key] != value and key not in ("title", "description"):
                    raise UnsupportedSchema(f"'allOf' with two different {key!r}")
                else:
                    merged[key] = value
        return merged

    def _object(self, schema: Mapping[str, Any], name: str) -> str:
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        additional: Schema = schema.get("additionalProperties", not properties)
        required = set(schema.get("required") or ())
        ws = self.primitive("ws")
        if not properties and additional is True and not required:
            return self.primitive("object")
        extra = ""
        missing = [r for r in required if r not in properties]
        if missing and additional is False:
            raise UnsupportedSchema(f"{missing[0]!r} is required and not allowed")
        if additional is not False and ("additionalProperties" in schema or not properties):
            value = self.visit(additional, f"{name}-value")
            extra = f'{self.primitive("string")} {ws} ":" {ws} {value}'
        pairs: list[tuple[str, bool]] = []
        for key in [*properties, *missing]:
            value = self.visit(properties.get(key, additional), f"{name}-{key}")
            pairs.append((f'{_json_literal(key)} {ws} ":" {ws} {value}', key in required))
        comma = f'{ws} "," {ws}'
        # `tail[i]`: what may follow once something has been written; built from the end, one rule per optional member.
        tail = f"({comma} {extra})*" if extra else ""
        starts: list[str] = [f"{extra} {tail}"] if extra else []
        may_be_empty = True
        for index in range(len(pairs) - 1, -1, -1):
            pair, needed = pairs[index]
            start = f"{pair} {tail}".strip()
            if needed:
                starts, may_be_empty = [start], False
            else:
                starts.insert(0, start)
            after = f"{comma} {pair} {tail}".strip() if needed else f"({comma} {pair})? {tail}".strip()
            tail = self.rule(f"{name}-rest{index}", after) if index else ""
        inside = "(" + " | ".join(starts) + ")" + ("?" if may_be_empty else "") if starts else ""
        return self.rule(f"{name}-object", f'"{{" {ws} {inside} {ws} "}}"')

    def _array(self, schema: Mapping[str, Any], name: str) -> str:
        ws = self.primitive("ws")
        comma = f'{ws} "," {ws}'
        heads: Sequence[Schema] | None = schema.get("prefixItems")
        if heads is None and isinstance(schema.get("items"), (list, tuple)):
            heads = schema["items"]
        low, high = int(schema.get("minItems", 0)), schema.get("maxItems")
        if heads is not None:
            parts = [self.visit(h, f"{name}-{i}") for i, h in enumerate(heads)]
            return self.rule(f"{name}-array", f'"[" {ws} {f" {comma} ".join(parts)} {ws} "]"')
        item = self.visit(schema.get("items", True), f"{name}-item")
        if high is not None and high == 0:
            return f'"[" {ws} "]"'
        top = "" if high is None else str(int(high) - 1)
        inside = f"{item} ({comma} {item}){{{max(0, low - 1)},{top}}}"
        if low == 0:
            inside = f"({inside})?"
        return self.rule(f"{name}-array", f'"[" {ws} {inside} {ws} "]"')

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        form = schema.get("format")
        if form in _FORMATS:
            return self.primitive(str(form))
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength")
        if low == 0 and high is None:
            return self.primitive("string")
        top = "" if high is None else str(int(high))
        return self.rule(f"{name}-string", f'"\\"" {self.primitive("char")}{{{low},{top}}} "\\""')

    def _integer(self, schema: Mapping[str, Any]) -> str:
        low, high = _bounds(schema)
        if low is not None and high is not None and 0 <= high - low < _SMALL_RANGE:
            return "(" + " | ".join(f'"{n}"' for n in range(low, high + 1)) + ")"
        if low is not None and low >= 0:
            return '("0" | [1-9] [0-9]{0,17})' if low == 0 else "([1-9] [0-9]{0,17})"
        return self.primitive("integer")


def _bounds(schema: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest integer allowed."""
    lows = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    highs = [math.floor(schema["maximum"])] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(math.floor(schema["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in schema:
        highs.append(math.ceil(schema["exclusiveMaximum"]) - 1)
    return max(lows, default=None), min(highs, default=None)


def _range_in_grammar(schema: Mapping[str, Any]) -> bool:
    low, high = _bounds(schema)
    if low is not None and high is not None:
        return 0 <= high - low < _SMALL_RANGE
    return high is None and low in (None, 0, 1)
