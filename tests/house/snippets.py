"""Executes the Python blocks of a Markdown page as its reader would: top to bottom, in one session, without a network.

    ```python                 is executed
    <!-- run                  is executed too, and not shown: what a page must set up, or check, behind the scenes
    ...Python... -->
    <!-- not run: why -->     the next block is shown and not executed

Only this machine can be reached, keys in the environment are hidden, and the working directory is an empty folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 120

_BLOCK = re.compile(
    r"<!--\s*not run:\s*(?P<why>.+?)-->\s*\n(?P<skipped>[ ]*```python\b.*?\n[ ]*```)"
    r"|<!--\s*run\s*\n(?P<hidden>.*?)-->"
    r"|^(?P<indent>[ ]*)```python[^\n]*\n(?P<shown>.*?)^[ ]*```",
    re.DOTALL | re.MULTILINE,
)

_PRELUDE = """\
import socket, sys
_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex
def _guarded(real):
    def connect(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a documented example reached out to {host!r}; examples run without a network")
        return real(self, address)
    return connect
socket.socket.connect = _guarded(_connect)
socket.socket.connect_ex = _guarded(_connect_ex)
def _run(path, blocks):
    session = {"__name__": "__main__", "__file__": path}
    for line, source in blocks:
        exec(compile("\\n" * (line - 1) + source, path, "exec"), session)
"""


@dataclass(frozen=True)
class Block:
    line: int
    source: str


def blocks(page: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The blocks of `page` that are executed, and (line, reason) of those that are not."""
    text = page.read_text(encoding="utf-8")
    executed: list[Block] = []
    shown_only: list[tuple[int, str]] = []
    for match in _BLOCK.finditer(text):
        if match["why"] is not None:
            shown_only.append((_line(text, match.start("skipped")), match["why"].strip()))
        elif match["hidden"] is not None:
            executed.append(Block(_line(text, match.start("hidden")), match["hidden"]))
        else:
            source = "\n".join(line.removeprefix(match["indent"]) for line in match["shown"].splitlines())
            executed.append(Block(_line(text, match.start("shown")), source + "\n"))
    return executed, shown_only


def execute(page: Path, cwd: Path) -> str | None:
    """Run the page's blocks; None if all went well, else what they printed, with line numbers of the page."""
    executed, _ = blocks(page)
    script = cwd / "_page.py"
    listing = [(block.line, block.source) for block in executed]
    script.write_text(f"{_PRELUDE}\n_run({str(page)!r}, {listing!r})\n", encoding="utf-8")
    hidden = ("_API_KEY", "_TOKEN", "_PROXY", "_proxy")
    env = {name: value for name, value in os.environ.items() if not name.endswith(hidden)}
    try:
        done = subprocess.run(
            [sys.executable, script],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"still running after {TIMEOUT_S} s"
    return None if done.returncode == 0 else f"{done.stdout}{done.stderr}"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
