"""What real engines write, cut in every way, and the story of the disk that filled up."""

from __future__ import annotations

import json
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.docker import DockerHost
from tests.support.filesystems import tmpfs
from tests.support.in_process import Here

pytestmark = [requires("docker"), pytest.mark.xdist_group("engines")]


def test_every_truncation_class_is_refused(here: Here, any_engine: DockerHost) -> None:
    """A real archive is sealed and whole; cut in a layer, at members' edges, or in its end it is refused either way."""
    any_engine.image("app:1", content=b"content " * 60_000)
    archive = here.root / "images.tar"
    any_engine.docker("save", "-o", archive, "app:1")
    (report,) = here("check", "--json", "images.tar").expect().json()
    assert report["kind"] == "docker-archive"
    assert report["structure"]["images"][0]["names"] == ["app:1"]
    here("seal", "images.tar").expect()
    data = archive.read_bytes()
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    large = max(members, key=lambda one: one.size)
    last = max(one.offset_data + -(-one.size // 512) * 512 for one in members)
    cuts = {one.offset for one in members} | {
        large.offset_data + 1000,
        large.offset_data + large.size,
        last,
        last + 512,
        last + 100,
        next(one.offset for one in members if one.name == "manifest.json") + 600,
    }
    manifest = Path("images.tar.cachekit.json")
    text = manifest.read_bytes()
    for cut in sorted(cuts - {0}):
        archive.write_bytes(data[:cut])
        manifest.write_bytes(text)
        told = here("check", "images.tar").expect(4).stderr
        assert f"{len(data) - cut} bytes are missing" in told
        manifest.unlink()
        here("check", "images.tar").expect(4)
        here("seal", "images.tar").expect(4)
        assert not manifest.exists()


@requires("tmpfs")
def test_the_disk_that_filled_up(cli: Cli, any_engine: DockerHost) -> None:
    """`docker save >` on a full disk leaves a short file: it is not sealed, refused, and the engine never sees it."""
    any_engine.image("app:1", content=random.Random(1).randbytes(7 << 20))
    with tmpfs(4 << 20) as small:
        archive = small.path / "images.tar"
        with archive.open("wb") as out:
            done = subprocess.run(
                [any_engine.command, "save", "app:1"],
                env=any_engine.environment,
                stdout=out,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=60,
            )
        assert done.returncode
        any_engine.empty()
        before = any_engine.snapshot()
        cli("seal", archive).expect(4)
        assert "bytes are missing" in cli("check", archive).expect(4).stderr
        cli(
            *("guard", archive, "--", any_engine.command, "load", "-i", archive), env=any_engine.environment
        ).expect(121)
        assert any_engine.snapshot() == before


def test_guard_gives_the_engine_the_checked_file(cli: Cli, any_engine: DockerHost) -> None:
    """A whole archive is loaded, from the very file that was checked."""
    any_engine.image("app:1", content=b"content")
    any_engine.docker("save", "-o", cli.cwd / "images.tar", "app:1")
    cli("seal", "images.tar").expect()
    any_engine.empty()
    cli(
        *("guard", "--stdin", "--require-seal", "images.tar", "--", any_engine.command, "load"),
        env=any_engine.environment,
    ).expect()
    assert "app:1" in json.dumps(any_engine.snapshot(), default=str)
