"""How other people's fallbacks ask, modelled from what their makers document. Nothing here is their code.

What is modelled, and from where (versions: langchain-core 1.7, openai 2.54, tenacity 9.1, litellm 1.106):

* The OpenAI SDK: "connection errors, 408, 409, 429 and >= 500 are retried 2 times by default, with a short exponential
  backoff" (its README). Half a second, doubled, at most eight, less up to a quarter; a server's Retry-After of up to
  two minutes is obeyed instead, a longer one is not waited for.
* LangChain `with_fallbacks`: each runnable in turn for every call, from the first; the first error is raised when all
  failed. The chat models in it are the SDK's callers, so its retries happen inside.
* LangChain `with_retry`: three attempts for any exception; one second, doubled, plus up to one second.
* LiteLLM's `Router` with `fallbacks=`: one deployment per group, `num_retries` 2, after each failed attempt (the last
  one too) half a second, doubled, plus up to three quarters; a Retry-After of up to a minute plus the same instead. A
  group of one deployment does not cool down (unless 1,000 requests in a minute all fail), except with `allowed_fails`.
* LiteLLM's `Router` with all deployments in one group: simple-shuffle; a deployment cools down for 5 s (or the server's
  Retry-After) on a 429, on a failure that is not to be retried, or when more than half of at least 5 requests of this
  minute failed; while another one is healthy a retry goes out at once, to any that is not cooling, the same perhaps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from shared_core.errors import ErrorKind, FallbackError, ProviderError
from shared_core.testing import SimVendor

__all__ = ["PEERS", "NobodyLeft", "langchain", "litellm_fallbacks", "litellm_group", "sdk_call"]

Chance = Callable[[], float]
Ask = Callable[[], Awaitable[str]]
SDK_TIMEOUT_S = 600.0
"""The SDK's own default; LiteLLM's is longer."""
_LOST = frozenset({ErrorKind.CONNECT, ErrorKind.STREAM_CUT, ErrorKind.TIMEOUT, ErrorKind.MALFORMED})
"""Failures without a status: connection errors to an SDK."""


class NobodyLeft(FallbackError):
    """Every deployment is cooling down."""


def _status(error: ProviderError) -> int:
    """What an SDK would go by; a connection error passes for a 500."""
    return error.status or 500


def _passing(error: ProviderError) -> bool:
    return error.kind in _LOST or _status(error) in (408, 409, 429) or _status(error) >= 500


async def sdk_call(vendor: SimVendor, chance: Chance, *, retries: int = 2) -> str:
    """One call of the OpenAI SDK: up to `retries` more than one packet.

    Raises:
        ProviderError: the last one.
    """
    for attempt in range(retries + 1):
        try:
            return await vendor.call(SDK_TIMEOUT_S)
        except ProviderError as error:
            asked = error.retry_after_s or 0.0
            if attempt == retries or not _passing(error) or asked > 120:
                raise
            await asyncio.sleep(asked if asked > 0 else min(0.5 * 2**attempt, 8.0) * (1 - 0.25 * chance()))
    raise AssertionError("the last attempt returns or raises")


def langchain(*, sdk_retries: int = 2, with_retry: bool = False) -> Callable[[Sequence[SimVendor], Chance], Ask]:
    """`first.with_fallbacks([second, ...])`, each of them with `.with_retry()` if asked for."""

    def policy(vendors: Sequence[SimVendor], chance: Chance) -> Ask:
        async def one(vendor: SimVendor) -> str:
            if not with_retry:
                return await sdk_call(vendor, chance, retries=sdk_retries)
            for attempt in range(3):
                try:
                    return await sdk_call(vendor, chance, retries=sdk_retries)
                except ProviderError:
                    if attempt == 2:
                        raise
                    await asyncio.sleep(2.0**attempt + chance())
            raise AssertionError("the last attempt returns or raises")

        async def ask() -> str:
            first: ProviderError | None = None
            for vendor in vendors:
                try:
                    await one(vendor)
                except ProviderError as error:
                    first = first or error
                else:
                    return vendor.name
            assert first is not None
            raise first

        return ask

    return policy


class _Deployments:
    """Who is cooling down, and the counts that decide it."""

    def __init__(self, now: Callable[[], float], *, alone: bool, allowed_fails: int | None, cooldown_s: float) -> None:
        self._now = now
        self._alone = alone
        self._allowed = allowed_fails
        self._cooldown_s = cooldown_s
        self._until: dict[str, float] = {}
        self._fails: Counter[tuple[str, int]] = Counter()
        self._all: Counter[tuple[str, int]] = Counter()
        self._counted: dict[str, tuple[float, int]] = {}  # for allowed_fails: until when, how many

    def healthy(self, vendors: Sequence[SimVendor]) -> list[SimVendor]:
        now = self._now()
        return [vendor for vendor in vendors if self._until.get(vendor.name, 0.0) <= now]

    def succeeded(self, vendor: SimVendor) -> None:
        self._all[vendor.name, int(self._now() // 60)] += 1

    def failed(self, vendor: SimVendor, error: ProviderError) -> None:
        now = self._now()
        minute = (vendor.name, int(now // 60))
        self._fails[minute] += 1
        self._all[minute] += 1
        if self._cools(vendor, error, minute, now) and self._until.get(vendor.name, 0.0) <= now:
            # A second, longer cooldown keeps the first one's end.
            self._until[vendor.name] = now + (error.retry_after_s or self._cooldown_s)

    def _cools(self, vendor: SimVendor, error: ProviderError, minute: tuple[str, int], now: float) -> bool:
        if error.kind is ErrorKind.CONNECT:
            return False  # connection errors never do
        if self._allowed is not None:
            until, count = self._counted.get(vendor.name, (0.0, 0))
            if until <= now:
                until, count = now + self._cooldown_s, 0
            self._counted[vendor.name] = (until, count + 1)
            return count + 1 > self._allowed
        share = self._fails[minute] / self._all[minute]
        if self._alone:
            return share == 1.0 and self._all[minute] >= 1000
        return _status(error) == 429 or not _passing(error) or (share > 0.5 and self._all[minute] >= 5)


def _litellm_wait(error: ProviderError, attempt: int, chance: Chance) -> float:
    asked, jitter = error.retry_after_s or 0.0, 0.75 * chance()
    return asked + jitter if 0 < asked <= 60 else min(0.5 * 2.0**attempt, 8.0) + jitter


def litellm_fallbacks(
    *, num_retries: int = 2, allowed_fails: int | None = None, cooldown_s: float = 5.0
) -> Callable[[Sequence[SimVendor], Chance], Ask]:
    """`Router(model_list=[one deployment per group], fallbacks=[{first: [second, ...]}])`."""

    def policy(vendors: Sequence[SimVendor], chance: Chance) -> Ask:
        now = asyncio.get_running_loop().time
        known = _Deployments(now, alone=True, allowed_fails=allowed_fails, cooldown_s=cooldown_s)

        async def group(vendor: SimVendor) -> str:
            for attempt in range(num_retries + 1):
                if not known.healthy([vendor]):
                    raise NobodyLeft(f"{vendor.name} is cooling down")
                try:
                    answer = await vendor.call(SDK_TIMEOUT_S)
                except ProviderError as error:
                    known.failed(vendor, error)
                    if not _passing(error) or not known.healthy([vendor]) or not num_retries:
                        raise
                    await asyncio.sleep(_litellm_wait(error, attempt, chance))
                    if attempt == num_retries:
                        raise
                else:
                    known.succeeded(vendor)
                    return answer
            raise AssertionError("the last attempt returns or raises")

        async def ask() -> str:
            last: FallbackError | None = None
            for vendor in vendors:
                try:
                    await group(vendor)
                except FallbackError as error:
                    last = error
                else:
                    return vendor.name
            assert last is not None
            raise last

        return ask

    return policy


def litellm_group(*, num_retries: int = 2, cooldown_s: float = 5.0) -> Callable[[Sequence[SimVendor], Chance], Ask]:
    """`Router(model_list=[all deployments under one name])`: simple-shuffle."""

    def policy(vendors: Sequence[SimVendor], chance: Chance) -> Ask:
        now = asyncio.get_running_loop().time
        known = _Deployments(now, alone=len(vendors) == 1, allowed_fails=None, cooldown_s=cooldown_s)

        async def ask() -> str:
            for attempt in range(num_retries + 1):
                healthy = known.healthy(vendors)
                if not healthy:
                    raise NobodyLeft("every deployment is cooling down")
                vendor = healthy[int(chance() * len(healthy))]
                try:
                    await vendor.call(SDK_TIMEOUT_S)
                except ProviderError as error:
                    known.failed(vendor, error)
                    if attempt == num_retries or not (_passing(error) or _status(error) in (401, 403)):
                        raise
                    if not known.healthy(vendors):
                        raise
                    if len(vendors) == 1:
                        await asyncio.sleep(_litellm_wait(error, attempt, chance))
                else:
                    known.succeeded(vendor)
                    return vendor.name
            raise AssertionError("the last attempt returns or raises")

        return ask

    return policy


PEERS: Mapping[str, Callable[[Sequence[SimVendor], Chance], Ask]] = {
    "LangChain with_fallbacks": langchain(),
    "LangChain with_fallbacks, max_retries=0": langchain(sdk_retries=0),
    "LangChain with_retry, with_fallbacks": langchain(with_retry=True),
    "LiteLLM fallbacks": litellm_fallbacks(),
    "LiteLLM fallbacks, allowed_fails=1": litellm_fallbacks(allowed_fails=1),
    "LiteLLM one group": litellm_group(),
}
"""By the name that the charts use. Those with a setting in their name are what a careful user would choose."""
