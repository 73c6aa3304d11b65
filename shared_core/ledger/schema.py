"""The ledger's tables, as named migrations. A file keeps the names of those it has been through.

    entries        one row per attempt, and one per correction; `state` goes forward, a settled row never changes
    names          texts by number: targets, models, users, sets of tags, ...
    tag_of         which tags a set of tags holds
    owners         the processes that write, so that what a dead one left can be told from what a live one is doing
    meters, claims what budgets count, and which attempt counts towards which meter
    metered        since when a kind of meter has been kept: what is older is taken in from the entries
    told           which warnings have been given
    daily_*        sums per UTC day, kept by triggers in the transaction that settles: of targets, of users, and of
                   each two of target, user and set of tags, so that one user's models need no rows to be read

Money is integer nano-dollars, time is microseconds since the epoch, latencies are microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared_core.ledger.entry import EntryStatus, Purpose

__all__ = [
    "APPLICATION",
    "DISPATCHED",
    "MIGRATIONS",
    "POSTED",
    "PURPOSES",
    "RESERVED",
    "STATES",
    "SUMS",
    "UNKNOWN",
    "VOIDED",
    "Kind",
]

APPLICATION = 0x4C464C47
"""Stands in the file's header: 'LFLG'."""

RESERVED, DISPATCHED, POSTED, VOIDED, UNKNOWN = range(5)
"""`entries.state`. That the tokens of a posted row are our own count is `entries.estimated`."""

STATES = {
    EntryStatus.RESERVED: RESERVED,
    EntryStatus.DISPATCHED: DISPATCHED,
    EntryStatus.POSTED: POSTED,
    EntryStatus.ESTIMATED: POSTED,
    EntryStatus.VOIDED: VOIDED,
    EntryStatus.UNKNOWN: UNKNOWN,
}
PURPOSES = {p: n for n, p in enumerate(Purpose)}
"""`entries.purpose`: 0 call, 1 hedge, 2 probe, 3 cache, 4 correction."""


class Kind:
    """`names.kind`: what a text is. A set of tags is a JSON list, sorted."""

    TARGET, PROVIDER, MODEL, CHAIN, USER, TAGS, TAG, OUTCOME, ERROR, PRICE, REASON = range(11)


_FIRST = """
CREATE TABLE names (
    id   INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (kind, name)
);
INSERT INTO names VALUES (1, 7, 'answered');  -- known to the triggers below
CREATE TABLE tag_of (
    tags INTEGER NOT NULL REFERENCES names (id),
    tag  INTEGER NOT NULL REFERENCES names (id),
    PRIMARY KEY (tags, tag)
) WITHOUT ROWID;

CREATE TABLE owners (
    id      INTEGER PRIMARY KEY,
    boot    TEXT NOT NULL,
    space   TEXT NOT NULL,
    pid     INTEGER NOT NULL,
    started TEXT NOT NULL,
    opened  INTEGER NOT NULL,
    closed  INTEGER
);

CREATE TABLE entries (
    id          INTEGER PRIMARY KEY,
    state       INTEGER NOT NULL CHECK (state BETWEEN 0 AND 4),
    purpose     INTEGER NOT NULL DEFAULT 0,
    owner       INTEGER NOT NULL,
    execution   TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    day         INTEGER NOT NULL,
    target      INTEGER NOT NULL,
    provider    INTEGER NOT NULL,
    model       INTEGER NOT NULL,
    local       INTEGER NOT NULL DEFAULT 0,
    chain       INTEGER,
    user        INTEGER,
    tags        INTEGER,
    bound       INTEGER,
    cost        INTEGER,
    price       INTEGER,
    input       INTEGER NOT NULL DEFAULT 0,
    cached      INTEGER NOT NULL DEFAULT 0,
    cache_write INTEGER NOT NULL DEFAULT 0,
    output      INTEGER NOT NULL DEFAULT 0,
    reasoning   INTEGER NOT NULL DEFAULT 0,
    estimated   INTEGER NOT NULL DEFAULT 0,
    latency     INTEGER NOT NULL DEFAULT 0,
    first_token INTEGER,
    outcome     INTEGER,
    error       INTEGER,
    response_id TEXT,
    request_id  TEXT,
    corrects    INTEGER REFERENCES entries (id),
    reason      INTEGER,
    CHECK (cost IS NULL OR cost >= 0 OR corrects IS NOT NULL),
    CHECK (bound IS NULL OR bound >= 0 OR corrects IS NOT NULL)
);
CREATE INDEX entries_at ON entries (at);
CREATE INDEX entries_open ON entries (owner) WHERE state < 2;
CREATE INDEX entries_response ON entries (response_id) WHERE response_id IS NOT NULL;
CREATE INDEX entries_corrects ON entries (corrects) WHERE corrects IS NOT NULL;

CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'ledger: rows are never deleted; post a correction'); END;
CREATE TRIGGER entries_forward BEFORE UPDATE ON entries WHEN OLD.state >= 2 OR NEW.state < OLD.state
BEGIN SELECT RAISE(ABORT, 'ledger: a settled row never changes; post a correction'); END;

CREATE TABLE meters (
    id       INTEGER PRIMARY KEY,
    scope    TEXT NOT NULL,
    of       TEXT NOT NULL,
    window   TEXT NOT NULL,
    timezone TEXT NOT NULL,
    start    INTEGER NOT NULL,
    lim      INTEGER,
    posted   INTEGER NOT NULL DEFAULT 0,
    pending  INTEGER NOT NULL DEFAULT 0 CHECK (pending >= 0),
    unknown  INTEGER NOT NULL DEFAULT 0,
    over     INTEGER NOT NULL DEFAULT 0,
    UNIQUE (scope, of, window, timezone, start),
    CONSTRAINT within_limit CHECK (lim IS NULL OR posted + pending + unknown <= lim + over)
);
CREATE TABLE metered (
    scope    TEXT NOT NULL,
    of       TEXT NOT NULL,
    window   TEXT NOT NULL,
    timezone TEXT NOT NULL,
    since    INTEGER NOT NULL,
    PRIMARY KEY (scope, of, window, timezone)
) WITHOUT ROWID;
CREATE TABLE claims (
    entry INTEGER NOT NULL REFERENCES entries (id),
    meter INTEGER NOT NULL REFERENCES meters (id),
    PRIMARY KEY (entry, meter)
) WITHOUT ROWID;
CREATE TABLE told (
    meter INTEGER NOT NULL REFERENCES meters (id),
    lim   INTEGER NOT NULL,
    share INTEGER NOT NULL,
    PRIMARY KEY (meter, lim, share)
) WITHOUT ROWID;

CREATE TRIGGER claims_hold AFTER INSERT ON claims BEGIN
    UPDATE meters SET pending = pending + ifnull((SELECT bound FROM entries WHERE id = NEW.entry), 0)
        WHERE id = NEW.meter;
END;
CREATE TRIGGER entries_release AFTER UPDATE ON entries WHEN OLD.state < 2 AND NEW.state >= 2 BEGIN
    UPDATE meters SET
        pending = pending - ifnull(OLD.bound, 0),
        posted  = posted + ifnull(NEW.cost, 0),
        unknown = unknown + CASE WHEN NEW.state = 4 AND NEW.cost IS NULL THEN ifnull(OLD.bound, 0) ELSE 0 END,
        over    = over + max(0, ifnull(NEW.cost, 0) - ifnull(OLD.bound, 0))
        WHERE id IN (SELECT meter FROM claims WHERE entry = NEW.id);
END;
CREATE TRIGGER entries_correct AFTER INSERT ON entries WHEN NEW.corrects IS NOT NULL BEGIN
    UPDATE meters SET
        posted  = posted + ifnull(NEW.cost, 0),
        unknown = unknown + ifnull(NEW.bound, 0),
        over    = over + max(0, ifnull(NEW.cost, 0) + ifnull(NEW.bound, 0))
        WHERE id IN (SELECT meter FROM claims WHERE entry = NEW.corrects);
END;
"""

_REPORTED = "NEW.state = 2 AND NEW.estimated = 0"
_HIT = "NEW.purpose = 3"
_CORRECTION = "NEW.purpose = 4"
_GUESSED = "(NEW.state = 4 OR NEW.estimated = 1)"

SUMS: Mapping[str, str] = {
    # column: what one row adds. The order is that of `analytics.SUMS`.
    "attempts": f"NOT ({_CORRECTION} OR {_HIT})",
    "answers": f"NEW.outcome IS 1 AND NOT ({_CORRECTION} OR {_HIT})",
    "input": f"({_REPORTED}) * NEW.input",
    "output": f"({_REPORTED}) * NEW.output",
    "cached": f"({_REPORTED}) * NEW.cached",
    "cache_write": f"({_REPORTED}) * NEW.cache_write",
    "reasoning": f"({_REPORTED}) * NEW.reasoning",
    "estimated_tokens": f"{_GUESSED} * (NEW.input + NEW.output)",
    "cost": "(NEW.estimated = 0 OR NEW.state = 4) * ifnull(NEW.cost, 0)",
    "estimated_cost": "(NEW.estimated = 1 AND NEW.state <> 4) * ifnull(NEW.cost, 0)",
    "unknown": f"({_CORRECTION} OR (NEW.state = 4 AND NEW.cost IS NULL)) * ifnull(NEW.bound, 0)",
    "unpriced": "NEW.cost IS NULL AND (NEW.state = 2 OR NEW.bound IS NULL)",
    "estimated": "NEW.state = 2 AND NEW.estimated = 1",
    # A correction takes the bound of the unknown row that it resolves back.
    "unknowns": f"(NEW.state = 4) - ({_CORRECTION} AND ifnull(NEW.bound, 0) < 0)",
    "hits": _HIT,
    "saved": f"({_HIT}) * ifnull(NEW.bound, 0)",
    "corrected": f"({_CORRECTION}) * ifnull(NEW.cost, 0)",
    "priced_tokens": f"({_REPORTED} AND NEW.cost IS NOT NULL) * (NEW.input + NEW.output)",
}

_DAILY = {
    # table: (its keys, what they are of a row, where they are from)
    "daily_target": (
        ("target", "provider", "model", "chain"),
        "NEW.target, NEW.provider, NEW.model, ifnull(NEW.chain, 0)",
        " WHERE true",
    ),
    "daily_user": (("user",), "NEW.user", " WHERE NEW.user IS NOT NULL"),
    "daily_tag": (("tag",), "tag", " FROM tag_of WHERE tags = NEW.tags"),
}
"""Sums for each UTC day. A correction counts on the day of the row it corrects."""

_CROSSED = {
    "daily_target_user": (
        ("user", "target", "provider", "model", "chain"),
        "NEW.user, NEW.target, NEW.provider, NEW.model, ifnull(NEW.chain, 0)",
        " WHERE NEW.user IS NOT NULL",
    ),
    "daily_target_tags": (
        ("tags", "target", "provider", "model", "chain"),
        "NEW.tags, NEW.target, NEW.provider, NEW.model, ifnull(NEW.chain, 0)",
        " WHERE NEW.tags IS NOT NULL",
    ),
    "daily_user_tags": (
        ("user", "tags"),
        "NEW.user, NEW.tags",
        " WHERE NEW.user IS NOT NULL AND NEW.tags IS NOT NULL",
    ),
}
"""Of two together. A set of tags is one key: what each of its tags has cost is found when it is read."""

_Tables = Mapping[str, tuple[tuple[str, ...], str, str]]


def _tables(daily: _Tables) -> str:
    """The tables of sums."""
    tables = []
    for table, (keys, _, _) in daily.items():
        columns = "".join(f"    {key} INTEGER NOT NULL,\n" for key in ("day", *keys))
        sums = "".join(f"    {name} INTEGER NOT NULL,\n" for name in SUMS)
        # What is grouped by comes first: a report of all users then needs no sorting.
        key = ", ".join((*keys, "day"))
        tables.append(f"CREATE TABLE {table} (\n{columns}{sums}    PRIMARY KEY ({key})\n) WITHOUT ROWID;\n")
    return "".join(tables)


def _triggers(daily: _Tables) -> str:
    """What keeps them."""
    bodies = []
    added = ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)
    for table, (keys, of_row, source) in daily.items():
        named = ", ".join(("day", *keys))
        bodies.append(
            f"    INSERT INTO {table} ({named}, {', '.join(SUMS)})\n"
            f"        SELECT NEW.day, {of_row}, {', '.join(SUMS.values())}{source}\n"
            f"        ON CONFLICT DO UPDATE SET {added};\n"
        )
    body = "".join(bodies)
    return (
        "CREATE TRIGGER entries_sum AFTER UPDATE ON entries WHEN OLD.state < 2 AND NEW.state >= 2 BEGIN\n"
        f"{body}END;\n"
        f"CREATE TRIGGER entries_sum_new AFTER INSERT ON entries WHEN NEW.state >= 2 BEGIN\n{body}END;\n"
    )


def _so_far(daily: _Tables) -> str:
    """What the rows that are there already add up to."""
    filled = []
    for table, (keys, of_row, source) in daily.items():
        filled.append(
            f"INSERT INTO {table} ({', '.join(('day', *keys))}, {', '.join(SUMS)})\n"
            f"    SELECT NEW.day, {of_row}, {', '.join(f'sum({value})' for value in SUMS.values())}\n"
            f"    FROM entries NEW{source} AND NEW.state >= 2 GROUP BY {of_row}, NEW.day;\n"
        )
    return "".join(filled)


_SECOND = (
    "DROP TRIGGER entries_sum;\nDROP TRIGGER entries_sum_new;\nDROP TABLE daily_tag;\n"
    + _tables(_CROSSED)
    + _triggers({name: table for name, table in {**_DAILY, **_CROSSED}.items() if name != "daily_tag"})
    + _so_far(_CROSSED)
)

MIGRATIONS: tuple[tuple[str, str], ...] = (
    ("0001_entries_meters_and_daily_sums", _FIRST + _tables(_DAILY) + _triggers(_DAILY)),
    ("0002_daily_sums_of_two_together", _SECOND),
)
"""By name, in order. One that has been released is never changed: what comes later is a migration of its own."""
