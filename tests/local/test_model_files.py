"""Files that are no model, or a broken one: refused with the reason, before anything is answered."""

from __future__ import annotations

import copy
import os
import random
import signal
import struct
import threading
import time

import pytest

from shared_core.errors import (
    ConfigurationError,
    Disposition,
    ErrorKind,
    InvalidModelFile,
    MissingDependency,
    ProviderError,
    UnknownOption,
)
from shared_core.providers.llama_cpp import OPTIONS, LlamaCppProvider, UnusableModel, check_model_file, check_target
from shared_core.providers.llama_cpp.options import Options, cpu_budget
from shared_core.routing.target import Target
from tests.local.support import aanswer, answer
from tests.timing import timed


@pytest.fixture
def bad(tmp_path):
    """Writes bytes to a file that calls itself a GGUF."""

    def write(data: bytes):
        path = tmp_path / "bad.gguf"
        path.write_bytes(data)
        return path

    return write


def header(version=3, tensors=0, kv=0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, kv)


BYTES = {
    "empty": (b"", "it is empty"),
    "not a GGUF": (b"hello, world", "not a GGUF file"),
    "a Git LFS pointer": (b"version https://git-lfs", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html>", "download link"),
    "an old GGML file": (b"ggjt....", "convert it to GGUF"),
    "magic only": (b"GGUF", "ends inside its header"),
    "an unknown version": (header(99), "version 99"),
    "absurd counts": (header(tensors=1 << 60), "corrupt"),
    "no architecture": (header(), "no architecture"),
    "a wild metadata type": (header(kv=1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77), "corrupt"),
}


@pytest.mark.parametrize(("data", "reason"), BYTES.values(), ids=BYTES)
def test_a_file_that_is_no_model_is_refused_where_it_is_configured(bad, data, reason):
    path = bad(data)
    with pytest.raises(InvalidModelFile, match=reason) as caught:
        LlamaCppProvider(Target(f"llamacpp:{path}"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused_where_it_is_configured(bad, random_gguf, share):
    whole = random_gguf.read_bytes()
    with pytest.raises(InvalidModelFile, match=r"cut off|ends inside"):
        check_model_file(bad(whole[: int(len(whole) * share)]))


def test_a_missing_file_is_refused_and_the_folder_is_looked_into(random_gguf):
    with pytest.raises(InvalidModelFile, match=r"no such file[\s\S]*random.gguf"):
        check_model_file(random_gguf.with_name("nope.gguf"))


def test_a_folder_is_refused(random_gguf):
    with pytest.raises(InvalidModelFile, match=r"folder[\s\S]*random.gguf"):
        check_model_file(random_gguf.parent)


def test_a_good_file_says_what_it_is(random_gguf):
    facts = check_model_file(random_gguf)
    assert (facts.architecture, facts.context_train) == ("llama", 2048)
    assert facts.kv_bytes_per_token == 2 * 2 * 16 * 2 * 2  # layers, kv heads, head width, keys and values, two bytes


# ── what only llama.cpp can see ──────────────────────────────────────────────────────────────────────────────────────


def damaged(random_gguf, old: bytes, new: bytes) -> bytes:
    data = random_gguf.read_bytes()
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


DAMAGE = {
    "an unknown architecture": (b"llama.context_length", b"llama.context_lengtq", "llama.context_length"),
    "a missing tensor": (b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight", "blk.1.ffn_up.weight"),
    "an unknown tokeniser": (b"smollm", b"smollx", "smollx"),
    "a broken template": (b"endfor %}", b"endfxx %}", "chat template is not valid"),
}


@pytest.mark.parametrize(("old", "new", "reason"), DAMAGE.values(), ids=DAMAGE)
async def test_the_reason_is_llama_cpps_own(bad, random_gguf, old, new, reason):
    provider = LlamaCppProvider(Target(f"llamacpp:{bad(damaged(random_gguf, old, new))}", queue=5))
    try:
        with pytest.raises(InvalidModelFile, match=reason) as caught:
            await aanswer(provider, "x")
        assert isinstance(caught.value, ProviderError)
        assert caught.value.kind is ErrorKind.CONFIG
        assert caught.value.disposition is Disposition.FALL_OVER
        assert provider.pid is None
    finally:
        provider.close()


def test_warming_finds_a_broken_file_too(bad, random_gguf):
    provider = LlamaCppProvider(Target(f"llamacpp:{bad(damaged(random_gguf, b'smollm', b'smollx'))}", queue=6))
    with pytest.raises(UnusableModel, match="smollx"):
        provider.warm()
    provider.close()


def test_weights_that_are_not_numbers_are_found_before_anything_is_answered(bad, random_gguf):
    data = bytearray(random_gguf.read_bytes())
    data[-64 * 128 * 2 :] = b"\xff\x7f" * (64 * 128)  # the last tensor: all NaN
    provider = LlamaCppProvider(Target(f"llamacpp:{bad(bytes(data))}", queue=7))
    try:
        with pytest.raises(InvalidModelFile, match="NaN"):
            answer(provider, "x")
    finally:
        provider.close()


def test_a_context_that_does_not_fit_into_memory_is_refused_before_it_is_allocated():
    from shared_core.providers.llama_cpp.c_engine import _check_memory
    from shared_core.providers.llama_cpp.engine import LoadError

    with pytest.raises(LoadError, match=r"a context of 1024 tokens takes 1024.0 GiB.*lower n_ctx"):
        _check_memory({"kv_bytes_per_token": 1 << 30}, 1024)
    _check_memory({"kv_bytes_per_token": 1}, 1024)


def test_an_address_space_limit_is_a_clean_error(own):
    with pytest.raises((InvalidModelFile, ProviderError)):
        own(rlimit_as=64 << 20).warm()


# ── targets and options ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"n_gpu_layer": 1}, UnknownOption, "n_gpu_layers"),
        ({"weigth": 2}, UnknownOption, "Did you mean 'weight'"),
        ({"n_ctx": 0}, ConfigurationError, "n_ctx must be a whole number, 1"),
        ({"n_ctx": 2.5}, ConfigurationError, "n_ctx"),
        ({"n_batch": None}, ConfigurationError, "n_batch"),
        ({"flash_attn": "yes"}, ConfigurationError, "True or False"),
        ({"temperature": float("nan")}, ConfigurationError, "temperature"),
        ({"seed": True}, ConfigurationError, "seed"),
    ],
)
def test_options_are_checked_where_they_are_written(random_gguf, options, error, said):
    with pytest.raises(error, match=said):
        check_target(Target(f"llamacpp:{random_gguf}", **options))


def test_every_option_is_listed():
    assert {"n_ctx", "n_threads", "n_gpu_layers", "queue", "rlimit_as", "startup_timeout_s"} <= set(OPTIONS)


@pytest.mark.parametrize(
    ("n_ctx", "trained", "window"),
    [(None, 2048, 2048), (None, 9999, 4096), (None, None, 4096), (300, 99, 512), (8192, 2048, 8192), (None, 900, 1024)],
)
def test_the_window_is_a_multiple_of_256(n_ctx, trained, window):
    assert Options(n_ctx=n_ctx).context(trained) == window


@pytest.mark.parametrize("form", ["./{name}", "{name}", "~/{name}", "{folder}/{name}"])
def test_paths_are_understood_in_every_form(random_gguf, monkeypatch, form):
    monkeypatch.chdir(random_gguf.parent)
    monkeypatch.setenv("HOME", str(random_gguf.parent))
    spec = form.format(name=random_gguf.name, folder=random_gguf.parent)
    assert LlamaCppProvider(Target(f"llamacpp:{spec}")).capabilities.context_window == 2048


def test_without_llama_cpp_the_extra_is_named(random_gguf, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"llm-fallback\[local\]"):
        LlamaCppProvider(Target(f"llamacpp:{random_gguf}"))


def test_the_targets_capabilities_win(random_gguf):
    from shared_core.routing.capabilities import Capabilities

    target = Target(f"llamacpp:{random_gguf}", capabilities=Capabilities(tools=False))
    assert not LlamaCppProvider(target).capabilities.tools


def test_a_copy_is_a_provider_of_its_own(random_gguf):
    one = LlamaCppProvider(Target(f"llamacpp:{random_gguf}"))
    assert copy.deepcopy(one).target == one.target or copy.deepcopy(one).model == one.model


def test_there_is_at_least_one_cpu():
    assert cpu_budget() >= 1


def test_any_flipped_bit_in_the_header_is_a_model_or_a_refusal_and_nothing_else(bad, random_gguf):
    """llama.cpp would end the process on some of these; nothing here may raise anything but our own error."""
    whole = random_gguf.read_bytes()
    rng = random.Random(11)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(4000)] ^= 1 << rng.randrange(8)
        try:
            check_model_file(bad(bytes(data)))
        except InvalidModelFile:
            refused += 1
    assert refused > 100


@timed  # the kill is to come before the file is loaded
def test_a_file_that_makes_llama_cpp_abort_is_a_refusal_with_its_last_words(random_gguf, monkeypatch):
    from shared_core.providers.llama_cpp import supervisor

    monkeypatch.setattr(supervisor, "_FAULTS", frozenset({-9}))
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", queue=8))
    try:
        killer = threading.Thread(target=_kill_when_started, args=(provider,))
        killer.start()
        with pytest.raises(InvalidModelFile, match=r"cannot be loaded: llama.cpp died with signal 9"):
            provider.warm()
        killer.join()
    finally:
        provider.close()


def _kill_when_started(provider):
    while (pid := provider.pid) is None:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


async def test_a_request_may_name_another_file(noise, tiny):
    got = await aanswer(noise, "What is the capital of France?", model="tiny")
    assert got.text == "The capital of France is Paris."
    assert got.model == "tiny"
    with pytest.raises(InvalidModelFile, match="no such file") as caught:
        await aanswer(noise, "x", model="nowhere.gguf")
    assert isinstance(caught.value, ProviderError)
    assert caught.value.kind is ErrorKind.NOT_FOUND
