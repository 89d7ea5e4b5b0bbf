"""The values that only plan files and goals have: sizes or shares of a filesystem."""

from __future__ import annotations

import re

from cachekit.clean.model import Amount
from cachekit.errors import InvalidRequest
from cachekit.tables.values import read_percent, read_size, read_whole

__all__ = ["read_amount", "read_inodes"]


def read_amount(value: object) -> Amount:
    """Return a size (``20G``) or a share of the filesystem (``15%``)."""
    if isinstance(value, str) and "%" in value:
        return Amount(percent=read_percent(value))
    try:
        return Amount(read_size(value))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, hint='write "20G" or "15%"') from None


def read_inodes(value: object) -> Amount:
    """Return a number of inodes (``250000``), or a share of all (``5%``)."""
    if isinstance(value, str) and "%" in value:
        return Amount(percent=read_percent(value))
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    try:
        return Amount(read_whole(value))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, hint='write 250000 or "5%"') from None
