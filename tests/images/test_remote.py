"""Images from and to an engine that is reached over a port, with and without TLS, as docker:dind is in a CI job."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekit.engine.client import Engine
from cachekit.engine.outcome import EngineUnavailable
from cachekit.images import load as loading
from cachekit.images.load import ImageLoadRequest, load_images
from cachekit.images.save import ImageSaveRequest, save_images
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.docker import docker_engine
from tests.support.images import Made, MimicEngine
from tests.support.processes import Result, clean_environment, run
from tests.support.surgery import anatomy, flip
from tests.support.tls import behind_port, certificates

pytestmark = requires("openssl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for all tests."""
    return certificates(tmp_path_factory.mktemp("tls") / "keys")


@pytest.fixture(params=["plain", "tls"])
def named(request: pytest.FixtureRequest, mimic: MimicEngine, keys: Path) -> Iterator[dict[str, str]]:
    """The variables that name the mimic's port."""
    tls = request.param == "tls"
    with behind_port(mimic.path, keys if tls else None) as port:
        secured = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(keys / "client")} if tls else {}
        yield {"DOCKER_HOST": f"tcp://127.0.0.1:{port}", **secured}


def test_over_a_port(mimic: MimicEngine, app: Made, named: dict[str, str], cli: Cli) -> None:
    """An image is saved and loaded with the commands alone; that no directory here is the engine's is known."""
    mimic.add(app)
    before = mimic.snapshot()
    saved = cli("image", "save", "--key=k", "--json", "app:1", env=named).expect().json()
    assert saved["source"] == "engine"
    mimic.forget()
    assert cli("image", "load", "--key=k", "--json", env=named).expect().json()["status"] == "exact"
    assert mimic.snapshot() == before


def test_a_change_on_the_way_breaks_the_connection(
    mimic: MimicEngine,
    app: Made,
    named: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A frame that is another one than was verified ends the request without its end, through TLS as well."""
    mimic.add(app)
    request = ImageSaveRequest("k", ["app:1"], str(tmp_path / "store"), engine=lambda: connected(named))
    path = tmp_path / "store/v1/default/entries" / save_images(request).entry
    mimic.forget()
    at = anatomy(path).frames[-2] - 10

    def damage(step: str) -> None:
        if step == "load.verified":
            path.write_bytes(flip(path.read_bytes(), at))

    monkeypatch.setattr(loading, "step", damage)
    report = load_images(ImageLoadRequest("k", str(tmp_path / "store"), engine=lambda: connected(named)))
    assert report.status == "refused"
    assert not mimic.snapshot()


def connected(variables: dict[str, str]) -> Engine:
    """Connect as the commands do."""
    return Engine.connect(5, environment=variables, remote=True)


def reason(variables: dict[str, str]) -> str:
    """Return why there is no engine, with which outcome."""
    with pytest.raises(EngineUnavailable) as caught:
        connected(variables)
    return f"{caught.value.outcome}: {caught.value.reason}"


def test_who_is_not_who_it_should_be(mimic: MimicEngine, keys: Path, tmp_path: Path) -> None:
    """A server of another CA, without TLS, or that wants a certificate that is not there, is told as such."""
    other = certificates(tmp_path / "other")
    with behind_port(mimic.path, keys) as port, behind_port(mimic.path) as plain:
        at = {"DOCKER_HOST": f"tcp://127.0.0.1:{port}", "DOCKER_TLS_VERIFY": "1"}
        place = {"DOCKER_CERT_PATH": str(keys / "client")}
        assert connected(at | place).address.remote
        assert "is not who it should be" in reason(at | {"DOCKER_CERT_PATH": str(other / "client")})
        (tmp_path / "bare").mkdir()
        assert "no certificates for tcp://127.0.0.1" in reason(
            at | {"DOCKER_CERT_PATH": str(tmp_path / "bare")}
        )
        shutil.copy(keys / "ca.pem", tmp_path / "bare")
        assert reason(at | {"DOCKER_CERT_PATH": str(tmp_path / "bare")}).startswith("no-answer")
        wrong = tmp_path / "wrong-name"
        shutil.copytree(keys / "client", wrong)
        named_otherwise = at | {"DOCKER_HOST": f"tcp://127.0.0.2:{port}"}
        assert reason(named_otherwise | place).startswith(("no-engine: no engine: nobody", "no-answer"))
        unverified = {"DOCKER_HOST": at["DOCKER_HOST"], "DOCKER_TLS": "1", "DOCKER_CERT_PATH": str(wrong)}
        shutil.copy(other / "ca.pem", wrong)
        assert connected(unverified).address.remote, "docker --tls does not look who it is"
        assert "no TLS with" in reason(at | place | {"DOCKER_HOST": f"tcp://127.0.0.1:{plain}"})
        assert reason({"DOCKER_HOST": at["DOCKER_HOST"]}).startswith("no-answer"), "plain HTTP to a TLS port"


@requires("docker")
@pytest.mark.parametrize("more", ["", ",skip-tls-verify=true"])
def test_dockers_context_with_tls(mimic: MimicEngine, keys: Path, tmp_path: Path, more: str) -> None:
    """A context with keys that docker's own command made leads to an engine behind TLS; verified unless told not to."""
    other = certificates(tmp_path / "other")
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    with behind_port(mimic.path, keys) as port:
        for name, trusted in (("right", keys), ("wrong", other)):
            files = f"ca={trusted}/ca.pem,cert={keys}/client/cert.pem,key={keys}/client/key.pem"
            there = f"host=tcp://127.0.0.1:{port},{files}{more}"
            run(["docker", "context", "create", name, "--docker", there], env=home, cwd=tmp_path).expect()
        assert connected({**home, "DOCKER_CONTEXT": "right"}).address.remote
        if more:
            assert connected({**home, "DOCKER_CONTEXT": "wrong"}).address.remote
        else:
            assert "is not who it should be" in reason({**home, "DOCKER_CONTEXT": "wrong"})
        with pytest.raises(EngineUnavailable, match="a remote engine: its disk is not this machine's"):
            Engine.connect(5, environment={**home, "DOCKER_CONTEXT": "right"})


def test_where_nobody_is() -> None:
    """A port that nobody listens on, a host that nobody knows, one that takes no connection: no engine, and why."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert f"nobody listens on tcp://127.0.0.1:{port}" in reason({"DOCKER_HOST": f"tcp://127.0.0.1:{port}"})
    assert "no host of tcp://nowhere.invalid:2375 is known" in reason(
        {"DOCKER_HOST": "tcp://nowhere.invalid"}
    )
    for wrong in ("tcp://", "tcp://:2375", "tcp:host", "tcp://host:port", "tcp://[::1"):
        assert "no address of an engine" in reason({"DOCKER_HOST": wrong})


@pytest.mark.parametrize("tls", [False, True])
def test_a_port_that_says_nothing(keys: Path, tls: bool) -> None:
    """One that takes a connection, and no more than that, is given up in time, in the middle of TLS as well."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        variables = {"DOCKER_HOST": f"tcp://127.0.0.1:{listener.getsockname()[1]}"}
        if tls:
            variables |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(keys / "client")}
        with pytest.raises(EngineUnavailable) as caught:
            Engine.connect(0.2, environment=variables, remote=True)
    assert caught.value.outcome == "no-answer"
    assert ("in time" if tls else "did not answer within") in caught.value.reason


@requires("docker", "netns")
@pytest.mark.xdist_group("docker")
def test_docker_with_tls(keys: Path, tmp_path: Path) -> None:
    """A real Docker behind TLS, as docker:dind starts it: save, load, and the same ids; without keys it is exit 9."""
    settings = {
        "tlsverify": True,
        "tlscacert": str(keys / "ca.pem"),
        "tlscert": str(keys / "server/cert.pem"),
        "tlskey": str(keys / "server/key.pem"),
    }
    with docker_engine(settings, hosts=["tcp://127.0.0.1:2376"]) as host:
        identity = host.image("app:1", content=b"x" * 100_000)
        assert host.process is not None
        inside = [
            "nsenter",
            "-t",
            str(host.process.pid),
            "-n",
            "--",
            sys.executable,
            "-m",
            "cachekit",
            "image",
        ]

        def image(*arguments: str, place: Path = keys / "client", verify: str = "1") -> Result:
            named = {
                "DOCKER_HOST": "tcp://127.0.0.1:2376",
                "DOCKER_TLS_VERIFY": verify,
                "DOCKER_CERT_PATH": str(place),
            }
            return run([*inside, *arguments], env=clean_environment(tmp_path) | named, cwd=tmp_path)

        image("save", "--key=k", "app:1").expect()
        host.empty()
        image("load", "--key=k").expect()
        assert [found.id for found in host.client.images()] == [identity]
        (tmp_path / "bare").mkdir()
        shutil.copy(keys / "ca.pem", tmp_path / "bare")
        assert "certificate" in image("save", "--key=l", "app:1", place=tmp_path / "bare").expect(9).stderr
        without = image("save", "--key=l", "app:1", verify="").expect(9).stderr
        assert "tcp://127.0.0.1:2376 wants TLS" in without
        assert "hint: set DOCKER_TLS_VERIFY=1" in without
        missing = image("save", "--key=l", "app:1", place=tmp_path / "nowhere").expect(9).stderr
        assert "hint: say in $DOCKER_CERT_PATH" in missing
