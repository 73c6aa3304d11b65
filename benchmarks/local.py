"""The local model beside llama.cpp itself: tokens per second through the whole of ours and through a bare loop."""

from __future__ import annotations

import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Peer, Row, row
from shared_core import ChatRequest, Router, Target, assistant, system, user
from shared_core.chat.events import Finished, Usage
from shared_core.providers.llama_cpp.model_file import TINY

__all__ = ["endless", "measure"]

LENGTHS = (100, 400, 1600)
N_CTX = 2048
NEVER = 192
"""The token of a byte that is in no UTF-8 text."""
PROMISED = 0.97
"""Of the bare loop's tokens per second."""
ASKED = ChatRequest((user("Tell me everything you know."),), temperature=0.0, seed=1)


def endless(path: Path) -> Path:
    """A copy of the toy model that never ends its turn, so that it writes as many tokens as it is told to."""
    data = bytearray(TINY.read_bytes())
    for name in (b"<|im_end|>", b"<|endoftext|>"):  # llama.cpp also knows the ends of a turn by their names
        for at in _places(data, name):
            data[at + len(name) - 3] = ord("X")
    numbers = {
        b"tokenizer.ggml.eos_token_id": NEVER,
        b"tokenizer.ggml.eot_token_id": NEVER,
        b"llama.context_length": N_CTX,
    }
    for key, value in numbers.items():
        struct.pack_into("<II", data, data.index(key) + len(key), 4, value)  # a 32-bit number
    path.write_bytes(data)
    return path


def _places(data: bytearray, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def streamed(router: Router) -> Callable[[int], None]:
    """Every piece of text as it comes, in the parent."""

    def run(number: int) -> None:
        ended = None
        for event in router.stream(ASKED.replace(streaming=True, max_tokens=number)):
            ended = event
        assert isinstance(ended, Finished)
        _check(ended.usage, number)

    return run


def whole(router: Router) -> Callable[[int], None]:
    """The answer in one."""

    def run(number: int) -> None:
        _check(router.invoke(ASKED.replace(max_tokens=number)).usage, number)

    return run


def _check(usage: Usage | None, number: int) -> None:
    if usage is None or usage.output_tokens != number:
        raise RuntimeError(f"{usage} instead of {number} tokens: the answer ended early")


@contextmanager
def _router(path: Path, **options: Any) -> Iterator[Router]:
    router = Router([Target(f"llamacpp:{path}", n_ctx=N_CTX, n_threads=1, **options)])
    try:
        yield router
    finally:
        router.close()


def measure(rounds: int, lengths: Sequence[int] = LENGTHS) -> list[Row]:
    """All rows of the local model. Each round runs the bare loop before and after ours, as the machine may change."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = endless(Path(folder) / "endless.gguf")
        bare = Peer(sys.executable, Path(__file__).with_name("local_bare.py"), str(path), str(N_CTX))
        with _router(path) as router, _router(path, engine="xllamacpp") as other:
            ways: list[tuple[str, Callable[[int], object]]] = [
                ("streamed through worker and router", streamed(router)),
                ("whole through worker and router", whole(router)),
                ("in the worker", lambda number: bare.round("inside", number)),
                ("streamed by xllamacpp through worker and router", streamed(other)),
                ("streamed by llama-cpp-python's own call", lambda number: bare.round("high_level", number)),
            ]
            for number in lengths:
                rows += _beside(bare, ways, number, rounds if number < 1000 else max(3, rounds // 2))
        bare.close()
    return [*rows, *_talks(rounds)]


def _beside(bare: Peer, ways: Sequence[tuple[str, Callable[[int], object]]], number: int, rounds: int) -> list[Row]:
    taken: list[list[float]] = [[] for _ in ways]
    shares: list[list[float]] = [[] for _ in ways]
    alone: list[float] = []
    for _, way in ways:
        way(number)
    before = bare.round("bare", number)
    for _ in range(rounds):
        for (_, way), times, ratios in zip(ways, taken, shares, strict=True):
            begun = time.perf_counter()
            way(number)
            times.append((time.perf_counter() - begun) / number * 1e6)
            after = bare.round("bare", number)
            ratios.append((before + after) / 2 / times[-1])
            alone.append(after)
            before = after
    peer = f"a bare loop over llama.cpp {version('llama-cpp-python')}"
    return [
        row(
            f"{number} tokens {name}",
            "tokens/s",
            1e6 / statistics.median(times),
            peer=peer,
            peer_value=1e6 / statistics.median(alone),
            ratio=statistics.median(ratios),
            ratio_at_least=PROMISED if "xllamacpp" not in name and "own call" not in name else None,
        )
        for (name, _), times, ratios in zip(ways, taken, shares, strict=True)
    ]


def _talks(rounds: int) -> list[Row]:
    """Four long conversations in turn: milliseconds to the first token, read anew and remembered."""
    names = ("Grace", "Hugo", "Uma", "Ivan")
    talks = [(system(f"{name} asks. " + "Be brief and kind. " * 60), user(f"My name is {name}.")) for name in names]
    question = (assistant("Nice to meet you."), user("What is my name?"))
    rows = []
    for engine in ("llama-cpp-python", "xllamacpp"):
        waits: dict[int, list[float]] = {0: [], 512: []}
        answers: dict[int, list[str]] = {0: [], 512: []}
        for mb, times in waits.items():
            with _router(TINY, engine=engine, kv_cache_mb=mb) as router:
                for talk in talks:
                    router.invoke(ChatRequest(talk))
                for _ in range(rounds):
                    for talk in talks:
                        begun = time.perf_counter()
                        got = router.invoke(ChatRequest((*talk, *question), max_tokens=8))
                        times.append((time.perf_counter() - begun) * 1e3)
                        answers[mb].append(got.text)
        if answers[0] != answers[512]:
            raise RuntimeError(f"{engine}: a remembered conversation was answered in another way")
        rows.append(
            row(
                f"8 tokens of the next turn of one of four talks, {engine}",
                "ms",
                statistics.median(waits[512]),
                peer="the same without remembered states",
                peer_value=statistics.median(waits[0]),
                ratio=statistics.median(waits[512]) / statistics.median(waits[0]),
            )
        )
    return rows


def main() -> None:
    """Measure and print."""
    from benchmarks.__main__ import table

    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    sys.stdout.write(table(measure(rounds)) + "\n")


if __name__ == "__main__":
    main()
