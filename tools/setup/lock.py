"""`make lock`: writes the lock files from their `.in` files and pyproject.toml, with uv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("requirements")

# With the project and all its extras, or standing alone.
LOCKS = {"stable": True, "newest": True, "build": False, "peers": False}

HEADER = """\
# Made by `make lock` from {sources}.
# For Python 3.11 to 3.13 on every platform; every file is checked against its hash when it is installed.
"""

FORBIDDEN = re.compile(r"://|--(?:extra-)?index-url|--find-links|--trusted-host|(?:^|\s)/\w", re.MULTILINE)
"""What no lock file may hold: an address, or a path of the machine it was made on."""


def main() -> int:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        print("lock: uv was not found. hint: pip install uv", file=sys.stderr)
        return 1
    for name, with_project in LOCKS.items():
        wanted = FOLDER / f"{name}.in"
        lock = ROOT / FOLDER / f"{name}.txt"
        sources = ["pyproject.toml", str(wanted)] if with_project else [str(wanted)]
        command = [
            uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
            "--no-emit-index-url", "--no-emit-find-links", "--no-header",
            *sources, *(["--all-extras"] if with_project else []), "--output-file", str(FOLDER / f"{name}.txt"),
        ]  # fmt: skip
        if os.environ.get("UPGRADE"):
            command.append("--upgrade")
        subprocess.run(command, cwd=ROOT, check=True)
        text = lock.read_text(encoding="utf-8")
        body = re.sub(r"\A(?:#.*\n)*", "", text)
        if found := FORBIDDEN.search(body):
            print(f"lock: {lock} holds an address or a path: {found[0]!r}", file=sys.stderr)
            return 1
        lock.write_text(HEADER.format(sources=" and ".join(sources)) + body, encoding="utf-8")
        print(f"lock: {FOLDER / f'{name}.txt'}: {len(re.findall(r'^[a-z0-9]', body, re.MULTILINE))} pins", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
