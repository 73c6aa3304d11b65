"""A model at a glance: what its header says, what it takes to run it, what llama.cpp will make of it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_core.errors import InvalidModelFile
from shared_core.models.gguf import ModelFile, check_model_file
from shared_core.models.names import bytes_in_words, count_in_words
from shared_core.models.places import TINY, Found, find, resolve, short

__all__ = ["ModelCard", "model_card", "model_cards"]


@dataclass(frozen=True, slots=True, repr=False)
class ModelCard:
    """What a model file says of itself. Figures are None where it does not say; sizes are bytes.

    Shows as a table in notebooks; `str(card)` is the same as text, `as_dict()` as plain data.
    """

    spec: str
    """What to write as a target, behind `llamacpp:`."""
    file: ModelFile

    @property
    def path(self) -> Path:
        """Its file; the first one of several parts."""
        return self.file.path

    @property
    def name(self) -> str:
        """What it calls itself, else its file's name."""
        return self.file.name or self.path.stem

    @property
    def architecture(self) -> str:
        """'llama', 'qwen2', …: llama.cpp refuses those it does not know."""
        return self.file.architecture

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.file.size

    @property
    def parameters(self) -> int:
        """Weights."""
        return self.file.parameters

    @property
    def quantization(self) -> str | None:
        """'Q4_K_M', 'F16', …"""
        return self.file.quantization

    @property
    def context(self) -> int | None:
        """Tokens it was trained on: the largest `n_ctx` that makes sense."""
        return self.file.context_train

    @property
    def vocabulary(self) -> int | None:
        """Tokens it knows."""
        return self.file.lengths.get("tokenizer.ggml.tokens")

    @property
    def template(self) -> str | None:
        """Its chat template; without one, ChatML is used."""
        found = self.file.metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) else None

    @property
    def tools(self) -> bool:
        """Whether its template knows of tools. The others are told of them in words."""
        return "tools" in (self.template or "")

    @property
    def licence(self) -> str | None:
        """As it says itself."""
        found = self.file.metadata.get("general.license")
        return found if isinstance(found, str) else None

    def memory(self, n_ctx: int | None = None) -> int | None:
        """Bytes that weights and a context of `n_ctx` tokens take (left out: the trained length, at most 4096)."""
        per_token = self.file.kv_bytes_per_token
        return None if per_token is None else self.size + per_token * (n_ctx or min(self.context or 4096, 4096))

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "spec": self.spec,
            "name": self.name,
            "path": str(self.path),
            "files": len(self.file.parts) or 1,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "quantization": self.quantization,
            "size": self.size,
            "context": self.context,
            "kv_bytes_per_token": self.file.kv_bytes_per_token,
            "memory": self.memory(),
            "vocabulary": self.vocabulary,
            "tokenizer": self.file.metadata.get("tokenizer.ggml.pre") or self.file.metadata.get("tokenizer.ggml.model"),
            "chat_template": self.template is not None,
            "tools": self.tools,
            "licence": self.licence,
        }

    def rows(self) -> Mapping[str, str]:
        """The same for people: what it is called, and what to read there."""
        facts = self.as_dict()
        weights = ", ".join(f"{kind} {bytes_in_words(size)}" for kind, size in self.file.bytes_of.items())
        memory, per_token = self.memory(), self.file.kv_bytes_per_token
        context = "not said" if self.context is None else f"{self.context:,} tokens"
        if memory is not None and per_token is not None:
            context += f", {bytes_in_words(per_token)} of memory each"
        template = "none: ChatML is used" if self.template is None else f"{len(self.template):,} characters"
        if self.template is not None:
            template += ", knows of tools" if self.tools else ", knows nothing of tools"
        several = f" in {len(self.file.parts)} files" if len(self.file.parts) > 1 else ""
        return {
            "target": f"llamacpp:{self.spec}",
            "file": ("tiny.gguf, ships with the package" if self.path == TINY else short(self.path)) + several,
            "architecture": self.architecture,
            "parameters": count_in_words(self.parameters),
            "quantisation": f"{self.quantization or 'not said'} ({weights})",
            "size": bytes_in_words(self.size),
            "context": context,
            "memory to run": "not known" if memory is None else f"about {bytes_in_words(memory)}, default context",
            "vocabulary": f"{self.vocabulary or 0:,} tokens, {facts['tokenizer'] or 'no tokeniser'}",
            "chat template": template,
            "licence": self.licence or "not said",
        }

    def __repr__(self) -> str:
        facts = (self.architecture, count_in_words(self.parameters), self.quantization, bytes_in_words(self.size))
        return f"ModelCard({self.spec!r}: {', '.join(filter(None, facts))})"

    def __str__(self) -> str:
        rows = self.rows()
        wide = max(map(len, rows))
        return "\n".join([self.name, *(f"  {what.ljust(wide)}  {value}" for what, value in rows.items())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self.rows().items())
        return f"<table><caption>{html.escape(self.name)}</caption>{rows}</table>"


def model_card(spec: str) -> ModelCard:
    """The card of a model on this machine: 'tiny', a path, a name, 'hf:<owner>/<repo>/<file>'; `llamacpp:` may lead.

    Raises:
        ModelNotHere: a hub's file that was not fetched yet.
        InvalidModelFile: no such file, or a broken one.
    """
    spec = spec.removeprefix("llamacpp:")
    return ModelCard(spec or "tiny", check_model_file(resolve(spec)))


def model_cards() -> Iterator[ModelCard | tuple[Found, InvalidModelFile]]:
    """Every model in the places that are looked into (see `places`), broken ones with what is wrong with them."""
    for found in find():
        try:
            yield ModelCard(found.spec, check_model_file(found.path))
        except InvalidModelFile as error:
            yield found, error
