"""The worker process: holds one model, serves one request at a time, and may die without taking anyone with it.

    python -m shared_core.providers.llama_cpp.worker <socket fd> <parent pid> <address space limit in bytes, or 0>

Two threads: the main one reads messages, so that a cancel is heard at once; the compute thread alone touches llama.cpp.
(Prompts that are read ahead are lent to a third one, of the lowest priority, while the compute thread waits for it.)
The process ends when its socket does, and the kernel ends it when its parent's owning thread is gone.

    parent -> worker   load {settings}; generate | count | prefill {id, job}; cancel {id}; health {id}; shutdown
    worker -> parent   loaded {facts} | load_failed {reason} | progress {value} | log {line};
                       accepted, note, start, text, thought, call …, then done | error {kind, message} | cancelled,
                       each with its id
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from shared_core.providers.llama_cpp.wire import FrameError, frame, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from shared_core.providers.llama_cpp.local_model import LocalModel

__all__ = ["Teller", "Worker", "main"]

Json = dict[str, Any]


class Worker:
    """The threads and what they share."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        self._lent: queue.SimpleQueue[Json] = queue.SimpleQueue()
        self._returned = threading.Semaphore(0)
        self._lender: threading.Thread | None = None
        self._model: LocalModel | None = None
        self._turn = threading.Lock()  # guards the two below and the abort flag
        self._current: int | None = None
        self._cancelled: set[int] = set()
        self._progress_at = 0.0

    def serve(self) -> None:
        """Read messages until the parent is gone."""
        compute = threading.Thread(target=self._compute, name="llama-compute", daemon=True)
        compute.start()
        for message in receive(self._sock):
            match message.get("op"):
                case "cancel":
                    self._cancel(message["id"])
                case "health":
                    self.send({"ev": "health", "id": message["id"], "busy": self._current is not None})
                case "shutdown":
                    return
                case op:
                    if op != "load":
                        self.send({"ev": "accepted", "id": message["id"]})
                    self._jobs.put(message)

    def send(self, message: Json) -> None:
        """One message to the parent. A parent that is gone is noticed by the reading side."""
        data = frame(message)
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError:
            os._exit(0)

    def tidy(self) -> None:
        """Leave nothing behind on disk."""
        if self._model is not None:
            self._model.engine.tidy()

    def _cancel(self, job: int) -> None:
        with self._turn:
            self._cancelled.add(job)
            if self._current == job and self._model is not None:
                self._model.engine.abort.set()

    def _compute(self) -> None:
        while (message := self._jobs.get()) is not None:
            if message["op"] == "load":
                self._load(message["settings"])
            elif message["op"] == "prefill":
                self._lend(message)
            else:
                self._serve_one(message)

    def _lend(self, message: Json) -> None:
        """Have it served by a thread that makes way for everybody else on this machine: nobody waits for it yet."""
        if self._lender is None:
            self._lender = threading.Thread(target=self._compute_ahead, name="llama-ahead", daemon=True)
            self._lender.start()
        self._lent.put(message)
        self._returned.acquire()

    def _compute_ahead(self) -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority of its own
            try:
                # It gets what nobody else wants, and whoever wakes up does not wait for it.
                os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
            except OSError:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # a sandbox that does not allow it
        while True:
            self._serve_one(self._lent.get())
            self._returned.release()

    def _load(self, settings: Json) -> None:
        on_line = self._log_line if settings.get("log_lines") else None
        try:
            from shared_core.providers.llama_cpp.engine import LoadError, open_engine
            from shared_core.providers.llama_cpp.local_model import LocalModel

            engine = open_engine(settings.get("engine") or "llama-cpp-python", self._on_progress, on_line)
        except ImportError as error:
            self.send({"ev": "load_failed", "reason": str(error), "what": "dependency"})
            return
        model = LocalModel(engine)
        try:
            facts = model.load(settings)
        except LoadError as error:
            self.send({"ev": "load_failed", "reason": str(error), "what": error.what})
            return
        except MemoryError:
            reason = "there is not enough memory (or rlimit_as is too low)"
            self.send({"ev": "load_failed", "reason": reason, "what": "model"})
            return
        self._model = model
        self.send({"ev": "loaded", "facts": facts, "pid": os.getpid()})

    def _log_line(self, line: str) -> None:
        self.send({"ev": "log", "line": line})

    def _on_progress(self, value: float) -> None:
        now = time.monotonic()
        if now - self._progress_at > 0.1:
            self._progress_at = now
            self.send({"ev": "progress", "value": round(value, 3)})

    def _serve_one(self, message: Json) -> None:
        from shared_core.providers.llama_cpp.engine import Cancelled, Refused

        job, model = message["id"], self._model
        if model is None:
            self.send({"ev": "error", "id": job, "kind": "transient", "message": "the model is not loaded"})
            return
        with self._turn:
            self._current = job
            self._cancelled = {j for j in self._cancelled if j >= job}  # ids only grow
            if job in self._cancelled:
                model.engine.abort.set()
            else:
                model.engine.abort.clear()

        emit = Teller(job, self.send)
        try:
            wanted = message["job"]
            if message["op"] == "count":
                emit({"ev": "counted", "tokens": model.count(wanted)})
                return
            if wanted.get("truncate"):
                from shared_core.providers.llama_cpp.truncate import fitted

                wanted, note = fitted(wanted, model.count, model.engine.n_ctx)
                if note is not None:
                    emit({"ev": "note", "text": note})
            if message["op"] == "prefill":
                model.prefill(wanted, emit)
            else:
                model.generate(wanted, emit)
        except Cancelled:
            self.send({"ev": "cancelled", "id": job})
        except Refused as error:
            self.send({"ev": "error", "id": job, "kind": error.kind, "message": str(error)})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's failure, not the next one's
            self.send({"ev": "error", "id": job, "kind": "bug", "message": f"{type(error).__name__}: {error}"})
        finally:
            with self._turn:
                self._current = None
                self._cancelled.discard(job)
                model.engine.abort.clear()


class Teller:
    """Passes on what an answer comes to, text of a fast model in larger pieces.

    Text is sent at once unless some was sent less than `HOLD_S` ago; then it waits for the next token. So a model that
    takes longer than that for a token is never held up, and one that writes thousands a second does not wake its reader
    for each of them.
    """

    HOLD_S = 0.004

    def __init__(self, job: int, send: Callable[[Json], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._job, self._send, self._clock = job, send, clock
        self._held: list[str] = []
        self._next = 0.0

    def __call__(self, event: Json) -> None:
        """Take an event of the answer."""
        if event["ev"] != "text":
            self._flush()
            self._send({"id": self._job, **event})
            return
        self._held.append(event["t"])
        now = self._clock()
        if now >= self._next:
            self._next = now + self.HOLD_S
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._send({"id": self._job, "ev": "text", "t": "".join(self._held)})
            self._held.clear()


def _die_with_parent(parent: int) -> None:
    """Linux: be killed when the thread that started us ends. The end of the socket covers the other systems."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def _limit(rlimit_as: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash of gigabytes of model must not fill the disk
    if rlimit_as:
        resource.setrlimit(resource.RLIMIT_AS, (rlimit_as, rlimit_as))


def main(argv: list[str]) -> None:
    """Run a worker on an inherited socket."""
    fd, parent, rlimit_as = (int(a) for a in argv)
    _die_with_parent(parent)
    _limit(rlimit_as)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends us by closing the socket
    sock = socket.socket(fileno=fd)
    worker = Worker(sock)
    try:
        worker.serve()
    except (OSError, FrameError):
        pass  # the parent is gone or talks nonsense: either way there is nobody to tell
    worker.tidy()
    # Not sys.exit: the compute thread may be inside llama.cpp, and tearing C++ down under it would crash.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
