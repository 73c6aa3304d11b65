"""Numbers within bounds as GBNF. Every number the grammar allows is within them; not every number within is allowed."""

from __future__ import annotations

import math
from fractions import Fraction

__all__ = ["integers", "multiples", "numbers"]

_LONGEST = 18
"""Digits of a whole number without a bound."""
_ENUMERATED = 512
"""Choices that are listed one by one."""


def integers(low: int | None, high: int | None) -> str | None:
    """Whole numbers from `low` to `high`; None if there are none."""
    parts = []
    if low is None or low < 0:
        top = 1 if high is None or high > -1 else -high
        bottom = None if low is None else -low
        if bottom is None or bottom >= top:
            parts.append(f'"-" {_natural(top, bottom)}')
    if high is None or high >= 0:
        bottom = max(0, low or 0)
        if high is None or high >= bottom:
            parts.append(_natural(bottom, high))
    return f"({' | '.join(parts)})" if parts else None


def _natural(low: int, high: int | None) -> str:
    """From `low` to `high`, both at least 0."""
    parts = []
    longest = len(str(low)) if high is None else len(str(high))
    for size in range(len(str(low)), longest + 1):
        least = max(low, 10 ** (size - 1) if size > 1 else 0)
        most = 10**size - 1 if high is None else min(high, 10**size - 1)
        if least <= most:
            parts.append(_digits(str(least), str(most)))
    if high is None:
        parts.append(f"[1-9] [0-9]{{{longest},{max(longest, _LONGEST - 1)}}}")
    return f"({' | '.join(parts)})"


def _digits(low: str, high: str) -> str:
    """The texts of as many digits from `low` to `high`, which are equally long."""
    if low == high:
        return f'"{low}"'
    if set(low) == {"0"} and set(high) == {"9"}:
        return f"[0-9]{{{len(low)}}}" if len(low) > 1 else "[0-9]"
    first, last = low[0], high[0]
    if len(low) == 1:
        return f"[{first}-{last}]"
    if first == last:
        return f'"{first}" {_bracketed(_digits(low[1:], high[1:]))}'
    rest = len(low) - 1
    parts = []
    if set(low[1:]) != {"0"}:
        parts.append(f'"{first}" {_bracketed(_digits(low[1:], "9" * rest))}')
        first = chr(ord(first) + 1)
    end = []
    if set(high[1:]) != {"9"}:
        end.append(f'"{last}" {_bracketed(_digits("0" * rest, high[1:]))}')
        last = chr(ord(last) - 1)
    if first <= last:
        parts.append(f"[{first}-{last}] [0-9]{{{rest}}}")
    return " | ".join(parts + end)


def _bracketed(expression: str) -> str:
    return f"({expression})" if " | " in expression else expression


def numbers(
    low: Fraction | None, high: Fraction | None, *, open_low: bool = False, open_high: bool = False, decimals: int = 6
) -> str | None:
    """Decimal numbers between two bounds, which `open_…` leaves out, with at most so many decimals; None if none."""
    parts = []
    least = None if low is None else math.floor(low) + 1 if open_low else math.ceil(low)
    most = None if high is None else math.ceil(high) - 1 if open_high else math.floor(high)
    if least is None or most is None or least <= most:
        parts += [whole] if (whole := integers(least, most)) else []
    point = f'"." [0-9]{{1,{decimals}}}'
    # k.xxx lies from k up to, but not at, k + 1.
    above = None if high is None else math.floor(high) - 1
    if above is None or above >= max(0, least or 0):
        parts.append(f"{_natural(max(0, least or 0), above)} {point}")
    below = None if low is None else math.floor(-low) - 1
    nearest = 0 if most is None else max(0, -most)
    if below is None or below >= nearest:
        parts.append(f'"-" {_natural(nearest, below)} {point}')
    if low is not None and high is not None and high - low <= 20:
        # A narrow range: also what lies beside its whole numbers, with a fixed number of decimals.
        for places in sorted({1, 2, 3, decimals} & set(range(decimals + 1))):
            scale = 10**places
            first = math.floor(low * scale) + 1 if open_low else math.ceil(low * scale)
            final = math.ceil(high * scale) - 1 if open_high else math.floor(high * scale)
            parts += _scaled(first, final, places)
    return f"({' | '.join(parts)})" if parts else None


def _scaled(first: int, final: int, decimals: int) -> list[str]:
    """The numbers from first / 10^decimals to final / 10^decimals, written with all their decimals."""
    scale, parts = 10**decimals, []
    if first < 0:
        parts += [f'"-" {part}' for part in _scaled(max(1, -final), -first, decimals)]
        first = 0
    for whole in range(first // scale, final // scale + 1 if final >= first else 0):
        least, most = max(first, whole * scale), min(final, whole * scale + scale - 1)
        digits = _digits(str(least - whole * scale).zfill(decimals), str(most - whole * scale).zfill(decimals))
        parts.append(f'"{whole}." {_bracketed(digits)}')
    return parts


def multiples(step: int, low: int | None, high: int | None) -> str | None:
    """Multiples of `step` within bounds: all of them where that can be said, else those nearest to 0, or listed.

    None where there are none, or more than can be listed.
    """
    if (low is None and high is None) or (low in (0, step) and high is None):
        zeros = len(str(step)) - len(str(step).rstrip("0"))
        last = {1: "[0-9]", 2: "[02468]", 5: "[05]"}.get(int(str(step).rstrip("0")))
        if last is not None:
            tail = f' "{"0" * zeros}"' if zeros else ""
            inner = f"[1-9] [0-9]{{0,12}} {last}{tail}"
            ones = [str(digit * 10**zeros) for digit in range(1, 10) if (digit * 10**zeros) % step == 0]
            found = "(" + " | ".join([inner, *(f'"{n}"' for n in ones)]) + ")"
            if low is None:
                return f'("0" | "-"? {found})'
            return f'("0" | {found})' if low == 0 else found
    start = -(-(0 if low is None and (high is None or high >= 0) else low if low is not None else high) // step)  # type: ignore[operator]  # one of them is a number there
    final = start + _ENUMERATED - 1 if high is None else high // step
    if not 0 <= final - start < _ENUMERATED:
        return None
    return "(" + " | ".join(f'"{n * step}"' for n in range(start, final + 1)) + ")"
