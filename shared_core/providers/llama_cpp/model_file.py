"""Is this a GGUF, and what does its header say? Read without llama.cpp, so that configuring can refuse a bad file."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared_core.errors import ConfigurationError, InvalidModelFile

__all__ = ["TINY", "ModelFile", "check_model_file", "resolve_path"]

TINY = Path(__file__).resolve().parents[2] / "models" / "tiny.gguf"
"""The toy model that ships with the package: `llamacpp:tiny`."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# ggml type -> (weights per block, bytes per block). Source: ggml's ggml-common.h; other types are not size-checked.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 30: (1, 2),
}  # fmt: skip
_MAX_ITEMS = 10_000_000
_INTERRUPTED = "the download was probably interrupted: fetch the file again and compare its SHA-256"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the header says. Figures are None where it does not say."""

    path: Path
    architecture: str
    name: str | None
    context_train: int | None
    """Tokens the model was trained on."""
    kv_bytes_per_token: int | None
    """Memory that one token of context takes, with f16 keys and values."""
    metadata: Mapping[str, Any] = field(repr=False, compare=False)
    """Scalar metadata; arrays read None."""


def resolve_path(model: str) -> Path:
    """The file that 'llamacpp:<model>' means: a path, `~` included, or 'tiny' for the toy model that ships with us."""
    if model.startswith("hf:"):
        raise ConfigurationError(
            f"llamacpp:{model} asks for a download, which is not supported yet.\n"
            "hint: download the .gguf yourself and give its path: 'llamacpp:/models/<file>.gguf'"
        )
    if model in ("", "tiny"):
        return TINY
    return Path(model).expanduser().absolute()


def check_model_file(path: str | os.PathLike[str]) -> ModelFile:
    """Cheap checks, some milliseconds: there, a file, readable, a GGUF, whole.

    Raises:
        InvalidModelFile: it is not; the message says why and what to do.
    """
    if isinstance(path, str):
        path = resolve_path(path)
    path = Path(path)
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise _bad(path, "there is no such file", _similar(path)) from None
    except OSError as error:
        raise _bad(path, f"it cannot be reached: {error.strerror}") from error
    if path.is_dir():
        raise _bad(path, "it is a folder", _similar(path / "x") or "name the .gguf file inside it")
    if not path.is_file():
        raise _bad(path, "it is not a regular file")
    return _read(path, facts.st_size, facts.st_mtime_ns)


def _bad(path: Path, reason: str, hint: str = "") -> InvalidModelFile:
    return InvalidModelFile(f"model file {str(path)!r}: {reason}" + (f"\nhint: {hint}" if hint else ""))


def _similar(path: Path) -> str:
    try:
        found = sorted(p.name for p in path.parent.glob("*.gguf"))[:5]
    except OSError:
        return ""
    return f"{path.parent} has {', '.join(found)}" if found else ""


@lru_cache(maxsize=32)
def _read(path: Path, size: int, _mtime_ns: int) -> ModelFile:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if not magic:
                raise _bad(path, "it is empty", _INTERRUPTED)
            if magic != b"GGUF":
                raise _bad(path, f"it is not a GGUF file (it begins with {magic!r})", _kind_of(magic))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                try:
                    return _parse(path, data, size)
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


def _parse(path: Path, data: mmap.mmap, size: int) -> ModelFile:
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

    furthest = 0
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
        per_block, bytes_per_block = _BLOCKS.get(kind, (1, 0))
        furthest = max(furthest, offset + weights // per_block * bytes_per_block)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _bad(path, f"its header is corrupt: alignment {alignment!r}", _INTERRUPTED)
    start = -(-at // alignment) * alignment
    if n_tensors and start + furthest > size:
        raise _bad(path, f"it is cut off: its weights need {start + furthest} bytes, the file has {size}", _INTERRUPTED)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise _bad(path, "its header names no architecture", "is it a vocabulary or an adapter rather than a model?")
    return ModelFile(
        path=path,
        architecture=architecture,
        name=metadata.get("general.name"),
        context_train=_count(metadata.get(f"{architecture}.context_length")),
        kv_bytes_per_token=_kv_bytes(metadata, architecture),
        metadata=metadata,
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
