"""What `oci verify` finds: each damage of a layout, and nothing in a whole one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachekit.errors import NothingMatched
from cachekit.oci.graph import Graph, walk
from cachekit.oci.verify import BlobFault, LayoutReport, verify_layout
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.layouts import CONFIG, INDEX, MANIFEST, MadeLayout, content

LAYERS = [content(1), content(2, 200_000), content(3, 10)]


@pytest.fixture(params=["image", "cache", "old-cache"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> MadeLayout:
    """A whole layout: an image, or a build cache of either form."""
    layout = MadeLayout(tmp_path / "layout")
    if request.param == "image":
        layout.image("app", LAYERS)
    else:
        layout.cache("latest", LAYERS, old=request.param == "old-cache")
    return layout


def faults(report: LayoutReport) -> str:
    """Return all faults as one text."""
    return "\n".join(map(str, report.faults))


def test_a_whole_layout(made: MadeLayout) -> None:
    """A whole layout is ok, what it holds is counted, and nothing in it changes."""
    before = sorted(path.relative_to(made.path) for path in made.path.rglob("*"))
    report = verify_layout(str(made.path))
    assert report.ok
    assert report.faults == []
    assert report.blobs == 5
    assert report.bytes == sum(file.stat().st_size for file in (made.path / "blobs/sha256").iterdir())
    assert report.unreferenced == []
    assert report.kind == (
        "oci" if made.references[0]["annotations"].popitem()[1] == "app" else "buildkit-cache"
    )
    assert sorted(path.relative_to(made.path) for path in made.path.rglob("*")) == before


def flip(path: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Cut the last byte."""
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, "bytes than its digest says|not JSON|agree"),
        (cut, "another length"),
        (lambda path: os.truncate(path, 0), "another length"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped", "cut", "emptied", "missing"],
)
def test_damage_of_any_blob(
    made: MadeLayout, number: int, damage: Callable[[Path], object], says: str
) -> None:
    """A blob of any kind that is flipped, cut, emptied or gone is named, with the reference that needs it."""
    blob = sorted((made.path / "blobs" / "sha256").iterdir())[number]
    damage(blob)
    report = verify_layout(str(made.path))
    assert not report.ok
    assert f"sha256:{blob.name}"[:19] in faults(report)
    assert any(word in faults(report) for word in says.split("|"))
    assert report.references[0]["ok"] is False


def test_quick_looks_at_sizes_only(made: MadeLayout) -> None:
    """--quick finds what is missing or cut, and does not read contents."""
    last = max(made.path.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    flip(last)
    assert verify_layout(str(made.path), quick=True).ok
    assert not verify_layout(str(made.path)).ok
    cut(last)
    assert not verify_layout(str(made.path), quick=True).ok


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("index.json", b"", "index.json"),
        ("index.json", b'{"schemaVersion":2,"manif', "index.json"),
        ("index.json", None, "no index.json"),
        ("oci-layout", None, "oci-layout"),
        ("oci-layout", b"{", "oci-layout"),
        ("oci-layout", b"[]", "is damaged"),
        ("oci-layout", b"[" * 200_000, "is damaged"),
        ("oci-layout", b"{}", "not known"),
        ("oci-layout", b'{"imageLayoutVersion":1}', "not known"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "not known"),
    ],
)
def test_the_two_fixed_files(made: MadeLayout, name: str, data: bytes | None, says: str) -> None:
    """index.json and oci-layout must be there and be what they are."""
    (made.path / name).unlink()
    if data is not None:
        (made.path / name).write_bytes(data)
    report = verify_layout(str(made.path))
    assert not report.ok
    assert says in faults(report)


def test_media_types_must_agree(tmp_path: Path) -> None:
    """A manifest that says of itself another media type than the one that it is named by is a fault."""
    layout = MadeLayout(tmp_path / "layout")
    manifest = {"mediaType": INDEX, "config": layout.blob(b"{}", CONFIG), "layers": []}
    layout.name("a", layout.document(manifest, MANIFEST))
    assert "says that it is" in faults(verify_layout(str(layout.path)))


def test_what_nothing_needs_is_listed(made: MadeLayout) -> None:
    """Unreferenced blobs and unfinished ones are listed with their sizes, and are no faults."""
    orphan = made.blob(content(9, 777))
    made.ingest(4000, 10)
    (made.path / "blobs" / "sha256" / "README").write_text("x")
    report = verify_layout(str(made.path))
    assert report.ok
    assert report.unreferenced == [(orphan["digest"], 777)]
    assert [size for _, size in report.ingest] == [4000]
    assert report.odd == ["blobs/sha256/README"]


def test_a_link_is_no_blob(made: MadeLayout, tmp_path: Path) -> None:
    """Links inside are not followed: a blob behind one is missing."""
    blob = min(made.path.glob("blobs/sha256/*"))
    shutil.move(blob, tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert "is missing" in faults(verify_layout(str(made.path)))


def test_a_fifo_does_not_hang(made: MadeLayout) -> None:
    """A fifo in the place of a blob or of index.json is a fault, and nobody waits for its writer."""
    blob = min(made.path.glob("blobs/sha256/*"))
    blob.unlink()
    os.mkfifo(blob)
    assert not verify_layout(str(made.path)).ok
    (made.path / "index.json").unlink()
    os.mkfifo(made.path / "index.json")
    assert "no index.json" in faults(verify_layout(str(made.path)))


def test_a_build_that_ends_meanwhile(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a build puts right in the pause is no fault."""
    whole = made.references[0]
    made.name("new", {**whole, "digest": "sha256:" + "0" * 64})
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        made.name("new", whole)

    monkeypatch.setattr("cachekit.oci.verify.time.sleep", sleep)
    assert verify_layout(str(made.path)).ok
    assert len(pauses) == 1


def test_a_build_that_does_not_end(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where index.json changes while it is looked at, it is looked at again: not for ever, nor with a last pause."""
    late = {**made.references[0], "digest": "sha256:" + "0" * 64}
    made.name("new", late)
    looks: list[int] = []

    def writing(*args: Any) -> Graph:
        looks.append(len(looks))
        made.name(f"new {len(looks)}", late)
        return walk(*args)

    monkeypatch.setattr("cachekit.oci.verify.walk", writing)
    pauses: list[float] = []
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", pauses.append)
    assert not verify_layout(str(made.path)).ok
    assert 2 < len(looks) < 20
    assert len(pauses) == len(looks) - 1


def test_damage_is_looked_at_twice(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage of a layout that nobody changes is told after one pause; a whole one needs none."""
    pauses: list[float] = []
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", pauses.append)
    assert verify_layout(str(made.path)).ok
    assert pauses == []
    flip(min(made.path.glob("blobs/sha256/*")))
    assert not verify_layout(str(made.path)).ok
    assert len(pauses) == 1


def test_staging_is_looked_at_once(made: MadeLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody else writes there is no pause: whole or damaged, a layout in staging is looked at once."""
    pauses: list[float] = []
    monkeypatch.setattr("cachekit.oci.verify.time.sleep", pauses.append)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert verify_layout(made.path.name, within=fd).ok
        flip(min(made.path.glob("blobs/sha256/*")))
        assert not verify_layout(made.path.name, within=fd).ok
        assert pauses == []
        (tmp_path / "link").symlink_to(made.path)
        report = verify_layout("link", within=fd)
        assert (report.ok, report.recognised) == (False, False)
        assert "no directory" in faults(report)
    finally:
        os.close(fd)


def test_how_a_fault_reads() -> None:
    """It begins with the blob unless the problem names it, and ends with who needs it, if anybody does."""
    digest = "sha256:" + "a" * 64
    short = "sha256:" + "a" * 12
    assert str(BlobFault(digest, "is missing", ["x", "y"], "it fails")) == (
        f"{short} is missing (needed by x, y: it fails)"
    )
    assert str(BlobFault(digest, f"the index {short} is cut")) == f"the index {short} is cut"
    assert str(BlobFault("", "there is none")) == "there is none"
    many = BlobFault(digest, "is missing", [str(number) for number in range(1000)], "it fails")
    assert str(many).endswith(", 18, 19 and 980 more: it fails)")


def test_what_need_not_be_here(tmp_path: Path) -> None:
    """A layer that lies elsewhere, and the image that something is attached to, may be missing; not if damaged."""
    layout = MadeLayout(tmp_path / "layout")
    layer = layout.blob(content(1), urls=["https://example.com/x"])
    subject = layout.document({"config": layout.blob(b"{}", CONFIG), "layers": []}, MANIFEST)
    manifest = {"config": layout.blob(b"{}", CONFIG), "layers": [layer], "subject": subject}
    layout.name("a", layout.document(manifest, MANIFEST))
    for one in (layer, subject):
        layout.file(one).unlink()
        assert verify_layout(str(layout.path)).ok
        layout.file(one).write_bytes(bytes(one["size"]))
        assert not verify_layout(str(layout.path)).ok
        layout.file(one).unlink()


def test_no_such_directory(tmp_path: Path) -> None:
    """A directory that is not there is said to be none."""
    with pytest.raises(NothingMatched):
        verify_layout(str(tmp_path / "nowhere"))


def test_several_references_share_blobs(tmp_path: Path) -> None:
    """A fault names every reference that needs the blob, and only those."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("one", [content(1), content(2)], b'{"a":1}')
    layout.image("two", [content(1)], b'{"a":2}')
    flip(layout.file(layout.blob(content(1))))
    report = verify_layout(str(layout.path))
    assert report.faults[0].names == ["one", "two"]
    flip(layout.file(layout.blob(content(2))))
    named = {fault.digest: fault.names for fault in verify_layout(str(layout.path)).faults}
    assert sorted(map(tuple, named.values())) == [("one",), ("one", "two")]


def test_the_command(cli: Cli) -> None:
    """Exit 0 and a line for a whole layout, 4 with every fault for a damaged one, 8 for none; JSON has it all."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.cache("latest", LAYERS)
    assert "latest, 5 blobs" in cli("oci", "verify", "cache").expect(0).stderr
    file = layout.file(layout.blob(LAYERS[1]))
    flip(file)
    done = cli("oci", "verify", "cache").expect(4)
    assert "a build that needs this layer fails" in done.stderr
    report = cli("oci", "verify", "cache", "--json").expect(4).json()
    assert report["ok"] is False
    assert report["faults"][0]["digest"] == f"sha256:{file.name}"
    cli("oci", "verify", "nowhere").expect(8)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([MANIFEST, INDEX, "sha256:" + "0" * 64]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["manifests", "layers", "config", "digest", "size", "mediaType", "annotations", "urls"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=_JSON, document=_JSON)
def test_hostile_documents(index: Any, document: Any) -> None:
    """Whatever the documents hold, the walk ends, raises nothing, and calls no layout of nonsense whole."""
    graph = walk(json.dumps(index).encode(), lambda digest, size: json.dumps(document).encode())
    if not (isinstance(index, dict) and isinstance(index.get("manifests"), list)):
        assert graph.faults
    for digest in graph.blobs:
        assert graph.needed_by(digest)


def test_a_document_that_leads_to_itself(tmp_path: Path) -> None:
    """An index inside an index inside an index ... comes to an end as a fault."""
    layout = MadeLayout(tmp_path / "layout")
    inner = layout.blob(b"{}", MANIFEST)
    for _ in range(20):
        inner = layout.document({"mediaType": INDEX, "manifests": [inner]}, INDEX)
    layout.name("deep", inner)
    assert "too many levels" in faults(verify_layout(str(layout.path)))


@requires("root")
@pytest.mark.parametrize("command", [["verify"], ["verify", "--quick"], ["gc", "--dry-run"]])
@pytest.mark.parametrize("which", ["documents", "layers"])
def test_what_one_may_not_read(nobody_cli: Cli, command: list[str], which: str) -> None:
    """A blob that belongs to somebody else is no damage: it is told so (8), and nobody is told to remove the layout."""
    layout = MadeLayout(nobody_cli.cwd / "cache")
    manifest = layout.image("app", [content(1)])
    for path in (layout.path / "blobs/sha256").iterdir():
        path.chmod(0o600 if (path == layout.file(manifest)) == (which == "documents") else 0o644)
    expected = 0 if which == "layers" and command != ["verify"] else 8  # layers are only read to be hashed
    done = nobody_cli("oci", *command, "cache").expect(expected)
    assert ("Permission denied" in done.stderr) is bool(expected)
    assert "remove it" not in done.stderr
