"""Where HMAC keys come from: the environment or a file that others cannot read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from cachekit.errors import InvalidRequest
from cachekit.trust import HmacKey, parse_keys

__all__ = ["KEY_FILE_VARIABLE", "KEY_VARIABLE", "load_keys", "without_keys"]

KEY_VARIABLE = "CACHEKIT_HMAC_KEY"
KEY_FILE_VARIABLE = "CACHEKIT_HMAC_KEY_FILE"
_MOST_BYTES = 64 << 10
#: Who must not be able to do what with a key file: others nothing, the group no more than read it.
_TOO_OPEN = stat.S_IRWXO | stat.S_IWGRP


def load_keys(environ: Mapping[str, str] = os.environ) -> tuple[HmacKey, ...]:
    """Return the keys that the environment gives, the one that signs first; none if no variable is set.

    An empty variable counts as not set: that is what a CI gives to jobs that may not have a secret. Raises
    InvalidRequest, never with any part of a key.
    """
    text, path = environ.get(KEY_VARIABLE), environ.get(KEY_FILE_VARIABLE)
    if text and path:
        raise InvalidRequest(
            f"{KEY_VARIABLE} and {KEY_FILE_VARIABLE} are both set: which key signs would be a guess",
            hint="unset one of them",
        )
    if text:
        keys = parse_keys(text)
    elif path:
        keys = parse_keys(_read(path), comments=True)
    else:
        return ()
    if not keys:
        raise InvalidRequest(
            f"{KEY_VARIABLE if text else KEY_FILE_VARIABLE} gives no key",
            path=path,
            expected="one key a line",
        )
    return keys


def without_keys(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program that has no business with the keys."""
    return {name: value for name, value in environ.items() if name not in {KEY_VARIABLE, KEY_FILE_VARIABLE}}


def _read(path: str) -> str:
    try:
        # O_NONBLOCK: a fifo in the file's place must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequest(f"the HMAC key file cannot be read: {error.strerror}", path=path) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise InvalidRequest("the HMAC key file is no regular file", path=path)
        if info.st_mode & _TOO_OPEN:
            raise InvalidRequest(
                "the HMAC key file is open to others: they could sign entries of their own, or change the key",
                path=path,
                expected="mode 0640 or less",
                found=f"mode {stat.S_IMODE(info.st_mode):04o}",
                hint=f"chmod 600 it; where that cannot be, pass its text in {KEY_VARIABLE}",
            )
        text = os.read(fd, _MOST_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"the HMAC key file cannot be read: {error.strerror}", path=path) from None
    finally:
        os.close(fd)
    if len(text) > _MOST_BYTES:
        raise InvalidRequest(
            "the HMAC key file is too long", path=path, expected=f"at most {_MOST_BYTES} bytes"
        )
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(
            "the HMAC key file is no UTF-8 text", path=path, hint="make a key with: openssl rand -hex 32"
        ) from None
