"""What is done with entries that are signed, not signed, signed by strangers and forged, by every command."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachekit.archive.auth import encode_auth
from cachekit.archive.format import SEAL_MAGIC, SEAL_TRAILER, SEAL_TRAILER_MAGIC
from cachekit.archive.seal import skippable
from cachekit.cache.select import confirmed
from cachekit.errors import Untrusted
from cachekit.model import Namespace, StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.trust import ANYONE, HmacKey, Signature
from tests.support.archives import restore_tree, save_tree
from tests.support.in_process import Here, cut
from tests.support.samples import package_tree
from tests.support.signing import OTHER_SECRET, SECRET, signed_store
from tests.support.snapshots import unchanged
from tests.support.surgery import anatomy
from tests.support.trees import make_tree

KEY, OTHER = HmacKey(SECRET), HmacKey(OTHER_SECRET)

SetKey = Callable[[str | None], None]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> SetKey:
    """Set CACHEKIT_HMAC_KEY for the commands that follow; None takes it away."""

    def change(text: str | None) -> None:
        if text is None:
            monkeypatch.delenv("CACHEKIT_HMAC_KEY", raising=False)
        else:
            monkeypatch.setenv("CACHEKIT_HMAC_KEY", text)

    return change


def resign(path: Path, *signatures: Signature) -> None:
    """Put these signatures into an entry, closed as whoever may write the store can close them."""
    parts, data = anatomy(path), path.read_bytes()
    text = data[parts.json : parts.auth]
    digest = data[parts.trailer : parts.trailer + 32]
    auth = encode_auth(signatures, digest)
    trailer = SEAL_TRAILER.pack(digest, len(text), len(auth), SEAL_TRAILER_MAGIC)
    path.unlink()
    path.write_bytes(
        data[: parts.seal] + skippable(SEAL_MAGIC, text + auth + trailer) + data[parts.seek_table :]
    )


def forge(path: Path, namespace: str = "default") -> None:
    """Give an entry an HMAC that was made without the key whose id it has."""
    resign(path, Signature(KEY.id, bytes(32), namespace))


def sign_elsewhere(path: Path) -> None:
    """Give an entry the HMAC that it would have in another namespace."""
    text = path.read_bytes()[anatomy(path).json : anatomy(path).auth]
    resign(path, Signature(KEY.id, KEY.mac(text, "other"), "other"))


def saved(here: Here, key: SetKey, kind: str) -> Path:
    """Save `t` under `k` in a way that a job with SECRET must not use; return the entry's file."""
    key({"unsigned": None, "stranger": OTHER_SECRET}.get(kind, SECRET))
    here.save("k", "t")
    path = here.entry("k")
    if kind == "forged":
        forge(path)
    elif kind == "stripped":
        resign(path)
    elif kind == "elsewhere":
        sign_elsewhere(path)
    return path


KINDS = ["unsigned", "stranger", "stripped", "elsewhere", "forged"]
REASONS = {
    "unsigned": "not signed",
    "stripped": "not signed",
    "stranger": "not among yours",
    "elsewhere": "signed for the namespace 'other'",
    "forged": f"wrong under your key {KEY.id}",
}


def verdict_of(kind: str) -> str:
    """What a kind of entry is called in reports."""
    return "forged" if kind == "forged" else "untrusted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["--merge", "--replace", "--in-place"])
def test_restore_refuses_before_any_byte(here: Here, key: SetKey, kind: str, mode: str) -> None:
    """A restore with a key uses nothing that was not signed with it; only what is forged is set aside."""
    path = saved(here, key, kind)
    key(SECRET)
    (here.root / "t" / "file").write_bytes(b"other")
    with unchanged(here.root):
        report = here.restore("k", "t", mode)
    assert report["status"] == "refused"
    assert report["tried"][0]["verdict"] == verdict_of(kind)
    assert REASONS[kind] in report["tried"][0]["reason"]
    assert report["tried"][0]["error"]["rung"] == "trust"
    assert path.exists() == (kind != "forged")
    assert bool(report["quarantined"]) == (kind == "forged")


@pytest.mark.parametrize("kind", KINDS)
def test_strict_exits_4(here: Here, key: SetKey, kind: str) -> None:
    """With --strict a refusal for want of trust is exit 4."""
    saved(here, key, kind)
    key(SECRET)
    here.restore("k", "t", "--strict", code=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restore_key_finds_the_newest_that_is_trusted(here: Here, key: SetKey, kind: str) -> None:
    """What is not trusted is passed over with its reason, and the newest trusted entry is restored."""
    key(SECRET)
    make_tree(here.root, {"u": {"which": b"trusted"}})
    here.save("k0", "u")
    saved(here, key, kind)
    key(SECRET)
    report = here.restore("none", "--restore-key=k")
    assert (report["status"], report["matched_key"]) == ("partial", "k0")
    assert [line["verdict"] for line in report["tried"]] == [verdict_of(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_puts_a_signed_entry_in_its_place(here: Here, key: SetKey, kind: str) -> None:
    """What is not trusted neither counts as existing nor stands in the way: a signed entry takes its name."""
    before = saved(here, key, kind).read_bytes()
    key(SECRET)
    assert here.save("k", "t")["status"] == "saved"
    assert here.entry("k").read_bytes() != before
    assert here.restore("k", "t")["status"] == "exact"
    assert here.save("k", "t")["status"] == "exists"
    assert bool(here.quarantine()) == (kind == "forged")


def test_a_save_that_fails_leaves_what_others_use(here: Here, key: SetKey) -> None:
    """A save with a key that comes to nothing leaves the entry that is not trusted to those who use it."""
    path = saved(here, key, "unsigned")
    key(SECRET)
    make_tree(here.root, {"empty": {}})
    with unchanged(path):
        here("save", "--key=k", "empty").expect(8)
    key(None)
    assert here.restore("k", "t")["status"] == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_verify_exits_4(here: Here, key: SetKey, kind: str) -> None:
    """Verify tells at every depth, by key, by file and by --all, that an entry is not trusted, and changes nothing.

    Named as a file it has no namespace that it could have been signed for instead.
    """
    path = saved(here, key, kind)
    key(SECRET)
    with unchanged(path):
        for arguments in (["k"], [str(path)], ["--all"]):
            for depth in ("seal", "contents"):
                if kind == "elsewhere" and arguments == [str(path)]:
                    here("verify", *arguments, f"--depth={depth}").expect()
                    continue
                done = here("verify", *arguments, f"--depth={depth}").expect(4)
                assert done.stdout.startswith(verdict_of(kind))
                assert REASONS[kind] in done.stdout


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "forged"])
def test_without_trust_any_whole_entry_is_used(here: Here, key: SetKey, kind: str) -> None:
    """--trust none, CACHEKIT_TRUST=none and no key at all take what is whole, whoever signed it."""
    saved(here, key, kind)
    key(SECRET)
    assert here.restore("k", "t", "--trust=none")["status"] == "exact"
    here("verify", "k", "--trust=none").expect()
    assert here.save("k", "t", "--trust=none")["status"] == "exists"
    key(None)
    assert here.restore("k", "t")["status"] == "exact"
    here("verify", "k").expect()


def test_what_is_forged_is_refused_in_every_mode(here: Here, key: SetKey) -> None:
    """A wrong HMAC under a key that the job has is refused also where no signature is required."""
    saved(here, key, "forged")
    assert here.restore("k", "t", "--trust=none")["status"] == "refused"
    assert here.quarantine()


def test_who_has_no_key_cannot_tell_what_is_forged(here: Here, key: SetKey) -> None:
    """Without any key a forged entry is a whole one: nothing is promised then."""
    saved(here, key, "forged")
    key(None)
    assert here.restore("k", "t")["status"] == "exact"


@pytest.mark.parametrize("given", [None, ""], ids=["unset", "empty"])
def test_hmac_without_a_key(
    here: Here, key: SetKey, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where signatures are required and no key is given, a save is exit 2 before anything, a restore refuses all."""
    key(given)
    monkeypatch.setenv("CACHEKIT_TRUST", "hmac")
    assert "no key is given" in here("save", "--key=k", "t").expect(2).stderr
    assert not here.store.exists()
    key(SECRET)
    here.save("k", "t")
    key(given)
    report = here.restore("k", "t")
    assert (report["status"], report["quarantined"]) == ("refused", [])
    assert "no key is given" in report["tried"][0]["reason"]
    assert any("no key is given" in warning for warning in report["warnings"])
    here("verify", "k").expect(4)


def test_a_bad_key_stops_every_command_that_would_use_it(here: Here, key: SetKey) -> None:
    """A key that is too short is exit 2 with a sentence, before anything is read or written."""
    here.save("k", "t")
    key("too short")
    with unchanged(here.root, here.store):
        for command in ("save --key=x t", "restore --key=k t", "verify k", "recover", "ls", "show k"):
            done = here(*command.split()).expect(2)
            assert "shorter than 16 bytes" in done.stderr
            assert "too short" not in done.stderr


def test_rotation(here: Here, key: SetKey) -> None:
    """The first key signs and all verify: entries of the old key are used until it is taken away."""
    key(SECRET)
    here.save("old", "t")
    key(f"{OTHER_SECRET}\n{SECRET}")
    here.save("new", "t")
    assert [here.restore(name, "t")["status"] for name in ("old", "new")] == ["exact", "exact"]
    assert here.save("old", "t")["status"] == "exists"
    key(OTHER_SECRET)
    assert here.restore("new", "t")["status"] == "exact"
    report = here.restore("old", "t")
    assert report["status"] == "refused"
    assert "signed with a key that is not among yours" in report["tried"][0]["reason"]
    assert report["tried"][0]["error"]["expected"] == [OTHER.id]
    assert report["tried"][0]["error"]["found"] == KEY.id
    assert here.save("old", "t")["status"] == "saved"


def test_a_store_full_of_unsigned_entries_is_told_in_few_lines(here: Here, key: SetKey) -> None:
    """Of many entries that are not trusted three are named to people, and all in the report."""
    for number in range(6):
        here.save(f"k-{number}", "t")
    key(SECRET)
    done = here("restore", "--key=x", "--restore-key=k-", "--json").expect()
    assert len(done.json()["tried"]) == 6
    assert done.stderr.count("not signed") == 3
    assert "3 further entries not used" in done.stderr


def test_show_and_ls_tell_the_signature(here: Here, key: SetKey) -> None:
    """Show and ls look at entries of any origin, and say by whom they were signed and what that is worth."""
    key(SECRET)
    here.save("mine", "t")
    key(OTHER_SECRET)
    here.save("theirs", "t")
    key(None)
    here.save("nobodys", "t")
    assert f"signed with key {KEY.id}, not checked" in here("show", "mine").expect().stdout
    key(SECRET)
    assert f"signed with key {KEY.id}, valid" in here("show", "mine").expect().stdout
    assert "not among yours" in here("show", "theirs").expect().stdout
    assert "not signed" in here("show", "nobodys").expect().stdout
    assert here("show", "mine", "--json").expect().json()["signature"] == {
        "standing": "valid",
        "key_id": KEY.id,
        "namespace": "default",
    }
    found = {line["key"]: line["signature"] for line in here("ls", "--json").expect().json()}
    assert found == {"mine": "valid", "theirs": "unknown-key", "nobodys": "unsigned"}
    assert "mine  (" in here("ls").expect().stdout
    assert here("ls").expect().stdout.count("  signed") == 2


def test_show_refuses_what_is_forged(here: Here, key: SetKey) -> None:
    """Neither manifest nor files of an entry with a wrong HMAC are shown to who has the key, by key or by file."""
    path = saved(here, key, "forged")
    for name in ("k", str(path)):
        for option in ((), ("--files",), ("--files", "--json"), ("--manifest",)):
            done = here("show", name, *option).expect(4)
            assert f"wrong under your key {KEY.id}" in done.stderr


def test_verify_names_the_key(here: Here, key: SetKey) -> None:
    """Verify says with which key an entry is signed."""
    key(SECRET)
    here.save("k", "t")
    assert here("verify", "k").expect().stdout.endswith(f", signed with key {KEY.id}\n")


@pytest.mark.parametrize("name", ["copy.bin", None], ids=["another name", "its own name"])
def test_a_lone_file_may_be_of_any_namespace(here: Here, key: SetKey, name: str | None) -> None:
    """A file that is named by its path is verified for whichever namespace it was signed for."""
    path = save_tree(signed_store(here.store, namespace=Namespace("a/b")), here.root, "t")
    copied = Path(shutil.copy(path, here.root / (name or path.name)))
    key(SECRET)
    (report,) = here("verify", copied, "--json").expect().json()["archives"]
    assert (report["signature"], report["key_id"]) == ("valid", KEY.id)
    assert "for the namespace" not in here("show", copied).expect().stdout


def test_what_is_not_trusted_is_never_confirmed_as_damaged(here: Here) -> None:
    """A second look at a refused entry that is merely not trusted does not cost it its place."""
    here.save("k", "t")
    path = here.entry("k")
    info = path.stat()
    store = DirectoryStore(signed_store(here.store))
    assert not confirmed(store, bytes(path), path.name, (info.st_dev, info.st_ino))
    cut(path)
    assert confirmed(store, bytes(path), path.name, (info.st_dev, info.st_ino))


@pytest.mark.parametrize("there", ["other", "default/@pr-1"])
def test_an_entry_moved_from_another_namespace(tmp_path: Path, there: str) -> None:
    """An entry that was signed in another namespace, or in a scope, and is moved here is not trusted here."""
    tree = make_tree(tmp_path / "tree", {"t": {"file": b"x"}})
    home = signed_store(tmp_path / "store")
    DirectoryStore(home).prepare()
    plain, _, scope = there.partition("/@")
    namespace = Namespace(plain).scoped(scope) if scope else Namespace(plain)
    moved = save_tree(signed_store(tmp_path / "store", namespace=namespace), tree, "t")
    place = Path(os.fsdecode(DirectoryStore(home).entry_path(moved.name)))
    shutil.copy(moved, place)
    report = restore_tree(home, tmp_path / "root")
    assert (report.status, report.quarantined) == ("refused", [])
    assert f"signed for the namespace {there!r}" in str(report.tried[0]["reason"])
    moved_home = signed_store(tmp_path / "store", namespace=namespace)
    assert restore_tree(moved_home, tmp_path / "root").status == "exact"


def test_an_old_entry_put_back_is_trusted(here: Here, key: SetKey) -> None:
    """Replay is not stopped: an entry that was once signed under this very key is good for ever."""
    key(SECRET)
    here.save("k", "t")
    path = here.entry("k")
    old = path.read_bytes()
    (here.root / "t" / "file").write_bytes(b"newer")
    here.save("k", "t", "--force")
    path.write_bytes(old)
    here.restore("k", "t", "--replace")
    assert (here.root / "t" / "file").read_bytes() == b"honest"


def test_an_entry_signed_under_another_key_name(here: Here, key: SetKey) -> None:
    """A trusted entry filed under another entry's name is damaged, as without trust."""
    key(SECRET)
    here.save("k", "t")
    make_tree(here.root, {"u": {"a": b"1"}})
    here.save("other", "u")
    shutil.copy(here.entry("k"), here.entry("other"))
    assert here.restore("other", "u")["status"] == "refused"
    assert here.quarantine()


def test_candidates_say_whether_they_may_be_used(here: Here, key: SetKey) -> None:
    """The store's listing has what is not trusted, marked as such, and no forged entry as if it were one."""
    saved(here, key, "unsigned")
    make_tree(here.root, {"u": {"a": b"1"}})
    key(SECRET)
    here.save("mine", "u")
    here.save("forged", "u")
    forge(here.entry("forged"))
    by_policy = {}
    for name, address in {
        "hmac": signed_store(here.store),
        "none": signed_store(here.store, required=False),
        "no key": StoreAddress(str(here.store), trust=ANYONE),
    }.items():
        found = DirectoryStore(address).entries()
        by_policy[name] = sorted((c.seal.key, c.trusted) for c in found if c.seal is not None)
    assert by_policy["hmac"] == [("k", False), ("mine", True)]
    assert by_policy["none"] == [("k", True), ("mine", True)]
    assert by_policy["no key"] == [("forged", True), ("k", True), ("mine", True)]


def test_an_untrusted_entry_does_not_tell_what_a_save_needs(here: Here, key: SetKey) -> None:
    """How well the last entry of a family compressed is not taken from an entry that is not trusted."""
    from cachekit.cache.estimate import family_ratio
    from cachekit.system.clock import this_platform

    make_tree(here.root, {"z": {"zeros": bytes(4_000_000)}})
    here.save("fam-1", "z")
    for address, known in ((signed_store(here.store), False), (StoreAddress(str(here.store)), True)):
        assert (family_ratio(DirectoryStore(address), "fam", "fam", this_platform()) < 1) == known


def in_place_killed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a restore in place of `k` over another tree, and fail in the middle of it."""
    from cachekit.cache import inplace

    (here.root / "t" / "file").write_bytes(b"other")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(inplace, "merge_batch", fail)
        here("restore", "--key=k", "--in-place", "t").expect(8)


@pytest.mark.parametrize("kind", ["unsigned", "stranger", "elsewhere", "forged", "right"])
def test_recover_goes_on_by_the_policy_of_the_killed_restore(
    here: Here, key: SetKey, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore in place that required a signature is finished only from a signed entry, also by who requires none."""
    key(SECRET)
    here.save("k", "t")
    in_place_killed(here, monkeypatch)
    path = here.entry("k")
    if kind == "forged":
        forge(path)
    elif kind == "unsigned":
        resign(path)
    elif kind == "elsewhere":
        sign_elsewhere(path)
    elif kind == "stranger":
        key(OTHER_SECRET)
    done = here("recover", "t", "--trust=none").expect(0 if kind == "right" else 8)
    assert (here.root / "t" / "file").read_bytes() == (b"honest" if kind == "right" else b"other")
    if kind != "right":
        assert REASONS[kind] in done.stderr
    key(SECRET)
    if kind == "stranger":
        here("recover", "t").expect()
        assert (here.root / "t" / "file").read_bytes() == b"honest"


def test_recover_by_a_stricter_policy(here: Here, key: SetKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who requires signatures does not finish a restore that was begun without."""
    here.save("k", "t")
    in_place_killed(here, monkeypatch)
    key(SECRET)
    assert "not signed" in here("recover", "t").expect(8).stderr
    here("recover", "t", "--trust=none").expect()
    assert (here.root / "t" / "file").read_bytes() == b"honest"


@pytest.mark.parametrize("option", ["--trust=ed25519", "--trust="])
def test_a_policy_that_is_none(here: Here, option: str) -> None:
    """A policy that does not exist is exit 2: nothing is used by a policy that was not meant."""
    assert "hmac" in here("restore", "--key=k", option).expect(2).stderr


def test_a_misspelt_policy_in_the_environment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """CACHEKIT_TRUST with anything but hmac and none is exit 2, never the weaker policy."""
    monkeypatch.setenv("CACHEKIT_TRUST", "HMAC ")
    here("restore", "--key=k").expect(2)


def test_untrusted_is_an_error_of_its_own() -> None:
    """What is not trusted is no damage: whoever sets damaged entries aside does not set it aside."""
    from cachekit.errors import Damaged, Refused

    assert issubclass(Untrusted, Refused)
    assert not issubclass(Untrusted, Damaged)


@pytest.mark.parametrize("kind", ["right", *KINDS])
@pytest.mark.parametrize("remembered", [True, False], ids=["by its record", "by its family"])
def test_a_save_starts_only_from_a_trusted_entry(
    here: Here, key: SetKey, kind: str, remembered: bool
) -> None:
    """No frame of an entry that is not trusted is copied into one that is then signed, whatever is remembered of it."""
    package_tree(here.root / "t", files=40, large=0)
    path = saved(here, key, kind)
    if not remembered:
        shutil.rmtree(here.home / ".local")
    before = path.read_bytes()
    key(SECRET)
    report = here.save("k2", "t", "--family=k")
    assert (report["base"], report["copied_bytes"] > 0) == (("k", True) if kind == "right" else (None, False))
    assert here.restore("k2", "t")["status"] == "exact"
    assert path.read_bytes() == before


def test_a_newer_untrusted_entry_does_not_hide_the_base(here: Here, key: SetKey) -> None:
    """A save starts from the newest trusted entry of the family, whatever others have put there since."""
    package_tree(here.root / "t", files=40, large=0)
    key(SECRET)
    here.save("k-1", "t")
    key(None)
    here.save("k-2", "t")
    shutil.rmtree(here.home / ".local")
    key(SECRET)
    assert here.save("k-3", "t")["base"] == "k-1"
