"""The picture of a refused restore shows what the commands say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cachekit.cli.progress import ProgressBar
from docs.picture import COLUMNS, PICTURE, draw, lines, what_stays


def same(text: list[str]) -> str:
    """What must be the same in every run: neither times, sizes and speeds, nor where a line ended because of them."""
    return re.sub(r"[0-9a-f]{32}|\d[\d.,]*( [KMG]?i?B)?", "#", "".join(text))


def drawn(svg: str) -> list[str]:
    """Read the lines of a picture."""
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_picture_is_of_a_real_run() -> None:
    """Run in a terminal now, the commands say what the picture in the documentation shows, line for line."""
    now = lines()
    assert same(drawn(PICTURE.read_text())) == same(now)
    assert drawn(draw(now)) == now
    assert max(map(len, now)) <= COLUMNS


def test_what_the_picture_shows() -> None:
    """It shows a refusal that names the archive, a job that goes on, and a hit in the end."""
    text = "".join(drawn(PICTURE.read_text()))
    assert re.search(
        r"refused and set aside.*nothing was written.*saved npm-.*restored npm-.*exact hit", text
    )


def test_a_bar_that_was_wiped_is_not_in_the_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a slow machine a bar is drawn, and drawn over, before the line that stays."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = ProgressBar("saving")
    bar._next = 0.0
    bar(10, 20, 3)
    bar._next = 0.0
    bar(20, 20, 3)
    bar.close()
    said = capsys.readouterr().err
    assert said.count("saving [") == 2
    assert what_stays(f"before\r\n{said}saved\r\n") == ["before", "saved"]
