"""The engine on xllamacpp: llama.cpp's own server, in this process. It takes token ids and gives text back.

Its HTTP side cannot be switched off, and is the only way to its tokeniser: it listens on a Unix socket in a folder that
nobody else may enter.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared_core.providers.llama_cpp.engine import (
    Cancelled,
    End,
    LoadError,
    OnPiece,
    OnStart,
    Refused,
    Vocabulary,
    Wanted,
)
from shared_core.providers.llama_cpp.grammar import ANYTHING, Grammar, GrammarError
from shared_core.providers.llama_cpp.model_file import check_model_file
from shared_core.providers.llama_cpp.special_tokens import special_tokens
from shared_core.providers.llama_cpp.spoken import VISIBLE

__all__ = ["ServerEngine"]

Json = dict[str, Any]

_KINDS = {"exceed_context_size_error": "context_overflow", "invalid_request_error": "incapable"}


_CPU_BATCH = 64
"""Tokens of a prompt that a processor reads at once: the server hears of a cancel only between two such steps. More
would not be read faster."""
_PREFIX = "llm-fallback-"


def _sweep() -> None:
    """Remove the folders of workers that were killed, and so could not do it themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid = folder.name[len(_PREFIX) :].split("-")[0]
        try:
            if pid.isdigit() and folder.stat().st_uid == os.getuid():
                os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # gone meanwhile, or another user's


class _Http(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Over the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ServerEngine:
    """One model with one slot; the server keeps the states of other conversations aside itself, up to `kv_cache_mb`."""

    name = "xllamacpp"

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        """Raises ImportError: xllamacpp is not installed, or was built for another machine."""
        try:
            import xllamacpp
        except (OSError, RuntimeError) as error:  # the shared library does not load
            raise ImportError(f"xllamacpp is installed but does not load: {error}") from error
        self._x: Any = xllamacpp
        self._on_line = on_line
        self.abort = threading.Event()
        self.n_ctx = 0
        self._server: Any = None
        self._folder: str | None = None
        self._read: list[int] = []
        """The prompt that was read last: what `evaluate` has done already."""

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, settings: Json) -> Json:
        """Load the file and try it. Returns the facts to report.

        Raises:
            LoadError: with llama.cpp's reason.
        """
        path = settings["path"]
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise LoadError(f"{error.strerror}") from error
        _sweep()
        self._folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")  # only its owner may enter
        self._socket = os.path.join(self._folder, "s.sock")
        wanted = settings.get("n_gpu_layers")
        devices = self._devices()
        params = self._x.CommonParams()
        params.model.path = path
        params.hostnames, params.n_threads_http, params.ui = [self._socket], 1, False
        params.n_ctx, params.n_parallel, params.fit_params = settings["n_ctx"], 1, False
        batch = min(settings["n_batch"], settings["n_ctx"])
        if wanted == 0 or not any(device["gpu"] for device in devices):
            batch = min(batch, _CPU_BATCH)
        params.n_batch = params.n_ubatch = batch
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["n_threads"]
        params.n_gpu_layers = -1 if wanted in (None, "auto") else 999 if wanted < 0 else wanted
        params.cache_ram_mib = int(settings.get("kv_cache_mb") or 0)
        params.warmup, params.no_perf = False, True
        # The prompt comes as token ids: its own templates are never used, and some files' templates it cannot read.
        params.use_jinja, params.chat_template = False, "chatml"
        params.verbosity = 4 if self._on_line is not None else 1  # 1: errors alone
        if not settings.get("use_mmap", True):
            params.load_mode = self._x.llama_load_mode.LLAMA_LOAD_MODE_NONE
        flash = settings.get("flash_attn")
        if flash is not None:
            kinds = self._x.llama_flash_attn_type
            params.flash_attn_type = (
                kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
            )
        said = _Overheard()
        try:
            with said:
                self._server = self._x.Server(params)
        except RuntimeError as error:
            raise LoadError(_reason(said.lines) or str(error)) from error
        finally:
            if self._on_line is not None:
                for line in said.lines:
                    self._on_line(line)
        self._read_vocabulary(Path(path))
        self._try_out()
        file = check_model_file(Path(path))
        layers = int(file.metadata.get(f"{file.architecture}.block_count") or 0) + 1  # the output layer counts as one
        taken = sum(before["memory_free"] - after["memory_free"] for before, after in zip(
            (d for d in devices if d["gpu"]), (d for d in self._devices() if d["gpu"]), strict=False
        ))  # fmt: skip
        # The server does not say what it put where; but the weights it put on a GPU are missing there now.
        asked = layers if wanted in (None, "auto") or wanted < 0 else min(wanted, layers)
        return {
            "n_ctx_train": file.context_train or self.n_ctx,
            "parameters": file.parameters,
            "bytes": file.size,
            "description": f"{file.architecture} {file.quantization or ''}".strip(),
            "gpu_support": any(d["gpu"] for d in devices),
            "devices": devices,
            "gpu_layers": asked if taken > 0 else 0,
            "layers": layers,
            "n_threads": settings["n_threads"],
            "system": self._x.get_system_info().strip(),
        }

    def _devices(self) -> list[Json]:
        return [
            {
                "name": d["name"],
                "description": d["description"],
                "gpu": "GPU" in str(d["type"]),
                "memory_free": d["memory_free"],
                "memory_total": d["memory_total"],
            }
            for d in self._x.get_device_info()
        ]

    def _read_vocabulary(self, path: Path) -> None:
        special = special_tokens(path)
        props = self._ask("GET", "/props")
        # The server goes no further than the length the model was trained on.
        self.n_ctx = int(props["default_generation_settings"]["n_ctx"])
        file = check_model_file(path)
        self.vocabulary = Vocabulary(
            markers=special,
            bos=props.get("bos_token") or "",
            eos=props.get("eos_token") or "",
            template=file.metadata.get("tokenizer.chat_template"),
            opens_with_blank=file.metadata.get("tokenizer.ggml.model") == "llama",
        )
        self._preserved = sorted(VISIBLE & set(special))

    def _try_out(self) -> None:
        prompt = self.tokenise("Hello", trusted=False, first=True) or [0]
        top: list[Any] = []
        # Of a token that is half a character the server shows no probabilities: then again, held to a letter.
        for held in ({}, {"grammar": 'root ::= "a"'}):
            try:
                answer = self._server.handle_completions({"prompt": prompt, "n_predict": 1, "logprobs": 5, **held})
            except Exception as error:
                raise LoadError(f"the model cannot be run: {error}") from error
            if wrong := answer.get("error"):
                raise LoadError(f"the model cannot be run: {wrong.get('message', wrong)}")
            found = (answer["choices"][0].get("logprobs") or {}).get("content") or []
            top = [t.get("logprob") for t in (found[0].get("top_logprobs") or ())] if found else []
            if top:
                break
        if not top:
            raise LoadError("this is not a text generation model (it gives no logits)")
        if any(v is None or not math.isfinite(v) for v in top):
            raise LoadError("the model computes NaN or infinity: its weights are damaged")
        if len(top) > 1 and max(top) == min(top):
            raise LoadError("the model finds every token equally likely: its weights are damaged")

    def close(self) -> None:
        """Free everything; the engine is not to be used again."""
        self._server = None
        self.tidy()

    def tidy(self) -> None:
        """Remove the folder of the socket."""
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, method: str, path: str, body: Json | None = None) -> Any:
        connection = _Http(self._socket)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def tokenise(self, text: str, *, trusted: bool, first: bool = False) -> list[int]:
        """Tokens of `text`; control tokens are recognised only in `trusted` text; `first` adds what opens a prompt."""
        plain = text.encode("utf-8", "replace").decode()
        answer = self._ask("POST", "/tokenize", {"content": plain, "parse_special": trusted, "add_special": first})
        return [int(token) for token in answer["tokens"]]

    # ── generating ───────────────────────────────────────────────────────────────────────────────────────────────────

    def compiles(self, grammar: str) -> bool:
        """Whether this is GBNF. What else llama.cpp may find wrong with it, `generate` reports."""
        try:
            Grammar.parse(grammar)
        except GrammarError:
            return False
        return True

    def evaluate(self, prompt: Sequence[int], *, step: int = 0) -> int:
        """Read a prompt, so that a generation from it begins at once; returns how many tokens were known already."""
        known: list[int] = []
        self._run(prompt, {"n_predict": 0, "temperature": 0.0}, known.append, lambda *_: True)
        return known[0] if known else 0

    def generate(self, prompt: Sequence[int], wanted: Wanted, on_start: OnStart, on_piece: OnPiece) -> End:
        """Go on from `prompt`.

        Raises:
            Cancelled: the abort flag was set.
            Refused: the server's error.
        """
        if not prompt:
            raise Refused("bad_request", "the prompt is empty")
        grammar = wanted.grammar
        if wanted.forced:
            # The server cannot be told what to begin with, but a grammar can; what it allows is what we would choose.
            try:
                whole = Grammar.parse(grammar or ANYTHING).beginning_with(wanted.forced.decode("utf-8", "replace"))
            except GrammarError as error:
                raise Refused("incapable", f"the partial answer cannot be gone on with: {error}") from error
            if whole is None:
                raise Refused("incapable", "the partial answer does not fit the schema")
            grammar = whole.text()
        options: Json = {
            "n_predict": wanted.limit + len(wanted.forced),
            "temperature": max(0.0, wanted.temperature),
            "seed": wanted.seed,
            "top_k": wanted.top_k,
            "top_p": 1.0 if wanted.top_p is None else wanted.top_p,
            "min_p": wanted.min_p,
            "repeat_penalty": wanted.repeat_penalty,
            "frequency_penalty": wanted.frequency_penalty,
            "presence_penalty": wanted.presence_penalty,
            "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        }
        if grammar is not None:
            options["grammar"] = grammar
        left, rest, limited = wanted.limit, len(wanted.forced), False

        def counted(tokens: Sequence[int], count: int, data: bytes) -> bool:
            nonlocal left, rest, limited
            if not on_piece(tokens, count, data):
                return False
            if not rest or len(data) > rest:
                left -= count
            rest = max(0, rest - len(data))
            limited = left <= 0
            return not limited

        end = self._run(prompt, options, on_start, counted)
        return "limit" if limited else end

    def _run(self, prompt: Sequence[int], options: Json, on_start: OnStart, on_piece: OnPiece) -> End:
        if self.abort.is_set():
            raise Cancelled
        started = stopped = False
        counted = delivered = 0
        silent: list[int] = []
        reason, failure, fault = "stop", None, None

        def heard(chunk: Json) -> bool:
            """One chunk of the stream; True ends it. Exceptions would be swallowed, so they are kept."""
            nonlocal started, stopped, counted, delivered, reason, failure, fault
            try:
                if (error := chunk.get("error")) is not None:
                    failure = error
                    return True
                if self.abort.is_set():
                    return True
                choice, details = chunk["choices"][0], chunk.get("__verbose") or {}
                progress = chunk.get("prompt_progress")
                if progress is not None:
                    if not started and progress["processed"] >= progress["total"]:
                        started = True
                        on_start(int(progress["cache"]))
                    return False
                if not started:
                    started = True
                    cached = (chunk.get("usage") or {}).get("prompt_tokens_details", {}).get("cached_tokens", 0)
                    on_start(int(cached))
                if choice["finish_reason"] is not None:
                    reason = choice["finish_reason"]
                    unseen = (chunk.get("usage") or {}).get("completion_tokens", 0) - delivered - (reason == "stop")
                    if unseen > 0:  # tokens without text, or of a character that was not finished
                        on_piece(silent, unseen, b"")
                    return False
                text, total = choice["text"], details.get("tokens_predicted") or 0
                tokens = details.get("tokens") or []
                fresh, counted = total - counted, total
                if not text:  # a control token, or the one that ends the answer: the next chunk tells which
                    if fresh:
                        silent.extend(tokens)
                    return False
                if fresh != len(tokens):  # a character in several tokens comes with the last of them alone
                    tokens = self.tokenise(text, trusted=True)
                tokens, fresh = [*silent, *tokens], fresh + len(silent)
                silent.clear()
                delivered += fresh
                if not on_piece(tokens, fresh, text.encode("utf-8", "replace")):
                    stopped = True
                    return True
            except BaseException as error:  # noqa: BLE001 - raised below, outside of the C++ that calls this
                fault = error
                return True
            return False

        body = {
            **options,
            "prompt": list(prompt),
            "stream": True,
            "cache_prompt": True,
            "return_progress": True,
            "verbose": True,  # the tokens themselves, and how many
            "preserved_tokens": self._preserved,
        }
        try:
            self._server.handle_completions(body, heard)
        except (RuntimeError, ValueError) as error:
            raise Refused("transient", f"llama.cpp's server failed: {error}") from error
        if fault is not None:
            raise fault
        if failure is not None:
            kind = _KINDS.get(failure.get("type", ""), "transient")
            raise Refused(kind, f"llama.cpp's server refuses the request: {failure.get('message', failure)}")
        if self.abort.is_set() and not stopped:
            raise Cancelled
        if stopped:
            return "stopped"
        return "limit" if reason == "length" else "eos"


class _Overheard:
    """What is written to standard error meanwhile, by C++ too: the only place where the reason of a failure is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._kept = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._file.seek(0)
        self.lines = [line for line in self._file.read().decode("utf-8", "replace").splitlines() if line.strip()]
        self._file.close()


_ERROR = re.compile(r"^\S+ E \S*\s*\S*?:\s*(.*)$")


def _reason(lines: Sequence[str]) -> str:
    said = [match[1] for line in lines if (match := _ERROR.match(line))]
    return "; ".join(dict.fromkeys(said[:3]))
