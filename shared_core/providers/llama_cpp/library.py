"""llama.cpp's C functions, and its log. Imported by the worker process alone.

Only the bindings module is loaded, not the package around it: that one pulls in NumPy and its own high-level classes,
which we do not use, and takes three times as long, time that every restart after a crash would pay again.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import platform
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["AbortFlag", "LogKeeper", "bindings"]


def bindings() -> Any:
    """The module `llama_cpp.llama_cpp`.

    Raises:
        ImportError: llama-cpp-python is not installed, or was built for another machine.
    """
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("llama-cpp-python is not installed")
        bare = types.ModuleType("llama_cpp")
        bare.__path__ = list(spec.submodule_search_locations)
        bare.__spec__ = spec
        sys.modules["llama_cpp"] = bare
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    except (OSError, RuntimeError, FileNotFoundError) as error:  # the shared library does not load
        raise ImportError(f"llama-cpp-python is installed but does not load: {error}") from error


class LogKeeper:
    """Keeps llama.cpp's warnings and errors: the only place where it says why it refused a file."""

    DEBUG, INFO, WARN, ERROR, CONTINUED = 1, 2, 3, 4, 5

    def __init__(self, library: Any, on_line: Callable[[str], None] | None = None) -> None:
        """`on_line` also gets every line of every level (the option `verbose`)."""
        self._lines: deque[tuple[int, str]] = deque(maxlen=40)
        self._all: deque[str] = deque(maxlen=2000)
        self._level = self.INFO
        self._partial = ""
        self._on_line = on_line
        self._callback = library.llama_log_callback(self._write)  # C keeps no reference: this one must live
        library.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _user_data: Any) -> None:
        if level != self.CONTINUED:
            self._level = level
        self._partial += text.decode("utf-8", "replace")
        *whole, self._partial = self._partial.split("\n")
        for line in whole:
            if line.strip():
                self._all.append(line)
                if self._level in (self.WARN, self.ERROR):
                    self._lines.append((self._level, line.strip()))
                if self._on_line is not None:
                    self._on_line(line)

    def reason(self) -> str:
        """What went wrong last, in llama.cpp's own words: its errors, or else its warnings. May be empty."""
        errors = [line for level, line in self._lines if level == self.ERROR]
        lines = errors or [line for _, line in self._lines]
        # The deepest cause is logged first; what follows repeats that loading failed.
        return "; ".join(dict.fromkeys(lines[:3]))

    def said(self, word: str) -> str:
        """The lines, of any level, with this word in them."""
        return "\n".join(line for line in self._all if word in line)

    def clear(self) -> None:
        """Forget what was said so far."""
        self._lines.clear()
        self._all.clear()


class AbortFlag:
    """Asks a running `llama_decode` to stop, from another thread.

    llama.cpp calls back hundreds of times per token. A Python callback would take the interpreter's lock each time; so
    on machines where a C `bool` result is the low byte of an integer one, libc's `strlen` serves as the callback: its
    argument is a buffer that holds an empty string (go on) or one of length 1 (stop). Elsewhere it is Python.
    """

    def __init__(self, library: Any) -> None:
        self._buffer = ctypes.create_string_buffer(b"\0", 2)
        kind = library.ggml_abort_callback
        if sys.platform in ("linux", "darwin") and platform.machine() in ("x86_64", "aarch64", "arm64"):
            strlen = ctypes.CDLL(None).strlen
            self.callback = ctypes.cast(strlen, kind)
        else:
            self.callback = kind(lambda _: self._buffer.raw[0] != 0)
        self.data = ctypes.cast(self._buffer, ctypes.c_void_p)

    def set(self) -> None:
        """Stop as soon as possible."""
        self._buffer[0] = b"x"

    def clear(self) -> None:
        """Go on."""
        self._buffer[0] = b"\0"

    def is_set(self) -> bool:
        """Whether stopping was asked for."""
        return bool(self._buffer.raw[0])
