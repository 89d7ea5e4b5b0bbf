"""The GitHub workflows for Docker images, run by act as they stand, with a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.capabilities import requires
from tests.support.docker import DockerHost, Release, docker_engine
from tests.support.filesystems import tmpfs
from tests.support.github import WORKFLOWS, Runner, entries
from tests.support.in_process import cut

pytestmark = [requires("act", "docker"), pytest.mark.timeout(240)]


@pytest.fixture
def host() -> Iterator[DockerHost]:
    """An engine, empty to begin with."""
    with docker_engine() as started:
        yield started


@pytest.fixture
def runner(tmp_path: Path, host: DockerHost) -> Runner:
    """A runner with that engine, and an image to build."""
    own = host.environment
    # The engine may come without the plugin that builds by BuildKit.
    variables = {
        "DOCKER_HOST": own["DOCKER_HOST"],
        "DOCKER_CONFIG": own["DOCKER_CONFIG"],
        "DOCKER_BUILDKIT": "0",
    }
    made = Runner(tmp_path / "runner", variables)
    made.base.joinpath("bin/docker").symlink_to(host.command)
    made.make_image_project()
    return made


def names(host: DockerHost) -> set[str]:
    """The tags of the engine's images."""
    return {tag for image in host.client.images(measured=False) for tag in image.tags}


def test_docker_images(runner: Runner, host: DockerHost) -> None:
    """Images are built and saved, loaded into an empty engine, and never loaded from a cut entry, which heals."""
    workflow = WORKFLOWS / "docker-images.yml"
    first = runner(workflow).expect()
    assert first.steps[-5:] == ["Key", "Load", "Build", "Save", "Test"]
    assert first.outputs("load")["status"] == "miss"
    (entry,) = entries(runner.home / ".cache/cachekit")

    host.empty()
    second = runner(workflow).expect()
    assert second.steps[-3:] == ["Key", "Load", "Test"]
    assert (second.outputs("load")["status"], second.outputs("load")["cache-hit"]) == ("exact", "true")
    assert "the image ran" in second.text

    host.empty()
    cut(entry)
    third = runner(workflow).expect()
    assert (third.outputs("load")["status"], third.outputs("load")["cache-hit"]) == ("refused", "false")
    assert third.steps[-4:] == ["Load", "Build", "Save", "Test"]

    host.empty()
    assert runner(workflow).expect().outputs("load")["status"] == "exact"
    assert "app:ci" in names(host)


@requires("actions_cache")
def test_sealed_archives(runner: Runner, host: DockerHost) -> None:
    """An archive that is carried sealed is loaded if it is whole; a cut one never reaches the engine, and heals."""
    workflow = WORKFLOWS / "docker-images-sealed.yml"
    first = runner(workflow).expect()
    assert first.steps[-4:] == ["Load", "Build and save", "Keep", "Test"]
    assert "::error" not in first.text, "nothing to load is no error"

    host.empty()
    second = runner(workflow).expect()
    assert second.steps[-2:] == ["Load", "Test"]
    assert second.outputs("load") == {"loaded": "true"}
    assert "ok, as sealed" in second.text
    assert "the image ran" in second.text

    host.empty()
    runner.change_carried(lambda name, content: content[:-600_000] if name.endswith("app.tar") else content)
    before = host.snapshot()
    runner.variables["DOCKER_HOST"] = (
        "unix:///nowhere"  # what reaches for an engine with a cut archive, fails
    )
    third = runner(workflow).expect(1)
    assert third.steps[-1] == "Load"
    assert "600000 bytes" in third.text
    assert host.snapshot() == before

    runner.variables["DOCKER_HOST"] = host.environment["DOCKER_HOST"]
    healing = runner(workflow).expect()
    assert healing.steps[-4:] == ["Load", "Build and save", "Keep", "Test"]

    host.empty()
    assert runner(workflow).expect().steps[-2:] == ["Load", "Test"], (
        "the newer archive goes before the cut one"
    )

    host.empty()
    runner.change_carried(lambda name, content: None if name.endswith(".cachekit.json") else content)
    unsealed = runner(workflow).expect()
    assert "the file has no manifest" in unsealed.text
    assert unsealed.steps[-3:] == ["Build and save", "Keep", "Test"], (
        "whole, but nobody says that it is this file"
    )


#: All but the registry is real: what is pushed there stays in the engine, and the list of images is only noted. Each
#: platform's runner is a new machine, and so its builder remembers nothing.
DOCKER = """#!/bin/bash
arguments=()
for argument; do
  case $argument in
    type=image,*push=true) argument=${argument%%,push-by-digest=*} ;;
    imagetools) printf '%%s\\n' "$@" >>"%(noted)s"; exit ;;
  esac
  arguments+=("$argument")
done
"%(docker)s" builder prune --all --force >/dev/null
"%(docker)s" "${arguments[@]}" || exit
if [ -e "%(noted)s.full" ]; then rm buildkit-cache/blobs/sha256/*; fi
"""


@requires("docker_trixie", "actions_cache", "tmpfs")
@pytest.mark.xdist_group("engines")
def test_multi_platform() -> None:
    """Each platform's build cache is carried by itself, used by the next build, refused if cut; images are joined."""
    workflow = WORKFLOWS / "multi-platform.yml"
    # BuildKit of an engine without a bridge: a builder of buildx's own would be an image that no test can fetch.
    with docker_engine(release=Release("trixie", containerd=True)) as host, tmpfs(60 << 30) as roomy:
        own = host.environment
        variables = {"DOCKER_HOST": own["DOCKER_HOST"], "DOCKER_CONFIG": own["DOCKER_CONFIG"]}
        variables |= {
            "BUILDX_BUILDER": "default",
            "DOCKER_ROOT": str(roomy.path),
            "BUILDKIT_PROGRESS": "plain",
        }
        runner = Runner(roomy.path / "runner", variables)
        noted = roomy.path / "noted"
        docker = runner.base / "bin/docker"
        docker.write_text(DOCKER % {"docker": host.command, "noted": noted})
        docker.chmod(0o755)
        runner.make_image_project()

        def build(name: str) -> str:
            """Build for one platform, on a new machine."""
            host.empty()
            runner.new_machine()
            return runner(workflow, "-j", "build", "--matrix", f"name:{name}").expect().text

        for name in ("amd64", "arm64"):
            first = build(name)
            assert "carried: nothing" in first, "the other platform's cache is not taken"
            assert f"saved buildkit-{name}-" in first
            assert " CACHED" not in first

        again = build("amd64")
        assert "restored buildkit-amd64-" in again
        assert " CACHED" in again

        runner.change_carried(lambda _, content: content[: len(content) // 2])
        refused = build("amd64")
        assert "cachekit: warning: " in refused
        assert " CACHED" not in refused
        assert "saved buildkit-amd64-" in refused

        # A full disk, say, leaves a cache of which nothing but its index is there.
        full = roomy.path / "noted.full"
        full.touch()
        unfinished = build("amd64")
        assert "saved buildkit-" not in unfinished
        assert "Run Main Carry it" not in unfinished
        full.unlink()

        runner(workflow).expect()
        joined = noted.read_text().splitlines()
        assert joined[:4] == ["buildx", "imagetools", "create", "--tag"]
        assert joined[4].startswith("ghcr.io/shop/shop:")
        assert len(set(joined[5:])) == 2
        assert all(image.startswith("ghcr.io/shop/shop@sha256:") for image in joined[5:])
