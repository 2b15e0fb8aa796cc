"""`vgg chapter`: the chapter and its exercises, measured, as one page."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggkit.data.files import write_whole
from vggkit.errors import shown
from vggkit.lab.experiments import Size
from vggkit.verbs.terminal import DONE, RESUMABLE, Short, check_out, parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Measure the chapter and its exercises, as one page.

    Examples:
      vgg chapter -o chapter.html
      vgg chapter --size gpu --language zh -o chapter-zh.html
    """

    out: Short[Path] = Path("chapter.html")
    """The page, one HTML file that needs nothing else."""
    size: Size = "minutes"
    """How much is trained: minutes for each exercise, hours, or what needs a GPU."""
    language: Literal["en", "zh"] = "en"
    """English or Chinese, from the same runs."""
    runs: Path = Path("experiments") / "chapter"
    """The folder of the runs, and where to go on from."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code: 75 if a signal stopped it, after which the same command goes on."""
    flags = parse_flags("chapter", Flags, arguments)
    check_out(flags.out, ".html")

    from vggkit.lab.chapter import chapter_page, measured_chapter

    chapter = measured_chapter(flags.size, flags.runs, device=flags.device, say=print_to_stderr)
    if chapter is None:
        print("stopped; go on with the same command")
        return RESUMABLE
    page = chapter_page(chapter, shlex.join(["vgg", "chapter", *arguments]), flags.language)
    write_whole(flags.out, page.encode("utf-8", "backslashreplace"))
    print(shown(flags.out, 500))
    return DONE
