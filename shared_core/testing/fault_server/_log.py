"""What the server saw: one `SeenRequest` for each request, in the order they arrived."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shared_core.testing.fault_server._faults import WireName
from shared_core.testing.fault_server._wires.base import Ask, Operation

Outcome = Literal["pending", "answered", "closed", "reset", "client-closed", "stopped", "script-error"]
"""How it ended: `answered` (all of the scripted bytes, whatever the status), `closed` and `reset` (by the script),
`client-closed` (the client left first), `stopped` (the server did), `script-error` (an answer function raised)."""

_SECRETS = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "x-goog-iam-authorization-token",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """One request as the server saw it. Times are `time.monotonic()` seconds."""

    index: int
    """0 for the first request since the server was made; `clear()` does not start it again."""
    connection: int
    """The number of the connection it came on: two requests with the same one shared a kept-alive connection."""
    wire: WireName
    operation: Operation
    method: str
    path: str
    """With the query; an API key in it is redacted."""
    model: str
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case; keys and tokens are redacted to their last four characters."""
    body: Mapping[str, Any] = field(repr=False)
    streamed: bool
    prompt: str
    """The text of the last user message."""
    said: str = field(repr=False)
    """The text of the last assistant message, empty if there is none."""
    tools: tuple[str, ...] = field(repr=False)
    """The names of the tools offered."""
    step: str
    """The script's step that was served: `"ok"`, `"503"`, `"cut"`, ..."""
    received_at: float = field(repr=False)
    finished_at: float | None = field(repr=False)
    """When it was over; the log knows it before the client does."""
    status: int | None
    """The HTTP status that was sent, None if none was."""
    outcome: Outcome
    client_closed_at: float | None = field(repr=False)
    """When the client hung up before the server had finished, else None."""
    bytes_sent: int

    @property
    def name(self) -> str:
        """Step and what became of it, for a table or a log line."""
        return f"{self.step} → {self.outcome}"


class Entry:
    """The server's own, mutable note of a request; `seen()` is what users get."""

    __slots__ = (
        "ask", "bytes_sent", "client_closed_at", "connection", "finished_at", "headers", "index", "outcome", "path",
        "received_at", "status", "step",
    )  # fmt: skip

    def __init__(
        self, *, index: int, connection: int, ask: Ask, path: str, headers: Mapping[str, str], received_at: float
    ) -> None:
        self.index = index
        self.connection = connection
        self.ask = ask
        self.path = path
        self.headers = headers
        self.received_at = received_at
        self.step = ""
        self.status: int | None = None
        self.outcome: Outcome = "pending"
        self.finished_at: float | None = None
        self.client_closed_at: float | None = None
        self.bytes_sent = 0

    def seen(self) -> SeenRequest:
        ask = self.ask
        return SeenRequest(
            index=self.index,
            connection=self.connection,
            wire=ask.wire,
            operation=ask.operation,
            method=ask.method,
            path=_redacted_path(self.path),
            model=ask.model,
            headers={name: _redacted(value) if name in _SECRETS else value for name, value in self.headers.items()},
            body=ask.body,
            streamed=ask.streamed,
            prompt=ask.prompt,
            said=ask.said,
            tools=ask.tools,
            step=self.step,
            received_at=self.received_at,
            finished_at=self.finished_at,
            status=self.status,
            outcome=self.outcome,
            client_closed_at=self.client_closed_at,
            bytes_sent=self.bytes_sent,
        )


def _redacted(value: str) -> str:
    return "…" + value[-4:] if len(value) > 8 else "…"


def _redacted_path(path: str) -> str:
    if "key=" not in path:
        return path
    front, _, query = path.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    shown = [f"{name}{eq}{_redacted(value) if name == 'key' else value}" for name, eq, value in pairs]
    return front + "?" + "&".join(shown)


def line(seen: SeenRequest) -> str:
    """One line of a live log."""
    mode = "stream" if seen.streamed else "whole"
    status = "---" if seen.status is None else str(seen.status)
    what = seen.model or seen.operation
    return f"#{seen.index:<4} {seen.wire:<9} {mode:<6} {what:<24} {status} {seen.name} ({seen.bytes_sent} B)"


def table(requests: Iterable[SeenRequest]) -> str:
    """The log as an HTML table, for a notebook."""
    columns = ("#", "wire", "model", "mode", "prompt", "step", "status", "outcome", "ms", "bytes")
    rows = []
    for seen in requests:
        took = "" if seen.finished_at is None else f"{(seen.finished_at - seen.received_at) * 1000:.1f}"
        prompt = seen.prompt if len(seen.prompt) <= 60 else seen.prompt[:57] + "…"
        mode = "stream" if seen.streamed else "whole"
        model = seen.model or seen.path
        cells = (
            seen.index,
            seen.wire,
            model,
            mode,
            prompt,
            seen.step,
            seen.status or "—",
            seen.outcome,
            took,
            seen.bytes_sent,
        )
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "<tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
