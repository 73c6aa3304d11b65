"""`FallbackLLM`: a LlamaIndex LLM that keeps answering, over any targets and any ready LlamaIndex LLMs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

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
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import active_instrument_tags

from llamaindex_fallback import _mould as mould
from llamaindex_fallback._answer import Chunks, chat_response, completion_response
from llamaindex_fallback._convert import arguments_dict, legacy_calls
from llamaindex_fallback._faces import chat_face, completion_face, straight
from llamaindex_fallback._models import dump_target, load_model, pickled, shown, targets_of
from llamaindex_fallback._request import CheckedTools, openai_tool, to_request, tool_choice
from llamaindex_fallback._state import plain_options
from llamaindex_fallback._whose import whose
from llamaindex_fallback.errors import as_llamaindex
from llamaindex_fallback.structured import CalledCheck, Shape, way_for
from shared_core.chat.events import Answer
from shared_core.chat.request import ChatRequest
from shared_core.errors import AllTargetsFailed, ConfigurationError, UnknownOption, nearest
from shared_core.router import Router, router_options
from shared_core.routing.capabilities import Capabilities

if TYPE_CHECKING:
    from llama_index.core.llms.structured_llm import StructuredLLM
    from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
    from llama_index.core.tools.types import BaseTool
    from llama_index.core.types import Model

    from shared_core.config import ConfigLike

__all__ = ["FallbackLLM"]

M = TypeVar("M", bound=BaseModel)
_Given = Mapping[str, Any] | None

_NO_RESPONSE: Final = ChatResponse(message=ChatMessage())
"""Before the first response of a stream; every stream ends with one."""

_dispatcher = get_dispatcher(__name__)
_SHAPED_HERE = frozenset({PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM})
"""The modes of `pydantic_program_mode` that need no further package of LlamaIndex's."""


@straight
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
        metadata_of: 'all' tells LlamaIndex what every enabled target can do, 'best' what the most capable one can: then
            the others are passed over for what they cannot.
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
    metadata_of: Literal["all", "best"] = Field(default="all", description="Whose abilities `metadata` tells.")
    context_window: int | None = Field(default=None, ge=1, description="Tokens; in place of the targets' smallest.")
    num_output: int | None = Field(default=None, ge=1, description="Tokens; in place of the targets' smallest.")

    _router: Router = PrivateAttr()
    _shared: bool = PrivateAttr(default=False)
    _options: dict[str, Any] = PrivateAttr(default_factory=dict)
    _facts: tuple[Any, dict[str, Any]] = PrivateAttr(default=(None, {}))

    def __init__(self, models: Any = None, *, router: Router | None = None, **options: Any) -> None:
        theirs = {key: options.pop(key) for key in list(options) if key in type(self).model_fields}
        for key in options:
            if key not in router_options():
                valid = {"models", "router", *router_options(), *type(self).model_fields}
                raise UnknownOption(f"FallbackLLM has no option {key!r}. {nearest(key, valid)}")
        if theirs.get("num_output") == -1:
            del theirs["num_output"]  # LlamaIndex's word for unknown
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

    @classmethod
    def from_config(cls, source: ConfigLike, **options: Any) -> Self:
        """An LLM from a `.toml` or `.json` file, or from a mapping of what would stand in one.

        Its top level holds this class's keywords; `models` (or `targets`) lists names and tables of `Target`'s
        keywords.
        `${NAME}` and `${NAME:-default}` in any text are read from the environment: no key need stand in a file.

        Args:
            source: the path, or the mapping.
            **options: go before what the file says.

        Raises:
            ConfigurationError: the file cannot be read, or an option is wrong; says in which line, where it can.
            MissingKey: a variable that is not set.
        """
        from shared_core.config import configured

        return configured(
            source,
            options,
            lambda models, settings: cls(**settings) if models is None else cls(models, **settings),
            instead="router",
        )

    @property
    def router(self) -> Router:
        """Who decides: `explain`, `health`, `costs`, and the targets at run time."""
        return self._router

    @property
    def models(self) -> list[Any]:
        """Whom it asks, in order: targets, and ready LLMs as they are. `FallbackLLM(llm.models, …)` asks the same."""
        return [shown(target) for target in self._router.targets]

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
        return LLMMetadata(**self._known(afresh=True))

    def _known(self, *, afresh: bool = False) -> dict[str, Any]:
        """The fields of `metadata`. Events ask for them with every call: to them they are told as they were last."""
        settings = (self.metadata_of, self.context_window, self.num_output, self.max_tokens)
        kept, facts = self._facts
        if afresh or kept != settings:
            facts = self._told_of(self._router.capabilities(self.metadata_of))
            self._facts = settings, facts
        return facts

    def _told_of(self, able: Capabilities) -> dict[str, Any]:
        window = self.context_window or able.context_window or DEFAULT_CONTEXT_WINDOW
        output = self.num_output or self.max_tokens
        if output is None:
            router = self._router
            told = any(
                (target.capabilities or provider.capabilities).max_output is not None
                for target, provider in zip(router.targets, router.providers, strict=True)
                if target.enabled
            )
            output = max(1, min(able.max_output, window // 4)) if told and able.max_output is not None else -1
        return {
            "context_window": window,
            "num_output": output,
            "is_chat_model": True,
            "is_function_calling_model": able.tools,
            "model_name": " > ".join(target.name for target in self._router.targets if target.enabled),
            "system_role": MessageRole.SYSTEM,
        }

    def to_payload(self) -> dict[str, Any]:
        """What LlamaIndex's events tell about this LLM: no secrets. The model that served is in the response."""
        facts = self._known()
        return {
            "class_name": self.class_name(),
            "model": facts["model_name"],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **facts,
        }

    # ── the eight faces ──────────────────────────────────────────────────────────────────────────────────────────────

    @chat_face
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """A whole answer. Keywords are those of a request: temperature, max_tokens, stop, tools, chain, timeout, …, and
        `response_format`: a pydantic class, or a schema in OpenAI's form.

        Raises:
            AllTargetsFailed, DeadlineExceeded, InvalidRequest, UnknownOption: see `shared_core.errors`.
            StructuredOutputFailed: an `AllTargetsFailed`; what was answered was not what was asked for.
        """
        return chat_response(self._asked(messages, kwargs))

    @chat_face
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, async."""
        return chat_response(await self._aasked(messages, kwargs))

    @chat_face
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer as it comes. Returns at once; nothing is sent before the first response is asked for.

        Raises (while it is read):
            StreamBroken: it broke after text had been delivered, and could not be continued.
        """
        return self._streamed(self._request(messages, kwargs, streaming=True))

    @chat_face
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat`, async: a coroutine that returns an async generator."""
        return self._astreamed(self._request(messages, kwargs, streaming=True))

    @completion_face
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """A whole answer to one user message."""
        return completion_response(chat_response(self._asked(self._prompted(prompt, formatted=formatted), kwargs)))

    @completion_face
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, async."""
        answer = await self._aasked(self._prompted(prompt, formatted=formatted), kwargs)
        return completion_response(chat_response(answer))

    @completion_face
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as it comes."""
        messages = self._prompted(prompt, formatted=formatted)
        responses = self._streamed(self._request(messages, kwargs, streaming=True))
        return (completion_response(response) for response in responses)

    @completion_face
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete`, async: a coroutine that returns an async generator."""
        messages = self._prompted(prompt, formatted=formatted)
        responses = self._astreamed(self._request(messages, kwargs, streaming=True))
        return (completion_response(response) async for response in responses)

    def _prompted(self, prompt: str, *, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [mould.message(MessageRole.USER, [mould.text_block(prompt)], {})]

    def _request(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], *, streaming: bool = False
    ) -> ChatRequest:
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
        if self.timeout is not None:
            options["timeout"] = self.timeout
        if kwargs:
            options |= {key: value for key, value in kwargs.items() if value is not None}
        if around := active_instrument_tags.get():
            whose(options, around)
        return to_request(messages, streaming=streaming, **options)

    def _asked(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Answer:
        try:
            return self._router.invoke(self._request(messages, kwargs))
        except AllTargetsFailed as error:
            raise as_llamaindex(error)  # noqa: B904  # it is the error itself, with its cause, or takes its place

    async def _aasked(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Answer:
        try:
            return await self._router.ainvoke(self._request(messages, kwargs))
        except AllTargetsFailed as error:
            raise as_llamaindex(error)  # noqa: B904  # as above

    def _streamed(self, request: ChatRequest) -> ChatResponseGen:
        feed = Chunks().feed
        try:
            with self._router.stream(request) as events:
                for event in events:
                    if (response := feed(event)) is not None:
                        yield response
        except AllTargetsFailed as error:
            raise as_llamaindex(error)  # noqa: B904  # as above

    async def _astreamed(self, request: ChatRequest) -> ChatResponseAsyncGen:
        feed = Chunks().feed
        try:
            async with self._router.astream(request) as events:
                async for event in events:
                    if (response := feed(event)) is not None:
                        yield response
        except AllTargetsFailed as error:
            raise as_llamaindex(error)  # noqa: B904  # as above

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
            choice = tool_choice or ("any" if tool_required else None)
            prepared["tools"] = CheckedTools(map(openai_tool, tools), _check_of(tools, choice))
            prepared["parallel_tool_calls"] = allow_parallel_tool_calls
            if choice:
                prepared["tool_choice"] = choice
        return prepared

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

    # ── structured ───────────────────────────────────────────────────────────────────────────────────────────────────

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of `output_cls`: in the JSON schema of whoever answers, else by a forced tool call, else in words.

        An answer that does not validate is shown its mistake once; then the next target is asked. `llm_kwargs` are
        keywords of `chat`.

        Raises:
            StructuredOutputFailed: nobody's answer validated; a `ValueError` too.
            AllTargetsFailed, DeadlineExceeded: nobody answered.
        """
        if self.pydantic_program_mode not in _SHAPED_HERE:
            found: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        return self._predicted(output_cls, prompt, llm_kwargs, prompt_args)[0]

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict`, async."""
        if self.pydantic_program_mode not in _SHAPED_HERE:
            found: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return found
        return (await self._apredicted(output_cls, prompt, llm_kwargs, prompt_args))[0]

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """The growing object. Nothing is shown before the answer has passed: unless `llm_kwargs` say `validate=False`,
        the object grows only then.
        """
        if self.pydantic_program_mode not in _SHAPED_HERE:
            yield from super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        for found, _ in self._growing(output_cls, prompt, llm_kwargs, prompt_args):
            yield found

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        if self.pydantic_program_mode not in _SHAPED_HERE:
            theirs: AsyncGenerator[Any, None] = await super()._structured_astream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return theirs
        growing = self._agrowing(output_cls, prompt, llm_kwargs, prompt_args)
        return (found async for found, _ in growing)

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """An LLM whose answers are objects of `output_cls`, and whose calls observers hear of once."""
        from llama_index.core.llms.structured_llm import StructuredLLM

        from llamaindex_fallback._structured_llm import FallbackStructuredLLM

        # With a callback manager of its own, or a way of asking that is LlamaIndex's, it is LlamaIndex's altogether.
        here = self.pydantic_program_mode in _SHAPED_HERE and "callback_manager" not in kwargs
        cls = FallbackStructuredLLM if here else StructuredLLM
        return cls(llm=self, output_cls=output_cls, **kwargs)

    def _predicted(
        self, output_cls: type[M], prompt: BasePromptTemplate, llm_kwargs: _Given, prompt_args: dict[str, Any]
    ) -> tuple[M, ChatResponse]:
        """The object, and the response that it was read from."""
        shape, messages, kwargs = self._begun(output_cls, prompt, llm_kwargs, prompt_args)
        response = self.chat(messages, **kwargs)
        return self._ended(shape.parsed(response)), response

    async def _apredicted(
        self, output_cls: type[M], prompt: BasePromptTemplate, llm_kwargs: _Given, prompt_args: dict[str, Any]
    ) -> tuple[M, ChatResponse]:
        shape, messages, kwargs = self._begun(output_cls, prompt, llm_kwargs, prompt_args)
        response = await self.achat(messages, **kwargs)
        return self._ended(shape.parsed(response)), response

    def _growing(
        self, output_cls: type[M], prompt: BasePromptTemplate, llm_kwargs: _Given, prompt_args: dict[str, Any]
    ) -> Generator[tuple[M | BaseModel, ChatResponse], None, None]:
        """The objects of a stream, each with the response that it was read from."""
        shape, messages, kwargs = self._shaped(output_cls, prompt, llm_kwargs, prompt_args)
        grown = shape.grown(checked=kwargs.get("validate") is not False)
        response = _NO_RESPONSE
        for response in self.stream_chat(messages, **kwargs):
            for found in grown.feed(response):
                yield found, response
        for found in grown.finish():
            yield found, response

    async def _agrowing(
        self, output_cls: type[M], prompt: BasePromptTemplate, llm_kwargs: _Given, prompt_args: dict[str, Any]
    ) -> AsyncGenerator[tuple[M | BaseModel, ChatResponse], None]:
        shape, messages, kwargs = self._shaped(output_cls, prompt, llm_kwargs, prompt_args)
        grown = shape.grown(checked=kwargs.get("validate") is not False)
        response = _NO_RESPONSE
        async for response in await self.astream_chat(messages, **kwargs):
            for found in grown.feed(response):
                yield found, response
        for found in grown.finish():
            yield found, response

    def _shaped(
        self,
        output_cls: type[M],
        prompt: BasePromptTemplate,
        llm_kwargs: _Given,
        prompt_args: Mapping[str, Any],
    ) -> tuple[Shape[M], Sequence[ChatMessage], dict[str, Any]]:
        """What to ask for and how to read it, the conversation, and the keywords of the chat call."""
        able = self._router.capabilities()
        shape = Shape(output_cls, way_for(self.pydantic_program_mode), able)
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        asked, wanted = shape.asked(messages)
        return shape, asked, {k: v for k, v in (llm_kwargs or {}).items() if k not in _CHOSEN_HERE} | wanted

    def _begun(
        self, output_cls: type[M], prompt: BasePromptTemplate, llm_kwargs: _Given, prompt_args: dict[str, Any]
    ) -> tuple[Shape[M], Sequence[ChatMessage], dict[str, Any]]:
        """`_shaped`, with LlamaIndex's event of it. (For streams LlamaIndex sends its own.)"""
        _dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        return self._shaped(output_cls, prompt, llm_kwargs, prompt_args)

    @staticmethod
    def _ended(found: M) -> M:
        _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
        return found

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


_CHOSEN_HERE = frozenset({"tools", "tool_choice", "tool_required", "allow_parallel_tool_calls", "parallel_tool_calls"})
"""What LlamaIndex's own programs, too, decide for themselves."""


def _check_of(tools: Sequence[BaseTool], choice: Any) -> CalledCheck | None:
    """What an answer must pass where a tool call is forced: not every vendor's model obeys."""
    if tool_choice(choice, ()) in (None, "auto", "none"):
        return None
    return CalledCheck({str(tool.metadata.name): tool.metadata.fn_schema for tool in tools})


def _revived(cls: type[FallbackLLM], models: Sequence[Any], options: Mapping[str, Any]) -> FallbackLLM:
    return cls([load_model(model) for model in models], **options)
