"""A wrapped LLM without what the router does itself (retries, events), and closing what it forgets to close."""

from __future__ import annotations

import copy
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Literal

from llama_index.core.llms import callbacks
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.llm import LLM

from llamaindex_fallback._convert import peek
from llamaindex_fallback._faces import bare
from shared_core.providers import transport
from shared_core.providers.suspended import held_by

__all__ = [
    "aacquire",
    "acquire",
    "blocks",
    "for_one_loop",
    "last_chunk",
    "method",
    "misread",
    "private",
    "refused_answer",
    "variant",
    "without_retries",
]

Method = Literal["chat", "stream_chat", "achat", "astream_chat"]


def misread(error: Exception) -> bool:
    """Whether an integration stumbled over an answer that is none (an HTML page, no choices), which looks like a bug.

    Only where it reads a plain value as if it were an answer; any other `TypeError` and the like is a broken install.
    """
    match error:
        case IndexError():
            plain = True
        case AttributeError():
            plain = isinstance(error.obj, (str, bytes, list, dict, type(None)))
        case TypeError():
            plain = str(error).startswith("'NoneType' object is not")
        case _:
            return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return plain and trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("llama_index.llms.")


def without_retries(llm: LLM) -> LLM:
    """`llm`, or a shallow copy of it with `max_retries=0`: who retries, when and where is the router's decision.

    Only LLMs with that setting are copied, so that an LLM that keeps a state of its own stays the one you hold.
    """
    if not isinstance(peek(llm, "max_retries"), int) or "max_retries" not in type(llm).model_fields:
        return llm
    quiet = llm.model_copy(update={"max_retries": 0})
    for key, client in private(quiet).items():
        if client is not None and peek(client, "max_retries") and callable(peek(client, "with_options")):
            setattr(quiet, key, client.with_options(max_retries=0))  # an SDK client that was built before we came
    return quiet


def private(llm: LLM | None) -> dict[str, Any]:
    """Where integrations keep their SDK clients."""
    return dict(peek(llm, "__pydantic_private__") or {})


def method(llm: LLM, name: Method) -> Callable[..., Any]:
    """The LLM's method without LlamaIndex's callback decorator, so that one logical call stays one chain of events.

    The decorator keeps the function it wraps in its closure. Where it is not found, the public method is used as it is,
    and its events carry `INNER_TAG`.
    """
    inner = _undecorated(type(llm), name)
    return getattr(llm, name) if inner is None else partial(inner, llm)


@lru_cache(maxsize=256)
def _undecorated(cls: type[LLM], name: Method) -> Callable[..., Any] | None:
    function = inspect.getattr_static(cls, name)
    if (mine := bare(function)) is not None:
        return mine  # a router in a router
    function = peek(function, "__wrapped__") or function  # the span decorator's
    if inspect.isfunction(function) and function.__globals__.get("__name__") == callbacks.__name__:
        inner = inspect.getclosurevars(function).nonlocals.get("f")
        if inspect.isfunction(inner):
            return inner
    return None


def variant(llm: LLM, *, is_async: bool, **changes: Any) -> LLM:
    """`llm` with other settings, for one call, over the same SDK client: a copy would open one and leave it."""
    getter = getattr(llm, "_get_aclient" if is_async else "_get_client", None)
    if callable(getter):
        getter()
    return llm.model_copy(update=changes)


def acquire(llm: LLM) -> None:
    """What the decorator would have done: wait for the LLM's own rate limiter."""
    if llm.rate_limiter is not None:
        llm.rate_limiter.acquire()


async def aacquire(llm: LLM) -> None:
    """The same, without blocking the loop."""
    if llm.rate_limiter is not None:
        await llm.rate_limiter.async_acquire()


@lru_cache(maxsize=256)
def blocks(cls: type[LLM]) -> bool:
    """Whether the class's async methods are LlamaIndex's stand-ins that call the sync ones on the loop."""
    mine, stand_in = (inspect.getattr_static(one, "achat") for one in (cls, CustomLLM))
    return issubclass(cls, CustomLLM) and mine is stand_in


def for_one_loop(llm: LLM) -> LLM:
    """A copy of `llm` whose async SDK client has connections of its own: they belong to the loop they begin on.

    A client that its integration builds when it is first used is built by the copy. One that stands already is made
    anew over a new HTTP client, unless the HTTP client is the caller's own.
    """
    mine = llm.model_copy()
    client: Any = private(mine).get("_aclient")
    if client is not None:
        mine._aclient = transport.with_connections_of({}, client)  # type: ignore[attr-defined]  # where it was found
    return mine


def last_chunk(answer: Any) -> Callable[[], Any]:
    """Called when the stream has ended, tells the last chunk that Google's SDK read; None for every other stream.

    LlamaIndex's class skips chunks without text, and the one with the finish reason and the usage may be such a chunk.
    The conversation that the class holds its stream by is made for this one call, so it may be listened to.
    """
    last: list[Any] = [None]
    chat = _chat_behind(answer)
    if chat is None:
        return last.pop
    models = copy.copy(chat._modules)
    ask = models.generate_content_stream

    def listened(**arguments: Any) -> Iterator[Any]:
        for chunk in ask(**arguments):
            last[0] = chunk
            yield chunk

    async def alistened(**arguments: Any) -> AsyncIterator[Any]:
        async def chunks() -> AsyncIterator[Any]:
            async for chunk in await ask(**arguments):
                last[0] = chunk
                yield chunk

        return chunks()

    models.generate_content_stream = alistened if inspect.iscoroutinefunction(ask) else listened
    chat._modules = models
    return last.pop


def _chat_behind(answer: Any) -> Any:
    for one in held_by(answer):
        if type(one).__module__ == "google.genai.chats" and hasattr(peek(one, "_modules"), "generate_content_stream"):
            return one
    return None


def refused_answer(error: Exception) -> Any:
    """The answer of Gemini that LlamaIndex's class raised `error` about in place of handing it over; else None.

    It does that with every answer that ends by its length, a filter or a blocked prompt.
    """
    if not isinstance(error, (RuntimeError, ValueError)):
        return None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "chat_from_gemini_response":
            return frame.f_locals.get("response")
        trace = trace.tb_next
    return None
