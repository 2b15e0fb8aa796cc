"""docs/uses.md shows the commands that docs/gallery.py makes its pictures with."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_picture_stands_below_the_commands_that_made_it():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs/gallery.py")
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    page = (ROOT / "docs/uses.md").read_text()
    for command in gallery.COMMANDS:
        assert f"\n{command}\n" in page
    for name in gallery.PICTURES:
        assert f"](pictures/{name}.jpg)" in page
        assert (ROOT / f"docs/pictures/{name}.jpg").stat().st_size < 150_000
