"""`FallbackLLM`: a LlamaIndex LLM that keeps answering, over any targets and any ready LlamaIndex LLMs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection

from llamaindex_fallback._answer import Chunks, chat_response, completion_response, first_call_only
from llamaindex_fallback._convert import arguments_dict, legacy_calls, to_request
from llamaindex_fallback._models import dump_target, load_model, pickled, targets_of
from llamaindex_fallback._state import plain_options
from shared_core.chat.request import ChatRequest, Origin
from shared_core.errors import ConfigurationError, UnknownOption, nearest
from shared_core.router import Router, router_options

if TYPE_CHECKING:
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools.types import BaseTool
    from llama_index.core.types import Model

__all__ = ["FallbackLLM"]

F = TypeVar("F", bound=Callable[..., Any])


def _chat_face(method: F) -> F:
    """LlamaIndex's events around a chat method. (The decorator is untyped; this says that it keeps the signature.)"""
    return cast(F, llm_chat_callback()(method))


def _completion_face(method: F) -> F:
    """LlamaIndex's events around a completion method."""
    return cast(F, llm_completion_callback()(method))


class FallbackLLM(FunctionCallingLLM):
    """Asks one target after another until one answers: use it wherever LlamaIndex takes an LLM.

    ``Settings.llm = FallbackLLM(models=["openai:gpt-5-mini", OpenAI(model="gpt-4.1"), "llamacpp:./qwen.gguf"])``

    Every answer carries ``response.additional_kwargs["fallback"]`` and ``response.raw["fallback"]``: who served, every
    attempt with its error and time, what it cost. Token usage is in ``response.raw["usage"]``.

    Args:
        models: targets in order: 'provider:model' strings, `Target`s, mappings, ready LlamaIndex LLMs, mixed; a mapping
            ``{"llm": OpenAI(...), "name": …, "price": …}`` gives a ready LLM a target's settings.
        router: a `Router` that is shared with others, in place of `models` and its options.
        temperature: 0 to 2; None leaves it to each target. So for max_tokens (>= 1).
        timeout: seconds for a whole logical call, all targets together; None leaves it to the router.
        context_window, num_output: tokens that `metadata` tells LlamaIndex, in place of the smallest of all targets.
        **options: every keyword of `Router` (strategy, retry, timeouts, breaker, …) and of LlamaIndex's `LLM`
            (system_prompt, callback_manager, output_parser, …).

    Raises:
        ConfigurationError: no targets, both `models` and `router`, or a target that cannot be built.
        UnknownOption: a keyword nobody knows; the message names the nearest.
    """

    temperature: float | None = Field(default=None, ge=0.0, le=2.0, description="Sampling temperature.")
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer, in tokens.")
    timeout: float | None = Field(default=None, gt=0, description="Seconds for one logical call.")
    context_window: int | None = Field(default=None, ge=1, description="Tokens; in place of the targets' smallest.")
    num_output: int | None = Field(default=None, ge=1, description="Tokens; in place of the targets' smallest.")

    _router: Router = PrivateAttr()
    _shared: bool = PrivateAttr(default=False)
    _options: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, models: Any = None, *, router: Router | None = None, **options: Any) -> None:
        theirs = {key: options.pop(key) for key in list(options) if key in type(self).model_fields}
        for key in options:
            if key not in router_options():
                valid = {"models", "router", *router_options(), *type(self).model_fields}
                raise UnknownOption(f"FallbackLLM has no option {key!r}. {nearest(key, valid)}")
        super().__init__(**{key: value for key, value in theirs.items() if value is not None})
        if router is not None:
            if models is not None or options:
                extra = "models" if models is not None else next(iter(options))
                raise ConfigurationError(f"give either router= or {extra}=, not both: the router has its own")
            if not isinstance(router, Router):
                raise ConfigurationError(f"router= must be a shared_core.Router, not {type(router).__name__}")
            self._router, self._shared = router, True
            return
        if models is None:
            raise ConfigurationError("FallbackLLM needs models=[…] or router=…\nhint: models=['openai:gpt-5-mini']")
        self._options = dict(options)
        self._router = Router(targets_of(models), **options)

    @property
    def router(self) -> Router:
        """Who decides: `explain`, `health`, `costs`, and the targets at run time."""
        return self._router

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name for this class in dumps and events."""
        return "fallback_llm"

    # ── what LlamaIndex asks about ───────────────────────────────────────────────────────────────────────────────────

    @property
    def metadata(self) -> LLMMetadata:
        """What every enabled target can do: the smallest context window and output, tools only if all have them.

        `num_output` is what prompts leave free for the answer, so it is never more than a quarter of the window; -1,
        LlamaIndex's word for unknown, when no target and no `max_tokens` says.
        """
        able = self._router.capabilities()
        window = self.context_window or able.context_window or DEFAULT_CONTEXT_WINDOW
        output = self.num_output or self.max_tokens
        if output is None:
            output = -1 if able.max_output is None else max(1, min(able.max_output, window // 4))
        return LLMMetadata(
            context_window=window,
            num_output=output,
            is_chat_model=True,
            is_function_calling_model=able.tools,
            model_name=" > ".join(target.name for target in self._router.targets if target.enabled),
            system_role=MessageRole.SYSTEM,
        )

    def to_payload(self) -> dict[str, Any]:
        """What LlamaIndex's events tell about this LLM: no secrets. The model that served is in the response."""
        facts = self.metadata
        return {
            "class_name": self.class_name(),
            "model": facts.model_name,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **facts.model_dump(),
        }

    # ── the eight faces ──────────────────────────────────────────────────────────────────────────────────────────────

    @_chat_face
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """A whole answer. Keywords are those of a request: temperature, max_tokens, stop, tools, chain, timeout, …

        Raises:
            AllTargetsFailed, DeadlineExceeded, InvalidRequest, UnknownOption: see `shared_core.errors`.
        """
        return self._whole(self._router.invoke(self._request(messages, kwargs)))

    @_chat_face
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, async."""
        return self._whole(await self._router.ainvoke(self._request(messages, kwargs)))

    @_chat_face
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer as it comes. Returns at once; nothing is sent before the first response is asked for.

        Raises (while it is read):
            StreamBroken: it broke after text had been delivered, and could not be continued.
        """
        return self._streamed(self._request(messages, kwargs, streaming=True))

    @_chat_face
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, async: a coroutine that returns an async generator."""
        return self._astreamed(self._request(messages, kwargs, streaming=True))

    @_completion_face
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """A whole answer to one user message."""
        messages = self._prompted(prompt, formatted=formatted)
        return completion_response(self._whole(self._router.invoke(self._request(messages, kwargs))))

    @_completion_face
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, async."""
        messages = self._prompted(prompt, formatted=formatted)
        return completion_response(self._whole(await self._router.ainvoke(self._request(messages, kwargs))))

    @_completion_face
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as it comes."""
        messages = self._prompted(prompt, formatted=formatted)
        responses = self._streamed(self._request(messages, kwargs, streaming=True))
        return (completion_response(response) for response in responses)

    @_completion_face
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, async: a coroutine that returns an async generator."""
        messages = self._prompted(prompt, formatted=formatted)
        responses = self._astreamed(self._request(messages, kwargs, streaming=True))
        return (completion_response(response) async for response in responses)

    def _prompted(self, prompt: str, *, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], *, streaming: bool = False
    ) -> ChatRequest:
        defaults = {"temperature": self.temperature, "max_tokens": self.max_tokens, "timeout": self.timeout}
        given = {key: value for key, value in kwargs.items() if value is not None}
        return to_request(messages, streaming=streaming, **{**defaults, **given})

    def _whole(self, answer: Any) -> ChatResponse:
        return chat_response(answer, self._origin_of)

    def _streamed(self, request: ChatRequest) -> ChatResponseGen:
        chunks = Chunks(self._origin_of)
        with self._router.stream(request) as events:
            for event in events:
                if (response := chunks.feed(event)) is not None:
                    yield response

    async def _astreamed(self, request: ChatRequest) -> ChatResponseAsyncGen:
        chunks = Chunks(self._origin_of)
        async with self._router.astream(request) as events:
            async for event in events:
                if (response := chunks.feed(event)) is not None:
                    yield response

    def _origin_of(self, name: str) -> Origin | None:
        for target, provider in zip(self._router.targets, self._router.providers, strict=True):
            if target.name == name:
                return provider.origin
        return None

    # ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tools as neutral dicts: each target's own form is made when it is asked, and events can show them."""
        messages = list(chat_history or ())
        if user_msg is not None:
            said = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(said)
        prepared: dict[str, Any] = {"messages": messages, **kwargs}
        if tools:
            prepared["tools"] = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
            prepared["parallel_tool_calls"] = allow_parallel_tool_calls
            if choice := tool_choice or ("any" if tool_required else None):
                prepared["tool_choice"] = choice
        return prepared

    def _validate_chat_with_tools_response(
        self, response: ChatResponse, tools: Sequence[BaseTool], allow_parallel_tool_calls: bool = False, **kwargs: Any
    ) -> ChatResponse:
        """One call alone where one at a time was asked for: not every vendor can be told so."""
        return response if allow_parallel_tool_calls else first_call_only(response)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The tool calls of a response: its `ToolCallBlock`s, or where there are none, its legacy `tool_calls`.

        Raises:
            ValueError: there are none, and `error_on_no_tool_call`.
        """
        message = response.message
        blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        calls = [(b.tool_call_id or "", b.tool_name, b.tool_kwargs) for b in blocks] or legacy_calls(message)
        found = [
            ToolSelection(tool_id=id_, tool_name=name, tool_kwargs=arguments_dict(arguments))
            for id_, name, arguments in calls
        ]
        if not found and error_on_no_tool_call:
            raise ValueError("Expected at least one tool call, but got 0 tool calls.")
        return found

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """LlamaIndex's own, but with a forced choice: left to 'auto', a model may answer in words and fill nothing."""
        objects: Generator[Any, None, None] = self._program(output_cls, prompt).stream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )
        return objects

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        objects: AsyncGenerator[Any, None] = await self._program(output_cls, prompt).astream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )
        return objects

    def _program(self, output_cls: type[Model], prompt: PromptTemplate) -> Any:
        from llama_index.core.program.function_program import FunctionCallingProgram
        from llama_index.core.program.utils import get_program_for_llm

        program = get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=self.pydantic_program_mode)
        if isinstance(program, FunctionCallingProgram):
            return FunctionCallingProgram.from_defaults(output_cls, prompt=prompt, llm=self, tool_choice="any")
        return program

    # ── as data ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Plain JSON data without keys: `from_dict` revives it and reads the keys from the environment.

        Options that are no data (callbacks, ready stores) are left out. A shared router is not told: pass it again,
        ``FallbackLLM.from_dict(data, router=router)``.

        Raises:
            ConfigurationError: a target is built around a ready provider object.
        """
        told = {key: value for key, value in super().to_dict(**kwargs).items() if value is not None}
        if self._shared:
            return told
        return {**told, "models": [dump_target(t) for t in self._router.targets], **plain_options(self._options)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The LLM that `to_dict` told. Keywords override what is in `data`, which is not changed."""
        given = {**data, **kwargs}
        given.pop("class_name", None)
        if isinstance(given.get("models"), Sequence) and not isinstance(given["models"], str):
            given["models"] = [load_model(model) for model in given["models"]]
        return cls(**given)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as what it was built from: no sockets, no threads, and no key, which the other side's environment has.
        if self._shared:
            raise ConfigurationError("a FallbackLLM with a shared router does not travel\nhint: build it with models=")
        here = ("callback_manager", "rate_limiter")
        fields = {name: getattr(self, name) for name in self.model_fields_set if name not in here}
        return _revived, (type(self), [pickled(t) for t in self._router.targets], {**self._options, **fields})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy asks the same router, however deep: sockets and circuits are not copied."""
        return self.__copy__()

    def close(self) -> None:
        """Close the router, unless it is shared: then its owner does."""
        if not self._shared:
            self._router.close()

    async def aclose(self) -> None:
        """The same, with what belongs to the running event loop."""
        if not self._shared:
            await self._router.aclose()

    def __repr__(self) -> str:
        names = ", ".join(repr(t.name) if t.enabled else f"{t.name!r} (disabled)" for t in self._router.targets)
        options = "".join(f", {k}={v!r}" for k, v in self._options.items() if isinstance(v, (str, int, float, bool)))
        return f"FallbackLLM([{names}]{options})"

    __str__ = __repr__


def _revived(cls: type[FallbackLLM], models: Sequence[Any], options: Mapping[str, Any]) -> FallbackLLM:
    return cls([load_model(model) for model in models], **options)
