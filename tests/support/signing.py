"""Keys, and stores whose entries are signed with them."""

from __future__ import annotations

from pathlib import Path

from cachekit.model import Namespace, StoreAddress
from cachekit.trust import HmacKey, Trust

SECRET = "correct horse battery staple"
OTHER_SECRET = "another key that nobody guesses"


def trust_in(*secrets: str, required: bool = True) -> Trust:
    """Make a policy with keys of these texts."""
    return Trust(required, tuple(map(HmacKey, secrets)))


def signed_store(
    path: Path, *secrets: str, required: bool = True, namespace: Namespace | None = None
) -> StoreAddress:
    """Address a store with keys of these texts, `SECRET` without any, and require signatures."""
    trust = trust_in(*(secrets or (SECRET,)), required=required)
    return StoreAddress(str(path), namespace or Namespace(), trust)
