"""Caches of kind oci, without an engine: what is saved and restored is a whole layout, or nothing is."""

from __future__ import annotations

import os
import shutil

from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.layouts import MadeLayout, content


def test_a_whole_layout_and_a_damaged_one(cli: Cli) -> None:
    """A whole layout is saved and restored; one with a bad layer is neither, and what is there stays as it is."""
    layout = MadeLayout(cli.cwd / "cache")
    image = layout.image("app", [content(1)])
    cli("save", "--kind=oci", "--key=whole", "cache").expect(0)
    file = layout.file(layout.blob(content(1)))
    file.write_bytes(bytes(1000))
    assert "was not saved" in cli("save", "--kind=oci", "--key=bad", "cache").expect(4).stderr
    cli("save", "--key=bad", "cache").expect(0)
    shutil.rmtree(layout.path)
    report = cli("restore", "--kind=oci", "--key=bad", "--json", "cache").expect(0).json()
    assert report["status"] == "refused"
    assert report["tried"][0]["verdict"] == "wrong-content"
    assert not layout.path.exists()
    assert (
        cli("restore", "--kind=oci", "--key=whole", "--json", "cache").expect(0).json()["status"] == "exact"
    )
    assert layout.file(image).exists()
    assert file.read_bytes() == content(1)


def test_an_entry_that_is_no_layout(cli: Cli) -> None:
    """An entry with a link in its layout, where none is followed, or with no directory, is refused: the job goes on."""
    layout = MadeLayout(cli.cwd / "cache")
    layout.image("app", [content(1)])
    for name in ("blobs", "blobs/sha256"):
        os.rename(layout.path / name, layout.path / "real")
        os.symlink(layout.path / "real", layout.path / name)
        cli("save", "--key", f"link {name}", "cache").expect(0)
        os.unlink(layout.path / name)
        os.rename(layout.path / "real", layout.path / name)
    shutil.rmtree(layout.path)
    layout.path.write_text("no directory")
    cli("save", "--key=link file", "cache").expect(0)
    layout.path.unlink()
    for name in ("blobs", "blobs/sha256", "file"):
        report = cli("restore", "--kind=oci", "--key", f"link {name}", "--json", "cache").expect(0).json()
        assert report["status"] == "refused"
        assert not layout.path.exists()


def test_what_is_restored_in_place_is_verified_there(cli: Cli) -> None:
    """What is no layout after a restore in place, one with a link in it too, is refused; a whole one is a hit again."""
    layout = MadeLayout(cli.cwd / "cache")
    image = layout.image("app", [content(1)])
    cli("save", "--kind=oci", "--key=whole", "cache").expect(0)
    command = ("restore", "--kind=oci", "--in-place", "--json")
    for name in ("blobs", "file"):
        if name == "blobs":
            os.rename(layout.path / name, layout.path / "real")
            os.symlink(layout.path / "real", layout.path / name)
        else:
            shutil.rmtree(layout.path)
            layout.path.write_text("no directory")
        cli("save", "--key", name, "cache").expect(0)
        report = cli(*command, "--key", name, "cache").expect(0).json()
        assert (report["status"], report["tried"][0]["verdict"]) == ("refused", "wrong-content")
        shutil.rmtree(layout.path, ignore_errors=True)
        layout.path.unlink(missing_ok=True)
        assert cli(*command, "--key=whole", "cache").expect(0).json()["status"] == "exact"
        assert layout.file(image).exists()


def test_every_layout_that_is_saved_is_whole(cli: Cli) -> None:
    """Of several, a damaged one that is named last is noticed as the first would be, and what to do is told."""
    whole, damaged = MadeLayout(cli.cwd / "a"), MadeLayout(cli.cwd / "b")
    whole.image("app", [content(1)])
    damaged.file(damaged.image("app", [content(1)])).unlink()
    for order in (("a", "b"), ("b", "a")):
        done = cli("save", "--kind=oci", "--key=k", *order).expect(4)
        assert "was not saved" in done.stderr
        assert "cachekit oci verify shows all of it" in done.stderr


def test_a_directory_that_is_not_there_is_not_made(cli: Cli) -> None:
    """To save a layout that is not there makes no directory for its lock."""
    assert cli("save", "--kind=oci", "--key=k", "cache").code != 0
    assert not (cli.cwd / "cache").exists()


def test_an_entry_that_is_a_link_to_a_layout(cli: Cli) -> None:
    """What is restored in place is verified itself: that a link leads to a whole layout makes it none."""
    layout = MadeLayout(cli.cwd / "real")
    layout.image("app", [content(1)])
    for more in ((), ("--in-place",)):
        (cli.cwd / "cache").unlink(missing_ok=True)
        (cli.cwd / "cache").symlink_to("real")
        cli("save", "--key=link", "cache").expect(0)
        report = cli("restore", "--kind=oci", "--key=link", "--json", *more, "cache").expect(0).json()
        assert (report["status"], report["tried"][0]["verdict"]) == ("refused", "wrong-content")


def test_below_a_link_a_layout_is_restored_in_place(cli: Cli) -> None:
    """Links on the way to the directory are the user's own, and it may be the one where the command runs."""
    layout = MadeLayout(cli.cwd / "real" / "cache")
    image = layout.image("app", [content(1)])
    (cli.cwd / "link").symlink_to("real")
    for name, cwd in (("link/cache", cli.cwd), (".", layout.path)):
        cli("save", "--kind=oci", "--key", name, name, cwd=cwd).expect(0)
        layout.file(image).unlink()
        command = ("restore", "--kind=oci", "--in-place", "--json", "--key", name, name)
        assert cli(*command, cwd=cwd).expect(0).json()["status"] == "exact"
        assert layout.file(image).exists()


@requires("root")
def test_a_layout_that_is_only_read(nobody_cli: Cli) -> None:
    """A layout in which its lock cannot be made, because it belongs to somebody else, is saved without it."""
    layout = MadeLayout(nobody_cli.cwd / "cache")
    layout.image("app", [content(1)])
    layout.path.chmod(0o755)
    nobody_cli("save", "--kind=oci", "--key=k", "cache").expect(0)
    assert not (layout.path / ".cachekit-locks").exists()
