"""HMAC keys: where they come from, what is refused, and that nothing shows them."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import traceback
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cachekit.cli.render import plain, to_json
from cachekit.errors import InvalidRequest
from cachekit.model import StoreAddress
from cachekit.system.keyring import load_keys, without_keys
from cachekit.trust import HmacKey, Signature, Trust, parse_keys
from tests.support.signing import OTHER_SECRET, SECRET, trust_in

TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=16, max_size=40)


def ids(*secrets: str) -> list[str]:
    """Name the keys of these texts."""
    return [HmacKey(secret).id for secret in secrets]


def loaded(**environ: str | Path) -> list[str]:
    """Name the keys that variables give; each is CACHEKIT_HMAC_KEY or, as FILE, CACHEKIT_HMAC_KEY_FILE."""
    names = {"KEY": "CACHEKIT_HMAC_KEY", "FILE": "CACHEKIT_HMAC_KEY_FILE"}
    return [key.id for key in load_keys({names[name]: str(value) for name, value in environ.items()})]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A key file that nobody else may read."""
    path = tmp_path / "keys"
    path.write_text(f"# the new key\n{SECRET}\n\n  {OTHER_SECRET}\r\n#the end")
    path.chmod(0o600)
    return path


def test_keys_of_a_file_in_order(file: Path) -> None:
    """A file gives its keys in order, without comments, blank lines, spaces around and ends of lines of Windows."""
    assert loaded(FILE=file) == ids(SECRET, OTHER_SECRET)


def test_keys_of_a_variable(file: Path) -> None:
    """A variable gives one key a line, a trailing newline is no part of one, and # begins no comment there."""
    assert loaded(KEY=f"{SECRET}\n{OTHER_SECRET}\n{SECRET}\n") == ids(SECRET, OTHER_SECRET)
    assert loaded(KEY="#" + SECRET) == ids("#" + SECRET)


def test_no_key() -> None:
    """Variables that are not set, or empty as for a job that gets no secrets, give none."""
    assert loaded() == loaded(KEY="", FILE="") == []


@pytest.mark.parametrize(
    "text", ["\n \n", "short", SECRET + "\nshort", SECRET + "\0" + SECRET, "\udcff" * 40]
)
def test_a_variable_that_gives_no_usable_key(text: str) -> None:
    """Only blanks, a short key, a control character and bytes that are no text are refused, without being shown."""
    with pytest.raises(InvalidRequest) as refusal:
        loaded(KEY=text)
    told = to_json(refusal.value.as_dict()) + "".join(traceback.format_exception(refusal.value))
    assert SECRET not in told
    assert "short\n" not in told.replace("shorter", "")


def test_a_short_key_is_named_by_its_line(file: Path) -> None:
    """Which of several keys is too short is told by its line."""
    file.write_text(f"{SECRET}\n# x\nfifteen bytes..\n")
    with pytest.raises(InvalidRequest, match=r"shorter than 16 bytes.*line 3") as refusal:
        loaded(FILE=file)
    assert "fifteen" not in to_json(refusal.value.as_dict())


def test_both_variables(file: Path) -> None:
    """A key and a file at once are refused: which signs would be a guess."""
    with pytest.raises(InvalidRequest, match="both set"):
        loaded(KEY=SECRET, FILE=file)


@pytest.mark.parametrize("mode", range(0o1000))
def test_modes_of_a_key_file(file: Path, mode: int) -> None:
    """A file that others may read, write or run, or the group may write, is refused; all else is taken."""
    file.chmod(mode)
    if mode & 0o027:
        with pytest.raises(InvalidRequest, match="open to others"):
            loaded(FILE=file)
    elif os.geteuid() == 0 or mode & 0o400:
        assert loaded(FILE=file)


def test_a_link_to_a_key_file(file: Path, tmp_path: Path) -> None:
    """A link to a key file is followed, as Kubernetes mounts secrets; the file's own mode counts."""
    link = tmp_path / "link"
    link.symlink_to(file)
    assert loaded(FILE=link) == ids(SECRET, OTHER_SECRET)
    file.chmod(0o644)
    with pytest.raises(InvalidRequest, match="open to others"):
        loaded(FILE=link)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file"),
        ("directory", "no regular file"),
        ("fifo", "no regular file"),
        ("empty", "gives no key"),
        ("comments", "gives no key"),
        ("huge", "too long"),
        ("binary", "no UTF-8"),
    ],
)
def test_what_is_no_key_file(file: Path, kind: str, message: str) -> None:
    """What is no file with a key in it is refused with a sentence that names the path, and a fifo makes nobody wait."""
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind != "missing":
        contents = {
            "empty": b"",
            "comments": b"# " + SECRET.encode(),
            "huge": b"x" * 70_000,
            "binary": b"\xff" * 32,
        }
        file.write_bytes(contents[kind])
    if kind != "missing":
        file.chmod(0o600)
    with pytest.raises(InvalidRequest, match=message) as refusal:
        loaded(FILE=file)
    assert refusal.value.path == str(file)
    assert refusal.value.exit_code == 2


def test_nothing_shows_a_key() -> None:
    """Neither repr, str, JSON, fields, copies nor pickles of what holds a key show or carry it."""
    trust = trust_in(SECRET, OTHER_SECRET)
    address = StoreAddress("/store", trust=trust)
    for value in (trust.keys[0], trust, address, [trust], {"x": address}):
        shown = f"{value!r} {value} {plain(value)!r}"
        with pytest.raises(TypeError):
            to_json(value)
        assert SECRET not in shown
        assert SECRET.encode().hex() not in shown
    assert trust.keys[0].id in repr(trust)
    assert not hasattr(trust.keys[0], "__dict__")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            attempt(trust.keys[0])
    with pytest.raises(TypeError):
        dataclasses.asdict(address)


def test_the_keys_of_other_programs_environments() -> None:
    """What is started gets the environment without the keys, and all else of it."""
    environ = {
        "CACHEKIT_HMAC_KEY": SECRET,
        "CACHEKIT_HMAC_KEY_FILE": "/x",
        "CACHEKIT_STORE": "s",
        "PATH": "p",
    }
    assert without_keys(environ) == {"CACHEKIT_STORE": "s", "PATH": "p"}


@given(text=TEXTS.filter(lambda text: text == text.strip(" \t\r") and text))
def test_a_key_is_the_bytes_of_its_line(text: str) -> None:
    """Any line is one key, however it is written to the file, and its id is the one of the text itself."""
    assume(len(text.encode()) >= 16)
    assert [key.id for key in parse_keys(f"\n{text}\n")] == [HmacKey(text).id]


@given(
    first=st.tuples(TEXTS, st.binary(max_size=20), TEXTS),
    second=st.tuples(TEXTS, st.binary(max_size=20), TEXTS),
)
def test_an_hmac_is_of_one_key_one_text_and_one_namespace(
    first: tuple[str, bytes, str], second: tuple[str, bytes, str]
) -> None:
    """HMACs are equal only if key, JSON and namespace are."""
    macs = [HmacKey(key).mac(text, namespace) for key, text, namespace in (first, second)]
    assert (macs[0] == macs[1]) == (first == second)


def test_a_namespace_does_not_run_into_the_text() -> None:
    """A letter more of the namespace is not a letter less of the JSON."""
    key = HmacKey(SECRET)
    assert key.mac(b"x{}", "a") != key.mac(b"{}", "ax")


@pytest.mark.parametrize(
    ("key_of", "keys", "mac", "namespace", "standing"),
    [
        (SECRET, [SECRET], "right", "here", "valid"),
        (SECRET, [OTHER_SECRET, SECRET], "right", "here", "valid"),
        (SECRET, [OTHER_SECRET], "right", "here", "unknown-key"),
        (SECRET, [], "right", "here", "unchecked"),
        (SECRET, [SECRET], "wrong", "here", "forged"),
        (SECRET, [SECRET], "right", "there", "elsewhere"),
        (SECRET, [SECRET], "wrong", "there", "forged"),
        (SECRET, [SECRET], "of there", "here", "forged"),
    ],
)
def test_standing(key_of: str, keys: list[str], mac: str, namespace: str, standing: str) -> None:
    """What a signature is worth follows from whose key it is, whether it is right, and for which namespace."""
    key = HmacKey(key_of)
    made = {"right": key.mac(b"{}", namespace), "wrong": bytes(32), "of there": key.mac(b"{}", "there")}[mac]
    trust = trust_in(*keys).within("here")
    signature = Signature(key.id, made, namespace)
    assert trust.judge(b"{}", [signature]).standing == standing
    assert trust.judge(b"{}", []).standing == "unsigned"
    stranger = Signature("00" * 8, bytes(32), "here")
    assert trust.judge(b"{}", [stranger, signature, stranger]).standing == standing


def test_a_bad_signature_beside_a_good_one() -> None:
    """A wrong HMAC that somebody adds to a right one takes nothing from it, in either order."""
    key = HmacKey(SECRET)
    good, bad = Signature(key.id, key.mac(b"{}", "here"), "here"), Signature(key.id, bytes(32), "here")
    trust = Trust(True, (key,), "here")
    assert trust.judge(b"{}", [good, bad]).standing == trust.judge(b"{}", [bad, good]).standing == "valid"
    there = trust.within("there")
    assert there.judge(b"{}", [good, bad]).standing == there.judge(b"{}", [bad, good]).standing == "elsewhere"
