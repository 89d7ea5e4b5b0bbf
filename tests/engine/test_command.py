"""`cachekit clean` with Docker rules, against a real engine, from its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.capabilities import requires
from tests.support.cleaning import Scene, outcome
from tests.support.cli import Cli
from tests.support.docker import DockerHost

pytestmark = [requires("docker"), pytest.mark.xdist_group("docker")]

RULES = {
    "old-containers": {"docker": "containers", "category": "docker", "when": {"older": "1h"}},
    "unused-images": {"docker": "images", "category": "docker", "when": {"older": "0s"}},
}


@pytest.fixture
def scene(cli: Cli, tmp_path: Path) -> Scene:
    """A clean with two Docker rules."""
    return Scene(cli, tmp_path, dict(RULES))


def names(host: DockerHost) -> set[str]:
    """The names of all images."""
    return {tag for image in host.client.images() for tag in image.tags}


def test_images_and_containers(scene: Scene, host: DockerHost) -> None:
    """An unused image goes; what any container references, what --keep-image names, and young containers stay."""
    for name in ("used:1", "referenced:1", "unused:1", "kept:1"):
        host.image(name, busybox=name == "used:1")
    host.container("used:1", "runs", ("/bin/busybox", "sleep", "300"), start=True)
    host.container("referenced:1", "never-started")
    report = scene.report("--keep-image", "kept*", env={"DOCKER_HOST": f"unix://{host.socket}"}, code=7)
    assert outcome(report, "unused-images")["items"] == 1
    assert names(host) == {"used:1", "referenced:1", "kept:1"}
    assert {container.name for container in host.client.containers()} == {"runs", "never-started"}
    stays = {row["path"]: row["reason"] for row in outcome(report, "old-containers")["left"]}
    assert stays["runs"] == "running"
    assert stays["never-started"].startswith("made ")


def test_dry_run(scene: Scene, host: DockerHost) -> None:
    """A dry run says what would go and removes nothing."""
    host.image("unused:1", busybox=True)
    env = {"DOCKER_HOST": f"unix://{host.socket}"}
    report = scene.report("--dry-run", env=env)
    assert outcome(report, "unused-images")["result"] == "would-free"
    assert outcome(report, "unused-images")["items"] == 1
    assert names(host) == {"unused:1"}


def test_no_engine(scene: Scene, tmp_path: Path) -> None:
    """Without an engine the rules are not applicable, and that is no failure of theirs."""
    report = scene.report("--dry-run", env={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert {rule["result"] for rule in report["rules"]} == {"not-applicable"}


def test_an_engine_elsewhere(scene: Scene) -> None:
    """An engine on another machine has its disk there."""
    report = scene.report("--dry-run", env={"DOCKER_HOST": "tcp://127.0.0.1:1"})
    assert outcome(report, "unused-images")["result"] == "not-applicable"
    assert "remote" in outcome(report, "unused-images")["reason"]
