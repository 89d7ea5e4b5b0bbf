"""Which trees a path argument means, and what a pattern matches."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.archive.names import (
    Roots,
    compile_patterns,
    drop_nested,
    find_roots,
    match_targets,
    targets_of,
)
from cachekit.errors import InvalidRequest, NothingMatched
from cachekit.model import Target
from tests.support.strategies import names
from tests.support.trees import Symlink, make_tree

PLAIN = names().map(os.fsdecode).filter(lambda name: not set(name) & set("*?["))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A root and a home beside each other."""
    return Roots(bytes(tmp_path / "root"), bytes(tmp_path / "home"))


@pytest.mark.parametrize(
    ("path", "root", "relative"),
    [
        ("a", "root", b"a"),
        ("./a//b/", "root", b"a/b"),
        ("a/../b", "root", b"b"),
        (".", "root", b"."),
        ("/r/t", "root", b"t"),
        ("//r/t", "root", b"t"),
        ("/r", "root", b"."),
        ("/rest", "abs", b"rest"),
        ("..", "abs", b"."),
        ("../x", "abs", b"x"),
        ("../../..", "abs", b"."),
        ("/h/x", "home", b"x"),
        ("/h", "home", b"."),
        ("a\udcff", "root", b"a\xff"),
    ],
)
def test_roots(path: str, root: str, relative: bytes) -> None:
    """A path belongs to the root if it lies there, else to the home, else to /; it need not exist."""
    (named, unknown) = match_targets([path], Roots(b"/r", b"/h"), [Target(root, relative)])  # type: ignore[arg-type]
    assert (len(named), unknown) == (1, [])


def test_tilde(tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_tree(tmp_path / "home", {"x": b"1"})
    assert targets_of(["~/x", "~"], roots) == [Target("home", b".")]


def test_root_written_through_a_link(tmp_path: Path) -> None:
    """A path under another spelling of the root is under the root."""
    make_tree(tmp_path, {"root": {"a": b"1"}, "link": Symlink("root")})
    found = targets_of([str(tmp_path / "link" / "a")], find_roots(str(tmp_path / "link")))
    assert found == [Target("root", b"a")]


def test_canonical_order(tmp_path: Path, roots: Roots) -> None:
    """Targets come in one order, whatever the order of the arguments, each once."""
    make_tree(tmp_path / "root", {"b": {"x": b"1"}, "a": b"1", "b-c": b"1"})
    make_tree(tmp_path / "home", {"h": b"1"})
    paths = ["b", "a", str(tmp_path / "home" / "h"), "b/x", "b-c", "a"]
    expected = [Target("root", b"a"), Target("root", b"b"), Target("root", b"b-c"), Target("home", b"h")]
    assert targets_of(paths, roots) == targets_of(reversed(paths), roots) == expected


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_no_path(roots: Roots, path: str) -> None:
    """An empty path, as of a variable that is not set, is refused: it would mean the whole root."""
    with pytest.raises(InvalidRequest):
        targets_of([path], roots)


def test_nothing_matched(tmp_path: Path, roots: Roots) -> None:
    """One PATH that matches nothing refuses the whole, and the error names the place."""
    make_tree(tmp_path / "root", {"a": b"1"})
    for path in ("b", "b*"):
        with pytest.raises(NothingMatched) as caught:
            targets_of(["a", path], roots)
        assert caught.value.path == str(tmp_path / "root" / path)


TARGETS = st.lists(
    st.builds(
        Target,
        st.sampled_from(["root", "home", "abs"]),
        st.lists(st.sampled_from([b"a", b"b", b"a-", b"ab"]), min_size=1, max_size=3).map(b"/".join),
    ),
    max_size=8,
)


@given(TARGETS)
def test_nested_targets_are_dropped(targets: list[Target]) -> None:
    """Of targets inside each other the outermost stay: each given one is in exactly one that is kept."""
    kept = drop_nested(targets)
    assert set(kept) <= set(targets)
    for target in targets:
        holders = [
            other
            for other in kept
            if other.root == target.root and (target.path + b"/").startswith(other.path + b"/")
        ]
        assert len(holders) == 1


@given(PLAIN)
def test_plain_name_matches_itself(name: str) -> None:
    """A pattern without magic characters matches the name that it is, at any depth, and nothing longer."""
    matches = compile_patterns([name])
    raw = os.fsencode(name)
    assert matches(raw)
    assert matches(b"sub/deep/" + raw)
    assert not matches(raw + b"x")
    assert not matches(b"x" + raw)
    assert not matches(raw + b"/below")


@given(st.lists(PLAIN, min_size=2, max_size=4))
def test_plain_path_matches_itself_only(parts: list[str]) -> None:
    """A pattern with a slash matches the whole path, from the root on."""
    path = "/".join(parts)
    matches = compile_patterns([path])
    assert matches(os.fsencode(path))
    assert not matches(b"sub/" + os.fsencode(path))


@given(st.text(alphabet="ab*?[]!^-/\\.é", max_size=12), st.text(alphabet="ab-[]!./\\é", max_size=12))
def test_any_pattern_compiles(pattern: str, path: str) -> None:
    """No pattern fails, and none warns: what is no pattern is taken literally."""
    assert compile_patterns([pattern])(os.fsencode(path)) in (True, False)
    assert match_targets(["x/" + pattern], Roots(b"/r", b"/h"), [Target("root", os.fsencode(path) or b"x")])


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.log", ["a.log", "x/a.log", ".log"], ["a.log/x", "a.logs"]),
        ("a?c", ["abc", "aéc"], ["ac", "a/c", "abbc"]),
        ("[a-c]x", ["ax", "d/bx"], ["dx", "-x"]),
        ("[!a]x", ["bx", "éx"], ["ax"]),
        ("a[!b]c", ["axc"], ["abc", "a/c"]),
        ("a[.-0]c", ["a.c", "a0c"], ["a/c"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[!]]", ["a"], ["]"]),
        ("[[a]", ["[", "a"], ["b"]),
        ("[a", ["[a"], ["a"]),
        ("[]", ["[]"], [""]),
        ("[z-a]", [], ["z", "a", "m"]),
        ("[\\]", ["\\"], ["a"]),
        ("x/*/y", ["x/a/y"], ["x/y", "x/a/b/y", "z/x/a/y"]),
        ("x/**/y", ["x/y", "x/a/y", "x/a/b/y"], ["xy", "x/ay"]),
        ("**/y", ["y", "a/y", "a/b/y"], ["ay"]),
        ("x/**", ["x/a", "x/a/b"], ["x", "y/x/a"]),
        ("./x", ["x"], ["a/x"]),
        ("/x", ["x"], ["a/x"]),
        ("x/", ["x", "a/x"], ["x/y"]),
        ("a.c", ["a.c"], ["abc"]),
        ("*", ["a", "a\nb", "x/y"], []),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    """What each form of a pattern matches."""
    matches = compile_patterns([pattern])
    assert [path for path in yes if not matches(os.fsencode(path))] == []
    assert [path for path in no if matches(os.fsencode(path))] == []


def test_no_patterns() -> None:
    """Without patterns nothing is left out."""
    assert not compile_patterns([])(b"a")


@given(
    st.text(alphabet="ab*?", min_size=1, max_size=5).filter(lambda text: "**" not in text),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=5, unique=True),
)
def test_restoring_matches_what_saving_matched(pattern: str, present: list[str]) -> None:
    """A glob names the same targets in an entry as the files that it matched on disk."""
    matched = [name for name in present if glob.fnmatch.fnmatchcase(name, pattern)]  # type: ignore[attr-defined]
    available = [Target("root", os.fsencode(name)) for name in present]
    named, unknown = match_targets([pattern], Roots(b"/r", b"/h"), available)
    assert sorted(os.fsdecode(target.path) for target in named) == sorted(matched)
    assert bool(unknown) == (not matched)


def test_entry_target_that_looks_like_a_pattern() -> None:
    """A target is named by exactly its name, whatever characters it has."""
    available = [Target("root", b"a[1]"), Target("root", b"a1")]
    named, _ = match_targets(["a[1]"], Roots(b"/r", b"/h"), available)
    assert named == {available[0]}


def test_unknown_arguments_are_told() -> None:
    """Arguments that name no target are returned as they were given."""
    available = [Target("root", b"a"), Target("home", b"b")]
    named, unknown = match_targets(["a", "b", "~nobody-of-that-name/x", "c*"], Roots(b"/r", b"/h"), available)
    assert named == {available[0]}
    assert unknown == ["b", "~nobody-of-that-name/x", "c*"]


def test_nobody_overlooks_a_magic_character() -> None:
    """The characters that make a pattern are those of glob."""
    for character in map(chr, range(32, 127)):
        assert glob.has_magic(character) == bool(re.search(r"[*?\[]", character))
