"""Whatever command line the documentation and the snippets show, the real command line takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_lines import command_lines, cut_by_cron, files, refusal
from tests.support.ordinary_user import PROJECT


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_each_command_line_is_taken(path: Path) -> None:
    """Every command line in a page or snippet parses: commands, options, values that are not the shell's to tell."""
    refused = [f"{line}: {why}" for line in command_lines(path) if (why := refusal(line))]
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_cron_runs_the_whole_line(path: Path) -> None:
    """No line for a crontab has a bare per cent sign, at which cron would end the command."""
    assert cut_by_cron(path) == []


def test_what_cron_would_cut() -> None:
    """A bare per cent sign is found in a crontab and in a page's block, an escaped one and prose are not."""
    line = "1 2 * * *  cachekit clean --below 80% --until 70%"
    assert cut_by_cron(PROJECT / "crontab", line) == [line]
    assert cut_by_cron(PROJECT / "page.md", f"```\n{line}\n```\n") == [line]
    assert cut_by_cron(PROJECT / "crontab", line.replace("%", r"\%")) == []
    assert cut_by_cron(PROJECT / "page.md", f"80 % of it\n\n{line}\n") == []


def test_they_are_found() -> None:
    """The command lines are really found: those of the README's two commands, and in the generated pages."""
    readme = {line.arguments[0] for line in command_lines(PROJECT / "README.md")}
    assert {"save", "restore", "verify", "prune", "key"} <= readme
    assert len(command_lines(PROJECT / "docs/cli.md")) > 50


FOUND = {
    "pipeline.yml": (
        """
a: {script: ["cachekit ls x", "echo cachekit"]}
b:
  run: |
    if ! cachekit restore a; then
      x
    fi
# `cachekit prune --max-size 5G`
name: cachekit restore of a name
""",
        ["ls x", "prune --max-size 5G", "restore a"],
    ),
    "x.sh": (
        """
sudo -E env "PATH=$PATH" cachekit clean --free 20G
A=1 exec cachekit ls && cachekit save \\
  --key "$K" x 2>&1 |tee y
key=$(cachekit key '{os}') # cachekit nothing
cat <<'E'
cachekit no
E
pip install cachekit
cachekit ls >"$f"; timeout 9 .venv/bin/cachekit stats; (cd cachekit && ls)
""",
        ["clean --free 20G", "key {os}", "ls", "ls", "save --key $ x", "stats"],
    ),
    "y.service": (
        "[Service]\nExecStart=/opt/bin/cachekit prune --each\nExecStop=-cachekit ls\n",
        ["ls", "prune --each"],
    ),
    "crontab": (
        "MAILTO=x\n17 3 * * 1-5 cachekit clean --stage cron\n@daily root cachekit prune\n",
        ["clean --stage cron", "prune"],
    ),
    "Jenkinsfile": (
        'sh \'cachekit ls\'\nsh(script: """\n  cachekit save --key ${K} a\n""")\n',
        ["ls", "save --key $@ a"],
    ),
    "page.md": (
        """
Use `cachekit verify FILE` and `cachekit.toml`.

```
$ cachekit ls
cachekit: said nothing
```

```text
Examples:
  cachekit stats

prose: cachekit gone
```

```json
cachekit no
```
""",
        ["ls", "stats", "verify $"],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_a_command_line(name: str) -> None:
    """In each kind of file the commands are found, through what runs them, and mentions of the name are not."""
    text, expected = FOUND[name]
    found = [str(line).partition(": cachekit ")[2] for line in command_lines(PROJECT / name, text)]
    assert sorted(found) == expected


@pytest.mark.parametrize(
    "text",
    [
        "cachekit restor x",
        "cachekit save --key",
        "cachekit save --kay a",
        'cachekit clean --stage "pre post"',
        "cachekit save --key k --min-free lots",
        "cachekit config chek",
        "cachekit lock run name -- cachekit prune --max-sise 5G",
        "cachekit",
        "cachekit key",
        "cachekit stats --since 7d extra",
        "sudo -n cachekit --jason ls",
    ],
)
def test_what_is_refused(text: str) -> None:
    """A command, option or value that does not exist is refused, as is what is missing or too much."""
    (line, *more) = command_lines(PROJECT / "bad.sh", text)
    assert not more
    assert refusal(line)
