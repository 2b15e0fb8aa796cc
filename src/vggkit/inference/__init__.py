"""A trained network to answers."""
