"""`image load` by what the engine has already, by what it answers, and from where the entry comes."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cachekit.errors import EngineFailed, NoSpace
from cachekit.images import room
from cachekit.images.load import ImageLoadReport
from cachekit.system.space import FreeSpace
from tests.images.test_load import ONE, OTHER, entry, load, save, store
from tests.support.images import Made, MimicEngine, layer, made_image
from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged

__all__ = ["entry", "store"]

TWO = made_image("db:2", layers=[layer({"two": b"2" * 900})])


def done(report: ImageLoadReport) -> list[object]:
    """Return what was done for each image of a report."""
    return [one["done"] for one in report.images]


@pytest.mark.parametrize("gone", ["app:1", "db:2"])
def test_one_image_of_two_is_there(mimic: MimicEngine, store: Path, gone: str) -> None:
    """If one is missing the whole entry is sent, and both are loaded."""
    mimic.add(ONE, TWO)
    save(mimic, store, "app:1", "db:2")
    del mimic.state.images[mimic.state.names.pop(gone)]
    report = load(mimic, store)
    assert (report.status, done(report)) == ("exact", ["loaded", "loaded"])
    assert len(mimic.loads) == 1
    assert mimic.state.tagged == []
    assert {mimic.state.names["app:1"], mimic.state.names["db:2"]} == {ONE.id, TWO.id}


def test_one_image_is_missing_and_one_lacks_its_name(mimic: MimicEngine, store: Path) -> None:
    """What is sent brings its names: none is given besides."""
    mimic.add(ONE, TWO)
    save(mimic, store, "app:1", "db:2")
    del mimic.state.images[mimic.state.names.pop("db:2")]
    del mimic.state.names["app:1"]
    assert done(load(mimic, store)) == ["loaded", "loaded"]
    assert mimic.state.tagged == []


def test_only_the_missing_names_are_given(mimic: MimicEngine, store: Path) -> None:
    """An image that is there in part gets the names that it lacks; one that is there in full is left alone."""
    mimic.add(ONE, TWO)
    save(mimic, store, "app:1", "app:latest", "db:2")
    del mimic.state.names["app:latest"]
    assert sorted(map(str, done(load(mimic, store)))) == ["named", "present"]
    assert mimic.state.tagged == ["app:latest"]
    assert mimic.loads == []


def test_an_image_without_a_name(mimic: MimicEngine, store: Path) -> None:
    """It is loaded and found by its id, and is present if it is there under whatever name."""
    mimic.add(ONE)
    save(mimic, store, ONE.id)
    report = load(mimic, store)
    assert (done(report), report.images[0]["id"], report.images[0]["names"]) == (["present"], ONE.id, [])
    assert mimic.loads == []
    mimic.forget()
    report = load(mimic, store)
    assert (done(report), report.images[0]["id"]) == (["loaded"], ONE.id)
    assert mimic.snapshot() == {ONE.id: ""}


def test_an_image_without_a_name_that_is_not_kept(mimic: MimicEngine, store: Path) -> None:
    """An engine that took it and does not have it is not believed."""
    mimic.add(ONE)
    save(mimic, store, ONE.id)
    mimic.forget()
    mimic.plan.keeps = False
    with pytest.raises(EngineFailed, match="without a name and does not have it"):
        load(mimic, store)


def test_an_engine_with_ids_of_its_own(
    mimic: MimicEngine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that calls what it loaded otherwise is believed by the layers; before a load only ids count."""
    mimic.add(ONE)
    save(mimic, store, "app:1")
    mimic.forget()
    found = mimic._found

    def otherwise(reference: str) -> Made:
        image = found(reference)
        return OtherId(image.names, image.layers, image.config)

    monkeypatch.setattr(mimic, "_found", otherwise)
    for loads in (1, 2):
        report = load(mimic, store)
        assert (done(report), report.images[0]["id"]) == (["loaded"], "sha256:" + "e" * 64)
        assert len(mimic.loads) == loads


class OtherId(Made):
    """An image under an id that nobody could know."""

    @property
    def id(self) -> str:
        """Made up."""
        return "sha256:" + "e" * 64


@pytest.mark.parametrize("gone", [True, False])
def test_an_engine_that_keeps_one_name_only(mimic: MimicEngine, store: Path, *, gone: bool) -> None:
    """Each name is asked for: the first one's being right does not speak for the second."""
    mimic.add(ONE)
    save(mimic, store, "app:1", "app:latest")
    mimic.forget()
    mimic.plan.keeps = False
    mimic.add(made_image("app:1", layers=ONE.layers))
    if not gone:
        mimic.add(made_image("app:latest", layers=TWO.layers))
    told = "none of that name" if gone else "another one under that name"
    with pytest.raises(EngineFailed, match=f"'app:latest' and has {told}"):
        load(mimic, store, force=True)


def test_the_room_is_that_of_the_tar(
    mimic: MimicEngine, store: Path, entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine needs room for the archive and for what is unpacked of it: one byte less, and nothing is sent."""
    mimic.answers["GET /info"] = (200, {"DockerRootDir": str(tmp_path), "Driver": "overlay2"})
    monkeypatch.setattr(room, "free_space", lambda path: FreeSpace(0, None, 4096, 1))
    with pytest.raises(NoSpace) as caught:
        load(mimic, store)
    need = caught.value.fields["need"]
    assert isinstance(need, int)
    assert need > 2 * 19 << 20
    monkeypatch.setattr(room, "free_space", lambda path: FreeSpace(need - 1, None, 4096, 1))
    with pytest.raises(NoSpace):
        load(mimic, store)
    assert mimic.loads == []
    monkeypatch.setattr(room, "free_space", lambda path: FreeSpace(need, None, 4096, 1))
    assert load(mimic, store).status == "exact"
    assert 2 * len(mimic.loads[0].data) == need


def test_progress(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """What was verified is told, then what was sent, up to the whole tar."""
    told: list[tuple[int, int, int]] = []
    report = load(mimic, store, progress=lambda *numbers: told.append(numbers))
    size = len(mimic.loads[0].data)
    sent = [done for done, total, members in told if (total, members) == (size, report.members)]
    assert sent == sorted(sent)
    assert len(sent) > 2
    assert sent[-1] == size
    assert 0 < sent[0] < size


# What the engine answers


def test_an_engine_that_does_not_tell(
    mimic: MimicEngine, store: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that fails when it is asked for images is told as that, and nothing is sent."""

    def fail(handler: BaseHTTPRequestHandler, reference: str) -> None:
        handler.send_error(500)

    monkeypatch.setattr(mimic, "_inspect", fail)
    with pytest.raises(EngineFailed, match="failed to tell of its images"):
        load(mimic, store)
    assert mimic.loads == []


def test_an_engine_that_gives_no_name(
    mimic: MimicEngine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that fails to give an image its name is told as that."""
    mimic.add(ONE)
    save(mimic, store, "app:1")
    mimic.state.names.clear()
    answer = mimic.answer

    def fail(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(500) if "/tag" in handler.path else answer(handler)

    monkeypatch.setattr(mimic, "answer", fail)
    with pytest.raises(EngineFailed, match="failed to name an image"):
        load(mimic, store)


def test_an_engine_that_does_not_answer_a_load(
    mimic: MimicEngine, store: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be silent as long as the request says, and no longer."""
    over = threading.Event()
    monkeypatch.setattr(mimic, "_load", lambda handler: over.wait(60))
    try:
        with pytest.raises(EngineFailed, match=r"failed to load the image: .* for 0\.3 s"):
            load(mimic, store, stall=0.3)
    finally:
        over.set()
    assert entry.exists()


# From where


def test_a_refusal_is_not_explained_by_other_entries(here: Here, mimic: MimicEngine) -> None:
    """Files under the key are told of where nothing was found, and not where what was found is damaged."""
    mimic.add(ONE)
    here("image", "save", "--key", "k", "app:1").expect()
    cut(here.entry("k"))
    (here.root / "t").write_text("t")
    here.save("k", "t")
    report = load(mimic, here.store, "k")
    assert (report.status, [line["verdict"] for line in report.tried]) == ("refused", ["damaged"])
    report = load(mimic, here.store, "k")
    assert (report.status, [line["verdict"] for line in report.tried]) == ("miss", ["wrong-kind"])


def test_a_scope_goes_first(here: Here, mimic: MimicEngine) -> None:
    """A job with a scope loads what its scope has, else what trusted jobs saved, which it leaves as it was."""
    mimic.add(OTHER)
    here("image", "save", "--key", "k", "app:1").expect()
    mimic.forget()
    trusted = here.store / "v1/default/entries"
    with unchanged(trusted):
        report = here("image", "load", "--json", "--scope", "pr-1", "--key", "k").expect().json()
    assert report["status"] == "exact"
    assert mimic.snapshot()["app:1"] == OTHER.id
    mimic.add(ONE)
    here("image", "save", "--scope", "pr-1", "--key", "k", "app:1").expect()
    for scope, image in (("pr-1", ONE), ("pr-2", OTHER)):
        mimic.forget()
        here("image", "load", "--scope", scope, "--key", "k").expect()
        assert mimic.snapshot()["app:1"] == image.id
    mimic.forget()
    report = here("image", "load", "--json", "--scope", "pr-1", "--key", "other").expect().json()
    assert (report["status"], mimic.loads) == ("miss", [])
