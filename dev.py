#!/usr/bin/env python3
"""Everything a checkout needs, with nothing but Python: `python3 dev.py demo`, `python3 dev.py test`.

The first call makes a virtual environment in .venv, later ones reuse it. The system's own Python is never
touched, and neither pip nor venv's ensurepip need to be there (Debian ships them as separate packages).
This file stays readable to Python 3.6, so that an old one gets a sentence and not a SyntaxError.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - the one place where an older Python is met
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"dev.py: cachekit needs Python 3.11 or newer, not {version} ({sys.executable})", file=sys.stderr)
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        if shutil.which(name):
            print(f"Run: {name} {' '.join(map(shlex.quote, sys.argv))}", file=sys.stderr)
            break
    sys.exit(2)

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
# Names what .venv was completed for. Written first with nothing in it (ours, not finished) and last in full.
STAMP = os.path.join(VENV, ".cachekit-dev")

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MOST_WORKERS = 8  # pytest processes; more only fight for the disk


class SetupError(Exception):
    """The environment cannot be made; the message says why and what helps."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py", description="Try cachekit or check a change, from a bare checkout.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("setup", add_help=False, help="only make .venv with the developers' tools")
    commands.add_parser("demo", add_help=False, help="run `cachekit demo` (more arguments are handed to it)")
    commands.add_parser("test", add_help=False, help="run every check (more arguments are handed to pytest)")
    commands.add_parser("fix", add_help=False, help="let ruff repair and format what it can")
    args, rest = parser.parse_known_args()
    if os.name != "posix":
        print("dev.py: cachekit runs on Linux, and on macOS as far as it goes", file=sys.stderr)
        return EXIT_USAGE
    try:
        if args.command == "demo":
            prepare(dev=False)
            run_demo(rest)
        prepare(dev=True)
        if args.command == "setup":
            return 0
        return run_fix() if args.command == "fix" else run_checks(rest)
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


# Commands


def run_demo(arguments: list[str]) -> NoReturn:
    sys.stdout.flush()
    command = os.path.join(VENV, "bin", "cachekit")
    os.execve(command, [command, "demo", *arguments], venv_environment())


def run_fix() -> int:
    ruff = os.path.join(VENV, "bin", "ruff")
    for arguments in (["check", "--fix-only"], ["format"]):
        subprocess.run([ruff, *arguments], cwd=ROOT, check=False)
    return subprocess.run([ruff, "check", "--quiet"], cwd=ROOT, check=False).returncode


def run_checks(pytest_arguments: list[str]) -> int:
    """Run all checks, also after a failed one; pytest last, so that its closing line is easy to find."""
    count = min(cpus(), MOST_WORKERS)
    workers = ["-n", str(count), "--dist", "loadgroup"] if count > 1 else []
    checks = [
        ("ruff check", ["ruff", "check"]),
        ("ruff format", ["ruff", "format", "--check"]),
        ("mypy", ["mypy"]),
        ("lint-imports", ["lint-imports", "--no-cache", "--no-logo"]),
        ("pytest", ["pytest", *workers, *pytest_arguments]),
    ]
    first_failure = 0
    failed = []
    for name, (tool, *arguments) in checks:
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run(
            [os.path.join(VENV, "bin", tool), *arguments], cwd=ROOT, env=venv_environment(), check=False
        ).returncode
        code = 128 - code if code < 0 else code  # ended by a signal: what a shell would say
        outcome = f"FAILED, exit {code}" if code else "ok"
        print(f"{name}: {outcome} ({time.monotonic() - began:.1f} s)", flush=True)
        if code:
            failed.append(name)
            first_failure = first_failure or code
        if code == 128 + signal.SIGINT:
            break
    if failed:
        print(f"dev.py: FAILED: {', '.join(failed)}", flush=True)
        if "ruff format" in failed or "ruff check" in failed:
            print("dev.py: `python3 dev.py fix` repairs and formats what a tool can", flush=True)
    else:
        print(f"dev.py: all {len(checks)} checks passed", flush=True)
    return first_failure


def cpus() -> int:
    """The processors that this process may use: in a container fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def venv_environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    env["VIRTUAL_ENV"] = VENV
    env["PATH"] = os.path.join(VENV, "bin") + os.pathsep + env.get("PATH", os.defpath)
    return env


# The virtual environment


def prepare(*, dev: bool) -> None:
    """Make .venv fit: with the run-time dependencies, or with the developers' tools as well."""
    wanted = [fingerprint("dev")] if dev else [fingerprint("dev"), fingerprint("run")]
    if read_stamp() in wanted:
        return
    with only_one():
        found = read_stamp()
        if found in wanted:  # the process that we waited for made it
            return
        began = time.monotonic()
        content = "with the developers' tools" if dev else "run-time packages only"
        print(f"dev.py: setting up .venv, Python {sys.version.split()[0]}, {content}", flush=True)
        if found == fingerprint("run"):  # only the tools are missing
            write_stamp("")
        else:
            remake()
            install_pip()
        install(".[dev]" if dev else ".")
        write_stamp(fingerprint("dev" if dev else "run"))
        print(f"dev.py: .venv is ready ({time.monotonic() - began:.0f} s)", flush=True)


def fingerprint(kind: str) -> str:
    """What .venv depends on: where it is, the interpreter, the declared packages, and this file."""
    digest = hashlib.sha256(f"{VENV}\0{os.path.realpath(base_python())}\0{sys.version}".encode())
    for name in ("pyproject.toml", "dev.py"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return f"{kind} {digest.hexdigest()}"


def base_python() -> str:
    """The interpreter itself, also when this runs in a virtual environment (even the very one to remake)."""
    return getattr(sys, "_base_executable", None) or sys.executable


def read_stamp() -> str | None:
    """The finished environment's fingerprint; empty: ours, not finished; None: no stamp."""
    try:
        with open(STAMP, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


def write_stamp(text: str) -> None:
    beside = STAMP + ".new"
    with open(beside, "w", encoding="ascii") as file:
        file.write(text + "\n")
    os.replace(beside, STAMP)


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """One set-up at a time in a checkout. The lock is on the folder and ends with the process."""
    import fcntl

    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("dev.py: waiting for another dev.py that sets up .venv", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        # A pip that outlives a killed dev.py holds the lock on, so that nothing is remade under it.
        os.set_inheritable(folder, True)
        yield
    finally:
        os.close(folder)


def remake() -> None:
    """An empty virtual environment, without pip, in place of whatever dev.py left there before."""
    if os.path.lexists(VENV) and (
        os.path.islink(VENV) or not os.path.isdir(VENV) or (os.listdir(VENV) and read_stamp() is None)
    ):
        raise SetupError(f"{VENV} was not made by dev.py: move it away, and run this again")
    os.makedirs(VENV, exist_ok=True)
    write_stamp("")
    for entry in os.scandir(VENV):
        if entry.path == STAMP:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    failure = run([base_python(), "-m", "venv", "--without-pip", VENV])
    if failure:
        raise SetupError(
            f"cannot make a virtual environment:\n{failure}\n"
            "On Debian or Ubuntu, `apt-get install python3` brings the venv module."
        )


def install(requirement: str) -> None:
    """The checkout itself, editable: `compat` is a line in a .pth file, not a hook in each import."""
    mode = ["--config-settings", "editable_mode=compat"]
    failure = run([VENV_PYTHON, "-m", "pip", "install", "-q", *mode, "-e", requirement])
    if failure:
        raise SetupError(
            f"pip could not install what cachekit needs:\n{failure}\n"
            "Is a package index reachable? pip's own settings apply (PIP_INDEX_URL, PIP_CERT, pip.conf)."
        )


def run(command: list[str], *, cwd: str = ROOT) -> str | None:
    """Run a step of the set-up: None if it went well, else the end of what it said."""
    env = venv_environment()
    env.update(PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", LC_ALL="C.UTF-8")
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            close_fds=False,  # see only_one
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        return f"  {shlex.quote(command[0])}: {error.strerror}"
    if done.returncode == 0:
        return None
    lines = [line[:300] for line in done.stdout.splitlines() if line.strip()][-15:]
    lines = lines or [f"{command[0]}: exit {done.returncode}, without a word"]
    return "\n".join(f"  {line}" for line in lines)


# pip, from the nearest place that has it


def install_pip() -> None:
    """Put pip into .venv. Debian ships Python without pip and ensurepip, so sources are tried in turn."""
    sources: list[tuple[str, Callable[[str], str | None]]] = [
        ("ensurepip", pip_from_ensurepip),
        ("this Python's pip", pip_from_running_python),
        ("a wheel of this system", pip_from_system_wheel),
        ("apt-get", pip_from_apt),
        ("the package index", pip_from_index),
    ]
    reasons = []
    for name, source in sources:
        with tempfile.TemporaryDirectory(prefix="cachekit-dev-") as scratch:
            failure = source(scratch)
            if failure is None:
                return
        reasons.append(f"  {name}: {failure.strip().splitlines()[-1].strip()}")
    raise SetupError(
        "found no pip to install with:\n" + "\n".join(reasons) + "\n"
        "On Debian or Ubuntu, run `apt-get install python3-venv` once (as root); elsewhere install pip for\n"
        "this Python, or set PIP_INDEX_URL to an index that can be reached. Then run this again."
    )


def pip_from_ensurepip(_scratch: str) -> str | None:
    return run([VENV_PYTHON, "-m", "ensurepip", "--default-pip"])


def pip_from_running_python(_scratch: str) -> str | None:
    return run([base_python(), "-m", "pip", "--python", VENV_PYTHON, "install", "-q", "pip"])


def pip_from_system_wheel(_scratch: str) -> str | None:
    return pip_from_folder("/usr/share/python-wheels")


def pip_from_apt(scratch: str) -> str | None:
    """Debian's own wheel of pip: downloading a package needs no root, and unpacking it installs nothing."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "not a Debian or Ubuntu"
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "python3-pip-whl"]
    failure = run(download, cwd=scratch)
    if failure and os.geteuid() == 0:
        failure = run(["apt-get", "-qq", "update"]) or run(download, cwd=scratch)
    if failure:
        return failure
    for name in os.listdir(scratch):
        if name.endswith(".deb"):
            failure = run(["dpkg-deb", "-x", name, "unpacked"], cwd=scratch)
    return failure or pip_from_folder(os.path.join(scratch, "unpacked/usr/share/python-wheels"))


def pip_from_index(scratch: str) -> str | None:
    """The newest wheel that the configured index offers for this Python, its sha256 checked."""
    import ssl
    import urllib.parse
    import urllib.request

    index = configured_index()
    if index is None:
        return "none is set (PIP_INDEX_URL, or index-url in pip.conf)"
    page = index.rstrip("/") + "/pip/"
    certificates = os.environ.get("PIP_CERT")
    try:
        context = ssl.create_default_context(cafile=certificates)
        with urllib.request.urlopen(page, timeout=60, context=context) as answer:
            best = newest_wheel(answer.read().decode("utf-8", "replace"))
            page = answer.geturl()
        if best is None:
            return "offers no wheel of pip for this Python"
        address, name, sha256 = best
        address = urllib.parse.urljoin(page, address)
        with urllib.request.urlopen(address, timeout=60, context=context) as answer:
            wheel = answer.read()
    except (OSError, ValueError) as error:  # URLError is an OSError; a bad address a ValueError
        return f"did not answer: {error}"
    if sha256 and hashlib.sha256(wheel).hexdigest() != sha256:
        return f"sent a damaged {name}"
    with open(os.path.join(scratch, name), "wb") as file:
        file.write(wheel)
    return pip_from_folder(scratch)


def configured_index() -> str | None:
    """Where pip would look: the environment, then the usual files, the user's before the system's."""
    import configparser

    if os.environ.get("PIP_INDEX_URL"):
        return os.environ["PIP_INDEX_URL"]
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    for path in (
        os.environ.get("PIP_CONFIG_FILE", ""),
        os.path.join(config, "pip/pip.conf"),
        os.path.join(home, ".pip/pip.conf"),
        "/etc/pip.conf",
        "/etc/xdg/pip/pip.conf",
    ):
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, encoding="utf-8")
        for section in ("install", "global"):
            if parser.has_option(section, "index-url"):
                return parser.get(section, "index-url")
    return None


def newest_wheel(page: str) -> tuple[str, str, str | None] | None:
    """Address, file name and sha256 of the newest released wheel of pip on an index page, for this Python."""
    import html

    found = []
    for attributes in re.findall(r"<a\s([^>]*)>", page):
        values = {name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', attributes)}
        address, _, fragment = values.get("href", "").partition("#")
        name = address.rpartition("/")[2]
        version = re.fullmatch(r"pip-(\d+(?:\.\d+)*)-py3-none-any\.whl", name)
        floor = re.search(r">=\s*3\.(\d+)", values.get("data-requires-python", ""))
        if not version or "data-yanked" in attributes or (floor and int(floor[1]) > sys.version_info[1]):
            continue
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        found.append((tuple(map(int, version[1].split("."))), (address, name, sha256)))
    return max(found)[1] if found else None


def pip_from_folder(folder: str) -> str | None:
    """A wheel of pip can be run as it is, and so installs itself."""
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    wheels = sorted(name for name in names if re.fullmatch(r"pip-[^-]+-py3-none-any\.whl", name))
    if not wheels:
        return f"{folder} has none"
    wheel = os.path.join(folder, wheels[-1])
    return run([VENV_PYTHON, os.path.join(wheel, "pip"), "install", "-q", "--no-index", "--no-deps", wheel])


if __name__ == "__main__":
    sys.exit(main())
