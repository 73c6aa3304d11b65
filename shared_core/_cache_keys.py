"""One request as the cache sees it: what is read and kept of it, under which keys, and with whom it may be shared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared_core._identity import identity_of
from shared_core.cache.keys import Unkeyable, digest, form, native_form, request_form
from shared_core.chat.request import CacheUse, ChatRequest
from shared_core.routing.execution import Execution
from shared_core.routing.planner import Plan, Route

if TYPE_CHECKING:
    from shared_core.routing.relay import Relay

__all__ = ["Asked", "Keys"]

_log = logging.getLogger("llm_fallback.cache")

_ROTATING = frozenset({"round_robin", "weighted", "performance"})
"""Strategies under which it is all the same which of the targets answers."""


@dataclass(slots=True)
class Asked:
    """One request, as the cache sees it."""

    execution: Execution
    plan: Plan
    relay: Relay
    base: bytes | None = None
    """The digest of what the request says; None when it cannot be told by value, or need not be."""
    tenant: Any = None
    """Whose it is, in canonical form."""
    model: str | None = None
    """The model that takes the place of a target's own."""
    reads: bool = False
    keeps: bool = False
    native: bytes | None = None
    keys: dict[Route, bytes | None] = field(default_factory=dict)
    seen: int = -1
    """How many answers had been kept when it was last looked for."""


class Keys:
    """Tells the requests of one router apart.

    `tenant` says whose a request is: a name, a function of the request, or None where that makes no difference.
    `keeps` is whether there is a cache, `shares` whether identical requests at the same time are one, `routes` what the
    router's targets are now, and `odd` is called for each request that cannot be told by value.
    """

    def __init__(
        self,
        tenant: str | Callable[[ChatRequest], str | None] | None,
        *,
        keeps: bool,
        shares: bool,
        routes: Callable[[], Sequence[Route]],
        odd: Callable[[], object],
    ) -> None:
        self._tenant, self._keeps, self._routes, self._odd = tenant, keeps, routes, odd
        self._idle = not (keeps or shares)
        self._identities: dict[tuple[Route, str | None], bytes | None] = {}

    def asked(self, execution: Execution, plan: Plan, relay: Relay, use: CacheUse) -> Asked:
        """The request of `execution`, which uses the cache as `use` says."""
        if use is False or self._idle:
            return Asked(execution, plan, relay)
        request = execution.request
        tenant: Any = None
        try:
            if self._tenant is not None and (tenant := self._whose(request)) is None:
                raise Unkeyable("nobody says whose request this is")
            base = digest(request_form(request))
        except (Unkeyable, RecursionError) as error:
            execution.cache = "uncacheable"
            self._odd()
            _log.debug("request %s is not cached: %s", execution.id, error)
            return Asked(execution, plan, relay)
        model = request.model
        if model is not None and any(model in (r.name, r.target.model) for r in self._routes()):
            model = None  # it names a target of ours, and says whom to ask first
        return Asked(execution, plan, relay, base, tenant, model, self._keeps and use != "refresh", self._keeps)

    def _whose(self, request: ChatRequest) -> Any:
        if isinstance(self._tenant, str) or self._tenant is None:
            return self._tenant
        try:
            told = self._tenant(request)
        except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
            _log.warning("requests are not cached: tenant= failed: %s: %s", type(error).__name__, error)
            return None
        return form(told, "tenant")

    def unknown(self, asked: Asked) -> Sequence[Route]:
        """The targets of which it is not known yet what tells their answers from others', or that nothing does."""
        known, model = self._identities, asked.model
        return [route for route in asked.plan.routes if (route, model) not in known]

    def of(self, asked: Asked, route: Route) -> bytes | None:
        """The key of this target's answer; None when it cannot be told from others."""
        try:
            return asked.keys[route]
        except KeyError:
            pass
        try:
            who = self._identities[route, asked.model]
        except KeyError:  # nobody has asked it yet, or its file is still to come
            return None
        key: bytes | None = None
        if who is not None and asked.base is not None:
            told: Any = b""
            if route.target.provider is not None:
                told = self._of_wrapped(asked, route)
            if told is not None:
                key = digest((asked.base, asked.tenant, who, told))
        asked.keys[route] = key
        return key

    def _of_wrapped(self, asked: Asked, route: Route) -> Any:
        """What a ready provider reads of the request beside what is in it for all, and settings it may have changed."""
        native = None
        if asked.execution.request.native is not None and (native := self._native(asked)) is None:
            return None
        settings = getattr(route.provider, "settings", None)  # an optional part of the protocol
        if settings is None:
            return native or b""
        try:
            return (native, form(settings(), "settings"))
        except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
            _log.debug("answers of %s are not cached: %s: %s", route.name, type(error).__name__, error)
            return None

    def _native(self, asked: Asked) -> bytes | None:
        if asked.native is None:
            try:
                asked.native = digest(native_form(asked.execution.request.native))
            except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
                asked.native = b""
                _log.debug("request %s is not cached for wrapped models: %s", asked.execution.id, error)
        return asked.native or None

    def of_flight(self, asked: Asked, *, alone: bool) -> Any:
        """What identical requests share: what is asked, and whom it may be asked of. Nobody shares with one `alone`."""
        if alone:
            return asked.execution.id
        plan = asked.plan
        routes = plan.routes
        native = None
        if asked.execution.request.native is not None and any(r.target.provider is not None for r in routes):
            native = self._native(asked)
            if native is None:
                return asked.execution.id
        order: Any = routes if plan.strategy not in _ROTATING else frozenset(routes)
        return (asked.base, asked.tenant, native, plan.chain, plan.strategy, order, asked.reads)

    def learn(self, routes: Sequence[Route], model: str | None) -> None:
        """Note what tells each target's answers from any other's; nothing while that is not known. May read a file."""
        if len(self._identities) > 4 * len(self._routes()) + 64:
            self._identities.clear()  # of targets that are long gone
        for route in routes:
            try:
                told = identity_of(route, model)
                who = None if told is None else digest(told)
            except (Unkeyable, RecursionError) as error:
                _log.info("answers of %s are not cached: %s", route.name, error)
                self._identities[route, model] = None
            except Exception as error:  # noqa: BLE001  # a cache is never the reason why a request fails
                _log.warning("answers of %s are not cached: %s: %s", route.name, type(error).__name__, error)
                self._identities[route, model] = None
            else:
                if who is not None:  # else its file is still to come
                    self._identities[route, model] = who
