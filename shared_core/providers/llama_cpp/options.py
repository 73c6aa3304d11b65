"""The options of a local model: what may follow `Target("llamacpp:…", `, checked where they are written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shared_core.errors import ConfigurationError, UnknownOption, nearest
from shared_core.providers.llama_cpp.prompt import NAMED
from shared_core.routing.target import KEYWORDS

__all__ = ["OPTIONS", "PRIORITY", "Options", "cpu_budget"]

CONTEXT_STEP = 256
"""llama.cpp rounds the context up to a multiple of this; so do we, so that both sides count the same."""
DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Options:
    """How to run one model file.

    Attributes:
        n_ctx: context window in tokens, rounded up to a multiple of 256; left out, the trained length, at most 4096.
        n_threads: CPU threads; left out, the CPUs this process may use (affinity, cgroup quota) less one, 1 to 8.
        n_gpu_layers: layers on the GPU: 'auto' for all of them where there is a GPU, a number, or -1 for all.
        allow_cpu: go on with the CPU where `n_gpu_layers` asks for a GPU and none is used. False makes that an error.
        n_batch: tokens evaluated at once while the prompt is read. Smaller cancels sooner.
        flash_attn: True, False, or None to let llama.cpp decide.
        seed: for requests that bring none; left out, a fresh one per call, reported in `Finished.extra["seed"]`.
        temperature: for requests that bring none. 0 by default: answers repeat, and a continuation is exact.
        max_tokens: for requests that bring none, as far as the context has room.
        fit_max_tokens: shorten a request's `max_tokens` to the room that is left. False refuses the request instead.
        chat_template: in place of the file's own: 'chatml', 'llama-3', 'mistral', 'gemma' and the like, or Jinja text.
        engine: 'llama-cpp-python', or 'xllamacpp', which comes as ready-made wheels.
        kv_cache_mb: MiB for what was read of other conversations, so that they need not be read again. 0: none.
        use_mmap: map the file rather than read it.
        verbose: pass llama.cpp's log to the `llm_fallback.llama_cpp` logger.
        max_restarts: restarts after a crash within a minute; one crash more and the model is reported unhealthy.
        startup_timeout_s: seconds the process may take to load the model.
        queue: requests that may wait while one is served; more are refused as busy.
        queue_timeout_s: seconds a request may wait for its turn; left out, as long as for its first token.
        priority: -100 to 100, of requests that bring none: higher ones are served first, equal ones as they came.
        truncate: 'oldest' leaves out the oldest turns of a conversation that the context window cannot hold; left out,
            such a request is refused.
        standby: 'warm' loads the model when the router is built, in the background, and again after a crash; 'prefill'
            also reads the prompt while a hosted target ahead of this one is awaited.
        rlimit_as: address space limit of the process in bytes; left out, none.
        download: of an 'hf:' file that is not here: 'background' lets the first request start it (which is refused),
            'warm' leaves it to `warm()` and `llm-fallback models pull`, 'never' wants it here when the target is built.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | Literal["auto"] = "auto"
    allow_cpu: bool = False
    n_batch: int = 256
    flash_attn: bool | None = None
    seed: int | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    fit_max_tokens: bool = True
    chat_template: str | None = None
    engine: Literal["llama-cpp-python", "xllamacpp"] = "llama-cpp-python"
    kv_cache_mb: int = 512
    use_mmap: bool = True
    verbose: bool = False
    max_restarts: int = 2
    startup_timeout_s: float = 300.0
    queue: int = 4
    queue_timeout_s: float | None = None
    priority: int = 0
    truncate: Literal["oldest"] | None = None
    standby: Literal["warm", "prefill"] | None = None
    rlimit_as: int | None = None
    download: Literal["background", "warm", "never"] = "background"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Checked options.

        Raises:
            UnknownOption: naming the nearest valid one.
            ConfigurationError: a value is out of range.
        """
        for name, value in options.items():
            if name not in OPTIONS:
                raise UnknownOption(f"llamacpp has no option {name!r}. {nearest(name, {*OPTIONS, *KEYWORDS})}")
            fits, wanted = _CHECKS[name]
            if value is None and _DEFAULTS[name] is not None:
                raise ConfigurationError(f"llamacpp option {name} must be {wanted}, not None")
            if value is not None and not fits(value):
                raise ConfigurationError(f"llamacpp option {name} must be {wanted}, not {value!r}")
        return cls(**options)

    def context(self, trained: int | None) -> int:
        """The context window in tokens for a model trained on `trained`."""
        wanted = self.n_ctx or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        return -(-wanted // CONTEXT_STEP) * CONTEXT_STEP


def _whole(low: int, high: float = math.inf) -> tuple[Callable[[Any], bool], str]:
    top = "" if high == math.inf else f" to {high:g}"
    return (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"a whole number, {low}{top or ' or more'}",
    )


def _number(low: float, high: float = math.inf) -> tuple[Callable[[Any], bool], str]:
    top = "" if high == math.inf else f" to {high:g}"
    return (
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and low <= v <= high,
        f"a number, {low:g}{top or ' or more'}",
    )


def _whole_or(word: str, low: int) -> tuple[Callable[[Any], bool], str]:
    fits, wanted = _whole(low)
    return lambda v: v == word or fits(v), f"{word!r} or {wanted}"


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: isinstance(v, str) and v in words, " or ".join(map(repr, words))


_FLAG: tuple[Callable[[Any], bool], str] = (lambda v: isinstance(v, bool), "True or False")

PRIORITY = _whole(-100, 100)
"""What a priority may be, and how to say so: for the option, and for a request's own."""

_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "n_ctx": _whole(1, 1 << 24),
    "n_threads": _whole(1, 512),
    "n_gpu_layers": _whole_or("auto", -1),
    "allow_cpu": _FLAG,
    "n_batch": _whole(1, 1 << 16),
    "flash_attn": _FLAG,
    "seed": _whole(0, 2**32 - 2),
    "temperature": _number(0.0, 2.0),
    "max_tokens": _whole(1),
    "fit_max_tokens": _FLAG,
    "chat_template": (
        lambda v: isinstance(v, str) and (v in NAMED or "{" in v),
        f"one of {', '.join(NAMED)}, or the text of a Jinja template",
    ),
    "engine": _one_of("llama-cpp-python", "xllamacpp"),
    "kv_cache_mb": _whole(0, 1 << 20),
    "use_mmap": _FLAG,
    "verbose": _FLAG,
    "max_restarts": _whole(0),
    "startup_timeout_s": _number(0.001),
    "queue": _whole(0),
    "queue_timeout_s": _number(0.001),
    "priority": PRIORITY,
    "truncate": _one_of("oldest"),
    "standby": _one_of("warm", "prefill"),
    "rlimit_as": _whole(1 << 20),
    "download": _one_of("background", "warm", "never"),
}
_DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Options)}

OPTIONS: tuple[str, ...] = tuple(_DEFAULTS)
"""Every option a `Target("llamacpp:…")` takes."""


def cpu_budget(root: Path = Path("/")) -> int:
    """CPUs this process may really use: affinity and cgroup quota, of version 2 or 1. llama.cpp's own default knows
    neither. `root` is where `proc` and `sys` are."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    return max(1, min([count, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs that the process's control groups, and those above them, grant it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    below: dict[str, str] = {"": "/", "cpu": "/"}  # a container often sees its own group as the root
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        below |= {name: path for name in controllers.split(",") if name in below} if path else {}
    for controller, mounts in (("", ("",)), ("cpu", ("cpu", "cpu,cpuacct"))):
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            group = top / below[controller].strip("/")
            for folder in {top, group, *(p for p in group.parents if p.is_relative_to(top))}:
                if (granted := _quota(folder)) is not None:
                    yield granted


def _quota(folder: Path) -> float | None:
    try:
        if (both := folder / "cpu.max").exists():
            quota, period = both.read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{what}_us").read_text(encoding="ascii") for what in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # not there, or 'max'
        return None
