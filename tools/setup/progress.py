"""Runs a long command and says, while it runs, how far it is and for how long it has been at it."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

QUIET_EVERY_S = 10.0
"""Where output is not a terminal, a line about this often."""

TAIL = 40
"""Lines of a failed command's output that are shown."""


class SetupError(Exception):
    """Set-up cannot go on. The message says what to do about it."""


def say(text: str) -> None:
    """One line to the person waiting."""
    print(f"setup: {text}", flush=True)


class ProgressLine:
    """One line that is redrawn on a terminal, or repeated every ten seconds elsewhere (a log, CI)."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._tty = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._printed = self._started
        self._width = 0
        if not self._tty:
            say(f"{title} ...")

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def update(self, state: str) -> None:
        """Show `state`: at once on a terminal, when ten seconds have passed elsewhere."""
        text = ", ".join(filter(None, (f"setup: {self._title}", state, f"{self.elapsed_s:.0f} s")))
        if self._tty:
            text = text[: shutil.get_terminal_size().columns - 1]
            print("\r" + text.ljust(self._width), end="", flush=True)
            self._width = len(text)
        elif time.monotonic() - self._printed >= QUIET_EVERY_S:
            self._printed = time.monotonic()
            print(text, flush=True)

    def close(self, outcome: str) -> None:
        """The last word on this step."""
        text = f"setup: {self._title}: {outcome} in {self.elapsed_s:.0f} s"
        print(("\r" + text.ljust(self._width)) if self._tty else text, flush=True)


def run(
    title: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    state: Callable[[str], str | None] = lambda _line: None,
    watch: Callable[[], str | None] = lambda: None,
    env: Mapping[str, str] | None = None,
    nice: int = 0,
) -> None:
    """Run `command`, its output into `log`, saying how far it is.

    `state` reads that from a line of the output, `watch` (asked twice a second) from elsewhere, and goes first.
    Raises SetupError with the end of the output if the command fails. Interrupting stops the command as well.
    """
    line = ProgressLine(title)
    words = [str(word) for word in command]
    if nice and sys.platform != "win32":
        words = ["nice", "-n", str(nice), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=TAIL)
    shown = ""
    with log.open("w", encoding="utf-8", errors="replace") as out:
        out.write(shlex.join(words) + "\n")
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(env) if env is not None else None,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that an interrupt reaches the compilers through us, and all of them
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
        try:
            while True:
                try:
                    text = lines.get(timeout=0.5)
                except queue.Empty:
                    line.update(watch() or shown)
                    continue
                if text is None:
                    break
                out.write(text)
                out.flush()
                tail.append(text)
                shown = state(text) or shown
                line.update(watch() or shown)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait()
            raise
        code = process.wait()
    if code:
        line.close("FAILED")
        end = "".join(tail)
        raise SetupError(f"{title} failed (exit status {code}). The end of its output:\n\n{end}\nAll of it: {log}")
    line.close("done")


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        lines.put(text)
    lines.put(None)


@contextlib.contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while inside: a second set-up of the same thing waits, and says that it does."""
    import fcntl

    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another process is {what}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
