"""What is printed: nothing that a terminal, a log or a runner could take for an order."""

from __future__ import annotations

import base64
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cli.render import count, details, error_lines, plain, printable, size, to_json
from cachekit.errors import CachekitError, Damaged

ANYTHING = st.one_of(
    st.text(st.characters(), max_size=40),
    st.text(st.characters(categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), max_size=10),
    st.binary(max_size=40),
    st.text(alphabet=":# \tad\n", max_size=12),
    st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


def assert_harmless(text: str) -> None:
    """Fail on a control character, a line break, or what a runner would read as a command."""
    assert [c for c in text if unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cs"}] == []
    assert not text.lstrip().startswith("::")
    assert "##[" not in text
    assert not set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
    text.encode("utf-8")


@given(ANYTHING)
def test_printable(value: object) -> None:
    """Whatever a name holds, what is printed of it is one harmless line that UTF-8 can hold."""
    assert_harmless(printable(value))


@given(st.lists(ANYTHING, max_size=4))
def test_printable_lists(values: list[object]) -> None:
    """Lists are printed with commas, as harmless."""
    assert_harmless(printable(values))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain text, ünïcode 名前", "plain text, ünïcode 名前"),
        (b"a\xffb", "a\\xffb"),
        ("a\udcffb", "a\\xffb"),
        ("a\ud800b", "a\\ud800b"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("::error::x", "\\::error::x"),
        ("  ::error::x", "\\::error::x"),
        ("a ::b", "a ::b"),
        (["a", b"b\xff", 3], "a, b\\xff, 3"),
        (None, "None"),
        (7, "7"),
    ],
)
def test_printable_by_example(value: object, text: str) -> None:
    """Ordinary text stays as it is, the rest is escaped visibly."""
    assert printable(value) == text


@given(ANYTHING, ANYTHING, ANYTHING)
def test_errors_are_harmless(message: object, path: str | bytes, found: object) -> None:
    """Every line of an error is harmless, whatever the damaged file brought into it."""
    for line in error_lines(Damaged(str(message), path=path, found=found, hint=str(path), member=path)):
        assert_harmless(line)


@given(
    st.recursive(ANYTHING, lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner), max_leaves=6)
)
def test_json(value: object) -> None:
    """Any report is one line of ASCII that JSON can read."""
    text = to_json(value)
    assert "\n" not in text
    assert text.isascii()
    json.loads(text)


@given(st.binary(max_size=20))
def test_names_survive_json(raw: bytes) -> None:
    """A name is whole in JSON: as text if it is UTF-8, else also in base64, given as bytes or as Python's text."""
    for value in (raw, raw.decode("utf-8", "surrogateescape")):
        told = json.loads(to_json({"path": value}))
        if "path_b64" in told:
            assert base64.b64decode(told["path_b64"]) == raw
        else:
            assert told["path"].encode() == raw


def test_json_has_no_base64_without_need() -> None:
    """A UTF-8 name has no second field."""
    assert plain({"path": "ü", "other": b"\xff"}) == {"path": "ü", "other": "\\xff", "other_b64": "/w=="}


def test_nested_deeper_than_python_calls() -> None:
    """Others' JSON may be nested as deep as the parser goes: what no report is made of is left out."""
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert printable(deep) == "..."
    assert json.loads(to_json({"a": "x", "found": deep}))["a"] == "x"
    assert to_json({"found": {"x": deep}}).count("[") < 100


def test_details() -> None:
    """Fields come one a line in a fixed order; what was said already is left out."""
    facts: dict[str, object] = {
        "path": "/x",
        "rung": "index",
        "frame": None,
        "expected": 1,
        "found": [],
        "hint": None,
    }
    assert details(facts) == ["  path: /x", "  at: rung index", "  expected: 1", "  found: "]
    assert details(facts, "", but="at /x")[0] == "at: rung index"


def test_error_without_fields() -> None:
    """An error that says nothing more is one line."""
    assert error_lines(CachekitError("so")) == ["so"]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 45, "32.0 TiB")]
)
def test_size(value: int, text: str) -> None:
    """Sizes are told in powers of 1024."""
    assert size(value) == text


def test_count() -> None:
    """Numbers agree with their nouns."""
    assert [count(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert count(2, "entry", "entries") == "2 entries"
