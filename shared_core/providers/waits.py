"""What a server says of waits and limits: `retry_after_s` (headers, bodies, words) and `windows` (headers)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from shared_core.providers.error_body import read_body
from shared_core.resilience.rate_limit import Window

__all__ = ["LONGEST_WAIT_S", "retry_after_s", "windows"]

LONGEST_WAIT_S = 7 * 86_400.0
"""A server that asks for more than a week is not believed."""

_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in ("d", "h", "m(?!s)", "s", "ms")))
_AGAIN = re.compile(
    r"(?:try|retry|come back|available)(?: your request)?(?: again)? (?:in|after) (?:about )?"
    r"(?:([\d.]+) ?(ms|milliseconds?|s|sec\w*|m|min\w*|h|hours?)?(?![\w.]*\d)\b|((?:[\d.]+(?:ms|[dhms]))+))",
    re.IGNORECASE,
)
_REMAINING = re.compile(r"^(?P<head>(?:x-|anthropic-)?ratelimit-)(?:(?P<dim>[\w-]+)-)?remaining(?P<tail>-[\w-]+)?$")


def _sane(seconds: float | None) -> float | None:
    if seconds is None or not math.isfinite(seconds) or not 0 <= seconds <= LONGEST_WAIT_S:
        return None
    return seconds


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip())
    except ValueError:
        return None


def _duration_s(text: Any) -> float | None:
    """'6m0s', '120ms', '1h2m', '37s' in seconds; None when it is none of these."""
    text = str(text).strip().lower()
    found = _DURATION.fullmatch(text)
    if not text or found is None or not any(found.groups()):
        return None
    days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000


def _date_s(text: Any, headers: Mapping[str, str], now: float | None) -> float | None:
    """Seconds until a date (HTTP or RFC 3339), by the server's own clock so that ours may be wrong."""
    at = _date(text)
    if at is None:
        return None
    base = _date(headers.get("date"))
    if base is None:
        base = time.time() if now is None else now
    return at - base


def _date(text: Any) -> float | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            at = parsedate_to_datetime(text)
        except (ValueError, TypeError):  # what the standard library raises for a date that is none
            return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _reset_s(value: str, headers: Mapping[str, str], now: float | None) -> float | None:
    """A rate limit's reset: a duration (OpenAI), an RFC 3339 date (Anthropic), an epoch in seconds or milliseconds."""
    number = _number(value)
    if number is None:
        seconds = _duration_s(value)
        return _date_s(value, headers, now) if seconds is None else seconds
    if number < 1e9:
        return number
    base = _date(headers.get("date"))
    if base is None:
        base = time.time() if now is None else now
    return (number / 1000 if number > 1e11 else number) - base


def retry_after_s(
    headers: Mapping[str, str], body: Any = None, *, message: str = "", now: float | None = None, resets: bool = True
) -> float | None:
    """How long the server asks to wait, in seconds; None when it does not say, or says nonsense.

    Read in this order: `retry-after-ms`, `retry-after` (float seconds or a date, relative to the response's own
    `Date`), Gemini's `RetryInfo`, the reset of whatever dimension has nothing remaining, and last the text 'try again
    in 41.7s'.
    NaN, infinity, negative figures and more than a week are passed over as if they were not there.

    Args:
        headers: of the response, any case.
        body: the error body, in any of the shapes SDKs keep it in.
        message: the error's text when there is no body.
        now: wall-clock seconds, used only where the response carries no `Date`.
        resets: whether exhausted dimensions and text count; only an error of the limits class should ask for them.
    """
    lower = {str(k).lower(): str(v) for k, v in headers.items()}
    millis = _number(lower.get("retry-after-ms"))
    if (wait := _sane(None if millis is None else millis / 1000)) is not None:
        return wait
    if (text := lower.get("retry-after")) is not None:
        number = _number(text)
        if (wait := _sane(_date_s(text, lower, now) if number is None else number)) is not None:
            return wait
    said = read_body(body)
    infos = [d for d in said.details if str(d.get("@type", "")).endswith("RetryInfo")]
    for info in infos:
        if (wait := _sane(_duration_s(info.get("retryDelay", "")))) is not None:
            return wait
    if not resets:
        return None
    waits = [w.reset_s for w in windows(lower, now) if w.remaining == 0 and w.reset_s is not None]
    if waits:
        return max(waits)
    again = _AGAIN.search(said.message or message)
    if again is None:
        return None
    if again[3]:
        return _sane(_duration_s(again[3]))
    number = _number(again[1].rstrip("."))
    unit = (again[2] or "s").lower()
    scale = 0.001 if unit.startswith(("ms", "milli")) else {"s": 1.0, "m": 60.0, "h": 3600.0}[unit[0]]
    return _sane(None if number is None else number * scale)


def windows(headers: Mapping[str, str], now: float | None = None) -> tuple[Window, ...]:
    """What a response's headers say of the vendor's rate limits: one `Window` for each dimension they name.

    Read are `x-ratelimit-{limit,remaining,reset}-{dimension}` (OpenAI and those that follow it; resets are durations
    such as '6m0s' or '1ms', seconds, or an epoch), `anthropic-ratelimit-{dimension}-{limit,remaining,reset}` (resets
    are RFC 3339 dates, relative to the response's own `Date`), and the same without a dimension, which is requests.
    Figures that are none, negative, infinite or further off than a week are passed over.

    Args:
        headers: of a response, well or not, any case.
        now: wall-clock seconds, used only where the response carries no `Date`.
    """
    if not any("ratelimit" in name.lower() for name in headers):
        return ()
    lower = {str(k).lower(): str(v) for k, v in headers.items()}
    told = []
    for name, value in lower.items():
        found = _REMAINING.match(name)
        remaining = None if found is None else _number(value)
        if found is None or remaining is None or not 0 <= remaining < math.inf:
            continue
        dim, tail = found["dim"], found["tail"] or ""
        head = f"{found['head']}{dim + '-' if dim else ''}"
        limit = _number(lower.get(f"{head}limit{tail}"))
        reset = lower.get(f"{head}reset{tail}")
        told.append(
            Window(
                (dim or tail.lstrip("-") or "requests").removesuffix("-minute"),
                remaining,
                limit if limit is not None and 0 < limit < math.inf else None,
                None if reset is None else _sane(_reset_s(reset, lower, now)),
            )
        )
    return tuple(told)
