"""Run in a fresh interpreter with a package's name: imports it and prints, as JSON, what else that did.

With `names` as second argument, every public name of the package is used as well.
"""

from __future__ import annotations

import importlib
import json
import sys

CODE = (".py", ".pyc", ".so", ".pyd", ".pth", ".dist-info", ".egg-info", ".zip")

REACHES_OUT = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}

seen: dict[str, list[str]] = {"network": [], "threads": [], "processes": [], "files": []}


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event in REACHES_OUT:
        seen["network"].append(f"{event} {args[1:]!r}")
    elif event == "_thread.start_new_thread":
        seen["threads"].append(repr(args[0]))
    elif event in {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.system"}:
        seen["processes"].append(repr(args))
    elif event == "open" and isinstance(args[0], str) and not args[0].endswith(CODE):
        seen["files"].append(args[0])


if __name__ == "__main__":
    before = set(sys.modules)
    sys.addaudithook(_watch)
    package = importlib.import_module(sys.argv[1])
    for name in package.__all__ if "names" in sys.argv else ():
        getattr(package, name)  # names may be loaded when they are first used
    found = {name: list(entries) for name, entries in seen.items()}
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    deep = sorted(name for name in set(sys.modules) - before if name.startswith("google."))
    sys.stdout.write(json.dumps({**found, "modules": sorted(loaded), "google": deep}))
