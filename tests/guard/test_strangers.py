"""``seal``, ``check`` and ``guard`` where the surroundings, a manifest or a file's contents are hostile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cachekit.guard.files import seal_file
from tests.crash.scene import die_at
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.processes import clean_environment


def shell(cli: Cli, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which CACHEKIT stands for the command, and where whole.tar is and cut.tar is not."""
    (cli.cwd / "whole.tar").write_bytes(bytes(10240))
    (cli.cwd / "cut.tar").write_bytes(bytes(512))
    return subprocess.run(
        ["bash", "-c", command.replace("CACHEKIT", f"{sys.executable} -m cachekit")],
        cwd=cli.cwd,
        env=clean_environment(cli.home) | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_callers_standard_input_is_closed(cli: Cli) -> None:
    """With --stdin the command gets the file also if cachekit itself was started without a standard input."""
    done = shell(cli, "CACHEKIT guard --stdin whole.tar -- wc -c <&-")
    assert (done.stdout.strip(), done.returncode) == ("10240", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "output"),
    [
        ("check whole.tar", 0, ""),
        ("check cut.tar", 4, ""),
        ("guard whole.tar -- sh -c 'echo ran; exit 7'", 7, "ran\n"),
        ("guard cut.tar -- echo ran", 121, ""),
        ("guard whole.tar -- nothing-of-this-name", 127, ""),
        ("check", 2, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_log_that_is_full(cli: Cli, line: str, code: int, output: str, unbuffered: str) -> None:
    """A log on the disk that filled up changes nothing of what is done, and nothing of the code."""
    done = shell(cli, f"CACHEKIT {line} 2>/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stdout) == (code, output)
    gone = shell(cli, f"CACHEKIT {line} 2> >(true); exit $?", PYTHONUNBUFFERED=unbuffered)
    assert (gone.returncode, gone.stdout) == (code, output)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_answer_that_cannot_be_written(cli: Cli) -> None:
    """With PYTHONUNBUFFERED, as CI images set it, a full or closed stdout is told as what it is, not as a bug."""
    done = shell(cli, "CACHEKIT check --json whole.tar >/dev/full", PYTHONUNBUFFERED="1")
    assert done.returncode == 1
    assert "could not be written" in done.stderr
    assert "internal" not in done.stderr
    done = shell(cli, "(sleep 1; CACHEKIT check --json whole.tar; echo $? >&2) | true", PYTHONUNBUFFERED="1")
    assert done.stderr.split()[-1] == "141"
    assert "internal" not in done.stderr


def forged(**facts: Any) -> str:
    """Return a manifest of the five bytes of `hello` that is right but for what is given."""
    about: dict[str, Any] = {
        "size": 5,
        "sha256": hashlib.sha256(b"hello").hexdigest(),
        "kind": "unknown",
        "structure": {},
        "created_ns": 1,
        "host": "",
    }
    about |= facts
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    check = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"cachekit_file_seal": 1, "file": about, "check": check})


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "\x1b]0;title\x07\n::error::x"},
        {"kind": "\ud800"},
        {"structure": {"images": [{"names": 5}]}},
        {"structure": {"images": [{"names": "\x1babc"}]}},
        {"structure": {"images": [{"names": ["\x1b[31m"]}]}},
        {"structure": {"images": [{}, 5]}},
        {"structure": {"members": -5}},
        {"structure": {"members": float("nan")}},
        {"structure": {"encrypted": "\x1b"}},
        {"size": -5},
        {"size": 10**300},
        {"sha256": "\x1b\n::error::x"},
    ],
)
def test_a_manifest_that_somebody_made_up(here: Here, facts: dict[str, Any]) -> None:
    """What a manifest says reaches neither terminal nor log unescaped, and ends with ok or a refusal."""
    Path("f").write_bytes(b"hello")
    Path("f.cachekit.json").write_text(forged(**facts))
    done = here("check", "--json", "f")
    assert done.code in {0, 4}
    assert "\x1b" not in done.stderr + done.stdout
    assert not any(line.startswith("::error::") for line in done.stderr.splitlines())
    json.loads(done.stdout, parse_constant=pytest.fail)


def test_manifests_among_the_files(here: Here) -> None:
    """A manifest that is named stands for its file: a pattern may match both, as often as one likes."""
    for name in ("a.bin", "b.bin"):
        Path(name).write_bytes(name.encode())
    for _ in range(2):
        done = here("seal", *sorted(os.listdir())).expect()
        assert done.stderr.count("sealed") == 2
        assert sorted(os.listdir()) == ["a.bin", "a.bin.cachekit.json", "b.bin", "b.bin.cachekit.json"]
    assert len(here("check", "--json", *sorted(os.listdir())).expect().json()) == 2
    Path("b.bin").unlink()
    assert "b.bin: there is no such file" in here("check", *sorted(os.listdir())).expect(8).stderr
    assert here("guard", "a.bin.cachekit.json", "--", "true").code == 121


def test_a_manifest_that_leads_nowhere(here: Here) -> None:
    """A manifest that is a link to nothing is a refusal, not a file without a manifest."""
    Path("whole.tar").write_bytes(bytes(10240))
    os.symlink("nowhere", "whole.tar.cachekit.json")
    done = here("check", "whole.tar").expect(4)
    assert "leads nowhere" in done.stderr
    assert "cachekit seal" in done.stderr
    here("seal", "whole.tar").expect()
    here("check", "--require-seal", "whole.tar").expect()


def test_a_manifest_in_a_place_that_is_none(here: Here) -> None:
    """A fifo or directory in a manifest's place is refused with what to do about it."""
    Path("whole.tar").write_bytes(bytes(10240))
    place = Path("whole.tar.cachekit.json")
    os.mkfifo(place)
    assert "remove it" in here("check", "whole.tar").expect(4).stderr
    place.unlink()
    place.mkdir()
    assert "remove it" in here("check", "whole.tar").expect(4).stderr
    assert "remove it" in here("seal", "whole.tar").expect(8).stderr


@pytest.mark.parametrize("size", [4000, 5000])
def test_a_manifest_that_is_older_than_its_file(here: Here, size: int) -> None:
    """A file that was made anew after it was sealed is refused, and one may seal it again; a damaged one may not."""
    file = Path("f.bin")
    file.write_bytes(b"1" * 5000)
    here("seal", "f.bin").expect()
    file.write_bytes(b"2" * size)
    assert "seal it again" in here("check", "f.bin").expect(4).stderr
    os.utime(file, ns=(0, 0))
    assert "seal it again" not in here("check", "f.bin").expect(4).stderr


@pytest.mark.parametrize("name", ["/dev/stdin", "/proc/self/fd/0", "/dev/fd/0"])
def test_names_beside_which_nothing_can_lie(cli: Cli, name: str) -> None:
    """A file under the name of a descriptor is checked, and not sealed: its manifest would be another file's."""
    assert shell(cli, f"CACHEKIT check {name} < whole.tar").returncode == 0
    done = shell(cli, f"CACHEKIT seal {name} < whole.tar")
    assert done.returncode == 8
    assert "by its own name" in done.stderr
    assert not os.path.lexists("/dev/stdin.cachekit.json")
    done = shell(cli, "CACHEKIT check <(cat whole.tar)")
    assert done.returncode == 8
    assert "write it to a file first" in done.stderr


def test_a_refused_file_has_its_size(here: Here) -> None:
    """The report of a file that is refused says how long it is."""
    Path("cut.tar").write_bytes(bytes(512))
    (report,) = here("check", "--json", "cut.tar").expect(4).json()
    assert report["size"] == 512
    (report,) = here("check", "--json", "absent.tar").expect(8).json()
    assert report["size"] == 0


def test_every_hint_says_something(here: Here) -> None:
    """No line of an error is empty behind its colon."""
    Path("file").write_bytes(b"x")
    for path in ("file/below", "n" * 300):
        lines = here("check", path).expect(8).stderr.splitlines()
        assert not [line for line in lines if line.rstrip().endswith(":")]


def zipped(path: str, flags: int = 0) -> bytes:
    """Write a zip file with two members; with a flag in the headers of the first."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one", b"1" * 1000)
        archive.writestr("two", b"2" * 1000)
    data = bytearray(Path(path).read_bytes())
    data[6] |= flags
    data[data.index(b"PK\x01\x02") + 8] |= flags
    Path(path).write_bytes(data)
    return bytes(data)


def test_encrypted_members_are_told(here: Here) -> None:
    """A zip file with encrypted members is not said to be whole without saying that they were not read."""
    zipped("f.zip", flags=1)
    assert "1 encrypted and not read" in here("check", "f.zip").expect().stderr
    assert "1 encrypted and not read" in here("seal", "f.zip").expect().stderr
    zipped("g.zip")
    assert "encrypted" not in here("check", "g.zip").expect().stderr


@pytest.mark.parametrize("name", ["f.zip", "f.gz", "f.xz", "f.bz2", "f.zst"])
def test_a_cut_file_is_said_to_end(here: Here, name: str) -> None:
    """Of each format the sentence says at which byte a cut file ends."""
    import bz2
    import gzip
    import lzma

    import zstandard

    content = os.urandom(3000)
    data = {
        "f.zip": lambda: zipped(name),
        "f.gz": lambda: gzip.compress(content),
        "f.xz": lambda: lzma.compress(content),
        "f.bz2": lambda: bz2.compress(content),
        "f.zst": lambda: zstandard.ZstdCompressor().compress(content),
    }[name]()
    for cut in (len(data) - 1, len(data) // 2):
        Path(name).write_bytes(data[:cut])
        assert f"ends at byte {cut}" in here("check", name).expect(4).stderr


def test_a_member_of_a_zip_file_with_a_hostile_name(here: Here) -> None:
    """The name of a damaged member is told without the escapes in it."""
    with zipfile.ZipFile("f.zip", "w") as archive:
        archive.writestr("evil\x1b]0;x\x07\n::error::x", b"content")
    data = Path("f.zip").read_bytes().replace(b"content", b"CONTENT")
    Path("f.zip").write_bytes(data)
    done = here("check", "f.zip").expect(4)
    assert "\x1b" not in done.stderr
    assert "evil" in done.stderr


def test_a_zip_directory_that_lacks_rows(here: Here) -> None:
    """A directory with fewer members than its end record counts is refused; more than 65,535 are no fault."""
    data = bytearray(zipped("f.zip"))
    end = data.rindex(b"PK\x05\x06")
    data[end + 8 : end + 12] = b"\x03\0\x03\0"
    Path("f.zip").write_bytes(data)
    assert "3 members" in here("check", "f.zip").expect(4).stderr
    with zipfile.ZipFile("f.zip", "w") as archive:
        for number in range(66_000):
            archive.writestr(str(number), b"")
    here("check", "f.zip").expect()


def test_hints_are_about_the_file(here: Here) -> None:
    """What cannot be read, or not be checked here, gets a hint about that file and not about an entry or a store."""
    data = bytearray(zipped("f.zip"))
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 77  # a method that nobody has
    Path("f.zip").write_bytes(data)
    refused = here("check", "f.zip").expect(4)
    assert "the tool that made it" in refused.stderr
    unreadable = here("check", "/proc/self/mem").expect(9)
    assert "holds the file" in unreadable.stderr
    for done in (refused, unreadable):
        assert "entry" not in done.stderr
        assert "store" not in done.stderr


def test_a_seal_that_was_killed(here: Here) -> None:
    """What a killed seal leaves behind is removed by the next one of that file, and by no other."""
    Path("f.bin").write_bytes(b"1")
    Path("g.bin").write_bytes(b"2")
    assert die_at("save.temp-locked", lambda: seal_file("f.bin")) == -signal.SIGKILL
    assert len(list(Path().glob(".f.bin.*"))) == 1
    here("seal", "g.bin").expect()
    assert len(list(Path().glob(".f.bin.*"))) == 1
    here("seal", "f.bin").expect()
    assert sorted(os.listdir()) == ["f.bin", "f.bin.cachekit.json", "g.bin", "g.bin.cachekit.json"]
