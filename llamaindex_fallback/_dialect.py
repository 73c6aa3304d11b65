"""What a family of LlamaIndex's LLM classes makes of a call: the rules of its wire, its words for options and schemas.

LlamaIndex has one form for messages and tools, and none for the rest: what its OpenAI class takes as `stop` its
Anthropic class hands to an SDK that has never heard of it, and its Gemini class drops. What a class keeps for itself,
or would have sent although its model refuses it, is seen to here.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.llms.llm import LLM

from llamaindex_fallback._asking import Way, response_format, tool_options, way_of, with_tools
from llamaindex_fallback._convert import peek
from shared_core.chat.request import ChatRequest, Message, OutputSchema, ToolSpec
from shared_core.errors import ErrorKind, ProviderError, redact
from shared_core.history import (
    ANTHROPIC,
    COMPATIBLE,
    GOOGLE,
    LLAMA_CPP,
    MISTRAL,
    OPENAI,
    HistoryRules,
    MediaKind,
)
from shared_core.providers.models import facts, since_gemini_3

__all__ = ["Dialect", "dialect_of", "fetched", "joined", "kind_of", "thoughtless", "to_fetch"]

_IN_MEMORY: Final = "image/(png|jpeg|gif|webp)|application/pdf"
_FETCHED: Final[frozenset[MediaKind]] = frozenset({"image", "file"})


class Dialect:
    """A class that we know nothing more of: it is told what LlamaIndex's OpenAI class is told."""

    fetches = False
    """Whether it fetches what is given by URL itself, and blocks the event loop meanwhile."""
    tells_end = False
    """Whether its streams always say why they ended, so that one that does not was cut."""
    says_something = False
    """Whether an empty answer is none, unless it follows a tool's result."""
    declares_always = False
    """Whether tools are declared although none may be called."""
    limits_itself = False
    """Whether its own setting of `max_tokens` wins over the call's."""

    def __init__(self, vendor: str | None, rules: HistoryRules) -> None:
        self.vendor = vendor
        """In prices and constraints; None is for the class's own name to say."""
        self.rules = replace(rules, error_flag="prefix")  # LlamaIndex has no place for the flag
        """What it takes of a conversation."""

    def choices(self, cls: type[LLM]) -> frozenset[str]:
        """The kinds of tool choice that it obeys."""
        accepted = tool_options(cls)
        forced = {"any"} if "tool_required" in accepted else set()
        return frozenset({"auto", "none"} | forced | ({"tool"} if "tool_choice" in accepted else set()))

    def way(self, llm: LLM, request: ChatRequest) -> Way:
        """How it is made to answer in the request's schema."""
        return way_of(llm)

    def tools(
        self, llm: LLM, specs: Sequence[ToolSpec], messages: list[ChatMessage], choice: str | None, request: ChatRequest
    ) -> dict[str, Any]:
        """The arguments of a call with tools.

        Raises:
            ProviderError: kind INCAPABLE; it has none.
        """
        return with_tools(llm, specs, messages, choice, request)

    def schema(self, output: OutputSchema) -> dict[str, Any]:
        """The arguments that ask for an answer in a schema by the vendor's own means."""
        return {"response_format": response_format(output)}

    def options(self, llm: LLM, request: ChatRequest, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        """The arguments that say how to sample and how long, as far as the model takes them: what it refuses, we do
        not send, and it samples as it likes.
        """
        told = {key: getattr(request, key) for key in ("temperature", "max_tokens", "top_p", "seed")}
        told["stop"] = list(request.stop) or None
        return {key: value for key, value in told.items() if value is not None}

    def stops_here(self, request: ChatRequest, model: str) -> tuple[str, ...]:
        """Stop sequences that the model is not told, to be looked for on this side."""
        return ()

    def add(self, arguments: dict[str, Any], extra: Mapping[str, Any]) -> None:
        """Add to the arguments what the caller says to this vendor alone."""
        arguments |= extra

    def signatures(self, messages: Iterable[Message]) -> Mapping[str, str]:
        """Opaque state of calls that the class keeps elsewhere, by the calls' ids."""
        return {}

    def ready(self, messages: list[ChatMessage], signatures: Mapping[str, str], model: str) -> list[ChatMessage]:
        """`messages`, which nobody else holds, in a form that the class does not misread."""
        return messages


class _OpenAI(Dialect):
    limits_itself = True

    def options(self, llm: LLM, request: ChatRequest, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        told = super().options(llm, request, messages)
        if self.vendor != "openai":
            return told
        known = facts("openai", request.model or _model(llm))
        if not known.stop:
            told.pop("stop", None)
        if known.reasoning and known.sampling:  # as long as it is not told to think
            own = request.extra.get("openai") or {}
            samples = (own.get("reasoning_effort") or peek(llm, "reasoning_effort")) in (None, "none")
        else:
            samples = known.sampling
        if not samples:
            told.pop("top_p", None)
            told.pop("temperature", None)
            if known.reasoning and peek(llm, "temperature") not in (None, 1, 1.0):
                told["temperature"] = _omit("openai")  # a model that is newer than the class's list of such models
        return told

    def stops_here(self, request: ChatRequest, model: str) -> tuple[str, ...]:
        if self.vendor != "openai" or not request.stop:
            return ()
        return () if facts("openai", request.model or model).stop else request.stop


class _Anthropic(Dialect):
    fetches = True
    tells_end = True
    says_something = True
    declares_always = True  # a history with calls wants it

    def choices(self, cls: type[LLM]) -> frozenset[str]:
        return frozenset({"auto", "any", "none", "tool"})  # one by name goes past the class to its SDK

    def way(self, llm: LLM, request: ChatRequest) -> Way:
        assert request.output is not None
        ours = type(peek(llm, "_client")).__name__ == "Anthropic"  # Bedrock and Vertex came to it later
        if ours and request.output.schema and facts("anthropic", request.model or _model(llm)).json_schema:
            return "schema"
        return "words" if _thinks(llm, request) else "tool"

    def tools(
        self, llm: LLM, specs: Sequence[ToolSpec], messages: list[ChatMessage], choice: str | None, request: ChatRequest
    ) -> dict[str, Any]:
        arguments = with_tools(llm, specs, messages, choice, request)
        forced = choice not in (None, "auto", "none")
        if choice == "none" or (choice is None and not request.tools):  # only stubs for the history's sake
            arguments["tool_choice"] = {"type": "none"}
        elif forced and _thinks(llm, request):
            arguments["tool_choice"] = {**arguments["tool_choice"], "type": "auto"}  # a thinking Claude is not forced
        elif forced and choice != "any":
            arguments["tool_choice"] = {**arguments["tool_choice"], "type": "tool", "name": choice}
        return arguments

    def schema(self, output: OutputSchema) -> dict[str, Any]:
        from shared_core.providers.anthropic import closed

        return {"output_config": {"format": {"type": "json_schema", "schema": closed(output.schema)}}}

    def options(self, llm: LLM, request: ChatRequest, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if request.max_tokens is not None:
            told["max_tokens"] = request.max_tokens
        if stops := [stop for stop in request.stop if stop.strip()]:  # blank ones are refused
            told["stop_sequences"] = stops
        thinking = _thinks(llm, request)
        if thinking and thoughtless(messages):
            told["thinking"] = _omit("anthropic")  # another model began the turn: this one request goes without
        elif thinking:
            budget = thinking.get("budget_tokens")
            if request.max_tokens is not None and isinstance(budget, int) and request.max_tokens <= budget:
                told["max_tokens"] = request.max_tokens + budget
        if not facts("anthropic", request.model or _model(llm)).sampling:
            if "temperature" in peek(llm, "_model_kwargs"):
                told["temperature"] = _omit("anthropic")  # a model that is newer than the class's list of such models
        elif thinking:
            pass  # it takes no word on how to sample
        elif request.temperature is not None:
            told["temperature"] = min(request.temperature, 1.0)  # Anthropic's range ends there
        elif request.top_p is not None:  # of the two it takes one, and the class would send its own of the other
            told |= {"top_p": request.top_p, "temperature": _omit("anthropic")}
        return told

    def add(self, arguments: dict[str, Any], extra: Mapping[str, Any]) -> None:
        for key, value in extra.items():
            if key in _parameters_of_anthropic():
                arguments[key] = value
            else:
                arguments["extra_body"] = {**(arguments.get("extra_body") or {}), key: value}


class _Google(Dialect):
    fetches = True
    tells_end = True
    declares_always = True

    def way(self, llm: LLM, request: ChatRequest) -> Way:
        both = request.tools and request.tool_choice != "none"
        return "tool" if both and not since_gemini_3(request.model or _model(llm)) else "schema"

    def tools(
        self, llm: LLM, specs: Sequence[ToolSpec], messages: list[ChatMessage], choice: str | None, request: ChatRequest
    ) -> dict[str, Any]:
        # Not by the class's own means: those leave out what Gemini's older form of a schema does not have, and the
        # first line of a description.
        types = importlib.import_module("google.genai.types")
        declared = [
            types.FunctionDeclaration(
                name=spec.name, description=spec.description or None, parameters_json_schema=dict(spec.parameters)
            )
            for spec in specs
        ]
        mode = {None: "AUTO", "auto": "AUTO", "none": "NONE"}.get(choice, "ANY")
        only = [choice] if mode == "ANY" and choice != "any" else None
        calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=only)
        return {
            "messages": messages,
            "tools": [types.Tool(function_declarations=declared)],
            "tool_config": types.ToolConfig(function_calling_config=calling),
        }

    def schema(self, output: OutputSchema) -> dict[str, Any]:
        config: dict[str, Any] = {"response_mime_type": "application/json"}
        if output.schema:
            config["response_json_schema"] = dict(output.schema)
        return {"generation_config": config}

    def options(self, llm: LLM, request: ChatRequest, messages: Sequence[ChatMessage]) -> dict[str, Any]:
        told: dict[str, Any] = {
            "temperature": request.temperature,
            "max_output_tokens": request.max_tokens,
            "top_p": request.top_p,
            "seed": None if request.seed is None else request.seed % 2**31,  # the API has 32 signed bits
            "stop_sequences": list(request.stop) or None,
        }
        config = {key: value for key, value in told.items() if value is not None}
        own = (peek(llm, "_generation_config") or {}).get("http_options") or {}
        return {"generation_config": {**_one_request(), "http_options": {**own, **_NO_RETRY}, **config}}

    def add(self, arguments: dict[str, Any], extra: Mapping[str, Any]) -> None:
        config = {**extra, **extra.get("generation_config", {})}  # by either name
        config.pop("generation_config", None)
        arguments["generation_config"] = {**arguments.get("generation_config", {}), **config}

    def signatures(self, messages: Iterable[Message]) -> Mapping[str, str]:
        calls = (call for message in messages for call in message.tool_calls if call.data)
        return {call.id: told for call in calls if isinstance(told := call.data.get("thought_signature"), str)}

    def ready(self, messages: list[ChatMessage], signatures: Mapping[str, str], model: str) -> list[ChatMessage]:
        from shared_core.providers.google import SKIP_SIGNATURE

        last = max((i for i, m in enumerate(messages) if m.role == MessageRole.USER), default=0)
        for index, message in enumerate(messages):
            if message.role not in (MessageRole.ASSISTANT, MessageRole.MODEL):
                continue
            # A thought without words would make it send what stands before once more.
            message.blocks = [b for b in message.blocks if not isinstance(b, ThinkingBlock) or b.content]
            told: list[bytes | None] = []
            unsigned = (
                since_gemini_3(model) and index >= last
            )  # it refuses a running tool loop whose calls are not signed
            for block in message.blocks:
                signature = None
                if isinstance(block, ThinkingBlock):
                    signature = _bytes(block.additional_information.get("thought_signature"))
                elif isinstance(block, ToolCallBlock):
                    stand_in = SKIP_SIGNATURE if unsigned else None
                    signature = _bytes(signatures.get(block.tool_call_id or "")) or stand_in
                    unsigned = False
                told.append(signature)
            message.additional_kwargs.pop("thought_signatures", None)
            if any(told):
                message.additional_kwargs["thought_signatures"] = told
        return messages


_NO_RETRY: Final = {"retry_options": {"attempts": 1}}
"""Left alone, its SDK tries a lost connection once more by itself, and sleeps up to ten seconds before."""

_FAMILIES: Final[Mapping[str, Dialect]] = {
    "anthropic": _Anthropic(
        "anthropic", replace(ANTHROPIC, media_types=_IN_MEMORY, urls=_FETCHED, file_id_pattern=None)
    ),
    "google_genai": _Google(
        "google",
        replace(
            GOOGLE,
            media=frozenset({"image", "file", "video"}),
            urls=_FETCHED | {"video"},
            file_id_pattern=None,
            assistant_media=frozenset(),
        ),
    ),
}
"""By the package of LlamaIndex's that the class is from, or derived from."""

_VENDORS: Final[Sequence[tuple[str, str, HistoryRules]]] = (
    ("openai", "openai", OPENAI),
    ("anthropic", "anthropic", ANTHROPIC),
    ("google", "google", GOOGLE),
    ("gemini", "google", GOOGLE),
    ("genai", "google", GOOGLE),
    ("mistral", "mistral", MISTRAL),
    ("llamacpp", "llamacpp", LLAMA_CPP),
)
"""What a class's name begins with, the vendor's name in prices and constraints, and its rules for a history."""


def dialect_of(llm: LLM) -> Dialect:
    """By the family of its class, else by the class's name."""
    homes = [
        base.__module__.split(".") for base in type(llm).__mro__ if base.__module__.startswith("llama_index.llms.")
    ]
    for home in homes:
        if (found := _FAMILIES.get(home[2])) is not None:
            return found
    kind = kind_of(llm)
    vendor, rules = next(((v, r) for prefix, v, r in _VENDORS if kind.startswith(prefix)), (None, COMPATIBLE))
    if any(home[2] == "openai" for home in homes):
        return _OpenAI(vendor, rules)
    return Dialect(vendor, rules)


def kind_of(llm: LLM) -> str:
    """The class's own name, in small letters and nothing else."""
    return re.sub("[^a-z0-9]", "", llm.class_name().lower())


def thoughtless(messages: Sequence[ChatMessage]) -> bool:
    """Whether the model is to go on with a turn that begins with no thought of its own: another model began it."""
    last = messages[-1] if messages else None
    if last is None or last.role not in (MessageRole.ASSISTANT, MessageRole.TOOL):
        return False
    before = next((m for m in reversed(messages) if m.role == MessageRole.ASSISTANT), None)
    return before is None or not before.blocks or not isinstance(before.blocks[0], ThinkingBlock)


def joined(arguments: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add `more` to `arguments`, mappings into mappings."""
    for key, value in more.items():
        before = arguments.get(key)
        arguments[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, Mapping) else value


def fetched(messages: Iterable[ChatMessage]) -> None:
    """Put the bytes in the place of every URL, in messages that nobody else holds. Blocks.

    Raises:
        ProviderError: kind INCAPABLE; it cannot be had. A vendor that fetches by itself may have better luck.
    """
    for message in messages:
        for index, block in enumerate(message.blocks):
            if isinstance(block, _BY_URL) and block.url is not None:
                message.blocks[index] = _held(block)


def to_fetch(messages: Iterable[ChatMessage]) -> bool:
    """Whether there is anything for `fetched` to do."""
    return any(isinstance(b, _BY_URL) and b.url is not None for m in messages for b in m.blocks)


_BY_URL = (ImageBlock, DocumentBlock, VideoBlock)


def _held(block: ImageBlock | DocumentBlock | VideoBlock) -> Any:
    get: Callable[[], Any]
    match block:
        case ImageBlock():
            get, field = block.resolve_image, "image"
        case VideoBlock():
            get, field = block.resolve_video, "video"
        case _:
            get, field = block.resolve_document, "data"
    try:
        data = get().read()
    except Exception as error:
        said = f"{type(error).__name__}: {redact(str(error))}"
        raise ProviderError.of(ErrorKind.INCAPABLE, f"{redact(str(block.url))} cannot be fetched: {said}") from error
    told = {name: getattr(block, name) for name in type(block).model_fields if name not in ("url", field)}
    return type(block)(**{field: data}, **told)


def _thinks(llm: LLM, request: ChatRequest) -> Mapping[str, Any]:
    """How this Claude is told to think; empty if it is not."""
    own = request.extra.get("anthropic") or {}
    thinking: Mapping[str, Any] = own.get("thinking") or peek(llm, "thinking_dict") or {}
    return thinking if thinking.get("type") in ("enabled", "adaptive") else {}


def _model(llm: LLM) -> str:
    return str(peek(llm, "model") or "")


def _bytes(signature: Any) -> bytes | None:
    if not isinstance(signature, str):
        return signature if isinstance(signature, bytes) else None
    try:
        return base64.b64decode(signature, validate=True)
    except binascii.Error:
        return None


def _omit(sdk: str) -> Any:
    """The SDK's word for 'as if this had not been said'."""
    module = importlib.import_module(sdk)
    return getattr(module, "omit", module.NOT_GIVEN)


@lru_cache(maxsize=1)
def _one_request() -> Mapping[str, Any]:
    """What keeps Google's SDK from sending, and being billed for, several requests for one call."""
    types = importlib.import_module("google.genai.types")
    calm: dict[str, Any] = {"automatic_function_calling": {"disable": True}}
    return calm | ({_CONTINUES: False} if _CONTINUES in types.GenerateContentConfig.model_fields else {})


_CONTINUES: Final = "automatic_continuation"


@lru_cache(maxsize=1)
def _parameters_of_anthropic() -> frozenset[str]:
    resources = importlib.import_module("anthropic.resources")
    return frozenset(inspect.signature(resources.Messages.create).parameters)
