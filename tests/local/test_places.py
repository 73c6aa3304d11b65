"""A model is found by path, by name and in other programs' folders, and a card says what it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from shared_core.errors import InvalidModelFile
from shared_core.models import Ambiguous, ModelCard, check_model_file, model_card, model_cards, resolve
from shared_core.models.names import bytes_in_words, count_in_words
from shared_core.models.places import TINY, folders, hub_cache
from shared_core.providers.llama_cpp import LlamaCppProvider
from shared_core.routing.target import Target
from tests.local.support import answer

pytestmark = pytest.mark.local


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home, and nothing said of where models are."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLM_FALLBACK_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def put(path: Path, data: bytes | None = None) -> Path:
    """A model at `path`: the toy one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        shutil.copyfile(TINY, path)
    else:
        path.write_bytes(data)
    return path


def split(folder: Path, parts: int = 3) -> list[Path]:
    """The toy model in several files."""
    import gguf

    reader = gguf.GGUFReader(TINY)
    each = -(-len(reader.tensors) // parts)
    writer = gguf.GGUFWriter(folder / "toy.gguf", "llama", split_max_tensors=each)
    for name, held in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = held.types[-1] if held.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, held.contents(), held.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("toy-*.gguf"))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["qwen-q4.gguf", "qwen-q4", "Qwen-Q4", "QWEN-Q4.GGUF"])
def test_a_name_is_found_in_the_folders_somebody_names(home, tmp_path, monkeypatch, name):
    path = put(tmp_path / "mine" / "deep" / "Qwen-Q4.gguf")
    monkeypatch.setenv("LLM_FALLBACK_MODELS", os.pathsep.join(["/nowhere/at/all", str(tmp_path / "mine")]))
    assert resolve(name) == path


@pytest.mark.parametrize(
    "folder",
    [
        ".cache/llm-fallback/models",
        ".cache/llama.cpp",
        "models",
        ".lmstudio/models/acme/x-GGUF",
        ".cache/lm-studio/models",
        ".local/share/nomic.ai/GPT4All",
        ".cache/huggingface/hub/models--acme--x/snapshots/abc",
    ],
)
def test_a_name_is_found_where_this_and_other_programs_keep_models(home, folder):
    path = put(home / folder / "m.gguf")
    assert resolve("m.gguf") == path
    assert path in [item.path for item in model_cards() if isinstance(item, ModelCard)]


def test_a_file_in_the_working_directory_comes_first(home):
    put(home / "models" / "m.gguf")
    here = put(Path.cwd() / "m.gguf")
    assert resolve("m.gguf") == here


def test_folders_are_looked_into_in_order(home, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_FALLBACK_MODELS", str(tmp_path / "mine"))
    put(home / "models" / "m.gguf")
    first = put(tmp_path / "mine" / "m.gguf")
    assert resolve("m") == first


def test_a_name_that_two_models_of_one_folder_bear_is_refused_with_both(home):
    put(home / "models" / "a" / "m.gguf")
    put(home / "models" / "b" / "m.gguf")
    with pytest.raises(Ambiguous, match=r"a/m.gguf, b/m.gguf"):
        resolve("m")


def test_a_name_that_is_nowhere_says_where_it_was_looked_for_and_what_is_like_it(home):
    put(home / "models" / "qwen2.gguf")
    with pytest.raises(InvalidModelFile, match=r"~/models.*\n.*Did you mean 'qwen2.gguf'\?"):
        resolve("qwen3.gguf")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "~/c"}, "~/c/huggingface/hub"),
        ({"HF_HOME": "~/hf"}, "~/hf/hub"),
        ({"HF_HOME": "~/hf", "HF_HUB_CACHE": "$HOME/x"}, "~/x"),
        ({"HUGGINGFACE_HUB_CACHE": "~/y"}, "~/y"),
    ],
)
def test_the_hubs_cache_is_where_huggingface_hub_has_it(home, monkeypatch, variables, place):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(place).expanduser()


def test_a_folder_that_may_not_be_read_and_a_link_that_leads_nowhere_are_passed_over(home):
    (home / "models").mkdir()
    (home / "models" / "lost.gguf").symlink_to(home / "gone.gguf")
    (home / "models" / "loop").symlink_to(home / "models")
    put(home / "models" / "m.gguf")
    assert [item.path.name for item in model_cards() if isinstance(item, ModelCard)] == ["tiny.gguf", "m.gguf"]


def test_one_file_in_two_places_is_listed_once(home):
    path = put(home / "models" / "m.gguf")
    (home / ".cache/llama.cpp").mkdir(parents=True)
    (home / ".cache/llama.cpp" / "same.gguf").symlink_to(path)
    assert len(list(model_cards())) == 2


# ── several files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_in_several_files_is_one_model_and_answers(home):
    parts = split(home)
    card, whole = model_card(str(parts[0])), model_card("tiny")
    assert len(card.file.parts) == len(parts) > 1
    assert card.parameters == whole.parameters
    assert card.size == sum(part.stat().st_size for part in parts)
    provider = LlamaCppProvider(Target(f"llamacpp:{parts[0]}"))
    try:
        assert answer(provider, "What is the capital of France?").text == "The capital of France is Paris."
    finally:
        provider.close()


def test_a_name_stands_for_all_parts(home):
    (home / "models").mkdir()
    parts = split(home / "models")
    assert resolve("toy") == parts[0]
    assert [item.spec for item in model_cards() if isinstance(item, ModelCard)] == ["tiny", f"~/models/{parts[0].name}"]


def test_a_part_that_is_missing_or_cut_off_is_named(home):
    parts = split(home)
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    with pytest.raises(InvalidModelFile, match=rf"{parts[1].name}.*cut off"):
        check_model_file(parts[0])
    parts[1].unlink()
    with pytest.raises(InvalidModelFile, match=rf"{parts[0].name}.*{parts[1].name} is not there"):
        check_model_file(parts[0])


def test_a_later_part_says_which_is_the_first(home):
    parts = split(home)
    with pytest.raises(InvalidModelFile, match=rf"later part[\s\S]*{parts[0].name}"):
        check_model_file(parts[1])


# ── cards ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_card_says_what_the_file_says():
    facts = model_card("llamacpp:tiny").as_dict()
    written = json.loads(TINY.with_suffix(".json").read_text())
    assert facts["parameters"] == written["training"]["parameters"]
    assert facts["size"] == written["bytes"]
    del facts["path"]
    assert facts == {
        "spec": "tiny", "name": "llm-fallback tiny (toy)", "files": 1, "architecture": "llama", "parameters": 1771200,
        "quantization": "F16", "size": 3577312, "context": 1024, "kv_bytes_per_token": 1024, "memory": 4625888,
        "vocabulary": 1024, "tokenizer": "smollm", "chat_template": True, "tools": True, "licence": "mit",
    }  # fmt: skip
    json.dumps(facts)


def test_a_card_shows_itself_to_people_everywhere():
    card = model_card("tiny")
    assert repr(card) == "ModelCard('tiny': llama, 1.77 million, F16, 3.6 MB)"
    for shown in (str(card), card._repr_html_()):
        for fact in ("llamacpp:tiny", "1.77 million", "F16", "1,024 tokens", "knows of tools", "mit"):
            assert fact in shown


def test_a_card_escapes_what_a_file_calls_itself(home, random_gguf):
    data = random_gguf.read_bytes().replace(b"llm-fallback random", b"<script>x</script>.")
    card = model_card(str(put(home / "x.gguf", data)))
    assert card.name.startswith("<script>")
    assert "<script>" not in card._repr_html_()


def test_a_card_of_a_file_without_a_template_says_what_is_done_instead(home, random_gguf):
    data = random_gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    card = model_card(str(put(home / "x.gguf", data)))
    assert card.template is None
    assert not card.tools
    assert "ChatML" in str(card)


def test_memory_grows_with_the_context():
    card = model_card("tiny")
    assert card.memory(2048) - card.memory(1024) == 1024 * 1024


@pytest.mark.parametrize(
    ("count", "words"), [(7, "7 B"), (1500, "1.5 kB"), (4_100_000_000, "4.1 GB"), (250e6, "250 MB"), (2e12, "2.0 TB")]
)
def test_bytes_are_said_in_words(count, words):
    assert bytes_in_words(count) == words


@pytest.mark.parametrize(
    ("count", "words"), [(950, "950"), (1_771_200, "1.77 million"), (7_620_000_000, "7.62 billion")]
)
def test_counts_are_said_in_words(count, words):
    assert count_in_words(count) == words


def test_every_place_that_is_looked_into_is_known():
    assert all(isinstance(folder, Path) for folder in folders())
