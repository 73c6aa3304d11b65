"""What `as_structured_llm` makes of a `FallbackLLM`: an LLM whose every answer is an object.

LlamaIndex's own sends a second chain of events around the one of the LLM that it asks, so observers count each call and
its tokens twice, and its responses do not tell who served. This one tells of a call once, and passes on what is known.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.llms.generic_utils import achat_to_completion_decorator, chat_to_completion_decorator
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import ChatPromptTemplate
from pydantic import BaseModel

if TYPE_CHECKING:
    from llamaindex_fallback.llm import FallbackLLM

__all__ = ["FallbackStructuredLLM"]


class FallbackStructuredLLM(StructuredLLM):
    """An LLM whose answers are objects of `output_cls`: `raw` is the object, the message its JSON.

    `additional_kwargs` hold `fallback`, who served, and the tokens, as those of the LLM that it asks do.
    """

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One object.

        Raises:
            StructuredOutputFailed: nobody's answer validated.
        """
        return _response(*self._ours._predicted(self.output_cls, _prompt(messages), kwargs, {}))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, async."""
        return _response(*await self._ours._apredicted(self.output_cls, _prompt(messages), kwargs, {}))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Generator[ChatResponse, None, None]:
        """The object as it grows."""
        for found, response in self._ours._growing(self.output_cls, _prompt(messages), kwargs, {}):
            yield _response(found, response)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> AsyncGenerator[ChatResponse, None]:
        """`stream_chat`, async: a coroutine that returns an async generator."""

        async def responses() -> AsyncGenerator[ChatResponse, None]:
            async for found, response in self._ours._agrowing(self.output_cls, _prompt(messages), kwargs, {}):
                yield _response(found, response)

        return responses()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """One object, for one user message."""
        answer: CompletionResponse = chat_to_completion_decorator(self.chat)(prompt, **kwargs)
        return answer

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, async."""
        answer: CompletionResponse = await achat_to_completion_decorator(self.achat)(prompt, **kwargs)
        return answer

    @property
    def _ours(self) -> FallbackLLM:
        return cast("FallbackLLM", self.llm)


def _prompt(messages: Sequence[ChatMessage]) -> ChatPromptTemplate:
    return ChatPromptTemplate(message_templates=list(messages))


def _response(found: BaseModel, response: ChatResponse) -> ChatResponse:
    said = ChatMessage(role=MessageRole.ASSISTANT, content=found.model_dump_json())
    return ChatResponse(message=said, raw=found, additional_kwargs=dict(response.additional_kwargs))
