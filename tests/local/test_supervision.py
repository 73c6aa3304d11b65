"""The worker process may crash, hang, be killed or be orphaned; callers get a typed error and the next call works."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared_core.chat.events import TextDelta
from shared_core.errors import ErrorKind, ProviderError
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.providers.llama_cpp.engine import Cancelled
from shared_core.providers.llama_cpp.wire import receive
from shared_core.providers.llama_cpp.worker import Worker
from shared_core.routing.target import Target
from shared_core.testing.random_gguf import write_random_gguf
from tests.local.support import aanswer, alive, answer, ask, begin, descriptors, gone, guard
from tests.timing import LONG_S, timed, until


def endless(own, **options):
    """A provider whose answers last for seconds: a large context to fill with noise."""
    return own(n_ctx=8192, max_tokens=8000, fit_max_tokens=True, **options)


def busy(provider):
    """An answer that is being generated, and will be for a while: chosen greedily, this noise repeats itself."""
    return begin(provider, "go")


# ── lazily started, warmed, closed ───────────────────────────────────────────────────────────────────────────────────


def test_nothing_runs_before_the_first_call(own):
    assert own().pid is None


def test_nothing_runs_before_the_first_event_is_asked_for(own):
    provider = own()
    events = provider.stream(ask("x"), guard())
    assert provider.pid is None
    events.close()


def test_warming_starts_the_process_and_reports_what_it_found(own):
    facts = own().warm()
    assert facts["n_ctx"] == 2048
    assert facts["gpu_offload"] is False
    assert facts["n_threads"] == 1


async def test_warming_works_on_an_event_loop(own):
    assert (await own().awarm())["parameters"] > 0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads another process's environment from /proc")
def test_the_worker_is_given_no_keys(own, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-verysecret")
    monkeypatch.setenv("HARMLESS", "yes")
    provider = own()
    provider.warm()
    environment = Path(f"/proc/{provider.pid}/environ").read_bytes()
    assert b"verysecret" not in environment
    assert b"HARMLESS=yes" in environment


@pytest.mark.parametrize("layers", [-1, 1])
def test_asking_for_a_gpu_that_is_not_there_is_an_error_that_names_the_ways_out(own, layers):
    provider = own(n_gpu_layers=layers)
    for _ in range(2):
        with pytest.raises(ProviderError, match="built without GPU support") as caught:
            provider.warm()
        assert caught.value.kind is ErrorKind.CONFIG
        assert f"n_gpu_layers={layers}" in str(caught.value)
        assert "allow_cpu=True" in str(caught.value)


def test_with_leave_to_use_the_cpu_a_gpu_that_is_not_there_is_only_reported(own, caplog):
    facts = own(n_gpu_layers=-1, allow_cpu=True).warm()
    assert any("no effect" in w for w in facts["warnings"])
    assert "built without GPU support" in caplog.text
    assert facts["gpu_layers"] == 0


def test_left_to_itself_it_uses_the_cpu_where_there_is_no_gpu(own):
    assert own(n_gpu_layers="auto").warm()["warnings"] == []


def test_closing_ends_the_process_and_leaks_no_descriptor_and_no_thread(own):
    own().warm()
    before, threads = descriptors(), set(threading.enumerate())
    provider = own()
    answer(provider, "x", max_tokens=2)
    pid = provider.pid
    provider.close()
    provider.close()
    assert gone(pid)
    until(lambda: descriptors() <= before and not set(threading.enumerate()) - threads)


async def test_aclose_does_the_same(own):
    provider = own()
    await aanswer(provider, "x", max_tokens=2)
    pid = provider.pid
    await provider.aclose()
    await provider.aclose()
    assert gone(pid)


def test_a_call_after_close_starts_anew(own):
    provider = own()
    provider.warm()
    provider.close()
    assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2


def test_a_provider_that_is_dropped_takes_its_process_along(random_gguf):
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", queue=77))
    provider.warm()
    pid = provider.pid
    del provider
    gc.collect()
    assert gone(pid)


def test_the_process_ends_with_the_last_of_those_who_share_it(random_gguf):
    one, two = (LlamaCppProvider(Target(f"llamacpp:{random_gguf}", queue=78)) for _ in range(2))
    one.warm()
    two.warm()
    pid = one.pid
    one.close()
    assert alive(pid)
    two.close()
    assert gone(pid)


def test_closing_in_the_middle_of_an_answer_fails_it(own):
    provider = endless(own)
    events = busy(provider)
    provider.close()
    with pytest.raises(ProviderError, match="closed"):
        list(events)


def test_pickling_drops_the_process(own):
    provider = own()
    provider.warm()
    copy = pickle.loads(pickle.dumps(provider))
    assert copy.pid is None
    assert copy.options == provider.options


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_in_the_middle_of_an_answer_is_a_cut_stream_and_the_next_call_works(own):
    provider = endless(own)
    events = busy(provider)
    os.kill(provider.pid, signal.SIGSEGV)
    with pytest.raises(ProviderError, match="local model process died with signal 11") as caught:
        list(events)
    assert caught.value.kind is ErrorKind.STREAM_CUT
    assert caught.value.after_output
    assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2


def test_a_crash_before_any_token_is_transient(own):
    provider = endless(own)
    provider.warm()
    events = provider.stream(ask("abc " * 1700), guard())
    killer = threading.Timer(0.03, lambda: os.kill(provider.pid, signal.SIGABRT))
    killer.start()
    with pytest.raises(ProviderError, match="signal 6") as caught:
        for event in events:
            assert not isinstance(event, TextDelta), "the prompt was read too fast for this test"
    assert caught.value.kind is ErrorKind.TRANSIENT


def test_after_a_crash_in_the_middle_of_an_answer_the_next_process_does_not_wait_for_a_call(own):
    provider = endless(own)
    events = busy(provider)
    first = provider.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ProviderError):
        list(events)
    until(lambda: provider._supervisor(provider.model).ready)
    assert provider.pid not in (None, first)


async def test_a_crash_reaches_an_async_caller(own):
    provider = endless(own)
    with pytest.raises(ProviderError, match="signal 9"):
        async for event in provider.astream(ask("go"), guard()):
            # What the process had said before may still come after it is known to be dead.
            if isinstance(event, TextDelta) and (pid := provider.pid) is not None:
                os.kill(pid, signal.SIGKILL)


@timed
def test_a_process_killed_while_idle_is_replaced_within_the_next_call(own):
    provider = own()
    said = answer(provider, "x", max_tokens=4).text
    first = provider.pid
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    assert answer(provider, "x", max_tokens=4).text == said
    assert time.monotonic() - began < 1.5  # 0.2 to 0.3 s on a quiet machine
    assert provider.pid != first


def test_those_who_wait_are_served_by_the_next_process(own):
    provider = endless(own)
    events = busy(provider)
    results = []
    waiting = threading.Thread(target=lambda: results.append(answer(provider, "x", max_tokens=3)))
    waiting.start()
    while provider._supervisor(provider.model).load != (1, 1):
        time.sleep(0.002)
    os.kill(provider.pid, signal.SIGKILL)
    with pytest.raises(ProviderError):
        list(events)
    waiting.join(LONG_S)
    assert results[0].usage.output_tokens == 3


@timed  # the kill is to come before the model is loaded
def test_those_who_wait_survive_a_kill_while_the_model_is_being_loaded(own):
    provider = own()
    results = []
    waiting = threading.Thread(target=lambda: results.append(answer(provider, "x", max_tokens=3)))
    waiting.start()
    while (loading := provider.pid) is None:
        time.sleep(0.001)
    os.kill(loading, signal.SIGKILL)
    waiting.join(LONG_S)
    assert results[0].usage.output_tokens == 3
    assert provider.pid != loading


def test_a_process_that_dies_of_every_loading_is_given_up_with_the_reason(own, monkeypatch):
    provider = own(max_restarts=1)
    monkeypatch.setattr("shared_core.providers.llama_cpp.supervisor.sys.executable", "/bin/false")
    with pytest.raises(ProviderError, match="ended with status 1 while loading") as caught:
        answer(provider, "x")
    assert caught.value.kind is ErrorKind.TRANSIENT
    with pytest.raises(ProviderError, match="unhealthy: its process died 2 times"):
        answer(provider, "x")


def test_too_many_crashes_make_it_unhealthy_with_the_reason(own):
    provider = endless(own, max_restarts=1)
    for _ in range(2):
        events = busy(provider)
        os.kill(provider.pid, signal.SIGKILL)
        with pytest.raises(ProviderError):
            list(events)
    said = "unhealthy: its process died 2 times within a minute, last: died with signal 9"
    with pytest.raises(ProviderError, match=said) as caught:
        answer(provider, "x")
    assert caught.value.retry_after_s is not None
    assert 20 < caught.value.retry_after_s <= 60
    assert caught.value.retryable_hint is False


def test_no_zombies_are_left(own):
    provider = own()
    provider.warm()
    first = provider.pid
    os.kill(first, signal.SIGKILL)
    answer(provider, "x", max_tokens=1)
    assert not Path(f"/proc/{first}").exists()


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────────────────────────


@timed
def test_closing_the_iterator_stops_the_model_and_the_next_answer_is_right(own):
    provider = endless(own)
    said = answer(provider, "x", max_tokens=5).text
    pid = provider.pid
    events = busy(provider)
    events.close()
    began = time.monotonic()
    assert answer(provider, "x", max_tokens=5).text == said
    assert time.monotonic() - began < 0.5
    assert provider.pid == pid, "it obeyed, so it was not killed"


async def test_cancelling_the_task_stops_the_model(own):
    provider = endless(own)
    await aanswer(provider, "x", max_tokens=1)
    pid = provider.pid

    async def consume():
        async for _ in provider.astream(ask("go"), guard()):
            begun.set()

    begun = asyncio.Event()
    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await aanswer(provider, "x", max_tokens=2)).usage.output_tokens == 2
    assert provider.pid == pid


def test_a_cancel_is_heard_while_the_prompt_is_being_read(own):
    provider = endless(own)
    provider.warm()
    pid = provider.pid
    with pytest.raises(ProviderError) as caught:
        list(provider.stream(ask("abc " * 1500), guard(0.03)))
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2
    assert provider.pid == pid


def test_a_cancel_is_heard_in_the_middle_of_one_long_evaluation(tmp_path):
    """The whole prompt is one batch of seconds, so only llama.cpp's abort callback can end it before it is killed."""
    path = write_random_gguf(tmp_path / "wide.gguf", width=256, layers=8, context=8192)
    provider = LlamaCppProvider(Target(f"llamacpp:{path}", n_ctx=8192, n_batch=8192))
    try:
        provider.warm()
        pid = provider.pid
        with pytest.raises(ProviderError) as caught:
            list(provider.stream(ask("abc " * 1700), guard(0.05)))
        assert caught.value.kind is ErrorKind.TIMEOUT
        assert answer(provider, "x", max_tokens=1).usage.output_tokens == 1
        assert provider.pid == pid, "it obeyed, so it was not killed"
    finally:
        provider.close()


def test_a_cancel_that_comes_before_its_turn_is_remembered():
    ours, theirs = socket.socketpair()
    worker = Worker(theirs)
    flag = threading.Event()

    class Model:
        engine = SimpleNamespace(abort=flag)

        def generate(self, job, emit):
            if flag.is_set():
                raise Cancelled
            emit({"ev": "done"})

    worker._model = Model()  # type: ignore[assignment]  # all that a worker asks of its model
    worker._cancel(2)
    for job in (1, 2, 3):
        worker._serve_one({"op": "generate", "id": job, "job": {}})
    theirs.close()
    assert [(m["id"], m["ev"]) for m in receive(ours)] == [(1, "done"), (2, "cancelled"), (3, "done")]
    ours.close()


def test_a_worker_that_does_not_obey_a_cancel_is_killed_and_replaced(own):
    provider = endless(own)
    events = busy(provider)
    stuck = provider.pid
    os.kill(stuck, signal.SIGSTOP)  # it can neither hear nor answer
    events.close()
    assert answer(provider, "x", max_tokens=2).usage.output_tokens == 2
    assert provider.pid != stuck
    assert gone(stuck)


# ── queue and limits ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_is_busy_at_once(random_gguf):
    provider = LlamaCppProvider(Target(f"llamacpp:{random_gguf}", n_ctx=8192, queue=0, max_tokens=8000))
    try:
        events = busy(provider)
        with pytest.raises(ProviderError, match="busy") as caught:
            answer(provider, "x")
        assert caught.value.kind is ErrorKind.OVERLOADED
        events.close()
    finally:
        provider.close()


@timed
def test_a_caller_who_waits_in_the_queue_obeys_its_limit(own):
    provider = endless(own)
    events = busy(provider)
    began = time.monotonic()
    with pytest.raises(ProviderError, match="no turn in time") as caught:
        list(provider.stream(ask("x"), guard(0.05)))
    assert time.monotonic() - began < 0.3
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert provider._supervisor(provider.model).load == (1, 0), "it left the queue"
    events.close()


def test_a_worker_that_falls_silent_runs_into_the_idle_limit(own):
    provider = endless(own)
    limit = guard(idle_s=0.05)
    events = provider.stream(ask("go"), limit)
    with pytest.raises(ProviderError, match="fell silent") as caught:
        for event in events:
            if isinstance(event, TextDelta):
                if alive(provider.pid):
                    os.kill(provider.pid, signal.SIGSTOP)
                limit.touch()
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert answer(provider, "x", max_tokens=1).usage.output_tokens == 1


def test_loading_does_not_count_against_the_first_token(own):
    limit = guard(0.05)  # less than a process needs to start
    events = list(own().stream(ask("x", max_tokens=2), limit))
    assert events[-1].usage.output_tokens == 2


async def test_after_loading_the_first_token_limit_is_in_force_again_for_async_callers(own):
    provider = endless(own)
    with pytest.raises(ProviderError, match="no first token in time"):
        async for _ in provider.astream(ask("abc " * 1700), guard(0.03)):
            pass
    assert provider.facts, "it was loaded, which took longer than the limit"


def test_loading_counts_against_the_deadline(own):
    with pytest.raises(ProviderError) as caught:
        list(own().stream(ask("x", max_tokens=2), guard(total_s=0.03)))
    assert caught.value.kind is ErrorKind.TIMEOUT


def test_loading_for_too_long_ends_the_process(own):
    provider = own(startup_timeout_s=0.01)
    with pytest.raises(ProviderError, match="startup_timeout_s") as caught:
        answer(provider, "x")
    assert caught.value.kind is ErrorKind.TIMEOUT
    assert provider.pid is None


# ── parents ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PARENT = """
    import os, sys, time
    from shared_core.providers.llama_cpp import LlamaCppProvider
    from shared_core.routing.target import Target
    provider = LlamaCppProvider(Target("llamacpp:" + sys.argv[1]))
    provider.warm()
    print(provider.pid, flush=True)
    if sys.argv[2] == "stay":
        time.sleep(60)
"""


def parent(path, then):
    code = textwrap.dedent(PARENT)
    command = [sys.executable, "-c", code, str(path), then]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_worker_dies_with_a_parent_that_is_killed(random_gguf):
    process = parent(random_gguf, "stay")
    worker = int(process.stdout.readline())
    assert alive(worker)
    process.kill()
    process.communicate()
    assert gone(worker)


def test_a_program_that_just_ends_leaves_no_worker_and_no_noise(random_gguf):
    process = parent(random_gguf, "end")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0
    assert err == ""
    assert gone(int(out))


def _in_child(provider, connection):
    # A fork inherits the object; it must not talk to the parent's worker.
    connection.send((provider.pid, answer(provider, "x", max_tokens=3).text, provider.pid))
    provider.close()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_a_worker_of_its_own_and_leaves_the_parents_alone(own):
    provider = own()
    said = answer(provider, "x", max_tokens=3).text
    mine = provider.pid
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(provider, there))
    child.start()
    assert here.poll(LONG_S)
    inherited, text, its = here.recv()
    child.join(LONG_S)
    assert inherited is None
    assert text == said
    assert its != mine
    assert alive(mine)
    assert answer(provider, "x", max_tokens=3).text == said
    assert provider.pid == mine
    assert gone(its)
