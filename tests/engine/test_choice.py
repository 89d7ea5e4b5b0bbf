"""Which images, containers and volumes may go: decided from lists and times alone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cachekit.clean.docker.choice import choose_containers, choose_images, choose_volumes, references
from cachekit.clean.docker.ledger import ImageLedger, Seen, observe
from cachekit.engine.objects import Container, Event, Image, Volume

HOUR = 3600 * 10**9
NOW = 500_000 * HOUR


def image(number: int, *tags: str, parent: int | None = None, **fields: object) -> Image:
    """Make an image whose id ends with `number`."""
    return Image(name_of(number), tags, parent="" if parent is None else name_of(parent), **fields)  # type: ignore[arg-type]


def name_of(number: int) -> str:
    """Return an id."""
    return f"sha256:{number:064x}"


def container(number: int, of: str, called: str = "", state: str = "exited", **fields: object) -> Container:
    """Make a container of an image."""
    made = {"created_ns": NOW - HOUR, "labels": {}, **fields}
    return Container(f"{number:064x}", f"c{number}", of, called, state, **made)  # type: ignore[arg-type]


def ledger(**ages: float) -> ImageLedger:
    """Make a ledger of images by number, last used so many hours ago."""
    return ImageLedger(
        NOW, {name_of(int(key[1:])): Seen(0, NOW - int(age * HOUR)) for key, age in ages.items()}
    )


@dataclass(frozen=True)
class Scene:
    """An engine's images and containers, what is known of them, and what to keep."""

    images: list[Image]
    containers: list[Container]
    ledger: ImageLedger
    older: float
    keep: list[str]
    nameless: bool


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Draw a scene; parents may be absent, and go round in circles."""
    count = draw(st.integers(1, 8))
    tags = st.lists(
        st.sampled_from([f"{name}:{tag}" for name in "abc" for tag in (1, 2)]), max_size=2, unique=True
    )
    parents = st.none() | st.integers(0, count)
    images = [
        image(
            number,
            *draw(tags),
            parent=draw(parents),
            digests=(f"a@{name_of(number)}",) if draw(st.booleans()) else (),
            manifests=(name_of(number + 100),) if draw(st.booleans()) else (),
            containers=draw(st.sampled_from([None, None, 0, 1])),
        )
        for number in range(count)
    ]
    numbers = st.integers(0, count)
    calls = st.one_of(
        numbers.map(name_of),
        numbers.map(lambda number: name_of(number + 100)),
        st.sampled_from(["a:1", "b:2", "docker.io/library/c:1", "gone:1", ""]),
    )
    containers = [
        container(number, draw(calls), draw(calls), draw(st.sampled_from(["running", "exited", "odd"])))
        for number in range(draw(st.integers(0, 3)))
    ]
    times = st.integers(NOW - 5 * HOUR, NOW)
    seen = {
        name_of(number): Seen(*sorted((draw(times), draw(times))))
        for number in range(count)
        if draw(st.booleans())
    }
    keep = draw(st.lists(st.sampled_from(["a:*", "b", "c:2", "?:1", "0000000000"]), max_size=2))
    return Scene(
        images,
        containers,
        ImageLedger(NOW, seen),
        draw(st.sampled_from([0, 3600, 9000])),
        keep,
        draw(st.booleans()),
    )


@given(scenes())
def test_nothing_needed_is_ever_chosen(scene: Scene) -> None:
    """No image that a container may mean, none that is kept, none too young or unknown, no parent of one that stays."""
    found = choose_images(
        scene.images,
        scene.containers,
        scene.ledger,
        older=scene.older,
        now_ns=NOW,
        nameless=scene.nameless,
        keep=scene.keep,
    )
    by_id = {one.id: one for one in scene.images}
    going = {unit.handle for unit in found.units}
    for one in scene.images:
        names = {one.id, *one.tags, *one.manifests, *(f"docker.io/library/{tag}" for tag in one.tags)}
        used = any(names & {item.image, item.image_name} for item in scene.containers) or one.containers
        kept = any(
            {"a:*": tag[0] == "a", "b": tag[0] == "b", "c:2": tag == "c:2", "?:1": tag[1:] == ":1"}.get(
                pattern
            )
            for tag in one.tags
            for pattern in scene.keep
        )
        if used or kept or "0000000000" in scene.keep:
            assert one.id not in going
        if scene.nameless and one.tags:
            assert one.id not in going
        seen = scene.ledger.images.get(one.id)
        if scene.older and (seen is None or NOW - seen.used_ns < scene.older * 10**9):
            assert one.id not in going
        if one.id not in going and one.parent in by_id:
            assert one.parent not in going
    assert len(found.units) + len(found.left) == len(scene.images)
    assert all(reason for _, reason in found.left)


@given(scenes())
def test_images_go_in_the_order_of_their_last_use(scene: Scene) -> None:
    """Least recently used first; and a child before what it was made of."""
    found = choose_images(scene.images, scene.containers, scene.ledger, older=0, now_ns=NOW)
    times = [unit.newest_ns or 0 for unit in found.units]
    assert times == sorted(times)
    order = {unit.handle: place for place, unit in enumerate(found.units)}
    for one in scene.images:
        if one.id in order and one.parent in order:
            assert order[one.id] < order[one.parent]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(NOW - 9 * HOUR, NOW + 9 * HOUR)), max_size=8))
def test_the_ledger_only_ever_moves_a_use_forward(uses: list[tuple[int, int]]) -> None:
    """No event makes an image older, none makes it used in the future, and what vanished is forgotten."""
    before = ledger(i0=5, i1=4, i9=1)
    events = [Event("container", "start", name_of(number), when) for number, when in uses]
    after = observe(before, {name_of(number): () for number in range(3)}, [], events, NOW)
    assert set(after.images) == {name_of(number) for number in range(3)}
    for name, seen in after.images.items():
        assert seen.used_ns <= NOW
        if name in before.images:
            assert seen.used_ns >= before.images[name].used_ns
            assert seen.first_ns == before.images[name].first_ns
    assert after.images[name_of(2)].first_ns == NOW


def test_events_count_by_id_and_by_every_name() -> None:
    """An event names an image by id, with or without algorithm, by tag, or by a name that means latest."""
    names = {name_of(number): (f"n{number}:latest",) for number in range(4)}
    subjects = [name_of(0), f"{1:064x}", "n2:latest", "n3"]
    events = [Event("image", "pull", subject, NOW - HOUR) for subject in subjects]
    after = observe(ledger(i0=9, i1=9, i2=9, i3=9), names, [], events, NOW)
    assert [seen.used_ns for seen in after.images.values()] == [NOW - HOUR] * 4


def test_losing_a_name_is_no_use() -> None:
    """Untagging an image does not make it young."""
    after = observe(ledger(i0=9), {name_of(0): ()}, [], [Event("image", "untag", name_of(0), NOW)], NOW)
    assert after.images[name_of(0)].used_ns == NOW - 9 * HOUR


def test_a_clock_that_was_set_back_keeps_nothing_for_ever() -> None:
    """A last use in the future becomes now."""
    after = observe(ledger(i0=-1000), {name_of(0): ()}, [], [], NOW)
    assert after.images[name_of(0)].used_ns == NOW


def test_a_short_id_in_a_container_is_a_reference() -> None:
    """A container made from the first digits of an id uses that image."""
    images = [image(1 << 250), image(2)]
    found = references(images, [container(1, "", images[0].id.removeprefix("sha256:")[:12])])
    assert set(found) == {images[0].id}


def test_steps_are_no_units_but_hold_what_they_were_made_of() -> None:
    """An intermediate image of the classic builder goes with its last child, and is not listed."""
    images = [image(0, "base:1"), image(1, parent=0), image(2, "app:1", parent=1)]
    seen = ledger(i0=9, i1=9, i2=9)
    found = choose_images(images, [], seen, older=60, now_ns=NOW, steps={images[1].id})
    assert [unit.name for unit in found.units] == [b"app:1", b"base:1"]
    found = choose_images(images, [], seen, older=60, now_ns=NOW, steps={images[1].id}, keep=["app"])
    assert found.units == []
    assert dict(found.left)[b"base:1"].endswith("was made of it")


def test_a_protected_name_means_the_image_however_it_is_written() -> None:
    """The saver may write a name with or without registry, library and tag, or an id or its beginning."""
    one = Image(f"sha256:{'abcdef01' * 8}", ("busybox:1.36",), (f"busybox@{name_of(3)}",))
    ways = [
        "busybox:1.36",
        "busybox",
        "docker.io/library/busybox:1.36",
        "docker.io/busybox",
        one.id,
        "abcdef01abcd",
    ]
    for way in [*ways, f"busybox@{name_of(3)}"]:
        found = choose_images([one], [], ledger(), older=0, now_ns=NOW, protected={way})
        assert (way, found.units) == (way, [])
    for other in ("busy", "busybox:1", "box", "registry/busybox"):
        assert choose_images([one], [], ledger(), older=0, now_ns=NOW, protected={other}).units


def test_an_image_with_only_a_digest_does_not_dangle() -> None:
    """What was pulled by digest has a name, and is left to the rule for images."""
    one = Image(name_of(1), (), (f"busybox@{name_of(3)}",))
    found = choose_images([one], [], ledger(), older=0, now_ns=NOW, nameless=True)
    assert [reason for _, reason in found.left] == ["has a name with a digest"]


def test_a_name_from_outer_space_is_not_asked_for() -> None:
    """An id or name that would lead a request elsewhere stays out of requests, and the object stays."""
    for odd in ("../containers", "a b", "x\ny", "\udcff", "-", ""):
        found = choose_images([Image(odd or " ")], [], ledger(), older=0, now_ns=NOW)
        assert found.units == []
    found = choose_containers([container(1, "")], older=0, now_ns=NOW)
    assert len(found.units) == 1
    odd_one = Container("../x", "c", "", "", "exited", NOW, {})
    assert choose_containers([odd_one], older=0, now_ns=NOW).units == []


@given(
    st.sampled_from(["running", "paused", "restarting", "removing", "exited", "dead", "created", "", "new"]),
    st.integers(0, 4),
    st.none() | st.integers(0, 4),
    st.sampled_from([None, "", "yes", "false", "0", "False"]),
)
def test_a_container_goes_only_if_it_is_stopped_old_and_not_labelled(
    state: str, made: int, ended: int | None, label: str | None
) -> None:
    """Hours since it was made and ended, its state and label decide, and nothing else."""
    one = container(
        1,
        "",
        state=state,
        created_ns=NOW - made * HOUR,
        finished_ns=None if ended is None else NOW - ended * HOUR,
        labels={} if label is None else {"cachekit.keep": label},
    )
    age = made if ended is None else ended
    goes = state in {"exited", "dead", "created"} and age >= 2 and label in {None, "false", "0", "False"}
    assert bool(choose_containers([one], older=7200, now_ns=NOW).units) == goes


@given(
    st.sampled_from(["named", "0" * 64, "F" * 64]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["local", "nfs", ""]),
)
def test_only_an_anonymous_local_volume_without_user_goes(
    name: str, labelled: bool, unused: bool, mounted: bool, driver: str
) -> None:
    """Both the engine and the containers must say that nobody uses it."""
    volume = Volume(name, driver, NOW, {"com.docker.volume.anonymous": ""} if labelled else {})
    users = [container(1, "", volumes=(name,))] if mounted else []
    found = choose_volumes([volume], {name} if unused else set(), users, older=0, now_ns=NOW)
    goes = (labelled or name == "0" * 64) and unused and not mounted and driver == "local"
    assert bool(found.units) == goes
    assert len(found.units) + len(found.left) == 1
