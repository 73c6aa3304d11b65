"""A wrapped model as the router calls it: without its SDK's retries, and on connections of the running event loop."""

from __future__ import annotations

import copy
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from shared_core.providers.transport import PerLoop, with_connections_of

__all__ = ["Quiet", "address_of", "families"]

_connections: PerLoop[dict[Any, Any]] = PerLoop(dict)
"""The HTTP clients of each loop, shared by the models that would share one of LangChain's."""


def families(model: object) -> frozenset[str]:
    """The packages that the model's class and its bases are from."""
    return frozenset(base.__module__.partition(".")[0] for base in type(model).__mro__)


def address_of(model: BaseChatModel) -> str | None:
    """Where the model is asked, as its class was told; None where that was left to its SDK."""
    for name in ("openai_api_base", "azure_endpoint", "anthropic_api_url", "base_url", "endpoint"):
        url = getattr(model, name, None)
        if isinstance(url, str) and url:
            return url
    return None


class Quiet:
    """The copies of one model that the router calls. The caller's model is not changed.

    The router owns retries, and two owners multiply. LangChain shares its async connections between all event loops
    of a process, and a call that picks up a connection of a closed loop fails. Here each loop has connections of its
    own. An HTTP client that the caller brought stays in use.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model
        packages = families(model)
        self._openai = "langchain_openai" in packages and getattr(model, "root_client", None) is not None
        self._anthropic = "langchain_anthropic" in packages and isinstance(getattr(model, "max_retries", None), int)
        self._for_threads: BaseChatModel | None = None
        self._on_loops: PerLoop[BaseChatModel] = PerLoop(self._copy_for_loop)

    def in_thread(self) -> BaseChatModel:
        """The copy for sync calls."""
        if self._for_threads is None:
            self._for_threads = self._copy()
        return self._for_threads

    def on_loop(self) -> BaseChatModel:
        """The copy for the running event loop."""
        return self._on_loops.get() if self._openai or self._anthropic else self._model

    def _copy(self) -> BaseChatModel:
        model = self._model
        if self._openai:
            quiet = copy.copy(model)
            for client, root in (("client", "root_client"), ("async_client", "root_async_client")):
                sdk = getattr(model, root, None)
                if sdk is not None:
                    _called_by(quiet, client, root, sdk.with_options(max_retries=0))
            return quiet
        if self._anthropic:
            quiet = model.model_copy(update={"max_retries": 0})
            for cached in ("_client", "_async_client"):  # built from the settings when first used
                quiet.__dict__.pop(cached, None)
            return quiet
        return model

    def _copy_for_loop(self) -> BaseChatModel:
        quiet: Any = self._copy()
        mine = _connections.get()
        if self._anthropic:
            proxy = getattr(quiet, "anthropic_proxy", None)
            quiet.__dict__["_async_client"] = with_connections_of(mine, quiet._async_client, proxy)
        elif (sdk := getattr(quiet, "root_async_client", None)) is not None:
            sdk = with_connections_of(mine, sdk, getattr(quiet, "openai_proxy", None))
            _called_by(quiet, "async_client", "root_async_client", sdk)
        return quiet  # type: ignore[no-any-return]  # a copy of a `BaseChatModel`


def _called_by(model: BaseChatModel, client: str, root: str, sdk: Any) -> None:
    """Make an SDK client the one that LangChain's OpenAI class calls."""
    setattr(model, root, sdk)
    setattr(model, client, sdk.chat.completions)
