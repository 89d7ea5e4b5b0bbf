"""A small npm project whose only dependency is a file in it, so that `npm ci` needs no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

INSTALLED = "added 1 package"
"""What `npm ci` prints when it has made node_modules anew."""

_FILES = {
    "package.json": b'{"name": "dep", "version": "1.0.0", "main": "index.js"}',
    "index.js": b"module.exports = 42;\n",
    "data.bin": bytes(range(256)) * 800,
}


def npm_project(folder: Path) -> Path:
    """Make the project in `folder`, committed to a git repository whose remote is group/shop, and return `folder`."""
    folder.mkdir(parents=True)
    packed = _tarball()
    digest = base64.b64encode(hashlib.sha512(packed).digest()).decode()
    (folder / "dep-1.0.0.tgz").write_bytes(packed)
    package = {
        "name": "shop",
        "version": "1.0.0",
        "scripts": {"test": "node -e \"process.exit(require('dep') === 42 ? 0 : 1)\""},
        "dependencies": {"dep": "file:dep-1.0.0.tgz"},
    }
    locked = {"version": "1.0.0", "resolved": "file:dep-1.0.0.tgz", "integrity": f"sha512-{digest}"}
    lock = {
        "name": "shop",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "requires": True,
        "packages": {"": package, "node_modules/dep": locked},
    }
    (folder / "package.json").write_text(json.dumps(package))
    (folder / "package-lock.json").write_text(json.dumps(lock))
    (folder / ".gitignore").write_text("/node_modules/\n/.gitlab-ci-local/\n")
    committed(folder)
    return folder


def committed(folder: Path) -> None:
    """Commit everything in `folder`, which becomes a repository if it is none."""
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")
    commands = [["add", "--all"], ["commit", "--quiet", "--message=x", "--allow-empty"]]
    if not (folder / ".git").exists():
        remote = ["remote", "add", "origin", "https://gitlab.example.invalid/group/shop.git"]
        commands = [["init", "--quiet"], remote, *commands]
    for command in commands:
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)


def _tarball() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in _FILES.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()
