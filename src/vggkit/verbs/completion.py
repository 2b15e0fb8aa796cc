"""`vgg completion`: a script with which a shell completes verbs, flags and their values."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import CascadeSubcommandArgs, DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, Positional, subcommand

from vggkit.verbs import VERBS, module_of
from vggkit.verbs.terminal import parse_flags


@dataclass(frozen=True)
class Flags:
    """Print a script that completes verbs and flags in your shell.

    Examples:
      vgg completion bash > ~/.local/share/bash-completion/completions/vgg
      vgg completion fish > ~/.config/fish/completions/vgg.fish
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell that the script is for."""


def run(arguments: list[str]) -> None:
    """Run the verb."""
    flags = parse_flags("completion", Flags, arguments)
    subcommands = []
    for verb in VERBS:
        kind = module_of(verb).Flags
        pairs = () if verb == "train" else (FlagCreatePairsOff,)
        style = subcommand(verb, description=kind.__doc__.splitlines()[0])
        subcommands.append(Annotated[(kind, style, DisallowNone, CascadeSubcommandArgs, OmitArgPrefixes, *pairs)])
    verbs: Any = Union[tuple(subcommands)]  # noqa: UP007 (made of a list)
    tyro.cli(verbs, prog="vgg", args=["--tyro-print-completion", flags.shell])
