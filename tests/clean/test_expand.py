"""From patterns to paths: what is matched, what is refused, and that nothing is changed by looking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.clean.expand import NotSet, expand, substitute
from cachekit.clean.model import Paths
from cachekit.clean.protect import Protection


def found(pattern: str, **variables: str) -> list[str]:
    """Expand one pattern without any protection but the table."""
    values = {name: (value,) for name, value in variables.items()}
    return [os.fsdecode(path) for path in expand(Paths((pattern,)), values, Protection()).paths]


def test_each_match_is_a_unit(tmp_path: Path) -> None:
    """Every match is named once, hidden ones too, and sorted."""
    for name in ("b", "a", ".hidden", "c.log"):
        (tmp_path / name).mkdir()
    assert found("$X/*", X=str(tmp_path)) == [str(tmp_path / name) for name in (".hidden", "a", "b", "c.log")]
    assert found("$X/[ab]", X=str(tmp_path)) == [str(tmp_path / name) for name in ("a", "b")]


def test_what_lies_in_a_match(tmp_path: Path) -> None:
    """A match inside another match is no unit of its own: it goes with it."""
    for path in ("x/__pycache__/__pycache__", "x-y/__pycache__", "x/deep/er/__pycache__"):
        (tmp_path / path).mkdir(parents=True)
    assert found("$X/**/__pycache__", X=str(tmp_path)) == [
        str(tmp_path / "x/__pycache__"),
        str(tmp_path / "x/deep/er/__pycache__"),
        str(tmp_path / "x-y/__pycache__"),
    ]


def test_unset_variable() -> None:
    """A rule that uses a variable without a value does not apply."""
    with pytest.raises(NotSet, match="NO_SUCH is not set"):
        expand(Paths(("$NO_SUCH/x",)), {}, Protection())


@pytest.mark.parametrize("value", ["", "/", "//", "relative", "."])
def test_values_that_would_widen(value: str) -> None:
    """A variable that is empty, the root or relative is refused: `$X/*` must not become `/*`."""
    result = expand(Paths(("$X/*",)), {"X": (value,)}, Protection())
    assert result.paths == []
    assert result.refused or value == ""


def test_empty_value_is_refused() -> None:
    """An empty value says why nothing is done."""
    with pytest.raises(ValueError, match="no directory to clean in"):
        substitute("$X/*", {"X": ("",)})


def test_signs_in_values(tmp_path: Path) -> None:
    """A `*` or `[` in a variable's value means itself."""
    odd = tmp_path / "[a]*"
    odd.mkdir()
    (odd / "x").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    assert found("$X/*", X=str(odd)) == [str(odd / "x")]


def test_a_link_out_of_the_root(tmp_path: Path) -> None:
    """A component that is a link to elsewhere does not lead the clean out of its root."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "real").mkdir(parents=True)
    outside.mkdir()
    (outside / "old").touch()
    (inside / "real" / "old").touch()
    (inside / "link").symlink_to(outside)
    result = expand(Paths(("$X/*/old",)), {"X": (str(inside),)}, Protection())
    assert result.paths == [os.fsencode(inside / "real" / "old")]
    assert [path for path, reason in result.refused if "outside" in reason] == [os.fsencode(outside / "old")]


def test_a_link_is_a_unit_itself(tmp_path: Path) -> None:
    """A match that is a link means the link, not what it leads to."""
    (tmp_path / "target").mkdir()
    (tmp_path / "rule").mkdir()
    (tmp_path / "rule" / "link").symlink_to(tmp_path / "target")
    assert found("$X/rule/*", X=str(tmp_path)) == [str(tmp_path / "rule" / "link")]


def test_a_root_that_is_a_link(tmp_path: Path) -> None:
    """The fixed part of a pattern may be a link: units are named by their real path."""
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "disk")
    assert found("$X/linked/*", X=str(tmp_path)) == [str(tmp_path / "disk" / "a")]


def test_within(tmp_path: Path) -> None:
    """With `within` a unit must lie in one of those directories."""
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
    target = Paths(("$X/*/x",), within=("$X/a",))
    result = expand(target, {"X": (str(tmp_path),)}, Protection())
    assert result.paths == [os.fsencode(tmp_path / "a" / "x")]
    assert [path for path, _ in result.refused] == [os.fsencode(tmp_path / "b" / "x")]


def test_exclude(tmp_path: Path) -> None:
    """Excluded names and paths stay."""
    for name in ("_temp", "_tool", "repo", "other"):
        (tmp_path / name).mkdir()
    target = Paths(("$X/*",), exclude=("_*", f"{tmp_path}/oth*"))
    assert expand(target, {"X": (str(tmp_path),)}, Protection()).paths == [os.fsencode(tmp_path / "repo")]


def test_own_temporary_names(tmp_path: Path) -> None:
    """What cachekit itself keeps beside a target is no unit."""
    (tmp_path / ".cachekit-0123456789abcdef").mkdir()
    (tmp_path / ".cachekit-trash-0123456789abcdef").mkdir()
    assert found("$X/*", X=str(tmp_path)) == []


def test_protected_matches(tmp_path: Path) -> None:
    """A protected match is refused with its reason and the others are found."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    protected = Protection()
    protected.add([str(tmp_path / "a")], "the store", whole=True)
    result = expand(Paths(("$X/*",)), {"X": (str(tmp_path),)}, protected)
    assert result.paths == [os.fsencode(tmp_path / "b")]
    assert result.refused == [(os.fsencode(tmp_path / "a"), "it is or contains the store")]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Any name can be matched."""
    name = os.fsencode(tmp_path) + b"/\xff\n\x1b[31m"
    os.mkdir(name)
    assert expand(Paths(("$X/*",)), {"X": (str(tmp_path),)}, Protection()).paths == [name]


def test_several_values(tmp_path: Path) -> None:
    """A variable with several values, such as the runners' directories, means each of them."""
    for name in ("r1/_diag/x", "r2/_diag/y"):
        (tmp_path / name).mkdir(parents=True)
    values = {"R": (str(tmp_path / "r1"), str(tmp_path / "r2"))}
    result = expand(Paths(("$R/_diag/*",)), values, Protection())
    assert result.paths == [os.fsencode(tmp_path / "r1/_diag/x"), os.fsencode(tmp_path / "r2/_diag/y")]


def test_looking_changes_no_time(tmp_path: Path) -> None:
    """Expanding a pattern leaves access times as they are."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    os.utime(folder, ns=(1, 10**18))
    os.utime(tmp_path / "a", ns=(1, 10**18))
    assert found("$X/**/*", X=str(tmp_path / "a")) == [str(folder)]
    assert (folder.stat().st_atime_ns, (tmp_path / "a").stat().st_atime_ns) == (1, 1)


@given(st.text(alphabet="/*?[].$aX{}~-", max_size=30))
def test_no_pattern_escapes(pattern: str) -> None:
    """Whatever a pattern says, what comes out lies strictly inside its root and is not protected."""
    variables = {"X": ("/tmp/no-such-place",), "a": ("/tmp/no-such-place",), "HOME": ("/tmp/no-such-home",)}
    try:
        result = expand(Paths((pattern,)), variables, Protection())
    except NotSet:
        return
    for path in result.paths:
        assert Protection().refuse(path) is None
        assert path.count(b"/") >= 2
