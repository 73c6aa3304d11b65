"""llama-cpp-python is published as source only: compile it once per machine, keep the wheel for every later clone."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tools.setup import lockfile
from tools.setup.progress import SetupError, only_one, run, say

NAME = "llama-cpp-python"

_STEP = re.compile(r"\[(\d+)/(\d+)\]")

NO_COMPILER = """no C and C++ compiler was found, and llama-cpp-python has to be compiled.
hint: install one, then run the same command again:
  Debian, Ubuntu:  apt-get install build-essential
  Fedora, RHEL:    dnf install gcc gcc-c++ make
  Alpine:          apk add build-base linux-headers
  Arch:            pacman -S base-devel
  macOS:           xcode-select --install
or set CC and CXX to the compilers you have."""


def build_key(pin: lockfile.Pin) -> str:
    """What the compiled wheel depends on: version, source, processor, and how it was asked to be built."""
    source = hashlib.sha256("".join(sorted(pin.hashes)).encode()).hexdigest()[:12]
    asked = "\0".join(f"{name}={os.environ.get(name, '')}" for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS"))
    machine = [platform.system(), platform.machine(), _libc(), _processor(), asked]
    return f"{pin.version}-{source}-{hashlib.sha256(repr(machine).encode()).hexdigest()[:12]}"


def wheel(pin: lockfile.Pin, *, build_lock: Path, work: Path) -> Path:
    """The compiled wheel for this machine, from the cache or made now (several minutes, with progress)."""
    shelf = _cache(otherwise=work / "wheels") / build_key(pin)
    if found := _on(shelf):
        return found
    with only_one(shelf.with_name(f"{shelf.name}.lock"), f"compiling {NAME}"):
        if found := _on(shelf):
            return found
        return _build(pin, shelf, build_lock=build_lock, work=work)


def forget(path: Path) -> None:
    """Drop a cached wheel that turned out not to load here."""
    shutil.rmtree(path.parent, ignore_errors=True)


def _build(pin: lockfile.Pin, shelf: Path, *, build_lock: Path, work: Path) -> Path:
    _require_compilers()
    say(f"{NAME} {pin.version} is compiled from source now, once on this machine: about 6 minutes on 2 cores")
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="llama-") as scratch:
        env_dir = Path(scratch) / "env"
        python = env_dir / "bin" / "python"
        run("build environment", [sys.executable, "-m", "venv", env_dir], log=work / "logs" / "build-venv.log")
        run(
            "build tools",
            [python, "-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", build_lock],
            log=work / "logs" / "build-tools.log",
        )
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(pin.text, encoding="utf-8")
        out = Path(scratch) / "out"
        run(
            f"compiling {NAME} {pin.version}",
            [
                python, "-m", "pip", "wheel", "--verbose", "--progress-bar=off",
                "--no-deps", "--no-cache-dir", "--no-build-isolation", f"--no-binary={NAME}",
                "--require-hashes", "-r", wanted, "-w", out,
            ],
            log=work / "logs" / "llama-build.log",
            state=_compile_state(),
            env={**os.environ, "PATH": f"{env_dir / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"},
            nice=5,
        )  # fmt: skip
        made = _on(out)
        if made is None:
            raise SetupError(f"compiling {NAME} produced no wheel; see {work / 'logs' / 'llama-build.log'}")
        shelf.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=shelf.parent, prefix=".new-"))
        shutil.copy2(made, fresh)
        shutil.rmtree(shelf, ignore_errors=True)
        fresh.rename(shelf)  # whole or not at all: an interrupted set-up leaves no half wheel behind
    found = _on(shelf)
    assert found is not None
    return found


def _compile_state() -> Callable[[str], str | None]:
    """A reader of the build's output: which phase it is in, how many files of how many are compiled."""

    def state(line: str) -> str | None:
        if step := _STEP.match(line.strip()):
            done, total = int(step[1]), int(step[2])
            return f"{done} of {total} files ({100 * done // total} %)"
        if "Downloading" in line:
            return "fetching the source"
        if "Preparing metadata" in line or "Configuring CMake" in line:
            return "configuring"
        if "Installing project into wheel" in line:
            return "packing the wheel"
        return None

    return state


def _require_compilers() -> None:
    c = os.environ.get("CC") or _first_of("cc", "gcc", "clang")
    cxx = os.environ.get("CXX") or _first_of("c++", "g++", "clang++")
    if not (c and cxx):
        raise SetupError(NO_COMPILER)


def _first_of(*programs: str) -> str | None:
    return next((found for program in programs if (found := shutil.which(program))), None)


def _on(shelf: Path) -> Path | None:
    return next(iter(sorted(shelf.glob("llama_cpp_python-*.whl"))), None) if shelf.is_dir() else None


def _cache(*, otherwise: Path) -> Path:
    """Where compiled wheels are kept: outside the clone, or in it where there is no home to write to."""
    try:
        shelf = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-fallback" / "wheels"
        shelf.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return otherwise
    return shelf if os.access(shelf, os.W_OK) else otherwise


def _libc() -> str:
    return "-".join(platform.libc_ver())


def _processor() -> str:
    """The instruction sets of this processor: the compiled code uses all of them, so it is not for older ones."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()
