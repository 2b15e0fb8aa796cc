"""The errors of vggkit, each one line: what was expected, what came, what to try; and text that fits into one."""


class ArchitectureError(ValueError):
    """A network that cannot be; the message is one line: what was expected, what came, where, what to try."""


class RecipeError(ValueError):
    """A recipe that cannot be; the message is one line."""


class DataError(ValueError):
    """Data that is missing, damaged or not what it says; the message is one line."""


class LoadingError(RuntimeError):
    """Batches that cannot be had, for another reason than a bad image; the message is one line."""


class WeightsError(ValueError):
    """A weight file that is missing, damaged, or of no known kind; the message is one line."""


class KernelError(ValueError):
    """The compiled convolutions cannot be had here; the message is one line."""


class RunError(ValueError):
    """A run that cannot start here; the message is one line."""


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read; the message is one line."""


class DivergedError(RuntimeError):
    """A run whose loss, gradients or outputs are no longer finite; the message is one line."""


class LostError(RuntimeError):
    """The other processes have ended or hang; the message is one line."""


def one_line(error: Exception) -> str:
    """What `error` says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def shown(text: str, quote: bool = True) -> str:
    """`text` for an error message, which stays one short line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    written = repr(short) if quote else short
    return written if len(written) <= 80 else written[:77] + "..."  # an escape is up to ten characters
