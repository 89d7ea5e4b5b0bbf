"""`cachekit diff`: what differs between two entries, told from their indexes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.cache.compare import _differences
from cachekit.cache.listing import Member
from tests.support.in_process import Here, cut
from tests.support.trees import Dir, HardLink, Symlink, make_tree


def differences(here: Here, *arguments: str) -> dict[str, tuple[str, list[str]]]:
    """Compare two entries; what changed and how, by path."""
    report = here("diff", "--json", *arguments).expect().json()
    return {one["path"]: (one["change"], one["what"]) for one in report["differences"]}


def two(here: Here) -> None:
    """Save two trees that differ in each way."""
    first: dict[str, Any] = {
        "same": b"s",
        "gone": b"12",
        "text": b"a",
        "mode": b"m",
        "link": Symlink("a"),
        "d": {},
    }
    make_tree(here.root, {"t": {**first, "z-hard": HardLink("t/same"), "kind": b"k", "\n::x": b"1"}})
    here.save("k-1", "t")
    for name in ("gone", "text", "link", "kind", "z-hard"):
        os.unlink(f"t/{name}")
    make_tree(
        here.root / "t", {"new": b"123", "text": b"b", "link": Symlink("b"), "kind": Dir({}), "z-hard": b"s"}
    )
    Path("t/mode").chmod(0o755)
    os.utime("t/same", ns=(1, 1))
    here.save("k-2", "t")


def test_differences(here: Here) -> None:
    """Added, removed and changed members with what changed; times do not count."""
    two(here)
    assert differences(here, "k-1", "k-2") == {
        "t/gone": ("removed", []),
        "t/z-hard": ("changed", ["kind", "content", "link"]),
        "t/kind": ("changed", ["kind", "content", "mode"]),
        "t/link": ("changed", ["link"]),
        "t/mode": ("changed", ["mode"]),
        "t/new": ("added", []),
        "t/text": ("changed", ["content"]),
    }
    report = here("diff", "k-1", "k-2", "--json").expect().json()
    assert report["bytes"] == {"added": 3, "removed": 2, "changed": 2, "same": 2}
    assert report["counts"] == {"added": 1, "removed": 1, "changed": 5, "same": 4}
    text = here("diff", "k-1", "k-2").expect()
    assert "+ t/new  3 B\n" in text.stdout
    assert "~ t/mode  (mode)\n" in text.stdout
    assert "1 added (3 B), 1 removed (2 B), 5 changed" in text.stderr


def test_exit_code(here: Here) -> None:
    """Exit 0 whether they differ or not; with --exit-code 1 if they do."""
    two(here)
    here("diff", "k-1", "k-2", "--exit-code").expect(1)
    assert here("diff", "k-1", "k-1", "--exit-code").expect(0).stdout == ""
    here("diff", "k-1", "none").expect(3)


def test_files_and_roots(here: Here) -> None:
    """An archive file may be compared with an entry; the same name below another root is another member."""
    two(here)
    shutil.copy(here.entry("k-1"), "copy.tar.zst")
    assert differences(here, "k-1", "./copy.tar.zst") == {}
    make_tree(here.home, {"t": {"same": b"s"}})
    here.save("k-3", "~/t")
    found = differences(here, "k-1", "k-3")
    assert found[".cachekit-home/t/same"] == ("added", [])
    assert found["t/same"] == ("removed", [])


def test_damaged(here: Here) -> None:
    """An entry whose index cannot be trusted is refused: exit 4, and it stays where it is."""
    two(here)
    cut(here.entry("k-1"))
    shutil.copy(here.entries()[0], "damaged.tar.zst")
    here("diff", "./damaged.tar.zst", "k-2").expect(4)
    assert len(here.entries()) == 2


MEMBERS = st.dictionaries(
    st.sampled_from([b"a", b"b", b"c"]),
    st.tuples(st.sampled_from(["file", "directory"]), st.integers(0, 2), st.sampled_from([0o644, 0o755])),
)


@settings(max_examples=60)
@given(MEMBERS, MEMBERS)
def test_symmetry(old: dict[bytes, Any], new: dict[bytes, Any]) -> None:
    """Each member is counted once; the other way round, what was added is removed, and the rest the same."""
    one, two = members_of(old), members_of(new)
    there = [(d.path, d.change) for d, _ in _differences(one, two) if d]
    back = [(d.path, d.change) for d, _ in _differences(two, one) if d]
    other = {"added": "removed", "removed": "added", "changed": "changed"}
    assert back == [(path, other[change]) for path, change in there]
    assert [path for path, _ in there] == sorted(p for p in {*old, *new} if old.get(p) != new.get(p))
    assert len(list(_differences(one, two))) == len({*old, *new})


def members_of(tree: dict[bytes, Any]) -> dict[bytes, Member]:
    """Make members: a file's number is its size and content."""
    return {
        path: Member(path, kind, mode, 0, 0, 0, number, None, str(number) if kind == "file" else None)
        if kind == "file"
        else Member(path, kind, mode, 0, 0, 0, 0, str(number).encode(), None)
        for path, (kind, number, mode) in tree.items()
    }
