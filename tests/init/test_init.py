"""``cachekit init``: what it proposes for a repository, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import shlex
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachekit.errors import TargetNotWritable
from cachekit.init.apply import write
from cachekit.init.known import snippet, tools
from cachekit.init.look import MAX_DEPTH
from cachekit.init.model import CIS, FileChange
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.ordinary_user import NOBODY, PROJECT
from tests.support.processes import clean_environment, run
from tests.support.snapshots import unchanged

BERRY = "# made by yarn\n__metadata:\n  version: 8\n"
#: What a repository holds, for each tool; and where the tool keeps its cache below the home directory.
REPOSITORIES: dict[str, tuple[dict[str, str], list[str]]] = {
    "npm": ({"package.json": "{}", "package-lock.json": "{}"}, [".npm"]),
    "pnpm": ({"package.json": "{}", "pnpm-lock.yaml": "lockfileVersion: 9"}, [".local/share/pnpm/store"]),
    "yarn": ({"package.json": "{}", "yarn.lock": "# yarn lockfile v1\n"}, [".cache/yarn"]),
    "yarn-berry": ({"package.json": "{}", "yarn.lock": BERRY}, [".yarn/berry/cache"]),
    "pip": ({"requirements.txt": "click\n", "requirements-test.txt": "pytest\n"}, [".cache/pip"]),
    "uv": ({"pyproject.toml": "[project]\nname='a'\n", "uv.lock": "version = 1\n"}, [".cache/uv"]),
    "poetry": ({"pyproject.toml": "[tool.poetry]\n", "poetry.lock": "x"}, [".cache/pypoetry"]),
    "cargo": (
        {"Cargo.toml": "[package]\n", "Cargo.lock": 'source = "git+https://example.org/x"\n'},
        [".cargo/registry", ".cargo/git/db"],
    ),
    "go": ({"go.mod": "module a\n", "go.sum": "x\n"}, ["go/pkg/mod", ".cache/go-build"]),
    "gradle": (
        {"build.gradle.kts": "plugins {}", "gradle/wrapper/gradle-wrapper.properties": "distributionUrl=x"},
        [".gradle/caches", ".gradle/wrapper"],
    ),
    "maven": (
        {"pom.xml": "<project/>", "core/pom.xml": "<project/>", ".mvn/wrapper/maven-wrapper.properties": "x"},
        [".m2/repository", ".m2/wrapper"],
    ),
    "ccache": ({"CMakeLists.txt": "set(CMAKE_C_COMPILER_LAUNCHER ccache)\n"}, [".cache/ccache"]),
    "sccache": ({".cargo/config.toml": '[build]\nrustc-wrapper = "sccache"\n'}, [".cache/sccache"]),
    "buildx": (
        {"Dockerfile": "FROM scratch\n", "Makefile": "image:\n\tdocker buildx build .\n"},
        [".cache/buildx"],
    ),
}


def made(root: Path, files: dict[str, str]) -> None:
    """Write files into a repository."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def proposed(here: Here, *args: str) -> dict[str, Any]:
    """Return what is proposed."""
    report = here("init", "--json", *args).expect().json()
    assert isinstance(report, dict)
    return report


def names(here: Here, *args: str) -> list[str]:
    """Return the names of the caches that are proposed."""
    return [cache["name"] for cache in proposed(here, *args)["caches"]]


def test_every_known_tool_has_a_repository() -> None:
    """Each tool of the table is tried below, and says what not to cache and where its paths stand."""
    assert {tool.name for tool in tools()} == set(REPOSITORIES)
    for tool in tools():
        assert tool.source.startswith("https://"), tool.name
        assert tool.never, tool.name
        assert tool.variables or tool.mentions, tool.name


@pytest.mark.parametrize("tool", REPOSITORIES)
def test_each_tool(here: Here, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    """What is written for a tool is a right configuration; its key is computed, and its cache saved and restored."""
    files, places = REPOSITORIES[tool]
    made(here.root, files)
    monkeypatch.setenv("CACHEKIT_COMMIT", "0123abcd" * 5)
    assert names(here) == [tool]
    here("init", "--yes").expect()
    here("config", "check").expect()
    cache = tomllib.loads(Path("cachekit.toml").read_text())["caches"][tool]
    key = here("key", cache["key"]).expect().stdout.strip()
    assert key.startswith(f"{tool}-")
    assert [path.removeprefix("~/") for path in cache["paths"]] == places
    for place in places:
        (here.home / place / "below").mkdir(parents=True)
        (here.home / place / "below/file").write_text(place)
    if tool == "buildx":  # its directory is an OCI layout, and nothing else is saved as one
        made(here.home / ".cache/buildx", {"oci-layout": '{"imageLayoutVersion": "1.0.0"}'})
        made(here.home / ".cache/buildx", {"index.json": '{"schemaVersion": 2, "manifests": []}'})
        (here.home / ".cache/buildx/blobs/sha256").mkdir(parents=True)
    here("save", tool).expect()
    for place in places:
        (here.home / place / "below/file").unlink()
    report = here("restore", tool, "--json").expect().json()
    assert (report["status"], report["matched_key"]) == ("exact", key)
    for place in places:
        assert (here.home / place / "below/file").read_text() == place
    assert proposed(here)["files"] == []


def test_what_is_left_out(here: Here) -> None:
    """Of Poetry's cache the virtual environments are not saved, of Cargo's not what it unpacks from its downloads."""
    made(here.root, {"poetry.lock": "x", "Cargo.lock": "x"})
    here("init", "--yes").expect()
    for name in (
        ".cache/pypoetry/virtualenvs/a/python",
        ".cache/pypoetry/artifacts/a",
        ".cargo/registry/src/x/lib.rs",
        ".cargo/registry/index/src/x",
        ".cargo/registry/cache/x.crate",
    ):
        made(here.home, {name: "x"})
    here("save", "--all").expect()
    kept = " ".join(
        here("show", "--files", json.loads(here("key", "--json", key).expect().stdout)["key"]).expect().stdout
        for key in ("poetry-{hash:poetry.lock}", "cargo-{hash:Cargo.lock}")
    )
    assert "artifacts/a" in kept
    assert "x.crate" in kept
    assert "index/src/x" in kept
    assert "virtualenvs" not in kept
    assert "lib.rs" not in kept


def test_what_is_left_out_for_gradle(here: Here) -> None:
    """Of Gradle's caches its own lock files are not saved; one that a dependency brought along is content."""
    made(here.root, {"build.gradle": "x"})
    here("init", "--yes").expect()
    caches = ".gradle/caches"
    own = ["modules-2/modules-2.lock", "8.5/fileHashes/fileHashes.lock", "8.5/gc.properties"]
    content = ["modules-2/files-2.1/a.jar", "transforms-4/ab/transformed/js/yarn.lock"]
    made(here.home, {f"{caches}/{name}": "x" for name in own + content})
    here("save", "gradle").expect()
    key = here("key", "gradle-{hash:build.gradle}").expect().stdout.strip()
    kept = here("show", "--files", key).expect().stdout
    assert [name for name in own if name in kept] == []
    assert [name for name in content if name not in kept] == []


def test_where_the_build_is(here: Here) -> None:
    """The command runs where the build is that has all others below it; a wrapper's file is no build."""
    for number, (files, line) in enumerate(
        [
            (("app/pom.xml", "app/core/pom.xml", ".mvn/wrapper/maven-wrapper.properties"), "(cd app && mvn"),
            (("pom.xml", "core/pom.xml"), "mvn"),
            (("a/pom.xml", "b/pom.xml"), "mvn"),
            (("android/settings.gradle", "android/app/build.gradle"), "(cd android && ./gradlew"),
        ]
    ):
        root = here.root / str(number)
        made(root, dict.fromkeys((*files, ".git/config"), "x"))
        here("init", "gitlab", "--yes", "--root", root).expect()
        job = yaml.safe_load((root / ".gitlab/cachekit.yml").read_text())[".cachekit"]
        assert job["script"][0].startswith(f"{line} ")


def test_many_files_of_a_wrapper(here: Here) -> None:
    """Where the key has globs, they find a wrapper's file in its hidden directory."""
    made(here.root, {f"m{number}/pom.xml": "x" for number in range(9)})
    made(here.root, {".mvn/wrapper/maven-wrapper.properties": "one"})
    (cache,) = proposed(here)["caches"]
    first = here("key", cache["key"]).expect().stdout
    made(here.root, {".mvn/wrapper/maven-wrapper.properties": "two"})
    assert here("key", cache["key"]).expect().stdout != first


def test_nothing_is_written_without_yes(here: Here) -> None:
    """Without --yes there is a diff on stdout and nothing else; git makes of it what --yes writes."""
    made(here.root, {"package-lock.json": "{}"})
    with unchanged(here.root):
        done = here("init", "github").expect()
    assert "+[caches.npm]\n" in done.stdout
    assert "+++ b/.github/workflows/cachekit.yml\n" in done.stdout
    assert "--- /dev/null\n" in done.stdout
    assert "nothing was written" in done.stderr
    assert "node_modules" in done.stderr
    clone = here.root.parent / "clone"
    clone.mkdir()
    run(["git", "apply", "-"], env=clean_environment(here.home), cwd=clone, stdin=done.out).expect()
    here("init", "github", "--yes").expect()
    for name in ("cachekit.toml", ".github/workflows/cachekit.yml"):
        assert (clone / name).read_text() == (here.root / name).read_text()


def test_several_tools(here: Here) -> None:
    """A repository with several tools gets a cache for each, in the order of the table."""
    made(here.root, {"package-lock.json": "{}", "api/go.sum": "x", "tool/Cargo.lock": "x"})
    assert names(here) == ["npm", "cargo", "go"]


def test_beside_the_commands_of_the_readme(here: Here) -> None:
    """What init proposes gets along with what the README's commands saved before, in the same store."""
    made(here.root, {"package-lock.json": "{}", "node_modules/a": "x"})
    text = (PROJECT / "README.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("cachekit save --key ")]
    hashed = here("key", "{hash:package-lock.json}").expect().stdout.strip()
    here(*shlex.split(line.replace("$HASH", hashed))[1:]).expect()
    here("init", "--yes").expect()
    assert here("restore", "--all", "--json").expect().json()[0]["status"] == "miss"
    made(here.home, {".npm/x": "y"})
    assert here("save", "--all", "--json").expect().json()[0]["status"] == "saved"


def test_a_monorepo(here: Here) -> None:
    """Lock files in sub-directories are all in the key: a few by name, many by a glob; not what was installed."""
    made(here.root, {f"p{n}/package-lock.json": str(n) for n in range(3)})
    made(
        here.root,
        {"p0/node_modules/x/package-lock.json": "no", "deep/er/than/that/is/package-lock.json": "no"},
    )
    assert MAX_DEPTH == 4
    (cache,) = proposed(here)["caches"]
    assert cache["lock_files"] == [f"p{n}/package-lock.json" for n in range(3)]
    assert cache["key"] == "npm-{hash:p0/package-lock.json,p1/package-lock.json,p2/package-lock.json}"
    made(here.root, {f"p{n}/package-lock.json": str(n) for n in range(3, 9)})
    (cache,) = proposed(here)["caches"]
    assert cache["key"] == "npm-{hash:**/package-lock.json,!node_modules,!.venv}"
    first = here("key", cache["key"]).expect().stdout
    (here.root / "p7/package-lock.json").write_text("other")
    assert here("key", cache["key"]).expect().stdout != first


@pytest.mark.parametrize(
    "name", ["a,b", "{x}", "!not", "st*r", "[ab]", " blank", 'quo"te', "back\\slash", "new\nline"]
)
def test_odd_directories(here: Here, name: str) -> None:
    """Whatever a directory with a lock file is called, the configuration is right and the key follows the file."""
    made(here.root, {f"{name}/package-lock.json": "one"})
    here("init", "github", "--yes").expect()
    here("config", "check").expect()
    key = tomllib.loads(Path("cachekit.toml").read_text())["caches"]["npm"]["key"]
    first = here("key", key).expect().stdout
    (here.root / name / "package-lock.json").write_text("two")
    assert here("key", key).expect().stdout != first


@pytest.mark.parametrize(
    ("manifest", "tool"),
    [("package.json", "npm"), ("Cargo.toml", "cargo"), ("go.mod", "go"), ("pyproject.toml", "pip")],
)
def test_without_a_lock_file(here: Here, manifest: str, tool: str) -> None:
    """A manifest without its lock file is no cache, and init says what is missing and what to do."""
    made(here.root, {manifest: "{}"})
    report = proposed(here)
    assert report["caches"] == []
    assert any(note.startswith(f"{tool}: ") and "lock" in note for note in report["notes"])
    here("init", "--yes").expect()
    assert not Path("cachekit.toml").exists()


def test_workspaces_have_one_lock_file(here: Here) -> None:
    """Packages below a lock file are its workspaces, of whichever tool: nothing is missing there."""
    made(here.root, {"pnpm-lock.yaml": "x", "package.json": "{}", "web/package.json": "{}"})
    made(here.root, {"rust/Cargo.lock": "x", "rust/Cargo.toml": "x", "rust/a/Cargo.toml": "x"})
    assert not [note for note in proposed(here)["notes"] if "no lock file" in note]


def test_a_variable_that_moves_the_cache(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable moves the tool's cache, init says so."""
    made(here.root, {"Cargo.lock": "x"})
    monkeypatch.setenv("CARGO_HOME", "/opt/cargo")
    assert any("$CARGO_HOME is set" in note for note in proposed(here)["notes"])


@pytest.mark.parametrize(
    ("lock", "text", "note"),
    [
        ("pnpm-lock.yaml", "uses: pnpm/action-setup@v4", "ci.yml has pnpm/action-setup, "),
        ("uv.lock", "uses: astral-sh/setup-uv@v7", "ci.yml has astral-sh/setup-uv, "),
        ("package-lock.json", "env: {npm_config_cache: .npm}", "ci.yml has npm_config_cache, "),
    ],
)
def test_a_workflow_that_moves_the_cache(here: Here, lock: str, text: str, note: str) -> None:
    """Where CI files use what moves the tool's cache, init says so, and which command tells where to."""
    made(here.root, {lock: "x", ".github/workflows/ci.yml": text})
    (said,) = (said for said in proposed(here)["notes"] if "ci.yml has" in said)
    assert note in said
    assert said.endswith(" says where)")
    made(here.root, {".github/workflows/ci.yml": "uses: my-pnpm/action-setup-x"})
    assert not [said for said in proposed(here)["notes"] if "ci.yml has" in said]


def test_a_dockerfile(here: Here) -> None:
    """A Dockerfile that nothing builds with buildx is no cache that a save would look for in vain, but a note."""
    made(here.root, {"Dockerfile": "FROM scratch"})
    report = proposed(here)
    assert report["caches"] == []
    assert any("type=local" in note for note in report["notes"])


def test_a_builder_that_exports(here: Here) -> None:
    """With a cache of buildx init says which builder it takes, unless a workflow makes one."""
    made(here.root, {"Dockerfile": "FROM scratch", "Makefile": "docker buildx build ."})
    assert any("docker buildx create" in note for note in proposed(here)["notes"])
    made(here.root, {".github/workflows/ci.yml": "uses: docker/setup-buildx-action@v3"})
    assert not any("docker buildx create" in note for note in proposed(here)["notes"])


def test_buildx_without_a_dockerfile(here: Here) -> None:
    """A script that calls buildx for something that is not in the repository is no reason for a cache."""
    made(here.root, {"Makefile": "docker buildx build elsewhere", "package-lock.json": "{}"})
    assert names(here) == ["npm"]


def test_its_own_files_tell_nothing(here: Here) -> None:
    """What init wrote mentions tools, and is no reason to propose them."""
    made(here.root, {"package-lock.json": "{}", "Dockerfile": "FROM scratch"})
    made(here.root, {".github/workflows/cachekit.yml": "run: docker buildx build; ccache"})
    assert names(here) == ["npm"]


@pytest.mark.parametrize(
    ("file", "text", "ci"),
    [
        (".github/workflows/x.yml", "on: push", "github"),
        (".gitlab-ci.yml", "a: {}", "gitlab"),
        ("Jenkinsfile", "pipeline {}", "jenkins"),
        (".git/config", '[remote "origin"]\n\turl = git@github.com:a/b', "github"),
        (".git/config", '[remote "origin"]\n\turl = https://gitlab.example.org/a/b', "gitlab"),
        ("README", "x", None),
    ],
)
def test_the_ci_is_guessed(here: Here, file: str, text: str, ci: str | None) -> None:
    """Without an argument the snippet is for the CI of which the repository's files tell, else its remote."""
    made(here.root, {file: text, "package-lock.json": "{}"})
    report = proposed(here)
    assert report["ci"] == ci
    paths = [file["path"] for file in report["files"]]
    assert paths[0] == "cachekit.toml"
    assert len(paths) == (1 if ci is None else 2)
    assert ci is not None or any("name one" in note for note in report["notes"])


@pytest.mark.parametrize("ci", CIS)
def test_each_ci(here: Here, ci: str) -> None:
    """Each CI's files are written, readable as any file of the repository, and a second run has nothing to write."""
    made(here.root, {"package-lock.json": "{}"})
    os.umask(umask := os.umask(0))
    here("init", ci, "--yes").expect()
    report = proposed(here, ci)
    assert report["files"] == []
    written = [path for path in here.root.rglob("*cachekit*") if path.is_file()]
    assert len(written) >= (1 if ci == "jenkins" else 2)
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert "nothing to write" in here("init", ci).expect().stderr


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml", "Jenkinsfile"])
def test_snippets_have_the_build(here: Here, name: str) -> None:
    """The snippet's build is the repository's own, in the place of the example; nothing else differs."""
    made(here.root, {"web/package-lock.json": "{}", "requirements.txt": "x"})
    ci = {"github.yml": "github", "gitlab.yml": "gitlab", "Jenkinsfile": "jenkins"}[name]
    here("init", ci, "--yes").expect()
    (path,) = (
        path
        for path in here.root.rglob("*")
        if path.name in {"Jenkinsfile", "cachekit.yml"} and path.is_file()
    )
    own, shipped = path.read_text().splitlines(), snippet(name).splitlines()
    added = [line.strip() for line in own if line not in shipped]
    assert len(added) == 2
    assert "npm ci --prefer-offline" in added[0]
    assert "pip install -r requirements.txt" in added[1]
    assert [line.strip() for line in shipped if line not in own] in (["make"], ["- make"], ["sh 'make'"])


@pytest.mark.parametrize(
    ("shipped", "shown"),
    [
        ("github.yml", "init/github.yml"),
        ("gitlab.yml", "init/gitlab.yml"),
        ("Jenkinsfile", "init/Jenkinsfile"),
        ("cachekit-clean.service", "self-hosted/cachekit-clean.service"),
        ("cachekit-clean.timer", "self-hosted/cachekit-clean.timer"),
        ("crontab", "self-hosted/crontab"),
    ],
)
def test_shipped_snippets_are_those_that_are_checked(shipped: str, shown: str) -> None:
    """What init writes is what lies in ci-snippets, where each command line is parsed and each file is validated."""
    assert snippet(shipped) == (PROJECT / "ci-snippets" / shown).read_text()


def test_an_existing_configuration(here: Here) -> None:
    """Caches that the configuration has stay as they are, to the byte; what it lacks is added at the end."""
    old = '# mine\nstore = "/x"\n[caches.npm]\nkey = "mine"\npaths = ["p"]\n'
    old += '[caches.rust]\nkey="r"\npaths=["~/.cargo/registry"]'
    made(here.root, {"cachekit.toml": old, "package-lock.json": "", "Cargo.lock": "", "go.sum": ""})
    Path("cachekit.toml").chmod(0o600)
    here("init", "--yes").expect()
    text = Path("cachekit.toml").read_text()
    assert text.startswith(old + "\n\n[caches.go]\n")
    assert list(tomllib.loads(text)["caches"]) == ["npm", "rust", "go"]
    assert stat.S_IMODE(Path("cachekit.toml").stat().st_mode) == 0o600
    here("config", "check").expect()


def test_a_configuration_in_the_project_file(here: Here) -> None:
    """With [tool.cachekit] in pyproject.toml no second file is made; init says what to add."""
    made(here.root, {"pyproject.toml": "[tool.cachekit]\n", "uv.lock": ""})
    report = proposed(here)
    assert report["files"] == []
    (note,) = (note for note in report["notes"] if "pyproject.toml" in note)
    assert "[tool.cachekit.caches.uv]" in note
    Path("pyproject.toml").write_text("[tool.cachekit]\n" + note.partition("\n")[2])
    here("config", "check").expect()
    assert not [note for note in proposed(here)["notes"] if "pyproject.toml" in note]


@pytest.mark.parametrize("text", ["caches = {}\n", "[caches\n", "x = 1\nx = 2\n", "\xff"])
def test_a_configuration_that_cannot_be_extended(here: Here, text: str) -> None:
    """One that is no TOML, or closed to further tables, is left alone, with a sentence (exit 2)."""
    made(here.root, {"package-lock.json": ""})
    Path("cachekit.toml").write_bytes(text.encode("latin-1"))
    with unchanged(here.root):
        done = here("init", "--yes").expect(2)
    assert "hint" in done.stderr or "UTF-8" in done.stderr


def test_other_content_is_not_overwritten(here: Here) -> None:
    """A snippet's file that says something else is refused (exit 8), with nothing written at all, unless --force."""
    made(here.root, {"package-lock.json": "", ".github/workflows/cachekit.yml": "mine"})
    assert "--yes --force" in here("init").expect().stderr
    with unchanged(here.root):
        here("init", "--yes").expect(8)
    here("init", "--yes", "--force").expect()
    assert Path(".github/workflows/cachekit.yml").read_text() != "mine"


def test_an_existing_jenkinsfile(here: Here) -> None:
    """A Jenkinsfile of the repository's own stays; the snippet lies beside it."""
    made(here.root, {"package-lock.json": "", "Jenkinsfile": "pipeline { mine }"})
    here("init", "--yes").expect()
    assert Path("Jenkinsfile").read_text() == "pipeline { mine }"
    assert Path("Jenkinsfile.cachekit").exists()


@pytest.mark.parametrize(
    "place", ["cachekit.toml", ".github", ".github/workflows", ".github/workflows/cachekit.yml"]
)
def test_links_are_not_followed(here: Here, tmp_path: Path, place: str) -> None:
    """A link in the place of a file or directory is refused: nothing outside of the repository is read or written."""
    made(here.root, {"package-lock.json": ""})
    outside = tmp_path / "outside"
    outside.mkdir()
    (here.root / place).parent.mkdir(parents=True, exist_ok=True)
    (here.root / place).symlink_to(outside)
    with unchanged(outside):
        here("init", "github", "--yes").expect(8)


def test_where_the_repository_is(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for upwards to where .git is; --root names another; the home directory is none."""
    made(here.root, {"package-lock.json": "", "a/b/x": ""})
    monkeypatch.chdir(here.root / "a/b")
    assert proposed(here)["root"] == str(here.root)
    assert names(here, "--root", str(here.root / "a")) == []
    here("init", "--root", "absent").expect(2)
    monkeypatch.chdir(here.home)
    here("init").expect(2)
    here("init", "travis").expect(2)


@requires("unprivileged")
def test_without_permission(open_path: Path, nobody_cli: Cli) -> None:
    """A repository that may not be written is exit 8 with the path; what may not be read in it is passed over."""
    root = open_path / "repository"
    (root / ".git").mkdir(parents=True)
    (root / "closed").mkdir(mode=0o700)
    made(root, {"package-lock.json": "", "closed/go.sum": ""})
    assert os.stat(root).st_uid != NOBODY
    report = nobody_cli("init", "--json", cwd=root).expect().json()
    assert [cache["name"] for cache in report["caches"]] == ["npm"]
    done = nobody_cli("init", "--yes", cwd=root).expect(8)
    assert "cachekit.toml" in done.stderr


@requires("tmpfs")
def test_a_full_disk(here: Here) -> None:
    """Without room nothing is half written: exit 5, and a configuration that was there is as it was."""
    with filesystems.tmpfs(1 << 20) as disk:
        made(disk.path, {"package-lock.json": "", "cachekit.toml": "# mine\n" * 1000})
        disk.fill(0)
        before = sorted(os.listdir(disk.path))
        here("init", "--yes", "--root", str(disk.path)).expect(5)
        assert sorted(os.listdir(disk.path)) == before
        assert (disk.path / "cachekit.toml").read_text() == "# mine\n" * 1000


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    """What was changed since the diff was made is not written over."""
    made(tmp_path, {"cachekit.toml": "# changed"})
    for old in (None, "# as it was"):
        with pytest.raises(TargetNotWritable):
            write(str(tmp_path), [FileChange("cachekit.toml", old, "new")])
    assert (tmp_path / "cachekit.toml").read_text() == "# changed"
