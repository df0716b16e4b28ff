"""Errors that a user can act on.

Every one of them carries a single line that says what is wrong, where (file, line, row, parameter) and what would be
right. The command line prints that line and exits with status 2; a notebook shows it as the last line of its traceback.
"""


class LlamaxError(Exception):
    """Base of all errors that are the input's or the machine's fault rather than the library's."""


class ParameterError(LlamaxError):
    """An unknown parameter, a wrong type, a profile that does not exist."""


class DataError(LlamaxError):
    """A missing file, a malformed row, a conversation that cannot be trained on."""


class ModelError(LlamaxError):
    """A model folder without weights, a tokenizer without template, tokens that must differ and do not."""


class TrainingError(LlamaxError):
    """A run that cannot train: no supervised token, a learning rate that never moves, a loss that is not finite."""


class CheckpointError(LlamaxError):
    """A checkpoint that is damaged, or that belongs to another run."""


class LaunchError(LlamaxError):
    """A rank failed, or the launcher could not start; the message ends with the failing rank's own traceback."""


class RunError(LlamaxError):
    """A notebook run that cannot start or did not finish."""


class SandboxError(LlamaxError):
    """Too little on this machine to shut a program in, or a sandbox that does not start."""


class PaperError(LlamaxError):
    """A paper that says something its results do not."""


class DiskFullError(LlamaxError):
    """No space left while writing; what was there before is untouched."""
