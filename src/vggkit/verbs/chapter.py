"""`vgg chapter`: the chapter and its exercises, measured, as one page."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggkit.data.files import write_whole
from vggkit.errors import shown
from vggkit.lab.experiments import EXPERIMENTS, Size
from vggkit.verbs.terminal import DONE, RESUMABLE, Out, check_out, given, parse_flags, print_to_stderr


@dataclass(frozen=True)
class Flags:
    """Measure the chapter and its exercises, as one page.

    Examples:
      vgg chapter --size gpu --language zh -o chapter-zh.html
      vgg chapter --data fashion-mnist-sample --exercises batch-norm resolution
    """

    out: Out[Path] = Path("chapter.html")
    """The page to write, a self-contained .html file."""
    size: Size = "minutes"
    """How much to train: minutes for each exercise, hours, or as much as needs a GPU."""
    language: Literal["en", "zh"] = "en"
    """English or Chinese; both use the same runs."""
    exercises: tuple[str, ...] = tuple(EXPERIMENTS)
    """The exercises, by their names in vgg experiment --list."""
    data: str | None = None
    """Data to use instead of Fashion-MNIST."""
    epochs: int | None = None
    """Epochs of every run, instead of those of --size."""
    runs: Path | None = None
    """Folder of the runs, from which a stopped command resumes; experiments/chapter-<size> if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; if not given, a GPU if there is one."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code is 75 if a signal stopped it, after which the same command resumes."""
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
