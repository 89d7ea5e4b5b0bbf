"""`cachekit ls`, `cachekit show` and `cachekit recover`."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.in_process import Here, cut
from tests.support.trees import HardLink, Symlink, make_tree


@pytest.fixture
def store(here: Here) -> Here:
    """A store with the entries npm-1, npm-2 and pip-1, made in this order."""
    make_tree(here.root, {"t": {"a": b"12345", "b": HardLink("t/a"), "l": Symlink("a")}, "u": {"x": b"1"}})
    for key, path in (("npm-1", "t"), ("npm-2", "t"), ("pip-1", "u")):
        here.save(key, path)
    return here


def test_ls(store: Here) -> None:
    """Entries are listed newest first, a line each on stdout, with a summary on stderr."""
    done = store("ls").expect()
    lines = done.stdout.splitlines()
    assert [line.split(" files  ")[1].split()[0] for line in lines] == ["pip-1", "npm-2", "npm-1"]
    assert done.stderr.startswith("3 entries, ")
    assert str(store.store) in done.stderr


def test_ls_prefix(store: Here) -> None:
    """PREFIX limits the list to keys that begin so."""
    assert [entry["key"] for entry in store("ls", "npm-", "--json").expect().json()] == ["npm-2", "npm-1"]
    assert store("ls", "pm-", "--json").expect().json() == []
    assert store("ls", "pip-1").expect().stderr.startswith("1 entry, ")


def test_ls_fields(store: Here) -> None:
    """An entry has every documented field."""
    (entry,) = store("ls", "npm-2", "--json").expect().json()
    expected = {"key": "npm-2", "files": 2, "content_bytes": 5, "targets": ["t"], "problem": None}
    assert {name: entry[name] for name in expected} == expected
    assert {"entry", "platform", "archive_bytes", "created_ns"} <= set(entry)


def test_ls_damaged(store: Here) -> None:
    """An entry whose seal is refused is listed with the reason, after the others, and does not end the list."""
    cut(store.entry("npm-2"))
    lines = store("ls").expect().stdout.splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("refused ")
    assert "npm-2-" in lines[-1]


def test_ls_without_a_store(here: Here) -> None:
    """A store that is not there is an empty list, and says which directory was looked at."""
    done = here("ls", "--store", "nowhere").expect()
    assert done.out == b""
    assert str(here.root / "nowhere") in done.stderr
    assert not Path("nowhere").exists()


def test_ls_quarantine(store: Here) -> None:
    """--quarantine lists what was set aside."""
    cut(store.entry("pip-1"))
    store.restore("pip-1")
    (entry,) = store("ls", "--quarantine", "--json").expect().json()
    assert entry["file"].startswith("pip-1-")
    assert entry["bytes"] > 0
    assert "pip-1-" in store("ls", "--quarantine", "pip").expect().stdout
    assert store("ls", "--quarantine", "npm", "--json").expect().json() == []


def test_show(store: Here) -> None:
    """A summary names key, platform, targets, members and sizes."""
    told = store("show", "npm-1").expect().stdout
    for part in (
        "key          npm-1",
        "family       npm",
        "targets      t",
        "1 file, 1 directory, 1 symlink, 1 hard link",
        "identity",
    ):
        assert part in told


def test_show_manifest(store: Here) -> None:
    """--manifest and --json print the sealed JSON."""
    whole = store("show", "npm-1", "--manifest").expect().json()
    assert whole == store("show", "npm-1", "--json").expect().json()
    assert (whole["key"], whole["format"], whole["counts"]["files"]) == ("npm-1", 1, 1)


def test_show_files(store: Here) -> None:
    """--files lists the members in the archive's order, links with what they lead to."""
    lines = store("show", "npm-1", "--files").expect().stdout.splitlines()
    assert [line.split("Z ")[1] for line in lines] == ["t", "t/a", "t/b = t/a", "t/l -> a"]
    assert lines[0].startswith("drwxr-xr-x")


def test_show_files_fields(store: Here) -> None:
    """A member has every documented field; only a file has a digest, only a link a link."""
    members = {m["path"]: m for m in store("show", "npm-1", "--files", "--json").expect().json()}
    assert (members["t/a"]["kind"], members["t/a"]["size"], len(members["t/a"]["digest"])) == ("file", 5, 32)
    assert (members["t/l"]["kind"], members["t/l"]["link"]) == ("symlink", "a")
    assert (members["t/b"]["kind"], members["t/b"]["link"]) == ("hardlink", "t/a")
    assert members["t"]["digest"] is members["t"]["link"] is None
    assert {"mode", "uid", "gid", "mtime_ns"} <= set(members["t"])


def test_names_that_are_not_utf_8(here: Here) -> None:
    """A name that is not UTF-8 is escaped in `path`, and whole in `path_b64`."""
    make_tree(here.root, {"t": {b"\xff\n": b"1"}})
    here.save("k", "t")
    done = here("show", "k", "--files", "--json").expect()
    member = done.json()[1]
    assert base64.b64decode(member["path_b64"]) == b"t/\xff\n"
    assert member["path"] == "t/\\xff\n"
    assert "path_b64" not in done.json()[0]
    assert b"t/\\xff\\n" in here("show", "k", "--files").expect().out


def test_names_never_act_on_the_terminal_or_the_log(here: Here) -> None:
    """Names with escapes, line breaks or workflow commands are printed escaped, one line each."""
    odd = [b"\x1b[31mred", b"a\n::add-mask::x", b"\r\x07", b"::error::x", "\u202egnp.exe".encode()]
    make_tree(here.root, {"t": dict.fromkeys(odd, b"1")})
    here.save("::warning::k", "t")
    for arguments in (["ls"], ["show", "::warning::k"], ["show", "--files", "::warning::k"]):
        done = here(*arguments).expect()
        for line in (done.out + done.err).splitlines():
            assert not line.lstrip().startswith(b"::")
            assert line.isascii()
            assert all(byte >= 32 for byte in line)


def test_show_file(store: Here) -> None:
    """A file is shown without its store."""
    assert "npm-1" in store("show", store.entry("npm-1"), "--store", "nowhere").expect().stdout


@pytest.mark.parametrize("name", ["missing", "/no/such/file"])
def test_show_missing(store: Here, name: str) -> None:
    """What is neither key nor file is exit 3."""
    done = store("show", name, "--json").expect(3)
    assert done.json()["error"]["id"] == "miss"
    assert name in done.stderr


@pytest.mark.parametrize("option", [(), ("--files",), ("--manifest",)])
def test_show_damaged(store: Here, option: tuple[str, ...]) -> None:
    """A damaged entry is exit 4, by key and by file, and names the file."""
    path = store.entry("npm-1")
    cut(path)
    for name in ("npm-1", str(path)):
        done = store("show", name, *option).expect(4)
        assert str(path) in done.stderr
        assert done.out == b""


def test_recover_nothing(here: Here) -> None:
    """Nothing to recover is exit 0, an empty list in JSON."""
    done = here("recover", "--json").expect()
    assert done.json() == []
    assert "nothing to recover" in done.stderr


@pytest.mark.parametrize(
    ("step", "result", "content"),
    [("restore.extracted", "rolled-back", b"old"), ("restore.journal-committing", "finished", b"new")],
)
def test_recover(
    cli: Cli, here: Here, monkeypatch: pytest.MonkeyPatch, step: str, result: str, content: bytes
) -> None:
    """A killed restore is rolled back or finished by recover, which names the target and what became of it."""
    make_tree(here.root, {"t": {"a": b"new"}})
    here.save("k", "t")
    Path("t/a").write_bytes(b"old")
    killed = cli("restore", "--key=k", "t", "--replace", cwd=here.root, env={"CACHEKIT_KILL_AT": step})
    assert killed.code == -9
    done = here("recover", "--json").expect()
    assert [(line["target"], line["result"]) for line in done.json()] == [(str(here.root / "t"), result)]
    assert Path("t/a").read_bytes() == content
    assert str(here.root / "t") in done.stderr
    assert [name for name in os.listdir(".") if name != "t"] == []


def test_unfinished_target_refuses_a_save(cli: Cli, here: Here) -> None:
    """A target whose restore was killed half way is not saved: exit 8, which names recover."""
    make_tree(here.root, {"t": {"a": b"new"}})
    here.save("k", "t")
    Path("t/a").write_bytes(b"old")
    killed = cli(
        "restore", "--key=k", "t", cwd=here.root, env={"CACHEKIT_KILL_AT": "restore.journal-committing"}
    )
    assert killed.code == -9
    assert "cachekit recover" in here("save", "--key=k2", "t").expect(8).stderr
    here("recover", "t").expect()
    here("save", "--key=k2", "t").expect()
