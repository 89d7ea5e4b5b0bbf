"""The buildx snippet with a real BuildKit: what it builds anew, what it restores, what it repairs."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.snippets.stored import cut, entries, quarantined, whole
from tests.support.capabilities import requires
from tests.support.docker import DockerHost, Release
from tests.support.engines import Engines
from tests.support.filesystems import ext4
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Arg, Result, Running, clean_environment, run, start, wait_until
from tests.support.protected import cachekit_in

FOLDER = PROJECT / "ci-snippets" / "buildx"
#: Its own builder exports caches: the one that the snippet makes otherwise is an image that no test can fetch.
ENGINE = Release("trixie", containerd=True)
BASE = "node:22-bookworm-slim"
#: An engine without a bridge has no other network for a build.
OPTIONS = ("--progress=plain", "--load", "--network=none")

#: What `npm ci` does as far as an image's layers go: a large one, and made anew it is another.
NPM = "#!/bin/sh\nset -e\nmkdir node_modules\ndd if=/dev/urandom of=node_modules/data bs=100k count=20 2>/dev/null\n"

pytestmark = [requires("docker_trixie"), pytest.mark.xdist_group("engines")]


@dataclass(frozen=True)
class Machine:
    """A machine with an engine, on which the script is run in a checkout."""

    host: DockerHost
    root: Path

    def environment(self) -> dict[str, str]:
        """Make a job's environment."""
        own = clean_environment(self.root / "home") | self.host.environment
        more = {"BUILDX_BUILDER": "default", "BUILDX_CACHE": str(self.cache), "NO_COLOR": "1"}
        return own | more | {"PATH": f"{self.root}/bin:{own['PATH']}", "HOME": str(self.root / "home")}

    def start(self, tag: str = "app:1", **more: str) -> Running:
        """Start a build."""
        command: list[Arg] = [FOLDER / "build.sh", *OPTIONS, "--tag", tag, "."]
        return start(command, env=self.environment() | more, cwd=self.root / "checkout")

    def build(self, tag: str = "app:1") -> Result:
        """Run a build, which must succeed and leave the image."""
        with self.start(tag) as running:
            done = running.wait().expect()
        assert any(tag in name for image in self.host.client.images() for name in image.tags)
        return done

    def renew(self) -> None:
        """Be another machine: no cache directory, nothing in the engine but the base image."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.forget()

    def forget(self) -> None:
        """Let the engine have nothing but the base image."""
        self.host.empty()
        self.host.client.call("POST", "/images/create", _base_query(), body=_base(), kind="application/x-tar")

    @property
    def cache(self) -> Path:
        """BuildKit's cache directory."""
        return self.root / "buildx-cache"

    @property
    def store(self) -> Path:
        """Where the entries are."""
        return self.root / "home" / ".cache" / "cachekit"


def _base_query() -> Mapping[str, object]:
    name, _, tag = BASE.partition(":")
    return {"fromSrc": "-", "repo": name, "tag": tag, "changes": "ENV PATH=/bin"}


def _base() -> bytes:
    """An image with a shell, and an `npm` that needs no network."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("sh", "mkdir", "dd"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        npm = tarfile.TarInfo("bin/npm")
        npm.size, npm.mode = len(NPM), 0o755
        tar.addfile(npm, io.BytesIO(NPM.encode()))
    return packed.getvalue()


@pytest.fixture
def machine(engine_of: Engines, tmp_path: Path) -> Machine:
    """A machine that never built anything, with a checkout of an npm project and the snippet's Dockerfile."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copy(FOLDER / "Dockerfile", checkout)
    for name in ("package.json", "package-lock.json", "index.js"):
        (checkout / name).write_text("{}\n")
    for name in ("home", "home/tmp", "home/run"):
        (tmp_path / name).mkdir()
    cachekit_in(tmp_path / "bin")
    made = Machine(engine_of(ENGINE), tmp_path)
    made.forget()
    return made


def cached(done: Result) -> bool:
    """Whether BuildKit took the layer of `npm ci` from a cache."""
    [step] = [line.split()[0] for line in done.stderr.splitlines() if "RUN npm ci" in line]
    return f"{step} CACHED" in done.stderr


def test_three_builds(machine: Machine) -> None:
    """On a fresh machine each: the first misses and saves, the second finds its layers, the third refuses and heals."""
    assert not cached(machine.build())
    assert len(entries(machine.store)) == 1
    machine.renew()
    assert cached(machine.build())
    [entry] = entries(machine.store)
    cut(entry)
    machine.renew()
    assert not cached(machine.build())
    assert len(quarantined(machine.store)) == 1
    assert whole(machine.store) == 1


def test_a_damaged_layer_on_a_machine_that_keeps_its_disk(machine: Machine) -> None:
    """A layer that lost bytes would fail the build; the cache is made anew, and nothing else in its directory."""
    machine.build()
    (machine.cache / "notes").touch()
    for blob in (machine.cache / "blobs/sha256").iterdir():
        blob.chmod(0o644)
        cut(blob)
    shutil.rmtree(machine.store)
    machine.forget()
    assert not cached(machine.build())
    assert len(entries(machine.store)) == 1
    assert (machine.cache / "notes").exists()


def test_a_build_waits_for_another(machine: Machine) -> None:
    """While another build has the cache directory, it is not touched; then the build goes on."""
    machine.cache.mkdir()
    hold = machine.root / "hold"
    hold.touch()
    script = f"while [ -e {hold} ]; do sleep 0.02; done"
    other: list[Arg] = ["cachekit", "oci", "lock", machine.cache, "--", "sh", "-c", script]
    listing: list[Arg] = ["cachekit", "lock", "ls", "--dir", machine.cache, "--json"]

    def wait() -> bool:
        locks = run(listing, env=machine.environment()).expect().json()
        return any(lock["waiters"] for lock in locks)

    with start(other, env=machine.environment()) as another:
        wait_until(lambda: any(machine.cache.iterdir()), "the other build has the lock")
        with machine.start() as running:
            wait_until(wait, "the build waits")
            assert not (machine.cache / "index.json").exists()
            hold.unlink()
            another.wait().expect()
            running.wait().expect()
    assert len(entries(machine.store)) == 1


@requires("ext4")
def test_a_full_disk(machine: Machine) -> None:
    """A cache that cannot be written leaves the image good, and is not saved; with room the next build heals."""
    machine.cache.mkdir()
    with ext4(16 << 20, at=machine.cache) as disk:
        disk.fill(leave=500_000)
        machine.build()
        assert not entries(machine.store)
        disk.fill(leave=14 << 20)
        machine.forget()
        machine.build()
        assert len(entries(machine.store)) == 1


def test_a_failed_build(machine: Machine) -> None:
    """Its exit code is the script's, and nothing is saved."""
    (machine.root / "checkout/Dockerfile").write_text(f"FROM {BASE}\nRUN exit 7\n")
    with machine.start() as running:
        assert running.wait().code == 1
    assert not entries(machine.store)


def test_an_unusable_store(machine: Machine) -> None:
    """The image is built as after a miss."""
    machine.store.parent.mkdir()
    machine.store.write_text("not a directory")
    done = machine.build()
    assert done.stderr.count("cachekit: warning: ") == 2
