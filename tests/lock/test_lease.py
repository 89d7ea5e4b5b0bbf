"""The lease: one holder whatever happens, taken over only from the dead and the expired, and never by two."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.system import process
from cachekit.system.files import open_directory
from cachekit.system.locking import record as records
from cachekit.system.locking.lease import Lease, holders, in_use
from cachekit.system.locking.record import Holder, Record, decode, encode, myself

FAR = "abcdef01.4026531836.1.1"
"""A process of another boot."""


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The lease's own clock, stopped."""
    clock = Clock()
    monkeypatch.setattr("cachekit.system.locking.lease.time.monotonic", clock)
    return clock


@pytest.fixture
def place(tmp_path: Path) -> Iterator[int]:
    """A directory for a lease."""
    fd = open_directory(os.fsencode(tmp_path))
    yield fd
    os.close(fd)


def ours(*, shared: bool = False) -> Holder:
    """This process as a holder."""
    return myself(["build"], shared=shared)


def far(*, shared: bool = False) -> Holder:
    """A holder on another host: whether it lives is not known."""
    return replace(ours(shared=shared), host="far", identities=(FAR,))


def dead() -> Holder:
    """A holder of this boot and pid namespace whose process is gone."""
    me = process.current()
    return replace(ours(), identities=(str(replace(me, start="1")),))


def test_one_at_a_time(place: int) -> None:
    """A second one gets it when the first gives it back, not before."""
    first, second = Lease(place, ours(), 60), Lease(place, ours(), 60)
    assert not in_use(place)
    assert first.try_acquire()
    assert in_use(place)
    assert not second.try_acquire()
    assert [one.pid for one in holders(place)] == [os.getpid()]
    first.release()
    assert holders(place) == []
    assert second.try_acquire()


def test_an_unknown_holder_is_taken_for_alive(place: int, clock: Clock) -> None:
    """Another host's lease is taken over only after it was seen unchanged for its whole length by our clock."""
    assert Lease(place, far(), 60).try_acquire()
    taker = Lease(place, ours(), 5)  # its own length is of no interest
    assert not taker.try_acquire()
    clock.now += 59.9
    assert not taker.try_acquire()
    clock.now += 0.2
    assert taker.try_acquire()


def test_a_renewed_lease_is_not_taken_over(place: int, clock: Clock) -> None:
    """Each renewal begins the time anew."""
    holder, taker = Lease(place, far(), 60), Lease(place, ours(), 60)
    assert holder.try_acquire()
    for _ in range(5):
        assert not taker.try_acquire()
        clock.now += 50
        assert holder.renew()
    assert not taker.try_acquire()


@pytest.mark.parametrize("years", [-30, 30])
def test_the_time_of_day_is_not_asked(
    place: int, clock: Clock, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """Clocks that are years apart neither expire a lease nor keep it alive."""
    assert Lease(place, far(), 60).try_acquire()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + years * 365 * 86400 * 10**9)
    for name in os.listdir(place):
        os.utime(name, (years * 3e7 + 2e9, years * 3e7 + 2e9), dir_fd=place)
    taker = Lease(place, ours(), 60)
    assert not taker.try_acquire()
    clock.now += 59
    assert not taker.try_acquire()
    clock.now += 2
    assert taker.try_acquire()


def test_the_dead_are_not_waited_for(place: int, clock: Clock) -> None:
    """A lease whose process is proven dead is taken over at once; one with a living process besides is not."""
    assert Lease(place, dead(), 60).try_acquire()
    second = Lease(place, replace(dead(), identities=(*dead().identities, *ours().identities)), 60)
    assert second.try_acquire()
    assert not Lease(place, ours(), 60).try_acquire()


@pytest.mark.parametrize("differs", ["boot_id", "pid_namespace"])
def test_equal_pids_elsewhere_prove_nothing(place: int, clock: Clock, differs: str) -> None:
    """A dead process of our number on another boot, or in another pid namespace, does not prove its holder dead."""
    me = process.current()
    other = replace(me, start="1", boot_id="12345678" if differs == "boot_id" else me.boot_id)
    if differs == "pid_namespace":
        other = replace(other, pid_namespace="12345678")
    assert Lease(place, replace(ours(), identities=(str(other),)), 60).try_acquire()
    assert not Lease(place, ours(), 60).try_acquire()


def test_who_lost_it_finds_out(place: int, clock: Clock) -> None:
    """A holder that was stopped for too long renews in vain, and its release leaves the new holder's lease alone."""
    late, taker = Lease(place, far(), 60), Lease(place, ours(), 60)
    assert late.try_acquire()
    assert not taker.try_acquire()
    clock.now += 61
    assert taker.try_acquire()
    assert not late.renew()
    late.release()
    assert taker.renew()
    assert not Lease(place, ours(), 60).try_acquire()


def test_shared_holders(place: int, clock: Clock) -> None:
    """Several share; an exclusive one waits for all, and one of another host that died is over after its length."""
    first, second = Lease(place, far(shared=True), 60), Lease(place, ours(shared=True), 60)
    alone = Lease(place, ours(), 60)
    assert first.try_acquire()
    assert second.try_acquire()
    assert len(holders(place)) == 2
    assert not alone.try_acquire()
    assert not Lease(place, ours(shared=True), 60).try_acquire()  # no overtaking
    second.release()
    clock.now += 40
    assert not alone.try_acquire()
    clock.now += 21
    assert alone.try_acquire()
    assert [one.shared for one in holders(place)] == [False]
    assert not first.renew()


def test_a_waiting_exclusive_one_keeps_its_lease_alive(place: int, clock: Clock) -> None:
    """Who has the lease and waits for shared holders renews it by asking, so nobody takes it for dead."""
    shared, alone, third = (
        Lease(place, far(shared=True), 60),
        Lease(place, far(), 60),
        Lease(place, ours(), 60),
    )
    assert shared.try_acquire()
    for _ in range(10):
        assert not alone.try_acquire()
        assert not third.try_acquire()
        clock.now += 20
        assert shared.renew()
    shared.release()
    assert alone.try_acquire()
    assert not third.try_acquire()


def test_a_shared_holder_taken_for_dead_finds_out(place: int, clock: Clock) -> None:
    """A shared holder that others gave up is no more among those named, and learns so at its next renewal."""
    late, other = Lease(place, far(shared=True), 60), Lease(place, far(shared=True), 60)
    assert late.try_acquire()
    assert other.try_acquire()
    alone = Lease(place, ours(), 60)
    assert not alone.try_acquire()
    clock.now += 61
    assert other.renew()
    assert not alone.try_acquire()
    assert not late.renew()
    assert other.renew()


def test_more_shared_holders_than_a_record_names(place: int) -> None:
    """Who does not fit into the record waits as if excluded; nobody is forgotten."""
    taken = 0
    while Lease(place, ours(shared=True), 60).try_acquire():
        taken += 1
        assert taken < 1000
    assert taken > 100
    assert len(holders(place)) == taken
    assert not Lease(place, ours(), 60).try_acquire()


@pytest.mark.parametrize("junk", [b"", b"x", b"\xff" * 4096, b"{}".ljust(4095) + b"\n"])
def test_a_damaged_record_counts_for_a_while(place: int, clock: Clock, junk: bytes) -> None:
    """A record that cannot be read is alive until it did not change for the usual length."""
    with open("lease.7", "wb", opener=lambda name, flags: os.open(name, flags, dir_fd=place)) as file:
        file.write(junk)
    taker = Lease(place, ours(), 1)
    assert not taker.try_acquire()
    clock.now += 59
    assert not taker.try_acquire()
    clock.now += 2
    assert taker.try_acquire()
    assert "lease.8" in os.listdir(place)


def test_old_listings_mislead_nobody(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taker whose listing is old (as over sshfs and NFS) does not get what newer records hold."""
    before = Lease(place, ours(), 60)
    assert before.try_acquire()
    before.release()
    old = os.listdir(place)
    now = Lease(place, ours(), 60)
    assert now.try_acquire()
    monkeypatch.setattr(os, "listdir", lambda _fd: old)
    assert not Lease(place, ours(), 60).try_acquire()
    monkeypatch.setattr(os, "listdir", lambda _fd: [])
    assert not Lease(place, ours(), 60).try_acquire()


@pytest.mark.parametrize(
    ("listed", "floor"),
    [
        ([], True),
        (["lease.1"], True),
        (["lease.1", "lease.2"], True),
        (["lease.9"], True),
        (["lease.9"], False),
    ],
)
def test_old_listings_after_many_turns(
    place: int, monkeypatch: pytest.MonkeyPatch, listed: list[str], floor: bool
) -> None:
    """Even with a listing from before the oldest record that is left, or an empty one, nobody gets what is held."""
    for _ in range(50):
        lease = Lease(place, ours(), 60)
        assert lease.try_acquire()
        lease.release()
    holder = Lease(place, ours(), 60)
    assert holder.try_acquire()
    assert "lease.9" not in os.listdir(place)
    if not floor:
        os.unlink("floor", dir_fd=place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda _fd: list(listed))
        for _ in range(3):
            assert not Lease(place, ours(), 60).try_acquire()
    holder.release()
    assert Lease(place, ours(), 60).try_acquire()


def test_a_name_that_was_used_and_removed(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A taker that slept so long that the name it makes was used and removed again sees newer ones and withdraws."""
    first = Lease(place, ours(), 60)
    assert first.try_acquire()
    first.release()
    sleeper, made = Lease(place, ours(), 60), Lease._make

    def after_a_sleep(self: Lease, name: str, content: Record) -> bool:
        monkeypatch.setattr(Lease, "_make", made)
        for _ in range(40):
            other = Lease(place, ours(), 60)
            assert other.try_acquire()
            other.release()
        assert Lease(place, ours(), 60).try_acquire()
        assert name not in os.listdir(place)
        return made(self, name, content)

    monkeypatch.setattr(Lease, "_make", after_a_sleep)
    assert not sleeper.try_acquire()
    assert not Lease(place, ours(), 60).try_acquire()
    assert len(os.listdir(place)) <= 36


@pytest.mark.parametrize("refusal", ["EPERM", "EOPNOTSUPP", "EEXIST"])
def test_without_hard_links(place: int, monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    """Where links are refused, O_EXCL decides; a taken name refused in any words is taken."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, refusal), "refused")

    monkeypatch.setattr(os, "link", refuse)
    first = Lease(place, ours(), 60)
    assert first.try_acquire()
    assert not Lease(place, ours(), 60).try_acquire()
    first.release()
    assert Lease(place, ours(), 60).try_acquire()


def test_a_link_that_was_answered_twice(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated request may be told EEXIST of its own link: the content shows whose it is."""
    link = os.link

    def twice(source: str, target: str, **options: int) -> None:
        link(source, target, src_dir_fd=options["src_dir_fd"], dst_dir_fd=options["dst_dir_fd"])
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", twice)
    assert Lease(place, ours(), 60).try_acquire()


def _race(path: str, rounds: int) -> None:
    fd = open_directory(os.fsencode(path))
    counter, inside = Path(path, "counter"), Path(path, "inside")
    for _ in range(rounds):
        lease = Lease(fd, far(), 3600)
        while not lease.try_acquire():
            time.sleep(0.0005)
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        counter.write_text(str(int(counter.read_text()) + 1))
        inside.unlink()
        lease.release()
    os._exit(0)


def test_many_processes(tmp_path: Path) -> None:
    """Eight processes that all take it forty times are never inside together, and no turn is lost."""
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(str(tmp_path), 40)) for _ in range(8)]
    for one in racers:
        one.start()
    for one in racers:
        one.join(50)
    assert [one.exitcode for one in racers] == [0] * 8
    assert (tmp_path / "counter").read_text() == "320"


def _take_over(path: str, go: str, length: float) -> None:
    fd = open_directory(os.fsencode(path))
    lease = Lease(fd, far(), 3600)
    lease.try_acquire()
    while not os.path.exists(go):
        time.sleep(0.0002)
    won = 0
    end = time.monotonic() + length
    while time.monotonic() < end and not won:
        won = int(lease.try_acquire())
    os._exit(won)


def test_two_takers_of_an_expired_lease(tmp_path: Path) -> None:
    """Of many that see one lease expire at once, one gets it."""
    context = multiprocessing.get_context("fork")
    for turn in range(3):
        place = tmp_path / str(turn)
        place.mkdir()
        fd = open_directory(os.fsencode(place))
        assert Lease(fd, far(), 0.3).try_acquire()
        os.close(fd)
        go = tmp_path / f"go-{turn}"
        takers = [context.Process(target=_take_over, args=(str(place), str(go), 0.7)) for _ in range(8)]
        for one in takers:
            one.start()
        go.touch()
        for one in takers:
            one.join(20)
        assert sorted(one.exitcode or 0 for one in takers) == [0] * 7 + [1]


TEXT = st.text(max_size=80)
NONCE = st.text("0123456789abcdef", min_size=16, max_size=16)
HOLDER = st.builds(
    Holder,
    TEXT,
    st.integers(0, 2**31),
    TEXT,
    TEXT,
    st.sampled_from(["flock", "lease"]),
    st.booleans(),
    st.lists(TEXT, max_size=2).map(tuple),
)
RECORD = st.builds(
    Record,
    HOLDER,
    NONCE,
    st.floats(0, 3600),
    st.integers(0, 2**40),
    st.booleans(),
    st.lists(NONCE, max_size=9).map(tuple),
)


@given(RECORD)
def test_records_survive(record: Record) -> None:
    """What is written is read again, and has the one size that all records have."""
    try:
        data = encode(record)
    except ValueError:
        return
    assert len(data) == records.SIZE
    assert decode(data) == record


@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(st.none() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x)),
    )
)
def test_any_bytes_are_a_record_or_none(value: object) -> None:
    """Whatever lies in the file, reading it gives a record or nothing, and never an error."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    found = decode(data[: records.SIZE - 1].ljust(records.SIZE - 1) + b"\n")
    assert found is None or isinstance(found, Record)


@given(
    RECORD,
    st.sampled_from(["length", "shares", "nonce", "holder", "released", "beat", "version"]),
    st.one_of(st.none(), st.floats(), TEXT, st.lists(TEXT)),
)
def test_a_field_of_another_kind(record: Record, field: str, value: object) -> None:
    """A field with something else in it never gives a lease that cannot expire, nor a name that is a path."""
    try:
        raw = json.loads(encode(record))
    except ValueError:
        return
    raw[field] = value
    found = decode(json.dumps(raw).encode()[: records.SIZE - 1].ljust(records.SIZE - 1) + b"\n")
    if found is not None:
        assert 0 <= found.length <= 3600
        assert all(len(name) == 16 and name.isalnum() for name in (found.nonce, *found.shares))
