"""`image save` from an engine that sends something else than a whole archive: nothing is published."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.errors import CachekitError, EngineFailed, NoEngine, NoSpace, NothingMatched, SourceChanged
from cachekit.images.load import ImageLoadRequest, load_images
from cachekit.images.save import ImageSaveReport, ImageSaveRequest, save_images
from tests.support.images import (
    STYLES,
    Made,
    MimicEngine,
    Part,
    Style,
    archive_parts,
    image_archive,
    layer,
    made_image,
    mimic_engine,
    tar_of_parts,
)
from tests.support.in_process import Here
from tests.support.snapshots import unchanged

BLOCK = 512
NOISE = random.Random(3).randbytes(100_000)
SHARED = layer({"shared": NOISE})
ONE = made_image("app:1", layers=[SHARED, layer({"one": b"1" * 5000})])
TWO = made_image("db:2", "db:latest", layers=[SHARED, layer({"two": b"2" * 700})], command="/bin/db")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A place for a store."""
    return tmp_path / "store"


@pytest.fixture
def engine(mimic: MimicEngine) -> MimicEngine:
    """An engine with two images that share a layer."""
    mimic.add(ONE, TWO)
    return mimic


def save(engine: MimicEngine, store: Path, *names: str, key: str = "k-1", **more: object) -> ImageSaveReport:
    """Save images through the API."""
    return save_images(
        ImageSaveRequest(
            key,
            list(names) or [*ONE.names, *TWO.names],
            str(store),
            engine=engine.connect,
            **more,  # type: ignore[arg-type]
        )
    )


def entries(store: Path) -> list[str]:
    """Everything that lies in the store as an entry or half of one."""
    return sorted(
        path.name for part in ("entries", "tmp", "quarantine") for path in store.glob(f"v1/*/{part}/*")
    )


def refused(
    engine: MimicEngine, store: Path, kind: type[CachekitError] = EngineFailed, **more: object
) -> CachekitError:
    """Save, which must fail as the engine's fault and leave nothing, and return the error."""
    with pytest.raises(kind) as caught:
        save(engine, store, **more)  # type: ignore[arg-type]
    assert entries(store) == []
    assert "\n" not in caught.value.message
    return caught.value


def member_offsets(data: bytes) -> list[tuple[str, int, int, int]]:
    """Return of each member its name, where its header begins, where its content begins, and its length."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, member.offset, member.offset_data, member.size) for member in tar]


def cuts(data: bytes, style: Style) -> dict[str, int]:
    """Return a length of the archive for each way in which it can be cut."""
    found = member_offsets(data)
    big = next(row for row in found if row[3] > 50_000)
    last = found[-1]
    end = last[2] + -(-last[3] // BLOCK) * BLOCK
    manifest = next(row for row in found if row[0] == "manifest.json")
    return {
        "nothing": 0,
        "in the first header": 100,
        "in a layer": big[2] + big[3] // 2,
        "one byte of a layer short": big[2] + big[3] - 1,
        "at a layer's end, before its padding": big[2] + big[3],
        "at a layer's edge": big[2] + -(-big[3] // BLOCK) * BLOCK,
        "in the header of manifest.json": manifest[1] + 200,
        "before manifest.json": manifest[1],
        "in manifest.json": manifest[2] + 10,
        "behind manifest.json": manifest[2] + -(-manifest[3] // BLOCK) * BLOCK,
        "without end blocks": end,
        "with one end block": end + BLOCK,
        "in the second end block": end + BLOCK + 100,
    }


CUTS = list(cuts(image_archive([ONE, TWO]), "classic"))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("orderly", [True, False], ids=["orderly", "broken"])
def test_a_cut_archive_is_never_published(
    engine: MimicEngine, store: Path, style: Style, how: str, *, orderly: bool
) -> None:
    """Wherever it ends too early, and whether or not HTTP says that this is the end."""
    engine.plan.archive = image_archive([ONE, TWO], style)
    at = cuts(engine.plan.archive, style)[how]
    if orderly:
        engine.plan.ends_at = at
    else:
        engine.plan.breaks_at = at
    with unchanged(*([store] if store.exists() else [])):
        refused(engine, store)
    engine.plan.ends_at = engine.plan.breaks_at = None
    assert save(engine, store).status == "saved"


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True), style=st.sampled_from(STYLES))
def test_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, share: float, style: Style) -> None:
    """Any length shorter than the whole up to its second end block is refused."""
    place = tmp_path_factory.mktemp("cut")
    whole = image_archive([ONE, TWO], style)
    with mimic_engine(place) as engine:
        engine.add(ONE, TWO)
        engine.plan.archive = whole
        engine.plan.ends_at = int(share * cuts(whole, style)["in the second end block"])
        refused(engine, place / "store")


def test_what_follows_the_end_is_no_archive(engine: MimicEngine, store: Path) -> None:
    """Bytes behind the end blocks are refused; more zeros are fine."""
    whole = image_archive([ONE, TWO])
    engine.plan.archive = whole + b"x"
    assert "follows the end" in refused(engine, store).message
    engine.plan.archive = whole + bytes(50_000)
    assert save(engine, store).status == "saved"


def test_the_engine_is_quoted(engine: MimicEngine, store: Path) -> None:
    """An engine that fails after its first bytes says so behind them: that sentence is the message."""
    engine.plan.ends_at = 60_000
    engine.plan.words = json.dumps(
        {"errorDetail": {"message": "unexpected EOF"}, "error": "disk on fire"}
    ).encode()
    assert "disk on fire" in refused(engine, store).message


def needed(part: Part) -> bool:
    """Whether an archive without this member is none: the rest is for older engines, or for people."""
    return not part.directory and not part.name.endswith(("VERSION", "/json", "repositories"))


ABSENT = [
    (style, number)
    for style in STYLES
    for number, part in enumerate(archive_parts([ONE, TWO], style))
    if needed(part) and not (style != "legacy" and part.name == "index.json")
]


@pytest.mark.parametrize(("style", "number"), ABSENT)
def test_a_missing_member(engine: MimicEngine, store: Path, style: Style, number: int) -> None:
    """An archive that lacks a layer, a config, a manifest or a list is refused, and what is missing is named."""
    parts = archive_parts([ONE, TWO], style)
    gone = parts.pop(number)
    engine.plan.archive = tar_of_parts(parts)
    message = refused(engine, store).message
    name = gone.name.rpartition("/")[2] if style != "legacy" else gone.name
    assert name in message or "none is there" in message


FLIPS = [
    (style, number)
    for style in STYLES
    for number, part in enumerate(archive_parts([ONE, TWO], style))
    if part.content and needed(part)
]


@pytest.mark.parametrize(("style", "number"), FLIPS)
def test_a_flipped_bit(engine: MimicEngine, store: Path, style: Style, number: int) -> None:
    """A layer, config or document with another content than its digest says is refused."""
    parts = archive_parts([ONE, TWO], style)
    part = parts[number]
    at = len(part.content) // 2
    if part.name.endswith(("manifest.json", "index.json", "oci-layout")):
        mark = b"sha256:" if part.name == "index.json" else b":"
        at = part.content.index(mark) - 2 if mark == b":" else part.content.index(mark) + 10
    flipped = part.content[:at] + bytes([part.content[at] ^ 1]) + part.content[at + 1 :]
    parts[number] = replace(part, content=flipped)
    engine.plan.archive = tar_of_parts(parts)
    refused(engine, store)


def rewritten(style: Style, change: Callable[[list[dict[str, object]]], None]) -> bytes:
    """Return the archive with another manifest.json."""
    parts = archive_parts([ONE, TWO], style)
    for number, part in enumerate(parts):
        if part.name == "manifest.json":
            rows = json.loads(part.content)
            change(rows)
            parts[number] = replace(part, content=json.dumps(rows).encode())
    return tar_of_parts(parts)


def _swap_configs(rows: list[dict[str, object]]) -> None:
    rows[0]["Config"], rows[1]["Config"] = rows[1]["Config"], rows[0]["Config"]


def _swap_layers(rows: list[dict[str, object]]) -> None:
    rows[0]["Layers"], rows[1]["Layers"] = rows[1]["Layers"], rows[0]["Layers"]


def _reverse_layers(rows: list[dict[str, object]]) -> None:
    rows[0]["Layers"] = list(reversed(rows[0]["Layers"]))  # type: ignore[call-overload]


def _drop_layer(rows: list[dict[str, object]]) -> None:
    rows[0]["Layers"] = rows[0]["Layers"][:1]  # type: ignore[index]


def _drop_image(rows: list[dict[str, object]]) -> None:
    del rows[0]


def _swap_names(rows: list[dict[str, object]]) -> None:
    rows[0]["RepoTags"], rows[1]["RepoTags"] = rows[1]["RepoTags"], rows[0]["RepoTags"]


LIES = [_swap_configs, _swap_layers, _reverse_layers, _drop_layer, _drop_image, _swap_names]


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_mixes_things_up(
    engine: MimicEngine, store: Path, lie: Callable[[list[dict[str, object]]], None]
) -> None:
    """Parts that are all whole but belong to another image, or stand in another order, are refused."""
    engine.plan.archive = rewritten("legacy", lie)
    refused(engine, store, CachekitError)


@pytest.mark.parametrize("lie", [_swap_configs, _swap_layers, _reverse_layers, _drop_layer])
def test_a_manifest_that_belies_the_index(
    engine: MimicEngine, store: Path, lie: Callable[[list[dict[str, object]]], None]
) -> None:
    """manifest.json is what older engines read, so it has to be right also where index.json is."""
    engine.plan.archive = rewritten("classic", lie)
    refused(engine, store, CachekitError)


def test_a_name_that_nobody_asked_for(engine: MimicEngine, store: Path) -> None:
    """A second name is not saved with an image: a load would take it from the image that has it there."""

    def give(rows: list[dict[str, object]]) -> None:
        rows[0]["RepoTags"] = ["app:1", "other:latest"]

    engine.plan.archive = rewritten("legacy", give)
    error = refused(engine, store)
    assert "nobody asked for" in error.message


HOSTILE: dict[str, list[Part]] = {
    "leads out": [Part("../out", b"x")],
    "absolute": [Part("/etc/x", b"x")],
    "twice": [Part("extra", b"1"), Part("extra", b"2")],
    "below a file": [Part("extra", b"1"), Part("extra/below", b"2")],
    "dot": [Part("a/./b", b"x")],
    "reserved": [Part(".cachekit-home/x", b"x")],
}


@pytest.mark.parametrize("extra", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names(engine: MimicEngine, store: Path, extra: list[Part]) -> None:
    """An engine that sends names which no entry may have is at fault, not the store."""
    engine.plan.archive = tar_of_parts([*archive_parts([ONE, TWO]), *extra])
    assert refused(engine, store).exit_code == 9


@pytest.mark.parametrize("size", [1 << 60, 1 << 63, 10**19, 10**25])
def test_hostile_sizes(engine: MimicEngine, store: Path, size: int) -> None:
    """A length that cannot be is refused before anything is made of it."""
    records = b"size=%d\n" % size
    length = len(records) + 3
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = b"x", length
    head = tarfile.TarInfo("blobs/huge")
    data = pax.tobuf() + b"%d %b" % (length, records) + bytes(BLOCK - length) + head.tobuf()
    engine.plan.archive = data + image_archive([ONE, TWO])
    assert refused(engine, store).exit_code == 9


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_kinds_that_no_image_archive_has(engine: MimicEngine, store: Path, kind: bytes) -> None:
    """Devices, pipes and hard links are refused."""
    odd = tarfile.TarInfo("odd")
    odd.type, odd.linkname = kind, "manifest.json"
    engine.plan.archive = odd.tobuf() + image_archive([ONE, TWO])
    assert "neither file nor directory" in refused(engine, store).message


@settings(max_examples=80)
@given(data=st.data())
def test_noise_is_never_published(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random damage to an archive's bytes is refused, or is where nothing depends on it: never a crash."""
    place = tmp_path_factory.mktemp("noise")
    whole = bytearray(image_archive([ONE], data.draw(st.sampled_from(STYLES))))
    small = [row for row in member_offsets(bytes(whole)) if row[3] < 50_000]
    for _ in range(data.draw(st.integers(1, 3))):
        _, start, content, size = data.draw(st.sampled_from(small))
        whole[data.draw(st.integers(start, content + size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with mimic_engine(place) as engine:
        engine.add(ONE)
        engine.plan.archive = bytes(whole)
        found: ImageSaveReport | CachekitError
        try:
            found = save(engine, place / "store", "app:1")
        except CachekitError as error:
            found = error
        else:
            engine.forget()
            load_images(ImageLoadRequest("k-1", str(place / "store"), engine=engine.connect))
            loaded = dict(engine.state.images)
    if isinstance(found, CachekitError):
        assert found.exit_code in {8, 9}
        assert entries(place / "store") == []
    else:  # a bit in a header's time or owner, or in what a document says besides
        assert [one["id"] for one in found.images] == [ONE.id]
        assert loaded[ONE.id].layers == ONE.layers
        assert loaded[ONE.id].names == ONE.names


# Which images


def test_a_tag_that_moves_while_it_is_saved(engine: MimicEngine, store: Path) -> None:
    """What is sent must be what the name meant when the command began."""
    engine.plan.archive = image_archive([made_image("app:1", layers=[SHARED]), TWO])
    error = refused(engine, store, SourceChanged)
    assert error.exit_code == 8
    assert "became another one" in error.message


def test_a_tag_that_moves_to_the_same_layers(engine: MimicEngine, store: Path) -> None:
    """The same layers with another command are another image."""
    other = made_image("app:1", layers=ONE.layers, command="/bin/evil")
    engine.plan.archive = image_archive([other, TWO])
    refused(engine, store, SourceChanged)


def test_an_image_that_is_not_there(engine: MimicEngine, store: Path) -> None:
    """It is named, nothing is made, exit 8."""
    with pytest.raises(NothingMatched, match="no image 'app:9'") as caught:
        save(engine, store, "app:1", "app:9")
    assert caught.value.exit_code == 8
    assert engine.asked("GET /images/get") == []
    assert not store.exists()


def test_images_by_id(engine: MimicEngine, store: Path) -> None:
    """An image may be named by its id; it is saved without a name, and loaded as that."""
    report = save(engine, store, ONE.id)
    assert report.images[0]["names"] == []
    assert report.images[0]["id"] == ONE.id


def test_another_image_than_the_one_asked_for(engine: MimicEngine, store: Path) -> None:
    """An engine that sends another image, whole, for an id did not send what was asked for."""
    engine.plan.archive = image_archive([TWO])
    with pytest.raises(EngineFailed, match="did not send the image"):
        save(engine, store, ONE.id)
    assert entries(store) == []


def test_one_image_under_two_names(engine: MimicEngine, store: Path) -> None:
    """Both names are kept, and the image is there once."""
    report = save(engine, store, "db:2", "db:latest", "db:2", "docker.io/library/db:2")
    assert [one["names"] for one in report.images] == [["db:2", "db:latest"]]


@pytest.mark.parametrize("style", STYLES)
def test_the_decompressed_entry_is_the_archive(
    engine: MimicEngine, store: Path, style: Style, tmp_path: Path
) -> None:
    """`zstd -dc` of an entry is an archive with the members that the engine sent, in its order."""
    engine.plan.archive = image_archive([ONE, TWO], style)
    save(engine, store)
    (entry,) = store.glob("v1/default/entries/*")
    with (
        entry.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as raw,
    ):
        data = raw.read()
    sent = member_offsets(image_archive([ONE, TWO], style))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        assert [m.name for m in tar] == [row[0] for row in sent]
        for part in archive_parts([ONE, TWO], style):
            if part.content and not part.link:
                file_of = found[part.name]
                assert file_of is not None
                assert file_of.read() == part.content


# Around it


def test_no_engine(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine both commands end with exit 9 and say why; the store is not even made."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{here.root}/none.sock")
    for command in (["image", "save", "--key", "k", "app:1"], ["image", "load", "--key", "k"]):
        done = here(*command).expect(NoEngine.exit_code)
        assert "none.sock" in done.stderr
        here(*command, "--soft-fail").expect(0)
    assert not here.store.exists()


def test_an_existing_key(engine: MimicEngine, store: Path) -> None:
    """A key that exists is left as it is and the engine is not asked for anything but names; --force replaces it."""
    first = save(engine, store)
    second = save(engine, store, "app:1")
    assert (second.status, second.identity) == ("exists", first.identity)
    assert len(engine.asked("GET /images/get")) == 1
    third = save(engine, store, "app:1", force=True)
    assert third.status == "saved"
    assert [one["names"] for one in third.images] == [["app:1"]]


def test_the_data_root_is_looked_at(engine: MimicEngine, store: Path, tmp_path: Path) -> None:
    """The classic store copies an image before it sends it: a data root without that room is refused beforehand."""
    engine.answers["GET /info"] = (200, {"DockerRootDir": str(tmp_path), "Driver": "overlay2"})
    engine.plan.size = 1 << 59
    with pytest.raises(NoSpace, match="engine's copy") as caught:
        save(engine, store, "app:1")
    assert caught.value.fields["short_by"]
    assert engine.asked("GET /images/get") == []
    assert entries(store) == []


def test_layers_of_an_earlier_entry_are_copied(mimic: MimicEngine, store: Path, app: Made) -> None:
    """A second save with one layer changed copies the others, and is what a save of all anew is."""
    mimic.add(app)
    save(mimic, store, "app:1")
    mimic.add(made_image("app:2", layers=[*app.layers[:2], layer({"d": b"d"})]))
    report = save(mimic, store, "app:2", key="k-2")
    assert report.base == "k-1"
    assert report.copied_bytes > 9 << 20
    anew = save(mimic, store, "app:2", key="other-1", full=True)
    assert anew.copied_bytes == 0
    tars = []
    for one in (report, anew):
        data = (store / "v1/default/entries" / one.entry).read_bytes()
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as raw:
            tars.append(raw.read())
    assert tars[0] == tars[1]


@pytest.mark.parametrize("where", ["frame", "seal"])
def test_a_damaged_earlier_entry_costs_only_time(
    mimic: MimicEngine, store: Path, app: Made, where: str
) -> None:
    """A save whose layers could be copied from a damaged entry packs them anew, whole."""
    mimic.add(app)
    save(mimic, store, "app:1")
    (path,) = store.glob("v1/default/entries/*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if where == "frame" else -200] ^= 1
    path.write_bytes(data)
    report = save(mimic, store, "app:1", key="k-2")
    assert (report.status, report.copied_bytes) == ("saved", 0)
    assert bool(report.warnings) == (where == "frame")
