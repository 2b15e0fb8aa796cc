"""The version of vggkit, which is said nowhere else."""

__version__ = "0.6.0"
