"""One call of the chat model, with everything bound or passed to it, as a `ChatRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
)

from langchain_fallback._cache import native_form
from langchain_fallback._convert.messages import from_langchain, neutral
from langchain_fallback._convert.options import LOOSE, loose_options
from langchain_fallback._convert.tools import neutral_choice, output_schema, specs_of
from shared_core.chat.per_call import several
from shared_core.chat.quick import quickly
from shared_core.chat.request import (
    ANYONE,
    LIMITS,
    AnswerCheck,
    ChatRequest,
    Constraints,
    Message,
    Native,
    OutputSchema,
    Text,
    ToolSpec,
    constraints_of,
)
from shared_core.chat.schema_check import SchemaCheck
from shared_core.errors import InvalidRequest, UnknownOption, nearest

__all__ = [
    "CALL_OPTIONS",
    "FRAMEWORK",
    "to_request",
]

_request = quickly(ChatRequest)

FRAMEWORK = "langchain"
"""What `Native.framework` says when LangChain's own objects ride along."""

CALL_OPTIONS = frozenset(
    {
        "stop", "temperature", "max_tokens", "max_completion_tokens", "max_output_tokens", "top_p", "seed", "timeout",
        "model", "tools", "tool_choice", "parallel_tool_calls", "response_format", "strict", "chain", "tags", "user",
        "constraints", "extra", "validate", "cache",
        "complexity", "strategy", *LIMITS,
    }
)  # fmt: skip
"""What `invoke`, `stream` and `bind` accept beside the messages."""
_LIMITS = frozenset(LIMITS)
_FRAMEWORK_NOISE = frozenset(
    {"stream", "stream_usage", "stream_options", "ls_structured_output_format", "structured_output_format"}
)
"""LangChain's own, and how to ask for usage, which is always asked for."""


def _first(kwargs: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if kwargs.get(name) is not None:
            return kwargs[name]
    return None


def _vendor_options(kwargs: Mapping[str, Any], providers: frozenset[str]) -> dict[str, Any]:
    """What only some vendors understand, by provider: given under a provider's name, or loose."""
    extra: dict[str, Any] = dict(kwargs.get("extra") or {})
    loose: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in CALL_OPTIONS or key in _FRAMEWORK_NOISE:
            continue
        if key in providers and isinstance(value, Mapping):
            extra[key] = {**extra.get(key, {}), **value}
        elif key in LOOSE:
            if value is not None:
                loose[key] = value
        else:
            example = f"{min(providers, default='openai')}={{{key!r}: …}}"
            raise UnknownOption(
                f"a call has no option {key!r}. {nearest(key, {*CALL_OPTIONS, *LOOSE})}\n"
                f"hint: what only one vendor understands is given under the vendor's name: {example}"
            )
    if loose:
        for name, options in loose_options(loose, providers).items():
            extra[name] = {**options, **extra.get(name, {})}  # what was said to one by name goes first
    return extra


def _check(
    tools: Any, response_format: Any, output: OutputSchema | None, kwargs: Mapping[str, Any]
) -> AnswerCheck | None:
    """What the answer must pass: the check that came with the tools or the format, else the schema itself."""
    if kwargs.get("validate") is False:
        return None
    check = getattr(tools, "check", None) or getattr(response_format, "check", None)
    if check is None and output is not None and output.schema:
        check = SchemaCheck(output.schema)
    return cast("AnswerCheck | None", check)


def _constraints(kwargs: Mapping[str, Any]) -> Constraints:
    """What the call allows, given as `constraints=`, as single keywords, or both: then both hold."""
    single = {} if _LIMITS.isdisjoint(kwargs) else {name: kwargs[name] for name in LIMITS if name in kwargs}
    return constraints_of(kwargs.get("constraints"), single)


def to_request(
    messages: Sequence[BaseMessage],
    stop: Sequence[str] | None,
    kwargs: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    streaming: bool,
    providers: frozenset[str],
    foreign: frozenset[str] = frozenset(),
    wrapped: bool = False,
) -> ChatRequest:
    """One call as a `ChatRequest`. LangChain's own objects ride along in `native`, for targets that speak them.

    Args:
        messages: the conversation; never changed.
        stop: stop sequences of this call.
        kwargs: what the caller bound or passed.
        defaults: `temperature`, `max_tokens`, `stop` and `timeout` of the model, where the call says nothing.
        streaming: which call to make on the wire.
        providers: names that may key vendor options: ``openai={"service_tier": "flex"}``.
        foreign: names of the targets that do not speak LangChain.
        wrapped: whether some target does.

    Raises:
        InvalidRequest: the request is impossible for every target.
        UnknownOption: a keyword that nobody knows; names the nearest.
    """
    extra = _vendor_options(kwargs, providers) if kwargs else {}
    only_wrapped = False  # something in this call means nothing to targets that do not speak LangChain
    try:
        neutral = from_langchain(messages)
    except InvalidRequest:
        if not wrapped:
            raise
        neutral, only_wrapped = _readable(messages), True
    get = kwargs.get
    specs: tuple[ToolSpec, ...] = ()
    choice = None
    if tools := get("tools"):
        specs, server_side = specs_of(tools, get("strict"))
        if server_side and not wrapped:
            raise InvalidRequest(
                "a tool that runs on one vendor's servers needs a target of that vendor's own LangChain class"
            )
        only_wrapped = only_wrapped or server_side
        choice = neutral_choice(get("tool_choice"))
    constraints = _constraints(kwargs) if kwargs else ANYONE
    if only_wrapped:
        constraints = constraints.narrowed(Constraints(deny=foreign))
    max_tokens = _first(kwargs, "max_tokens", "max_completion_tokens", "max_output_tokens")
    temperature, timeout = get("temperature"), get("timeout")
    stops = stop if stop is not None else get("stop")
    wanted = get("response_format")
    output = None if wanted is None else output_schema(wanted, get("strict"))
    return _request(
        messages=neutral,
        tools=specs,
        tool_choice=choice,
        parallel_tool_calls=get("parallel_tool_calls"),
        output=output,
        max_tokens=defaults.get("max_tokens") if max_tokens is None else max_tokens,
        temperature=defaults.get("temperature") if temperature is None else temperature,
        top_p=defaults.get("top_p") if get("top_p") is None else get("top_p"),
        stop=several("stop", stops) if stops is not None else defaults.get("stop") or (),
        seed=defaults.get("seed") if get("seed") is None else get("seed"),
        streaming=streaming,
        model=get("model"),
        chain=get("chain"),
        constraints=constraints,
        timeout_s=defaults.get("timeout") if timeout is None else timeout,
        user=get("user"),
        tags=several("tags", tags) if (tags := get("tags")) else (),
        extra=extra,
        cache=get("cache"),
        native=Native(FRAMEWORK, messages, kwargs, form=native_form) if wrapped else None,
        complexity=get("complexity"),
        strategy=get("strategy"),
        check=None if tools is None and wanted is None else _check(tools, wanted, output, kwargs),
    )


def _readable(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """What can be said about messages that only a wrapped model understands: enough to estimate and to log."""
    out = []
    for message in messages:
        try:
            out.append(neutral(message))
        except InvalidRequest:
            out.append(Message("assistant" if isinstance(message, AIMessage) else "user", (Text(message.text),)))
    return tuple(out)
