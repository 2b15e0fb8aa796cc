"""`vgg <verb>`: find the verb, run it, turn errors into one line. Only the verbs that need torch import it."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import vggkit
from vggkit.errors import DivergedError, UserError, VggkitError, nearest, one_line, shown
from vggkit.training import stopping
from vggkit.verbs import VERBS, module_of
from vggkit.verbs.terminal import DONE, FAILED, INTERRUPTED, USER_ERROR, print_to_stderr

USAGE = """vgg: the workbench for networks made of VGG blocks

  vgg describe vgg16             what a network costs
  vgg train                      train the quick recipe on Fashion-MNIST
  vgg VERB --help                a verb's flags, with examples

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vgg` with `argv`, by default the process's own; the exit code is 2 for a user's mistake."""
    verb, *arguments = list(sys.argv[1:] if argv is None else argv) or ["help"]
    stopping.ends_with_run = argv is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (for the whole process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes instead of errors on a terminal without UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(verb, arguments)
        except SystemExit as exit_request:  # tyro's, after --help and after a wrong flag
            code = exit_request.code if isinstance(exit_request.code, int) else DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `vgg ... | head`: discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt as interrupt:  # `vgg train` gives the code of its signal
        return interrupt.args[0] if interrupt.args else INTERRUPTED
    except (VggkitError, ValueError, OSError, MemoryError, RuntimeError) as error:
        return _report(verb, error)


def _report(verb: str, error: Exception) -> int:
    """Print `error` in one line and return its exit code; an unexpected error is raised again."""
    message = one_line(error)
    if isinstance(error, VggkitError):
        code = error.exit_code
    elif isinstance(error, RuntimeError | MemoryError):  # torch has no type of its own for a CPU's memory
        if "memory" not in message.lower():
            raise error
        code = FAILED
        message = f"expected enough memory, got: {message}, try a smaller --batch-size, --image-size or --hidden"
    else:
        is_user_error = isinstance(error, ValueError) or getattr(error, "errno", None) == errno.ENAMETOOLONG
        code = USER_ERROR if is_user_error else FAILED
    rank, num_processes = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1 or rank == "0" or not isinstance(error, DivergedError):
        where = f"rank {rank}: " if num_processes > 1 else ""
        print_to_stderr(f"vgg {shown(verb)}: {where}{message}")
    return code


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-V", "--version"):
        print(f"vggkit {vggkit.__version__}")
        return DONE
    if verb in ("-h", "--help", "help") and arguments:
        verb, arguments = arguments[0], [*arguments[1:], "--help"]
    if verb in ("-h", "--help", "help"):
        lines = [f"  {verb:<11} {module_of(verb).Flags.__doc__.splitlines()[0]}" for verb in VERBS]
        print(USAGE + "\n".join(lines))
        return DONE
    if verb not in VERBS:
        close = nearest(verb, VERBS)
        raise UserError(f"expected one of {', '.join(VERBS)}, try {f'vgg {close}' if close else 'vgg --help'}")
    code: int | None = module_of(verb).run(arguments)
    return DONE if code is None else code
