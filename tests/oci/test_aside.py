"""What a killed collection left aside, when it or the layout around it is not what it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import CachekitError, Damaged
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.layout import ASIDE
from cachekit.oci.verify import verify_layout
from tests.crash.scene import die_at
from tests.support.layouts import HOUR, MadeLayout, content


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """A layout with one image."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("app", [content(1)])
    return layout


def gc(layout: MadeLayout, **options: Any) -> CollectReport:
    """Collect at once, whatever is how old."""
    return collect(CollectRequest(str(layout.path), **{"settle": 0.0, "grace": 0.0, **options}))


def leave(layout: MadeLayout, name: str, *, single: bool) -> Path:
    """Leave a file as a killed collection does."""
    if single:
        left = layout.path / f"{ASIDE}1-abc.{name}"
    else:
        (layout.path / f"{ASIDE}-abc").mkdir()
        left = layout.path / f"{ASIDE}-abc" / name
    left.write_text("left")
    return left


@pytest.mark.parametrize("index", [False, True], ids=["no index", "index"])
@pytest.mark.parametrize("single", [False, True], ids=["directory", "single"])
@pytest.mark.parametrize("link", ["blobs", "blobs/sha256", "ingest"])
def test_nothing_is_put_behind_a_link(
    made: MadeLayout, tmp_path: Path, link: str, *, single: bool, index: bool
) -> None:
    """A layout that came from elsewhere cannot have files put outside of it by what seems to be left aside."""
    left = leave(made, "ingest-evil" if link == "ingest" else f"sha256-{'a' * 64}", single=single)
    outside = tmp_path / "outside"
    os.rename(made.path / link, outside)
    (made.path / link).symlink_to(outside)
    if not index:
        (made.path / "index.json").unlink()
    before = sorted(outside.rglob("*"))
    with pytest.raises(CachekitError) as caught:
        gc(made)
    assert caught.value.exit_code in {4, 8}
    assert sorted(outside.rglob("*")) == before
    if link != "ingest":  # an unfinished blob is not needed, so it goes
        assert left.read_text() == "left"


@pytest.mark.parametrize(
    "name", ["x-evil", "..-evil", f"sha256-{'a' * 63}", f"md5-{'a' * 32}", "ingest-", "ingest-.."]
)
def test_names_that_no_collection_gives(made: MadeLayout, name: str) -> None:
    """What is called nearly like something of ours gets no place in the layout; a single file of that kind stays."""
    before = made.digests()
    for where in ("blobs/x", "blobs/md5"):
        (made.path / where).mkdir()
    single = leave(made, name, single=True)
    gc(made)
    assert single.exists()
    single.unlink()
    leave(made, name, single=False)
    gc(made)
    found = {path for path in made.path.rglob("*") if path.is_file()}
    assert {path for path in found if path.parent.name != "sha256"} == {
        made.path / "index.json",
        made.path / "oci-layout",
    }
    assert made.digests() == before


@pytest.mark.parametrize("how", ["fifo", "link", "directory"])
def test_a_manifest_aside_that_is_no_file(made: MadeLayout, tmp_path: Path, how: str) -> None:
    """Nobody waits for a fifo that lies aside in a manifest's place, nor follows a link: the layout is damaged."""
    manifest = made.file(made.references[0])
    place = leave(made, f"sha256-{manifest.name}", single=False)
    place.unlink()
    os.rename(manifest, tmp_path / "manifest")
    if how == "fifo":
        os.mkfifo(place)
    elif how == "link":
        place.symlink_to(tmp_path / "manifest")
    else:
        place.mkdir()
    with pytest.raises(Damaged):
        gc(made)


def test_an_impossible_size_of_what_lies_aside(made: MadeLayout) -> None:
    """A size that no document has costs no memory, also if the document lies aside."""
    manifest = made.file(made.references[0])
    place = leave(made, f"sha256-{manifest.name}", single=False)
    os.rename(manifest, place)
    made.references[0]["size"] = 1 << 61
    made.write_index()
    with pytest.raises(Damaged):
        gc(made)
    assert manifest.exists()


def test_a_file_of_another_beginning(made: MadeLayout) -> None:
    """A file that only ends as what a collection sets aside is somebody else's, and stays where it is."""
    for name in (f"note.sha256-{'a' * 64}", f"{ASIDE}2-abc.sha256-{'a' * 64}"):
        (made.path / name).write_text("other")
    before = made.digests()
    gc(made)
    assert made.digests() == before
    assert sorted(path.read_text() for path in made.path.glob("*sha256*")) == ["other", "other"]


def test_an_unfinished_blob_that_is_begun_anew_after_a_kill(made: MadeLayout) -> None:
    """What is written in its place by now stays, and what lay aside goes."""
    (made.path / f"{ASIDE}1-abc.ingest-one").mkdir()
    (made.path / f"{ASIDE}1-abc.ingest-one/data").write_bytes(b"old")
    (made.path / "ingest/one").mkdir()
    (made.path / "ingest/one/data").write_bytes(b"anew")
    assert gc(made).status == "done"
    assert (made.path / "ingest/one/data").read_bytes() == b"anew"
    assert not list(made.path.glob(".cachekit-gc*"))


def test_what_is_named_again_after_a_kill(made: MadeLayout) -> None:
    """A whole image that lies aside, and that a build named after the kill, is put back with all its parts."""
    again = made.image("again", [content(2)], b'{"again":1}')
    made.references.pop()
    made.write_index()
    made.blob(content(3))
    old = made.ingest(1000, 2 * HOUR)
    before = made.digests()
    assert die_at("gc.aside", lambda: gc(made)) == -signal.SIGKILL
    assert not made.file(again).exists()
    made.name("again", again)
    report = gc(made)
    assert (report.restored, report.freed, report.removed) == (3, 2002, [])
    assert len(before - made.digests()) == 1
    assert verify_layout(str(made.path)).ok
    assert not old.exists()
    assert not list(made.path.glob(".cachekit-gc*"))
