"""A cache is never the reason why a request fails: files that break, stores that raise, hooks that fail, forks."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing

import pytest

from shared_core import ChatRequest, Price, ResponseCache, Router, Target, user
from shared_core.cache import Entry, MemoryStore
from shared_core.testing import ScriptedProvider

ASK = ChatRequest((user("Hello"),))
OTHER = ASK.replace(seed=1)


def locked(path, store):
    """Another process writes, and does not end."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def full(path, store):
    """Not a page more."""
    store._own.execute("PRAGMA max_page_count = 1")


def read_only(path, store):
    """Nothing can be written."""
    store._own.execute("PRAGMA query_only = ON")


def overwritten(path, store):
    """By somebody else's bytes, while it is open."""
    for name in (path, path.with_name(path.name + "-wal")):
        if name.exists():
            name.write_bytes(b"\xa5" * name.stat().st_size)


def cut_short(path, store):
    """In the middle of a page."""
    store.close()
    os.truncate(path, 5_000)


def deleted(path, store):
    """With its log, while it is open."""
    for name in path.parent.glob(path.name + "*"):
        name.unlink()


def emptied(path, store):
    """A file of no bytes."""
    store.close()
    os.truncate(path, 0)


TROUBLES = [locked, full, read_only, overwritten, cut_short, deleted, emptied]


class TestFiles:
    @pytest.mark.parametrize("trouble", TROUBLES, ids=lambda one: one.__name__)
    def test_whatever_happens_to_its_file_the_answer_is_there(self, face, tmp_path, monkeypatch, trouble):
        """What was kept and what was not, in every face; and every answer is the right one."""
        monkeypatch.setattr("shared_core.cache.sqlite._BUSY_S", 0.01)
        path = tmp_path / "c.db"
        long = os.urandom(20_000).hex()
        provider = ScriptedProvider("first", long, long, long, long)
        with Router(Target(provider=provider, name="a"), cache={"path": path}) as router:
            assert face(router, ASK).text == "first"
            held = trouble(path, router.cache.store)
            for _ in range(2):
                for request in (OTHER, ASK):
                    got = face(router, request)
                    assert got.error is None
                    assert got.text in ({"first", long} if request is ASK else {long})
            if held is not None:
                held.close()

    @pytest.mark.parametrize(
        "change",
        [
            "body = substr(body, 1, 30)", "body = 'text'", "stored = 'yesterday'", "expires = 'soon'",
            "body = zeroblob(100)", "stored = 1e300", "key = zeroblob(32)",
        ],
    )  # fmt: skip
    def test_a_row_that_somebody_has_changed_is_asked_again_and_kept_anew(self, face, tmp_path, change):
        """Whatever was changed."""
        path = tmp_path / "c.db"
        provider = ScriptedProvider("first", "second")
        with Router(Target(provider=provider, name="a"), cache={"path": path}) as router:
            face(router)
            with closing(sqlite3.connect(path)) as other, other:
                other.execute(f"UPDATE entries SET {change}")
            got = face(router)
            assert (got.text, got.fallback["cache"]) == ("second", "miss")
            again = face(router)
            assert (again.text, again.fallback["cache"]) == ("second", "hit")


class TestStores:
    @pytest.mark.parametrize("method", ["get", "put", "discard"])
    def test_a_store_that_raises_is_told_of_once_and_does_without(self, face, caplog, method):
        """One of somebody else's, on a network that is down."""

        class Down(MemoryStore):
            asked = 0

            def _fails(self, *given):
                Down.asked += 1
                raise ConnectionError("no route to host")

            def get(self, key, now):
                return Entry(b"poison", now, now + 9) if method == "discard" else super().get(key, now)

        setattr(Down, method, Down._fails)
        cache = ResponseCache(store=Down())
        router = Router(ScriptedProvider("x"), cache=cache)
        with caplog.at_level(logging.WARNING, "llm_fallback.cache"):
            got = [face(router) for _ in range(2)]
        assert [(one.error, one.text) for one in got] == [(None, "x")] * 2
        assert cache.stats().errors == Down.asked > 0
        assert [("ConnectionError: no route to host" in r.message) for r in caplog.records] == [True]

    def test_a_tenant_that_cannot_be_told_leaves_the_request_uncached(self, bench, face, caplog):
        """A function that fails, or that names something without a value."""

        def fails(request):
            raise KeyError("no such session")

        for tenant in (fails, lambda request: object()):
            b = bench("x", cache={"tenant": tenant})
            assert [face(b.router).fallback["cache"] for _ in range(2)] == ["uncacheable"] * 2
        assert "no such session" in caplog.text
        b = bench("x", cache={"tenant": lambda request: ("team", 5)})
        assert [face(b.router).fallback["cache"] for _ in range(2)] == ["miss", "hit"]


class TestSpared:
    def test_a_call_without_the_cache_pays_for_no_key(self, bench, face, monkeypatch):
        """Nothing of the request is told by value, nothing is looked for."""
        b = bench("x", cache=True)

        def never(*given):
            raise AssertionError("it was told by value")

        monkeypatch.setattr("shared_core._cache_keys.request_form", never)
        monkeypatch.setattr(b.router.cache.store, "get", never)
        assert face(b.router, ASK.replace(cache=False)).text == "x"
        assert b.router.invoke(ASK, cache=False).fallback["cache"] == "off"
        with pytest.raises(AssertionError, match="by value"):
            b.router.invoke(ASK)

    def test_one_miss_is_one_look(self, bench):
        """Nobody looks twice where nobody can have kept anything meanwhile."""
        b = bench("x", cache=True)
        b.router.invoke(OTHER)  # what tells the targets apart is learned
        looks = []
        get = b.router.cache.store.get
        b.router.cache.store.get = lambda key, now: looks.append(key) or get(key, now)
        assert b.router.invoke(ASK).fallback["cache"] == "miss"
        assert b.router.invoke(ASK).fallback["cache"] == "hit"
        assert len(looks) == 2

    def test_an_answer_that_is_there_is_served_when_the_budget_is_used_up(self, bench, face):
        """It costs nothing."""
        price = {"price": Price(input=1000, output=1000)}
        budget = {"limit_usd": 0.2, "window": "total", "hard": True}
        b = bench("one two three", targets=[price], cache=True, budgets=budget)
        asked, other = ASK.replace(max_tokens=50), OTHER.replace(max_tokens=50)
        assert face(b.router, asked).error is None
        while (
            face(
                b.router,
                other,
            ).error
            is None
        ):
            other = other.replace(seed=other.seed + 1)
        spent = b.router.costs().total_usd
        got = face(b.router, asked)
        assert (got.text, got.fallback["cache"], got.fallback["cost_usd"]) == ("one two three", "hit", 0)
        assert b.router.costs().total_usd == spent


class TestForks:
    @pytest.mark.parametrize("lock", ["cache._lock", "cache.store._lock", "router._cached._flights.lock"])
    def test_a_child_does_not_wait_for_its_parents_other_threads(self, lock):
        """One of them was in the middle of it."""
        code = f"""
            import os, signal, threading
            from shared_core import ResponseCache, Router
            from shared_core.testing import ScriptedProvider
            cache = ResponseCache()
            router = Router(ScriptedProvider("x"), cache=cache)
            router.invoke("Hi")
            holds, go = threading.Event(), threading.Event()
            def hold():
                with {lock}:
                    holds.set()
                    go.wait(30)
            thread = threading.Thread(target=hold)
            thread.start()
            holds.wait(10)
            if (pid := os.fork()) == 0:
                signal.alarm(10)
                said = [router.invoke(text).fallback["cache"] for text in ("Hi", "Ho", "Ho")]
                os._exit(0 if said == ["hit", "miss", "hit"] and cache.stats().items == 2 else 1)
            assert os.waitpid(pid, 0)[1] == 0
            go.set()
            thread.join(10)
            assert router.invoke("Hi").fallback["cache"] == "hit"
        """
        subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=60)
