"""A chat request in nobody's dialect: messages, tools, schema and limits, frozen.

The wrappers convert their framework's messages into these once; each provider converts these into its wire format.
Nothing here is ever mutated; `dataclasses.replace` makes variants.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from shared_core.chat.quick import varied
from shared_core.errors import InvalidRequest, UnknownOption, is_number, nearest

if TYPE_CHECKING:
    from shared_core.chat.events import Answer

__all__ = [
    "CHARS_PER_TOKEN",
    "AnswerCheck",
    "Audio",
    "ChatRequest",
    "Constraints",
    "File",
    "Image",
    "Message",
    "Native",
    "Origin",
    "OutputSchema",
    "Part",
    "Reasoning",
    "Role",
    "Text",
    "ToolCall",
    "ToolResult",
    "ToolSpec",
    "assistant",
    "system",
    "tool",
    "user",
]

Role = Literal["system", "user", "assistant", "tool"]
CacheUse = bool | Literal["refresh"] | None
"""How one call uses the router's cache; see `ChatRequest.cache`."""
Complexity = Literal["simple", "medium", "complex", "auto"]
"""How hard a request is; 'auto' has it estimated (`shared_core.routing.complexity`)."""
COMPLEXITIES: tuple[Complexity, ...] = ("simple", "medium", "complex", "auto")


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class _Media:
    """Bytes, or a place to fetch them from: exactly one of `data`, `url` and `file_id`."""

    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    file_id: str | None = None
    """A vendor's own handle. It means something only to the vendor that issued it."""
    media_type: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.data, self.url, self.file_id)) != 1:
            raise InvalidRequest(f"{type(self).__name__} needs exactly one of data=, url= and file_id=")

    @property
    def base64(self) -> str:
        """`data` as standard base64 text; empty when there are no bytes."""
        return base64.b64encode(self.data or b"").decode("ascii")


@dataclass(frozen=True, slots=True)
class Image(_Media):
    """A picture: PNG, JPEG, GIF or WebP."""

    detail: str | None = None


@dataclass(frozen=True, slots=True)
class File(_Media):
    """A document, usually a PDF."""


@dataclass(frozen=True, slots=True)
class Audio(_Media):
    """Speech or sound: WAV or MP3."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for a tool. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = "{}"
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Opaque vendor state (a Gemini thought signature), replayed only to the origin that issued it."""

    def parsed(self) -> dict[str, Any]:
        """The arguments as a dict.

        Raises:
            InvalidRequest: they are not a JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}")
        except json.JSONDecodeError as error:
            raise InvalidRequest(f"tool call {self.name!r} has arguments that are not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidRequest(f"tool call {self.name!r} has arguments that are not a JSON object")
        return value


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered to the call with the same `call_id`."""

    call_id: str
    content: tuple[Part, ...] = ()
    name: str | None = None
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A model's thinking. `data` is the vendor's opaque block, replayed only to the origin that issued it."""

    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)


Part = Text | Image | File | Audio | ToolCall | ToolResult | Reasoning


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote an assistant message: the scope within which its opaque blocks may be replayed."""

    provider: str
    model: str
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `parts` is never a bare string: use `user("…")`, `system("…")`, `assistant("…")`, `tool(…)`."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    origin: Origin | None = None
    cache_hint: bool = False
    """Ends a prefix worth caching (Anthropic `cache_control`); ignored by vendors that cache by themselves."""

    @property
    def text(self) -> str:
        """All text parts, joined."""
        parts = self.parts
        if len(parts) == 1 and isinstance(only := parts[0], Text):  # as most turns are
            return only.text
        return "".join([p.text for p in parts if isinstance(p, Text)])

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of an assistant turn."""
        return tuple(p for p in self.parts if isinstance(p, ToolCall))


def _parts(content: str | Part | Sequence[Part]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Text(content),) if content else ()
    return (content,) if isinstance(content, Part) else tuple(content)


def system(content: str | Part | Sequence[Part]) -> Message:
    """A system message."""
    return Message("system", _parts(content))


def user(content: str | Part | Sequence[Part]) -> Message:
    """A user message."""
    return Message("user", _parts(content))


def assistant(content: str | Part | Sequence[Part], *, origin: Origin | None = None) -> Message:
    """An assistant message."""
    return Message("assistant", _parts(content), origin=origin)


def tool(
    call_id: str, content: str | Part | Sequence[Part], *, name: str | None = None, is_error: bool = False
) -> Message:
    """A tool's answer to the call `call_id`."""
    return Message("tool", (ToolResult(call_id, _parts(content), name, is_error),))


_TOOL_NAME = re.compile(r"^[a-zA-Z0-9_.:-]{1,128}$")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A function the model may call. `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}}, hash=False)
    strict: bool | None = None

    def __post_init__(self) -> None:
        if not _TOOL_NAME.match(self.name):
            raise InvalidRequest(f"tool name {self.name!r} must be 1 to 128 of letters, digits, '_', '-', '.' and ':'")
        check_schema(self.parameters, f"parameters of tool {self.name!r}")


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """The shape the answer's text must have. An empty `schema` asks for any JSON object."""

    schema: Mapping[str, Any] = field(default_factory=dict, hash=False)
    name: str = "answer"
    strict: bool | None = None
    anyhow: bool = False
    """Whether a model without means of its own may be made to answer so by a forced tool call, or by being asked to.
    Otherwise such a model is not asked."""

    def __post_init__(self) -> None:
        if self.schema:
            check_schema(self.schema, f"output schema {self.name!r}")


@dataclass(frozen=True, slots=True)
class Constraints:
    """Hard limits on who may answer, obeyed on every hop, cache included. Failing closed: unknown means no.

    Names may be given in any collection, such as the list that a configuration file holds.

    Raises:
        InvalidRequest: one text where a collection of names belongs, or a value of another kind.
    """

    local_only: bool = False
    """Only targets that run on this machine."""
    allow: frozenset[str] | None = None
    """Names of targets or providers that may answer; None allows all."""
    deny: frozenset[str] = frozenset()
    """Names of targets or providers that must not."""
    max_price: float | None = None
    """US dollars per million tokens, dearest of input and output; a target of unknown price is excluded."""
    require: frozenset[str] = frozenset()
    """Capabilities that must be there: names of `Capabilities` fields such as 'tools', 'images', 'json_schema'."""

    def __post_init__(self) -> None:
        if type(self.local_only) is not bool:  # the text "no" is true
            raise InvalidRequest(f"constraints: local_only must be True or False, not {self.local_only!r}")
        for name in ("allow", "deny", "require"):
            value = getattr(self, name)
            if type(value) is frozenset or (value is None and name == "allow"):
                continue
            if isinstance(value, str):
                raise InvalidRequest(f"constraints: {name} takes a collection of names, not one text: [{value!r}]")
            if not isinstance(value, Collection) or not all(isinstance(word, str) for word in value):
                raise InvalidRequest(f"constraints: {name} takes a collection of names, not {value!r}")
            object.__setattr__(self, name, frozenset(value))
        most: Any = self.max_price
        if most is not None and (isinstance(most, bool) or not isinstance(most, (int, float)) or not most >= 0):
            raise InvalidRequest(f"constraints: max_price must be a number of dollars >= 0, not {most!r}")

    def narrowed(self, other: Constraints) -> Constraints:
        """Both at once: who is kept out by either is kept out."""
        allow = self.allow if other.allow is None else other.allow if self.allow is None else self.allow & other.allow
        prices = [most for most in (self.max_price, other.max_price) if most is not None]
        return Constraints(
            local_only=self.local_only or other.local_only,
            allow=allow,
            deny=self.deny | other.deny,
            max_price=min(prices, default=None),
            require=self.require | other.require,
        )


ANYONE = Constraints()
"""No constraints."""
LIMITS = ("local_only", "allow", "deny", "max_price", "require")
"""The fields of `Constraints`, which the wrappers also take as keywords of a call."""


def constraints_of(given: Any, limits: Mapping[str, Any] | None = None) -> Constraints:
    """What a caller gave as constraints: those, a mapping of their fields, or nothing; narrowed by single `limits`.

    Raises:
        UnknownOption: a field that constraints do not have; names the nearest.
        InvalidRequest: no constraints at all, or a field of the wrong kind.
    """
    if given is None:
        found = ANYONE
    elif isinstance(given, Constraints):
        found = given
    elif isinstance(given, Mapping):
        for name in given:
            if name not in LIMITS:
                raise UnknownOption(f"Constraints has no option {name!r}. {nearest(str(name), LIMITS)}")
        found = Constraints(**given)
    else:
        raise InvalidRequest(f"constraints must be Constraints or a mapping of their fields, not {given!r}")
    kept = {name: value for name, value in (limits or {}).items() if value is not None}
    return found.narrowed(Constraints(**kept)) if kept else found


@dataclass(frozen=True, slots=True)
class Native:
    """The framework's own objects, riding along for targets that speak them (a wrapped `BaseChatModel` or `LLM`)."""

    framework: str
    messages: Any
    """A sequence of the framework's messages, one for each of the request's own."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    added: tuple[Message, ...] = ()
    """What the flow put behind the caller's messages: an answer to be continued or corrected."""
    form: Callable[[Native], Any] | None = field(default=None, repr=False, compare=False)
    """Tells `messages` and `options` by value, as far as they can change an answer; without it the request is not
    cached for targets that read them."""


AnswerCheck = Callable[["Answer"], str | None]
"""Looks at a whole answer: None when it is what was asked for, else what is wrong, in words for the model.

Pure, and quick: it runs on the request's own thread or event loop.
"""


@dataclass(frozen=True, slots=True, eq=False)
class ChatRequest:
    """One logical call, whoever serves it.

    Raises:
        InvalidRequest: no messages, a limit out of range, a broken schema, a tool_choice naming no tool.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None
    """'auto', 'any', 'none', or the name of one tool; None leaves the vendor's default."""
    parallel_tool_calls: bool | None = None
    output: OutputSchema | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    streaming: bool = False
    """Which call to make on the wire. The events are the same either way."""
    model: str | None = None
    """Overrides the target's model for this call, on targets of the same provider as the primary."""
    chain: str | None = None
    constraints: Constraints = ANYONE
    """Also as a mapping of its fields."""
    timeout_s: float | None = None
    """The deadline of the whole logical call in seconds, in place of `Timeouts.total`."""
    user: str | None = None
    tags: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Vendor options passed through untouched, keyed by provider name: `{"openai": {"service_tier": "flex"}}`."""
    native: Native | None = field(default=None, repr=False)
    continues: bool = False
    """The last message is an assistant's, unfinished: go on from where it stops (set by the seam)."""
    check: AnswerCheck | None = field(default=None, repr=False)
    """What the answer must pass. One that does not is put back to its target once, with what is wrong; then the next
    target is asked. A stream shows nothing before its answer has passed. Refusals are not checked."""
    complexity: Complexity | None = None
    """'simple' (fast and cheap targets first), 'medium' (as the strategy says), 'complex' (the best first), or 'auto'
    (estimated); None leaves it to the chain and the router."""
    strategy: str | Callable[..., Any] | None = None
    """The order of targets for this call: a strategy's name or a `RoutingStrategy`; None leaves it to the chain."""
    cache: CacheUse = None
    """Of a router with a cache: False neither reads nor keeps, 'refresh' asks anew and keeps, None and True do both."""

    def __post_init__(self) -> None:
        if not self.messages and self.native is None:
            raise InvalidRequest("a request needs at least one message")
        if self.max_tokens is not None and not is_number(self.max_tokens, least=1, whole=True):
            raise InvalidRequest(f"max_tokens must be a whole number, at least 1, not {self.max_tokens!r}")
        _in_range("temperature", self.temperature, 0.0, 2.0)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        if self.timeout_s is not None and not is_number(self.timeout_s, above=0):
            raise InvalidRequest(f"timeout_s must be a positive number of seconds, not {self.timeout_s!r}")
        if not all(s and isinstance(s, str) for s in self.stop):
            raise InvalidRequest("stop sequences must be non-empty strings")
        names = [t.name for t in self.tools]
        if len(set(names)) != len(names):
            raise InvalidRequest(
                f"two tools share a name: {', '.join(sorted({n for n in names if names.count(n) > 1}))}"
            )
        if self.tool_choice not in (None, "auto", "any", "none") and self.tool_choice not in names:
            raise InvalidRequest(f"tool_choice {self.tool_choice!r} names no tool; tools: {', '.join(names) or 'none'}")
        if self.cache is not None:
            cache_use(self.cache)
        if type(self.constraints) is not Constraints:
            object.__setattr__(self, "constraints", constraints_of(self.constraints))
        if self.complexity is not None and self.complexity not in COMPLEXITIES:
            wrong = str(self.complexity)
            raise InvalidRequest(f"unknown complexity {wrong!r}. {nearest(wrong, COMPLEXITIES)}")

    def replace(self, **changes: Any) -> ChatRequest:
        """A variant of this request."""
        return _varied(self, changes) if type(self) is ChatRequest else replace(self, **changes)

    def extended(self, *added: Message, keep: int | None = None, continues: bool = False) -> ChatRequest:
        """This request with more messages behind its own, of which the first `keep` stay (all when left out).

        What rides along for wrapped framework models is extended too, so that nothing only they understand is lost.
        """
        native = self.native
        if native is not None:
            own = native.messages if keep is None else native.messages[:keep]
            native = replace(native, messages=own, added=added)
        return self.replace(messages=(*self.messages[:keep], *added), native=native, continues=continues)

    @property
    def characters(self) -> int:
        """Characters of all text of all messages, for estimates."""
        return sum([len(m.text) for m in self.messages])

    @property
    def prompt_text(self) -> str:
        """All text of all messages, for estimates."""
        return "\n".join(m.text for m in self.messages)


_varied = varied(ChatRequest)


def cache_use(said: Any) -> CacheUse:
    """What a call says of the cache.

    Raises:
        InvalidRequest: there is no such word.
    """
    if said is None or type(said) is bool or said == "refresh":
        use: CacheUse = said
        return use
    raise InvalidRequest(f"cache must be True, False or 'refresh', not {said!r}")


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not is_number(value, least=low, most=high):
        raise InvalidRequest(f"{name} must be between {low:g} and {high:g}, not {value!r}")


CHARS_PER_TOKEN: Final = 4
"""What a token is taken for where nobody has counted."""

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def check_schema(schema: Mapping[str, Any], what: str) -> None:
    """Refuse a JSON schema that no vendor could take: wrong shapes, unknown types, `required` of nothing, bad `$ref`.

    Raises:
        InvalidRequest: naming the path of the fault.
    """
    root = schema

    def walk(node: Any, path: str) -> None:
        if isinstance(node, bool):
            return
        if not isinstance(node, Mapping):
            raise InvalidRequest(f"{what}: {path} must be a schema object, not {type(node).__name__}")
        kind = node.get("type")
        for name in kind if isinstance(kind, (list, tuple)) else [kind]:
            if name is not None and name not in _TYPES:
                raise InvalidRequest(f"{what}: {path} has unknown type {name!r}")
        enum = node.get("enum")
        if enum is not None and (not isinstance(enum, (list, tuple)) or not enum):
            raise InvalidRequest(f"{what}: {path}.enum must be a non-empty list")
        properties = node.get("properties")
        if properties is not None and not isinstance(properties, Mapping):
            raise InvalidRequest(f"{what}: {path}.properties must be an object")
        required = node.get("required")
        if required is not None:
            if not isinstance(required, (list, tuple)):
                raise InvalidRequest(f"{what}: {path}.required must be a list of names")
            missing = [r for r in required if r not in (properties or {})]
            if missing and node.get("additionalProperties") is False:
                raise InvalidRequest(f"{what}: {path} requires {missing[0]!r} but does not allow it")
        ref = node.get("$ref")
        if isinstance(ref, str) and ref.startswith("#/"):
            target: Any = root
            for step in ref[2:].split("/"):
                target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
            if target is None:
                raise InvalidRequest(f"{what}: {path} refers to {ref!r}, which is not there")
        for low, high in (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems")):
            a, b = node.get(low), node.get(high)
            if isinstance(a, (int, float)) and isinstance(b, (int, float)) and a > b:
                raise InvalidRequest(f"{what}: {path} has {low} {a} above {high} {b}; nothing could satisfy it")
        for group in ("properties", "$defs", "definitions"):
            for name, child in (node.get(group) or {}).items():
                walk(child, f"{path}.{name}")
        items = node.get("items")
        if items is not None and not isinstance(items, (list, tuple)):
            walk(items, f"{path}[]")
        for group in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for i, child in enumerate(node.get(group) or ()):
                walk(child, f"{path}.{group}[{i}]")

    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{what} must be a JSON schema object, not {type(schema).__name__}")
    try:
        json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error
    walk(schema, "$")
