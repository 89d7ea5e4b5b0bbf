"""Keys, identities, file names, targets and sizes."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import InvalidRequest
from cachekit.model import (
    MAX_KEY_BYTES,
    EntryIdentity,
    Key,
    Platform,
    SaveReport,
    Target,
    format_duration,
    parse_duration,
    parse_size,
    safe_characters,
    safe_prefix,
)
from cachekit.store.layout import ENTRY_NAME

LINUX = Platform("linux", "x86_64", "glibc")
KEYS = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=128
)  # at most four bytes a character


def refused(text: str) -> InvalidRequest:
    """Make a key that must be refused; return the error."""
    with pytest.raises(InvalidRequest) as caught:
        Key(text)
    return caught.value


@given(KEYS)
def test_any_text_without_control_characters_is_a_key(text: str) -> None:
    """A key keeps its text as it was given; equal bytes are equal keys."""
    assert Key(text).raw.decode() == text
    assert Key(text) == pickle.loads(pickle.dumps(Key(text)))


@given(KEYS, st.sampled_from("\x00\x01\t\n\r\x1b\x7f\x80\x85\x9f\u2028\u2029"), st.integers(0, 128))
def test_a_control_character_is_refused(text: str, control: str, place: int) -> None:
    """A control character anywhere is refused and named, and is not in the message itself."""
    error = refused(text[:place] + control + text[place:])
    assert f"U+{ord(control):04X}" in error.message
    assert control not in error.message


def test_length_is_counted_in_bytes() -> None:
    """512 bytes of UTF-8 are a key, 513 are none, however many characters they are."""
    assert len(Key("k" * 512).raw) == MAX_KEY_BYTES == 512
    assert len(Key("é" * 256).raw) == 512
    assert refused("k" * 513).found == 513
    assert refused("é" * 256 + "k").expected == 512


def test_what_is_no_unicode_is_refused() -> None:
    """Half of a surrogate pair cannot be UTF-8, nor can a byte of another encoding."""
    refused("a\ud800")
    refused("a\udcff")


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("npm-linux-4f1c", "npm-linux"),
        ("npm", "npm"),
        ("-x", "-x"),
        ("a-", "a"),
        ("--", "-"),
        ("a_b-c", "a_b"),
    ],
)
def test_family(key: str, family: str) -> None:
    """The family is the key up to its last dash, or all of it."""
    assert Key(key).family == family


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("node-4f1c", "node-4f1c-d66ee6576a1a7301f1a4c5938301745b.tar.zst"),
        ("a/b c", "a_b_c-16650005e89c2ad594ac9fd38b86a6a7.tar.zst"),
        ("...", "_-b845a5b2690eff386813df86945eb22c.tar.zst"),
    ],
)
def test_file_names_never_change(key: str, name: str) -> None:
    """The file name of a key is part of the format: a store written by one release is read by all later ones."""
    assert EntryIdentity(Key(key), LINUX).file_name == name


def test_identity_is_of_key_and_platform() -> None:
    """Another key, or the same key elsewhere, is another entry."""
    here = EntryIdentity(Key("k"), LINUX)
    assert here.digest != EntryIdentity(Key("k2"), LINUX).digest
    assert here.digest != EntryIdentity(Key("k"), Platform("linux", "x86_64", "musl")).digest
    assert here.digest == EntryIdentity(Key("k"), Platform("linux", "x86_64", "glibc")).digest


@given(KEYS)
def test_file_name_is_safe(text: str) -> None:
    """Whatever the key, its file name is one visible component of at most 101 plain characters."""
    name = EntryIdentity(Key(text), LINUX).file_name
    assert ENTRY_NAME.fullmatch(name)
    assert len(name) <= 101
    assert not name.startswith((".", "-"))


@given(KEYS, KEYS)
def test_safe_prefix_finds_every_key_that_begins_so(prefix: str, rest: str) -> None:
    """The file name of a key begins with the safe prefix of whatever the key begins with: no entry is overlooked."""
    assert safe_characters(prefix + rest).startswith(safe_prefix(prefix))


@given(st.text(alphabet=".-aé/", max_size=70), st.text(alphabet=".-aé/", max_size=70))
def test_safe_prefix_with_leading_dots(prefix: str, rest: str) -> None:
    """The same where characters at the beginning are dropped."""
    assert safe_characters(prefix + rest).startswith(safe_prefix(prefix))


@pytest.mark.parametrize(
    ("target", "member", "text"),
    [
        (Target("root", b"a/b"), b"a/b", "a/b"),
        (Target("root", b"."), b"", "."),
        (Target("home", b".npm"), b".cachekit-home/.npm", "~/.npm"),
        (Target("home", b"."), b".cachekit-home", "~"),
        (Target("abs", b"opt/x"), b".cachekit-abs/opt/x", "/opt/x"),
        (Target("abs", b"."), b".cachekit-abs", "/"),
        (Target("root", b"\xff"), b"\xff", "\\xff"),
    ],
)
def test_target(target: Target, member: bytes, text: str) -> None:
    """A target has its place in the archive by its root, and reads as the user would write it."""
    assert target.member == member
    assert str(target) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1k", 1024),
        ("10M", 10 << 20),
        ("2.5GiB", 5 << 29),
        (" 1 TB ", 1 << 40),
        ("1.5K", 1536),
        ("9007199254740993", 9007199254740993),
        ("3P", 3 << 50),
    ],
)
def test_size(text: str, size: int) -> None:
    """A size is a number with a unit of 1024, exact to the byte."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        "1e9",
        "1,5G",
        "0x10",
        "1 2",
        "1.",
        ".5",
        "10iB",
        "1EB",
        "nan",
        "inf",
        "9" * 5000,
        "1\n\n2",
    ],
)
def test_no_size(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidRequest):
        parse_size(text)


@given(st.integers(0, 10**18 - 1), st.sampled_from("KMGTP"))
def test_sizes_are_exact(number: int, unit: str) -> None:
    """No size is rounded."""
    assert parse_size(f"{number}{unit}") == number * 1024 ** (" KMGTP".index(unit))


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    """Reading a size gives a number of bytes or InvalidRequest, nothing else."""
    try:
        size = parse_size(text)
    except InvalidRequest:
        return
    assert size >= 0
    assert re.search(r"[0-9]", text)


def test_ratio() -> None:
    """The ratio is content for each archive byte, 0 where nothing was written."""
    report = SaveReport("saved", "k", "e", "p", content_bytes=300, archive_bytes=100)
    assert report.ratio == 3.0
    assert SaveReport("exists", "k", "e", "p").ratio == 0.0


@given(
    st.integers(0, 10**9 - 1),
    st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800)]),
)
def test_a_duration_is_a_number_and_a_unit(number: int, unit: tuple[str, int]) -> None:
    """Units are s, m, h, d and w in either case; without one it is seconds."""
    name, seconds = unit
    assert (
        parse_duration(f"{number}{name}") == parse_duration(f" {number} {name.upper()} ") == number * seconds
    )
    assert parse_duration(str(number)) == number


@given(st.integers(0, 9999), st.integers(0, 999))
def test_a_duration_may_have_a_fraction(whole: int, thousandths: int) -> None:
    """Decimal fractions count, and are never an exponent."""
    assert parse_duration(f"{whole}.{thousandths:03d}m") == pytest.approx(60 * (whole + thousandths / 1000))


@given(st.text())
def test_any_other_text_is_no_duration(text: str) -> None:
    """Whatever text it is: a number of seconds that is finite and not negative, or refused with a sentence."""
    try:
        seconds = parse_duration(text)
    except InvalidRequest:
        return
    assert 0 <= seconds < 1e15


@pytest.mark.parametrize(
    "text", ["", "m", "-5m", "+5", "5 minutes", "1h30m", "1e3", "nan", "inf", ".5h", "5.", "5mm", "٣m"]
)
def test_no_durations(text: str) -> None:
    """Signs, words, exponents, sums and digits of other scripts are refused."""
    with pytest.raises(InvalidRequest, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.26, "0.3 s"),
        (9.94, "9.9 s"),
        (45.4, "45 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (100_800, "1 d 4 h"),
        (1e6, "11 d 13 h"),
    ],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    """At most two units that follow each other; fractions only below ten seconds."""
    assert format_duration(seconds) == text
