"""The house keeps itself: who may import whom, what is public, what importing costs, what the pages promise."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.house import exports, snippets

ROOT = Path(__file__).resolve().parents[1]
WORLD = os.environ.get("LLM_FALLBACK_WORLD", "stable")
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.exists()]

VENDORS = {"openai", "anthropic", "llama_cpp", "redis", "prometheus_client"}
FRAMEWORKS = {"langchain_core", "langchain", "langgraph", "llama_index"}


# ── who may import whom ──────────────────────────────────────────────────────────────────────────────────────────────


def test_import_contracts_hold():
    """The contracts in pyproject.toml, which draw the layers of the house."""
    done = _python("-c", "from importlinter.cli import lint_imports_command as lint; lint()")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("wrapper", ["langchain_fallback", "llamaindex_fallback"])
def test_wrappers_use_only_the_public_names_of_the_core(wrapper):
    """Neither a module nor a name of shared_core that begins with an underscore."""
    private = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {name}"
        for file in sorted((ROOT / wrapper).rglob("*.py"))
        for node, name in _imported(file)
        if name.startswith("shared_core") and any(part.startswith("_") for part in name.split("."))
    ]
    assert private == []


def test_importing_the_core_is_free():
    """No third-party module, no thread, no process, no network, no file but code."""
    found = _import_report("shared_core")
    assert set(found.pop("modules")) == {"shared_core"}
    assert {what: seen for what, seen in found.items() if seen} == {}


def test_using_the_names_of_the_core_loads_no_vendor_and_no_framework():
    """A `Router` over one vendor must not need the others installed."""
    found = _import_report("shared_core", "names")
    assert set(found["modules"]) & (VENDORS | FRAMEWORKS) == set()
    assert (found["google"], found["network"], found["threads"], found["processes"]) == ([], [], [], [])


@pytest.mark.parametrize(
    ("wrapper", "others"),
    [
        ("langchain_fallback", {"llamaindex_fallback", "llama_index", "langchain", "langgraph"}),
        ("llamaindex_fallback", {"langchain_fallback", "langchain_core", "langchain", "langgraph"}),
    ],
)
def test_importing_a_wrapper_loads_its_framework_and_no_vendor(wrapper, others):
    """Vendor SDKs are loaded by the first request that needs one."""
    found = _import_report(wrapper, "names")
    assert set(found["modules"]) & (VENDORS | others) == set()
    assert [name for name in found["google"] if name.startswith(("google.genai", "google.generativeai"))] == []
    assert found["network"] == []


_WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == {0!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
import {1}
"""


@pytest.mark.parametrize(
    ("wrapper", "framework", "extra"),
    [("langchain_fallback", "langchain_core", "langchain"), ("llamaindex_fallback", "llama_index", "llamaindex")],
)
def test_a_framework_that_is_not_installed_is_told_by_its_extra(wrapper, framework, extra):
    """Another module that is missing, in the framework itself, is told as what it is."""
    done = _python("-c", _WITHOUT.format(framework, wrapper))
    assert "MissingDependency: " + wrapper in done.stderr
    assert f'hint: pip install "llm-fallback[{extra}]"' in done.stderr
    done = _python("-c", _WITHOUT.format("pydantic", wrapper))
    assert "MissingDependency" not in done.stderr
    assert "No module named 'pydantic'" in done.stderr


# ── what is public ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_public_names_are_the_pinned_ones():
    """A change of the surface is deliberate: `python -m tests.house.exports`, and a line in CHANGELOG.md."""
    assert exports.surface().splitlines() == exports.PINNED.read_text(encoding="utf-8").splitlines()


def test_every_public_module_lists_its_names():
    """`__all__` is there, and what it lists exists."""
    assert exports.without_all() == []
    assert exports.dangling() == []


def test_no_module_is_called_like_something_that_its_package_loads_late():
    """Whoever imports the module puts it in the package in that thing's place, and nobody looks for the thing."""
    assert exports.shadowed() == []


# ── what is shipped ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(tmp_path):
    """Type markers and models are in it; tests, tools and benchmarks are not."""
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = _python("-c", build, str(tmp_path))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in shipped} == set(exports.PACKAGES)
    assert {f"{package}/py.typed" for package in exports.PACKAGES} <= shipped
    expected = {name for name in _ours() if name.partition("/")[0] in exports.PACKAGES and (ROOT / name).is_file()}
    assert expected - shipped == set()


def test_extras_named_all_is_all_of_them():
    """`llm-fallback[all]` forgets no extra."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    assert everything.name == "llm-fallback"
    assert everything.extras == set(extras) - {"all"}


# ── where it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_this_environment_is_the_locked_one():
    """Each locked package is here in its version, so a test that skips for a missing one is no accident."""
    wrong = []
    for name, version, marker in _locked(ROOT / "requirements" / f"{WORLD}.txt"):
        if marker is None or marker.evaluate():
            try:
                found = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found = "absent"
            if found != version:
                wrong.append(f"{name}: locked {version}, here {found}")
    assert wrong == [], "run `make setup`"


def test_the_local_engine_loads():
    """llama-cpp-python was compiled for this machine and its library loads; nothing local is skipped for want of it."""
    done = _python("-c", "import llama_cpp; print(llama_cpp.llama_cpp.llama_supports_mmap())")
    assert done.returncode == 0, done.stderr


# ── what the documentation promises ──────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_readme_with_snippets():
    """The page a user sees first has examples, and they are executed below."""
    assert ROOT / "README.md" in PAGES
    assert snippets.blocks(ROOT / "README.md")[0]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_snippets_run(page, tmp_path, capsys):
    """Every Python block of the page, top to bottom in one session, without a network."""
    _, shown_only = snippets.blocks(page)
    with capsys.disabled():
        for line, why in shown_only:
            print(f"\n{page.relative_to(ROOT)}:{line}: shown, not executed: {why}")
    failure = snippets.execute(page, tmp_path)
    assert failure is None, failure


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_lead_somewhere(page):
    """A relative link names a file of this repository."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!\w+:|#|//)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


# ── what must not be in a commit ─────────────────────────────────────────────────────────────────────────────────────

# Spelt so that this file does not contain what it looks for.
INDEX_HOST = re.compile(
    r"py[p]i\.(?:org|python)|python[h]osted|test\.py[p]i|[a]naconda\.org|registry\.np[m]js|download\.pytorch\.[o]rg"
    r"|dev[p]i\.|artif[a]ctory|https?://\S+/simpl[e]\b|--(?:extra-)?index-ur[l]|--trusted-hos[t]",
    re.IGNORECASE,
)
MACHINE_PATH = re.compile(r"(?<![\w.:/~$}-])/(?:work|root|opt|private|tm[p]|home/\w+|Users/\w+)/", re.IGNORECASE)

# Files that may hold one of them: {path: reason}.
EXEMPT = {
    "tools/setup/lock.py": "refuses lock files that hold an index address, so it names the options",
    "tools/tiny_model/handbook.py": "made-up paths in training text",
}


def test_no_package_index_and_no_machine_path_is_committed():
    """Where packages come from is the user's own configuration; paths are relative, or made by who needs them."""
    found = []
    for name in _ours():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # binary, or deleted in the working tree
        if name in EXEMPT:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := INDEX_HOST.search(line) or MACHINE_PATH.search(line):
                found.append(f"{name}:{number}: {match[0]}")
    assert found == []


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ours() -> list[str]:
    """The files of the repository: tracked, or about to be."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(set(filter(None, listed.stdout.split("\0"))))


def _python(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=150, check=False)


def _import_report(*arguments: str) -> dict[str, list[str]]:
    done = _python(str(ROOT / "tests" / "house" / "imports.py"), *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _imported(file: Path):
    """Every `import` in a file, as (node, dotted name), `from a import b` being `a.b`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def _locked(lock: Path):
    """(name, version, marker) of each pin."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            requirement = Requirement(line.rstrip(" \\"))
            yield requirement.name, next(iter(requirement.specifier)).version, requirement.marker
