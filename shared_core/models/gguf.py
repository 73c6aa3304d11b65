"""Is this a GGUF, and what does its header say? Read without llama.cpp, so that configuring can refuse a bad file."""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared_core.errors import InvalidModelFile
from shared_core.models.names import parts_of
from shared_core.models.places import resolve

__all__ = ["ModelFile", "check_model_file"]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# ggml type -> (name, weights per block, bytes per block). Source: ggml's type traits; other types are not size-checked.
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
# general.file_type -> how people call that mixture of types. Source: llama.cpp's llama_ftype.
_MIXTURES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0",
}  # fmt: skip
_MAX_ITEMS = 10_000_000
_LISTED = "`llm-fallback models` lists what is on this machine"
_INTERRUPTED = "the download was probably interrupted: fetch the file again and compare its SHA-256"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the header says. Figures are None where it does not say."""

    path: Path
    """The file; the first one, where the model comes in several."""
    architecture: str
    name: str | None
    context_train: int | None
    """Tokens the model was trained on."""
    kv_bytes_per_token: int | None
    """Memory that one token of context takes, with f16 keys and values."""
    metadata: Mapping[str, Any] = field(repr=False, compare=False)
    """Scalar metadata; arrays read None."""
    lengths: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """How many items each array of the metadata has."""
    size: int = 0
    """Bytes on disk, all parts together."""
    parameters: int = 0
    """Weights, all parts together."""
    bytes_of: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    """Bytes of weights by type: {'Q4_K': …, 'F32': …}."""
    parts: tuple[Path, ...] = ()
    """Every file of the model, in order."""

    @property
    def quantization(self) -> str | None:
        """How its weights are stored, in the words people use: 'Q4_K_M', 'F16', …; else what most of them are."""
        named = _MIXTURES.get(self.metadata.get("general.file_type", -1))
        return named or max(self.bytes_of, key=lambda kind: self.bytes_of[kind], default=None)


def check_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Cheap checks, some milliseconds: there, a file, readable, a GGUF, whole; every part of a model in several files.

    Raises:
        InvalidModelFile: it is not; the message says why and what to do.
    """
    path = resolve(path) if isinstance(path, str) else Path(path)
    names = parts_of(path.name)
    if path.name != names[0]:
        raise _bad(path, f"it is a later part of a model in {len(names)} files", f"name the first: {names[0]}")
    first, *others = [_checked(path.with_name(name), path) for name in names]
    if not others:
        return first
    amounts: Counter[str] = Counter()
    for part in (first, *others):
        amounts.update(part.bytes_of)
    return replace(
        first,
        size=sum(part.size for part in (first, *others)),
        parameters=sum(part.parameters for part in (first, *others)),
        bytes_of=dict(amounts),
        parts=tuple(part.path for part in (first, *others)),
    )


def _checked(path: Path, first: Path) -> ModelFile:
    try:
        facts = path.stat()
    except FileNotFoundError:
        if path != first:
            raise _bad(first, f"it is one of several files, and {path.name} is not there", _INTERRUPTED) from None
        raise _bad(path, "there is no such file", _similar(path) or _LISTED) from None
    except OSError as error:
        raise _bad(path, f"it cannot be reached: {error.strerror}") from error
    if path.is_dir():
        raise _bad(path, "it is a folder", _similar(path / "x") or "name the .gguf file inside it")
    if not path.is_file():
        raise _bad(path, "it is not a regular file")
    return _read(path, facts.st_size, facts.st_mtime_ns, first)


def _bad(path: Path, reason: str, hint: str = "") -> InvalidModelFile:
    return InvalidModelFile(f"model file {str(path)!r}: {reason}" + (f"\nhint: {hint}" if hint else ""))


def _similar(path: Path) -> str:
    try:
        found = sorted(p.name for p in path.parent.glob("*.gguf"))[:5]
    except OSError:
        return ""
    return f"{path.parent} has {', '.join(found)}" if found else ""


@lru_cache(maxsize=32)
def _read(path: Path, size: int, _mtime_ns: int, first: Path) -> ModelFile:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if not magic:
                raise _bad(path, "it is empty", _INTERRUPTED)
            if magic != b"GGUF":
                raise _bad(path, f"it is not a GGUF file (it begins with {magic!r})", _kind_of(magic))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    return _parse(path, data, size, first)
                except (struct.error, OverflowError):
                    raise _bad(path, f"the file ends inside its header, after {size} bytes", _INTERRUPTED) from None
    except PermissionError as error:
        raise _bad(path, "it may not be read by this user", f"chmod a+r {path}") from error
    except OSError as error:
        raise _bad(path, f"it cannot be read: {error.strerror}") from error


def _kind_of(magic: bytes) -> str:
    known = {
        b"ggml": "an old GGML file: convert it to GGUF",
        b"ggjt": "an old GGML file: convert it to GGUF",
        b"vers": "a Git LFS pointer, not the model: run `git lfs pull`",
        b"<!DO": "a web page, not the model: use the file's download link",
        b"<htm": "a web page, not the model: use the file's download link",
        b"PK\x03\x04": "a zip or PyTorch file: convert the model to GGUF",
    }
    return known.get(magic, "convert the model with llama.cpp's convert_hf_to_gguf.py, or download a .gguf")


def _parse(path: Path, data: mmap.mmap, size: int, first: Path) -> ModelFile:
    version, n_tensors, n_kv = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise _bad(path, f"GGUF version {version} is unknown", "2 and 3 are supported: convert the model again")
    if n_tensors > 1_000_000 or n_kv > 1_000_000:
        raise _bad(path, f"its header is corrupt: {n_tensors} tensors, {n_kv} metadata entries", _INTERRUPTED)
    at = 24

    def text(at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 8 + length
        if end > size:
            raise struct.error("past the end")
        return data[at + 8 : end].decode("utf-8", "replace"), end

    metadata: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_kv):
        key, at = text(at)
        (kind,) = struct.unpack_from("<I", data, at)
        at += 4
        if kind == _STRING:
            metadata[key], at = text(at)
        elif kind in _SCALARS:
            (metadata[key],) = struct.unpack_from(_SCALARS[kind], data, at)
            at += struct.calcsize(_SCALARS[kind])
        elif kind == _ARRAY:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            metadata[key] = None
            lengths[key] = count
            if count > _MAX_ITEMS:
                raise _bad(path, f"its header is corrupt: {key!r} has {count} items", _INTERRUPTED)
            if inner in _SCALARS:
                at += count * struct.calcsize(_SCALARS[inner])
            elif inner == _STRING:
                length_of = struct.Struct("<Q").unpack_from
                for _ in range(count):  # the vocabulary: the one long loop here, about 0.2 us a turn
                    at += 8 + length_of(data, at)[0]
            else:
                raise _bad(path, f"its header is corrupt: {key!r} is an array of type {inner}", _INTERRUPTED)
        else:
            raise _bad(path, f"its header is corrupt: {key!r} has type {kind}", _INTERRUPTED)
        if at > size:
            raise struct.error("past the end")

    furthest = parameters = 0
    bytes_of: Counter[str] = Counter()
    for _ in range(n_tensors):
        name, at = text(at)
        (n_dims,) = struct.unpack_from("<I", data, at)
        if n_dims > 8:
            raise _bad(path, f"its header is corrupt: tensor {name!r} has {n_dims} dimensions", _INTERRUPTED)
        *shape, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", data, at + 4)
        at += 4 + 8 * n_dims + 12
        weights = 1
        for side in shape:
            weights *= side
        type_name, per_block, bytes_per_block = _BLOCKS.get(kind, (f"type {kind}", 1, 0))
        stored = weights // per_block * bytes_per_block
        parameters += weights
        bytes_of[type_name] += stored
        furthest = max(furthest, offset + stored)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _bad(path, f"its header is corrupt: alignment {alignment!r}", _INTERRUPTED)
    start = -(-at // alignment) * alignment
    if n_tensors and start + furthest > size:
        raise _bad(path, f"it is cut off: its weights need {start + furthest} bytes, the file has {size}", _INTERRUPTED)
    # Later parts of a model in several files repeat nothing of what the first one says.
    architecture = metadata.get("general.architecture", None if path == first else "")
    if not isinstance(architecture, str):
        raise _bad(path, "its header names no architecture", "is it a vocabulary or an adapter rather than a model?")
    return ModelFile(
        path=path,
        architecture=architecture,
        name=metadata.get("general.name"),
        context_train=_count(metadata.get(f"{architecture}.context_length")),
        kv_bytes_per_token=_kv_bytes(metadata, architecture),
        metadata=metadata,
        lengths=lengths,
        size=size,
        parameters=parameters,
        bytes_of=dict(bytes_of),
        parts=(path,),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _kv_bytes(metadata: Mapping[str, Any], architecture: str) -> int | None:
    def number(key: str) -> int | None:
        return _count(metadata.get(f"{architecture}.{key}"))

    layers, heads, width = number("block_count"), number("attention.head_count"), number("embedding_length")
    if layers is None or heads is None or width is None:
        return None
    if metadata.get(f"{architecture}.attention.head_count_kv", heads) is None:
        return None  # a figure of its own for each layer
    kv_heads = number("attention.head_count_kv") or heads
    key = number("attention.key_length") or width // heads
    value = number("attention.value_length") or width // heads
    return layers * kv_heads * (key + value) * 2
