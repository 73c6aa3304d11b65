"""The engine on llama-cpp-python: llama.cpp's C functions, called token by token.

Not `llama_cpp.Llama`, whose completion methods detokenise the whole answer again for every token, take cubic time on
invalid UTF-8, check no grammar for NULL and turn user text into control tokens.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
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
from shared_core.providers.llama_cpp.kv_store import SavedState, StateStore, common_prefix
from shared_core.providers.llama_cpp.library import AbortFlag, LogKeeper
from shared_core.providers.llama_cpp.sampler import Sampler
from shared_core.providers.llama_cpp.spoken import VISIBLE

__all__ = ["CEngine"]

Json = dict[str, Any]

_WORTH_SAVING = 24
"""Tokens. What is read again faster than its state is copied is not worth keeping."""


class CEngine:
    """A model and its one context. States of other conversations are kept aside, up to `kv_cache_mb`."""

    name = "llama-cpp-python"

    def __init__(self, library: Any, log: LogKeeper, *, on_progress: Callable[[float], None] | None = None) -> None:
        self._c = library
        self._log = log
        self._on_progress = on_progress
        self.abort = AbortFlag(library)
        self.n_ctx = 0
        self._model: Any = None
        self._ctx: Any = None
        self._cached: list[int] = []
        """The tokens whose keys and values the context holds."""
        self._logits_fresh = False
        self._aside = StateStore(0)

    # ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def load(self, settings: Json) -> Json:
        """Load the file, warm it up and try it. Returns the facts to report.

        Raises:
            LoadError: with the reason from llama.cpp's log.
        """
        c, path = self._c, settings["path"]
        c.llama_backend_init()
        self._log.clear()
        params = c.llama_model_default_params()
        can_offload = bool(c.llama_supports_gpu_offload())
        wanted = settings.get("n_gpu_layers")
        layers = (-1 if can_offload else 0) if wanted in (None, "auto") else wanted
        params.n_gpu_layers = 0x7FFFFFFF if layers < 0 else layers
        if not settings.get("use_mmap", True):
            params.load_mode = c.LLAMA_LOAD_MODE_NONE

        def progress(value: float, _user_data: Any) -> bool:
            if self._on_progress is not None:
                self._on_progress(value)
            return not self.abort.is_set()

        self._progress = c.llama_progress_callback(progress)
        params.progress_callback = self._progress
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise LoadError(f"{error.strerror}") from error
        model = c.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise LoadError(self._log.reason() or "llama.cpp gave no reason")
        self._model = model
        if not c.llama_model_has_decoder(model) or c.llama_model_has_encoder(model):
            raise LoadError("this is not a text generation model (it has an encoder)")
        self._vocab = c.llama_model_get_vocab(model)
        self._n_vocab = c.llama_vocab_n_tokens(self._vocab)
        self.n_ctx = settings["n_ctx"]
        _check_memory(settings, self.n_ctx)
        context = c.llama_context_default_params()
        context.n_ctx = self.n_ctx
        self._n_batch = min(settings["n_batch"], self.n_ctx)
        context.n_batch = self._n_batch
        context.n_ubatch = min(self._n_batch, 512)  # what is computed in one go: a cancel is heard in between
        context.n_seq_max = 1
        context.n_threads = context.n_threads_batch = settings["n_threads"]
        context.no_perf = True
        flash = settings.get("flash_attn")
        if flash is not None:
            context.flash_attn_type = 1 if flash else 0
        context.abort_callback, context.abort_callback_data = self.abort.callback, self.abort.data
        self._ctx = c.llama_init_from_model(model, context)
        if not self._ctx:
            raise LoadError(self._log.reason() or f"no memory for a context of {self.n_ctx} tokens")
        self._memory = c.llama_get_memory(self._ctx)
        self.n_ctx = min(self.n_ctx, c.llama_n_ctx(self._ctx))
        self._tokens_in = (c.llama_token * self._n_batch)()
        self._one_in = (c.llama_token * 1)()
        self._one = c.llama_batch_get_one(self._one_in, 1)
        self._rewinds = not (c.llama_model_is_recurrent(model) or c.llama_model_is_hybrid(model))
        self._aside = StateStore(int(settings.get("kv_cache_mb") or 0) << 20)
        self._read_vocabulary()
        self._try_out()
        return {
            "n_ctx_train": c.llama_model_n_ctx_train(model),
            "parameters": c.llama_model_n_params(model),
            "bytes": c.llama_model_size(model),
            "description": self._description(),
            "gpu_support": can_offload,
            "devices": self._devices(),
            "gpu_layers": self._layers_offloaded(),
            "layers": c.llama_model_n_layer(model) + 1,  # the output layer counts as one
            "n_threads": settings["n_threads"],
            "system": c.llama_print_system_info().decode("utf-8", "replace").strip(),
        }

    def _description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._c.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _layers_offloaded(self) -> int:
        # Only the log says what really happened: what was asked for is not what fitted.
        found = re.search(r"offloaded (\d+)/\d+ layers to GPU", self._log.said("offloaded"))
        return int(found[1]) if found else 0

    def _devices(self) -> list[Json]:
        """What llama.cpp could compute on. The bindings do not wrap ggml's own list, so it is asked directly."""
        try:
            ggml: Any = importlib.import_module("llama_cpp._ggml").libggml
            count = ggml.ggml_backend_dev_count
        except (ImportError, OSError, AttributeError):
            return []
        get, name, description, kind, memory = (
            getattr(ggml, f"ggml_backend_dev_{what}") for what in ("get", "name", "description", "type", "memory")
        )
        count.restype, get.restype, get.argtypes = ctypes.c_size_t, ctypes.c_void_p, [ctypes.c_size_t]
        for text in (name, description):
            text.restype, text.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        kind.restype, kind.argtypes = ctypes.c_int, [ctypes.c_void_p]
        memory.restype, memory.argtypes = None, [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
        found = []
        for index in range(count()):
            device = get(index)
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append({
                "name": name(device).decode("utf-8", "replace"),
                "description": description(device).decode("utf-8", "replace"),
                "gpu": kind(device) in (1, 2),  # GGML_BACKEND_DEVICE_TYPE_GPU and _IGPU
                "memory_free": free.value,
                "memory_total": total.value,
            })  # fmt: skip
        return found

    def _read_vocabulary(self) -> None:
        c = self._c
        bos, eos = c.llama_vocab_bos(self._vocab), c.llama_vocab_eos(self._vocab)
        own = c.llama_model_chat_template(self._model, None)
        hidden = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        markers = []
        self._pieces: dict[int, bytes] = {}
        """Bytes of the tokens met so far. Control tokens have none, but those that belong to the answer's text do."""
        self._ends: set[int] = set()
        for token in range(self._n_vocab):
            if c.llama_vocab_get_attr(self._vocab, token) & hidden:
                text = self._text_of(token)
                if text:
                    markers.append(text)
                if text in VISIBLE:
                    self._pieces[token] = text.encode()
            if c.llama_vocab_is_eog(self._vocab, token):
                self._ends.add(token)
        self.vocabulary = Vocabulary(
            markers=tuple(markers),
            bos=self._text_of(bos) if bos >= 0 else "",
            eos=self._text_of(eos) if eos >= 0 else "",
            template=own.decode("utf-8", "replace") if own else None,
            opens_with_blank=c.llama_vocab_type(self._vocab) == c.LLAMA_VOCAB_TYPE_SPM,
        )

    def _text_of(self, token: int) -> str:
        text = self._c.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace") if text else ""

    def _try_out(self) -> None:
        tokens = self.tokenise("Hello", trusted=False, first=True) or [0]
        try:
            self._decode(tokens[: self._n_batch])
        except Cancelled:
            raise LoadError("loading was cancelled") from None
        except Refused as error:
            raise LoadError(str(error)) from error
        logits = self._c.llama_get_logits_ith(self._ctx, -1)
        if not logits:
            raise LoadError("this is not a text generation model (it gives no logits)")
        values = logits[: self._n_vocab]
        if not math.isfinite(sum(values)):
            raise LoadError("the model computes NaN or infinity: its weights are damaged")
        if self._n_vocab > 1 and min(values) == max(values):
            raise LoadError("the model finds every token equally likely: its weights are damaged")
        self._forget()

    def tidy(self) -> None:
        """There is nothing on disk."""

    def close(self) -> None:
        """Free everything; the engine is not to be used again."""
        if self._ctx:
            self._c.llama_free(self._ctx)
        if self._model:
            self._c.llama_model_free(self._model)
        self._ctx = self._model = None

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def tokenise(self, text: str, *, trusted: bool, first: bool = False) -> list[int]:
        """Tokens of `text`; control tokens are recognised only in `trusted` text; `first` adds what opens a prompt."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        buffer = (self._c.llama_token * room)()
        count = self._c.llama_tokenize(self._vocab, data, len(data), buffer, room, first, trusted)
        if count < 0:
            buffer = (self._c.llama_token * -count)()
            count = self._c.llama_tokenize(self._vocab, data, len(data), buffer, -count, first, trusted)
        return list(buffer[: max(0, count)])

    def _piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._c.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count  # a long token: the buffer must hold it, or it would be lost

    @cached_property
    def _sorted_pieces(self) -> list[tuple[bytes, int]]:
        return sorted((piece, token) for token in range(self._n_vocab) if (piece := self._piece(token)))

    @cached_property
    def _by_piece(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for piece, token in self._sorted_pieces:
            found.setdefault(piece, []).append(token)
        return found

    def _agreeing(self, rest: bytes) -> list[int]:
        """The tokens that may come next where the text must go on with `rest`: its beginnings, and what goes beyond."""
        found = [token for size in range(1, len(rest) + 1) for token in self._by_piece.get(rest[:size], ())]
        pieces = self._sorted_pieces
        at = bisect_left(pieces, (rest, 1 << 40))
        while at < len(pieces) and pieces[at][0].startswith(rest):
            found.append(pieces[at][1])
            at += 1
        return found

    # ── evaluating ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _forget(self) -> None:
        if self._memory:
            self._c.llama_memory_clear(self._memory, True)
        self._cached.clear()
        self._logits_fresh = False

    def _decode(self, tokens: Sequence[int], step: int = 0) -> None:
        """Evaluate `tokens` behind what is cached. Raises `Cancelled` when the flag is set meanwhile."""
        size = min(step or self._n_batch, self._n_batch)
        for at in range(0, len(tokens), size):
            if self.abort.is_set():
                raise Cancelled
            part = tokens[at : at + size]
            self._tokens_in[: len(part)] = part
            self._logits_fresh = False
            code = self._c.llama_decode(self._ctx, self._c.llama_batch_get_one(self._tokens_in, len(part)))
            if code != 0:
                self._decode_failed(code)
            self._cached += part
            self._logits_fresh = True

    def _decode_failed(self, code: int) -> None:
        self._logits_fresh = False
        # Part of the batch may be in the cache already.
        if not self._c.llama_memory_seq_rm(self._memory, 0, len(self._cached), -1):
            self._forget()
        if code == 2 or self.abort.is_set():
            raise Cancelled
        raise Refused("transient", f"llama.cpp could not evaluate the prompt (llama_decode returned {code})")

    def evaluate(self, prompt: Sequence[int], *, step: int = 0) -> int:
        """Bring the context to exactly `prompt`; returns how many of its tokens were known already."""
        tokens = list(prompt)
        same = self._recall(tokens)
        if same == len(tokens) and not (self._logits_fresh and len(self._cached) == same):
            same -= 1  # the last token's logits are needed, so it is evaluated again
        if same < len(self._cached):
            # A recurrent state cannot be rewound, nor a sliding window whose beginning has been overwritten.
            whole = self._rewinds and self._c.llama_memory_seq_pos_min(self._memory, 0) == 0
            if same > 0 and whole and self._c.llama_memory_seq_rm(self._memory, 0, same, -1):
                del self._cached[same:]
                self._logits_fresh = False
            else:
                self._forget()
                same = 0
        self._decode(tokens[same:], step)
        return same

    def _recall(self, tokens: list[int]) -> int:
        """How much of `tokens` the context holds, once the best state that was put aside is back in it."""
        same = common_prefix(self._cached, tokens)
        if not self._aside.limit:
            return same
        state, longest = self._aside.best(tokens)
        if len(self._cached) - same >= _WORTH_SAVING:
            self._put_aside()  # another conversation's: it may come back
        if state is None or longest < same + _WORTH_SAVING or not (self._rewinds or longest == len(state.tokens)):
            return same
        self._c.llama_memory_clear(self._memory, False)
        self._cached.clear()
        self._logits_fresh = False
        if not self._c.llama_state_seq_set_data(self._ctx, state.data, state.size, 0):
            self._forget()
            return 0
        self._cached = list(state.tokens)
        return longest

    def _put_aside(self) -> None:
        size = self._c.llama_state_seq_get_size(self._ctx, 0)
        if not 0 < size <= self._aside.limit:
            return
        try:
            data = (ctypes.c_uint8 * size)()
        except MemoryError:  # an address space limit: then what was read is read again
            self._aside = StateStore(0)
            return
        written = self._c.llama_state_seq_get_data(self._ctx, data, size, 0)
        if written:
            self._aside.put(SavedState(list(self._cached), data, written))

    # ── generating ───────────────────────────────────────────────────────────────────────────────────────────────────

    def compiles(self, grammar: str) -> bool:
        """Whether llama.cpp takes this GBNF grammar. One that it does not take would end the process in use."""
        sampler = self._c.llama_sampler_init_grammar(self._vocab, grammar.encode("utf-8", "replace"), b"root")
        if not sampler:
            return False
        self._c.llama_sampler_free(sampler)
        return True

    def generate(self, prompt: Sequence[int], wanted: Wanted, on_start: OnStart, on_piece: OnPiece) -> End:
        """Go on from `prompt`.

        Raises:
            Cancelled: the abort flag was set.
            Refused: the grammar does not compile, or no token of this model fits it.
        """
        if not prompt:
            raise Refused("bad_request", "the prompt is empty")
        sampler = Sampler(self._c, self._vocab, wanted)
        try:
            on_start(self.evaluate(prompt))
            return self._go_on(sampler, wanted, on_piece)
        finally:
            sampler.close()

    def _go_on(self, sampler: Sampler, wanted: Wanted, on_piece: OnPiece) -> End:
        # The one loop that runs for every token: what it needs is at hand.
        decode, ctx, batch, cell = self._c.llama_decode, self._ctx, self._one, self._one_in
        pieces, ends, cached, choose = self._pieces, self._ends, self._cached, sampler.choose
        n_ctx, left, rest = self.n_ctx, wanted.limit, wanted.forced
        while True:
            if rest:
                best = sampler.best(ctx, self._agreeing(rest))
                if best is None:
                    raise Refused("incapable", "no token of this model can spell the partial answer to go on with")
                token = best
            else:
                token = choose(ctx)
                if token in ends:
                    return "eos"
            piece = pieces.get(token)
            if piece is None:
                piece = self._piece(token)
            if not on_piece((token,), 1, piece):
                return "stopped"
            if len(piece) > len(rest) or not rest:
                left -= 1
                if left <= 0:
                    return "limit"
            rest = rest[len(piece) :]
            if len(cached) >= n_ctx:
                return "context_full"
            if self.abort.is_set():
                raise Cancelled
            cell[0] = token
            self._logits_fresh = False
            if code := decode(ctx, batch):
                self._decode_failed(code)
            cached.append(token)
            self._logits_fresh = True


def _check_memory(settings: Json, n_ctx: int) -> None:
    # llama.cpp zeroes the whole cache at once; a cache too big would meet the OOM killer rather than an error.
    per_token = settings.get("kv_bytes_per_token")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    if per_token and free is not None and per_token * n_ctx > free * 0.9:
        raise LoadError(
            f"a context of {n_ctx} tokens takes {per_token * n_ctx / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free; lower n_ctx"
        )
