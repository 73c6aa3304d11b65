"""Twenty-eight JSON schemas: what people write every day, and what is hard to hold a model to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]


def _object(optional: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    """A closed object; every property is required but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT: Schema = {"type": "string", "maxLength": 12}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}

EVERYDAY: Mapping[str, Schema] = {
    "a person": _object(name=TEXT, age={"type": "integer", "minimum": 0, "maximum": 120}, city=TEXT),
    "a flag": FLAG,
    "an enum": {"enum": ["red", "green", 7, None]},
    "a constant": {"const": {"kind": 'a"b', "n": [1, 2]}},
    "any of": {"anyOf": [FLAG, {"type": "null"}, {"enum": ["x"]}]},
    "one of, apart by a tag": {"oneOf": [_object(tag={"const": "a"}, x=FLAG), _object(tag={"const": "b"}, y=COUNT)]},
    "several types": {"type": ["boolean", "null"]},
    "definitions": {
        "$defs": {"side": {"enum": ["left", "right"]}},
        **_object(a={"$ref": "#/$defs/side"}, b={"$ref": "#/$defs/side"}),
    },
    "a length": {"type": "string", "minLength": 2, "maxLength": 5},
    "an anchored pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "a date": {"type": "string", "format": "date"},
    "an array of two or three": {"type": "array", "items": FLAG, "minItems": 2, "maxItems": 3},
    "a tuple": {"type": "array", "prefixItems": [FLAG, {"enum": ["a", "b"]}], "items": False, "minItems": 2},
    "what may be left out": _object(("b", "c"), a=FLAG, b=FLAG, c=FLAG),
    "all of": {"allOf": [_object(a=FLAG)]},
    "objects in arrays in objects": _object(
        rows={"type": "array", "items": _object(k={"enum": ["p", "q"]}, v=FLAG), "maxItems": 2}
    ),
    "a small range": {"type": "integer", "minimum": 3, "maximum": 11},
    "a negative range": {"type": "integer", "minimum": -20, "maximum": -3},
    "a list that refers to itself": {
        "$defs": {
            "link": {
                "type": "object",
                "properties": {"v": {"enum": [1]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/link"}]}},
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/link",
    },
    "names with quotes and breaks": _object(**{'a"b': FLAG, "c\\d": FLAG, "e\nf": FLAG, "ü😀": FLAG}),
}
"""What most libraries hold a model to."""

AWKWARD: Mapping[str, Schema] = {
    "a number in a range": {"type": "number", "minimum": 0.5, "maximum": 2.5},
    "a multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "different items": {
        "type": "array",
        "items": {"enum": [1, 2, 3]},
        "uniqueItems": True,
        "minItems": 2,
        "maxItems": 3,
    },
    "a pattern anywhere": {"type": "string", "pattern": "[0-9]", "maxLength": 8},
    "not": {"not": {"type": "string"}},
    "if and then": {"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}},
    "names by a pattern": {"type": "object", "patternProperties": {"^x": FLAG}},
    "a definition that is elsewhere": {"$ref": "https://example.com/schema.json"},
}
"""What many ignore in silence. Held to, or refused beforehand; never let out wrong."""

SCHEMAS: Mapping[str, Schema] = {**EVERYDAY, **AWKWARD}
