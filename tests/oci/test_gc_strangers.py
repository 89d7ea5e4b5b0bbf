"""What `oci gc` does with what it did not expect: directories that are no layouts, unknown types, leftovers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged, Refused
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.verify import verify_layout
from tests.crash.scene import die_at
from tests.support.cli import Cli
from tests.support.layouts import INDEX, MANIFEST, MadeLayout, content

ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """An image that index.json names, and a blob that nothing leads to."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("app", [content(1)])
    layout.blob(content(2))
    return layout


def gc(layout: MadeLayout, **options: Any) -> CollectReport:
    """Collect at once, whatever is how old."""
    return collect(CollectRequest(str(layout.path), **{"settle": 0.0, "grace": 0.0, **options}))


def take_index(layout: MadeLayout, how: str) -> None:
    """Take index.json away: it is not there, or is something else."""
    index = layout.path / "index.json"
    index.unlink()
    if how == "fifo":
        os.mkfifo(index)
    elif how == "directory":
        index.mkdir()
    elif how == "content store":
        (layout.path / "oci-layout").unlink()


@pytest.mark.parametrize("how", ["gone", "fifo", "directory", "content store"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_without_an_index_nothing_goes(made: MadeLayout, how: str, dry_run: bool) -> None:
    """Nothing goes from a directory with blobs/ and no index.json, such as containerd's own store."""
    take_index(made, how)
    before = made.digests()
    with pytest.raises(Damaged, match=r"no index\.json"):
        gc(made, dry_run=dry_run)
    assert made.digests() == before


def test_a_first_export_is_busy(made: MadeLayout) -> None:
    """Where blobs appear and no index.json is there yet, a first export may be running: busy, and nothing goes."""
    take_index(made, "gone")
    made.blob(content(3), age=0)
    before = made.digests()
    assert gc(made, grace=600.0).status == "busy"
    assert made.digests() == before


def test_an_empty_directory_is_no_fault(tmp_path: Path) -> None:
    """A cache that no build has written to yet has nothing to collect."""
    report = collect(CollectRequest(str(tmp_path), settle=0.0))
    assert (report.status, report.freed) == ("done", 0)


def test_an_index_that_went_after_a_kill(made: MadeLayout) -> None:
    """What a killed collection moved aside goes back if index.json is gone by the next one."""
    before = made.digests()
    assert die_at("gc.aside", lambda: gc(made)) == -signal.SIGKILL
    take_index(made, "gone")
    with pytest.raises(Damaged):
        gc(made)
    assert made.digests() == before


@pytest.mark.parametrize("inside", [False, True], ids=["index.json", "index"])
def test_a_document_of_an_unknown_type(made: MadeLayout, inside: bool) -> None:
    """A manifest of a type that is not known may lead anywhere: nothing is removed, and its type is told."""
    document = {"mediaType": ARTIFACT, "blobs": [made.blob(content(3))]}
    descriptor = made.document(document, ARTIFACT)
    if inside:
        descriptor = made.document({"mediaType": INDEX, "manifests": [descriptor]}, INDEX)
    made.name("artifact", descriptor)
    before = made.digests()
    with pytest.raises(Refused, match="artifact"):
        gc(made)
    assert made.digests() == before
    assert verify_layout(str(made.path)).ok


def test_a_manifest_that_is_named_as_a_layer_too(made: MadeLayout) -> None:
    """A document that is named twice, first as something that leads nowhere, keeps what it leads to."""
    manifest = made.image("twice", [content(5)])
    made.references.pop()
    layer = {**manifest, "mediaType": "application/vnd.oci.image.layer.v1.tar"}
    made.name("both", made.document({"mediaType": INDEX, "manifests": [layer, manifest]}, INDEX))
    needed = {f"sha256:{path.name}" for path in (made.path / "blobs/sha256").iterdir()}
    report = gc(made)
    assert len(report.removed) == 1
    assert len(needed - made.digests()) == 1
    assert verify_layout(str(made.path)).ok
    made.file(manifest).unlink()
    with pytest.raises(Damaged):
        gc(made)


def test_what_a_signature_is_about_stays(made: MadeLayout) -> None:
    """A manifest's subject is kept if it is there, with all its parts, and is no fault if it is not."""
    subject = made.image("signed", [content(6)])
    made.references.pop()
    signature = {"mediaType": MANIFEST, "config": made.blob(b"{}"), "layers": [], "subject": subject}
    made.name("signature", made.document(signature, MANIFEST))
    gc(made)
    assert made.file(subject).exists()
    assert len(made.digests()) == 6  # both images have one config
    made.file(subject).unlink()
    assert verify_layout(str(made.path)).ok
    gc(made)


def test_a_document_of_an_impossible_size(made: MadeLayout) -> None:
    """A size that no document has costs no memory: the layout is damaged."""
    made.references[0]["size"] = 1 << 61
    made.write_index()
    with pytest.raises(Damaged):
        gc(made)
    report = verify_layout(str(made.path))
    assert not report.ok
    assert str(report.faults[0]).count(made.references[0]["digest"][:19]) == 1


def test_a_kill_while_the_index_is_written(made: MadeLayout) -> None:
    """What a collection leaves that dies while it writes index.json does not stop the next one, which removes it."""
    made.image("second", [content(7)])
    assert die_at("save.temp-locked", lambda: gc(made, keep_tags=1)) == -signal.SIGKILL
    assert [path.name for path in made.path.glob(".cachekit-gc*")]
    gc(made, keep_tags=1)
    assert not [path.name for path in made.path.glob(".cachekit-gc*")]
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_index_stays_its_owners(made: MadeLayout) -> None:
    """A collection that root runs leaves index.json to whom it belonged: builds write to it in place."""
    made.image("second", [content(7)])
    index = made.path / "index.json"
    os.chown(index, 1234, 1235)
    index.chmod(0o664)
    gc(made, keep_tags=1)
    found = index.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1235, 0o664)
    assert len(json.loads(index.read_text())["manifests"]) == 1


def test_links_in_a_layout_are_told(made: MadeLayout, cli: Cli) -> None:
    """A layout whose parts are links is refused with that reason by both commands, and nothing goes."""
    shutil.copytree(made.path, cli.cwd / "one")
    os.rename(cli.cwd / "one/blobs", cli.cwd / "one/real")
    os.symlink("real", cli.cwd / "one/blobs")
    shutil.copytree(made.path, cli.cwd / "two")
    os.rename(cli.cwd / "two/index.json", cli.cwd / "two/real")
    os.symlink("real", cli.cwd / "two/index.json")
    for path, name in (("one", "blobs"), ("two", "index.json")):
        for command in (("verify", path), ("gc", path, "--settle=0s")):
            done = cli("oci", *command).expect(8)
            assert f"{name} is a link" in done.stderr
            assert "--exclude" not in done.stderr


def test_a_file_that_is_called_like_ours(made: MadeLayout) -> None:
    """A file whose name begins as our own directories' stays, and stops nothing."""
    (made.path / ".cachekit-gc-note").write_text("a file of that name is not ours")
    assert len(gc(made).removed) == 1
    assert (made.path / ".cachekit-gc-note").exists()


def test_a_directory_of_something_else(cli: Cli) -> None:
    """A directory that holds other things is no layout: that is told, and nothing is made in it, not even a lock."""
    (cli.cwd / "src").mkdir()
    (cli.cwd / "src/main.c").write_text("int main;")
    for command in (("gc", "src"), ("gc", "src", "--dry-run")):
        assert "no OCI layout" in cli("oci", *command).expect(8).stderr
    assert [path.name for path in (cli.cwd / "src").iterdir()] == ["main.c"]
    done = cli("oci", "verify", "src").expect(4)
    assert "remove it" not in done.stderr
    assert "type=local" in done.stderr
    assert "no directory" in cli("oci", "verify", "src/main.c").expect(8).stderr
    assert "remove the directory" not in cli("save", "--kind=oci", "--key=k", "src").expect(4).stderr


def test_a_cache_that_is_only_locked(cli: Cli) -> None:
    """The directory that oci lock made, and no build wrote to, has nothing to collect."""
    cli("oci", "lock", "new", "--", "true").expect(0)
    cli("oci", "gc", "new", "--settle=0s").expect(0)
