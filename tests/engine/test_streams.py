"""Images out of real engines and into them."""

from __future__ import annotations

import io
import tarfile

import pytest

from cachekit.engine.outcome import EngineRefused
from tests.support.capabilities import requires
from tests.support.docker import DockerHost
from tests.support.engines import any_engine, engine_of, running_engines

__all__ = ["any_engine", "engine_of", "running_engines"]

pytestmark = [requires("docker"), pytest.mark.xdist_group("engines")]


def exported(host: DockerHost, *names: str) -> bytes:
    """Return the whole tar of some images."""
    buffer = memoryview(bytearray(64 << 10))
    pieces = []
    with host.client.export(names) as stream:
        while count := stream.readinto(buffer):
            pieces.append(bytes(buffer[:count]))
        assert stream.last_words == ""
    return b"".join(pieces)


def load(host: DockerHost, data: bytes, *, whole: bool = True) -> list[str]:
    """Load a tar; without `whole` hang up in its middle."""
    with host.client.load() as stream:
        for offset in range(0, len(data), 64 << 10):
            stream.write(data[offset : offset + (64 << 10)])
        return stream.finish() if whole else []


def test_an_image_goes_out_and_in(any_engine: DockerHost) -> None:
    """What was exported can be loaded again, and is the same image under the same name."""
    any_engine.image("a/b:1", busybox=True)
    any_engine.image("c:2", content=b"c" * 100_000)
    before = {name: any_engine.client.describe_image(name) for name in ("a/b:1", "c:2")}
    data = exported(any_engine, "a/b:1", "c:2")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert "manifest.json" in tar.getnames()
    any_engine.empty()
    assert any_engine.client.describe_image("c:2") is None
    load(any_engine, data)
    assert {name: any_engine.client.describe_image(name) for name in before} == before
    assert before["a/b:1"] is not None
    assert len(before["a/b:1"].diff_ids) == 1
    assert before["a/b:1"].platform == "linux/amd64"


def test_a_load_that_is_broken_off_changes_nothing(any_engine: DockerHost) -> None:
    """Leaving a load in the middle, even behind the last layer, leaves the engine as it was."""
    any_engine.image("a:1", busybox=True)
    data = exported(any_engine, "a:1")
    any_engine.empty()
    before = any_engine.snapshot()
    for end in (len(data) // 2, len(data) - 1024, len(data)):
        load(any_engine, data[:end], whole=False)
    assert any_engine.snapshot()["images"] == before["images"]


def test_a_refusal_is_told(any_engine: DockerHost) -> None:
    """An unknown name, and a tar that is none, are refused with the engine's own sentence."""
    with pytest.raises(EngineRefused) as missing:
        exported(any_engine, "never-made:1")
    assert "exist" in missing.value.message or "No such image" in missing.value.message
    with pytest.raises(EngineRefused) as broken:
        load(any_engine, b"x" * 5_000_000)
    assert broken.value.message
