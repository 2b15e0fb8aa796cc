"""`vgg chapter`: the chapter and its exercises, measured, as one page."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggkit.data.files import write_whole
from vggkit.errors import shown
from vggkit.lab.experiments import EXPERIMENTS, Size
from vggkit.verbs.terminal import DONE, RESUMABLE, Short, check_out, given, parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Measure the chapter and its exercises, as one page.

    Examples:
      vgg chapter --size gpu --language zh -o chapter-zh.html
      vgg chapter --data fashion-mnist-sample --exercises batch-norm resolution
    """

    out: Short[Path] = Path("chapter.html")
    """The page, one HTML file that needs nothing else."""
    size: Size = "minutes"
    """How much is trained: minutes for each exercise, hours, or what needs a GPU."""
    language: Literal["en", "zh"] = "en"
    """English or Chinese, from the same runs."""
    exercises: tuple[str, ...] = tuple(EXPERIMENTS)
    """Which, as vgg experiment --list names them."""
    data: str | None = None
    """Other data than Fashion-MNIST."""
    epochs: int | None = None
    """Other than those of the size."""
    runs: Path | None = None
    """The folder of the runs, and where to go on from; experiments/chapter-<size> if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; a GPU, if there is one, if not given."""


def run(arguments: list[str]) -> int:
    """Run the verb; returns the exit code: 75 if a signal stopped it, after which the same command goes on."""
    flags = parse_flags("chapter", Flags, arguments)
    check_out(flags.out, ".html", reads=(flags.data,))
    runs = flags.runs or Path("experiments") / f"chapter-{flags.size}"

    from vggkit.lab.chapter import chapter_page, measured_chapter

    changes = given(data=flags.data, epochs=flags.epochs)
    chapter = measured_chapter(
        flags.size, runs, names=flags.exercises, changes=changes, device=flags.device, say=print_to_stderr
    )
    if chapter is None:
        print(f"stopped; go on with the same command, or --runs {shown(runs, 500)}")
        return RESUMABLE
    page = chapter_page(chapter, shlex.join(["vgg", "chapter", *arguments]), flags.language)
    write_whole(flags.out, page.encode("utf-8", "backslashreplace"))
    print(shown(flags.out, 500))
    return DONE
