"""The Earthly snippet. Earthly itself cannot be had here: what stands around it is run, with a stand-in on the PATH."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.capabilities import requires
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Running, clean_environment, run, start, wait_until
from tests.support.protected import cachekit_in, program

FOLDER = PROJECT / "ci-snippets" / "earthly"
SCRIPT = FOLDER / "run.sh"


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a machine with cachekit, and an `earthly` that notes when it begins and ends."""
    cachekit_in(tmp_path / "bin")
    program(
        tmp_path / "bin",
        "earthly",
        f'cd "{tmp_path}" && echo "begin $*" >> log',
        "while [ -e hold ]; do sleep 0.02; done",
        'echo "end $*" >> log',
        'exit "${EARTHLY_CODE:-0}"',
    )
    environment = clean_environment(tmp_path / "home")
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    (tmp_path / "home" / "run").mkdir()
    return environment | {"PATH": f"{tmp_path}/bin:{environment['PATH']}"}


@contextmanager
def holding(tmp_path: Path, job: dict[str, str]) -> Iterator[tuple[Running, Running]]:
    """Start two jobs, of which one is in Earthly and the other waits for it."""
    (tmp_path / "hold").touch()
    with start([SCRIPT, "+first"], env=job) as first:
        wait_until((tmp_path / "log").exists, "the first job is in Earthly")
        with start([SCRIPT, "+second"], env=job) as second:
            wait_until(lambda: _waits(job), "the second job waits")
            yield first, second


def _waits(job: dict[str, str]) -> bool:
    [lock] = run(["cachekit", "lock", "ls", "--json"], env=job).expect().json()
    assert lock["name"] == "earthly-integration"
    return bool(lock["waiters"])


def _log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_jobs_take_turns(tmp_path: Path, job: dict[str, str]) -> None:
    """The second job enters Earthly when the first has left it, with its own arguments."""
    with holding(tmp_path, job) as (first, second):
        (tmp_path / "hold").unlink()
        first.wait().expect()
        second.wait().expect()
    assert _log(tmp_path) == [
        f"{moment} --ci +{name}" for name in ("first", "second") for moment in ("begin", "end")
    ]


def test_a_killed_job_is_no_obstacle(tmp_path: Path, job: dict[str, str]) -> None:
    """When the job in Earthly is killed with all that it started, the next one goes on."""
    with holding(tmp_path, job) as (first, second):
        first.kill()
        (tmp_path / "hold").unlink()
        second.wait().expect()
    assert _log(tmp_path) == ["begin --ci +first", "begin --ci +second", "end --ci +second"]


def test_a_cancelled_job_stops_earthly(tmp_path: Path, job: dict[str, str]) -> None:
    """A SIGTERM to the job reaches Earthly, and its end is the job's."""
    (tmp_path / "hold").touch()
    with start([SCRIPT, "+first"], env=job) as first:
        wait_until((tmp_path / "log").exists, "the job is in Earthly")
        first.send(signal.SIGTERM)
        first.wait().expect(128 + signal.SIGTERM)
    assert _log(tmp_path) == ["begin --ci +first"]


def test_the_code_is_earthlys(tmp_path: Path, job: dict[str, str]) -> None:
    """A failed target fails the job; a machine without Earthly says so."""
    run([SCRIPT, "+x", "--name=a  b"], env=job | {"EARTHLY_CODE": "6"}).expect(6)
    assert _log(tmp_path)[0] == "begin --ci +x --name=a  b"
    Path(job["PATH"].partition(":")[0], "earthly").unlink()
    run([SCRIPT, "+x"], env=job | {"PATH": f"{job['PATH'].partition(':')[0]}:/usr/bin:/bin"}).expect(127)


def test_the_lock_is_that_of_the_cache_id() -> None:
    """The script's lock is named after the only cache id of the Earthfile, which asks for the feature that has it."""
    earthfile = (FOLDER / "Earthfile").read_text()
    assert "VERSION --docker-cache 0.8\n" in earthfile
    assert re.findall(r"--cache-id=(\S+)", earthfile) == ["integration"]
    assert "lock run earthly-integration " in SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK)


@requires("check_jsonschema")
def test_compose_file(tmp_path: Path) -> None:
    """The schema of compose files takes it, and refuses a key that does not exist."""
    path = FOLDER / "compose.yaml"
    assert tools.json_schema("compose-spec", path) == ""
    (tmp_path / "bad.yaml").write_text(path.read_text().replace("depends_on", "depends"))
    assert tools.json_schema("compose-spec", tmp_path / "bad.yaml") != ""
