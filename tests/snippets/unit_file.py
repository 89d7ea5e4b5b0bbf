"""A systemd unit as far as its sandbox can be made without systemd: writable places, capabilities, variables."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Arg


@dataclass(frozen=True, slots=True)
class Unit:
    """The settings of a unit file's ``[Service]`` section, each with all its values in their order."""

    settings: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Unit:
        """Read the file: comments, continued lines, settings that are given twice."""
        settings: dict[str, list[str]] = {}
        section = ""
        for line in path.read_text().replace("\\\n", " ").splitlines():
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and line[0] not in "#;":
                name, _, value = line.partition("=")
                settings.setdefault(name, []).append(value)
        return cls(settings)

    def words(self, name: str) -> list[str]:
        """All words of a setting."""
        return [word for value in self.settings.get(name, ()) for word in shlex.split(value)]

    @property
    def command(self) -> list[str]:
        """The words of ``ExecStart=``, with %% for a per cent sign."""
        words = self.words("ExecStart")
        assert not any("%" in word.replace("%%", "") for word in words), (
            "a specifier, which is not known here"
        )
        return [word.replace("%%", "%") for word in words]

    @property
    def environment(self) -> dict[str, str]:
        """What a system service without ``User=`` gets."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        own = dict(word.split("=", 1) for word in self.words("Environment"))
        return {"PATH": path, "LANG": "C.UTF-8", "INVOCATION_ID": "0" * 32} | own

    def writable(self, there: set[str]) -> list[Path]:
        """The places that ``ReadWritePaths=`` and ``StateDirectory=`` name, of those that are `there`."""
        assert self.settings["ProtectSystem"] == ["strict"]
        paths = self.words("ReadWritePaths") + [f"/var/lib/{name}" for name in self.words("StateDirectory")]
        missing = {path for path in paths if not path.startswith("-")} - there
        assert not missing, f"systemd would not start it without {missing}"
        return [Path(path) for path in (path.removeprefix("-") for path in paths) if path in there]

    @property
    def drop(self) -> list[Arg]:
        """What stands before a command to take its privileges away as the unit says."""
        kept = [name.removeprefix("CAP_").lower() for name in self.words("CapabilityBoundingSet")]
        only = ",".join(["-all", *(f"+{name}" for name in kept)])
        assert self.settings["NoNewPrivileges"] == ["yes"]
        # Without a network of its own there would be one: "PrivateNetwork=yes".
        own: list[Arg] = ["unshare", "--net"] if self.settings.get("PrivateNetwork") == ["yes"] else []
        umask: list[Arg] = ["sh", "-c", 'umask "$0"; exec "$@"', *self.settings.get("UMask", ["0022"])]
        return [
            *own,
            *umask,
            "setpriv",
            f"--bounding-set={only}",
            f"--inh-caps={only}",
            "--no-new-privs",
            "--",
        ]
