"""The generated documents are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import COMMAND, EXIT_CODES, PAGES, classes, errors_page
from tests.support.ordinary_user import PROJECT


def words(text: str) -> list[str]:
    """Split a text so that only its words count: versions of click fold lines differently."""
    return text.split()


@pytest.mark.parametrize("name", PAGES)
def test_generated_page(name: str) -> None:
    """A generated page says what the code says."""
    path = PROJECT / "docs" / name
    assert path.exists(), f"run: {COMMAND}"
    assert words(path.read_text()) == words(PAGES[name]()), f"docs/{name} is stale; run: {COMMAND}"


def test_every_exit_code_is_in_the_table() -> None:
    """Each error's exit code is in the table, and so are those of signals."""
    assert {kind.exit_code for kind in classes()} | {0, 130, 143} <= set(EXIT_CODES)
    for code in EXIT_CODES:
        assert f"\n| {code} | " in errors_page()


def test_docs_of_the_tests_are_docs_of_the_repository() -> None:
    """The generator that is tested is the one that the message names."""
    script = COMMAND.split()[1]
    assert (PROJECT / script).samefile(Path(PROJECT, "docs", "generate.py"))
    assert re.fullmatch(r"python docs/\w+\.py", COMMAND)


def test_the_threat_model_names_tests_that_exist() -> None:
    """Every test that docs/threat-model.md names as its evidence is there."""
    named = set(re.findall(r"`(test_\w+)`", (PROJECT / "docs" / "threat-model.md").read_text()))
    there = {
        name
        for path in (PROJECT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(named) > 20
    assert named <= there, named - there
