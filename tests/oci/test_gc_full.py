"""`oci gc` where it is needed most: on a disk that is full, and where it may not write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cachekit.errors import NoSpace
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.verify import verify_layout
from tests.crash.scene import die_at
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.filesystems import KINDS, MIB, Filesystem, ext4, tmpfs
from tests.support.layouts import HOUR, MadeLayout, content


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest) -> Iterator[Filesystem]:
    """A small filesystem, in which a directory takes room (ext4) or only files do (tmpfs)."""
    with KINDS[request.param]() as mounted:
        yield mounted


def on(disk: Filesystem, *, orphan: bool = True) -> MadeLayout:
    """Make a layout of three references, with a blob that nothing leads to; then leave no room on its disk."""
    layout = MadeLayout(disk.path / "cache")
    for number in range(3):
        layout.image(f"app{number}", [content(number, 200_000)])
    if orphan:
        layout.blob(content(9, 300_000))
        layout.blob(content(8, 100_000))
    disk.fill(0)
    for number in range(600):  # what is left are parts of blocks, and room in directories
        try:
            (disk.path / f"{number}-{'x' * 200}").write_bytes(b"x" * 100)
        except OSError:
            break
    return layout


def gc(layout: MadeLayout, **options: Any) -> CollectReport:
    """Collect without waiting."""
    return collect(CollectRequest(str(layout.path), **{"settle": 0.0, "grace": 0.0, **options}))


def left(layout: MadeLayout) -> list[str]:
    """Return what a collection left in the layout."""
    return [path.name for path in layout.path.iterdir() if path.name.startswith(".cachekit-gc")]


@requires("ext4", "tmpfs")
@pytest.mark.parametrize("options", [[], ["--keep-tags=1"]], ids=["orphans", "references"])
def test_a_full_disk(cli: Cli, disk: Filesystem, options: list[str]) -> None:
    """On a disk without one free block a collection frees all that it would otherwise, by command and lock as well."""
    layout = on(disk)
    done = (
        cli("oci", "gc", str(layout.path), *options, "--settle=0s", "--grace=0s", "--json").expect(0).json()
    )
    assert done["status"] == "done"
    assert done["freed"] >= 400_000
    assert len(done["removed"]) == (2 if not options else 6)
    assert verify_layout(str(layout.path)).ok
    assert not verify_layout(str(layout.path)).unreferenced
    assert not left(layout)


@requires("ext4")
def test_no_inodes() -> None:
    """Where no further file can be made, a collection makes room for its own first."""
    with ext4(inodes=64) as disk:
        layout = MadeLayout(disk.path / "cache")
        layout.image("app", [content(1)])
        layout.image("second", [content(2)])
        for number in range(5, 9):
            layout.blob(content(number))
        disk.use_up_inodes()
        assert len(gc(layout, keep_tags=1).removed) == 6
        assert verify_layout(str(layout.path)).ok
        assert not left(layout)


@requires("ext4", "tmpfs")
def test_a_full_disk_and_an_unfinished_blob(disk: Filesystem) -> None:
    """What the build left that filled the disk up is room enough."""
    layout = on(disk, orphan=False)
    os.unlink(disk.path / ".filler")
    ingest = layout.path / "ingest" / "abc"
    ingest.mkdir()
    (ingest / "data").write_bytes(content(5, 500_000))
    layout.age(ingest / "data", HOUR)
    layout.age(ingest, HOUR)
    disk.fill(0)
    report = gc(layout, keep_tags=1)
    assert report.freed > 900_000
    assert not ingest.exists()
    assert verify_layout(str(layout.path)).ok


@requires("ext4")
def test_a_full_disk_with_nothing_to_begin_with() -> None:
    """If index.json has to be written anew and nothing can go before that, it is exit 5 and nothing is changed."""
    with ext4() as disk:
        layout = on(disk, orphan=False)
        before = (layout.path / "index.json").read_bytes()
        with pytest.raises(NoSpace) as caught:
            gc(layout, keep_tags=1)
        assert caught.value.exit_code == 5
        assert (layout.path / "index.json").read_bytes() == before
        assert verify_layout(str(layout.path)).ok
        assert not left(layout)


@requires("tmpfs")
def test_a_kill_while_room_is_made() -> None:
    """Killed in between, nothing is lost, and the next collection ends the work, also if a build names the blob."""
    with tmpfs(4 * MIB) as disk:
        for named in (False, True):
            layout = on(disk)
            biggest = max(layout.digests(), key=lambda digest: layout.file({"digest": digest}).stat().st_size)
            assert die_at("gc.single", lambda layout=layout: gc(layout)) == -signal.SIGKILL  # type: ignore[misc]
            assert biggest not in layout.digests()
            os.unlink(disk.path / ".filler")
            if named:
                layout.name("built", layout.image("built", [content(9, 300_000)]))
                layout.file({"digest": biggest}).unlink()
            gc(layout)
            assert (biggest in layout.digests()) is named
            assert verify_layout(str(layout.path)).ok
            assert not left(layout)
            shutil.rmtree(disk.path / "cache")
            for path in disk.path.iterdir():
                path.unlink()


@requires("tmpfs")
def test_a_build_beside_it() -> None:
    """What a build names while room is made is put back, and nothing goes."""
    with tmpfs(4 * MIB) as disk:
        layout = on(disk)
        before = layout.digests()
        reports: list[CollectReport] = []
        thread = threading.Thread(target=lambda: reports.append(gc(layout, settle=1.0)))
        thread.start()
        while not left(layout):
            time.sleep(0.01)
        index = json.loads((layout.path / "index.json").read_text())
        index["manifests"].pop(0)
        (layout.path / "index.json").write_text(json.dumps(index))
        thread.join(30)
        assert reports[0].status == "busy"
        assert layout.digests() == before
        assert not left(layout)


@requires("root")
def test_a_layout_of_somebody_else(cli: Cli, nobody_cli: Cli) -> None:
    """Where one may not write a collection is refused with a sentence, and so is one on a read-only disk."""
    layout = MadeLayout(nobody_cli.cwd / "cache")
    layout.image("app", [content(1)])
    layout.blob(content(2))
    done = nobody_cli("oci", "gc", "cache", "--settle=0s").expect(8)
    assert "internal" not in done.stderr
    assert "yours to change" in done.stderr
    with tmpfs() as disk:
        shutil.copytree(layout.path, disk.path / "cache")
        disk.read_only()
        done = cli("oci", "gc", str(disk.path / "cache"), "--settle=0s").expect(8)
        assert "internal" not in done.stderr
