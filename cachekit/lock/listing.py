"""``lock ls``: the named locks of a directory, who holds them and who waits."""

from __future__ import annotations

import os
import re

from cachekit.errors import StoreUnavailable
from cachekit.system.locking.named import State, look

__all__ = ["named_locks_in"]

_NAME = re.compile(r".{1,60}-[0-9a-f]{32}", re.DOTALL)


def named_locks_in(place: str) -> list[State]:
    """Return the state of every lock in ``place``, by name; none if it does not exist. Raises StoreUnavailable."""
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailable(f"the locks cannot be listed: {error.strerror}", path=place) from None
    found = []
    for name in sorted(names):
        if not _NAME.fullmatch(name):
            continue
        path = os.path.join(place, name)
        try:
            state = look(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StoreUnavailable(f"the lock cannot be looked at: {error.strerror}", path=path) from None
        if state is not None:
            found.append(state)
    return found
