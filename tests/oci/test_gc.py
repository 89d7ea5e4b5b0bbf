"""What `oci gc` removes, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged, SourceUnreadable, Unsupported
from cachekit.oci import plan as planning
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.graph import walk
from cachekit.oci.plan import CollectPlan
from cachekit.oci.verify import verify_layout
from tests.crash.scene import die_at
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.flaky import flaky
from tests.support.layouts import INDEX, LAYER, MANIFEST, SIGNS, MadeLayout, content
from tests.support.processes import wait_until


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """A cache after three exports: the last one is named, the others left blobs behind."""
    layout = MadeLayout(tmp_path / "layout")
    for export in range(3):
        layout.cache("latest", [content(0), content(10 + export, 5000)])
    return layout


def gc(layout: MadeLayout, **options: Any) -> CollectReport:
    """Collect without waiting long."""
    return collect(CollectRequest(str(layout.path), **{"settle": 0.0, **options}))


def reachable(layout: MadeLayout) -> set[str]:
    """Return what index.json leads to, by the walk that is tested elsewhere."""
    index = (layout.path / "index.json").read_bytes()
    return set(
        walk(
            index, lambda digest, size: (layout.path / "blobs" / digest.replace(":", "/")).read_bytes()
        ).blobs
    )


def test_exactly_what_nothing_leads_to_goes(made: MadeLayout) -> None:
    """After three exports the blobs of the first two go, what is named stays, and the bytes freed are told."""
    needed, before = reachable(made), made.digests()
    sizes = sum((made.path / "blobs" / digest.replace(":", "/")).stat().st_size for digest in before - needed)
    report = gc(made)
    assert made.digests() == needed
    assert len(before - needed) == 6
    assert report.freed == sizes
    assert {line.name for line in report.removed} == before - needed
    assert verify_layout(str(made.path)).ok
    assert gc(made).removed == []


def test_a_dry_run_changes_nothing_and_tells_the_same(made: MadeLayout) -> None:
    """--dry-run tells what a collection then removes, and leaves every file as it is."""
    before = made.digests()
    planned = gc(made, dry_run=True)
    assert planned.status == "dry-run"
    assert made.digests() == before
    assert {line.name for line in planned.removed} == {line.name for line in gc(made).removed}


def test_young_blobs_stay(made: MadeLayout) -> None:
    """What is younger than the grace time stays: a build may be about to name it."""
    young = made.blob(content(77), age=30)
    report = gc(made, grace=60)
    assert young["digest"] in made.digests()
    assert [line.name for line in report.kept] == [young["digest"]]
    gc(made, grace=10)
    assert young["digest"] not in made.digests()


def test_unfinished_blobs(made: MadeLayout) -> None:
    """A writer that gave up is cleared away; one that still writes makes the layout busy."""
    old = made.ingest(1000, 7200)
    assert gc(made).status == "done"
    assert not old.exists()
    made.blob(content(78))
    now = made.ingest(1001, 1)
    report = gc(made)
    assert report.status == "busy"
    assert now.exists()
    assert made.digests() > reachable(made)


def test_what_a_build_names_meanwhile_is_put_back(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that took an old blob for its own, and names it while it is aside, gets it back."""
    old = made.references[0]
    made.cache("latest", [content(0), content(99)])
    made.name("latest", {name: old[name] for name in ("mediaType", "digest", "size")})
    before = made.digests()
    layer = made.file(made.blob(content(99)))

    def sleep(_seconds: float) -> None:
        assert not layer.exists()
        made.cache("again", [content(0), content(99)])

    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    report = gc(made, settle=1)
    assert report.status == "busy"
    assert made.digests() >= before
    assert verify_layout(str(made.path)).ok


def test_what_was_named_without_a_write_is_put_back(
    made: MadeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that only writes index.json, for all its blobs are there, finds them there afterwards."""
    latest = made.references[0]
    manifest = json.loads(made.file(latest).read_bytes())
    orphan = made.cache("other", [content(0), content(50)])
    made.references = [one for one in made.references if one["digest"] != orphan["digest"]]
    made.write_index()

    def sleep(_seconds: float) -> None:
        made.name("other", orphan)

    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    report = gc(made, settle=1)
    assert report.restored
    assert manifest["layers"]
    assert verify_layout(str(made.path)).ok


def test_a_writer_that_begins_anew_meanwhile(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished blob that is begun anew while the old one is aside stays, and all blobs go back beside it."""
    old = made.ingest(1000, 7200)
    before = made.digests()

    def sleep(_seconds: float) -> None:
        assert not old.exists()
        old.mkdir()
        (old / "data").write_bytes(b"anew")
        made.blob(content(99))

    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    report = gc(made, settle=1)
    assert report.status == "busy"
    assert made.digests() > before
    assert (old / "data").read_bytes() == b"anew"
    assert not list(made.path.glob(".cachekit-gc*"))


def test_an_unfinished_blob_is_put_back(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody writes while it is aside, an unfinished blob gets its place back, too."""
    old = made.ingest(1000, 7200)
    monkeypatch.setattr("cachekit.oci.collect.time.sleep", lambda _seconds: made.blob(content(99)))
    assert gc(made, settle=1).status == "busy"
    assert (old / "data").read_bytes() == bytes(1000)


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_of_a_writer_puts_all_back(
    made: MadeLayout, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    """A blob that appears, an unfinished one, or another index.json: any of them alone makes the layout busy."""
    before = made.digests()

    def sleep(_seconds: float) -> None:
        assert made.digests() < before
        made.written_to(sign)

    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    assert gc(made, settle=1).status == "busy"
    assert made.digests() >= before
    assert not list(made.path.glob(".cachekit-gc*"))


def test_an_index_that_changes_before_it_is_rewritten(
    made: MadeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build names after the plan was made is not lost: index.json stays as the build wrote it."""
    made.cache("second", [content(5)])
    before = made.digests()
    planned = planning.plan_collection

    def plan(*args: Any, **options: Any) -> CollectPlan:
        found = planned(*args, **options)
        made.name("third", made.references[0])
        return found

    monkeypatch.setattr("cachekit.oci.collect.plan_collection", plan)
    report = gc(made, keep_tags=1)
    assert (report.status, report.references, report.removed) == ("busy", [], [])
    names = [one["annotations"].popitem()[1] for one in made.references]
    assert names == ["latest", "second", "third"]
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 3
    assert made.digests() == before


@requires("fuse")
def test_an_index_that_does_not_reach_the_disk(tmp_path: Path) -> None:
    """A new index.json that cannot be made durable does not take the old one's place, and no blob goes."""
    with flaky(tmp_path / "backing") as disk:
        made = MadeLayout(disk.mount / "layout")
        for name in ("first", "second"):
            made.cache(name, [content(len(name), 5000)])
        index, before = (made.path / "index.json").read_bytes(), made.digests()
        disk.set_fault("fsync", errno=errno.EIO)
        with pytest.raises(SourceUnreadable):
            gc(made, keep_tags=1)
        assert (made.path / "index.json").read_bytes() == index
        assert made.digests() == before
        disk.clear()
        assert gc(made, keep_tags=1).status == "done"
        assert len(made.digests()) == 3
        assert not list(made.path.glob("*cachekit*"))


@requires("fuse")
@pytest.mark.parametrize("there", [False, True])
def test_blobs_come_back_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """Where there are no hard links a blob that is named by now comes back by renaming, if no build wrote it anew."""
    with flaky(tmp_path / "backing") as disk:
        disk.set_fault("link", errno=errno.EPERM)
        made = MadeLayout(disk.mount / "layout")
        made.cache("latest", [content(0)])
        orphan = made.cache("other", [content(50)])
        made.references.pop()
        made.write_index()
        before = made.digests()
        written: list[int] = []

        def sleep(_seconds: float) -> None:
            assert made.digests() < before
            made.name("other", orphan)
            if there:
                made.blob(content(50))
                written.append(made.file(made.blob(content(50))).stat().st_ino)

        with monkeypatch.context() as patch:
            patch.setattr("cachekit.oci.collect.time.sleep", sleep)
            assert gc(made, settle=1).restored == 3
        assert made.digests() == before
        assert verify_layout(str(made.path)).ok
        if there:
            assert [made.file(made.blob(content(50))).stat().st_ino] == written
        assert not list(made.path.glob("*cachekit*"))


@pytest.mark.parametrize(("grace", "age", "busy"), [(0, 30, True), (600, 300, True), (600, 700, False)])
def test_who_writes_still(made: MadeLayout, grace: float, age: float, *, busy: bool) -> None:
    """An unfinished blob that grew within a minute, or within the grace time, has a writer: all stays."""
    before = made.digests()
    unfinished = made.ingest(10, age)
    assert gc(made, grace=grace).status == ("busy" if busy else "done")
    assert unfinished.exists() is busy
    assert (made.digests() == before) is busy


@pytest.mark.parametrize("inside", [False, True])
def test_what_may_lead_to_more_is_left_alone(made: MadeLayout, *, inside: bool) -> None:
    """What index.json names with a media type that is not known may need any blob: nothing goes, and it is told."""
    kind = "application/vnd.oci.artifact.manifest.v1+json"
    row = made.document({"blobs": [made.blob(content(50))]}, kind)
    if inside:
        row = made.document({"manifests": [row]}, INDEX)
    made.name("artifact", row)
    before = made.digests()
    with pytest.raises(Unsupported) as caught:
        gc(made, grace=0)
    assert kind in str(caught.value)
    assert made.digests() == before
    assert verify_layout(str(made.path)).ok


@pytest.mark.parametrize("first", [LAYER, MANIFEST])
def test_a_manifest_that_is_called_a_layer_besides(tmp_path: Path, first: str) -> None:
    """One reference that takes a manifest for a layer does not hide from another what the manifest leads to."""
    layout = MadeLayout(tmp_path / "layout")
    manifest = layout.cache("latest", [content(1)])
    other = {LAYER: MANIFEST, MANIFEST: LAYER}[first]
    for number in range(2):  # beside each other in index.json, then in one index
        rows = [manifest | {"mediaType": first}, manifest | {"mediaType": other}]
        layout.references = rows if not number else [layout.document({"manifests": rows}, INDEX)]
        layout.write_index()
        gc(layout, grace=0)
        assert verify_layout(str(layout.path)).blobs == 3 + number
        assert len(layout.digests()) == 3 + number
    file = layout.file(manifest)
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(Damaged):
        gc(layout, grace=0)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_keep_tags(made: MadeLayout, keep: int) -> None:
    """--keep-tags keeps the references that were exported last."""
    for number in range(2):
        made.cache(f"branch-{number}", [content(0), content(60 + number, 3000)])
    report = gc(made, keep_tags=keep)
    names = [
        one["annotations"].popitem()[1]
        for one in json.loads((made.path / "index.json").read_text())["manifests"]
    ]
    assert names == ["latest", "branch-0", "branch-1"][-keep:]
    assert len(report.references) == max(0, 3 - keep)
    assert made.digests() == reachable(made)
    assert verify_layout(str(made.path)).ok


def test_max_size(made: MadeLayout) -> None:
    """--max-size drops the oldest references until the rest fits; the last one stays, and what is too much is told."""
    for number in range(3):
        made.cache(f"branch-{number}", [content(60 + number, 30_000)])
    report = gc(made, max_size=65_000)
    assert len(report.references) == 2
    assert report.remaining <= 65_000
    assert report.short_by == 0
    assert sum(path.stat().st_size for path in made.path.glob("blobs/sha256/*")) == report.remaining
    report = gc(made, max_size=1000)
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 1
    assert report.short_by > 0
    assert verify_layout(str(made.path)).ok


def test_a_damaged_layout_is_left_alone(made: MadeLayout) -> None:
    """Where a manifest is damaged nobody knows what leads where, so nothing goes."""
    manifest = made.file(made.references[0])
    data = manifest.read_bytes()
    before = made.digests()
    for bad in (data[:-1], b"x" * len(data)):
        manifest.write_bytes(bad)
        with pytest.raises(Damaged):
            gc(made)
        assert made.digests() == before
    manifest.unlink()
    with pytest.raises(Damaged):
        gc(made)
    assert made.digests() | {made.references[0]["digest"]} == before


def test_a_manifest_that_is_still_json_but_not_itself(made: MadeLayout) -> None:
    """A manifest that names another blob than it did is damaged: what it led to before does not go."""
    manifest = made.file(made.references[0])
    document = json.loads(manifest.read_bytes())
    layer = document["layers"][0]["digest"]
    other = layer[:-1] + ("0" if layer[-1] != "0" else "1")
    manifest.write_bytes(manifest.read_bytes().replace(layer.encode(), other.encode()))
    before = made.digests()
    with pytest.raises(Damaged):
        gc(made, grace=0)
    assert made.digests() == before


@pytest.mark.parametrize("damage", ["index", "manifest"])
def test_a_killed_collection_and_damage_after_it(cli: Cli, damage: str) -> None:
    """What a killed collection left aside is not removed while nobody can say what leads to it."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.cache("latest", [content(0)])
    lost = layout.blob(content(9))
    assert die_at("gc.aside", lambda: gc(layout, grace=0)) == -signal.SIGKILL
    assert lost["digest"] not in layout.digests()
    index = layout.path / "index.json"
    if damage == "index":
        os.truncate(index, 20)
    else:
        layout.file(layout.references[0]).write_bytes(b"{")
    with pytest.raises(Damaged):
        gc(layout, grace=0)
    assert lost["digest"] in layout.digests()


def test_damage_of_what_nothing_needs_is_no_reason(made: MadeLayout) -> None:
    """A damaged blob that nothing leads to is removed as others are."""
    needed = reachable(made)
    for digest in made.digests() - needed:
        os.truncate(made.path / "blobs" / digest.replace(":", "/"), 1)
    gc(made, grace=0)
    assert made.digests() == needed


@pytest.mark.parametrize(
    "step", ["save.temp-created", "save.temp-locked", "gc.index-written", "gc.aside", "gc.removed"]
)
def test_a_kill_at_each_step(cli: Cli, step: str) -> None:
    """Killed at any step, the layout is whole, and the next collection ends the work."""
    layout = MadeLayout(cli.cwd / "cache")
    for number in range(3):
        layout.cache(f"b{number}", [content(number, 4000)])
    layout.blob(content(9))
    assert die_at(step, lambda: gc(layout, keep_tags=1)) == -signal.SIGKILL
    assert verify_layout(str(layout.path)).ok
    cli("oci", "gc", "cache", "--keep-tags=1", "--settle=0s").expect(0)
    assert verify_layout(str(layout.path)).ok
    assert layout.digests() == reachable(layout)
    assert sorted(path.name for path in layout.path.iterdir()) == [
        ".cachekit-locks",
        "blobs",
        "index.json",
        "ingest",
        "oci-layout",
    ]


def test_the_command(cli: Cli) -> None:
    """Text for people, JSON with every line, exit 7 if the last reference alone is too large."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.cache("latest", [content(1)])
    layout.cache("latest", [content(2, 3000)])
    assert "would free" in cli("oci", "gc", "cache", "--dry-run").expect(0).stderr
    report = cli("oci", "gc", "cache", "--settle=0s", "--json").expect(0).json()
    assert report["status"] == "done"
    assert len(report["removed"]) == 3
    done = cli("oci", "gc", "cache", "--max-size=1k", "--settle=0s").expect(7)
    assert "the last reference alone" in done.stderr
    cli("oci", "gc", "nowhere").expect(8)


def test_it_waits_for_a_build_under_the_lock(cli: Cli) -> None:
    """While a command runs under oci lock nothing is collected; who waits too long is told who holds it (6)."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.cache("latest", [content(1)])
    layout.blob(content(2))
    with cli.start("oci", "lock", "cache", "--", "sh", "-c", "touch begun; sleep 60") as build:
        wait_until((cli.cwd / "begun").exists, "the build runs")
        done = cli("oci", "gc", "cache", "--lock-timeout=0").expect(6)
        assert f"pid {build.pid}" in done.stderr
        assert len(layout.digests()) == 4
        build.send(signal.SIGTERM)
        build.wait()
    cli("oci", "gc", "cache", "--settle=0s").expect(0)
    assert len(layout.digests()) == 3


def test_a_lock_makes_the_directory_and_passes_the_code_on(cli: Cli) -> None:
    """Oci lock makes a directory that is missing, runs the command under the lock, and ends with its code."""
    cli("oci", "lock", "new", "--", "sh", "-c", "test -d new || exit 1; exit 9").expect(9)
    cli("oci", "lock", "new", "--", "no-such-command").expect(127)
    with cli.start("oci", "lock", "new", "--", "sh", "-c", "touch begun; sleep 60") as first:
        wait_until((cli.cwd / "begun").exists, "the first runs")
        os.symlink("new", cli.cwd / "link")
        cli("oci", "lock", "link", "--timeout=0", "--", "true").expect(122)
        cli("lock", "run", "oci", "--dir", "new", "--timeout=0", "--", "true").expect(122)
        first.send(signal.SIGTERM)
        first.wait()


def test_buildkits_lock_is_respected(made: MadeLayout) -> None:
    """index.json is only rewritten under BuildKit's own lock, and read only while nobody writes it."""
    import fcntl

    lock = os.open(made.path / "index.json.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made.cache("second", [content(5)])
    ended = threading.Event()

    def run() -> None:
        gc(made, keep_tags=1)
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    assert not ended.is_set()
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 2
    os.unlink(made.path / "index.json.lock")
    os.close(lock)
    thread.join(20)
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 1
    assert not (made.path / "index.json.lock").exists()
