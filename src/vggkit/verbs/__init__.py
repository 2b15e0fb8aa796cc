"""The verbs of `vgg`, a module each: `Flags`, whose docstring is the help, and `run`."""
