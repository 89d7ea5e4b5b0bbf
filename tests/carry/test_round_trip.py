"""An entry taken out of one store, carried, and filed in another."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from cachekit.cache.carry.place import CARRIED
from cachekit.model import Namespace, Platform, StoreAddress
from cachekit.store.directory import DirectoryStore
from tests.carry.conftest import another_machine
from tests.support.in_process import Here
from tests.support.shelf import Shelf
from tests.support.signing import OTHER_SECRET, SECRET

ELSEWHERE = Platform("linux", "riscv64", "musl")


def exported(here: Here, *args: object, code: int = 0) -> dict[str, Any]:
    """Export, and return the report."""
    report = here("store", "export", "--json", *map(str, args)).expect(code).json()
    assert isinstance(report, dict)
    return report


def imported(here: Here, *args: object, code: int = 0) -> dict[str, Any]:
    """Import, and return the report."""
    report = here("store", "import", "--json", *map(str, args)).expect(code).json()
    assert isinstance(report, dict)
    return report


def keys(store: Path, namespace: str = "default") -> list[str]:
    """The keys that a store serves."""
    address = StoreAddress(str(store), Namespace(namespace))
    return [c.seal.key if c.seal else "?" for c in DirectoryStore(address).entries()]


@pytest.mark.parametrize("copy", [False, True])
def test_to_another_store(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: bool
) -> None:
    """What is exported is the stored bytes; imported elsewhere it is an exact hit, verified, with the same identity."""
    report = exported(here, "--key=k-1", *(["--copy"] if copy else []))
    assert (report["status"], report["how"]) == ("exported", "copy" if copy else "link")
    assert [path.name for path in carry.iterdir()] == [CARRIED]
    assert (carry / CARRIED).read_bytes() == here.entry("k-1").read_bytes()
    assert os.path.samefile(carry / CARRIED, here.entry("k-1")) is not copy
    with another_machine(monkeypatch, tmp_path / "other"):
        taken = imported(here)
        assert taken["status"] == "imported"
        assert taken["files"][0]["identity"] == report["identity"]
        here("verify", "--all").expect()
        (here.root / "t/file").unlink()
        assert here.restore("k-1", "t")["status"] == "exact"
        assert imported(here)["status"] == "exists"
    assert (here.root / "t/file").read_bytes() == b"one" * 1000
    assert not list(tmp_path.glob("other/v1/default/tmp/*"))


def test_the_copy_is_no_link(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A carrier that writes over the file it carried changes nothing in the store that it was imported into."""
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        imported(here)
        os.truncate(carry / CARRIED, 100)
        here("verify", "--all").expect()


def test_one_entry_replaces_the_one_before(here: Here, carry: Path) -> None:
    """The directory has one entry, the last that was exported; the same one again is left as it is."""
    (here.root / "t/file").write_bytes(b"two")
    here.save("k-2", "t")
    exported(here, "--key=k-1")
    assert exported(here, "--key=k-2")["status"] == "exported"
    assert exported(here, "--key=k-2")["status"] == "unchanged"
    assert [path.name for path in carry.iterdir()] == [CARRIED]
    assert os.path.samefile(carry / CARRIED, here.entry("k-2"))


def test_a_miss_changes_nothing(here: Here, carry: Path) -> None:
    """Nothing to export leaves what was exported before, nothing to import is a miss, both exit 0, or 3 if asked."""
    assert imported(here)["status"] == "miss"
    assert imported(here, "--fail-on-miss", here.root / "absent.tar.zst", code=3)["status"] == "miss"
    assert exported(here, "--key=k-9", "--restore-key=z")["status"] == "miss"
    assert not carry.exists()
    exported(here, "--key=k-1")
    exported(here, "--key=k-9", "--fail-on-miss", code=3)
    assert os.path.samefile(carry / CARRIED, here.entry("k-1"))


def test_a_restore_key(here: Here) -> None:
    """Without the key's own entry that of a restore key is exported, and the report says which."""
    report = exported(here, "--key=k-9", "--restore-key=x-", "--restore-key=k-")
    assert (report["status"], report["key"], report["matched_key"]) == ("exported", "k-9", "k-1")


@pytest.mark.parametrize("to", ["d", "d/", "deep/er/", "e.tar.zst", "there.tar.zst"])
def test_where_to(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """A name that ends in .tar.zst is a file, anything else a directory, made if it is missing; import takes either."""
    (here.root / "there.tar.zst").mkdir()
    path = Path(exported(here, "--key=k-1", "--to", to)["path"])
    assert path == here.root / (to if to == "e.tar.zst" else f"{to}/{CARRIED}")
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here, to)["status"] == "imported"


def test_a_directory_of_several(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory every archive is imported, and the exported entries of the directories in it."""
    here.save("k-2", "--full", "t")
    here.save("k-3", "--full", "t")
    exported(here, "--key=k-1", "--to=all")
    exported(here, "--key=k-2", "--to=all/second.tar.zst")
    exported(here, "--key=k-3", "--to=all/third")
    (here.root / "all/notes.txt").write_text("no entry")
    with another_machine(monkeypatch, tmp_path / "other"):
        report = imported(here, "all")
        assert {file["status"] for file in report["files"]} == {"imported"}
    assert sorted(keys(tmp_path / "other")) == ["k-1", "k-2", "k-3"]


def test_only_the_key_that_was_asked_for(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --key another key's entry is left alone, unless it begins with a restore key."""
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        report = imported(here, "--key=k")
        assert (report["status"], report["files"][0]["status"]) == ("miss", "other-key")
        assert imported(here, "--key=z", "--restore-key=k-")["status"] == "imported"
        assert imported(here, "--key=k-1")["status"] == "exists"


def test_what_the_store_has_stays(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored entry of the key is not replaced without --force; one with a damaged seal is, and goes to quarantine."""
    exported(here, "--key=k-1", "--copy")
    (here.root / "t/file").write_bytes(b"two")
    with another_machine(monkeypatch, tmp_path / "other"):
        own = here.save("k-1", "t")["identity"]
        there = tmp_path / "other/v1/default"
        (name,) = (there / "entries").iterdir()
        assert imported(here)["status"] == "exists"
        assert here("show", "--json", "k-1").expect().json()["identity"] == own
        assert imported(here, "--force")["status"] == "imported"
        assert here("show", "--json", "k-1").expect().json()["identity"] != own
        os.truncate(name, 300)
        assert imported(here)["status"] == "imported"
        assert len(list((there / "quarantine").iterdir())) == 1
        here("verify", "--all").expect()


def test_an_alias_goes_along(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that serves a further key is filed under that key elsewhere, though its seal tells the first one."""
    here.save("k-2", "--skip-unchanged", "t")
    assert exported(here, "--key=k-2")["matched_key"] == "k-2"
    assert sorted(path.name for path in carry.iterdir()) == [CARRIED, CARRIED + ".alias"]
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here)["files"][0]["key"] == "k-2"
        assert here.restore("k-2", "--root=out")["status"] == "exact"
        assert here.restore("k-1", "--root=out")["status"] == "miss"
        here("verify", "--all").expect()


def test_the_alias_of_the_entry_before_is_worth_nothing(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an export with an alias, one without removes it; an alias of another entry, left there, is ignored."""
    here.save("k-2", "--skip-unchanged", "t")
    exported(here, "--key=k-2")
    alias = (carry / (CARRIED + ".alias")).read_bytes()
    (here.root / "t/file").write_bytes(b"other")
    here.save("k-3", "t")
    exported(here, "--key=k-3")
    assert [path.name for path in carry.iterdir()] == [CARRIED]
    (carry / (CARRIED + ".alias")).write_bytes(alias)
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here)["files"][0]["key"] == "k-3"


def test_another_platform(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another platform's entry is exported only if asked for, and is filed as that platform's."""
    Shelf(here.store).put("far-1", platform=ELSEWHERE)
    assert exported(here, "--key=far-1")["status"] == "miss"
    assert exported(here, "--key=far-1", "--any-platform")["status"] == "exported"
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here)["files"][0]["platform"] == str(ELSEWHERE)
        assert here.restore("far-1")["status"] == "miss"


def test_namespaces(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is taken out of the namespace that is named, and filed in the one that is named."""
    assert exported(here, "--key=k-1", "--namespace=a")["status"] == "miss"
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        imported(here, "--namespace=a/b")
        imported(here, "--scope=pr-1")
    assert keys(tmp_path / "other", "a/b") == ["k-1"]
    assert keys(tmp_path / "other", "default/@pr-1") == ["k-1"]
    assert keys(tmp_path / "other") == []


@pytest.mark.parametrize("signer", [None, SECRET, OTHER_SECRET])
def test_signatures(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signer: str | None
) -> None:
    """Where signatures are required only what was signed with the key is imported; the rest stays, for others."""
    if signer:
        monkeypatch.setenv("CACHEKIT_HMAC_KEY", signer)
    here.save("k-1", "--force", "t")
    exported(here, "--key=k-1")
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", SECRET)
    with another_machine(monkeypatch, tmp_path / "other"):
        report = imported(here, code=0 if signer == SECRET else 4)
        assert report["files"][0]["status"] == ("imported" if signer == SECRET else "untrusted")
        assert (carry / CARRIED).exists()
        assert keys(tmp_path / "other") == (["k-1"] if signer == SECRET else [])


def test_a_signed_entry_replaces_an_unsigned_one(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where signatures are required, an unsigned entry of the key gives way to the signed one, as to a save."""
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        imported(here)
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", SECRET)
    here.save("k-1", "--force", "t")
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here)["status"] == "imported"
        assert here.restore("k-1", "--root=out")["status"] == "exact"


def test_an_import_is_a_use(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was imported counts as used now, whenever it was made: no prune takes it for old."""
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        entry = imported(here)["files"][0]["entry"]
    assert os.listdir(tmp_path / "other/v1/default/used") == [entry]


def test_a_signature_for_another_namespace(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that was signed for one namespace is not trusted in another."""
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", SECRET)
    here.save("k-1", "--force", "t")
    exported(here, "--key=k-1")
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here, "--namespace=a", code=4)["files"][0]["status"] == "untrusted"
        assert imported(here)["status"] == "imported"


def test_a_signed_alias(here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signed entry is not filed under a key for which only somebody without the key vouches."""
    here.save("k-2", "--skip-unchanged", "t")
    exported(here, "--key=k-2")
    unsigned = (carry / (CARRIED + ".alias")).read_bytes()
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", SECRET)
    here.save("k-1", "--force", "--full", "t")
    here.save("k-2", "--force", "--skip-unchanged", "t")
    exported(here, "--key=k-2")
    signed = (carry / (CARRIED + ".alias")).read_bytes()
    assert signed != unsigned
    monkeypatch.delenv("CACHEKIT_HMAC_KEY")
    here.save("k-3", "--skip-unchanged", "t")
    exported(here, "--key=k-3", "--to=loose")
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", SECRET)
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here, "loose", code=4)["files"][0]["status"] == "untrusted"
        assert imported(here)["files"][0]["key"] == "k-2"
        assert here.restore("k-2", "--root=out")["status"] == "exact"


def test_outputs(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub's later steps get the status, the key that was carried, and whether it is the one that was asked for."""
    output = tmp_path / "output"
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))

    def outputs() -> dict[str, str]:
        lines = output.read_text().splitlines()
        output.unlink()
        return {lines[at].partition("<<")[0]: lines[at + 1] for at in range(0, len(lines), 3)}

    report = exported(here, "--key=k-1")
    assert outputs() == {
        "status": "exported",
        "exported-key": "k-1",
        "path": report["path"],
        "bytes": str(report["archive_bytes"]),
    }
    with another_machine(monkeypatch, tmp_path / "other"):
        imported(here, "--key=k-2", "--restore-key=k")
        found = outputs()
        assert (found["status"], found["imported-key"], found["cache-hit"]) == ("imported", "k-1", "false")
        imported(here, "--key=k-1")
        assert outputs()["cache-hit"] == "true"
        here("store", "import", "--read-only").expect(9)
        assert outputs() == {"status": "error", "imported-key": "", "cache-hit": "false", "bytes": "0"}
        here("store", "export", "--key=k-1", "--to", tmp_path / "other").expect(2)
        assert outputs() == {"status": "error", "exported-key": "", "path": "", "bytes": "0"}
        imported(here, "--key=k-1", "absent")
        assert outputs() == {"status": "miss", "imported-key": "", "cache-hit": "false", "bytes": "0"}


def test_caches_by_name(here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of the configuration are exported each into a directory of its own, and imported all together."""
    Path("cachekit.toml").write_text(
        '[caches.one]\nkey = "one-{hash:t/file}"\npaths = ["t"]\n'
        '[caches.two]\nkey = "two-{hash:t/file}"\nrestore-keys = ["two-"]\npaths = ["t/sub"]\n'
    )
    here("save", "--all").expect()
    reports = here("store", "export", "--all", "--json").expect().json()
    assert [report["cache"] for report in reports] == ["one", "two"]
    assert sorted(os.listdir(carry)) == ["one", "two"]
    assert exported(here, "two")["status"] == "unchanged"
    here("store", "export", "two", "--key=k").expect(2)
    here("store", "export", "three").expect(2)
    here("store", "export").expect(2)
    with another_machine(monkeypatch, tmp_path / "other"):
        imported(here)
        here("restore", "--all", "--strict").expect()


def test_modes(here: Here, carry: Path) -> None:
    """Nobody but owner and group may read what is exported, as in the store."""
    exported(here, "--key=k-1", "--copy")
    assert stat.S_IMODE((carry / CARRIED).stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE(carry.stat().st_mode) & 0o007 == 0


def test_carried_by_tar(here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a carrier unpacks in another place, with other times and modes, is the same entry."""
    exported(here, "--key=k-1")
    packed = shutil.make_archive(str(tmp_path / "carried"), "tar", carry)
    shutil.rmtree(carry)
    shutil.unpack_archive(packed, carry, filter="data")
    os.utime(carry / CARRIED, (0, 0))
    (carry / CARRIED).chmod(0o666)
    with another_machine(monkeypatch, tmp_path / "other"):
        assert imported(here)["status"] == "imported"
        here("verify", "--all").expect()


def test_limits_hold_after_an_import(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import into a store with limits is followed by a prune, which leaves what was imported."""
    exported(here, "--key=k-1")
    monkeypatch.setenv("CACHEKIT_MAX_ENTRIES", "1")
    with another_machine(monkeypatch, tmp_path / "other"):
        Shelf(tmp_path / "other").put("old-1", used_days=3)
        assert imported(here)["status"] == "imported"
        assert keys(tmp_path / "other") == ["k-1"]
