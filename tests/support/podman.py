"""A real Podman of the test's own, behind its Docker-compatible API: its data, its socket, nothing of the machine's.

::

    with podman_engine() as host:
        host.image("app:1", busybox=True)  # Podman calls it localhost/app:1
        host.client.images()

Needs the capability `podman`. The engine ends with the block, and with this process if that is killed.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import filesystems
from tests.support.docker import BUSYBOX, ISOLATED, CannotStartError, DockerHost, Release, greeted, stop
from tests.support.images import image_archive, layer, made_image

__all__ = ["PODMAN", "PodmanHost", "PodmanRelease", "podman_engine"]

_TOOLS = ("podman", "conmon", "runc", "unshare", "setpriv", "ip")

#: Its locks in /dev/shm and what it keeps in /run are the machine's, whatever its options say.
_SCRIPT = """
ip link set lo up
mount -t tmpfs none /dev/shm
for place in /run/libpod /run/containers /run/crun; do
    if [ -d "$place" ]; then mount -t tmpfs none "$place"; fi
done
exec podman "$@"
"""


@dataclass(frozen=True)
class PodmanRelease(Release):
    """The system's Podman."""

    @property
    def name(self) -> str:
        """As in a test's id."""
        return "podman"

    @property
    def capability(self) -> str:
        """What a machine needs to run it."""
        return "podman"


PODMAN = PodmanRelease()


class PodmanHost(DockerHost):
    """A running Podman, empty to begin with."""

    def image(
        self,
        *names: str,
        content: bytes = b"",
        busybox: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Load an image of one layer and return its id: an import of Podman 4.3 ignores the tag."""
        out = io.BytesIO(layer({"content": content or repr(names).encode()}))
        if busybox:
            with tarfile.open(fileobj=out, mode="a") as tar:
                tar.add(BUSYBOX, "bin/busybox")
        made = made_image(*names, layers=[out.getvalue()], command="/bin/busybox", labels=labels)
        self.load(image_archive([made], "legacy"))
        return made.id

    def load(self, archive: bytes) -> None:
        """Load an archive of images past cachekit."""
        self.client.call("POST", "/images/load", body=archive, kind="application/x-tar")

    def docker(self, *args: str | Path, stdin: bytes = b"", buildkit: bool = True) -> str:
        """Run Podman's own command against this engine; return its output."""
        del buildkit
        if args[0] == "save":
            args = ("save", "--multi-image-archive", *args[1:])
        done = subprocess.run(
            [self.command, "--remote", "--url", f"unix://{self.socket}", *args],
            env=self.environment,
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
        """Podman's own command."""
        return shutil.which("podman") or "podman"

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to speak to this engine."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "TMPDIR": str(self.copies),
            "CONTAINER_HOST": f"unix://{self.socket}",
        }

    @property
    def copies(self) -> Path:
        """Where this engine makes its copies."""
        return self.directory / "copies"

    def snapshot(self) -> dict[str, object]:
        """What the engine has, for a comparison: its images with all names, its layers, and copies it forgot."""
        images = self.client.images(intermediate=True, measured=False)
        return {
            "images": sorted((image.id, image.tags, image.digests) for image in images),
            "layers": sorted(path.name for path in self.directory.glob("data/vfs/dir/*")),
            "copies": sorted(path.name for path in self.copies.iterdir()),
        }

    def empty(self) -> None:
        """Remove everything from the engine, as no cleaner may."""
        for container in self.client.containers():
            self._quietly("DELETE", f"/containers/{container.id}", {"force": 1, "v": 1})
        for image in self.client.images(intermediate=True):
            self._quietly("DELETE", f"/images/{image.id}", {"force": 1})
        for volume in self.client.volumes():
            self._quietly("DELETE", f"/volumes/{volume.name}", {"force": 1})
        for path in self.copies.iterdir():  # of a build or an import: Podman 4.3 forgets some
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def podman_engine(data: Path | None = None) -> Iterator[PodmanHost]:
    """Start Podman's service on a socket of its own; `data` is its data root. Raises CannotStartError."""
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            raise CannotStartError(f"{tool} is not installed")
    if os.geteuid() != 0:
        raise CannotStartError("not root")
    if not BUSYBOX.exists():
        raise CannotStartError("busybox-static is not installed")
    with filesystems.private_directory() as directory:
        (directory / "copies").mkdir()
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*ISOLATED, "sh", "-ec", _SCRIPT, "sh", *_options(directory, data or directory / "data")],
                env={"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": f"{directory}/copies"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        host = None
        try:
            host = PodmanHost(directory, greeted(directory, process, "podman"), PODMAN)
            host.process = process
            yield host
        finally:
            stop(process, host)
            for below in ("data", "run", "tmp", "copies"):
                shutil.rmtree(directory / below, ignore_errors=True)


def _options(directory: Path, data: Path) -> list[str]:
    options = {
        "root": data,
        "runroot": directory / "run",
        "tmpdir": directory / "tmp",
        "storage-driver": "vfs",
        "cgroup-manager": "cgroupfs",
        "events-backend": "file",
    }
    service = ["system", "service", "--time=0", f"unix://{directory}/docker.sock"]
    return [*(f"--{name}={value}" for name, value in options.items()), *service]
