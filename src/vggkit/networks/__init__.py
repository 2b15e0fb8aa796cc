"""Data to torch modules."""
