"""`image load`: verified before the engine gets a byte, and each frame again as it goes there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cachekit.errors import EngineFailed, InvalidRequest, NoSpace
from cachekit.images import load as loading
from cachekit.images.load import ImageLoadReport, ImageLoadRequest, load_images
from cachekit.images.save import ImageSaveRequest, save_images
from cachekit.model import Platform
from cachekit.system import steps
from tests.support.cli import Cli
from tests.support.images import STYLES, Made, MimicEngine, Style, layer, made_image
from tests.support.in_process import Here
from tests.support.surgery import anatomy, flip

ONE = made_image("app:1", "app:latest", layers=[layer({"a": b"a" * 5000}), layer({"b": b"b" * 700})])
OTHER = made_image("app:1", layers=ONE.layers, command="/bin/other")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


def save(engine: MimicEngine, store: Path, *names: str, key: str = "k-1") -> Path:
    """Save images, and return where the entry lies."""
    report = save_images(ImageSaveRequest(key, list(names), str(store), engine=engine.connect))
    assert report.status == "saved"
    return store / "v1" / "default" / "entries" / report.entry


def load(engine: MimicEngine, store: Path, key: str = "k-1", **more: object) -> ImageLoadReport:
    """Load images."""
    return load_images(ImageLoadRequest(key, str(store), engine=engine.connect, **more))  # type: ignore[arg-type]


@pytest.fixture
def entry(mimic: MimicEngine, store: Path, app: Made) -> Path:
    """A saved entry, the engine empty again."""
    mimic.add(app)
    path = save(mimic, store, "app:1")
    mimic.forget()
    return path


@pytest.mark.parametrize("style", STYLES)
def test_what_was_saved_comes_back(mimic: MimicEngine, store: Path, style: Style) -> None:
    """An image comes back with its id and names, in every layout; a second load finds it and sends nothing."""
    mimic.add(ONE)
    mimic.plan.style = style
    save(mimic, store, "app:1", "app:latest")
    mimic.forget()
    report = load(mimic, store)
    assert (report.status, [one["done"] for one in report.images]) == ("exact", ["loaded"])
    assert mimic.snapshot() == {ONE.id: "", "app:1": ONE.id, "app:latest": ONE.id}
    again = load(mimic, store)
    assert (again.status, [one["done"] for one in again.images]) == ("exact", ["present"])
    assert len(mimic.loads) == 1
    load(mimic, store, force=True)
    assert len(mimic.loads) == 2


def test_a_missing_name_is_given(mimic: MimicEngine, store: Path) -> None:
    """An image that is there under another name gets its own back, without being sent."""
    mimic.add(ONE)
    save(mimic, store, "app:1", "app:latest")
    del mimic.state.names["app:1"]
    report = load(mimic, store)
    assert [one["done"] for one in report.images] == ["named"]
    assert mimic.state.tagged == ["app:1"]
    assert mimic.loads == []


def test_a_name_that_means_another_image_now(mimic: MimicEngine, store: Path) -> None:
    """A name that was given to an image of the same layers is given back to the one that was saved."""
    mimic.add(ONE)
    save(mimic, store, "app:1")
    mimic.add(OTHER)
    assert mimic.state.names["app:1"] == OTHER.id
    assert [one["done"] for one in load(mimic, store).images] == ["named"]
    assert mimic.state.names["app:1"] == ONE.id


def test_an_image_that_goes_away_while_it_is_named(
    mimic: MimicEngine, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is removed between two questions is the engine's failure, and no crash."""
    mimic.add(ONE)
    save(mimic, store, "app:1")
    mimic.state.names.clear()
    inspect = mimic._inspect

    def once(handler: BaseHTTPRequestHandler, reference: str) -> None:
        inspect(handler, reference)
        if reference == ONE.id:
            mimic.state.images.clear()

    monkeypatch.setattr(mimic, "_inspect", once)
    with pytest.raises(EngineFailed, match="went away"):
        load(mimic, store)


REGIONS: dict[str, Callable[[bytes, Path], bytes]] = {
    "first frame": lambda data, path: flip(data, 20),
    "a layer's frame": lambda data, path: flip(data, anatomy(path).frames[2] + 50),
    "last frame": lambda data, path: flip(data, anatomy(path).index - 5),
    "index": lambda data, path: flip(data, anatomy(path).index + 20),
    "seal": lambda data, path: flip(data, anatomy(path).json + 20),
    "trailer": lambda data, path: flip(data, anatomy(path).trailer + 3),
    "seek table": lambda data, path: flip(data, anatomy(path).seek_table + 12),
    "footer": lambda data, path: flip(data, anatomy(path).footer + 1),
    "cut in a layer": lambda data, path: data[: anatomy(path).frames[2] + 50],
    "cut at a frame": lambda data, path: data[: anatomy(path).frames[2]],
    "cut by a byte": lambda data, path: data[:-1],
    "empty": lambda data, path: b"",
    "appended": lambda data, path: data + b"\0",
}


@pytest.mark.parametrize("region", REGIONS)
def test_a_damaged_entry_never_reaches_the_engine(
    mimic: MimicEngine, store: Path, entry: Path, region: str
) -> None:
    """Whatever part of an entry is damaged: refused, set aside, and the engine does not hear of it."""
    entry.write_bytes(REGIONS[region](entry.read_bytes(), entry))
    report = load(mimic, store)
    assert report.status == "refused"
    assert report.quarantined == [entry.name]
    assert not entry.exists()
    assert mimic.loads == []
    assert mimic.snapshot() == {}
    assert load(mimic, store).status == "miss"


def test_the_command_refuses_aloud(
    here: Here, mimic: MimicEngine, app: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused entry is exit 4; with --soft-fail a warning and exit 0; a miss is 0, or 3 with --fail-on-miss."""
    mimic.add(app)
    here("image", "save", "--key", "k", "app:1").expect()
    mimic.forget()
    path = here.entry("k")
    whole = path.read_bytes()
    outputs = tmp_path / "outputs"
    for more, code in ([], 4), (["--soft-fail"], 0):
        path.write_bytes(whole[:-100])
        monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
        done = here("image", "load", "--key", "k", *more).expect(code)
        monkeypatch.delenv("GITHUB_OUTPUT")
        assert "set aside" in done.stderr
        assert "status<<" in outputs.read_text()
        assert "refused" in outputs.read_text()
        outputs.unlink()
    assert here("image", "load", "--json", "--key", "k").expect(0).json()["status"] == "miss"
    here("image", "load", "--key", "k", "--fail-on-miss").expect(3)
    assert mimic.loads == []


def test_the_next_candidate(mimic: MimicEngine, store: Path) -> None:
    """A damaged entry does not keep a restore key from an older one that is whole."""
    mimic.add(ONE)
    save(mimic, store, "app:1", key="k-1")
    newest = save(mimic, store, "app:1", key="k-2")
    mimic.forget()
    newest.write_bytes(newest.read_bytes()[:-50])
    report = load(mimic, store, "k-3", restore_keys=["k-"])
    assert (report.status, report.matched_key) == ("partial", "k-1")
    assert report.quarantined == [newest.name]
    assert mimic.snapshot()["app:1"] == ONE.id


def test_an_empty_restore_key(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """It would take whatever is newest, so it is refused before the engine is asked for anything."""
    before = list(mimic.requests)
    with pytest.raises(InvalidRequest, match="is empty"):
        load(mimic, store, "k-2", restore_keys=["k-", ""])
    assert mimic.requests == before


def test_a_restore_key_that_is_the_key_itself(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """Only the key that was asked for is exact: one that its restore key finds is partial."""
    assert load(mimic, store, "k", restore_keys=["k"]).status == "partial"
    assert load(mimic, store, "k-1", restore_keys=["k"]).status == "exact"


def test_a_load_counts_as_use_and_clears_up(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """The entry that was loaded is marked as used now, others are not, and a dead save's file goes."""
    mark = store / "v1/default/used" / entry.name
    os.utime(mark, (1, 1))
    dead = store / "v1/default/tmp" / f"{entry.name}.part"
    dead.write_bytes(b"half")
    assert load(mimic, store, "other").status == "miss"
    assert mark.stat().st_mtime == 1
    assert not dead.exists()
    assert load(mimic, store).status == "exact"
    assert mark.stat().st_mtime > 1


def test_images_of_another_machine(
    mimic: MimicEngine, store: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A miss tells of the same key elsewhere, and --any-platform loads it."""
    monkeypatch.setattr(loading, "image_platform", lambda: Platform("linux", "riscv64", "any"))
    report = load(mimic, store)
    assert report.status == "miss"
    assert [(line["entry"], line["verdict"]) for line in report.tried] == [(entry.name, "miss")]
    assert mimic.loads == []
    report = load(mimic, store, any_platform=True)
    assert (report.status, report.tried) == ("exact", [])
    assert load(mimic, store, "other", any_platform=True).tried == []


def test_files_under_the_key(here: Here, mimic: MimicEngine) -> None:
    """An entry of files has a platform of its own, and is told of as one of files."""
    (here.root / "t").write_text("t")
    here.save("k-1", "t")
    for any_platform in (False, True):
        report = load(mimic, here.store, "k-1", any_platform=any_platform)
        assert report.status == "miss"
        assert [line["verdict"] for line in report.tried] == ["wrong-kind"]


def test_trust_without_a_key(
    here: Here, mimic: MimicEngine, app: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where signatures are required and no key is given, it says so, for nothing can be loaded; else it does not."""
    mimic.add(app)
    here("image", "save", "--key", "k", "app:1").expect()
    told = "trust is hmac, and no key is given"
    assert told in here("image", "load", "--trust", "hmac", "--key", "k").expect(4).stderr
    assert told not in here("image", "load", "--key", "k").expect(0).stderr
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", "k" * 40)
    assert told not in here("image", "load", "--trust", "hmac", "--key", "k").expect(4).stderr


@pytest.mark.parametrize("frame", [0, 1, 2, 3])
def test_an_entry_that_changes_after_it_was_verified(
    mimic: MimicEngine, store: Path, entry: Path, monkeypatch: pytest.MonkeyPatch, frame: int
) -> None:
    """A frame that is another one when it is sent breaks the connection: no orderly end, nothing in the engine."""
    at = anatomy(entry).frames[frame] + 40

    def damage(name: str) -> None:
        if name == "load.verified":
            data = entry.read_bytes()
            with entry.open("r+b") as file:
                file.write(flip(data, at))

    monkeypatch.setattr(loading, "step", damage)
    report = load(mimic, store)
    assert report.status == "refused"
    assert report.images == []
    assert report.quarantined == [entry.name]
    assert [one.whole for one in mimic.loads] == [False]
    assert mimic.snapshot() == {}


def test_an_entry_that_is_replaced_meanwhile(
    mimic: MimicEngine, store: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened and verified is what is sent, whatever takes its name."""

    def replace(name: str) -> None:
        if name == "load.verified":
            other = entry.with_suffix(".new")
            other.write_bytes(b"something else")
            other.rename(entry)

    monkeypatch.setattr(loading, "step", replace)
    assert load(mimic, store).status == "exact"
    assert "app:1" in mimic.snapshot()


def test_the_engine_says_that_it_failed(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """An error status, or an error among success, is the engine's fault and told in its words; the entry stays."""
    for status, words in (
        (500, b'{"message":"disk on fire"}'),
        (200, b'{"stream":"Loaded image: app:1"}\r\n{"error":"disk on fire"}\r\n'),
        (200, b'{"stream":"Loaded image: app:1\\n"}\n{"errorDetail":{"message":"disk on fire"}}\n'),
        (200, b'{"stream":"Error unpacking image app:1: disk on fire"}\r\n'),
    ):
        mimic.plan.load_status, mimic.plan.load_words = status, words
        with pytest.raises(EngineFailed, match="disk on fire") as caught:
            load(mimic, store)
        assert caught.value.exit_code == 9
        mimic.forget()
    assert entry.exists()


def test_an_engine_that_keeps_nothing(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """An engine that says that it loaded an image, and has none, is not believed."""
    mimic.plan.keeps = False
    with pytest.raises(EngineFailed, match="none of that name"):
        load(mimic, store)


def test_an_engine_that_has_another_one_now(mimic: MimicEngine, store: Path, entry: Path) -> None:
    """The name must mean the image that was saved, and not one that somebody made meanwhile."""
    mimic.plan.keeps = False
    mimic.add(made_image("app:1", layers=[layer({"x": b"x"})]))
    with pytest.raises(EngineFailed, match="another one under that name"):
        load(mimic, store)


def test_the_data_root_is_looked_at(mimic: MimicEngine, store: Path, entry: Path, tmp_path: Path) -> None:
    """Room that is not there is missed before anything is sent."""
    mimic.answers["GET /info"] = (200, {"DockerRootDir": str(tmp_path), "Driver": "overlay2"})
    with pytest.raises(NoSpace, match="engine's image"):
        load(mimic, store, min_free=1 << 60)
    assert mimic.loads == []


def test_trust(here: Here, mimic: MimicEngine, app: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a signature is required, images without one are not loaded, and stay; signed ones are."""
    mimic.add(app)
    here("image", "save", "--key", "plain", "app:1").expect()
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", "k" * 40)
    here("image", "save", "--key", "signed", "app:1").expect()
    mimic.forget()
    here("image", "load", "--trust", "hmac", "--key", "plain").expect(4)
    assert mimic.loads == []
    assert here.entry("plain").exists()
    here("image", "load", "--trust", "hmac", "--key", "signed").expect(0)
    assert mimic.snapshot()["app:1"] == app.id


def test_read_only(here: Here, mimic: MimicEngine, app: Made) -> None:
    """A job that may only restore loads images, and saves none."""
    mimic.add(app)
    here("image", "save", "--key", "k", "app:1").expect()
    here("image", "save", "--read-only", "--key", "k2", "app:1").expect(9)
    mimic.forget()
    here("image", "load", "--read-only", "--key", "k").expect(0)
    assert mimic.snapshot()["app:1"] == app.id


# Killed, and two at once


SAVE_STEPS = [
    "save.temp-created",
    "save.temp-locked",
    "save.frames-written",
    "save.tail-written",
    "save.synced",
    "save.linked",
    "save.temp-unlinked",
    "save.published",
]


@pytest.mark.parametrize("step", SAVE_STEPS)
def test_a_save_killed_at_a_step(cli: Cli, mimic: MimicEngine, app: Made, step: str) -> None:
    """Killed between any two steps: the key has a whole entry or none, and the next save clears up."""
    assert step in steps.STEPS
    mimic.add(app)
    env = {"DOCKER_HOST": f"unix://{mimic.path}"}
    done = cli("image", "save", "--key", "k", "app:1", env=env | {"CACHEKIT_KILL_AT": step})
    assert done.code == -signal.SIGKILL
    there = step in {"save.linked", "save.temp-unlinked", "save.published"}
    assert len(cli("verify", "--all", "--json").expect().json()["archives"]) == there
    report = cli("image", "save", "--json", "--key", "k", "app:1", env=env).expect().json()
    assert report["status"] == ("exists" if there else "saved")
    assert list((cli.home / ".cache/cachekit/v1/default/tmp").iterdir()) == []


@pytest.mark.parametrize("step", ["load.verified", "load.sent"])
def test_a_load_killed_at_a_step(cli: Cli, mimic: MimicEngine, app: Made, step: str) -> None:
    """Killed before the engine was told that this is all: it has nothing; the next load succeeds."""
    assert step in steps.STEPS
    mimic.add(app)
    env = {"DOCKER_HOST": f"unix://{mimic.path}"}
    cli("image", "save", "--key", "k", "app:1", env=env).expect()
    mimic.forget()
    done = cli("image", "load", "--key", "k", env=env | {"CACHEKIT_KILL_AT": step})
    assert done.code == -signal.SIGKILL
    assert mimic.snapshot() == {}
    assert not any(one.whole for one in mimic.loads)
    cli("image", "load", "--key", "k", env=env).expect()
    assert mimic.snapshot()["app:1"] == app.id


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_save_stopped_while_it_streams(cli: Cli, mimic: MimicEngine, app: Made, number: int) -> None:
    """However it is stopped, nothing is published, and soon nothing is left."""
    mimic.add(app)
    mimic.plan.stall_at = 12 << 20
    env = {"DOCKER_HOST": f"unix://{mimic.path}"}
    with cli.start("image", "save", "--key", "k", "app:1", env=env) as running:
        assert mimic.plan.stalled.wait(20)
        running.send(number)
        done = running.wait()
    assert done.code in {-signal.SIGKILL, 128 + number}
    mimic.plan.stall_at = None
    mimic.plan.go_on.set()
    assert cli("ls", "--json").expect().json() == []
    report = cli("image", "save", "--json", "--key", "k", "app:1", env=env).expect().json()
    assert report["status"] == "saved"
    assert list((cli.home / ".cache/cachekit/v1/default/tmp").iterdir()) == []


def test_two_savers(cli: Cli, mimic: MimicEngine, app: Made) -> None:
    """While one process saves a key a second one leaves it to it, or waits."""
    mimic.add(app)
    mimic.plan.stall_at = 12 << 20
    env = {"DOCKER_HOST": f"unix://{mimic.path}"}
    with cli.start("image", "save", "--json", "--key", "k", "app:1", env=env) as first:
        assert mimic.plan.stalled.wait(20)
        second = cli("image", "save", "--json", "--key", "k", "app:1", env=env).expect().json()
        assert second["status"] == "in-progress"
        with cli.start("image", "save", "--json", "--wait", "--key", "k", "app:1", env=env) as third:
            mimic.plan.go_on.set()
            assert first.wait().expect().json()["status"] == "saved"
            assert third.wait().expect().json()["status"] == "exists"
    assert len(mimic.asked("GET /images/get")) == 1


def test_the_engine_hangs(mimic: MimicEngine, store: Path, app: Made) -> None:
    """An engine that is silent for too long is given up, and nothing is published."""
    mimic.add(app)
    mimic.plan.stall_at = 1 << 20
    with pytest.raises(EngineFailed):
        save_images(ImageSaveRequest("k-1", ["app:1"], str(store), engine=mimic.connect, stall=0.3))
    mimic.plan.go_on.set()
    assert os.listdir(store / "v1/default/entries") == []
    assert os.listdir(store / "v1/default/tmp") == []
