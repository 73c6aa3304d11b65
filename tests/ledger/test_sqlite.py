"""The ledger in a file: written before the first byte, shared by processes, kept through kills, honest when full."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest

import shared_core._sqlite as files
from shared_core import (
    AllTargetsFailed,
    Budget,
    BudgetExceeded,
    ChatRequest,
    ConfigurationError,
    LedgerError,
    LedgerTrouble,
    Price,
    Router,
    SQLiteLedger,
    Target,
    Usage,
    user,
)
from shared_core.chat.events import ChatEvent
from shared_core.ledger import _opening
from shared_core.ledger._writer import CALL, RECORD, RESERVE, Op
from shared_core.ledger.entry import EntryStatus, LedgerEntry
from shared_core.ledger.schema import MIGRATIONS
from shared_core.ledger.store import Draft, Ticket, Trouble
from shared_core.resilience.budget import Ask, Budgets, Denial
from shared_core.resilience.deadline import Guard
from shared_core.testing import ScriptedProvider


def usd(nano: int) -> Decimal:
    return Decimal(nano) / 10**9


def draft(budgets: Budgets | None = None, most: int = 100, execution: str = "x-1", **more: Any) -> Draft:
    at = more.pop("at", time.time())
    claims = () if budgets is None else budgets.claims(at, "a:b")
    return Draft(execution, "a:b", "a", "b", at, Ask(most, most), claims, **more)


def entry(of: Draft, cost: int | None = 0, status: EntryStatus = EntryStatus.POSTED) -> LedgerEntry:
    return LedgerEntry(
        of.execution, 1, of.target, of.provider, of.model, of.at, "answered", status, Usage(1, 1), cost, 100
    )  # fmt: skip


def rows(path: Path) -> list[tuple[Any, ...]]:
    """What another process would read."""
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT state, cost, bound FROM entries ORDER BY id").fetchall()


# ── before the first byte ────────────────────────────────────────────────────────────────────────────────────────────


class Looking(ScriptedProvider):
    """Looks into the file at the moment it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__("hello")
        self.path = path
        self.seen: list[list[tuple[Any, ...]]] = []

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        self.seen.append(rows(self.path))
        return super().stream(request, guard)

    def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        self.seen.append(rows(self.path))
        return super().astream(request, guard)


@pytest.mark.parametrize("budgets", [None, [Budget(1)]])
def test_the_row_is_in_the_file_before_the_provider_is_asked_and_settled_after(tmp_path: Path, budgets: Any) -> None:
    path = tmp_path / "costs.db"
    provider = Looking(path)
    with Router(Target(provider=provider, price=Price(1, 2)), ledger=path, budgets=budgets) as router:
        router.invoke(ChatRequest((user("hi"),), max_tokens=100))
        asyncio.run(_astreamed(router))
        assert [[state for state, _, _ in seen] for seen in provider.seen] == [[1], [2, 1]]
        assert all(seen[-1][2] > 0 for seen in provider.seen), "with the bound it may cost"
    assert [(state, cost) for state, cost, _ in rows(path)] == [(2, 10 * 1000 + 2000)] * 2


async def _astreamed(router: Router) -> None:
    async for _ in router.astream(ChatRequest((user("hi"),), max_tokens=100)):
        pass


def test_a_settled_row_cannot_be_changed_nor_any_row_deleted_and_the_limit_is_the_databases(tmp_path: Path) -> None:
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        budgets = Budgets([Budget(usd(150), "day")])
        ticket = ledger.reserve(draft(budgets), dispatch=True)
        assert isinstance(ticket, Ticket)
        ledger.settle(ticket, entry(ticket.draft, 70))
        ledger.flush()
    with sqlite3.connect(tmp_path / "costs.db") as raw:
        for statement, said in (
            ("UPDATE entries SET cost = 0", "never changes"),
            ("DELETE FROM entries", "never deleted"),
            ("UPDATE meters SET posted = 151", "within_limit"),
            ("UPDATE meters SET pending = 81", "within_limit"),
        ):
            with pytest.raises(sqlite3.IntegrityError, match=said):
                raw.execute(statement)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_a_ledger_is_refused_when_it_is_opened_and_says_what_to_do(tmp_path: Path) -> None:
    def refused(path: Path, **options: Any) -> LedgerError:
        with pytest.raises(LedgerError, match="hint:") as caught:
            SQLiteLedger(path, **options)
        assert isinstance(caught.value, ConfigurationError)
        return caught.value

    assert refused(tmp_path / "nowhere" / "costs.db").reason == "cannot be opened"
    (tmp_path / "text").write_text("this is no database, however long it may go on being text " * 50)
    assert refused(tmp_path / "text").reason == "not a database"
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE recipes (name)")
    other.commit()
    other.close()
    assert refused(tmp_path / "other.db").reason == "not a ledger"

    path = tmp_path / "costs.db"
    SQLiteLedger(path).close()
    with sqlite3.connect(path) as raw:
        assert [name for (name,) in raw.execute("SELECT name FROM migrations")] == [name for name, _ in MIGRATIONS]
        raw.execute("INSERT INTO migrations VALUES ('9999_from_the_future', 0)")
    assert refused(path).reason == "newer"

    SQLiteLedger(tmp_path / "busy.db").close()
    holder = sqlite3.connect(tmp_path / "busy.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert refused(tmp_path / "busy.db", busy_timeout_s=0.01).reason == "locked"
    holder.close()

    damaged = tmp_path / "damaged.db"
    SQLiteLedger(damaged).close()
    with damaged.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3996)
    assert refused(damaged).reason == "corrupt"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    SQLiteLedger(tmp_path / "costs.db").close()
    (tmp_path / "costs.db").chmod(0o400)
    with pytest.raises(LedgerError, match="read-only"):
        SQLiteLedger(tmp_path / "costs.db")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(files, "filesystem_of", lambda _: kind)
    with pytest.raises(LedgerError, match=rf"network file system \({kind}") as caught:
        SQLiteLedger(tmp_path / "costs.db")
    assert caught.value.reason == "network"
    assert not (tmp_path / "costs.db").exists()


def test_the_file_system_of_a_path_is_that_of_the_nearest_mount() -> None:
    if Path("/proc/self/mountinfo").exists():
        assert files.filesystem_of(Path("/proc/self")) == "proc"
        assert files.filesystem_of(Path("/")) not in (None, "proc")


def test_a_ledger_says_what_is_wrong_with_what_it_was_given() -> None:
    with pytest.raises(ConfigurationError, match="path or a Ledger"):
        Router(Target(provider=ScriptedProvider()), ledger=7)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ConfigurationError, match="given twice"):
        Router(Target(provider=ScriptedProvider()), budgets=[Budget(1), Budget(1)])
    with pytest.raises(ConfigurationError, match="limit_usd"):
        Router(Target(provider=ScriptedProvider()), budgets={"limit_usd": "much"})


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _child(script: str, *arguments: object) -> subprocess.Popen[str]:
    code = "import sys, time, os\nfrom tests.ledger._child import *\n" + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_what_a_killed_process_leaves_is_voided_if_it_was_not_sent_and_unknown_if_it_was(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    child = _child(
        """
        ledger = SQLiteLedger(sys.argv[1])
        budgets = Budgets([Budget("0.000001", "day")])
        ledger.reserve(draft(budgets, 100))
        ledger.reserve(draft(budgets, 200), dispatch=True)
        posted = ledger.reserve(draft(budgets, 300), dispatch=True)
        ledger.settle(posted, entry(posted.draft, 250))
        ledger.flush()
        print("ready", flush=True)
        time.sleep(60)
        """,
        path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with SQLiteLedger(path) as beside:
        assert sorted(state for state, _, _ in rows(path)) == [0, 1, 2], "a living process's rows are not touched"
        child.send_signal(signal.SIGKILL)
        child.wait()
        (before,) = beside.meters().values()
    with SQLiteLedger(path) as after:
        found = {e.bound_nano: (e.status, e.cost_nano, e.outcome) for e in after.entries()}
        assert found == {
            100: (EntryStatus.VOIDED, 0, "never sent"),
            200: (EntryStatus.UNKNOWN, None, "lost"),
            300: (EntryStatus.POSTED, 250, "answered"),
        }
        (reading,) = after.meters().values()
        assert (before.pending, before.spent) == (300, 250)
        assert (reading.posted, reading.pending, reading.unknown) == (250, 0, 200)
        assert after.query("PRAGMA integrity_check") == [("ok",)]
    child.stdout.close()


def test_eight_processes_with_one_hard_budget_never_pass_it_and_use_it_up(tmp_path: Path) -> None:
    path, limit = tmp_path / "costs.db", 1_000_000
    SQLiteLedger(path).close()
    children = [
        _child(
            """
            import random
            chance = random.Random(int(sys.argv[2]))
            ledger = SQLiteLedger(sys.argv[1], busy_timeout_s=30)
            budgets = Budgets([Budget(Decimal(sys.argv[3]) / 10**9, "total"), Budget(1, "day")])
            served = 0
            while True:
                most = chance.randint(500, 4000)
                ticket = ledger.reserve(draft(budgets, most), dispatch=True)
                if isinstance(ticket, Denial):
                    if ticket.needed < 1500: break
                    continue
                cost = chance.randint(0, most)
                served += cost
                ledger.settle(ticket, entry(ticket.draft, cost))
            ledger.close()
            print(served, flush=True)
            """,
            path,
            seed,
            limit,
        )
        for seed in range(8)
    ]
    served = 0
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        served += int(out)
    assert 0.95 * limit <= served <= limit
    with SQLiteLedger(path) as ledger:
        assert {(r.posted, r.pending, r.unknown) for r in ledger.meters().values()} == {(served, 0, 0)}
        assert ledger.query("SELECT sum(cost) FROM entries") == [(served,)]


def test_a_fork_takes_no_connection_along_and_both_sides_go_on(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    child = _child(
        """
        import threading
        ledger = SQLiteLedger(sys.argv[1])
        busy = threading.Event()
        def work():
            while not busy.is_set():
                ticket = ledger.reserve(draft(None, 1, "parent"), dispatch=True)
                ledger.settle(ticket, entry(ticket.draft, 1))
        worker = threading.Thread(target=work); worker.start()
        codes = []
        for n in range(5):
            pid = os.fork()
            if pid == 0:
                try:
                    assert ledger._writer.connection is None and ledger._writer.thread is None
                    held = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n.isdigit()
                            and os.path.lexists(f"/proc/self/fd/{n}")] if os.path.exists("/proc/self/fd") else []
                    assert not [name for name in held if "costs.db" in name], held
                    ticket = ledger.reserve(draft(None, 1, "child"), dispatch=True)
                    ledger.settle(ticket, entry(ticket.draft, 1))
                    ledger.close()
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            codes.append(os.waitpid(pid, 0)[1])
        busy.set(); worker.join(); ledger.close()
        print(codes, flush=True)
        """,
        path,
    )
    out, _ = child.communicate(timeout=60)
    assert out == "[0, 0, 0, 0, 0]\n"
    with SQLiteLedger(path) as ledger:
        assert ledger.query("PRAGMA integrity_check") == [("ok",)]
        (children,) = ledger.query("SELECT count(*) FROM entries WHERE execution = 'child' AND state = 2")
        assert children == (5,)
        assert ledger.query("SELECT count(*) FROM entries WHERE state < 2") == [(0,)]


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = files.this_process()
    assert not me.gone(me)
    assert files.Process(me.boot, me.space, 2**22 + 5, "1").gone(me), "no such process"
    assert files.Process(me.boot, me.space, me.pid, "1").gone(me) is bool(me.started), "the number was given anew"
    assert files.Process("another run", me.space, me.pid, me.started).gone(me) is bool(me.boot)
    assert not files.Process(me.boot, "another container", 2**22 + 5, "1").gone(me), "it cannot be seen from here"


# ── callers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_many_callers_share_a_commit(tmp_path: Path) -> None:
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        commits = 0
        writing = ledger._writer.write

        def counted(ops: Any) -> None:
            nonlocal commits
            commits += 1
            writing(ops)

        ledger._writer.write = counted  # type: ignore[method-assign]  # counts what it does

        async def call(n: int) -> None:
            ticket = await ledger.areserve(draft(None, 1, f"x-{n}"), dispatch=True)
            assert isinstance(ticket, Ticket)
            ledger.settle(ticket, entry(ticket.draft, 1))

        async def crowd() -> None:
            ledger._writer.gate.acquire()  # until all of them are in line, however slowly they come
            try:
                calls = asyncio.gather(*(call(n) for n in range(200)))
                await asyncio.sleep(0)
            finally:
                ledger._writer.gate.release()
            await calls

        asyncio.run(crowd())
        ledger.flush()
        assert len(ledger.entries()) == 200
        assert commits < 40, "not one for each"


def test_an_answer_that_comes_before_its_caller_waits_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is put aside by the machine right after handing in finds the writer done with it."""
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        submit = ledger._writer.submit

        def dawdling(op: Any) -> None:
            submit(op)
            until = time.monotonic() + 5.0
            while op.lock is not None and time.monotonic() < until:
                time.sleep(0.001)

        monkeypatch.setattr(ledger._writer, "submit", dawdling)
        assert isinstance(ledger.reserve(draft()), Ticket)


def test_a_caller_who_leaves_while_waiting_leaves_nothing_set_aside(tmp_path: Path) -> None:
    budgets = Budgets([Budget(usd(1000), "day")])
    with SQLiteLedger(tmp_path / "costs.db") as ledger:

        async def leave() -> None:
            ledger._writer.gate.acquire()  # nothing is written just now
            try:
                waiting = [asyncio.ensure_future(ledger.areserve(draft(budgets), dispatch=True)) for _ in range(5)]
                await asyncio.sleep(0)
                for one in waiting:
                    one.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            finally:
                ledger._writer.gate.release()
            await asyncio.to_thread(ledger.flush)

        asyncio.run(leave())
        (reading,) = ledger.meters().values()
        assert reading.held == 0
        assert {e.status for e in ledger.entries()} <= {EntryStatus.VOIDED}


def test_the_event_loop_goes_on_while_the_file_is_locked(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with SQLiteLedger(path) as ledger:
        holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")

        async def watch() -> int:
            waiting = asyncio.ensure_future(ledger.areserve(draft(), dispatch=True))
            turns = 0
            while not waiting.done():
                turns += 1
                if turns == 20:
                    holder.execute("COMMIT")
                await asyncio.sleep(0.005)
            assert isinstance(await waiting, Ticket)
            return turns

        assert asyncio.run(watch()) >= 20
        holder.close()


def test_a_thousand_rows_take_less_than_400_bytes_each(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    with SQLiteLedger(path) as ledger:
        for n in range(3000):
            of = draft(Budgets([Budget(1), Budget(1, "day")]), 0, f"0a1b2c-{n}", user=f"user-{n % 50}", tags=("a", "b"))
            ticket = ledger.reserve(of) if n % 100 == 0 else None
            row = LedgerEntry(
                of.execution, 1, of.target, of.provider, of.model, of.at, "answered", EntryStatus.POSTED,
                Usage(12_345, 678, 9000, 0, 500), 123_456_789, 200_000_000, 1.25, None, "genai-prices 0.2.3",
                of.user, of.tags, "default", first_token_s=0.4, response_id="chatcmpl-" + "x" * 29,
            )  # fmt: skip
            if isinstance(ticket, Ticket):
                ledger.settle(ticket, row)
            else:
                ledger.record(row)
    assert path.stat().st_size / 3000 <= 400


# ── when it cannot be written ────────────────────────────────────────────────────────────────────────────────────────


def _full(ledger: SQLiteLedger) -> None:
    """No page more."""
    ledger.flush()
    assert ledger._writer.connection is not None
    (pages,) = ledger._writer.connection.execute("PRAGMA page_count").fetchone()
    ledger._writer.connection.execute(f"PRAGMA max_page_count = {pages}")


def _roomy(ledger: SQLiteLedger) -> None:
    with ledger._writer.gate:
        assert ledger._writer.connection is not None
        ledger._writer.connection.execute("PRAGMA max_page_count = 1000000")


def _fill(ledger: SQLiteLedger) -> None:
    for n in range(2000):
        ledger.record(entry(draft(None, 1, f"fill-{n}"), 1))
    ledger.flush()


def test_an_answer_is_not_lost_because_the_disk_is_full_and_its_row_is_written_later(tmp_path: Path) -> None:
    heard: list[Any] = []
    ledger = SQLiteLedger(tmp_path / "costs.db")
    with Router(Target(provider=ScriptedProvider("hi"), price=Price(1, 1)), ledger=ledger, on_event=heard.append) as r:
        _full(ledger)
        _fill(ledger)
        assert ledger.trouble == "full"
        assert r.invoke("hello").text == "hi"
        assert asyncio.run(r.ainvoke("hello")).text == "hi"
        assert ledger.waiting > 0
        assert "full" in repr(ledger)
        _roomy(ledger)
        assert ledger.flush()
        assert (ledger.trouble, ledger.waiting, ledger.lost) == (None, 0, 0)
        statuses = [e.status for e in ledger.entries() if not e.execution.startswith("fill")]
        assert statuses == [EntryStatus.POSTED] * 2
        assert len(ledger.entries()) == 2002
        r.flush_events()
        assert [(e.reason, e.over) for e in heard if isinstance(e, LedgerTrouble)] in ([], [("full", True)])


def test_under_a_hard_budget_nothing_is_sent_that_cannot_be_written_down(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "costs.db")
    paid, free = ScriptedProvider("paid"), ScriptedProvider("free", name="free")
    hard = [Budget(10)]
    with Router(Target(provider=paid, price=Price(1, 1)), ledger=ledger, budgets=hard) as router:
        assert router.invoke("x").text == "paid"
        _full(ledger)
        _fill(ledger)
        for ask in (router.invoke, lambda text: asyncio.run(router.ainvoke(text))):
            with pytest.raises(AllTargetsFailed, match=r"cannot be written \(full\).*hint: .*make room") as caught:
                ask("x")
            cause = caught.value.__cause__
            assert isinstance(cause, LedgerError)
            assert cause.reason == "full"
        assert paid.calls == 1
        router.add(Target(provider=free, price=Price()))
        assert router.invoke("x").text == "free"
        assert asyncio.run(router.ainvoke("x")).text == "free"
        assert not router._books.money._troubles
        router.remove("free:script")
        _roomy(ledger)
        ledger.flush()
        assert router.invoke("x").text == "paid"


def test_a_file_that_stays_locked_is_trouble_that_ends_with_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "costs.db"
    told: list[Any] = []
    with SQLiteLedger(path, busy_timeout_s=0.02) as ledger:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        ticket = ledger.reserve(draft(tell=told.append), dispatch=True)
        assert isinstance(ticket, Ticket)
        assert ticket.id is None
        with pytest.raises(LedgerError) as caught:
            ledger.reserve(draft(Budgets([Budget(1)])), dispatch=True)
        assert caught.value.reason == "locked"
        ledger.settle(ticket, entry(ticket.draft, 7))
        holder.execute("COMMIT")
        holder.close()
        assert ledger.flush()
        (row,) = ledger.entries()
        assert (row.status, row.cost_nano) == (EntryStatus.POSTED, 7)
        assert told[0] == Trouble("locked", 1)
        assert [n.over for n in told] == [False, True]


class Unsynced:
    """A connection whose disk takes what is written and then, while `broken`, fails to sync it."""

    broken = False

    def __init__(self, of: sqlite3.Connection) -> None:
        self._of = of

    def execute(self, sql: str, *rest: Any) -> Any:
        if sql == "COMMIT" and Unsynced.broken:
            raise sqlite3.OperationalError("disk I/O error")
        return self._of.execute(sql, *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SQLiteLedger]:
    connect = _opening.connect
    monkeypatch.setattr(_opening, "connect", lambda path, **more: Unsynced(connect(path, **more)))
    monkeypatch.setattr(Unsynced, "broken", False)
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        yield ledger
        Unsynced.broken = False


def test_under_a_hard_budget_what_was_written_and_not_synced_is_refused(unsynced: SQLiteLedger) -> None:
    hard = Budgets([Budget(1)])
    held = unsynced.reserve(draft(hard))
    assert isinstance(held, Ticket)
    Unsynced.broken = True
    with pytest.raises(LedgerError, match="i/o"):
        unsynced.reserve(draft(hard), dispatch=True)
    with pytest.raises(LedgerError, match="i/o"):
        asyncio.run(unsynced.areserve(draft(hard), dispatch=True))
    with pytest.raises(LedgerError, match="i/o"):
        unsynced.dispatch(held)
    assert (held.status, unsynced.waiting) == (EntryStatus.RESERVED, 0), "none of it happens later either"
    Unsynced.broken = False
    assert unsynced.dispatch(held)
    assert [(state, bound) for state, _, bound in rows(unsynced.path)] == [(1, 100)]


def test_without_one_nothing_is_said_to_be_on_disk_that_waits_in_memory(unsynced: SQLiteLedger) -> None:
    told: list[Any] = []
    soft = draft(tell=told.append)
    early, awaited = unsynced.reserve(soft), unsynced.reserve(soft)
    assert isinstance(early, Ticket)
    assert isinstance(awaited, Ticket)
    Unsynced.broken = True
    assert unsynced.dispatch(early) is False
    assert asyncio.run(unsynced.adispatch(awaited)) is False
    late = unsynced.reserve(soft, dispatch=True)
    later = asyncio.run(unsynced.areserve(soft))
    assert isinstance(late, Ticket)
    assert isinstance(later, Ticket)
    assert [(t.id, t.status) for t in (late, later)] == [(None, EntryStatus.DISPATCHED), (None, EntryStatus.RESERVED)]
    assert [t.status for t in (early, awaited)] == [EntryStatus.RESERVED] * 2
    assert [state for state, _, _ in rows(unsynced.path)] == [0, 0]
    assert not unsynced.flush()
    assert unsynced.waiting == 4
    assert [notice.over for notice in told] == [False], "told once"
    unsynced.settle(late, entry(late.draft, 7))
    Unsynced.broken = False
    assert unsynced.flush(), "all of it is written as soon as it can be"
    assert [(state, cost) for state, cost, _ in rows(unsynced.path)] == [(1, None), (1, None), (2, 7), (0, None)]
    assert (late.id, later.id) == (3, 4)
    assert unsynced.dispatch(later)
    assert later.status is EntryStatus.DISPATCHED


def test_a_row_that_cannot_be_written_does_not_keep_others_from_being_written(tmp_path: Path) -> None:
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        good = entry(draft(), 1)
        bad = LedgerEntry("x", 1, "t", "p", "m", 0.0, "answered", EntryStatus.POSTED, Usage(), -5)
        for one in (good, bad, good):
            ledger.record(one)
        ledger.flush()
        assert len(ledger.entries()) == 2


def test_texts_that_were_not_synced_are_written_again(unsynced: SQLiteLedger) -> None:
    Unsynced.broken = True
    tagged = draft(Budgets([Budget(1, hard=False)]), user="ann", tags=("b", "a"))
    ticket = unsynced.reserve(tagged)
    assert isinstance(ticket, Ticket)
    assert not unsynced.flush()
    Unsynced.broken = False
    assert unsynced.flush()
    (row,) = unsynced.entries()
    assert (row.user, row.tags) == ("ann", ("a", "b"))
    unsynced.settle(ticket, entry(tagged, 7))
    assert [line.cost_nano for line in unsynced.costs(user="ann").by("tag")] == [7, 7]
    assert [reading.posted for reading in unsynced.meters().values()] == [7]


@pytest.mark.parametrize("mistake", [LookupError, ConfigurationError])
def test_a_callers_mistake_is_nobody_elses(tmp_path: Path, mistake: type[Exception]) -> None:
    """What shares its transaction is written."""

    def wrong(*_: Any) -> None:
        raise mistake("no")

    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        ops = [Op(RESERVE, draft()), Op(CALL, wrong), Op(RECORD, None, entry(draft(), 7))]
        with ledger._writer.gate:
            ledger._writer.write(ops)
        assert [type(op.error) for op in ops] == [type(None), mistake, type(None)]
        assert [cost for _, cost, _ in rows(ledger.path)] == [None, 7]


def test_a_ledger_that_is_closed_opens_again_when_it_is_used(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "costs.db")
    ledger.record(entry(draft(), 1))
    ledger.close()
    ledger.close()
    assert not (tmp_path / "costs.db-wal").exists()
    ledger.record(entry(draft(), 1))
    assert len(ledger.entries()) == 2
    ledger.close()


def test_two_routers_of_two_users_share_one_file_and_its_budget(tmp_path: Path) -> None:
    def router() -> Router:
        provider = ScriptedProvider("hi")
        return Router(
            Target(provider=provider, price=Price(per_request="0.4")), ledger=tmp_path / "c.db", budgets=[Budget(1)]
        )

    with router() as one, router() as two:
        one.invoke("x")
        two.invoke("x")
        assert [r.held for r in cast(Any, two.ledger).meters().values()] == [800_000_000]
        with pytest.raises(BudgetExceeded) as caught:
            one.invoke("x")
        assert caught.value.spent == 0.8
        assert caught.value.needed == pytest.approx(0.4)
        assert json.loads(json.dumps(two.budget_status().rows()))[0]["percent"] == 80.0


def test_a_denial_is_the_same_from_every_face_of_the_ledger(tmp_path: Path) -> None:
    budgets = Budgets([Budget(usd(50), "day")])
    with SQLiteLedger(tmp_path / "costs.db") as ledger:
        now = time.time()
        one = ledger.reserve(draft(budgets, at=now))
        two = asyncio.run(ledger.areserve(draft(budgets, at=now)))
        assert isinstance(one, Denial)
        assert one == two


_ENDS_WITH_A_STREAM_OPEN = """
import sys
from shared_core import Router
from shared_core.testing import ScriptedProvider

router = Router(ScriptedProvider("one two three"), ledger=sys.argv[1], cache=True)
_open = router.stream("Hello")  # closed with the module, at the very end, when no thread can be started any more
print(type(next(_open)).__name__, type(next(_open)).__name__, flush=True)
"""


def test_a_program_that_ends_with_a_stream_open_ends(tmp_path: Path) -> None:
    """Its row stays as after a crash: the next who opens the ledger settles it, at what it can have cost at most."""
    path = tmp_path / "costs.db"
    child = _child(_ENDS_WITH_A_STREAM_OPEN, path)
    try:
        said, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, said.strip()) == (0, "Started TextDelta")
    with SQLiteLedger(path) as ledger:
        assert [entry.status for entry in ledger.entries()] == [EntryStatus.UNKNOWN]
