"""Models are fetched from a hub whole, checked, resumed and found again; a request never waits for one."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared_core.errors import (
    AllTargetsFailed,
    ConfigurationError,
    Disposition,
    ErrorKind,
    InvalidModelFile,
    MissingDependency,
    ProviderError,
)
from shared_core.models import Ambiguous, DownloadFailed, HubModel, ModelNotHere, Progress, hub, pull, resolve
from shared_core.models.places import TINY, hub_cache
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.resilience.breaker import CircuitState
from shared_core.router import Router
from shared_core.routing.target import Target
from tests.local import loopback_hub
from tests.local.loopback_hub import COMMIT, Hub, Repo
from tests.local.support import answer, ask
from tests.timing import LONG_S

pytestmark = pytest.mark.local

REPO = "acme/small-GGUF"
FILE = "small-Q8_0.gguf"
DATA = TINY.read_bytes()
SPEC = f"hf:{REPO}/{FILE}"


@pytest.fixture(scope="module")
def _server():
    with loopback_hub.running() as server:
        yield server


@pytest.fixture
def hub_(_server: Hub, tmp_path, monkeypatch) -> Iterator[Hub]:
    """The hub, well and with one model; an empty cache; nobody's token. What a test leaves running ends in it."""
    fresh = Hub(url=_server.url, storage=_server.storage, gate=_server.gate)
    _server.__dict__.update(fresh.__dict__)
    _server.gate.set()
    _server.repos = {REPO: Repo({FILE: DATA, "README.md": b"# small"}, small=frozenset({"README.md"}))}
    monkeypatch.setenv("HF_ENDPOINT", _server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    begun: dict[Any, Any] = {}
    monkeypatch.setattr(hub, "_downloads", begun)
    yield _server
    _server.gate.set()
    for download in list(begun.values()):
        download._over.wait(30 if download.alive else 0)


@pytest.fixture
def gone(hub_: Hub, monkeypatch) -> Hub:
    """Nothing answers at the hub's address."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return hub_


def fetch(spec: str = SPEC, **options):
    """Without waiting between tries."""
    return pull(spec, told=options.pop("told", lambda _: None), pause=lambda _: None, **options)


def leftovers() -> list[str]:
    """Files in the cache that are no finished download."""
    return [path.name for path in hub_cache().rglob("*") if path.name.endswith(".incomplete")]


# ── what is fetched ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_fetched_into_the_hubs_own_cache(hub_):
    import huggingface_hub

    path = fetch()
    assert path.read_bytes() == DATA
    assert huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=hub_cache()) == str(path)
    assert hashlib.sha256(DATA).hexdigest() in os.readlink(path)
    assert leftovers() == []


def test_what_is_there_is_not_fetched_again(hub_):
    assert fetch() == fetch()
    assert hub_.ranges_asked() == [None]


def test_what_huggingface_hub_has_fetched_is_found(hub_):
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(REPO, FILE, cache_dir=hub_cache(), endpoint=hub_.url)
    assert str(resolve(SPEC)) == path
    before = hub_.sent
    assert str(fetch()) == path
    assert hub_.sent == before


@pytest.mark.parametrize("pattern", ["*Q8_0*", "*q8_0.gguf", "*.gguf", "", "small-?8_0.GGUF"])
def test_a_glob_names_the_one_file_it_matches_in_whichever_case(hub_, pattern):
    assert fetch(f"hf:{REPO}/{pattern}").name == FILE
    assert resolve(f"hf:{REPO}/{pattern}").name == FILE


def test_a_projector_beside_the_model_is_no_second_match(hub_):
    hub_.repos[REPO].files["mmproj-small-Q8_0.gguf"] = b"GGUF"
    assert fetch(f"hf:{REPO}/*Q8_0*").name == FILE


def test_a_revision_is_fetched_and_found_by_its_name(hub_):
    assert fetch(f"hf:{REPO}@{COMMIT}/{FILE}").parent.name == COMMIT
    assert resolve(f"hf:{REPO}@{COMMIT}/{FILE}").is_file()


def test_a_new_revision_with_the_same_file_costs_no_download(hub_):
    old = fetch()
    hub_.repos[REPO].commit = "f" * 40
    new = fetch()
    assert (new.parent.name, old.parent.name) == ("f" * 40, COMMIT)
    assert new.read_bytes() == DATA
    assert hub_.sent == len(DATA)


def test_a_model_in_several_files_is_fetched_whole(hub_):
    names = [f"big-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    hub_.repos["acme/big"] = Repo({f"Q4/{name}": name.encode() * 1000 for name in names})
    path = fetch("hf:acme/big/*-00002-of-*")
    assert path.name == names[0], "llama.cpp opens the first"
    assert sorted(p.name for p in path.parent.iterdir()) == names
    assert resolve("hf:acme/big/*.gguf") == path


def test_a_small_file_is_checked_by_gits_own_name_for_it(hub_):
    hub_.repos["acme/s"] = Repo({"s.gguf": b"GGUF small"}, small=frozenset({"s.gguf"}))
    assert fetch("hf:acme/s/s.gguf").read_bytes() == b"GGUF small"


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub_, monkeypatch):
    hub_.repos[REPO].token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch().is_file()
    assert hub_.tokens_at_storage == [None]


def test_without_a_mirror_it_is_huggingface_hubs_own_address_that_is_asked(hub_, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub_.url)
    monkeypatch.delenv("HF_ENDPOINT")
    assert fetch().is_file()


@pytest.mark.parametrize(
    ("terminal", "always", "said"),
    [(True, False, "100 % of 3.6 MB"), (False, True, "100 % of 3.6 MB"), (False, False, None)],
)
def test_progress_goes_to_stderr_in_a_line_of_its_own_or_by_tenths(hub_, monkeypatch, terminal, always, said):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(hub, "_TOLD_EVERY_S", 0.0)
    with hub.shown(always=always) as told:
        fetch(told=told)
    shown = out.getvalue()
    assert (said in shown) if said else shown == ""
    assert shown.count("\r") > 1 if terminal else "\r" not in shown
    assert shown.count("\n") in ((1,) if terminal else range(3, 12) if always else (0,)), shown


def test_progress_is_told_from_nothing_to_all(hub_):
    told: list[Progress] = []
    fetch(told=told.append)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].done, told[-1].total) == (len(DATA), len(DATA))


# ── what goes wrong on the way ───────────────────────────────────────────────────────────────────────────────────────


def test_a_download_that_is_cut_goes_on_where_it_broke(hub_):
    hub_.cuts = [2_000_000, 1]
    told: list[Progress] = []
    assert fetch(told=told.append).read_bytes() == DATA
    assert hub_.ranges_asked() == [None, "bytes=2000000-", "bytes=2000001-"]
    assert hub_.sent == len(DATA)
    assert told[-1].done == len(DATA)


def test_a_download_that_failed_is_gone_on_with_by_the_next_one(hub_):
    hub_.cuts = [3_000_000] + [0] * 5
    with pytest.raises(
        DownloadFailed, match=r"brought nothing, at 3.0 MB of 3.6 MB[\s\S]*goes on from there"
    ) as caught:
        fetch()
    assert caught.value.why == "cut"
    assert len(leftovers()) == 1
    told: list[Progress] = []
    assert fetch(told=told.append).read_bytes() == DATA
    assert hub_.sent == len(DATA), "not a byte twice"
    assert told[-1].resumed == 3_000_000


def test_a_connection_that_brings_something_may_break_any_number_of_times(hub_):
    hub_.cuts = [100_000] * 20
    assert fetch().read_bytes() == DATA
    assert hub_.sent == len(DATA)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_is_overloaded_for_a_moment_is_asked_again(hub_, status):
    hub_.statuses = [status, status]
    assert fetch().read_bytes() == DATA


def test_a_server_that_cannot_go_on_from_the_middle_is_asked_for_all_of_it(hub_):
    hub_.cuts, hub_.ranges = [1000], False
    told: list[Progress] = []
    assert fetch(told=told.append).read_bytes() == DATA
    assert told[-1].done == len(DATA)


def test_what_is_not_what_the_hub_says_it_is_does_not_get_into_the_cache(hub_):
    hub_.repos[REPO].sha256[FILE] = "0" * 64
    with pytest.raises(DownloadFailed, match="SHA-256") as caught:
        fetch()
    assert caught.value.why == "damaged"
    with pytest.raises(ModelNotHere):
        resolve(SPEC)
    hub_.repos[REPO].sha256.clear()
    assert fetch().read_bytes() == DATA


def test_a_damaged_leftover_is_thrown_away_once(hub_, caplog):
    hub_.cuts = [1_000_000] + [0] * 5
    with pytest.raises(DownloadFailed):
        fetch()
    (part,) = hub_cache().rglob("*.incomplete")
    data = bytearray(part.read_bytes())
    data[500] ^= 1
    part.write_bytes(data)
    assert fetch().read_bytes() == DATA
    assert "damaged" in caplog.text


def test_a_leftover_that_is_too_long_is_thrown_away(hub_):
    blobs = hub_cache() / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(DATA).hexdigest()}.incomplete").write_bytes(DATA + b"x")
    assert fetch().read_bytes() == DATA


def test_two_who_fetch_the_same_file_take_turns_and_fetch_it_once(hub_):
    hub_.gate.clear()
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(pull(SPEC, told=lambda _: None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not hub_.ranges_asked():
        time.sleep(0.002)
    hub_.gate.set()
    for thread in threads:
        thread.join(LONG_S)
    assert len(paths) == 2
    assert hub_.sent == len(DATA)


def test_it_can_be_told_to_stop(hub_):
    stop = threading.Event()
    stop.set()
    with pytest.raises(DownloadFailed, match="told to stop") as caught:
        fetch(stop=stop)
    assert caught.value.why == "cancelled"


# ── who is refused, and what it says ─────────────────────────────────────────────────────────────────────────────────


def test_no_network_and_nothing_cached(gone):
    with pytest.raises(
        DownloadFailed, match=r"cannot be reached[\s\S]*hint: check network[\s\S]*HF_ENDPOINT"
    ) as caught:
        fetch()
    assert caught.value.why == "offline"


def test_a_network_that_wants_a_login_is_no_hub(hub_):
    hub_.nonsense = True
    with pytest.raises(DownloadFailed, match=r"is no hub[\s\S]*login page"):
        fetch()


def test_the_offline_switch_is_obeyed(hub_, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match=r"HF_HUB_OFFLINE forbids it[\s\S]*unset it"):
        fetch()
    assert hub_.asked == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf:acme/nothing/x.gguf", r"no repository 'acme/nothing'[\s\S]*check how it is spelt"),
        (f"hf:{REPO}@v9/{FILE}", "no revision 'v9'"),
        (f"hf:{REPO}/small-Q4.gguf", rf"no file 'small-Q4.gguf'. It has {FILE}"),
        ("hf:acme/text/*", "no GGUF file at all"),
        ("hf:acme/two/*.gguf", r"matches 2 models: a.gguf, b.gguf[\s\S]*name one"),
        ("hf:acme/torn/*.gguf", r"in 2 files, and t-00002-of-00002.gguf is missing"),
    ],
)
def test_what_does_not_exist_or_is_not_one_is_told_with_what_there_is(hub_, spec, said):
    hub_.repos |= {
        "acme/text": Repo({"README.md": b"x"}),
        "acme/two": Repo({"a.gguf": b"x", "b.gguf": b"y"}),
        "acme/torn": Repo({"t-00001-of-00002.gguf": b"x"}),
    }
    with pytest.raises(ConfigurationError, match=said):
        fetch(spec)
    assert hub_.ranges_asked() == []


def test_a_gated_repository_says_how_to_get_in(hub_):
    hub_.repos[REPO].gated = True
    with pytest.raises(DownloadFailed, match=r"accept terms[\s\S]*HF_TOKEN") as caught:
        fetch()
    assert caught.value.why == "refused"


def test_a_private_repository_says_that_it_may_be_private(hub_):
    hub_.repos[REPO].token = "hf_secret"
    with pytest.raises(DownloadFailed, match=r"for you[\s\S]*HF_TOKEN"):
        fetch()


def test_a_full_disk_is_noticed_before_a_byte_is_fetched(hub_, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadFailed, match=r"needs 3.6 MB, 1.0 MB are free[\s\S]*HF_HOME") as caught:
        fetch()
    assert caught.value.why == "disk"
    assert hub_.ranges_asked() == []


def test_a_disk_that_fills_up_on_the_way_is_told_as_that(hub_, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "_connect", full)
    with pytest.raises(DownloadFailed, match=r"no room in .*No space left") as caught:
        fetch()
    assert caught.value.why == "disk"


def test_without_huggingface_hub_the_extra_is_named(hub_, monkeypatch):
    monkeypatch.setattr(hub, "installed", lambda: False)
    with pytest.raises(MissingDependency, match=r"llm-fallback\[local\]"):
        fetch()


@pytest.mark.parametrize(
    "spec", ["hf:", "hf:one", "hf:a/x.gguf", "hf:a b/c/x.gguf", "hf:a/b/../../x.gguf", "hf:/etc/passwd"]
)
def test_what_is_no_name_of_a_hubs_file_is_refused_where_it_is_written(spec):
    with pytest.raises(ConfigurationError, match=r"hf:<owner>/<repo>/<file or glob>"):
        LlamaCppProvider(Target(f"llamacpp:{spec}"))


def test_a_name_says_itself_as_it_was_written():
    for spec in (SPEC, f"hf:{REPO}@v1/sub/*Q4*"):
        assert str(HubModel.of(spec)) == spec
    assert str(HubModel.of(f"hf://{REPO}/{FILE}")) == SPEC


# ── the cache without a network ──────────────────────────────────────────────────────────────────────────────────────


def test_what_was_fetched_is_used_without_a_network(hub_, monkeypatch):
    path = fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = len(hub_.asked)
    assert resolve(f"hf:{REPO}/*Q8*") == path
    with Router([f"llamacpp:{SPEC}"]) as router:
        router.warm()
        assert router.invoke("What is the capital of France?").text == "The capital of France is Paris."
    assert len(hub_.asked) == asked


def test_a_glob_that_matches_several_cached_files_is_refused_with_both(hub_):
    hub_.repos[REPO].files["small-Q4_K_M.gguf"] = DATA[:-1]
    fetch()
    fetch(f"hf:{REPO}/small-Q4_K_M.gguf")
    with pytest.raises(Ambiguous, match=r"small-Q4_K_M.gguf, small-Q8_0.gguf"):
        resolve(f"hf:{REPO}/*")


def test_an_older_snapshot_serves_while_the_newest_has_other_files_only(hub_):
    path = fetch()
    storage = path.parents[2]
    (storage / "refs" / "main").write_text("f" * 40)
    (storage / "snapshots" / ("f" * 40)).mkdir()
    assert resolve(SPEC) == path


# ── as a target ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def local(hub_):
    """Makes providers of the hub's model; closes them."""
    made: list[LlamaCppProvider] = []

    def make(spec: str = SPEC, **options) -> LlamaCppProvider:
        made.append(LlamaCppProvider(Target(f"llamacpp:{spec}", queue=500 + len(made), **options)))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def test_building_a_router_asks_nothing_of_the_network(hub_, local):
    provider = local()
    assert provider.capabilities.context_window
    plan = Router([f"llamacpp:{SPEC}"]).explain("x")
    assert plan.notes == {f"llamacpp:{SPEC}": f"{SPEC} is not on this machine yet"}
    assert hub_.asked == []


def test_the_first_request_is_refused_at_once_and_starts_the_download_behind_its_back(hub_, local, caplog):
    hub_.gate.clear()
    provider = local()
    with caplog.at_level(logging.WARNING), pytest.raises(ProviderError, match="is being downloaded") as caught:
        answer(provider, "x")
    assert caught.value.kind is ErrorKind.INCAPABLE
    assert caught.value.disposition is Disposition.INCAPABLE, "not sick: no breaker, no lock"
    assert caught.value.code == "not_downloaded"
    assert "is being downloaded to" in caplog.text, "nobody's disk is filled in silence"
    with pytest.raises(ProviderError, match="is being downloaded"):
        answer(provider, "x")
    hub_.gate.set()
    provider.warm()
    assert answer(provider, "What is the capital of France?").text == "The capital of France is Paris."
    assert hub_.sent == len(DATA), "one download, whoever asked"


async def test_warming_waits_for_the_download_and_loads_the_model(hub_, local):
    provider = local()
    facts = await provider.awarm()
    assert facts["n_ctx"] == provider.n_ctx == 1024, "known now"


def test_warming_for_too_short_a_time_says_how_far_it_is_and_lets_it_go_on(hub_, local):
    hub_.gate.clear()
    provider = local()
    with pytest.raises(ProviderError, match="still being downloaded") as caught:
        provider.warm(timeout_s=0.02)
    assert caught.value.kind is ErrorKind.TIMEOUT
    hub_.gate.set()
    assert provider.warm()["parameters"] > 0


def test_warming_without_a_network_says_so(gone, local):
    with pytest.raises(InvalidModelFile, match=r"cannot be reached[\s\S]*hint"):
        local().warm()


def test_a_failed_download_is_told_to_requests_and_not_tried_again_with_each(gone, local):
    provider = local()
    with pytest.raises(DownloadFailed):
        provider.warm()
    for _ in range(2):
        with pytest.raises(ProviderError, match=r"cannot be reached.*tried \d+ s ago") as caught:
            answer(provider, "x")
        assert caught.value.disposition is Disposition.FALL_OVER
    assert len(hub._downloads) == 1


def test_warming_tries_at_once_what_failed_a_moment_ago(hub_, local, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    provider = local()
    with pytest.raises(DownloadFailed):
        provider.warm()
    monkeypatch.setenv("HF_ENDPOINT", hub_.url)
    assert provider.warm()["parameters"] > 0


def test_a_download_may_be_left_to_warming(hub_, local):
    provider = local(download="warm")
    with pytest.raises(ProviderError, match="not on this machine yet") as caught:
        answer(provider, "x")
    assert "llm-fallback models pull" in str(caught.value)
    assert hub_.asked == []
    provider.warm()
    assert hub_.sent == len(DATA)


def test_a_target_that_may_never_download_wants_its_file_here(hub_, local):
    with pytest.raises(ModelNotHere, match="models pull"):
        local(download="never")
    fetch()
    assert local(download="never").n_ctx == 1024


def test_another_target_answers_while_the_model_is_being_downloaded(hub_):
    hub_.gate.clear()
    with Router([f"llamacpp:{SPEC}", "llamacpp:tiny"]) as router:
        got = router.invoke(ask("What is the capital of France?", streaming=False))
        assert got.fallback["target"] == "llamacpp:tiny"
        health = router.health()[f"llamacpp:{SPEC}"]
        assert health.circuit is CircuitState.CLOSED
        assert health.unavailable_reason == f"{SPEC} is being downloaded"
        hub_.gate.set()


def test_a_model_that_a_request_names_is_not_downloaded(hub_, tiny):
    with pytest.raises(ProviderError, match="not on this machine yet") as caught:
        answer(tiny, "x", model=SPEC)
    assert caught.value.kind is ErrorKind.INCAPABLE
    assert hub_.asked == [], "whoever may write to us must not fill our disk"


def test_nobody_else_to_ask_is_a_typed_error_with_the_reason(hub_):
    hub_.gate.clear()
    with Router([f"llamacpp:{SPEC}"]) as router:
        with pytest.raises(AllTargetsFailed, match="is being downloaded"):
            router.invoke("x")
        hub_.gate.set()


def test_another_download_forgotten_by_a_fork_is_started_anew(hub_):
    wanted = HubModel(REPO, FILE)
    dead = hub.Download(wanted)  # never started: as a thread is in a forked child
    hub._downloads[wanted, hub_cache()] = dead
    assert hub.download(wanted) is not dead
    assert hub.download(wanted).wait(LONG_S)


def test_a_standby_downloads_and_loads_behind_the_routers_back(hub_):
    hub_.gate.clear()
    with Router([Target(f"llamacpp:{SPEC}", standby="warm", queue=600)]) as router:
        report = router.providers[0].report()
        assert (report.facts["state"], report.unhealthy) == ("downloading", f"{SPEC} is being downloaded")
        hub_.gate.set()
        while not router.providers[0].facts:
            time.sleep(0.01)
        assert router.invoke("What is the capital of France?").text == "The capital of France is Paris."


def test_a_standby_that_was_closed_meanwhile_starts_no_process(hub_):
    hub_.gate.clear()
    router = Router([Target(f"llamacpp:{SPEC}", standby="warm", queue=601)])
    (provider,) = router.providers
    router.close()
    running = hub.download(HubModel(REPO, FILE))
    hub_.gate.set()
    running._thread.join(LONG_S)
    assert resolve(SPEC).is_file()
    assert provider._held == {}


def test_what_is_not_here_reports_that_and_what_went_wrong(gone, local):
    provider = local()
    assert provider.report().facts["state"] == "not downloaded"
    with pytest.raises(DownloadFailed):
        provider.warm()
    assert "cannot be reached" in provider.report().unhealthy
