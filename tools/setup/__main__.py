"""`python3 -m tools.setup`: make or repair one environment; a fraction of a second when nothing changed.

An environment has three layers, each with its own stamp, so that only what changed is done again: the locked
dependencies, llama-cpp-python (compiled here), and this project itself in editable mode.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from tools.setup import llama, lockfile
from tools.setup.progress import SetupError, only_one, run, say

ROOT = Path(__file__).resolve().parents[2]
WORLDS = ("stable", "newest", "peers")
STAMP = "llm-fallback-setup.json"

_MET = re.compile(r"(?:Collecting |Requirement already satisfied: |Ignoring )([A-Za-z0-9._-]+)")

NO_VENV = """this Python cannot make virtual environments with pip in them.
hint: on Debian and Ubuntu `apt-get install python3-venv`, then run the same command again; or name another Python, for
example `make test PYTHON=python3.13`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.setup", description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="stable", help="which lock file (default: stable)")
    parser.add_argument("--venv", type=Path, default=None, help="where (default: .venv, .venv-newest, .venv-peers)")
    options = parser.parse_args()
    world: str = options.world
    venv: Path = options.venv or Path(".venv" if world == "stable" else f".venv-{world}")
    try:
        Environment(world, ROOT / venv).ensure()
    except SetupError as error:
        print(f"\nsetup: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; the same command goes on where this one stopped", file=sys.stderr, flush=True)
        return 130
    return 0


class Environment:
    """One virtual environment and what is recorded in its stamp."""

    def __init__(self, world: str, path: Path) -> None:
        self.world = world
        self.path = path
        self.python = path / "bin" / "python"
        self.work = ROOT / ".build"
        self.lock = ROOT / "requirements" / f"{world}.txt"

    def ensure(self) -> None:
        """Bring the environment to what the lock file and pyproject.toml say."""
        pins = lockfile.read(self.lock)
        if not pins:
            raise SetupError(f"{self.lock} pins nothing; run `make lock`")
        source_only = next((pin for pin in pins if pin.name == llama.NAME), None)
        packaged = [pin for pin in pins if pin is not source_only]
        layers: list[tuple[str, str, Callable[[], None]]] = [
            ("dependencies", _digest(*(pin.text for pin in packaged)), lambda: self._locked(packaged)),
        ]
        if source_only is not None:
            pin = source_only
            layers.append(("llama", llama.build_key(pin), lambda: self._llama(pin)))
        if self.world != "peers":
            layers.append(("project", _digest(_packaging_metadata()), self._project))
        if self._usable() and self._missing(layers) == []:
            return
        started = time.monotonic()
        with only_one(self.work / f"{self.path.name}.lock", f"setting up {self.path.name}"):
            if not self._usable():
                self._create()
            for name, digest, act in self._missing(layers):
                act()
                self._write_stamp(name, digest)
        say(f"{self.path.name} is ready ({time.monotonic() - started:.0f} s)")

    # ── the layers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _create(self) -> None:
        if self.path.exists():
            say(f"{self.path.name} was made by another Python ({self._made_by() or 'unknown'}); making it again")
            shutil.rmtree(self.path)
        log = self.work / "logs" / "venv.log"
        version = ".".join(map(str, sys.version_info[:3]))
        try:
            run(f"{self.path.name} with Python {version}", [sys.executable, "-m", "venv", self.path], log=log)
        except SetupError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            raise SetupError(f"{NO_VENV}\n\n{error}") from None

    def _locked(self, pins: list[lockfile.Pin]) -> None:
        listing = self.work / f"{self.path.name}-locked.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(pin.text for pin in pins), encoding="utf-8")
        total = len({pin.name for pin in pins})
        seen: set[str] = set()
        unpacking: list[str] = []

        def state(line: str) -> str | None:
            if met := _MET.match(line):
                seen.add(met[1].lower())
                return f"{min(len(seen), total)} of {total} packages fetched"
            if line.startswith("Installing collected packages"):
                unpacking.append(line)
            return None

        def watch() -> str | None:
            if not unpacking:
                return None
            here = sum(1 for _ in self.path.glob("lib/python*/site-packages/*.dist-info"))
            return f"all fetched and verified, {min(here, total)} of {total} unpacked"

        # Everything here has a wheel. `--only-binary` makes sure that nothing unpinned is pulled in to
        # build one, `--no-deps` that the lock file is the whole truth. Bytecode is written when a module is first used.
        run(
            f"installing the {self.world} dependencies",
            [
                self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar=off",
                "--no-compile", "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", listing,
            ],
            log=self.work / "logs" / f"{self.path.name}-dependencies.log",
            state=state,
            watch=watch,
        )  # fmt: skip

    def _llama(self, pin: lockfile.Pin) -> None:
        wheel = llama.wheel(pin, build_lock=ROOT / "requirements" / "build.txt", work=self.work)
        run(
            f"installing {llama.NAME}",
            [
                self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-index",
                "--force-reinstall", wheel,
            ],
            log=self.work / "logs" / f"{self.path.name}-llama.log",
        )  # fmt: skip
        check = subprocess.run([self.python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)
        if check.returncode:
            llama.forget(wheel)
            raise SetupError(
                f"the compiled {llama.NAME} does not load (exit status {check.returncode}); it was dropped from the "
                f"cache, run the same command again to compile it anew.\n{check.stderr[-2000:]}"
            )

    def _project(self) -> None:
        run(
            "installing llm-fallback in editable mode",
            [
                self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-index",
                "--no-build-isolation", "--editable", ROOT,
            ],
            log=self.work / "logs" / f"{self.path.name}-project.log",
        )  # fmt: skip
        check = subprocess.run([self.python, "-m", "pip", "check"], capture_output=True, text=True, check=False)
        if check.returncode:
            raise SetupError(f"the locked packages do not fit together:\n{check.stdout}{check.stderr}")

    # ── the stamp ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _missing(self, layers: list[tuple[str, str, Callable[[], None]]]) -> list[tuple[str, str, Callable[[], None]]]:
        stamp = self._stamp()
        return [layer for layer in layers if stamp.get(layer[0]) != layer[1]]

    def _stamp(self) -> dict[str, str]:
        try:
            stamp = json.loads((self.path / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) and stamp.get("at") == str(self.path) else {}

    def _write_stamp(self, name: str, digest: str) -> None:
        stamp = {**self._stamp(), "at": str(self.path), "world": self.world, name: digest}
        fresh = self.path / f"{STAMP}.new"
        fresh.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        fresh.replace(self.path / STAMP)

    def _usable(self) -> bool:
        """Whether the environment exists and was made by the Python minor version that is running this."""
        mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return os.path.exists(self.python) and f"{self._made_by()}.".startswith(f"{mine}.")

    def _made_by(self) -> str:
        try:
            text = (self.path / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return ""
        found = re.search(r"^version(?:_info)?\s*=\s*(\S+)", text, re.MULTILINE)
        return found[1] if found else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _packaging_metadata() -> str:
    """The part of pyproject.toml that an installed copy of the project depends on."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    return json.dumps([project["build-system"], project["project"], project["tool"]["hatch"]], sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
