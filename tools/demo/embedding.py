"""An embedding that needs no network and no download: counts of words, hashed. Good enough for a handful of pages."""

from __future__ import annotations

import math
import re
import zlib

from llama_index.core.embeddings import BaseEmbedding

__all__ = ["WordCounts"]

SIZE = 512
COMMON = frozenset(
    re.findall(r"\w+", "a an and are at be by can do does for from has how in is it long much of on or the to what who")
)


class WordCounts(BaseEmbedding):
    """Texts that share their rarer words are near each other."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * SIZE
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            if word not in COMMON:
                counts[zlib.crc32(word.removesuffix("s").encode()) % SIZE] += 1.0
        # Square roots, so that a word said five times does not drown the others.
        vector = [math.sqrt(count) for count in counts]
        length = math.hypot(*vector) or 1.0
        return [value / length for value in vector]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
