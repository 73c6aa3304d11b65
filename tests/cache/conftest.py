"""What the tests of the cache share: a router over scripted targets on a virtual clock, with a cache."""

from __future__ import annotations

from tests.core.conftest import FACES, Bench, Got, bench, face, stream_face

__all__ = ["FACES", "Bench", "Got", "bench", "face", "stream_face"]
