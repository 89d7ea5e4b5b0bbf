"""Files that nobody saved with cachekit, looked at without a place on disk."""

from __future__ import annotations

import os

from cachekit.errors import Damaged
from cachekit.guard.inspect import Findings, inspect


def looked_at(data: bytes) -> Findings:
    """Return what is found of a file with these bytes; size and digest are always those of all of it."""
    with open(os.memfd_create("foreign"), "w+b", buffering=0) as file:
        file.write(data)
        file.seek(0)
        found = inspect(file)
    assert found.size == len(data)
    return found


def refused(data: bytes) -> str:
    """Return why a file with these bytes is refused, which it must be."""
    problem = looked_at(data).problem
    assert isinstance(problem, Damaged), problem
    return str(problem)


def accepted(data: bytes) -> Findings:
    """Return what is found of a file with these bytes, which must be whole."""
    found = looked_at(data)
    assert found.problem is None, found.problem
    return found
