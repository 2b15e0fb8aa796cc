"""`python -m vggkit` is `vgg`."""

import sys

from vggkit.cli import main

sys.exit(main())
