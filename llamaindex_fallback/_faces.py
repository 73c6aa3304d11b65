"""The public methods of an LLM: with LlamaIndex's spans and events where somebody listens, straight where nobody does.

LlamaIndex makes its spans, events and traces whether there is anybody to hear them or not, which takes longer than all
that a router does. Who listens is looked up with every call, so an observer that is added later hears of the next one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar, cast

from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.llms import callbacks
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.span import active_span_id
from llama_index_instrumentation.span_handlers import NullSpanHandler

__all__ = ["bare", "chat_face", "completion_face", "observed", "straight"]

F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L", bound=LLM)

_BARE: Final = "__llm_fallback_bare__"
_DEAF: Final = (NullEventHandler, NullSpanHandler)


def chat_face(method: F) -> F:
    """LlamaIndex's events around a chat method."""
    return _marked(llm_chat_callback()(_telling(method)), method)


def completion_face(method: F) -> F:
    """LlamaIndex's events around a completion method."""
    return _marked(llm_completion_callback()(_telling(method)), method)


def _marked(told: Any, method: F) -> F:
    """`told`, which keeps the signature of `method`: LlamaIndex's decorators are untyped."""
    setattr(told, _BARE, method)
    return cast(F, told)


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, sending an event when it raises. LlamaIndex does so for a stream that breaks, not for a whole call."""
    if inspect.iscoroutinefunction(method):

        async def atold(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            except Exception as error:
                _failed(error)
                raise

        return _named(atold, method)

    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            _failed(error)
            raise

    return _named(told, method)


def _failed(error: Exception) -> None:
    _events.event(ExceptionEvent(exception=error, span_id=active_span_id.get()))


def _named(told: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    wraps(method)(told)
    del told.__dict__["__wrapped__"]  # by which LlamaIndex's decorators know what they have decorated before
    return told


def bare(function: Any) -> Callable[..., Any] | None:
    """The method inside a face: what it does without telling anybody; None for what is no face of ours."""
    found: Callable[..., Any] | None = getattr(function, _BARE, None)
    return found


def straight(cls: type[L]) -> type[L]:
    """A class decorator: its faces take the short way where nobody listens.

    It comes after the class is made, as LlamaIndex puts its spans around the methods while it is.
    """
    spans = get_dispatcher(cls.__module__)  # a subclass that leaves a method alone opens its spans here, too
    for name, told in list(vars(cls).items()):
        if (inner := bare(told)) is not None:
            setattr(cls, name, _either(inner, told, spans))
    return cls


def _either(inner: Callable[..., Any], told: Any, spans: Dispatcher) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(inner):

        @wraps(inner)
        async def aface(self: LLM, *args: Any, **kwargs: Any) -> Any:
            if observed(self, spans) or not args:
                return await told.__get__(self, type(self))(*args, **kwargs)
            if self.rate_limiter is not None:
                await self.rate_limiter.async_acquire()
            return await inner(self, *args, **kwargs)

        return _marked(aface, inner)

    @wraps(inner)
    def face(self: LLM, *args: Any, **kwargs: Any) -> Any:
        if observed(self, spans) or not args:  # LlamaIndex has words of its own for a call without its first argument
            return told.__get__(self, type(self))(*args, **kwargs)
        if self.rate_limiter is not None:
            self.rate_limiter.acquire()
        return inner(self, *args, **kwargs)

    return _marked(face, inner)


def observed(llm: LLM, spans: Dispatcher) -> bool:
    """Whether anybody would hear of a call: by callbacks, by events, or by spans."""
    manager = llm.callback_manager
    if type(manager) is not CallbackManager or manager.handlers:
        return True  # a manager of another class may do anything
    return _hears(_events) or _hears(spans)


_events: Final = get_dispatcher(callbacks.__name__)


def _hears(dispatcher: Dispatcher) -> bool:
    one: Dispatcher | None = dispatcher
    while one is not None:
        for handler in one.event_handlers:
            if type(handler) not in _DEAF:
                return True
        for span in one.span_handlers:
            if type(span) not in _DEAF:
                return True
        one = one.parent if one.propagate else None
    return False
