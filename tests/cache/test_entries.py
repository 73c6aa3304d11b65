"""What is kept is read back as it was, or not at all; and who has to go when there is no more room."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_core import (
    ConfigurationError,
    Finished,
    Origin,
    Reasoning,
    ResponseCache,
    Restarted,
    Started,
    TextDelta,
    ToolCall,
    UnknownOption,
    Usage,
    collect,
)
from shared_core.cache import Entry, MemoryStore, SQLiteStore
from shared_core.cache.entry import Kept, Poisoned, events_of_kept, pieces_of, read, write

KEY = b"k" * 32
TEXT = st.text(max_size=40)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DATA = st.dictionaries(TEXT, PLAIN, max_size=2)
COUNT = st.integers(0, 10**9)
KEPT = st.builds(
    lambda pieces, **more: Kept("".join(pieces), tuple(map(len, pieces)) if len(pieces) > 1 else (), **more),
    st.lists(st.text(min_size=1, max_size=30), max_size=6),
    reasoning=st.lists(st.builds(Reasoning, TEXT, DATA), max_size=2).map(tuple),
    tool_calls=st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT, DATA), max_size=2).map(tuple),
    reason=st.sampled_from(["stop", "tool_calls"]),
    raw_reason=st.none() | TEXT,
    usage=st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, st.booleans()),
    response_id=st.none() | TEXT,
    model=st.none() | TEXT,
    provider=st.none() | TEXT,
    extra=DATA,
    origin=st.none() | st.builds(Origin, TEXT, TEXT, st.none() | TEXT),
    cost_nano=st.none() | COUNT,
)
ANSWER = Kept("Paris is the capital of France.", usage=Usage(10, 7), model="m", cost_nano=12)


class TestWritten:
    @settings(max_examples=100, deadline=None)
    @given(KEPT, st.binary(min_size=32, max_size=32), st.integers(0, 400))
    def test_what_was_written_is_read_back_as_it_was(self, kept, key, compress_over):
        """Signatures, thoughts, tool calls and vendors' facts included, compressed or not."""
        assert read(key, write(key, kept, compress_over)) == kept

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_a_bit_that_was_changed_makes_it_unreadable(self, data):
        """Whichever it is."""
        written = bytearray(write(KEY, ANSWER, data.draw(st.sampled_from([0, 10_000]))))
        at = data.draw(st.integers(0, len(written) * 8 - 1))
        written[at // 8] ^= 1 << at % 8
        with pytest.raises(Poisoned):
            read(KEY, bytes(written))

    def test_every_cut_makes_it_unreadable(self):
        """And so does more than was written."""
        written = write(KEY, ANSWER, 0)
        for length in range(len(written)):
            with pytest.raises(Poisoned):
                read(KEY, written[:length])
        with pytest.raises(Poisoned):
            read(KEY, written + b"\0")

    def test_an_entry_under_another_key_is_unreadable(self):
        """Nobody can serve one request's answer for another by moving a row."""
        with pytest.raises(Poisoned):
            read(b"l" * 32, write(KEY, ANSWER, 1024))

    def test_longer_answers_are_compressed(self):
        """From a kibibyte on."""
        cache = ResponseCache()
        long = Kept("the same words again " * 500)
        assert len(write(KEY, long, cache.compress_over)) < 500
        assert b"capital of France" in write(KEY, ANSWER, cache.compress_over)

    @pytest.mark.parametrize("extra", [{"a": object()}, {1: "a"}, {"a": {"\0bytes": "AA=="}}], ids=str)
    def test_what_cannot_be_read_back_as_it_was_is_not_kept(self, extra):
        """A live object, names that are no texts, or what looks like our own mark."""
        cache = ResponseCache()
        assert not cache.keep(KEY, Kept("x", extra=extra), 0.0)
        assert cache.stats().unkept == 1
        assert cache.find([KEY], 0.0) is None


class TestReplayed:
    @settings(max_examples=100, deadline=None)
    @given(KEPT)
    def test_a_replay_says_what_was_kept(self, kept):
        """In the pieces it came in, in pieces of any size, and at once; kept again, it is the same."""
        last = kept.finished("t", {})
        events = list(events_of_kept(kept, last))
        again = Kept.of(collect(events), pieces_of(events), kept.cost_nano)
        if kept.pieces:
            assert again.pieces == kept.pieces
        same = ("text", "tool_calls", "reason", "usage", "response_id", "provider", "extra", "origin", "cost_nano")
        assert [getattr(again, name) for name in same] == [getattr(kept, name) for name in same]
        for way in ({}, {"chunk": 1}, {"chunk": 7}, {"whole": True}):
            answer = collect(events_of_kept(kept, last, **way))
            assert (answer.text, answer.usage, answer.tool_calls) == (kept.text, kept.usage, kept.tool_calls)
            assert "".join(r.text for r in answer.reasoning) == "".join(r.text for r in kept.reasoning)

    def test_the_pieces_are_those_that_came(self):
        """A stream that was recorded is shown as it was; a whole answer word by word; either in pieces of a size."""
        texts = lambda kept, **way: [  # noqa: E731  # said once, used often
            e.text for e in events_of_kept(kept, Finished(), **way) if isinstance(e, TextDelta)
        ]
        kept = Kept("Hello, world", (2, 6, 4))
        assert texts(kept) == ["He", "llo, w", "orld"]
        assert texts(kept, chunk=5) == ["Hello", ", wor", "ld"]
        assert texts(kept, whole=True) == ["Hello, world"]
        assert texts(Kept(" one two\n three ")) == [" one", " two", "\n three", " "]
        assert isinstance(next(iter(events_of_kept(kept, Finished()))), Started)

    def test_pieces_are_those_of_the_answer_that_stays(self):
        """What came before a restart is no part of it, and one piece is none."""
        first = [Started(), TextDelta("one "), TextDelta("two")]
        assert pieces_of(first) == (4, 3)
        assert pieces_of([*first, Restarted("b"), TextDelta("a"), TextDelta("bc"), Finished()]) == (1, 2)
        assert pieces_of([*first, Restarted("b"), TextDelta("abc"), Finished()]) == ()


@pytest.fixture(params=["memory", "file"])
def make(request, tmp_path):
    """Builds a store of each kind."""
    made = []

    def build(**options):
        kind = MemoryStore if request.param == "memory" else SQLiteStore
        args = () if request.param == "memory" else (tmp_path / f"cache{len(made)}.db",)
        made.append(kind(*args, **options))
        return made[-1]

    yield build
    for store in made:
        store.close()


def entry(size: int = 10, stored: float = 0.0) -> Entry:
    return Entry(b"x" * size, stored, stored + 100)


class TestStores:
    def test_the_least_recently_used_goes_first(self, make):
        """Being read is being used."""
        store = make(max_items=3)
        for now, name in enumerate(b"abc"):
            assert store.put(bytes([name]), entry(), 1e9, float(now)) == 0
        assert store.get(b"a", 3.0) is not None
        assert store.put(b"d", entry(), 1e9, 4.0) == 1
        assert [store.get(bytes([n]), 5.0) is not None for n in b"abcd"] == [True, False, True, True]
        assert store.size()[0] == 3

    def test_bytes_are_bounded_too(self, make):
        """Content and what it takes to hold it."""
        store = make(max_bytes=3_000)
        for now in range(20):
            store.put(bytes([now]), entry(750), 1e9, float(now))
        assert store.size() == (3, 3_000)
        store.put(b"big", entry(5_000), 1e9, 30.0)
        assert store.get(b"big", 31.0) is None
        assert store.size()[0] == 3

    def test_what_has_had_its_time_is_gone(self, make):
        """And takes no room."""
        store = make()
        store.put(b"a", entry(), 50.0, 0.0)
        assert store.get(b"a", 49.0) == entry()
        assert store.get(b"a", 50.0) is None
        store.put(b"b", entry(), 90.0, 60.0)
        assert store.size()[0] == 1

    def test_the_same_key_is_one_entry(self, make):
        """The newer takes the older's place, with its own size."""
        store = make()
        store.put(b"a", entry(500), 1e9, 0.0)
        store.put(b"a", entry(10), 1e9, 1.0)
        assert store.size() == (1, 260)
        assert store.get(b"a", 2.0) == entry(10)

    def test_discard_spares_what_has_been_written_since(self, make):
        """A poisoned entry is removed, the good one that another process has put in its place is not."""
        store = make()
        store.put(b"a", entry(5), 1e9, 0.0)
        store.discard(b"a", b"something else")
        assert store.get(b"a", 1.0) is not None
        store.discard(b"a", b"x" * 5)
        assert store.get(b"a", 1.0) is None
        assert store.size() == (0, 0)
        assert store.put(b"a", entry(), 1e9, 0.0) == 0
        assert store.clear() == 1
        assert store.size() == (0, 0)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("pgdc"), st.integers(0, 5), st.integers(0, 900)), max_size=30))
    def test_both_stores_are_one_plain_model(self, tmp_path_factory, steps):
        """A dictionary in the order of use."""
        memory = MemoryStore(max_items=3, max_bytes=2_000)
        file = SQLiteStore(tmp_path_factory.mktemp("c") / "c.db", 3, 2_000)
        model: dict[bytes, Entry] = {}
        for now, (step, name, size) in enumerate(steps, 1):
            key = bytes([name])
            if step == "p":
                new = entry(size, float(now))
                model.pop(key, None)
                gone = 0
                while model and (
                    len(model) >= 3 or sum(len(e.body) + 250 for e in model.values()) + size + 250 > 2_000
                ):
                    del model[next(iter(model))]
                    gone += 1
                model[key] = new
                assert memory.put(key, new, 1e9, float(now)) == gone
                assert file.put(key, new, 1e9, float(now)) == gone
            elif step == "g":
                if key in model:
                    model[key] = model.pop(key)
                assert memory.get(key, float(now)) == file.get(key, float(now)) == model.get(key)
            elif step == "d":
                model.pop(key, None)
                memory.discard(key)
                file.discard(key)
            else:
                assert memory.clear() == file.clear() == len(model)
                model.clear()
            assert memory.size() == file.size() == (len(model), sum(len(e.body) + 250 for e in model.values()))
        file.close()


class TestPoisoned:
    @pytest.mark.parametrize("body", [b"", b"lfc1", b"\0" * 64, "text", None], ids=str)
    def test_a_poisoned_row_is_a_miss_and_is_removed(self, tmp_path, body):
        """Cut short, overwritten, or no bytes at all."""
        path = tmp_path / "c.db"
        cache = ResponseCache(path=path)
        cache.keep(KEY, ANSWER, 100.0)
        assert cache.find([KEY], 101.0) is not None
        with closing(sqlite3.connect(path)) as other, other:
            written = other.execute("SELECT body FROM entries").fetchone()[0]
            other.execute("UPDATE entries SET body = ?", (written[:-3] if body is None else body,))
        assert cache.find([KEY], 101.0) is None
        assert (cache.stats().poisoned, cache.stats().items) == (1, 0)
        cache.keep(KEY, ANSWER, 102.0)
        assert cache.find([KEY], 103.0).kept == ANSWER
        cache.close()

    @pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 5_000])
    def test_a_file_that_is_no_cache_is_left_alone_and_told_once(self, tmp_path, content, caplog):
        """Requests go on without it; it is not overwritten."""
        path = tmp_path / "c.db"
        path.write_bytes(content)
        cache = ResponseCache(path=path)
        with caplog.at_level(logging.WARNING, "llm_fallback.cache"):
            for _ in range(3):
                cache.keep(KEY, ANSWER, 100.0)
                assert cache.find([KEY], 101.0) is None
        assert len(caplog.records) == 1
        assert cache.stats().errors >= 3
        assert path.read_bytes()[: len(content)] == content

    def test_a_database_of_somebody_else_is_left_alone(self, tmp_path):
        """A ledger given as the cache by mistake keeps its tables and gets no other."""
        path = tmp_path / "c.db"
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE mine (a)")
        cache = ResponseCache(path=path)
        cache.keep(KEY, ANSWER, 0.0)
        assert cache.find([KEY], 1.0) is None
        cache.close()
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]

    def test_a_locked_file_is_a_miss(self, tmp_path, monkeypatch):
        """Whoever else is writing is not waited for."""
        monkeypatch.setattr("shared_core.cache.sqlite._BUSY_S", 0.01)
        path = tmp_path / "c.db"
        cache = ResponseCache(path=path)
        cache.keep(KEY, ANSWER, 0.0)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            cache.keep(b"l" * 32, ANSWER, 0.0)
            assert cache.find([KEY], 1.0) is not None
            other.execute("ROLLBACK")
        assert cache.stats().errors == 1
        cache.keep(b"l" * 32, ANSWER, 0.0)
        assert cache.find([b"l" * 32], 1.0) is not None
        cache.close()


class TestTime:
    def test_a_clock_that_went_back_makes_a_miss(self):
        """How old the answer is, nobody knows then."""
        cache = ResponseCache(ttl_s=10)
        cache.keep(KEY, ANSWER, 100.0)
        assert cache.find([KEY], 99.0) is None
        assert cache.find([KEY], 109.9) is not None
        assert cache.find([KEY], 110.0) is None

    def test_a_shorter_time_of_life_holds_for_what_was_kept_before(self, tmp_path):
        """Another process may have kept it for longer."""
        one, other = ResponseCache(path=tmp_path / "c.db"), ResponseCache(path=tmp_path / "c.db", ttl_s=10)
        one.keep(KEY, ANSWER, 0.0)
        assert one.find([KEY], 11.0) is not None
        assert other.find([KEY], 11.0) is None
        one.close()
        other.close()


def _work(path: str, number: int, count: int, out) -> None:
    cache = ResponseCache(path=path, max_items=40)
    found = 0
    for step in range(count):
        key = bytes([step * step % 60]) * 32
        kept = Kept(f"answer {step * step % 60} " * 60, cost_nano=step)
        got = cache.find([key], float(step))
        if got is not None:
            assert got.kept.text == kept.text
            found += 1
        cache.keep(key, kept, float(step))
    out.put((number, found, cache.stats().errors, cache.stats().poisoned))
    cache.close()


class TestProcesses:
    def test_processes_share_a_file(self, tmp_path):
        """Nobody reads half an answer or another's, and the file stays within its bounds and whole."""
        path = os.fspath(tmp_path / "c.db")
        context = multiprocessing.get_context("spawn")
        out = context.Queue()
        crew = [context.Process(target=_work, args=(path, n, 80, out)) for n in range(3)]
        for process in crew:
            process.start()
        results = [out.get(timeout=60) for _ in crew]
        for process in crew:
            process.join(30)
        assert all(process.exitcode == 0 for process in crew)
        assert all(poisoned == 0 and errors == 0 for _, _, errors, poisoned in results)
        assert sum(found for _, found, _, _ in results) > 0
        cache = ResponseCache(path=path, max_items=40)
        assert 0 < cache.stats().items <= 40
        cache.close()
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert (
                file.execute("SELECT count(*), sum(takes) FROM entries").fetchone()
                == file.execute("SELECT items, bytes FROM total").fetchone()
            )
            assert file.execute("SELECT name FROM migrations").fetchall() == [("0001_entries",)]

    def test_a_forked_process_opens_the_file_for_itself(self, tmp_path):
        """And neither disturbs its parent's."""
        code = f"""
            import os
            from shared_core import ResponseCache
            from shared_core.cache.entry import Kept
            cache = ResponseCache(path={os.fspath(tmp_path / "c.db")!r})
            cache.keep(b"a" * 32, Kept("of the parent"), 0.0)
            if (pid := os.fork()) == 0:
                ok = cache.find([b"a" * 32], 1.0).kept.text == "of the parent"
                cache.keep(b"b" * 32, Kept("of the child"), 0.0)
                os._exit(0 if ok and not cache.stats().errors else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert cache.find([b"b" * 32], 1.0).kept.text == "of the child"
            assert cache.stats().errors == 0
        """
        subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True)

    def test_threads_share_a_store(self, make):
        """No entry is lost or counted twice."""
        store = make(max_items=50)

        def work(number: int) -> None:
            for step in range(100):
                key = bytes([number, step % 30])
                store.put(key, entry(step), 1e9, float(step))
                store.get(key, float(step))

        crew = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        items, taken = store.size()
        assert items == 50
        assert taken <= 50 * (250 + 100)


class TestOptions:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"ttl_s": 0}, {"ttl_s": "1h"}, {"max_items": 0}, {"max_items": 1.5}, {"max_bytes": 0}, {"pace": -1},
            {"chunk": 0}, {"compress_over": -1}, {"stale_if_error_s": float("nan")}, {"tenant": 7}, {"store": object()},
            {"path": "/no/such/folder/c.db"}, {"path": "/"}, {"path": 5}, {"tool_calls": "no"}, {"single_flight": "no"},
            {"stale_if_error": -1}, {"stale_if_error": 5, "stale_if_error_s": 5},
        ],
        ids=str,
    )  # fmt: skip
    def test_options_that_make_no_sense_are_refused_when_given(self, wrong):
        """Each with what would make sense."""
        with pytest.raises(ConfigurationError):
            ResponseCache(**wrong)

    def test_an_unknown_option_names_the_nearest(self):
        """As everywhere."""
        with pytest.raises(UnknownOption, match="ttl_s"):
            ResponseCache.of({"ttl": 60})
        with pytest.raises(ConfigurationError, match="mapping"):
            ResponseCache.of(3600)

    def test_every_way_to_say_it(self, tmp_path):
        """True, a mapping as a file would hold it, a path, a store, one ready; False and None are none."""
        assert ResponseCache.of(False) is ResponseCache.of(None) is None
        assert ResponseCache.of(True).ttl_s == 3600
        assert ResponseCache.of({"ttl_s": 60}).ttl_s == 60
        http = ResponseCache.of({"stale_if_error": 60})
        assert (http.stale_if_error_s, dict(http.options)) == (60, {"stale_if_error_s": 60})
        assert isinstance(ResponseCache.of(tmp_path / "c.db").store, SQLiteStore)
        store = MemoryStore()
        assert ResponseCache.of(store).store is store
        ready = ResponseCache()
        assert ResponseCache.of(ready) is ready

    def test_it_travels_as_its_options(self):
        """Another process has its own memory."""
        import pickle

        cache = ResponseCache(ttl_s=60, tool_calls=True)
        cache.keep(KEY, ANSWER, 0.0)
        again = pickle.loads(pickle.dumps(cache))
        assert (again.ttl_s, again.tool_calls, again.stats().items) == (60, True, 0)
        assert repr(cache) == "ResponseCache(ttl_s=60, tool_calls=True)"
