"""Fetches a model from a hub into the hub's own cache: whole, checked by SHA-256, and resumed where it broke off.

huggingface_hub asks the hub and knows its endpoint, tokens and proxies; the bytes are read here, since its own download
begins anew when the process ends, compares sizes only, and cannot be told to stop.

    pull        fetch now, in this thread
    Downloads   fetch in the background; one download per model, whoever asks
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

from shared_core.errors import MissingDependency
from shared_core.models.names import HubModel, bytes_in_words, pick
from shared_core.models.places import ModelNotHere, hub_cache

__all__ = ["Download", "DownloadFailed", "Progress", "download", "installed", "pull", "running_download", "shown"]

log = logging.getLogger("llm_fallback.models")

Why = Literal["offline", "not_found", "refused", "disk", "damaged", "cut", "cancelled"]

_CHUNK = 1 << 20
_ASK_TIMEOUT_S = 10.0
_SILENCE_S = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_TRIES = 5
"""Connections in a row that bring nothing, before we give up. One that brings something starts the count anew."""
_TOLD_EVERY_S = 0.2
_MOST_PLAIN = 50_000_000_000
_SPARE = 64 << 20
"""Bytes that a download leaves free on the disk."""


class DownloadFailed(ModelNotHere):
    """A model could not be fetched; the message says why and what to do.

    Attributes:
        why: 'offline', 'not_found', 'refused', 'disk', 'damaged', 'cut' or 'cancelled'.
    """

    def __init__(self, message: str, why: Why = "offline") -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is; bytes, over all files of the model."""

    file: str
    done: int
    total: int
    resumed: int = 0
    """Of these, found on the disk from an earlier try."""

    def __str__(self) -> str:
        share = 100 * self.done // self.total if self.total else 0
        return f"{self.file}: {share} % of {bytes_in_words(self.total)}"


Told = Callable[[Progress], object]


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    digest: str
    """SHA-256 of a large file, git's SHA-1 of a small one; '' where the hub says neither."""


@dataclass
class _Task:
    """What one fetch works with, and how far it is."""

    model: HubModel
    library: Any
    api: Any
    told: Told
    stop: threading.Event
    pause: Callable[[float], object]
    total: int = 0
    done: int = 0
    resumed: int = 0
    last_told: float = field(default=float("-inf"))

    def tell(self, name: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self.last_told >= _TOLD_EVERY_S:
            self.last_told = now
            self.told(Progress(name, self.done, self.total, self.resumed))

    def failed(self, why: Why, said: str, hint: str) -> DownloadFailed:
        return DownloadFailed(f"{self.model} cannot be fetched: {said}\nhint: {hint}", why)


def installed() -> bool:
    """Whether huggingface_hub is."""
    return importlib.util.find_spec("huggingface_hub") is not None


def pull(
    model: HubModel | str,
    *,
    told: Told | None = None,
    stop: threading.Event | None = None,
    pause: Callable[[float], object] | None = None,
) -> Path:
    """Fetch a model, every file of it, and return its (first) file. What is in the cache and current is not fetched.

    Args:
        model: 'hf:<owner>/<repo>[@<revision>]/<file or glob>'.
        told: called with each `Progress`, some times a second; left out, a line on stderr if that is a terminal.
        stop: set it from another thread to break off; what has come stays and is gone on with the next time.
        pause: waits so many seconds between two tries; for tests.

    Raises:
        DownloadFailed: with `why` and a hint.
        ConfigurationError: the pattern matches no model of the repository, or several; lists them.
        MissingDependency: huggingface_hub is not installed.
    """
    if isinstance(model, str):
        wanted = HubModel.of(model if model.startswith("hf:") else f"hf:{model}")
        assert wanted is not None  # it begins with 'hf:'
        model = wanted
    if not installed():
        raise MissingDependency(
            f"{model} needs the huggingface-hub package.\n"
            'hint: pip install "llm-fallback[local]", or fetch the file by other means and give its path'
        )
    stop = stop or threading.Event()
    with shown() if told is None else _as_it_is(told) as told:
        library = importlib.import_module("huggingface_hub")
        api = library.HfApi(
            endpoint=os.environ.get("HF_ENDPOINT")
        )  # as it is now, not as it was when that was imported
        task = _Task(model, library, api, told, stop, pause or stop.wait)
        try:
            return _fetch(task)
        except OSError as error:
            said = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(task, said) from error
            raise task.failed("disk", said, f"is {hub_cache()} writable? HF_HOME moves it") from error


def _fetch(task: _Task) -> Path:
    commit, files = _listed(task)
    chosen = [files[name] for name in pick(files, task.model.pattern, what=task.model.repo)]
    storage = hub_cache() / f"models--{task.model.repo.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    missing = [file for file in chosen if not _is_there(snapshot / file.name, file)]
    task.total = sum(file.size for file in chosen)
    task.done = task.total - sum(file.size for file in missing)
    (storage / "blobs").mkdir(parents=True, exist_ok=True)
    _check_room(task, storage, missing)
    if huge := [file.name for file in missing if file.size > _MOST_PLAIN]:
        said = f"{huge[0]} is over 50 GB, which hubs serve by a protocol of their own alone"
        raise task.failed("refused", said, f"hf download {task.model.repo} {huge[0]}")
    for file in missing:
        blob = storage / "blobs" / (file.digest or f"{commit}-{quote(file.name, safe='')}")
        with _alone(blob.with_name(f"{blob.name}.incomplete"), task) as part:
            if blob.exists() and blob.stat().st_size == file.size:  # another revision of it, or another process, has it
                task.done += file.size
            else:
                _read(task, file, commit, part, blob)
        _link(blob, snapshot / file.name)
    if task.model.revision != commit:
        ref = storage / "refs" / task.model.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="ascii")
    task.tell(chosen[0].name, always=True)
    return snapshot / chosen[0].name


def _listed(task: _Task) -> tuple[str, Mapping[str, _File]]:
    """The commit that the revision is now, and the repository's files at it."""
    errors = importlib.import_module("huggingface_hub.errors")
    model, api = task.model, task.api
    try:
        info = api.model_info(model.repo, revision=model.revision, files_metadata=True, timeout=_ASK_TIMEOUT_S)
    except errors.GatedRepoError as error:
        raise task.failed("refused", "its owner wants you to accept terms first", _LOG_IN) from error
    except errors.RepositoryNotFoundError as error:
        said = f"the hub has no repository {model.repo!r} for you"
        raise task.failed("not_found", said, f"check how it is spelt; if it is private or gated: {_LOG_IN}") from error
    except errors.RevisionNotFoundError as error:
        raise task.failed("not_found", f"{model.repo} has no revision {model.revision!r}", "leave @… out") from error
    except errors.OfflineModeIsEnabled as error:
        raise task.failed("offline", "HF_HUB_OFFLINE forbids it", f"unset it, or {_COPY}") from error
    except errors.HfHubHTTPError as error:
        raise _refused(task, error.response.status_code) from error
    except _transport_errors(task.library) as error:
        said = f"the hub at {api.endpoint} cannot be reached ({_worded(error)})"
        raise task.failed("offline", said, f"check network and proxy, HF_ENDPOINT for a mirror; or {_COPY}") from error
    except (ValueError, KeyError, TypeError) as error:
        said = f"what answers at {api.endpoint} is no hub ({_worded(error)})"
        raise task.failed("not_found", said, "check HF_ENDPOINT, and that no login page is in between") from error
    files = {}
    for sibling in info.siblings or ():
        large = sibling.lfs
        size = (large.size if large else sibling.size) or 0
        files[sibling.rfilename] = _File(sibling.rfilename, size, large.sha256 if large else sibling.blob_id or "")
    return info.sha, files


_LOG_IN = "accept them on its page, then `hf auth login` or set HF_TOKEN"
_COPY = "copy the file here and give its path"


def _refused(task: _Task, status: int) -> DownloadFailed:
    if status in (401, 403):
        return task.failed("refused", f"the hub refuses it (HTTP {status})", _LOG_IN)
    if status == 404:
        return task.failed("not_found", "the hub does not have it (HTTP 404)", "check how it is spelt")
    return task.failed("offline", f"the hub answers with HTTP {status}", "try again in a while")


def _is_there(path: Path, file: _File) -> bool:
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def _check_room(task: _Task, storage: Path, missing: list[_File]) -> None:
    parts = sum(
        part.stat().st_size for file in missing if (part := storage / "blobs" / f"{file.digest}.incomplete").exists()
    )
    needed, free = sum(file.size for file in missing) - parts, shutil.disk_usage(storage).free
    if missing and needed + _SPARE > free:
        raise _no_room(task, f"it needs {bytes_in_words(needed)}, {bytes_in_words(free)} are free")


def _no_room(task: _Task, said: str) -> DownloadFailed:
    return task.failed("disk", f"no room in {hub_cache()}: {said}", "free some, or set HF_HOME to a folder with room")


@contextmanager
def _alone(path: Path, task: _Task) -> Iterator[IO[bytes]]:
    """The unfinished file, held by nobody else: two processes that fetch the same model take turns."""
    while True:
        part = path.open("a+b")
        try:
            _hold(part, task)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(part.fileno())):
                yield part
                return
        finally:
            part.close()  # and the next one may have it
        # Whoever held it has finished it and moved it away: ours is the file that was.


def _hold(part: IO[bytes], task: _Task) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    while True:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            task.pause(0.2)
            _check_stop(task)


def _check_stop(task: _Task) -> None:
    if task.stop.is_set():
        raise task.failed("cancelled", "it was told to stop", "the next time goes on from here")


def _read(task: _Task, file: _File, commit: str, part: IO[bytes], blob: Path) -> None:
    """Everything of one file, over as many connections as it takes; then checked and moved to its place."""
    fresh = True
    while True:
        digest, have = _so_far(part, file)
        task.done += have
        if fresh:
            task.resumed += have
        had, tries = have, 0
        while have < file.size:
            before, said = have, ""
            try:
                _connect(task, file, commit, part, digest, have)
            except _Restart as error:
                said = str(error)
                task.done -= part.tell()
                part.truncate(0)
                part.seek(0)
                digest, had, before = _digest(file), 0, 0
            except _transport_errors(task.library) as error:
                said = _worded(error)
            have = part.tell()
            if not said:
                continue
            tries = tries + 1 if have <= before else 0
            if tries >= _TRIES:
                where = f"{bytes_in_words(have)} of {bytes_in_words(file.size)}"
                hint = "try again: it goes on from there"
                raise task.failed("cut", f"{tries} connections in a row brought nothing, at {where} ({said})", hint)
            log.info("%s: %s; going on at %s", file.name, said, bytes_in_words(have))
            task.pause(min(8.0, 0.5 * 2**tries))
            _check_stop(task)
        if not file.digest or digest.hexdigest() == file.digest:
            break
        part.truncate(0)
        part.seek(0)
        task.done -= have
        if not fresh or not had:  # what an earlier try left may be to blame once
            said = f"what came for {file.name} does not have the SHA-256 that the hub names"
            raise task.failed("damaged", said, "try again; if it stays so, a proxy or mirror changes the file")
        fresh = False
        log.warning("%s: the part that was here already is damaged; fetching it all again", file.name)
    part.flush()
    os.fsync(part.fileno())
    os.replace(part.name, blob)


class _Restart(Exception):
    """What came so far is of no use."""


def _connect(task: _Task, file: _File, commit: str, part: IO[bytes], digest: Any, have: int) -> None:
    """One connection's worth of the file, from `have` on. Where it breaks, `part` and `digest` have what came."""
    hub, utils = task.library, importlib.import_module("huggingface_hub.utils")
    url = f"{task.api.endpoint}/{task.model.repo}/resolve/{commit}/{quote(file.name)}"
    headers = {**utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    # A redirect to the hub's storage loses our token on the way: the client drops it where the host is another.
    with hub.get_session().stream("GET", url, headers=headers, timeout=_SILENCE_S) as response:
        if response.status_code == 416 or (have and response.status_code == 200):
            raise _Restart("the server cannot go on from the middle")
        if response.status_code >= 500 or response.status_code in (408, 429):
            raise _Passing(f"HTTP {response.status_code}")
        if response.status_code not in (200, 206):
            raise _refused(task, response.status_code)
        part.seek(have)
        for chunk in response.iter_bytes():  # as they come: what has come must not be lost with the connection
            _check_stop(task)
            part.write(chunk)
            digest.update(chunk)
            have += len(chunk)
            task.done += len(chunk)
            task.tell(file.name)
            if have > file.size:
                raise _Restart("more came than the file has")
    if have < file.size:
        raise _Passing("the connection closed early")


class _Passing(Exception):
    """An answer that may be another one next time."""


def _transport_errors(hub: Any) -> tuple[type[Exception], ...]:
    """What its HTTP library raises where the network is at fault. Which library that is depends on its version."""
    library = importlib.import_module(type(hub.get_session()).__module__.partition(".")[0])
    return (library.TransportError, _Passing)


def _worded(error: Exception) -> str:
    return str(error) or type(error).__name__


def _so_far(part: IO[bytes], file: _File) -> tuple[Any, int]:
    """The digest of what an earlier try has left, and how much that is."""
    digest, have = _digest(file), 0
    part.seek(0)
    while chunk := part.read(_CHUNK):
        digest.update(chunk)
        have += len(chunk)
    if have > file.size:
        part.truncate(0)
        part.seek(0)
        return _digest(file), 0
    return digest, have


def _digest(file: _File) -> Any:
    if len(file.digest) == 40:  # git's name of a small file
        return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    return hashlib.sha256()


def _link(blob: Path, pointer: Path) -> None:
    """Make `pointer` lead to `blob`, as huggingface_hub does; where there are no links, be it."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.replace(blob, pointer)


# ── in the background ────────────────────────────────────────────────────────────────────────────────────────────────


class Download:
    """One model being fetched by a thread of its own. Daemonic: a program that ends leaves it for the next time."""

    def __init__(self, model: HubModel) -> None:
        self.model = model
        self.progress: Progress | None = None
        self.error: Exception | None = None
        self.ended_at = 0.0
        self._over = threading.Event()
        self._then: list[Callable[[], object]] = []
        self._telling = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llm-fallback-download", daemon=True)

    def start(self) -> None:
        """Begin. Returns at once."""
        log.warning("%s is being downloaded to %s", self.model, hub_cache())
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it is being worked at: false when it is over, and in a fork, where its thread is not."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over; returns whether it is.

        Raises:
            DownloadFailed, ConfigurationError: what went wrong.
        """
        over = self._over.wait(timeout_s)
        if self.error is not None:
            raise self.error
        return over

    def then(self, do: Callable[[], object]) -> None:
        """Have `do` called by the download's thread once the model is here; at once if it is. Not if it fails."""
        with self._telling:
            if not self._over.is_set():
                self._then.append(do)
                return
        if self.error is None:
            do()

    def stop(self) -> None:
        """Break off soon; what has come stays."""
        self._stop.set()

    def _run(self) -> None:
        with shown() as told:

            def note(progress: Progress) -> None:
                self.progress = progress
                told(progress)

            try:
                path = pull(self.model, told=note, stop=self._stop)
                log.info("%s is here: %s", self.model, path)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told to whoever waits, or asks again
                self.error = error
                log.warning("%s", error)
            finally:
                self.ended_at = time.monotonic()
                with self._telling:
                    self._over.set()
        if self.error is None:
            for do in self._then:
                do()


_RETRY_AFTER_S = 60.0
"""Seconds after a failed download before a request starts it again."""
_downloads: dict[tuple[HubModel, Path], Download] = {}
_guard = threading.Lock()


def download(model: HubModel, *, again: bool = False) -> Download:
    """The download of this model: the one that runs, else a new one. One that failed less than a minute ago is
    returned as it is, unless `again`.
    """
    key = (model, hub_cache())
    with _guard:
        found = _downloads.get(key)
        if found is not None and (found.alive or _recent(found, again)):
            return found
        made = _downloads[key] = Download(model)
        made.start()
        return made


def running_download(model: HubModel) -> Download | None:
    """The download of this model that runs, or that failed less than a minute ago; starts none."""
    with _guard:
        found = _downloads.get((model, hub_cache()))
    return found if found is not None and (found.alive or _recent(found, False)) else None


def _recent(found: Download, again: bool) -> bool:
    failed = found.error is not None
    return failed and not again and time.monotonic() - found.ended_at < _RETRY_AFTER_S


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _as_it_is(told: Told) -> Iterator[Told]:
    yield told


@contextmanager
def shown(*, always: bool = False) -> Iterator[Told]:
    """Shows progress on stderr: a line that is written over on a terminal; with `always`, else every tenth."""
    began, out = time.monotonic(), sys.stderr
    terminal = out is not None and out.isatty()
    state = {"tenth": -1, "wide": 0}

    def told(progress: Progress) -> None:
        if terminal:
            fresh = progress.done - progress.resumed
            rate = fresh / max(0.001, time.monotonic() - began)
            left = (progress.total - progress.done) / rate if rate > 0 else 0
            share = progress.done / progress.total if progress.total else 1.0
            bar = ("█" * int(24 * share)).ljust(24, "░")
            amount, speed = bytes_in_words(progress.total), bytes_in_words(rate)
            line = f"{progress.file[-40:]} {bar} {100 * share:3.0f} % of {amount}, {speed}/s"
            line += f", {left:.0f} s left" if left else ""
            out.write("\r" + line.ljust(state["wide"]))
            state["wide"] = len(line)
            out.flush()
        elif always and out is not None:
            tenth = 10 * progress.done // progress.total if progress.total else 10
            if tenth != state["tenth"]:
                state["tenth"] = tenth
                out.write(f"{progress}\n")
                out.flush()

    try:
        yield told
    finally:
        if state["wide"]:
            out.write("\n")
            out.flush()
