"""The version of vggkit; everything else reads it here."""

__version__ = "0.6.0"
