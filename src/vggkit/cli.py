"""`vgg <verb>`: find the verb, run it, turn errors into one line. Only the verbs that need torch import it."""

import os
import sys
from collections.abc import Sequence
from types import ModuleType

import vggkit
from vggkit.verbs import bench, data, describe, doctor, draw, evaluate, features, predict, train, weights
from vggkit.verbs.terminal import DONE, FAILED, INTERRUPTED, USER_ERROR

VERBS: dict[str, ModuleType] = {
    "describe": describe,
    "draw": draw,
    "data": data,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "features": features,
    "weights": weights,
    "doctor": doctor,
    "bench": bench,
}
"""Each has `Flags`, whose docstring is the help, and `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vgg` with `argv`, by default the process's own; the exit code is 2 for a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    try:
        code = _run(verb, arguments[1:])
        sys.stdout.flush()
        return code
    except ValueError as error:  # ArchitectureError, RecipeError, DataError and WeightsError are ValueErrors
        print(f"vgg {verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # `vgg ... | head`: what Python still holds goes nowhere, without a complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        print(f"vgg {verb}: {error}", file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        print(
            f"vgg {verb}: expected enough memory, got: {str(error).splitlines()[0]}, "
            "try a smaller --batch-size, --image-size or --hidden",
            file=sys.stderr,
        )
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return DONE
    if verb in ("-V", "--version"):
        print(f"vggkit {vggkit.__version__}")
        return DONE
    if verb not in VERBS:
        raise ValueError(f"expected one of {', '.join(VERBS)}, try 'vgg --help'")
    code: int = VERBS[verb].run(arguments)
    return code


def _usage() -> str:
    lines = [f"  {verb:<9} {module.Flags.__doc__.splitlines()[0]}" for verb, module in VERBS.items()]
    return "\n".join(
        [
            "vgg: the workbench for networks made of VGG blocks",
            "",
            "  vgg <verb> --help    shows the verb's flags",
            "",
            *lines,
        ]
    )
