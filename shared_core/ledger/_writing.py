"""What one transaction writes: rows, their names, and what budgets count. It says nothing before it is on disk."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shared_core.chat.events import Usage
from shared_core.ledger._rows import ADD, CLOSE, COLUMNS, METER, entry_of, meter_row, micros
from shared_core.ledger.corrections import correction
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.schema import PURPOSES, STATES, Kind
from shared_core.ledger.store import Crossed, Draft, Exhausted, Notice, Overcharged, Ticket
from shared_core.resilience.budget import EXHAUSTED, Claim, Denial, MeterKey, Reading, decide, due, hard_limit

__all__ = ["Writing", "so_far"]

_log = logging.getLogger("llm_fallback.ledger")

_SHARE = 1_000_000
_KEPT = 50_000
"""Numbers of texts, sets of tags and meters that are remembered at most: users are without end."""


class Writing:
    """Performs what is asked within a transaction that somebody else begins and ends, and remembers between them which
    number each text and meter has. One thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.owner = 0
        """This process's number in the file."""
        self._names: dict[tuple[int, str], int] = {}
        self._sets: dict[tuple[str, ...], int] = {}  # tags as they were given: in any order
        self._meter_ids: dict[MeterKey, int] = {}
        self._live: dict[int, tuple[Reading, int | None]] = {}  # what meters show within one transaction
        self._told: set[tuple[int, int, float]] = set()
        self._fresh: list[Callable[[], object]] = []  # undoes what the caches learned in a transaction that failed
        self._born: dict[Ticket, int] = {}  # rows of tickets that are out already: told when they are on disk
        self._notices: list[tuple[Callable[[Notice], None], Notice]] = []

    def begin(self) -> None:
        """Others may have written since, or something has that is not done here: look at meters anew."""
        self._live.clear()

    def committed(self) -> None:
        """All of it is on disk."""
        for ticket, number in self._born.items():
            ticket.id = number
        self._born.clear()
        self._fresh = []

    def undone(self) -> None:
        """None of it is."""
        for undo in self._fresh:
            undo()
        self._fresh = []
        self._born.clear()
        self._notices = []

    def notices(self) -> list[tuple[Callable[[Notice], None], Notice]]:
        """What observers are to be told since this was asked last."""
        found, self._notices = self._notices, []
        return found

    def notice(self, tell: Callable[[Notice], None], notice: Notice) -> None:
        """One more for them."""
        self._notices.append((tell, notice))

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(
        self, connection: sqlite3.Connection, draft: Draft, status: EntryStatus, begun: Ticket | None
    ) -> Ticket | Denial:
        """Set the worst case aside and write the row; `begun` is the ticket of an attempt that did not wait for it."""
        bound = None if draft.ask is None else draft.ask.most
        numbers: dict[MeterKey, int] = {}
        if draft.claims:
            limits: dict[MeterKey, int | None] = {}
            readings: dict[MeterKey, Reading] = {}
            for claim in draft.claims:
                key = claim.key
                if key in numbers:
                    continue
                numbers[key] = number = self._meter(connection, claim, draft.at)
                readings[key], limits[key] = self._read(connection, number)
            if begun is None:  # one that waited in memory has begun already
                verdict = decide(draft.ask, draft.claims, readings)
                if isinstance(verdict, Denial):
                    self._warn(connection, draft, numbers, readings, denied=verdict)
                    return verdict
                if bound is not None:
                    bound = verdict.nano
            for key, number in numbers.items():
                if (limit := hard_limit(draft.claims, key)) != limits[key]:
                    connection.execute(
                        "UPDATE meters SET lim = CASE WHEN ?1 IS NULL THEN NULL "
                        "ELSE max(?1, posted + pending + unknown - over) END WHERE id = ?2 AND lim IS NOT "
                        "CASE WHEN ?1 IS NULL THEN NULL ELSE max(?1, posted + pending + unknown - over) END",
                        (limit, number),
                    )
                    self._live.pop(number, None)
        name = self._name
        row = connection.execute(
            "INSERT INTO entries (state, purpose, owner, execution, attempt, at, day, target, provider, model, local, "
            "chain, user, tags, bound) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                STATES[status],
                PURPOSES[draft.purpose],
                self.owner,
                draft.execution,
                micros(draft.at),
                int(draft.at // 86400),
                name(connection, Kind.TARGET, draft.target),
                name(connection, Kind.PROVIDER, draft.provider),
                name(connection, Kind.MODEL, draft.model),
                draft.local,
                name(connection, Kind.CHAIN, draft.chain),
                name(connection, Kind.USER, draft.user),
                self._tags(connection, draft.tags),
                bound,
            ),
        ).lastrowid
        for meter in numbers.values():
            connection.execute("INSERT INTO claims VALUES (?, ?)", (row, meter))
            if bound and (live := self._live.get(meter)) is not None:
                (posted, pending, unknown, over), limit = live
                self._live[meter] = (Reading(posted, pending + bound, unknown, over), limit)
        if begun is not None and row is not None:
            self._born[begun] = row
            return begun
        return Ticket(draft, bound, status, row)

    def _row(self, ticket: Ticket) -> int | None:
        """The number of a ticket's row, also of one that this transaction has written."""
        return self._born.get(ticket) if ticket.id is None else ticket.id

    def dispatch(self, connection: sqlite3.Connection, ticket: Ticket) -> bool:
        """Note that the attempt begins; False when its row was given up."""
        number = self._row(ticket)
        if number is None:
            return False
        connection.execute("UPDATE entries SET state = 1 WHERE id = ? AND state = 0", (number,))
        return True

    def abandon(self, connection: sqlite3.Connection, ticket: Ticket) -> None:
        """Give up what nobody will settle: nothing was sent."""
        self._live.clear()
        number = self._row(ticket)
        if number is not None:
            ticket.status = EntryStatus.VOIDED
            connection.execute(
                "UPDATE entries SET state = 3, cost = 0, outcome = ? WHERE id = ? AND state < 2",
                (self._name(connection, Kind.OUTCOME, "never sent"), number),
            )

    def settle(self, connection: sqlite3.Connection, ticket: Ticket, entry: LedgerEntry) -> None:
        """Close a row."""
        number = self._row(ticket)
        if number is None:
            self.insert(connection, entry)
            return
        changed = connection.execute(CLOSE, (*self._outcome(connection, entry), number)).rowcount
        if not changed:
            _log.error("row %d of %s was settled by somebody else", number, self._path)
            return
        draft = ticket.draft
        if draft.claims:
            numbers = {c.key: self._meter(connection, c, draft.at) for c in draft.claims}
            for number in numbers.values():
                self._settled(number, ticket.bound_nano or 0, entry)
            readings = {key: self._read(connection, number)[0] for key, number in numbers.items()}
            self._warn(connection, draft, numbers, readings)
        if draft.tell is not None and ticket.bound_nano is not None and (entry.cost_nano or 0) > ticket.bound_nano:
            self._notices.append((draft.tell, Overcharged(entry, (entry.cost_nano or 0) - ticket.bound_nano)))

    def _outcome(self, connection: sqlite3.Connection, entry: LedgerEntry) -> tuple[Any, ...]:
        """What is known of a row when its attempt is over, in the order of `CLOSE`."""
        usage, name = entry.usage, self._name
        return (
            STATES[entry.status],
            PURPOSES[entry.purpose],
            entry.attempt,
            name(connection, Kind.MODEL, entry.model),
            entry.cost_nano,
            name(connection, Kind.PRICE, entry.price_version),
            usage.input_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.output_tokens,
            usage.reasoning_tokens,
            usage.estimated,
            int(entry.latency_s * 1e6),
            None if entry.first_token_s is None else int(entry.first_token_s * 1e6),
            name(connection, Kind.OUTCOME, entry.outcome),
            name(connection, Kind.ERROR, entry.error_kind),
            entry.response_id,
            entry.request_id,
        )

    def insert(self, connection: sqlite3.Connection, entry: LedgerEntry, day: int | None = None) -> int:
        """Add a row that is settled already; returns its number. `day` is that of the row which it corrects."""
        name = self._name
        row = connection.execute(
            ADD,
            (
                *self._outcome(connection, entry),
                entry.execution,
                micros(entry.at),
                name(connection, Kind.TARGET, entry.target),
                name(connection, Kind.PROVIDER, entry.provider),
                entry.local,
                name(connection, Kind.CHAIN, entry.chain),
                name(connection, Kind.USER, entry.user),
                self._tags(connection, entry.tags),
                entry.bound_nano,
                entry.corrects,
                name(connection, Kind.REASON, entry.reason),
                self.owner,
                int(entry.at // 86400) if day is None else day,
            ),
        ).fetchone()
        return int(row[0])

    def correct(
        self,
        connection: sqlite3.Connection,
        number: int,
        cost_nano: int,
        reason: str,
        usage: Usage | None,
        at: float,
    ) -> LedgerEntry | None:
        """As `LedgerStore.correct`."""
        row = connection.execute(f"SELECT {', '.join(COLUMNS)}, day FROM entries WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise LookupError(f"there is no row {number}")
        names = dict(connection.execute("SELECT id, name FROM names"))
        entry, day = entry_of(row[:-1], names), row[-1]
        earlier = [
            entry_of(one, names)
            for one in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entries WHERE corrects = ?", (number,))
        ]
        found = correction(entry, earlier, cost_nano, reason, usage, at)
        if found is None:
            return None
        return replace(found, id=self.insert(connection, found, day))

    # ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, connection: sqlite3.Connection, kind: int, text: str | None) -> int | None:
        """The number of a text; None of none."""
        if text is None:
            return None
        key = (kind, text)
        number = self._names.get(key)
        if number is None:
            row = connection.execute("SELECT id FROM names WHERE kind = ? AND name = ?", key).fetchone()
            if row is None:
                row = connection.execute("INSERT INTO names (kind, name) VALUES (?, ?) RETURNING id", key).fetchone()
            if len(self._names) > _KEPT:
                self._names.clear()
            self._names[key] = number = int(row[0])
            self._fresh.append(lambda: self._names.pop(key, None))
        return number

    def _tags(self, connection: sqlite3.Connection, tags: Sequence[str]) -> int | None:
        """The number of a set of tags."""
        if not tags:
            return None
        given = tuple(tags)
        found = self._sets.get(given)
        if found is not None:
            return found
        text = json.dumps(sorted(set(tags)), ensure_ascii=False)
        known = (Kind.TAGS, text) in self._names
        number = self._name(connection, Kind.TAGS, text)
        if not known:
            for tag in set(tags):
                one = self._name(connection, Kind.TAG, tag)
                connection.execute("INSERT OR IGNORE INTO tag_of VALUES (?, ?)", (number, one))
        if number is not None:
            if len(self._sets) > _KEPT:
                self._sets.clear()
            self._sets[given] = number
            self._fresh.append(lambda: self._sets.pop(given, None))
        return number

    # ── meters ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _meter(self, connection: sqlite3.Connection, claim: Claim, at: float) -> int:
        """The number of a claim's meter. A new one takes in what the ledger already holds of its window, from before
        meters of its kind were kept.
        """
        key = claim.key
        number = self._meter_ids.get(key)
        if number is not None:
            return number
        told = meter_row(key)
        row = connection.execute(f"SELECT id FROM meters WHERE {METER}", told).fetchone()
        if row is None:
            kind = (key.scope, claim.budget.of or "", key.window, key.timezone)
            connection.execute("INSERT OR IGNORE INTO metered VALUES (?, ?, ?, ?, ?)", (*kind, micros(at)))
            (since,) = connection.execute(
                "SELECT since FROM metered WHERE scope = ? AND of = ? AND window = ? AND timezone = ?", kind
            ).fetchone()
            start, end = micros(key.start), since if claim.resets_at is None else min(since, micros(claim.resets_at))
            posted, unknown = so_far(connection, key, start, end) if start < end else (0, 0)
            row = connection.execute(
                "INSERT INTO meters (scope, of, window, timezone, start, posted, unknown) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
                (*told, posted, unknown),
            ).fetchone()
        if len(self._meter_ids) > _KEPT:
            self._meter_ids.clear()
        self._meter_ids[key] = number = int(row[0])
        self._fresh.append(lambda: self._meter_ids.pop(key, None))
        return number

    def _read(self, connection: sqlite3.Connection, number: int) -> tuple[Reading, int | None]:
        """What a meter shows, and the limit it has in the file: looked up once in a transaction, then kept in step with
        what the file's own triggers do.
        """
        live = self._live.get(number)
        if live is None:
            *figures, limit = connection.execute(
                "SELECT posted, pending, unknown, over, lim FROM meters WHERE id = ?", (number,)
            ).fetchone()
            live = self._live[number] = (Reading(*figures), limit)
        return live

    def _settled(self, number: int, bound: int, entry: LedgerEntry) -> None:
        live = self._live.get(number)
        if live is None:
            return
        (posted, pending, unknown, over), limit = live
        cost = entry.cost_nano
        if cost is not None:
            posted, over = posted + cost, over + max(0, cost - bound)
        elif entry.status is EntryStatus.UNKNOWN:
            unknown += bound
        self._live[number] = (Reading(posted, pending - bound, unknown, over), limit)

    def _warn(
        self,
        connection: sqlite3.Connection,
        draft: Draft,
        numbers: Mapping[MeterKey, int],
        readings: Mapping[MeterKey, Reading],
        denied: Denial | None = None,
    ) -> None:
        """Tell each threshold that spending has reached, once in its window, whichever process sees it."""
        for claim in draft.claims:
            reading, number, limit = readings[claim.key], numbers[claim.key], claim.budget.limit_nano
            shares = due(claim, reading.spent)
            if denied is not None and denied.claim is claim and EXHAUSTED not in shares:
                shares = (*shares, EXHAUSTED)
            for share in shares:
                mark = (number, limit, share)
                if mark in self._told:
                    continue
                self._told.add(mark)
                self._fresh.append(partial(self._told.discard, mark))
                told = 2 * _SHARE if share == EXHAUSTED else round(share * _SHARE)
                first = connection.execute(
                    "INSERT OR IGNORE INTO told VALUES (?, ?, ?)", (number, limit, told)
                ).rowcount
                if first and draft.tell is not None:
                    notice = Exhausted(claim, reading) if share == EXHAUSTED else Crossed(claim, share, reading)
                    self._notices.append((draft.tell, notice))


def so_far(connection: sqlite3.Connection, key: MeterKey, start: int, end: int) -> tuple[int, int]:
    """What settled rows from `start` to `end` (microseconds) add up to: posted, and unknown."""
    where, parameters = "", []
    if key.scope in ("target", "user"):
        where = f" AND e.{key.scope} = (SELECT id FROM names WHERE kind = ? AND name = ?)"
        parameters = [Kind.TARGET if key.scope == "target" else Kind.USER, key.of]
    elif key.scope == "tag":
        tag = "(SELECT id FROM names WHERE kind = ? AND name = ?)"
        where = f" AND e.tags IN (SELECT tags FROM tag_of WHERE tag = {tag})"
        parameters = [Kind.TAG, key.of]
    posted, unknown = connection.execute(
        # A correction counts in the window of the row that it corrects.
        "SELECT ifnull(sum(e.cost), 0), ifnull(sum(CASE WHEN e.corrects IS NOT NULL OR (e.state = 4 AND e.cost IS "
        "NULL) THEN ifnull(e.bound, 0) ELSE 0 END), 0) FROM entries e JOIN entries o ON o.id = ifnull(e.corrects, "
        f"e.id) WHERE e.state >= 2 AND e.purpose <> 3 AND o.at >= ? AND o.at < ?{where}",
        (start, end, *parameters),
    ).fetchone()
    return int(posted), int(unknown)
