"""The picture of a refused restore shows what the commands say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from docs.picture import COLUMNS, PICTURE, draw, lines


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
