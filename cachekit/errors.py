"""Every failure that cachekit reports, as one tree.

::

    CachekitError                 exit  id
    ├── InvalidRequest              2   usage
    │   ├── PlanInvalid             2   plan-invalid
    │   └── ConfigInvalid           2   config-invalid
    ├── Missed                      3   miss
    ├── Refused                     4   refused
    │   ├── Damaged                 4   damaged
    │   ├── Forged                  4   forged
    │   ├── Unsafe                  4   unsafe
    │   ├── Unsealed                4   unsealed
    │   ├── Unsupported             4   unsupported
    │   ├── Untrusted               4   untrusted
    │   └── WrongContent            4   wrong-content
    ├── NoSpace                     5   no-space
    ├── LockTimeout                 6   lock-timeout
    ├── GoalNotMet                  7   goal-not-met
    ├── SourceOrTargetRefused       8   source-or-target
    │   ├── NothingMatched          8   nothing-matched
    │   ├── SourceChanged           8   source-changed
    │   ├── SourceUnreadable        8   source-unreadable
    │   ├── NameConflict            8   name-conflict
    │   ├── TargetNotNamed          8   target-not-named
    │   ├── TargetNotWritable       8   target-not-writable
    │   └── UnfinishedTarget        8   unfinished-target
    ├── Unavailable                 9   unavailable
    │   ├── NoEngine                9   engine-unavailable
    │   │   └── EngineFailed        9   engine-failed
    │   └── StoreUnavailable        9   store-unavailable
    │       ├── Unreadable          9   unreadable
    │       ├── StoreUntrusted      9   store-untrusted
    │       └── StoreReadOnly       9   store-read-only
    ├── RefusedToRun              121   refused-to-run
    ├── LockBusy                  122   lock-busy
    ├── NotRun                    125   not-run
    │   └── LockLost              125   lock-lost
    ├── NotExecutable             126   not-executable
    ├── NotFound                  127   not-found
    └── Interrupted           130/143   interrupted

An error means that a promise could not be kept. A miss is a value (see ``model.RestoreReport``), not an error; `Missed`
exists for callers that asked to be told by exit code. The exit codes are those of docs/errors.md, which is generated
from this module.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CachekitError",
    "ConfigInvalid",
    "Damaged",
    "EngineFailed",
    "Forged",
    "GoalNotMet",
    "Interrupted",
    "InvalidRequest",
    "LockBusy",
    "LockLost",
    "LockTimeout",
    "Missed",
    "NameConflict",
    "NoEngine",
    "NoSpace",
    "NotExecutable",
    "NotFound",
    "NotRun",
    "NothingMatched",
    "PlanInvalid",
    "Refused",
    "RefusedToRun",
    "SourceChanged",
    "SourceOrTargetRefused",
    "SourceUnreadable",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreUntrusted",
    "TargetNotNamed",
    "TargetNotWritable",
    "Unavailable",
    "UnfinishedTarget",
    "Unreadable",
    "Unsafe",
    "Unsealed",
    "Unsupported",
    "Untrusted",
    "WrongContent",
]


class CachekitError(Exception):
    """The root of the tree; never raised itself.

    ``message`` is one sentence without a final full stop. ``path`` is the file or member it is about, ``expected`` and
    ``found`` the two sides of a failed comparison, ``hint`` what the reader can do next. Further fields (for example
    ``need`` and ``have`` in bytes) go into ``fields``. All of them are plain values, so an error survives pickling on
    its way out of a worker process.
    """

    id: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = ""
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        path: str | bytes | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        **fields: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.expected = expected
        self.found = found
        self.hint = hint if hint is not None else self.default_hint
        self.fields: dict[str, object] = {name: value for name, value in fields.items() if value is not None}

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _rebuild,
            (type(self), self.message, self.path, self.expected, self.found, self.hint, self.fields),
        )

    def as_dict(self) -> dict[str, object]:
        """Return the error as JSON-ready values: id, message, exit code and every field that is set."""
        plain: dict[str, object] = {"id": self.id, "message": self.message, "exit_code": self.exit_code}
        for name in ("path", "expected", "found", "hint"):
            value = getattr(self, name)
            if value is not None and (value != "" or name != "hint"):
                plain[name] = value
        plain.update(self.fields)
        return plain


def _rebuild(
    cls: type[CachekitError],
    message: str,
    path: str | bytes | None,
    expected: object,
    found: object,
    hint: str | None,
    fields: dict[str, Any],
) -> CachekitError:
    return cls(message, path=path, expected=expected, found=found, hint=hint, **fields)


class InvalidRequest(CachekitError):
    id = "usage"
    exit_code = 2
    meaning = "An option, a key or a path cannot be used as given; nothing was done."


class PlanInvalid(InvalidRequest):
    """A plan file with faults. ``problems`` (in fields) has all of them, each with its line; the message the first."""

    id = "plan-invalid"
    meaning = "A cleaning plan cannot be used as it is written; nothing was done."
    default_hint = "cachekit plan check FILE shows every fault of it"


class ConfigInvalid(InvalidRequest):
    """A configuration file with faults: all are in ``problems`` (of fields), each with its line, one in the message."""

    id = "config-invalid"
    meaning = "The configuration (cachekit.toml, [tool.cachekit]) cannot be used as it is written; nothing was done."
    default_hint = "cachekit config check shows every fault of it"


class Missed(CachekitError):
    id = "miss"
    exit_code = 3
    meaning = "Nothing was restored and the caller asked to fail on that (--fail-on-miss, --strict)."


class Refused(CachekitError):
    """An archive that must not be used. ``rung`` says which step of the verification ladder refused it."""

    id = "refused"
    exit_code = 4
    meaning = "The archive is not used; nothing of the target was changed."

    @property
    def rung(self) -> str:
        return str(self.fields.get("rung", "seal"))


class Damaged(Refused):
    id = "damaged"
    meaning = "The archive is cut, altered, mixed up or is no cachekit archive at all."
    default_hint = (
        "it cannot be repaired: save it again (cachekit save --force); if it is a copy, copy it again"
    )


class Unsafe(Refused):
    id = "unsafe"
    meaning = "The archive is whole, but what it would write is not allowed (paths, links, kinds)."
    default_hint = (
        "cachekit never writes such an archive: find out who wrote this one before trusting the store"
    )


class Unsupported(Refused):
    id = "unsupported"
    meaning = "The archive needs a newer cachekit."
    default_hint = "upgrade cachekit, or save the entry again with this version"


class Unsealed(Refused):
    id = "unsealed"
    meaning = "Nothing tells whether the file is whole: it has no manifest, and its format promises nothing."
    default_hint = "seal it when it is made: cachekit seal FILE"


class Forged(Refused):
    """An HMAC that is wrong under a key that we have: set aside like a damaged entry."""

    id = "forged"
    meaning = "The archive says that it was signed with your key, and was not."
    default_hint = "somebody without the key can write the store, or changed the archive: find out who"


class Untrusted(Refused):
    """A whole archive of unknown origin. It is left where it is: jobs that ask for no signature may use it."""

    id = "untrusted"
    meaning = "The archive may be whole, but it has no valid signature, and one is required (trust is hmac)."
    default_hint = (
        "nothing to do: the next save by a job with the key puts a signed one in its place (--trust none takes it "
        "as it is)"
    )


class WrongContent(Refused):
    """What was saved was damaged before it was saved. Set aside like a damaged entry, lest it be served for ever."""

    id = "wrong-content"
    meaning = (
        "The archive is whole, and what it holds is not what it is to be (kind oci: a whole OCI layout)."
    )
    default_hint = "it was damaged before it was saved: make it again, and save it with --kind oci"


class NoSpace(CachekitError):
    """Not enough room. Fields: ``need``, ``have``, ``short_by`` (bytes, or inodes when ``unit`` says so)."""

    id = "no-space"
    exit_code = 5
    meaning = "There is not enough space (or inodes, or quota); nothing was published or changed."
    default_hint = "free space on that filesystem, or pass a smaller --min-free"


class LockTimeout(CachekitError):
    id = "lock-timeout"
    exit_code = 6
    meaning = "Another process held the lock for longer than was waited."


class GoalNotMet(CachekitError):
    """A clean or prune ended before enough was free. The report has what was done; ``short_by`` in bytes (or inodes,
    entries).
    """

    id = "goal-not-met"
    exit_code = 7
    meaning = "The clean or prune did what it may do and it was not enough; what remains is named."
    default_hint = "cachekit disk shows what fills the disk; a plan of your own may clean more"


class SourceOrTargetRefused(CachekitError):
    id = "source-or-target"
    exit_code = 8
    meaning = "The tree to be saved, or the place to restore to, does not allow it."


class NothingMatched(SourceOrTargetRefused):
    id = "nothing-matched"
    meaning = (
        "The paths match nothing, or only an empty tree: an empty cache would be a hit that helps nobody."
    )
    default_hint = "check the paths and --root; --allow-empty saves an empty tree on purpose"


class SourceChanged(SourceOrTargetRefused):
    id = "source-changed"
    meaning = "A file changed while it was read, several times; nothing was published."
    default_hint = "save after the job has stopped writing, or pass --changed skip to leave such files out"


class SourceUnreadable(SourceOrTargetRefused):
    id = "source-unreadable"
    meaning = "A file or directory to be saved cannot be read; nothing was published."
    default_hint = "fix its permissions, or leave it out with --exclude"


class NameConflict(SourceOrTargetRefused):
    id = "name-conflict"
    meaning = "Two names would take the same place in the archive or in the target."


class TargetNotNamed(SourceOrTargetRefused):
    id = "target-not-named"
    meaning = "The entry holds targets that were not asked for, or lacks one that was; nothing was written."


class TargetNotWritable(SourceOrTargetRefused):
    id = "target-not-writable"
    meaning = "The target cannot be written; it is as it was."


class UnfinishedTarget(SourceOrTargetRefused):
    id = "unfinished-target"
    meaning = "An earlier restore of this target was killed and is not finished."
    default_hint = "run cachekit recover, which finishes it or puts the old tree back"


class Unavailable(CachekitError):
    id = "unavailable"
    exit_code = 9
    meaning = "What cachekit works with, a store or an engine, cannot be used."


class NoEngine(Unavailable):
    id = "engine-unavailable"
    meaning = "No container engine answers, or not this user; nothing was done."
    default_hint = (
        "start Docker or Podman (systemctl start docker, or podman.socket), "
        "or say in $DOCKER_HOST where its socket is"
    )


class EngineFailed(NoEngine):
    """The engine's own sentence is in the message."""

    id = "engine-failed"
    meaning = "The engine failed at what it was asked for, or sent no whole image; nothing was published."
    default_hint = "the engine's log says more; its disk may be full (cachekit disk)"


class StoreUnavailable(Unavailable):
    id = "store-unavailable"
    meaning = "The store cannot be reached, read or written."


class Unreadable(StoreUnavailable):
    id = "unreadable"
    meaning = "The filesystem under the archive answers with an error; the archive itself may be whole."
    default_hint = "check the disk or mount that holds the store; the entry was left where it is"


class StoreUntrusted(StoreUnavailable):
    """Others than owner and group may write to the store: whoever does could put any entry there."""

    id = "store-untrusted"
    meaning = "Everybody on the machine may write to the store; nothing of it was read or written."
    default_hint = "chmod o-w it, or pass --trust-store if its modes mean nothing (some network filesystems)"


class StoreReadOnly(StoreUnavailable):
    """This job may only restore (--read-only)."""

    id = "store-read-only"
    meaning = "A save was asked for in a job that may only restore (--read-only); nothing was written."
    default_hint = "leave the save out for such jobs, or give them a part of the store with --scope NAME"


class NotRun(CachekitError):
    """A command that runs another one failed itself. Its codes are those that the other one hardly uses (env(1))."""

    id = "not-run"
    exit_code = 125
    meaning = "A command that runs another one (`lock run`) failed itself; the other one was not run."


class RefusedToRun(CachekitError):
    """``refused`` (in fields) is the id of why."""

    id = "refused-to-run"
    exit_code = 121
    meaning = "A file was refused (`guard`); the command was not run."
    default_hint = "make the file again"


class LockBusy(CachekitError):
    """``holders`` (in fields) says who held it, as far as that is known."""

    id = "lock-busy"
    exit_code = 122
    meaning = "Somebody else held the named lock for longer than was waited; the command was not run."
    default_hint = "wait longer with --timeout; cachekit lock ls shows who holds it"


class NotExecutable(CachekitError):
    id = "not-executable"
    exit_code = 126
    meaning = "The command was found and cannot be executed."


class NotFound(CachekitError):
    id = "not-found"
    exit_code = 127
    meaning = "There is no such command."
    default_hint = "check its name and $PATH; the command stands after --"


class LockLost(NotRun):
    """``command_exit`` (in fields) says how the command ended."""

    id = "lock-lost"
    meaning = "Another host took the lease over while the command ran; the command was stopped (SIGTERM)."
    default_hint = (
        "what the command shares may have been used by two at once: check it; a longer --lease-length, or a "
        "filesystem on which locks exclude (cachekit doctor), makes this rarer"
    )


class Interrupted(CachekitError):
    """A signal asked us to stop. ``signal`` (in fields) makes the exit code: 128 + signal."""

    id = "interrupted"
    exit_code = 130
    meaning = "Stopped by a signal (130 for SIGINT, 143 for SIGTERM); nothing was published."
    default_hint = (
        "nothing half written is ever served; a restore that was moving files is ended by the next one, or by "
        "cachekit recover"
    )
