"""A network as data: architectures and their costs. Imports no torch."""
