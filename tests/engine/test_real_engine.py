"""The Docker rules against a real engine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cachekit.clean.docker.ledger import LEDGER_NAME
from cachekit.clean.docker.rules import carry_out, survey
from tests.engine.rules import around, clean, reasons, rule
from tests.support.capabilities import requires
from tests.support.docker import DockerHost

pytestmark = [requires("docker"), pytest.mark.xdist_group("docker")]

SLEEP = ("/bin/busybox", "sleep", "300")


def names(host: DockerHost) -> set[str]:
    """Return the names of all images."""
    return {tag for image in host.client.images() for tag in image.tags}


def stopped(host: DockerHost, image: str, name: str, **settings: object) -> str:
    """Run a container to its end."""
    container = host.container(image, name, ("/bin/busybox", "true"), start=True, **settings)
    host.wait_for(container)
    return container


def test_a_container_goes_only_when_it_stopped_long_ago(host: DockerHost, tmp_path: Path) -> None:
    """Stopped containers go once they are older than the limit; running and labelled ones stay."""
    host.image("base:1", busybox=True)
    stopped(host, "base:1", "stopped")
    host.container("base:1", "never-started")
    stopped(host, "base:1", "kept", Labels={"cachekit.keep": "yes"})
    stopped(host, "base:1", "not-kept", Labels={"cachekit.keep": "false"})
    host.container("base:1", "running", SLEEP, start=True)

    young, done = clean(rule("containers", older=3600), around(host, tmp_path))
    assert young.state == "stale"
    assert done.items == 0
    assert reasons(young.left)["running"] == "running"
    assert reasons(young.left)["stopped"].startswith("stopped ")
    assert reasons(young.left)["never-started"].startswith("made ")
    assert len(host.client.containers()) == 5

    found, done = clean(rule("containers", older=3600), around(host, tmp_path, hours=2))
    assert {unit.name for unit in found.units} == {b"stopped", b"never-started", b"not-kept"}
    assert reasons(found.left) == {"running": "running", "kept": "has the label cachekit.keep"}
    assert (done.items, done.left, done.problem) == (3, [], "")
    assert {container.name for container in host.client.containers()} == {"running", "kept"}


def test_a_container_that_was_started_again_meanwhile_stays(host: DockerHost, tmp_path: Path) -> None:
    """Between the look and the removal a container may have come to life."""
    host.image("base:1", busybox=True)
    container = host.container("base:1", "again", SLEEP)
    surroundings = around(host, tmp_path, hours=2)
    found = survey(rule("containers"), surroundings)
    host.client.call("POST", f"/containers/{container}/start")
    done = carry_out(rule("containers"), found, surroundings, lambda: False)
    assert reasons(done.left) == {"again": "running"}
    assert done.items == 0


def test_an_image_of_any_container_stays(host: DockerHost, tmp_path: Path) -> None:
    """An image that a running, a stopped or a never started container references stays, however old it is."""
    for name in ("running", "stopped", "made", "free"):
        host.image(f"{name}:1", busybox=True)
    assert survey(rule("images", older=60), around(host, tmp_path)).units == []
    host.container("running:1", "c-running", SLEEP, start=True)
    stopped(host, "stopped:1", "c-stopped")
    host.container("made:1", "c-made")
    found, done = clean(rule("images", older=60), around(host, tmp_path, hours=9))
    assert [unit.name for unit in found.units] == [b"free:1"]
    assert reasons(found.left) == {
        f"{name}:1": f"referenced by container c-{name}" for name in ("running", "stopped", "made")
    }
    assert done.items == 1
    assert names(host) == {"running:1", "stopped:1", "made:1"}


def test_an_image_that_a_container_references_since_the_look_stays(host: DockerHost, tmp_path: Path) -> None:
    """Containers are looked at once more before an image with two names is touched: it keeps both."""
    host.image("late:1", "late:2", busybox=True)
    surroundings = around(host, tmp_path)
    found = survey(rule("images"), surroundings)
    host.container("late:1", "newcomer")
    done = carry_out(rule("images"), found, surroundings, lambda: False)
    assert done.items == 0
    assert list(reasons(done.left).values()) == ["referenced by container newcomer"]
    assert names(host) == {"late:1", "late:2"}


def test_names_come_back_when_the_engine_refuses(
    host: DockerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image with three names that the engine will not remove after all has all three afterwards."""
    image = host.image("many:1", "many:2", "other:3", busybox=True)
    surroundings = around(host, tmp_path)
    found = survey(rule("images"), surroundings)
    remove = host.client.remove_image

    def late(name: str, *, parents: bool = True) -> None:
        if name == image:
            host.container("sha256:" + image.removeprefix("sha256:"), "just-in-time")
        remove(name, parents=parents)

    monkeypatch.setattr(host.client, "remove_image", late)
    done = carry_out(rule("images"), found, surroundings, lambda: False)
    assert len(done.left) == 1
    assert names(host) == {"many:1", "many:2", "other:3"}


def test_only_nameless_images_dangle(host: DockerHost, tmp_path: Path) -> None:
    """The dangling-images rule takes an image without a name, also one that lost it, and no other."""
    host.image("moved:1", content=b"old")
    host.image("moved:1", content=b"new")
    host.image(content=b"never had a name")
    host.image("named:1")
    found, done = clean(rule("dangling-images"), around(host, tmp_path))
    assert len(found.units) == done.items == 2
    assert names(host) == {"moved:1", "named:1"}
    assert len(host.client.images()) == 2


def test_the_least_recently_used_image_goes_first_until_it_is_enough(
    host: DockerHost, tmp_path: Path
) -> None:
    """Order of use, not of making: a container that came and went between two looks counts; enough is enough."""
    for name in ("first", "second", "third"):
        host.image(f"{name}:1", busybox=True)
    survey(rule("images"), around(host, tmp_path))
    for name in ("third", "first"):
        container = stopped(host, f"{name}:1", f"c-{name}")
        host.client.remove_container(container)
    surroundings = around(host, tmp_path)
    found = survey(rule("images"), surroundings)
    assert [unit.name for unit in found.units] == [b"second:1", b"third:1", b"first:1"]
    answers = iter([False, True])
    done = carry_out(rule("images"), found, surroundings, lambda: next(answers))
    assert done.items == 2
    assert names(host) == {"first:1"}


def test_an_image_never_seen_before_is_young(host: DockerHost, tmp_path: Path) -> None:
    """At a first look nothing is known, so nothing is old; the day after it is."""
    host.image("new:1")
    found, _ = clean(rule("images", older=3600), around(host, tmp_path))
    assert found.state == "stale"
    assert reasons(found.left) == {"new:1": "first seen 0 s ago"}
    found, done = clean(rule("images", older=3600), around(host, tmp_path, hours=24))
    assert done.items == 1


def test_kept_and_protected_images_stay(host: DockerHost, tmp_path: Path) -> None:
    """One name that a pattern or a saver means keeps the whole image, with all its names."""
    host.image("team/base:1", "alias:9")
    host.image("saved:latest")
    by_id = host.image("by-id:1")
    host.image("gone:1")
    host.image("labelled:1", labels={"cachekit.keep": "1"})
    surroundings = around(
        host,
        tmp_path,
        keep_images=("team/*", by_id.removeprefix("sha256:")[:10]),
        protected_images=frozenset({"docker.io/library/saved"}),
    )
    found, done = clean(rule("images"), surroundings)
    assert done.items == 1
    assert names(host) == {"team/base:1", "alias:9", "saved:latest", "by-id:1", "labelled:1"}
    assert set(reasons(found.left).values()) == {
        "about to be saved",
        f"kept by {by_id.removeprefix('sha256:')[:10]}",
        "kept by team/*",
        "has the label cachekit.keep",
    }


def test_an_image_goes_after_those_made_of_it(host: DockerHost, tmp_path: Path) -> None:
    """A base whose child stays, stays with its name; otherwise child, steps and base all go."""
    host.image("base:1", busybox=True)
    recipe = b"FROM base:1\nENV A=1\nENV B=2\nLABEL c=3\n"
    host.docker("build", "-t", "app:1", "-", stdin=recipe, buildkit=False)
    host.container("app:1", "user")
    found, done = clean(rule("images"), around(host, tmp_path))
    assert done.items == 0
    assert found.state == "stale"
    assert reasons(found.left)["app:1"] == "referenced by container user"
    assert reasons(found.left)["base:1"].endswith("was made of it")
    assert names(host) == {"app:1", "base:1"}
    host.client.remove_container("user")
    found, done = clean(rule("images"), around(host, tmp_path))
    assert [unit.name for unit in found.units] == [b"app:1", b"base:1"]
    assert (done.items, done.left) == (2, [])
    assert host.client.images(intermediate=True) == []


def test_a_dry_run_changes_nothing(host: DockerHost, tmp_path: Path) -> None:
    """It says what would go, removes nothing and writes no ledger."""
    host.image("app:1", busybox=True)
    stopped(host, "app:1", "old")
    host.volume()
    host.image(content=b"dangling")
    for action in ("containers", "dangling-images", "volumes"):
        surroundings = around(host, tmp_path, hours=2, dry_run=True)
        found, done = clean(rule(action), surroundings)
        assert len(found.units) == 1
        assert done.items == 0
    assert len(host.client.containers()) == 1
    assert len(host.client.images()) == 2
    assert len(host.client.volumes()) == 1
    assert not (tmp_path / LEDGER_NAME).exists()


def test_only_anonymous_volumes_that_nothing_uses_go(host: DockerHost, tmp_path: Path) -> None:
    """A named volume stays, and so does an anonymous one that a stopped container has."""
    host.image("base:1", busybox=True)
    unused = host.volume()
    host.volume("precious")
    stopped(host, "base:1", "user", Volumes={"/data": {}})
    (used,) = {volume.name for volume in host.client.volumes()} - {unused, "precious"}
    found, done = clean(rule("volumes"), around(host, tmp_path, hours=2))
    assert [unit.handle for unit in found.units] == [unused]
    assert reasons(found.left) == {"precious": "has a name", used: "used by container user"}
    assert done.items == 1
    assert {volume.name for volume in host.client.volumes()} == {"precious", used}


def test_a_volume_that_came_into_use_meanwhile_stays(host: DockerHost, tmp_path: Path) -> None:
    """Between the look and the removal a container may have taken a volume."""
    host.image("base:1", busybox=True)
    volume = host.volume()
    surroundings = around(host, tmp_path)
    found = survey(rule("volumes"), surroundings)
    host.container("base:1", "taker", HostConfig={"Binds": [f"{volume}:/data"]})
    done = carry_out(rule("volumes"), found, surroundings, lambda: False)
    assert reasons(done.left) == {volume: "used by container taker"}


def build(host: DockerHost, directory: Path, name: str) -> None:
    """Build an image with BuildKit, so that there is cache."""
    context = directory / name
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM base:1\nCOPY data /{name}\n")
    (context / "data").write_bytes(name.encode() * 100_000)
    host.docker("build", "-q", "-t", f"{name}:1", context)
    host.docker("rmi", f"{name}:1")


def test_the_build_cache_is_pruned(host: DockerHost, tmp_path: Path) -> None:
    """What BuildKit keeps goes, and the next time there is nothing to do."""
    host.image("base:1", busybox=True)
    build(host, tmp_path, "cached")
    _, done = clean(rule("build-cache"), around(host, tmp_path))
    assert done.items == 1
    assert done.size is not None
    assert done.size >= 600_000
    _, done = clean(rule("build-cache"), around(host, tmp_path))
    assert (done.items, done.left, done.problem) == (0, [], "")


def test_a_bound_keeps_the_build_cache(host: DockerHost, tmp_path: Path) -> None:
    """Cache below the bound, and cache used a moment ago, stays."""
    host.image("base:1", busybox=True)
    build(host, tmp_path, "bounded")
    for bounds in ({"max_used": 1 << 30}, {"older": 3600.0}):
        _, done = clean(rule("build-cache", **bounds), around(host, tmp_path))
        assert (done.items, done.problem) == (0, "")
    _, done = clean(rule("build-cache"), around(host, tmp_path))
    assert done.items == 1


def test_two_prunes_at_once_both_end(host: DockerHost, tmp_path: Path) -> None:
    """A prune that meets another one waits for it, or says so; neither fails."""
    host.image("base:1", busybox=True)
    for number in range(3):
        build(host, tmp_path, f"layer{number}")
    results = []

    def run() -> None:
        results.append(clean(rule("build-cache"), around(host, tmp_path))[1])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.problem for done in results] == [""] * 3
    assert sum(done.items for done in results) >= 1


def test_the_filesystem_of_the_engine_is_told(host: DockerHost, tmp_path: Path) -> None:
    """The place where what goes lies is known, so that its filesystem can be measured."""
    found = survey(rule("volumes"), around(host, tmp_path))
    assert found.paths == [bytes(host.directory / "data")]
