"""`LlamaCppProvider`: a GGUF model on this machine as one more provider. Imports no llama.cpp; the worker does."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import sys
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from shared_core.chat.events import ChatEvent, Finished, ReasoningDelta, Started, TextDelta, ToolCallDelta, Usage
from shared_core.chat.request import ChatRequest, Message, Origin, Part, Text, ToolResult
from shared_core.errors import (
    ConfigurationError,
    ErrorKind,
    InvalidModelFile,
    InvalidRequest,
    MissingDependency,
    ProviderError,
    nearest,
)
from shared_core.history import LLAMA_CPP, Change, prepare, summary, wire_name
from shared_core.models.places import ModelNotHere
from shared_core.providers.llama_cpp import fetching
from shared_core.providers.llama_cpp.fingerprint import engine_build, fingerprint
from shared_core.providers.llama_cpp.mailbox import Call
from shared_core.providers.llama_cpp.model_file import ModelFile, check_model_file, resolve_path
from shared_core.providers.llama_cpp.options import PRIORITY, Options, cpu_budget
from shared_core.providers.llama_cpp.schedule import Work
from shared_core.providers.llama_cpp.supervisor import Busy, Supervisor, acquire, release
from shared_core.resilience.deadline import Guard
from shared_core.resilience.health import SelfReport
from shared_core.routing.capabilities import Capabilities
from shared_core.routing.target import Target

__all__ = ["LlamaCppProvider", "UnusableModel", "check_target"]

log = logging.getLogger("llm_fallback.llama_cpp")

_RULES = replace(LLAMA_CPP, media=frozenset())
"""What chat templates take, without the pictures: the engine here reads text."""

_SAMPLING: Mapping[str, tuple[type[int | float], float, float]] = {
    "top_k": (int, 0, 1 << 20),
    "min_p": (float, 0.0, 1.0),
    "repeat_penalty": (float, 0.1, 10.0),
    "frequency_penalty": (float, -2.0, 2.0),
    "presence_penalty": (float, -2.0, 2.0),
}
"""What `extra={"llamacpp": {...}}` of a request may set, with its range; beside them `priority` and `grammar`."""


_NO_MATTER = (
    "queue", "queue_timeout_s", "priority", "max_restarts", "startup_timeout_s", "verbose", "standby", "rlimit_as",
    "download", "kv_cache_mb", "use_mmap",
)  # fmt: skip
"""Options that change when and by which memory an answer comes, but not the answer."""


class UnusableModel(ProviderError, InvalidModelFile):
    """The file passed the first checks, but llama.cpp refused to load it: a failed attempt for the router, and an
    `InvalidModelFile` for whoever catches that."""


def check_target(target: Target) -> None:
    """Refuse a target whose options or file cannot work, without starting anything.

    Raises:
        ConfigurationError: UnknownOption, InvalidModelFile or MissingDependency; each message says what to do.
    """
    if sys.platform == "win32":
        raise ConfigurationError(
            f"Target {target.spec!r}: the local model needs Linux or macOS.\n"
            "hint: run llama.cpp's own server and use 'llama-server:<model>'"
        )
    options = Options.of(target.options)
    fetching.check(target.model, options)
    module, extra = ("xllamacpp", "xllamacpp") if options.engine == "xllamacpp" else ("llama_cpp", "local")
    if importlib.util.find_spec(module) is None:
        raise MissingDependency(
            f"Target {target.spec!r} needs the {options.engine} package.\nhint: pip install 'llm-fallback[{extra}]'"
        )


class LlamaCppProvider:
    """One GGUF file. Providers of the same file and options in this process share one worker, started when needed.

    Any thread and any event loop may call at once; requests are served one at a time, `queue` more may wait.

    Raises:
        ConfigurationError: an option (`UnknownOption`) or the file (`InvalidModelFile`) is wrong, or llama.cpp missing.
    """

    name = "llamacpp"
    local = True
    interruptible = True

    def __init__(self, target: Target) -> None:
        check_target(target)
        self.target = target
        self.model = target.model
        self.options = Options.of(target.options)
        self._files: dict[str, ModelFile] = {}
        self._known(self.model)
        self._standing_by = False
        self._held: dict[str, Supervisor] = {}
        self._finalizer = weakref.finalize(self, _release_all, self._held)

    # ── what it is ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def capabilities(self) -> Capabilities:
        """What this model can take: what the target says, else what the file and the options say."""
        if self.target.capabilities is not None:
            return self.target.capabilities
        # One that leaves out the oldest turns takes a conversation of any length.
        window = self.n_ctx if self.options.truncate is None else None
        return Capabilities(
            images=False, image_urls=False, pdfs=False, audio=False, continuation="exact", context_window=window
        )

    @property
    def n_ctx(self) -> int:
        """The context window in tokens; before the file is here, what it will be at most."""
        file = self._known(self.model)
        return self.options.context(None if file is None else file.context_train)

    @property
    def origin(self) -> Origin:
        """Who wrote what this model writes."""
        return Origin(self.name, self.model)

    def identity(self, model: str | None = None) -> Any:
        """Which file, template, options and build answer: what the router's cache keeps an answer for. Reads the file.

        None while the file is not here.
        """
        file = self._known(model or self.model)
        if file is None:
            return None
        options = asdict(self.options)
        for name in _NO_MATTER:
            del options[name]
        try:
            return [fingerprint(file.parts or (file.path,)), engine_build(self.options.engine), options]
        except OSError as error:
            log.warning("%s is not cached: its file cannot be read: %s", self.target.name, error)
            return None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the worker reported when it was ready: GPU offload, threads, parameters, warnings. Empty before."""
        supervisor = self._held.get(self.model)
        return supervisor.facts if supervisor is not None else {}

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        supervisor = self._held.get(self.model)
        return supervisor.pid if supervisor is not None else None

    def __repr__(self) -> str:
        return f"LlamaCppProvider({self.model!r}, n_ctx={self.n_ctx})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LlamaCppProvider, (self.target,)  # the process stays here; the other side starts its own

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaCppProvider:
        return LlamaCppProvider(self.target)

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────────

    def stream(self, request: ChatRequest, guard: Guard) -> Iterator[ChatEvent]:
        """Answer, sync. Closing the iterator stops the model."""
        reading = _Reading(self, request, guard)
        call, supervisor = reading.begin()
        if guard.cuts is not None:
            guard.cuts[self] = call.wake
        try:
            while True:
                message = call.get(guard.remaining())
                if message is None:
                    if guard.remaining() > 0:
                        continue
                    raise reading.out_of_time()
                yield from reading.events(message)
                if reading.over:
                    return
        finally:
            if not reading.over:
                supervisor.cancel(call)
            guard.resume()

    async def astream(self, request: ChatRequest, guard: Guard) -> AsyncIterator[ChatEvent]:
        """Answer, async. Cancelling the task or closing the iterator stops the model."""
        reading = _Reading(self, request, guard)
        call, supervisor = reading.begin()
        try:
            while not reading.over:
                if reading.unwatched:
                    # The limit has moved closer while we were awaited, which whoever watches over us cannot know.
                    try:
                        async with asyncio.timeout(guard.remaining()):
                            message = await call.aget()
                    except TimeoutError:
                        raise reading.out_of_time() from None
                else:
                    message = await call.aget()
                for event in reading.events(message):
                    yield event
        finally:
            if not reading.over:
                supervisor.cancel(call)
            guard.resume()

    def warm(self, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Load the model now, so that the first request does not wait for it; returns `facts`.

        Raises:
            InvalidModelFile: llama.cpp refuses the file, or it cannot be downloaded; the message carries the reason.
            ProviderError: it was not ready within `timeout_s` (by default a download may take as long as it takes, and
                loading the option `startup_timeout_s`).
        """
        fetching.fetch(self.model, self.options, timeout_s)
        call, supervisor = self._submit(Call("warm"), self.model)
        until = time.monotonic() + (self.options.startup_timeout_s if timeout_s is None else timeout_s)
        while True:
            message = call.get(until - time.monotonic())
            if message is None:
                if time.monotonic() < until:
                    continue
                supervisor.cancel(call)
                raise ProviderError.of(ErrorKind.TIMEOUT, "the local model is not ready in time")
            if _settled(message):
                return supervisor.facts

    async def awarm(self) -> Mapping[str, Any]:
        """`warm` on an event loop."""
        if self._known(self.model) is None:
            await asyncio.to_thread(fetching.fetch, self.model, self.options)
        call, supervisor = self._submit(Call("warm"), self.model)
        try:
            while not _settled(await call.aget()):
                continue
        finally:
            supervisor.cancel(call)
        return supervisor.facts

    @property
    def standby(self) -> Literal["warm", "prefill"] | None:
        """Whether it is to be ready before it is asked, and to read prompts ahead."""
        return self.options.standby

    def stand_by(self) -> None:
        """Begin to load the model, in the background. What goes wrong is logged; a request meets it again."""
        self._standing_by = True
        try:
            if self._known(self.model) is None:
                fetching.ahead(self.model, self.options, self._resume_standby(weakref.ref(self)))
            else:
                self._submit(Call("warm", unattended=True), self.model)
        except ProviderError as error:
            log.warning("%s is not ready to stand by: %s", self.target.name, error)

    @staticmethod
    def _resume_standby(me: weakref.ref[LlamaCppProvider]) -> Callable[[], None]:
        """Stands by once the file is here, unless the provider was closed or forgotten meanwhile."""

        def resume() -> None:
            provider = me()
            if provider is not None and provider._standing_by:
                provider.stand_by()

        return resume

    def prefill(self, request: ChatRequest) -> _ReadAhead | None:
        """Let the model read this request's prompt while nobody else needs it, so that answering it begins at once."""
        model = request.model or self.model
        supervisor = self._held.get(model)
        if supervisor is None:
            return None
        call = Call("prefill")

        def job() -> dict[str, Any]:
            made = self._job(request, model, [])
            call.work = _work(made)
            return made

        call.job = job
        supervisor.read_ahead(call)
        return _ReadAhead(supervisor, call)

    def wait_s(self, request: ChatRequest) -> float | None:
        """Seconds until this request is expected to have its turn, loading included; None unmeasured."""
        supervisor = self._held.get(request.model or self.model)
        return None if supervisor is None else supervisor.wait_s(_priority(request, self.options.priority))

    def report(self) -> SelfReport:
        """What is known of the model and its process now: `facts`, state, memory, rates, and who waits."""
        supervisor = self._held.get(self.model)
        if supervisor is None and (missing := fetching.state(self.model)) is not None:
            return missing
        if supervisor is None:
            return SelfReport({"state": "cold", "pid": None, "serving": 0, "waiting": 0})
        reason, retry_in_s = supervisor.unhealthy() or (None, None)
        return SelfReport(supervisor.report(), reason, retry_in_s)

    def count_tokens(self, request: ChatRequest, timeout_s: float = 30.0) -> int:
        """The tokens of this request's prompt, by the model's own tokeniser and template; starts the worker."""
        call, supervisor = self._submit(Call("count", self._job(request, self.model, [])), self.model)
        until = time.monotonic() + timeout_s
        while True:
            message = call.get(until - time.monotonic())
            if message is None:
                supervisor.cancel(call)
                raise ProviderError.of(ErrorKind.TIMEOUT, f"the local model did not count within {timeout_s:g} s")
            if _settled(message):
                return int(message["tokens"])

    def close(self) -> None:
        """Give the worker back; the last one to do so ends it. Idempotent, any thread; a later call starts anew."""
        self._standing_by = False
        _release_all(self._held)

    async def aclose(self) -> None:
        """The same, off the event loop: a large model takes a moment to go."""
        await asyncio.to_thread(self.close)

    # ── building ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, call: Call, model: str, *, left_s: float = math.inf) -> tuple[Call, Supervisor]:
        for _ in range(3):
            supervisor = self._supervisor(model)
            try:
                supervisor.submit(call, left_s=left_s)
            except Busy as error:
                raise _busy(error) from None
            except RuntimeError:
                if not supervisor.closed:
                    raise
                self._held.pop(model, None)  # closed meanwhile by another thread: start anew
                continue
            return call, supervisor
        raise ProviderError.of(ErrorKind.TRANSIENT, "the local model is being closed")

    def _supervisor(self, model: str) -> Supervisor:
        supervisor = self._held.get(model)
        if supervisor is None:
            supervisor = acquire(self._settings(model), **self._limits())
            if (other := self._held.setdefault(model, supervisor)) is not supervisor:
                release(supervisor)  # another thread was faster
                supervisor = other
        return supervisor

    def _known(self, model: str) -> ModelFile | None:
        """What its file says; None while that is still to be downloaded."""
        if model not in self._files and (file := fetching.look(model)) is not None:
            self._files[model] = file
        return self._files.get(model)

    def _file(self, model: str) -> ModelFile:
        if model not in self._files:
            try:
                self._files[model] = check_model_file(resolve_path(model))
            except ModelNotHere as error:
                # What a request names is not fetched: whoever may write to us must not fill our disk.
                asked = self.options if model == self.model else replace(self.options, download="warm")
                raise fetching.refusal(model, asked, error) from error
            except InvalidModelFile as error:
                raise UnusableModel(str(error), kind=ErrorKind.NOT_FOUND) from error
        return self._files[model]

    def _settings(self, model: str) -> dict[str, Any]:
        options, file = self.options, self._file(model)
        return {
            "path": os.fspath(file.path),
            "n_ctx": options.context(file.context_train),
            "n_threads": options.n_threads or _threads(file),
            "n_gpu_layers": None if options.n_gpu_layers == "auto" else options.n_gpu_layers,
            "allow_cpu": options.allow_cpu,
            "n_batch": options.n_batch,
            "flash_attn": options.flash_attn,
            "chat_template": options.chat_template,
            "engine": options.engine,
            "kv_cache_mb": options.kv_cache_mb,
            "use_mmap": options.use_mmap,
            "log_lines": options.verbose,
            "kv_bytes_per_token": file.kv_bytes_per_token,
        }

    def _limits(self) -> dict[str, Any]:
        o = self.options
        return {
            "queue": o.queue,
            "max_restarts": o.max_restarts,
            "startup_timeout_s": float(o.startup_timeout_s),
            "rlimit_as": o.rlimit_as,
            "stand_by": o.standby is not None,
        }

    def _job(self, request: ChatRequest, model: str, changes: list[Change]) -> dict[str, Any]:
        messages, partial = request.messages, ""
        if request.continues and messages and messages[-1].role == "assistant":
            messages, partial = messages[:-1], messages[-1].text
        prepared = prepare(messages, origin=self.origin, rules=_RULES, changes=changes)
        choice = request.tool_choice or "auto"
        tools = [] if request.tool_choice == "none" else list(request.tools)
        temperature = self.options.temperature if request.temperature is None else request.temperature
        n_ctx = self.options.context(self._file(model).context_train)
        seed = request.seed if request.seed is not None else self.options.seed
        return {
            "messages": [_spoken(message) for message in prepared],
            "partial": partial,
            "tools": [_tool(wire_name(t.name, _RULES), t.description, t.parameters) for t in tools],
            "tool_choice": choice if choice in ("auto", "any", "none") else wire_name(choice, _RULES),
            "parallel": request.parallel_tool_calls is not False,
            "schema": None if request.output is None else dict(request.output.schema),
            "stop": list(request.stop),
            "temperature": temperature,
            "top_p": request.top_p,
            "seed": int.from_bytes(os.urandom(4), "big") % (2**32 - 1) if seed is None else seed % (2**32 - 1),
            "max_tokens": min(self.options.max_tokens, n_ctx) if request.max_tokens is None else request.max_tokens,
            "fit": self.options.fit_max_tokens or request.max_tokens is None,
            "truncate": self.options.truncate,
            **_sampling(request),
        }


class _ReadAhead:
    """A prompt that this model reads ahead."""

    __slots__ = ("_call", "_supervisor")

    def __init__(self, supervisor: Supervisor, call: Call) -> None:
        self._supervisor, self._call = supervisor, call

    def drop(self) -> None:
        """It is not needed any more; what has been read is kept until the model needs the room."""
        self._supervisor.forget(self._call)


class _Reading:
    """One answer being read: worker messages in, events out. No I/O; both faces drive it."""

    def __init__(self, provider: LlamaCppProvider, request: ChatRequest, guard: Guard) -> None:
        self._provider, self._request, self._guard = provider, request, guard
        self._model = request.model or provider.model
        self._id = f"local-{uuid.uuid4().hex[:16]}"
        self._content = False
        self._held_up = False
        self._seed: int | None = None
        self._names = {wire_name(t.name, _RULES): t.name for t in request.tools}
        self.over = False
        self.unwatched = False
        """Whether the guard's limit is in force again, and no event has been yielded since."""

    def begin(self) -> tuple[Call, Supervisor]:
        """Hand the request in."""
        changes: list[Change] = []
        provider, request, guard = self._provider, self._request, self._guard
        job = provider._job(request, self._model, changes)
        if changes:
            guard.notes.extend(summary(changes))
        self._seed = job["seed"] if job["temperature"] > 0 else None
        longest = provider.options.queue_timeout_s
        first_s = max(0.0, guard.remaining())
        if longest is None:
            longest = math.inf if guard.which == "deadline" else first_s
        call = Call(
            "generate",
            job,
            priority=_priority(request, provider.options.priority),
            work=_work(job),
            within_s=longest,
        )
        return provider._submit(call, self._model, left_s=first_s + guard.deadline - guard.at)

    def events(self, message: dict[str, Any]) -> Iterator[ChatEvent]:
        """The events of one message.

        Raises:
            ProviderError: it reports a failure.
        """
        match message["ev"]:
            case "loading" | "queued":
                self._guard.suspend()
                self._held_up = True
            case "loaded" | "turn":
                if self._held_up:
                    self._guard.resume()
                    self._held_up, self.unwatched = False, True
            case "note":
                self._guard.notes.append(message["text"])
            case "start":
                self.unwatched = False
                self._guard.resume()
                yield Started(self._id, self._model)
            case "text":
                self._content = True
                yield TextDelta(message["t"])
            case "thought":
                self._content = True
                yield ReasoningDelta(message["t"])
            case "call":
                self._content = True
                index = int(message["index"])
                name = self._names.get(message["name"], message["name"])
                yield ToolCallDelta(index, f"call_{self._id[6:]}_{index}", name, message["arguments"])
            case "done":
                self.over = True
                yield self._finished(message)
            case _:
                self.over = True
                raise self._failure(message)

    def _finished(self, message: dict[str, Any]) -> Finished:
        extra: dict[str, Any] = dict(message["extra"])
        if self._seed is not None:
            extra["seed"] = self._seed
        return Finished(
            reason=message["reason"],
            raw_reason=message["raw"],
            usage=Usage(message["prompt"], message["output"], cached_tokens=message["cached"]),
            response_id=self._id,
            model=self._model,
            provider="llamacpp",
            extra=extra,
        )

    def _failure(self, message: dict[str, Any]) -> ProviderError:
        error = _error(message, content=self._content)
        error.after_output = self._content
        return error

    def out_of_time(self) -> ProviderError:
        """The guard has run out."""
        error = ProviderError.of(ErrorKind.TIMEOUT, f"the local model: {self._guard.ran_out()}")
        error.after_output = self._content
        return error


def _settled(message: dict[str, Any]) -> bool:
    """Whether this message ends a call that is not an answer; raises if it is a failure."""
    if message["ev"] in ("loading", "loaded", "queued", "turn"):
        return False
    if message["ev"] in ("done", "counted"):
        return True
    raise _error(message, content=False)


def _error(message: dict[str, Any], *, content: bool) -> ProviderError:
    match message["ev"]:
        case "failed":
            error: Exception = message["error"]
            if isinstance(error, Busy):
                return _busy(error)
            if isinstance(error, ProviderError):
                return error
            if isinstance(error, InvalidModelFile):
                return UnusableModel(str(error), kind=ErrorKind.CONFIG)
            if isinstance(error, ConfigurationError):
                return ProviderError.of(ErrorKind.CONFIG, str(error))
            raise error
        case "died":
            how = message["how"] + (f": {message['said']}" if message["said"] else "")
            return ProviderError.of(ErrorKind.STREAM_CUT if content else ErrorKind.TRANSIENT, how)
        case "cancelled":
            return ProviderError.of(ErrorKind.CANCELLED, "the local model was told to stop")
        case _ if message.get("kind") == "bug":
            return ProviderError.of(ErrorKind.UNKNOWN, f"the local model's worker failed: {message['message']}")
        case _:
            kind = ErrorKind(message["kind"])
            hint = None
            if kind is ErrorKind.CONTEXT_OVERFLOW:
                hint = "shorten the conversation, lower max_tokens, or raise n_ctx="
            return ProviderError.of(kind, message["message"], hint=hint)


def _busy(error: Busy) -> ProviderError:
    return ProviderError.of(
        ErrorKind.OVERLOADED,
        f"the local model is busy: {error}",
        code="no_turn",  # no fault of its health: the circuit does not count it
        retry_after_s=error.retry_after_s,
        retryable_hint=False if error.too_late else None,
        hint="queue= lets more requests wait, queue_timeout_s= lets them wait longer, a higher priority goes first",
    )


def _priority(request: ChatRequest, default: int) -> int:
    given = (request.extra.get("llamacpp") or {}).get("priority", default)
    fits, wanted = PRIORITY
    if not fits(given):
        raise InvalidRequest(f"extra['llamacpp']['priority'] must be {wanted}, not {given!r}")
    return int(given)


def _work(job: Mapping[str, Any]) -> Work:
    """How much this is. Tool calls in the history count by their arguments' rough size, which is near enough."""
    characters = sum(len(m["content"]) + len(str(m.get("tool_calls", ""))) for m in job["messages"])
    return Work(characters + len(str(job["tools"])) + len(job["partial"]), job["max_tokens"])


def _release_all(held: dict[str, Supervisor]) -> None:
    while held:
        try:
            _, supervisor = held.popitem()
        except KeyError:  # another thread took the last one
            return
        release(supervisor)


def _threads(file: ModelFile) -> int:
    budget = cpu_budget()
    # A toy model is done before the threads have met; a real one wants all CPUs but one, as a busy neighbour on the
    # last makes every thread wait.
    small = file.path.stat().st_size < 64 * 2**20
    return 1 if small else max(1, min(8, budget - 1))


def _tool(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": dict(parameters)}}


def _sampling(request: ChatRequest) -> dict[str, Any]:
    given = {name: v for name, v in (request.extra.get("llamacpp") or {}).items() if name != "priority"}
    for name, value in given.items():
        if name == "grammar":
            if not isinstance(value, str):
                raise InvalidRequest(f"extra['llamacpp']['grammar'] must be the text of a GBNF grammar, not {value!r}")
            continue
        if name not in _SAMPLING:
            close = nearest(name, [*_SAMPLING, "priority", "grammar"])
            raise InvalidRequest(f"extra['llamacpp'] has no option {name!r}. {close}")
        kind, low, high = _SAMPLING[name]
        wanted = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not low <= value <= high:  # also refuses NaN
            raise InvalidRequest(f"extra['llamacpp'][{name!r}] must be {low:g} to {high:g}, not {value!r}")
    return given


def _text(parts: Sequence[Part]) -> str:
    return "".join(p.text for p in parts if isinstance(p, Text))


def _spoken(message: Message) -> dict[str, Any]:
    """One prepared message in the shape that chat templates know."""
    if message.role == "tool":
        result = next(p for p in message.parts if isinstance(p, ToolResult))
        content = _text(result.content)
        return {"role": "tool", "tool_call_id": result.call_id, "name": result.name or "", "content": content}
    spoken: dict[str, Any] = {"role": message.role, "content": message.text}
    if calls := message.tool_calls:  # templates turn the arguments into JSON themselves
        spoken["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.parsed()}} for c in calls
        ]
    return spoken
