"""What every attack must meet: a refusal, in every mode of restoring, that leaves no trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.errors import Refused, Unsafe
from cachekit.trust import ANYONE
from tests.support.archives import Member, directory, file_entry, restore_tree
from tests.support.snapshots import unchanged

TREE = directory(b"tree")
HONEST = Member(b"tree/file", content=b"honest")


def refuse(place: Path, data: bytes, message: str, kind: type[Refused] = Unsafe) -> None:
    """Restore an attack in every mode: refused with that sentence, quarantined, and no tree is touched.

    Where the damage shows only in the contents, staging was made beside the target meanwhile: of the directory that
    holds the targets only the names are compared.
    """
    store, root = place.parent / "store", place / "root"
    names = sorted(os.listdir(root))
    with unchanged(root / "tree", place / "victim"):
        for mode in ("merge", "replace", "in-place"):
            path = file_entry(store, data)
            with pytest.raises(kind, match=message), open_archive(bytes(path), ANYONE) as archive:
                check_contents(archive, 0)
            report = restore_tree(store, place / "root", mode=mode, all_targets=True)
            assert report.status == "refused"
            assert report.tried[0]["verdict"] == kind.id
            assert report.quarantined == [path.name]
            assert not path.exists()
            assert sorted(os.listdir(root)) == names
            assert sorted(os.listdir(place)) == ["root", "victim"]
