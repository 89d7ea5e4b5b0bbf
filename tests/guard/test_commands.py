"""``seal``, ``check`` and ``guard`` on the command line: codes, manifests that are none, files that are none."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.in_process import Here

MANIFEST = Path("f.gz.cachekit.json")


@pytest.fixture(autouse=True)
def file(here: Here) -> Path:
    """A whole file."""
    path = here.root / "f.gz"
    path.write_bytes(gzip.compress(os.urandom(5000)))
    return path


def test_sealed_and_changed(here: Here, file: Path) -> None:
    """A sealed file is ok; cut, longer or changed it is refused, and said how."""
    here("seal", "f.gz").expect()
    (report,) = here("check", "--require-seal", "--deep", "--json", "f.gz").expect().json()
    assert report["sealed"] is True
    data = file.read_bytes()
    for changed, words in (
        (data[:-7], f"ends at byte {len(data) - 7}, it was sealed with {len(data)}: 7 bytes are missing"),
        (data + b"xx", "2 bytes are too many"),
        (data[:9] + b"\x55" + data[10:], "other bytes than when it was sealed"),
    ):
        file.write_bytes(changed)
        assert words in here("check", "f.gz").expect(4).stderr


@pytest.mark.parametrize(
    "change", [b"", b"{}", b"[]", b"{", b'{"cachekit_file_seal": 2}', b"\xff", b"x" * (5 << 20)]
)
def test_manifests_that_are_none(here: Here, change: bytes) -> None:
    """A manifest that is cut, empty, newer or something else is a refusal, not a file without a manifest."""
    MANIFEST.write_bytes(change)
    assert "manifest" in here("check", "f.gz").expect(4).stderr


def test_every_flip_of_the_manifest_is_refused_or_means_the_same(here: Here) -> None:
    """The manifest has a digest of its own."""
    here("seal", "f.gz").expect()
    data = MANIFEST.read_bytes()
    facts = json.loads(data)["file"]
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 2
        MANIFEST.write_bytes(changed)
        if here("check", "f.gz").code == 0:
            assert json.loads(changed)["file"] == facts


def test_files_that_are_none(here: Here, file: Path) -> None:
    """What is empty, a fifo, a directory, absent, or of no format has its code; the others are looked at."""
    Path("empty").touch()
    os.mkfifo("fifo")
    Path("text").write_text("text")
    for name, code in (("empty", 4), ("fifo", 8), ("absent", 8), (".", 8), ("text", 4), ("f.gz/x", 8)):
        here("check", name).expect(code)
    here("check", "text", "absent", "f.gz").expect(8)
    here("seal", "text").expect()
    here("check", "text").expect()
    here("seal", "empty").expect(4)
    Path("text.cachekit.json").unlink()
    Path("text.cachekit.json").mkdir()
    assert "no regular file" in here("check", "text").expect(4).stderr
    here("check", "--require-seal", "f.gz").expect(4)
    file.rename("n" * 250)
    here("check", "n" * 250).expect()


def test_guard(cli: Cli, here: Here) -> None:
    """The command's own code; 121 when refused, and 125 to 127 when it could not be run."""
    base = {"cwd": here.root}
    cli("guard", "f.gz", "--", "sh", "-c", "exit 7", **base).expect(7)  # type: ignore[arg-type]
    done = cli("guard", "--stdin", "f.gz", "--", "sh", "-c", "gzip -t && echo read", **base).expect()  # type: ignore[arg-type]
    assert done.stdout == "read\n"
    Path("cut.gz").write_bytes(Path("f.gz").read_bytes()[:-1])
    for file, command, code in (
        ("cut.gz", "true", 121),
        ("absent", "true", 121),
        ("f.gz", "no-such-command", 127),
        ("f.gz", "/", 126),
    ):
        cli("guard", file, "--", command, **base).expect(code)  # type: ignore[arg-type]
    cli("guard", "--nonsense", "f.gz", "--", "true", **base).expect(125)  # type: ignore[arg-type]
