"""The programs of docs/langchain.md print what the page says, whoever answers: the first vendor up, down, cut off."""

from __future__ import annotations

import pytest

from tests.langchain.cells import GEMINI
from tests.langchain.programs import MIXTURES, PAGE, Program, World, programs

PROGRAMS = programs()
CASES = [
    pytest.param(program, mixture, id=f"{program.name}-{mixture}")
    for program in PROGRAMS
    for mixture in list(MIXTURES)[: 1 if program.own else None]
]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Every fall-over warns; here they come by the hundred."""
    caplog.set_level("CRITICAL", logger="llm_fallback")


def test_the_page_has_its_programs() -> None:
    """Every block that is marked as one is found, has a name of its own, and prints something."""
    names = [program.name for program in PROGRAMS]
    assert PAGE.read_text(encoding="utf-8").count("<!-- program: ") == len(names)
    assert len(set(names)) == len(names) >= 18
    assert all(program.output.strip() for program in PROGRAMS)


@pytest.mark.usefixtures("without_certificates")
@pytest.mark.parametrize(("program", "mixture"), CASES)
def test_a_program_prints_the_same_with_the_primary_up_and_down(program: Program, mixture: str) -> None:
    """Byte for byte what stands on the page: all well, 503 from the primary, and its streams cut in the middle."""
    with World(mixture) as world:
        assert program.run(world.model()) == program.output
        asked, streams = world.asked, any(seen.streamed for seen in world.asked)
        assert asked or world.primary == GEMINI, "only what not every Gemini can do may go past the primary"
    with World(mixture, "503") as world:
        assert program.run(world.model()) == program.output
        assert {seen.status for seen in world.asked} == ({503} if asked else set())
        assert len(world.server.requests) > len(world.asked), "somebody else answered"
    if streams:
        with World(mixture, "cut") as world:
            assert program.run(world.model()) == program.output
            assert "reset" in {seen.outcome for seen in world.asked}
