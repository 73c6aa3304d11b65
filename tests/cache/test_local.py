"""A local model's answers are kept for its file, template, options and build; a fork begins with nothing in flight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from shared_core import ChatRequest, ResponseCache, Router, Target, user
from shared_core._identity import identity_of
from shared_core.cache.keys import digest
from shared_core.models.places import TINY
from shared_core.providers.llama_cpp import fingerprint as module
from shared_core.providers.llama_cpp.fingerprint import fingerprint

ASK = ChatRequest((user("Hi"),), max_tokens=4)


def identity(path, **options) -> bytes:
    router = Router(Target(f"llamacpp:{path}", name="local", **options))
    try:
        return digest(identity_of(router._fleet.routes[0], None))
    finally:
        router.close()


class TestIdentity:
    def test_options_that_change_answers_are_part_of_it(self):
        """And those that change only when and with which memory an answer comes are not."""
        plain = identity(TINY)
        assert plain == identity(TINY, queue=9, standby=None, kv_cache_mb=1, verbose=True)
        others = [{"n_ctx": 512}, {"chat_template": "chatml"}, {"temperature": 0.5}, {"seed": 3}, {"max_tokens": 7}]
        assert len({plain, *(identity(TINY, **options) for options in others)}) == 1 + len(others)

    def test_it_is_the_files_contents(self, tmp_path, monkeypatch):
        """Another place is the same file; another byte is another file, wherever it is."""
        copy = tmp_path / "m.gguf"
        shutil.copyfile(TINY, copy)
        assert fingerprint([copy]) == fingerprint([TINY])
        content = bytearray(copy.read_bytes())
        content[-1] ^= 1
        copy.write_bytes(content)
        assert fingerprint([copy]) != fingerprint([TINY])

    @pytest.mark.parametrize("at", [10, -10], ids=["header", "weights"])
    def test_a_large_file_is_known_by_header_samples_size_and_time(self, tmp_path, monkeypatch, at):
        """Not every byte is read."""
        for name, size in {"_WHOLE": 100, "_HEAD": 50, "_SAMPLES": 4, "_SAMPLE": 16}.items():
            monkeypatch.setattr(module, name, size)
        path = tmp_path / "m.gguf"
        path.write_bytes(bytes(1_000))
        os.utime(path, ns=(1, 1))
        before = fingerprint([path])
        content = bytearray(1_000)
        content[at] = 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        assert fingerprint([path]) != before
        path.write_bytes(bytes(1_000))
        os.utime(path, ns=(2, 2))
        assert fingerprint([path]) != before

    def test_its_build_is_part_of_it(self, monkeypatch):
        """Another version of llama.cpp may answer otherwise."""
        before = identity(TINY)
        monkeypatch.setattr("shared_core.providers.llama_cpp.provider.engine_build", lambda engine: "9.9.9")
        assert identity(TINY) != before

    def test_what_a_model_of_another_path_said_is_not_served(self, tmp_path):
        """The same contents are the same model; keys need no process to run."""
        cache = ResponseCache()
        router = Router(Target("llamacpp:tiny", name="local"), cache=cache)
        try:
            first = router.invoke(ASK)
            again = router.invoke(ASK)
            assert (first.fallback["cache"], again.fallback["cache"]) in {("miss", "hit"), ("miss", "miss")}
            assert (again.fallback["cache"] == "hit") is (first.finish_reason == "stop")
        finally:
            router.close()


def test_a_forked_process_joins_nothing_of_its_parents():
    """Nobody there would ever bring an answer."""
    code = """
        import os, threading
        from shared_core import Router
        from tests.cache.gated import Gated
        provider = Gated()
        router = Router(provider, single_flight=True)
        thread = threading.Thread(target=lambda: router.invoke("Hi"))
        thread.start()
        provider.begun.wait(10)
        if (pid := os.fork()) == 0:
            provider.go()
            os._exit(0 if router.invoke("Hi").fallback["cache"] == "off" else 1)
        assert os.waitpid(pid, 0)[1] == 0
        provider.go()
        thread.join(10)
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=60)
