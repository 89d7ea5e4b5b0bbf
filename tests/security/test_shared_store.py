"""Namespaces, scopes, read-only jobs, and stores that everybody may write to."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachekit.errors import InvalidRequest
from cachekit.model import Namespace
from tests.cli.conftest import here
from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree

__all__ = ["here"]

PARTS = [
    "",
    "v1",
    "v1/default",
    "v1/default/entries",
    "v1/default/tmp",
    "v1/default/quarantine",
    "v1/default/used",
]


@pytest.fixture
def saved(here: Here) -> Here:
    """A store with one entry, of the tree `t`."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here.save("k-1", "t")
    return here


def entries(here: Here, namespace: str) -> list[Path]:
    """Find the entries of a namespace."""
    return sorted((here.store / "v1" / namespace / "entries").glob("*"))


def test_modes(here: Here) -> None:
    """Every directory of a store is 0750, whatever the umask, and nothing in it may be written by everybody."""
    make_tree(here.root, {"t": {"a": b"1"}})
    before = os.umask(0)
    try:
        here.save("k", "t", "--namespace", "a/b", "--store", str(here.home / "new" / "store"))
    finally:
        os.umask(before)
    store = here.home / "new" / "store"
    for path in (store, *store.rglob("*")):
        mode = path.stat().st_mode
        assert stat.S_IMODE(mode) == 0o750 if path.is_dir() else not mode & stat.S_IWOTH, path


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "command",
    [
        ["save", "--key", "k-2", "t"],
        ["restore", "--key", "k-1", "t"],
        ["verify", "--all"],
        ["ls"],
        ["show", "k-1"],
    ],
    ids=lambda command: command[0],
)
def test_open_to_all(saved: Here, part: str, command: list[str]) -> None:
    """A store that everybody may write to is refused by every command before anything is read or written."""
    (saved.store / part).chmod(0o757)
    with unchanged(saved.root / "t"), unchanged(saved.store):
        refused = saved(*command).expect(9)
    assert "chmod o-w" in refused.stderr
    assert refused.out == b""
    saved(*command, "--trust-store").expect(0)
    (saved.store / part).chmod(0o770)
    saved(*command).expect(0)


@pytest.mark.parametrize(
    "command", [["restore", "--restore-key", "k-", "--key"], ["verify"], ["save", "t", "--key"]]
)
def test_entry_open_to_all(saved: Here, command: list[str]) -> None:
    """An entry that everybody may write to is refused too, and is not set aside."""
    saved.entry("k-1").chmod(0o666)
    assert "may write to the entry" in saved(*command, "k-1").expect(9).stderr
    assert len(saved.entries()) == 1
    saved(*command, "k-1", "--trust-store").expect(0)


def test_prune_of_an_open_store(saved: Here) -> None:
    """A prune removes nothing from a store that everybody may write to, unless told that it is trusted."""
    (saved.store / "v1/default/entries").chmod(0o757)
    with unchanged(saved.store):
        saved("prune", "--max-entries", "0").expect(9)
        saved("stats").expect(9)
    saved("prune", "--max-entries", "0", "--trust-store").expect(0)
    assert saved.entries() == []


def test_limits_of_the_configuration(saved: Here) -> None:
    """The configuration's limits hold for a prune without any, and after a save; an option goes before them."""
    saved.save("k-2", "t")
    Path("cachekit.toml").write_text("[retention]\nmax-entries = 1\n")
    saved("prune", "--max-entries", "2").expect(0)
    assert len(saved.entries()) == 2
    saved("prune").expect(0)
    assert len(saved.entries()) == 1
    saved.save("k-3", "t")
    assert [path.name[:3] for path in saved.entries()] == ["k-3"]


def test_trust_store_of_the_configuration(saved: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """trust-store may be in the configuration or in a variable."""
    saved.store.chmod(0o777)
    monkeypatch.setenv("CACHEKIT_TRUST_STORE", "1")
    saved("ls").expect(0)
    monkeypatch.delenv("CACHEKIT_TRUST_STORE")
    saved("ls").expect(9)
    Path("cachekit.toml").write_text("trust-store = true\n")
    saved("ls").expect(0)


def test_namespaces_do_not_mix(saved: Here) -> None:
    """Entries of one namespace are found in no other, by no command, also where one lies in the other."""
    shutil.rmtree("t")
    for namespace in ("other", "default/sub", "defaul"):
        assert saved.restore("k-1", "--namespace", namespace, "--restore-key", "k")["status"] == "miss"
        assert saved("ls", "--namespace", namespace, "--json").expect().json() == []
        saved("show", "k-1", "--namespace", namespace).expect(3)
        saved("verify", "k-1", "--namespace", namespace).expect(3)
    make_tree(saved.root, {"t": {"a": b"2"}})
    assert saved.save("k-1", "t", "--namespace", "default/sub")["status"] == "saved"
    shutil.rmtree("t")
    assert saved.restore("k-1", "t")["status"] == "exact"
    assert Path("t/a").read_bytes() == b"1"


@example("a/@b")
@given(
    st.text("ab@/._-", max_size=12) | st.sampled_from(["a/entries", "tmp", "..", "a/../b", "/a", "a" * 65])
)
def test_names(text: str) -> None:
    """A namespace that can be named is no scope and stays below the store; everything else is refused."""
    try:
        found = Namespace.named(text)
    except InvalidRequest:
        return
    assert found.scope is None
    assert "@" not in text
    assert not {"", ".", "..", "entries", "tmp", "quarantine", "used", "locks"} & set(text.split("/"))


def test_read_only_restores(saved: Here) -> None:
    """A read-only restore takes the entry and changes nothing in the store: no mark of use, no sweep."""
    for number in range(4):  # more than a sweep leaves of a family
        (saved.store / "v1/default/quarantine" / f"{saved.entries()[0].name}.{number}").touch()
    used = saved.store / "v1/default/used"
    shutil.rmtree("t")
    with unchanged(saved.store):
        assert saved.restore("k-1", "--read-only")["status"] == "exact"
    for name in os.listdir(used):
        (used / name).unlink()
    saved.restore("k-1", "t", "--read-only")
    assert os.listdir(used) == []
    assert len(saved.quarantine()) == 4
    saved.restore("k-1", "t")
    assert len(saved.quarantine()) == 2
    assert os.listdir(used) == [saved.entries()[0].name]


def test_read_only_refuses_saves(saved: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only save is exit 9 with a sentence, by option or variable, also of a key that exists; softly 0."""
    monkeypatch.setenv("CACHEKIT_READ_ONLY", "true")
    with unchanged(saved.store):
        for key in ("k-1", "k-2"):
            refused = saved("save", "--key", key, "t", "--json").expect(9)
            assert refused.json()["error"]["id"] == "store-read-only"
            assert "--scope" in refused.stderr
        saved("save", "--key", "k-2", "t", "--soft-fail").expect(0)
        saved("save", "--key", "k-1", "t", "--force").expect(9)
    assert not (saved.home / "other").exists()
    saved("save", "--key", "k", "t", "--store", str(saved.home / "other")).expect(9)
    assert not (saved.home / "other").exists()


def test_read_only_damage(saved: Here) -> None:
    """A damaged entry is refused by a read-only job, stays where it is, and is known the next time."""
    cut(saved.entry("k-1"))
    with unchanged(saved.store), unchanged(saved.root / "t"):
        assert saved.restore("k-1", "t", "--read-only")["status"] == "refused"
        second = saved.restore("k-1", "t", "--read-only")
        assert second["status"] == "refused"
        assert "before" in second["tried"][0]["reason"]
    assert saved.quarantine() == []


def test_scopes(saved: Here) -> None:
    """A scope's saves are found in the scope first, in no other scope and never by trusted jobs."""
    scope = ("--scope", "pr-1", "--read-only")
    Path("t/a").write_bytes(b"theirs")
    with unchanged(saved.store / "v1/default/entries"), unchanged(saved.store / "v1/default/used"):
        assert saved.save("k-1", "t", *scope)["status"] == "saved"
        assert saved.save("k-2", "t", *scope)["status"] == "saved"
    assert len(entries(saved, "default/@pr-1")) == 2
    shutil.rmtree("t")
    assert saved.restore("k-1", "t")["status"] == "exact"
    assert Path("t/a").read_bytes() == b"1", "trusted jobs get what trusted jobs saved"
    assert saved.restore("k-2", "t")["status"] == "miss"
    assert saved.restore("k-2", "t", "--scope", "pr-2")["status"] == "miss"
    with unchanged(saved.store / "v1/default/entries"), unchanged(saved.store / "v1/default/used"):
        saved.restore("k-1", "t", *scope)
        assert Path("t/a").read_bytes() == b"theirs"
        shutil.rmtree("t")
        report = saved.restore("k-1", "t", "--scope", "pr-2")
    assert (report["status"], Path("t/a").read_bytes()) == ("exact", b"1"), (
        "without one of its own the trusted one"
    )
    assert not (saved.store / "v1/default/@pr-2").exists()


def test_damaged_in_a_scope(saved: Here) -> None:
    """A damaged entry of a scope is told and set aside there; the restore goes on in the namespace."""
    saved.save("k-1", "t", "--scope", "pr-1")
    cut(entries(saved, "default/@pr-1")[0])
    shutil.rmtree("t")
    report = saved.restore("k-1", "t", "--scope", "pr-1")
    assert (report["status"], len(report["tried"]), len(report["quarantined"])) == ("exact", 1, 1)
    saved.save("k-3", "t", "--scope", "pr-1")
    cut(next(path for path in entries(saved, "default/@pr-1") if "k-3" in path.name))
    assert saved.restore("k-3", "t", "--scope", "pr-1")["status"] == "refused"


@pytest.mark.parametrize("scope", ["a/b", "..", "@x", "entries", "x" * 65, "a b"])
def test_bad_scopes(saved: Here, scope: str) -> None:
    """A scope is one name; anything that would lead elsewhere is refused."""
    for command in (["save", "--key", "k-2", "t"], ["restore", "--key", "k-1", "t"]):
        saved(*command, "--scope", scope).expect(2)
