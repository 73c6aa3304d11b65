"""The sixty-four ways to fail, by number: each with the scripts that are it, on each wire and in each shape.

A kind of the list may be several lines of `oracle` (a malformed chunk is one that is no JSON, one that is no UTF-8, and
one that is split and fine), and is met as that vendor says it. Where a kind cannot befall a shape, it is named with its
reason; 64 kinds x 3 wires x {sync, async} x {whole, streamed} make 768 cells, run or named.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults import matrix, oracle

__all__ = ["KINDS", "CellOfKind", "Kind", "cells", "run"]

Lines = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the sixty-four."""

    number: int
    title: str
    lines: Lines
    """Lines of the oracle."""
    by_wire: Mapping[str, Lines] = field(default_factory=dict)
    """Where a vendor says it in another way."""
    whole: Lines | None = None
    """Of a whole answer, where it is others."""
    why_not_whole: str = ""
    why_not_on: Mapping[str, str] = field(default_factory=dict)
    checked: str = ""
    """It is run, and what is checked is that it cannot befall this client; and why."""


def _kind(number: int, title: str, *lines: str, **more: object) -> Kind:
    return Kind(number=number, title=title, lines=lines, **more)  # type: ignore[arg-type]  # passed on by name


_NO_STREAM = "an answer that does not stream has no events"
_NOT_GEMINI = {"google": "Gemini documents no such limit"}

KINDS: tuple[Kind, ...] = (
    # connect
    _kind(1, "connection refused", "refused"),
    _kind(2, "black hole", "black-hole"),
    _kind(3, "NXDOMAIN", "nxdomain"),
    _kind(4, "DNS slow", "dns-slow"),
    _kind(5, "DNS flap", "dns-flap"),
    _kind(6, "TLS handshake fails", "tls-handshake-fail", "tls-wrong-host"),
    _kind(7, "expired certificate", "tls-expired"),
    _kind(8, "TLS stall", "tls-stall"),
    _kind(9, "RST after accept", "reset-on-accept"),
    _kind(10, "accept, then close", "close-on-accept", "hang-on-accept"),
    # request and headers
    _kind(11, "slow read of our body", "slow-read", "never-read"),
    _kind(12, "RST in mid-upload", "reset-mid-upload"),
    _kind(13, "header drip", "header-drip"),
    _kind(14, "status line is garbage", "garbage-status-line"),
    _kind(15, "giant headers", "giant-headers"),
    _kind(16, "100 Continue and nothing more", "continue-only"),
    _kind(17, "3xx loop", "redirect-loop"),
    _kind(18, "407", "proxy-auth"),
    _kind(19, "stale keep-alive", "stale-keep-alive"),
    # statuses
    _kind(20, "400", "bad-request", "context-overflow"),
    _kind(21, "400 that means a spending limit", "status:400-spend", by_wire={"anthropic": ("spend-limit",)}),
    _kind(22, "400 that means a bad key", "status:400-key", by_wire={"google": ("key-invalid",)}),
    _kind(23, "401", "unauthorized"),
    _kind(24, "402", "payment-required"),
    _kind(25, "403", "forbidden", "region"),
    _kind(26, "404", "model-not-found"),
    _kind(27, "408", "request-timeout"),
    _kind(28, "409", "conflict"),
    _kind(29, "413", "too-large"),
    _kind(30, "422", "unprocessable"),
    _kind(31, "499", "status:499", by_wire={"google": ("cancelled",)}),
    _kind(32, "500", "server-error"),
    _kind(33, "502", "bad-gateway"),
    _kind(34, "503", "unavailable"),
    _kind(35, "504", "gateway-timeout"),
    _kind(36, "520", "edge-520"),
    _kind(37, "529", "status:529", by_wire={"anthropic": ("overloaded",)}),
    # 429
    _kind(38, "429 in seconds", "rate-limit"),
    _kind(39, "429 in milliseconds", "rate-limit-ms", by_wire={"google": ("rate-limit:short",)}),
    _kind(40, "429 with an HTTP date", "rate-limit-date"),
    _kind(41, "429 with a date by a skewed clock", "rate-limit-skewed"),
    _kind(42, "429 with zero, and with less", "rate-limit-zero", "rate-limit-negative"),
    _kind(43, "429 with a huge wait", "rate-limit-huge"),
    _kind(44, "429 with a wait that is no number", "rate-limit-malformed"),
    _kind(45, "429 without a wait", "rate-limit-bare"),
    _kind(46, "429 that means the bill", "billing"),
    _kind(47, "429 per day", "quota-day", by_wire={"anthropic": ("rate-limit:day",)}),
    _kind(48, "429 with limit 0", "rate-limit:none", by_wire={"google": ("quota-zero",)}),
    _kind(49, "429 ramp, slow_down", "ramp", why_not_on=_NOT_GEMINI),
    # body
    _kind(50, "200 with HTML", "html-200"),
    _kind(51, "truncated JSON", "truncated-json"),
    _kind(52, "wrong content-length", "wrong-content-length"),
    _kind(53, "corrupt gzip", "corrupt-gzip"),
    _kind(54, "no choices", "empty-choices"),
    _kind(55, "no usage", "usage-missing"),
    # stream
    _kind(56, "cut before the first event", "cut:first"),
    _kind(57, "cut after n", "cut", "cut:late", whole=("cut",)),
    _kind(58, "error event first", "overload-first", why_not_whole=_NO_STREAM),
    _kind(59, "error event later", "overload-later", why_not_whole=_NO_STREAM),
    _kind(60, "nothing but pings", "ping-drip"),
    _kind(61, "stall", "stall"),
    _kind(62, "no terminal event", "missing-terminal", why_not_whole=_NO_STREAM),
    _kind(63, "malformed or split UTF-8 chunk", "malformed-chunk", "bad-utf8", "split-utf8",
          whole=("bad-utf8", "split-utf8")),
    _kind(64, "HTTP/2 GOAWAY, REFUSED_STREAM", "h2-goaway", "h2-refused-stream",
          checked="the SDK, as it is built here, offers HTTP/1.1 only; the server met it and said so"),
)  # fmt: skip


@dataclass(frozen=True)
class CellOfKind:
    """One kind at one vendor, met in one way. Nothing to run where `why_not` says so."""

    kind: Kind
    vendor: str
    colour: matrix.Colour
    shape: matrix.Shape

    @property
    def id(self) -> str:
        """Number first, so that reports sort."""
        return f"{self.kind.number:02} {self.kind.title}, {self.vendor}, {self.colour}, {self.shape}"

    @property
    def why_not(self) -> str:
        """Why it cannot befall this vendor or shape; empty where it can."""
        if self.shape == "whole" and self.kind.why_not_whole:
            return self.kind.why_not_whole
        return self.kind.why_not_on.get(matrix.VENDORS[self.vendor].wire, "")

    @property
    def lines(self) -> tuple[matrix.Cell, ...]:
        """What is run."""
        if self.why_not:
            return ()
        kind, wire = self.kind, matrix.VENDORS[self.vendor].wire
        named = kind.by_wire.get(wire) or (kind.whole if self.shape == "whole" and kind.whole else kind.lines)
        return tuple(matrix.Cell(line, self.vendor, self.colour, self.shape) for line in named)


def cells(*vendors: str) -> list[CellOfKind]:
    """All of them, of these vendors (each on a wire of its own) or of the three."""
    return [
        CellOfKind(kind, vendor, colour, shape)  # type: ignore[arg-type]  # mypy widens the literals
        for kind, vendor, colour, shape in itertools.product(
            KINDS, vendors or matrix.MAIN, ("sync", "async"), ("whole", "streamed")
        )
    ]


def run(cell: CellOfKind, bench: matrix.Bench) -> list[str]:
    """What was not as the oracle has it."""
    wrong = []
    for line in cell.lines:
        wrong += [f"{line.fault}: {text}" for text in matrix.run_cell(line, bench).mismatches]
    return wrong


def unlisted() -> set[str]:
    """Lines of the oracle that no kind names: ways to fail beyond the sixty-four, which the matrix meets too."""
    named = {line for kind in KINDS for lines in (kind.lines, *kind.by_wire.values()) for line in lines}
    return set(oracle.ORACLE) - named
