"""What the client makes of sockets and answers of every kind: one of three outcomes, in time, never a crash."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.engine.client import Engine, EngineRefused, can_be_named
from cachekit.engine.objects import (
    moment,
    read_cache,
    read_container,
    read_event,
    read_image,
    read_image_details,
    read_info,
    read_volume,
)
from cachekit.engine.outcome import EngineUnavailable
from tests.engine.fake_engine import FakeEngine, fake_engine
from tests.support.capabilities import requires
from tests.support.ordinary_user import NOBODY
from tests.support.processes import run


def outcome(environment: dict[str, str], timeout: float = 5) -> tuple[str, str]:
    """Connect, which must fail, and return the outcome and the reason."""
    with pytest.raises(EngineUnavailable) as caught:
        Engine.connect(timeout, environment=environment)
    return caught.value.outcome, caught.value.reason


def at(path: Path) -> dict[str, str]:
    """Return an environment in which the engine's socket is `path`."""
    return {"DOCKER_HOST": f"unix://{path}"}


def test_no_socket_is_no_engine(tmp_path: Path) -> None:
    """A machine without Docker has no engine, which is no trouble."""
    assert outcome(at(tmp_path / "none")) == ("no-engine", f"no engine: {tmp_path}/none does not exist")


def test_a_socket_that_nobody_listens_on_is_no_engine(tmp_path: Path) -> None:
    """A killed engine leaves its socket's name."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    assert outcome(at(tmp_path / "left.sock"))[0] == "no-engine"


def test_a_file_in_the_sockets_place_is_no_engine(tmp_path: Path) -> None:
    """Docker makes a directory where a missing socket was to be mounted; files happen too."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 200)):
        assert outcome(at(path))[0] == "no-engine"


def test_a_remote_engine_is_none_of_this_machine() -> None:
    """Its disk is elsewhere; and a password in its address is not told."""
    for host in ("tcp://user:secret@host:2376", "ssh://user:secret@host", "npipe://secret", "secret"):
        kind, reason = outcome({"DOCKER_HOST": host})
        assert kind == "no-engine"
        assert (
            "remote"
            if host.startswith("tcp")
            else "unix:// or tcp:// is asked"
            if "://" in host
            else "no address"
        ) in reason
        assert "secret" not in reason


@requires("unprivileged")
def test_a_socket_of_others_is_no_permission(open_path: Path) -> None:
    """A user outside the docker group is told so, and not that there is no engine."""
    with fake_engine(open_path) as fake:
        fake.path.chmod(0o600)
        code = (
            "from cachekit.engine.client import Engine\n"
            "from cachekit.engine.outcome import EngineUnavailable\n"
            "try: Engine.connect(5)\n"
            "except EngineUnavailable as error: print(error.outcome, error.reason)\n"
        )
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **at(fake.path),
        }
        done = run([sys.executable, "-c", code], env=environment, user=NOBODY, cwd=open_path).expect(0)
    assert done.stdout.startswith("no-permission ")
    assert str(fake.path) in done.stdout


def test_an_id_without_its_algorithm_is_the_same_id() -> None:
    """Podman leaves the algorithm out of some ids: they mean the images that others name with it."""
    bare = "ab" * 32
    row = read_image({"Id": f"sha256:{bare}", "ParentId": bare})
    details = read_image_details({"Id": bare})
    assert row is not None
    assert details is not None
    assert row.parent == details.id == f"sha256:{bare}"
    first = read_image({"Id": f"sha256:{bare}", "ParentId": ""})
    assert first is not None
    assert first.parent == ""


def test_the_api_version_is_agreed_on(tmp_path: Path) -> None:
    """The older of what both know; an engine that wants more than the client knows gets its least."""
    for theirs, least, ours in (
        ("1.41", "1.12", (1, 41)),
        ("1.99", "1.44", (1, 51)),
        ("1.99", "1.60", (1, 60)),
        ("1.40.1", "", (1, 40)),
    ):
        with fake_engine(tmp_path) as fake:
            fake.answers["GET /version"] = 200, {"ApiVersion": theirs, "MinAPIVersion": least}
            assert fake.connect().api == ours
        fake.path.unlink()


def test_an_engine_is_known_again(fake: FakeEngine) -> None:
    """Engines of one host may share their id, so the data directory counts too; Podman's id is another each time."""
    fake.answers["GET /info"] = 200, {"ID": "A", "DockerRootDir": "/data"}
    assert fake.connect().info().identity == "A /data"
    fake.answers["GET /version"] = 200, {"ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]}
    assert fake.connect().info().identity == "/data"


def test_the_containerd_store_may_lie_elsewhere(fake: FakeEngine) -> None:
    """With the containerd image store, images lie with the system's containerd unless the engine runs its own."""
    store = {"DockerRootDir": "/data", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    for address, roots in (
        ("/run/containerd/containerd.sock", ("/data", "/var/lib/containerd")),
        ("/data/own.sock", ("/data",)),
    ):
        fake.answers["GET /info"] = 200, {**store, "Containerd": {"Address": address}}
        assert fake.connect().info().roots == roots
    fake.answers["GET /info"] = 200, {"DockerRootDir": "/data", "Driver": "overlay2"}
    assert fake.connect().info().roots == ("/data",)


def raw(data: bytes) -> Callable[[Any], None]:
    """Make an answer of exactly these bytes."""

    def write(handler: Any) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return write


def endless(handler: Any) -> None:
    """Write a body that never ends."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 1_000_000)


def trickling(handler: Any) -> None:
    """Write one byte after the other, each long before a read would time out."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def trickling_head(handler: Any) -> None:
    """The same in the headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X")
        handler.wfile.flush()
        time.sleep(0.02)


def silent(handler: Any) -> None:
    """Say nothing until the client hangs up."""
    handler.connection.recv(1)


@pytest.mark.parametrize("answer", [trickling, trickling_head, silent])
def test_an_answer_that_does_not_end_is_given_up_in_time(
    fake: FakeEngine, answer: Callable[[Any], None]
) -> None:
    """The deadline holds for the whole answer, not for each byte of it."""
    client = fake.connect()
    fake.answers["GET /containers/json"] = answer
    client.timeout = 0.3
    with pytest.raises(EngineUnavailable, match=r"did not answer within 0\.3 s") as caught:
        client.containers()
    assert caught.value.outcome == "no-answer"


@pytest.mark.parametrize(
    "answer",
    [
        raw(b""),
        raw(b"\x00\xff" * 100),
        raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n[]"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n[]"),
        raw(b"HTTP/1.1 200 OK\r\n\r\n"),
        (200, b"{not json"),
        (200, b"\xff\xfe"),
        (200, b"[" * 200_000),
        (200, b"[" + b"9" * 100_000 + b"]"),
        (200, None),
        (200, {}),
        (200, "text"),
        (200, [None]),
        (200, [{"Id": 5}]),
        (200, [{"Id": ""}]),
    ],
)
def test_nonsense_is_no_answer(fake: FakeEngine, answer: Any) -> None:
    """A list of containers that is none, or only the beginning of one, must not pass for "nothing is in use"."""
    client = fake.connect()
    fake.answers["GET /containers/json"] = answer
    with pytest.raises(EngineUnavailable) as caught:
        client.containers()
    assert caught.value.outcome == "no-answer"
    assert "\n" not in caught.value.reason


def test_an_endless_answer_is_cut_off(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever an engine sends."""
    monkeypatch.setattr("cachekit.engine.transport._LARGEST_ANSWER", 4 << 20)
    client = fake.connect()
    fake.answers["GET /containers/json"] = endless
    with pytest.raises(EngineUnavailable, match="is over"):
        client.containers()


def test_an_errors_own_sentence_is_told(fake: FakeEngine) -> None:
    """The engine's message in one line; without one, the status."""
    client = fake.connect()
    for body, told in (
        ({"message": "no space\nleft on device"}, "no space left on device"),
        ({"message": "x" * 9999}, "x" * 500),
        ({"message": 7}, "the engine answered with status 500"),
        (b"<html>", "the engine answered with status 500"),
        (b"[" * 100_000, "the engine answered with status 500"),
    ):
        fake.answers["GET /containers/json"] = 500, body
        with pytest.raises(EngineRefused) as caught:
            client.containers()
        assert (caught.value.status, caught.value.message) == (500, told)


def test_a_broken_line_among_events_is_passed_over(fake: FakeEngine) -> None:
    """Events are news; what cannot be read of them is left out."""
    good = {"Type": "image", "Action": "pull", "Actor": {"ID": "a:1"}, "timeNano": 5}
    lines = [b"{", b"[1]", b"\xff", json.dumps(good).encode(), b"", b"[" * 100_000]
    fake.answers["GET /events"] = 200, b"\n".join(lines)
    assert [event.subject for event in fake.connect().events(1, 2)] == ["a:1"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
FIELDS = st.sampled_from(
    "Id ID Names Image ImageID State Status Labels Mounts Name Created CreatedAt RepoTags RepoDigests Size SharedSize "
    "Containers Manifests Descriptor ImageData digest Type Action Actor Attributes image timeNano time from Driver "
    "DockerRootDir DriverStatus Containerd Address InUse Shared ParentId StartedAt FinishedAt".split()
)
OBJECTS = st.dictionaries(FIELDS, JSON | st.dictionaries(FIELDS, JSON, max_size=4), max_size=12)


@given(JSON | OBJECTS, JSON | OBJECTS)
def test_no_value_breaks_a_reader(value: object, other: object) -> None:
    """Whatever types an engine's fields have, reading them raises nothing."""
    read_container(value, other)
    read_info(value, other)
    for read in (read_image, read_volume, read_cache, read_event):
        read(value)


def test_times_of_all_engines_are_read() -> None:
    """Nanoseconds, fewer digits, zones, whole seconds; and Go's zero time is none."""
    assert moment("1970-01-01T00:00:01Z") == 10**9
    assert moment("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert moment("1970-01-01T00:00:01.000000001Z") == 1_000_000_001
    assert moment("1970-01-01T02:00:01.5+02:00") == 1_500_000_000
    assert moment(5) == 5 * 10**9
    for none in (
        "0001-01-01T00:00:00Z",
        "",
        "yesterday",
        "2024-13-01T00:00:00Z",
        None,
        True,
        -5,
        1 << 70,
        1.5,
    ):
        assert moment(none) is None


def test_only_names_that_engines_give_go_into_a_request() -> None:
    """No name may lead a request to another place of the API."""
    for good in ("sha256:" + "0" * 64, "a/b:1", "host:5000/a/b@sha256:ab", "A_b.c-d"):
        assert can_be_named(good)
    for bad in ("", "../x", "a/../b", "a?force=1", "a b", "a\n", "-x", "/x", "a%2e", "x" * 600, "ä"):
        assert not can_be_named(bad)
