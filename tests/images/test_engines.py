"""Images saved from real engines and loaded into real engines, of three versions and both image stores; and Podman."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path
from typing import Literal

import pytest

from cachekit.engine.objects import ImageDetails
from cachekit.errors import EngineFailed, NoSpace
from cachekit.images import load as loading
from cachekit.images import save as saving
from cachekit.images.load import ImageLoadReport, ImageLoadRequest, load_images
from cachekit.images.room import Need
from cachekit.images.save import ImageSaveReport, ImageSaveRequest, save_images
from tests.images.test_load import REGIONS
from tests.images.test_save import CUTS, cuts, entries, member_offsets
from tests.support import filesystems
from tests.support.capabilities import need, requires
from tests.support.docker import ENGINES, SYSTEM, DockerHost, Release, docker_engine
from tests.support.engines import IMAGE_ENGINES, Engines, release_id, started
from tests.support.images import MimicEngine, Part, read_archive, tar_of_parts
from tests.support.podman import PODMAN
from tests.support.surgery import anatomy, flip

pytestmark = [requires("docker"), pytest.mark.xdist_group("engines")]

MIB = 1 << 20
NAMES = ("app/one:1", "two:2")
Source = Literal["auto", "engine"]
SOURCES: tuple[Source, ...] = ("engine", "auto")
#: From the data root and from the engine; Podman's data root is not read.
WAYS: list[tuple[Release, Source]] = [
    *((release, source) for release in ENGINES for source in SOURCES),
    (PODMAN, "auto"),
]
every_way = pytest.mark.parametrize(
    ("any_image_engine", "source"),
    WAYS,
    ids=[f"{release.name}-{source}" for release, source in WAYS],
    indirect=["any_image_engine"],
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


def fill(host: DockerHost) -> dict[str, ImageDetails]:
    """Give an engine two images that share a layer; return what it says of them."""
    base = tmp_build(host, "two:2", {}, base=host.image("base:1", busybox=True))
    noise = random.Random(7).randbytes(9 * MIB)  # more than a frame, also where layers are compressed
    tmp_build(host, "app/one:1", {"noise": noise}, base=base)
    return described(host)


def tmp_build(host: DockerHost, name: str, files: dict[str, bytes], base: str) -> str:
    """Build an image on top of another with the classic builder, which every engine has."""
    lines = [f"FROM {base}", *(f"COPY {file} /{file}" for file in files), 'CMD ["/bin/busybox", "true"]']
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, content in (files | {"Dockerfile": "\n".join(lines).encode()}).items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    host.client.call(
        "POST", "/build", {"t": name}, body=context.getvalue(), kind="application/x-tar", timeout=60
    )
    return name


def described(host: DockerHost, *names: str) -> dict[str, ImageDetails]:
    """Return what an engine says of its images."""
    found = {name: host.client.describe_image(name) for name in names or NAMES}
    return {name: details for name, details in found.items() if details is not None}


def save(
    host: DockerHost, store: Path, *names: str, key: str = "k-1", source: Source = "auto"
) -> ImageSaveReport:
    """Save images."""
    request = ImageSaveRequest(
        key, list(names or NAMES), str(store), engine=lambda: host.client, source=source
    )
    return save_images(request)


def load(host: DockerHost, store: Path, key: str = "k-1") -> ImageLoadReport:
    """Load images."""
    return load_images(ImageLoadRequest(key, str(store), engine=lambda: host.client))


def entry_of(store: Path) -> Path:
    """Return the only entry."""
    (path,) = store.glob("v1/default/entries/*")
    return path


@every_way
def test_a_round_trip(any_image_engine: DockerHost, store: Path, source: Source) -> None:
    """What was saved comes back with its ids and names, a container can be made of it; then nothing is sent again."""
    before = fill(any_image_engine)
    report = save(any_image_engine, store, source=source)
    direct = source == "auto" and any_image_engine.release != PODMAN
    assert report.source == ("data-root" if direct else "engine")
    any_image_engine.empty()
    assert described(any_image_engine) == {}
    report_of_load = load(any_image_engine, store)
    assert report_of_load.status == "exact"
    after = described(any_image_engine)
    assert {name: one.diff_ids for name, one in after.items()} == {
        name: one.diff_ids for name, one in before.items()
    }
    assert {name: one.id for name, one in after.items()} == {name: one.id for name, one in before.items()}
    identity = any_image_engine.container("app/one:1", "made")
    assert identity
    again = load(any_image_engine, store)
    assert {one["done"] for one in again.images} == {"present"}
    any_image_engine.client.call("POST", "/images/two:2/tag", {"repo": "kept", "tag": "1"})
    any_image_engine.client.call("DELETE", "/images/two:2", {"force": 0})
    assert {one["done"] for one in load(any_image_engine, store).images} == {"present", "named"}
    assert described(any_image_engine) == {
        name: one for name, one in described(any_image_engine).items() if one.id == before[name].id
    }


@every_way
def test_docker_load_reads_the_decompressed_entry(
    any_image_engine: DockerHost, store: Path, source: Source
) -> None:
    """`zstd -dc FILE | docker load` gives the same images."""
    before = fill(any_image_engine)
    save(any_image_engine, store, source=source)
    any_image_engine.empty()
    tar = subprocess.run(["zstd", "-dcq", entry_of(store)], capture_output=True, check=True).stdout
    any_image_engine.docker("load", stdin=tar)
    assert {name: one.id for name, one in described(any_image_engine).items()} == {
        name: one.id for name, one in before.items()
    }


@pytest.mark.parametrize("source", IMAGE_ENGINES, ids=release_id)
def test_every_engine_loads_what_any_engine_saved(engine_of: Engines, store: Path, source: Release) -> None:
    """An entry of one engine is loaded by every other: the same layers under the same names."""
    origin = engine_of(source)
    before = {name: one.diff_ids for name, one in fill(origin).items()}
    save(origin, store)
    for target in IMAGE_ENGINES:
        if target == source:
            continue
        try:
            host = engine_of(target)
        except pytest.skip.Exception:
            continue
        assert load(host, store).status == "exact"
        assert {name: one.diff_ids for name, one in described(host).items()} == before


@requires("podman")
def test_an_entry_of_podman_keeps_its_names_in_docker(engine_of: Engines, store: Path) -> None:
    """What Podman calls localhost/app:1 is called that in Docker, and found by it the next time."""
    origin = engine_of(PODMAN)
    image = origin.image("app:1", content=b"content")
    save(origin, store, "app:1")
    host = engine_of(SYSTEM)
    assert load(host, store).status == "exact"
    assert described(host, "app:1", "localhost/app:1").keys() == {"localhost/app:1"}
    assert described(host, "localhost/app:1")["localhost/app:1"].id == image
    assert {one["done"] for one in load(host, store).images} == {"present"}


@every_way
def test_a_second_save_copies_what_did_not_change(
    any_image_engine: DockerHost, store: Path, source: Source
) -> None:
    """With one layer changed the others are copied from the earlier entry, whichever way they come."""
    base = any_image_engine.image("base:1", busybox=True)
    noise = random.Random(9).randbytes(12 * MIB)
    tmp_build(any_image_engine, "large:1", {"noise": noise}, base=base)
    first = save(any_image_engine, store, "large:1", source=source)
    tmp_build(any_image_engine, "large:2", {"small": b"new"}, base="large:1")
    report = save(any_image_engine, store, "large:2", key="k-2", source=source)
    if any_image_engine.release == SYSTEM and source == "engine":
        assert (
            report.copied_bytes == 0
        )  # Docker 20.10 calls a layer otherwise when it is no longer the topmost
        return
    assert report.base == "k-1"
    assert report.copied_bytes > first.archive_bytes // 2


# What the engine sends is cut


@pytest.fixture
def real_archive(any_image_engine: DockerHost) -> bytes:
    """What `docker save` of a real engine writes."""
    fill(any_image_engine)
    out = any_image_engine.directory / "saved.tar"
    any_image_engine.docker("save", "-o", out, *NAMES)
    data = out.read_bytes()
    out.unlink()
    return data


def given(mimic: MimicEngine, archive: bytes) -> list[str]:
    """Give an engine that is none the images of an archive; return their names, which Podman writes in full."""
    images = read_archive(archive)
    mimic.add(*images)
    return [name for image in images for name in image.names]


def test_cut_archives_of_real_engines(real_archive: bytes, mimic: MimicEngine, store: Path) -> None:
    """Every way in which a real archive can end too early, in order or not: nothing is published."""
    names = given(mimic, real_archive)
    mimic.plan.archive = real_archive
    lengths = cuts(real_archive, "classic")
    assert list(lengths) == CUTS
    for at in lengths.values():
        for orderly in (True, False):
            mimic.plan.ends_at, mimic.plan.breaks_at = (at, None) if orderly else (None, at)
            with pytest.raises(EngineFailed):
                save_images(ImageSaveRequest("k-1", names, str(store), engine=mimic.connect))
            assert entries(store) == []


def test_real_archives_that_lack_something(real_archive: bytes, mimic: MimicEngine, store: Path) -> None:
    """Each layer and config in turn is missing, or has one flipped bit: nothing is published."""
    names = given(mimic, real_archive)
    with tarfile.open(fileobj=io.BytesIO(real_archive)) as tar:
        rows = json.loads(content(tar, "manifest.json"))
        parts = [
            Part(m.name, content(tar, m.name) if m.isfile() else b"", m.linkname, directory=m.isdir())
            for m in tar
        ]
    needed = {path for row in rows for path in (row["Config"], *row["Layers"])}
    for number, part in enumerate(parts):
        if part.name not in needed or part.link:
            continue
        changed = Part(part.name, flip(part.content, len(part.content) // 2))
        for others in (
            parts[:number] + parts[number + 1 :],
            [*parts[:number], changed, *parts[number + 1 :]],
        ):
            mimic.plan.archive = tar_of_parts(others)
            with pytest.raises(EngineFailed):
                save_images(ImageSaveRequest("k-1", names, str(store), engine=mimic.connect))
            assert entries(store) == []
    assert len(needed) >= 4
    assert member_offsets(real_archive)


def content(tar: tarfile.TarFile, name: str) -> bytes:
    """Return the content of a member, or of what it is a link to."""
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


# The engine dies, or its disk is full


@pytest.mark.parametrize("release", IMAGE_ENGINES, ids=release_id)
def test_an_engine_killed_while_it_sends(release: Release, store: Path) -> None:
    """An engine that dies in mid-save is the reason told; nothing is published."""
    need(release.capability)
    with started(release) as host:
        base = host.image("base:1", busybox=True)
        tmp_build(host, "large:1", {"noise": random.Random(4).randbytes(40 * MIB)}, base=base)

        killed: list[int] = []

        def kill(done: int, total: int, members: int) -> None:
            if not killed and done > 4 * MIB:
                killed.append(done)
                host.kill()

        request = ImageSaveRequest(
            "k-1", ["large:1"], str(store), engine=lambda: host.client, source="engine", progress=kill
        )
        with pytest.raises(EngineFailed) as caught:
            save_images(request)
        assert killed
        assert caught.value.exit_code == 9
        assert entries(store) == []


def room_in(path: Path) -> int:
    """Return how many bytes are free."""
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def no_check(needs: list[Need], *, min_free: int = 0) -> None:
    """Let a disk that is too small go unnoticed beforehand."""


@requires("ext4")
@pytest.mark.parametrize("release", IMAGE_ENGINES, ids=release_id)
def test_an_engine_whose_disk_is_full(
    release: Release, engine_of: Engines, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that does not fit is refused beforehand; where that is not seen, the engine's failure is told."""
    need(release.capability)
    origin = engine_of(SYSTEM)
    base = origin.image("base:1", busybox=True)
    tmp_build(origin, "large:1", {"noise": random.Random(5).randbytes(60 * MIB)}, base=base)
    save(origin, store, "large:1")
    with filesystems.ext4(48 * MIB) as small, started(release, small.path) as host:
        before = host.snapshot()["images"]
        with pytest.raises(NoSpace, match="engine's image"):
            load(host, store)
        monkeypatch.setattr(loading, "require_room", no_check)
        with pytest.raises(EngineFailed):
            load(host, store)
        assert host.snapshot()["images"] == before
        assert entry_of(store).exists()


@requires("ext4")
def test_a_classic_engine_that_has_no_room_for_its_copy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that a save makes in the data root is foreseen; if not, the engine's failure publishes nothing."""
    with filesystems.ext4(160 * MIB) as small, docker_engine(data=small.path) as host:
        base = host.image("base:1", busybox=True)
        tmp_build(host, "large:1", {"noise": random.Random(6).randbytes(40 * MIB)}, base=base)
        (small.path / "ballast").write_bytes(bytes(max(0, room_in(small.path) - 20 * MIB)))
        with pytest.raises(NoSpace, match="engine's copy"):
            save(host, store, "large:1", source="engine")
        monkeypatch.setattr(saving, "require_room", no_check)
        with pytest.raises(EngineFailed):
            save(host, store, "large:1", source="engine")
        assert entries(store) == []
        (small.path / "ballast").unlink()


# The entry is damaged


def test_a_damaged_entry_leaves_the_engine_as_it_was(any_image_engine: DockerHost, store: Path) -> None:
    """Whatever region is damaged: refused, set aside, and the engine has not one image, blob or layer more."""
    fill(any_image_engine)
    save(any_image_engine, store)
    any_image_engine.empty()
    path = entry_of(store)
    whole = path.read_bytes()
    assert len(anatomy(path).frames) >= 4
    before = any_image_engine.snapshot()
    for damage in REGIONS.values():
        path.write_bytes(whole)
        path.write_bytes(damage(whole, path))
        assert load(any_image_engine, store).status == "refused"
        assert not path.exists()
    assert any_image_engine.snapshot() == before


def test_an_entry_that_changes_while_it_is_sent(
    any_image_engine: DockerHost, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that is another one than was verified breaks the connection: the engine lists no image."""
    fill(any_image_engine)
    save(any_image_engine, store)
    any_image_engine.empty()
    path = entry_of(store)
    before = any_image_engine.snapshot()["images"]
    at = anatomy(path).frames[-2] - 10

    def damage(step: str) -> None:
        if step == "load.verified":
            data = flip(path.read_bytes(), at)
            with path.open("r+b") as file:
                file.write(data)

    monkeypatch.setattr(loading, "step", damage)
    report = load(any_image_engine, store)
    assert report.status == "refused"
    assert report.quarantined == [path.name]
    assert any_image_engine.snapshot()["images"] == before
