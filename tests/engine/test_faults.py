"""The Docker rules when the engine fails, refuses, is busy, or is not there; and the ledger on a bad disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachekit.clean.docker.ledger import LEDGER_NAME, ImageLedger, Seen, load, store
from cachekit.clean.docker.rules import DockerSurroundings, carry_out, survey
from cachekit.clean.model import DOCKER_ACTIONS, Conditions, Docker, Found, Rule, Unit
from cachekit.engine.client import Engine
from tests.engine.fake_engine import FakeEngine, fake_engine
from tests.engine.rules import around, clean, reasons, rule
from tests.support import filesystems
from tests.support.capabilities import requires

PRUNE = "POST /build/prune"
RUNNING = 409, {"message": "a prune operation is already running"}
IMAGE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def with_images(fake: FakeEngine, *rows: dict[str, Any]) -> None:
    """Let the engine have these images."""
    fake.answers["GET /images/json"] = 200, list(rows)
    for row in rows:
        fake.answers[f"GET /images/{row['Id']}/json"] = 200, row
        fake.answers[f"DELETE /images/{row['Id']}"] = 200, []


def with_cache(fake: FakeEngine, *sizes: int) -> None:
    """Let the engine have build cache."""
    fake.answers["GET /system/df"] = 200, {"BuildCache": [{"ID": "x", "Size": size} for size in sizes]}


@pytest.mark.parametrize("action", DOCKER_ACTIONS)
def test_no_engine_is_not_applicable(tmp_path: Path, action: Any) -> None:
    """Without an engine every rule says so, and asks only once."""
    asked = []

    def connect(timeout: float) -> Engine:
        asked.append(timeout)
        return Engine.connect(timeout, environment={"DOCKER_HOST": f"unix://{tmp_path}/none"})

    surroundings = DockerSurroundings(0, connect=connect, state=str(tmp_path))
    for _ in range(2):
        found = survey(rule(action), surroundings)
        assert (found.state, found.units) == ("not-applicable", [])
        assert "does not exist" in found.reason
    assert len(asked) == 1


@pytest.mark.parametrize("action", DOCKER_ACTIONS)
def test_a_silent_engine_blocks_every_rule_after_one_wait(
    fake: FakeEngine, tmp_path: Path, action: Any
) -> None:
    """An engine that hangs costs one timeout a run, not one a rule."""

    def silent(handler: Any) -> None:
        handler.connection.recv(1)

    for name in ("GET /containers/json", "GET /images/json", "GET /volumes", "GET /info", "GET /system/df"):
        fake.answers[name] = silent
    surroundings = around(fake, tmp_path)
    found = survey(rule(action, timeout=0.1), surroundings)
    assert found.state == "blocked"
    assert "did not answer within 0.1 s" in found.reason
    count = len(fake.requests)
    assert survey(rule("volumes", timeout=0.1), surroundings).state == "blocked"
    assert len(fake.requests) == count


def test_an_engine_without_a_function_is_not_applicable(fake: FakeEngine, tmp_path: Path) -> None:
    """Podman's imitation lacks some: 404 for a list means that there is no such thing."""
    fake.answers["GET /volumes"] = 404, {"message": "page not found"}
    assert survey(rule("volumes"), around(fake, tmp_path)).state == "not-applicable"
    fake.answers["GET /volumes"] = 500, {"message": "input/output error"}
    found = survey(rule("volumes"), around(fake, tmp_path))
    assert (found.state, found.reason) == ("blocked", "the engine: input/output error")


def test_a_running_prune_is_waited_for(fake: FakeEngine, tmp_path: Path) -> None:
    """Two refusals and then a yes are a yes."""
    with_cache(fake, 70)
    fake.answers[PRUNE] = [RUNNING, RUNNING, (200, {"SpaceReclaimed": 70})]
    _, done = clean(rule("build-cache"), around(fake, tmp_path))
    assert (done.items, done.size, done.left, done.problem) == (1, 70, [], "")


def test_a_prune_that_never_ends_is_left(fake: FakeEngine, tmp_path: Path) -> None:
    """After the last pause it is left to the one that runs, with the engine's own reason."""
    with_cache(fake, 70)
    fake.answers[PRUNE] = RUNNING
    _, done = clean(rule("build-cache"), around(fake, tmp_path))
    assert reasons(done.left) == {"BuildKit's cache": "a prune operation is already running"}
    assert (done.items, done.size) == (0, None)
    assert len(fake.asked(PRUNE)) == 4


@pytest.mark.parametrize(
    ("api", "asked"),
    [
        ("1.41", {"all": ["1"], "keep-storage": ["5000"], "filters": ['{"until":["60s"]}']}),
        ("1.47", {"all": ["1"], "keep-storage": ["5000"], "filters": ['{"until":["60s"]}']}),
        (
            "1.48",
            {
                "all": ["1"],
                "reserved-space": ["3000"],
                "max-used-space": ["5000"],
                "min-free-space": [str(1 << 60)],
                "filters": ['{"until":["60s"]}'],
            },
        ),
    ],
)
def test_bounds_are_asked_for_in_the_engines_own_words(
    tmp_path: Path, api: str, asked: dict[str, list[str]]
) -> None:
    """Engines before API 1.48 know one bound, later ones three."""
    with fake_engine(tmp_path, api) as fake:
        with_cache(fake, 9000)
        fake.answers[PRUNE] = 200, {"SpaceReclaimed": 1}
        new = {"min_free": 1 << 60} if api == "1.48" else {}
        clean(rule("build-cache", reserved=3000, max_used=5000, older=60.0, **new), around(fake, tmp_path))
        assert fake.asked(PRUNE) == [asked]


def test_enough_free_space_needs_no_prune(fake: FakeEngine, tmp_path: Path) -> None:
    """With min_free met nothing is pruned; unmet, what is missing bounds the cache, down to what is reserved."""
    fake.answers["GET /info"] = 200, {"ID": "x", "DockerRootDir": str(tmp_path)}
    fake.answers[PRUNE] = 200, {"SpaceReclaimed": 1}
    with_cache(fake, 1 << 50, 1 << 50)
    _, done = clean(rule("build-cache", min_free=1), around(fake, tmp_path))
    assert reasons(done.left) == {"BuildKit's cache": "enough is free without it"}
    assert fake.asked(PRUNE) == []
    clean(rule("build-cache", min_free=1 << 50), around(fake, tmp_path))
    (asked,) = fake.asked(PRUNE)
    assert 1 << 50 <= int(asked["keep-storage"][0]) < 1 << 51
    clean(rule("build-cache", min_free=1 << 60, reserved=12345), around(fake, tmp_path))
    assert fake.asked(PRUNE)[1]["keep-storage"] == ["12345"]


def test_an_engine_whose_disk_is_elsewhere_and_knows_no_min_free_is_left(
    fake: FakeEngine, tmp_path: Path
) -> None:
    """Nobody could tell how much would have to go."""
    with_cache(fake, 1000)
    _, done = clean(rule("build-cache", min_free=1), around(fake, tmp_path))
    assert list(reasons(done.left).values()) == ["this engine knows no min_free, and its disk is not here"]


@pytest.mark.parametrize(
    ("answer", "left", "items"),
    [
        ((409, {"message": "conflict: image is being used by running container"}), True, 0),
        ((500, {"message": "driver overlay2 failed to remove"}), True, 0),
        ((404, {"message": "No such image"}), False, 0),
        ((200, []), False, 1),
    ],
)
def test_a_refused_image_is_left_and_the_next_one_goes(
    fake: FakeEngine, tmp_path: Path, answer: Any, left: bool, items: int
) -> None:
    """A conflict or an error is told, what is gone already is not; the rest is done all the same."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]}, {"Id": OTHER, "RepoTags": ["b:1"]})
    fake.answers[f"DELETE /images/{IMAGE}"] = answer
    _, done = clean(rule("images"), around(fake, tmp_path))
    assert reasons(done.left) == ({"a:1": answer[1]["message"]} if left else {})
    assert done.items == items + 1
    assert not done.problem


def test_nothing_is_ever_forced(fake: FakeEngine, tmp_path: Path) -> None:
    """No request to remove carries force."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1", "a:2"]})
    fake.answers["DELETE /images/a:1"] = 200, []
    _, done = clean(rule("images"), around(fake, tmp_path))
    assert done.items == 1
    removals = [query for name, query in fake.requests if name.startswith("DELETE")]
    assert len(removals) == 2
    assert all(query["force"] == ["0"] for query in removals)


def test_a_name_that_moved_on_is_not_taken_back(fake: FakeEngine, tmp_path: Path) -> None:
    """When the rest of an image's names cannot go, one that another image has meanwhile stays with that one."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1", "a:2", "a:3"]})
    fake.answers["DELETE /images/a:1"] = fake.answers["DELETE /images/a:2"] = 200, []
    fake.answers[f"DELETE /images/{IMAGE}"] = 409, {"message": "in use"}
    fake.answers["GET /images/a:1/json"] = 200, {"Id": OTHER}
    fake.answers["GET /images/a:2/json"] = 404, {"message": "No such image"}
    fake.answers[f"POST /images/{IMAGE}/tag"] = 201, b""
    _, done = clean(rule("images"), around(fake, tmp_path))
    assert list(reasons(done.left).values()) == ["in use"]
    assert fake.asked(f"POST /images/{IMAGE}/tag") == [{"repo": ["a"], "tag": ["2"]}]


def test_an_image_that_got_a_kept_name_meanwhile_stays(fake: FakeEngine, tmp_path: Path) -> None:
    """The names are read again right before the removal."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
    surroundings = around(fake, tmp_path, keep_images=("precious",))
    found = survey(rule("images"), surroundings)
    fake.answers[f"GET /images/{IMAGE}/json"] = 200, {"Id": IMAGE, "RepoTags": ["a:1", "precious:1"]}
    done = carry_out(rule("images"), found, surroundings, lambda: False)
    assert reasons(done.left) == {"a:1": "kept by precious"}


def test_a_container_whose_image_goes_by_another_digest_is_resolved(fake: FakeEngine, tmp_path: Path) -> None:
    """Where a container's image is none of the listed ones, the engine is asked which it is."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
    manifest = "sha256:" + "c" * 64
    fake.answers[f"GET /images/{manifest}/json"] = 200, {"Id": IMAGE}
    fake.answers["GET /containers/json"] = (
        200,
        [{"Id": "d" * 64, "Names": ["/job"], "ImageID": manifest, "Image": "was:1", "State": "exited"}],
    )
    found, done = clean(rule("images"), around(fake, tmp_path))
    assert reasons(found.left) == {"a:1": "referenced by container job"}
    assert done.items == 0


def test_an_engine_that_dies_half_way_is_the_problem(fake: FakeEngine, tmp_path: Path) -> None:
    """What went is counted, the rest is not tried, and the reason is told."""
    rows = [
        {"Id": "sha256:" + digit * 64, "RepoTags": [f"{digit}:1"], "Size": 9, "SharedSize": 4}
        for digit in "abc"
    ]
    with_images(fake, *rows)

    def dies(handler: Any) -> None:
        handler.close_connection = True

    fake.answers[f"DELETE /images/{rows[1]['Id']}"] = dies
    found, done = clean(rule("images"), around(fake, tmp_path))
    assert found.size == 15
    assert (done.items, done.size) == (1, 5)
    assert "engine" in done.problem
    assert fake.asked(f"DELETE /images/{rows[2]['Id']}") == []


def test_conditions_on_size_and_number_hold_for_docker_too(fake: FakeEngine, tmp_path: Path) -> None:
    """Small images, and the newest ones, stay."""
    rows = [
        {"Id": "sha256:" + digit * 64, "RepoTags": [f"{digit}:1"], "Size": size, "SharedSize": 0}
        for digit, size in (("a", 5), ("b", 50), ("c", 60))
    ]
    with_images(fake, *rows)
    made = Rule("r", "docker", Docker("images"), when=Conditions(larger=10, keep=1))
    found = survey(made, around(fake, tmp_path))
    assert [unit.name for unit in found.units] == [b"b:1"]
    assert reasons(found.left) == {"a:1": "only 5 B", "c:1": "among the newest 1"}


@pytest.mark.parametrize("action", DOCKER_ACTIONS)
def test_a_dry_run_sends_nothing_but_questions(fake: FakeEngine, tmp_path: Path, action: Any) -> None:
    """Not even when it is told to carry out."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
    with_cache(fake, 5)
    surroundings = around(fake, tmp_path / "state", dry_run=True)
    clean(rule(action), surroundings)
    carry_out(rule(action), Found("ready", units=[Unit(b"x", handle=IMAGE)]), surroundings, lambda: False)
    assert all(name.startswith("GET ") for name, _ in fake.requests)
    assert not (tmp_path / "state").exists()


def test_names_that_are_no_text_do_not_break_a_survey(fake: FakeEngine, tmp_path: Path) -> None:
    """Half of a surrogate pair in JSON becomes a name that can be shown, and the object stays."""
    fake.answers["GET /images/json"] = 200, b'[{"Id": "sha256:\\ud800", "RepoTags": ["\\udcff\\n::x"]}]'
    found = survey(rule("images"), around(fake, tmp_path))
    assert (found.state, len(found.left)) == ("stale", 1)


def test_what_happened_between_two_looks_counts(fake: FakeEngine, tmp_path: Path) -> None:
    """A container that came and went makes its image young; an engine that does not tell makes none old or young."""
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]}, {"Id": OTHER, "RepoTags": ["b:1"]})
    hour = 3600 * 10**9
    surroundings = around(fake, tmp_path)
    now = surroundings.now_ns
    seen = Seen(now - 20 * hour, now - 9 * hour)
    before = ImageLedger(now - 8 * hour, {IMAGE: seen, OTHER: seen})
    event = {
        "Type": "container",
        "Action": "die",
        "Actor": {"Attributes": {"image": "a:1"}},
        "timeNano": now - hour,
    }
    for answer, chosen in (((200, event), [b"b:1"]), ((500, {}), [b"a:1", b"b:1"])):
        store(str(tmp_path), "fake /nowhere", before)
        fake.answers["GET /events"] = answer
        found = survey(rule("images", older=2 * 3600.0), surroundings)
        assert sorted(unit.name for unit in found.units) == chosen
    assert reasons(found.left) == {}
    asked = fake.asked("GET /events")[0]
    assert asked["since"] == [f"{before.observed_ns // 10**9}.{before.observed_ns % 10**9:09}"]


def broken_ledgers() -> list[bytes]:
    """Return contents of a ledger that no ledger has."""
    image = {"observed": 5, "images": {IMAGE: [1, 2]}}
    return [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b'{"format": 99, "engines": {}}',
        json.dumps({"format": 1, "engines": {"e": [1]}}).encode(),
        json.dumps({"format": 1, "engines": {"e": {"images": {IMAGE: [-1, "x"]}, "observed": "y"}}}).encode(),
        json.dumps({"format": 1, "engines": {"e": image}}).encode()[:-3],
    ]


@pytest.mark.parametrize("content", broken_ledgers())
def test_a_damaged_ledger_is_started_anew(tmp_path: Path, content: bytes) -> None:
    """It reads as empty, so that every image counts as new, and is written whole again."""
    (tmp_path / LEDGER_NAME).write_bytes(content)
    assert load(str(tmp_path), "e") == ImageLedger()
    good = ImageLedger(7, {IMAGE: Seen(1, 2)})
    assert store(str(tmp_path), "e", good) == ""
    assert load(str(tmp_path), "e") == good


def test_the_ledger_keeps_engines_apart_and_forgets_the_oldest(tmp_path: Path) -> None:
    """A host with many short-lived engines does not grow it for ever; the one at hand is always kept."""
    for number in range(40):
        store(str(tmp_path), f"e{number}", ImageLedger(1000 - number, {IMAGE: Seen(1, number + 1)}))
    assert load(str(tmp_path), "e39").images[IMAGE].used_ns == 40
    assert load(str(tmp_path), "e0").images[IMAGE].used_ns == 1
    assert load(str(tmp_path), "e30") == ImageLedger()
    assert len(json.loads((tmp_path / LEDGER_NAME).read_bytes())["engines"]) <= 17


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to(path)])
def test_a_state_directory_that_cannot_be_does_not_stop_a_clean(
    fake: FakeEngine, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    """The clean goes on without writing what it saw."""
    make(tmp_path / "state")
    with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
    surroundings = around(fake, tmp_path / "state")
    _, done = clean(rule("images"), surroundings)
    assert done.items == 1
    assert surroundings.ledger_problem


@requires("tmpfs")
def test_a_full_disk_does_not_stop_a_clean(fake: FakeEngine) -> None:
    """With no byte free the ledger stays as it was, and images go all the same."""
    with filesystems.tmpfs() as disk:
        old = ImageLedger(1, {IMAGE: Seen(1, 2)})
        assert store(str(disk.path), "fake /nowhere", old) == ""
        disk.fill(0)
        with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
        surroundings = around(fake, disk.path)
        _, done = clean(rule("images"), surroundings)
        assert done.items == 1
        assert surroundings.ledger_problem
        assert load(str(disk.path), "fake /nowhere") == old
        assert sorted(path.name for path in disk.path.iterdir() if "fill" not in path.name)[:1] == [
            LEDGER_NAME
        ]


@requires("tmpfs")
def test_a_read_only_disk_does_not_stop_a_clean(fake: FakeEngine) -> None:
    """The same where nothing may be written at all."""
    with filesystems.tmpfs() as disk:
        disk.read_only()
        with_images(fake, {"Id": IMAGE, "RepoTags": ["a:1"]})
        surroundings = around(fake, disk.path / "state")
        _, done = clean(rule("images"), surroundings)
        assert done.items == 1
        assert surroundings.ledger_problem
