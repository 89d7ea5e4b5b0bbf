"""Draw docs/pictures/refused.svg: a cut archive is refused, and the cache heals, as a terminal of 80 columns shows it.

    python docs/picture.py

What is drawn is what the commands say when they are run now, in a pseudo terminal, in a directory of their own.
"""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

COLUMNS = 80
PICTURE = Path(__file__).parent / "pictures/refused.svg"

KEY = "npm-4f1c02"
RESTORE = f"cachekit restore --key {KEY} node_modules"
SAVE = f"cachekit save --key {KEY} node_modules"

_WIDTH, _HEIGHT, _MARGIN = 8.43, 19, 16  # of a character at 14 px, of a line, around all
_COLOURS = (("$ ", "#7ee787"), ("# ", "#8b949e"), ("cachekit: warning", "#f2cc60"), ("restored ", "#79c0ff"))

_FONT = "ui-monospace, Menlo, Consolas, monospace"


def lines() -> list[str]:
    """Run the story; return what stands in the terminal at its end, at most 80 characters a line."""
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory, "project")
        tree = project / "node_modules"
        _install(tree)
        _run(SAVE, project)
        (entry,) = Path(directory).glob("cachekit/v1/default/entries/*")
        os.truncate(entry, entry.stat().st_size * 3 // 5)
        shutil.rmtree(tree)
        said = ["# The disk was full when this archive was copied: 3/5 of it are there.", f"$ {RESTORE}"]
        said += _run(RESTORE, project)
        _install(tree)
        said += [
            "",
            "# The job installs anew, and saves. The cache has healed.",
            f"$ {SAVE}",
            *_run(SAVE, project),
        ]
        shutil.rmtree(tree)
        said += [f"$ {RESTORE}", *_run(RESTORE, project)]
    return [part for line in said for part in _wrapped(line)]


def _install(tree: Path) -> None:
    content = random.Random(1)
    tree.mkdir(parents=True)
    for number in range(48):
        (tree / f"module-{number}.js").write_bytes(content.randbytes(50_000))


def _run(command: str, project: Path) -> list[str]:
    """Run a command on a terminal of its own; return the lines that stay on it."""
    directory = project.parent
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HOME": str(directory),
        "CACHEKIT_STORE": str(directory / "cachekit"),
        "CACHEKIT_STATE_DIR": str(directory / "state"),
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm",
    }
    program = [sys.executable, "-m", *command.split()]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project)
        os.execve(program[0], program, environment)
    said = b""
    try:
        while part := os.read(terminal, 65536):
            said += part
    except OSError:  # how Linux says that nobody has the other end any more
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{command}: {said.decode()}")
    return what_stays(said.decode())


def what_stays(said: str) -> list[str]:
    """Return the lines a terminal shows in the end: a bar that was wiped is gone, whatever stands there now."""
    rows = said.replace("\r\n", "\n").removesuffix("\n").split("\n")  # a bare "\r" ends no line
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", row.rpartition("\r")[2]) for row in rows]


def _wrapped(line: str) -> Iterator[str]:
    yield line[:COLUMNS]
    for start in range(COLUMNS, len(line), COLUMNS):
        yield line[start : start + COLUMNS]


def draw(text: list[str]) -> str:
    """Return the picture."""
    width, height = round(COLUMNS * _WIDTH) + 2 * _MARGIN, len(text) * _HEIGHT + 2 * _MARGIN
    rows, colour = [], ""
    for number, line in enumerate(text):
        if number == 0 or len(text[number - 1]) < COLUMNS:  # else it goes on
            colour = next((fill for begin, fill in _COLOURS if line.startswith(begin)), "")
        fill = f' fill="{colour}"' if colour else ""
        y = _MARGIN + number * _HEIGHT + 14
        rows.append(f'<text x="{_MARGIN}" y="{y}"{fill}>{escape(line)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            "<title>A cut archive is refused, the job goes on, the cache heals</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
            f'<g font-family="{_FONT}" font-size="14" fill="#e6edf3" xml:space="preserve">',
            *rows,
            "</g>",
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(lines()), encoding="utf-8")
