"""Rules that every module keeps."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cachekit

PACKAGE = Path(cachekit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"), key=str)
WITH_CODE = [
    path for path in MODULES if path.stat().st_size and path.name not in ("__main__.py", "_version.py")
]


def name_of(path: Path) -> str:
    """Return a module's path for the name of a test."""
    return path.relative_to(PACKAGE).as_posix()


def public(module: ast.Module) -> list[str]:
    """Find what `__all__` is set to."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            value = ast.literal_eval(node.value)
            assert isinstance(value, list)
            return value
    return []


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_public_names(path: Path) -> None:
    """A module says what it gives to others, and everything that it names is there."""
    module = ast.parse(path.read_bytes())
    names = public(module)
    defined = {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    if not names:
        assert not [name for name in defined if not name.startswith("_")], "public functions without __all__"
        return
    # Constants in capitals first, then classes, then the rest: the order that ruff keeps.
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assigned = {
        target.id
        for node in ast.walk(module)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for assigned_to in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in ast.walk(assigned_to)
        if isinstance(target, ast.Name)
    }
    imported = {
        alias.asname or alias.name
        for node in module.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(names) <= defined | assigned | imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_size(path: Path) -> None:
    """A module has one subject: at most 500 lines."""
    assert len(path.read_bytes().splitlines()) <= 500


@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_docstring(path: Path) -> None:
    """A module says in its first sentence what it is for."""
    assert ast.get_docstring(ast.parse(path.read_bytes()))
