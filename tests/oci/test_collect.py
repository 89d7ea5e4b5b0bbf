"""What `oci gc` says and does in the corners: nothing to remove, a build in between, a leftover of others."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged, NoSpace, SourceUnreadable
from cachekit.oci import collect as collecting
from cachekit.oci.aside import Aside
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.plan import CollectPlan, plan_collection
from cachekit.oci.verify import verify_layout
from cachekit.system.publish import temporary_name
from cachekit.system.space import FreeSpace
from tests.crash.scene import die_at
from tests.support.layouts import HOUR, MANIFEST, SIGNS, MadeLayout, content


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """Two images that index.json names, and a blob that nothing leads to."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("first", [content(1)], b'{"first":1}')
    layout.image("second", [content(2)], b'{"second":2}')
    layout.blob(content(3))
    return layout


def gc(layout: MadeLayout, **options: Any) -> CollectReport:
    """Collect at once, whatever is how old."""
    return collect(CollectRequest(str(layout.path), **{"settle": 0.0, "grace": 0.0, **options}))


def everything(layout: MadeLayout) -> dict[str, bytes]:
    """Return every file of the layout."""
    return {str(path): path.read_bytes() for path in layout.path.rglob("*") if path.is_file()}


def test_a_dry_run_leaves_what_was_left(made: MadeLayout) -> None:
    """--dry-run changes nothing, not even what a killed collection left aside."""
    assert die_at("gc.aside", lambda: gc(made)) == -signal.SIGKILL
    (made.path / f".cachekit-gc1-abc.sha256-{'a' * 64}").write_text("left")
    before = everything(made)
    gc(made, dry_run=True)
    assert everything(made) == before


def test_temporary_files_of_others(made: MadeLayout) -> None:
    """A temporary file in the layout that is not of a collection stays."""
    other = made.path / temporary_name("other")
    other.touch()
    gc(made)
    assert other.exists()


def test_a_reference_without_blobs_of_its_own(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference whose blobs another needs as well leaves index.json, though no blob goes with it; nobody waits."""
    gc(made)
    made.name("again", made.references[0])
    before = made.digests()
    pauses: list[float] = []
    monkeypatch.setattr("cachekit.oci.collect.time.sleep", pauses.append)
    report = gc(made, keep_tags=2, settle=1)
    assert [(line.name, line.size, line.reason) for line in report.references] == [
        ("first", 0, "older than the last 2")
    ]
    assert (report.status, report.removed, pauses) == ("done", [], [])
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) == 2
    assert made.digests() == before


def test_busy_says_of_no_reference_that_it_went(made: MadeLayout) -> None:
    """Beside a build no reference is dropped, and none is said to be."""
    made.ingest(10, 1)
    before = everything(made)
    report = gc(made, keep_tags=1)
    assert (report.status, report.references, report.removed) == ("busy", [], [])
    assert everything(made) == before


@pytest.mark.parametrize("sign", SIGNS)
def test_a_build_while_room_is_made(made: MadeLayout, monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    """On a full disk as well each sign of a writer puts all back, and nothing is said to have gone."""
    before = made.digests()

    def sleep(_seconds: float) -> None:
        assert made.digests() < before
        made.written_to(sign)

    monkeypatch.setattr(collecting, "free_space", lambda _: FreeSpace(0, None, 4096, 1))
    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    report = gc(made, keep_tags=1)
    assert (report.status, report.references, report.removed, report.freed) == ("busy", [], [], 0)
    assert made.digests() >= before
    assert len(json.loads((made.path / "index.json").read_text())["manifests"]) >= 2
    assert not list(made.path.glob(".cachekit-gc*"))


def planned_and_then(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Do something after the plan was made."""

    def plan(*args: Any, **options: Any) -> CollectPlan:
        found = plan_collection(*args, **options)
        act()
        return found

    monkeypatch.setattr(collecting, "plan_collection", plan)


def test_a_blob_that_is_named_after_the_plan(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build names between the plan and the moving aside is put back, and not said to have been removed."""
    orphan = made.image("other", [content(4)], b'{"other":4}')
    made.references.pop()
    made.write_index()
    planned_and_then(monkeypatch, lambda: made.name("other", orphan))
    report = gc(made)
    assert (report.status, report.restored) == ("done", 3)
    assert [line.name for line in report.removed] == [made.blob(content(3))["digest"]]
    assert report.freed == 1000
    assert verify_layout(str(made.path)).ok


def test_a_blob_that_goes_after_the_plan(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else removed meanwhile is no error, and its bytes are not said to have been freed here."""
    made.blob(content(4, 500))
    planned_and_then(monkeypatch, made.file(made.blob(content(3))).unlink)
    report = gc(made)
    assert (report.status, report.freed) == ("done", 500)
    assert verify_layout(str(made.path)).ok


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_descriptor_is_left(made: MadeLayout) -> None:
    """A collection closes all that it opened."""
    made.ingest(10, HOUR)
    assert die_at("gc.aside", lambda: gc(made)) == -signal.SIGKILL
    made.ingest(11, HOUR)
    made.blob(content(4))
    before = len(os.listdir("/proc/self/fd"))
    assert len(gc(made, keep_tags=1).removed) == 5
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_left_after_busy(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a build came first, or index.json cannot be written, the directory for what goes is taken away again."""
    planned_and_then(monkeypatch, lambda: made.name("third", made.references[0]))
    assert gc(made, keep_tags=1).status == "busy"
    assert not list(made.path.glob(".cachekit-gc*"))
    monkeypatch.setattr(collecting, "plan_collection", plan_collection)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("cachekit.oci.collect.TempFile.finish", failing)
    with pytest.raises(SourceUnreadable):
        gc(made, keep_tags=1)
    assert not list(made.path.glob(".cachekit-gc*"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_to_begin_with(made: MadeLayout, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A disk that is full and a quota that is used up are both told as no space (5)."""

    def failing(_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Aside, "make", failing)
    with pytest.raises(NoSpace):
        gc(made)


def test_an_index_that_nobody_changes_is_not_written(made: MadeLayout) -> None:
    """A collection that drops no reference leaves index.json as the file that it was."""
    before = os.stat(made.path / "index.json")
    assert len(gc(made).removed) == 1
    after = os.stat(made.path / "index.json")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_a_reference_gives_back(made: MadeLayout) -> None:
    """Of each reference that goes it is told what goes with it: not what one that stays needs, nor what is missing."""
    made.image("third", [content(1), content(5, 5000)], b'{"third":3}')
    made.file(made.blob(content(2))).unlink()
    report = gc(made, max_size=0, dry_run=True)
    sizes = {line.name: line.size for line in report.references}
    first, second = (made.file(row).stat().st_size for row in made.references[:2])
    assert sizes == {"first": first + 11, "second": second + 12}
    assert {line.reason for line in report.references} == {"the layout is larger than asked for"}
    assert report.remaining == report.short_by == made.file(made.references[2]).stat().st_size + 6011
    reasons = {line.name: line.reason for line in report.removed}
    assert reasons[made.references[0]["digest"]] == "only dropped references lead to it"
    assert reasons[made.blob(content(3))["digest"]] == "nothing leads to it"
    exact = gc(made, max_size=report.remaining, dry_run=True)
    assert (len(exact.references), exact.short_by) == (2, 0)
    two = gc(made, keep_tags=2, dry_run=True).remaining
    assert [len(gc(made, max_size=size, dry_run=True).references) for size in (two, two - 1)] == [1, 2]


@pytest.mark.parametrize("age", [30, HOUR])
def test_what_a_dropped_reference_led_to_goes_though_it_is_young(made: MadeLayout, age: float) -> None:
    """What index.json named until now no build is about to name: the grace time is for what nothing leads to."""
    layer = made.blob(content(1), age=age)
    gc(made, keep_tags=1, grace=600.0)
    assert not made.file(layer).exists()


def test_the_largest_make_room(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the largest blobs go before all others: a small one may give no block back."""
    for size in (2000, 3000, 4000, 5000):
        made.blob(content(size, size))
    singles: list[list[int]] = []

    def sleep(_seconds: float) -> None:
        singles.append(sorted(path.stat().st_size for path in made.path.glob(".cachekit-gc1-*")))

    monkeypatch.setattr(collecting, "free_space", lambda _: FreeSpace(0, None, 4096, 1))
    monkeypatch.setattr("cachekit.oci.collect.time.sleep", sleep)
    assert gc(made).freed == 15_000
    assert singles == [[2000, 3000, 4000, 5000], []]
    singles.clear()
    gc(made, keep_tags=1)
    assert singles == [[]]  # nothing can go before index.json is written, so nothing is waited for


def test_an_index_that_is_missing_or_damaged(made: MadeLayout) -> None:
    """An index inside the layout leads on as a manifest does: without it nothing goes."""
    index = made.file(made.cache("old", [content(8)], old=True))
    data, before = index.read_bytes(), made.digests()
    index.write_bytes(bytes(len(data)))
    with pytest.raises(Damaged):
        gc(made)
    assert made.digests() == before
    index.unlink()
    with pytest.raises(Damaged):
        gc(made)


def test_a_subject_that_is_damaged(made: MadeLayout) -> None:
    """What a manifest is about may be missing, but if it is there and has other bytes nobody knows what it led to."""
    subject = made.image("signed", [content(6)], b'{"signed":1}')
    made.references.pop()
    signature = {"mediaType": MANIFEST, "config": made.blob(b"{}"), "layers": [], "subject": subject}
    made.name("signature", made.document(signature, MANIFEST))
    before = made.digests()
    made.file(subject).write_bytes(bytes(subject["size"]))
    with pytest.raises(Damaged):
        gc(made)
    assert made.digests() == before


def test_unfinished_blobs_without_an_index(tmp_path: Path) -> None:
    """A directory with nothing but an unfinished blob is no finished layout, so it is left alone."""
    layout = MadeLayout(tmp_path / "layout")
    left = layout.ingest(10, HOUR)
    (layout.path / "index.json").unlink()
    for dry_run in (True, False):
        with pytest.raises(Damaged):
            gc(layout, dry_run=dry_run)
        assert left.exists()


@pytest.mark.parametrize(("grace", "age"), [(0.0, 30), (600.0, 300)])
def test_a_dry_run_keeps_what_is_being_written(made: MadeLayout, grace: float, age: float) -> None:
    """--dry-run tells an unfinished blob that grew within a minute, or within the grace time, as kept."""
    unfinished = made.ingest(10, age)
    report = gc(made, grace=grace, dry_run=True)
    assert [line.name for line in report.kept] == [unfinished.name]
    assert unfinished.name not in {line.name for line in report.removed}


def test_a_manifest_that_is_no_json(made: MadeLayout) -> None:
    """A manifest that has the digest that is said, and holds no JSON, leads nobody knows where: nothing goes."""
    made.name("text", made.blob(b"no JSON", MANIFEST))
    before = made.digests()
    with pytest.raises(Damaged, match="not JSON"):
        gc(made)
    assert made.digests() == before
