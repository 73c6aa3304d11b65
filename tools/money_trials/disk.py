"""A disk that forgets: what a program wrote and synced, in order, and what a power cut at any point may leave of it.

The model: what was synced is there. Of what was written to a file since its last sync, any part may be there, in
sectors, in any order; a file that was created and never synced may be missing; a file's length lies between the synced
and the written one. That is what ext4, XFS and disks with a volatile cache promise, and no more.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Disk", "NoCompiler", "Operation", "cuts", "preloaded", "read_log", "shim"]

SECTOR = 512
_SOURCE = Path(__file__).with_name("disk.c")


class NoCompiler(RuntimeError):
    """The shim cannot be built here."""


@functools.cache
def shim() -> Path:
    """The shared object built from disk.c, once per process.

    Raises:
        NoCompiler: there is no C compiler, or it refuses.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompiler("there is no C compiler. hint: install one, or set CC")
    out = Path(tempfile.mkdtemp(prefix="money-disk-")) / "disk.so"
    built = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(out), str(_SOURCE), "-ldl", "-lpthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if built.returncode:
        raise NoCompiler(f"{compiler} refuses {_SOURCE.name}: {built.stderr.strip()}")
    return out


def preloaded(folder: Path, log: Path | None = None, *, fail: tuple[int, int, int] | None = None) -> dict[str, str]:
    """The environment of a program whose writes below `folder` are to be logged.

    Args:
        fail: from which write or sync on (from 1), with which errno, and how many of them, the disk fails.
    """
    environment = {**os.environ, "LD_PRELOAD": str(shim()), "DISK_FOLDER": str(folder.resolve())}
    if log is not None:
        environment["DISK_LOG"] = str(log)
    if fail is not None:
        environment["DISK_FAIL"] = ":".join(map(str, fail))
    return environment


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing done to a file: 'C'reated, 'W'ritten, 'T'runcated to `offset`, 'S'ynced, 'U'nlinked, 'F'ailed."""

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""


def read_log(path: Path) -> list[Operation]:
    """What the shim wrote down, in order."""
    log, at, found = path.read_bytes(), 0, []
    while at < len(log):
        kind = chr(log[at])
        (size,) = struct.unpack_from("=H", log, at + 1)
        offset, length = struct.unpack_from("=QQ", log, at + 3)
        at += 19
        name = log[at : at + size].decode()
        at += size
        data = log[at : at + length] if kind == "W" else b""
        at += len(data)
        found.append(Operation(kind, name, offset, data))
    return found


@dataclass
class _File:
    """What is on the disk for certain, and what was done since."""

    synced: bytearray = field(default_factory=bytearray)
    exists: bool = False
    """Whether its name is on the disk for certain."""
    since: list[Operation] = field(default_factory=list)


class Disk:
    """Replays operations; `image` is what a power cut now may leave."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def do(self, operation: Operation) -> None:
        """One more operation."""
        file = self._files.setdefault(operation.name, _File())
        if operation.kind == "S":
            file.synced = _applied(file.synced, file.since)
            file.exists = True
            file.since = []
        elif operation.kind == "U":
            # Unlinking is not synced either; SQLite copes with a journal or log that comes back, so let it be gone.
            del self._files[operation.name]
        elif operation.kind in "WT":
            file.since.append(operation)

    def pending(self) -> int:
        """How many operations a power cut now may undo."""
        return sum(len(file.since) for file in self._files.values())

    def image(self, chance: random.Random | None, *, all_of_it: bool = False) -> Mapping[str, bytes]:
        """The files after a power cut.

        Args:
            chance: which unsynced sectors made it; None: none of them.
            all_of_it: every one of them made it: not the power went, but the process.
        """
        found: dict[str, bytes] = {}
        for name, file in self._files.items():
            if all_of_it:
                found[name] = bytes(_applied(file.synced, file.since))
            elif chance is None:
                if file.exists:
                    found[name] = bytes(file.synced)
            elif file.exists or chance.random() < 0.5:
                found[name] = bytes(_torn(file, chance))
        return found

    def synced(self, name: str, *, written: bool = False) -> bytes:
        """What is certain of a file, or with `written` what the program has written to it."""
        file = self._files.get(name, _File())
        return bytes(_applied(file.synced, file.since) if written else file.synced)


def _applied(content: bytearray, operations: Sequence[Operation]) -> bytearray:
    content = bytearray(content)
    for operation in operations:
        if operation.kind == "T":
            del content[operation.offset :]
            content.extend(bytes(operation.offset - len(content)))
        else:
            end = operation.offset + len(operation.data)
            content.extend(bytes(max(0, end - len(content))))
            content[operation.offset : end] = operation.data
    return content


def _torn(file: _File, chance: random.Random) -> bytearray:
    """Each sector of each write made it or not, in any order."""
    whole: list[Operation] = []
    for operation in file.since:
        if operation.kind == "T":
            if chance.random() < 0.5:
                whole.append(operation)
            continue
        at = operation.offset
        end = at + len(operation.data)
        while at < end:
            stop = min(end, (at // SECTOR + 1) * SECTOR)
            if chance.random() < 0.5:
                start = at - operation.offset
                whole.append(Operation("W", operation.name, at, operation.data[start : start + stop - at]))
            at = stop
    if chance.random() < 0.5:
        chance.shuffle(whole)
    return _applied(file.synced, whole)


def cuts(
    operations: Sequence[Operation], chance: random.Random, *, every: int = 1, torn: int = 2
) -> Iterator[tuple[int, str, Mapping[str, bytes], Disk]]:
    """Every point at which the power may fail, and what may be left: number, kind of loss, files, and the disk.

    For each point: nothing unsynced made it, all of it did, and `torn` times a random part of it.
    """
    disk = Disk()
    for number, operation in enumerate(operations):
        disk.do(operation)
        if number % every or operation.name == "acks":
            continue
        yield number, "nothing unsynced", disk.image(None), disk
        if disk.pending():
            yield number, "all of it", disk.image(None, all_of_it=True), disk
            for _ in range(torn):
                yield number, "torn", disk.image(chance), disk
