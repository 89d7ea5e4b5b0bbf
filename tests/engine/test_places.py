"""Where an engine is looked for, in which order, and what is said where none answers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cachekit.clean.docker.rules import DockerSurroundings, survey
from cachekit.engine import client
from cachekit.engine.address import Address
from cachekit.engine.client import Engine
from cachekit.engine.objects import Info
from cachekit.engine.outcome import EngineUnavailable
from cachekit.engine.places import docker_places, podman_places
from cachekit.errors import NoEngine
from cachekit.images.engine import connected
from cachekit.images.names import name_to_give, shown_name
from cachekit.images.room import room_to_load, room_to_save
from tests.engine.fake_engine import fake_engine
from tests.engine.rules import rule
from tests.support.capabilities import requires
from tests.support.ordinary_user import NOBODY, PROJECT
from tests.support.processes import run


def told(places: Callable[[Mapping[str, str]], list[Address]], environment: Mapping[str, str]) -> list[str]:
    """Return where is looked, as it is shown."""
    return [str(address) for address in places(environment)]


def test_the_places_of_dockers_socket() -> None:
    """$DOCKER_HOST alone if it is set, else the system's engine, then the user's."""
    user = {"XDG_RUNTIME_DIR": "/run/user/1"}
    assert told(docker_places, {"DOCKER_HOST": "unix:///a b", **user}) == ["/a b"]
    assert told(docker_places, user) == ["/var/run/docker.sock", "/run/user/1/docker.sock"]
    assert told(docker_places, {"DOCKER_HOST": ""}) == ["/var/run/docker.sock"]


def test_the_places_of_podmans_socket() -> None:
    """None beside $DOCKER_HOST; $CONTAINER_HOST alone if it is set, else the user's Podman, then the system's."""
    user = {"XDG_RUNTIME_DIR": "/run/user/1"}
    assert told(podman_places, {"DOCKER_HOST": "unix:///a", "CONTAINER_HOST": "unix:///b"}) == []
    assert told(podman_places, {"CONTAINER_HOST": "unix:///a b", **user}) == ["/a b"]
    assert told(podman_places, user) == ["/run/user/1/podman/podman.sock", "/run/podman/podman.sock"]
    assert told(podman_places, {"CONTAINER_HOST": ""}) == ["/run/podman/podman.sock"]


def test_an_address_may_lack_its_slashes() -> None:
    """Podman's own command takes unix:/PATH; what is no address at all is told so."""
    assert told(podman_places, {"CONTAINER_HOST": "unix:/a"}) == ["/a"]
    for wrong in ("/run/podman.sock", "unix", "podman.sock"):
        with pytest.raises(
            EngineUnavailable, match="CONTAINER_HOST is no address of an engine: unix:///PATH"
        ):
            podman_places({"CONTAINER_HOST": wrong})


def docker_says(home: Path, *arguments: str, **variables: str) -> str:
    """Run docker's own command for the user of a home; return what it says."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    return run(["docker", *arguments], env=environment, cwd=home).expect(0).stdout.strip()


@requires("docker")
def test_dockers_current_context_is_the_one_docker_uses(tmp_path: Path) -> None:
    """What docker's own command wrote is read as it reads it: variables before the settings, `default` is none."""
    for name in ("desktop", "ci"):
        docker_says(tmp_path, "context", "create", name, "--docker", f"host=unix:///run/{name}.sock")
    usual = {"HOME": str(tmp_path)}
    assert told(docker_places, usual) == ["/var/run/docker.sock"]
    docker_says(tmp_path, "context", "use", "desktop")
    for variables in (
        {},
        {"DOCKER_CONTEXT": "ci"},
        {"DOCKER_CONTEXT": "default"},
        {"DOCKER_HOST": "unix:///run/own.sock"},
        {"DOCKER_HOST": "unix:///run/own.sock", "DOCKER_CONTEXT": "ci"},
        {"DOCKER_CONTEXT": "", "DOCKER_HOST": ""},
        {"DOCKER_CONFIG": str(tmp_path / ".docker")},
        {"DOCKER_CONFIG": str(tmp_path / "elsewhere")},
    ):
        theirs = docker_says(
            tmp_path, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}", **variables
        )
        assert [theirs.removeprefix("unix://")] == told(docker_places, {**usual, **variables}), variables
    assert told(podman_places, {**usual, "CONTAINER_HOST": "unix:///b"}) == []
    assert told(podman_places, {**usual, "DOCKER_CONTEXT": "default"}) == ["/run/podman/podman.sock"]


def context(home: Path, name: str, meta: str | None, settings: str | None = None) -> dict[str, str]:
    """Write docker's settings with a current context; return the environment of that home."""
    place = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    (home / ".docker/config.json").write_text(settings or json.dumps({"currentContext": name}))
    if meta is not None:
        (place / "meta.json").write_text(meta)
    return {"HOME": str(home)}


@pytest.mark.parametrize(
    "meta",
    [None, "", "[]", "{}", '{"Endpoints": {"docker": {"Host": 5}}}', '{"Endpoints": []}', "[" * 99_999],
)
def test_a_context_that_is_not_there(tmp_path: Path, meta: str | None) -> None:
    """The engine it stands for is not guessed: no engine, with the context's name and how to see those that are."""
    environment = context(tmp_path, "gone", meta)
    with pytest.raises(
        EngineUnavailable, match="docker's context 'gone' is not known: docker context ls"
    ) as caught:
        Engine.connect(5, environment={**environment, "CONTAINER_HOST": "unix:///b"}, podman=True)
    assert caught.value.outcome == "no-engine"


@pytest.mark.parametrize(
    "settings", ["[]", "{", '{"currentContext": 7}', '{"currentContext": ""}', "{}", "\0", "[" * 99_999]
)
def test_settings_that_say_nothing(tmp_path: Path, settings: str) -> None:
    """Settings that are broken name no context: docker's own command goes on with the default one, too."""
    assert told(docker_places, context(tmp_path, "x", None, settings)) == ["/var/run/docker.sock"]


def test_a_remote_context(tmp_path: Path) -> None:
    """A context of another machine is told as such, without what its address may hold."""
    meta = {"Endpoints": {"docker": {"Host": "ssh://user:secret@host"}}}
    environment = context(tmp_path, "far", json.dumps(meta))
    with pytest.raises(
        EngineUnavailable, match="docker's context 'far' is ssh://, which cachekit does not speak"
    ) as caught:
        docker_places(environment)
    assert "secret" not in caught.value.reason


@requires("root")
def test_another_users_settings_do_not_lead_root(tmp_path: Path) -> None:
    """With `sudo -E` the home is a user's: its settings choose no engine for root, and a pipe hangs nothing."""
    meta = {"Endpoints": {"docker": {"Host": "unix:///tmp/theirs.sock"}}}
    environment = context(tmp_path, "theirs", json.dumps(meta))
    assert told(docker_places, environment) == ["/tmp/theirs.sock"]
    settings = tmp_path / ".docker/config.json"
    os.chown(settings, NOBODY, NOBODY)
    assert told(docker_places, environment) == ["/var/run/docker.sock"]
    settings.unlink()
    os.mkfifo(settings)
    assert told(docker_places, environment) == ["/var/run/docker.sock"]
    assert told(docker_places, {"HOME": "a\0b"}) == told(docker_places, {}) == ["/var/run/docker.sock"]


def test_the_engine_of_a_context_is_used(tmp_path: Path) -> None:
    """An engine that only docker's current context names is found."""
    with fake_engine(tmp_path) as fake:
        meta = {"Endpoints": {"docker": {"Host": f"unix://{fake.path}"}}}
        engine = Engine.connect(5, environment=context(tmp_path, "own", json.dumps(meta)))
    assert str(engine.address) == str(fake.path)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place at which Docker's socket is looked for; nothing is there."""
    path = tmp_path / "docker"
    path.mkdir()
    monkeypatch.setattr(client, "docker_places", lambda _, **__: [Address(f"{path}/fake.sock")])
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
        assert str(Engine.connect(5, environment=at(podman), podman=True).address) == f"{podman}/fake.sock"
        with pytest.raises(EngineUnavailable) as caught:
            Engine.connect(5, environment=at(podman))
    assert str(podman) not in caught.value.reason
    assert str(docker) in caught.value.reason


def test_docker_goes_before_podman(docker: Path, podman: Path) -> None:
    """Where both answer it is Docker."""
    with fake_engine(podman), fake_engine(docker):
        assert str(Engine.connect(5, environment=at(podman), podman=True).address) == f"{docker}/fake.sock"


def test_the_users_podman(docker: Path, tmp_path: Path) -> None:
    """A rootless Podman is found in the user's runtime directory."""
    (tmp_path / "podman").mkdir()
    with fake_engine(tmp_path / "podman") as fake:
        fake.path.rename(tmp_path / "podman/podman.sock")
        engine = Engine.connect(5, environment={"XDG_RUNTIME_DIR": str(tmp_path)}, podman=True)
    assert str(engine.address) == f"{tmp_path}/podman/podman.sock"
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
        "from cachekit.engine.address import Address\n"
        "from cachekit.errors import NoEngine\n"
        "from cachekit.images.engine import connected\n"
        f"client.docker_places = lambda _, **__: [Address('{open_path}/docker.sock')]\n"
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
