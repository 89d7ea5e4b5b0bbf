"""What the commands for entries do with one that holds Docker images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cachekit.archive.check import check_archive
from cachekit.archive.images import HeldImage, HeldLayer, decode_images, encode_images
from cachekit.archive.read import open_archive
from cachekit.cache.explain import explain
from cachekit.cache.restore import RestoreRequest
from cachekit.errors import Damaged, Refused
from cachekit.model import Key, Target
from cachekit.trust import ANYONE
from tests.support.archives import Entry
from tests.support.images import Made, MimicEngine, layer, made_image
from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree


@pytest.fixture
def saved(here: Here, mimic: MimicEngine, app: Made) -> Here:
    """A store with images under `images-1`, and files under `files-1`."""
    mimic.add(app)
    here("image", "save", "--key", "images-1", "app:1").expect()
    make_tree(here.root, {"t": {"a": b"12345"}})
    here.save("files-1", "t")
    return here


def test_restore_passes_images_over(saved: Here) -> None:
    """A restore of a key that holds images is a miss that says what would load them, and writes nothing."""
    for arguments in (["--key", "images-1"], ["--key", "images-2", "--restore-key", "images-"]):
        for more in ([], ["--any-platform"]):
            with unchanged(saved.root):
                done = saved("restore", "--json", *arguments, *more).expect()
            assert done.json()["status"] == "miss"
            assert [line["verdict"] for line in done.json()["tried"]] == ["wrong-kind"]
            assert "it holds Docker images, which cachekit image load loads" in done.stderr
    saved("restore", "--key", "images-1", "--fail-on-miss").expect(3)
    saved("restore", "--key", "images-1", "--strict").expect(3)
    assert saved.quarantine() == []


def test_image_load_passes_files_over(saved: Here, mimic: MimicEngine) -> None:
    """A load of a key that holds files is a miss that says what would restore them; the engine gets nothing."""
    for more in ([], ["--any-platform"]):
        done = saved("image", "load", "--json", "--key", "files-2", "--restore-key", "files-", *more).expect()
        assert done.json()["status"] == "miss"
        assert [line["verdict"] for line in done.json()["tried"]] == ["wrong-kind"]
        assert "it holds files, which cachekit restore restores" in done.stderr
    assert mimic.loads == []


def test_the_other_kind_hides_no_hit(saved: Here) -> None:
    """Newer images under the same restore key do not keep files from being restored, and are not told of."""
    saved("image", "save", "--key", "files-9", "app:1").expect()
    done = saved("restore", "--json", "--key", "files-2", "--restore-key", "files-", "t").expect()
    assert (done.json()["status"], done.json()["matched_key"]) == ("partial", "files-1")
    assert "Docker images" not in done.stderr


def test_one_key_may_hold_both(saved: Here, mimic: MimicEngine, app: Made) -> None:
    """Files and images under one key are two entries; each command finds its own."""
    saved.save("images-1", "t")
    shutil.rmtree("t")
    assert saved.restore("images-1")["status"] == "exact"
    assert (saved.root / "t" / "a").read_bytes() == b"12345"
    mimic.forget()
    assert saved("image", "load", "--json", "--key", "images-1").expect().json()["status"] == "exact"
    assert list(mimic.state.images) == [app.id]
    assert len(verdicts(saved, "images-1")) == 2


def test_a_save_never_starts_from_images(saved: Here) -> None:
    """Neither a delta save nor its estimate takes an entry of images of the same family for a base."""
    make_tree(saved.root, {"u": {"b": b"67890"}})
    for more in ([], ["--skip-unchanged"]):
        report = saved.save(f"images-2{len(more)}", "u", "--family", "images", *more)
        assert (report["status"], report["base"], report["copied_bytes"]) == ("saved", None, 0)
        (saved.root / "u" / "b").write_bytes(b"other")


def test_images_never_start_from_files(saved: Here) -> None:
    """A save of images takes layers from entries of images only."""
    report = saved("image", "save", "--json", "--key", "files-2", "app:1").expect().json()
    assert report["base"] == "images-1"
    assert report["copied_bytes"] > 9 << 20


def test_explain(saved: Here) -> None:
    """Explain says of an entry of images that it is one; with --images what a load would take."""
    report = saved("explain", "--json", "--key", "images-1").expect().json()
    assert report["status"] == "miss"
    assert [line["verdict"] for line in report["lines"]] == ["absent", "wrong-kind"]
    done = saved("explain", "--images", "--key", "images-2", "--restore-key", "images-").expect()
    assert done.stdout.startswith("would load images-1 (partial)\n")
    report = saved("explain", "--images", "--json", "--key", "files-1").expect().json()
    assert [line["verdict"] for line in report["lines"]] == ["absent", "wrong-kind"]
    cut(saved.entry("images-1"))
    report = saved("explain", "--images", "--json", "--key", "images-1").expect().json()
    assert (report["status"], report["lines"][0]["verdict"]) == ("refused", "damaged")


@pytest.mark.parametrize("fate", ["whole", "cut", "absent"])
def test_explain_is_what_a_load_does(saved: Here, mimic: MimicEngine, fate: str) -> None:
    """The status and the entry that explain foretells are those of the load that follows."""
    mimic.forget()
    if fate == "cut":
        cut(saved.entry("images-1"))
    key = "images-3" if fate == "absent" else "images-1"
    with unchanged(saved.store):
        said = explain(RestoreRequest(key, str(saved.store)), images=True)
    done = saved("image", "load", "--json", "--key", key)
    assert said.status == done.json()["status"]
    assert said.entry == done.json()["entry"]


def test_ls(saved: Here) -> None:
    """A list names how many images an entry holds, and JSON which."""
    told = saved("ls").expect().stdout
    assert " 1 image  images-1  " in told
    assert "1 files  files-1  " in told
    by_key = {entry["key"]: entry for entry in saved("ls", "--json").expect().json()}
    assert (by_key["images-1"]["images"], by_key["files-1"]["images"]) == (["app:1"], None)


def test_show(saved: Here, app: Made) -> None:
    """The summary names each image, its platform, layers and ids, instead of targets; JSON has the seal's images."""
    told = saved("show", "images-1").expect().stdout
    (line,) = [line for line in told.splitlines() if line.startswith("image ")]
    assert "app:1 (linux/amd64, 3 layers, " in line
    assert app.id.removeprefix("sha256:")[:12] in line
    assert "targets" not in told
    data = saved("show", "--json", "images-1").expect().json()
    assert data["features"] == ["image"]
    assert data["images"][0]["names"] == ["app:1"]
    assert [one[3] for one in data["images"][0]["layers"]] == app.diff_ids
    assert "manifest.json" in saved("show", "--files", "images-1").expect().stdout


def verdicts(here: Here, *arguments: str, code: int = 0) -> list[str]:
    """Verify, and return the verdicts."""
    report = here("verify", "--json", *arguments).expect(code).json()
    return [archive["verdict"] for archive in report["archives"]]


def test_verify(saved: Here) -> None:
    """An entry of images is verified like any other, at every depth, and found if its seal is damaged."""
    for depth in ("seal", "index", "frames", "contents"):
        assert verdicts(saved, "images-1", "--depth", depth) == ["ok"]
    path = saved.entry("images-1")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert verdicts(saved, "images-1", code=4) == ["damaged"]
    path.write_bytes(data[:-1])
    assert verdicts(saved, "images-1", code=4) == ["damaged"]


def test_diff(saved: Here, mimic: MimicEngine, app: Made) -> None:
    """Two entries of images differ by the members of their archives; layers that both have do not count."""
    mimic.add(made_image("app:2", layers=[*app.layers[:2], layer({"d": b"d"})]))
    saved("image", "save", "--key", "images-2", "app:2").expect()
    found = saved("diff", "--json", "images-1", "images-2").expect().json()
    names = {one["path"]: one["change"] for one in found["differences"]}
    assert names["blobs/sha256/" + app.diff_ids[2].removeprefix("sha256:")] == "removed"
    assert names["manifest.json"] == "changed"
    assert not any(app.diff_ids[1].removeprefix("sha256:") in name for name in names)


def test_pins_and_prune(saved: Here) -> None:
    """A pinned entry of images stays, an unpinned one goes as any other does; a pin of none can be taken away."""
    saved("pin", "images-1").expect()
    saved("prune", "--keep-last", "0", "--max-entries", "0")
    assert [entry["key"] for entry in saved("ls", "--json").expect().json()] == ["images-1"]
    saved.entry("images-1").unlink()
    assert "unpinned" in saved("unpin", "images-1").expect().stderr
    assert list((saved.store / "v1/default/pinned").iterdir()) == []


def test_files_do_not_stand_in_for_images(saved: Here) -> None:
    """The newest entry of a family goes last, for its images and its files each: an older one of files goes first."""
    (saved.store / "v1/default/entries" / saved.entry("files-1").name).unlink()
    for key in ("images-2", "images-3"):
        (saved.root / "t" / "a").write_text(key)
        saved.save(key, "t", "--family", "images")
    saved("prune", "--max-entries", "2").expect()
    assert {entry["key"] for entry in saved("ls", "--json").expect().json()} == {"images-1", "images-3"}


def test_stats(saved: Here) -> None:
    """Saves and loads of images are counted as those of files are."""
    saved("image", "load", "--key", "images-1").expect()
    saved("image", "load", "--key", "images-2").expect()
    caches = saved("stats", "--json").expect().json()["stats"]["caches"]
    (images,) = [one for one in caches if one["cache"] == "images"]
    found = {name: images[name] for name in ("saves", "restores", "exact", "miss", "refused")}
    assert found == {"saves": 1, "restores": 2, "exact": 1, "miss": 1, "refused": 0}
    assert images["saved_bytes"] == saved.entry("images-1").stat().st_size
    assert images["restored_bytes"] > images["saved_bytes"]


def test_names_of_images_are_printed_safely(here: Here, mimic: MimicEngine) -> None:
    """A seal may hold any text as a name; whoever prints it escapes it."""
    mimic.add(made_image("app:1", layers=[layer({"a": b"a"})]))
    here("image", "save", "--key", "k", "app:1").expect()
    path = here.entry("k")
    entry = Entry.read(path)
    assert entry.facts.images is not None
    (image,) = entry.facts.images
    names = ("\x1b[31mred\n::error::x",)
    entry.facts.images = [HeldImage(names, image.ids, image.config, image.platform, image.layers)]
    path.write_bytes(entry.seal())
    for command in (["show", "k"], ["ls"], ["image", "load", "--key", "k"]):
        done = here(*command)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\n::" not in done.stdout + done.stderr


# What a seal may say


GOOD = HeldImage(
    ("app:1",),
    ("sha256:" + "a" * 64,),
    "sha256:" + "a" * 64,
    "linux/amd64",
    (HeldLayer(b"blobs/\xff", "sha256:" + "b" * 64, 5, "sha256:" + "c" * 64),),
)


def test_images_in_a_seal_come_back() -> None:
    """What the seal says of images is read as it was written, whatever bytes a member's name has."""
    assert decode_images(json.loads(json.dumps(encode_images([GOOD])))) == [GOOD]


_VALUES: dict[str, list[object]] = {
    "names": [None, "app:1", [1]],
    "ids": [None, [], ["a"], ["sha256:" + "A" * 64], ["sha256:" + "a" * 63]],
    "config": [None, "", "sha256:" + "a" * 65],
    "platform": [None, 1],
    "layers": [
        None,
        {},
        [[]],
        [["a", "sha256:" + "b" * 64, -1, "sha256:" + "c" * 64]],
        [["a", "sha256:" + "b" * 64, True, "sha256:" + "c" * 64]],
        [["a", "sha256:" + "b" * 64, 1 << 60, "sha256:" + "c" * 64]],
        [["\u20ac", "sha256:" + "b" * 64, 1, "sha256:" + "c" * 64]],
        [["a", "md5:" + "b" * 64, 1, "sha256:" + "c" * 64]],
        [["a", "sha256:" + "b" * 64, 1, None]],
    ],
}
BAD: dict[str, object] = {"no list": {}, "no image": [], "a text for an image": ["app:1"]}
for field, values in _VALUES.items():
    for number, value in enumerate(values):
        BAD[f"{field} {number}"] = [encode_images([GOOD])[0] | {field: value}]


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_seal_with_images_that_are_none_is_refused(value: object) -> None:
    """Whatever is not what `encode_images` writes is damage, not a crash."""
    with pytest.raises(Damaged, match="the seal's images"):
        decode_images(value)


@pytest.mark.parametrize("lie", ["size", "missing", "no-file", "target", "feature", "images"])
def test_a_seal_that_its_index_belies_is_refused(saved: Here, mimic: MimicEngine, lie: str) -> None:
    """A layer that is not there, or a target besides the images, is refused before an engine gets a byte."""
    path = saved.entry("images-1")
    entry = Entry.read(path)
    assert entry.facts.images is not None
    (image,) = entry.facts.images
    first = image.layers[0]
    told: dict[str, object] = {}
    if lie == "target":
        entry.facts.targets = [Target("root", b"blobs")]
    elif lie == "feature":
        told = {"features": []}
    elif lie == "images":
        told = {"images": []}
    else:
        member = {"missing": b"blobs/none", "no-file": b"blobs"}.get(lie, first.member)
        wrong = HeldLayer(member, first.digest, first.size + (lie == "size"), first.diff_id)
        entry.facts.images = [
            HeldImage(image.names, image.ids, image.config, image.platform, (wrong, *image.layers[1:]))
        ]
    path.write_bytes(entry.seal(told=told))
    with pytest.raises(Refused), open_archive(bytes(path), ANYONE) as archive:
        check_archive(archive)
    mimic.forget()
    saved("image", "load", "--key", "images-1").expect(4)
    assert mimic.loads == []
    assert saved.quarantine() != []


def test_the_family_of_images_is_that_of_their_key(saved: Here) -> None:
    """Unless told otherwise an entry of images belongs to the family of its key."""
    assert saved("show", "--json", "images-1").expect().json()["family"] == Key("images-1").family


def test_an_alias_is_no_way_to_other_kinds(saved: Here, tmp_path: Path) -> None:
    """Images filed under the name of an entry of files are damage to whoever restores it."""
    images = saved.entry("images-1").read_bytes()
    path = saved.entry("files-1")
    path.unlink()
    path.write_bytes(images)
    with unchanged(saved.root):
        assert saved.restore("files-1")["status"] == "refused"
