"""How `oci verify` reads blobs: each algorithm, each once, and what cannot be read is a fault of that blob."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from cachekit.oci.layout import Layout
from cachekit.oci.verify import verify_layout
from tests.support.layouts import CONFIG, MANIFEST, MadeLayout, content

_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """A layout with one image of two layers."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("app", [content(1), content(2)])
    return layout


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_both_algorithms(tmp_path: Path, threads: int) -> None:
    """A blob that is named by its sha512 is hashed with that, by however many threads."""
    layout = MadeLayout(tmp_path / "layout")
    data = content(1)
    (layout.path / "blobs/sha512").mkdir()
    file = layout.path / "blobs/sha512" / hashlib.sha512(data).hexdigest()
    file.write_bytes(data)
    layer = {"mediaType": "x", "digest": f"sha512:{file.name}", "size": len(data)}
    manifest = {"config": layout.blob(b"{}", CONFIG), "layers": [layer]}
    layout.name("app", layout.document(manifest, MANIFEST))
    assert verify_layout(str(layout.path), threads=threads).ok
    file.write_bytes(data[:-1] + b"x")
    (fault,) = verify_layout(str(layout.path), threads=threads).faults
    assert fault.digest == layer["digest"]
    assert fault.problem == "has other bytes than its digest says (layer)"


def test_progress(made: MadeLayout) -> None:
    """Progress goes up to all that is hashed; with quick nothing is."""
    told: list[tuple[int, int]] = []
    report = verify_layout(str(made.path), progress=lambda *now: told.append(now))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert len(told) == 4
    assert told[-1] == (report.bytes, report.bytes)
    assert {total for _, total in told} == {report.bytes}
    told.clear()
    verify_layout(str(made.path), quick=True, progress=lambda *now: told.append(now))
    assert told == []


def test_the_second_look_hashes_what_is_not_known(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was right and did not change since is not read again; what changed in the pause is."""
    bad, good = made.file(made.blob(content(1))), made.file(made.blob(content(2)))
    bad.write_bytes(bytes(1000))
    totals: list[int] = []
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", lambda _: None)
    verify_layout(str(made.path), progress=lambda _, total: totals.append(total))
    assert sorted(set(totals)) == [1000, sum(map(len, (path.read_bytes() for path in good.parent.iterdir())))]
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", lambda _: good.write_bytes(bytes(1000)))
    report = verify_layout(str(made.path))
    assert {fault.digest for fault in report.faults} == {f"sha256:{bad.name}", f"sha256:{good.name}"}


def test_a_blob_that_is_replaced_between_two_looks(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file in the place of one that was right is read, also if it is as long and as old."""
    bad, good = made.file(made.blob(content(1))), made.file(made.blob(content(2)))
    bad.write_bytes(bytes(1000))

    def replaced(_: float) -> None:
        new, then = made.path / "new", good.stat().st_mtime_ns
        new.write_bytes(bytes(1000))
        os.utime(new, ns=(then, then))
        new.rename(good)

    monkeypatch.setattr("cachekit.oci.verify.time.sleep", replaced)
    report = verify_layout(str(made.path))
    assert {fault.digest for fault in report.faults} == {f"sha256:{bad.name}", f"sha256:{good.name}"}


@_proc
@pytest.mark.parametrize("how", ["gone", "pipe", "broken"])
def test_a_blob_that_cannot_be_read(made: MadeLayout, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A blob that goes, or is something else, before it is read, and one that the disk does not give: a fault each."""
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", lambda _: None)
    layer = made.blob(content(1))
    opened = Layout.open_blob
    pipes: list[int] = []

    def open_blob(layout: Layout, digest: str) -> int:
        if digest != layer["digest"]:
            return opened(layout, digest)
        if how == "gone":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if how == "pipe":
            reading, writing = os.pipe2(os.O_NONBLOCK)
            pipes.append(writing)
            return reading
        return os.open("/proc/self/mem", os.O_RDONLY)

    monkeypatch.setattr(Layout, "open_blob", open_blob)
    problem = {
        "gone": "cannot be opened: No such file or directory",
        "pipe": "is no file",
        "broken": "cannot be read: Input/output error",
    }[how]
    (fault,) = verify_layout(str(made.path)).faults
    assert (fault.digest, fault.problem) == (layer["digest"], problem)
    assert fault.names == ["app"]
    for pipe in pipes:
        os.close(pipe)


@_proc
def test_no_descriptor_is_left(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many blobs are hashed, and however they end, their files are closed."""
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", lambda _: None)
    made.file(made.blob(content(1))).write_bytes(bytes(1000))
    before = len(os.listdir("/proc/self/fd"))
    assert not verify_layout(str(made.path)).ok
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_kind_it_is(tmp_path: Path) -> None:
    """One cache among other references makes it a cache; an empty layout is whole."""
    layout = MadeLayout(tmp_path / "layout")
    report = verify_layout(str(layout.path))
    assert (report.ok, report.kind, report.recognised, report.blobs) == (True, "oci", True, 0)
    layout.image("app", [content(1)])
    layout.cache("latest", [content(2)])
    assert verify_layout(str(layout.path)).kind == "buildkit-cache"


def test_a_reference_that_is_spoiled(made: MadeLayout) -> None:
    """Only the references that a fault spoils are not ok; what is missing is told with its role and length."""
    made.image("other", [content(3)])
    made.file(made.blob(content(3))).unlink()
    report = verify_layout(str(made.path))
    assert [(one["name"], one["ok"]) for one in report.references] == [("app", True), ("other", False)]
    (fault,) = report.faults
    assert (fault.problem, fault.consequence) == (
        "is missing (layer, 1000 bytes)",
        "a build that needs this layer fails",
    )
