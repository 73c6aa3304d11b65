"""What an engine is: one loaded model that goes on from token ids. What makes an answer of that is written once, above.

    llama-cpp-python   llama.cpp's C functions, called one token at a time (`c_engine`)
    xllamacpp          llama.cpp's own server, in this process (`server_engine`)

Not thread-safe: the worker's one compute thread owns it; only `abort` may be set by another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

__all__ = [
    "Cancelled",
    "End",
    "Engine",
    "Flag",
    "LoadError",
    "OnPiece",
    "OnStart",
    "Refused",
    "Vocabulary",
    "Wanted",
    "open_engine",
]

Json = dict[str, Any]
OnStart = Callable[[int], None]
"""Takes the number of prompt tokens that were known already, once the others have been read."""
OnPiece = Callable[[Sequence[int], int, bytes], bool]
"""Takes tokens that were chosen, how many there were, and the bytes they stand for; False ends the generation.

Where an engine only gives text, the tokens are those of the text, and may be fewer or more than there were."""
End = Literal["eos", "limit", "stopped", "context_full"]
"""Why a generation ended: the model ended it, `Wanted.limit`, `OnPiece` said so, or no room was left."""


class LoadError(Exception):
    """The model cannot be loaded; the message is llama.cpp's reason. `what` is at fault: the model or the options."""

    def __init__(self, reason: str, what: Literal["model", "config"] = "model") -> None:
        super().__init__(reason)
        self.what = what


class Refused(Exception):
    """This request cannot be served; `kind` is an `ErrorKind` value."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Cancelled(Exception):
    """The caller went away."""


class Flag(Protocol):
    """Asks a running generation to stop, from another thread."""

    def set(self) -> None:
        """Stop as soon as possible."""

    def clear(self) -> None:
        """Go on."""

    def is_set(self) -> bool:
        """Whether stopping was asked for."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What rendering and reading need to know of a model's tokens.

    Attributes:
        markers: texts of its control tokens.
        bos: text of the token that opens a prompt; empty if there is none.
        eos: text of the token that ends an answer.
        template: the chat template in the file.
        opens_with_blank: whether the tokeniser puts a blank before every text (SentencePiece).
    """

    markers: tuple[str, ...]
    bos: str
    eos: str
    template: str | None
    opens_with_blank: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to go on: at most `limit` tokens, those that spell `forced` not counted.

    Attributes:
        grammar: GBNF that everything generated must fit, `forced` included. It compiles.
        forced: UTF-8 bytes that the generated text must begin with, as the beginning of whatever tokens are likeliest.
    """

    limit: int
    temperature: float
    seed: int
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    grammar: str | None = None
    forced: bytes = b""


class Engine(Protocol):
    """One model and its context."""

    name: str

    @property
    def abort(self) -> Flag:
        """Stops a generation, also while it reads the prompt."""

    @property
    def n_ctx(self) -> int:
        """The context window in tokens."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What the loaded model's tokens are like."""

    def load(self, settings: Json) -> Json:
        """Load the file and try it. Returns the facts to report.

        Raises:
            LoadError: with llama.cpp's reason.
        """

    def tokenise(self, text: str, *, trusted: bool, first: bool = False) -> list[int]:
        """Tokens of `text`; control tokens are recognised only in `trusted` text; `first` adds what opens a prompt."""

    def compiles(self, grammar: str) -> bool:
        """Whether llama.cpp takes this GBNF grammar."""

    def evaluate(self, prompt: Sequence[int], *, step: int = 0) -> int:
        """Read a prompt, so that a generation from it begins at once; returns how many tokens were known already.

        It is read `step` tokens at a time, where the engine can do so: what a cancel loses at most. 0 leaves it free.

        Raises:
            Cancelled: the abort flag was set.
        """

    def generate(self, prompt: Sequence[int], wanted: Wanted, on_start: OnStart, on_piece: OnPiece) -> End:
        """Go on from `prompt`: `on_start` once, with the number of prompt tokens that were known already, then pieces.

        Raises:
            Cancelled: the abort flag was set.
            Refused: llama.cpp cannot do this.
        """

    def tidy(self) -> None:
        """Leave nothing behind on disk: the process is about to end. Any thread."""

    def close(self) -> None:
        """Free everything; the engine is not to be used again."""


def open_engine(
    name: str, on_progress: Callable[[float], None] | None = None, on_line: Callable[[str], None] | None = None
) -> Engine:
    """The engine of that name, nothing loaded yet. `on_line` gets llama.cpp's log, every line of it.

    Raises:
        ImportError: its package is not installed, or was built for another machine.
    """
    if name == "xllamacpp":
        from shared_core.providers.llama_cpp.server_engine import ServerEngine

        return ServerEngine(on_line)
    from shared_core.providers.llama_cpp.c_engine import CEngine
    from shared_core.providers.llama_cpp.library import LogKeeper, bindings

    library = bindings()
    return CEngine(library, LogKeeper(library, on_line), on_progress=on_progress)
