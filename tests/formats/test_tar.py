"""The strict tar reader: what tools write is read, whatever is not whole is refused."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged
from cachekit.formats.tar import TarMember, TarReader
from tests.support.foreign import accepted, refused

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@dataclass
class Drip:
    """A source that gives at most so many bytes at once."""

    data: bytes
    step: int = 1 << 20

    def readinto(self, buffer: memoryview) -> int:
        """Give some."""
        piece = self.data[: min(self.step, len(buffer))]
        buffer[: len(piece)] = piece
        self.data = self.data[len(piece) :]
        return len(piece)


def read(data: bytes, step: int = 1 << 20) -> list[tuple[TarMember, bytes]]:
    """Read a whole archive: its members and their contents."""
    reader = TarReader(Drip(data, step))
    found = []
    while (member := reader.next()) is not None:
        content = bytearray()
        buffer = memoryview(bytearray(1000))
        while count := reader.readinto(buffer):
            content += buffer[:count]
        found.append((member, bytes(content)))
    assert reader.offset == len(data)
    return found


def made(members: dict[str, bytes], how: int = tarfile.PAX_FORMAT, **more: str) -> bytes:
    """Make an archive as Python does."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=how, pax_headers=more) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_700_000_000, 0o640
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


SMALL = made({"a": b"1" * 700, "n" * 130: b"", "b": b"22"})
"""With a pax header; 10 KiB, as its padding is."""
CONTENT_END = SMALL.rindex(b"22") + 512
"""Where the first block of zeros begins."""


@pytest.mark.parametrize("how", FORMATS)
def test_what_python_writes(how: str) -> None:
    """Names, sizes, modes, times and contents come back, of each format that tarfile writes."""
    members = {"short": b"x" * 1025, "empty": b"", "/".join(["d" * 60] * 3): b"long"}
    found = read(made(members, FORMATS[how]))
    assert {member.name.decode(): content for member, content in found} == members
    assert {(member.kind, member.mode, member.mtime) for member, _ in found} == {
        ("file", 0o640, 1_700_000_000)
    }


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=150),
        st.binary(max_size=1500),
        max_size=5,
    ),
    st.sampled_from(sorted(FORMATS)[:2]),
    st.integers(1, 700),
)
def test_any_names_and_contents(members: dict[str, bytes], how: str, step: int) -> None:
    """Any names and contents come back, however short the reads are."""
    found = read(made(members, FORMATS[how]), step)
    assert {member.name.decode(): content for member, content in found} == members


def tree(root: Path) -> None:
    """Make what archives hold: a long name, a link of each kind, a hole, an empty directory."""
    root.mkdir()
    (root / "plain").write_bytes(b"plain" * 500)
    (root / ("long" * 50)).write_bytes(b"long")
    (root / "empty").mkdir()
    (root / "soft").symlink_to("plain")
    os.link(root / "plain", root / "hard")
    os.mkfifo(root / "fifo")
    with open(root / "holes", "wb") as file:
        for number in range(40):
            file.seek(number << 14)
            file.write(b"island")
        file.truncate(41 << 14)


@pytest.mark.parametrize(
    "command",
    [
        ["tar", "--format=v7", "--exclude=long*", "--exclude=fifo"],
        ["tar", "--format=ustar", "--exclude=long*"],
        ["tar", "--format=oldgnu", "-S"],
        ["tar", "--format=gnu", "-S"],
        ["tar", "--format=posix", "-S"],
        ["tar", "--format=posix", "--sparse-version=0.1", "-S"],
        ["tar", "--format=gnu", "-b1"],
        ["tar", "--format=gnu", "-V", "label"],
        ["bsdtar", "--format=ustar", "--exclude=long*"],
        ["bsdtar", "--format=pax"],
        ["bsdtar", "--format=gnutar"],
    ],
    ids=" ".join,
)
def test_what_tools_write(command: list[str], tmp_path: Path) -> None:
    """Everything that GNU tar and bsdtar write is whole: sparse files, labels, links, long names."""
    tree(tmp_path / "tree")
    done = subprocess.run([*command, "-cf", "-", "-C", tmp_path, "tree"], capture_output=True, check=True)
    kinds = {member.name: member.kind for member, _ in read(done.stdout)}
    assert kinds[b"tree/empty"] == "directory"
    assert kinds[b"tree/soft"] == "symlink"
    assert {kinds[b"tree/plain"], kinds[b"tree/hard"]} == {"file", "hardlink"}
    assert (b"tree/" + b"long" * 50 in kinds) == ("--exclude=long*" not in command)
    assert accepted(done.stdout).kind == "tar"


def test_large_numbers() -> None:
    """A size and a time in base 256 are read, also a time before 1970."""
    info = tarfile.TarInfo("a")
    info.size, info.mtime = 3, -5
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\x80" + (3).to_bytes(11, "big")
    data = bytes(_summed(block)) + b"abc".ljust(512, b"\0") + bytes(1024)
    ((member, content),) = read(data)
    assert (member.size, member.mtime, content) == (3, -5, b"abc")


def test_a_global_header_goes_for_what_follows() -> None:
    """Global pax records are read, and are no members."""
    assert [member.name for member, _ in read(made({"a": b""}, comment="all of it"))] == [b"a"]


def test_empty_archive() -> None:
    """Two blocks of zeros are an archive without members."""
    assert read(bytes(1024)) == []
    assert accepted(bytes(10240)).kind == "tar"


def test_cut_anywhere() -> None:
    """A cut at any byte before the second block of zeros has ended is refused, by the reader and by check."""
    for length in range(1, CONTENT_END + 1024):
        with pytest.raises(Damaged):
            read(SMALL[:length])
    for length in (600, 1000, 2000, CONTENT_END, CONTENT_END + 512, CONTENT_END + 1023):
        refused(SMALL[:length])


def test_cut_in_what_fills_up() -> None:
    """Behind two blocks of zeros an archive is whole: how many follow is the writer's choice."""
    for length in range(CONTENT_END + 1024, len(SMALL) + 1, 499):
        assert len(read(SMALL[:length])) == 3


def test_says_what_is_missing() -> None:
    """A cut in a member names it, and how much of it is missing; one at the end says that the end is missing."""
    assert "inside the member 'a': 400 of 700 bytes are missing" in refused(SMALL[: 512 + 300])
    assert "lacks the end of the archive (two blocks of zeros)" in refused(SMALL[:CONTENT_END])


def test_flips_in_headers() -> None:
    """A flipped bit anywhere in a header is refused, or hits the checksum's own padding, which says nothing."""
    caught = 0
    for at in range(512):
        for bit in range(8):
            data = bytearray(SMALL)
            data[at] ^= 1 << bit
            try:
                found = read(bytes(data))
            except Damaged:
                caught += 1
            else:
                assert 148 <= at < 156
                assert found == read(SMALL)
    assert caught > 512 * 8 - 16


def test_flips_in_the_end() -> None:
    """A bit that is set in the zeros at the end is refused."""
    for at in range(CONTENT_END, len(SMALL), 97):
        data = bytearray(SMALL)
        data[at] ^= 4
        with pytest.raises(Damaged):
            read(bytes(data))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x3f" * 11, b"\xff" * 12, b"0000000009\0\0"])
def test_sizes_that_lie(size: bytes) -> None:
    """A size that the file cannot have, a negative one, one that is no number: refused, and nothing is allocated."""
    block = bytearray(tarfile.TarInfo("a").tobuf())
    block[124:136] = size
    with pytest.raises(Damaged):
        read(bytes(_summed(block)) + bytes(2048))


@pytest.mark.parametrize(
    "records",
    [b"x", b"5 a=b\n", b"99 a=b\n", b"5 ab\n", b"6 a=bx", b"06a=b\n", b"999999999 a=b\n", b"14 size=minus\n"],
)
def test_pax_records_that_are_none(records: bytes) -> None:
    """Pax records with a wrong length, without an end or a sign of equality are refused."""
    info = tarfile.TarInfo("records")
    info.type, info.size = b"x", len(records)
    data = info.tobuf() + records.ljust(512, b"\0") + tarfile.TarInfo("a").tobuf() + bytes(1024)
    with pytest.raises(Damaged):
        read(data)


def test_a_name_without_a_member() -> None:
    """A long name at the end of an archive, or one of 2 MiB, is refused."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = b"L", 4
    with pytest.raises(Damaged, match="between a long name and its member"):
        read(info.tobuf() + b"name".ljust(512, b"\0") + bytes(1024))
    info.size = 2 << 20
    with pytest.raises(Damaged, match="too long"):
        read(info.tobuf() + bytes(4 << 20))


def test_two_archives_in_one_file() -> None:
    """Something that follows the end is refused: another archive, which tar would not read."""
    with pytest.raises(Damaged, match="follows the end"):
        read(SMALL + SMALL)


@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes: members or Damaged, nothing else."""
    for hostile in (data, SMALL[:512] + data, SMALL[:1536] + data, SMALL[: 3 * 512] + data + bytes(1024)):
        with contextlib.suppress(Damaged):
            assert all(len(content) in {0, member.size} for member, content in read(hostile))


def _summed(block: bytearray) -> bytearray:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


@pytest.mark.parametrize("digits", [19, 20])
def test_a_pax_size_that_no_disk_has(digits: int) -> None:
    """A size in a pax record that is larger than any file can be is refused as damage, not met as an error of ours."""
    data = tarfile.TarInfo("a").tobuf(tarfile.PAX_FORMAT)
    record = b"%d size=%s\n" % (7 + digits + 2, b"9" * digits)
    head = tarfile.TarInfo("PaxHeaders/a")
    head.type, head.size = tarfile.XHDTYPE, len(record)
    archive = head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + data + bytes(1024)
    with pytest.raises(Damaged):
        TarReader(io.BytesIO(archive)).next()
