"""A process forks while its other threads are in the middle of requests: the child has a router that works."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from shared_core import Limits, Router, Target
from shared_core._forks import after_fork
from shared_core.testing import ScriptedProvider

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def alone(code: str) -> None:
    """Run it in a process of its own: forking one with threads is what is tried, and warned of."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=120)


@forks
@pytest.mark.parametrize(
    "lock",
    [
        "router._fleet._lock",
        "router._changing",
        "gate._lock",
        "gate.account.mutex",
        "gate.limiter._lock",
        "router._fleet.line.rules.flow.hedger._lock",
        "heir._fleet.routes[0].gate._lock",
        "ledger._lock",
    ],
)
def test_a_lock_that_another_thread_held_keeps_no_child_waiting(lock):
    """Each of those on a request's way, also where a second router has taken over what the first had learnt."""
    alone(
        f"""
        import os, signal, threading
        from shared_core import Limits, Router, Target
        from shared_core.testing import ScriptedProvider
        target = Target(provider=ScriptedProvider("x"), name="a", limits=Limits(concurrency=1, queue=5))
        router = Router(target, hedge=True)
        heir = router.updated(hedge=False)
        gate, ledger = router._fleet.routes[0].gate, router.ledger
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
            said = [one.invoke("Hi").text for one in (router, heir)]
            router.reconfigure(targets=[target, Target(provider=ScriptedProvider("y"), name="b")])
            os._exit(0 if said == ["x", "x"] and len(ledger.entries()) == 2 else 1)
        status = os.waitpid(pid, 0)[1]
        go.set()
        thread.join(10)
        assert status == 0
        assert router.invoke("Hi").text == "x"
        """
    )


@forks
@pytest.mark.parametrize("options", ["", "cache=True", "budgets=Budget(limit_usd=1e6, window='day')"])
def test_a_child_answers_whenever_it_is_forked(options):
    """While threads hammer the router that it inherits: whatever they were about to do, it is not waited for."""
    alone(
        f"""
        import os, signal, sys, threading, time
        from shared_core import Budget, Limits, Price, Router, Target
        from shared_core.ledger import MemoryLedger
        from shared_core.testing import ScriptedProvider
        under_way = range(5)  # rows of the parent's threads that nobody here will close
        sys.setswitchinterval(1e-5)
        limits = Limits(concurrency=4, queue=100)
        targets = [Target(provider=ScriptedProvider("x"), name=n, price=Price(1, 1), limits=limits) for n in "ab"]
        router = Router(targets, hedge=True, ledger=MemoryLedger(10**6), {options})
        over = threading.Event()
        def hammer():
            while not over.is_set():
                router.invoke("Hi")
                "".join(str(event) for event in router.stream("Ho"))
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(40):
            time.sleep(0.002)
            if (pid := os.fork()) == 0:
                signal.alarm(10)
                said = [router.invoke(text).text for text in ("Hi", "Ha", "He", "Hu", "Hy")]
                rows, total = router.ledger.entries(), router.ledger.costs().total
                whole = len(rows) - total.attempts - total.hits
                os._exit(0 if said == ["x"] * 5 and whole in under_way else 1)
            status = os.waitpid(pid, 0)[1]
            if status:
                break
        over.set()
        for thread in threads:
            thread.join(30)
        assert status == 0
        """
    )


@forks
def test_what_is_in_flight_is_the_parents():
    """A child has all slots, nobody is ahead of it in line, and its requests have ids of their own."""
    alone(
        """
        import os, signal, threading
        from shared_core import Limits, Router, Target
        from shared_core.testing import ScriptedProvider
        from tests.cache.gated import Gated, until
        provider = Gated()
        router = Router(Target(provider=provider, name="a", limits=Limits(concurrency=1, queue=5)))
        threads = [threading.Thread(target=router.invoke, args=("Hi",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        gate = router._fleet.routes[0].gate
        until(lambda: gate.limiter.in_flight == 1 and gate.limiter.waiting == 1)
        first = router._prefix
        if (pid := os.fork()) == 0:
            signal.alarm(10)
            provider.go()
            ours = gate.limiter.in_flight, gate.limiter.waiting, gate.health.in_flight
            mine = router.invoke("Hi").fallback["id"].split("-")[0]
            after = gate.limiter.in_flight, gate.health.in_flight
            os._exit(0 if ours == (0, 0, 0) and after == (0, 0) and mine != first else 1)
        status = os.waitpid(pid, 0)[1]
        provider.go()
        for thread in threads:
            thread.join(30)
        assert status == 0
        """
    )


def test_a_stream_that_was_begun_before_frees_no_slot_that_is_not_taken():
    """Its lease is the parent's; were it counted, the child would have one slot more than was allowed."""
    router = Router(Target(provider=ScriptedProvider("a b"), name="a", limits=Limits(concurrency=1)))
    gate = router._fleet.routes[0].gate
    stream = iter(router.stream("Hi"))
    next(stream)
    assert (gate.limiter.in_flight, gate.health.in_flight) == (1, 1)
    router._fleet._in_child()
    assert (gate.limiter.in_flight, gate.health.in_flight) == (0, 0)
    for _ in stream:
        pass
    assert (gate.limiter.in_flight, gate.health.in_flight) == (0, 0)


def test_whoever_asks_to_be_told_is_told_however_many_ask_at_once():
    """Nobody is forgotten because another one was added at the same moment; who is gone is."""
    from concurrent.futures import ThreadPoolExecutor

    from shared_core import _forks

    class One:
        def tell(self) -> None:
            """Nothing."""

    before = len(_forks._waiting)
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ones = [One() for _ in range(2_000)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: after_fork(one.tell), ones))
        assert all(_forks._waiting[one] == (One.tell,) for one in ones)
    finally:
        sys.setswitchinterval(old)
    del ones
    assert len(_forks._waiting) <= before


@forks
@pytest.mark.parametrize("kind", ["cache", "ledger"])
def test_a_file_that_is_being_opened_again_holds_up_no_fork(kind, tmp_path):
    """Its owner was told of forks when it was made, and asks for nothing that a fork holds while it opens."""
    alone(
        f"""
        import os, signal, threading, time
        signal.alarm(30)
        if {kind!r} == "cache":
            from shared_core.cache import sqlite as module
            one = module.SQLiteStore({str(tmp_path / "file.db")!r})
            use, name = lambda: one.size(), "connect"
        else:
            from shared_core.ledger import SQLiteLedger, _writer as module
            one = SQLiteLedger({str(tmp_path / "file.db")!r})
            use, name = lambda: one.meters(), "opened"
        use()
        one.close()
        real, begun = getattr(module, name), threading.Event()
        def slowly(*given, **named):
            begun.set()
            time.sleep(0.05)  # by now somebody waits to fork
            return real(*given, **named)
        setattr(module, name, slowly)
        thread = threading.Thread(target=use)
        thread.start()
        assert begun.wait(10)
        if (pid := os.fork()) == 0:
            signal.alarm(10)
            use()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        thread.join(10)
        assert status == 0 and not thread.is_alive()
        """
    )
