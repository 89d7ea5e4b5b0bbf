"""A real Docker engine of the test's own: its data, its socket, its network and its mounts, nothing of the machine's.

The system's own, or a newer one that `.ci/engines` unpacked: `ENGINES` has them all, each with both image stores if it
has two.

::

    with docker_engine() as host:
        base = host.image("base:1", busybox=True)
        host.container("base:1", command=["/bin/busybox", "sleep", "60"], run=True)
        host.client.images()

Needs the capability `docker`. The engine ends with the block, and with this process if that is killed.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cachekit.engine.client import Engine, EngineRefused
from cachekit.engine.outcome import EngineUnavailable
from tests.support import filesystems

START_SECONDS = 30.0

#: Read once: tests have another home.
UNPACKED = Path(
    os.environ.get("CACHEKIT_TEST_ENGINES")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cachekit-tests" / "engines"
)

_TOOLS = ("dockerd", "containerd", "runc", "docker", "unshare", "setpriv", "ip")
BUSYBOX = Path("/bin/busybox")

#: What an engine is started with: it has its own mounts and network, and ends with this process.
ISOLATED = ("setpriv", "--pdeathsig", "TERM", "--", "unshare", "--net", "--mount", "--propagation", "private")

#: In its own mount namespace the engine's mounts go when it does, and the machine's settings and containerd are hidden.
_SCRIPT = """
ip link set lo up
if [ -d /etc/docker ]; then mount -t tmpfs none /etc/docker; fi
if [ -d /run/containerd ]; then mount -t tmpfs none /run/containerd; fi
exec dockerd "$@"
"""


@dataclass(frozen=True)
class Release:
    """An engine to start: a suite of Debian whose engine is unpacked ("" for the system's own), and its image store."""

    suite: str = ""
    containerd: bool = False

    @property
    def name(self) -> str:
        """As in a test's id."""
        return f"{self.suite}-{'containerd' if self.containerd else 'classic'}" if self.suite else "system"

    @property
    def capability(self) -> str:
        """What a machine needs to run it."""
        return f"docker_{self.suite}" if self.suite else "docker"

    @property
    def root(self) -> Path:
        """Where its programs are unpacked; the system's root for its own."""
        return UNPACKED / self.suite / "root" if self.suite else Path("/")

    @property
    def settings(self) -> dict[str, object]:
        """Its daemon.json; engines before 24 know no choice."""
        return {"features": {"containerd-snapshotter": self.containerd}} if self.suite else {}

    @property
    def path(self) -> str:
        """A search path with its programs first."""
        own = f"{self.root}/usr/sbin:{self.root}/usr/bin:" if self.suite else ""
        return own + os.environ["PATH"]


SYSTEM = Release()
#: Bookworm's 20.10 (where that is the system), trixie's 26.1, sid's 28.5 or newer.
ENGINES = (
    SYSTEM,
    *(Release(suite, containerd) for suite in ("trixie", "sid") for containerd in (False, True)),
)


def unpacked(suite: str) -> str:
    """Why the engine of a suite cannot be used; an empty string if it can."""
    program = Release(suite).root / "usr/sbin/dockerd"
    if not program.exists():
        return f"no engine is unpacked for it (.ci/engines {suite})"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"its dockerd does not run here: {done.stderr.strip()}"


class CannotStartError(Exception):
    """No engine can be started here; the text says why."""


class DockerHost:
    """A running engine, empty to begin with."""

    def __init__(self, directory: Path, client: Engine, release: Release = SYSTEM) -> None:
        self.directory, self.client, self.release = directory, client, release
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """The engine's socket."""
        return self.directory / "docker.sock"

    def image(
        self,
        *names: str,
        content: bytes = b"",
        busybox: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Import an image with one file of `content`, or with busybox, and return its id; no name: dangling."""
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            member = tarfile.TarInfo("content")
            member.size = len(content or repr(names).encode())
            tar.addfile(member, io.BytesIO(content or repr(names).encode()))
            if busybox:
                tar.add(BUSYBOX, "bin/busybox")
        query: dict[str, object] = {"fromSrc": "-"}
        if names:
            query["repo"], _, query["tag"] = names[0].rpartition(":")
        if labels:
            query["changes"] = "LABEL " + " ".join(f"{name}={value}" for name, value in labels.items())
        answer = self.client.call(
            "POST", "/images/create", query, body=layer.getvalue(), kind="application/x-tar"
        )
        identity: str = json.loads(answer.body.splitlines()[-1])["status"]
        for name in names[1:]:
            self.client.tag_image(identity, name)
        return identity

    def container(
        self,
        image: str,
        name: str,
        command: tuple[str, ...] = ("/bin/busybox", "true"),
        *,
        start: bool = False,
        **settings: object,
    ) -> str:
        """Make a container, `start` it if asked, and return its id."""
        body = json.dumps({"Image": image, "Cmd": command, "StopTimeout": 0, **settings}).encode()
        answer = self.client.call(
            "POST", "/containers/create", {"name": name}, body=body, kind="application/json"
        )
        identity: str = json.loads(answer.body)["Id"]
        if start:
            self.client.call("POST", f"/containers/{identity}/start")
        return identity

    def wait_for(self, container: str) -> None:
        """Wait for the end of a container."""
        self.client.call("POST", f"/containers/{container}/wait")

    def volume(self, name: str = "") -> str:
        """Make a volume, anonymous without a name."""
        answer = self.client.call(
            "POST", "/volumes/create", body=json.dumps({"Name": name}).encode(), kind="application/json"
        )
        return str(json.loads(answer.body)["Name"])

    def docker(self, *args: str | Path, stdin: bytes = b"", buildkit: bool = True) -> str:
        """Run Docker's own command against this engine; return its output."""
        done = subprocess.run(
            [self.command, *args],
            env=self.environment | {"DOCKER_BUILDKIT": str(int(buildkit))},
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        output = os.fsdecode(done.stdout + done.stderr)
        assert done.returncode == 0, output
        return output

    @property
    def command(self) -> str:
        """Docker's own command, as it came with this engine: a newer one of the machine may want plugins."""
        own = self.release.root / "usr/bin/docker"
        return str(own) if own.exists() else shutil.which("docker") or "docker"

    @property
    def environment(self) -> dict[str, str]:
        """What Docker's command needs to speak to this engine, with buildx where that came with it."""
        plugins = self.directory / "config" / "cli-plugins"
        buildx = self.release.root / "usr/libexec/docker/cli-plugins/docker-buildx"
        if buildx.exists() and not plugins.exists():
            plugins.mkdir(parents=True)
            (plugins / "docker-buildx").symlink_to(buildx)
        return {
            "PATH": self.release.path,
            "HOME": str(self.directory),
            "DOCKER_CONFIG": str(self.directory / "config"),
            "DOCKER_HOST": f"unix://{self.socket}",
        }

    def snapshot(self) -> dict[str, object]:
        """What the engine has, for a comparison: its images with all names, and what their content takes on disk."""
        images = self.client.images(intermediate=True, measured=False)
        return {
            "images": sorted((image.id, image.tags, image.digests) for image in images),
            "blobs": sorted(
                path.name for path in self.directory.glob("data/containerd/daemon/*content*/blobs/*/*")
            ),
            "layers": sorted(path.name for path in self.directory.glob("data/image/*/layerdb/sha256/*")),
        }

    def kill(self) -> None:
        """Kill the engine as it is, with the containerd that it started."""
        assert self.process is not None
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def empty(self) -> None:
        """Remove everything from the engine, as no cleaner may."""
        for container in self.client.containers():
            self._quietly("DELETE", f"/containers/{container.id}", {"force": 1, "v": 1})
        # The classic store removes no image that another one was built on: in as many turns as they are deep.
        while images := self.client.images():
            left = [image for image in images if not self._removed(image.id)]
            if len(left) == len(images):
                raise AssertionError(f"the engine keeps {left}")
        for volume in self.client.volumes():
            self._quietly("DELETE", f"/volumes/{volume.name}", {"force": 1})
        self.client.prune_build_cache()

    def _removed(self, image: str) -> bool:
        try:
            self._quietly("DELETE", f"/images/{image}", {"force": 1})
        except EngineRefused as error:
            if error.status != 409:
                raise
            return False
        return True

    def _quietly(self, method: str, target: str, query: Mapping[str, object]) -> None:
        try:
            self.client.call(method, target, query)
        except EngineRefused as error:
            if error.status != 404:
                raise


@contextmanager
def docker_engine(
    settings: Mapping[str, object] | None = None,
    *,
    release: Release = SYSTEM,
    data: Path | None = None,
    hosts: Sequence[str] = (),
) -> Iterator[DockerHost]:
    """Start an engine; `settings` go into its daemon.json, `data` is its data root. Raises CannotStartError.

    `hosts`: where it listens besides its socket; ports are those of its own network.
    """
    for tool in _TOOLS:
        if shutil.which(tool, path=release.path) is None:
            raise CannotStartError(f"{tool} is not installed")
    if os.geteuid() != 0:
        raise CannotStartError("not root")
    if not BUSYBOX.exists():
        raise CannotStartError("busybox-static is not installed")
    with filesystems.private_directory() as directory:
        (directory / "daemon.json").write_text(json.dumps(release.settings | dict(settings or {})))
        data = data or directory / "data"
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_command(directory, data), *(f"--host={host}" for host in hosts)],
                env=os.environ | {"PATH": release.path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        host = None
        try:
            host = DockerHost(directory, greeted(directory, process), release)
            host.process = process
            yield host
        finally:
            stop(process, host, orderly=data != directory / "data")
            for below in ("data", "exec"):
                shutil.rmtree(directory / below, ignore_errors=True)


def _command(directory: Path, data: Path) -> list[str]:
    options = {
        "config-file": directory / "daemon.json",
        "data-root": data,
        "exec-root": directory / "exec",
        "pidfile": directory / "pid",
        "host": f"unix://{directory}/docker.sock",
        "bridge": "none",
        "iptables": "false",
    }
    return [*ISOLATED, "sh", "-ec", _SCRIPT, "sh", *(f"--{name}={value}" for name, value in options.items())]


def greeted(directory: Path, process: subprocess.Popen[bytes], name: str = "dockerd") -> Engine:
    """Wait until an engine that was started answers. Raises CannotStartError."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return Engine.connect(5, environment={"DOCKER_HOST": f"unix://{directory}/docker.sock"})
        except EngineUnavailable as error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = (directory / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise CannotStartError(f"{name} does not start: {error}: {' '.join(last)}") from None
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes], host: DockerHost | None, *, orderly: bool = True) -> None:
    """End the engine and its containers; nothing of it may outlive the test, however it went.

    An `orderly` end takes Docker five seconds, for the sake of what it keeps.
    """
    try:
        if host is not None:
            host.client.timeout = 20
            host.empty()
    except (EngineUnavailable, EngineRefused):
        pass  # it may have died; what it left ends with its namespaces
    if host is not None and process.poll() is None and not orderly:
        host.kill()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
