"""The Docker rules of a clean against a real Podman, which $DOCKER_HOST may name: what Docker keeps, it keeps too."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekit.clean.docker.rules import carry_out, survey
from tests.engine.rules import around, clean, reasons, rule
from tests.support.capabilities import requires
from tests.support.images import image_archive, layer, made_image
from tests.support.podman import PodmanHost

pytestmark = [requires("podman"), pytest.mark.xdist_group("podman")]


@pytest.fixture
def host(running_podman: PodmanHost) -> PodmanHost:
    """A Podman with nothing in it."""
    running_podman.empty()
    return running_podman


def names(host: PodmanHost) -> set[str]:
    """Return the names of all images."""
    return {tag for image in host.client.images() for tag in image.tags}


def test_an_image_of_a_container_stays(host: PodmanHost, tmp_path: Path) -> None:
    """An image that a container references stays, however old; a free one goes with all its names."""
    host.image("used:1", busybox=True)
    host.image("free:1", "free:2", content=b"free")
    host.container("used:1", "made")
    assert survey(rule("images", older=60), around(host, tmp_path)).units == []
    found, done = clean(rule("images", older=60), around(host, tmp_path, hours=9))
    assert [set(unit.name.split(b", ")) for unit in found.units] == [
        {b"localhost/free:1", b"localhost/free:2"}
    ]
    assert reasons(found.left) == {"localhost/used:1": "referenced by container made"}
    assert (done.items, done.left, done.problem) == (1, [], "")
    assert names(host) == {"localhost/used:1"}


def test_a_container_since_the_last_look_keeps_the_image(
    host: PodmanHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Podman itself refuses what a container came to use at the last moment, and all names come back."""
    image = host.image("many:1", "many:2", "other:3", busybox=True)
    surroundings = around(host, tmp_path)
    found = survey(rule("images"), surroundings)
    remove = host.client.remove_image

    def late(name: str, *, parents: bool = True) -> None:
        if name == image:
            host.container(image, "just-in-time")
        remove(name, parents=parents)

    monkeypatch.setattr(host.client, "remove_image", late)
    done = carry_out(rule("images"), found, surroundings, lambda: False)
    assert (done.items, len(done.left)) == (0, 1)
    assert names(host) == {"localhost/many:1", "localhost/many:2", "localhost/other:3"}


def test_an_image_that_another_was_made_of_goes_after_it(host: PodmanHost, tmp_path: Path) -> None:
    """Podman names a parent without the algorithm of its id: it is the parent all the same."""
    below, above = layer({"below": b"below"}), layer({"above": b"above"})
    host.load(image_archive([made_image("base:1", layers=[below])], "legacy"))
    host.load(image_archive([made_image("app:1", layers=[below, above])], "legacy"))
    found = survey(rule("images"), around(host, tmp_path))
    assert [unit.name for unit in found.units] == [b"localhost/app:1", b"localhost/base:1"]
    found = survey(rule("images"), around(host, tmp_path, keep_images=("*/app:1",)))
    assert found.units == []
    assert reasons(found.left)["localhost/base:1"] == "localhost/app:1 was made of it"


def test_containers_and_volumes(host: PodmanHost, tmp_path: Path) -> None:
    """Old containers that do not run go, anonymous volumes without a user too; named volumes stay."""
    host.image("app:1", busybox=True)
    host.container("app:1", "young-or-old")
    host.volume("0" * 64)
    named = host.volume("named")
    assert survey(rule("containers", older=3600), around(host, tmp_path)).state == "stale"
    _, done = clean(rule("containers", older=3600), around(host, tmp_path, hours=2))
    assert (done.items, host.client.containers()) == (1, [])
    _, done = clean(rule("volumes"), around(host, tmp_path))
    assert done.items == 1
    assert [volume.name for volume in host.client.volumes()] == [named]


def test_podman_has_no_build_cache(host: PodmanHost, tmp_path: Path) -> None:
    """Podman keeps none apart from its images, and has no route for it: nothing is freed and nothing fails."""
    _, done = clean(rule("build-cache"), around(host, tmp_path))
    assert (done.items, done.left, done.problem) == (0, [], "")
