"""LLMs as a LlamaIndex integration would be written, over Anthropic's and Google's SDK.

They stand in for `llama_index.llms.anthropic` and `llama_index.llms.google_genai`, which cannot be installed beside the
newest SDKs. They do what those do and no more: no retries of their own to switch off, no history rules, no schema mode.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import anthropic
from google import genai
from google.genai import types
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

__all__ = ["AnthropicStandIn", "GoogleStandIn"]


class _StandIn(FunctionCallingLLM):
    """What both have in common."""

    model: str
    address: str
    key: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=200_000, num_output=1024, is_chat_model=True, is_function_calling_model=True,
            model_name=self.model,
        )  # fmt: skip

    @abstractmethod
    def _call(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any: ...

    @abstractmethod
    async def _acall(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any: ...

    @abstractmethod
    def _whole(self, answer: Any) -> ChatResponse: ...

    @abstractmethod
    def _growing(self) -> Any:
        """An object whose `feed(chunk)` returns the next response."""

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._whole(self._call(messages, kwargs, streaming=False))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._whole(await self._acall(messages, kwargs, streaming=False))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        def responses() -> Iterator[ChatResponse]:
            growing = self._growing()
            for chunk in self._call(messages, kwargs, streaming=True):
                yield growing.feed(chunk)

        return responses()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        async def responses() -> AsyncIterator[ChatResponse]:
            growing = self._growing()
            async for chunk in await self._acall(messages, kwargs, streaming=True):
                yield growing.feed(chunk)

        return responses()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.chat([ChatMessage(content=prompt)], **kwargs).message.content or "")

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        response = await self.achat([ChatMessage(content=prompt)], **kwargs)
        return CompletionResponse(text=response.message.content or "")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError("FallbackLLM asks chat methods alone")

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError("FallbackLLM asks chat methods alone")

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        return [
            ToolSelection(tool_id=b.tool_call_id or "", tool_name=b.tool_name, tool_kwargs=dict(b.tool_kwargs))  # type: ignore[arg-type]  # ours are dicts
            for b in blocks
        ]

    def _prepare_chat_with_tools(
        self,
        tools: Any,
        user_msg: Any = None,
        chat_history: Any = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or ())
        if user_msg is not None:
            messages.append(ChatMessage(content=user_msg) if isinstance(user_msg, str) else user_msg)
        specs = [tool.metadata for tool in tools]
        return {"messages": messages, "specs": specs, "required": tool_required, "alone": not allow_parallel_tool_calls}


def _message(text: str, calls: Sequence[ToolCallBlock]) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*([TextBlock(text=text)] if text else []), *calls])


def _turns(messages: Sequence[ChatMessage]) -> tuple[str, list[ChatMessage]]:
    system = "\n".join(m.content or "" for m in messages if m.role == MessageRole.SYSTEM)
    return system, [m for m in messages if m.role != MessageRole.SYSTEM]


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _GrowingAnthropic:
    def __init__(self) -> None:
        self.text = ""
        self.pieces: dict[int, str] = {}  # by index of the block
        self.calls: dict[int, Any] = {}

    def feed(self, event: Any) -> ChatResponse:
        delta = ""
        if event.type == "content_block_start" and event.content_block.type == "tool_use":
            self.calls[event.index], self.pieces[event.index] = event.content_block, ""
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            delta = event.delta.text
        elif event.type == "content_block_delta" and event.delta.type == "input_json_delta":
            self.pieces[event.index] += event.delta.partial_json
        self.text += delta
        calls = [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=self.pieces[index] or "{}")
            for index, call in self.calls.items()
        ]
        return ChatResponse(message=_message(self.text, calls), delta=delta, raw=event.model_dump())


class AnthropicStandIn(_StandIn):
    """Claude."""

    _client: Any = PrivateAttr(default=None)
    _aclient: Any = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        return "Anthropic_LLM"

    def _call(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any:
        self._client = self._client or anthropic.Anthropic(base_url=self.address, api_key=self.key, max_retries=0)
        return self._client.messages.create(**self._body(messages, **kwargs), stream=streaming)

    async def _acall(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any:
        options: dict[str, Any] = {"base_url": self.address, "api_key": self.key, "max_retries": 0}
        self._aclient = self._aclient or anthropic.AsyncAnthropic(**options)
        return await self._aclient.messages.create(**self._body(messages, **kwargs), stream=streaming)

    def _body(
        self, messages: Sequence[ChatMessage], specs: Any = (), required: bool = False, alone: bool = False, **_: Any
    ) -> dict[str, Any]:
        system, turns = _turns(messages)
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1024, "messages": [self._turn(m) for m in turns]}
        if system:
            body["system"] = system
        if specs:
            body["tools"] = [
                {"name": s.name, "description": s.description, "input_schema": s.get_parameters_dict()} for s in specs
            ]
            body["tool_choice"] = {"type": "any" if required else "auto", "disable_parallel_tool_use": alone}
        return body

    @staticmethod
    def _turn(message: ChatMessage) -> dict[str, Any]:
        if message.role == MessageRole.TOOL:
            result = {"tool_use_id": message.additional_kwargs["tool_call_id"], "content": message.content or ""}
            return {"role": "user", "content": [{"type": "tool_result", **result}]}
        content: list[Any] = []
        for block in message.blocks:
            if isinstance(block, ToolCallBlock):
                call = {"id": block.tool_call_id, "name": block.tool_name, "input": block.tool_kwargs}
                content.append({"type": "tool_use", **call})
            elif isinstance(block, TextBlock) and block.text:
                content.append({"type": "text", "text": block.text})
        return {"role": message.role.value, "content": content}

    def _whole(self, answer: Any) -> ChatResponse:
        text = "".join(block.text for block in answer.content if block.type == "text")
        calls = [
            ToolCallBlock(tool_call_id=block.id, tool_name=block.name, tool_kwargs=block.input)
            for block in answer.content
            if block.type == "tool_use"
        ]
        return ChatResponse(message=_message(text, calls), raw=answer.model_dump())

    def _growing(self) -> _GrowingAnthropic:
        return _GrowingAnthropic()


# ── Google ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _GrowingGoogle:
    def __init__(self) -> None:
        self.text = ""
        self.calls: list[ToolCallBlock] = []

    def feed(self, chunk: Any) -> ChatResponse:
        told, calls = _read(chunk)
        self.text += told
        self.calls += calls
        message = _message(self.text, self.calls)
        return ChatResponse(message=message, delta=told, raw=chunk.model_dump(mode="json"))


def _read(answer: Any) -> tuple[str, list[ToolCallBlock]]:
    """What the first candidate says, and calls."""
    content = answer.candidates[0].content if answer.candidates else None
    parts = (content.parts if content else None) or []
    calls = [
        ToolCallBlock(tool_name=p.function_call.name, tool_kwargs=p.function_call.args or {})
        for p in parts
        if p.function_call
    ]
    return "".join(part.text or "" for part in parts), calls


class GoogleStandIn(_StandIn):
    """Gemini."""

    _client: Any = PrivateAttr(default=None)
    _aclient: Any = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        return "GenAI"

    def _opened(self) -> Any:
        return genai.Client(api_key=self.key, http_options=types.HttpOptions(base_url=self.address))

    def _call(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any:
        self._client = self._client or self._opened()
        models = self._client.models
        ask = models.generate_content_stream if streaming else models.generate_content
        return ask(**self._body(messages, **kwargs))

    async def _acall(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], *, streaming: bool) -> Any:
        self._aclient = self._aclient or self._opened().aio
        models = self._aclient.models
        ask = models.generate_content_stream if streaming else models.generate_content
        return await ask(**self._body(messages, **kwargs))

    def _body(
        self, messages: Sequence[ChatMessage], specs: Any = (), required: bool = False, alone: bool = False, **_: Any
    ) -> dict[str, Any]:
        system, turns = _turns(messages)
        config: dict[str, Any] = {"automatic_function_calling": {"disable": True}}
        if system:
            config["system_instruction"] = system
        if specs:
            declared = [
                {"name": s.name, "description": s.description, "parameters_json_schema": s.get_parameters_dict()}
                for s in specs
            ]
            config["tools"] = [{"function_declarations": declared}]
            config["tool_config"] = {"function_calling_config": {"mode": "ANY" if required else "AUTO"}}
        contents = [self._turn(message, turns) for message in turns]
        return {"model": self.model, "contents": contents, "config": types.GenerateContentConfig(**config)}

    @staticmethod
    def _turn(message: ChatMessage, turns: Sequence[ChatMessage]) -> types.Content:
        if message.role == MessageRole.TOOL:
            asked = message.additional_kwargs["tool_call_id"]
            blocks = [block for turn in turns for block in turn.blocks if isinstance(block, ToolCallBlock)]
            name = next((b.tool_name for b in blocks if b.tool_call_id == asked), asked)
            part = types.Part.from_function_response(name=name, response={"result": message.content})
            return types.Content(role="user", parts=[part])
        parts: list[types.Part] = []
        for block in message.blocks:
            if isinstance(block, ToolCallBlock):
                kwargs = block.tool_kwargs
                arguments = json.loads(kwargs) if isinstance(kwargs, str) else kwargs
                parts.append(types.Part.from_function_call(name=block.tool_name, args=arguments))
            elif isinstance(block, TextBlock) and block.text:
                parts.append(types.Part.from_text(text=block.text))
        return types.Content(role="model" if message.role == MessageRole.ASSISTANT else "user", parts=parts)

    def _whole(self, answer: Any) -> ChatResponse:
        return ChatResponse(message=_message(*_read(answer)), raw=answer.model_dump(mode="json"))

    def _growing(self) -> _GrowingGoogle:
        return _GrowingGoogle()
