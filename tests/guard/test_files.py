"""seal, check and guard: an existing pipeline made safe by two lines."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import SourceChanged
from cachekit.guard import files
from cachekit.guard import inspect as inspecting
from tests.support.capabilities import need, requires
from tests.support.cli import Cli
from tests.support.docker import DockerHost, docker_engine
from tests.support.filesystems import tmpfs
from tests.support.images import STYLES, Style, archive_parts, layer, made_image, tar_of_parts
from tests.support.processes import wait_until

KEY = "a-key-of-at-least-16-bytes"
IMAGE = made_image("app:1", layers=[layer({"a": b"a" * 50_000}), layer({"b": b"b" * 20_000})])


@pytest.fixture
def archive(cli: Cli) -> Path:
    """An image archive as docker save writes it."""
    path = cli.cwd / "images.tar"
    path.write_bytes(tar_of_parts(archive_parts([IMAGE])))
    return path


def manifest(path: Path) -> Path:
    """Return the place of a file's manifest."""
    return path.with_name(path.name + ".cachekit.json")


def test_seal_then_check(cli: Cli, archive: Path) -> None:
    """A sealed file is ok; the manifest says its size, digest and images; nothing else is left behind."""
    done = cli("seal", "images.tar").expect(0)
    assert "docker-archive, 1 image (app:1)" in done.stderr
    facts = json.loads(manifest(archive).read_text())["file"]
    assert facts["size"] == archive.stat().st_size
    assert facts["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert facts["structure"]["images"][0]["names"] == ["app:1"]
    assert "ok, as sealed" in cli("check", "images.tar").expect(0).stderr
    assert "ok, as sealed" in cli("check", "--deep", "images.tar").expect(0).stderr
    assert sorted(path.name for path in cli.cwd.iterdir()) == ["images.tar", "images.tar.cachekit.json"]


def positions(style: Style) -> dict[str, int]:
    """Return where an archive is cut: in a layer, between members, before manifest.json, in its last blocks."""
    parts = archive_parts([IMAGE], style)
    ends, done = {}, 0
    for number, part in enumerate(parts):
        done = len(tar_of_parts(parts[: number + 1], end=False))
        ends[part.name] = done
    big = max(parts, key=lambda part: len(part.content))
    before = parts[[part.name for part in parts].index("manifest.json") - 1]
    return {
        "in a layer": ends[big.name] - 5000,
        "at a layer's edge": ends[big.name],
        "before manifest.json": ends[before.name],
        "without end blocks": done,
        "in the last blocks": done + 700,
        "in the first header": 100,
        "empty": 0,
    }


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("where", list(positions("classic")))
@pytest.mark.parametrize("sealed", [False, True])
def test_every_class_of_truncation(cli: Cli, archive: Path, style: Style, where: str, sealed: bool) -> None:
    """A cut archive is refused with a manifest and without, is not sealed, and its command is not run."""
    archive.write_bytes(tar_of_parts(archive_parts([IMAGE], style)))
    if sealed:
        cli("seal", "images.tar").expect(0)
    end = positions(style)[where]
    os.truncate(archive, end)
    done = cli("check", "images.tar").expect(4)
    assert any(word in done.stderr for word in (f"byte {end}", "missing", "empty", "is called images.tar"))
    before = manifest(archive).read_bytes() if sealed else b""
    cli("seal", "images.tar").expect(4)
    assert (manifest(archive).read_bytes() if sealed else b"") == before
    cli("guard", "images.tar", "--", "touch", "ran").expect(121)
    assert not (cli.cwd / "ran").exists()


@pytest.mark.parametrize("style", STYLES)
def test_what_is_wrong_inside(cli: Cli, archive: Path, style: Style) -> None:
    """A missing layer, one with another content, and a swapped config are refused, though the tar is whole."""
    parts = archive_parts([IMAGE], style)
    big = max(range(len(parts)), key=lambda number: len(parts[number].content))
    config = next(number for number, part in enumerate(parts) if part.content == IMAGE.config)
    flipped = bytearray(parts[big].content)
    flipped[len(flipped) // 2] ^= 1
    other = made_image("x:1", layers=[]).config
    for changed in (
        parts[:big] + parts[big + 1 :],
        [*parts[:big], type(parts[big])(parts[big].name, bytes(flipped)), *parts[big + 1 :]],
        [*parts[:config], type(parts[config])(parts[config].name, other), *parts[config + 1 :]],
    ):
        archive.write_bytes(tar_of_parts(changed))
        assert "not whole" in cli("check", "images.tar").expect(4).stderr
        cli("seal", "images.tar").expect(4)


def test_a_flipped_bit_in_a_sealed_file(cli: Cli) -> None:
    """A file whose format promises nothing is guarded by its manifest: any other byte is refused."""
    path = cli.cwd / "model.bin"
    path.write_bytes(os.urandom(10_000))
    assert "not sealed" in cli("check", "model.bin").expect(4).stderr
    cli("seal", "model.bin").expect(0)
    cli("check", "model.bin").expect(0)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert "other bytes than when it was sealed" in cli("check", "model.bin").expect(4).stderr
    path.write_bytes(data + b"x")
    assert "1 bytes are too many" in cli("check", "model.bin").expect(4).stderr


def test_several_files(cli: Cli, archive: Path) -> None:
    """All files are looked at, whatever is wrong with the first; the worst code is that of the command."""
    (cli.cwd / "bad.tar").write_bytes(archive.read_bytes()[:9000])
    done = cli("check", "nowhere", "bad.tar", "images.tar", "--json").expect(8)
    assert [one["verdict"] for one in done.json()] == ["nothing-matched", "damaged", "ok"]
    assert cli("check", "bad.tar", "images.tar").expect(4).stderr.count("images.tar: ok") == 1


def test_require_seal(cli: Cli, archive: Path) -> None:
    """With --require-seal a whole file without a manifest is refused."""
    cli("check", "images.tar").expect(0)
    assert "no manifest" in cli("check", "--require-seal", "images.tar").expect(4).stderr
    cli("guard", "--require-seal", "images.tar", "--", "true").expect(121)
    cli("seal", "images.tar").expect(0)
    cli("check", "--require-seal", "images.tar").expect(0)


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["file"].update(size=1),
        lambda value: value["file"].update(sha256="0" * 64),
        lambda value: value.pop("check"),
        lambda value: value.pop("file"),
        lambda value: value.update(cachekit_file_seal=2),
        lambda value: value.update(file=[]),
    ],
)
def test_a_manifest_that_was_changed(
    cli: Cli, archive: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """A manifest that is damaged, edited or of a newer version is refused, not ignored."""
    cli("seal", "images.tar").expect(0)
    edited(manifest(archive), change)
    assert "images.tar.cachekit.json" in cli("check", "images.tar").expect(4).stderr
    cli("seal", "images.tar").expect(0)
    cli("check", "images.tar").expect(0)


def test_a_manifest_with_more_than_can_be_shown(cli: Cli, archive: Path) -> None:
    """What somebody else's manifest says of the structure may be nested deep: the command still gives its answer."""
    cli("seal", "images.tar").expect(0)

    def change(value: dict[str, Any]) -> None:
        value["file"]["structure"]["more"] = json.loads("[" * 600 + "]" * 600)
        text = json.dumps(value["file"], sort_keys=True, separators=(",", ":"))
        value["check"] = hashlib.sha256(text.encode()).hexdigest()

    edited(manifest(archive), change)
    assert cli("check", "--json", "images.tar").expect(0).json()[0]["verdict"] == "ok"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none(cli: Cli, archive: Path, data: bytes) -> None:
    """Garbage in the manifest's place is refused."""
    manifest(archive).write_bytes(data)
    cli("check", "images.tar").expect(4)


def test_a_manifest_of_another_file(cli: Cli, archive: Path) -> None:
    """The manifest of another file does not vouch for this one."""
    (cli.cwd / "other.tar").write_bytes(tar_of_parts(archive_parts([made_image("o:1", layers=[])])))
    cli("seal", "other.tar").expect(0)
    manifest(cli.cwd / "other.tar").rename(manifest(archive))
    cli("check", "images.tar").expect(4)


def test_signed_manifests(cli: Cli, archive: Path) -> None:
    """With a key the manifest is signed; without its key, with another, or forged, it is refused where trust asks."""
    keyed = {"CACHEKIT_HMAC_KEY": KEY}
    cli("seal", "images.tar").expect(0)
    assert "not signed" in cli("check", "images.tar", env=keyed).expect(4).stderr
    cli("check", "--trust=none", "images.tar", env=keyed).expect(0)
    cli("seal", "images.tar", env=keyed).expect(0)
    cli("check", "images.tar", env=keyed).expect(0)
    cli("check", "images.tar").expect(0)
    cli("check", "images.tar", env={"CACHEKIT_HMAC_KEY": "another-key-of-16-bytes"}).expect(4)
    edited(manifest(archive), lambda value: value["hmac"].update(sha256="0" * 64))
    assert cli("check", "--json", "images.tar", env=keyed).expect(4).json()[0]["verdict"] == "forged"
    manifest(archive).unlink()
    cli("check", "images.tar", env=keyed).expect(4)


def test_what_is_no_file(cli: Cli) -> None:
    """A directory, a fifo and a name that is not there are told as what they are, and nobody waits."""
    (cli.cwd / "d").mkdir()
    os.mkfifo(cli.cwd / "fifo")
    for name in ("d", "fifo", "nowhere"):
        cli("check", name).expect(8)
        cli("seal", name).expect(8)
        cli("guard", name, "--", "true").expect(121)


def test_a_file_that_changes_while_it_is_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that somebody still writes is neither sealed nor said to be ok."""
    inspect = inspecting.inspect

    def growing(*args: Any) -> Any:
        found = inspect(*args)
        with archive.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr("cachekit.guard.files.inspect", growing)
    with pytest.raises(SourceChanged):
        files.seal_file(str(archive))
    with pytest.raises(SourceChanged):
        files.check_file(str(archive))
    assert not manifest(archive).exists()


@requires("tmpfs")
def test_a_full_disk(cli: Cli) -> None:
    """On a full disk no half manifest appears: exit 8, and an older one stays as it was."""
    with tmpfs(1 << 20) as disk:
        path = disk.path / "file.gz"
        path.write_bytes(gzip.compress(b"content"))
        cli("seal", str(path)).expect(0)
        before = manifest(path).read_bytes()
        disk.fill(0)
        cli("seal", str(path)).expect(8)
        assert manifest(path).read_bytes() == before
        assert not list(disk.path.glob("*.part"))
        cli("check", str(path)).expect(0)


def test_guard_runs_in_our_place(cli: Cli, archive: Path) -> None:
    """The command's code is that of guard; its own failures are 125, 126 and 127, and the command is then not run."""
    cli("guard", "images.tar", "--", "sh", "-c", "exit 7").expect(7)
    cli("guard", "images.tar", "--", "no-such-command").expect(127)
    (cli.cwd / "plain").write_text("x")
    cli("guard", "images.tar", "--", "./plain").expect(126)
    cli("guard", "images.tar").expect(125)
    cli("guard", "--no-such-option", "images.tar", "--", "true").expect(125)
    assert cli("guard", "images.tar", "--", "sh", "-c", "echo out").expect(0).stdout == "out\n"


def test_guard_passes_signals_on(cli: Cli, archive: Path) -> None:
    """The command is guard's process: a signal ends it as it would without guard."""
    with cli.start("guard", "images.tar", "--", "sh", "-c", "touch begun; exec sleep 60") as running:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        running.send(signal.SIGTERM)
        assert running.wait().code == -signal.SIGTERM


def test_guard_gives_the_checked_file(cli: Cli, archive: Path) -> None:
    """With --stdin the command reads the very file that was checked, from its beginning."""
    done = cli("guard", "--stdin", "images.tar", "--", "sh", "-c", "rm images.tar; sha256sum").expect(0)
    expected = hashlib.sha256(tar_of_parts(archive_parts([IMAGE]))).hexdigest()
    assert done.stdout.split()[0] == expected


def test_guard_checks_several(cli: Cli, archive: Path) -> None:
    """--also names further files; one that is refused keeps the command from running."""
    (cli.cwd / "bad.tar").write_bytes(b"x")
    cli("guard", "images.tar", "--also", "bad.tar", "--", "touch", "ran").expect(121)
    assert not (cli.cwd / "ran").exists()
    cli("guard", "images.tar", "--also", "images.tar", "--", "touch", "ran").expect(0)


@pytest.fixture(scope="module")
def engine() -> Any:
    """A real engine."""
    need("docker")
    with docker_engine() as host:
        yield host


@requires("docker", "tmpfs")
@pytest.mark.xdist_group("docker")
def test_the_founding_failure(cli: Cli, engine: DockerHost) -> None:
    """Docker save on a disk that fills up leaves a short file: not sealed, not ok, and it never reaches an engine."""
    engine.empty()
    engine.image("app:1", busybox=True, content=os.urandom(300_000))
    with tmpfs(4 << 20) as disk:
        short = disk.path / "images.tar"
        disk.fill(800_000)
        with short.open("wb") as out:
            saved = subprocess.run(
                [engine.command, "save", "app:1"],
                env=engine.environment,
                stdout=out,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert saved.returncode != 0
        assert short.stat().st_size > 100_000
        cli("seal", str(short)).expect(4)
        assert "missing" in cli("check", str(short)).expect(4).stderr
        engine.empty()
        before = engine.snapshot()
        environment = engine.environment
        cli("guard", str(short), "--", engine.command, "load", "-i", str(short), env=environment).expect(121)
        assert engine.snapshot() == before


@requires("docker")
@pytest.mark.xdist_group("docker")
def test_a_real_archive(cli: Cli, engine: DockerHost) -> None:
    """A real docker save is sealed, checked, guarded and loaded; so is one in gzip."""
    engine.empty()
    identity = engine.image("app:1", busybox=True)
    engine.docker("save", "-o", cli.cwd / "images.tar", "app:1")
    (cli.cwd / "images.tar.gz").write_bytes(gzip.compress((cli.cwd / "images.tar").read_bytes(), 1))
    done = cli("seal", "--json", "images.tar", "images.tar.gz").expect(0)
    assert [one["kind"] for one in done.json()] == ["docker-archive", "docker-archive in gzip"]
    engine.empty()
    for name in ("images.tar", "images.tar.gz"):
        cli("guard", "--stdin", name, "--", engine.command, "load", env=engine.environment).expect(0)
        assert [image.id for image in engine.client.images()] == [identity]
        engine.empty()


def test_an_ordinary_tar_is_no_archive_of_images(cli: Cli) -> None:
    """A tar that happens to begin like an archive of images is checked as the tar that it is."""
    with tarfile.open(cli.cwd / "x.tar", "w") as tar:
        (cli.cwd / "blobs").mkdir()
        (cli.cwd / "blobs" / "file").write_text("x")
        tar.add(cli.cwd / "blobs", "blobs")
    assert cli("check", "--json", "x.tar").expect(0).json()[0]["kind"] == "tar"


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tgz", "x.zst", "x.zip", "X.TAR.XZ", "x.whl"])
def test_a_name_promises_a_format(cli: Cli, name: str) -> None:
    """An error page under an archive's name, or the first bytes of one, is refused, and not sealed either."""
    (cli.cwd / name).write_bytes(b"<html>502 Bad Gateway</html>")
    assert f"is called {name}" in cli("check", name).expect(4).stderr
    cli("seal", name).expect(4)
