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
from typing import Any, NamedTuple

from benchmarks.measure import Peer, Row, row
from shared_core import ChatRequest, Router, Target, assistant, system, user
from shared_core.chat.events import Finished, Usage
from shared_core.providers.llama_cpp import LlamaCppProvider
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
def _local(path: Path, **options: Any) -> Iterator[tuple[Router, LlamaCppProvider]]:
    provider = LlamaCppProvider(Target(f"llamacpp:{path}", n_ctx=N_CTX, n_threads=1, **options))
    provider.warm()
    try:
        with Router([provider]) as router:
            yield router, provider
    finally:
        provider.close()


def measure(rounds: int, lengths: Sequence[int] = LENGTHS) -> list[Row]:
    """All rows of the local model. Each round runs the bare loop before and after ours, as the machine may change."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        path = endless(Path(folder) / "endless.gguf")
        bare = Peer(sys.executable, Path(__file__).with_name("local_bare.py"), str(path), str(N_CTX))
        with _local(path) as (router, ours), _local(path, engine="xllamacpp") as (other, others):
            ways = [
                _Way("streamed through worker and router", streamed(router), lambda: ours.pid, promised=True),
                _Way("whole through worker and router", whole(router), lambda: ours.pid, promised=True),
                _Way("in the worker, sent nowhere", lambda n: bare.round("inside", n), lambda: bare.pid, promised=True),
                _Way("streamed by xllamacpp through worker and router", streamed(other), lambda: others.pid),
                _Way("streamed by llama-cpp-python", lambda n: bare.round("high_level", n), lambda: bare.pid),
            ]
            for number in lengths:
                rows += _beside(bare, ways, number, rounds if number < 1000 else max(3, rounds // 2))
        bare.close()
    return [*rows, *_talks(rounds)]


class _Way(NamedTuple):
    """One way to generate so many tokens, and the process that computes them."""

    name: str
    run: Callable[[int], object]
    pid: Callable[[], int | None]
    promised: bool = False


def cpu_us(pid: int | None) -> float:
    """Microseconds of CPU time that all threads of a process have taken."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e3


def _timed(pid: int | None, run: Callable[[int], object], number: int) -> tuple[float, float]:
    """Seconds on the clock and microseconds of the process's CPU, for `number` tokens.

    Short answers are timed several at a time: a few milliseconds of another process would be a tenth of one.
    """
    times = max(1, 800 // number)
    cpu, begun = cpu_us(pid), time.perf_counter()
    for _ in range(times):
        run(number)
    return (time.perf_counter() - begun) / times, (cpu_us(pid) - cpu) / times


def _beside(bare: Peer, ways: Sequence[_Way], number: int, rounds: int) -> list[Row]:
    taken: list[list[tuple[float, float]]] = [[] for _ in ways]
    shares: list[list[tuple[float, float]]] = [[] for _ in ways]
    alone: list[tuple[float, float]] = []
    for way in ways:
        way.run(number)

    def loop(tokens: int) -> object:
        return bare.round("bare", tokens)

    before = _timed(bare.pid, loop, number)
    for _ in range(rounds):
        for way, times, ratios in zip(ways, taken, shares, strict=True):
            times.append(_timed(way.pid(), way.run, number))
            after = _timed(bare.pid, loop, number)
            clock, cpu = ((a + b) / 2 / c for a, b, c in zip(before, after, times[-1], strict=True))
            ratios.append((clock, cpu))
            alone.append(after)
            before = after
    median = statistics.median
    peer = f"a bare loop over llama.cpp, llama-cpp-python {version('llama-cpp-python')}"
    rows = []
    for way, times, ratios in zip(ways, taken, shares, strict=True):
        rows.append(
            row(
                f"{number} tokens {way.name}",
                "tokens/s",
                number / median(seconds for seconds, _ in times),
                peer=peer,
                peer_value=number / median(seconds for seconds, _ in alone),
                ratio=median(clock for clock, _ in ratios),
                ratio_at_least=PROMISED if way.promised else None,
            )
        )
        rows.append(
            row(
                f"{number} tokens {way.name}: the engine's CPU time",
                "us/token",
                median(cpu for _, cpu in times) / number,
                peer=peer,
                peer_value=median(cpu for _, cpu in alone) / number,
                ratio=median(cpu for _, cpu in ratios),
            )
        )
    return rows


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
            with _local(TINY, engine=engine, kv_cache_mb=mb) as (router, _):
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
