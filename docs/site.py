"""`make docs`: the README, the pages of docs/ and the API from the docstrings, as a static site in site/.

pdoc makes pages from modules, so each of our pages becomes the docstring of a module in the package `guide`.
"""

import re
import shutil
import sys
import tempfile
from pathlib import Path

import pdoc

import vggkit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
FURTHER = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}


def main() -> None:
    shutil.rmtree(SITE, ignore_errors=True)
    pages = {path: path.stem for path in sorted((ROOT / "docs").glob("*.md"))}
    pages |= {ROOT / name: module for name, module in FURTHER.items()}
    with tempfile.TemporaryDirectory() as folder:
        guide = Path(folder) / "guide"
        guide.mkdir()
        (guide / "__init__.py").write_text(repr(linked(ROOT / "README.md", "")))
        for path, module in pages.items():
            (guide / f"{module}.py").write_text(repr(linked(path, "../")))
        pdoc.render.configure(docformat="google", footer_text="vggkit")
        sys.path.insert(0, folder)
        for name in vggkit.__all__:  # which are imported at their first use, and pdoc looks for what is there
            setattr(vggkit, name, getattr(vggkit, name))
        pdoc.pdoc("guide", "vggkit", output_directory=SITE)
    shutil.copytree(ROOT / "docs/pictures", SITE / "pictures")
    missing = [
        f"{page.relative_to(SITE)}: {target}"
        for page in SITE.rglob("*.html")
        for target in re.findall(r'(?:href|src)="([^":#]+\.(?:html|png|svg))', page.read_text())
        if not (page.parent / target).exists()
    ]
    if missing:
        sys.exit("expected every link to lead somewhere, got " + ", ".join(missing))


def linked(page: Path, up: str) -> str:
    """The text of `page` with its relative links as the site has them; `up` leads from it to the site's top."""

    def to_site(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        target = (page.parent / path).resolve().relative_to(ROOT)
        if target.parts[:2] == ("docs", "pictures"):
            path = f"{up}pictures/{target.name}"
        elif str(target) == "README.md":
            path = f"{up}guide.html"
        elif target.suffix == ".md":
            path = f"{up}guide/{FURTHER.get(target.name, target.stem)}.html"
        return f"]({path}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\]\(([^):\s]+)\)", to_site, page.read_text())


if __name__ == "__main__":
    main()
