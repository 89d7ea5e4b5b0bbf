"""The tar reader: what real tools write is read, and nothing that is cut or changed passes for whole."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.errors import Damaged
from cachekit.formats.tar import TarMember, TarReader
from tests.support.capabilities import requires

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


class Dribble:
    """A source that gives a few bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, most: int = 1 << 20) -> None:
        self._inner, self._most = io.BytesIO(data), most

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of the buffer."""
        return self._inner.readinto(buffer[: self._most])


def read(data: bytes, most: int = 1 << 20) -> list[tuple[TarMember, bytes]]:
    """Read a whole archive with all contents."""
    reader, found = TarReader(Dribble(data, most)), []
    buffer = memoryview(bytearray(1000))
    while (member := reader.next()) is not None:
        content = b""
        while count := reader.readinto(buffer):
            content += buffer[:count]
        found.append((member, content))
    return found


def made(kind: int, members: dict[str, bytes]) -> bytes:
    """Make an archive with Python's own writer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def refusal(data: bytes) -> Damaged:
    """Read what must be refused."""
    with pytest.raises(Damaged) as caught:
        read(data)
    return caught.value


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.dictionaries(
        st.text("abcdefgh/é", min_size=1, max_size=90).map(lambda text: "n" + text.replace("/", "/d") + "z"),
        st.binary(max_size=1500),
        max_size=5,
    ),
    st.sampled_from([1, 7, 511, 513, 1 << 20]),
)
def test_what_python_writes_is_read(kind: int, members: dict[str, bytes], most: int) -> None:
    """Names and contents come back whatever the format, and however little the source gives at once."""
    found = read(made(kind, members), most)
    assert [(member.name.decode(), content) for member, content in found] == list(members.items())
    assert all(member.kind == "file" and member.mtime == 1_700_000_000 for member, _ in found)


@pytest.mark.parametrize("kind", FORMATS[1:])
def test_long_names_links_and_kinds(kind: int) -> None:
    """Names and links of any length, directories, links and devices are told apart."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, flag, link in (
            ("d" * 300, tarfile.DIRTYPE, ""),
            ("s" * 300, tarfile.SYMTYPE, "t" * 300),
            ("h", tarfile.LNKTYPE, "u" * 200),
            ("f", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = flag, link
            tar.addfile(info)
    found = [(member.name, member.kind, member.link) for member, _ in read(out.getvalue())]
    assert found == [
        (b"d" * 300, "directory", b""),
        (b"s" * 300, "symlink", b"t" * 300),
        (b"h", "hardlink", b"u" * 200),
        (b"f", "other", b""),
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_refused(kind: int) -> None:
    """A file cut at any byte at all, the first of the two end blocks included, is not whole."""
    data = made(kind, {"a": b"1" * 700, "b" * (120 if kind != tarfile.USTAR_FORMAT else 9): b"2" * 512})
    end = len(data.rstrip(b"\0"))
    end += -end % 512 + 1024
    assert read(data[:end])
    for length in range(end):
        refusal(data[:length])


def test_a_cut_says_where_and_what() -> None:
    """The message names the member that is cut, how much is missing, and the byte at which the file ends."""
    data = made(tarfile.USTAR_FORMAT, {"first": b"1", "second": b"2" * 5000})
    error = refusal(data[: 1024 + 512 + 100])
    assert "'second': 4900 of 5000 bytes are missing" in error.message
    assert error.fields["offset"] == 1636
    error = refusal(data[: 1024 + 512 + 5120])
    assert "ends at byte 6656, and lacks the end of the archive (two blocks of zeros)" in error.message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("change", [0x01, 0x80, 0x10])
def test_every_flip_in_a_header_is_refused(kind: int, change: int) -> None:
    """Headers are covered by their checksums, at every byte."""
    data = made(kind, {"a": b"1"})
    for place in range(512):
        flipped = bytearray(data)
        flipped[place] ^= change
        if flipped[148:156] != data[148:156] and read_or_none(bytes(flipped)) == read(data):
            continue  # the checksum's own filling, which has no meaning
        refusal(bytes(flipped))


def read_or_none(data: bytes) -> list[tuple[TarMember, bytes]] | None:
    """Read an archive, if it can be."""
    try:
        return read(data)
    except Damaged:
        return None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_bytes_are_damage_and_nothing_else(data: st.DataObject) -> None:
    """Whatever the bytes are, also with a right checksum: they are read or refused."""
    block = bytearray(made(tarfile.GNU_FORMAT, {"a": b"1" * 9}))
    begin = data.draw(st.sampled_from([0, 100, 124, 136, 156, 157, 257, 345]))
    field = data.draw(st.binary(min_size=1, max_size=12))
    block[begin : begin + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    read_or_none(bytes(block))
    read_or_none(data.draw(st.binary(max_size=1100)))


@pytest.mark.parametrize("behind", [b"x", bytes(511) + b"\n", b"\0" * 5000 + b"1"])
def test_what_follows_the_end_is_refused(behind: bytes) -> None:
    """Zeros may follow the end, as many as there are; anything else may not."""
    data = made(tarfile.USTAR_FORMAT, {"a": b"1"})
    assert read(data + bytes(2_000_000))
    assert "follows the end" in refusal(data + behind).message


def test_a_name_that_claims_much_is_not_allocated() -> None:
    """A long name of 8 GiB is refused by its header."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    assert "too long" in refusal(info.tobuf(tarfile.GNU_FORMAT)).message


def test_sizes_beyond_octal() -> None:
    """GNU's base-256 numbers and pax sizes are read; their contents are missing here, and that is what is said."""
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("large")
        info.size = 9 << 33
        assert (
            f"{(9 << 33) - 512} of {9 << 33} bytes are missing"
            in refusal(info.tobuf(kind) + bytes(512)).message
        )


@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
@requires("gnu_tar")
def test_gnu_tar(tmp_path: Path, form: str) -> None:
    """What GNU tar writes in each of its formats is whole; cut by one block it is not."""
    tree(tmp_path)
    data = (
        subprocess.run(
            ["tar", f"--format={form}", "--sparse", "-cf", "-", "tree"],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        ).stdout
        if form in {"gnu", "pax"}
        else subprocess.run(
            ["tar", f"--format={form}", "-cf", "-", "tree"], cwd=tmp_path, capture_output=True, check=True
        ).stdout
    )
    assert {member.name for member, _ in read(data)} >= {b"tree", b"tree/link", b"tree/file"}
    refusal(data[: len(data.rstrip(b"\0")) // 512 * 512])


@pytest.mark.parametrize("form", ["ustar", "pax", "gnutar"])
@requires("bsdtar")
def test_bsdtar(tmp_path: Path, form: str) -> None:
    """What bsdtar writes in each of its formats is whole."""
    tree(tmp_path)
    data = subprocess.run(
        ["bsdtar", f"--format={form}", "-cf", "-", "tree"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert {member.name for member, _ in read(data)} >= {b"tree", b"tree/link", b"tree/file"}


def tree(base: Path) -> None:
    """Make some files of each kind, one of them sparse."""
    root = base / "tree"
    root.mkdir()
    (root / "file").write_bytes(b"content" * 999)
    (root / "link").symlink_to("file")
    (root / "hard").hardlink_to(root / "file")
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(500_000)
        file.write(b"here")


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
