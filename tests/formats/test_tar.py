"""The strict reader of tar archives."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged
from cachekit.formats.tar import TarMember, TarReader
from tests.support.capabilities import requires

_OTHERS = (
    (tarfile.DIRTYPE, "dir"),
    (tarfile.SYMTYPE, "sym"),
    (tarfile.LNKTYPE, "hard"),
    (tarfile.FIFOTYPE, "pipe"),
)
LONG = "d/" * 60 + "n" * 150


class Trickle:
    """A source that gives a few bytes at a time, as a socket may."""

    def __init__(self, data: bytes, most: int = 700) -> None:
        self._file, self._most = io.BytesIO(data), most

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(buffer[: self._most])


def read(data: bytes, most: int = 1 << 20) -> list[tuple[TarMember, bytes]]:
    """Return every member with its content."""
    reader = TarReader(Trickle(data, most))
    found = []
    while (member := reader.next()) is not None:
        content = bytearray()
        buffer = memoryview(bytearray(1000))
        while count := reader.readinto(buffer):
            content += buffer[:count]
        found.append((member, bytes(content)))
    assert reader.offset == len(data)
    return found


def made(layout: int = tarfile.PAX_FORMAT, names: tuple[str, ...] = ("a", "b/c", LONG, "\u00e4")) -> bytes:
    """Return an archive by Python's tarfile with files, a directory and links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=layout) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 300 * number
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
        for kind, name in (
            (tarfile.DIRTYPE, "dir"),
            (tarfile.SYMTYPE, "sym"),
            (tarfile.LNKTYPE, "hard"),
            (tarfile.FIFOTYPE, "pipe"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a" if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("most", [1, 511, 1 << 20])
def test_what_tarfile_writes(layout: int, most: int) -> None:
    """Names, kinds, links and contents come out as tarfile reads them, however little a read gives."""
    names = (
        ("a", "b/c", "x/" * 60 + "n" * 90) if layout == tarfile.USTAR_FORMAT else ("a", "b/c", LONG, "\u00e4")
    )
    data = made(layout, names)
    found = read(data, most)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = tar.getmembers()
    assert [member.name.decode() for member, _ in found] == [member.name for member in expected]
    kinds = {"0": "file", "5": "directory", "2": "symlink", "1": "hardlink", "6": "other"}
    assert [member.kind for member, _ in found] == [kinds[member.type.decode()] for member in expected]
    assert [member.link.decode() for member, _ in found] == [member.linkname for member in expected]
    assert [content for _, content in found[: len(names)]] == [
        bytes([n]) * 300 * n for n in range(len(names))
    ]


@requires("gnu_tar", "bsdtar")
@pytest.mark.parametrize(
    "command", [["tar", "--format=gnu"], ["tar", "--format=pax"], ["bsdtar"], ["tar", "--sparse"]]
)
def test_what_tools_write(tmp_path: Path, command: list[str]) -> None:
    """Real archives by GNU tar and bsdtar are read, long names and sparse files too."""
    tree = tmp_path / "tree"
    (tree / LONG).parent.mkdir(parents=True)
    (tree / LONG).write_bytes(b"long")
    (tree / "link").symlink_to("x" * 200)
    with (tree / "sparse").open("wb") as file:
        file.truncate(3_000_000)
        file.write(b"data")
    done = subprocess.run([*command, "-cf", "-", "tree"], cwd=tmp_path, capture_output=True, check=True)
    found = {member.name: (member, content) for member, content in read(done.stdout)}
    assert found[b"tree/" + LONG.encode()][1] == b"long"
    assert found[b"tree/link"][0].link == b"x" * 200
    if "--sparse" in command:
        assert found[b"tree/sparse"][0].kind == "other"


def test_every_cut_is_refused() -> None:
    """An archive that ends anywhere before its end is refused, saying where it ends or what is missing."""
    data = made()
    end = len(data.rstrip(b"\0"))
    end += -end % 512 + 1024
    for length in range(0, end, 37):
        with pytest.raises(Damaged) as refused:
            read(data[:length])
        assert any(word in refused.value.message for word in ("ends", "lacks", "missing"))
    read(data[:end])


def test_a_cut_names_the_member() -> None:
    """Inside a content the member is named, and how much of it is missing."""
    with pytest.raises(Damaged, match=r"inside the member 'b/c': 200 of 300 bytes are missing"):
        read(made()[: 512 + 512 + 100])


@pytest.mark.parametrize("zeros", [0, 512])
def test_without_its_end(zeros: int) -> None:
    """A whole last member is no end: both blocks of zeros have to be there."""
    data = made(names=("a",))
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    with pytest.raises(Damaged, match=r"two blocks of zeros|ends"):
        read(data[: end + zeros])


def test_something_behind_the_end() -> None:
    """Zeros may follow the end, anything else may not."""
    assert read(made() + bytes(100_000))
    for behind in (b"x", bytes(5000) + b'{"error":"no space"}'):
        with pytest.raises(Damaged, match="follows the end"):
            read(made() + behind)


@given(st.data())
def test_a_flipped_header(data: st.DataObject) -> None:
    """A flip of any bit of a header is refused: the header's checksum covers all of it."""
    archive = bytearray(made(names=("a", "b/c")))
    headers = [member.offset for member, _ in read(bytes(archive))]
    at = data.draw(st.sampled_from(headers)) + data.draw(st.integers(0, 511))
    archive[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Damaged):
        read(bytes(archive))


@given(st.binary(max_size=3000))
def test_noise_is_refused(noise: bytes) -> None:
    """Nothing but zeros and archives is taken for one, and nothing else than Damaged is raised."""
    if noise.strip(b"\0") or len(noise) < 1024:
        with pytest.raises(Damaged):
            read(noise)


@pytest.mark.parametrize("size", ["77777777777", "99999999999", "-1", "0x10"])
def test_sizes_that_lie(size: str) -> None:
    """A size that is no number, or larger than the archive, is refused, and no memory is taken for it."""
    data = bytearray(made(names=("a",)))
    data[124:136] = size.encode().ljust(12, b"\0")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(Damaged):
        read(bytes(data))


def test_pax_records_that_are_none() -> None:
    """Broken pax records are refused."""
    data = bytearray(made(names=(LONG,)))
    assert data[156:157] == b"x"
    data[512:520] = b"99999999"
    with pytest.raises(Damaged, match="pax"):
        read(bytes(data))
