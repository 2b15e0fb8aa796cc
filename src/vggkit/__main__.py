"""`python -m vggkit` is `vgg`. For `train`, signals are handled before the slow imports begin."""

import sys
from contextlib import nullcontext

from vggkit.training.stopping import signals_handled


def main() -> int:
    """Run `vgg` with the process's arguments; returns the exit code."""
    with signals_handled() if sys.argv[1:2] == ["train"] else nullcontext():
        from vggkit import cli

        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
