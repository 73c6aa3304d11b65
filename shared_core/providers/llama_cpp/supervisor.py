"""The parent's half: one thread per model owns the worker process, all talk with it, its restarts and its end.

Callers hand in a `Call` and read its mailbox; they never touch the socket. So any number of threads and event loops may
call at once, a stopped worker can block nobody, and the process's owning thread lives as long as it does (on Linux the
kernel kills the worker when that thread goes, which must not be some caller's).

    cold ──call──> loading ──> ready ──crash──> cold (a running call fails; the next one restarts, with a backoff)
                      └─ the file cannot be loaded: every waiting call gets InvalidModelFile

Who is served, who waits and who is turned away is decided in `schedule`; here it is done.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared_core.errors import ConfigurationError, ErrorKind, InvalidModelFile, MissingDependency, ProviderError
from shared_core.providers.llama_cpp.mailbox import Call
from shared_core.providers.llama_cpp.schedule import Crashes, Schedule, TurnedAway
from shared_core.providers.llama_cpp.wire import FrameError, Frames, frame

__all__ = ["Busy", "Supervisor", "acquire", "release"]

log = logging.getLogger("llm_fallback.llama_cpp")

CANCEL_GRACE_S = 0.25
"""Seconds a worker may take to obey a cancel before it is killed and started anew."""
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_STDERR_KEPT = 4096
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


class Busy(Exception):
    """There is no turn for this call: the queue is full, or it would come too late, or it did not come in time.

    `retry_after_s` is when to come again, if that is known; `too_late` that it would be too late then.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None, *, too_late: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.too_late = too_late


class Supervisor:
    """One worker process for one model file with one set of options."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        queue: int,
        max_restarts: int,
        startup_timeout_s: float,
        rlimit_as: int | None,
        stand_by: bool = False,
    ) -> None:
        """`stand_by` loads the model again after a crash, without waiting for a call."""
        self._settings = dict(settings)
        self._queue, self._max_restarts, self._stand_by = queue, max_restarts, stand_by
        self._startup_timeout_s, self._rlimit_as = startup_timeout_s, rlimit_as
        self.references = 0
        self._reset()
        _watch_forks()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a finalizer may close us inside our own thread
        self._schedule: Schedule[Call] = Schedule(self._queue)
        self._crashes = Crashes(self._max_restarts)
        self._warming: list[Call] = []
        self._thread: threading.Thread | None = None
        self._selector: selectors.BaseSelector | None = None
        self._wake: socket.socket | None = None
        self._woken: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._closed = False
        self._ready = False
        self._kill_at = float("inf")
        self._started_at = 0.0
        self._frames = Frames()
        self._out = bytearray()
        self._stderr = b""
        self._ids = 0
        self._progress = 0.0
        self._load_s: float | None = None
        self._load_failure: str | None = None
        self.facts: dict[str, Any] = {}
        """What the worker reported when it was ready: context, GPU offload, threads. Empty before."""

    # ── for callers, from any thread ─────────────────────────────────────────────────────────────────────────────────

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        process = self._process
        return process.pid if process is not None else None

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, so that a call is answered without waiting for that."""
        return self._ready

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def load(self) -> tuple[int, int]:
        """Requests being served and requests waiting."""
        with self._lock:
            return int(self._schedule.running is not None), len(self._schedule.waiting)

    def submit(self, call: Call, *, left_s: float = math.inf) -> None:
        """Queue a call with `left_s` seconds to its deadline.

        Raises:
            Busy: there is no turn for it.
            ProviderError: it crashed too often lately; `retry_after_s` says when to come again.
            RuntimeError: closed.
        """
        now = time.monotonic()
        with self._lock:
            if self._closed:
                raise RuntimeError("this local model is closed")
            displaced: Call | None = None
            if call.op == "warm":
                if self._ready:
                    call.put({"ev": "done"})
                    return
                self._refuse_if_unhealthy(now)
                self._warming.append(call)
            else:
                self._refuse_if_unhealthy(now)
                answer = self._schedule.submit(call, now, left_s=left_s)
                if isinstance(answer, TurnedAway):
                    raise Busy(answer.reason, answer.retry_after_s, too_late=answer.too_late)
                displaced = answer.displaced
                if not self._ready:
                    call.put({"ev": "loading"})
                elif self._schedule.running is not None:
                    call.put({"ev": "queued"})
            self._ensure_thread()
        self._nudge()
        if displaced is not None:
            _no_turn(displaced, "a request of higher priority has taken its place")

    def read_ahead(self, call: Call) -> None:
        """Let the model read this call's prompt while nobody needs it, until `forget`. Never blocks or starts it."""
        with self._lock:
            if self._closed:
                return
            self._schedule.read_ahead(call, time.monotonic())
        self._nudge()

    def forget(self, call: Call) -> None:
        """A prompt that was to be read ahead is not needed any more. Never blocks."""
        with self._lock:
            if not self._schedule.forget(call):
                return
            call.cancelled = True
        self._nudge()

    def wait_s(self, priority: int = 0) -> float | None:
        """Seconds until a call of this priority is expected to have its turn, loading included; None unmeasured."""
        now = time.monotonic()
        with self._lock:
            wait = self._schedule.wait_s(now, priority)
            if wait is None or self._ready:
                return wait
            begun = now - self._started_at if self._process is not None else 0.0
            return None if self._load_s is None else wait + max(0.0, self._load_s - begun)

    def unhealthy(self) -> tuple[str, float | None] | None:
        """Why calls fail at once or would fail again, and in how many seconds that may change; None if they do not."""
        with self._lock:
            too_often = self._crashes.unhealthy(time.monotonic())
            if too_often is not None:
                return too_often
            return None if self._load_failure is None else (self._load_failure, None)

    def report(self) -> dict[str, Any]:
        """What is known of it now: the worker's facts, its state, and the schedule's figures."""
        with self._lock:
            pid, rates = self.pid, self._schedule.rates
            state = "ready" if self._ready else "loading" if pid is not None else "cold"
            return {
                **{name: value for name, value in self.facts.items() if name != "warnings"},
                "state": state,
                "pid": pid,
                "memory_bytes": _resident(pid),
                "load_s": self._load_s,
                "serving": int(self._schedule.running is not None),
                "waiting": len(self._schedule.waiting),
                "wait_s": self.wait_s(),
                "prompt_tokens_per_s": rates.prompt_rate,
                "output_tokens_per_s": rates.output_rate,
            }

    def cancel(self, call: Call) -> None:
        """The caller has gone. Never blocks."""
        with self._lock:
            call.cancelled = True
            if self._schedule.remove(call):
                return
            if call is not self._schedule.running:
                if call in self._warming:
                    self._warming.remove(call)
                return
        self._nudge()

    def close(self) -> None:
        """End the worker and fail what still waits. Idempotent; returns when the process is gone (or after 2 s)."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._nudge()
            thread.join(2.0)
        _all.discard(self)

    def _nudge(self) -> None:
        wake = self._wake
        if wake is None:
            return
        try:
            wake.send(b"x")
        except (BlockingIOError, OSError):
            # Full: it is awake anyway. Closed: it has ended.
            return

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._wake, self._woken = socket.socketpair()
            self._wake.setblocking(False)
            self._woken.setblocking(False)
            self._thread = threading.Thread(target=self._own, name="llama-supervisor", daemon=True)
            self._thread.start()

    def _refuse_if_unhealthy(self, now: float) -> None:
        found = self._crashes.unhealthy(now)
        if found is not None:
            raise ProviderError.of(
                ErrorKind.TRANSIENT,
                f"the local model is unhealthy: {found[0]}",
                retry_after_s=round(found[1], 1),
                retryable_hint=False,
            )

    # ── the owning thread ────────────────────────────────────────────────────────────────────────────────────────────

    def _own(self) -> None:
        selector = self._selector = selectors.DefaultSelector()
        woken = self._woken
        assert woken is not None
        selector.register(woken, selectors.EVENT_READ, "wake")
        try:
            while self._act(selector):
                for key, _ in selector.select(self._patience()):
                    end: Any = key.fileobj
                    match key.data:
                        case "wake":
                            _drain(woken)
                        case "stderr":
                            # Both ends of a dead process are ready at once, and the first to be read closes the other.
                            if not end.closed:
                                self._read_stderr(end, selector)
                        case "socket":
                            self._exchange(selector)
        # The last line of defence: a fault in here must not leave callers waiting for ever.
        except Exception as error:
            log.exception("the supervisor of a local model failed")
            fault = repr(error)
            self._fail_everyone(lambda: RuntimeError(f"the supervisor of the local model failed: {fault}"))
        finally:
            self._end_process(selector, kill=False)  # it ends with its socket, and tidies up first
            selector.close()
            self._fail_everyone(lambda: ProviderError.of(ErrorKind.TRANSIENT, "the local model was closed"))
            with self._lock:
                self._thread = None
                for end in (self._wake, self._woken):
                    if end is not None:
                        end.close()
                self._wake = self._woken = self._selector = None

    def _act(self, selector: selectors.BaseSelector) -> bool:
        """Do what the state asks for; False ends the thread."""
        now = time.monotonic()
        schedule = self._schedule
        start = False
        give: Call | None = None
        late: list[Call] = []
        with self._lock:
            if self._closed:
                return False
            if self._process is None:
                start = bool(schedule.waiting or self._warming) and now >= self._crashes.not_before
            elif self._ready:
                late = schedule.expired(now)
                give = schedule.next(now)
                if give is not None:
                    self._ids += 1
                    give.id, give.accepted = self._ids, False
            running = schedule.running
            stop = running is not None and (running.cancelled or schedule.makes_way() is not None)
        for call in late:
            _no_turn(call, f"no turn in time, within {call.within_s:.1f} s")
        if start:
            self._start_process(selector)
        if give is not None:
            self._give(give, selector)
        if running is not None and stop and give is None and self._kill_at == float("inf"):
            self._kill_at = now + CANCEL_GRACE_S
            self._write({"op": "cancel", "id": running.id}, selector)
        if self._process is not None and now >= self._kill_at:
            log.warning("the local model did not obey a cancel within %g s: restarting it", CANCEL_GRACE_S)
            self._lost(selector, "it was killed because it did not obey a cancel", crash=False)
            return self._act(selector)
        if self._process is not None and not self._ready and now - self._started_at > self._startup_timeout_s:
            reason = f"loading took longer than startup_timeout_s={self._startup_timeout_s:g}"
            self._end_process(selector)
            self._fail_waiting(lambda: ProviderError.of(ErrorKind.TIMEOUT, f"the local model is not ready: {reason}"))
        return True

    def _give(self, call: Call, selector: selectors.BaseSelector) -> None:
        """Hand a call to the worker."""
        if callable(call.job):
            try:
                call.job = call.job()
            except Exception:
                # It is not needed: whoever asks for this prompt in earnest gets the error.
                log.debug("a prompt cannot be read ahead", exc_info=True)
                with self._lock:
                    self._schedule.ended(call)
                    self._schedule.forget(call)
                return
        if call.op != "prefill":
            call.put({"ev": "turn"})
        self._write({"op": call.op, "id": call.id, "job": call.job}, selector)

    def _patience(self) -> float | None:
        until = float("inf")
        with self._lock:
            if self._process is not None:
                until = min(until, self._kill_at)
                if not self._ready:
                    until = min(until, self._started_at + self._startup_timeout_s + 0.01)
                else:
                    until = min(until, self._schedule.next_expiry())
                    if self._schedule.running is None:
                        until = 0.0 if self._schedule.waiting else min(until, self._schedule.next_reading())
            elif self._schedule.waiting or self._warming:
                until = min(until, self._crashes.not_before)
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    def _start_process(self, selector: selectors.BaseSelector) -> None:
        ours, theirs = socket.socketpair()
        paths = [_PACKAGE_ROOT, *(p or os.getcwd() for p in sys.path if p != _PACKAGE_ROOT)]
        # A model file is somebody else's data, parsed in C++: the process that reads it has no business with our keys.
        environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name)}
        environment |= {"GGML_NO_BACKTRACE": "1", "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-m", "shared_core.providers.llama_cpp.worker"]
        command += [str(theirs.fileno()), str(os.getpid()), str(self._rlimit_as or 0)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        except OSError as error:
            ours.close()
            reason = f"the local model's process could not be started: {error}"
            self._fail_waiting(lambda: ProviderError.of(ErrorKind.TRANSIENT, reason))
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        selector.register(ours, selectors.EVENT_READ, "socket")
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        self._frames, self._out, self._stderr, self._progress = Frames(), bytearray(), b"", 0.0
        self._started_at, self._kill_at = time.monotonic(), float("inf")
        with self._lock:
            self._process, self._sock, self._ready = process, ours, False
        self._write({"op": "load", "settings": self._settings}, selector)

    def _write(self, message: dict[str, Any], selector: selectors.BaseSelector) -> None:
        if self._sock is None:
            return
        self._out += frame(message)
        selector.modify(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE, "socket")

    def _exchange(self, selector: selectors.BaseSelector) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if self._out:
                del self._out[: sock.send(self._out)]
                if not self._out:
                    selector.modify(sock, selectors.EVENT_READ, "socket")
        except BlockingIOError:
            pass  # its buffer is full; the selector will say when it is not
        except OSError:
            self._lost(selector)
            return
        try:
            data = sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(selector)
            return
        try:
            for message in self._frames.feed(data):
                self._heard(message, selector)
                if self._sock is not sock:
                    return
        except FrameError as error:
            self._lost(selector, f"it sent {error}")

    def _heard(self, message: dict[str, Any], selector: selectors.BaseSelector) -> None:
        match message.get("ev"):
            case "text" | "thought":  # first, as they are the many
                running = self._schedule.running
                if running is not None and message["id"] == running.id:
                    running.put(message)
            case "loaded":
                self._loaded(message["facts"])
            case "load_failed":
                self._load_failed(message, selector)
            case "progress":
                self._progress = message["value"]
            case "log":
                log.info("%s", message["line"])
            case "health":
                return
            case kind:
                running = self._schedule.running
                if running is None or message.get("id") != running.id:
                    return
                if kind == "accepted":
                    running.accepted = True
                    return
                self._learn(running, kind, message)
                if running.op != "prefill":
                    running.put(message)

    def _learn(self, running: Call, kind: Any, message: dict[str, Any]) -> None:
        """What a message of the running call says about the model's speed, and whether the call is over."""
        now, schedule = time.monotonic(), self._schedule
        with self._lock:
            if kind == "start" or (kind == "done" and running.op == "prefill"):
                schedule.spoke(now, message["prompt"] - message["cached"])
            elif kind == "done":
                schedule.finished(now, message["output"])
            if kind in ("done", "error", "cancelled", "counted"):
                schedule.ended(running, whole=kind == "done")
                self._kill_at = float("inf")
                if kind == "error" and running.op == "prefill":
                    schedule.forget(running)

    def _loaded(self, facts: dict[str, Any]) -> None:
        for warning in facts.get("warnings", ()):
            log.warning("%s: %s", self._settings["path"], warning)
        now = time.monotonic()
        with self._lock:
            self.facts = facts
            self._ready, self._load_failure = True, None
            self._load_s = now - self._started_at
            self._schedule.wait_anew(now)
            for place, call in enumerate(self._schedule.waiting):
                call.put({"ev": "loaded"})
                if place:
                    call.put({"ev": "queued"})
            warmed, self._warming = self._warming, []
        for call in warmed:
            call.put({"ev": "done"})

    def _load_failed(self, message: dict[str, Any], selector: selectors.BaseSelector) -> None:
        reason, path = message["reason"], self._settings["path"]
        self._end_process(selector)
        self._load_failure = f"it cannot be loaded: {reason}"
        match message.get("what"):
            case "dependency":
                extra = "xllamacpp" if self._settings.get("engine") == "xllamacpp" else "local"
                self._fail_waiting(lambda: MissingDependency(f"{reason}\nhint: pip install 'llm-fallback[{extra}]'"))
            case "config":
                self._fail_waiting(lambda: ConfigurationError(reason))
            case _:
                self._fail_waiting(lambda: InvalidModelFile(f"model file {path!r} cannot be loaded: {reason}"))

    def _lost(self, selector: selectors.BaseSelector, what: str | None = None, *, crash: bool = True) -> None:
        """The worker is gone, or is as good as gone."""
        loading = not self._ready
        stderr_end = self._process.stderr if self._process is not None else None
        code = self._end_process(selector, kill=what is not None)
        how = what or _how(code)
        said = _last_words(self._stderr)
        if stderr_end is not None and not stderr_end.closed:
            stderr_end.close()
        now = time.monotonic()
        ending = how + (f" ({said})" if said else "")
        with self._lock:
            if crash:
                self._crashes.died(now, ending)
            running = self._schedule.running
            self._schedule.forget_all()
            if running is not None:
                self._schedule.ended(running)
                if running.op == "prefill":  # perhaps it was this prompt
                    self._schedule.forget(running)
                    running = None
                elif not running.accepted and not running.cancelled:
                    # It died before it was given this call, only nobody had noticed yet: the next process serves it.
                    self._schedule.back(running, now)
                    running = None
        if running is not None:
            running.put({"ev": "died", "how": f"local model process {how}", "said": said})
        if loading and crash and code in _FAULTS:
            # llama.cpp itself fell over this file: asking again would end the same.
            path = self._settings["path"]
            self._load_failure = f"it cannot be loaded: llama.cpp {ending}"
            self._fail_waiting(lambda: InvalidModelFile(f"model file {path!r} cannot be loaded: llama.cpp {ending}"))
            return
        with self._lock:
            failed: list[Call] = []
            unhealthy = self._crashes.unhealthy(now) is not None
            if unhealthy:
                failed, self._warming = self._schedule.clear() + self._warming, []
            for call in self._schedule.waiting:
                call.put({"ev": "loading"})
            # Whoever lost an answer will ask again in a moment: the next process is loaded while they wait for that.
            again = running is not None and not running.cancelled and not unhealthy
            if (self._stand_by or again) and not self._warming:
                self._warming.append(Call("warm", unattended=self._stand_by))
        how += f" while loading {self._settings['path']!r}" if loading else ""
        if failed and self._stand_by:
            log.warning("a local model on standby is not ready for a while: its process %s", how)
        for call in failed:
            call.put({"ev": "died", "how": f"local model process {how}", "said": said})

    def _read_stderr(self, end: Any, selector: selectors.BaseSelector) -> None:
        try:
            data = os.read(end.fileno(), 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
        else:
            selector.unregister(end)
            end.close()

    def _end_process(self, selector: selectors.BaseSelector, *, kill: bool = True) -> int | None:
        """Reap the process and free its descriptors; returns how it ended."""
        process, sock = self._process, self._sock
        with self._lock:
            self._process = self._sock = None
            self._ready = False
        self._kill_at = float("inf")
        if sock is not None:
            selector.unregister(sock)
            sock.close()
        if process is None:
            return None
        if not kill:
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                kill = True  # it closed its socket and lives on
        if kill:
            process.kill()
            process.wait()
        end = process.stderr
        if end is not None and not end.closed:
            self._read_stderr(end, selector)  # what it said last
            if not end.closed:
                selector.unregister(end)
                end.close()
        return process.returncode

    def _fail_waiting(self, error: Callable[[], Exception]) -> None:
        with self._lock:
            failed = self._schedule.clear() + self._warming
            self._warming = []
        if any(call.unattended for call in failed) and not self._closed:
            log.warning("a local model on standby is not ready: %s", error())
        for call in failed:
            call.put({"ev": "failed", "error": error()})

    def _fail_everyone(self, error: Callable[[], Exception]) -> None:
        with self._lock:
            running = self._schedule.running
            if running is not None:
                self._schedule.ended(running)
        if running is not None:
            running.put({"ev": "failed", "error": error()})
        self._fail_waiting(error)

    def _forget_after_fork(self) -> None:
        """In a forked child: process and thread are the parent's; only our copies of the descriptors are ours."""
        process = self._process
        ends: list[Any] = [self._sock, self._wake, self._woken, self._selector]
        if process is not None:
            ends.append(process.stderr)
            process.returncode = 0  # so that nobody here waits for it or warns about it
        for end in ends:
            if end is not None:
                end.close()
        self._reset()


_FAULTS = frozenset(-int(s) for s in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)) | frozenset(
    {-int(getattr(signal, "SIGBUS", signal.SIGSEGV))}
)


def _no_turn(call: Call, reason: str) -> None:
    call.put({"ev": "failed", "error": Busy(reason)})


def _resident(pid: int | None) -> int | None:
    """Bytes of memory that a process holds; None where nobody says so (macOS)."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _how(code: int | None) -> str:
    if code is None:
        return "vanished"
    return f"died with signal {-code}" if code < 0 else f"ended with status {code}"


def _last_words(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    asserts = [line for line in lines if "GGML_ASSERT" in line]
    return (asserts or lines)[-1][:300] if lines else ""


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(4096):
            continue
    except BlockingIOError:
        return


# ── one supervisor per model and options, shared by everyone in the process ───────────────────────────────────────────

_registry: dict[tuple[Any, ...], Supervisor] = {}
_registry_lock = threading.RLock()  # re-entrant: a finalizer may run while it is held
_all: weakref.WeakSet[Supervisor] = weakref.WeakSet()
_watching = False


def acquire(settings: Mapping[str, Any], **limits: Any) -> Supervisor:
    """The supervisor for these settings, started by its first call. Give it back with `release`."""
    if not sys.executable:
        raise ConfigurationError("the local model needs sys.executable to start its process, and it is not set")
    key = (tuple(sorted(settings.items())), tuple(sorted(limits.items())))
    with _registry_lock:
        found = _registry.get(key)
        if found is None or found.closed:
            found = _registry[key] = Supervisor(settings, **limits)
        found.references += 1
        return found


def release(supervisor: Supervisor) -> None:
    """Give a supervisor back; the last one to do so ends the process."""
    with _registry_lock:
        supervisor.references -= 1
        if supervisor.references > 0:
            return
        for key, value in list(_registry.items()):
            if value is supervisor:
                del _registry[key]
    supervisor.close()


def _watch_forks() -> None:
    global _watching  # noqa: PLW0603 - done once per process, at the first supervisor, so that importing does nothing
    if _watching:
        return
    _watching = True
    atexit.register(_close_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _registry_lock  # noqa: PLW0603 - the lock may have been held by a thread that does not exist here
    _registry_lock = threading.RLock()
    for supervisor in list(_all):
        supervisor._forget_after_fork()


def _close_all() -> None:
    for supervisor in list(_all):
        supervisor.close()
