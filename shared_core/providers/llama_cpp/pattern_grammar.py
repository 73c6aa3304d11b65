"""A regular expression as GBNF for the inside of a JSON string. Every text that the grammar allows matches it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from shared_core.providers.llama_cpp.grammar import Node, written

__all__ = ["CHARACTERS", "UnsupportedPattern", "pattern_gbnf", "without"]

_PRINTABLE = (" ", "~")
_CLASSES = {
    "d": (("0", "9"),),
    "w": (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")),
    "s": ((" ", " "),),
    # What is no digit, word or blank to anybody: of other scripts' letters opinions differ.
    "D": ((" ", "/"), (":", "~")),
    "W": ((" ", "/"), (":", "@"), ("[", "^"), ("`", "`"), ("{", "~")),
    "S": (("!", "~"),),
}
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_JSON = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\f": "\\f", '"': '\\"', "\\": "\\\\"}
_OPEN_END = 40
"""Times that `*` and `+` repeat at most: a model that may go on for ever, will."""
_REPEATED = 256

Ranges = tuple[tuple[str, str], ...]


class UnsupportedPattern(Exception):
    """The expression says something that no grammar of ours says."""


def pattern_gbnf(pattern: str, longest: int | None = None) -> tuple[str, int, int | None]:
    """An expression for what stands between the quotes, in terms of the rule `char`; how many characters that is, at
    least and at most (None: without end). What is not anchored is kept within `longest`, if there is room.

    Raises:
        UnsupportedPattern: naming what it is.
    """
    node = _Reader(pattern).read()
    least, most = _length(node)
    if longest is not None and most is None:
        around = str(node).count(str(_ANY_TEXT))
        node = _Reader(pattern, ("rep", ("ref", "char"), 0, max(0, (longest - least) // around))).read()
        least, most = _length(node)
    return written(node), least, most


_ANY_TEXT: Node = ("rep", ("ref", "char"), 0, None)


def _length(node: Node) -> tuple[int, int | None]:
    """Characters that a text of this node has, at least and at most."""
    match node[0]:
        case "lit":
            size = len(json.loads(f'"{node[1]}"'))
            return size, size
        case "seq":
            sizes = [_length(n) for n in node[1]]
            tops = [most for _, most in sizes if most is not None]
            return sum(least for least, _ in sizes), sum(tops) if len(tops) == len(sizes) else None
        case "alt":
            sizes = [_length(n) for n in node[1]]
            tops = [most for _, most in sizes if most is not None]
            return min(least for least, _ in sizes), max(tops) if len(tops) == len(sizes) else None
        case "rep":
            least, most = _length(node[1])
            return least * node[2], None if most is None or node[3] is None else most * node[3]
        case _:
            return 1, 1


class _Reader:
    def __init__(self, pattern: str, around: Node = _ANY_TEXT) -> None:
        self._text = pattern
        self._around = around
        self._at = 0

    def read(self) -> Node:
        options = self._alternatives(top=True)
        if self._at < len(self._text):
            raise self._unsupported("an unbalanced bracket")
        return options

    def _unsupported(self, what: str) -> UnsupportedPattern:
        return UnsupportedPattern(f"{what} in the pattern {self._text!r}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _alternatives(self, *, top: bool = False) -> Node:
        options = [self._sequence(top=top)]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence(top=top))
        return options[0] if len(options) == 1 else ("alt", tuple(options))

    def _sequence(self, *, top: bool) -> Node:
        parts: list[Node] = []
        begins = ends = False
        if top and self._peek() == "^":
            self._at += 1
            begins = True
        while (character := self._peek()) and character not in "|)":
            if character == "^":
                raise self._unsupported("'^' in the middle")
            if character == "$":
                self._at += 1
                if not top or self._peek() not in ("", "|"):
                    raise self._unsupported("'$' in the middle")
                ends = True
                break
            parts.append(self._repeated(self._atom()))
        if top:  # what is not anchored may stand anywhere
            parts = [*(() if begins else (self._around,)), *parts, *(() if ends else (self._around,))]
        return parts[0] if len(parts) == 1 else ("seq", tuple(parts))

    def _repeated(self, node: Node) -> Node:
        match self._peek():
            case "*":
                least, most = 0, _OPEN_END
            case "+":
                least, most = 1, _OPEN_END
            case "?":
                least, most = 0, 1
            case "{":
                found = re.compile(r"\{(\d+)(,?)(\d*)\}").match(self._text, self._at)
                if found is None:
                    raise self._unsupported("an unusual '{'")
                self._at = found.end() - 1
                least = int(found[1])
                most = least if not found[2] else int(found[3]) if found[3] else least + _OPEN_END
            case _:
                return node
        if most > _REPEATED:
            raise self._unsupported(f"a repetition of {most}")
        self._at += 1
        if self._peek() == "?":  # lazy: the same texts
            self._at += 1
        elif self._peek() in ("+", "*", "{") and self._peek():
            raise self._unsupported("a repetition of a repetition")
        return ("rep", node, least, most)

    def _atom(self) -> Node:
        character = self._peek()
        self._at += 1
        match character:
            case "(":
                if self._peek() == "?":
                    named = re.compile(r"\?(:|P?<[A-Za-z_]\w*>)").match(self._text, self._at)
                    if named is None:
                        raise self._unsupported("'(?'")
                    self._at = named.end()
                node = self._alternatives()
                if self._peek() != ")":
                    raise self._unsupported("an unbalanced bracket")
                self._at += 1
                return ("alt", (node,))
            case "[":
                return self._class()
            case ".":
                return _one_of((_PRINTABLE,))
            case "\\":
                return _one_of(self._escape(inside=False))
            case _:
                return ("lit", _in_json(character))

    def _escape(self, *, inside: bool) -> Ranges:
        kind = self._peek()
        self._at += 1
        if kind in _CLASSES:
            return _CLASSES[kind]
        if kind in _CONTROL:
            return ((_CONTROL[kind], _CONTROL[kind]),)
        size = {"x": 2, "u": 4}.get(kind)
        if size:
            digits = self._text[self._at : self._at + size]
            self._at += size
            return ((chr(int(digits, 16)),) * 2,)
        if kind == "b" and inside:
            return (("\b", "\b"),)
        if kind.isalnum() or not kind:
            raise self._unsupported(f"'\\{kind}'")
        return ((kind, kind),)

    def _class(self) -> Node:
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[str, str]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._member()
            following = self._text[self._at + 1 : self._at + 2]
            if self._peek() == "-" and following not in ("]", "") and len(low) == 1 and low[0][0] == low[0][1]:
                self._at += 1
                high = self._member()
                if len(high) != 1:
                    raise self._unsupported("a range to a class")
                ranges.append((low[0][0], high[0][1]))
            else:
                ranges.extend(low)
        self._at += 1
        if not negated:
            return _one_of(tuple(ranges))
        return _one_of(without((_PRINTABLE,), ranges))

    def _member(self) -> Ranges:
        character = self._peek()
        self._at += 1
        if character == "\\":
            return self._escape(inside=True)
        return ((character, character),)


def without(ranges: Iterable[tuple[str, str]], taken: Iterable[tuple[str, str]]) -> Ranges:
    """The characters of these ranges that are not in the others."""
    left = list(ranges)
    for low, high in taken:
        next_left = []
        for a, b in left:
            if high < a or low > b:
                next_left.append((a, b))
                continue
            if a < low:
                next_left.append((a, chr(ord(low) - 1)))
            if b > high:
                next_left.append((chr(ord(high) + 1), b))
        left = next_left
    return tuple(left)


def _in_json(text: str) -> str:
    out = []
    for character in text:
        if character not in _JSON and (character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff"):
            raise UnsupportedPattern(f"the character {character!r}")
        out.append(_JSON.get(character, character))
    return "".join(out)


CHARACTERS: Ranges = ((" ", "!"), ("#", "["), ("]", "~"), ("\xa0", "\ud7ff"), ("\ue000", "\U0010ffff"))
"""What a JSON string holds as it is."""


def _one_of(ranges: Ranges) -> Node:
    """One character of these, as JSON writes it."""
    plain = tuple(
        (max(a, low), min(b, high)) for a, b in ranges for low, high in CHARACTERS if max(a, low) <= min(b, high)
    )
    escaped = [c for c in _JSON if any(a <= c <= b for a, b in ranges)]
    options: list[Node] = [("class", False, plain)] if plain else []
    options += [("lit", _JSON[c]) for c in escaped]
    if not options:
        raise UnsupportedPattern("a class without characters")
    return options[0] if len(options) == 1 else ("alt", tuple(options))
