"""A GBNF grammar as a value: what of it is left once some text has been written. Pure.

That is how an answer goes on in the middle of its JSON: the grammar of the whole answer is run over the part that is
there, and what remains of it is again a grammar, which any engine can be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ANYTHING", "Grammar", "GrammarError", "Node", "written"]

ANYTHING = r"root ::= [^\x00]*"
"""The grammar that forbids nothing."""
_MAX_STATES = 4096
"""Ways of reading the text so far. More means that the grammar is ambiguous without end, or recurses on its left."""

_DEEPEST = 150
"""Brackets within brackets. llama.cpp's own reader has no such limit, and no endless stack either."""
_STACKED = 4

# A node is a tuple: ("lit", text) ("class", negated, ranges) ("ref", name) ("seq", nodes) ("alt", nodes)
# ("rep", node, least, most or None). Tuples compare and hash by value, which is what telling states apart needs.
Node = tuple[Any, ...]
Stack = tuple[Node, Any] | None
"""What must still come: the next node and the rest. None: nothing."""

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "^": "^"}


class GrammarError(Exception):
    """This is no grammar, or one that cannot be followed."""


@dataclass(frozen=True)
class Grammar:
    """Named rules; an answer fits `root`."""

    rules: Mapping[str, Node]

    @classmethod
    def parse(cls, text: str) -> Grammar:
        """Read GBNF.

        Raises:
            GrammarError: it is malformed, or names a rule that is not there.
        """
        rules = _Reader(text).rules()
        if "root" not in rules:
            raise GrammarError("there is no rule `root`")
        return cls(rules)

    def text(self) -> str:
        """As GBNF."""
        return "\n".join(f"{name} ::= {written(node, top=True)}" for name, node in self.rules.items())

    def after(self, text: str) -> Grammar | None:
        """What may follow once `text` is there; None if `text` does not fit.

        Raises:
            GrammarError: it is too ambiguous to be followed.
        """
        states = self._open([(self.rules["root"], None)])
        for character in text:
            steps = (_step(state, character) for state in states if state is not None)
            states = self._open([rest for rest in steps if rest is not _NO])
            if not states:
                return None
        left: list[Node] = []
        for state in states:
            parts = []
            while state is not None:
                node, state = state
                parts.append(node)
            left.append(("seq", tuple(parts)))
        return self._rooted(("alt", tuple(left)))

    def may_end(self) -> bool:
        """Whether an answer may be empty: of what is left of a grammar, whether it is complete."""
        return None in self._open([(self.rules["root"], None)])

    def beginning_with(self, text: str) -> Grammar | None:
        """The same answers, but only those that begin with `text`; None if none does."""
        rest = self.after(text)
        if rest is None or not text:
            return rest
        return Grammar({**rest.rules, "root": ("seq", (("lit", text), ("alt", (rest.rules["root"],))))})

    def then(self, other: Grammar) -> Grammar:
        """An answer of this grammar followed by one of the other."""
        return self._joined(other, lambda a, b: ("seq", (a, b)))

    def or_else(self, other: Grammar) -> Grammar:
        """An answer of this grammar or one of the other."""
        return self._joined(other, lambda a, b: ("alt", (a, b)))

    def _joined(self, other: Grammar, join: Any) -> Grammar:
        mine, theirs = self._renamed("a-"), other._renamed("b-")
        root = join(("ref", "a-root"), ("ref", "b-root"))
        return Grammar({**mine, **theirs, "root": root})

    def _renamed(self, prefix: str) -> dict[str, Node]:
        return {f"{prefix}{name}": _with_prefix(node, prefix) for name, node in self.rules.items()}

    def _rooted(self, root: Node) -> Grammar:
        """With another root; rules that refer to the old one find it under another name."""
        old = "was-root"
        while old in self.rules:
            old += "-"
        rules = {(old if name == "root" else name): _redirected(node, old) for name, node in self.rules.items()}
        return _pruned(_redirected(root, old), rules)

    def _open(self, stacks: Sequence[Stack]) -> list[Stack]:
        """The stacks with a character on top (or nothing left) that these come to."""
        out: list[Stack] = []
        seen: set[Stack] = set()
        todo = list(reversed(stacks))
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if len(seen) > _MAX_STATES:
                raise GrammarError("the grammar is too ambiguous, or a rule begins with itself")
            if stack is None:
                out.append(None)
                continue
            node, rest = stack
            match node[0]:
                case "lit":
                    if node[1]:
                        out.append(stack)
                    else:
                        todo.append(rest)
                case "class":
                    out.append(stack)
                case "ref":
                    todo.append((self.rules[node[1]], rest))
                case "seq":
                    for part in reversed(node[1]):
                        rest = (part, rest)
                    todo.append(rest)
                case "alt":
                    todo.extend((part, rest) for part in reversed(node[1]))
                case _:
                    _, inner, least, most = node
                    if least == 0:
                        todo.append(rest)
                    if most != 0:
                        fewer = ("rep", inner, max(0, least - 1), None if most is None else most - 1)
                        todo.append((inner, (fewer, rest)))
        return out


_NO = object()


def _step(stack: tuple[Node, Any], character: str) -> Any:
    node, rest = stack
    if node[0] == "lit":
        if node[1][0] != character:
            return _NO
        return (("lit", node[1][1:]), rest) if len(node[1]) > 1 else rest
    _, negated, ranges = node
    return rest if any(a <= character <= b for a, b in ranges) is not negated else _NO


def _inner(node: Node) -> Sequence[Node]:
    if node[0] in ("seq", "alt"):
        return list(node[1])
    return [node[1]] if node[0] == "rep" else []


def _mapped(node: Node, change: Any) -> Node:
    """The node with every reference replaced by `change(name)`."""
    match node[0]:
        case "ref":
            return ("ref", change(node[1]))
        case "seq" | "alt":
            return (node[0], tuple(_mapped(n, change) for n in node[1]))
        case "rep":
            return ("rep", _mapped(node[1], change), node[2], node[3])
        case _:
            return node


def _with_prefix(node: Node, prefix: str) -> Node:
    return _mapped(node, lambda name: prefix + name)


def _redirected(node: Node, old: str) -> Node:
    return _mapped(node, lambda name: old if name == "root" else name)


def _pruned(root: Node, rules: Mapping[str, Node]) -> Grammar:
    """Only the rules that the root still leads to."""
    kept: dict[str, Node] = {"root": root}
    todo: list[Node] = [root]
    while todo:
        node = todo.pop()
        if node[0] == "ref" and node[1] not in kept:
            kept[node[1]] = rules[node[1]]
            todo.append(rules[node[1]])
        todo.extend(_inner(node))
    return Grammar(kept)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _escaped(character: str, special: str) -> str:
    if character in special:
        # llama.cpp knows no escape for these two but the numeric one.
        return f"\\x{ord(character):02X}" if character in "-^" else "\\" + character
    code = ord(character)
    match character:
        case "\n":
            return "\\n"
        case "\r":
            return "\\r"
        case "\t":
            return "\\t"
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02X}"
    # Surrogates and what lies beyond the BMP, as escapes: a lone surrogate cannot be encoded.
    return character if code < 0xD800 or 0xDFFF < code <= 0xFFFF else f"\\U{code:08X}"


def written(node: Node, *, top: bool = False) -> str:
    """A node as GBNF, in brackets unless it is at the `top`."""
    match node[0]:
        case "lit":
            return '"' + "".join(_escaped(c, '"\\') for c in node[1]) + '"'
        case "class":
            inside = "".join(
                _escaped(a, "]\\[^-") + ("" if a == b else "-" + _escaped(b, "]\\[^-")) for a, b in node[2]
            )
            return f"[{'^' if node[1] else ''}{inside}]"
        case "ref":
            return str(node[1])
        case "seq":
            said = " ".join(written(n) for n in node[1]) or '""'
            return said if top or len(node[1]) == 1 else f"({said})"
        case "alt":
            said = " | ".join(written(n, top=n[0] == "seq") for n in node[1]) or '""'
            return said if top else f"({said})"
        case _:
            _, inner, least, most = node
            if most == 0:
                return '""'
            times = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((least, most))
            if times is None:
                times = f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
            said = written(inner)
            return f"({said}){times}" if inner[0] == "rep" else said + times


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_NAME = re.compile(r"[a-zA-Z0-9-]+")
_BLANK = re.compile(r"(?:[ \t]|#[^\n]*)*")
_BLANK_LINES = re.compile(r"(?:\s|#[^\n]*)*")
_TIMES = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip()
            self._take("::=")
            self._skip(lines=True)
            found[name] = self._alternatives()
            self._skip(lines=True)
        for node in found.values():
            todo = [node]
            while todo:
                inner = todo.pop()
                if inner[0] == "ref" and inner[1] not in found:
                    raise GrammarError(f"there is no rule {inner[1]!r}")
                todo.extend(_inner(inner))
        return found

    def _skip(self, *, lines: bool = False) -> None:
        match = (_BLANK_LINES if lines or self._depth else _BLANK).match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, wanted: str) -> None:
        if not self._text.startswith(wanted, self._at):
            raise GrammarError(f"{wanted!r} is missing at character {self._at}")
        self._at += len(wanted)

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise GrammarError(f"a rule's name is missing at character {self._at}")
        self._at = match.end()
        return match[0]

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            self._skip(lines=True)
            options.append(self._sequence())
        return options[0] if len(options) == 1 else ("alt", tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while True:
            match self._peek():
                case '"':
                    node: Node = self._literal()
                case "[":
                    node = self._class()
                case "(":
                    self._at += 1
                    self._depth += 1
                    if self._depth > _DEEPEST:
                        raise GrammarError(f"brackets more than {_DEEPEST} deep")
                    self._skip()
                    node = self._alternatives()
                    self._depth -= 1
                    self._take(")")
                case ".":
                    self._at += 1
                    node = ("class", True, ())
                case character if character and _NAME.match(character):
                    node = ("ref", self._name())
                case _:
                    break
            self._skip()
            stacked = 0
            while (times := self._times()) is not None:
                stacked += 1
                if stacked > _STACKED:
                    raise GrammarError(f"more than {_STACKED} repetitions of each other")
                node = ("rep", node, *times)
                self._skip()
            parts.append(node)
        return parts[0] if len(parts) == 1 else ("seq", tuple(parts))

    def _times(self) -> tuple[int, int | None] | None:
        match self._peek():
            case "*":
                times: tuple[int, int | None] = (0, None)
            case "+":
                times = (1, None)
            case "?":
                times = (0, 1)
            case "{":
                match = _TIMES.match(self._text, self._at)
                if match is None:
                    raise GrammarError(f"a count is malformed at character {self._at}")
                self._at = match.end()
                least = int(match[1])
                return least, least if not match[2] else int(match[3]) if match[3] else None
            case _:
                return None
        self._at += 1
        return times

    def _literal(self) -> Node:
        self._at += 1
        said = []
        while self._peek() != '"':
            said.append(self._character())
        self._at += 1
        return ("lit", "".join(said))

    def _class(self) -> Node:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._character()
            ranges.append((low, high))
        self._at += 1
        return ("class", negated, tuple(ranges))

    def _character(self) -> str:
        character = self._peek()
        if not character:
            raise GrammarError("it ends in the middle of a text")
        self._at += 1
        if character != "\\":
            return character
        kind = self._peek()
        self._at += 1
        if size := {"x": 2, "u": 4, "U": 8}.get(kind):
            digits = self._text[self._at : self._at + size]
            self._at += size
            try:
                return chr(int(digits, 16))
            except ValueError:
                raise GrammarError(f"{digits!r} is no character") from None
        if kind not in _ESCAPES:
            raise GrammarError(f"unknown escape \\{kind}")
        return _ESCAPES[kind]
