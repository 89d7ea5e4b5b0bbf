"""Where an engine is looked for, in which order, and what is said where none answers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cachekit.clean.docker.rules import DockerSurroundings, survey
from cachekit.engine import client
from cachekit.engine.client import Engine
from cachekit.engine.objects import Info
from cachekit.engine.outcome import EngineUnavailable, candidates, podman_places
from cachekit.errors import NoEngine
from cachekit.images.engine import connected
from cachekit.images.names import name_to_give, shown_name
from cachekit.images.room import room_to_load, room_to_save
from tests.engine.fake_engine import fake_engine
from tests.engine.rules import rule
from tests.support.capabilities import requires
from tests.support.ordinary_user import NOBODY, PROJECT
from tests.support.processes import run


def test_the_places_of_dockers_socket() -> None:
    """$DOCKER_HOST alone if it is set, else the system's engine, then the user's."""
    user = {"XDG_RUNTIME_DIR": "/run/user/1"}
    assert candidates({"DOCKER_HOST": "unix:///a b", **user}) == ["/a b"]
    assert candidates(user) == ["/var/run/docker.sock", "/run/user/1/docker.sock"]
    assert candidates({"DOCKER_HOST": ""}) == ["/var/run/docker.sock"]


def test_the_places_of_podmans_socket() -> None:
    """None beside $DOCKER_HOST; $CONTAINER_HOST alone if it is set, else the user's Podman, then the system's."""
    user = {"XDG_RUNTIME_DIR": "/run/user/1"}
    assert podman_places({"DOCKER_HOST": "unix:///a", "CONTAINER_HOST": "unix:///b"}) == []
    assert podman_places({"CONTAINER_HOST": "unix:///a b", **user}) == ["/a b"]
    assert podman_places(user) == ["/run/user/1/podman/podman.sock", "/run/podman/podman.sock"]
    assert podman_places({"CONTAINER_HOST": ""}) == ["/run/podman/podman.sock"]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place at which Docker's socket is looked for; nothing is there."""
    path = tmp_path / "docker"
    path.mkdir()
    monkeypatch.setattr(client, "candidates", lambda _: [str(path / "fake.sock")])
    return path


@pytest.fixture
def podman(tmp_path: Path) -> Path:
    """Where $CONTAINER_HOST looks for a socket; nothing is there."""
    path = tmp_path / "podman"
    path.mkdir()
    return path


def at(podman: Path) -> dict[str, str]:
    """Return an environment that names Podman's socket."""
    return {"CONTAINER_HOST": f"unix://{podman}/fake.sock"}


def test_podman_is_found_where_docker_is_not(docker: Path, podman: Path) -> None:
    """Podman's socket is tried after Docker's, and only by those who ask for it: a clean does not."""
    with fake_engine(podman):
        assert Engine.connect(5, environment=at(podman), podman=True).path == f"{podman}/fake.sock"
        with pytest.raises(EngineUnavailable) as caught:
            Engine.connect(5, environment=at(podman))
    assert str(podman) not in caught.value.reason
    assert str(docker) in caught.value.reason


def test_docker_goes_before_podman(docker: Path, podman: Path) -> None:
    """Where both answer it is Docker."""
    with fake_engine(podman), fake_engine(docker):
        assert Engine.connect(5, environment=at(podman), podman=True).path == f"{docker}/fake.sock"


def test_the_users_podman(docker: Path, tmp_path: Path) -> None:
    """A rootless Podman is found in the user's runtime directory."""
    (tmp_path / "podman").mkdir()
    with fake_engine(tmp_path / "podman") as fake:
        fake.path.rename(tmp_path / "podman/podman.sock")
        engine = Engine.connect(5, environment={"XDG_RUNTIME_DIR": str(tmp_path)}, podman=True)
    assert engine.path == f"{tmp_path}/podman/podman.sock"
    assert not list(docker.iterdir())


def test_a_docker_that_does_not_answer_is_not_passed_over(docker: Path, podman: Path) -> None:
    """What Docker built is not in Podman: a Docker that hangs is the trouble told, though Podman would answer."""
    with fake_engine(podman), fake_engine(docker) as hanging:
        hanging.answers["GET /version"] = lambda handler: handler.connection.recv(1)
        with pytest.raises(EngineUnavailable) as caught:
            Engine.connect(0.2, environment=at(podman), podman=True)
    assert caught.value.outcome == "no-answer"


def test_every_place_without_an_engine_is_named(
    docker: Path, podman: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing answers the error names what was tried, and the hint says how to start one."""
    for name, value in at(podman).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(NoEngine) as caught:
        connected()
    assert (
        caught.value.message
        == f"no engine: {docker}/fake.sock does not exist; {podman}/fake.sock does not exist"
    )
    assert caught.value.exit_code == 9
    assert "podman.socket" in (caught.value.hint or "")


@requires("unprivileged")
def test_the_systems_podman_is_not_the_users(docker: Path, open_path: Path) -> None:
    """A user may not even look into /run/podman: told as no permission, with how to start a Podman of one's own."""
    closed = open_path / "podman"
    closed.mkdir(mode=0o700)
    code = (
        "from cachekit.engine import client\n"
        "from cachekit.errors import NoEngine\n"
        "from cachekit.images.engine import connected\n"
        f"client.candidates = lambda _: ['{open_path}/docker.sock']\n"
        "try: connected()\n"
        "except NoEngine as error: print(error.message, '|', error.hint)\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **at(closed)}
    done = run([sys.executable, "-c", code], env=environment, user=NOBODY, cwd=open_path).expect(0)
    message, hint = done.stdout.split("|")
    assert message.startswith(f"no permission to use {closed}/fake.sock")
    assert "systemctl --user start podman.socket" in hint
    assert not list(docker.iterdir())


def test_a_remote_podman_is_none_of_this_machine(docker: Path) -> None:
    """Its disk is elsewhere: it is told, without the password in its address, and no other Podman is taken for it."""
    with pytest.raises(EngineUnavailable) as caught:
        Engine.connect(5, environment={"CONTAINER_HOST": "ssh://user:secret@host/run"}, podman=True)
    assert caught.value.outcome == "no-engine"
    assert "CONTAINER_HOST is ssh://" in caught.value.reason
    assert "secret" not in caught.value.reason
    assert str(docker) in caught.value.reason


def test_a_clean_does_not_look_for_podman(
    docker: Path, podman: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Podman that answers at its own place is none of a clean's: whoever means it says so in $DOCKER_HOST."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with fake_engine(podman) as fake:
        monkeypatch.setenv("CONTAINER_HOST", f"unix://{fake.path}")
        surroundings = DockerSurroundings(0, state=str(tmp_path))
        with pytest.raises(EngineUnavailable):
            surroundings.engine(5)
        assert survey(rule("images"), surroundings).state == "not-applicable"
        assert fake.requests == []
    assert not list(docker.iterdir())


def test_which_of_podmans_names_is_meant() -> None:
    """A short name is the one of this machine, then Docker Hub's, then another registry's: as Podman looks."""
    other, hub, own = "quay.io/x/app:1", "docker.io/library/app:1", "localhost/app:1"
    assert shown_name("app:1", [other, hub, own]) == own
    assert shown_name("app:1", [other, hub]) == hub
    assert shown_name("app:1", [other]) == other
    assert shown_name("docker.io/library/app:1", [own, hub]) == hub
    assert shown_name("x/app:1", [own, other]) == other
    assert shown_name("app", [own]) == ""


def test_a_name_is_given_as_a_load_gives_it() -> None:
    """Podman loads a name without a registry as one of this machine; Docker as it is."""
    for full in ("localhost/app:1", "quay.io/app:1", "host:5000/app:1"):
        assert name_to_give(full, podman=True) == full
    assert name_to_give("app:1", podman=True) == "localhost/app:1"
    assert name_to_give("team/app:1", podman=True) == "localhost/team/app:1"
    assert name_to_give("team/app:1", podman=False) == "team/app:1"


def test_where_engines_need_room() -> None:
    """Podman copies to /var/tmp, Docker's classic store to its data root, containerd's does not copy."""
    podman = Info("x", ("/data",), "overlay", podman=True)
    classic, containerd = (
        Info("x", ("/data",), "overlay2"),
        Info("x", ("/data",), "overlayfs", containerd=True),
    )
    assert [(need.path, need.size) for need in room_to_save(podman, 10)] == [("/var/tmp", 20)]
    assert [(need.path, need.size) for need in room_to_save(classic, 10)] == [("/data", 10)]
    assert room_to_save(containerd, 10) == []
    assert [(need.path, need.size) for need in room_to_load(podman, 10)] == [("/var/tmp", 20), ("/data", 10)]
    assert [(need.path, need.size) for need in room_to_load(classic, 10)] == [("/data", 20)]
