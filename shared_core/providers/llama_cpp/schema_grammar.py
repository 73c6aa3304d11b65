"""A JSON schema as a llama.cpp grammar (GBNF), so that the model can write nothing else. Pure text, no llama.cpp.

Our own rather than the library's: that one lets raw newlines into strings, ignores number ranges, and cannot follow a
schema that refers to itself. What no grammar can say is either checked after the answer or refused, never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

from shared_core.chat.schema_check import violations
from shared_core.providers.llama_cpp.grammar import written
from shared_core.providers.llama_cpp.number_grammar import integers, multiples, numbers
from shared_core.providers.llama_cpp.pattern_grammar import CHARACTERS, UnsupportedPattern, pattern_gbnf, without

__all__ = ["UnsupportedSchema", "gbnf", "tool_call_gbnf"]

Schema = Mapping[str, Any] | bool

_DAY_28 = r'("0" [1-9] | "1" [0-9] | "2" [0-8])'
_BY_FOUR = r'("0" [48] | [2468] [048] | [13579] [26])'
_DATE = (
    rf'([1-9] [0-9]{{3}} "-" ((("0" [1-9] | "1" [0-2]) "-" {_DAY_28}) | (("0" [13-9] | "1" [0-2]) "-" ("29" | "30"))'
    rf' | (("0" [13578] | "1" [02]) "-31")) | ([1-9] [0-9] {_BY_FOUR} | {_BY_FOUR} "00") "-02-29")'
)
_TIME = (
    r'([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    r'("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_PRIMITIVES = {
    # Named rather than what is left out: else llama.cpp takes bytes for characters that are none to anybody else.
    # And no escaped halves of a surrogate pair, which alone are no text.
    "char": r'[ !#-\[\]-~\u00A0-\uD7FF\uE000-\uFFFF\U00010000-\U0010FFFF] '
            r'| "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex hex hex | [dD] [0-7] hex hex))',
    "hex": "[0-9a-fA-F]",
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
    "char": ("hex",),
    "object": ("value", "string", "ws"),
    "array": ("value", "ws"),
    "value": ("object", "array", "string", "number", "boolean", "null"),
}
_FORMATS = frozenset({"date", "time", "date-time", "uuid"})
_NOTES = frozenset({"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
                    "$schema", "$id", "$comment", "$defs", "definitions"})  # fmt: skip
"""Keywords that say nothing about what fits."""
_REFUSED = ("not", "if", "then", "else", "patternProperties", "propertyNames", "dependentSchemas", "dependentRequired",
            "contains", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef")  # fmt: skip
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_TELLTALE = (
    ("object", ("properties", "additionalProperties", "required")),
    ("array", ("items", "prefixItems", "minItems", "maxItems")),
    ("string", ("pattern", "format", "minLength", "maxLength")),
)
"""What a schema without a type is about."""
_LISTED = 512
"""At most so many arrays of different values become a list of them."""


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
        self._definitions = root.get("$defs", {}) if isinstance(root, Mapping) else {}
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
        said = {k: v for k, v in schema.items() if k not in _NOTES}
        ref = said.pop("$ref", None)
        if ref is not None:
            if not said:
                return self._reference(str(ref), name)
            return self.visit(self._merged({**said, "allOf": [*said.get("allOf", ()), {"$ref": ref}]}), name)
        if "const" in schema or "enum" in schema:
            return self._listed(schema)
        if "allOf" in schema:
            return self.visit(self._merged(schema), name)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = {k: v for k, v in said.items() if k != keyword}
                options = list(schema[keyword])
                if rest:  # what stands beside the alternatives holds for each of them
                    options = [self._merged({"allOf": [rest, option]}) for option in options]
                if keyword == "oneOf" and not self._apart(options):
                    self.exact = False
                return "(" + " | ".join(self.visit(s, f"{name}-{i}") for i, s in enumerate(options)) + ")"
        guesses = (k for k, words in _TELLTALE if any(w in schema for w in words))
        kind = schema.get("type") or next(guesses, list(_TYPES))
        if isinstance(kind, (list, tuple)):
            rest = {k: v for k, v in schema.items() if k != "type"}
            kinds = [k for k in kind if k != "integer" or "number" not in kind]
            return "(" + " | ".join(self.visit({**rest, "type": k}, f"{name}-{k}") for k in kinds) + ")"
        match kind:
            case "object":
                return self._object(schema, name)
            case "array":
                return self._array(schema, name)
            case "string":
                return self._string(schema, name)
            case "integer":
                return self._integer(schema)
            case "number":
                return self._number(schema)
            case "boolean" | "null":
                return self.primitive(kind)
            case _:
                raise UnsupportedSchema(f"the type {kind!r}")

    def _listed(self, schema: Mapping[str, Any]) -> str:
        """The values that `const` and `enum` name, as far as they fit what else the schema says."""
        rest = {k: v for k, v in schema.items() if k not in ("const", "enum")} | {"$defs": self._definitions}
        values = [schema["const"]] if "const" in schema else list(schema["enum"])
        if "const" in schema and "enum" in schema:
            values = [v for v in values if v in schema["enum"]]
        fitting = [text for v in values if not violations(text := json.dumps(v, ensure_ascii=False), rest)]
        if not fitting:
            raise UnsupportedSchema("a list of values of which none is allowed")
        return "(" + " | ".join(_literal(text) for text in fitting) + ")"

    def _apart(self, options: Sequence[Schema]) -> bool:
        """Whether no value fits two of these: their types differ, or a required member of all has other values."""
        parts = [self._followed(option) for option in options]
        if any(part is None for part in parts):
            return False
        schemas = [part for part in parts if part is not None]
        kinds = [schema.get("type") for schema in schemas]
        texts = [k for k in kinds if isinstance(k, str)]
        if len(texts) == len(schemas) and len(set(texts)) == len(texts) and not {"integer", "number"} <= set(texts):
            return True
        values = [_values(schema) for schema in schemas]
        if all(v is not None for v in values):
            return _disjoint([v for v in values if v is not None])
        if any(kind != "object" for kind in kinds):
            return False
        for member in schemas[0].get("required", ()):
            if all(member in s.get("required", ()) for s in schemas):
                tags = [_values(s.get("properties", {}).get(member, {})) for s in schemas]
                if all(t is not None for t in tags) and _disjoint([t for t in tags if t is not None]):
                    return True
        return False

    def _followed(self, schema: Any) -> Mapping[str, Any] | None:
        """The schema itself, or what it refers to; None for anything else."""
        for _ in range(20):
            if not isinstance(schema, Mapping):
                return None
            if "$ref" not in schema:
                return schema
            schema = self._referred(str(schema["$ref"]))
        return None

    def _referred(self, ref: str) -> Any:
        if not ref.startswith("#"):
            raise UnsupportedSchema(f"a reference to another document, {ref!r}")
        node: Any = self._root
        for step in ref[1:].strip("/").split("/") if ref != "#" else ():
            key = step.replace("~1", "/").replace("~0", "~")
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is None:
            raise UnsupportedSchema(f"a reference to {ref!r}, which is not there")
        return node

    def _reference(self, ref: str, name: str) -> str:
        if ref in self._refs:
            return self._refs[ref]
        node = self._referred(ref)
        rule = self.rule(f"{self.prefix}ref-{ref.rsplit('/', 1)[-1].strip('#') or 'root'}", "")
        self._refs[ref] = rule  # before the visit: it may refer to itself
        body = self.visit(node, rule)
        if body == rule:
            raise UnsupportedSchema(f"{ref!r} refers to nothing but itself")
        self.rules[rule] = body
        return rule

    def _merged(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema with all of its `allOf` in one."""
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for given in schema.get("allOf", ()):
            part = self._followed(given)
            if part is None:
                if given is True:
                    continue
                raise UnsupportedSchema(f"{given!r} in 'allOf'")
            if "allOf" in part:
                part = self._merged(part)
            if isinstance(given, Mapping) and "$ref" in given and len(given) > 1:
                part = self._merged({"allOf": [part, {k: v for k, v in given.items() if k != "$ref"}]})
            for key, value in part.items():
                merged[key] = self._both(key, merged[key], value) if key in merged else value
        return merged

    def _both(self, key: str, one: Any, other: Any) -> Any:
        """What two parts of an `allOf` say together under one keyword."""
        if one == other or key in _NOTES:
            return one
        if key == "properties":
            return {**one, **{k: self._merged({"allOf": [one[k], v]}) if k in one else v for k, v in other.items()}}
        if key == "required":
            return [*one, *(name for name in other if name not in one)]
        if key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
            return max(one, other)
        if key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
            return min(one, other)
        if key == "enum":
            return [value for value in one if value in other]
        if key == "type" and {one, other} == {"integer", "number"}:
            return "integer"
        raise UnsupportedSchema(f"'allOf' with two different {key!r}")

    def _object(self, schema: Mapping[str, Any], name: str) -> str:
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        additional: Schema = schema.get("additionalProperties", not properties)
        required = set(schema.get("required") or ())
        ws = self.primitive("ws")
        extra = ""
        least, most = int(schema.get("minProperties", 0)), schema.get("maxProperties")
        free = additional is not False and ("additionalProperties" in schema or not properties)
        if least > len(required) or (most is not None and (free or most < len({*properties, *required}))):
            self.exact = False
        if not properties and additional is True and not required:
            return self.primitive("object")
        missing = [r for r in required if r not in properties]
        if missing and additional is False:
            raise UnsupportedSchema(f"{missing[0]!r} is required and not allowed")
        if free:
            value = self.visit(additional, f"{name}-value")
            extra = f'{self._other_name({*properties, *missing}, name)} {ws} ":" {ws} {value}'
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
        if schema.get("uniqueItems"):
            listed = self._different(schema, low, high) if heads is None else None
            if listed is not None:
                return listed
            self.exact = False
        if high is not None and high < low:
            raise UnsupportedSchema(f"at least {low} items and at most {high}")
        rest: Schema = schema.get("items", True) if heads is None or "prefixItems" in schema else True
        if heads is not None:
            heads = heads if high is None else heads[: int(high)]
            parts = [self.visit(h, f"{name}-{i}") for i, h in enumerate(heads)]
            if low > len(parts):
                if rest is False:
                    raise UnsupportedSchema(f"at least {low} items, of which only {len(parts)} are allowed")
                parts += [self.visit(rest, f"{name}-item")] * (low - len(parts))
            return self.rule(f"{name}-array", f'"[" {ws} {f" {comma} ".join(parts)} {ws} "]"')
        if high == 0 or (rest is False and low == 0):
            return f'("[" {ws} "]")'
        item = self.visit(rest, f"{name}-item")
        top = "" if high is None else str(int(high) - 1)
        inside = f"{item} ({comma} {item}){{{max(0, low - 1)},{top}}}"
        if low == 0:
            inside = f"({inside})?"
        return self.rule(f"{name}-array", f'"[" {ws} {inside} {ws} "]"')

    def _different(self, schema: Mapping[str, Any], low: int, high: Any) -> str | None:
        """Arrays of different values out of a short list, all of them; None where that is no short list."""
        items = self._followed(schema.get("items", True))
        values = None if items is None else _values(items)
        if values is None and items is not None and items.get("type") == "boolean":
            values = [False, True]
        if values is None:
            return None
        top = min(len(values), len(values) if high is None else int(high))
        if sum(math.perm(len(values), size) for size in range(low, top + 1)) > _LISTED:
            return None
        arrays = [list(a) for size in range(low, top + 1) for a in permutations(values, size)]
        return self._listed({**schema, "enum": arrays})

    def _other_name(self, names: set[str], name: str) -> str:
        """A member's name that is none of these."""
        if not names:
            return self.primitive("string")
        if any(json.dumps(n, ensure_ascii=False) != f'"{n}"' for n in names):
            self.exact = False  # names that need escapes: what they are not is hard to say
            return self.primitive("string")
        char = self.primitive("char")

        def differs(begun: str) -> str:
            """What may follow these first characters of some of the names."""
            going_on = sorted({n[len(begun)] for n in names if n.startswith(begun) and len(n) > len(begun)})
            other = written(("class", False, without(CHARACTERS, [(c, c) for c in going_on])))
            options = [f"{other} {char}*"]
            options += [f"{_literal(c)} {differs(begun + c)}" for c in going_on]
            return "(" + " | ".join(options) + ")" + ("" if begun in names else "?")

        return self.rule(f"{name}-other", f'"\\"" {differs("")} "\\""')

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        form, pattern = schema.get("format"), schema.get("pattern")
        low, high = int(schema.get("minLength", 0)), schema.get("maxLength")
        if high is not None and high < low:
            raise UnsupportedSchema(f"a text of at least {low} and at most {high} characters")
        if form in _FORMATS:
            if pattern is not None or low or high is not None:
                self.exact = False
            return self.primitive(str(form))
        if pattern is not None:
            return self._matching(str(pattern), low, high, name)
        if low == 0 and high is None:
            return self.primitive("string")
        top = "" if high is None else str(int(high))
        return self.rule(f"{name}-string", f'"\\"" {self.primitive("char")}{{{low},{top}}} "\\""')

    def _matching(self, pattern: str, low: int, high: Any, name: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsupportedSchema(f"the pattern {pattern!r}: {error}") from error
        top = "" if high is None else str(int(high))
        try:
            inside, shortest, longest = pattern_gbnf(pattern, None if high is None else int(high))
        except UnsupportedPattern:
            inside, shortest, longest = f"{self.primitive('char')}{{{low},{top}}}", low, high
            self.exact = False
        self.primitive("char")
        if shortest < low or (high is not None and (longest is None or longest > high)):
            self.exact = False
        return self.rule(f"{name}-string", f'"\\"" {inside} "\\""')

    def _integer(self, schema: Mapping[str, Any]) -> str:
        low, high = _bounds(schema)
        step = schema.get("multipleOf")
        if step is None or step == 1:
            found = self.primitive("integer") if low is None and high is None else integers(low, high)
        elif step == int(step) and step > 0:
            found = multiples(int(step), low, high)
            if found is None and (low is None or high is None or high - low >= step):
                self.exact = False
                found = integers(low, high)
        else:
            self.exact = False
            found = integers(low, high)
        if found is None:
            raise UnsupportedSchema("an integer of which none is within its bounds")
        return found

    def _number(self, schema: Mapping[str, Any]) -> str:
        limits = {k: Fraction(str(schema[k])) for k in _LIMITS if k in schema}
        low = max((limits[k] for k in ("minimum", "exclusiveMinimum") if k in limits), default=None)
        high = min((limits[k] for k in ("maximum", "exclusiveMaximum") if k in limits), default=None)
        step = schema.get("multipleOf")
        places = None if step is None else _places(step)
        if step is not None and places is None:
            if step == int(step):
                return self._integer(schema)
            self.exact = False
        if low is None and high is None and step is None:
            return self.primitive("number")
        found = numbers(
            low,
            high,
            open_low=low is not None and limits.get("exclusiveMinimum") == low,
            open_high=high is not None and limits.get("exclusiveMaximum") == high,
            decimals=6 if places is None else places,
        )
        if found is None:
            raise UnsupportedSchema("a number of which none is within its bounds")
        return found


_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def _bounds(schema: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The least and the greatest integer allowed."""
    lows = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    highs = [math.floor(schema["maximum"])] if "maximum" in schema else []
    if "exclusiveMinimum" in schema:
        lows.append(math.floor(schema["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in schema:
        highs.append(math.ceil(schema["exclusiveMaximum"]) - 1)
    return max(lows, default=None), min(highs, default=None)


def _places(step: Any) -> int | None:
    """How many decimals a multiple of 0.1, 0.01 and so on has; None for another step."""
    for places in range(1, 7):
        if Fraction(str(step)) == Fraction(1, 10**places):
            return places
    return None


def _values(schema: Any) -> list[Any] | None:
    """The values that a schema lists."""
    if not isinstance(schema, Mapping):
        return None
    return [schema["const"]] if "const" in schema else list(schema["enum"]) if "enum" in schema else None


def _disjoint(lists: Sequence[Sequence[Any]]) -> bool:
    texts = [json.dumps(value, sort_keys=True) for values in lists for value in values]
    return len(set(texts)) == len(texts)
