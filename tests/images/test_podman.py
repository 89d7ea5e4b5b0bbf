"""Images saved from and loaded into a real Podman, as its own users meet it: its names, its socket, its command."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from cachekit.engine.address import Address
from cachekit.engine.client import Engine
from cachekit.errors import NothingMatched
from cachekit.images.load import ImageLoadReport, ImageLoadRequest, load_images
from cachekit.images.save import ImageSaveReport, ImageSaveRequest, save_images
from tests.support.capabilities import requires
from tests.support.images import MimicEngine, image_archive, layer, made_image
from tests.support.in_process import Here
from tests.support.podman import PodmanHost
from tests.support.surgery import anatomy, flip

pytestmark = [requires("podman"), pytest.mark.xdist_group("podman")]

MIB = 1 << 20
SHARED = layer({"shared": random.Random(1).randbytes(9 * MIB)})  # more than a frame
ONE = made_image("team/one:1", layers=[SHARED, layer({"own": b"one"})])
TWO = made_image("two:2", layers=[SHARED], command="/bin/two")


@pytest.fixture
def host(running_podman: PodmanHost) -> PodmanHost:
    """A Podman with two images that share a layer."""
    running_podman.empty()
    running_podman.load(image_archive([ONE, TWO], "legacy"))
    return running_podman


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


def save(host: PodmanHost, store: Path, *names: str, key: str = "k-1") -> ImageSaveReport:
    """Save images."""
    return save_images(ImageSaveRequest(key, list(names), str(store), engine=lambda: host.client))


def load(host: PodmanHost, store: Path, key: str = "k-1") -> ImageLoadReport:
    """Load images."""
    return load_images(ImageLoadRequest(key, str(store), engine=lambda: host.client))


def ids(host: PodmanHost) -> dict[str, str]:
    """Return all names, and the id that each stands for."""
    return {name: image.id for image in host.client.images() for name in image.tags}


def entry_of(store: Path) -> Path:
    """Return the only entry."""
    (path,) = store.glob("v1/default/entries/*")
    return path


LOADED = {"localhost/team/one:1": ONE.id, "localhost/two:2": TWO.id}


def test_names_keep_podmans_prefix(host: PodmanHost, store: Path) -> None:
    """Short names are found under localhost/, saved and loaded in full, with the ids that Podman itself shows."""
    assert ids(host) == LOADED
    report = save(host, store, "team/one:1", "localhost/two:2", "two:2")
    assert [(one["names"], one["id"]) for one in report.images] == [
        ([name], identity) for name, identity in LOADED.items()
    ]
    host.empty()
    loaded = load(host, store)
    assert [one["done"] for one in loaded.images] == ["loaded", "loaded"]
    assert ids(host) == LOADED
    assert host.snapshot()["copies"] == []


def test_a_shared_layer_is_stored_once(host: PodmanHost, store: Path) -> None:
    """Two images with one layer take the room of one; the next entry copies that layer instead of packing it."""
    first = save(host, store, "team/one:1", "two:2")
    assert 9 * MIB < first.archive_bytes < 10 * MIB
    new = made_image("two:3", layers=[SHARED, layer({"new": b"new"})])
    host.load(image_archive([new], "legacy"))
    second = save(host, store, "two:3", key="k-2")
    assert second.base == "k-1"
    assert second.copied_bytes > 8 * MIB


def test_podman_load_reads_the_decompressed_entry(host: PodmanHost, store: Path) -> None:
    """`zstd -dc FILE | podman load` gives the same names and ids."""
    save(host, store, "team/one:1", "two:2")
    host.empty()
    entry = entry_of(store)
    tar = subprocess.run(["zstd", "-dcq", entry], capture_output=True, check=True).stdout
    host.docker("load", stdin=tar)
    assert ids(host) == LOADED


def test_what_is_there_is_not_sent_again(host: PodmanHost, store: Path) -> None:
    """A second load sends nothing; a name that is gone is given back."""
    save(host, store, "team/one:1", "two:2")
    before = host.snapshot()
    assert {one["done"] for one in load(host, store).images} == {"present"}
    assert host.snapshot() == before
    host.client.call("POST", "/images/two:2/tag", {"repo": "localhost/kept", "tag": "1"})
    host.client.call("DELETE", "/images/localhost/two:2", {"force": 0})
    assert {one["done"] for one in load(host, store).images} == {"present", "named"}
    assert ids(host) == LOADED | {"localhost/kept:1": TWO.id}


@pytest.mark.parametrize("taken", [True, False], ids=["taken", "free"])
def test_a_short_name_is_given_back_as_a_load_gives_it(
    host: PodmanHost, mimic: MimicEngine, store: Path, *, taken: bool
) -> None:
    """An entry of Docker has short names: Podman gets them under localhost/, also where another image has it by now."""
    image = made_image("app:1", layers=[SHARED], command="/bin/app")
    mimic.add(image)
    save_images(ImageSaveRequest("k-1", ["app:1"], str(store), engine=mimic.connect))
    host.load(image_archive([image], "legacy"))
    host.client.tag_image("localhost/app:1", "localhost/kept:1")
    host.client.remove_image("localhost/app:1")
    if taken:
        host.load(image_archive([made_image("app:1", layers=[SHARED], command="/bin/newer")], "legacy"))
    report = load(host, store)
    assert [(one["names"], one["done"]) for one in report.images] == [(["app:1"], "named")]
    assert ids(host) == LOADED | dict.fromkeys(("localhost/app:1", "localhost/kept:1"), image.id)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_entry_is_refused(host: PodmanHost, store: Path, damage: str) -> None:
    """A flipped or cut entry is refused, and Podman's images, layers and copies are as they were."""
    save(host, store, "team/one:1", "two:2")
    host.empty()
    host.load(image_archive([made_image("other:1", layers=[layer({"a": b"a"})])], "legacy"))
    before = host.snapshot()
    assert list(ids(host)) == ["localhost/other:1"]
    entry = entry_of(store)
    whole, at = entry.read_bytes(), anatomy(entry).frames[1] + 50
    entry.write_bytes(flip(whole, at) if damage == "flipped" else whole[:at])
    report = load(host, store)
    assert report.status == "refused"
    assert report.quarantined == [entry.name]
    assert host.snapshot() == before


def test_an_unknown_image(host: PodmanHost, store: Path) -> None:
    """An image that Podman has not is told by name, and the hint knows Podman."""
    with pytest.raises(NothingMatched, match="'absent:1'") as caught:
        save(host, store, "absent:1")
    assert "podman" in (caught.value.hint or "")


def test_the_command_finds_podman(here: Here, host: PodmanHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both commands find Podman by $CONTAINER_HOST where no Docker answers."""
    nowhere = Address(f"{here.root}/docker.sock")
    monkeypatch.setattr("cachekit.engine.client.docker_places", lambda _, **__: [nowhere])
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{host.socket}")
    here("image", "save", "--key", "k", "two:2").expect()
    host.empty()
    here("image", "load", "--key", "k").expect()
    assert ids(host) == {"localhost/two:2": TWO.id}
    assert Engine.connect(5, podman=True).info().podman
