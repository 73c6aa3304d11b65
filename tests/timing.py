"""What tests need on a machine that may be busy elsewhere: waiting until something holds, and measuring time."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

LONG_S = 30.0
"""How long a thing may take that takes a moment: only what never comes is missed by it."""
_PAUSES_S = (0.2, 1.0, 3.0)
"""Before the second run of a test that measures time, the third and the fourth."""


def until(holds: Callable[[], Any], within_s: float = LONG_S) -> None:
    """Wait until `holds()`.

    Raises:
        AssertionError: it does not within `within_s` seconds.
    """
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not so after {within_s} s"
        time.sleep(0.001)


async def auntil(holds: Callable[[], Any], within_s: float = LONG_S) -> None:
    """`until`, while the event loop goes on."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not so after {within_s} s"
        await asyncio.sleep(0.001)


def timed(test: Any) -> Any:
    """A test that measures time has failed when it fails four times, with longer and longer pauses between.

    A machine that is busy elsewhere delays one run and not each; what is slow by itself is slow each time. A test
    that can wait for a condition needs none of this. It runs with the same fixtures, so it sets up its own state.
    """
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def atry(*args: Any, **kwargs: Any) -> None:
            for pause_s in _PAUSES_S:
                try:
                    return await test(*args, **kwargs)
                except (Exception, pytest.fail.Exception) as error:
                    _tell(test, error)
                await asyncio.sleep(pause_s)
            return await test(*args, **kwargs)

        return atry

    @functools.wraps(test)
    def attempt(*args: Any, **kwargs: Any) -> None:
        for pause_s in _PAUSES_S:
            try:
                return test(*args, **kwargs)
            except (Exception, pytest.fail.Exception) as error:
                _tell(test, error)
            time.sleep(pause_s)
        return test(*args, **kwargs)

    return attempt


def _tell(test: Any, error: BaseException) -> None:
    warnings.warn(f"{test.__name__} measures time, failed, and runs again: {error!r:.300}", stacklevel=3)
