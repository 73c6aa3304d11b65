"""Runs in the copy, as a process of its own: makes the mutants, collects the tests once, and forks for every mutant.

mutmut makes the mutants and switches them on. Its own loop collects the tests anew for each of them, in an order of
chance; here they are collected once, and of the tests that reach a changed function those go first that have killed
its last mutants, then those that reach the fewest others. The first that fails ends it, so that most mutants cost
about as much as one test.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

RESULTS = "results.txt"
"""In the copy: one line for each mutant that is done, its name and an exit status as mutmut would keep it."""

SURVIVED, KILLED, NO_TESTS, TIMEOUT = 0, 1, 33, 36

CPU_S, CPU_TIMES = 5.0, 20.0
"""A test may take so many seconds of the processor, and so many times what it took without a mutant, beside."""
WALL_S, WALL_TIMES = 60.0, 100.0
"""The same by the clock on the wall: for one that waits for ever. Busy machines included."""
MEMORY = 4 << 30
"""So many bytes more than at the start."""


class Loop:
    """A plugin of pytest that runs the tests once for every mutant, instead of once."""

    def __init__(self, files: Sequence[str], children: int, results: Path) -> None:
        self.files, self.children, self.results = files, children, results
        self.took: dict[str, float] = {}
        self.reached: dict[str, list[str]] = defaultdict(list)
        """By function, mangled: the tests that call it."""
        self.breadth: dict[str, int] = {}
        """By test: how many functions it reaches."""
        self.killers: dict[str, dict[str, int]] = defaultdict(dict)
        """By function: the tests that have killed, and how many mutants had ended when they last did."""
        self.items: dict[str, pytest.Item] = {}
        self.around: frozenset[str] = frozenset()
        """The fixtures that are around every test."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        # That an example fails is enough; nobody reads the smallest.
        settings.register_profile("mutants", settings(), phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed or not session.items:
            raise session.Failed("the tests cannot be collected")
        self.items = {item.nodeid: item for item in session.items}
        tests = [item for item in session.items if isinstance(item, pytest.Function)]
        self.around = frozenset.intersection(*(frozenset((*test.fixturenames, "request")) for test in tests))
        gc.collect()
        gc.freeze()  # what is never looked at by the collector is not copied in the children
        self._measure(session)
        mutants = [(name, name.partition("__mutmut_")[0]) for file in self.files for name in _names(file)]
        with self.results.open("w", encoding="utf-8", buffering=1) as out:
            self._all(mutants, lambda name, status: out.write(f"{name} {status}\n"))
        return True

    def _measure(self, session: pytest.Session) -> None:
        """Run the tests without a mutant: as pytest does, seeing who calls what, and as mutants are, last ones first.

        Then once with all functions failing, which must be noticed.
        """
        told = self.results.with_suffix(".json")
        if self._wait(self._fork(lambda: self._without(told)))[1]:
            raise session.Failed("the tests fail without a mutant")
        found = json.loads(told.read_text(encoding="utf-8"))
        self.took = {test: took for test, (took, _) in found.items()}
        for test, (_, functions) in found.items():
            self.breadth[test] = len(functions)
            for function in functions:
                self.reached[function].append(test)
        if self._wait(self._fork(lambda: self._with("", list(reversed(self.took)))))[1] != SURVIVED:
            raise session.Failed("the tests fail without a mutant when they are run in another order")
        someone = sorted(set().union(*self.reached.values()))[:20]
        if self._wait(self._fork(lambda: self._with("fail", someone)))[1] != KILLED:
            raise session.Failed("the tests do not reach the copy that is changed")

    def _without(self, told: Path) -> int:
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state

        set_mutant_under_test("stats")
        found: dict[str, tuple[float, list[str]]] = {}
        items = list(self.items.values())
        for item, after in zip(items, [*items[1:], None], strict=True):
            state()._stats.clear()
            began = time.process_time()
            for report in runtestprotocol(item, log=False, nextitem=after):
                if report.failed:
                    print(f"{item.nodeid}: {report.longreprtext}", flush=True)
                    return KILLED
            found[item.nodeid] = (time.process_time() - began, sorted(state()._stats))
        told.write_text(json.dumps(found), encoding="utf-8")
        return SURVIVED

    def _all(self, mutants: Sequence[tuple[str, str]], tell: Callable[[str, int], object]) -> None:
        running: dict[int, tuple[str, str, Path]] = {}
        ended = 0

        def one_ends() -> None:
            nonlocal ended
            ended += 1
            pid, status = self._wait()
            name, function, killer = running.pop(pid)
            if killer.exists():
                self.killers[function][killer.read_text(encoding="utf-8")] = ended
                killer.unlink()
            tell(name, status)

        for name, function in mutants:
            tests = self.reached.get(function)
            if not tests:
                tell(name, NO_TESTS)
                continue
            latest = self.killers[function]
            ordered = sorted(tests, key=lambda test: (-latest.get(test, 0), self.breadth[test], self.took[test]))
            killer = self.results.with_name(f"killer-{name}")
            while len(running) >= self.children:
                one_ends()
            running[self._fork(lambda: self._with(name, ordered, killer))] = (name, function, killer)  # noqa: B023  # forked and called at once
        while running:
            one_ends()

    def _with(self, mutant: str, tests: Sequence[str], killer: Path | None = None) -> int:
        """In the child: whether one of the tests fails under the mutant."""
        from mutmut.mutation import trampoline

        most = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        trampoline.set_mutant_under_test(mutant)
        trampoline.get_mutant_under_test = lambda: mutant  # it is asked at every call, and would look in os.environ
        items = [self.items[test] for test in tests]
        plain = [_plain(item, self.around) for item in items]
        # What pytest has set up stays for the next test that pytest runs: those called plainly leave it as it is.
        follows: list[pytest.Item | None] = []
        after: pytest.Item | None = None
        for item, arguments in zip(reversed(items), reversed(plain), strict=True):
            follows.append(after)
            after = item if arguments is None else after
        for test, item, arguments, after in zip(tests, items, plain, reversed(follows), strict=True):
            item.repr_failure = _unread  # type: ignore[method-assign]  # see there
            # The default action of both signals is to end the process: no code of the mutant's can hold them up.
            signal.setitimer(signal.ITIMER_PROF, CPU_S + CPU_TIMES * self.took[test])
            signal.setitimer(signal.ITIMER_REAL, WALL_S + WALL_TIMES * self.took[test])
            if _fails(item, arguments, after):
                if killer is not None:
                    killer.write_text(test, encoding="utf-8")
                return KILLED
        return SURVIVED

    def _fork(self, work: Callable[[], int]) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        status = 70  # of no meaning to anybody: unknown
        try:
            status = work()
        except KeyboardInterrupt:
            status = 2
        except BaseException as error:  # noqa: BLE001  # what a mutant throws past pytest kills it, whatever it is
            traceback.print_exc()
            status = KILLED if not isinstance(error, SystemExit) else 70
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _wait(self, pid: int = -1) -> tuple[int, int]:
        pid, ended = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(ended)
        return pid, TIMEOUT if status in (-signal.SIGPROF, -signal.SIGALRM) else status


def _fails(item: pytest.Item, arguments: dict[str, object] | None, after: pytest.Item | None) -> bool:
    """Run a test: plainly where `arguments` are all it needs, else as pytest does, before `after`."""
    if arguments is None:
        return any(report.failed for report in runtestprotocol(item, log=False, nextitem=after))
    assert isinstance(item, pytest.Function)
    try:
        item.obj(**arguments)
    except pytest.skip.Exception:
        return False
    except (Exception, pytest.fail.Exception):  # noqa: BLE001  # whatever it is that a mutant throws
        return True
    return False


def _plain(item: pytest.Item, around: frozenset[str]) -> dict[str, object] | None:
    """What a test is to be called with that needs nothing but its parameters: that takes a tenth of pytest's time.

    The fixtures that are around every test make no difference to a process that ends with its first failure.
    """
    if not isinstance(item, pytest.Function) or item.cls is not None or inspect.iscoroutinefunction(item.obj):
        return None
    marks = list(item.iter_markers())
    if any(mark.name != "parametrize" or "indirect" in mark.kwargs for mark in marks):
        return None
    names: set[str] = set()
    for mark in marks:
        given = mark.args[0]
        names.update(part.strip() for part in given.split(",")) if isinstance(given, str) else names.update(given)
    if set(item.fixturenames) - around != names:
        return None
    return {name: item.callspec.params[name] for name in names} if names else {}


def _unread(*_: object, **__: object) -> str:
    """In place of a failure's text, which nobody reads, and which takes reading the changed file of 100,000 lines."""
    return "failed"


def _names(file: str) -> list[str]:
    keys: dict[str, object] = json.loads(Path(f"{file}.meta").read_text(encoding="utf-8"))["exit_code_by_key"]
    return list(keys)


def main(children: int) -> int:
    """Make the mutants of what the copy's pyproject.toml names, and test them."""
    from mutmut.__main__ import create_mutants
    from mutmut.configuration import config
    from mutmut.mutation.trampoline import set_mutant_under_test
    from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, setup_source_paths

    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(children)
    set_mutant_under_test("")
    files = [str(path) for path in config().source_paths]
    tests, options = config().pytest_add_cli_args_test_selection, config().pytest_add_cli_args
    results = Path(RESULTS).resolve()
    os.chdir("mutants")
    arguments = ["--rootdir=.", "--tb=native", "-q", "-p", "no:randomly", "--capture=sys", *options, *tests]
    return int(pytest.main(arguments, plugins=[Loop(files, children, results)]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
