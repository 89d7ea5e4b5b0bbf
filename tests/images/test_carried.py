"""Entries of Docker images are carried as any other entry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.images import Made, MimicEngine
from tests.support.in_process import Here, cut
from tests.support.trees import make_tree


def test_images_are_carried(
    here: Here, mimic: MimicEngine, app: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of images is exported, imported into another store, and loaded from there; a cut one is refused."""
    mimic.add(app)
    here("image", "save", "--key", "images-1", "app:1").expect()
    report = here("store", "export", "--key=images-1", "--json", "--copy").expect().json()
    assert report["status"] == "exported"
    monkeypatch.setenv("CACHEKIT_STORE", str(tmp_path / "other"))
    mimic.forget()
    (file,) = here("store", "import", "--json").expect().json()["files"]
    assert (file["status"], file["key"]) == ("imported", "images-1")
    here("verify", "--all").expect()
    assert here("image", "load", "--json", "--key=images-1").expect().json()["status"] == "exact"
    cut(Path(report["path"]))
    here("store", "import").expect(4)
    assert not Path(report["path"]).exists()


def test_files_go_before_images(here: Here, mimic: MimicEngine, app: Made) -> None:
    """Of one key's two entries that of files is exported; with neither key nor restore key of files, the images'."""
    mimic.add(app)
    here("image", "save", "--key", "both-1", "app:1").expect()
    make_tree(here.root, {"t": {"a": b"12345"}})
    here.save("both-1", "t")
    report = here("store", "export", "--key=both-1", "--json").expect().json()
    assert report["identity"] != ""
    assert here("show", "--json", report["path"]).expect().json()["features"] == []
