"""Model files that are wrong in every way we know of, and what becomes of whoever uses one.

table(whole)      named damage to a good file
mutants(whole)    seeded random damage to its header
meet(path)        a provider, a load and an answer: what came of it
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared_core.chat.events import collect
from shared_core.errors import InvalidModelFile, ProviderError
from shared_core.models.gguf import check_model_file
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.routing.target import Target
from tests.local.support import ask, guard

SEED = 20_261_120


@dataclass(frozen=True)
class Met:
    """What came of using a file.

    `how`: 'refused' where it is configured, 'load' refused by llama.cpp or by the self-test after it, 'answer' an
    error from the first answer, 'answered' with whatever such a file says, or a 'bug': any other exception.
    """

    how: str
    said: str

    @property
    def reason(self) -> str:
        """What the error says of this file, without its name."""
        return self.said.partition(".gguf")[2] or self.said


def meet(path: Path, *, load: bool = True) -> Met:
    """Use a file as a target. The process this runs in must live on whatever the file is."""
    provider = None
    try:
        if not load:
            check_model_file(path)
            return Met("answered", "")
        provider = LlamaCppProvider(Target(f"llamacpp:{path}", max_restarts=0, n_ctx=256, rlimit_as=8 << 30))
        provider.warm(timeout_s=30)
        got = collect(provider.stream(ask("Hello", max_tokens=4), guard(20.0)))
        return Met("answered", got.text)
    except (InvalidModelFile, ProviderError) as error:
        how = "refused" if provider is None else "answer" if provider.facts else "load"
        return Met(how, str(error))
    # Here is where one would be found that is not ours.
    except Exception as error:
        return Met("bug", repr(error))
    finally:
        if provider is not None:
            provider.close()


def matches(met: Met, how: str, reason: str) -> bool:
    """Whether a file of the table was met as the table says."""
    return met.how == how and re.search(reason, met.said) is not None


def header_length(whole: bytes) -> int:
    """Bytes before the first weight."""
    n_tensors, n_kv = struct.unpack_from("<QQ", whole, 8)
    at = 24

    def text(at: int) -> int:
        return at + 8 + struct.unpack_from("<Q", whole, at)[0]

    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    for _ in range(n_kv):
        at = text(at)
        (kind,) = struct.unpack_from("<I", whole, at)
        at += 4
        if kind == 8:
            at = text(at)
        elif kind == 9:
            inner, count = struct.unpack_from("<IQ", whole, at)
            at += 12
            for _ in range(count):
                at = text(at) if inner == 8 else at + sizes[inner]
        else:
            at += sizes[kind]
    for _ in range(n_tensors):
        at = text(at)
        (dims,) = struct.unpack_from("<I", whole, at)
        at += 4 + 8 * dims + 12
    return at


def mutants(whole: bytes, count: int = 300, seed: int = SEED) -> Iterator[bytes]:
    """Files whose headers were damaged: bits flipped, bytes overwritten, numbers made huge or zero."""
    rng, end = random.Random(seed), header_length(whole)
    for _ in range(count):
        data = bytearray(whole)
        match rng.randrange(4):
            case 0:
                for _ in range(rng.choice((1, 2, 8))):
                    data[rng.randrange(end)] ^= 1 << rng.randrange(8)
            case 1:
                at = rng.randrange(end - 16)
                data[at : at + 8] = rng.randbytes(8)
            case 2:
                at = 4 * rng.randrange(end // 4 - 2)
                data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20)))
            case _:
                # Where damage is most likely to be taken seriously: shapes and offsets at the end of the header.
                at = rng.randrange(end * 9 // 10, end - 8)
                length = rng.choice((1, 2, 4))
                data[at : at + length] = rng.randbytes(length)
        yield bytes(data)


def _number(whole: bytes, key: bytes, value: int) -> bytes:
    """`whole` with another number under a key of four bytes."""
    at = whole.index(key) + len(key)
    assert struct.unpack_from("<I", whole, at)[0] == 4, "it is an unsigned 32-bit number"
    return whole[: at + 4] + struct.pack("<I", value) + whole[at + 8 :]


def _swap(whole: bytes, old: bytes, new: bytes) -> bytes:
    assert old in whole
    assert len(old) == len(new)
    return whole.replace(old, new, 1)


def _not_a_number(whole: bytes, share: float) -> bytes:
    """`whole` with this share of its weights, from the end, not numbers."""
    start = len(whole) - int((len(whole) - header_length(whole)) * share) // 2 * 2
    return whole[:start] + b"\xff\x7f" * ((len(whole) - start) // 2)


def table(whole: bytes) -> dict[str, tuple[bytes | None, str, str]]:
    """Name: the file's bytes (None: there is no file), how it is met, and what the error says."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    in_metadata = whole.index(b"llama.embedding_length") + 5
    return {
        "missing": (None, "refused", "there is no such file"),
        "empty": (b"", "refused", "it is empty"),
        "random bytes": (random.Random(1).randbytes(4096), "refused", "not a GGUF file"),
        "a web page": (b"<!DOCTYPE html><html>", "refused", "download link"),
        "magic only": (b"GGUF", "refused", "ends inside its header"),
        "cut off at 30 bytes": (whole[:30], "refused", "ends inside its header"),
        "cut off in its metadata": (whole[:in_metadata], "refused", "ends inside its header"),
        "cut off in the middle": (whole[: len(whole) // 2], "refused", "it is cut off"),
        "one byte short": (whole[:-1], "refused", "it is cut off"),
        "version 99": (whole[:4] + struct.pack("<I", 99) + whole[8:], "refused", "version 99 is unknown"),
        "huge counts": (whole[:8] + struct.pack("<QQ", 1 << 60, 1 << 60) + whole[24:], "refused", "corrupt"),
        "nothing in it": (head, "refused", "names no architecture"),
        "unknown architecture": (
            _swap(whole, b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
                  b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00lxama"),
            "load", "lxama",
        ),
        "unknown pre-tokenizer": (_swap(whole, b"smollm", b"smollx"), "load", "smollx"),
        "a missing tensor": (_swap(whole, b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight"), "load", "blk.1.ffn_up"),
        "wrong heads": (_number(whole, b"llama.attention.head_count", 7), "load", "n_rot: 16, expected 9"),
        "wrong width": (_number(whole, b"llama.embedding_length", 4096), "load", "n_rot: 16, expected 1024"),
        "more layers than there are": (_number(whole, b"llama.block_count", 9), "load", "blk.2"),
        "a broken template": (_swap(whole, b"endfor %}", b"endfxx %}"), "load", "template"),
        "weights that are not numbers": (_not_a_number(whole, 1.0), "load", "NaN|numbers"),
        "some weights that are not numbers": (_not_a_number(whole, 0.02), "load", "NaN|numbers"),
    }  # fmt: skip
