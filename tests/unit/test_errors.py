"""The error tree: documented, distinct, and able to leave a worker process."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from cachekit import errors
from cachekit.archive.write import FileChanged
from cachekit.errors import CachekitError, Damaged, NoSpace, Refused


def tree(top: type[CachekitError] = CachekitError) -> Iterator[type[CachekitError]]:
    """Yield every class of errors.py."""
    yield top
    for below in top.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


CLASSES = list(tree())


@pytest.mark.parametrize("kind", [*CLASSES, FileChanged])
def test_pickling(kind: type[CachekitError]) -> None:
    """An error leaves a worker process with its class, message and every field."""
    error = kind("what", path=b"\xff", expected=[1], found={"a": 2}, hint="do", rung="index", need=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.as_dict() == error.as_dict()
    assert str(again) == "what"


@pytest.mark.parametrize("kind", CLASSES)
def test_pickling_without_fields(kind: type[CachekitError]) -> None:
    """A bare error keeps its default hint."""
    again = pickle.loads(pickle.dumps(kind("what")))
    assert again.as_dict() == kind("what").as_dict()
    assert again.hint == kind.default_hint


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_is_documented(kind: type[CachekitError]) -> None:
    """Every class has an id of its own, a meaning that is a sentence, and is exported."""
    assert kind.__name__ in errors.__all__
    assert [other for other in CLASSES if other.id == kind.id] == [kind]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.id)
    if kind is not CachekitError:
        assert kind.meaning.endswith(".")
        assert kind.meaning[0].isupper()


def test_drawn_tree_is_the_real_one() -> None:
    """The tree in the module's docstring names every class with its exit code and id, and no other."""
    drawn = re.findall(r"^[ │├└─]*([A-Z]\w+) +([\d/]+|exit) +([a-z-]+)$", errors.__doc__ or "", re.MULTILINE)
    told = {name: (code, identifier) for name, code, identifier in drawn}
    assert told.pop("CachekitError") == ("exit", "id")
    expected = {kind.__name__: (str(kind.exit_code), kind.id) for kind in CLASSES[1:]}
    expected["Interrupted"] = ("130/143", "interrupted")
    assert told == expected


def test_a_subclass_has_its_parents_exit_code() -> None:
    """Each exit code has one meaning: it belongs to one branch of the tree."""
    branches = CachekitError.__subclasses__()
    branches = [branch for branch in branches if branch.__module__ == errors.__name__]
    codes = [branch.exit_code for branch in branches]
    assert len(set(codes)) == len(codes)
    for branch in branches:
        assert {kind.exit_code for kind in tree(branch)} == {branch.exit_code}


def test_exit_codes() -> None:
    """The codes are those of the table, none of them a shell's own but for Ctrl-C and where we do as env(1) does."""
    assert {kind.exit_code for kind in CLASSES} == {1, 2, 3, 4, 5, 6, 7, 8, 9, 121, 122, 125, 126, 127, 130}


def test_as_dict() -> None:
    """As data an error has id, message, exit code, and what is set of the rest."""
    error = NoSpace("full", path="/x", need=5, have=None)
    assert error.as_dict() == {
        "id": "no-space",
        "message": "full",
        "exit_code": 5,
        "path": "/x",
        "hint": NoSpace.default_hint,
        "need": 5,
    }


def test_rung() -> None:
    """A refusal knows its rung; the first one where nobody said."""
    assert Damaged("x", rung="frames").rung == "frames"
    assert Refused("x").rung == "seal"


def test_own_hint_goes_before_the_default() -> None:
    """A hint that is given replaces the class's, also an empty one."""
    assert Damaged("x").hint == Damaged.default_hint
    assert Damaged("x", hint="other").hint == "other"
    assert CachekitError("x").hint is None
