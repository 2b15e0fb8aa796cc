"""`vgg completion`: a script that lets a shell complete verbs, flags and their values."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, Positional, subcommand

from vggkit.verbs import VERBS, module_of
from vggkit.verbs.terminal import parse_flags, prepare


@dataclass(frozen=True)
class Flags:
    """Print a script that completes verbs and flags in your shell.

    Examples:
      vgg completion bash > ~/.local/share/bash-completion/completions/vgg
      vgg completion fish > ~/.config/fish/completions/vgg.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell that the script is for."""


def run(arguments: list[str]) -> int:
    """Run the verb; the exit code."""
    flags = parse_flags("completion", Flags, arguments)
    kinds = []
    for verb in VERBS:
        kind = module_of(verb).Flags
        prepare(kind)
        pairs = () if verb == "train" else (FlagCreatePairsOff,)
        kinds.append(
            Annotated[(kind, subcommand(verb, description=kind.__doc__.splitlines()[0]), DisallowNone, *pairs)]
        )
    verbs: Any = Union[tuple(kinds)]  # noqa: UP007 (made of a list)
    tyro.cli(verbs, prog="vgg", args=["--tyro-print-completion", flags.shell])
    raise AssertionError("tyro exits once it has printed the script")
